"""New configurations where there are rungs: a model of several fidelities, and which values other samplers see.

The model is a stack: a Gaussian process of the lowest rung, and for each higher one a process of what the stack below
does not explain. It predicts the highest rung that enough configurations have reached. Only values at the ends of rungs
are used: more of the curves "does not tend to make a difference" (Klein et al. 2020, "Model-based Asynchronous
Hyperparameter and Neural Architecture Search").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ems.search import kde, model, samplers
from ems.search.candidates import unique
from ems.search.gp import Surrogate
from ems.search.problem import Problem
from ems.search.rungs import at_rung, modelled_rung
from ems.search.trial import Origin, Proposal, Trial
from ems.search.warp import Array, Warp

SOBOL_SHARE = 0.1  # of new configurations no model chooses: what a low rung misjudges is found in the end
_WITH_SOBOL = ("asha", "hyperband", "stop")  # bohb draws a third anyway
_STACKED = ("gp", "ts", "lp", "ucb", "ei", "pi", "lcb")
_SOBOL_SALT = 0x50B01  # so that whether a number is of that share says nothing about what is drawn for it


def propose(
    problem: Problem, trials: Sequence[Trial], numbers: Sequence[int], group: str | None, rung: int
) -> list[Proposal]:
    """Propose a new configuration for each of the numbers; fewer where the space has no more.

    Without rungs, and for samplers that learn nothing, this is :func:`ems.search.samplers.propose`. With them a share
    comes from Sobol's sequence, and the others from a model of the highest rung that has enough values.

    Parameters
    ----------
    rung
        At which they begin.
    """
    if problem.n_rungs == 1 or problem.sampler in samplers.UNINFORMED:
        return samplers.propose(problem, trials, len(numbers), numbers, group, rung)
    drawn = [number for number in numbers if problem.scheduler in _WITH_SOBOL and _is_of_sobol(problem, number)]
    learnt = [number for number in numbers if number not in drawn]
    found: dict[int, Proposal] = {}
    if drawn:
        chosen = samplers.propose(replace(problem, sampler="sobol"), trials, len(drawn), drawn, group, rung)
        found |= {n: replace(each, origin=Origin.RANDOM) for n, each in zip(drawn, chosen, strict=False)}
    if learnt:
        told = [*trials, *(Trial(number, each.params, group=group) for number, each in found.items())]
        found |= dict(zip(learnt, _learnt(problem, told, learnt, group, rung), strict=False))
    return [found[number] for number in sorted(found)]


def _is_of_sobol(problem: Problem, number: int) -> bool:
    return bool(np.random.default_rng([problem.seed, number, _SOBOL_SALT]).random() < SOBOL_SHARE)


def _learnt(
    problem: Problem, trials: Sequence[Trial], numbers: Sequence[int], group: str | None, rung: int
) -> list[Proposal]:
    own = [each for each in trials if each.group == group]
    if problem.scheduler == "bohb":
        return kde.propose(problem, own, numbers, group, rung)
    at = modelled_rung(problem, own)
    stacked = _stacked(own, at) if problem.sampler in _STACKED else None
    return samplers.propose(problem, at_rung(own, at), len(numbers), numbers, group, 0, stacked)


def _stacked(own: Sequence[Trial], at: int) -> samplers.Sampler:
    """Return the sampler of the problem with a stack up to rung ``at`` as its model."""

    def propose_by_stack(
        problem: Problem, trials: Sequence[Trial], count: int, numbers: Sequence[int], group: str | None, rung: int
    ) -> list[Proposal]:
        def factory(known: model.Known, rng: np.random.Generator) -> Stack:
            below = [model.Known.of(known.ground, at_rung(own, each), group) for each in range(at)]
            return Stack.fit([*below, known], rng)

        return model.propose(problem, trials, count, numbers, group, rung, factory)

    return propose_by_stack


@dataclass(frozen=True)
class Level:
    """One rung of a stack: its standardised values are ``slope`` times those of the stack below, and a residual.

    ``slope`` takes them from the one's units to the other's: a residual of zero is an equal objective. It is not
    fitted: values of a higher rung are few and all good, and tell little of how it rises with the lower one.
    """

    slope: float
    residual: Surrogate


class Stack:
    """Gaussian processes over rungs, each of what the one below leaves unexplained: a `ems.search.gp.Posterior`.

    Of rung k: f_k(x) = f_(k-1)(x) + r_k(x), with independent processes r, each fitted to what the mean of the stack
    below leaves (Golovin et al. 2017, "Google Vizier", section 3.3, stacks transferred studies so; Kennedy & O'Hagan
    2000 fidelities). Model units are the standardised values of the top rung.
    """

    def __init__(self, levels: Sequence[Level], warp: Warp, observed: Array):
        self._levels, self._warp, self._observed = tuple(levels), warp, observed

    @classmethod
    def fit(cls, known: Sequence[model.Known], rng: np.random.Generator) -> Stack:
        """Fit a stack to what is known of each rung, lowest first; rungs that hardly have values are left out.

        Raises
        ------
        ValueError
            If there is no value at the top.
        """
        least = known[0].ground.n_dimensions + 2
        used = [each for each in known[:-1] if len(each.y) >= least] + [known[-1]]
        levels: list[Level] = []
        warp = Warp.fit(used[0].y)
        for each in used:
            before, warp = warp, Warp.fit(each.y)
            values = warp.apply(each.y)
            below = cls(levels, warp, each.x).predict(each.x)[0] if levels else np.zeros(len(values))
            slope = before.scale / warp.scale
            residual = Surrogate.fit(each.x, values - slope * below, rng, each.ground.layout, heavy_tail=math.inf)
            levels.append(Level(slope, residual))
        return cls(levels, warp, unique(np.vstack([each.x for each in used])))

    @property
    def observed(self) -> Array:
        """Points with a value at any rung, (n, d)."""
        return self._observed

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation at the top rung at ``x`` (m, d)."""
        mean, variance = np.zeros(len(x)), np.zeros(len(x))
        for level in self._levels:
            m, s = level.residual.in_units(*level.residual.predict(x))
            mean, variance = level.slope * mean + m, level.slope**2 * variance + s * s
        return mean, np.sqrt(variance)

    def draw(self, x: Array, rng: np.random.Generator, count: int) -> Array:
        """Return ``count`` joint draws at ``x``: sums of the processes' draws, (count, m)."""
        total = np.zeros((count, len(x)))
        for level in self._levels:
            total = level.slope * total + level.residual.warp.invert(level.residual.draw(x, rng, count))
        return total

    def condition(self, x: Array, lift: Array | None = None) -> Stack:
        """Return the stack that believes itself at ``x`` (m, d), at all rungs: pending points repel others.

        What ``lift`` adds at the top rung is no rung's below.
        """
        *below, top = self._levels
        levels = [Level(each.slope, each.residual.condition(x)) for each in below]
        return Stack([*levels, Level(top.slope, top.residual.condition(x, lift))], self._warp, self._observed)

    def in_units(self, mean: Array, sd: Array) -> tuple[Array, Array]:
        """Return means and standard deviations in units of the objective at the top rung."""
        return self._warp.invert(mean), (self._warp.invert(mean + sd) - self._warp.invert(mean - sd)) / 2.0
