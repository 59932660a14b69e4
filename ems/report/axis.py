"""Params as axes of pictures: where values lie, and how they are named there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ems.model import Json
from ems.report.study import Study
from ems.search.dimension import Dimension, Floats, Int, Real
from ems.search.trial import Trial

_FINE = 241  # points along an axis
_LEVELS = 12  # of a dimension with so few values each is a tick of its own


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension as an axis: where its units lie on it, ``places``; labels where its values are no numbers."""

    dimension: Dimension
    column: int
    units: Floats
    places: tuple[float, ...]
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, study: Study, name: str, fine: int = _FINE) -> Axis:
        """Return the axis of a param of a study, with at most ``fine`` places."""
        column = study.problem.space.names.index(name)
        dimension = study.problem.space.searched[column]
        if isinstance(dimension, Int | Real) or dimension.count is None:
            units = np.unique(dimension.snap(np.linspace(0.0, 1.0, fine)))
            return cls(dimension, column, units, tuple(map(float, dimension.column(units))))
        values = list(dimension.items())
        units = np.array([dimension.unit(value) for value in values])
        return cls(dimension, column, units, tuple(map(float, range(len(values)))), tuple(map(short, values)))

    @property
    def is_log(self) -> bool:
        """Whether it is drawn on a logarithmic scale."""
        return isinstance(self.dimension, Int | Real) and self.dimension.prior == "log"

    def place(self, value: Json) -> float:
        """Return where a value lies on it."""
        unit = self.dimension.unit(value)
        if self.labels:
            return float(np.argmin(np.abs(self.units - unit)))
        return float(self.dimension.column(np.array([unit]))[0])

    def at(self, trials: Sequence[Trial]) -> tuple[float, ...]:
        """Return where trials lie on it."""
        return tuple(self.place(trial.params[self.dimension.name]) for trial in trials)


def ticks(dimension: Dimension) -> list[tuple[float, str]]:
    """Return ticks of a dimension that is drawn from 0 to 1: places and labels."""
    if dimension.count is not None and dimension.count <= _LEVELS:
        return [(dimension.unit(value), short(value)) for value in dimension.items()]
    return [(at, short(dimension.value(at))) for at in (0.0, 0.25, 0.5, 0.75, 1.0)]


def short(value: Json) -> str:
    """Return a value as it stands at an axis."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
