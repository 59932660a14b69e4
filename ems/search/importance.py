"""Which params matter: permutation importance on the surrogate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ems.search.candidates import Ground
from ems.search.gp import Posterior
from ems.search.model import Factory, Known, fit_faithful
from ems.search.problem import Problem
from ems.search.trial import Trial
from ems.search.warp import Array

METHOD = "permutation on the surrogate (total and first-order Sobol' indices)"
N_POINTS = 2048


@dataclass(frozen=True, slots=True)
class Importance:
    """How much a param matters, of the variance of the model's mean over the space.

    Attributes
    ----------
    total
        Share that vanishes when all others are known but this one is not: with its interactions. 0 to 1; the shares of
        all params add up to more than one where they interact.
    alone
        Share that the param explains by itself, as in functional ANOVA. At most ``total``.
    """

    name: str
    total: float
    alone: float


def importance(
    problem: Problem,
    trials: Sequence[Trial],
    group: str | None = None,
    rung: int = 0,
    factory: Factory = fit_faithful,
) -> list[Importance]:
    """Return the searched params by importance, greatest first; empty where no value is known.

    Params are drawn from their priors, and one column at a time is exchanged for another draw's: a permutation, whose
    mean squared effect on the model's mean over twice its variance estimates the total index, and likewise the
    first-order one (Jansen 1999, "Analysis of variance designs for model output"; Saltelli et al. 2010, table 2, (c)
    and (f)). A condition is looked at anew after an exchange; constraints are not.
    """
    ground = Ground(problem.space)
    known = Known.of(ground, trials, group, rung)
    if not len(known.y):
        return []
    rng = np.random.default_rng(problem.seed)
    posterior = factory(known, rng)
    a, b = rng.random((N_POINTS, ground.n_dimensions)), rng.random((N_POINTS, ground.n_dimensions))
    f_a, f_b = (_mean(posterior, ground, each) for each in (a, b))
    variance = float(np.var(np.concatenate([f_a, f_b])))
    shares = []
    for j, name in enumerate(problem.space.names):
        mixed = a.copy()
        mixed[:, j] = b[:, j]
        f = _mean(posterior, ground, mixed)
        total, rest = float(np.mean((f_a - f) ** 2)) / 2, float(np.mean((f_b - f) ** 2)) / 2
        share = _share(total, variance)  # the other cannot be larger, and its estimate is the noisier one of both
        shares.append(Importance(name, share, min(share, _share(variance - rest, variance))))
    return sorted(shares, key=lambda each: -each.total)


def _mean(posterior: Posterior, ground: Ground, uniform: Array) -> Array:
    snapped = ground.space.spread(uniform)
    return posterior.predict(np.where(ground.space.active_rows(snapped), snapped, np.nan))[0]


def _share(part: float, variance: float) -> float:
    return min(max(part / variance, 0.0), 1.0) if variance > 1e-12 else 0.0
