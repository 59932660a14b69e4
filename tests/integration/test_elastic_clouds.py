"""Elastic clusters at each cloud's stand-in: made by a laptop, their nodes by the service, by the controller's rights.

SLURM is on paper here (clouds/paper.py): what a real one does with the service is tested in tests/slurm.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from clouds.benches import Bench, Client
from clouds.paper import Paper

from ems.cluster import catalog, delegation, floor, forecast, gc, handover, lifecycle, provision
from ems.cluster.definition import Definition, node_name
from ems.cluster.elastic import service
from ems.cluster.elastic.here import Paths, fleet_here
from ems.cluster.elastic.reconcile import Pace
from ems.cluster.elastic.service import Service
from ems.cluster.elastic.standing import parse
from ems.cluster.fleet import Fleet, known
from ems.cluster.provider import waiting
from ems.cluster.provider.base import MachineState
from ems.cluster.record import MADE, Files, Phase
from ems.errors import EmsError

pytestmark = pytest.mark.timeout(900)  # one that hangs shows where, instead of holding up all others
_WORKS_AS = {"gce": {"service_account": "default"}, "aws": {"instance_profile": "ems-controller"}, "openstack": {}}
_PACE = Pace(young_s=0, again_s=0, boot_s=60, late_s=60)
_GATE = "lab-controller"
NOW = timedelta()


class Lab:
    """A cluster without nodes at a stand-in, its SLURM on paper, and its service."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench, self.cloud = bench, bench.cloud
        self.definition = catalog.load("lab", folder)
        self.root = folder.parent / "controller"
        self.root.mkdir()
        self.kinds = self.definition.nodes
        self.slurm = Paper(
            self.root, (node_name("lab", "gpu", number + 1) for number in range(self.kinds["gpu"].max or 0))
        )

    def start(self, definition: Definition | None = None) -> Fleet:
        """Have a laptop make the cluster, and give the controller what `ems cluster setup` does."""
        with Files("lab").locked():
            fleet = lifecycle.begin("lab", definition or self.definition, {})
            lifecycle.start(fleet, setup=False)
            paths = Paths(self.root)
            paths.definition.parent.mkdir(parents=True, exist_ok=True)
            paths.state.mkdir(parents=True, exist_ok=True)
            paths.definition.write_text(json.dumps(provision._facts(fleet.record)))
            self.bench.hand_over(delegation.files(fleet))
            fleet.update(phase=Phase.READY)
        return fleet

    def serve(
        self, *, line: int = 0, turns: int = 1, between: Callable[[Service], Any] | None = None, afresh: bool = False
    ) -> int:
        """Have a process be the service for some turns; it is killed before a line of its journal.

        Parameters
        ----------
        between
            Called before each turn but the first, in that process.
        afresh
            As after `ems cluster setup`: what is shut is opened.
        """

        def work() -> None:
            os.environ["XDG_STATE_HOME"] = str(self.root / "var/lib/ems")
            os.environ.pop("AWS_SHARED_CREDENTIALS_FILE", None)
            service = Service(fleet_here(Paths(self.root)), self.slurm, reconcile_s=0, pace=_PACE)
            if afresh:
                service.afresh()
            for turn in range(turns):
                if turn and between:
                    between(service)
                service.step()
                assert service._failures == 0, self.status().trouble

        self.client = Client(work, line)
        code = self.client.wait()
        assert code in {0, -signal.SIGKILL}, self.status()
        return code

    def status(self) -> Any:
        return parse((self.root / "opt/ems/state/elastic.json").read_text())

    def settle(self, count: int) -> None:
        """Have the service at work until so many jobs run, and nothing else is there."""
        end = time.monotonic() + 120  # turns are quick on a machine that is, and a cloud's listing is late all the same
        while True:
            self.serve(turns=3, between=self.booting)
            if len(self.slurm.at_work()) == count and self.names() == self.slurm.at_work():
                return
            assert time.monotonic() < end, (self.slurm.nodes(), self.names(), self.status())

    def booting(self, service: Service) -> None:
        """Have nodes boot whose machines run, as the service's process sees it."""
        service.fleet.look()
        self.slurm.register(service.fleet.machines())

    def names(self) -> list[str]:
        """Return the nodes' machines, by the stand-in's own count."""
        return [name for name in self.bench.names() if name != _GATE]


@pytest.fixture
def lab(bench: Bench, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A definition in the project; waits are short, but longer than a listing is late here."""
    monkeypatch.setattr(lifecycle, "_LATE_S", 0.3)
    monkeypatch.setattr(floor, "_LATE_S", 0.3)
    monkeypatch.setattr(service, "_LATE_S", 0.3)
    monkeypatch.setattr(gc, "_AGAIN_S", 0.3)
    monkeypatch.setattr(waiting, "_LOOK_S", 0.1)
    bench.become_machine(tmp_path, monkeypatch)
    size = bench.sizes[1]
    sizes = [size, "n1-standard-8"] if bench.kind == "gce" else [size]
    gpu = {"min": 0, "max": 4, "size": sizes, "cpus": 4, "mem_gb": 15, "spot": bench.kind != "openstack", **bench.node}
    provider = {**bench.said, **_WORKS_AS[bench.kind], "zones": list(bench.zones)}
    content = {"provider": provider, "controller": {"size": bench.sizes[0]}, "nodes": {"gpu": gpu}}
    (project / "cluster").mkdir()
    (project / "cluster" / "lab.yaml").write_text(json.dumps(content))
    lab = Lab(bench, project)
    yield lab
    bench.is_sound()


_SOLD_OUT = {
    "gce": "does not have enough resources",
    "aws": "do not have sufficient g4dn.xlarge capacity",
    "openstack": "No valid host was found",
}
_NO_MORE = {
    "gce": "Quota 'CPUS' exceeded",
    "aws": "more vCPU capacity than your current limit",
    "openstack": "Quota exceeded for instances",
}


def test_nodes_come_and_go_with_the_queue_whatever_the_cloud_does(lab: Lab) -> None:
    bench, cloud, slurm = lab.bench, lab.cloud, lab.slurm
    fleet = lab.start()
    assert bench.names() == [_GATE]
    cloud.callers.clear()
    slurm.submit(2)
    lab.settle(2)
    assert set(cloud.callers) == {"machine"}, "the controller acts by its own rights"

    first, second = bench.zones
    cloud.faults.update({"rate": 1, "error": 1, "raise": 1, f"exhausted:{first}": 1})
    cloud.operation_s, cloud.late_s = 0.2, 0.4
    slurm.submit(1)
    lab.settle(3)
    del cloud.faults[f"exhausted:{first}"]
    assert not cloud.faults.total()
    assert [bench.place(name) for name in lab.names()] == [first, first, second]

    cloud.operation_s, cloud.late_s = 0, 0
    cloud.lose("lab-gpu-002")  # taken back: its run is queued again, and a node comes anew
    lab.settle(3)

    cloud.faults.update({f"exhausted:{zone}": 1 for zone in bench.zones})
    slurm.submit(1)
    lab.serve(turns=2, between=lab.booting)
    [said] = slurm.comments()
    assert _SOLD_OUT[bench.kind] in said
    assert list(lab.status().shut) == ["gpu"]
    assert len(lab.names()) == 3
    cloud.faults.clear()
    cloud.faults["quota"] = 1
    lab.serve(afresh=True, turns=2, between=lab.booting)
    [said] = slurm.comments()
    assert _NO_MORE[bench.kind] in said

    lifecycle.make(fleet)  # `start`, given again on a laptop, leaves what the service has made
    assert len(lab.names()) == 3
    lifecycle.pause(fleet)
    assert bench.names() == [_GATE]
    assert gc.leftovers(lab.definition, young=NOW) == []  # a cluster that is paused is none that was left
    fleet.provider.start([fleet.machines()[_GATE]])
    lab.serve(afresh=True)
    lab.settle(4)
    slurm.finish()
    lab.settle(0)
    assert lifecycle.stop(fleet) > 0
    assert cloud.left() == []


def test_what_the_controller_lacks_is_said_before_anything_is_made(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, cloud = lab.bench.kind, lab.cloud

    def said(**changes: Any) -> tuple[bool, str]:
        content = lab.definition.model_dump(mode="json")
        content["provider"] |= changes
        definition = Definition.model_validate(content)
        found = forecast.inspect(definition, {})
        bad = [f"{each.said} | {each.hint}" for each in found if not each.is_good]
        if bad:
            with pytest.raises(EmsError, match=re.escape(bad[0].partition(" | ")[0])):
                lab.start(definition)
        return not bad, " ".join(bad) or " ".join(each.said for each in found if each.subject == "controller")

    assert said()[0]
    if kind == "gce":
        assert "it works as 1234-compute@developer.gserviceaccount.com, roles/editor" in said()[1]
        cloud.lacking.add("iam.serviceAccounts.actAs")
        assert "you may not have machines work as 1234-compute@" in said()[1]
        cloud.lacking.clear()
        cloud.roles.clear()
        is_good, words = said()
        assert (is_good, "--member=serviceAccount:1234-compute@" in words) == (False, True)
        assert "does not say as whom" in said(service_account=None)[1]
    elif kind == "aws":
        assert "Value (nobody) for parameter iamInstanceProfile.name is invalid" in said(instance_profile="nobody")[1]
        assert "does not say as whom" in said(instance_profile=None)[1]
    else:
        assert "an application credential of me's" in said()[1]
        [files] = lab.bench.provider().delegate({"ems-cluster": "x", "ems-id": "y" * 32}).values()
        path = tmp_path / "restricted.yaml"
        path.write_text(files.replace("ems:", "lab:"))
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
        assert "may not make any for the controller" in said()[1]
        cloud.credentials.clear()
    assert cloud.left() == []


def test_killed_anywhere_the_service_doubles_nothing_and_leaves_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time nodes are asked for, which the preferred zone has none of, and are idle again soon after they are up.

    It is killed before each line of its journal, then after each change that the cloud has made and not answered.
    """
    bench, cloud, slurm = lab.bench, lab.cloud, lab.slurm
    lab.start()
    cloud.late_s = 0.2
    cloud.faults[f"exhausted:{bench.zones[0]}"] = 1

    def go_on(service: Service) -> None:
        if slurm.at_work():
            slurm.finish()
        else:
            lab.booting(service)

    def life(line: int = 0) -> int:
        slurm.submit(2)
        code = lab.serve(line=line, turns=4, between=go_on)
        bench.is_sound()
        end = time.monotonic() + 120
        lab.serve(turns=4, between=go_on)
        while slurm.jobs() or lab.names():
            assert time.monotonic() < end, (line, slurm.jobs(), lab.names(), slurm.nodes(), lab.status())
            lab.serve(turns=4, between=go_on)
        bench.is_sound()
        return code

    line, code = 0, -1
    while code:
        line += 1
        code = life(line)
    assert line > 4

    change, seen, deadly = cloud._change, 0, 0

    def answer(*args: Any) -> Any:
        nonlocal seen
        done = change(*args)
        seen += 1
        if seen == deadly:
            lab.client.kill()
        return done

    monkeypatch.setattr(cloud, "_change", answer)
    code = -1
    while code:
        seen, deadly = 0, deadly + 1
        code = life()
    assert deadly > 2

    deadly = 0
    slurm.submit(2)
    assert lab.serve(line=4) == -signal.SIGKILL
    cloud.lose(_GATE)  # and with it the only one that knew of what it had just begun
    assert lab.names()
    assert sum(gc.delete(each) for each in gc.leftovers(lab.definition, young=NOW)) > 2
    assert cloud.left() == []
    assert Files("lab").load() is None


@pytest.mark.parametrize("bench", ["gce"], indirect=True)
def test_a_pause_that_the_service_does_not_hear_of_leaves_no_node(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = lab.start()
    stop, lab.cloud.late_s = fleet.provider.stop, 0.2

    def at_last(machines: Any) -> None:
        lab.slurm.submit(1)
        lab.serve()
        stop(machines)

    monkeypatch.setattr(fleet.provider, "stop", at_last)
    lifecycle.pause(fleet)
    assert lab.bench.names() == [_GATE]
    assert fleet.record.phase is Phase.PAUSED
    assert lifecycle.stop(fleet) > 0
    assert lab.cloud.left() == []


@pytest.mark.parametrize("bench", ["aws"], indirect=True)
def test_a_controller_that_is_woken_to_be_asked_leaves_no_node(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_LATE_S", 0.3)
    fleet = lab.start()
    lifecycle.pause(fleet)
    gate, lab.cloud.late_s = fleet.machines()[_GATE], 0.2
    with handover._awake(gate, fleet.provider, lambda *_: None):
        lab.slurm.submit(1)
        lab.serve()  # systemd starts it with the machine
    assert lab.bench.names() == [_GATE]
    assert fleet.machines()[_GATE].state is MachineState.STOPPED
    assert lifecycle.stop(fleet) > 0


@pytest.mark.parametrize("bench", ["openstack"], indirect=True)  # the one whose controllers are given something
def test_a_start_that_is_killed_leaves_no_credential_behind(lab: Lab) -> None:
    line, code = 5, -1  # the lines before are those of any start
    while code:
        line += 1
        code = Client(lab.start, line).wait()
        assert code in {0, -signal.SIGKILL}
        if code:
            for each in gc.leftovers(lab.definition, young=NOW):
                gc.delete(each)
            if lab.cloud.left() and known("lab").journal.is_at(MADE):  # as `start --no-setup` leaves it
                lifecycle.stop(known("lab"))
            assert lab.cloud.left() == [], line
    assert line > 8
    [kept] = lab.cloud.credentials
    fleet = known("lab")
    [content] = delegation.files(fleet).values()
    assert kept in content, "the one that is kept is given again, and none is made"
    lab.cloud.credentials.clear()  # somebody has revoked it
    assert kept not in delegation.files(fleet)["/etc/ems/clouds.yaml"]
    assert len(lab.cloud.credentials) == 1
    assert (fleet.files.dir / "delegated.json").stat().st_mode & 0o777 == 0o600
    assert lifecycle.stop(fleet) > 0
    assert lab.cloud.left() == []
