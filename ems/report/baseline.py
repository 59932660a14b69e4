"""Groups of runs against a baseline: paired tests over the runs that agree in all else. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ems.errors import UsageError
from ems.report.frame import Field, Frame, Kind, Value, identity
from ems.report.groups import Group, rest
from ems.report.query import Method
from ems.report.statistics import Estimate, Paired, holm, paired
from ems.report.table import Cell, Column


def read(frame: Frame, typed: str) -> dict[Field, Value]:
    """Read ``lr=0.1,opt=adam``: which value each of these columns has in the baseline.

    Raises
    ------
    UsageError
        If it is not of that form, or no run has such a value.
    """
    wanted: dict[Field, Value] = {}
    for part in typed.split(","):
        name, equals, text = (word.strip() for word in part.partition("="))
        if not equals or not name:
            raise UsageError(f"--baseline `{typed}` is not NAME=VALUE", 'e.g. --baseline "lr=0.1" or "lr=0.1,opt=adam"')
        column = frame.find(name, (Kind.PARAM, Kind.FACT))
        present = {identity(v): v for v in frame.values(column)}
        matches = [v for v in present.values() if _is_meant(v, text)]
        if not matches:
            values = ", ".join(_show(v) for v in list(present.values())[:12])
            raise UsageError(f"--baseline `{typed}`: no run has {name}={text}", f"its values are {values}")
        wanted[column] = matches[0]
    return wanted


def _show(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _is_meant(value: Value, text: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return math.isclose(float(text), value, rel_tol=1e-9)
        except ValueError:
            return False
    return text.strip("'\"") == _show(value) or text == _show(value)


def against(
    frame: Frame,
    groups: Sequence[Group],
    by: Sequence[Field],
    wanted: Mapping[Field, Value],
    metric: Field,
    values: Mapping[int, float],
    method: Method,
) -> list[Column]:
    """Compare each group with the one that has the baseline's values, over the runs that agree in all else.

    Returns
    -------
    list of Column
        Mean difference with its interval, effect, p (not yet :func:`corrected`).

    Raises
    ------
    UsageError
        If nothing varies within groups that could pair their runs.
    """
    others = rest(frame, by)
    if not others:
        raise UsageError(
            f"--baseline: nothing pairs the runs, no param but {', '.join(each.name for each in by)} varies",
            "repeat each point over seeds: ems parrun SCRIPT --set seed=0..4 ...",
        )
    cells = [frame.values(each) for each in others]
    sides = [_by_pair(group, cells, values) for group in groups]
    bases = _bases(groups, by, wanted)
    results = [
        None if base is None or base == i else _compare(sides[i], sides[base], method) for i, base in enumerate(bases)
    ]
    nothing = Estimate(None, None, None, 0)
    differences: list[Cell] = [r.difference if r else nothing for r in results]
    words = ["baseline" if base == i else "" for i, base in enumerate(bases)]
    name = metric.name
    return [
        Column(f"{name}_difference", differences, "metric", title=f"{name} vs baseline", texts=words),
        Column(f"{name}_effect", [r.effect if r else None for r in results], "metric", title="effect"),
        Column(f"{name}_p", [r.p if r else None for r in results], "p", title="p"),
    ]


def _bases(groups: Sequence[Group], by: Sequence[Field], wanted: Mapping[Field, Value]) -> list[int | None]:
    """Return for each group the one that has the baseline's values and agrees in the rest of what it is grouped by."""
    found = {tuple(map(identity, group.key)): i for i, group in enumerate(groups)}
    return [
        found.get(tuple(identity(wanted.get(each, own)) for each, own in zip(by, group.key, strict=True)))
        for group in groups
    ]


def _compare(
    values: Mapping[tuple[object, ...], float], base: Mapping[tuple[object, ...], float], method: Method
) -> Paired | None:
    shared = [pair for pair in values if pair in base]
    return paired([values[p] for p in shared], [base[p] for p in shared], method) if shared else None


def _by_pair(
    group: Group, others: Sequence[Sequence[Value]], values: Mapping[int, float]
) -> dict[tuple[object, ...], float]:
    """Return the mean value of each combination of the other params (repeats are one pair, not several)."""
    found: dict[tuple[object, ...], list[float]] = {}
    for i in group.completed:
        if i in values:
            found.setdefault(tuple(identity(column[i]) for column in others), []).append(values[i])
    return {key: math.fsum(v) / len(v) if all(map(math.isfinite, v)) else math.nan for key, v in found.items()}


def corrected(family: Sequence[Column]) -> list[Column]:
    """Replace the p values of all tests of one table by Holm's."""
    tests = [column for column in family if column.kind == "p"]
    flat: list[float | None] = [p for c in tests for p in c.cells if p is None or isinstance(p, float)]
    adjusted = iter(holm(flat))
    new = {column.name: replace(column, cells=[next(adjusted) for _ in column.cells]) for column in tests}
    return [new.get(column.name, column) for column in family]


def notes(frame: Frame, by: Sequence[Field], typed: str, family: Sequence[Column]) -> Iterator[str]:
    """Say what was compared, how, and over how many pairs."""
    if not family:
        return
    tests = sum(p is not None for column in family if column.kind == "p" for p in column.cells)
    correction = f", Holm-corrected for {tests} tests" if tests > 1 else ""
    pairs = [cell.n for column in family for cell in column.cells if isinstance(cell, Estimate) and cell.n]
    counted = (
        f"{min(pairs)}" if pairs and min(pairs) == max(pairs) else f"{min(pairs)} to {max(pairs)}" if pairs else "no"
    )
    same = ", ".join(each.name for each in rest(frame, by))
    yield (
        f"baseline {typed}: mean difference ± 95 % CI over {counted} pairs of the same {same}; "
        f"effect: Cohen's d_z; p: paired t test, two-sided{correction}"
    )
