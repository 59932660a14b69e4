"""Tree-structured Parzen estimator: where good points are dense and others are not (Bergstra et al. 2011).

All dimensions at once, as in BOHB (Falkner et al. 2018): the good and the others are a mixture each of one kernel a
point and the prior; candidates are drawn from the good mixture and scored by the ratio of the densities. Pending and
failed points count among the others, which keeps proposals away from both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from ems.search.dimension import Floats
from ems.search.problem import Problem
from ems.search.space import SearchSpace
from ems.search.trial import Origin, Proposal, Trial

GOOD = 0.15  # share of the points that counts as good
MAX_GOOD = 25
N_CANDIDATES = 128


def propose(
    problem: Problem,
    trials: Sequence[Trial],
    count: int,
    numbers: Sequence[int],
    group: str | None,
    rung: int,  # noqa: ARG001 - the model is of the highest rung with enough points, wherever the trial begins
) -> list[Proposal]:
    """Return points by the ratio of densities; see :func:`ems.search.samplers.propose`."""
    space = problem.space
    own = [trial for trial in trials if trial.group == group]
    rows = np.array([space.encode(trial.params) for trial in own]).reshape(len(own), len(space.names))
    is_good = _good(own, len(space.names) + 1)
    proposals: list[Proposal] = []
    for number in numbers[:count]:
        rng = np.random.default_rng([problem.seed, number])
        row, ratio = _best(space, rows[is_good], rows[~is_good], rng)
        proposals.append(Proposal(space.decode(row), Origin.MODEL, acquisition=ratio))
        rows, is_good = np.vstack([rows, row]), np.append(is_good, False)
    return proposals


def model_rung(trials: Sequence[Trial], least: int) -> int:
    """Return the highest rung that at least so many trials have completed, else the lowest."""
    depth = max((len(trial.values) for trial in trials), default=0)
    enough = (rung for rung in range(depth - 1, 0, -1) if sum(len(t.values) > rung for t in trials) >= least)
    return next(enough, 0)


def _good(trials: Sequence[Trial], least: int) -> NDArray[np.bool_]:
    """Return which trials are good: the best of the highest rung that enough have completed."""
    rung = model_rung(trials, least)
    values = np.array(
        [trial.values[rung] if len(trial.values) > rung and not trial.outcome.is_bad else np.inf for trial in trials]
    )
    n_values = int(np.isfinite(values).sum())
    is_good: NDArray[np.bool_] = np.zeros(len(trials), dtype=bool)
    is_good[np.argsort(values, kind="stable")[: min(int(np.ceil(GOOD * n_values)), MAX_GOOD)]] = True
    return np.asarray(is_good & np.isfinite(values))


def _best(space: SearchSpace, good: Floats, others: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    dense, sparse = Mixture(space, good), Mixture(space, others)
    candidates = space.snap(dense.draw(rng, N_CANDIDATES))
    allowed = candidates[space.allowed(candidates)]
    if not len(allowed):
        allowed = np.array([space.encode(space.draw(rng, 1)[0])])
    ratios = dense.log_density(allowed) - sparse.log_density(allowed)
    best = int(np.argmax(ratios))
    return allowed[best], float(ratios[best])


@dataclass(frozen=True)
class Mixture:
    """A kernel around each of ``centres``, shape ``(n, d)``, and the prior, all of the same weight.

    Numbers have normal kernels that end where the dimension ends, their width falling with ``n ** (-1 / (d + 4))``
    (Scott); categories a kernel that keeps the value, or takes any, in the same proportion.
    """

    space: SearchSpace
    centres: Floats

    @property
    def _width(self) -> float:
        n, d = max(len(self.centres), 1), len(self.space.names)
        return float(max(0.25 * n ** (-1 / (d + 4)), 1 / (n + 10)))

    def draw(self, rng: np.random.Generator, count: int) -> Floats:
        """Draw points of shape ``(count, d)``."""
        d = len(self.space.names)
        prior = self.space.spread(rng.random((count, d)))
        steps = rng.standard_normal((count, d)) * self._width
        keep = rng.random((count, d)) > self._width
        which = rng.integers(0, len(self.centres) + 1, size=count)
        if not len(self.centres):
            return prior
        centre = self.centres[np.minimum(which, len(self.centres) - 1)]
        is_category = np.array([kind == "categorical" for kind in self.space.kinds])
        near = np.abs(1 - np.abs(1 - (centre + steps) % 2))  # reflected where the dimension ends
        moved = np.where(is_category, np.where(keep, centre, prior), near)
        return np.where((which == len(self.centres))[:, None], prior, moved)

    def log_density(self, points: Floats) -> Floats:
        """Return the logarithm of the density at points of shape ``(m, d)``, shape ``(m,)``."""
        logs = np.zeros((len(points), len(self.centres)))
        prior = 0.0
        for column, (kind, count) in enumerate(zip(self.space.kinds, self.space.levels, strict=True)):
            x, centre = points[:, column, None], self.centres[:, column][None, :]
            if kind == "categorical" and count is not None:
                logs += np.log(np.where(np.isclose(x, centre), 1 - self._width, 0.0) + self._width / count)
                prior -= np.log(count)
            else:
                inside = ndtr((1 - centre) / self._width) - ndtr(-centre / self._width)
                logs += -0.5 * ((x - centre) / self._width) ** 2 - np.log(self._width * np.sqrt(2 * np.pi) * inside)
        mixed = np.logaddexp.reduce(np.column_stack([logs, np.full(len(points), prior)]), axis=1)
        return np.asarray(mixed - np.log(len(self.centres) + 1))
