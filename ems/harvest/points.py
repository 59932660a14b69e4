"""Points of metrics into the store: which file a metric belongs to, and its summary, kept up as points arrive.

The result depends only on what the files hold, never on when or how often they were read: a summary is the fold of a
run's current points in order of step, whether it was made at once or in pieces.

A metric that several files of a run have under the same name belongs to the first of them (by kind, then by path).
What a script prints under that name is then left out; other files keep theirs as ``FILE/NAME``.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ems.harvest.readers import Point

PRINTED = ("8", "9")  # kinds of sources; the smaller digit goes first, see ems.harvest.intake


@dataclass(slots=True)
class Source:
    """How far a file has been read. ``key`` is its kind's digit and its path below the run's directory."""

    key: str
    offset: int = 0
    size: int = 0
    mtime_ns: int = 0
    fingerprint: str = ""
    attempt: int = 0
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Fold:
    """A summary that can be continued."""

    source: str
    n: int = 0
    n_nan: int = 0
    n_text: int = 0
    last: float | None = None
    last_text: str | None = None
    last_step: float = -math.inf
    low: float | None = None
    high: float | None = None
    total: float | None = 0.0

    def extend(self, points: Iterable[Point], chain: frozenset[int]) -> bool:
        """Add points that follow in order of step; return False, half done, where they do not."""
        for attempt, step, value, text, _ in points:
            if attempt not in chain:
                continue
            if step <= self.last_step:
                return False
            self.n += 1
            self.last, self.last_text, self.last_step = value, text, step
            if value is None:
                if text == "NaN":
                    self.n_nan += 1
                else:
                    self.n_text += 1
                continue
            self.total = math.nan if self.total is None else self.total + value  # NULL is a sum of inf and -inf
            if self.low is None or value < self.low:
                self.low = value
            if self.high is None or value > self.high:
                self.high = value
        return True


@dataclass(slots=True)
class Batch:
    """What was read of one file: its new position, its points by metric, and whether all earlier ones are void."""

    source: Source
    points: Mapping[str, list[Point]]
    is_anew: bool = False
    is_gone: bool = False


@dataclass(slots=True)
class RunState:
    """What the store knows of one run while its files are read."""

    id: int
    index: int
    params: Mapping[str, Any]
    state: str
    version: int
    has_ended: bool
    chain_used: str  # the attempts of which the summaries were made
    was_settled: bool
    is_gone: bool  # the scheduler has said for a while that it is over
    # attempt, resumed_from, stdout_from, stderr_from
    attempts: list[tuple[int, int | None, int, int]] = field(default_factory=list)
    sources: dict[str, Source] = field(default_factory=dict)
    folds: dict[str, Fold] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    is_settled: bool = False

    @property
    def has_new_chain(self) -> bool:
        """Whether other attempts count than those of which the summaries were made."""
        return self.chain_used != _listed(self.chain)

    @property
    def last_attempt(self) -> int:
        """Number of the newest attempt, 0 before the first."""
        return self.attempts[-1][0] if self.attempts else 0

    @property
    def chain(self) -> frozenset[int]:
        """The last attempt, those that it resumed from, and 0 for files that belong to the run as a whole."""
        resumed = {attempt: source for attempt, source, *_ in self.attempts}
        found, current = {0}, self.last_attempt or None
        while current is not None and current not in found:
            found.add(current)
            current = resumed.get(current)
        return frozenset(found)


def load(db: sqlite3.Connection, run_ids: Sequence[int], gone_before: float) -> list[RunState]:
    """Read what is known of some runs, as of one moment; ``gone_before`` (unix time) is for RunState.is_gone."""
    ids = [json.dumps(list(run_ids))]
    db.execute("BEGIN")
    try:
        runs = {}
        for row in db.execute(_RUNS, [*ids, gone_before]):
            values = [*row[:2], json.loads(row[2]), *row[3:]]
            runs[row[0]] = RunState(*values)
        for run_id, *attempt in db.execute(_ATTEMPTS, ids):
            runs[run_id].attempts.append(tuple(attempt))
        for run_id, key, *position, state in db.execute(_SOURCES, ids):
            values = [key, *position, json.loads(state)]
            runs[run_id].sources[key] = Source(*values)
        for run_id, name, *fold in db.execute(_FOLDS, ids):
            runs[run_id].folds[name] = Fold(*fold)
    finally:
        db.execute("COMMIT")
    return list(runs.values())


_RUNS = """
SELECT r.id, r.idx, r.params, r.state, r.version,
       coalesce(a.ended_at != '' AND a.reason != 'terminated by SLURM', 0), r.chain, r.settled,
       coalesce(r.gone_since, 9e99) < ?2
FROM runs r LEFT JOIN attempts a ON a.run_id = r.id AND a.attempt = r.attempt
WHERE r.id IN (SELECT value FROM json_each(?1)) ORDER BY r.id
"""
_ATTEMPTS = """
SELECT run_id, attempt, resumed_from, stdout_from, stderr_from FROM attempts
WHERE run_id IN (SELECT value FROM json_each(?)) ORDER BY run_id, attempt
"""
_SOURCES = """
SELECT run_id, path, offset, size, mtime_ns, fingerprint, attempt, state FROM sources
WHERE run_id IN (SELECT value FROM json_each(?))
"""
_FOLDS = """
SELECT s.run_id, m.name, s.source, s.n, s.n_nan, s.n_text, s.last, s.last_text, s.last_step, s.min, s.max, s.sum
FROM summaries s JOIN metrics m ON m.id = s.metric_id WHERE s.run_id IN (SELECT value FROM json_each(?))
"""
_CURRENT = """
SELECT max(attempt), step, value, text, NULL FROM points
WHERE run_id = ? AND metric_id = ? AND attempt IN (SELECT value FROM json_each(?)) GROUP BY step ORDER BY step
"""


class Writer:
    """Applies what was read to the store, inside one transaction of the caller's.

    Parameters
    ----------
    db
        Connection with an open transaction.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._ids: dict[str, int] = dict(db.execute("SELECT name, id FROM metrics"))
        self.n_points = 0
        self.has_new_names = False

    def apply(self, run: RunState) -> bool:
        """Write the batches of a run; False, and nothing written, if somebody else has changed it since it was read."""
        claimed = self._db.execute(
            "UPDATE runs SET version = version + 1, settled = ?, chain = ? WHERE id = ? AND version = ?",
            [run.is_settled, _listed(run.chain), run.id, run.version],
        )
        if not claimed.rowcount:
            return False
        dirty = set(run.folds) if run.has_new_chain else set()
        touched = set(dirty)
        for batch in run.batches:
            if batch.is_anew:
                self._forget(run, batch.source.key)
            self._write_source(run, batch)
            for name, points in batch.points.items():
                final = self._own(run, batch.source.key, name)
                if final is not None and points:
                    self._insert(run, final, points)
                    touched.add(final)
                    if not run.folds[final].extend(points, run.chain):
                        dirty.add(final)
        for name in dirty & run.folds.keys():
            self._fold_again(run, name)
        self._write_folds(run, touched & run.folds.keys())
        return True

    def _metric(self, name: str) -> int:
        if name not in self._ids:
            self._db.execute("INSERT OR IGNORE INTO metrics (name) VALUES (?)", [name])
            self._ids[name] = self._db.execute("SELECT id FROM metrics WHERE name = ?", [name]).fetchone()[0]
            self.has_new_names = True
        return self._ids[name]

    def _forget(self, run: RunState, key: str) -> None:
        """Drop all points that came from one file."""
        for name in [name for name, fold in run.folds.items() if fold.source == key]:
            self._drop(run, name)

    def _drop(self, run: RunState, name: str) -> None:
        for table in ("points", "summaries"):
            # a constant of this line
            self._db.execute(f"DELETE FROM {table} WHERE run_id = ? AND metric_id = ?", [run.id, self._metric(name)])  # noqa: S608
        del run.folds[name]

    def _own(self, run: RunState, key: str, name: str) -> str | None:
        """Return under which name the file ``key`` keeps a metric, None if it does not; see the module."""
        name = name.encode("utf-8", "replace").decode()
        fold = run.folds.get(name)
        if fold is None:
            run.folds[name] = Fold(key)
        elif key < fold.source:
            self._hand_over(run, name, fold)
            run.folds[name] = Fold(key)
        elif key > fold.source:
            name = _qualified(key, name)
            if key.startswith(PRINTED):
                return None
            run.folds.setdefault(name, Fold(key))
        return name

    def _hand_over(self, run: RunState, name: str, fold: Fold) -> None:
        if fold.source.startswith(PRINTED):
            self._drop(run, name)
            return
        new = _qualified(fold.source, name)
        for table in ("points", "summaries"):
            self._db.execute(
                f"UPDATE OR REPLACE {table} SET metric_id = ? WHERE run_id = ? AND metric_id = ?",  # noqa: S608  # as above
                [self._metric(new), run.id, self._metric(name)],
            )
        run.folds[new] = run.folds.pop(name)

    def _insert(self, run: RunState, name: str, points: list[Point]) -> None:
        head = (run.id, self._metric(name))
        self._db.executemany(
            "INSERT OR REPLACE INTO points (run_id, metric_id, attempt, step, value, text, at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [head + point for point in points],
        )
        self.n_points += len(points)

    def _fold_again(self, run: RunState, name: str) -> None:
        fold = Fold(run.folds[name].source)
        rows = self._db.execute(_CURRENT, [run.id, self._metric(name), json.dumps(sorted(run.chain))])
        fold.extend(rows, run.chain)
        run.folds[name] = fold

    def _write_folds(self, run: RunState, names: Iterable[str]) -> None:
        folds = [(run.folds[name], self._metric(name)) for name in sorted(names)]
        self._db.executemany(
            "INSERT OR REPLACE INTO summaries (run_id, metric_id, source, n, n_nan, n_text, last, last_text, last_step,"
            " min, max, sum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    run.id,
                    metric,
                    f.source,
                    f.n,
                    f.n_nan,
                    f.n_text,
                    f.last,
                    f.last_text,
                    f.last_step,
                    f.low,
                    f.high,
                    f.total,
                )
                for f, metric in folds
            ],
        )

    def _write_source(self, run: RunState, batch: Batch) -> None:
        source = batch.source
        if batch.is_gone:
            self._db.execute("DELETE FROM sources WHERE run_id = ? AND path = ?", [run.id, source.key])
            return
        self._db.execute(
            "INSERT OR REPLACE INTO sources (run_id, path, offset, size, mtime_ns, fingerprint, attempt, state)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                *(run.id, source.key, source.offset, source.size, source.mtime_ns, source.fingerprint),
                *(source.attempt, json.dumps(source.state)),
            ],
        )


def _qualified(key: str, name: str) -> str:
    path = key[1:]
    return f"{path.removeprefix('files/')}/{name}"


def _listed(chain: frozenset[int]) -> str:
    return ",".join(map(str, sorted(chain)))
