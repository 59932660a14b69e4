"""Lines drawn with characters: a plot for a terminal, legible without colour. Pure.

Every line has a marker of its own at its points and dots between them. Written here rather than taken from a library
because a whole one costs more to import than a report may take, and needs more room than 80 columns by 20 rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TypeAlias

MARKERS = "●○▲△■□◆◇"
_ASCII = str.maketrans("●○▲△■□◆◇·│└─┤┬", "ox^v#%*&.|+-++")
_Grid: TypeAlias = dict[tuple[int, int], tuple[int, str]]  # column, row (from below) -> number of the line, character
_MARK_EVERY = 8  # columns between the markers of a line that has more points than columns


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to cells: linear or logarithmic, ``low`` at cell 0 and ``high`` at cell ``cells - 1``."""

    low: float
    high: float
    cells: int
    is_log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], cells: int, is_log: bool) -> Scale:
        """Make the scale that just holds ``values``; a single one lies in the middle."""
        low, high = min(values), max(values)
        if low == high:
            low, high = (low / 10, high * 10) if is_log else (low - (abs(low) or 1), high + (abs(high) or 1))
        return cls(low, high, cells, is_log)

    def cell(self, value: float) -> float:
        """Return where ``value`` lies, in cells; between two where it is between."""
        low, high, at = map(math.log10, (self.low, self.high, value)) if self.is_log else (self.low, self.high, value)
        return (at - low) / (high - low) * (self.cells - 1)

    def ticks(self, most: int) -> list[tuple[int, str]]:
        """Return cell and label of round values, about ``most`` of them or fewer."""
        values = self._decades(most) if self.is_log else self._steps(most)
        return [(round(self.cell(v)), f"{v:.6g}") for v in values]

    def _decades(self, most: int) -> list[float]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        every = max(1, math.ceil((last - first + 1) / most))
        decades = [10.0**e for e in range(first, last + 1, every)]
        return decades if len(decades) > 1 else [self.low, self.high]

    def _steps(self, most: int) -> list[float]:
        raw = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.75)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def draw(
    lines: Sequence[tuple[Sequence[float], Sequence[float]]],
    width: int,
    height: int,
    is_log_x: bool = False,
    is_log_y: bool = False,
    paint: Callable[[int, str], str] | None = None,
    is_ascii: bool = False,
) -> list[str]:
    """Draw lines with their axes.

    Parameters
    ----------
    lines
        x and y of each, finite, x ascending; at most as many as there are :data:`MARKERS`.
    width, height
        Of the whole, in cells.
    is_log_x, is_log_y
        Whether an axis is logarithmic; its values are then positive.
    paint
        Colours a character of line number i.
    is_ascii
        Whether to keep to ASCII.
    """
    ys = [y for _, line in lines for y in line]
    y_scale = Scale.over(ys, height - 2, is_log_y)
    labels = dict(y_scale.ticks(max(2, height // 3)))
    margin = max(map(len, labels.values()), default=0) + 1
    x_scale = Scale.over([x for line, _ in lines for x in line], max(2, width - margin - 2), is_log_x)
    grid: _Grid = {}
    for number, (x, y) in enumerate(lines):
        _join(grid, number, [x_scale.cell(v) for v in x], [y_scale.cell(v) for v in y])
    for number, (x, y) in enumerate(lines):  # after all dots: a point is never hidden by the way to another
        _mark(grid, number, [x_scale.cell(v) for v in x], [y_scale.cell(v) for v in y])
    rows = [
        f"{labels.get(row, ''):>{margin}}{'┤' if row in labels else '│'}{_row(grid, row, x_scale.cells, paint)}"
        for row in reversed(range(y_scale.cells))
    ]
    drawn = [row.rstrip() for row in [*rows, *_x_axis(x_scale, margin)]]
    return [row.translate(_ASCII) for row in drawn] if is_ascii else drawn


def marker(number: int, is_ascii: bool = False) -> str:
    """Return the marker of line ``number``."""
    return MARKERS[number].translate(_ASCII) if is_ascii else MARKERS[number]


def _row(grid: _Grid, row: int, cells: int, paint: Callable[[int, str], str] | None) -> str:
    """Write one row of the grid; neighbours of the same line are painted together."""
    found = [grid.get((column, row), (-1, " ")) for column in range(cells)]
    parts = [(n, "".join(c for _, c in same)) for n, same in groupby(found, key=itemgetter(0))]
    return "".join(paint(number, text) if paint and number >= 0 else text for number, text in parts)


def _join(grid: _Grid, number: int, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Put dots on the straight ways between points, one a column, more where it is steep."""
    for (x0, y0), (x1, y1) in zip(zip(xs, ys, strict=True), list(zip(xs, ys, strict=True))[1:], strict=False):
        steps = max(1, math.ceil(max(abs(x1 - x0), abs(y1 - y0))))
        for i in range(steps + 1):
            at = round(x0 + (x1 - x0) * i / steps), round(y0 + (y1 - y0) * i / steps)
            grid.setdefault(at, (number, "·"))


def _mark(grid: _Grid, number: int, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Put markers on the points; where there are too many, on some, at other columns for each line."""
    columns = {round(x) for x in xs}
    is_dense = len(columns) > (max(columns) - min(columns) + 1) / 3
    wanted = {c for c in columns if c % _MARK_EVERY == (3 * number) % _MARK_EVERY} if is_dense else columns
    wanted |= {round(xs[0]), round(xs[-1])}
    for x, y in zip(xs, ys, strict=True):
        if round(x) in wanted:
            wanted -= {round(x)} if is_dense else set()
            grid[round(x), round(y)] = (number, MARKERS[number])


def _x_axis(scale: Scale, margin: int) -> list[str]:
    most = max(2, scale.cells // 10)
    ticks = [(cell, label) for cell, label in scale.ticks(most) if 0 <= cell < scale.cells]
    axis, words = ["─"] * scale.cells, " " * scale.cells
    for cell, label in ticks:
        start = min(max(0, cell - len(label) // 2), scale.cells - len(label))
        if words[max(0, start - 1) : start + len(label) + 1].strip():
            continue  # no room for this label
        axis[cell] = "┬"
        words = words[:start] + label + words[start + len(label) :]
    return [" " * margin + "".join(["└", *axis]), " " * (margin + 1) + words]
