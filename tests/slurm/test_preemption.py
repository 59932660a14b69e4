"""Machines of the spot market are taken back, with notice and without: real SLURM, the service, the watch of a node."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ems.cluster import shipped

KINDS = {
    "spot": {"max": 2, "cpus": 2, "mem_gb": 8, "spot": True},
    "safe": {"max": 1, "cpus": 2, "mem_gb": 8},
}
PARTITIONS = {"spot": {"nodes": "spot", "fallback": "safe", "max_preemptions": 2}, "safe": {"nodes": "safe"}}
# saves itself after each epoch; once told to end it is slow to, as one that writes gigabytes; ends with its epochs, or
# when the test lets it
TRAINING = """
import os, pathlib, signal, sys, time
import ems
go = pathlib.Path(os.environ["EMS_ROOT"]) / "go"
state = pathlib.Path(ems.checkpoint()) / "epoch"
done = int(state.read_text()) if state.exists() else 0
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(time.sleep(1)))
for epoch in range(done, int(sys.argv[2])):
    print(f"epoch {epoch} of attempt {ems.attempt()}", flush=True)
    time.sleep(0.5)
    state.with_suffix(".new").write_text(str(epoch + 1))
    state.with_suffix(".new").rename(state)
    if ended:
        sys.exit(1)
    if go.exists():
        break
print("trained", flush=True)
"""


@pytest.fixture(scope="module")
def _bed(testbed: ModuleType, elastic: ModuleType, cloud: ModuleType) -> Iterator[Any]:
    with elastic.bed(testbed, cloud, KINDS, partitions=PARTITIONS) as bed:
        yield bed


@pytest.fixture
def lab(_bed: Any, labs: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A project whose experiments go to an elastic cluster that has no node yet."""
    for name, value in _bed.environment().items():
        monkeypatch.setenv(name, value)
    yield labs(_bed)
    _bed.sweep()


@contextmanager
def watched(bed: Any, node: str, folder: Path) -> Iterator[Path]:
    """Run the watch of a node; gives the file in which it is told that its machine is taken back."""
    rules = {
        "name": node,
        "provider": "container",
        "share": str(bed.root / "opt/ems"),
        "notice": str(folder / "notice"),
    }
    (folder / "watch.json").write_text(json.dumps(rules))
    script = shipped.templates() / "roles" / "slurm_compute" / "files" / "ems-watch"
    watch = subprocess.Popen([sys.executable, script, folder / "watch.json"], env=bed.environment())
    try:
        yield folder / "notice"
    finally:
        watch.terminate()
        watch.wait(120)


def epochs(lab: Any, experiment: str, attempt: int) -> list[int]:
    """Return the epochs that an attempt of run 0 has begun."""
    log = lab.run_dir(experiment, 0) / "stdout.log"
    return [int(found) for found in re.findall(rf"epoch (\d+) of attempt {attempt}\n", log.read_text())]


def first_attempt(lab: Any, experiment: str) -> dict[str, Any]:
    """Return what the store has of the first attempt at run 0 after a harvest."""
    lab.harvest()
    found: dict[str, Any] = lab.attempts(experiment)[0][0]
    return found


def test_a_run_that_is_preempted_goes_on_and_at_last_where_nobody_takes_it_back(lab: Any, tmp_path: Path) -> None:
    bed = lab.slurm
    lab.write("train.py", TRAINING)
    with bed.serve():
        words = ("--cpus", "2", "--partition", "spot", "--grace", "30", "--max-requeues", "0")
        experiment = lab.parrun("train.py", "--set", "epochs=10000,30", *words)
        lab.wait_for_start(experiment, 0, 1)
        lab.harvest()
        first = lab.attempts(experiment)[0][0]["host"]
        with watched(bed, first, tmp_path) as notice:
            notice.write_text("20\n")
            lab.wait_until(lambda: "DRAIN" in bed.state(first), 240, "the watch")
            lab.wait_until(lambda: first_attempt(lab, experiment)["state"] != "RUNNING", 240, "the end of attempt 1")
            before = first_attempt(lab, experiment)
            assert (before["state"], before["reason"]) == ("PENDING", "preempted")
            lab.wait_until(lambda: "DOWN" in bed.state(first) or first not in bed.cloud.names(), 240, "a node down")
        bed.cloud.lose(first)
        lab.wait_until(lambda: epochs(lab, experiment, 2), 300, "attempt 2")
        assert epochs(lab, experiment, 2)[0] == epochs(lab, experiment, 1)[-1] + 1, "it had time to save itself"
        lab.harvest()
        second = lab.attempts(experiment)[0][1]["host"]

        bed.cloud.lose(second)  # without a word
        lab.wait_until(lambda: epochs(lab, experiment, 3), 300, "attempt 3")
        assert epochs(lab, experiment, 3)[0] in (epochs(lab, experiment, 2)[-1], epochs(lab, experiment, 2)[-1] + 1)
        (lab.project / ".ems" / "go").touch()
        bed.wait_for_empty_queue()
        lab.harvest()
        lab.wait_until(bed.rests, 240, "rest")
        assert any("preempted 2x, moves to safe" in said for _, said in bed.status.notes)
    assert lab.states(experiment) == {0: "COMPLETED", 1: "COMPLETED"}
    attempts = lab.attempts(experiment)
    assert [each["host"].split("-")[1] for each in attempts[0]] == ["spot", "spot", "safe"]
    assert len(attempts[1]) == 1, "the other run was left alone"
    assert bed.cloud.twice == set()
    log = (lab.run_dir(experiment, 0) / "stdout.log").read_text()
    assert log.count("trained") == 1
    begun = {int(found) for found in re.findall(r"epoch (\d+) ", log)}
    assert begun == set(range(len(begun))), "none was left out"
