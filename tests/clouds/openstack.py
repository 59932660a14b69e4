"""OpenStack for tests: Keystone, Nova, Neutron and Glance on loopback, with state, checks and faults.

It knows the part of the public API that a cluster needs (https://docs.openstack.org/api-ref/): a field that the API
does not have is refused with 400, dependencies are held (a security group in use stays), and what is left is counted
here instead of by what is under test.
"""

from __future__ import annotations

import base64
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from clouds import serving
from clouds.bodies import Wish
from clouds.serving import Asked, StandIn, Told, answering

USER, PASSWORD, PROJECT = "me", "secret", "lab"
_LOGIN, ROLES = (USER, PASSWORD), ("admin", "member")
EXTERNAL = "00000000-0000-4000-8000-00000000e47e"
# CPUs, MB of memory, GB of disk, and GPUs, of which no answer tells
FLAVORS = {"m1.small": (1, 2048, 20, 0), "m1.medium": (2, 4096, 40, 0), "g1.large": (8, 32768, 80, 1)}
IMAGES = {"Debian 12 (bookworm)": "debian:12", "debian-13-generic": "debian:13", "Ubuntu 24.04 LTS": "ubuntu:24.04"}
ZONES = ("nova", "east")
_PAGE = 250
_FIELDS = {  # what each request may hold
    "server": {"name", "flavorRef", "imageRef", "networks", "security_groups", "user_data", "metadata", "min_count"}
    | {"max_count", "availability_zone", "block_device_mapping_v2", "config_drive", "key_name"}
    | {"return_reservation_id"},
    "security_group": {"name", "description"},
    "security_group_rule": {"security_group_id", "direction", "ethertype", "protocol", "port_range_min"}
    | {"port_range_max", "remote_ip_prefix", "remote_group_id", "description"},
    "network": {"name", "description", "admin_state_up"},
    "subnet": {"name", "description", "network_id", "cidr", "ip_version", "dns_nameservers", "gateway_ip"},
    "router": {"name", "description", "external_gateway_info", "admin_state_up"},
    "floatingip": {"floating_network_id", "port_id", "description"},
}
_KEYS = {"security-groups": "security_group", "security-group-rules": "security_group_rule", "networks": "network"}
_KEYS |= {"subnets": "subnet", "routers": "router", "floatingips": "floatingip", "ports": "port"}


class RefusedError(serving.RefusedError):
    """An error in OpenStack's shape."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(Told({kind or "error": {"code": status, "message": message, "type": kind}}, status))


@dataclass
class Cloud(StandIn):
    """What the stand-in has, and what is to go wrong; ``calls`` are methods and paths.

    Attributes
    ----------
    most_servers
        The quota.
    credentials
        The application credentials by id, secrets among them.
    tokens
        Token -> the id of the application credential that it was given for; empty for a user's password.
    """

    most_servers: int = 5000
    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    credentials: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    neutron: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    _address: int = 10

    def __post_init__(self) -> None:
        self.neutron = {key: {} for key in _KEYS.values()}
        self.neutron["network"][EXTERNAL] = _thing(EXTERNAL, "public", {"router:external": True})
        for number, name in enumerate(IMAGES):
            its_id = f"00000000-0000-4000-8000-{number:012d}"
            self.images[its_id] = {"id": its_id, "name": name, "status": "active", "visibility": "public"}
            self.images[its_id]["created_at"] = "2026-11-01T00:00:00Z"

    # -- what tests ask

    def machines(self) -> dict[str, dict[str, Any]]:
        """Return the servers that are there, by their id."""
        return dict(self.servers)

    def names(self) -> list[str]:
        """Return what the machines that are there call themselves."""
        return sorted(each["_name"] for each in self.servers.values())

    def left(self) -> list[str]:
        """Return everything labelled that is there."""
        found = [key for key, each in self.servers.items() if "ems-cluster" in each["metadata"]]
        found += [key for key, each in self.images.items() if "ems-cluster" in each]
        found += [key for key, each in self.credentials.items() if "ems-cluster=" in str(each.get("description"))]
        found += [
            f"{kind}/{key}"
            for kind, all_of in self.neutron.items()
            for key, each in all_of.items()
            if "ems-cluster=" in str(each.get("description"))
        ]
        return sorted(found)

    def lose(self, name: str) -> None:
        """Have a server vanish."""
        with self.lock:
            for key in [key for key, each in self.servers.items() if each["_name"] == name]:
                self._drop_server(key)

    # -- requests

    def told(self, asked: Asked) -> Told:
        """Return the answer to whatever is asked."""
        if asked.path.endswith("/v3/auth/tokens"):
            token, answer = self.token(asked.body)
            return Told(answer, 201, {"X-Subject-Token": token})
        token = asked.headers.get("X-Auth-Token", "")
        if token not in self.tokens:
            raise RefusedError(401, "error", "The request requires authentication.")
        self.callers["machine" if self.tokens[token] else "user"] += 1
        if asked.path.startswith("/v3/"):
            self.calls.append((asked.method, asked.path))
            return self._keystone(asked, token)
        status, answer = self.answer(asked.method, asked.path, dict(asked.query), asked.body)
        return Told(answer, status)

    def answer(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        """Return status and content of the answer to a request with a good token."""
        self.calls.append((method, path))
        if self.take("rate"):
            raise RefusedError(429, "overLimit", "This request was rate-limited.")
        if self.take("error"):
            raise RefusedError(503, "serviceUnavailable", "The service is unavailable.")
        with self.lock:
            serve = self._serve if method == "GET" else self._change
            done = serve(method, path.strip("/").split("/"), query, body)
        if method != "GET" and self.take("raise"):
            raise RefusedError(500, "computeFault", "Unexpected API Error.")
        return done

    def _change(self, *request: Any) -> tuple[int, Any]:
        return self._serve(*request)

    def _serve(self, method: str, parts: list[str], query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        service, rest = parts[0], parts[2:]
        if service == "compute":
            return self._compute(method, rest, query, body)
        if service == "image":
            return self._image(method, rest, query)
        if service == "network":
            return self._network(method, rest, query, body)
        raise RefusedError(404, "itemNotFound", f"no service {service}")

    # -- Nova

    def _compute(self, method: str, rest: list[str], query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:  # noqa: PLR0911 - one for each thing
        what, its_id = rest[0], rest[1] if len(rest) > 1 else ""
        if what == "flavors":
            return 200, {"flavors": [_flavor(name) for name in FLAVORS]}
        if what == "limits":
            return 200, {"limits": {"rate": [], "absolute": self._limits()}}
        if what == "os-availability-zone":
            found = [{"zoneName": zone, "zoneState": {"available": True}, "hosts": None} for zone in ZONES]
            return 200, {"availabilityZoneInfo": found}
        if what != "servers":
            raise RefusedError(404, "itemNotFound", f"no {what}")
        if method == "GET" and its_id == "detail":
            return 200, self._listing(query)
        if method == "POST" and not its_id:
            return 202, self._boot(_checked("server", body))
        if its_id not in self.servers:
            raise RefusedError(404, "itemNotFound", f"Instance {its_id} could not be found.")
        if method == "DELETE":
            self._drop_server(its_id)
            return 204, None
        return self._act(self.servers[its_id], body)

    def _limits(self) -> dict[str, int]:
        return {"maxTotalInstances": self.most_servers, "totalInstancesUsed": len(self.servers), "maxTotalCores": -1}

    def _listing(self, query: dict[str, str]) -> dict[str, Any]:
        if unknown := set(query) - {"name", "limit", "marker", "reservation_id", "status"}:
            raise RefusedError(400, "badRequest", f"Invalid query parameters: {unknown}")
        now = time.monotonic()
        found = [each for each in self.servers.values() if now - each["_born"] >= self.late_s]
        found = [each for each in found if re.search(query.get("name", ""), each["name"])]
        ids = [each["id"] for each in found]
        start = ids.index(query["marker"]) + 1 if query.get("marker") in ids else 0
        page = found[start : start + min(_PAGE, int(query.get("limit", _PAGE)))]
        links = [{"rel": "next", "href": "next"}] if start + len(page) < len(found) else []
        return {"servers": [self._shown(each) for each in page], **({"servers_links": links} if links else {})}

    def _shown(self, server: dict[str, Any]) -> dict[str, Any]:
        if server["status"] == "BUILD" and time.monotonic() - server["_born"] >= self.operation_s:
            server["status"] = "ERROR" if "fault" in server else "ACTIVE"
        is_built = server["status"] != "BUILD"
        shown = {key: value for key, value in server.items() if not key.startswith("_")}
        return shown if is_built else {**shown, "addresses": {}}

    def _boot(self, wish: dict[str, Any]) -> dict[str, Any]:
        count = int(wish.get("max_count", 1))
        if self.take("quota") or len(self.servers) + count > self.most_servers:
            raise RefusedError(
                403, "forbidden", f"Quota exceeded for instances: Requested {count}, but already used all"
            )
        self._check_wish(wish)
        zone = wish.get("availability_zone", ZONES[0])
        is_out = self.is_out(zone, wish["flavorRef"]) or self.take("stockout")
        every = _names(wish)
        names = [every[index] for index in range(count)]
        addresses = self.bodies.make(self._wishes(wish, names)) if self.bodies and not is_out else {}
        ids = [
            self._insert(wish, index, zone, addresses.get(name, ""), is_out=is_out) for index, name in enumerate(names)
        ]
        return {"server": {"id": ids[0], "links": [], "security_groups": wish["security_groups"]}}

    def _wishes(self, wish: dict[str, Any], names: list[str]) -> list[Wish]:
        """Return what the machines of a request are to be."""
        user_data = base64.b64decode(wish["user_data"]).decode()
        image = IMAGES[self.images[_image_of(wish)]["name"]]
        gpus = FLAVORS[wish["flavorRef"]][3]
        return [Wish(name, user_data, wish["metadata"].get("ems-kind", ""), image, gpus) for name in names]

    def _check_wish(self, wish: dict[str, Any]) -> None:
        base64.b64decode(wish["user_data"], validate=True)
        long = [key for key, value in wish["metadata"].items() if len(key) > 255 or len(value) > 255]
        image = _image_of(wish)
        networks = [each["uuid"] for each in wish["networks"]]
        missing = [each for each in networks if each not in self.neutron["network"]]
        groups = [
            each["name"] for each in wish["security_groups"] if each["name"] not in self.neutron["security_group"]
        ]
        if long or image not in self.images or wish["flavorRef"] not in FLAVORS or missing or groups:
            raise RefusedError(
                400, "badRequest", f"Invalid request: {image} {wish['flavorRef']} {long} {missing} {groups}"
            )

    def _insert(self, wish: dict[str, Any], index: int, zone: str, address: str, *, is_out: bool) -> str:
        its_id = str(uuid.uuid4())
        name = wish["name"] if wish.get("max_count", 1) == 1 else f"{wish['name']}-{index + 1}"
        fixed = {"version": 4, "addr": address or self._next_address("10.89"), "OS-EXT-IPS:type": "fixed"}
        server = {"id": its_id, "name": name, "status": "BUILD", "metadata": dict(wish["metadata"])}
        server |= {"created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "flavor": _flavor(wish["flavorRef"])}
        server |= {"addresses": {"net": [fixed]}, "OS-EXT-AZ:availability_zone": zone, "OS-EXT-STS:task_state": None}
        server |= {
            "_name": (mine := _names(wish)[index]),
            "_born": time.monotonic(),
            "_groups": [each["name"] for each in wish["security_groups"]],
        }
        if is_out:
            server["fault"] = {"code": 500, "message": "No valid host was found. There are not enough hosts available."}
        self.servers[its_id] = server
        port = {"device_id": its_id, "device_owner": "compute:nova", "network_id": wish["networks"][0]["uuid"]}
        port |= {"fixed_ips": [{"subnet_id": "", "ip_address": fixed["addr"]}]}
        self._keep("port", port)
        if not is_out:
            alive = sum(each["_name"] == mine for each in self.servers.values() if "fault" not in each)
            self.born[mine] = max(self.born[mine], alive)
        return its_id

    def _drop_server(self, its_id: str) -> None:
        server = self.servers.pop(its_id)
        if "fault" not in server:
            self.gone(server["_name"])
        gone = [key for key, each in self.neutron["port"].items() if each["device_id"] == its_id]
        for key in gone:
            del self.neutron["port"][key]
        for each in self.neutron["floatingip"].values():
            each["port_id"] = None if each["port_id"] in gone else each["port_id"]

    def _act(self, server: dict[str, Any], body: dict[str, Any]) -> tuple[int, Any]:
        action, told = next(iter(body.items()))
        wanted = {"os-stop": ("ACTIVE", "SHUTOFF"), "os-start": ("SHUTOFF", "ACTIVE")}.get(action)
        self._shown(server)
        if wanted:
            if server["status"] != wanted[0]:
                raise RefusedError(409, "conflictingRequest", f"Cannot '{action}' while it is {server['status']}")
            if self.bodies:
                self.bodies.switch(server["_name"], action.removeprefix("os-"))
            server["status"] = wanted[1]
            return 202, None
        if action != "createImage":
            raise RefusedError(400, "badRequest", f"There is no such action: {action}")
        its_id = str(uuid.uuid4())
        self.images[its_id] = {"id": its_id, "name": told["name"], "status": "active", "visibility": "private"}
        self.images[its_id] |= {"created_at": datetime.now(UTC).isoformat(), **told["metadata"]}
        return 202, None

    # -- Glance

    def _image(self, method: str, rest: list[str], query: dict[str, str]) -> tuple[int, Any]:
        if rest[0] != "images":
            raise RefusedError(404, "", "no such path")
        if len(rest) > 1:
            if rest[1] not in self.images:
                raise RefusedError(404, "", f"No image found with ID {rest[1]}")
            found = self.images.pop(rest[1]) if method == "DELETE" else self.images[rest[1]]
            return (204, None) if method == "DELETE" else (200, found)
        found = [
            each for each in self.images.values() if query.get("visibility", each["visibility"]) == each["visibility"]
        ]
        return 200, {"images": [each for each in found if query.get("status", each["status"]) == each["status"]]}

    # -- Neutron

    def _network(self, method: str, rest: list[str], query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        key = _KEYS[rest[0]]
        kept = self.neutron[key]
        if method == "POST":
            return 201, {key: self._make(key, _checked(key, body))}
        if len(rest) == 1:
            wanted = {name: value for name, value in query.items() if name not in {"limit", "marker"}}
            fits = [
                each for each in kept.values() if all(str(each.get(name)) == value for name, value in wanted.items())
            ]
            return 200, {f"{key}s": fits}
        if rest[1] not in kept:
            raise RefusedError(404, "NotFound", f"{key} {rest[1]} could not be found")
        if method == "DELETE":
            self._drop(key, rest[1])
            return 204, None
        if len(rest) == 3:
            return 200, self._interface(rest[1], rest[2], body["subnet_id"])
        kept[rest[1]].update(_checked(key, body))
        self._bind(kept[rest[1]])
        return 200, {key: kept[rest[1]]}

    def _make(self, key: str, wish: dict[str, Any]) -> dict[str, Any]:
        if key == "security_group_rule":
            same = [each for each in self.neutron[key].values() if wish.items() <= each.items()]
            if same:
                raise RefusedError(409, "SecurityGroupRuleExists", "Security group rule already exists.")
        if key == "subnet" and wish["network_id"] not in self.neutron["network"]:
            raise RefusedError(404, "NetworkNotFound", "Network could not be found")
        if key == "floatingip":
            free = self.bodies.free_ip() if self.bodies else self._next_address("127.77")
            wish = {**wish, "floating_ip_address": free}
        made = self._keep(key, wish)
        if key == "floatingip":
            self._bind(made)
        return made

    def _keep(self, key: str, wish: dict[str, Any]) -> dict[str, Any]:
        its_id = str(uuid.uuid4())
        self.neutron[key][its_id] = _thing(its_id, wish.get("name", ""), wish)
        return self.neutron[key][its_id]

    def _bind(self, floating: dict[str, Any]) -> None:
        port = self.neutron["port"].get(floating.get("port_id") or "")
        server = self.servers.get(port["device_id"]) if port else None
        if server:
            address = {"version": 4, "addr": floating["floating_ip_address"], "OS-EXT-IPS:type": "floating"}
            server["addresses"]["net"].append(address)
            if self.bodies:
                self.bodies.lead(address["addr"], server["_name"])

    def _interface(self, router: str, verb: str, subnet: str) -> dict[str, Any]:
        mine = [
            key
            for key, each in self.neutron["port"].items()
            if each["device_id"] == router and each["fixed_ips"][0]["subnet_id"] == subnet
        ]
        if verb == "remove_router_interface":
            if not mine:
                raise RefusedError(404, "RouterInterfaceNotFoundForSubnet", "the router has no such interface")
            del self.neutron["port"][mine[0]]
        elif mine:
            raise RefusedError(400, "BadRequest", f"Router already has a port on subnet {subnet}")
        else:
            port = {"device_id": router, "device_owner": "network:router_interface"}
            port |= {"network_id": self.neutron["subnet"][subnet]["network_id"]}
            self._keep("port", {**port, "fixed_ips": [{"subnet_id": subnet, "ip_address": "10.89.0.1"}]})
        return {"id": router, "subnet_id": subnet}

    def _drop(self, key: str, its_id: str) -> None:
        ports = self.neutron["port"].values()
        if key == "security_group" and any(its_id in each["_groups"] for each in self.servers.values()):
            raise RefusedError(409, "SecurityGroupInUse", f"Security Group {its_id} in use.")
        if key == "router" and any(each["device_id"] == its_id for each in ports):
            raise RefusedError(409, "RouterInUse", f"Router {its_id} still has ports")
        if key == "network" and any(each["network_id"] == its_id for each in ports):
            raise RefusedError(409, "NetworkInUse", f"Unable to complete operation on network {its_id}.")
        del self.neutron[key][its_id]
        if key == "network":
            self.neutron["subnet"] = {
                name: each for name, each in self.neutron["subnet"].items() if each["network_id"] != its_id
            }

    def _next_address(self, prefix: str) -> str:
        self._address += 1
        return f"{prefix}.{self._address // 250}.{self._address % 250 + 1}"

    # -- Keystone

    def token(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return a token and its description for good credentials."""
        said = body["auth"]["identity"]
        user, told = said.get("password", {}).get("user", {}), said.get("application_credential", {})
        kept = self.credentials.get(told.get("id", ""), {"secret": PASSWORD, "unrestricted": True})
        is_good = told.get("secret") == kept["secret"] if told else (user.get("name"), user.get("password")) == _LOGIN
        if not is_good:
            raise RefusedError(401, "error", "The request you have made requires authentication.")
        token = uuid.uuid4().hex
        self.tokens[token] = kept.get("id", "")
        urls = {"compute": "/compute/v2.1", "network": "/network", "image": "/image", "identity": "/v3"}
        catalogue = [
            {
                "type": kind,
                "name": kind,
                "id": kind,
                "endpoints": [{"interface": "public", "region": "one"} | {"url": self.url + path}],
            }
            for kind, path in urls.items()
        ]
        ends = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        roles = [{"id": name, "name": name} for name in kept.get("roles", ROLES)]
        about: dict[str, Any] = {"expires_at": ends, "catalog": catalogue, "roles": roles}
        about["user"] = {"id": USER, "name": USER}
        if told:
            about["application_credential"] = {"id": kept.get("id"), "restricted": not kept["unrestricted"]}
        return token, {"token": about}

    def _keystone(self, asked: Asked, token: str) -> Told:
        """Make, list or delete application credentials of the user."""
        found = re.fullmatch(rf"/v3/users/{USER}/application_credentials(?:/(\w+))?", asked.path)
        if found is None:
            raise RefusedError(404, "error", f"no such path: {asked.path}")
        if asked.method == "GET":
            shown = [{key: each[key] for key in each if key != "secret"} for each in self.credentials.values()]
            return Told({"application_credentials": shown})
        if self.tokens[token]:  # what is restricted makes and deletes none
            raise RefusedError(403, "error", "You are not authorized to perform the requested action.")
        if asked.method == "DELETE":
            if found[1] not in self.credentials:
                raise RefusedError(404, "error", f"Could not find Application Credential: {found[1]}.")
            del self.credentials[found[1]]
            return Told(status=204)
        wish = asked.body["application_credential"]
        if unknown := set(wish) - {"name", "description", "unrestricted", "roles", "expires_at", "access_rules"}:
            raise RefusedError(400, "error", f"Additional properties are not allowed: {unknown}")
        if wish["name"] in {each["name"] for each in self.credentials.values()}:
            raise RefusedError(409, "error", f"Duplicate entry found with name {wish['name']}.")
        roles = [each["name"] for each in wish.get("roles", [{"name": name} for name in ROLES])]
        if not set(roles) <= set(ROLES):
            raise RefusedError(400, "error", "a role that the user does not have")
        made = {**wish, "id": uuid.uuid4().hex, "secret": uuid.uuid4().hex, "roles": roles}
        self.credentials[made["id"]] = made
        if self.take("raise"):
            raise RefusedError(500, "error", "An unexpected error prevented the server from fulfilling your request.")
        return Told({"application_credential": made}, 201)


def _thing(its_id: str, name: str, more: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": "",
        **more,
        "id": its_id,
        "name": name,
        "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _names(wish: dict[str, Any]) -> list[str]:
    """Return what the servers of a request call themselves: the names by launch index in what they are told."""
    stem, *runs = wish["metadata"].get("ems-nodes", wish["name"]).split()
    ends = [(int(run.split("-")[0]), int(run.split("-")[-1])) for run in runs]
    return [f"{stem}{number:03d}" for first, last in ends for number in range(first, last + 1)] or [stem]


def _image_of(wish: dict[str, Any]) -> str:
    """Return the id of the image that servers boot from, be it on a volume."""
    disks = wish.get("block_device_mapping_v2", [])
    return str(wish.get("imageRef") or (disks[0]["uuid"] if disks else ""))


def _flavor(name: str) -> dict[str, Any]:
    cpus, ram, disk, _ = FLAVORS[name]
    return {"id": name, "name": name, "original_name": name, "vcpus": cpus, "ram": ram, "disk": disk}


def _checked(key: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return what a body holds under a key, if the public API has all its fields."""
    if set(body) != {key} or (unknown := set(body[key]) - _FIELDS[key]):
        raise RefusedError(400, "badRequest", f"Additional properties are not allowed: {set(body)} {unknown}")
    if len(str(body[key].get("description", ""))) > 255:
        raise RefusedError(400, "badRequest", "the description is too long")
    return dict(body[key])


@contextmanager
def serve(host: str = "127.0.0.1") -> Iterator[Cloud]:
    """Give an OpenStack."""
    cloud = Cloud()
    with answering(cloud.told, host) as cloud.url:
        yield cloud
