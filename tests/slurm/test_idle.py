"""A cluster of containers that nobody needs: it pauses itself while results are not safe, and then stops itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from ems.cluster.provider.base import MachineState, Thing

pytestmark = pytest.mark.timeout(1800)

DEFINITION = """
provider: {kind: container}
accounting: false
controller: {cpus: 2, mem_gb: 2}
nodes: {gpu: {count: 1, cpus: 4, mem_gb: 2, gpus: 4}}
idle: {after_min: 0.2, do: stop, harvest_before_stop: laptop}
"""


@pytest.fixture(scope="module")
def desk(desks: ModuleType, baked: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Somebody with a cluster that ends itself."""
    made = desks.Desk(tmp_path_factory.mktemp("desk"), definition=DEFINITION)
    with desks.ssh_agent(made.home) as made.agent:
        made.env.update(made.agent)
        try:
            made.cluster("start", "--yes", timeout=800)
            yield made
        finally:
            made.clear()


def test_it_pauses_then_resumes_then_stops(desk: Any, desks: ModuleType) -> None:
    def states() -> dict[str, MachineState]:
        machines = [each for each in desk.resources() if each.thing is Thing.MACHINE]
        return {each.name.removeprefix(f"{desk.name}-"): each.state for each in machines}

    asleep = {"controller": MachineState.STOPPED, "gpu-001": MachineState.STOPPED}
    (desk.project / "train.py").write_text("import ems\nems.log(acc=1)\n")
    desk.ems("parrun", "train.py", "--set", "x=0..1", "--name", "quick")
    desks.wait_until(lambda: desks_done(desk), 300, "the end of its runs")
    assert states() == {"controller": MachineState.RUNNING, "gpu-001": MachineState.RUNNING}
    desk.hang_up()  # as after a minute by itself
    desks.wait_until(lambda: states() == asleep, 400, "the pause")

    shown = json.loads(desk.cluster("status", "--json").stdout)
    assert "nobody needed it" in shown["trouble"]
    away = desk.ems("harvest", code=1)
    assert "ems cluster resume" in away.stdout + away.stderr

    desk.cluster("resume", timeout=800)
    notes = desk.there("cat", "/opt/ems/state/elastic.json")
    assert re.search(r"paused instead of stopped: [0-9a-f]{8}/0 and 1 more runs were not harvested", notes)
    desk.ems("harvest")
    desk.hang_up()
    desks.wait_until(lambda: states() == {}, 400, "the stop")
    assert desk.resources() != [], "its network is left, which costs nothing"
    swept = desk.ems("cluster", "gc", "--yes", "--older-than", "0", code=None)
    assert desk.resources() == [], swept.stdout + swept.stderr
    assert [row["acc"] for row in json.loads(desk.ems("report", "quick", "--json").stdout)] == [1, 1]


def desks_done(desk: Any) -> bool:
    """Whether the runs have ended; looked at without a connection that would keep the cluster awake afterwards."""
    [status] = json.loads(desk.ems("status", "quick", "--json").stdout)
    return bool(status["completed"] == 2)
