"""The rows of a study as its driver keeps them, read in one moment and put into a project's store."""

from __future__ import annotations

import contextlib
import shlex
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ems.errors import StoreError
from ems.store import Store
from ems.store.studies import RUNNING

Row: TypeAlias = "Sequence[object]"

STORE = "study.db"  # of the driver, beside the runs
_FACTS = ("id", "spec", "state", "reason", "ending", "wakes", "resumed", "failures", "next_wake", "cache")
_TABLES = ("trials", "segments", "wakes")


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of one study: its own, and those of ``trials``, ``segments`` and ``wakes``; JSON throughout."""

    study: Row
    tables: Mapping[str, Sequence[Row]]

    @property
    def is_finished(self) -> bool:
        """Whether no driver has anything left to do for it."""
        return self.study[_FACTS.index("state")] != RUNNING

    @property
    def failures(self) -> int:
        """Wakes that failed since the last one that did not."""
        return int(str(self.study[_FACTS.index("failures")]))


def read(path: Path, study_id: str) -> Rows | None:
    """Return the rows in a driver's store as of one moment; None where there are none yet, or it is in use.

    Never waits for the driver.

    Raises
    ------
    StoreError
        If the driver's store is damaged.
    """
    if not path.exists():
        return None
    with _reading(path) as db:
        if db is None:
            return None
        study = db.execute(f"SELECT {', '.join(_FACTS)} FROM studies WHERE id = ?", [study_id]).fetchone()  # noqa: S608  # our names
        if study is None:
            return None
        return Rows(study, {table: db.execute(_sql(table), [study_id]).fetchall() for table in _TABLES})


def put(store: Store, rows: Rows) -> bool:
    """Copy what is new of a study into ``store``; return whether anything was.

    What was read before another command read, and put, a later wake is of no use any more.

    Raises
    ------
    StoreError
        If the store cannot be written.
    """
    study = tuple(rows.study)
    if not store.query("SELECT 1 FROM experiments WHERE id = ?", [study[0]]):
        return False
    is_new = store.query(f"SELECT {', '.join(_FACTS)} FROM studies WHERE id = ?", [study[0]]) != [study]  # noqa: S608  # our names
    news = {table: _news(store, table, study[0], rows.tables[table]) for table in _TABLES}
    if not is_new and not any(news.values()):
        return False
    places = ", ".join(f"{name} = excluded.{name}" for name in _FACTS[1:])
    with store.write() as db:
        wakes = study[_FACTS.index("wakes")]
        if db.execute("SELECT 1 FROM studies WHERE id = ? AND wakes > ?", [study[0], wakes]).fetchone():
            return False
        db.execute(
            f"INSERT INTO studies ({', '.join(_FACTS)}) VALUES ({', '.join('?' * len(_FACTS))})"  # noqa: S608  # as above
            f" ON CONFLICT (id) DO UPDATE SET {places}",
            study,
        )
        for table, values in news.items():
            if values:
                marks = ", ".join("?" * len(values[0]))
                db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", values)  # noqa: S608  # as above
    return True


def _news(store: Store, table: str, study_id: object, rows: Sequence[Row]) -> list[Row]:
    """Return those rows that the store has not, or has otherwise."""
    known = set(store.query(_sql(table), [study_id]))
    return [row for row in map(tuple, rows) if row not in known]


def _sql(table: str) -> str:
    return f"SELECT * FROM {table} WHERE study_id = ?"  # noqa: S608  # our names


def _damaged(path: Path, error: sqlite3.DatabaseError) -> StoreError:
    backup = path.with_name(f"{path.name}.backup")
    put_back = f"cp {shlex.quote(str(backup))} {shlex.quote(str(path))}; " if backup.exists() else ""
    shown = shlex.quote(str(path))
    return StoreError(
        f"the study's own store {path} is damaged ({error})",
        f"mv {shown} {shown}.damaged; rm -f {shown}-wal {shown}-shm; {put_back}ems tune resume {path.parent.name}\n"
        "(runs that it does not know any more are found again, not made again)",
    )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection | None]:
    """Open the driver's store read-only; None where it is just being made, or is in use."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0, isolation_level=None)
    try:
        db.execute("BEGIN")
        db.execute("SELECT 1 FROM studies LIMIT 1").fetchone()
    except sqlite3.OperationalError:
        db.close()
        yield None
        return
    except sqlite3.DatabaseError as error:
        db.close()
        raise _damaged(path, error) from error
    try:
        yield db
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error
    finally:
        db.close()
