"""A cloud to try things on: its stand-in, how a provider is connected to it, and clients that are killed."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ems.cluster.definition import AwsSection, GceSection, OpenstackSection
from ems.cluster.provider import base, keystone
from ems.cluster.provider.aws import AwsProvider
from ems.cluster.provider.backoff import Backoff
from ems.cluster.provider.base import MachineRequest, Refusal, Resource
from ems.cluster.provider.gce import GceProvider
from ems.cluster.provider.openstack import OpenstackProvider

LABELS = {base.CLUSTER: "demo", base.INCARNATION: "a" * 32, base.OWNER: "eve"}


def hurried() -> Backoff:
    """Return waits that are as many as they are and take a fiftieth of their time."""
    return Backoff(sleep=lambda seconds: time.sleep(seconds / 50))


@dataclass
class Bench:
    """One cloud: its stand-in, and how a provider is connected to it.

    Attributes
    ----------
    zones
        Two; the first is preferred.
    sizes
        Two that have what a node needs; the first is the controller's.
    """

    kind: str
    cloud: Any
    said: dict[str, Any]
    zones: tuple[str, str]
    sizes: tuple[str, str]
    node: dict[str, Any]

    def section(self, **more: Any) -> Any:
        sections = {"gce": GceSection, "aws": AwsSection, "openstack": OpenstackSection}
        return sections[self.kind].model_validate({**self.said, **more})

    def provider(self, *, as_instance: bool = False, **more: Any) -> Any:
        providers = {"gce": GceProvider, "aws": AwsProvider, "openstack": OpenstackProvider}
        return providers[self.kind](self.section(**more), backoff=hurried(), as_instance=as_instance)

    def become_machine(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        """Have this computer be a machine of the cloud's, beside what it is."""
        patch.setenv("GCE_METADATA_HOST", self.cloud.url.removeprefix("http://"))
        patch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", self.cloud.url)
        patch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
        patch.setattr(keystone, "OWN_FILE", str(folder / "own-clouds.yaml"))

    def hand_over(self, files: Mapping[str, str]) -> None:
        """Give this machine what a controller is given, see :class:`~ems.cluster.provider.base.Delegator`."""
        for content in files.values():
            Path(keystone.OWN_FILE).write_text(content)

    def place(self, name: str) -> str:
        """Return the zone that a machine is in."""
        found = [each for each in self.provider().list() if each.name == name]
        return str(found[0].zone)

    def names(self) -> list[str]:
        if self.kind == "gce":
            return sorted(each["name"] for each in self.cloud.machines().values())
        return list(self.cloud.names())

    def is_sound(self) -> None:
        """Assert that no name was ever borne by two machines at a time."""
        doubles = {name: count for name, count in self.cloud.born.items() if count > 1}
        assert not doubles

    def controller(self, **changes: Any) -> MachineRequest:
        labels = {**LABELS, base.ROLE: "controller", base.NODE: "demo-controller"}
        wish = MachineRequest("demo-controller", "debian:12", "#cloud-config\n", labels, size=self.sizes[0])
        return replace(wish, is_public=True, is_trusted=True, **changes)

    def nodes(self, count: int, **changes: Any) -> list[MachineRequest]:
        labels = {**LABELS, base.ROLE: "compute", base.KIND: "gpu"}
        wish = MachineRequest("", "ubuntu:24.04", "#cloud-config\n", labels, **{"size": self.sizes[1], **self.node})
        return [replace(wish, name=f"demo-gpu-{number:03d}", **changes) for number in range(1, count + 1)]


def _gce(folder: Path, patch: pytest.MonkeyPatch, cloud: Any) -> Bench:
    cloud.public_ip = lambda _name: "127.77.0.1"
    said = {"kind": "gce", "credentials": str(cloud.credentials(folder)), "endpoint": cloud.url}
    zones = ("us-central1-a", "us-central1-b")
    return Bench("gce", cloud, said, zones, ("e2-standard-2", "n1-standard-4"), {"gpus": 1, "gpu_type": "t4"})


def _aws(folder: Path, patch: pytest.MonkeyPatch, cloud: Any) -> Bench:
    path = folder / "credentials"
    path.write_text("[lab]\naws_access_key_id = AKIATESTING\naws_secret_access_key = secret\n")
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        patch.delenv(name, raising=False)
    said = {"kind": "aws", "region": "us-east-1", "profile": "lab", "endpoint": cloud.url}
    return Bench("aws", cloud, said, ("us-east-1a", "us-east-1b"), ("m7i.large", "g4dn.xlarge"), {"gpus": 1})


def _openstack(folder: Path, patch: pytest.MonkeyPatch, cloud: Any) -> Bench:
    login = {"auth_url": f"{cloud.url}/v3", "username": "me", "project_id": "p1", "user_domain_name": "Default"}
    clouds = {"lab": {"auth": login, "region_name": "one"}, "other": {"auth": login}}
    path = folder / "clouds.yaml"
    path.write_text(json.dumps({"clouds": clouds}))
    path.with_name("secure.yaml").write_text(json.dumps({"clouds": {"lab": {"auth": {"password": "secret"}}}}))
    patch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
    for name in ("OS_CLOUD", "OS_AUTH_URL"):
        patch.delenv(name, raising=False)
    said = {"kind": "openstack", "cloud": "lab"}
    return Bench("openstack", cloud, said, ("nova", "east"), ("m1.medium", "g1.large"), {"gpus": 1})


_BENCHES: dict[str, Callable[..., Bench]] = {"gce": _gce, "aws": _aws, "openstack": _openstack}


@contextmanager
def serve(kind: str, folder: Path, patch: pytest.MonkeyPatch, host: str = "127.0.0.1") -> Iterator[Bench]:
    """Have a cloud's stand-in until the end of the block; credentials lie where people have them."""
    with importlib.import_module(f"clouds.{kind}").serve(host) as cloud:
        bench = _BENCHES[kind](folder, patch, cloud)
        bench.said["ssh_from"] = "192.0.2.7/32"
        yield bench


def made(results: list[Resource | Refusal]) -> list[Resource]:
    assert [each for each in results if isinstance(each, Refusal)] == []
    return [each for each in results if isinstance(each, Resource)]


def refused(results: list[Resource | Refusal]) -> list[Refusal]:
    assert [each for each in results if isinstance(each, Resource)] == []
    return [each for each in results if isinstance(each, Refusal)]


class Client:
    """A process that works, forked: to begin a Python anew for each would take most of the time.

    Parameters
    ----------
    line
        It kills itself before it writes this line of the journal; 0: never.
    """

    def __init__(self, work: Callable[[], object], line: int = 0) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the stand-in's threads are none of the child's
            self.pid = os.fork()
        if not self.pid:
            self._work(work, line)

    def _work(self, work: Callable[[], object], line: int) -> None:
        seen = 0

        def die(event: str, args: tuple[Any, ...]) -> None:
            nonlocal seen
            if event == "open" and str(args[0]).endswith("/journal.jsonl") and args[2] & (os.O_WRONLY | os.O_RDWR):
                seen += 1
                if seen == line:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.addaudithook(die)
            work()
            code = 0
        finally:
            os._exit(code)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Return 0, or the signal that ended it, negative."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
