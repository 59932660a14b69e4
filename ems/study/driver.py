"""One wake of a study's driver: look at what ended, decide, write it down, hand it over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ems.executor.base import Executor
from ems.study.clock import Clock


@dataclass(frozen=True, slots=True)
class WakeReport:
    """What a wake did.

    Attributes
    ----------
    wake
        Its number; 0 where another driver was awake, and this one did nothing.
    told, asked
        Segments whose outcome it learnt, and that it asked for.
    running
        Segments that are queued or run now.
    state, reason
        Of the study; see :class:`ems.store.studies.StudyRow`.
    next_s
        Seconds until the next wake at the latest; None where none is needed.
    trouble
        What the scheduler has against it, if anything; the next wake tries again.
    """

    study_id: str
    wake: int
    told: int
    asked: int
    running: int
    state: str
    reason: str
    next_s: float | None
    wall_s: float
    cpu_s: float
    calls: int = 0
    trouble: str = ""


def wake(root: Path, study_id: str, executor: Executor, clock: Clock) -> WakeReport:
    """Wake the driver of a study once, where its root is; see the module. Safe at any moment, from several places.

    Raises
    ------
    EmsError
        If it cannot be done: the next wake carries on.
    """
    raise NotImplementedError
