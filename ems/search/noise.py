"""What luck can explain: paired comparisons, the best configuration with its uncertainty, and whether more trials pay.

Values are minimised. Pairs are values of two configurations with the same seed: much of the noise is common to both.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri, stdtr

from ems.model import Params
from ems.search import acquisition
from ems.search.candidates import Ground, best_first, pool, refine
from ems.search.gp import Posterior
from ems.search.model import Factory, Known, fit_faithful
from ems.search.problem import Problem
from ems.search.trial import Trial
from ems.search.warp import Array

ALPHA = 0.05  # share of comparisons of equals that may end in a claim, over all looks together
MOST_PAIRS = 25
FIRST_LOOK = 4  # pairs before anything is claimed
_N_PATHS = 40_000  # simulated comparisons: the share above is met within 0.2 points
_EXACT_WILCOXON = 60  # pairs up to which signs are counted exactly
_N_DRAWS = 4096


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired comparison of two configurations, a and b.

    Attributes
    ----------
    n
        Number of pairs.
    difference, sd
        Mean of a - b, and the standard deviation of the differences; NaN where there are too few pairs.
    p
        Two-sided: the greater of that of the paired t test (Student 1908) and of Wilcoxon's signed ranks (1945).
    threshold
        Greatest p that is a claim at this look.
    probability
        That a is better; see :func:`probability_better`.
    """

    n: int
    difference: float
    sd: float
    p: float
    threshold: float
    probability: float

    @property
    def is_decided(self) -> bool:
        """Whether one of the two is claimed to be better."""
        return self.p <= self.threshold

    @property
    def is_better(self) -> bool:
        """Whether a is claimed to be better than b."""
        return self.is_decided and self.difference < 0


def compare(a: Sequence[float], b: Sequence[float], most: int = MOST_PAIRS, alpha: float = ALPHA) -> Comparison:
    """Compare the values of two configurations, pair by pair; pairs with a value that is not finite are left out.

    It may be asked again after every pair: the claims of all looks from the fourth pair to the last are wrong for equal
    configurations in a share ``alpha`` at most (:func:`thresholds`). Not so for the best and second best of many, which
    luck has chosen: those take fresh pairs.

    Parameters
    ----------
    a, b
        Values of equal length, minimised, in the order in which they were looked at.
    most
        Number of pairs after which no more are made.

    Raises
    ------
    ValueError
        If the two differ in length.
    """
    differences = np.array([x - y for x, y in zip(a, b, strict=True)], dtype=float)
    differences = differences[np.isfinite(differences)]
    n = len(differences)
    if n < 2:
        return Comparison(n, float(differences.mean()) if n else math.nan, math.nan, 1.0, 0.0, 0.5)
    p = max(_t_test(differences), wilcoxon(differences))
    threshold = float(thresholds(max(most, n), alpha)[n])
    spread = float(np.std(differences, ddof=1))
    return Comparison(n, float(differences.mean()), spread, p, threshold, probability_better(a, b))


def probability_better(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the probability that the mean of a is below that of b, given their paired values.

    Of the posterior of a normal mean under the reference prior, which is Student's t with n - 1 degrees of freedom
    (Gelman et al. 2013, "Bayesian Data Analysis", section 3.2). 0.5 for fewer than two pairs. What decides
    after each of many looks is :func:`compare`.
    """
    differences = np.array([x - y for x, y in zip(a, b, strict=True)], dtype=float)
    differences = differences[np.isfinite(differences)]
    n = len(differences)
    if n < 2:
        return 0.5
    mean, error = float(differences.mean()), float(np.std(differences, ddof=1)) / math.sqrt(n)
    if error <= 1e-12 * abs(mean):
        return 0.5 if mean == 0.0 else float(mean < 0)
    return float(stdtr(n - 1, -mean / error))


def _t_test(differences: Array) -> float:
    n = len(differences)
    mean, error = abs(float(differences.mean())), float(np.std(differences, ddof=1)) / math.sqrt(n)
    if error <= 1e-12 * mean or mean == 0.0:
        return 0.0 if mean > 0 else 1.0
    return float(2.0 * stdtr(n - 1, -mean / error))


def wilcoxon(differences: Array) -> float:
    """Return the two-sided p value of Wilcoxon's signed-rank test: exact for all sign patterns up to 60 differences.

    Zeros are left out (Wilcoxon 1945), equal sizes share their mean rank; the number of sign patterns for each sum of
    ranks is counted by dynamic programming, so that ties need no correction. Above that the normal approximation.
    """
    d = differences[differences != 0.0]
    n = len(d)
    if n == 0:
        return 1.0
    sizes, inverse, counts = np.unique(np.abs(d), return_inverse=True, return_counts=True)
    doubled = (2 * np.cumsum(counts) - counts + 1)[inverse] if len(sizes) else np.empty(0)  # twice the mean ranks
    total, positive = int(doubled.sum()), int(doubled[d > 0].sum())
    if n > _EXACT_WILCOXON:
        z = (abs(positive - total / 2) - 1.0) / (0.5 * math.sqrt(float(np.sum(doubled.astype(float) ** 2))))
        return float(min(1.0, 2.0 * ndtr(-z)))
    ways = np.zeros(total + 1)
    ways[0] = 1.0
    for rank in doubled.astype(int):
        ways[rank:] += ways[:-rank].copy()
    low = min(positive, total - positive)
    return float(min(1.0, 2.0 * ways[: low + 1].sum() / 2.0**n))


@functools.cache
def thresholds(most: int, alpha: float = ALPHA) -> Array:
    """Return the greatest p value that is a claim after n pairs, for n from 0 to ``most``: (most + 1,).

    O'Brien & Fleming 1979 ("A multiple testing procedure for clinical trials"): the bound on the normal deviate falls
    as 1 / sqrt(n); its height is such that of comparisons of equals, looked at after every pair, a share ``alpha`` ends
    in a claim. It is found by simulating t tests with a fixed seed, since their deviates are not normal for few pairs.
    """
    bounds = np.zeros(most + 1)
    if most < FIRST_LOOK:
        return bounds
    n = np.arange(FIRST_LOOK, most + 1)
    d = np.random.default_rng(0).standard_normal((_N_PATHS, most))
    sums, squares = (np.cumsum(each, axis=1)[:, FIRST_LOOK - 1 :] for each in (d, d * d))
    t = np.abs(sums) / np.sqrt(n * np.maximum(squares - sums**2 / n, 1e-12) / (n - 1))
    deviate = -ndtri(np.maximum(stdtr(n - 1, -t), 1e-300))
    height = np.quantile(np.max(deviate * np.sqrt(n / most), axis=1), 1.0 - alpha)
    bounds[FIRST_LOOK:] = 2.0 * ndtr(-height * np.sqrt(most / n))
    return bounds


@dataclass(frozen=True, slots=True)
class Leader:
    """The configuration that the model believes to be best, which is not always that with the luckiest run.

    Attributes
    ----------
    config
        Its number: that of the first trial with these params.
    mean, sd
        What the model believes its objective to be, noise taken away, and how sure it is.
    n
        How often it was evaluated.
    runner_up
        Number of the second best configuration; None where there is none.
    probability
        That it is better than the runner-up, by the model's joint posterior; 0.5 where there is none.
    """

    config: int
    params: Params
    mean: float
    sd: float
    n: int
    runner_up: int | None
    probability: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """Whether more trials pay.

    Attributes
    ----------
    gain
        Improvement that is expected of the best next trial, in units of the objective.
    noise
        Standard deviation of an evaluation of the same params, likewise.
    """

    gain: float
    noise: float

    @property
    def is_stop_offered(self) -> bool:
        """Whether the gain is under the noise: nobody would see it.

        In the manner of Makarova et al. 2022, "Automatic Termination for Hyperparameter Optimization", section 4, whose
        threshold is the deviation of the estimate that is optimised.
        """
        return self.gain < self.noise


def leader(
    problem: Problem, trials: Sequence[Trial], group: str | None = None, rung: int = 0, factory: Factory = fit_faithful
) -> Leader | None:
    """Return the best configuration by posterior mean; None where no value is known at ``rung``."""
    ground = Ground(problem.space)
    first = _configurations(ground, trials, group, rung)
    if not first:
        return None
    posterior = factory(Known.of(ground, trials, group, rung), np.random.default_rng(problem.seed))
    x = ground.locate(group_of[0].params for group_of in first)
    mean, sd = posterior.predict(x)
    order = best_first(-mean, 2)
    shown, error = posterior.in_units(mean[order], sd[order])
    best = first[order[0]]
    return Leader(
        config=best[0].number,
        params=best[0].params,
        mean=float(shown[0]),
        sd=float(error[0]),
        n=len(best),
        runner_up=first[order[1]][0].number if len(order) > 1 else None,
        probability=_probability_first(posterior, x[order]),
    )


def _configurations(ground: Ground, trials: Sequence[Trial], group: str | None, rung: int) -> list[list[Trial]]:
    """Return trials whose value is known, by configuration, in the order of their numbers."""
    by_key: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.group == group and len(trial.values) > rung and math.isfinite(trial.values[rung]):
            by_key.setdefault(ground.space.key(trial.params), []).append(trial)
    return list(by_key.values())


def _probability_first(posterior: Posterior, x: Array) -> float:
    """Return the share of joint draws at two points (2, d) in which the first is below the second."""
    if len(x) < 2:
        return 0.5
    draws = posterior.draw(x, np.random.default_rng(0), _N_DRAWS)
    return float(np.mean(draws[:, 0] < draws[:, 1]))


def outlook(problem: Problem, trials: Sequence[Trial], group: str | None = None, rung: int = 0) -> Outlook | None:
    """Return what one more trial is expected to gain; None where fewer than two values more than dimensions are known.

    The greatest expected improvement over the best posterior mean, among the candidates that a proposal would have.
    """
    ground = Ground(problem.space)
    known = Known.of(ground, trials, group, rung)
    if len(known.y) < ground.n_dimensions + 2:
        return None
    rng = np.random.default_rng(problem.seed)
    model = fit_faithful(known, rng)
    means, _ = model.predict(model.observed)
    incumbent = float(np.min(means))

    def score(x: Array) -> Array:
        return acquisition.log_ei(*model.predict(x), incumbent)

    candidates = pool(ground, model.observed[best_first(-means, 5)], rng)
    candidates = candidates[known.taken.free(candidates)]
    if not len(candidates):
        return Outlook(0.0, model.noise)
    scores = score(candidates)
    top = best_first(scores, 4)
    _, best = refine(ground, candidates[top], scores[top], score, known.taken, rng)
    return Outlook(math.exp(best) * model.warp.scale, model.noise)
