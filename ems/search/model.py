"""Proposals by a model: what ``gp``, ``ts``, ``lp``, ``ucb``, ``ei``, ``pi`` and ``lcb`` propose."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ems.search import acquisition
from ems.search.candidates import N_CENTRES, N_REFINE, Ground, Score, Taken, best_first, pool, refine
from ems.search.feasibility import Feasibility
from ems.search.gp import Posterior, Surrogate
from ems.search.problem import Problem
from ems.search.trial import Origin, Outcome, Proposal, Trial
from ems.search.warp import Array

N_REFINED = 8  # candidates that local refinement starts from
MANY = 16  # proposals at once: of more each is refined with half the effort, so that a driver's wake stays short
N_DRAWN = 700  # candidates of a joint draw, about: its cost grows with the cube


@dataclass(frozen=True)
class Known:
    """What is known of one rung of one group, as arrays of points (n, d), NaN where a dimension is inactive.

    Attributes
    ----------
    x, y
        Where the objective is known, and its value, minimised: (n, d) and (n,).
    pending
        Where it soon will be.
    bad
        Where trials went wrong, at this rung or another.
    taken
        Where no further trial is to be; proposals add to it.
    """

    ground: Ground
    x: Array
    y: Array
    pending: Array
    bad: Array
    taken: Taken

    @classmethod
    def of(cls, ground: Ground, trials: Sequence[Trial], group: str | None = None, rung: int = 0) -> Known:
        """Sort out ``trials``."""
        own = [trial for trial in trials if trial.group == group]
        there = [t for t in own if len(t.values) > rung and math.isfinite(t.values[rung])]
        pending = [t for t in own if t.is_pending and len(t.values) <= rung]
        bad = [t for t in own if t.outcome.is_bad or not all(map(math.isfinite, t.values))]
        taken = Taken()
        taken.add(ground.locate(t.params for t in own if t.outcome is not Outcome.LOST))
        y = np.array([t.values[rung] for t in there], dtype=float)
        x, ahead, wrong = (ground.locate(t.params for t in each) for each in (there, pending, bad))
        return cls(ground, x, y, ahead, wrong, taken)


Factory = Callable[[Known, np.random.Generator], Posterior]


def fit(known: Known, rng: np.random.Generator) -> Posterior:
    """Return the model of one rung alone that proposals are made by: the default :data:`Factory`."""
    return Surrogate.fit(known.x, known.y, rng, known.ground.layout)


def fit_faithful(known: Known, rng: np.random.Generator) -> Surrogate:
    """Return the model of one rung alone that reports are made by: of values as they are, unless bent is likelier.

    Bending makes a search bold, and a smooth bowl a cliff: a person should see it only where values need it.
    """
    tails = (math.inf, 0.0)
    found = [Surrogate.fit(known.x, known.y, rng, known.ground.layout, heavy_tail=tail) for tail in tails]
    return max(found, key=lambda model: model.evidence)


def propose(
    problem: Problem,
    trials: Sequence[Trial],
    count: int,
    numbers: Sequence[int],
    group: str | None = None,
    rung: int = 0,
    factory: Factory = fit,
) -> list[Proposal]:
    """Propose params for ``count`` trials, knowing ``trials``.

    Parameters
    ----------
    numbers
        That the new trials will get; with the problem's seed they seed the proposals.
    group, rung
        Which trials, and which of their values, are learnt from.
    factory
        Makes the model; it is asked only where a value is known.

    Returns
    -------
    list of Proposal
        Inside the space and its constraints, no two alike, none like one of ``trials`` (of the group; those that were
        lost may come again). Fewer than ``count`` where no more were found.
    """
    if not numbers[:count]:
        return []
    ground = Ground(problem.space)
    known = Known.of(ground, trials, group, rung)
    rng = np.random.default_rng([problem.seed, numbers[0]])
    if not len(known.y):
        return _blind(known, count, rng)
    posterior = factory(known, rng)
    feasibility = Feasibility.fit(known.x, known.bad, rng, ground.layout)
    n_refine = N_REFINE if count <= MANY else N_REFINE // 2
    means, _ = posterior.predict(posterior.observed)
    candidates = pool(ground, posterior.observed[best_first(-means, N_CENTRES)], rng)
    candidates = candidates[known.taken.free(candidates)]
    if not len(candidates):
        return []
    hunt = Hunt(known, posterior, feasibility, candidates, float(np.min(means)), n_refine)
    STRATEGIES[problem.sampler](hunt, [np.random.default_rng([problem.seed, n]) for n in numbers[:count]])
    return hunt.proposals()


def _blind(known: Known, count: int, rng: np.random.Generator) -> list[Proposal]:
    """Propose points all over the space: no value is known."""
    points = known.ground.scatter(256, rng)
    points = points[known.taken.free(points)]
    return [Proposal(known.ground.params(point), Origin.RANDOM) for point in points[:count]]


@dataclass
class Hunt:
    """The search for points with the greatest acquisition among candidates ``x`` (m, d).

    Attributes
    ----------
    posterior
        Of what is known; pending points are conditioned on by the strategies that want it so.
    incumbent
        Least posterior mean where the objective is known.
    n_refine
        Points a round of local refinement.
    chosen
        Points that were chosen, and their acquisition.
    """

    known: Known
    posterior: Posterior
    feasibility: Feasibility | None
    x: Array
    incumbent: float
    n_refine: int = N_REFINE
    chosen: list[tuple[Array, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights = self.weigh(self.x)

    def weigh(self, x: Array) -> Array:
        """Return the log of the probability that trials at ``x`` go well."""
        return np.zeros(len(x)) if self.feasibility is None else self.feasibility.log_weight(x)

    def take(self, scores: Array, score: Score, rng: np.random.Generator) -> bool:
        """Choose the best free candidate by ``scores`` (m,), refined by ``score`` of others; False: none is free."""
        free = self.known.taken.free(self.x)
        top = best_first(np.where(free, scores, -np.inf), min(N_REFINED, int(free.sum())))
        if top:
            point, worth = refine(
                self.known.ground, self.x[top], scores[top], score, self.known.taken, rng, self.n_refine
            )
            self.known.taken.add(point[None])
            self.chosen.append((point, worth))
        return bool(top)

    def proposals(self) -> list[Proposal]:
        """Return the chosen points, with their acquisition, as proposals; what the space rounds to the same, once."""
        if not self.chosen:
            return []
        mean, sd = self.posterior.in_units(*self.posterior.predict(np.array([point for point, _ in self.chosen])))
        ground = self.known.ground
        found: dict[str, Proposal] = {}
        for (point, worth), m, s in zip(self.chosen, mean.tolist(), sd.tolist(), strict=True):
            params = ground.params(point)
            found.setdefault(ground.space.key(params), Proposal(params, Origin.MODEL, m, s, worth))
        return list(found.values())


Generators = Sequence[np.random.Generator]
Acquisition = Callable[[Array, Array, float], Array]


def _greedy(acquire: Acquisition) -> Callable[[Hunt, Generators], None]:
    """Return the strategy that takes the best point by ``acquire(mean, sd, incumbent)`` and believes it, over and over.

    Pending points are believed likewise: the mean is that of completed trials, the deviation that of completed and
    pending ones, and the incumbent may be one that is believed; else the next points would crowd around it.
    """

    def choose(hunt: Hunt, generators: Generators) -> None:
        model, least = hunt.posterior, hunt.incumbent
        model.predict(hunt.x)  # remembered: conditioning adds to it
        model, least = believe(model, least, hunt.known.pending)
        model = doubt(model, least, hunt.known.bad)
        for rng in generators:

            def score(x: Array, model: Posterior = model, least: float = least) -> Array:
                return acquire(*model.predict(x), least) + hunt.weigh(x)

            if not hunt.take(acquire(*model.predict(hunt.x), least) + hunt.weights, score, rng):
                return
            model, least = believe(model, least, hunt.chosen[-1][0][None])

    return choose


def believe(model: Posterior, least: float, x: Array) -> tuple[Posterior, float]:
    """Return the model that believes its own means at ``x`` (m, d), and the least of them and of ``least``."""
    if not len(x):
        return model, least
    return model.condition(x), min(least, float(np.min(model.predict(x)[0])))


def doubt(model: Posterior, least: float, x: Array) -> Posterior:
    """Return the model for which points ``x`` (m, d) that went wrong are at best as good as ``least``.

    It sees its own mean there or, where that is better, ``least``: the next points do not crowd along the border beyond
    which trials crash. The worst value, a common choice, would shun good regions where crashes strike anywhere.
    """
    if not len(x):
        return model
    return model.condition(x, np.maximum(least - model.predict(x)[0], 0.0))


def _thompson(hunt: Hunt, generators: Generators) -> None:
    """Take the best point of a draw each: Thompson sampling, asynchronous or a batch at once.

    Kandasamy et al. 2018, "Parallelised Bayesian Optimisation via Thompson Sampling", algorithms 1 and 2: the draws are
    of the posterior of what is completed; pending points need no care.
    """
    thin = slice(None, None, max(1, len(hunt.x) // N_DRAWN))
    x, weights = hunt.x[thin], hunt.weights[thin]
    for draw in hunt.posterior.draw(x, generators[0], len(generators)):
        scores = np.where(hunt.known.taken.free(x), weights - draw, -np.inf)
        best = int(np.argmax(scores))
        if np.isfinite(scores[best]):
            hunt.known.taken.add(x[best][None])
            hunt.chosen.append((x[best], float(scores[best])))


def _penalised(hunt: Hunt, generators: Generators) -> None:
    """Take the best point by logEI that is not too near to pending ones (:func:`acquisition.log_penalty`)."""
    embed, model = hunt.known.ground.layout.embed, hunt.posterior
    mean, sd = model.predict(hunt.x)
    where, busy = embed(hunt.x), hunt.known.pending

    def radii_of(points: Array) -> Array:
        return acquisition.ball_radii(embed(points), *model.predict(points), hunt.incumbent, where, mean)

    def penalty(x: Array) -> Array:
        return acquisition.log_penalty(embed(x), embed(busy), radii)

    def score(x: Array) -> Array:
        return acquisition.log_ei(*model.predict(x), hunt.incumbent) + hunt.weigh(x) + penalty(x)

    radii = radii_of(busy)
    scores = acquisition.log_ei(mean, sd, hunt.incumbent) + hunt.weights + penalty(hunt.x)
    for rng in generators:
        if not hunt.take(scores, score, rng):
            return
        point = hunt.chosen[-1][0][None]
        radius = radii_of(point)
        scores += acquisition.log_penalty(where, embed(point), radius)
        busy, radii = np.vstack([busy, point]), np.concatenate([radii, radius])


ACQUISITIONS: Mapping[str, Acquisition] = {
    "gp": acquisition.log_ei,
    "ei": lambda mean, sd, least: acquisition.log_ei(mean, sd, least, acquisition.XI_EI),
    "pi": acquisition.log_pi,
    "lcb": lambda mean, sd, _: acquisition.lower_bound(mean, sd, acquisition.KAPPA_LCB),
    "ucb": lambda mean, sd, _: acquisition.lower_bound(mean, sd, acquisition.KAPPA_UCB),
}
"""Of mean, deviation and incumbent, by the sampler's name."""

STRATEGIES: Mapping[str, Callable[[Hunt, Generators], None]] = {
    **{name: _greedy(acquire) for name, acquire in ACQUISITIONS.items()},
    "ts": _thompson,
    "lp": _penalised,
}
