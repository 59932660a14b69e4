"""What the machines of a cluster share in OpenStack: network, router, security group, and the controller's address."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ems.cluster.provider import address, bulk
from ems.cluster.provider import stackthings as things
from ems.cluster.provider.base import CLUSTER, INCARNATION, Resource, Thing
from ems.cluster.provider.keystone import Answer, ApiError
from ems.cluster.provider.pool import side_by_side
from ems.cluster.provider.waiting import until
from ems.errors import ProviderError

if TYPE_CHECKING:
    from ems.cluster.definition import OpenstackSection

_FREE_S = 20  # until nothing uses what is to be deleted; then it stays listed, for a machine may not be listed yet
_CONFLICT = 409
# path, key of one, kind of resource; in the order in which they are deleted
_KINDS = (
    ("/floatingips", "floatingip", Thing.ADDRESS),
    ("/routers", "router", Thing.NETWORK),
    ("/networks", "network", Thing.NETWORK),
    ("/security-groups", "security_group", Thing.RULE),
)
_PATHS = {"floatingip": "/floatingips", "router": "/routers", "network": "/networks", "subnet": "/subnets"}
_PATHS |= {"security_group": "/security-groups", "port": "/ports"}


def name_of(cluster: str) -> str:
    """Return what everything of a cluster is called."""
    return f"ems-{cluster}"


class Network:
    """A cluster's part of Neutron.

    Parameters
    ----------
    section
        What the definition says.
    call, listed
        Ask a service, see :class:`~.keystone.Openstack`.
    """

    def __init__(
        self, section: OpenstackSection, call: Callable[..., Answer], listed: Callable[..., Sequence[Answer]]
    ) -> None:
        self._section = section
        self._call = call
        self._listed = listed

    # -- what is there

    def range(self) -> str:
        """Return the private address range of the machines."""
        if self._section.network is None:
            return self._section.range
        network = self._chosen(self._section.network)
        subnets = self._all("subnet", network_id=network["id"], ip_version="4")
        if not subnets:
            raise ProviderError(f"the network {network['name']} has no IPv4 subnet", "name another `network`")
        return str(subnets[0]["cidr"])

    def check(self) -> str:
        """Return which networks are used.

        Raises
        ------
        ProviderError
            If one that is named is not there, or none has floating addresses.
        """
        inside = self._section.network and self._chosen(self._section.network)["name"]
        outside = self._external()["name"]
        return f"{inside or 'one of its own'}, addresses from {outside}"

    def _chosen(self, name: str) -> Answer:
        found = [each for each in self._all("network") if name in {each["id"], each["name"]}]
        if not found:
            raise ProviderError(f"there is no network `{name}`", "`openstack network list` shows those that there are")
        return found[0]

    def _external(self) -> Answer:
        if self._section.external_network:
            return self._chosen(self._section.external_network)
        found = [each for each in self._all("network") if each.get("router:external")]
        if len(found) != 1:
            names = ", ".join(each["name"] for each in found)
            said = (
                f"which of {names} has the floating addresses is not said" if found else "there is no external network"
            )
            raise ProviderError(said, "name the `external_network` in the definition")
        return found[0]

    def _all(self, key: str, **params: str) -> Sequence[Answer]:
        return self._listed("network", _PATHS[key], f"{key}s", **params)

    def id(self, cluster: str) -> str:
        """Return the id of the network that a cluster's machines are in."""
        if self._section.network:
            return str(self._chosen(self._section.network)["id"])
        found = self._all("network", name=name_of(cluster))
        if not found:
            raise ProviderError(f"the network {name_of(cluster)} is gone", f"ems cluster start {cluster}")
        return str(found[0]["id"])

    def group(self, labels: Mapping[str, str]) -> str:
        """Return the id of a cluster's security group."""
        name = name_of(labels[CLUSTER])
        found = self._of(self._all("security_group", name=name), labels)
        if found is None:
            raise ProviderError(f"the security group {name} is gone", f"ems cluster start {labels[CLUSTER]}")
        return str(found["id"])

    # -- what is made

    def prepare(self, labels: Mapping[str, str]) -> None:
        """Make what is missing; each has its labels from the moment it is there."""
        name = name_of(labels[CLUSTER])
        group = self._made("security_group", {"name": name}, labels)
        self._allow(group["id"])
        if self._section.network is None:
            self._make_network(name, labels)

    def _allow(self, group: str) -> None:
        """Let in SSH from outside, and everything from inside; rules for where the laptop was before go."""
        path = "/security-group-rules"
        sources = set(address.sources(self._section.ssh_from))
        there = self._listed("network", path, "security_group_rules", security_group_id=group)
        old = {each["remote_ip_prefix"]: each["id"] for each in there if each.get("port_range_min") == 22}
        port = {"protocol": "tcp", "port_range_min": 22, "port_range_max": 22}
        rules: list[dict[str, object]] = [{**port, "remote_ip_prefix": each} for each in sorted(sources - set(old))]
        if not any(each.get("remote_group_id") == group for each in there):
            rules.append({"remote_group_id": group})
        for rule in rules:
            whole = {"security_group_id": group, "direction": "ingress", "ethertype": "IPv4", **rule}
            self._once(path, {"security_group_rule": whole})
        for its_id in (old[each] for each in set(old) - sources):
            self._call("network", "DELETE", f"{path}/{its_id}")

    def _make_network(self, name: str, labels: Mapping[str, str]) -> None:
        network = self._made("network", {"name": name}, labels)
        wish = {"name": name, "network_id": network["id"], "cidr": self._section.range, "ip_version": 4}
        servers = {"dns_nameservers": list(self._section.nameservers)} if self._section.nameservers else {}
        subnet = self._made("subnet", wish | servers, labels, network_id=network["id"])
        gateway = {"external_gateway_info": {"network_id": self._external()["id"]}}
        router = self._made("router", {"name": name, **gateway}, labels)
        ports = self._all("port", device_id=router["id"])
        if not any(fixed["subnet_id"] == subnet["id"] for port in ports for fixed in port["fixed_ips"]):
            path = f"/routers/{router['id']}/add_router_interface"
            self._once(path, {"subnet_id": subnet["id"]}, method="PUT")

    def _made(self, key: str, body: dict[str, object], labels: Mapping[str, str], **filters: str) -> Answer:
        """Return a thing of the cluster's; it is made unless it is there."""
        name = str(body["name"])
        found = self._of(self._all(key, name=name, **filters), labels)
        if found is None:
            wish = {**body, "description": things.described(labels)}
            try:
                self._call("network", "POST", _PATHS[key], {key: wish}, again=False)
            except ProviderError as error:
                if isinstance(error, ApiError) and error.status < 500:
                    raise
            found = self._of(self._all(key, name=name, **filters), labels)
        if found is None:
            raise ProviderError(f"OpenStack has not made the {key.replace('_', ' ')} {name}", "give the command again")
        return found

    def _of(self, found: Sequence[Answer], labels: Mapping[str, str]) -> Answer | None:
        """Return the one of this incarnation.

        Raises
        ------
        ProviderError
            If there are some, and all are another's.
        """
        mine = [each for each in found if things.labels_in(each["description"]).get(INCARNATION) == labels[INCARNATION]]
        if found and not mine:
            bulk.check_owner(found[0]["name"], things.labels_in(found[0]["description"]), labels)
        return min(mine, key=lambda each: str(each["id"]), default=None)

    def _once(self, path: str, body: object, method: str = "POST") -> None:
        """Do what may have been done before."""
        try:
            self._call("network", method, path, body)
        except ApiError as error:
            if error.status != _CONFLICT and "already has a port" not in error.message:
                raise

    def publish(self, machine: Resource, labels: Mapping[str, str]) -> Resource:
        """Give a machine an address that is reached from outside, unless it has one."""
        if machine.ssh_address:
            return machine
        ports = self._all("port", device_id=machine.id)
        if not ports:
            raise ProviderError(f"{machine.name} is in no network", "give the command again")
        mine = [each for each in self._all("floatingip") if self._is_mine(each, labels)]
        held = [each for each in mine if each["port_id"] == ports[0]["id"]]
        free = [each for each in mine if not each["port_id"]]
        if held:
            found = held[0]
        elif free:
            body = {"floatingip": {"port_id": ports[0]["id"]}}
            found = self._call("network", "PUT", f"/floatingips/{free[0]['id']}", body)["floatingip"]
        else:
            wish = {"floating_network_id": self._external()["id"], "port_id": ports[0]["id"]}
            wish["description"] = things.described(labels)
            found = self._call("network", "POST", "/floatingips", {"floatingip": wish})["floatingip"]
        return replace(machine, ssh_address=str(found["floating_ip_address"]))

    def _is_mine(self, thing: Answer, labels: Mapping[str, str]) -> bool:
        return things.labels_in(thing["description"]).get(INCARNATION) == labels[INCARNATION]

    # -- what is found and deleted

    def listings(self) -> list[Callable[[], Sequence[Resource]]]:
        """Return a look for each kind of thing."""

        def look(key: str, thing: Thing) -> Callable[[], Sequence[Resource]]:
            return lambda: [_resource(each, key, thing) for each in self._all(key)]

        return [look(key, thing) for _, key, thing in _KINDS]

    def destroy(self, resources: Sequence[Resource]) -> None:
        """Delete what no machine uses any more: addresses, then routers, networks, security groups."""
        for _, key, _ in _KINDS:
            side_by_side(self._delete, [each for each in resources if each.id.startswith(f"{key}/")])

    def _delete(self, resource: Resource) -> None:
        key, _, its_id = resource.id.partition("/")
        if key in {"router", "network"}:
            self._empty(key, its_id)

        def gone() -> bool | None:
            try:
                self._call("network", "DELETE", f"{_PATHS[key]}/{its_id}")
            except ApiError as error:
                if error.status == _CONFLICT:  # a machine that is going still uses it
                    return None
                if error.status != 404:
                    raise
            return True

        until(gone, _FREE_S)

    def _empty(self, key: str, its_id: str) -> None:
        """Take a router off its subnets, or a network from routers that are not listed any more."""
        filters = {"device_id": its_id} if key == "router" else {"network_id": its_id}
        for port in self._all("port", **filters):
            if not str(port.get("device_owner")).startswith("network:router_interface"):
                continue
            for fixed in port["fixed_ips"]:
                path = f"/routers/{port['device_id']}/remove_router_interface"
                try:
                    self._call("network", "PUT", path, {"subnet_id": fixed["subnet_id"]})
                except ApiError as error:
                    if error.status != 404:
                        raise


def _resource(found: Answer, key: str, thing: Thing) -> Resource:
    name = str(found.get("name") or found.get("floating_ip_address") or found["id"])
    labels = things.labels_in(found.get("description"))
    return Resource(thing, f"{key}/{found['id']}", name, labels, created_at=things.moment(found.get("created_at")))
