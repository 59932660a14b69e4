"""Columns and rows, as a report makes them and a format writes them; and the order of rows. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from ems.report.frame import Value
from ems.report.statistics import Estimate

Cell: TypeAlias = "Value | Estimate"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Parameters
    ----------
    name
        What files call it.
    cells
        One a row.
    kind
        ``value`` (params and facts, as they are), ``metric``, ``count`` or ``p``; estimates are ``metric`` too.
    best
        Rows whose cell is the best of the column.
    title
        What the table calls it, where that is not ``name``.
    texts
        What the table shows, where that is not the cells.
    """

    name: str
    cells: Sequence[Cell]
    kind: str = "value"
    best: frozenset[int] = frozenset()
    title: str = ""
    texts: Sequence[str] | None = None

    def take(self, rows: Sequence[int]) -> Column:
        """Keep some rows, in the order given."""
        texts = None if self.texts is None else [self.texts[i] for i in rows]
        best = frozenset(new for new, old in enumerate(rows) if old in self.best)
        return replace(self, cells=[self.cells[i] for i in rows], texts=texts, best=best)


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length, and what has to be said beside them, one sentence a note."""

    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.columns[0].cells) if self.columns else 0

    def records(self) -> Iterator[dict[str, Value]]:
        """Yield one flat record a row; of an estimate, ``acc``, ``acc_ci_low``, ``acc_ci_high`` and ``acc_n``."""
        for i in range(len(self)):
            record: dict[str, Value] = {}
            for column in self.columns:
                cell = column.cells[i]
                if isinstance(cell, Estimate):
                    for suffix, value in zip(("", "_ci_low", "_ci_high", "_n"), _numbers_of(cell), strict=True):
                        record[column.name + suffix] = value
                else:
                    record[column.name] = cell
            yield record


def _numbers_of(cell: Estimate) -> tuple[float | None, float | None, float | None, int]:
    return cell.mean, cell.low, cell.high, cell.n


def sort_key(typed: str) -> tuple[str, bool]:
    """Read ``acc``, ``-acc`` or ``acc desc``: the name, and whether the largest comes first."""
    name, _, direction = typed.rpartition(" ")
    if name and direction.lower() in ("asc", "desc"):
        return name.strip(), direction.lower() == "desc"
    return typed.removeprefix("-"), typed.startswith("-")


def sort(n: int, keys: Sequence[tuple[Sequence[Cell], bool]]) -> list[int]:
    """Return the order of ``n`` rows by columns and whether each goes down; an estimate counts as its mean."""
    order = list(range(n))
    for cells, is_down in reversed(keys):  # stable: the first key, applied last, decides
        values = [cell.mean if isinstance(cell, Estimate) else cell for cell in cells]
        present = [i for i in order if not is_missing(values[i])]
        present.sort(key=lambda i: rank(values[i]), reverse=is_down)
        order = present + [i for i in order if is_missing(values[i])]  # what is missing comes last, up or down
    return order


def is_missing(value: Value) -> bool:
    """Whether a value has no place in an order: None and NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def rank(value: Value) -> tuple[int, float, str]:
    """Order numbers before texts, and both among themselves."""
    if isinstance(value, int | float):
        return 0, value, ""
    return 1, 0.0, value if isinstance(value, str) else json.dumps(value, default=str)
