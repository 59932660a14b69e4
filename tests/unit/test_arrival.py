"""Which partitions of a cluster are tried by a job, and which are not because others' jobs come first."""

from __future__ import annotations

import subprocess
from typing import Any, cast

import pytest

from ems.cluster import arrival
from ems.cluster.definition import Definition
from ems.cluster.fleet import Fleet
from ems.cluster.record import Files, new
from ems.cluster.scheduler import Job, Scheduler
from ems.ssh import Host

CONTENT: dict[str, Any] = {
    "name": "demo",
    "provider": "container",
    "nodes": {"gpu": {"count": 2}, "cpu": {"count": 1}},
    "partitions": {"fast": {"nodes": ["gpu"]}, "all": {"nodes": ["gpu", "cpu"]}},
}
READY = ["demo-gpu-001", "demo-gpu-002"]


class Slurm:
    """A SLURM with a queue, in which a test job ends at once."""

    def __init__(self, *queue: Job) -> None:
        self.queue = list(queue)

    def jobs(self) -> list[Job]:
        return self.queue

    def test(self, partition: str, *, constraint: str, **_: str) -> str:
        return f"ran on {constraint}"


def job(state: str, nodes: str, partition: str) -> Job:
    return Job("7", state, "ada", "train", nodes, partition)


@pytest.mark.parametrize(
    ("queue", "tried", "untried"),
    [
        ([], ["fast/gpu", "all/gpu"], {}),
        ([job("RUNNING", "demo-gpu-001", "fast")], ["fast/gpu", "all/gpu"], {}),
        ([job("PENDING", "", "fast")], ["all/gpu"], {"fast/gpu": "jobs wait for them already"}),
        ([job("PENDING", "", "all,fast")], [], dict.fromkeys(["fast/gpu", "all/gpu"], "jobs wait for them already")),
        (
            [job("RUNNING", "demo-gpu-[001-002]", "all")],
            [],
            dict.fromkeys(["fast/gpu", "all/gpu"], "jobs run on all their nodes"),
        ),
    ],
)
def test_no_test_job_waits_behind_others(queue: list[Job], tried: list[str], untried: dict[str, str]) -> None:
    definition = Definition.model_validate(CONTENT)
    fleet = Fleet(Files("demo"), new("demo", definition.model_dump(mode="json"), definition.digest))
    fleet.__dict__["scheduler"] = Slurm(*queue)
    found = arrival.try_partitions(fleet, READY)
    assert found == (dict.fromkeys(tried, "ran on gpu"), {**untried, "all/cpu": "none of their nodes is there"})


def test_a_queue_says_where_jobs_may_go() -> None:
    lines = [
        b"7_1\x1fPENDING\x1fada\x1ftrain\x1f\x1fall,fast",
        b"8\x1fRUNNING\x1fada\x1fx\x1fdemo-gpu-[001-002]\x1fall",
    ]

    class Far:
        def run(self, *_: object, **__: object) -> subprocess.CompletedProcess[bytes]:
            return subprocess.CompletedProcess([], 0, b"\n".join(lines) + b"\n", b"")

    waiting, running = Scheduler(cast("Host", Far())).jobs()
    assert (waiting.partitions, waiting.hosts) == (["all", "fast"], [])
    assert (running.partitions, running.hosts) == (["all"], READY)
