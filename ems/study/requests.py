"""What people want of a study that goes on: written down for its driver, which is called at once to take it in."""

from __future__ import annotations

from collections.abc import Mapping

from ems.store import Store
from ems.study.driver import WakeReport
from ems.study.spec import StudySpec
from ems.target import Target


def stop(store: Store, target: Target, study_id: str, *, now: bool = False) -> WakeReport:
    """End a study: nothing more is proposed; what runs is left to end, or with ``now`` is cancelled.

    Raises
    ------
    NotFoundError
        If there is no such study.
    """
    raise NotImplementedError


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
    raise NotImplementedError


def extend(store: Store, target: Target, study_id: str, budget: Mapping[str, float]) -> WakeReport:
    """Add to a study's budget, by unit of :data:`ems.study.words.UNITS`; one that had finished goes on.

    Raises
    ------
    UsageError
        If an amount is not positive, or of a unit that the study cannot count.
    """
    raise NotImplementedError
