"""The provider `openstack`: a cluster's machines are servers of an OpenStack cloud.

Labels are a server's metadata and an image's properties; what Neutron keeps has them in its description, which is
there from the first moment. OpenStack has no names that are given once only and no tokens for requests, so that what
was made twice is found out, and the younger one deleted.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import Any

from ems.cluster.definition import OpenstackSection
from ems.cluster.provider import address, bulk
from ems.cluster.provider import stackthings as things
from ems.cluster.provider.base import (
    CLUSTER,
    Finding,
    MachineRequest,
    MachineState,
    Refusal,
    RefusalCause,
    Resource,
    Thing,
    Traits,
    controllers_first,
)
from ems.cluster.provider.cloud import CloudProvider
from ems.cluster.provider.keystone import Answer, ApiError, Login, Openstack, UnreachedError, cloud, own_cloud
from ems.cluster.provider.lease import leased
from ems.cluster.provider.pool import Drivers, side_by_side
from ems.cluster.provider.stackcredential import Credentials
from ems.cluster.provider.stacknet import Network
from ems.cluster.provider.waiting import until
from ems.errors import ProviderError

_MOST = 250  # servers of one call
_TRIES = 4
_BUILT_S, _GONE_S, _STATE_S, _IMAGE_S = 600, 300, 300, 1800
_SEEN_S = 60  # until what was made is listed


class OpenstackProvider(CloudProvider[OpenstackSection]):
    """Servers of an OpenStack cloud; see :class:`~.base.Provider`."""

    @cached_property
    def _apis(self) -> Drivers[Openstack]:
        return Drivers(lambda: Openstack(self._login, self._backoff))

    @cached_property
    def _login(self) -> Login:
        found = own_cloud if self._as_instance else cloud
        return Login(found(self.section.cloud, self.section.auth_url))

    @cached_property
    def _net(self) -> Network:
        return Network(self.section, self._call, self._listed)

    @cached_property
    def _credentials(self) -> Credentials:
        return Credentials(self._login, self._call)

    @cached_property
    def traits(self) -> Traits:
        """What OpenStack can; a network that is there already is asked for its address range."""
        return Traits(
            has_shared_volume=False,
            has_images=True,
            stop_keeps_address=True,
            has_names=False,
            network=self._net.range(),
            zones=self.section.zones,
            makes_alike=True,
        )

    def _call(self, *words: Any, **options: Any) -> Answer:
        with self._apis.one() as api:
            return api.call(*words, **options)

    def _listed(self, service: str, path: str, key: str, **params: str) -> Sequence[Answer]:
        with self._apis.one() as api:
            return api.listed(service, path, key, **params)

    # -- before anything is made

    def _looks(self, requests: Sequence[MachineRequest]) -> Iterator[Finding]:
        looks: list[tuple[str, Callable[[], str]]] = [
            ("credentials", self._enter),
            ("spot", lambda: _check_spot(requests)),
            ("size", lambda: ", ".join(sorted({self._flavor(each)["name"] for each in requests}))),
            ("image", lambda: ", ".join(sorted({self._image(each.image)["name"] for each in requests}))),
            ("zone", lambda: self._check_zones(requests)),
            ("network", self._net.check),
            ("ssh", lambda: ", ".join(address.sources(self.section.ssh_from))),
            ("quota", lambda: self._check_quota(requests)),
        ]
        yield from self._each(looks, frozenset({"credentials"}))

    def _enter(self) -> str:
        self._login.enter("compute")
        return f"they are good for the cloud `{self._login.cloud.name}`"

    def _check_zones(self, requests: Sequence[MachineRequest]) -> str:
        wanted = {*self.section.zones, *(each.zone for each in requests if each.zone)}
        if not wanted:
            return "the cloud chooses"
        found = self._call("compute", "GET", "/os-availability-zone")["availabilityZoneInfo"]
        there = [each["zoneName"] for each in found if (each.get("zoneState") or {}).get("available", True)]
        if missing := wanted - set(there):
            raise ProviderError(f"there is no zone `{min(missing)}`", f"zones are {', '.join(there)}")
        return ", ".join(sorted(wanted))

    def _check_quota(self, requests: Sequence[MachineRequest]) -> str:
        found = self._call("compute", "GET", "/limits")["limits"]["absolute"]
        flavors = [self._flavor(each) for each in requests]
        said = []
        for what, most, used, needed in (
            ("servers", "maxTotalInstances", "totalInstancesUsed", len(requests)),
            ("CPUs", "maxTotalCores", "totalCoresUsed", sum(each["vcpus"] for each in flavors)),
            ("MB of memory", "maxTotalRAMSize", "totalRAMUsed", sum(each["ram"] for each in flavors)),
        ):
            free = found.get(most, -1) - found.get(used, 0)
            if found.get(most, -1) >= 0 and free < needed:
                raise ProviderError(
                    f"the quota of {found[most]:,} {what} has {free:,} left, and {needed:,} are needed",
                    "have fewer or smaller nodes, or ask the cloud's people for more",
                )
            said.append(f"{needed:,} of {free:,} {what} left" if found.get(most, -1) >= 0 else f"any number of {what}")
        return ", ".join(said)

    def prepare(self, labels: dict[str, str]) -> None:
        """Make the cluster's security group, and its network and router where none is named."""
        self._net.prepare(labels)

    def may_delegate(self) -> str:
        """Return what a controller would act by; see :class:`.base.Delegator`."""
        return self._credentials.check()

    def delegate(self, labels: dict[str, str]) -> dict[str, str]:
        """Make the application credential that a controller acts by; see :class:`.base.Delegator`."""
        return self._credentials.make(labels)

    # -- machines

    def create(self, requests: Sequence[MachineRequest]) -> list[Resource | Refusal]:
        """Make servers, those that are alike in one call; see :meth:`.base.Provider.create`."""
        if not requests:
            return []
        cluster = requests[0].labels[CLUSTER]
        found = self._without_doubles(self._servers(cluster))
        there = {each.name: each for each in found if each.state is not MachineState.FAILED}
        missing = [each for each in requests if each.name not in there]
        refused: dict[str, Refusal] = {}
        calls: dict[str, str] = {}
        place = _Place(self._net, requests[0].labels)
        groups = [(group, uuid.uuid4().hex) for group in bulk.groups(missing, _MOST)]
        asked = side_by_side(lambda each: self._post(*each, place), groups)
        for (group, call), part in zip(groups, asked, strict=True):
            refused |= part
            calls |= {each.name: call for each in group if each.name not in part}
        if missing:
            there, failed = self._built(cluster, calls)
            refused |= failed
        return side_by_side(lambda each: self._result(each, there.get(each.name), refused.get(each.name)), requests)

    def _result(self, request: MachineRequest, found: Resource | None, refusal: Refusal | None) -> Resource | Refusal:
        zone = request.zone or ""
        if refusal is not None:
            return refusal
        if found is None:
            return Refusal(request.name, "it was made, and is gone", "", RefusalCause.OTHER, zone)
        try:
            bulk.check_owner(request.name, found.labels, request.labels)
            return self._net.publish(found, request.labels) if request.is_public else found
        except ApiError as error:
            return Refusal(request.name, error.message, error.hint, error.cause, zone)
        except ProviderError as error:
            return Refusal(request.name, error.message, error.hint, RefusalCause.INVALID, zone)

    def _post(self, group: Sequence[MachineRequest], call: str, place: _Place) -> dict[str, Refusal]:
        """Ask for servers that are alike; returns why, where there will be none."""
        request = group[0]
        try:
            body = self._body(group, call, place)
            self._ask_for(body, request.labels[CLUSTER], call)
        except ProviderError as error:
            cause = error.cause if isinstance(error, ApiError) else RefusalCause.OTHER
            zone = request.zone or ""
            return {each.name: Refusal(each.name, error.message, error.hint, cause, zone) for each in group}
        return {}

    def _ask_for(self, body: dict[str, Any], cluster: str, call: str) -> None:
        """Send a request that must not be done twice: where it may have been done, it is looked for by its own mark."""
        for left in range(_TRIES - 1, -1, -1):
            try:
                self._call("compute", "POST", "/servers", body, again=False)
            except (ApiError, UnreachedError) as error:
                if isinstance(error, ApiError) and error.status < 500:
                    raise
                if until(lambda: any(things.call_of(each) == call for each in self._servers(cluster)) or None, 3.0):
                    return
                if not left:
                    raise
            else:
                return

    def _body(self, group: Sequence[MachineRequest], call: str, place: _Place) -> dict[str, Any]:
        request, names = group[0], bulk.encode([each.name for each in group])
        flavor, image = self._flavor(request), self._image(request.image)
        network, security_group = place.ids()
        server: dict[str, Any] = {
            "name": request.name if len(group) == 1 else names.split()[0].rstrip("-"),
            "flavorRef": flavor["id"],
            "imageRef": image["id"],
            "networks": [{"uuid": network}],
            "security_groups": [{"name": security_group}],
            "user_data": things.packed(leased(request)),
            "metadata": {**self.section.labels, **request.labels, bulk.NAMES: names, things.CALL: call},
            "min_count": 1,
            "max_count": len(group),
        }
        if request.zone:
            server["availability_zone"] = request.zone
        if request.disk_gb and request.disk_gb > flavor["disk"]:
            disk = {"uuid": server.pop("imageRef"), "source_type": "image", "destination_type": "volume"}
            disk |= {"boot_index": 0, "volume_size": request.disk_gb, "delete_on_termination": True}
            server["block_device_mapping_v2"] = [disk]
        return {"server": server}

    def _built(self, cluster: str, calls: Mapping[str, str]) -> tuple[dict[str, Resource], dict[str, Refusal]]:
        """Wait until the servers that were asked for run or have failed; those that failed are deleted.

        Each by the mark of its request: an earlier one of the name, which failed elsewhere, may be listed before it.
        """

        def look() -> tuple[list[Answer]] | None:
            found = self._servers(cluster)
            unseen = calls.items() - {(things.name_of(each), things.call_of(each)) for each in found}
            return None if unseen or any(each["status"] == "BUILD" for each in found) else (found,)

        last = until(look, _SEEN_S)
        if last is None:  # one that is never listed must not be waited for as long as one that is built
            until(lambda: None if any(each["status"] == "BUILD" for each in self._servers(cluster)) else True, _BUILT_S)
        found = last[0] if last else self._servers(cluster)
        there = {each.name: each for each in self._without_doubles(found)}
        failed = {name: each for name, each in there.items() if name in calls and each.state is MachineState.FAILED}
        reasons = {each["id"]: things.fault_of(each) for each in found}
        self._delete_servers(list(failed.values()))
        refused = {name: things.refusal(each, reasons.get(each.id, "")) for name, each in failed.items()}
        return {name: each for name, each in there.items() if name not in failed}, refused

    def _without_doubles(self, servers: Sequence[Answer]) -> Sequence[Resource]:
        """Return servers, after those that bear another one's name were deleted: the oldest that did not fail stays."""

        def order(machine: Resource) -> tuple[bool, str, str]:
            return (machine.state is MachineState.FAILED, str(machine.created_at), machine.id)

        kept: dict[str, Resource] = {}
        doubles = []
        for each in sorted(map(things.machine, servers), key=order):
            if each.name in kept and bulk.is_same_owner(each.labels, kept[each.name].labels):
                doubles.append(each)
            else:
                kept[each.name] = each
        self._delete_servers(doubles)
        return list(kept.values())

    def _servers(self, cluster: str | None = None) -> list[Answer]:
        """Return the servers that carry labels, of one cluster or of all."""
        by_name = {"name": f"^{cluster}-"} if cluster else {}
        found = self._listed("compute", "/servers/detail", "servers", limit="1000", **by_name)
        return [
            each
            for each in found
            if CLUSTER in each["metadata"] and cluster in {None, each["metadata"][CLUSTER]} and not things.is_gone(each)
        ]

    def list(self, labels: dict[str, str] | None = None) -> list[Resource]:
        """Return what carries labels: servers, networks, routers, security groups, addresses, images."""
        wanted = labels or {}
        looks: list[Callable[[], Sequence[Resource]]] = [
            lambda: list(map(things.machine, self._servers(wanted.get(CLUSTER)))),
            self._images,
            *self._net.listings(),
            *([] if self._as_instance else [self._credentials.resources]),
        ]
        found = [each for part in side_by_side(lambda look: look(), looks) for each in part]
        return [each for each in found if CLUSTER in each.labels and wanted.items() <= each.labels.items()]

    def _images(self) -> Sequence[Resource]:
        found = self._listed("image", "/images", "images", visibility="private", limit="1000")
        return [things.image(each) for each in found if CLUSTER in each]

    def destroy(self, resources: Sequence[Resource]) -> None:
        """Delete resources, servers first, then what they used."""
        machines = [each for each in resources if each.thing is Thing.MACHINE]
        self._delete_servers(machines)
        side_by_side(self._delete_image, [each for each in resources if each.thing is Thing.IMAGE])
        self._net.destroy([each for each in resources if each.thing in {Thing.NETWORK, Thing.ADDRESS, Thing.RULE}])
        self._credentials.destroy([each for each in resources if each.thing is Thing.KEY])

    def _delete_servers(self, machines: Sequence[Resource]) -> None:
        side_by_side(lambda each: self._forget("compute", f"/servers/{each.id}"), machines)
        ids = {each.id for each in machines}

        def gone() -> bool | None:
            return None if ids & {each["id"] for each in self._servers()} else True

        if machines and not until(gone, _GONE_S):
            names = ", ".join(each.name for each in machines)
            raise ProviderError(f"OpenStack has not deleted {names} in {_GONE_S} s", "give the command again")

    def _delete_image(self, resource: Resource) -> None:
        try:
            found = self._call("image", "GET", f"/images/{resource.id}")
        except ApiError as error:
            if error.status == 404:
                return
            raise
        self._forget("image", f"/images/{resource.id}")
        for snapshot in things.snapshots_of(found):
            self._forget("volume", f"/snapshots/{snapshot}")

    def _forget(self, service: str, path: str) -> None:
        """Delete something; that it is gone is no error."""
        try:
            self._call(service, "DELETE", path)
        except ApiError as error:
            if error.status != 404:
                raise

    def start(self, machines: Sequence[Resource]) -> None:
        """Start servers that are stopped, controllers first; returns when they run."""
        for group in controllers_first(machines):
            self._change(group, "os-start", "ACTIVE")

    def stop(self, machines: Sequence[Resource]) -> None:
        """Shut servers down; returns when they are."""
        self._change(machines, "os-stop", "SHUTOFF")

    def _change(self, machines: Sequence[Resource], action: str, state: str) -> None:
        def act(machine: Resource) -> None:
            try:
                self._call("compute", "POST", f"/servers/{machine.id}/action", {action: None})
            except ApiError as error:
                if error.status not in {404, 409}:  # it is gone, or so already
                    raise

        def done() -> bool | None:
            states = {each["id"]: each["status"] for each in self._servers()}
            return None if {states.get(each.id, state) for each in machines} - {state} else True

        side_by_side(act, machines)
        if machines and not until(done, _STATE_S):
            names = ", ".join(each.name for each in machines)
            raise ProviderError(f"OpenStack has not brought {names} to {state} in {_STATE_S} s", "try again")

    def save_image(self, machine: Resource, name: str, labels: dict[str, str]) -> Resource:
        """Make an image of a server's disk; the server is stopped for it."""
        self.stop([machine])
        found = [each for each in self._images() if each.name == name and each.labels == labels]
        if not found:
            body = {"createImage": {"name": name, "metadata": labels}}
            self._call("compute", "POST", f"/servers/{machine.id}/action", body, again=False)

        def ready() -> Resource | None:
            listed = self._listed("image", "/images", "images", visibility="private", limit="1000")
            mine = [each for each in listed if each["name"] == name and things.labels_of(each) == labels]
            if any(each["status"] in {"killed", "deleted", "deactivated"} for each in mine):
                raise ProviderError(f"OpenStack could not make the image {name}", "give the command again")
            return next((things.image(each) for each in mine if each["status"] == "active"), None)

        made = until(ready, _IMAGE_S)
        if made is None:
            raise ProviderError(f"OpenStack has not made the image {name} in {_IMAGE_S} s", "give the command again")
        return made

    # -- what a request becomes

    @cached_property
    def _flavors(self) -> Sequence[Answer]:
        return self._listed("compute", "/flavors/detail", "flavors", limit="1000")

    def _flavor(self, request: MachineRequest) -> Answer:
        return things.flavor_for(request, self._flavors)

    def _image(self, wanted: str) -> Answer:
        if wanted not in self._known_images:
            found = self._listed("image", "/images", "images", status="active", limit="1000")
            self._known_images[wanted] = things.image_for(wanted, self.section.images, found)
        return self._known_images[wanted]

    @cached_property
    def _known_images(self) -> dict[str, Answer]:
        return {}


class _Place:
    """Where a cluster's servers are put: looked up once for all of them, when the first is made."""

    def __init__(self, net: Network, labels: Mapping[str, str]) -> None:
        self._net = net
        self._labels = labels
        self._lock = Lock()
        self._ids: tuple[str, str] | None = None

    def ids(self) -> tuple[str, str]:
        """Return the ids of network and security group.

        Raises
        ------
        ProviderError
            If one is not there.
        """
        with self._lock:
            if self._ids is None:
                self._ids = self._net.id(self._labels[CLUSTER]), self._net.group(self._labels)
            return self._ids


def _check_spot(requests: Sequence[MachineRequest]) -> str:
    spot = next((each.name for each in requests if each.spot), None)
    if spot:
        raise ProviderError(f"{spot} is to be a spot machine, and OpenStack has none", "leave `spot` out")
    return "none is asked for"
