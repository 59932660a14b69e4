"""Jobs that the cloud takes back too often move to nodes that it does not take back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ems.cluster.definition import Definition
from ems.cluster.elastic.control import Job
from ems.cluster.elastic.preemption import Preemptions
from ems.cluster.elastic.reconcile import Act
from ems.cluster.elastic.table import Verb, Vm
from ems.errors import ClusterError

DEFINITION = Definition.model_validate(
    {
        "name": "demo",
        "provider": "container",
        "nodes": {"gpu": {"spot": True, "max": 9}, "safe": {"max": 9}},
        "partitions": {"gpu": {"nodes": "gpu", "fallback": "safe", "max_preemptions": 2}, "safe": {"nodes": "safe"}},
    }
)


class Queue:
    """SLURM on paper: what is queued, and what was moved."""

    def __init__(self) -> None:
        self.found: list[Job] = []
        self.moved: list[tuple[str, str]] = []
        self.refusal = ""
        self.is_away = False

    def jobs(self) -> list[Job]:
        if self.is_away:
            raise ClusterError("SLURM does not answer")
        return self.found

    def move(self, job: str, partition: str) -> dict[str, str]:
        self.moved.append((job, partition))
        return {job: self.refusal} if self.refusal else {}

    def has(self, *jobs: tuple[str, str, str], partition: str = "gpu") -> None:
        """Hold these jobs: name, state, node."""
        self.found = [
            Job(name, state, "ems", "train", partition, nodes=(node,) if node else ()) for name, state, node in jobs
        ]


class Desk:
    """A service's share, its queue and its clock."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.queue, self.now = folder, Queue(), 1000.0
        (folder / "notices").mkdir()
        self.start()

    def start(self, definition: Definition = DEFINITION) -> None:
        """Begin anew, as a service does that was killed."""
        self.preemptions = Preemptions(definition, self.folder, self.queue, lambda: self.now)  # type: ignore[arg-type]  # on paper

    def notice(self, node: str, *jobs: str) -> None:
        path = self.folder / "notices" / f"{node}.json"
        path.write_text(json.dumps({"node": node, "jobs": jobs}))

    def turn(self, after_s: float = 3) -> list[str]:
        self.now += after_s
        return self.preemptions.turn()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_job_moves_after_as_many_preemptions_as_its_partition_bears(desk: Desk) -> None:
    assert not desk.preemptions.is_due()
    desk.queue.has(("7_0", "RUNNING", "demo-gpu-001"), ("7_1", "RUNNING", "demo-gpu-001"), ("9", "PENDING", ""))
    desk.notice("demo-gpu-001", "7_0", "7_1")
    assert desk.turn() == ["demo-gpu-001 is taken back by the cloud"]
    assert list((desk.folder / "notices").iterdir()) == []
    desk.start()  # what was counted outlives the service
    desk.notice("demo-gpu-002", "7_0")
    desk.turn()
    assert desk.queue.moved == [], "it still saves itself"
    assert desk.preemptions.counts == {"7_0": 2, "7_1": 1}
    desk.queue.has(("7_0", "PENDING", ""), ("7_1", "PENDING", ""), ("9", "PENDING", ""))
    assert desk.preemptions.is_due() is False
    assert desk.turn() == ["job 7_0 was preempted 2x, moves to safe"]
    assert desk.queue.moved == [("7_0", "safe")]
    desk.turn()
    desk.queue.has(("7_1", "PENDING", ""))
    desk.start()
    desk.turn()
    assert desk.queue.moved == [("7_0", "safe")]
    assert desk.preemptions.counts == {"7_1": 1}


def test_a_machine_that_vanishes_counts_as_its_notice_does_and_once(desk: Desk) -> None:
    desk.queue.has(
        ("7", "RUNNING", "demo-gpu-001"), ("8", "RUNNING", "demo-safe-001"), ("9", "COMPLETING", "demo-gpu-002")
    )
    desk.notice("demo-gpu-001", "7")
    desk.turn()
    gone = [Act(Verb.DOWN, f"demo-{node}", "", vm) for node, vm in (("gpu-001", Vm.ABSENT), ("safe-001", Vm.ABSENT))]
    desk.preemptions.lost([*gone, Act(Verb.DOWN, "demo-gpu-002", "", Vm.STOPPED), Act(Verb.CREATE, "demo-gpu-003", "")])
    assert desk.preemptions.counts == {"7": 1, "9": 1}, "what is on no spot machine does not count"
    desk.start()
    desk.preemptions.lost(gone)
    assert desk.preemptions.counts == {"7": 1, "9": 1}
    desk.preemptions.renewed(["demo-gpu-001"])  # another machine of the same name
    desk.preemptions.lost([*gone, Act(Verb.DOWN, "demo-gpu-002", "", Vm.UNKNOWN)])
    assert desk.preemptions.counts == {"7": 2, "9": 1}
    desk.queue.has(("7", "PENDING", ""), ("9", "COMPLETING", ""), partition="other,gpu")
    desk.queue.refusal = "Requested node configuration is not available"
    assert desk.turn() == [f"job 7 was preempted 2x, but cannot move to safe: {desk.queue.refusal}"]
    assert not desk.preemptions.is_due(), "it would be refused for ever"


def test_slurm_that_is_away_loses_no_count(desk: Desk) -> None:
    desk.queue.is_away = True
    desk.notice("demo-gpu-001", "7")
    for node in ("demo-gpu-001", "demo-gpu-001", "demo-gpu-002"):
        desk.notice(node, "7")  # the second again: the service was killed before it deleted it
        with pytest.raises(ClusterError):
            desk.turn()
    desk.start()
    desk.queue.is_away = False
    desk.queue.has(("7", "PENDING", ""))
    assert desk.turn() == ["job 7 was preempted 2x, moves to safe"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"jobs": 7}', '{"jobs": ["7; reboot", "--all", "7_", null]}'])
def test_notices_that_are_none_count_nothing(desk: Desk, text: str) -> None:
    (desk.folder / "notices" / "demo-gpu-001.json").write_text(text)
    for name in ("demo-gpu-001.json.aside", "other-gpu-001.json", "demo-gpu-001"):
        (desk.folder / "notices" / name).write_text('{"jobs": ["7"]}')
    desk.turn()
    assert desk.preemptions.counts == {}
    assert len(list((desk.folder / "notices").iterdir())) == 3
    assert not desk.preemptions.is_due()


def test_without_a_fallback_nothing_is_counted(desk: Desk) -> None:
    content = DEFINITION.model_dump(mode="json")
    content["partitions"]["gpu"]["fallback"] = None
    desk.start(Definition.model_validate(content))
    desk.notice("demo-gpu-001", "7")
    assert desk.turn() == ["demo-gpu-001 is taken back by the cloud"]
    desk.queue.is_away = True
    desk.preemptions.lost([Act(Verb.DOWN, "demo-gpu-001", "")])
    assert desk.preemptions.counts == {}
    assert not desk.preemptions.is_due()
