"""A budget of an experiment: asked by many workers at once, kept by the runs that are started under it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ems.node import records
from ems.node.budget import LATER, SPENT, Budget

Ems = Callable[..., subprocess.CompletedProcess[str]]
HOURLY = {"time": "1:00:00", "cpus": 2}
_ADMIT = """
import sys
sys.path.insert(0, sys.argv[1])
from ems.node import budget, records
files = records.ExperimentFiles(sys.argv[2], "7f3a9c21")
kept = budget.Budget(files, {"amounts": {"cpuh": 6.0}, "since": 0}, {"time": "1:00:00", "cpus": 2})
sys.stdin.read()
print(kept.admit(int(sys.argv[3]), lambda: True, lambda: {"attempt": 1})[1])
"""


@pytest.fixture
def files(tmp_path: Path) -> records.ExperimentFiles:
    found = records.ExperimentFiles(tmp_path, "7f3a9c21")
    Path(found.dir).mkdir(parents=True)
    return found


def ask(
    files: records.ExperimentFiles, index: int, resources: dict[str, Any], attempt: int = 1, **amounts: float
) -> str:
    """Ask for a run as a worker that has just started does."""
    kept = Budget(files, {"amounts": amounts or {"cpuh": 6.0}, "usd_per_h": 3.0, "since": 0}, resources)
    return kept.admit(index, lambda: True, lambda: {"attempt": attempt})[1]


def settle(files: records.ExperimentFiles, index: int, hours: float, attempt: int = 1) -> None:
    Budget(files, {"amounts": {"cpuh": 6.0}, "since": 0}, HOURLY).settle(index, attempt, hours * 3600)


def test_many_workers_at_once_never_take_more_than_there_is(files: records.ExperimentFiles) -> None:
    words = [sys.executable, "-c", _ADMIT, str(Path(__file__).parents[2]), files.root]
    asking = [
        subprocess.Popen([*words, str(index)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for index in range(12)
    ]
    for each in asking:  # they are all there before the first one asks
        assert each.stdin is not None
        each.stdin.close()
        each.stdin = None
    said = [each.communicate(timeout=60)[0].strip() for each in asking]
    assert sorted(said) == [""] * 3 + [LATER] * 9, "three runs of two CPU-hours each are six"


def test_what_a_run_does_not_take_is_there_for_others(files: records.ExperimentFiles) -> None:
    assert [ask(files, index, HOURLY) for index in range(4)] == ["", "", "", LATER]
    settle(files, 0, 0.25)
    assert ask(files, 3, HOURLY) == LATER, "half an hour of two CPUs is left of it, and a run may take two hours"
    settle(files, 1, 0.5)
    settle(files, 1, 0.5)  # a second word of the same end counts for nothing
    assert ask(files, 3, HOURLY) == ""
    assert ask(files, 4, HOURLY) == LATER
    settle(files, 2, 1.0)
    settle(files, 3, 1.0)
    assert ask(files, 4, HOURLY) == SPENT
    assert ask(files, 4, {"time": "15", "cpus": 2}) == "", "a shorter one still fits"


def test_without_a_time_limit_the_mean_of_those_that_ended_counts(files: records.ExperimentFiles) -> None:
    assert [ask(files, index, {"cpus": 2}) for index in range(3)] == ["", "", ""], "nobody knows yet what they take"
    for index in range(2):
        settle(files, index, 1.0)
    assert ask(files, 3, {"cpus": 2}) == SPENT, "4 are spent, one more runs on average for 2"
    settle(files, 2, 0.1)
    assert ask(files, 3, {"cpus": 2}) == ""


def test_units_and_attempts_that_were_lost(files: records.ExperimentFiles) -> None:
    both = {"usd": 10.0, "gpuh": 2.01}
    one = {"time": "60", "gres": "gpu:1"}
    assert [ask(files, index, one, **both) for index in range(3)] == ["", "", LATER], "the GPUs bind, not the dollars"
    log = Path(files.run(0, "stdout.log"))
    log.parent.mkdir(parents=True)
    log.write_text("its worker is killed a moment after it has printed this")
    assert ask(files, 0, one, attempt=2, **both) == "", "what it may have taken is free again, and it takes that"
    assert ask(files, 2, one, **both) == LATER
    with Path(files.dir, "budget-0.jsonl").open("a") as ledger:
        ledger.write('{"run": 1, "att')  # a node fails as it writes
    settle(files, 1, 0.0)
    assert ask(files, 2, one, **both) == ""
    assert ask(files, 3, one, **both) == LATER
