"""The schema of the store, one function a change; never edit one that has been released, add the next.

``sqlite_utils`` keeps the list of those applied in ``_sqlite_migrations``. It is imported only when there is
something to apply, because it loads pandas where that is installed (1.3 s).
"""

from __future__ import annotations

import importlib
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SET = "ems"

_INITIAL = (
    """
    CREATE TABLE experiments (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        created_at TEXT NOT NULL,
        script TEXT NOT NULL,
        target TEXT NOT NULL,
        executor TEXT NOT NULL,
        snapshot TEXT NOT NULL,
        n_runs INTEGER NOT NULL,
        message TEXT,
        spec TEXT NOT NULL,
        removed_at TEXT
    )
    """,
    "CREATE INDEX experiments_by_name ON experiments (name)",
    """
    CREATE TABLE params (
        experiment_id TEXT NOT NULL REFERENCES experiments (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        path TEXT NOT NULL,
        PRIMARY KEY (experiment_id, name)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        experiment_id TEXT NOT NULL REFERENCES experiments (id) ON DELETE CASCADE,
        idx INTEGER NOT NULL,
        params TEXT NOT NULL,
        seed INTEGER NOT NULL,
        key TEXT NOT NULL,
        loops TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'PENDING'
            CHECK (state IN ('PENDING', 'RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED', 'UNKNOWN')),
        slurm_state TEXT NOT NULL DEFAULT '',
        reason TEXT NOT NULL DEFAULT '',
        chunk INTEGER NOT NULL DEFAULT 0,
        attempt INTEGER NOT NULL DEFAULT 0,
        version INTEGER NOT NULL DEFAULT 0,
        settled INTEGER NOT NULL DEFAULT 0,
        gone_since REAL,
        chain TEXT NOT NULL DEFAULT '',
        UNIQUE (experiment_id, idx)
    )
    """,
    "CREATE INDEX runs_by_state ON runs (experiment_id, state)",
    "CREATE INDEX runs_unsettled ON runs (experiment_id) WHERE NOT settled",
    "CREATE INDEX runs_completed ON runs (key) WHERE state = 'COMPLETED'",
    """
    CREATE TABLE attempts (
        run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        attempt INTEGER NOT NULL,
        chunk INTEGER NOT NULL,
        state TEXT NOT NULL,
        host TEXT NOT NULL DEFAULT '',
        pid INTEGER NOT NULL DEFAULT 0,
        job TEXT NOT NULL DEFAULT '',
        slurm_state TEXT NOT NULL DEFAULT '',
        started_at TEXT NOT NULL DEFAULT '',
        ended_at TEXT NOT NULL DEFAULT '',
        exit_code INTEGER,
        signal TEXT NOT NULL DEFAULT '',
        reason TEXT NOT NULL DEFAULT '',
        gpus TEXT NOT NULL DEFAULT '',
        max_rss_mb REAL,
        cpu_s REAL,
        wall_s REAL,
        resumed_from INTEGER,
        error TEXT,
        stdout_from INTEGER NOT NULL DEFAULT 0,
        stderr_from INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (run_id, attempt)
    ) WITHOUT ROWID
    """,
    "CREATE TABLE metrics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    """
    CREATE TABLE points (
        run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        metric_id INTEGER NOT NULL REFERENCES metrics (id),
        attempt INTEGER NOT NULL,
        step INTEGER NOT NULL,
        value REAL,
        text TEXT,
        at REAL,
        PRIMARY KEY (run_id, metric_id, attempt, step)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE summaries (
        run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        metric_id INTEGER NOT NULL REFERENCES metrics (id),
        source TEXT NOT NULL,
        n INTEGER NOT NULL,
        n_nan INTEGER NOT NULL,
        n_text INTEGER NOT NULL,
        last REAL,
        last_text TEXT,
        last_step INTEGER NOT NULL,
        min REAL,
        max REAL,
        sum REAL,
        PRIMARY KEY (run_id, metric_id)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE sources (
        run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        path TEXT NOT NULL,
        offset INTEGER NOT NULL,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        fingerprint TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        state TEXT NOT NULL,
        PRIMARY KEY (run_id, path)
    ) WITHOUT ROWID
    """,
    # for people: names instead of ids; NaN is a NULL value with the text NaN, so that avg() skips it
    """
    CREATE VIEW curves AS
    SELECT r.experiment_id AS experiment, r.idx AS run, m.name AS metric, p.attempt, p.step, p.value, p.text,
           strftime('%Y-%m-%dT%H:%M:%fZ', p.at, 'unixepoch') AS at
    FROM points p JOIN runs r ON r.id = p.run_id JOIN metrics m ON m.id = p.metric_id
    """,
)


def _m001_initial(db: Any) -> None:
    for statement in _INITIAL:
        db.execute(statement)


# what a study is, and all that it knows; see ems.store.studies. Values are in the user's own sign.
_STUDIES = (
    """
    CREATE TABLE studies (
        id TEXT PRIMARY KEY REFERENCES experiments (id) ON DELETE CASCADE,
        spec TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'RUNNING' CHECK (state IN ('RUNNING', 'FINISHED', 'STOPPED', 'FAILED')),
        reason TEXT NOT NULL DEFAULT '',
        ending TEXT NOT NULL DEFAULT '',
        wakes INTEGER NOT NULL DEFAULT 0,
        resumed INTEGER NOT NULL DEFAULT 0,
        failures INTEGER NOT NULL DEFAULT 0,
        next_wake TEXT NOT NULL DEFAULT '',
        cache TEXT NOT NULL DEFAULT '{}'
    )
    """,
    """
    CREATE TABLE trials (
        study_id TEXT NOT NULL REFERENCES studies (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        config INTEGER NOT NULL,
        params TEXT NOT NULL,
        seed INTEGER NOT NULL,
        grp TEXT,
        bracket INTEGER NOT NULL DEFAULT 0,
        origin TEXT NOT NULL,
        mean REAL,
        sd REAL,
        acquisition REAL,
        asked INTEGER NOT NULL,
        PRIMARY KEY (study_id, number)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE segments (
        study_id TEXT NOT NULL REFERENCES studies (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        rung INTEGER NOT NULL,
        budget REAL,
        chunk INTEGER NOT NULL DEFAULT 0,
        tries INTEGER NOT NULL DEFAULT 0,
        outcome TEXT NOT NULL DEFAULT 'pending',
        value REAL,
        cost REAL NOT NULL DEFAULT 0,
        asked INTEGER NOT NULL,
        told INTEGER NOT NULL DEFAULT -1,
        reason TEXT NOT NULL DEFAULT '',
        started_at TEXT NOT NULL DEFAULT '',
        ended_at TEXT NOT NULL DEFAULT '',
        host TEXT NOT NULL DEFAULT '',
        wall_s REAL NOT NULL DEFAULT 0,
        points INTEGER NOT NULL DEFAULT 0,
        last_step REAL,
        PRIMARY KEY (study_id, number, rung)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE wakes (
        study_id TEXT NOT NULL REFERENCES studies (id) ON DELETE CASCADE,
        wake INTEGER NOT NULL,
        at TEXT NOT NULL,
        wall_s REAL NOT NULL,
        cpu_s REAL NOT NULL,
        told INTEGER NOT NULL,
        asked INTEGER NOT NULL,
        free INTEGER NOT NULL,
        calls INTEGER NOT NULL DEFAULT 0,
        reason TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (study_id, wake)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE requests (
        study_id TEXT NOT NULL REFERENCES studies (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        wake INTEGER NOT NULL,
        PRIMARY KEY (study_id, name)
    ) WITHOUT ROWID
    """,
)


def _m002_studies(db: Any) -> None:
    for statement in _STUDIES:
        db.execute(statement)


MIGRATIONS: tuple[tuple[str, Callable[[Any], None]], ...] = (
    ("m001_initial", _m001_initial),
    ("m002_studies", _m002_studies),
)


def applied(db: sqlite3.Connection) -> list[str]:
    """Return the names of the migrations that ``db`` has had; empty for a blank file."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = '_sqlite_migrations'").fetchone() is None:
        return []
    rows = db.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = ? ORDER BY id", [SET])
    return [name for (name,) in rows]


def unknown(db: sqlite3.Connection) -> list[str]:
    """Return the migrations that ``db`` has had and this version of ``ems`` does not know."""
    known = {name for name, _ in MIGRATIONS}
    return [name for name in applied(db) if name not in known]


def is_current(db: sqlite3.Connection) -> bool:
    """Whether nothing is left to apply."""
    return {name for name, _ in MIGRATIONS} <= set(applied(db))


def apply(db: sqlite3.Connection) -> None:
    """Bring ``db`` up to date, each migration in a transaction with its record."""
    with _pandas_hidden():
        sqlite_utils = importlib.import_module("sqlite_utils")
    migrations = sqlite_utils.Migrations(SET)
    for name, function in MIGRATIONS:
        migrations(name=name)(function)
    migrations.apply(sqlite_utils.Database(db))


@contextmanager
def _pandas_hidden() -> Iterator[None]:
    """Let ``sqlite_utils`` believe that pandas is not there, unless somebody has loaded it already."""
    hide = "pandas" not in sys.modules
    if hide:
        sys.modules["pandas"] = None  # type: ignore[assignment]  # documented: makes the import fail
    try:
        yield
    finally:
        if hide:
            del sys.modules["pandas"]
