"""Values of an objective as a Gaussian process likes them: about standardised, bad extremes pulled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

Array: TypeAlias = npt.NDArray[np.float64]

HEAVY_TAIL = 0.0  # pulled in always: better than never on `benchmarks.tuning.problems.DEVELOPED`, a tie on `HELD_OUT`


@dataclass(frozen=True, slots=True)
class Warp:
    """A monotone map of the objective's values (minimised): ``(g(y) - location) / scale``.

    g replaces the bad half of the values by normal quantiles of their ranks, around the median and as wide as the good
    half (Song et al. 2024, "The Vizier Gaussian Process Bandit Algorithm", section on output warping: "half-rank"). The
    good half is never bent, so that predictions of good values and their deviations can be read in units of the
    objective.

    Attributes
    ----------
    knots, images
        Values, ascending, and what g makes of them; linear between, and with slope one below the first. Both (k,).
    """

    knots: Array
    images: Array
    location: float
    scale: float

    @classmethod
    def fit(cls, y: Array, heavy_tail: float = HEAVY_TAIL) -> Warp:
        """Return the map for values ``y`` (n,), finite.

        Parameters
        ----------
        y
            Values that were observed.
        heavy_tail
            The bad half is pulled in where it is so many times as wide as the good half: 0 always, infinity never.
        """
        values = np.unique(y)
        images = values.copy()
        median = float(np.median(y))
        good, bad = median - values[0], values[-1] - median
        if len(values) > 2 and np.isfinite(heavy_tail) and bad > heavy_tail * good:
            images = _half_rank(np.sort(y), values, median)
        g = images[np.searchsorted(values, y)]
        spread = float(np.std(g))
        negligible = spread <= 1e-12 * max(1.0, float(np.max(np.abs(g))))
        return cls(values, images, float(np.mean(g)), 1.0 if negligible else spread)

    def apply(self, y: Array) -> Array:
        """Return the images of values ``y`` (m,)."""
        return (self._bend(y, self.knots, self.images) - self.location) / self.scale

    def invert(self, values: Array) -> Array:
        """Return values of the objective, given their images (m,)."""
        return self._bend(values * self.scale + self.location, self.images, self.knots)

    def log_slope(self, y: Array) -> float:
        """Return the sum of the logarithms of the map's slopes at values ``y`` (m,) of those that it was made of.

        At a knot it is the geometric mean of the slopes on both sides.
        """
        pieces = np.log(np.diff(self.images) / np.diff(self.knots))
        below, above = np.concatenate([[0.0], pieces]), np.concatenate([pieces, [0.0]])
        return float(np.sum(np.interp(y, self.knots, (below + above) / 2.0)) - len(y) * np.log(self.scale))

    @staticmethod
    def _bend(v: Array, sources: Array, targets: Array) -> Array:
        """Interpolate; outside go on with slope one."""
        inside = np.interp(v, sources, targets)
        result: Array = inside + np.minimum(v - sources[0], 0.0) + np.maximum(v - sources[-1], 0.0)
        return result


def _half_rank(ordered: Array, values: Array, median: float) -> Array:
    """Return what half-rank warping makes of ``values``, the unique ones of ``ordered``; equal values keep one rank."""
    good = ordered[ordered <= median] - median
    width = float(np.sqrt(np.mean(good**2)))
    if width <= 0.0:  # half of the values are the best one: any width will do
        width = 1e-3 * max(abs(median), 1e-9)
    first = np.searchsorted(ordered, values, side="left")
    last = np.searchsorted(ordered, values, side="right")
    quantiles = ndtri((first + last) / 2.0 / len(ordered))
    return np.where(values > median, median + width * np.maximum(quantiles, 0.0), values)
