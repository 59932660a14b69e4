"""The service where nodes may not be made, never boot or are listed late: a cloud that counts, SLURM on paper."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from clouds.paper import Paper

from ems.cluster.definition import Definition
from ems.cluster.elastic.here import Paths, fleet_here
from ems.cluster.elastic.reconcile import Pace
from ems.cluster.elastic.service import Service
from ems.cluster.elastic.standing import parse
from ems.cluster.record import new

_PACE = Pace(young_s=0, again_s=0, boot_s=60, late_s=60)


def _cloud() -> ModuleType:
    name = "ems_slurm_cloud"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "slurm/cloud.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


class _Nothing:
    """What runs on a machine here."""

    def kill(self) -> None:
        """It ends."""


class World:
    """A controller, its SLURM and its cloud."""

    def __init__(self, root: Path, cloud: Any, **limits: Any) -> None:
        kinds = {"gpu": {"max": 12, "size": "big"}}
        content = {"name": "lab", "provider": "gce", "nodes": kinds, "limits": limits}
        definition = Definition.model_validate(
            {**content, "controller": {"size": "small"}, "prices": {"small": 1, "big": 2}}
        )
        record = new("lab", definition.model_dump(mode="json"), definition.digest)
        keys = ("name", "incarnation", "owner", "created", "definition", "digest", "munge")
        self.paths, self.cloud = Paths(root), cloud
        for folder in (self.paths.state / "boot", self.paths.definition.parent):
            folder.mkdir(parents=True)
        self.paths.definition.write_text(json.dumps({key: getattr(record, key) for key in keys}))
        self.slurm = Paper(root, (f"lab-gpu-{number + 1:03d}" for number in range(12)))
        self.service = self.serve()

    def serve(self) -> Service:
        """Start the service anew."""
        fleet = fleet_here(self.paths)
        fleet.provider = _cloud().Provider(str(self.cloud.path))
        self.service = Service(fleet, self.slurm, reconcile_s=0, pace=_PACE)
        return self.service

    def turn(self, count: int = 1, *, boots: bool = True) -> None:
        """Take turns; nodes boot after each."""
        for _ in range(count):
            self.service.step()
            self.slurm.register(self.cloud.names() if boots else ())

    @property
    def status(self) -> Any:
        """What the service says of itself."""
        return parse((self.paths.state / "elastic.json").read_text())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes a world with these limits."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "root/var/lib/ems"))
    cloud = _cloud().Cloud(tmp_path / "cloud", lambda _name: _Nothing())
    with cloud.serving():
        yield lambda **limits: World(tmp_path / "root", cloud, **limits)


def test_no_more_nodes_are_made_than_the_limit_and_the_others_when_there_is_room(world: Any) -> None:
    here = world(max_nodes=3)
    here.slurm.submit(5)
    here.turn(4)
    assert len(here.cloud.names()) == 3
    assert here.slurm.at_work() == here.cloud.names()
    assert here.slurm.comments() == {"ems: lab may have no more than 3 nodes by `limits.max_nodes`"}
    assert "`limits.max_nodes`" in here.status.shut["gpu"].why
    calls = [verb for verb, _ in here.cloud.calls]
    here.turn(4)
    assert [verb for verb, _ in here.cloud.calls[len(calls) :]].count("create") == 0, "it loops"
    here.slurm.finish()
    here.turn(6)
    assert (here.status.shut, len(here.slurm.at_work())) == ({}, 2)
    assert here.cloud.names() == here.slurm.at_work()


def test_no_more_is_spent_than_the_limit(world: Any) -> None:
    here = world(max_cost=6.5)  # of a controller for 1 and nodes for 2 dollars an hour, for an hour
    here.slurm.submit(4)
    here.turn(3)
    assert len(here.cloud.names()) == 2
    [said] = here.slurm.comments()
    assert "may cost $6.50" in said


def test_boots_that_never_end_shut_a_kind_and_one_node_tries_later(world: Any) -> None:
    here = world()
    here.slurm.submit(11)
    here.turn(2, boots=False)
    assert len(here.cloud.names()) == 11
    (here.paths.state / "boot/lab-gpu-001.json").write_text('{"stage": "mounts", "error": "no route to host"}')
    here.slurm.give_up()  # ResumeTimeout
    here.turn(3, boots=False)
    assert here.cloud.names() == []
    assert "never registered" in here.status.shut["gpu"].why
    assert any("lab-gpu-001 never registered: no route to host" in said for _, said in here.status.notes)
    created = [names for verb, names in here.cloud.calls if verb == "create"]
    here.turn(4, boots=False)
    assert [names for verb, names in here.cloud.calls if verb == "create"] == created, "it loops"
    here.serve()
    assert "gpu" in here.service.shutters.shut(), "a restart does not open it"
    here.service.afresh()  # `ems cluster setup`
    here.turn(5)
    assert len(here.slurm.at_work()) == 11


def test_a_service_that_is_restarted_believes_in_what_is_not_listed_yet(world: Any) -> None:
    here = world()
    first, second = _cloud().ZONES
    here.cloud.refusals = {first: ("stockout", "none left")}
    here.cloud.late_s = 3600
    here.slurm.submit(1)
    [request] = list(here.paths.spool.glob("*.resume"))
    content = request.read_text()
    here.turn(boots=False)
    assert here.cloud.zones() == {"lab-gpu-001": second}
    here.cloud.refusals = {}
    request.write_text(content)  # it was killed before it could forget the request
    here.serve()
    here.service.step()
    assert here.cloud.zones() == {"lab-gpu-001": second}
    here.cloud.late_s = 0
    here.turn(3)
    assert here.slurm.at_work() == ["lab-gpu-001"]
    assert here.cloud.twice == set()


def test_a_node_that_came_back_while_nobody_served_keeps_its_machine(world: Any) -> None:
    here = world()
    here.slurm.submit(2)
    here.turn(2)
    assert len(here.slurm.at_work()) == 2
    with here.slurm._state() as state:  # the second waits for its node again, and not for the machine of before
        state["nodes"]["lab-gpu-002"]["flags"] = ["CLOUD", "POWERING_UP"]
    here.slurm._call_power("resume", ["lab-gpu-001", "lab-gpu-002"])
    here.service.step()
    assert [names for verb, names in here.cloud.calls if verb == "destroy"] == [["lab-gpu-002"]]
    assert here.cloud.names() == ["lab-gpu-001", "lab-gpu-002"]
