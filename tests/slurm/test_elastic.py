"""Nodes that come and go with the queue, made by the cluster's own service: real SLURM, real machines (containers)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ems.cluster import ledger
from ems.cluster.provider.base import Thing

pytestmark = pytest.mark.timeout(1800)

DEFINITION = """
provider: {kind: container}
accounting: false
controller: {cpus: 2, mem_gb: 2}
nodes:
  gpu: {max: 3, cpus: 4, mem_gb: 2, gpus: 4}
partitions:
  gpu: {nodes: [gpu], default: true, time: 1:00:00}
slurm: {SuspendTime: 15, SuspendTimeout: 10, ResumeTimeout: 240}
"""

# runs until the test lets it end
LONG = """
import os
import time
import ems

for seed in [0, 1]:
    while not os.path.exists(os.path.expanduser("~/go")):
        time.sleep(0.1)
    ems.log(acc=seed)
"""


@pytest.fixture(scope="module")
def desk(desks: ModuleType, baked: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Somebody with a cluster of a controller alone; nothing is left of it, though a queue waits when it is stopped."""
    made = desks.Desk(tmp_path_factory.mktemp("desk"), definition=DEFINITION)
    with desks.ssh_agent(made.home) as made.agent:
        made.env.update(made.agent)
        try:
            started = made.cluster("start", "--yes", timeout=900)
            assert "is ready: 0 nodes" in started.stdout
            assert "not tried, their nodes come with jobs: gpu/gpu" in started.stderr
            assert made.machines() == ["controller"]
            _write_project(made)
            yield made
            made.there("sbatch", "--array=0-9", "--gres=gpu:4", "--wrap", "sleep 600")
            desks.wait_until(lambda: len(made.machines()) > 1, 300, "a node that the queue needs")
            made.cluster("stop", "--yes", "--no-harvest", timeout=600)
            assert made.resources() == []
        finally:
            made.clear()


def _write_project(desk: Any) -> None:
    (desk.project / "long.py").write_text(LONG)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "long.py"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], cwd=desk.project, check=True)


def _parrun(desk: Any, *words: str) -> str:
    return str(json.loads(desk.ems("parrun", *words, "--again", "--json").stdout)["experiment"])


def _counts(desk: Any, experiment: str) -> dict[str, int]:
    [found] = json.loads(desk.ems("status", experiment, "--json").stdout)
    return {word: found[word] for word in ("pending", "running", "completed", "failed", "cancelled") if found[word]}


def _attempts(desk: Any, experiment: str) -> list[int]:
    desk.ems("harvest")
    return sorted(each["attempt"] for each in json.loads(desk.ems("ls", experiment, "--json").stdout))


def _gone(desk: Any, wait_until: Callable[..., Any]) -> None:
    """Wait until the controller is the only machine, and SLURM may have any node again."""
    wait_until(lambda: desk.machines() == ["controller"], 360, "the end of nodes that nobody needs")
    said = lambda: set(desk.there("sinfo", "-h", "-N", "-o", "%T").split())  # noqa: E731
    wait_until(lambda: said() == {"idle~"}, 300, "nodes that may come again")


def test_an_array_brings_up_the_nodes_that_it_needs_and_they_go_again(desk: Any, desks: ModuleType) -> None:
    desk.there("rm", "-f", "go")
    experiment = _parrun(desk, "long.py", "--gres", "gpu:3")  # two runs, one on a node
    desks.wait_until(lambda: _counts(desk, experiment) == {"running": 2}, 480, "a run on each of two nodes")
    there = {each.name: each for each in desk.resources() if each.thing is Thing.MACHINE}
    assert sorted(there) == [f"{desk.name}-{each}" for each in ("controller", "gpu-001", "gpu-002")]
    shown = desk.status()
    assert shown["kinds"] == [{"kind": "gpu", "up": 2, "floor": 0, "most": 3, "shut": "", "until": ""}]
    assert shown["trouble"] == ""
    assert f"made {desk.name}-gpu-001" in desk.cluster("logs").stdout
    far = desk.ems("cluster", "ssh", "gpu-001", "--on", desk.name, "--", "hostname").stdout
    assert far.strip() == f"{desk.name}-gpu-001"  # by a host key that this laptop has not made
    desk.there("touch", "go")
    desks.wait_until(lambda: _counts(desk, experiment) == {"completed": 2}, 300, "the end of the runs")
    assert _attempts(desk, experiment) == [1, 1]
    _gone(desk, desks.wait_until)


def test_some_stay_through_set_up_pause_and_adoption_with_runs_at_work(
    desk: Any, desks: ModuleType, tmp_path: Path
) -> None:
    assert "may have of `gpu`: its `max` is 3" in desk.cluster("resize", "4", code=2).stderr
    said = json.loads(desk.cluster("resize", "gpu=1", "--json", timeout=600).stdout)
    assert said["ready"] == [f"{desk.name}-gpu-001"]
    assert f"SuspendExcNodes={desk.name}-gpu-001" in desk.there("cat", "/etc/slurm/slurm.conf")
    again = json.loads(desk.cluster("setup", "--json", timeout=600).stdout)
    assert (again["changed"], list(again["tests"])) == (0, ["gpu/gpu"])

    desk.there("rm", "-f", "go")
    experiment = _parrun(desk, "long.py", "--gres", "gpu:2")  # both on the node that is there
    desks.wait_until(lambda: _counts(desk, experiment) == {"running": 2}, 480, "both runs on one node")
    assert desk.machines() == ["controller", "gpu-001"]
    desk.cluster("pause", "--yes", timeout=600)
    [controller] = [each for each in desk.resources() if each.thing is Thing.MACHINE]
    assert (controller.name, str(controller.state)) == (f"{desk.name}-controller", "stopped")
    desk.cluster("resume", timeout=600)
    other = desks.Desk(tmp_path, desk.name, DEFINITION)
    other.env.update(desk.agent)
    other.cluster("status", "--adopt")
    assert json.loads((other.state / "record.json").read_text())["wanted"] == [f"{desk.name}-gpu-001"]
    desk.there("touch", "go")
    desks.wait_until(lambda: _counts(desk, experiment) == {"completed": 2}, 600, "the end of the runs")
    assert _attempts(desk, experiment) == [2, 2]

    other.cluster("resize", "gpu=0")
    desk.cluster("status", "--adopt")  # this one had been told of one that stays
    _gone(desk, desks.wait_until)
    assert "come and go with its queue" in desk.cluster("remove-node", "gpu-001", code=1).stderr
    events = ledger.parse(desk.there("cat", ledger.SHARED))
    spans = [each for each in ledger.spans(events) if each.start.kind == "gpu"]
    assert len(spans) >= 2, "the service keeps no ledger of its nodes"
    assert all(each.end for each in spans)


def _on(desk: Any, node: str, command: str) -> str:
    """Run a command as root on a node."""
    return str(desk.ems("cluster", "ssh", node, "--on", desk.name, "--", "sudo", "sh", "-c", command).stdout)


def _machine(desk: Any, node: str) -> Any:
    found = {each.name: each for each in desk.resources() if each.thing is Thing.MACHINE}
    return found.get(f"{desk.name}-{node}")


def test_machines_that_are_taken_back_or_that_nobody_cares_for(desk: Any, desks: ModuleType) -> None:
    """One with notice and one without; then one that hears nothing of its controller switches itself off."""
    desk.there("rm", "-f", "go")
    experiment = _parrun(desk, "long.py", "--gres", "gpu:3", "--max-requeues", "0")
    desks.wait_until(lambda: _counts(desk, experiment) == {"running": 2}, 480, "a run on each of two nodes")
    _on(desk, "gpu-001", "mkdir -p /run/ems; echo 20 >/run/ems/preempted")
    desk.provider().destroy([_machine(desk, "gpu-002")])
    said = lambda: desk.there("scontrol", "-o", "show", "node", f"{desk.name}-gpu-001")  # noqa: E731
    desks.wait_until(lambda: "ems: preempted" in said(), 300, "the word of its watch")
    desks.wait_until(lambda: "CPUAlloc=0" in said(), 300, "a node on which nothing runs")
    if machine := _machine(desk, "gpu-001"):
        desk.provider().destroy([machine])
    desks.wait_until(lambda: _attempts(desk, experiment) == [2, 2], 600, "both runs once more")
    reasons = desk.there("sh", "-c", "cat ems/experiments/*/runs/*/attempts/1.json")
    assert reasons.count('"preempted"') == 1

    desks.wait_until(lambda: _counts(desk, experiment) == {"running": 2}, 480, "both runs at work")
    lonely = desk.there("squeue", "-h", "-t", "R", "-o", "%N").split()[0].removeprefix(f"{desk.name}-")
    silent = "mkdir -p /run/silent/state; echo 1 >/run/silent/state/heartbeat"
    rules = """sed -i 's|}|, "share": "/run/silent", "silent_s": 5}|' /etc/ems/watch.json"""
    _on(desk, lonely, f"{silent}; {rules}; systemctl restart ems-watch")
    off = lambda: not (found := _machine(desk, lonely)) or str(found.state) == "stopped"  # noqa: E731
    desks.wait_until(off, 300, f"the end of {lonely}")
    desk.there("touch", "go")
    desks.wait_until(lambda: _counts(desk, experiment) == {"completed": 2}, 600, "the end of the runs")
    assert _attempts(desk, experiment) == [2, 3]
    _gone(desk, desks.wait_until)
