"""Budgets and queue-ahead of studies: plain arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ems.model import Experiment, Resources
from ems.search.problem import Fidelity
from ems.search.trial import Origin, Outcome
from ems.store.studies import SegmentRow, TrialRow, build
from ems.study import budget, buffer
from ems.study.spec import StudySpec

BEGAN, NOW = "2026-11-21T09:00:00.000Z", "2026-11-21T11:00:00.000Z"
EXPERIMENT = Experiment("7f3a9c21", "train", BEGAN, "train.py", "5" * 40, 0, resources=Resources(gres="gpu:2", cpus=4))


def spec(**facts: object) -> StudySpec:
    return replace(StudySpec("7f3a9c21", "{}", "loss"), **facts)  # type: ignore[arg-type]  # a test's shorthand


def segment(number: int = 0, rung: int = 0, outcome: str = "ok", wall_s: float = 3600.0, **facts: object) -> SegmentRow:
    row = SegmentRow(number, rung, None, 1, 1, outcome, 0.5, 1.0, 1, 2, "", BEGAN, NOW, "n1", wall_s, 1, 1.0)
    return replace(row, **facts)  # type: ignore[arg-type]  # a test's shorthand


def test_a_spec_survives_its_json() -> None:
    full = spec(fidelity=Fidelity("epochs", 1, 9, 3), groups=("a", "b"), budget={"epochs": 90.0}, warm_start=("0a",))
    assert StudySpec.load(full.dump() | {"of_a_later_version": 1}) == full


@pytest.mark.parametrize(
    ("lag_s", "run_s", "ahead"), [(1.0, None, 0), (1.0, 4.0, 2), (1.0, 1e9, 1), (60.0, 60.0, 8), (60.0, 1.0, 8)]
)
def test_so_many_are_queued_ahead_as_end_while_the_driver_sleeps(lag_s: float, run_s: float | None, ahead: int) -> None:
    assert buffer.size(8, lag_s, run_s) == ahead


def test_the_last_runs_tell_how_long_one_takes() -> None:
    assert buffer.mean_run_s([]) is None
    old = [segment(number, wall_s=1000.0, told=1) for number in range(50)]
    new = [segment(50 + number, wall_s=10.0, told=2) for number in range(50)]
    assert buffer.mean_run_s([*new, *old, segment(100, outcome="pending", told=-1)]) == 10.0


def test_hours_are_measured_and_what_runs_is_counted_to_its_expected_end() -> None:
    parts = [segment(0), segment(1, wall_s=7200.0), segment(2, outcome="pending", told=-1, wall_s=0.0)]
    parts[2] = replace(parts[2], started_at="2026-11-21T10:30:00.000Z")
    used = budget.spent(spec(usd_per_h=2.0), EXPERIMENT, parts, NOW)
    assert used == {"trials": 3, "h": 2.0, "cpuh": 3.5 * 4, "gpuh": 3.5 * 2, "usd": 7.0}
    assert budget.share(spec(budget={"gpuh": 16.0, "trials": 1}), EXPERIMENT, parts, NOW) == (3.5 + 1.0) * 2 / 16
    assert budget.share(spec(budget={"h": 4.0}), EXPERIMENT, parts, NOW) == 0.5
    assert budget.share(spec(budget={"trials": 1}), EXPERIMENT, parts, NOW) == 0.0
    assert budget.describe(spec(budget={"h": 4.0, "trials": 9}), EXPERIMENT, []).endswith("of 4 h")


def test_a_trial_is_put_together_from_its_segments() -> None:
    row = TrialRow(0, 0, {"x": 1}, 7, "north", 1, Origin.MODEL.value, None, None, None, 3)
    parts = [
        segment(0, 1, value=0.5, asked=3, told=4),
        segment(0, 2, "pending", value=None, asked=5, told=-1, cost=0.0),
    ]
    (trial,) = build([row], parts, sign=-1.0)
    assert (trial.rung, trial.outcome, trial.asked, trial.told, trial.history) == (2, Outcome.PENDING, 5, -1, ((3, 4),))
    assert trial.values[1:] == (-0.5,)
    assert trial.values[0] != trial.values[0], "nothing is known of the rung below the one that it began at"
    assert trial.cost == 1.0
