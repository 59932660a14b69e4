"""One wake of a study's driver: look at what ended, decide, write it down, hand it over.

Nothing is kept between wakes but the driver's store, ``study.db``, and a wake may be killed anywhere: all that it
learnt and decided is one transaction; what that transaction asks for is then written to disk and submitted, and where
that was cut off the next wake does it first. Only who holds ``driver.lock`` writes, and the transaction checks besides
that no other wake came between, for file systems without locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ems import harvest
from ems.errors import EmsError, NotFoundError
from ems.executor.base import Executor, Limits, writing_to
from ems.model import Experiment, JobInfo
from ems.node import feed, records
from ems.node.records import ExperimentFiles
from ems.search.trial import Outcome, Promote, Start, Stop
from ems.store import Store, studies
from ems.store.studies import FAILED, FINISHED, RUNNING, SegmentRow, TrialRow, WakeRow
from ems.study import budget, buffer, handover, ledger, outcomes, rules, wishes
from ems.study.clock import Clock
from ems.study.rows import STORE
from ems.study.spec import StudySpec

if TYPE_CHECKING:
    from ems.search.trial import Decisions

_LIMITS_HOLD = 50  # wakes for which the limits of the scheduler are not asked for again
_OWN_JOBS = 2  # of the driver: one that runs and the one that comes next, which count as the user's, too
MAX_FAILURES = 5  # wakes that fail one after another before the driver gives up


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
    wake: int = 0
    told: int = 0
    asked: int = 0
    running: int = 0
    state: str = RUNNING
    reason: str = ""
    next_s: float | None = 1.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    calls: int = 0
    trouble: str = ""


def wake(root: Path, study_id: str, executor: Executor, clock: Clock) -> WakeReport:
    """Wake the driver of a study once, where its root is; see the module. Safe at any moment, from several places.

    Raises
    ------
    NotFoundError
        If its files are gone.
    EmsError
        If it cannot be done: the next wake carries on, and after some in a row that failed the study has.
    """
    files = ExperimentFiles(root, study_id)
    if not Path(files.study).exists():
        raise NotFoundError(
            f"the files by which the study {study_id} goes on are not in {files.dir}",
            f"`ems rm {study_id}` ends it for good, and keeps what was harvested",
        )
    with writing_to(root), _alone(files) as is_alone:
        if not is_alone:
            records.call_driver(files)  # the one that is awake looks once more
            return WakeReport(study_id)
        with Store(Path(files.dir, STORE)) as store:
            try:
                report = _Wake(store, files, executor, clock.lag_s).run()
            except Exception as error:
                _note_failure(store, study_id, error)
                raise
    if report.next_s is None:
        clock.stop()
    else:
        clock.start(report.next_s)
    return report


@contextlib.contextmanager
def _alone(files: ExperimentFiles) -> Iterator[bool]:
    """Hold the driver's lock; yield whether it could be had. A file system without locks goes without."""
    with Path(files.dir, "driver.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True


def _note_failure(store: Store, study_id: str, error: Exception) -> None:
    """Count a wake that failed; after some in a row say that the study has, and why."""
    said = error.message if isinstance(error, EmsError) else f"{type(error).__name__}: {error}"
    with contextlib.suppress(EmsError), store.write() as db:
        db.execute("UPDATE studies SET failures = failures + 1 WHERE id = ?", [study_id])
        db.execute(
            "UPDATE studies SET state = ?, next_wake = '', reason = 'the driver failed ' || failures || ' times: ' || ?"
            " WHERE id = ? AND failures >= ?",
            [FAILED, said, study_id, MAX_FAILURES],
        )


@dataclass
class _Changes:
    """What a wake is going to write, all at once."""

    trials: list[TrialRow] = field(default_factory=list)
    segments: dict[tuple[int, int], SegmentRow] = field(default_factory=dict)
    asked: list[SegmentRow] = field(default_factory=list)

    def put(self, parts: Sequence[SegmentRow]) -> None:
        """Write these in place of those of the same trial and rung."""
        self.segments.update({(each.number, each.rung): each for each in parts})


class _Wake:
    """One wake, with the lock held."""

    def __init__(self, store: Store, files: ExperimentFiles, executor: Executor, lag_s: float) -> None:
        self._began, self._cpu = time.monotonic(), time.process_time()
        self._store, self._files, self._lag_s = store, files, lag_s
        self._executor, self._calls = executor, 0
        self._experiment = Experiment.load(records.read_json(files.spec) or {})
        self._row = ledger.open_study(store, files, self._experiment)
        self._spec = StudySpec.load(self._row.spec)
        self._number = self._row.wakes + 1
        self._changes = _Changes()

    def run(self) -> WakeReport:
        """Do all that is due."""
        wished = wishes.pending(self._store, self._files, self._spec.id)
        before = self._row
        self._row, self._spec, is_now = wishes.apply(self._row, self._spec, wished, self._number)
        if before.is_finished and self._row.is_finished:
            self._commit(0, 0, wished, is_changed=False)  # a larger budget counts once it is resumed
            wishes.forget(self._files, wished)
            return self._report(0, 0, [], next_s=None)
        handover.write(self._store, self._spec, self._experiment, self._files)
        done = harvest.harvest(self._store, Path(self._files.root), self._ask_scheduler, [self._spec.id])
        parts = studies.segments(self._store, self._spec.id)
        parts = self._without_use(parts) if is_now else parts
        told = outcomes.tell(self._store, self._spec, parts, self._number, self._executor.name)
        parts = self._learn(parts, told)
        free = self._free(parts) if done.trouble is None else 0
        self._decide(parts, free)
        self._commit(len(told.ended), free, wished, is_changed=self._row != before)
        wishes.forget(self._files, wished)
        return self._carry_out(len(told.ended), done.trouble)

    def _ask_scheduler(self, jobs: Iterable[str]) -> dict[str, JobInfo]:
        self._calls += 1
        return self._executor.refresh(jobs)

    # ---------------------------------------------------------------------------------------- learning

    def _learn(self, parts: list[SegmentRow], told: outcomes.Told) -> list[SegmentRow]:
        """Take in outcomes and what follows from them; return all segments as they stand."""
        curves = rules.curves(self._store, self._spec) if self._spec.scheduler == "stop" else {}
        self._curves = curves
        old = {(each.number, each.rung): each for each in parts}
        passed = rules.passed(self._spec, told.ended, curves)
        changed = [*told.ended, *passed, *(each for each in told.waiting if each != old[each.number, each.rung])]
        self._changes.put(changed)
        self._ask_again(told.again)
        parts = self._merged(parts)
        if not self._row.ending:
            ending, reason, is_now = rules.verdict(self._store, self._spec, self._row, parts)
            self._row = replace(self._row, ending=ending, reason=reason) if ending else self._row
            parts = self._without_use(parts) if is_now else parts
        return parts

    def _without_use(self, parts: Sequence[SegmentRow]) -> list[SegmentRow]:
        """Have all that is pending cancelled."""
        waiting = [each for each in parts if each.is_pending and not each.reason]
        self._changes.put([replace(each, reason=self._row.reason or "stopped") for each in waiting])
        return self._merged(parts)

    def _ask_again(self, lost: Sequence[SegmentRow]) -> None:
        """Queue what a machine lost; where nothing goes on any more, give it up."""
        if not self._row.ending:
            self._ask([replace(each, tries=each.tries + 1) for each in lost])
            return
        self._changes.put([replace(each, outcome=Outcome.LOST, told=self._number, reason="lost") for each in lost])

    def _merged(self, parts: Sequence[SegmentRow]) -> list[SegmentRow]:
        every = {(each.number, each.rung): each for each in parts} | self._changes.segments
        return [every[key] for key in sorted(every)]

    # ---------------------------------------------------------------------------------------- deciding

    def _free(self, parts: Sequence[SegmentRow]) -> int:
        """Return how many segments may be asked for now."""
        if self._row.ending or feed.is_held(self._files):
            return 0
        ahead = buffer.size(self._spec.parallel, self._lag_s, buffer.mean_run_s(parts))
        return max(0, self._spec.parallel + ahead - sum(each.is_pending for each in parts))

    def _decide(self, parts: Sequence[SegmentRow], free: int) -> None:
        """Decide what to ask for, and whether the study is over."""
        if not self._row.ending and (free or self._curves):
            decided = self._decided(parts, free)
            for action in decided.actions:
                self._take(action, parts)
            if decided.finished:
                used = budget.describe(self._spec, self._experiment, parts)
                said = decided.finished.rstrip(". ")
                self._row = replace(self._row, ending=FINISHED, reason=f"{said} ({used})" if used else said)
        if self._row.ending and not any(each.is_pending for each in self._merged(parts)):
            self._row = replace(self._row, state=self._row.ending, ending="")

    def _decided(self, parts: Sequence[SegmentRow], free: int) -> Decisions:
        from ems.search.decide import decide  # noqa: PLC0415  # numpy and scipy: not where nothing is decided

        rows = studies.trial_rows(self._store, self._spec.id)
        known = studies.build(rows, parts, self._spec.sign)
        self._n_trials = 1 + max((each.number for each in rows), default=-1)
        spent = budget.share(self._spec, self._experiment, parts)
        return decide(self._spec.problem(), known, free, self._n_trials, self._curves or None, spent=spent)

    def _take(self, action: Start | Promote | Stop, parts: Sequence[SegmentRow]) -> None:
        """Turn a decision into rows."""
        if isinstance(action, Stop):
            pending = [each for each in parts if each.number == action.number and each.is_pending]
            self._changes.put([replace(each, reason=action.reason) for each in pending])
        elif isinstance(action, Promote):
            self._ask([ledger.segment(self._spec, action.number, action.rung, self._number)])
        else:
            self._changes.trials.append(ledger.trial(self._spec, self._n_trials, action, self._number))
            self._ask([ledger.segment(self._spec, self._n_trials, action.rung, self._number)])
            self._n_trials += 1

    def _ask(self, asked: Sequence[SegmentRow]) -> None:
        self._changes.asked += asked

    # ---------------------------------------------------------------------------------------- writing

    def _commit(self, n_told: int, free: int, wished: Sequence[wishes.Wish], *, is_changed: bool) -> None:
        """Write all that was learnt and decided: afterwards it is known, whatever becomes of this process."""
        asked = self._changes.asked
        if asked:
            last = max((each.chunk for each in studies.segments(self._store, self._spec.id)), default=0)
            chunks = handover.number_chunks(self._experiment, self._files, asked, self._limits(), last)
            self._changes.put([replace(each, chunk=chunks[each.number]) for each in asked])
        is_news = bool(n_told or asked or wished or is_changed)
        if is_news or self._changes.segments:
            note = WakeRow(self._number, records.now(), 0.0, 0.0, n_told, len(asked), free, 0, "")
            ledger.commit(
                self._store,
                self._row,
                self._spec,
                trials=self._changes.trials,
                segments=list(self._changes.segments.values()),
                wake=note if is_news else None,
                wishes=[each.name for each in wished],
            )

    def _limits(self) -> Limits:
        """Return how large chunks may be, as the scheduler said some wakes ago."""
        known = self._row.cache.get("limits")
        if known is None or self._number % _LIMITS_HOLD == 1:
            limits = self._executor.limits()
            self._calls, known = self._calls + 1, [limits.max_array_size, limits.max_submit]
            self._row = replace(self._row, cache={**self._row.cache, "limits": known})
        array_size, submit = known
        return Limits(array_size, None if submit is None else max(1, submit - _OWN_JOBS))

    def _carry_out(self, n_told: int, trouble: EmsError | None) -> WakeReport:
        """Write and submit what the store asks for."""
        self._experiment = handover.follow(self._spec, self._experiment, self._files)
        handover.write(self._store, self._spec, self._experiment, self._files)
        parts = studies.segments(self._store, self._spec.id)
        if trouble is None:  # else it would refuse
            self._calls += handover.stop(self._executor, self._files, parts) > 0
            if feed.waiting(self._files):
                self._calls += 1
                self._executor.submit(self._experiment, self._files)
        run_s = buffer.mean_run_s(parts)
        next_s = self._spec.wake_s or buffer.patience_s(run_s, self._spec.scheduler == "stop")
        said = trouble.message if trouble is not None else ""
        report = self._report(
            n_told, len(self._changes.asked), parts, next_s=None if self._row.is_finished else next_s, trouble=said
        )
        cost = (report.wall_s, report.cpu_s, report.calls)
        ledger.close_wake(self._store, self._row.id, self._number, cost, report.next_s)
        return report

    def _report(
        self, told: int, asked: int, parts: Sequence[SegmentRow], next_s: float | None, trouble: str = ""
    ) -> WakeReport:
        return WakeReport(
            study_id=self._spec.id,
            wake=self._number,
            told=told,
            asked=asked,
            running=sum(each.is_pending for each in parts),
            state=self._row.state,
            reason=self._row.reason,
            next_s=next_s,
            wall_s=time.monotonic() - self._began,
            cpu_s=time.process_time() - self._cpu,
            calls=self._calls,
            trouble=trouble,
        )
