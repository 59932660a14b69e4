"""The service of an elastic cluster with a real SLURM; its machines are slurmd of a cloud that counts them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

KINDS = {"cpu": {"min": 0, "max": 4, "cpus": 2, "mem_gb": 4}, "big": {"min": 1, "max": 2, "cpus": 2, "mem_gb": 4}}


@pytest.fixture(scope="module")
def _bed(testbed: ModuleType, elastic: ModuleType, cloud: ModuleType) -> Iterator[Any]:
    with elastic.bed(testbed, cloud, KINDS) as bed:
        yield bed


@pytest.fixture
def bed(_bed: Any) -> Iterator[Any]:
    """An elastic cluster of which no node is there, and whose service does not run."""
    _bed.sweep()
    yield _bed
    _bed.sweep()


@pytest.fixture
def wait(testbed: ModuleType, bed: Any) -> Any:
    """Wait for a condition; where it does not come the logs are told."""

    def until(condition: Any, limit_s: float, what: str) -> None:
        try:
            testbed.wait_until(condition, limit_s, what)
        except TimeoutError as error:
            error.add_note(f"--- the cloud: {bed.cloud.zones()} {bed.cloud.calls[-5:]}")
            error.add_note(f"--- SLURM\n{bed.run('sinfo', '-a', '-N', '-o', '%N %T %E')}\n{bed.run('squeue')}")
            for name in ("emsd", "slurmctld"):
                error.add_note(f"--- {name}\n{bed.log(name)[-2500:]}")
            raise

    return until


def submit(bed: Any, *words: str) -> str:
    """Submit a job; returns its id."""
    return str(bed.run("sbatch", "--parsable", "--output=/dev/null", *words))


def created(bed: Any) -> list[list[str]]:
    """Return the names of each call by which machines were made."""
    return [names for verb, names in list(bed.cloud.calls) if verb == "create"]


def gated(gate: Path) -> str:
    """Return a command that runs until the test lets it end."""
    return f"until [ -e {gate} ]; do sleep 0.1; done"


def test_an_array_brings_the_nodes_that_it_needs_and_they_go(bed: Any, wait: Any, tmp_path: Path) -> None:
    stays = [bed.node("big", 1)]
    bed.floor(stays)
    with bed.serve():
        wait(lambda: bed.cloud.names() == stays, 240, "the node that stays")
        submit(bed, "--array=0-2", "-n2", f"--output={tmp_path}/%a", "--wrap", "hostname; echo ran")
        three = [bed.node("cpu", number) for number in (1, 2, 3)]
        wait(lambda: created(bed) == [stays, three], 240, "three nodes")
        before = bed.heartbeat()
        bed.wait_for_empty_queue()
        assert all((tmp_path / str(task)).read_text().endswith("ran\n") for task in range(3))
        wait(lambda: bed.cloud.names() == stays, 240, "three nodes gone")
        wait(lambda: bed.heartbeat() != before, 240, "another heartbeat")
        wait(lambda: bed.status.machines == {"big": 1}, 240, "a status that says so")
    assert created(bed) == [stays, three], "all nodes that one array wakes are made by one call"
    assert bed.status.phase == "stopped"
    assert bed.cloud.twice == set()
    events = [json.loads(line) for line in (bed.root / "opt/ems/state/ledger.jsonl").read_text().splitlines()]
    seen = {(each["node"], each["event"]) for each in events}
    assert seen == {*((node, "start") for node in stays + three), *((node, "stop") for node in three)}


def test_what_the_cloud_refuses_is_told_and_tried_elsewhere(bed: Any, wait: Any, tmp_path: Path) -> None:
    bed.cloud.refusals = {"here-a": ("stockout", "here-a has none left")}
    with bed.serve() as service:
        first = submit(bed, "--wrap", gated(tmp_path / "go"))
        wait(lambda: bed.cloud.zones() == {bed.node("cpu", 1): "here-b"}, 240, "a node in the other zone")
        (tmp_path / "go").touch()
        bed.wait_for_empty_queue()
        wait(bed.rests, 240, "rest")
        assert bed.status.shut == {}

        bed.cloud.refusals = {"-cpu-": ("quota", "Quota 'CPUS' exceeded")}
        second = submit(bed, "-N2", "--wrap", "true")
        wait(lambda: "cpu" in bed.status.shut, 240, "a kind that is shut")
        assert bed.status.shut["cpu"].why == "Quota 'CPUS' exceeded"
        wait(lambda: all(bed.is_held("cpu", number) for number in (1, 2, 3, 4)), 240, "all its nodes held")
        assert "Quota 'CPUS' exceeded" in bed.run("squeue", "-h", "-o", "%k", "-j", second)
        assert "Quota" in bed.run("scontrol", "-a", "-o", "show", "node", bed.node("cpu", 4))
        calls = len(created(bed))
        third = submit(bed, "-pbig", "--wrap", "true")  # other kinds serve on
        wait(lambda: not bed.queue(third), 300, "a job of another kind")
        assert len(created(bed)) == calls + 1, "it loops"

        bed.cloud.refusals = {}
        service.send_signal(1)  # SIGHUP: `ems cluster setup` opens it
        bed.wait_for_empty_queue()
        wait(bed.rests, 240, "rest")
    assert bed.cloud.names() == []
    ended = bed.run("sacct", "-n", "-X", "-P", "-o", "State", "-j", f"{first},{second},{third}").split()
    assert ended == ["COMPLETED"] * 3


def test_a_service_that_is_killed_at_every_step_makes_nothing_twice(bed: Any, wait: Any) -> None:
    job = submit(bed, "--array=0-1", "-n2", "--wrap", "true")
    two = [bed.node("cpu", 1), bed.node("cpu", 2)]
    wait(lambda: bed.requests("resume"), 240, "a request for nodes")
    bed.murder(*range(1, 6))  # looks, the line before, the call, the line after: the last dies before that
    assert bed.cloud.names() == two
    bed.murder(2, 3)  # the request is still there, and already done
    bed.wait_for_empty_queue()  # nodes that are there need no service
    wait(lambda: bed.requests("suspend"), 240, "nodes that are not needed")
    bed.murder(*range(1, 5))
    assert bed.cloud.names() == []
    assert created(bed) == [two]
    with bed.serve():
        wait(bed.rests, 240, "rest")
        wait(lambda: not bed.requests("*"), 240, "an empty spool")
    assert bed.cloud.twice == set()
    assert set(bed.run("sacct", "-n", "-X", "-P", "-o", "State", "-j", job).split()) == {"COMPLETED"}


def test_what_nobody_sees_to_is_healed(bed: Any, wait: Any, tmp_path: Path) -> None:
    node = bed.node("cpu", 1)
    with bed.serve():
        orphan = bed.cloud.add(bed.node("cpu", 3), bed.labels)
        job = submit(bed, "--wrap", gated(tmp_path / "go"))
        wait(lambda: "JobState=RUNNING" in bed.run("scontrol", "show", "job", job), 240, "a job that runs")
        bed.cloud.lose(node)
        wait(lambda: "Restarts=1" in bed.run("scontrol", "show", "job", job), 240, "a job that is requeued")
        (tmp_path / "go").touch()
        bed.wait_for_empty_queue()
        wait(lambda: orphan not in bed.cloud.machines, 240, "an orphan deleted")
        wait(lambda: bed.cloud.names() == [] and bed.rests(), 240, "rest")
    assert bed.run("sacct", "-n", "-X", "-P", "-o", "State", "-j", job) == "COMPLETED"


def test_a_cloud_that_does_not_answer_is_asked_again(bed: Any, wait: Any) -> None:
    bed.cloud.trouble = "503 Service Unavailable"
    job = submit(bed, "--wrap", "true")
    with bed.serve():
        wait(lambda: "503" in bed.status.trouble, 240, "trouble that is told")
        assert bed.status.phase == "trouble"
        bed.cloud.trouble = ""
        bed.wait_for_empty_queue()
        wait(lambda: bed.cloud.names() == [] and bed.rests(), 240, "rest")
        assert bed.status.trouble == ""
    assert bed.run("sacct", "-n", "-X", "-P", "-o", "State", "-j", job) == "COMPLETED"
