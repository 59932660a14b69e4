"""A budget of an experiment: asked by many workers at once, kept by the runs that are started under it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ems.node import records
from ems.node.budget import LATER, SPENT, Budget, hourly

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
    said = [each.communicate(timeout=200)[0].strip() for each in asking]
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


# ------------------------------------------------------------------------------------------ as people meet it


@pytest.mark.parametrize(
    ("resources", "gpuh", "cpuh"),
    [
        ({"gres": "gpu:a100:4", "cpus": 8}, 4, 8),
        ({"gres": "gpu:a100:4", "cpus": 8, "nodes": 2}, 8, 16),  # each node has so many
        ({"gpus": "4", "nodes": 2}, 4, 2),  # all of them together
    ],
)
def test_a_run_on_several_nodes_takes_what_all_of_them_have(
    resources: dict[str, Any], gpuh: float, cpuh: float
) -> None:
    assert hourly(resources, 0.5) == {"gpuh": gpuh, "cpuh": cpuh, "usd": 0.5}


def test_an_experiment_stops_at_its_budget_and_says_so_everywhere(project: Path, ems: Ems) -> None:
    """Ten runs at three a time that take next to nothing of their half hour; each of the first three takes it all."""
    (project / "train.py").write_text("import sys\nprint('acc:', int(sys.argv[2]) / 10)\n")
    sweep = ("parrun", "train.py", "--python", sys.executable, "--set", "x=0..9", "--time", "30", "--cpus", "1")

    plan = json.loads(ems(*sweep, "--budget", "1.5cpuh", "--dry-run", "--json").stdout)
    assert plan["budget"] == {"cpuh": 1.5}
    said = ems(*sweep, "--budget", "1.5cpuh", "--wait")
    assert "budget 1.5 cpuh: pays for 3 runs of 30; those that end earlier make room for more" in said.stdout
    assert "10 completed" in said.stdout, "what runs do not take goes to others, and nobody is refused before"

    # of a second each, as is known once the first has ended
    (project / "train.py").write_text("import sys, time\ntime.sleep(1)\nprint('acc:', int(sys.argv[2]) / 10)\n")
    slow = ("parrun", "train.py", "--python", sys.executable, "--set", "x=0..9", "--cpus", "1", "--workers", "1")
    said = ems(*slow, "--budget", f"{2.9 / 3600:.9f}cpuh", "--wait", code=1)
    assert "without --time those that run then may exceed it" in said.stdout
    counts = json.loads(ems("status", "last", "--json").stdout)[0]
    done = counts["completed"]
    assert done in (1, 2)  # each takes a little more than a second
    assert (counts["cancelled"], counts["budget"]["refused"]) == (10 - done, 10 - done)
    assert counts["budget"]["of"]["cpuh"] * 3600 == pytest.approx(2.9)
    assert done <= counts["budget"]["spent"]["cpuh"] * 3600
    line = f"{10 - done} runs were not started: budget"
    again = f"ems rerun {counts['experiment']} --failed --budget "
    for words in (("status", "last"), ("harvest", "last"), ("report", "last")):
        shown = ems(*words).stderr
        assert line in shown
        assert again in shown
    assert f"{10 - done} over budget" in ems("status").stdout
    reasons = {row["reason"] for row in json.loads(ems("report", "--columns", "all", "--json").stdout)}
    assert reasons == {"", "budget"}

    ems("rerun", "last", "--failed", "--wait", code=1)  # under what is left of the budget, which pays for none
    assert json.loads(ems("status", "last", "--json").stdout)[0]["completed"] == done
    hinted = re.match(r"([\d.e-]+)cpuh\b", shown.partition(again)[2])
    assert hinted is not None
    assert float(hinted[1]) * 3600 >= 10 - done, "what those that ran have taken on average; others may take longer"
    ems("rerun", "last", "--failed", "--budget", f"{100 * float(hinted[1]):.9f}cpuh", "--wait")
    finished = json.loads(ems("status", "last", "--json").stdout)[0]
    assert (finished["completed"], finished["budget"]["refused"]) == (10, 0)
    assert finished["budget"]["spent"]["cpuh"] * 3600 >= 10 - done, "of the budget of the rerun"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--budget", "300epochs"), "a budget of 300 epochs is for a search"),
        (("--budget", "2gpuh"), "the runs ask for no GPU"),
        (("--budget", "50usd"), "what a run on here costs is not known"),
        (("--budget", "1cpuh", "--time", "2:00:00"), "a budget of 1 cpuh pays for no run"),
        (("--budget", "50"), "a budget of `50` has no unit\n\nhint: e.g. --budget 50usd, 200gpuh or 400cpuh"),
    ],
)
def test_budgets_that_cannot_be_kept_are_refused(project: Path, ems: Ems, words: tuple[str, ...], said: str) -> None:
    (project / "train.py").write_text("print(1)")
    refused = ems("parrun", "train.py", "--set", "x=0..2", *words, code=2)
    assert said in refused.stderr
    assert "hint: " in refused.stderr
    assert json.loads(ems("list", "--json").stdout) == []
