"""The statistics of a report: means with intervals, paired tests against a baseline. Pure.

Student's t is computed here because importing ``scipy.special`` costs half a second, half of what a whole report may
take; the tests hold it against scipy. numpy is imported only to bootstrap.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
N_RESAMPLES = 10_000
SMALL_BOOTSTRAP = 8  # with fewer values a bootstrap interval is known to be too narrow


class Method(enum.StrEnum):
    """How an interval is made."""

    T = "t"
    BOOTSTRAP = "bootstrap"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its interval.

    ``low`` and ``high`` are None where one value (or none) says nothing of the spread; ``n`` counts the finite values,
    ``n_not_finite`` the NaN and infinite ones, which no mean includes.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    n_not_finite: int = 0

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval: what stands after ± for a symmetric one."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def estimate(values: Sequence[float], method: Method = Method.T, confidence: float = CONFIDENCE) -> Estimate:
    """Mean of the finite ``values`` and its confidence interval.

    Parameters
    ----------
    values
        One number a run.
    method
        ``t``: mean ± t(n - 1) · s / √n (Student 1908). ``bootstrap``: bias-corrected and accelerated percentiles of
        10,000 resampled means with a fixed seed (Efron 1987, "Better bootstrap confidence intervals").
    confidence
        Share of intervals that hold the true mean, between 0 and 1.
    """
    x = [float(v) for v in values if math.isfinite(v)]
    n, n_not_finite = len(x), len(values) - len(x)
    if not x:
        return Estimate(None, None, None, 0, n_not_finite)
    if n == 1:
        return Estimate(x[0], None, None, 1, n_not_finite)
    if min(x) == max(x):  # rounding of the mean must not make a spread where there is none
        return Estimate(x[0], x[0], x[0], n, n_not_finite)
    mean, deviation = _mean_and_deviation(x)
    if method is Method.BOOTSTRAP:
        return Estimate(mean, *_bca(x, confidence), n, n_not_finite)
    half = t_quantile((1 + confidence) / 2, n - 1) * deviation / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n, n_not_finite)


def _mean_and_deviation(x: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1)."""
    mean = math.fsum(x) / len(x)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in x) / (len(x) - 1))


def _bca(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Interval of Efron (1987), section 3, for the mean; jackknife acceleration by his equation 6.6."""
    from statistics import NormalDist  # noqa: PLC0415 - with numpy, what only a bootstrap needs

    import numpy as np  # noqa: PLC0415

    normal, n = NormalDist(), len(values)
    origin, spread = min(values), max(values) - min(values)
    x = (np.asarray(values) - origin) / spread  # cubes of tiny or huge deviations stay representable
    generator = np.random.default_rng(0)  # the same table for the same runs, whoever prints it
    block = max(1, 1_000_000 // n)  # resamples drawn at once: memory stays bounded for long columns
    sizes = [min(block, N_RESAMPLES - done) for done in range(0, N_RESAMPLES, block)]
    means = np.concatenate([x[generator.integers(0, n, (size, n))].mean(axis=1) for size in sizes])

    below = float(((means < x.mean()).sum() + (means == x.mean()).sum() / 2) / N_RESAMPLES)
    bias = normal.inv_cdf(min(max(below, 1 / N_RESAMPLES), 1 - 1 / N_RESAMPLES))
    deviation = x.mean() - (x.sum() - x) / (n - 1)  # jackknife: the mean without each value in turn
    acceleration = float((deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5))
    z = [bias + normal.inv_cdf(p) for p in ((1 - confidence) / 2, (1 + confidence) / 2)]
    low, high = np.quantile(means, [normal.cdf(bias + v / (1 - acceleration * v)) for v in z])
    return origin + spread * float(low), origin + spread * float(high)


@dataclass(frozen=True, slots=True)
class Paired:
    """A paired comparison: mean of the differences, its interval, p value and effect size.

    ``p`` is two-sided, of the paired t test; ``effect`` is Cohen's d_z, the mean difference over the standard deviation
    of the differences (Lakens 2013, equation 6). Both are None where fewer than two pairs, or differences that are all
    the same, leave them undefined.
    """

    difference: Estimate
    p: float | None
    effect: float | None


def paired(values: Sequence[float], baseline: Sequence[float], method: Method = Method.T) -> Paired:
    """Compare ``values`` with ``baseline``, pair by pair; pairs with a value that is not finite are left out.

    Raises
    ------
    ValueError
        If the two differ in length.
    """
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    difference = estimate(differences, method)
    d = [v for v in differences if math.isfinite(v)]
    scale = max((abs(v) for v in (*values, *baseline) if math.isfinite(v)), default=0.0)
    # the spread of equal differences is rounding only, and dividing by it would make a "significant" nothing
    spread = max(d) - min(d) if d else 0.0
    if len(d) < 2 or spread <= 1e-12 * scale:
        return Paired(difference, 1.0 if len(d) > 1 and not any(d) else None, None)
    mean, deviation = _mean_and_deviation([v / spread for v in d])
    effect = mean / deviation
    return Paired(difference, t_test_p(effect * math.sqrt(len(d)), len(d) - 1), effect)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p values for having made several tests (Holm 1979); None stays None and is not counted."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = largest
    return adjusted


def t_test_p(t: float, df: int) -> float:
    """Two-sided p value of Student's t with ``df`` degrees of freedom (Abramowitz & Stegun 26.7.1)."""
    return _incomplete_beta(df / (df + t * t), t * t / (df + t * t), df / 2, 0.5)


@functools.lru_cache(maxsize=1024)
def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t for ``0.5 < p < 1``, by bisection."""
    tail, low, high = 2 * (1 - p), 0.0, 1.0
    while t_test_p(high, df) > tail:
        low, high = high, high * 2
    while high - low > 1e-14 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_test_p(middle, df) > tail else (low, middle)
    return (low + high) / 2


def _incomplete_beta(x: float, y: float, a: float, b: float) -> float:
    """Regularised incomplete beta function at ``x = 1 - y``, by its continued fraction (DLMF 8.17.22; Lentz's method).

    Both ``x`` and ``y`` are asked for, because 1 - x has lost the digits of a small y.
    """
    if x <= 0 or y <= 0:
        return float(y <= 0)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly, the mirrored one is quick (DLMF 8.17.4)
        return 1 - _incomplete_beta(y, x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(y) - math.log(a)
    )
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 500):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            c, d = _not_zero(1 + term / c), 1 / _not_zero(1 + term * d)
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction


def _not_zero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300
