"""Google's Compute API for tests: a server on loopback that keeps state, checks requests and can be told to fail.

It speaks as much of the API as a cluster needs, with the answers' shapes of the public documentation; what is left is
counted here (:meth:`Cloud.left`), not by the program under test.
"""

from __future__ import annotations

import base64
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from clouds import gceshapes as shapes
from clouds import serving
from clouds.bodies import Wish
from clouds.serving import Asked, StandIn, Told, answering

PROJECT, REGION, ZONES = "lab", "us-central1", ("us-central1-a", "us-central1-b", "us-central1-c")
ACCOUNT = f"ems@{PROJECT}.iam.gserviceaccount.com"
OWN_ACCOUNT = "1234-compute@developer.gserviceaccount.com"  # the project's default one
_TOKENS = {"Bearer good": "user", "Bearer own": "machine"}
_BASE = f"/compute/v1/projects/{PROJECT}"
_URL = "https://www.googleapis.com/compute/v1/projects"
SIZES = {"e2-standard-2": 2, "e2-standard-4": 4, "n1-standard-4": 4, "n1-standard-8": 8, "n2-standard-8": 8}
_FAMILIES = {"debian-12": "debian:12", "debian-13": "debian:13", "ubuntu-2404-lts-amd64": "ubuntu:24.04"}
QUOTAS = {"CPUS": 5000, "N2_CPUS": 64, "INSTANCES": 5000, "IN_USE_ADDRESSES": 5000, "NVIDIA_T4_GPUS": 16}
SPOT_QUOTAS = {"PREEMPTIBLE_CPUS": 0, "PREEMPTIBLE_NVIDIA_T4_GPUS": 16, "GPUS_ALL_REGIONS": 16}


@dataclass
class Cloud(StandIn):
    """What the stand-in has, and what is to go wrong; ``calls`` are methods and paths without the project.

    Attributes
    ----------
    public_ip
        Gives a machine its address.
    """

    lacking: set[str] = field(default_factory=set)  # permissions that nobody has
    roles: dict[str, list[str]] = field(default_factory=lambda: {OWN_ACCOUNT: ["roles/editor"]})
    quotas: dict[str, float] = field(default_factory=lambda: {**QUOTAS, **SPOT_QUOTAS})
    public_ip: Callable[[str], str] = lambda name: f"203.0.113.{sum(map(ord, name)) % 250 + 1}"
    things: dict[str, dict[str, Any]] = field(default_factory=dict)  # path -> resource
    operations: dict[str, dict[str, Any]] = field(default_factory=dict)
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    _asked: dict[str, str] = field(default_factory=dict)  # requestId -> operation

    def machines(self) -> dict[str, dict[str, Any]]:
        """Return the machines by path."""
        return {path: each for path, each in self.things.items() if "/instances/" in path}

    def left(self) -> list[str]:
        """Return the paths of all there is: machines, disks, images, networks, subnetworks, firewalls."""
        return sorted(self.things)

    def lose(self, name: str) -> None:
        """Let a machine vanish, with its disk: preempted, or deleted by somebody."""
        with self.lock:
            for path in [path for path in self.things if path.endswith((f"/instances/{name}", f"/disks/{name}"))]:
                del self.things[path]
            self.gone(name)

    def credentials(self, folder: Path, *, is_good: bool = True) -> Path:
        """Write a service account's key file; its tokens come from here."""
        key = self.key if is_good else rsa.generate_private_key(65537, 2048)
        plain, raw = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
        content = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "1",
            "private_key": key.private_bytes(serialization.Encoding.PEM, raw, plain).decode(),
            "client_email": ACCOUNT,
            "token_uri": f"{self.url}/token",
        }
        path = folder / ("key.json" if is_good else "bad-key.json")
        path.write_text(json.dumps(content))
        return path

    # -- who asks ---------------------------------------------------------------------------------------------------

    def told(self, asked: Asked) -> Told:
        """Return the answer to whatever is asked: metadata, a token, or something of the API."""
        if asked.path.startswith("/computeMetadata/v1/"):
            return self._metadata(asked)
        if asked.path == "/token":
            return self._token(asked.raw)
        if (said := asked.headers.get("Authorization", "")) not in _TOKENS:
            raise RefusedError(401, "authError", "Invalid Credentials", "global")
        self.callers[_TOKENS[said]] += 1
        for start in (_BASE, f"/v1/projects/{PROJECT}", "/v1/projects/-"):
            if asked.path == start or asked.path.startswith((f"{start}/", f"{start}:")):
                return Told(self.answer(asked.method, asked.path.removeprefix(start), dict(asked.query), asked.body))
        family = re.fullmatch(r"/compute/v1/projects/[\w-]+/global/images/family/([\w-]+)", asked.path)
        if family and asked.method == "GET":
            self.calls.append(("GET", asked.path))
            return Told({"name": f"{family[1]}-v20261101"})
        raise RefusedError(404, "notFound", f"The resource '{asked.path}' was not found", "global")

    def _metadata(self, asked: Asked) -> Told:
        """Tell a machine who it is: what works as no service account has none."""
        if asked.headers.get("Metadata-Flavor") != "Google":
            return Told("Missing Metadata-Flavor:Google header.", 403)
        path = asked.path.removeprefix("/computeMetadata/v1/")
        if path == "project/project-id":
            return Told(PROJECT)
        if path == "instance/preempted":
            return Told(str(self.is_noticed(asked.client)).upper())
        if path == "instance/service-accounts/default/token" and any(
            each.get("serviceAccounts") for each in self.machines().values()
        ):
            return Told({"access_token": "own", "expires_in": 3599, "token_type": "Bearer"})
        return Told("not found", 404)

    def _token(self, raw: bytes) -> Told:
        """Give a token to who signs with the account's key."""
        assertion = parse_qs(raw.decode())["assertion"][0]
        signed, _, signature = assertion.rpartition(".")
        try:
            given = base64.urlsafe_b64decode(signature + "==")
            self.key.public_key().verify(given, signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        except (ValueError, InvalidSignature):
            return Told({"error": "invalid_grant", "error_description": "Invalid JWT Signature."}, 400)
        return Told({"access_token": "good", "expires_in": 3600, "token_type": "Bearer"})

    # -- what a request does --------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request below the project."""
        self.calls.append((method, path))
        if self.take("rate"):
            raise RefusedError(403, "rateLimitExceeded", "Rate Limit Exceeded", "usageLimits")
        if self.take("error"):
            raise RefusedError(503, "backendError", "Backend Error", "global")
        if method == "GET":
            return self._get(path, query)
        if method == "POST" and path.endswith(":testIamPermissions"):
            return {"permissions": [each for each in body["permissions"] if each not in self.lacking]}
        if method == "POST" and path.endswith(":getIamPolicy"):
            pairs = [(role, account) for account, roles in self.roles.items() for role in roles]
            return {"bindings": [{"role": role, "members": [f"serviceAccount:{who}"]} for role, who in pairs]}
        with self.lock:
            known = self._asked.get(query.get("requestId", ""))
            done = self.operations[known] if known else self._change(method, path, body)
            self._asked[query.get("requestId", uuid.uuid4().hex)] = done["name"]
        if self.take("raise"):
            raise RefusedError(500, "internalError", "Internal error. Please try again", "global")
        return self._operation(done["name"])

    def _get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        if path.endswith("/operations"):
            [group] = re.findall(r"\(operationGroupId = (\w+)\) AND \(operationType = insert\)", query["filter"])
            found = [each for each in self.operations.values() if each.get("operationGroupId") == group]
            return {"items": [self._operation(each["name"]) for each in found if each["operationType"] == "insert"]}
        if "/operations/" in path:
            return self._operation(path.rsplit("/", 1)[1])
        if path in self.things:
            return self._shown(self.things[path])
        fixed = self._fixed(path)
        if fixed is not None:
            return fixed
        kind = path.rsplit("/", 1)[1]
        if kind not in {"instances", "disks", "images", "networks", "subnetworks", "firewalls"}:
            raise RefusedError(404, "notFound", f"The resource 'projects/{PROJECT}{path}' was not found", "global")
        return self._listing(path, kind, query)

    def _fixed(self, path: str) -> dict[str, Any] | None:  # noqa: PLR0911 - one for each thing
        """Return what Google has without anybody's doing: project, region, sizes, GPUs, disks; None: no such thing."""
        quotas = [{"metric": name, "limit": limit, "usage": self._usage(name)} for name, limit in self.quotas.items()]
        if path == "":
            every = [each for each in quotas if each["metric"] == "GPUS_ALL_REGIONS"]
            return {"name": PROJECT, "defaultServiceAccount": OWN_ACCOUNT, "quotas": every}
        if path == "/regions":
            return {"items": [{"name": REGION}]}
        if path == f"/regions/{REGION}":
            urls = [f"{_URL}/{PROJECT}/zones/{zone}" for zone in ZONES]
            return {"name": REGION, "zones": urls, "quotas": [q for q in quotas if q["metric"] != "GPUS_ALL_REGIONS"]}
        found = re.fullmatch(r"/zones/([^/]+)/(machineTypes|acceleratorTypes|diskTypes)/([^/]+)", path)
        if not found or found[1] not in ZONES:
            return None
        if found[2] == "machineTypes" and (found[3] in SIZES or "custom" in found[3]):
            return {"name": found[3], "guestCpus": SIZES.get(found[3], 2), "memoryMb": 8192}
        if found[2] == "acceleratorTypes" and found[3] == "nvidia-tesla-t4" and found[1] != ZONES[2]:
            return {"name": found[3], "maximumCardsPerInstance": 4}
        if found[2] == "diskTypes" and found[3] in {"pd-standard", "pd-balanced", "pd-ssd"}:
            return {"name": found[3]}
        return None

    def _usage(self, metric: str) -> float:
        return len(self.machines()) if metric in {"INSTANCES", "IN_USE_ADDRESSES"} else 0

    def _listing(self, path: str, kind: str, query: dict[str, str]) -> dict[str, Any]:
        with self.lock:
            every = [self._shown(each) for place, each in self.things.items() if place.split("/")[-2] == kind]
        scope = "" if path.startswith("/aggregated/") else path
        late = time.monotonic() - self.late_s
        found = [
            each
            for each in every
            if _passes(each, query.get("filter", ""))
            and scope in each["selfLink"]
            and (kind != "instances" or each["_made"] <= late)
        ]
        size, start = int(query.get("maxResults", "500")), int(query.get("pageToken", "0"))
        page: dict[str, Any] = {"items": found[start : start + size]}
        if start + size < len(found):
            page["nextPageToken"] = str(start + size)
        if not scope:
            scopes: dict[str, Any] = {f"zones/{zone}": {"warning": {"code": "NO_RESULTS_ON_PAGE"}} for zone in ZONES}
            for each in page["items"]:
                place = each["selfLink"].rsplit(f"/{PROJECT}/", 1)[1].rsplit("/", 2)[0]
                scopes.setdefault(place, {}).setdefault(kind, []).append(each)
            page["items"] = scopes
            if self.take("unreachable"):  # as Google says of a zone that does not answer
                scopes[f"zones/{ZONES[0]}"] = {"warning": {"code": "UNREACHABLE"}}
        return page

    def _shown(self, thing: dict[str, Any]) -> dict[str, Any]:
        is_up = time.monotonic() >= thing.get("_ready", 0)
        return {**thing, "status": "RUNNING"} if thing.get("status") == "STAGING" and is_up else thing

    def _operation(self, name: str) -> dict[str, Any]:
        if name not in self.operations:
            raise RefusedError(404, "notFound", f"The operation {name} was not found", "global")
        found = self.operations[name]
        is_done = time.monotonic() >= found["_ends"]
        shown = {key: value for key, value in found.items() if not key.startswith("_")}
        if not is_done:
            shown.pop("error", None)
        return {**shown, "status": "DONE" if is_done else "RUNNING", "progress": 100 if is_done else 0}

    def _change(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        words = path.split("/")
        if method == "DELETE":
            return self._delete(path)
        kind = words[-1] if method == "POST" else words[-2]
        if kind not in shapes.BODIES:
            raise RefusedError(404, "notFound", f"no such method: {method} {path}", "global")
        if said := shapes.wrong(kind, body):
            raise RefusedError(400, "invalid", said, "global")
        if method == "PATCH":
            self.things[path].update(body)
            return self._begun("patch", path)
        if kind == "bulkInsert":
            return self._bulk(words[2], body)
        if kind in {"start", "stop"}:
            return self._switch(path.rsplit("/", 1)[0], kind)
        place = f"{path}/{body['name']}"
        if place in self.things:
            raise RefusedError(
                409, "alreadyExists", f"The resource 'projects/{PROJECT}{place}' already exists", "global"
            )
        self.things[place] = {**body, **_born(place)}
        return self._begun("insert", place)

    def _bulk(self, zone: str, body: dict[str, Any]) -> dict[str, Any]:
        names = list(body["perInstanceProperties"])
        for each in body["instanceProperties"].get("guestAccelerators", ()):
            if self._fixed(f"/zones/{zone}/acceleratorTypes/{each['acceleratorType']}") is None:
                message = f"The resource 'zones/{zone}/acceleratorTypes/{each['acceleratorType']}' was not found"
                raise RefusedError(404, "notFound", message, "global")
        if self.take("quota"):
            message = "Quota 'CPUS' exceeded.  Limit: 24.0 in region us-central1."
            raise RefusedError(403, "quotaExceeded", message, "usageLimits")
        there = [name for name in names if f"/zones/{zone}/instances/{name}" in self.things]
        group, failed = uuid.uuid4().hex, {}
        for name in there:
            failed[name] = {"code": "RESOURCE_ALREADY_EXISTS", "message": f"The resource '{name}' already exists"}
        size = body["instanceProperties"]["machineType"]
        is_out = self.is_out(zone, size)
        new = [name for name in names if name not in there]
        n_out = len(new) if is_out or self.take("stockout") else int(self.take("partial"))
        for name in new[len(new) - n_out :]:
            message = f"The zone 'projects/{PROJECT}/zones/{zone}' does not have enough resources available."
            failed[name] = {"code": "ZONE_RESOURCE_POOL_EXHAUSTED", "message": message}
        new = new[: len(new) - n_out]
        addresses = self.bodies.make(_wishes(new, body["instanceProperties"])) if self.bodies else {}
        for name in new:
            self._insert(zone, name, body["instanceProperties"], addresses.get(name, ""))
        for name, error in failed.items() if not self.take("mute") else ():
            self._begun("insert", f"/zones/{zone}/instances/{name}", [error], operationGroupId=group)
        errors = [] if new else [{"code": "VM_MIN_COUNT_NOT_REACHED", "message": "Requested minimum count of 1 VMs"}]
        errors += [] if new else list(failed.values())[:1]
        status = {f"zones/{zone}": {"targetVmCount": len(names), "createdVmCount": len(new)}}
        done = {"instancesBulkInsertOperationMetadata": {"perLocationStatus": status}, "operationGroupId": group}
        return self._begun("bulkInsert", f"/zones/{zone}/instances", errors, **done)

    def _insert(self, zone: str, name: str, properties: dict[str, Any], address: str) -> None:
        place = f"/zones/{zone}/instances/{name}"
        address = address or f"10.89.{len(self.things) // 250 % 250}.{len(self.things) % 250 + 2}"
        [interface] = properties["networkInterfaces"]
        outside = {**interface["accessConfigs"][0], "natIP": self.public_ip(name)}
        path = f"{_URL}/{PROJECT}/zones/{zone}"
        self.things[place] = {
            **properties,
            **_born(place),
            "zone": path,
            "machineType": f"{path}/machineTypes/{properties['machineType']}",
            "status": "STAGING",
            "networkInterfaces": [{**interface, "networkIP": address, "accessConfigs": [outside]}],
            "_ready": time.monotonic() + self.operation_s,
        }
        disk = f"/zones/{zone}/disks/{name}"
        labels = properties["disks"][0]["initializeParams"]["labels"]
        self.things[disk] = {"labels": labels, **_born(disk), "zone": path, "users": [f"{_URL}/{PROJECT}{place}"]}
        alive = sum(each["name"] == name for each in self.machines().values())
        self.born[name] = max(self.born[name], alive)

    def _switch(self, place: str, verb: str) -> dict[str, Any]:
        if place not in self.things:
            raise RefusedError(404, "notFound", f"The resource 'projects/{PROJECT}{place}' was not found", "global")
        machine = self.things[place]
        if self.bodies:
            self.bodies.switch(machine["name"], verb)
        machine["status"] = "RUNNING" if verb == "start" else "TERMINATED"
        [outside] = machine["networkInterfaces"][0]["accessConfigs"]
        outside.pop("natIP", None)
        if verb == "start":
            outside["natIP"] = self.public_ip(machine["name"])
        return self._begun(verb, place)

    def _delete(self, place: str) -> dict[str, Any]:
        if place not in self.things:
            raise RefusedError(404, "notFound", f"The resource 'projects/{PROJECT}{place}' was not found", "global")
        name, kind = self.things[place]["name"], place.split("/")[-2]
        words = [json.dumps(each) for path, each in self.things.items() if path != place]
        needle = {"networks": f'global/networks/{name}"', "subnetworks": f'subnetworks/{name}"'}.get(kind, "\0")
        if any(needle in each for each in words):
            message = f"The {kind} resource 'projects/{PROJECT}{place}' is already being used"
            raise RefusedError(400, "resourceInUseByAnotherResource", message, "global")
        if kind == "subnetworks" and self.take("busy"):
            error = {"code": "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", "message": f"{place} is already being used"}
            return self._begun("delete", place, [error])
        if kind == "networks" and self.take("not ready"):
            raise RefusedError(400, "resourceNotReady", f"The resource '{place}' is not ready", "global")
        del self.things[place]
        if kind == "instances":
            self.gone(name)
            self.things.pop(place.replace("/instances/", "/disks/"), None)
        return self._begun("delete", place)

    def _begun(self, verb: str, place: str, errors: list[dict[str, str]] | None = None, **more: Any) -> dict[str, Any]:
        name = f"operation-{uuid.uuid4().hex}"
        scope, value = place.split("/")[1:3] if not place.startswith("/global") else ("", "")
        self.operations[name] = {
            **more,
            "name": name,
            "operationType": verb,
            "targetLink": f"{_URL}/{PROJECT}{place}",
            "_ends": time.monotonic() + self.operation_s,
            **({scope[:-1]: f"{_URL}/{PROJECT}/{scope}/{value}"} if scope else {}),
            **({"error": {"errors": errors}} if errors else {}),
        }
        return self.operations[name]


class RefusedError(serving.RefusedError):
    """An error in Google's shape."""

    def __init__(self, status: int, reason: str, message: str, domain: str) -> None:
        first = {"message": message, "domain": domain, "reason": reason}
        super().__init__(Told({"error": {"code": status, "message": message, "errors": [first]}}, status))


def _born(place: str) -> dict[str, Any]:
    return {
        "name": place.rsplit("/", 1)[1],
        "selfLink": f"{_URL}/{PROJECT}{place}",
        "creationTimestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "_made": time.monotonic(),
    }


def _wishes(names: list[str], properties: dict[str, Any]) -> list[Wish]:
    """Return what the machines of a request are to be."""
    items = {each["key"]: each["value"] for each in properties["metadata"]["items"]}
    image = properties["disks"][0]["initializeParams"]["sourceImage"].rsplit("/", 1)[1]
    gpus = sum(each["acceleratorCount"] for each in properties.get("guestAccelerators", ()))
    kind = properties["labels"].get("ems-kind", "")
    return [Wish(name, items["user-data"], kind, _FAMILIES[image], gpus) for name in names]


def _passes(thing: dict[str, Any], text: str) -> bool:
    """Whether something passes a filter; one of another form than the API's is an error."""
    for term in text.split(" AND ") if text else ():
        if found := re.fullmatch(r"\(labels\.([a-z0-9_-]+) = ([a-z0-9_-]*)\)", term):
            if thing.get("labels", {}).get(found[1]) != found[2]:
                return False
        elif found := re.fullmatch(r"\(labels\.([a-z0-9_-]+):\*\)", term):
            if found[1] not in thing.get("labels", {}):
                return False
        elif found := re.fullmatch(r"name eq (\S+)", term):
            if not re.fullmatch(found[1], thing["name"]):
                return False
        else:
            raise RefusedError(400, "invalid", f"Invalid value for field 'filter': '{text}'.", "global")
    return True


@contextmanager
def serve(host: str = "127.0.0.1") -> Iterator[Cloud]:
    """Have the stand-in on a free port until the end of the block."""
    cloud = Cloud()
    with answering(cloud.told, host) as cloud.url:
        yield cloud
