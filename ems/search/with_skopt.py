"""Where scikit-optimize is: its spaces, given and taken. Imported only where it is asked for (it takes a second)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from skopt import space as theirs

from ems.errors import UsageError
from ems.model import Json
from ems.search.dimension import Categorical, Dimension, Int, Prior, Real
from ems.search.space import SearchSpace

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
        case Int(low=low, high=high, prior=prior, q=1) if low < high:
            return theirs.Integer(int(low), int(high), prior=_PRIORS[prior], name=dimension.name)
        case Categorical(values=values, weights=weights):
            return theirs.Categorical(list(values), prior=weights, name=dimension.name)
        case _:
            return theirs.Real(0.0, 1.0, name=dimension.name)


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
