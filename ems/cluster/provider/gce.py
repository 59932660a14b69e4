"""The provider `gce`: a cluster's machines are virtual ones of Google Compute Engine.

However many machines are alike, they are made by one call (``instances.bulkInsert``) and found by one listing with a
filter of labels. All are in one region; a zone is tried for a request, and where it is sold out the refusal says so.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from ems.cluster.definition import GceSection
from ems.cluster.provider import address, bulk, gcecheck, gcewords
from ems.cluster.provider.base import (
    CLUSTER,
    INCARNATION,
    Finding,
    MachineRequest,
    Refusal,
    RefusalCause,
    Resource,
    Thing,
    Traits,
    controllers_first,
)
from ems.cluster.provider.cloud import CloudProvider
from ems.cluster.provider.googleapi import Api, ApiError, Fault, faults_of
from ems.cluster.provider.pool import side_by_side
from ems.errors import ProviderError

_NO_SUCH = re.compile(r"(machineTypes?|acceleratorTypes?)\b.*(not found|not exist|not available)", re.IGNORECASE)
_IN_USE = re.compile("inuse|notready")  # by a machine that was in it a moment ago
_LATE_S = 30.0  # how long a machine that was made may be missing in listings
_GONE_S = 300.0
_IN_USE_S = 120.0


class GceProvider(CloudProvider[GceSection]):
    """Virtual machines of Google Compute Engine; see :class:`~.base.Provider`."""

    @cached_property
    def api(self) -> Api:
        """The project's API; credentials are looked for when it is first asked."""
        return Api(self.section, self._backoff, as_instance=self._as_instance)

    @cached_property
    def traits(self) -> Traits:
        """What Compute Engine can: the zones are those that the definition names, else those of the region."""
        return Traits(
            has_shared_volume=False,
            has_images=True,
            stop_keeps_address=True,  # the private one
            has_names=False,  # names lead to machines of the same zone only
            network=self._range(),
            zones=self.section.zones or gcecheck.zones(self.api, self.section.region),
            has_spot=True,
            shows_own_key=True,
            makes_alike=True,
        )

    def check(self, requests: Sequence[MachineRequest]) -> None:
        """Find out what can be wrong before anything is made: access, quota, image, size, zone, GPUs, disk."""
        super().check(requests)
        self._refuse_strangers({each.labels[CLUSTER]: each.labels for each in requests})

    def _looks(self, requests: Sequence[MachineRequest]) -> Iterator[Finding]:
        try:
            api = self.api
        except ProviderError as error:
            yield Finding("credentials", error.message, is_good=False, hint=error.hint)
        else:
            yield from gcecheck.findings(api, self.section, requests)

    def prepare(self, labels: dict[str, str]) -> None:
        """Make network, subnetwork and the firewall's rules, unless they are there."""
        name = gcewords.network_tag(labels[CLUSTER])
        if self.section.network is None:
            self._make("/global/networks", {"name": name, "autoCreateSubnetworks": False}, labels)
            subnet = {"name": name, "network": self._network(name), "ipCidrRange": self.section.range}
            self._make(f"/regions/{self.section.region}/subnetworks", {**subnet, "region": self.section.region}, labels)
        for body in self._rules(labels[CLUSTER]):
            self._make("/global/firewalls", body, labels)

    def create(self, requests: Sequence[MachineRequest]) -> list[Resource | Refusal]:
        """Make machines, those that are alike by one call; see :meth:`.base.Provider.create`."""
        found = self._there(requests)
        missing = [each for each in requests if each.name not in found]
        refused: dict[str, Refusal] = {}
        for part in side_by_side(self._insert, gcewords.alike(missing)):
            refused |= part
        if missing:
            found = self._listed(missing, requests, refused)
        return [self._result(each, found.get(each.name), refused.get(each.name)) for each in requests]

    def list(self, labels: dict[str, str] | None = None) -> list[Resource]:
        """Return what carries labels: machines, disks that no machine has, images, networks, rules."""
        given = labels or {}
        listings: tuple[Callable[[dict[str, str]], Iterator[Resource]], ...]
        listings = (self._machines, self._disks, self._images, self._networks, self._subnetworks, self._firewalls)
        found = [each for part in side_by_side(lambda do: list(do(given)), listings) for each in part]
        return [each for each in found if CLUSTER in each.labels and given.items() <= each.labels.items()]

    def destroy(self, resources: Sequence[Resource]) -> None:
        """Delete resources, machines first, subnetworks before networks; those that are gone are no error."""
        machines = [each for each in resources if each.thing is Thing.MACHINE]
        networks = [each for each in resources if each.thing is Thing.NETWORK and "/subnetworks/" not in each.id]
        side_by_side(self._delete, machines)
        self._wait_gone(machines)
        for group in ([each for each in resources if each not in machines and each not in networks], networks):
            side_by_side(self._delete, group)

    def start(self, machines: Sequence[Resource]) -> None:
        """Boot machines that are stopped, controllers first; their public addresses are others then."""
        for group in controllers_first(machines):
            self._all(group, "start")

    def stop(self, machines: Sequence[Resource]) -> None:
        """Shut machines down, controllers last."""
        for group in reversed(controllers_first(machines)):
            self._all(group, "stop")

    def save_image(self, machine: Resource, name: str, labels: dict[str, str]) -> Resource:
        """Make an image of a machine's disk; the machine is stopped for it, and was cleaned by who asks for it."""
        self.stop([machine])
        disk = f"projects/{self.api.project}/zones/{machine.zone}/disks/{machine.name}"
        body = {"name": name, "sourceDisk": disk, "labels": {**self.section.labels, **labels}}
        try:
            self.api.done(self.api.post("/global/images", body), _GONE_S * 4)
        except ApiError as error:
            if not _is_there(error):
                raise
        return gcewords.labelled(Thing.IMAGE, self.api.get(f"/global/images/{name}"))

    # -- machines -----------------------------------------------------------------------------------------------

    def _there(self, requests: Sequence[MachineRequest]) -> dict[str, Resource]:
        """Return the machines of these clusters by name, whichever incarnation they are of: two calls at the most."""
        names = {each.labels[CLUSTER] for each in requests}
        return {each.name: each for name in sorted(names) for each in self._machines({CLUSTER: name})}

    def _listed(
        self, missing: Sequence[MachineRequest], requests: Sequence[MachineRequest], refused: dict[str, Refusal]
    ) -> dict[str, Resource]:
        """Return the machines by name, once all that were made are listed."""
        pause_s, deadline = 0.2, time.monotonic() + _LATE_S
        while True:
            found = self._there(requests)
            late = [each.name for each in missing if each.name not in found and each.name not in refused]
            if not late or time.monotonic() > deadline:
                return found
            self.api.sleep(pause_s)
            pause_s = min(pause_s * 2, 5.0)

    def _insert(self, requests: Sequence[MachineRequest]) -> dict[str, Refusal]:
        """Ask for machines that are alike; returns those that were refused."""
        zone = requests[0].zone or self.traits.zones[0]
        properties = gcewords.instance(
            requests[0],
            image=self.image(requests[0].image),
            subnetwork=self._subnetwork(requests[0].labels[CLUSTER]),
            service_account=self.section.service_account,
            own=self.section.labels,
        )
        try:
            operation = self.api.post(f"/zones/{zone}/instances/bulkInsert", gcewords.bulk(requests, properties))
            faults = self._faults(zone, requests, self.api.wait(operation))
        except ApiError as error:
            fault = Fault(error.code, error.message, _cause(error))
            there = self._there(requests)  # some may have been made, whatever was said
            faults = {each.name: fault for each in requests if each.name not in there}
        return {
            name: Refusal(name, fault.message, gcecheck.HINTS.get(fault.cause, ""), fault.cause, zone)
            for name, fault in faults.items()
            if not fault.is_there
        }

    def _faults(self, zone: str, requests: Sequence[MachineRequest], ended: dict[str, Any]) -> dict[str, Fault]:
        """Return why machines were not made: of each its own reason, else what was said of all."""
        if gcewords.is_complete(ended, len(requests)):
            return {}
        inserts = self.api.items(f"/zones/{zone}/operations", gcewords.inserts(ended))
        failed = {gcewords.last(each["targetLink"]): faults_of(each) for each in inserts}
        found = {name: faults[0] for name, faults in failed.items() if faults}
        if common := faults_of(ended):
            there = self._there(requests)
            # that fewer came than the least that was asked for is said beside what helps to know
            why = next((each for each in common if each.cause is not RefusalCause.OTHER), common[0])
            found |= {each.name: why for each in requests if each.name not in found and each.name not in there}
        return found

    def _result(self, request: MachineRequest, found: Resource | None, refusal: Refusal | None) -> Resource | Refusal:
        if found is None:
            return refusal or self._named(request)
        if found.labels.get(INCARNATION) != request.labels.get(INCARNATION):
            return Refusal(request.name, *bulk.stranger(request.name, request.labels), RefusalCause.INVALID, found.zone)
        return found

    def _named(self, request: MachineRequest) -> Resource | Refusal:
        """Return a machine that was made and is in no listing: late, gone again, or somebody else's of that name."""
        zone = request.zone or self.traits.zones[0]
        said = self.api.find(f"/zones/{zone}/instances/{request.name}")
        if said is None:
            return Refusal(request.name, "it was made, and is gone again", zone=zone)
        found = gcewords.machine_of(said)
        if found.labels.get(CLUSTER) != request.labels[CLUSTER]:
            return Refusal(request.name, *bulk.stranger(request.name, request.labels), RefusalCause.INVALID, zone)
        return found

    def _all(self, machines: Sequence[Resource], verb: str) -> None:
        operations = side_by_side(lambda each: self.api.post(f"{each.id}/{verb}"), machines)
        side_by_side(self.api.done, operations)

    def image(self, image: str) -> str:
        """Return ``projects/P/global/images/...`` of a distribution or of an image of this project."""
        if image in gcewords.FAMILIES:
            project, family = gcewords.FAMILIES[image]
            return f"projects/{project}/global/images/family/{family}"
        return f"projects/{self.api.project}{image}" if image.startswith("/") else image

    # -- what machines share ------------------------------------------------------------------------------------

    def _network(self, name: str) -> str:
        return f"projects/{self.api.project}/global/networks/{name}"

    def _subnetwork(self, cluster: str) -> str:
        name = gcewords.network_tag(cluster) if self.section.network is None else gcecheck.subnet_name(self.section)
        return f"projects/{self.api.project}/regions/{self.section.region}/subnetworks/{name}"

    def _range(self) -> str:
        if self.section.network is None:
            return self.section.range
        path = f"/regions/{self.section.region}/subnetworks/{gcecheck.subnet_name(self.section)}"
        return str(self.api.get(path)["ipCidrRange"])

    def _rules(self, cluster: str) -> Sequence[dict[str, Any]]:
        """Return the firewall: everything inside, SSH to the controller from where the definition says."""
        tag, gate = gcewords.network_tag(cluster), gcewords.gate_tag(cluster)
        common = {"network": self._network(self.section.network or tag), "direction": "INGRESS"}
        inside = {"sourceTags": [tag], "targetTags": [tag], "allowed": [{"IPProtocol": "all"}]}
        ssh = {"targetTags": [gate], "allowed": [{"IPProtocol": "tcp", "ports": ["22"]}]}
        return [
            {"name": f"{tag}-inside", **common, **inside},
            {"name": gate, **common, **ssh, "sourceRanges": address.sources(self.section.ssh_from)},
        ]

    def _make(self, path: str, body: dict[str, Any], labels: dict[str, str]) -> None:
        """Make something that is described by labels, unless it is there; a rule that differs is changed."""
        try:
            self.api.done(self.api.post(path, {**body, "description": gcewords.description(labels)}))
        except ApiError as error:
            if not _is_there(error):
                raise
            there = self.api.get(f"{path}/{body['name']}")
            bulk.check_owner(str(body["name"]), gcewords.labels_in(there), labels)
            if there.get("sourceRanges") != body.get("sourceRanges"):  # this computer has another address now
                self.api.done(self.api.patch(f"{path}/{body['name']}", {"sourceRanges": body["sourceRanges"]}))

    def _refuse_strangers(self, clusters: dict[str, dict[str, str]]) -> None:
        for name, labels in clusters.items():
            if self.section.network is None:
                tag = gcewords.network_tag(name)
                if (there := self.api.find(f"/global/networks/{tag}")) is not None:
                    bulk.check_owner(tag, gcewords.labels_in(there), labels)

    # -- listings -----------------------------------------------------------------------------------------------

    def _machines(self, labels: dict[str, str]) -> Iterator[Resource]:
        yield from map(gcewords.machine_of, self.api.items("/aggregated/instances", gcewords.wanted(labels)))

    def _disks(self, labels: dict[str, str]) -> Iterator[Resource]:
        found = self.api.items("/aggregated/disks", gcewords.wanted(labels))
        yield from (gcewords.labelled(Thing.DISK, each) for each in found if not each.get("users"))

    def _images(self, labels: dict[str, str]) -> Iterator[Resource]:
        found = self.api.items("/global/images", gcewords.wanted(labels))
        yield from (gcewords.labelled(Thing.IMAGE, each) for each in found)

    def _networks(self, _labels: dict[str, str]) -> Iterator[Resource]:
        yield from self._described(Thing.NETWORK, "/global/networks")

    def _subnetworks(self, _labels: dict[str, str]) -> Iterator[Resource]:
        yield from self._described(Thing.NETWORK, "/aggregated/subnetworks")

    def _firewalls(self, _labels: dict[str, str]) -> Iterator[Resource]:
        yield from self._described(Thing.RULE, "/global/firewalls")

    def _described(self, thing: Thing, path: str) -> Iterator[Resource]:
        for said in self.api.items(path, "name eq ems-.*"):
            if (found := gcewords.described(thing, said)) is not None:
                yield found

    # -- deleting -----------------------------------------------------------------------------------------------

    def _delete(self, resource: Resource) -> None:
        """Delete something; while something that is being deleted still uses it, it is asked again."""
        pause_s, deadline = 1.0, time.monotonic() + _IN_USE_S
        while True:
            try:
                operation = self.api.delete(resource.id)
                if resource.thing is not Thing.MACHINE:  # these are waited for together
                    self.api.done(operation)
            except ApiError as error:
                if not _IN_USE.search(error.code.replace("_", "").lower()) or time.monotonic() > deadline:
                    raise
            else:
                return
            self.api.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 5.0)

    def _wait_gone(self, machines: Sequence[Resource]) -> None:
        """Wait until no listing has these machines any more: a call for all, instead of one for each."""
        names = {each.id for each in machines}
        pause_s, deadline = 0.5, time.monotonic() + _GONE_S
        while names:
            clusters = {each.labels[CLUSTER] for each in machines}
            left = {each.id for name in clusters for each in self._machines({CLUSTER: name})} & names
            if not left:
                return
            if time.monotonic() > deadline:
                raise ProviderError(f"Google has not deleted {sorted(left)[0]} after {_GONE_S:.0f} s", "try again")
            self.api.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 5.0)


def _is_there(error: ApiError) -> bool:
    return error.status == 409 or error.code in {"alreadyExists", "RESOURCE_ALREADY_EXISTS"}


def _cause(error: ApiError) -> RefusalCause:
    """Return what helps: where a zone never has that size or GPU, another zone, as where it is sold out."""
    return RefusalCause.STOCKOUT if _NO_SUCH.search(error.message) and error.status in {400, 404} else error.cause
