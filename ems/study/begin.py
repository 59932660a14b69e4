"""A study's beginning: its experiment written down whole, its first trials submitted, its driver set going."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ems import provenance, submission
from ems.errors import EmsError, UsageError
from ems.model import Experiment
from ems.node.records import Record
from ems.plan import Plan
from ems.store import Store, studies
from ems.study import budget, clocks, driver, intake
from ems.study.clock import Clock
from ems.study.driver import WakeReport
from ems.study.spec import StudySpec
from ems.target import Target

if TYPE_CHECKING:
    from ems.search.problem import Problem
    from ems.search.trial import Trial


def start(plan: Plan, spec: StudySpec, target: Target, store: Store) -> WakeReport:
    """Make a study real and do its first wake, so that what refuses it is seen at once.

    Parameters
    ----------
    plan
        Of a request with ``trial``; its experiment's id is the study's.

    Raises
    ------
    UsageError
        If the study cannot be meant (no budget ends it, one too small for one trial, an empty space); nothing is
        written then.
    EmsError
        If the target cannot be written or the scheduler refuses; the study stays, and ``ems tune resume`` carries on.
    """
    check(spec, plan.experiment)
    experiment = _experiment(plan, spec)
    record: Record = {**spec.dump(), "given": _given(spec, store)}
    submission.start(experiment, tuple, (), target, store, record)
    return wake(target, spec.id, store)


def check(spec: StudySpec, experiment: Experiment) -> None:
    """Refuse a study that cannot be meant, without writing anything.

    Raises
    ------
    UsageError
        See :func:`start`.
    """
    from ems.search.decide import decide  # noqa: PLC0415  # numpy and scipy

    budget.check(spec, experiment)
    if spec.group_by and not spec.groups:
        raise UsageError(f"there are no groups in {spec.group_by}", "--group-by COLUMN=FILE.csv with a row each")
    first = decide(spec.problem(), (), 1, 0)
    if not first.actions:
        raise UsageError(f"nothing can be tried: {first.finished}", "widen the space, or give a larger budget")


def wake(target: Target, study_id: str, store: Store) -> WakeReport:
    """Wake the driver of a study now, wherever its root is, and bring what it knows into ``store``.

    Raises
    ------
    EmsError
        See :func:`ems.study.driver.wake`; or the other machine cannot be reached.
    """
    if target.remote is not None:
        return WakeReport(**intake.attend(store, target, target.remote, study_id, wake=True)["report"])
    try:
        return driver.wake(target.root, study_id, target.executor, clock_of(target, study_id))
    finally:
        intake.bring(store, target, study_id)


def look_after(target: Target, study_id: str, store: Store) -> bool:
    """Bring what the driver of a study knows; set its clock going where it stopped though the study goes on.

    Returns
    -------
    bool
        Whether it had to be set going.

    Raises
    ------
    EmsError
        If it cannot be.
    """
    if target.is_gone:
        return False
    if target.remote is not None:
        return bool(intake.attend(store, target, target.remote, study_id)["revived"])
    intake.bring(store, target, study_id)
    row = studies.study(store, study_id)
    if (row is not None and row.is_finished) or not Path(target.files(study_id).study).exists():
        return False
    clock = clock_of(target, study_id)
    if clock.state().is_running:
        return False
    clock.start(0.0)
    return True


def clock_of(target: Target, study_id: str) -> Clock:
    """Return the clock of a study on this machine."""
    return clocks.of(target.executor.name, target.root, study_id, getattr(target.executor, "worker_python", None))


def _experiment(plan: Plan, spec: StudySpec) -> Experiment:
    """Return the experiment of a study: with where it comes from, and as many workers as run at a time."""
    planned = plan.experiment
    origin = provenance.collect(plan.project, planned.command_line, planned.python, aside=plan.target.root / "diffs")
    if plan.target.remote is not None:
        origin |= plan.target.remote.surroundings(planned.python)
    experiment = replace(planned, study_id=planned.id, source="study", provenance=origin)
    if planned.executor != "here":  # where array jobs of one experiment that has a bound wait for each other
        return replace(experiment, max_parallel=None)
    return replace(experiment, max_parallel=spec.parallel, workers=planned.workers or spec.parallel)


def known(spec: StudySpec, store: Store) -> list[Trial]:
    """Return the trials of other studies that this one begins with, as its first wake will see them.

    Raises
    ------
    UsageError
        See :func:`start`.
    """
    from ems.search.trial import Origin, Outcome, Trial  # noqa: PLC0415  # numpy and scipy

    found = []
    for place, each in enumerate(_given(spec, store), start=1):
        values = tuple(math.nan if value is None else spec.sign * value for value in each["values"])
        trial = Trial(-place, each["params"], config=-place, group=each["group"], rung=len(values) - 1)
        found.append(replace(trial, outcome=Outcome.OK, values=values, origin=Origin.GIVEN, told=0))
    return found


def _given(spec: StudySpec, store: Store) -> Sequence[Record]:
    """Return the trials of other studies that count in this one: of the same metric, inside its space.

    Raises
    ------
    UsageError
        If one is of another metric, or none of its trials fits.
    """
    found: list[Record] = []
    problem = spec.problem() if spec.warm_start else None
    for study_id in spec.warm_start:
        row = studies.study(store, study_id)
        if row is None:
            raise EmsError(f"{study_id} is no study", "ems list shows which experiments are")
        other = StudySpec.load(row.spec)
        if (other.metric, other.goal) != (spec.metric, spec.goal):
            raise UsageError(
                f"{study_id} searched for another thing: to {other.goal} {other.metric}",
                f"a study begins with the trials of those that {spec.goal} {spec.metric}",
            )
        fitting = list(_fitting(spec, problem, other, store)) if problem else []
        if not fitting:
            raise UsageError(f"no trial of {study_id} lies in the space of this study", "leave --warm-start out")
        found += fitting
    return found


def _fitting(spec: StudySpec, problem: Problem, other: StudySpec, store: Store) -> Sequence[Record]:
    """Return the trials of another study that lie in the space, with their values at the rungs that both have."""
    budgets = list(spec.fidelity.rungs) if spec.fidelity else [None]
    rows = {row.number: row for row in studies.trial_rows(store, other.id)}
    values: dict[int, dict[float | None, float]] = {}
    for part in studies.segments(store, other.id):
        if part.value is not None:
            values.setdefault(part.number, {})[part.budget if spec.fidelity else None] = part.value
    found: list[Record] = []
    for number, known in values.items():
        row = rows[number]
        at = [known.get(each) for each in budgets]
        while at and at[-1] is None:
            at.pop()
        if at and problem.space.is_valid(row.params) and (not spec.groups or row.grp in spec.groups):
            found.append({"params": dict(row.params), "group": row.grp, "values": at})
    return found
