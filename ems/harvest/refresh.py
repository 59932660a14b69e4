"""The states of runs into the store: one look at their records, and one question to the scheduler for all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from ems.errors import EmsError
from ems.harvest.verdict import Place, Verdict, decide, has_ended, needs_scheduler, of_shared_jobs
from ems.model import JobInfo, Run, State
from ems.node import records
from ems.node.feed import CANCELLED, job_of
from ems.node.job import BUDGET
from ems.node.records import ExperimentFiles, Record
from ems.store import Store, wide

Refresh: TypeAlias = "Callable[[Iterable[str]], dict[str, JobInfo]]"


def present(store: Store, root: Path, exp_ids: Collection[str] | None) -> list[str]:
    """Return the experiments, of those asked for, whose files are below ``root``, the oldest first."""
    removed = store.removed()
    ids = [each for each in store.ids() if (exp_ids is None or each in exp_ids) and each not in removed]
    return [each for each in ids if (Path(root) / "experiments" / each / "spec.json").is_file()]


def refresh_states(
    store: Store,
    root: Path,
    refresh: Refresh | Mapping[str, Refresh],
    exp_ids: Collection[str] | None = None,
    problems: list[str] | None = None,
) -> None:
    """Bring the states of runs up to date, without their metrics.

    Raises
    ------
    ExecutorError
        If the scheduler cannot be reached; what the workers recorded is in the store all the same.
    """
    looks = [_Look(store, ExperimentFiles(root, exp_id), problems) for exp_id in present(store, root, exp_ids)]
    looks = [look for look in looks if look.open()]
    trouble: EmsError | None = None
    asked: dict[str, set[str]] = {}
    for look in looks:
        asked.setdefault(look.executor, set()).update(look.jobs())
    answers: dict[str, dict[str, JobInfo] | None] = {}
    for executor, jobs in asked.items():
        ask = refresh.get(executor) if isinstance(refresh, Mapping) else refresh
        try:
            answers[executor] = ask(sorted(jobs)) if ask is not None and jobs else None if jobs else {}
        except EmsError as error:
            trouble, answers[executor] = error, None
    for look in looks:
        look.write(answers[look.executor])
    if trouble is not None:
        raise trouble


@dataclass(slots=True)
class _Row:
    """A run that is not settled, as the store has it, and the attempt records that are new."""

    id: int
    index: int
    verdict: Verdict
    chunk: int
    attempt: int
    version: int
    gone_since: float | None
    ended: frozenset[int]  # attempts whose end is in the store
    place: Place
    records: dict[int, Record]

    def current(self) -> Record | None:
        """Return the last attempt of the newest chunk, None where that has not started the run."""
        last = self.records[max(self.records)] if self.records else None
        return last if last is not None and last.get("chunk", 0) >= self.chunk else None

    def has_news(self) -> bool:
        """Whether an attempt has begun or ended, or the first look after the scheduler's word of the end."""
        is_gone = self.verdict.state.is_finished and not has_ended(self.current())
        return is_gone != (self.gone_since is not None) or any(
            number > self.attempt or (record.get("ended_at") and number not in self.ended)
            for number, record in self.records.items()
        )


class _Look:
    """One look at the states of one experiment."""

    def __init__(self, store: Store, files: ExperimentFiles, problems: list[str] | None) -> None:
        self._store, self._files = store, files
        self._problems = problems if problems is not None else []
        self._rows: list[_Row] = []
        self._spent: dict[int, bool] = {}  # by chunk: whether its budget was
        self.executor = ""

    def open(self) -> bool:
        """Learn of new runs, chunks and attempts; return whether any run is not settled."""
        self._register_runs()
        self._register_chunks()
        rows = self._store.query(_UNSETTLED, [self._files.id])
        if not rows:
            return False
        self.executor = self._store.query("SELECT executor FROM experiments WHERE id = ?", [self._files.id])[0][0]
        places = _Places(self._files)
        started = self._started()
        for run_id, index, state, slurm_state, reason, chunk, attempt, version, gone_since, ended in rows:
            row = _Row(
                *(run_id, index, Verdict(State(state), slurm_state, reason), chunk, attempt, version, gone_since),
                *(frozenset(json.loads(ended)) if ended != "[]" else _NONE, places.of(chunk, index), {}),
            )
            self._rows.append(row)
            if index in started:
                self._read_records(row)
        return True

    def _started(self) -> set[int]:
        try:
            return {int(entry.name) for entry in Path(self._files.dir, "runs").iterdir() if entry.name.isdigit()}
        except FileNotFoundError:
            return set()

    def _register_runs(self) -> None:
        """Add the runs that the experiment got since: those of a study are chosen while it goes on."""
        (known,) = self._store.query("SELECT n_runs FROM experiments WHERE id = ?", [self._files.id])[0]
        if records.count_runs(self._files) > known:
            self._store.extend(self._files.id, map(Run.load, records.iterate_runs(self._files, known)))

    def _register_chunks(self) -> None:
        """Make the runs of chunks that the store has not heard of PENDING."""
        numbers = self._files.chunk_numbers()
        known = self._store.query("SELECT max(chunk) FROM runs WHERE experiment_id = ?", [self._files.id])[0][0] or 0
        new = [number for number in numbers if number > known]
        if not new:
            return
        with self._store.write() as db:
            for number in new:
                chunk = records.read_json(self._files.chunk(number))
                if chunk is None:
                    continue
                indices = records.chunk_indices(chunk)
                values = [number, self._files.id, number]
                if isinstance(indices, range):
                    db.execute(_QUEUE_RANGE, [*values, indices.start, indices.stop])
                else:
                    db.execute(_QUEUE_LIST, [*values, json.dumps(indices)])

    def _read_records(self, row: _Row) -> None:
        """Read the attempts whose end is not in the store."""
        for number in self._files.attempt_numbers(row.index):
            if number in row.ended and number != row.attempt:
                continue
            path = self._files.attempt(row.index, number)
            try:
                record = records.read_json(path)
            except (OSError, ValueError) as error:
                self._problems.append(f"{self._files.id}/{row.index}/attempts/{number}.json: {error}")
                continue
            if isinstance(record, dict):
                row.records[number] = record | {"attempt": number}

    def jobs(self) -> list[str]:
        """Return what to ask the scheduler for."""
        asked = []
        for row in self._rows:
            record = row.current()
            if needs_scheduler(record, row.place):
                asked.append(row.place.key if record is None else str(record.get("job", "")))
        return [job for job in set(asked) if job and not job.startswith(CANCELLED)]

    def write(self, infos: dict[str, JobInfo] | None) -> None:
        """Decide and write what has changed."""
        if infos:
            infos = of_shared_jobs(infos, {row.place.key for row in self._rows if row.place.is_shared})
        decided = [(row, self._decide(row, infos)) for row in self._rows]
        changed = [(row, verdict) for row, verdict in decided if verdict or row.has_news()]
        if not changed:
            return
        with self._store.write() as db:
            now = time.time()
            for row, verdict in changed:
                new = verdict or row.verdict
                record = row.current()
                is_gone = new.state.is_finished and not has_ended(record)
                values: list[Any] = [new.state, new.slurm_state, new.reason, max([row.attempt, *row.records])]
                # on this machine no record can be late
                since = 0.0 if self.executor == "here" else row.gone_since or now
                values.append(since if is_gone else None)
                if db.execute(_UPDATE, [*values, row.id, row.version]).rowcount:
                    last = max(row.records, default=0)
                    verdicts = {number: new if number == last else _LOST for number in row.records}
                    db.executemany(
                        _ATTEMPT, [_attempt(row.id, row.records[number], each) for number, each in verdicts.items()]
                    )
                    self._take_params(db, row, record)

    def _decide(self, row: _Row, infos: dict[str, JobInfo] | None) -> Verdict | None:
        """Return the verdict if it is another than the store's."""
        record, by_slurm = row.current(), self.executor != "here"
        verdict = self._verdict(row, record, infos, by_slurm)
        if verdict.state is not row.verdict.state and not has_ended(record) and verdict.state is not State.PENDING:
            # the run may have ended after its record was read and before the scheduler was asked
            self._read_records(row)
            verdict = self._verdict(row, row.current(), infos, by_slurm)
        return verdict if verdict != row.verdict else None

    def _verdict(self, row: _Row, record: Record | None, infos: dict[str, JobInfo] | None, by_slurm: bool) -> Verdict:
        if record is None and row.place.job == CANCELLED:
            return Verdict(State.CANCELLED, "", "cancelled before it was submitted")
        verdict = decide(record, row.place, infos, row.verdict, by_slurm)
        if verdict.state is State.CANCELLED and not has_ended(record) and self._has_spent(row.chunk):
            return replace(verdict, reason=BUDGET)  # a worker had SLURM cancel what had not started
        return verdict

    def _has_spent(self, chunk: int) -> bool:
        """Whether a run of a chunk was refused for want of budget."""
        if chunk not in self._spent:
            new = (record for row in self._rows for record in row.records.values() if record.get("chunk") == chunk)
            self._spent[chunk] = any(record.get("reason") == BUDGET for record in new) or bool(
                self._store.query(_REFUSED, [self._files.id, chunk, BUDGET])
            )
        return self._spent[chunk]

    def _take_params(self, db: Any, row: _Row, record: Record | None) -> None:
        """Keep the actual params of loops whose values were not known when the experiment was submitted."""
        actual = record.get("params") if record else None
        if isinstance(actual, dict) and actual:
            (old,) = db.execute("SELECT params FROM runs WHERE id = ?", [row.id]).fetchone()
            new = wide.dump_params({**wide.load_params(old), **actual})
            if new != old:
                db.execute("UPDATE runs SET params = ? WHERE id = ?", [new, row.id])
                self._store.add_params(self._files.id, actual)


# what becomes of an attempt that recorded no end and was followed by another
_LOST = Verdict(State.FAILED, "", "lost: the node failed, or the worker was killed")

_NONE: frozenset[int] = frozenset()  # of most runs; JSON would take half the time of a look
_UNSETTLED = """
SELECT r.id, r.idx, r.state, r.slurm_state, r.reason, r.chunk, r.attempt, r.version, r.gone_since,
       (SELECT json_group_array(a.attempt) FROM attempts a WHERE a.run_id = r.id AND a.ended_at != '')
FROM runs r WHERE r.experiment_id = ? AND NOT r.settled ORDER BY r.idx
"""
_QUEUE_RANGE = """
UPDATE runs SET chunk = ?, state = 'PENDING', slurm_state = '', reason = '', settled = 0, gone_since = NULL,
       version = version + 1
WHERE experiment_id = ? AND chunk < ? AND idx >= ? AND idx < ?
"""
_QUEUE_LIST = _QUEUE_RANGE.replace("idx >= ? AND idx < ?", "idx IN (SELECT value FROM json_each(?))")
_UPDATE = """
UPDATE runs SET state = ?, slurm_state = ?, reason = ?, attempt = ?, gone_since = ?, version = version + 1
WHERE id = ? AND version = ?
"""
_REFUSED = """
SELECT 1 FROM attempts a JOIN runs r ON r.id = a.run_id
WHERE r.experiment_id = ? AND a.chunk = ? AND a.reason = ? LIMIT 1
"""
_ATTEMPT = """
INSERT OR REPLACE INTO attempts (run_id, attempt, chunk, state, host, pid, job, slurm_state, started_at, ended_at,
    exit_code, signal, reason, gpus, max_rss_mb, cpu_s, wall_s, resumed_from, error, stdout_from, stderr_from)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


def _attempt(run_id: int, record: Record, verdict: Verdict) -> list[Any]:
    """Return the columns of an attempt; one that recorded no end takes the run's state and reason if that has ended."""

    def text(name: str) -> str:
        return str(record.get(name) or "")

    number = record.get
    is_cut = not has_ended(record) and text("state") != "PENDING" and verdict.state.is_finished
    return [
        *(run_id, record["attempt"], number("chunk") or 0, verdict.state if is_cut else text("state") or "UNKNOWN"),
        *(text("host"), number("pid") or 0, text("job"), verdict.slurm_state, text("started_at"), text("ended_at")),
        *(number("exit_code"), text("signal"), verdict.reason if is_cut else text("reason"), text("gpus")),
        *(number("max_rss_mb"), number("cpu_s"), number("wall_s"), number("resumed_from")),
        json.dumps(number("error")) if number("error") else None,
        *(number("stdout_from") or 0, number("stderr_from") or 0),
    ]


class _Places:
    """Where the runs of an experiment stand in its chunks."""

    def __init__(self, files: ExperimentFiles) -> None:
        self._files = files
        self._chunks: dict[int, tuple[str | None, Mapping[int, int] | range, bool]] = {}

    def of(self, chunk: int, index: int) -> Place:
        """Return the job of run ``index`` in a chunk and what to ask the scheduler for."""
        if chunk not in self._chunks:
            self._chunks[chunk] = self._read(chunk)
        job, tasks, is_shared = self._chunks[chunk]
        if job is None or is_shared or job.startswith(("here", CANCELLED)):
            return Place(job, job or "", is_shared)
        task = index - tasks.start if isinstance(tasks, range) else tasks.get(index, 0)
        return Place(job, f"{job}_{task}")

    def _read(self, number: int) -> tuple[str | None, Mapping[int, int] | range, bool]:
        chunk = records.read_json(self._files.chunk(number))
        if chunk is None:
            return None, {}, False
        indices = records.chunk_indices(chunk)
        tasks = indices if isinstance(indices, range) else {index: task for task, index in enumerate(indices)}
        return job_of(self._files, number), tasks, bool(chunk.get("pack"))
