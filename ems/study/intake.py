"""The rows of a study into the project's store, from the file that its driver keeps."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from ems.store import Store
from ems.study.driver import STORE
from ems.target import Target

_FACTS = ("id", "spec", "state", "reason", "ending", "wakes", "resumed", "failures", "next_wake", "cache")


def bring(store: Store, target: Target, study_id: str) -> bool:
    """Copy what is new of a study into ``store``; return whether anything was. Never waits for the driver.

    Raises
    ------
    StoreError
        If the store cannot be written.
    """
    return copy(store, Path(target.files(study_id).dir, STORE), study_id)


def copy(store: Store, path: Path, study_id: str) -> bool:
    """Copy what is new of a study from its driver's store at ``path``; see :func:`bring`.

    Raises
    ------
    StoreError
        If ``store`` cannot be written.
    """
    if not path.exists() or not store.query("SELECT 1 FROM experiments WHERE id = ?", [study_id]):
        return False
    with _reading(path) as db:
        if db is None:
            return False
        new = db.execute(f"SELECT {', '.join(_FACTS)} FROM studies WHERE id = ?", [study_id]).fetchone()  # noqa: S608  # our names
        if new is None:
            return False
        is_new = store.query(f"SELECT {', '.join(_FACTS)} FROM studies WHERE id = ?", [study_id]) != [new]  # noqa: S608  # as above
        rows = {table: _news(store, db, table, study_id) for table in ("trials", "segments", "wakes")}
    if not is_new and not any(rows.values()):
        return False
    with store.write() as own:
        places = ", ".join(f"{name} = excluded.{name}" for name in _FACTS[1:])
        own.execute(
            f"INSERT INTO studies ({', '.join(_FACTS)}) VALUES ({', '.join('?' * len(_FACTS))})"  # noqa: S608  # as above
            f" ON CONFLICT (id) DO UPDATE SET {places} WHERE excluded.wakes >= wakes",
            new,
        )
        for table, values in rows.items():
            if not values:
                continue
            marks = ", ".join("?" * len(values[0]))
            own.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", values)  # noqa: S608  # as above
    return True


def _news(store: Store, db: sqlite3.Connection, table: str, study_id: str) -> list[tuple[object, ...]]:
    """Return the rows of a table that ``store`` has not, or has otherwise."""
    sql = f"SELECT * FROM {table} WHERE study_id = ?"  # noqa: S608  # our names
    known = set(store.query(sql, [study_id]))
    return [row for row in db.execute(sql, [study_id]) if row not in known]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection | None]:
    """Open the driver's store as of one moment, read-only; None where it is just being made, or is in use."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0, isolation_level=None)
    try:
        db.execute("BEGIN")
        db.execute("SELECT 1 FROM studies LIMIT 1").fetchone()
    except sqlite3.OperationalError:
        db.close()
        yield None
        return
    try:
        yield db
    finally:
        db.close()
