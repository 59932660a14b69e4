"""Every query of the SQLite store, ``.ems/ems.db`` in the project.

Compute nodes never open it: workers write files, and :mod:`ems.harvest` brings them here. Several ``ems`` commands
may use it at once (WAL, where the file system allows; each change is one short transaction). The truth is in the
files; ``ems harvest`` can rebuild the store from them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ems.errors import NotFoundError, StoreError
from ems.model import Attempt, Experiment, Run, State
from ems.node import records
from ems.store import journal, migrations, notebook, queries, wide
from ems.store.rows import RunRow as RunRow
from ems.store.rows import Summary as Summary
from ems.store.rows import summary

if TYPE_CHECKING:
    import pandas

BUSY_S = 30.0
BACKUP_EVERY_S = 24 * 3600.0
FOLDER = ".ems"


class Store:
    """The store in one file; use as a context manager, or :meth:`close` it.

    Parameters
    ----------
    path
        The SQLite file; made, with its folder, where it is missing.

    Raises
    ------
    StoreError
        If the file is damaged, of a newer version, or cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._wrote = False
        with self._errors(), self._file_errors():
            _make_folder(self.path.parent)
            self.db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self.db.close()
                raise

    @classmethod
    def open(cls, start: Path | None = None, make: bool = True) -> Store:
        """Open ``.ems/ems.db`` of ``start`` (default: the working directory) or of the nearest folder above it.

        Where there is none it is made in the git project's top folder, else in ``start``; unless ``make`` is false.

        Raises
        ------
        StoreError
            If there is none and none is to be made, or it cannot be used.
        """
        path = find(start or Path.cwd())
        if not make and not path.exists():
            raise StoreError(f"there is no store in {start or Path.cwd()} or above it", "ems parrun SCRIPT makes one")
        return cls(path)

    def _prepare(self) -> None:
        self.db.execute("PRAGMA foreign_keys = ON")
        self.db.execute("PRAGMA synchronous = NORMAL")
        newer = migrations.unknown(self.db)
        if newer:
            raise StoreError(
                f"the store {self.path} was written by a newer ems (it has {newer[-1]})", "pip install --upgrade ems"
            )
        if migrations.is_current(self.db):
            return
        with (self.path.parent / "ems.lock").open("w") as lock:
            # two first commands at once: the second finds nothing left to do
            fcntl.flock(lock, fcntl.LOCK_EX)
            if migrations.is_current(self.db):
                return
            if migrations.applied(self.db):
                self.backup()
            self.db.execute(f"PRAGMA journal_mode = {journal.mode(self.path.parent)}")
            migrations.apply(self.db)
            with self.write():
                self.refresh_wide()

    def close(self) -> None:
        """Close the file; keep a copy of it first where the last is older than a day."""
        if self._wrote and self._backup_is_due():
            with contextlib.suppress(StoreError, OSError):
                self.backup()
        self.db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the copy that is kept

    @property
    def backup_path(self) -> Path:
        """Where the last good copy is."""
        return self.path.with_name(self.path.name + ".backup")

    def _backup_is_due(self) -> bool:
        try:
            return time.time() - self.backup_path.stat().st_mtime > BACKUP_EVERY_S
        except FileNotFoundError:
            return True

    def backup(self) -> None:
        """Copy the store to :attr:`backup_path`, whole or not at all.

        Raises
        ------
        StoreError
            If the store is damaged, or the copy cannot be written; the last good copy stays.
        """
        aside = self.backup_path.with_suffix(f".{os.getpid()}.aside")
        try:
            with self._errors(), contextlib.closing(sqlite3.connect(aside)) as copy:
                self.db.backup(copy)
                found = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
                if found != "ok":
                    raise StoreError(
                        f"the store {self.path} is damaged ({found})", f"{self.backup_path} is a good copy"
                    )
            aside.replace(self.backup_path)
        finally:
            aside.unlink(missing_ok=True)

    # -- transactions and errors

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is in the store afterwards, or nothing."""
        with self._errors():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                # a full disk has rolled back already
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise
        self._wrote = True

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        """Return all rows of a SELECT, as tuples."""
        with self._errors():
            return self.db.execute(sql, parameters).fetchall()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._explain(error) from error

    @contextlib.contextmanager
    def _file_errors(self) -> Iterator[None]:
        """Of the store's own files; never around what others hand in, whose files may fail as well."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"the store {self.path} cannot be used: {error.strerror or error}",
                f"{self.path.parent} must be a folder that you may write; else copy the project to where you may",
            ) from error

    def _explain(self, error: sqlite3.Error) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            kept = f"; a copy from {_age(self.backup_path)} is {self.backup_path}" if self.backup_path.exists() else ""
            put_back = f"cp {self.backup_path} {self.path}; " if kept else ""
            return StoreError(
                f"the store {self.path} is damaged ({error}){kept or '; there is no backup of it yet'}",
                f"mv {self.path} {self.path}.damaged; rm -f {self.path}-wal {self.path}-shm; {put_back}ems harvest\n"
                "(ems harvest brings back every experiment from its own files)",
            )
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreError(f"the store {self.path} is busy: another ems writes to it", "try again in a moment")
        if code == sqlite3.SQLITE_FULL:
            return StoreError(f"the disk of the store {self.path} is full", "free some space, then repeat the command")
        hint = ""
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PROTOCOL):
            hint = "see dmesg for the disk; on a network file system, file locks must work: ask who runs it"
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            hint = f"see that {self.path.parent} and the files in it can be written: ls -la {self.path.parent}"
        return StoreError(f"the store {self.path} cannot be used: {error}", hint)

    # -- experiments

    def add(self, experiment: Experiment, runs: Iterable[Run]) -> None:
        """Write an experiment and its runs down, all PENDING. Nothing happens where it is there already."""
        with self.write() as db:
            if db.execute("SELECT 1 FROM experiments WHERE id = ?", [experiment.id]).fetchone():
                return
            spec = dataclasses.asdict(experiment)
            db.execute(queries.ADD, [*(spec[name] for name in _COLUMNS), records.dump(spec)])
            names: dict[str, tuple[str, ...]] = {}
            db.executemany(
                "INSERT INTO runs (experiment_id, idx, params, seed, key, loops) VALUES (?, ?, ?, ?, ?, ?)",
                (_run_values(experiment.id, run, names) for run in runs),
            )
            self._add_names(experiment.id, names)

    def extend(self, exp_id: str, runs: Iterable[Run]) -> None:
        """Add the runs that an experiment has got since, all PENDING; those that are there already stay."""
        names: dict[str, tuple[str, ...]] = {}
        values = [_run_values(exp_id, run, names) for run in runs]
        with self.write() as db:
            db.executemany(
                "INSERT OR IGNORE INTO runs (experiment_id, idx, params, seed, key, loops) VALUES (?, ?, ?, ?, ?, ?)",
                values,
            )
            (count,) = db.execute("SELECT count(*) FROM runs WHERE experiment_id = ?", [exp_id]).fetchone()
            (spec,) = db.execute("SELECT spec FROM experiments WHERE id = ?", [exp_id]).fetchone()
            spec = records.dump({**json.loads(spec), "n_runs": count})
            db.execute("UPDATE experiments SET n_runs = ?, spec = ? WHERE id = ?", [count, spec, exp_id])
            self._add_names(exp_id, names)

    def add_params(self, exp_id: str, params: Mapping[str, object]) -> None:
        """Note the names of params that a run turned out to have. Call it inside :meth:`write`."""
        self._add_names(exp_id, wide.flatten(params))

    def _add_names(self, exp_id: str, names: Mapping[str, tuple[str, ...]]) -> None:
        values = [(exp_id, name, wide.json_path(path)) for name, path in names.items()]
        self.db.executemany("INSERT OR IGNORE INTO params VALUES (?, ?, ?)", values)
        self.refresh_wide()

    def refresh_wide(self) -> None:
        """Give ``runs_wide`` the columns that there are now. Call it inside :meth:`write`."""
        params = self.db.execute(
            "SELECT p.name, min(p.path) FROM params p JOIN experiments e ON e.id = p.experiment_id"
            " GROUP BY p.name ORDER BY min(e.rowid), p.name"
        ).fetchall()
        metrics = self.db.execute("SELECT name, id FROM metrics ORDER BY id").fetchall()
        sql = wide.view(params, metrics)
        old = self.db.execute("SELECT sql FROM sqlite_master WHERE name = 'runs_wide'").fetchone()
        if old != (sql,):
            self.db.execute("DROP VIEW IF EXISTS runs_wide")
            self.db.execute(sql)

    def experiments(self) -> list[Experiment]:
        """Return all experiments, newest last."""
        rows = self.query("SELECT spec FROM experiments ORDER BY created_at, rowid")
        return [Experiment.load(json.loads(spec)) for (spec,) in rows]

    def ids(self) -> list[str]:
        """Return the ids of all experiments, newest last, those included whose files are gone."""
        return [exp_id for (exp_id,) in self.query("SELECT id FROM experiments ORDER BY created_at, rowid")]

    def removed(self) -> dict[str, str]:
        """Return id -> when, of the experiments whose files were deleted and whose record was kept."""
        return dict(self.query("SELECT id, removed_at FROM experiments WHERE removed_at IS NOT NULL"))

    def unsettled(self) -> set[str]:
        """Return the ids of the experiments of which a harvest may find something new."""
        sql = "SELECT experiment_id FROM runs WHERE NOT settled UNION SELECT id FROM studies WHERE state = 'RUNNING'"
        return {exp_id for (exp_id,) in self.query(sql)}

    def unsettled_runs(self, exp_id: str) -> list[int]:
        """Return the runs of an experiment of which a harvest may find something new, ascending."""
        sql = "SELECT idx FROM runs WHERE experiment_id = ? AND NOT settled ORDER BY idx"
        return [index for (index,) in self.query(sql, [exp_id])]

    def resolve(self, ref: str) -> Experiment:
        """Find an experiment by ``last``, its id, its name (the newest of that name) or the beginning of its id.

        Raises
        ------
        NotFoundError
            If there is none, or several ids begin so.
        """
        if ref == "last":
            found = self.query("SELECT spec FROM experiments ORDER BY created_at DESC, rowid DESC LIMIT 1")
        else:
            found = self.query(
                "SELECT spec FROM experiments WHERE id = ?1 OR name = ?1"
                " ORDER BY id = ?1 DESC, created_at DESC, rowid DESC LIMIT 1",
                [ref],
            ) or self.query("SELECT spec FROM experiments WHERE substr(id, 1, ?) = ?", [len(ref), ref])
        if not found:
            raise NotFoundError(f"there is no experiment `{ref}` in {self.path}", "ems list")
        if len(found) > 1:
            candidates = [Experiment.load(json.loads(spec)) for (spec,) in found]
            listed = ", ".join(f"{each.id} ({each.name})" for each in candidates[:5])
            raise NotFoundError(f"`{ref}` begins {len(found)} ids: {listed}", "type one more character of the id")
        return Experiment.load(json.loads(found[0][0]))

    def remove(self, exp_id: str, purge: bool = False) -> None:
        """Note that an experiment's files are gone; with ``purge`` forget it and its results wholly."""
        with self.write() as db:
            if purge:
                db.execute("DELETE FROM experiments WHERE id = ?", [exp_id])
                self.refresh_wide()
                return
            db.execute("UPDATE experiments SET removed_at = ? WHERE id = ?", [records.now(), exp_id])
            db.execute(
                "UPDATE runs SET state = 'CANCELLED', reason = 'removed', version = version + 1"
                " WHERE experiment_id = ? AND state IN ('PENDING', 'RUNNING', 'UNKNOWN')",
                [exp_id],
            )
            db.execute("UPDATE runs SET settled = 1 WHERE experiment_id = ?", [exp_id])
            db.execute(
                "UPDATE studies SET state = 'STOPPED', reason = 'its files were removed', next_wake = ''"
                " WHERE id = ? AND state = 'RUNNING'",
                [exp_id],
            )

    # -- runs

    def runs(self, exp_id: str, indices: Collection[int] | None = None) -> Iterator[Run]:
        """Yield the runs of an experiment (those of ``indices``) in order of index."""
        sql = "SELECT idx, params, seed, key, loops FROM runs WHERE experiment_id = ?1"
        chosen: list[str] = []
        if indices is not None:
            sql += " AND idx IN (SELECT value FROM json_each(?2))"
            chosen = [json.dumps(sorted(indices))]
        with self._errors():
            for row in self.db.execute(sql + " ORDER BY idx", [exp_id, *chosen]):
                yield _run(row)

    def states(self, exp_id: str) -> list[tuple[int, State]]:
        """Return index and state of every run, in order of index."""
        rows = self.query("SELECT idx, state FROM runs WHERE experiment_id = ? ORDER BY idx", [exp_id])
        return [(index, State(state)) for index, state in rows]

    def state(self, exp_id: str, index: int) -> State:
        """Return the state of one run; UNKNOWN where there is none."""
        rows = self.query("SELECT state FROM runs WHERE experiment_id = ? AND idx = ?", [exp_id, index])
        return State(rows[0][0]) if rows else State.UNKNOWN

    def counts(self, exp_ids: Iterable[str] | None = None) -> dict[str, dict[State, int]]:
        """Return for each experiment how many of its runs are in each state (states of none are left out)."""
        wanted = list(self.ids() if exp_ids is None else exp_ids)
        found: dict[str, dict[State, int]] = {exp_id: {} for exp_id in wanted}
        for exp_id, state, count in self.query(queries.COUNTS, [json.dumps(wanted)]):
            found[exp_id][State(state)] = count
        return found

    def completed_keys(self, keys: Iterable[str]) -> dict[str, str]:
        """Return ``EXP/INDEX`` of a COMPLETED run for each of ``keys`` that has one (the newest where several)."""
        return dict(self.query(queries.COMPLETED, [json.dumps(list(keys))]))

    def attempts(self, exp_id: str, index: int) -> list[Attempt]:
        """Return the attempts of a run, first one first."""
        rows = self.query(queries.ATTEMPTS, [exp_id, index])
        values = [[*row[:3], State(row[3]), *row[4:]] for row in rows]
        return [Attempt(*each) for each in values]

    def last_end(self, exp_id: str) -> str:
        """Return when the last attempt of an experiment ended, or began where its end is not known; else empty."""
        (row,) = self.query(queries.LAST_END, [exp_id])
        return row[0] or ""

    # -- metrics

    def metric_names(self, exp_ids: Iterable[str] | None = None) -> list[str]:
        """Return the names of the metrics that any run of the experiments has, in order of first appearance."""
        ids = self.ids() if exp_ids is None else exp_ids
        return [name for _, name in self.query(queries.METRIC_NAMES, [json.dumps(list(ids))])]

    def run_table(self, exp_ids: Iterable[str] | None = None) -> Iterator[RunRow]:
        """Yield every run of the experiments (default: all), in order of experiment and index, with its metrics."""
        ids = self.ids() if exp_ids is None else list(exp_ids)
        names = dict(self.query("SELECT id, name FROM metrics"))
        for exp_id in ids:
            metrics = self._summaries(exp_id, names)
            with self._errors():
                for run_id, params, state, *rest in self.db.execute(queries.RUN_TABLE, [exp_id]):
                    values = [*rest[:3], wide.load_params(params), _STATES[state], *rest[3:], metrics.get(run_id, {})]
                    yield RunRow(*values)

    def _summaries(self, exp_id: str, names: Mapping[int, str]) -> dict[int, dict[str, Summary]]:
        rows = self.query(queries.SUMMARIES, [exp_id])
        return {
            run_id: {names[row[1]]: summary(*row[2:]) for row in group}
            for run_id, group in groupby(rows, key=lambda row: row[0])
        }

    def curves(self, exp_ids: Iterable[str], metric: str) -> Iterator[tuple[str, int, float, float]]:
        """Yield experiment id, run index, step and value of the current points of one metric, in that order.

        Current are the points of the last attempt and of those that it resumed from; where several have the same
        step the latest attempt's counts. Texts are left out; NaN and inf are kept.
        """
        for exp_id in exp_ids:
            with self._errors():
                for index, step, value, text in self.db.execute(queries.CURVES, [exp_id, metric]):
                    if value is not None:
                        yield exp_id, index, step, value
                    elif text == "NaN":
                        yield exp_id, index, step, math.nan

    # -- notebooks

    def rows(self, *refs: str) -> list[dict[str, Any]]:
        """Return one flat dict a run (params, last metrics, state, ..); see :func:`ems.store.notebook.rows`."""
        return notebook.rows(self, *refs)

    def points(self, metric: str, *refs: str) -> list[dict[str, Any]]:
        """Return one dict a point of a metric; see :func:`ems.store.notebook.points`."""
        return list(notebook.points(self, metric, *refs))

    def frame(self, *refs: str) -> pandas.DataFrame:
        """Return :meth:`rows` as a pandas frame (``pip install 'ems[notebook]'``)."""
        return notebook.frame(self, *refs)


_STATES = {state.value: state for state in State}
_COLUMNS = ("id", "name", "created_at", "script", "target", "executor", "snapshot", "n_runs", "message")


def find(start: Path) -> Path:
    """Return the path of the store that belongs to ``start``, whether it exists yet or not."""
    start = start.resolve()
    folders = [start, *start.parents]
    for folder in folders:
        if (folder / FOLDER / "ems.db").is_file():
            return folder / FOLDER / "ems.db"
    top = next((folder for folder in folders if (folder / ".git").exists()), start)
    return top / FOLDER / "ems.db"


def _run_values(exp_id: str, run: Run, names: dict[str, tuple[str, ...]]) -> tuple[object, ...]:
    """Return the columns of a run; add the names of its params to ``names``."""
    names.update(wide.flatten(run.params))
    return exp_id, run.index, wide.dump_params(run.params), run.seed, run.key, json.dumps(run.loops)


def _run(row: tuple[Any, ...]) -> Run:
    index, params, seed, key, loops = row
    return Run(index, wide.load_params(params), seed, key, tuple(json.loads(loops)))


def _make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if folder.name == FOLDER and not ignore.exists():
        ignore.write_text("*\n")


def _age(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
