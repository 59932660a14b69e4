"""Where scikit-optimize is: its spaces, given and taken, and its ``Optimizer`` as a sampler.

Imported only where it is asked for: it takes more than a second.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from skopt import Optimizer
from skopt import space as theirs

from ems.errors import UsageError
from ems.model import Json, Params
from ems.search.dimension import Categorical, Dimension, Floats, Int, Prior, Real, canonical
from ems.search.problem import Problem
from ems.search.space import SearchSpace
from ems.search.tpe import model_rung
from ems.search.trial import Proposal, Trial

_PRIORS = {"uniform": "uniform", "log": "log-uniform"}


def to_skopt(space: SearchSpace) -> theirs.Space:
    """Return the searched dimensions as scikit-optimize's; it has no conditions and constraints.

    What it does not have either (ordinals, steps, normal priors) is a real from 0 to 1: the position.
    """
    return theirs.Space([_theirs(dimension) for dimension in space.searched])


def _theirs(dimension: Dimension) -> Any:
    match dimension:
        case Real(low=low, high=high, prior=prior):
            return theirs.Real(low, high, prior=_PRIORS[prior], name=dimension.name)
        case Int(prior=prior) if _is_native(dimension):
            first, *_, last = dimension.items()
            return theirs.Integer(first, last, prior=_PRIORS[prior], name=dimension.name)
        case Categorical(values=values, weights=weights):
            return theirs.Categorical(list(values), prior=weights, name=dimension.name)
        case _:
            return theirs.Real(0.0, 1.0, name=dimension.name)


def _is_native(dimension: Dimension) -> bool:
    return isinstance(dimension, Real) or (isinstance(dimension, Int) and dimension.q == 1 and dimension.count > 1)


def from_skopt(space: theirs.Space | Sequence[Any]) -> SearchSpace:
    """Return the space of scikit-optimize's ``Space``, or of a list of its dimensions.

    Raises
    ------
    UsageError
        If a dimension has no name.
    """
    dimensions = space.dimensions if isinstance(space, theirs.Space) else map(theirs.check_dimension, space)
    return SearchSpace(tuple(_ours(dimension) for dimension in dimensions))


def _ours(dimension: Any) -> Dimension:
    if not dimension.name:
        raise UsageError(f"{dimension} has no name", "give it the param's: Real(1e-5, 1e-1, name='lr')")
    prior: Prior = "log" if getattr(dimension, "prior", None) == "log-uniform" else "uniform"
    if isinstance(dimension, theirs.Real):
        return Real(dimension.name, float(dimension.low), float(dimension.high), prior)
    if isinstance(dimension, theirs.Integer):
        return Int(dimension.name, int(dimension.low), int(dimension.high), prior)
    weights = None if dimension.prior is None else tuple(float(weight) for weight in dimension.prior)
    return Categorical(dimension.name, tuple(map(_plain, dimension.categories)), weights)


def _plain(value: Any) -> Json:
    plain: Json = value.item() if hasattr(value, "item") else value
    return plain


def propose(
    problem: Problem,
    trials: Sequence[Trial],
    count: int,
    numbers: Sequence[int],
    group: str | None,
    rung: int,  # noqa: ARG001 - the model is of the highest rung with enough points, wherever the trial begins
) -> list[Proposal]:
    """Return what ``skopt.Optimizer`` asks for, with its defaults; see :func:`ems.search.samplers.propose`.

    It is made anew for each suggestion, from the trials: one that was asked twice would answer the same, and one that
    was kept would keep all its models. Pending trials are told the best value so far, as its own ``cl_min`` does.
    """
    translation = _Translation(problem.space)
    own = [trial for trial in trials if trial.group == group]
    known = _values(own, len(problem.space.names) + 1)
    params = [trial.params for trial, value in zip(own, known, strict=True) if value is not None]
    values = _finite(np.array([value for value in known if value is not None]))
    proposals: list[Proposal] = []
    for number in numbers[:count]:
        asked = _ask(translation, params, values, np.random.default_rng([problem.seed, number]))
        proposals.append(asked)
        params.append(asked.params)
        values = np.append(values, values.min())
    return proposals


def _values(trials: Sequence[Trial], least: int) -> list[float | None]:
    """Return the value of each trial at the highest rung that enough have completed: None for those left behind.

    Infinite is what failed; minus infinite what is pending.
    """
    rung = model_rung(trials, least)
    return [
        np.inf if t.outcome.is_bad
        else t.values[rung] if len(t.values) > rung
        else -np.inf if t.is_pending
        else None
        for t in trials
    ]  # fmt: skip


def _finite(values: Floats) -> Floats:
    """Return values for a model: what failed is as bad as the worst, what is pending as good as the best.

    One far out would flatten the model everywhere: the worst is at most ten deviations (by the median, which outliers
    do not move) from the median.
    """
    there = values[np.isfinite(values)]
    if not len(there):
        return np.zeros(len(values))
    centre = float(np.median(there))
    deviation = 1.4826 * float(np.median(np.abs(there - centre)))
    worst = min(float(there.max()), centre + 10 * deviation) if deviation else float(there.max())
    return np.clip(values, there.min(), worst)


def _ask(translation: _Translation, params: Sequence[Params], values: Floats, rng: np.random.Generator) -> Proposal:
    # xi of its EI and PI is in units of the objective: 0.01 is next to nothing only where that is standardised
    spread = float(values.std()) or 1.0
    scaled = (values - values.mean()) / spread
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a fit did not converge, or that a point was told before
        optimizer = Optimizer(
            translation.space,
            n_initial_points=0,
            random_state=int(rng.integers(2**31 - 1)),
            model_queue_size=1,
            **_constrained(translation),
        )
        optimizer.tell([translation.point(each) for each in params], list(map(float, scaled)))
        point = optimizer.ask()
        mean, sd = optimizer.models[-1].predict(optimizer.space.transform([point]), return_std=True)
    return Proposal(
        translation.ours.decode(translation.row(point)),
        mean=float(mean[0]) * spread + float(values.mean()),
        sd=float(sd[0]) * spread,
    )


def _constrained(translation: _Translation) -> Mapping[str, Any]:
    if not translation.ours.constraints:
        return {}
    # it asks for each candidate by itself, of which it has 10,000: that takes seconds
    return {"space_constraint": translation.is_allowed, "acq_optimizer_kwargs": {"n_points": 2_000}}


class _Translation:
    """Points as scikit-optimize has them: categories by their text, what it has no kind for by its position."""

    def __init__(self, ours: SearchSpace) -> None:
        self.ours = ours
        self.space = theirs.Space([self._plain(dimension) for dimension in ours.searched])

    @staticmethod
    def _plain(dimension: Dimension) -> Any:
        if isinstance(dimension, Categorical):
            return theirs.Categorical([canonical(value) for value in dimension.values], name=dimension.name)
        return _theirs(dimension)

    def point(self, params: Params) -> list[Any]:
        """Return a point; an inactive dimension has its middle value."""
        return [
            self._there(dimension, params.get(dimension.name, dimension.value(0.5))) for dimension in self.ours.searched
        ]

    @staticmethod
    def _there(dimension: Dimension, value: Json) -> Any:
        if isinstance(dimension, Categorical):
            return canonical(value)
        return dimension.value(dimension.unit(value)) if _is_native(dimension) else dimension.unit(value)

    def row(self, point: Sequence[Any]) -> Floats:
        """Return where a point lies, shape ``(d,)``."""
        pairs = zip(self.ours.searched, point, strict=True)
        return np.array([self._here(dimension, value) for dimension, value in pairs])

    @staticmethod
    def _here(dimension: Dimension, value: Any) -> float:
        if isinstance(dimension, Categorical):
            return dimension.unit(json.loads(value))
        return dimension.unit(float(value)) if _is_native(dimension) else float(value)

    def is_allowed(self, point: Sequence[Any]) -> bool:
        """Whether the constraints hold."""
        return bool(self.ours.allowed(self.row(point)[None, :])[0])
