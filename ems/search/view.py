"""The model of a study for people to look at: what it predicts along a line or over a plane, what it would try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ems.model import Params
from ems.search import acquisition
from ems.search.candidates import Ground
from ems.search.feasibility import Feasibility
from ems.search.gp import Posterior
from ems.search.model import ACQUISITIONS, Factory, Known, believe, doubt, fit
from ems.search.problem import Problem
from ems.search.trial import Trial
from ems.search.warp import Array


@dataclass(frozen=True, slots=True)
class View:
    """A fitted model; :func:`view` makes one."""

    sampler: str
    ground: Ground
    posterior: Posterior
    believed: Posterior
    incumbent: float
    feasibility: Feasibility | None

    def predict(self, params: Sequence[Params]) -> tuple[Array, Array]:
        """Return mean and standard deviation, noise taken away, in units of the (minimised) objective: (m,) each."""
        return self.posterior.in_units(*self.posterior.predict(self.ground.locate(params)))

    def acquire(self, params: Sequence[Params]) -> Array:
        """Return what the sampler's acquisition function makes of params, (m,), pending trials taken into account.

        That of expected improvement, as a logarithm, for samplers that draw (`ts`) or penalise (`lp`).
        """
        x = self.ground.locate(params)
        worth = ACQUISITIONS.get(self.sampler, acquisition.log_ei)(*self.believed.predict(x), self.incumbent)
        return worth if self.feasibility is None else worth + self.feasibility.log_weight(x)


def view(
    problem: Problem, trials: Sequence[Trial], group: str | None = None, rung: int = 0, factory: Factory = fit
) -> View | None:
    """Return the model of what is known of ``rung``; None where no value is."""
    ground = Ground(problem.space)
    known = Known.of(ground, trials, group, rung)
    if not len(known.y):
        return None
    rng = np.random.default_rng(problem.seed)
    posterior = factory(known, rng)
    incumbent = float(np.min(posterior.predict(posterior.observed)[0]))
    believed, incumbent = believe(posterior, incumbent, known.pending)
    believed = doubt(believed, incumbent, known.bad)
    feasibility = Feasibility.fit(known.x, known.bad, rng, ground.layout)
    return View(problem.sampler, ground, posterior, believed, incumbent, feasibility)
