"""One dimension of a space: which values there are, and where each lies between 0 and 1. Vocabulary of skopt.

The unit interval is what models see: 0.5 is the middle of the prior, on a logarithmic scale where the prior is one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ems.model import Json
from ems.search.expression import Column
from ems.space.distribution import Beta, LogNormal, LogUniform, Normal, Uniform

Kind: TypeAlias = Literal["numeric", "categorical"]
Prior: TypeAlias = Literal["uniform", "log"]
Floats: TypeAlias = NDArray[np.float64]

RESOLUTION = 1e-6  # of the unit interval: reals are rounded to that, so that they are short to read
TAIL = 1e-6  # of probability that is cut off at each end of an unbounded prior


def canonical(value: Json) -> str:
    """Return the text that equal values have in common, and no others: 1 and 1.0 differ, as in JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Dimension:
    """What all dimensions can do; the kinds are below.

    Attributes
    ----------
    name
        Of the param.
    when
        Condition on other params without which it is left out: ``opt == sgd``.
    """

    name: str
    when: str | None = field(default=None, kw_only=True)

    kind: ClassVar[Kind] = "numeric"

    @property
    def count(self) -> int | None:
        """Number of values; None where they cannot be counted."""
        return None

    def items(self) -> Iterator[Json]:
        """Yield all values, where they can be counted."""
        raise NotImplementedError

    def unit(self, value: Json) -> float:
        """Return where a value lies, 0 to 1; a number that is out of bounds lies at the bound.

        Raises
        ------
        ValueError
            If it is no such value: text where a number is due, or none of the categories.
        """
        raise NotImplementedError

    def value(self, unit: float) -> Json:
        """Return the value that lies nearest."""
        raise NotImplementedError

    def column(self, units: Floats) -> Column:
        """Return the values for expressions: floats, or objects where they are no numbers. Shape as given."""
        raise NotImplementedError

    def snap(self, units: Floats) -> Floats:
        """Return where the nearest values lie. Shape as given."""
        return np.clip(units, 0.0, 1.0)

    def spread(self, uniform: Floats) -> Floats:
        """Return positions whose values are as likely as the prior says, from uniform ones. Shape as given."""
        return self.snap(uniform)

    def contains(self, value: Json) -> bool:
        """Whether it is a value of this dimension."""
        try:
            return self.value(self.unit(value)) == value
        except ValueError:
            return False

    def _number(self, value: Json) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise ValueError(f"`{self.name}` is a number, not {canonical(value)}")
        return float(value)


def _check_bounds(name: str, low: float, high: float, prior: str) -> None:
    try:
        LogUniform(low, high) if prior == "log" else Uniform(low, high)
    except ValueError as error:
        raise ValueError(f"`{name}`: {error}") from None


def _decimals(step: float) -> int:
    return math.ceil(-math.log10(step) - 1e-9)


@dataclass(frozen=True)
class Real(Dimension):
    """Real numbers from ``low`` to ``high``, uniform or uniform in their logarithm."""

    low: float
    high: float
    prior: Prior = "uniform"

    def __post_init__(self) -> None:
        _check_bounds(self.name, self.low, self.high, self.prior)

    @cached_property
    def _ends(self) -> tuple[float, float]:
        return (math.log(self.low), math.log(self.high)) if self.prior == "log" else (self.low, self.high)

    def unit(self, value: Json) -> float:
        number = min(max(self._number(value), self.low), self.high)
        low, high = self._ends
        return ((math.log(number) if self.prior == "log" else number) - low) / (high - low)

    def contains(self, value: Json) -> bool:  # rounded or not
        try:
            return self.low <= self._number(value) <= self.high
        except ValueError:
            return False

    def value(self, unit: float) -> Json:
        low, high = self._ends
        place = low + min(max(unit, 0.0), 1.0) * (high - low)
        if self.prior == "log":
            number = float(f"{math.exp(place):.{max(_decimals((high - low) * RESOLUTION), 5)}e}")
        else:
            number = round(place, _decimals((high - low) * RESOLUTION))
        return float(min(max(number, self.low), self.high))

    def column(self, units: Floats) -> Column:
        low, high = self._ends
        places = low + np.clip(units, 0.0, 1.0) * (high - low)
        return np.exp(places) if self.prior == "log" else places


@dataclass(frozen=True)
class Int(Dimension):
    """Multiples of ``q`` from ``low`` to ``high``, uniform or uniform in their logarithm; whole numbers by default.

    A value stands for all reals that round to it, so that those at the ends are as likely as others.
    """

    low: float
    high: float
    prior: Prior = "uniform"
    q: float = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.q) and self.q > 0):
            raise ValueError(f"`{self.name}`: q must be above 0, not {self.q:g}")
        if self.low != self.high:
            _check_bounds(self.name, self.low, self.high, self.prior)
        if self.count < 1:
            raise ValueError(f"`{self.name}`: no multiple of {self.q:g} lies from {self.low:g} to {self.high:g}")

    @cached_property
    def _steps(self) -> tuple[int, int]:
        first = math.ceil(self.low / self.q - 1e-9)
        return max(first, 1) if self.prior == "log" else first, math.floor(self.high / self.q + 1e-9)

    @cached_property
    def _ends(self) -> tuple[float, float]:
        first, last = self._steps
        return (math.log(first - 0.5), math.log(last + 0.5)) if self.prior == "log" else (first - 0.5, last + 0.5)

    @property
    def count(self) -> int:
        first, last = self._steps
        return last - first + 1

    def items(self) -> Iterator[Json]:
        first, last = self._steps
        return (self._multiple(step) for step in range(first, last + 1))

    def _multiple(self, step: int) -> Json:
        # in decimals, as q was written: 3 steps of 0.1 are 0.3
        return step * int(self.q) if self.q == int(self.q) else float(f"{step * self.q:.12g}")

    def unit(self, value: Json) -> float:
        first, last = self._steps
        step = min(max(round(min(max(self._number(value), self.low), self.high) / self.q), first), last)
        low, high = self._ends
        return ((math.log(step) if self.prior == "log" else step) - low) / (high - low)

    def value(self, unit: float) -> Json:
        return self._multiple(int(self._nearest(np.array([unit]))[0]))

    def _nearest(self, units: Floats) -> Floats:
        low, high = self._ends
        places = low + np.clip(units, 0.0, 1.0) * (high - low)
        steps: Floats = np.clip(np.rint(np.exp(places) if self.prior == "log" else places), *self._steps)
        return steps

    def column(self, units: Floats) -> Column:
        return self._nearest(units) * self.q

    def snap(self, units: Floats) -> Floats:
        steps = self._nearest(units)
        low, high = self._ends
        snapped: Floats = ((np.log(steps) if self.prior == "log" else steps) - low) / (high - low)
        return snapped


@dataclass(frozen=True)
class Shaped(Dimension):
    """Reals of a normal, log-normal or beta distribution, between the quantiles :data:`TAIL` and 1 - ``TAIL``.

    The unit interval holds the cumulative probability: 0.5 is the median.
    """

    distribution: Normal | LogNormal | Beta

    def unit(self, value: Json) -> float:
        number, d = self._number(value), self.distribution
        if isinstance(d, Beta):
            return self._clip(float(special.betainc(d.a, d.b, min(max(number, 0.0), 1.0))))
        if isinstance(d, LogNormal):
            number = math.log(number) if number > 0 else -math.inf
        return self._clip(float(special.ndtr((number - d.mu) / d.sigma)))

    @staticmethod
    def _clip(unit: float) -> float:
        return min(max(unit, TAIL), 1 - TAIL)

    def value(self, unit: float) -> Json:
        number = float(self.column(np.array([unit]))[0])
        q = self.distribution.q
        if q is not None:
            steps = round(number / q)
            return steps * int(q) if q == int(q) else float(f"{steps * q:.12g}")
        if isinstance(self.distribution, LogNormal):
            return float(f"{number:.6g}")
        return round(number, _decimals(RESOLUTION * getattr(self.distribution, "sigma", 0.1)))

    def column(self, units: Floats) -> Column:
        d, clipped = self.distribution, np.clip(units, TAIL, 1 - TAIL)
        if isinstance(d, Beta):
            return np.asarray(special.betaincinv(d.a, d.b, clipped))
        numbers = d.mu + d.sigma * special.ndtri(clipped)
        return np.asarray(np.exp(numbers) if isinstance(d, LogNormal) else numbers)

    def snap(self, units: Floats) -> Floats:
        clipped = np.clip(units, TAIL, 1 - TAIL)
        return clipped if self.distribution.q is None else np.array([self.unit(self.value(u)) for u in clipped])


@dataclass(frozen=True)
class _Listed(Dimension):
    """Values that are listed."""

    values: tuple[Json, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        texts = [canonical(value) for value in self.values]
        if not texts:
            raise ValueError(f"`{self.name}` has no values")
        twice = next((text for index, text in enumerate(texts) if text in texts[:index]), None)
        if twice is not None:
            raise ValueError(f"`{self.name}` has the value {twice} twice")

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {canonical(value): index for index, value in enumerate(self.values)}

    @cached_property
    def _column(self) -> Column:
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values):
            return np.array(self.values, dtype=float)
        column = np.empty(len(self.values), dtype=object)
        column[:] = list(self.values)
        return column

    @property
    def count(self) -> int:
        return len(self.values)

    def items(self) -> Iterator[Json]:
        return iter(self.values)

    def _place(self, indices: Any) -> Any:
        return indices / (len(self.values) - 1) if len(self.values) > 1 else indices + 0.5

    def _nearest(self, units: Floats) -> NDArray[np.intp]:
        # half up: rint would round 0.5 of three steps to the even one
        return np.floor(np.clip(units, 0.0, 1.0) * (len(self.values) - 1) + 0.5).astype(np.intp)

    def unit(self, value: Json) -> float:
        index = self._positions.get(canonical(value))
        if index is None and not isinstance(value, bool):  # 1 for 1.0
            index = next((i for i, v in enumerate(self.values) if v == value and not isinstance(v, bool)), None)
        if index is None:
            known = ", ".join(map(canonical, self.values))
            raise ValueError(f"`{self.name}` is one of {known}, not {canonical(value)}")
        return float(self._place(index))

    def value(self, unit: float) -> Json:
        return self.values[int(self._nearest(np.array([unit]))[0])]

    def column(self, units: Floats) -> Column:
        return self._column[self._nearest(units)]

    def snap(self, units: Floats) -> Floats:
        return np.asarray(self._place(self._nearest(units)), dtype=float)

    def spread(self, uniform: Floats) -> Floats:
        weights = self.weights or (1.0,) * len(self.values)
        ends = np.cumsum(weights) / np.sum(weights)
        indices = np.minimum(np.searchsorted(ends, uniform, side="right"), len(self.values) - 1)
        return np.asarray(self._place(indices), dtype=float)


@dataclass(frozen=True)
class Categorical(_Listed):
    """Values without an order: one is as near to another as to any."""

    kind: ClassVar[Kind] = "categorical"


@dataclass(frozen=True)
class Ordinal(_Listed):
    """Values in an order, each as far from the next: ``batch=16,32,64,128``."""


@dataclass(frozen=True)
class Fixed(Dimension):
    """One value; it is passed on, not searched."""

    setting: Json

    @property
    def count(self) -> int:
        return 1

    def items(self) -> Iterator[Json]:
        return iter((self.setting,))

    def unit(self, value: Json) -> float:
        if canonical(value) != canonical(self.setting) and value != self.setting:
            raise ValueError(f"`{self.name}` is {canonical(self.setting)}, not {canonical(value)}")
        return 0.5

    def value(self, unit: float) -> Json:  # noqa: ARG002 - one value wherever it lies
        return self.setting

    def column(self, units: Floats) -> Column:
        if isinstance(self.setting, int | float) and not isinstance(self.setting, bool):
            return np.full(units.shape, float(self.setting))
        column = np.empty(units.shape, dtype=object)
        column[:] = [self.setting] * len(column)
        return column


def words(dimensions: Sequence[Dimension]) -> set[str]:
    """Return the values that are text: what a condition may name without quotes."""
    values = (value for d in dimensions if d.count is not None and not isinstance(d, Int) for value in d.items())
    return {value for value in values if isinstance(value, str)}
