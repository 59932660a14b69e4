"""EC2 for tests: moto's server on loopback, and around it what moto leaves out.

Beside moto it holds: the check of every request's field names against the public API's model (botocore's), client
tokens, images of the distributions, signatures that are refused, and faults. It runs in this process, so that what is
left is counted in its own state instead of by the API that is under test.
"""

from __future__ import annotations

import io
import re
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlencode

import botocore.session
from moto.core.model_instances import reset_model_data
from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import Ami
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ACCOUNT, REGION = "123456789012", "us-east-1"
KEY = "AKIATESTING"
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


@dataclass
class Call:
    """One request."""

    action: str
    fields: dict[str, str]


@dataclass
class Fault:
    """What is to go wrong.

    Attributes
    ----------
    is_after
        Whether the thing is done all the same.
    """

    action: str
    code: str
    message: str = "a fault of the test"
    status: int = 400
    times: int = 1
    is_after: bool = False
    matches: Callable[[dict[str, str]], bool] = lambda _fields: True


@dataclass
class Ec2Cloud:
    """The stand-in: its state, its calls, its faults."""

    port: int = 0
    calls: list[Call] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    hidden_looks: int = 0  # so many listings do not show a machine that was just made
    pending_looks: int = 0  # so many listings show it as pending
    most_per_call: int = 10**6  # capacity: a call that asks for more gets so many
    _tokens: dict[str, tuple[dict[str, str], bytes]] = field(default_factory=dict)
    _looks: dict[str, int] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def backend(self) -> Any:
        return ec2_backends[ACCOUNT][REGION]

    def left(self) -> list[str]:
        """Return the ids of everything labelled that is there, by its own state."""
        backend = self.backend
        there = {each.id for each in self.instances()}
        there |= {*backend.volumes, *backend.snapshots, *backend.amis, *backend.addresses}
        there |= {group for groups in backend.groups.values() for group in groups}
        return sorted(each for each, tags in backend.tags.items() if "ems-cluster" in tags and each in there)

    def instances(self) -> list[Any]:
        """Return the instances that are not gone."""
        found = [each for part in self.backend.reservations.values() for each in part.instances]
        return [each for each in found if each.state not in {"terminated", "shutting-down"}]

    def lose(self, machine: str) -> None:
        """Have an instance vanish, as by a preemption."""
        self.backend.terminate_instances([machine])

    def count(self, action: str | None = None) -> int:
        return sum(action in {None, call.action} for call in self.calls)

    # -- a request

    def __call__(self, app: Callable[..., Any], environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True))
        self.calls.append(Call(fields.get("Action", ""), fields))
        wrong = _refusal(environ, fields)
        fault = wrong or self._due(fields)
        if fault is not None and not fault.is_after:
            return _answer(start, fault.status, _error(fault.code, fault.message))
        status, answer = self._done(app, environ, fields)
        if fault is not None:
            return _answer(start, fault.status, _error(fault.code, fault.message))
        return _answer(start, status, answer)

    def _due(self, fields: dict[str, str]) -> Fault | None:
        if fields.get("DryRun") == "true":
            return None
        for fault in self.faults:
            if fault.times and fault.action in {"*", fields["Action"]} and fault.matches(fields):
                fault.times -= 1
                return fault
        return None

    def _done(self, app: Callable[..., Any], environ: dict[str, Any], fields: dict[str, str]) -> tuple[int, bytes]:
        token = fields.get("ClientToken", "")
        if token in self._tokens:
            before, answer = self._tokens[token]
            if before != fields:
                return 400, _error("IdempotentParameterMismatch", "the token was used with other parameters")
            return 200, answer
        asked = dict(fields)
        if fields["Action"] == "RunInstances":
            # moto makes as many as the least that is asked for
            asked["MinCount"] = asked["MaxCount"] = str(min(int(fields["MaxCount"]), self.most_per_call))
        if fields["Action"] == "CreateImage":  # moto cannot tag the snapshot at once
            asked = {key: value for key, value in asked.items() if not key.startswith("TagSpecification.2.")}
        status, answer = _through(app, environ, asked)
        if status == 200 and token:
            self._tokens[token] = (fields, answer)
        if status == 200 and fields["Action"] == "CreateImage":
            self._tag_snapshot(answer, fields)
        if status == 200 and fields["Action"] == "DescribeInstances":
            answer = self._seen(answer)
        return status, answer

    def _tag_snapshot(self, answer: bytes, fields: dict[str, str]) -> None:
        image = self.backend.amis[re.search(rb"<imageId>(.*?)</imageId>", answer)[1].decode()]  # type: ignore[index]
        image.owner_id = ACCOUNT
        pairs = {key: value for key, value in fields.items() if key.startswith("TagSpecification.2.Tag.")}
        tags = {value: pairs[key.replace(".Key", ".Value")] for key, value in pairs.items() if key.endswith(".Key")}
        self.backend.create_tags([image.ebs_snapshot.id], tags)

    def _seen(self, answer: bytes) -> bytes:
        """Hide machines that are too new to be listed, and show others as pending."""
        if not self.hidden_looks and not self.pending_looks:
            return answer
        root = ET.fromstring(answer)
        space = {"e": _NAMESPACE.rstrip("/")}
        for instances in root.iterfind(".//e:instancesSet", space):
            for each in list(instances):
                its_id = each.findtext("e:instanceId", "", space)
                looks = self._looks[its_id] = self._looks.get(its_id, 0) + 1
                state = each.find("e:instanceState/e:name", space)
                if looks <= self.hidden_looks:
                    instances.remove(each)
                elif looks <= self.hidden_looks + self.pending_looks and state is not None:
                    state.text = "pending"
        return ET.tostring(root)


def _refusal(environ: dict[str, Any], fields: dict[str, str]) -> Fault | None:
    """Return what is wrong with a request: its signature's form, its key, its fields."""
    signed = environ.get("HTTP_AUTHORIZATION", "")
    if environ.get("QUERY_STRING") or not re.match(r"AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/[a-z0-9-]+/ec2/", signed):
        return Fault("*", "MissingAuthenticationToken", "not signed as EC2 wants it")
    if f"Credential={KEY}/" not in signed:
        return Fault("*", "AuthFailure", "AWS was not able to validate the provided access credentials", 401)
    if unknown := unknown_fields(fields):
        return Fault("*", "UnknownParameter", f"The parameters {', '.join(unknown)} are not recognized")
    return None


def _through(app: Callable[..., Any], environ: dict[str, Any], fields: dict[str, str]) -> tuple[int, bytes]:
    body = urlencode(fields).encode()
    said: list[int] = []
    inner = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    parts = app(inner, lambda status, _headers, *_: said.append(int(status.split()[0])))
    return said[0] if said else 500, b"".join(parts)


def _answer(start: Callable[..., Any], status: int, body: bytes) -> list[bytes]:
    start(f"{status} -", [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
    return [body]


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
def ec2_cloud() -> Iterator[Ec2Cloud]:
    """Give a fresh EC2 on loopback."""
    reset_model_data()
    cloud = Ec2Cloud()
    app = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()  # moto's state is not for several threads

    def locked(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        with lock:
            return cloud(app, environ, start)

    server = make_server("127.0.0.1", 0, locked, threaded=True, request_handler=_Quiet)
    cloud.port = server.server_port
    for its_id, (owner, name, made) in _IMAGES.items():
        about = {"name": name, "owner_id": owner, "creation_date": datetime.fromisoformat(made)}
        cloud.backend.amis[its_id] = Ami(
            cloud.backend, its_id, **about, architecture="x86_64", root_device_name="/dev/xvda"
        )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield cloud
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        reset_model_data()
