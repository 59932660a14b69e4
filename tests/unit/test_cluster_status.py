"""`ems cluster status` of clusters that have a service: what it shows, and what it says of trouble."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from ems.cli import cluster_gc, cluster_status
from ems.cluster import floor, logs, overview, shipped
from ems.cluster.definition import Definition
from ems.cluster.elastic.standing import Shut, Status
from ems.cluster.fleet import Fleet
from ems.cluster.provider.base import MachineState, Resource, Thing
from ems.cluster.record import Files, Phase, new
from ems.cluster.scheduler import NodeState
from ems.errors import ConnectionFailedError

CONTENT: dict[str, Any] = {
    "name": "demo",
    "provider": "container",
    "nodes": {"cpu": {"count": 1}},
    "idle": {"after_min": 30, "do": "stop"},
}
UNSAFE = "paused instead of stopped: 7f3a9c21/1 were not harvested: ems harvest 7f3a9c21"


class Slurm:
    """A SLURM without nodes and jobs."""

    def look(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {}

    def jobs(self) -> list[Any]:
        return []


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    definition = Definition.model_validate(CONTENT)
    made = Fleet(Files("demo"), new("demo", definition.model_dump(mode="json"), definition.digest))
    controller = Resource(Thing.MACHINE, "demo-controller", "1", {}, MachineState.RUNNING)
    monkeypatch.setattr(made, "machines", lambda: {"demo-controller": controller})
    made.__dict__["scheduler"] = Slurm()
    monkeypatch.setattr(cluster_status, "_fleet", lambda _name: made)
    monkeypatch.setattr(cluster_gc, "remind", lambda _definition: None)
    return made


def test_a_cluster_that_goes_to_rest_says_when_and_why_it_did_not(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = (("2026-11-21T12:01:00Z", UNSAFE), *((f"2026-11-21T11:0{number}:00Z", "earlier") for number in range(9)))
    status = Status("now", notes=notes, idle_since="2026-11-21T12:10:00Z")
    monkeypatch.setattr(floor, "standing", lambda _fleet: (status, "it does not go to rest by itself: emsd is failed"))
    cluster_status.status("demo")
    said = capsys.readouterr()
    assert "queue: empty\n" in said.out, "SLURM has answered"
    assert "nobody has used it since 12:10 UTC: after 30 min it is to stop\n" in said.out
    assert f"12:01 UTC: {UNSAFE}\n" in said.out
    assert said.out.count("earlier") == 2
    assert "it does not go to rest by itself: emsd is failed: ems cluster setup demo" in said.err
    assert overview.look(fleet).trouble == ""


def test_why_a_kind_cannot_be_had_is_said_in_full(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = {"cpu": {"min": 0, "max": 2, "cpus": 1, "mem_gb": 1}, "gpu": {"count": 1, "cpus": 1, "mem_gb": 1}}
    definition = Definition.model_validate({**CONTENT, "nodes": nodes})
    fleet.record = replace(fleet.record, definition=definition.model_dump(mode="json"))
    fleet.definition = definition
    why = "QUOTA_EXCEEDED: Quota 'PREEMPTIBLE_NVIDIA_T4_GPUS' exceeded. Limit: 0.0 in region us-central1. " * 2
    monkeypatch.setattr(
        floor, "standing", lambda _fleet: (Status("now", shut={"cpu": Shut(why, "2026-11-21T12:30:00Z")}), "")
    )
    monkeypatch.setenv("COLUMNS", "80")
    cluster_status.status("demo")
    said = capsys.readouterr()
    assert f"no cpu until 12:30 UTC: {why}\n" in said.out
    assert "`ems cluster setup demo` has it tried again at once" in said.err
    assert any(line.split() == ["cpu", "0", "0", "2", "not", "until", "12:30", "UTC"] for line in said.out.splitlines())


def test_a_cluster_that_was_left_half_made_says_what_goes_on(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise ConnectionFailedError("on ems@192.0.2.1: squeue: error: resolve_ctls_from_dns_srv: Unknown host")

    monkeypatch.setattr(fleet.scheduler, "jobs", refuse)
    cluster_status.status("demo")
    assert "queue: not known, it is not set up yet; `ems cluster start demo` goes on\n" in capsys.readouterr().out
    fleet.record = replace(fleet.record, phase=Phase.READY)
    assert "squeue" in overview.look(fleet).trouble


def test_a_node_whose_boot_fails_or_says_nothing_is_late_and_its_logs_are_named(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = datetime.now(UTC)
    ages = {1: 60, 2: 290, 3: 3600, 4: 290, 5: 290, 6: 900, 7: 3600, 8: 10, 9: 900}  # seconds since they were made
    made = {f"demo-cpu-{number:03d}": now - timedelta(seconds=age) for number, age in ages.items()}
    machines = {
        name: Resource(Thing.MACHINE, name, name, {}, MachineState.RUNNING, created_at=at) for name, at in made.items()
    }
    controller = fleet.machines()
    monkeypatch.setattr(fleet, "machines", lambda: controller | machines)
    states = {name: NodeState("idle#", ("cpu",), "") for name in machines}
    states["demo-cpu-004"] = NodeState("idle", ("cpu",), "")
    del states["demo-cpu-002"]  # SLURM knows it once it has registered
    boots = {
        "demo-cpu-004": {"stage": "ready"},
        "demo-cpu-005": {"stage": "installs SLURM"},
        "demo-cpu-006": {"stage": "ready", "at": (now - timedelta(seconds=290)).isoformat()},
        "demo-cpu-008": {"stage": "failed", "error": "mount: wrong fs type"},
        "demo-cpu-009": {"stage": "ready", "at": (now - timedelta(seconds=5)).isoformat()},  # it has installed for long
    }
    monkeypatch.setattr(fleet.scheduler, "look", lambda: (states, boots))
    monkeypatch.setattr(floor, "standing", lambda _fleet: (None, ""))
    with fleet.journal.step("wake", ["demo-cpu-007"]):  # it was stopped since it was made
        pass
    found = {int(each.name[-3:]): each for each in overview.look(fleet).nodes[1:]}
    assert [number for number, each in found.items() if each.is_late] == [2, 3, 6, 8]
    assert (found[1].note, found[4].note, found[5].note, found[7].note) == ("", "", "installs SLURM", "")
    assert found[9].note == "ready"
    assert (found[2].note, found[3].note) == ("not registered after 4 min", "not registered after 60 min")
    assert (found[6].note, found[8].note) == ("not registered after 4 min: ready", "mount: wrong fs type")
    cluster_status.status("demo")
    said = "`ems cluster logs demo demo-cpu-002` tells why demo-cpu-002 does not come (and of 3 more)"
    assert said in capsys.readouterr().err

    def refuse() -> None:
        raise ConnectionFailedError("slurmctld does not answer")

    monkeypatch.setattr(fleet.scheduler, "jobs", refuse)
    late = [each.name for each in overview.look(fleet).nodes if each.is_late]
    assert late == ["demo-cpu-008"], "of a SLURM that is away nobody knows whether a node has registered"


def test_the_logs_of_a_node_include_what_its_boot_writes(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(words: list[str], **_: object) -> SimpleNamespace:
        asked.extend(words)
        return SimpleNamespace(stdout=b"\x1fslurmd\nit starts\n")

    monkeypatch.setattr(fleet, "node_host", lambda _: SimpleNamespace(run=run))
    assert logs.tails(fleet, "demo-cpu-001", 50) == [("slurmd", "it starts\n")]
    boot = (shipped.templates() / "roles/slurm_compute/files/ems-node").read_text()
    assert {each for each in asked if each.startswith("/var/log/ems")} == {*re.findall(r"/var/log/ems[a-z./-]+", boot)}
