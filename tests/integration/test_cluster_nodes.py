"""What machines are told and asked for, by a provider that makes none: order of creation, addresses, exports, hosts."""

from __future__ import annotations

import base64
import gzip
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from ems.cluster import lifecycle, provision, shipped
from ems.cluster.definition import Definition
from ems.cluster.fleet import Fleet
from ems.cluster.provider.base import MachineRequest, MachineState, Resource, Thing, Traits
from ems.cluster.record import Files, new


class Paper:
    """A provider whose machines are on paper only; each gets the next address, and says nothing."""

    def __init__(self, *, has_names: bool) -> None:
        self.traits = Traits(
            has_shared_volume=False,
            has_images=False,
            stop_keeps_address=True,
            has_names=has_names,
            network="10.1.0.0/24",
        )
        self.calls: list[list[str]] = []
        self.requests: dict[str, MachineRequest] = {}
        self.machines: dict[str, Resource] = {}

    def check(self, requests: Sequence[MachineRequest]) -> None:
        """All is well."""

    def prepare(self, labels: dict[str, str]) -> None:
        """Nothing is shared."""

    def create(self, requests: Sequence[MachineRequest]) -> list[Resource]:
        self.calls.append([each.name for each in requests])
        for each in requests:
            address = f"10.1.0.{len(self.machines) + 2}"
            self.requests[each.name] = each
            self.machines[each.name] = Resource(
                Thing.MACHINE, each.name, each.name, each.labels, MachineState.STARTING, address
            )
        return [self.machines[each.name] for each in requests]

    def list(self, labels: dict[str, str] | None = None) -> list[Resource]:
        return [each for each in self.machines.values() if (labels or {}).items() <= each.labels.items()]

    def told(self, name: str) -> dict[str, object]:
        """Return what a node is told of itself."""
        config = yaml.safe_load(self.requests[name].user_data)
        [packed] = [each["content"] for each in config["write_files"] if each["path"] == "/etc/ems/node.json"]
        found: dict[str, object] = json.loads(gzip.decompress(base64.b64decode(packed)))
        return found


def fleet_of(provider: Paper) -> Fleet:
    content = {"name": "demo", "provider": "container", "nodes": {"gpu": {"count": 2}}}
    definition = Definition.model_validate(content)
    fleet = Fleet(Files("demo"), new("demo", definition.model_dump(mode="json"), definition.digest))
    fleet.provider = provider  # type: ignore[assignment]  # no more of a provider is asked for
    lifecycle.want(fleet, ("demo-gpu-001", "demo-gpu-002"))
    return fleet


def test_where_names_lead_nowhere_nodes_are_told_the_controllers_address() -> None:
    provider = Paper(has_names=False)
    fleet = fleet_of(provider)
    lifecycle.make(fleet)
    assert provider.calls == [["demo-controller"], ["demo-gpu-001", "demo-gpu-002"]]
    told = provider.told("demo-gpu-002")
    assert (told["address"], told["controller"], told["share"]) == ("10.1.0.2", "demo-controller", "nfs")
    lifecycle.make(fleet)
    assert len(provider.calls) == 2


def test_where_names_lead_to_machines_all_are_made_at_once() -> None:
    provider = Paper(has_names=True)
    lifecycle.make(fleet_of(provider))
    assert provider.calls == [["demo-controller", "demo-gpu-001", "demo-gpu-002"]]
    assert provider.told("demo-gpu-001")["address"] == ""


def test_ansible_is_told_address_and_network(monkeypatch: pytest.MonkeyPatch) -> None:
    provider, told = Paper(has_names=False), {}
    fleet = fleet_of(provider)
    lifecycle.make(fleet)

    def execute(run: provision._Run, *_: object) -> provision.Summary:
        told.update(run.variables)
        return provision.Summary(0, 0, 0.0)

    monkeypatch.setattr(provision._Run, "execute", execute)
    provision.configure(fleet)
    assert (told["ems_address"], told["ems_network"], told["ems_has_shared_volume"]) == (
        "10.1.0.2",
        "10.1.0.0/24",
        False,
    )


def test_home_and_ems_are_exported_to_the_clusters_own_network(tmp_path: Path) -> None:
    template = shipped.templates() / "roles" / "nfs" / "templates" / "exports.j2"
    words = ["ansible", "localhost", "-c", "local", "-m", "template", "-a", f"src={template} dest={tmp_path}/exports"]
    told = {"ems_network": "10.1.0.0/24", "ansible_python_interpreter": sys.executable}
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    subprocess.run([*words, "-e", json.dumps(told)], check=True, capture_output=True, env=environ)
    lines = [line for line in (tmp_path / "exports").read_text().splitlines() if not line.startswith("#")]
    assert lines == [f"{path} 10.1.0.0/24(rw,sync,no_subtree_check,no_root_squash)" for path in ("/home", "/opt/ems")]


@pytest.fixture
def ems_node() -> ModuleType:
    """The script of a node's boot, as a module."""
    path = str(shipped.templates() / "roles" / "slurm_compute" / "files" / "ems-node")
    loader = importlib.machinery.SourceFileLoader("ems_node_script", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


def test_keys_are_written_by_whoever_they_let_in_and_follow_no_link(
    ems_node: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    other = tmp_path / "other"
    other.write_text("of somebody else")
    (tmp_path / ".ssh").mkdir()
    kept = tmp_path / ".ssh" / "authorized_keys"
    for name in ("authorized_keys", "authorized_keys.aside"):
        (tmp_path / ".ssh" / name).symlink_to(other)
    ems_node.keep_keys("ssh-ed25519 AAAA eve\n")
    assert other.read_text() == "of somebody else"
    assert not kept.is_symlink()
    assert kept.read_text() == "ssh-ed25519 AAAA eve\n"
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_node_knows_its_controllers_name_by_one_line(ems_node: ModuleType, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "127.0.0.1 localhost\n10.1.0.9 demo-controller old\n# demo-controller\n10.1.0.3 x-demo-controller\n"
    )
    for _ in range(2):
        ems_node.know_host("10.1.0.2", "demo-controller", str(hosts))
    assert hosts.read_text().splitlines() == [
        "127.0.0.1 localhost",
        "# demo-controller",
        "10.1.0.3 x-demo-controller",
        "10.1.0.2 demo-controller",
    ]
