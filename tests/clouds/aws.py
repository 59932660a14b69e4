"""EC2 for tests: moto's server on loopback, and around it what moto leaves out.

Beside moto it holds: the check of every request's field names against the public API's model (botocore's), client
tokens, images of the distributions, signatures that are refused, and faults. It runs in this process, so that what is
left is counted in its own state instead of by the API that is under test.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlencode

os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"  # thousands, of which none is asked for

import botocore.session
from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import Ami
from moto.ec2.models.core import TaggedEC2Resource
from moto.ec2.models.instance_types import INSTANCE_TYPES
from moto.ec2.utils import EC2_PREFIX_TO_RESOURCE, get_prefix
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from clouds.bodies import Wish
from clouds.serving import StandIn, running


def _tags(resource: Any) -> list[dict[str, str]]:
    """Return a resource's tags by one look-up: moto goes through those of all resources for it."""
    found = resource.ec2_backend.tags.get(resource.id, {}) if resource.id else {}
    kind = EC2_PREFIX_TO_RESOURCE.get(get_prefix(resource.id), "") if found else ""
    about = {"resource_id": resource.id, "resource_type": kind}
    return [{**about, "key": key, "value": value} for key, value in found.items()]


TaggedEC2Resource.get_tags = _tags  # type: ignore[method-assign]  # else a thousand machines take minutes

ACCOUNT, REGION = "123456789012", "us-east-1"
PROFILE = "ems-controller"  # an instance profile that is there
KEY, OWN_KEY = "AKIATESTING", "ASIAMACHINE"
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
_IMAGES = {
    "ami-0deb1200000000001": ("136693071363", "debian-12-amd64-20261101-100", "2026-11-01T00:00:00.000Z"),
    "ami-0deb1200000000000": ("136693071363", "debian-12-amd64-20250101-10", "2025-01-01T00:00:00.000Z"),
    "ami-0deb1300000000000": ("136693071363", "debian-13-amd64-20261101-100", "2026-11-01T00:00:00.000Z"),
    "ami-0ubu2400000000000": (
        "099720109477",
        "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20261101",
        "2026-11-01T00:00:00.000Z",
    ),
}
_DISTRIBUTIONS = {"debian-12": "debian:12", "debian-13": "debian:13", "ubuntu/im": "ubuntu:24.04"}  # as names begin


@dataclass
class Cloud(StandIn):
    """The stand-in, whose state is moto's; ``calls`` are actions and parameters.

    Attributes
    ----------
    most_per_call
        Of how many a call makes so many.
    """

    most_per_call: int = 10**6
    moto_s: float = 0.0  # how long moto was at work; one request at a time
    has_role: bool = False  # whether a machine was made with an instance profile
    _tokens: dict[str, tuple[dict[str, str], bytes]] = field(default_factory=dict)
    _born: dict[str, float] = field(default_factory=dict)

    @property
    def backend(self) -> Any:
        return ec2_backends[ACCOUNT][REGION]

    def left(self) -> list[str]:
        """Return the ids of everything labelled that is there, by its own state."""
        backend = self.backend
        there = set(self.machines())
        there |= {*backend.volumes, *backend.snapshots, *backend.amis, *backend.addresses}
        there |= {group for groups in backend.groups.values() for group in groups}
        return sorted(each for each, tags in backend.tags.items() if "ems-cluster" in tags and each in there)

    def machines(self) -> dict[str, Any]:
        """Return the instances that are not gone, by id."""
        found = [each for part in self.backend.reservations.values() for each in part.instances]
        return {each.id: each for each in found if each.state not in {"terminated", "shutting-down"}}

    def names(self) -> list[str]:
        """Return what the machines that are there call themselves."""
        return sorted(map(self._name_of, self.machines().values()))

    def _name_of(self, instance: Any) -> str:
        """Return the name at the launch index of what the machine's tags say."""
        stem, *runs = self.backend.tags[instance.id].get("ems-nodes", instance.id).split()
        ends = [(int(run.split("-")[0]), int(run.split("-")[-1])) for run in runs]
        names = [f"{stem}{number:03d}" for first, last in ends for number in range(first, last + 1)] or [stem]
        return str(names[instance.ami_launch_index])

    def lose(self, name: str) -> None:
        """Have a machine vanish, as by a preemption."""
        with self.lock:
            found = [its_id for its_id, each in self.machines().items() if self._name_of(each) == name]
            self.backend.terminate_instances(found)
            self.gone(name)

    def forget(self) -> None:
        """List no more what is gone, as EC2 after an hour."""
        with self.lock:
            for each in self.backend.reservations.values():
                each.instances = [instance for instance in each.instances if instance.id in self.machines()]

    # -- a request

    def answer(self, app: Callable[..., Any], environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        """Serve one request."""
        if environ["PATH_INFO"].startswith("/latest/"):
            return self._metadata(environ, start)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True))
        action = fields.get("Action", "")
        self.calls.append((action, fields))
        try:
            self._refuse(environ, fields)
            status, answer = self._done(app, environ, fields)
            if not action.startswith("Describe") and self.take("raise"):
                status, answer = 500, _error("InternalError", "An internal error has occurred")
        except RefusedError as refused:
            status, answer = refused.status, _error(refused.code, str(refused))
        start(f"{status} -", [("Content-Type", "text/xml"), ("Content-Length", str(len(answer)))])
        return [answer]

    def _metadata(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        """Tell a machine who it is, in a session (IMDSv2)."""
        path, whose = environ["PATH_INFO"].removeprefix("/latest/"), environ.get("REMOTE_ADDR", "")
        roles = "meta-data/iam/security-credentials/"
        keys = {"AccessKeyId": OWN_KEY, "SecretAccessKey": "own", "Token": "session"}
        keys["Expiration"] = "2099-01-01T00:00:00Z"
        answers = {"meta-data/placement/region": REGION}
        answers |= {roles: PROFILE, roles + PROFILE: json.dumps(keys)} if self.has_role else {}
        if self.is_noticed(whose):
            at = datetime.fromtimestamp(self.noticed[self.bodies.who(whose)], UTC)
            answers["meta-data/spot/instance-action"] = json.dumps({"action": "terminate", "time": f"{at:{_TIME}}"})
        is_token = (environ["REQUEST_METHOD"], path) == ("PUT", "api/token")
        is_in = is_token or environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN") == "in"
        said = "in" if is_token else answers.get(path, "")
        status = "200 OK" if is_in and said else "404 Not Found" if is_in else "401 Unauthorized"
        start(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(said.encode())))])
        return [said.encode()]

    def _refuse(self, environ: dict[str, Any], fields: dict[str, str]) -> None:
        """Raise what is wrong with a request, or is to go wrong with it."""
        signed = environ.get("HTTP_AUTHORIZATION", "")
        form = r"AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/[a-z0-9-]+/ec2/"
        if environ.get("QUERY_STRING") or not re.match(form, signed):
            raise RefusedError(400, "MissingAuthenticationToken", "not signed as EC2 wants it")
        whose = {KEY: "user", OWN_KEY: "machine"}.get(signed.partition("Credential=")[2].partition("/")[0])
        is_whole = whose == "user" or environ.get("HTTP_X_AMZ_SECURITY_TOKEN") == "session"
        self.callers[whose or ""] += 1
        if whose is None or not is_whole:
            raise RefusedError(401, "AuthFailure", "AWS was not able to validate the provided access credentials")
        if unknown := unknown_fields(fields):
            raise RefusedError(400, "UnknownParameter", f"The parameters {', '.join(unknown)} are not recognized")
        if self.take("rate"):
            raise RefusedError(503, "RequestLimitExceeded", "Request limit exceeded.")
        if self.take("error"):
            raise RefusedError(503, "Unavailable", "The service is unavailable. Please try again shortly.")
        if fields["Action"] == "RunInstances" and fields.get("DryRun") != "true":
            self._refuse_machines(fields)

    def _refuse_machines(self, fields: dict[str, str]) -> None:
        zone = self.backend.get_subnet(fields["NetworkInterface.1.SubnetId"]).availability_zone
        size = fields["InstanceType"]
        if self.is_out(zone, size) or self.take("stockout"):
            said = (
                f"We currently do not have sufficient {size} capacity in the Availability Zone you requested ({zone})."
            )
            raise RefusedError(500, "InsufficientInstanceCapacity", said)
        if self.take("quota"):
            raise RefusedError(
                400, "VcpuLimitExceeded", "You have requested more vCPU capacity than your current limit"
            )

    def _done(self, app: Callable[..., Any], environ: dict[str, Any], fields: dict[str, str]) -> tuple[int, bytes]:
        if (profile := fields.get("IamInstanceProfile.Name", PROFILE)) != PROFILE:
            said = f"Value ({profile}) for parameter iamInstanceProfile.name is invalid."
            raise RefusedError(400, "InvalidParameterValue", said)
        self.has_role |= "IamInstanceProfile.Name" in fields and fields.get("DryRun") != "true"
        fields = {key: value for key, value in fields.items() if not key.startswith("IamInstanceProfile")}
        with self.lock:
            began = time.monotonic()
            try:
                if fields["Action"].startswith("Describe") or fields.get("DryRun") == "true":
                    status, answer = _through(app, environ, fields)
                    return status, self._seen(answer) if fields["Action"] == "DescribeInstances" else answer
                return self._change(app, environ, fields)
            finally:
                self.moto_s += time.monotonic() - began

    def _change(self, app: Callable[..., Any], environ: dict[str, Any], fields: dict[str, str]) -> tuple[int, bytes]:
        token = fields.get("ClientToken", "")
        if token in self._tokens:
            before, answer = self._tokens[token]
            if before != fields:
                raise RefusedError(400, "IdempotentParameterMismatch", "the token was used with other parameters")
            if not set(re.findall("<instanceId>(.*?)</", answer.decode())) <= self.machines().keys():
                raise RefusedError(400, "IdempotentInstanceTerminated", "The instance was terminated")
            return 200, answer
        asked = dict(fields)
        if fields["Action"] == "RunInstances":
            # moto makes as many as the least that is asked for
            asked["MinCount"] = asked["MaxCount"] = str(min(int(fields["MaxCount"]), self.most_per_call))
        if fields["Action"] == "TerminateInstances":  # moto fails for those that are gone
            ids = [value for key, value in fields.items() if key.startswith("InstanceId.") and value in self.machines()]
            asked = {key: value for key, value in fields.items() if not key.startswith("InstanceId.")}
            asked |= {f"InstanceId.{number}": its_id for number, its_id in enumerate(ids, 1)}
            if not ids:
                return 200, b"<TerminateInstancesResponse/>"
        if fields["Action"] == "CreateImage" and fields["Name"] in {each.name for each in self.backend.amis.values()}:
            raise RefusedError(400, "InvalidAMIName.Duplicate", f"AMI name {fields['Name']} is already in use")
        if fields["Action"] == "CreateImage":  # moto cannot tag the snapshot at once
            asked = {key: value for key, value in asked.items() if not key.startswith("TagSpecification.2.")}
        status, answer = _through(app, environ, asked)
        if status == 200 and token:
            self._tokens[token] = (fields, answer)
            self._count()
        if status == 200 and self.bodies:
            self._embody(answer, asked)
        if status == 200 and fields["Action"] == "CreateImage":
            self._tag_snapshot(answer, fields)
        return status, answer

    def _count(self) -> None:
        alive = self.machines()
        for its_id in alive:
            self._born.setdefault(its_id, time.monotonic())
        if len(alive) < 100:
            for name, count in Counter(map(self._name_of, alive.values())).items():
                self.born[name] = max(self.born[name], count)

    def _embody(self, answer: bytes, fields: dict[str, str]) -> None:
        """Have what stands behind machines follow what was done to them."""
        action, ids = fields["Action"], [value for key, value in fields.items() if key.startswith("InstanceId.")]
        if action == "RunInstances":
            ids = re.findall("<instanceId>(.*?)</", answer.decode())
        named = {self._name_of(each): each for each in map(self.backend.get_instance, ids)}
        if action == "RunInstances":
            addresses = self.bodies.make(self._wishes(named, fields))
            for name, each in named.items():
                each.nics[0].private_ip_address = addresses[name]
        for name, each in named.items():
            if action == "TerminateInstances":
                self.gone(name)
            elif action in {"StartInstances", "StopInstances"}:
                self.bodies.switch(name, action.removesuffix("Instances").lower())
            if each.nics[0].public_ip:
                each.nics[0].public_ip = self.bodies.public_ip(name)

    def _wishes(self, named: Mapping[str, Any], fields: dict[str, str]) -> list[Wish]:
        """Return what the machines of a request are to be."""
        user_data = base64.b64decode(fields["UserData"]).decode()
        image = _DISTRIBUTIONS[self.backend.amis[fields["ImageId"]].name[:9]]
        gpus = sum(each["Count"] for each in INSTANCE_TYPES[fields["InstanceType"]].get("GpuInfo", {}).get("Gpus", ()))
        kinds = {name: self.backend.tags[each.id].get("ems-kind", "") for name, each in named.items()}
        return [Wish(name, user_data, kind, image, gpus) for name, kind in kinds.items()]

    def _tag_snapshot(self, answer: bytes, fields: dict[str, str]) -> None:
        image = self.backend.amis[re.search(rb"<imageId>(.*?)</imageId>", answer)[1].decode()]  # type: ignore[index]
        image.owner_id = ACCOUNT
        pairs = {key: value for key, value in fields.items() if key.startswith("TagSpecification.2.Tag.")}
        tags = {value: pairs[key.replace(".Key", ".Value")] for key, value in pairs.items() if key.endswith(".Key")}
        self.backend.create_tags([image.ebs_snapshot.id], tags)

    def _seen(self, answer: bytes) -> bytes:
        """Hide machines that are too new to be listed, show others as pending; nobody answers at their addresses."""
        if not self.bodies:
            answer = re.sub(rb"<ipAddress>[^<]+<", b"<ipAddress>127.77.0.1<", answer)
        if not self.late_s and not self.operation_s:
            return answer
        root = ET.fromstring(answer)
        space = {"e": _NAMESPACE.rstrip("/")}
        for instances in root.iterfind(".//e:instancesSet", space):
            for each in list(instances):
                age = time.monotonic() - self._born[each.findtext("e:instanceId", "", space)]
                state = each.find("e:instanceState/e:name", space)
                if age < self.late_s:
                    instances.remove(each)
                elif age < self.operation_s and state is not None:
                    state.text = "pending"
        return ET.tostring(root)


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def _through(app: Callable[..., Any], environ: dict[str, Any], fields: dict[str, str]) -> tuple[int, bytes]:
    body = urlencode(fields).encode()
    said: list[int] = []
    inner = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    parts = app(inner, lambda status, _headers, *_: said.append(int(status.split()[0])))
    return said[0] if said else 500, b"".join(parts)


def _error(code: str, message: str) -> bytes:
    said = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return f'<?xml version="1.0"?><Response><Errors>{said}</Errors><RequestID>test</RequestID></Response>'.encode()


@cache
def _model() -> Any:
    return botocore.session.get_session().get_service_model("ec2")


def unknown_fields(fields: dict[str, str]) -> list[str]:
    """Return the fields that EC2's public model does not have for this action."""
    shape = _model().operation_model(fields["Action"]).input_shape
    return [key for key in fields if key not in {"Action", "Version"} and not _is_known(shape, key.split("."))]


def _is_known(shape: Any, parts: list[str]) -> bool:
    if not parts:
        return shape.type_name not in {"structure", "list", "map"}
    if shape.type_name == "list":
        return parts[0].isdecimal() and _is_known(shape.member, parts[1:])
    if shape.type_name != "structure":
        return False
    for name, member in shape.members.items():
        said = member.serialization
        named = said.get("queryName") or said.get("name", name)
        if named[0].upper() + named[1:] == parts[0]:
            return _is_known(member, parts[1:])
    return False


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any) -> None:
        pass


@contextmanager
def serve(host: str = "127.0.0.1") -> Iterator[Cloud]:
    """Give a fresh EC2."""
    ec2_backends[ACCOUNT][REGION].reset()
    cloud = Cloud()
    app = DomainDispatcherApplication(create_backend_app)

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        return cloud.answer(app, environ, start)

    server = make_server(host, 0, answer, threaded=True, request_handler=_Quiet)
    for its_id, (owner, name, made) in _IMAGES.items():
        about = {"name": name, "owner_id": owner, "creation_date": datetime.fromisoformat(made)}
        cloud.backend.amis[its_id] = Ami(
            cloud.backend, its_id, **about, architecture="x86_64", root_device_name="/dev/xvda"
        )
    try:
        with running(server) as cloud.url:
            yield cloud
    finally:
        ec2_backends[ACCOUNT][REGION].reset()
