"""What became of the segments that were asked for: read from the driver's own store after a harvest. Writes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from ems.harvest import GONE_S
from ems.model import State
from ems.node import records
from ems.search.trial import Outcome
from ems.store import Store
from ems.store.studies import SegmentRow
from ems.study.spec import StudySpec

NO_VALUE, TEXT = "it logged no value", "its last value is a text: "
CANCELLED = "cancelled"  # by a person: nobody tries again
# reasons and SLURM's words that blame the machine, as ems.harvest and the worker write them
_LOST = (
    *("lost", "worker lost", "terminated by SLURM", "preempted", "node failure", "node did not boot"),
    *("its worker recorded no end", "the job could not be started", "never started"),
)
_LOST_WORDS = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "LAUNCH_FAILED", "RECONFIG_FAIL")
_TIMEOUT_WORDS = ("TIMEOUT", "DEADLINE")


@dataclass(frozen=True, slots=True)
class Told:
    """What a look at the segments found.

    Attributes
    ----------
    ended
        Those whose outcome is known now.
    again
        Those that a machine lost and that are to be tried once more.
    waiting
        Those that are still queued or run, with what is known of them.
    """

    ended: list[SegmentRow] = field(default_factory=list)
    again: list[SegmentRow] = field(default_factory=list)
    waiting: list[SegmentRow] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Run:
    """A run as the store has it, with the summary of the metric."""

    state: State
    slurm_state: str
    reason: str
    chunk: int
    is_settled: bool
    n: int
    last: float | None
    last_text: str | None
    last_step: float | None
    attempts: Sequence[tuple[str, str, float, str]]  # of its chunk: started_at, ended_at, wall_s, host


def tell(store: Store, spec: StudySpec, parts: Sequence[SegmentRow], wake: int, executor: str) -> Told:
    """Look what became of the segments of ``parts`` (all of the study's) that are pending.

    Parameters
    ----------
    wake
        Number of this one.
    executor
        Its name: on this machine no record can be late.
    """
    pending = [each for each in parts if each.is_pending]
    runs = _load(store, spec, [each.number for each in pending])
    first = {each.number: each.rung for each in reversed(parts)}
    told = Told()
    for segment in pending:
        run = runs.get(segment.number)
        if run is None or run.chunk != segment.chunk:  # its chunk was just written
            told.waiting.append(segment)
            continue
        outcome, reason = _outcome(segment, run, executor)
        if outcome is None:
            told.waiting.append(_seen(segment, run))
        elif outcome is Outcome.LOST and reason != CANCELLED and segment.tries < spec.max_tries:
            told.again.append(replace(_timed(segment, run), started_at="", ended_at=""))  # waiting costs nothing
        else:
            cost = fidelity_cost(spec, segment, is_first=segment.rung == first[segment.number])
            told.ended.append(_closed(segment, run, outcome, reason, wake, cost))
    return told


def _outcome(segment: SegmentRow, run: _Run, executor: str) -> tuple[Outcome | None, str]:
    """Return how a segment ended and why; None while it has not, as far as is known."""
    if run.state is State.UNKNOWN:
        # SLURM's answer and the worker's record may be late on their way
        since = seconds(segment.ended_at, records.now()) if segment.ended_at else 0.0
        is_gone = executor == "here" or since > GONE_S
        return (Outcome.LOST, run.reason or "lost") if is_gone else (None, "")
    if not run.state.is_finished or not run.is_settled:
        return None, ""
    if run.state is State.CANCELLED:
        return (Outcome.STOPPED, segment.reason) if segment.reason else (Outcome.LOST, CANCELLED)
    if run.state is State.FAILED:
        return _blame(run), run.reason or run.slurm_state.lower()
    return _judge(run)


def _judge(run: _Run) -> tuple[Outcome, str]:
    """Return the outcome of a run that completed, by its value."""
    if run.last_text == "NaN" or (run.last is not None and not math.isfinite(run.last)):
        return Outcome.DIVERGED, f"its last value is {'NaN' if run.last is None else run.last}"
    if run.last is None:
        return Outcome.CRASHED, f"{TEXT}{run.last_text}" if run.n else NO_VALUE
    return Outcome.OK, ""


def _blame(run: _Run) -> Outcome:
    """Return whose fault it was that a run failed."""
    if run.slurm_state in _LOST_WORDS or run.reason.startswith(_LOST):
        return Outcome.LOST
    if run.slurm_state == "OUT_OF_MEMORY" or "out of memory" in run.reason.lower():
        return Outcome.OOM
    if run.slurm_state in _TIMEOUT_WORDS or run.reason == "time limit":
        return Outcome.TIMEOUT
    return Outcome.CRASHED


def _seen(segment: SegmentRow, run: _Run) -> SegmentRow:
    """Note when a pending segment began, and since when nobody knows of its run."""
    started_at = segment.started_at or (run.attempts[0][0] if run.attempts else "")
    gone_since = (segment.ended_at or records.now()) if run.state is State.UNKNOWN else ""
    host = run.attempts[-1][3] if run.attempts else segment.host
    return replace(segment, started_at=started_at, ended_at=gone_since, host=host)


def _timed(segment: SegmentRow, run: _Run) -> SegmentRow:
    """Add the time of a try that has ended."""
    if not run.attempts:
        return segment
    started_at, ended_at, _, host = (*run.attempts[0][:1], *run.attempts[-1][1:])
    wall_s = segment.wall_s + sum(wall for _, _, wall, _ in run.attempts)
    return replace(segment, started_at=segment.started_at or started_at, ended_at=ended_at, host=host, wall_s=wall_s)


def _closed(
    segment: SegmentRow, run: _Run, outcome: Outcome, reason: str, wake: int, fidelity: float | None
) -> SegmentRow:
    timed = _timed(segment, run)
    cost = timed.wall_s if fidelity is None else fidelity
    return replace(
        timed,
        outcome=outcome.value,
        value=run.last if outcome is Outcome.OK else None,
        cost=0.0 if outcome is Outcome.LOST else cost,
        told=wake,
        reason=reason,
        points=run.n,
        last_step=run.last_step,
    )


def fidelity_cost(spec: StudySpec, segment: SegmentRow, *, is_first: bool) -> float | None:
    """Return what a segment, the first of its trial or a later one, spends of the fidelity; None without one."""
    if spec.fidelity is None or segment.budget is None:
        return None
    return segment.budget - (0.0 if is_first else spec.fidelity.rungs[segment.rung - 1])


def seconds(start: str, end: str) -> float:
    """Return the seconds between two times as :func:`ems.node.records.now` writes them."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _load(store: Store, spec: StudySpec, numbers: Sequence[int]) -> dict[int, _Run]:
    asked = json.dumps(list(numbers))
    attempts: dict[int, list[tuple[str, str, float, str]]] = {}
    for index, *facts in store.query(_ATTEMPTS, [spec.id, asked]):
        attempts.setdefault(index, []).append((facts[0], facts[1], facts[2] or 0.0, facts[3]))
    found = {}
    for index, state, slurm_state, reason, chunk, settled, n, *last in store.query(
        _RUNS, [spec.id, spec.metric, asked]
    ):
        facts = [State(state), slurm_state, reason, chunk, bool(settled), n or 0, *last, attempts.get(index, ())]
        found[index] = _Run(*facts)
    return found


_RUNS = """
SELECT r.idx, r.state, r.slurm_state, r.reason, r.chunk, r.settled, s.n, s.last, s.last_text, s.last_step
FROM runs r LEFT JOIN summaries s
    ON s.run_id = r.id AND s.metric_id = (SELECT id FROM metrics WHERE name = ?2) AND s.n > 0
WHERE r.experiment_id = ?1 AND r.idx IN (SELECT value FROM json_each(?3))
"""
_ATTEMPTS = """
SELECT r.idx, a.started_at, a.ended_at, a.wall_s, a.host
FROM runs r JOIN attempts a ON a.run_id = r.id AND a.chunk = r.chunk
WHERE r.experiment_id = ?1 AND r.idx IN (SELECT value FROM json_each(?2)) ORDER BY r.idx, a.attempt
"""
