"""``--where``: a condition in SQL over the columns of a report, evaluated by SQLite in memory.

The condition never meets the store: only the columns it names are copied into a table of its own, under names of
their own, in a connection that may do nothing but read that table.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing

from ems.errors import UsageError
from ems.model import State
from ems.report.frame import Field, Frame, Value, did_you_mean

_WORDS = re.compile(
    r"and|or|not|in|is|null|isnull|notnull|like|glob|between|case|when|then|else|end|true|false|cast|as|integer|int|real|"
    r"text|numeric|escape|collate|nocase|binary|distinct|from",
    re.IGNORECASE,
)
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
_FORBIDDEN_FUNCTIONS = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "zeroblob", "randomblob"}
_LITERALS = r"""'(?:[^']|'')*' | "(?P<quoted>(?:[^"]|"")*)" | `(?P<ticked>[^`]*)`"""
_PLAIN = re.compile(r"[^\W\d][\w.:@/-]*")  # columns that need no quotes
_MAX_INT = 2**63 - 1


def select(frame: Frame, condition: str) -> list[int]:
    """Return the positions of the runs for which ``condition`` is true, ascending.

    A run that has no such param or metric, or NaN, counts as NULL: no comparison with it is true.

    Raises
    ------
    UsageError
        If the condition is not one, or names a column that there is not.
    """
    used: dict[str, int] = {}
    sql = "".join(_translate(frame, condition, used))
    columns = [frame.fields[name] for name in used]
    try:
        with closing(_table(frame, columns)) as db:
            rows = db.execute(f"SELECT rowid - 1 FROM t WHERE ({sql}) ORDER BY rowid")  # noqa: S608 - see _translate
            return [index for (index,) in rows]
    except (sqlite3.Error, sqlite3.Warning) as error:
        words = re.sub(r"^near \"(.*)\": syntax error$", r"it cannot be read near `\1`", str(error))
        raise UsageError(
            f"--where `{condition}`: {words}",
            "write a condition as in SQL: lr < 0.1 and state = 'COMPLETED'",
        ) from error


def _translate(frame: Frame, condition: str, used: dict[str, int]) -> Iterator[str]:
    """Yield the condition with every column written ``c0``, ``c1``, …, and nothing else in it that is a name.

    Names with a dot, a dash or a slash, and those of SQL keywords such as ``group``, thus need no quotes.
    """
    position = 0
    plain = [name for name in frame.fields if _PLAIN.fullmatch(name) and not _WORDS.fullmatch(name)]
    names = "|".join(map(re.escape, sorted(plain, key=len, reverse=True)))
    token = re.compile(
        rf"(?P<literal>{_LITERALS}) | (?P<known>(?<![\w.])(?:{names})(?!\w|\s*\())"
        r" | (?P<number>\d[\w.]*(?:(?<=[eE])[+-]\d+)?) | (?P<word>[^\W\d]\w*(?:\.\w+)*) (?P<call>\s*\()?",
        re.VERBOSE,
    )
    for match in token.finditer(condition):
        yield condition[position : match.start()]
        position = match.end()
        name = match["known"] or match["quoted"] or match["ticked"]
        if name is None and match["word"] and not match["call"] and not _WORDS.fullmatch(match["word"]):
            name = match["word"]
        if name is None:
            yield match[0]
        else:
            column = _find(frame, name.replace('""', '"'), condition)
            yield f"c{used.setdefault(column.name, len(used))}"
    yield condition[position:]


def _find(frame: Frame, name: str, condition: str) -> Field:
    exact = frame.fields.get(name)
    alike = [each for key, each in frame.fields.items() if key.lower() == name.lower()]
    if exact is not None or len(alike) == 1:
        return exact or alike[0]
    hint = did_you_mean(name, frame.fields, "there are")
    if name.upper() in State.__members__ or not hint.startswith("did"):
        hint = f"text goes in single quotes: '{name}'; " + hint.replace("there are", "columns are")
    raise UsageError(f"--where `{condition}`: there is no column `{name}`", hint.removesuffix("; "))


def _table(frame: Frame, columns: list[Field]) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:")
    kinds = [f"c{i}{' COLLATE NOCASE' if column.name == 'state' else ''}" for i, column in enumerate(columns)]
    db.execute(f"CREATE TABLE t ({', '.join([*kinds, 'unused'])})")
    cells = [[*map(_cell, frame.values(column))] for column in columns]
    marks = ", ".join("?" * (len(columns) + 1))
    rows = zip(*cells, [None] * len(frame.rows), strict=True)
    db.executemany(f"INSERT INTO t VALUES ({marks})", rows)  # noqa: S608 - question marks only
    db.set_authorizer(_authorize)
    return db


def _authorize(action: int, _first: str | None, second: str | None, *_: object) -> int:
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def _cell(value: Value) -> str | int | float | None:
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, int):
        return value if abs(value) <= _MAX_INT else float(value)
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
