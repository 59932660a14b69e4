"""Runs that agree in some columns, and what varies among them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ems.model import State
from ems.report.frame import Field, Frame, Value, identity
from ems.report.table import is_missing, rank


@dataclass(frozen=True, slots=True)
class Group:
    """Runs with the same ``key``: positions of all of them, and of those that completed."""

    key: tuple[Value, ...]
    rows: list[int]
    completed: list[int]


def group(frame: Frame, by: Sequence[Field]) -> list[Group]:
    """Group the runs; in order of the values where those are numbers, else of first appearance."""
    cells = [frame.values(each) for each in by]
    ranks = [_ranks(column) for column in cells]
    groups: dict[tuple[object, ...], Group] = {}
    places: dict[tuple[object, ...], tuple[float, ...]] = {}
    for i, row in enumerate(frame.rows):
        key = tuple(identity(column[i]) for column in cells)
        if key not in groups:
            groups[key] = Group(tuple(column[i] for column in cells), [], [])
            places[key] = tuple(rank[part] for rank, part in zip(ranks, key, strict=True))
        groups[key].rows.append(i)
        if row.state is State.COMPLETED:
            groups[key].completed.append(i)
    return [groups[key] for key in sorted(groups, key=places.__getitem__)]


def _ranks(cells: Sequence[Value]) -> dict[object, float]:
    distinct = {identity(cell): cell for cell in cells}
    ordered = list(distinct)
    if all(isinstance(v, int | float) and not is_missing(v) for v in distinct.values() if v is not None):
        ordered.sort(key=lambda key: rank(distinct[key]))
    return {key: rank for rank, key in enumerate(ordered)}


def numbers(frame: Frame, metric: Field) -> dict[int, float]:
    """Return the value of a metric by position of the run, NaN and inf included; texts are none."""
    return {i: float(v) for i, v in enumerate(frame.values(metric)) if isinstance(v, int | float)}


def rest(frame: Frame, by: Sequence[Field]) -> list[Field]:
    """Return the params that vary within groups: what the mean goes over, and what pairs are paired by."""
    return [each for each in frame.varying if each not in by]
