"""The space that is searched: dimensions, the conditions under which they count, constraints on all of them.

Models see points as rows of numbers from 0 to 1, a column a dimension (fixed ones have none). Scripts get params.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ems.errors import UsageError
from ems.model import Json, Params
from ems.search import expression
from ems.search.dimension import (
    Categorical,
    Dimension,
    Fixed,
    Floats,
    Int,
    Kind,
    Ordinal,
    Real,
    Shaped,
    canonical,
    words,
)
from ems.search.expression import Column, Expression
from ems.space.distribution import Beta, LogNormal, Normal

if TYPE_CHECKING:
    from skopt.space import Space

__all__ = ["Categorical", "Dimension", "Fixed", "Int", "Ordinal", "Real", "SearchSpace", "Shaped"]

MAX_COUNTED = 20_000  # points; a space of more is as good as endless
_TRIES = 20_000  # draws without one that the constraints allow: then there is none
_INACTIVE = 0.5


@dataclass(frozen=True)
class SearchSpace:
    """Dimensions with the conditions under which they count, and constraints on all of them.

    Params of a point have the dimensions' order, and only the active dimensions. A condition on a param that is itself
    inactive does not hold; a constraint on one does.

    Attributes
    ----------
    dimensions
        Names are unique.
    constraints
        Expressions that have to hold: ``lr * batch < 10``.

    Raises
    ------
    UsageError
        If there is nothing to search, a name stands twice, or a condition or constraint cannot be meant.
    """

    dimensions: tuple[Dimension, ...]
    constraints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [dimension.name for dimension in self.dimensions]
        twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
        if twice is not None:
            raise UsageError(f"`{twice}` is given twice in the space", "keep one of them")
        if not self._free:
            raise UsageError(
                "the space is empty: there is nothing to search",
                "give a param more than one value: --set 'lr=loguniform(1e-5,1e-1)'",
            )
        self._order  # noqa: B018 - refuses conditions that cannot be meant
        self._rules  # noqa: B018

    # What there is ------------------------------------------------------------------------------------------------

    @cached_property
    def _free(self) -> tuple[Dimension, ...]:
        return tuple(d for d in self.dimensions if not isinstance(d, Fixed))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the dimensions that are searched, in the order of the columns."""
        return tuple(dimension.name for dimension in self._free)

    @property
    def searched(self) -> tuple[Dimension, ...]:
        """The dimensions that are searched: all but the fixed ones, in the order of the columns."""
        return self._free

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Of each column: whether values near to one another are alike (numeric), or only equal ones are."""
        return tuple(dimension.kind for dimension in self._free)

    @cached_property
    def levels(self) -> tuple[int | None, ...]:
        """Of each column: how many values there are; None where they cannot be counted."""
        return tuple(dimension.count for dimension in self._free)

    @cached_property
    def size(self) -> int | None:
        """Number of different points; None where they cannot be counted or are more than :data:`MAX_COUNTED`."""
        if not self.is_countable:
            return None
        if not self.constraints and not self._conditions:
            return math.prod(count for count in self.levels if count is not None)
        return sum(1 for _ in self.points())

    @cached_property
    def is_countable(self) -> bool:
        """Whether there are so few points that all of them can be listed."""
        return math.prod(MAX_COUNTED + 1 if count is None else count for count in self.levels) <= MAX_COUNTED

    def points(self) -> Iterator[Params]:
        """Yield every point of a space that :attr:`is_countable`, the last dimension varying fastest."""
        seen: set[str] = set()
        grids = [dimension.snap(_positions(dimension)) for dimension in self._free]
        rows = itertools.product(*grids)
        while batch := list(itertools.islice(rows, 4096)):
            matrix = self.snap(np.array(batch, dtype=float))
            for params in self.decode_rows(matrix[self.allowed(matrix)]):
                key = self.key(params)
                if key not in seen:
                    seen.add(key)
                    yield params

    # Conditions and constraints ----------------------------------------------------------------------------------

    @cached_property
    def _vocabulary(self) -> tuple[list[str], set[str]]:
        return [dimension.name for dimension in self.dimensions], words(self.dimensions)

    @cached_property
    def _conditions(self) -> Mapping[str, Expression]:
        return {d.name: expression.parse(d.when, *self._vocabulary) for d in self.dimensions if d.when is not None}

    @cached_property
    def _order(self) -> tuple[Dimension, ...]:
        """The dimensions, each after those that its condition names."""
        graph = {d.name: self._conditions[d.name].names if d.when else frozenset() for d in self.dimensions}
        by_name = {dimension.name: dimension for dimension in self.dimensions}
        try:
            return tuple(by_name[name] for name in TopologicalSorter(graph).static_order())
        except CycleError as error:
            circle = " needs ".join(f"`{name}`" for name in reversed(error.args[1]))
            raise UsageError(f"the conditions go round in a circle: {circle}", "mend the `when` of one") from None

    @cached_property
    def _rules(self) -> tuple[Expression, ...]:
        return tuple(expression.parse(text, *self._vocabulary) for text in self.constraints)

    def _columns(self, matrix: Floats) -> tuple[dict[str, Column], dict[str, NDArray[np.bool_]]]:
        """Return the values of each dimension, and where it is active."""
        slots = {name: index for index, name in enumerate(self.names)}
        columns: dict[str, Column] = {}
        active: dict[str, NDArray[np.bool_]] = {}
        for dimension in self._order:
            name, condition = dimension.name, self._conditions.get(dimension.name)
            units = matrix[:, slots[name]] if name in slots else np.full(len(matrix), _INACTIVE)
            columns[name] = dimension.column(units)
            active[name] = np.ones(len(matrix), dtype=bool)
            if condition is not None:
                held = condition.holds(columns, len(matrix))
                active[name] = np.logical_and.reduce([held, *(active[other] for other in condition.names)])
        return columns, active

    def allowed(self, matrix: Floats) -> NDArray[np.bool_]:
        """Return which rows the constraints allow.

        Parameters
        ----------
        matrix
            Of shape ``(n, d)``. Reals are taken as they are: whether a point that lies at the very edge of a
            constraint is allowed after rounding, :meth:`is_valid` says.

        Returns
        -------
        array of bool
            Of shape ``(n,)``.
        """
        result = np.ones(len(matrix), dtype=bool)
        if not self._rules:
            return result
        columns, active = self._columns(matrix)
        for rule in self._rules:
            applies = np.logical_and.reduce([result, *(active[name] for name in rule.names)])
            result &= ~applies | rule.holds(columns, len(matrix))
        return result

    def active_rows(self, matrix: Floats) -> NDArray[np.bool_]:
        """Return where dimensions are active, of the same shape ``(n, d)``."""
        if not self._conditions:
            return np.ones(matrix.shape, dtype=bool)
        _, active = self._columns(matrix)
        return np.column_stack([active[name] for name in self.names])

    def snap(self, matrix: Floats) -> Floats:
        """Return the rows of the nearest points: counts rounded, inactive dimensions at 0.5; fast, for candidates.

        Parameters
        ----------
        matrix
            Of shape ``(n, d)``; what lies outside of 0 to 1 is taken to the edge.
        """
        snapped = np.column_stack([d.snap(matrix[:, index]) for index, d in enumerate(self._free)])
        return np.where(self.active_rows(snapped), snapped, _INACTIVE) if self._conditions else snapped

    def spread(self, uniform: Floats) -> Floats:
        """Return rows of points as likely as the prior says, from uniform ones (random, or Sobol); shape ``(n, d)``.

        Unlike with :meth:`snap` each of three categories gets a third. The constraints are not looked at.
        """
        return self.snap(np.column_stack([d.spread(uniform[:, index]) for index, d in enumerate(self._free)]))

    # Points ------------------------------------------------------------------------------------------------------

    def encode(self, params: Params) -> Floats:
        """Return the row of a point.

        Parameters
        ----------
        params
            With all active dimensions; other names (a fidelity) are not looked at.

        Returns
        -------
        array
            Of shape ``(d,)``, 0 to 1; inactive dimensions at 0.5, numbers out of bounds at the bound.

        Raises
        ------
        UsageError
            If a value is none of its dimension's categories, or text where a number is due.
        """
        return np.array([_unit(d, params[d.name]) if d.name in params else _INACTIVE for d in self._free])

    def decode(self, vector: Floats) -> Params:
        """Return the point that lies nearest to a row of shape ``(d,)``, without the inactive dimensions."""
        return self.decode_rows(np.asarray(vector, dtype=float)[None, :])[0]

    def decode_rows(self, matrix: Floats) -> list[Params]:
        """Return the points that lie nearest to the rows of a matrix of shape ``(n, d)``."""
        if not len(matrix):
            return []
        slots = {name: index for index, name in enumerate(self.names)}
        _, active = self._columns(matrix)
        return [
            {
                d.name: d.value(row[slots[d.name]] if d.name in slots else _INACTIVE)
                for d in self.dimensions
                if active[d.name][index]
            }
            for index, row in enumerate(matrix)
        ]

    def active(self, params: Params) -> NDArray[np.bool_]:
        """Return which of the searched dimensions are active in a point, shape ``(d,)``."""
        return np.array([name in params for name in self.names])

    def draw(self, rng: np.random.Generator, n: int) -> list[Params]:
        """Draw ``n`` points from the prior that conditions and constraints allow; the same one may come twice.

        Raises
        ------
        UsageError
            If no constraint is ever satisfied.
        """
        found: list[Params] = []
        tried = 0
        while len(found) < n:
            batch = min(max(2 * (n - len(found)), 4), 4096) if tried < 64 else 4096
            rows = self.spread(rng.random((batch, len(self._free))))
            found += filter(self.is_valid, self.decode_rows(rows[self.allowed(rows)]))
            tried += batch
            if not found and tried >= _TRIES:
                raise self._unsatisfied()
        return found[:n]

    def _unsatisfied(self) -> UsageError:
        rules = " and ".join(f"`{text}`" for text in self.constraints)
        which = f"the constraint {rules} is" if len(self.constraints) == 1 else f"the constraints {rules} are together"
        return UsageError(
            f"{which} satisfied by none of {_TRIES:,} points that were drawn",
            "widen the bounds of the params, or the constraint",
        )

    def is_valid(self, params: Params) -> bool:
        """Whether a point has all active dimensions and no others, in their bounds, and the constraints hold."""
        if not all(d.name not in params or d.contains(params[d.name]) for d in self.dimensions):
            return False
        if not self._conditions and not self._rules:
            return len(params) == len(self.dimensions) and all(d.name in params for d in self.dimensions)
        columns: dict[str, Column] = {}
        there: dict[str, bool] = {}
        for d in self._order:
            there[d.name] = d.name in params
            unit = d.unit(params[d.name]) if there[d.name] else _INACTIVE
            columns[d.name] = d.column(np.array([unit]))
            condition = self._conditions.get(d.name)
            due = condition is None or (
                all(there[name] for name in condition.names) and bool(condition.holds(columns, 1)[0])
            )
            if due is not there[d.name]:
                return False
        rules = (rule for rule in self._rules if all(there[name] for name in rule.names))
        return len(params) == sum(there.values()) and all(rule.holds(columns, 1)[0] for rule in rules)

    def key(self, params: Params) -> str:
        """Return the text that equal points have in common, after rounding; the order of the names does not matter.

        Raises
        ------
        UsageError
            As :meth:`encode` does.
        """
        rounded = {d.name: d.value(_unit(d, params[d.name])) for d in self.dimensions if d.name in params}
        return canonical(rounded)

    # Text --------------------------------------------------------------------------------------------------------

    def dump(self) -> str:
        """Return the space as JSON; :meth:`load` reads it."""
        return json.dumps({"dimensions": [_dump(d) for d in self.dimensions], "constraints": list(self.constraints)})

    @classmethod
    def load(cls, text: str) -> SearchSpace:
        """Return the space that :meth:`dump` wrote.

        Raises
        ------
        UsageError
            If it is none.
        """
        try:
            record = json.loads(text)
            return cls(tuple(map(_load, record["dimensions"])), tuple(record["constraints"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"this is no search space: {error}") from error

    def to_skopt(self) -> Space:
        """Return it in scikit-optimize's own terms, a dimension a column; see :mod:`ems.search.with_skopt`."""
        from ems.search import with_skopt  # noqa: PLC0415 - takes more than a second to import

        return with_skopt.to_skopt(self)

    @classmethod
    def from_skopt(cls, space: Space | Sequence[Any]) -> SearchSpace:
        """Return the space of scikit-optimize's ``Space``, or of a list of its dimensions, which have names."""
        from ems.search import with_skopt  # noqa: PLC0415

        return with_skopt.from_skopt(space)


def _unit(dimension: Dimension, value: Json) -> float:
    try:
        return dimension.unit(value)
    except ValueError as error:
        raise UsageError(str(error), "a study can take over only what lies in its own space") from None


def _positions(dimension: Dimension) -> Floats:
    return np.array([dimension.unit(value) for value in dimension.items()])


_KINDS: Mapping[str, type[Dimension]] = {k.__name__: k for k in (Real, Int, Shaped, Categorical, Ordinal, Fixed)}
_SHAPES = {kind.__name__: kind for kind in (Normal, LogNormal, Beta)}


def _dump(dimension: Dimension) -> dict[str, Json]:
    record: dict[str, Any] = {field.name: getattr(dimension, field.name) for field in fields(dimension)}
    if isinstance(dimension, Shaped):
        shape = dimension.distribution
        record["distribution"] = {
            "kind": type(shape).__name__,
            **{field.name: getattr(shape, field.name) for field in fields(shape)},
        }
    return {"kind": type(dimension).__name__, **{key: value for key, value in record.items() if value is not None}}


def _load(record: Mapping[str, Any]) -> Dimension:
    keys = dict(record)
    kind = _KINDS[keys.pop("kind")]
    if kind is Shaped:
        shape = dict(keys["distribution"])
        keys["distribution"] = _SHAPES[shape.pop("kind")](**shape)
    for name in ("values", "weights"):
        if name in keys:
            keys[name] = tuple(keys[name])
    if kind is Fixed:
        keys.setdefault("setting", None)
    return kind(**keys)
