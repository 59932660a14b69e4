"""What params are drawn from: the distributions of ``--samples``, sweep files and ``ems tune``. Pure.

Each draws from a ``random.Random`` that the caller seeds, so that the same seed gives the same points everywhere.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from ems.model import Json


class Distribution(Protocol):
    """What a param is drawn from."""

    def sample(self, rng: random.Random) -> Json:
        """Draw one value."""
        ...


def _quantize(value: float, q: float | None) -> float | int:
    """Round to a multiple of ``q``; None leaves the value as it is. A whole ``q`` gives whole numbers."""
    if q is None:
        return value
    steps = round(value / q)
    # In decimals, as q was written: 3 steps of 0.1 are 0.3.
    return steps * int(q) if q == int(q) else float(steps * Decimal(repr(q)))


def _check_order(low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"the lower end {low:g} is not below the upper end {high:g}")


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be above 0, not {value:g}")


def _check_step(q: float | None) -> None:
    if q is not None:
        _check_positive("q", q)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Real numbers from ``low`` to ``high``, each as likely; multiples of ``q`` where it is given."""

    low: float
    high: float
    q: float | None = None

    def __post_init__(self) -> None:
        _check_order(self.low, self.high)
        _check_step(self.q)

    def sample(self, rng: random.Random) -> Json:
        """Draw one value."""
        return _quantize(rng.uniform(self.low, self.high), self.q)


@dataclass(frozen=True, slots=True)
class LogUniform:
    """Positive numbers whose logarithm is uniform from ``log(low)`` to ``log(high)``; multiples of ``q`` if given."""

    low: float
    high: float
    q: float | None = None

    def __post_init__(self) -> None:
        _check_positive("the lower end", self.low)
        _check_order(self.low, self.high)
        _check_step(self.q)

    def sample(self, rng: random.Random) -> Json:
        """Draw one value."""
        value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return _quantize(min(max(value, self.low), self.high), self.q)


@dataclass(frozen=True, slots=True)
class IntUniform:
    """Whole numbers from ``low`` to ``high``, both included, each as likely."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _check_order(self.low, self.high)

    def sample(self, rng: random.Random) -> Json:
        """Draw one value."""
        return rng.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class LogInt:
    """Whole numbers from ``low`` to ``high``, both included, uniform in their logarithm.

    A number stands for all reals that round to it, so that the ends are not half as likely.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        _check_positive("the lower end", self.low)
        _check_order(self.low, self.high)

    def sample(self, rng: random.Random) -> Json:
        """Draw one value."""
        value = math.exp(rng.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5)))
        return min(max(round(value), self.low), self.high)


@dataclass(frozen=True, slots=True)
class Normal:
    """The normal distribution of mean ``mu`` and standard deviation ``sigma``; multiples of ``q`` if given."""

    mu: float = 0.0
    sigma: float = 1.0
    q: float | None = None

    def __post_init__(self) -> None:
        _check_positive("the standard deviation", self.sigma)
        _check_step(self.q)

    def sample(self, rng: random.Random) -> Json:
        """Draw one value."""
        return _quantize(rng.gauss(self.mu, self.sigma), self.q)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Numbers whose logarithm is normal of mean ``mu`` and deviation ``sigma``; multiples of ``q`` if given."""

    mu: float = 0.0
    sigma: float = 1.0
    q: float | None = None

    def __post_init__(self) -> None:
        _check_positive("the standard deviation", self.sigma)
        _check_step(self.q)

    def sample(self, rng: random.Random) -> Json:
        """Draw one value."""
        return _quantize(math.exp(rng.gauss(self.mu, self.sigma)), self.q)


@dataclass(frozen=True, slots=True)
class Beta:
    """The beta distribution on 0 to 1; multiples of ``q`` if given."""

    a: float = 1.0
    b: float = 1.0
    q: float | None = None

    def __post_init__(self) -> None:
        _check_positive("a", self.a)
        _check_positive("b", self.b)
        _check_step(self.q)

    def sample(self, rng: random.Random) -> Json:
        """Draw one value."""
        return _quantize(rng.betavariate(self.a, self.b), self.q)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of ``values``, each as likely, or as likely as its weight."""

    values: tuple[Json, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("there is nothing to choose from")
        if self.weights is None:
            return
        if len(self.weights) != len(self.values):
            raise ValueError(f"{len(self.weights)} probabilities for {len(self.values)} values")
        if min(self.weights) < 0 or not math.isclose(sum(self.weights), 1, abs_tol=1e-6):
            raise ValueError("probabilities must be at least 0 and add up to 1")

    def sample(self, rng: random.Random) -> Json:
        """Draw one value."""
        return rng.choices(self.values, self.weights)[0]
