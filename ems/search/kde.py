"""BOHB's sampler: where good configurations are dense, and bad ones are not (Falkner et al. 2018, section 4.1).

The densities are those of its authors' implementation (HpBandSter 0.7.4, ``bohb_kde.py``): of the highest rung with
enough values, the best 15 % and the others; 64 candidates from widened kernels around good ones; a third of all drawn
from the prior. Failed configurations count as bad; pending ones do not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr, ndtri

from ems.search import samplers
from ems.search.problem import Problem
from ems.search.rungs import value_at
from ems.search.space import SearchSpace
from ems.search.trial import Origin, Proposal, Trial
from ems.search.warp import Array

GOOD = 0.15  # of the configurations of a rung
N_CANDIDATES = 64
RANDOM_SHARE = 1 / 3
WIDENING = 3.0  # of the kernels that candidates are drawn from
_LEAST_WIDTH = 1e-3


def propose(
    problem: Problem, trials: Sequence[Trial], numbers: Sequence[int], group: str | None, rung: int
) -> list[Proposal]:
    """Propose a new configuration for each of the numbers; see `ems.search.samplers.propose`."""
    own = [each for each in trials if each.group == group]
    fresh = samplers.Fresh(problem.space, own)
    densities = _densities(problem, own)
    found: list[Proposal] = []
    for number in numbers:
        rng = np.random.default_rng([problem.seed, number])
        chosen = None
        if densities is not None and rng.random() >= RANDOM_SHARE:
            chosen = _best(problem.space, *densities, fresh, rng)
        if chosen is None:
            told = [*own, *(Trial(-1, each.params, group=group) for each in found)]
            chosen = next(
                iter(samplers.propose(replace(problem, sampler="random"), told, 1, [number], group, rung)), None
            )
        if chosen is None:
            break
        fresh.take(chosen.params)
        found.append(chosen)
    return found


def _densities(problem: Problem, own: Sequence[Trial]) -> tuple[Density, Density] | None:
    """Return the densities of good and bad ones at the highest rung that has enough values; None where none has."""
    space = problem.space
    least = len(space.names) + 1
    for rung in reversed(range(problem.n_rungs)):
        scored = [(_loss(each, rung), each.number, each.params) for each in own]
        ranked = sorted((each for each in scored if not math.isnan(each[0])), key=lambda each: each[:2])
        n_good = max(least, math.floor(GOOD * len(ranked)))
        if len(ranked) >= 2 * least and sum(math.isfinite(each[0]) for each in ranked) >= least:
            rows = np.array([space.encode(params) for *_, params in ranked])
            return Density.of(space, rows[:n_good]), Density.of(space, rows[n_good:])
    return None


def _loss(trial: Trial, rung: int) -> float:
    """Return the value at a rung, infinity where it failed on the way there, NaN where it has none."""
    return math.inf if trial.outcome.is_bad and trial.rung == rung else value_at(trial, rung)


def _best(
    space: SearchSpace, good: Density, bad: Density, fresh: samplers.Fresh, rng: np.random.Generator
) -> Proposal | None:
    """Return the new candidate with the greatest ratio of densities; None where all were had, or none is allowed."""
    rows = space.snap(good.draw(rng, N_CANDIDATES))
    rows = rows[space.allowed(rows)]
    if not len(rows):
        return None
    ratios = good.log_density(rows) - bad.log_density(rows)
    for index in np.argsort(-ratios, kind="stable"):
        params = space.decode(rows[index])
        if fresh.take(params):
            return Proposal(params, Origin.MODEL, acquisition=float(ratios[index]))
    return None


@dataclass(frozen=True)
class Density:
    """A product kernel around each of ``centres`` (n, d); ``widths`` (d,) by the normal reference rule.

    1.06 sd n^(-1 / (d + 4)), at least 0.001 (Scott 1992; statsmodels' ``KDEMultivariate``). Categorical dimensions have
    Aitchison & Aitken's kernel: the value itself with probability 1 - width, else any other.
    """

    centres: Array
    widths: Array
    levels: tuple[int, ...]  # of categorical dimensions the number of choices, else 0

    @classmethod
    def of(cls, space: SearchSpace, centres: Array) -> Density:
        """Return the density of points (n, d) of a space's unit cube."""
        n, d = centres.shape
        levels = tuple((each.count or 0) if each.kind == "categorical" else 0 for each in space.searched)
        most = np.array([(level - 1) / level if level else 1.0 for level in levels])
        widths = 1.06 * centres.std(axis=0) * n ** (-1 / (d + 4))
        return cls(centres, np.clip(widths, _LEAST_WIDTH, most), levels)

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """Return ``count`` points (count, d) from widened kernels, cut off at the ends of the cube."""
        centre = self.centres[rng.integers(len(self.centres), size=count)]
        wide = WIDENING * self.widths
        low, high = ndtr(-centre / wide), ndtr((1 - centre) / wide)
        points: Array = centre + wide * ndtri(low + rng.random(centre.shape) * (high - low))
        for column, level in enumerate(self.levels):
            if level:
                other = rng.integers(level, size=count) / max(1, level - 1)
                keeps = rng.random(count) >= self.widths[column]
                points[:, column] = np.where(keeps, centre[:, column], other)
        return np.clip(points, 0.0, 1.0)

    def log_density(self, points: Array) -> Array:
        """Return the log of the density at points (m, d): (m,)."""
        logs = np.zeros((len(points), len(self.centres)))
        for column, (level, width) in enumerate(zip(self.levels, self.widths, strict=True)):
            x, centre = points[:, column, None], self.centres[:, column][None, :]
            if level:
                logs += np.log(np.where(np.isclose(x, centre), 1 - width, width / max(1, level - 1)))
            else:
                logs -= 0.5 * ((x - centre) / width) ** 2 + np.log(width)
        mixed: Array = np.logaddexp.reduce(logs, axis=1) - np.log(len(self.centres))
        return np.maximum(mixed, np.log(1e-32))
