"""Studies in the store: what was asked for, what came of it, and when the driver was awake.

The driver keeps them in ``study.db`` beside the runs; :mod:`ems.study.intake` copies them to the project's store.
Values are in the user's own sign: who searches asks :func:`trials` for values of which less is better.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ems.model import Params
from ems.search.trial import Origin, Outcome, Trial
from ems.store import wide

if TYPE_CHECKING:
    from ems.store import Store

RUNNING, FINISHED, STOPPED, FAILED = "RUNNING", "FINISHED", "STOPPED", "FAILED"


@dataclass(frozen=True, slots=True)
class StudyRow:
    """How a study stands.

    Attributes
    ----------
    spec
        :class:`ems.study.spec.StudySpec` as JSON, as extended since.
    state, reason
        RUNNING, FINISHED, STOPPED or FAILED, and why.
    ending
        The state that it enters once nothing of it runs any more; empty while trials are still proposed.
    wakes
        Number of the last wake that was completed.
    resumed
        Wake at which it was last resumed: crashes up to then are forgiven.
    failures
        Wakes that failed since the last one that did not.
    next_wake
        When the driver wakes at the latest; empty where it does not.
    cache
        What the search may use to be faster (hyper-parameters); never needed.
    """

    id: str
    spec: Mapping[str, Any]
    state: str = RUNNING
    reason: str = ""
    ending: str = ""
    wakes: int = 0
    resumed: int = 0
    failures: int = 0
    next_wake: str = ""
    cache: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether no driver has anything left to do for it."""
        return self.state != RUNNING


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A trial as it was proposed. ``mean``, ``sd`` are what the model predicted, in the metric's units and sign.

    Numbers below 0 are trials of other studies with which this one began: they have no run.
    """

    number: int
    config: int
    params: Params
    seed: int
    grp: str | None
    bracket: int
    origin: str
    mean: float | None
    sd: float | None
    acquisition: float | None
    asked: int


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """The way of a trial to one rung: one attempt, or more where the machine's fault ended one.

    Attributes
    ----------
    budget
        Value of the fidelity param at its end; None without one.
    chunk, tries
        The chunk that its run is in for it, and how many it has been in; 0 where it was no segment of its own: a rung
        that a trial passed on its way, or one of another study.
    value
        The metric at its greatest step, in the user's sign; None while, and where, there is none.
    cost
        What it spent: of the fidelity where there is one (as ``ems.search.rungs.charge`` counts it), else seconds.
    asked, told
        Wakes in which it was asked for and its outcome was learnt (-1: not yet).
    reason
        Why it is not OK; of a pending one, why it is being stopped.
    wall_s
        Seconds that it ran, all tries together.
    points, last_step
        How many values of the metric it logged, and its greatest step.
    """

    number: int
    rung: int
    budget: float | None
    chunk: int
    tries: int
    outcome: str
    value: float | None
    cost: float
    asked: int
    told: int
    reason: str
    started_at: str
    ended_at: str
    host: str
    wall_s: float
    points: int
    last_step: float | None

    @property
    def is_pending(self) -> bool:
        """Whether it is queued or runs."""
        return self.outcome == Outcome.PENDING


@dataclass(frozen=True, slots=True)
class WakeRow:
    """One wake of the driver: ``free`` is how many trials it could ask for, ``calls`` how often it asked SLURM."""

    wake: int
    at: str
    wall_s: float
    cpu_s: float
    told: int
    asked: int
    free: int
    calls: int
    reason: str


TRIAL_COLUMNS = tuple(each.name for each in fields(TrialRow))
SEGMENT_COLUMNS = tuple(each.name for each in fields(SegmentRow))
WAKE_COLUMNS = tuple(each.name for each in fields(WakeRow))


def study(store: Store, study_id: str) -> StudyRow | None:
    """Return how a study stands; None where the experiment is no study, or its driver was never heard of."""
    rows = store.query(
        "SELECT id, spec, state, reason, ending, wakes, resumed, failures, next_wake, cache FROM studies WHERE id = ?",
        [study_id],
    )
    if not rows:
        return None
    exp_id, spec, *rest = rows[0]
    facts: list[Any] = [*rest[:-1], json.loads(rest[-1])]
    return StudyRow(exp_id, json.loads(spec), *facts)


def unfinished(store: Store) -> set[str]:
    """Return the ids of the studies that go on."""
    return {study_id for (study_id,) in store.query("SELECT id FROM studies WHERE state = 'RUNNING'")}


def trial_rows(store: Store, study_id: str) -> list[TrialRow]:
    """Return what was proposed, in order of number."""
    sql = f"SELECT {', '.join(TRIAL_COLUMNS)} FROM trials WHERE study_id = ? ORDER BY number"  # noqa: S608  # our names
    rows = store.query(sql, [study_id])
    return [TrialRow(number, config, wide.load_params(params), *rest) for number, config, params, *rest in rows]


def segments(store: Store, study_id: str) -> list[SegmentRow]:
    """Return all segments, in order of trial and rung."""
    sql = f"SELECT {', '.join(SEGMENT_COLUMNS)} FROM segments WHERE study_id = ? ORDER BY number, rung"  # noqa: S608  # our names
    return [SegmentRow(*row) for row in store.query(sql, [study_id])]


def wakes(store: Store, study_id: str) -> list[WakeRow]:
    """Return the wakes of the driver, the first one first."""
    sql = f"SELECT {', '.join(WAKE_COLUMNS)} FROM wakes WHERE study_id = ? ORDER BY wake"  # noqa: S608  # our names
    return [WakeRow(*row) for row in store.query(sql, [study_id])]


def trials(store: Store, study_id: str, sign: float = 1.0) -> list[Trial]:
    """Return the trials as the search knows them, in order of number.

    Parameters
    ----------
    sign
        What values are multiplied by: :attr:`ems.study.spec.StudySpec.sign` for values of which less is better.
    """
    return build(trial_rows(store, study_id), segments(store, study_id), sign)


def build(rows: Iterable[TrialRow], parts: Iterable[SegmentRow], sign: float = 1.0) -> list[Trial]:
    """Put trials together from their rows; see :func:`trials`."""
    by_number: dict[int, list[SegmentRow]] = defaultdict(list)
    for each in parts:
        by_number[each.number].append(each)
    return [_trial(row, by_number[row.number], sign) for row in rows if by_number[row.number]]


def _trial(row: TrialRow, parts: list[SegmentRow], sign: float) -> Trial:
    last = parts[-1]
    known = {each.rung: sign * each.value for each in parts if each.outcome == Outcome.OK and each.value is not None}
    n_values = last.rung + (last.outcome == Outcome.OK)
    if last.outcome == Outcome.STOPPED:
        n_values = 1 + max(known, default=-1)
    return Trial(
        number=row.number,
        params=row.params,
        seed=row.seed,
        config=row.config,
        group=row.grp,
        bracket=row.bracket,
        rung=last.rung,
        outcome=Outcome(last.outcome),
        values=tuple(known.get(rung, float("nan")) for rung in range(n_values)),
        origin=Origin(row.origin),
        asked=last.asked,
        told=last.told,
        cost=sum(each.cost for each in parts),
        history=tuple((each.asked, each.told) for each in parts[:-1] if each.chunk),
    )
