"""What people want of a study that goes on: written down for its driver, which is called at once to take it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from ems.errors import NotFoundError, UsageError
from ems.executor.base import writing_to
from ems.node import records
from ems.node.budget import USD
from ems.node.records import Record
from ems.store import Store, studies
from ems.study import begin, intake, wishes
from ems.study.driver import WakeReport
from ems.study.spec import StudySpec
from ems.study.words import EPOCHS
from ems.target import Target

_FIXED = ("space", "metric", "goal", "fidelity", "groups", "group_by", "seed_as", "seed")
_CHANGEABLE = ("sampler", "parallel", "confirm", "max_crashes", "max_tries", "wake_s")


def stop(store: Store, target: Target, study_id: str, *, now: bool = False) -> WakeReport:
    """End a study: nothing more is proposed; what runs is left to end, or with ``now`` is cancelled.

    Raises
    ------
    NotFoundError
        If there is no such study.
    """
    _spec(store, target, study_id)
    return _ask(store, target, study_id, {"kind": wishes.STOP, "now": now})


def resume(store: Store, target: Target, study_id: str, spec: StudySpec | None = None) -> WakeReport:
    """Have a study go on that was stopped, failed, or lost its driver.

    Parameters
    ----------
    spec
        What it is resumed with, where anything was said: it may change how is searched, and not what.

    Raises
    ------
    UsageError
        If ``spec`` has another space, metric, goal, fidelity or grouping.
    """
    old = _spec(store, target, study_id)
    changes: Record = {}
    if spec is not None:
        before, after = asdict(old), asdict(spec)
        other = next((name for name in _FIXED if before[name] != after[name]), None)
        if other is not None:
            raise UsageError(
                f"{study_id} cannot go on with another {other.replace('_', ' ')}: its trials would mean something else",
                f"begin a study that knows its trials: ems tune … --warm-start {study_id}",
            )
        changes = {name: after[name] for name in _CHANGEABLE if before[name] != after[name]}
    return _ask(store, target, study_id, {"kind": wishes.RESUME, "changes": changes})


def extend(store: Store, target: Target, study_id: str, budget: Mapping[str, float]) -> WakeReport:
    """Add to a study's budget, by unit of :data:`ems.study.words.UNITS`; one that had finished goes on.

    Raises
    ------
    UsageError
        If an amount is not positive, or of a unit that the study cannot count.
    """
    spec = _spec(store, target, study_id)
    if not budget or any(not amount > 0 for amount in budget.values()):
        raise UsageError("nothing is added to the budget", f"e.g. ems tune extend {study_id} --trials 20")
    if EPOCHS in budget and spec.fidelity is None:
        raise UsageError(f"{study_id} has no fidelity whose epochs could be counted", "add trials or hours")
    if USD in budget and spec.usd_per_h is None:
        raise UsageError(f"what the runs of {study_id} cost is not known", "add trials or hours")
    strange = next((unit for unit in budget if unit not in spec.budget), None)
    if strange is not None:
        raise UsageError(
            f"{study_id} has no budget of {strange} that could be extended", f"it has {', '.join(spec.budget)}"
        )
    return _ask(store, target, study_id, {"kind": wishes.EXTEND, "budget": dict(budget)})


def _spec(store: Store, target: Target, study_id: str) -> StudySpec:
    intake.bring(store, target, study_id)
    row = studies.study(store, study_id)
    if row is None:
        raise NotFoundError(f"{study_id} is no study", "ems list shows which experiments are")
    return StudySpec.load(row.spec)


def _ask(store: Store, target: Target, study_id: str, record: Record) -> WakeReport:
    if target.remote is not None:
        return WakeReport(**intake.attend(store, target, target.remote, study_id, request=record, wake=True)["report"])
    with writing_to(target.root):
        records.ask_driver(target.files(study_id), record)
    return begin.wake(target, study_id, store)
