"""The statistics of a report: means with intervals, paired tests against a baseline. Pure.

scipy does the mathematics. It is imported where it is first needed: ``scipy.special`` costs a third of a second,
``scipy.stats`` more than one, and a report of one row a run needs neither.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ems.report.query import Method

CONFIDENCE = 0.95
N_RESAMPLES = 10_000
SMALL_BOOTSTRAP = 8  # with fewer values a bootstrap interval is known to be too narrow
_BATCH = 1_000_000  # numbers drawn at once by a bootstrap, so that memory stays bounded for long columns


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
    mean = statistics.mean(x)
    if method is Method.BOOTSTRAP:
        return Estimate(mean, *_bca(x, confidence), n, n_not_finite)
    half = _t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(x) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n, n_not_finite)


@functools.cache
def _t_quantile(p: float, df: int) -> float:
    from scipy.special import stdtrit  # noqa: PLC0415 - see above

    return float(stdtrit(df, p))


def _bca(values: Sequence[float], confidence: float) -> tuple[float, float]:
    import numpy as np  # noqa: PLC0415 - see above
    from scipy.stats import bootstrap  # noqa: PLC0415

    origin, spread = min(values), max(values) - min(values)
    x = (np.asarray(values) - origin) / spread  # cubes of tiny or huge deviations stay representable
    interval = bootstrap(
        (x,),
        np.mean,
        method="BCa",
        confidence_level=confidence,
        n_resamples=N_RESAMPLES,
        batch=max(1, _BATCH // len(x)),
        rng=np.random.default_rng(0),  # the same table for the same runs, whoever prints it
    ).confidence_interval
    return origin + spread * float(interval.low), origin + spread * float(interval.high)


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
    from scipy.stats import ttest_1samp  # noqa: PLC0415 - see above

    # the paired test is the test of the differences; in units of their spread, squares of tiny ones do not vanish
    test = ttest_1samp([v / spread for v in d], 0.0)
    return Paired(difference, float(test.pvalue), float(test.statistic) / math.sqrt(len(d)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p values for having made several tests (Holm 1979); None stays None and is not counted.

    Written here because scipy corrects for the false discovery rate only.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = largest
    return adjusted
