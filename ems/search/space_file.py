"""Search spaces as people write them: ``--set`` words, a YAML file, a W&B sweep file with ``method: bayes``.

The file has a mapping of params; what it says of one is a word of ``--set``, a list, a value, or a mapping::

    lr: loguniform(1e-5, 1e-1)
    units: {type: int, low: 16, high: 512, q: 16}
    batch: [16, 32, 64]               # numbers have an order, words have none
    opt: [adam, sgd]
    momentum: {low: 0.0, high: 0.99, when: opt == sgd}
    epochs: 20                        # fixed
    constraints: ["lr * batch < 10"]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ems.document import Document, Location, did_you_mean, read
from ems.errors import ConfigError, UsageError
from ems.model import Axis, Json
from ems.search.dimension import Categorical, Dimension, Fixed, Int, Ordinal, Prior, Real, Shaped
from ems.search.space import SearchSpace
from ems.space import Sweep, parse_assignment
from ems.space.distribution import (
    Beta,
    Choice,
    Distribution,
    IntUniform,
    LogInt,
    LogNormal,
    LogUniform,
    Normal,
    Uniform,
)

_TYPES = ("real", "int", "categorical", "ordinal", "fixed")
_KEYS = ("type", "low", "high", "log", "q", "values", "weights", "value", "when")
_HEADINGS = ("params", "parameters", "space", "search_space")
_FORMS = "e.g. `lr: loguniform(1e-5, 1e-1)` or `lr: {low: 1e-5, high: 1e-1, log: true}` or `opt: [adam, sgd]`"
_DRAWS = 64  # by which a space is tried out


def parse(sets: Sequence[str], space_file: Path | None = None, sweep: Sweep | None = None) -> SearchSpace:
    """Return the space that ``--set``, a space file and a sweep file give together.

    Parameters
    ----------
    sets
        ``NAME=VALUES`` each; a name of a file is overridden, a new one added.
    space_file
        A YAML file, see the module's docstring.
    sweep
        A W&B sweep file that was read.

    Raises
    ------
    UsageError
        If any of it cannot be meant, there is nothing to search, or no point satisfies the constraints.
    """
    dimensions: dict[str, Dimension] = {}
    constraints: tuple[str, ...] = ()
    if sweep is not None:
        dimensions |= {name: _of_sweep(sweep, name) for name in sweep.dimensions}
    if space_file is not None:
        found, constraints = _read(space_file)
        dimensions |= found
    given: set[str] = set()
    for text in sets:
        name, value = parse_assignment(text)
        if name in given:
            raise UsageError(f"`{name}` is set twice", f"give all its values at once: --set {name}=A,B")
        given.add(name)
        when = dimensions[name].when if name in dimensions else None
        dimensions[name] = _dimension(name, value, when, f"--set {text}")
    space = SearchSpace(tuple(dimensions.values()), constraints)
    space.draw(np.random.default_rng(0), _DRAWS)  # refuses constraints that nothing satisfies
    return space


def _of_sweep(sweep: Sweep, name: str) -> Dimension:
    return _dimension(name, sweep.dimensions[name], None, f"{sweep.path}: `{name}`")


def _dimension(name: str, given: Axis | Distribution, when: str | None, shown: str) -> Dimension:
    """Return the dimension of what ``--set`` or a sweep file gives; ``shown`` begins a message."""
    try:
        return from_distribution(name, given, when)
    except ValueError as error:
        raise UsageError(f"{shown}: {error}", _FORMS) from None


def from_distribution(name: str, given: Axis | Distribution, when: str | None = None) -> Dimension:
    """Return the dimension of a list or a distribution of :mod:`ems.space`.

    Raises
    ------
    ValueError
        If a value stands twice, or no multiple of ``q`` lies within the bounds.
    """
    match given:
        case Axis(values=values):
            return listed(name, tuple(value for (value,) in values), when)
        case Choice(values=values, weights=weights):
            return listed(name, values, when) if weights is None else _weighted(name, values, weights, when)
        case IntUniform(low=low, high=high):
            return Int(name, low, high, when=when)
        case LogInt(low=low, high=high):
            return Int(name, low, high, "log", when=when)
        case Uniform(low=low, high=high, q=q) | LogUniform(low=low, high=high, q=q):
            prior: Prior = "log" if isinstance(given, LogUniform) else "uniform"
            return Real(name, low, high, prior, when=when) if q is None else Int(name, low, high, prior, q, when=when)
        case Normal() | LogNormal() | Beta():
            return Shaped(name, given, when=when)
    raise ValueError(f"`{name}` has a distribution that cannot be searched: {given}")


def _weighted(name: str, values: Sequence[Json], weights: Sequence[float], when: str | None) -> Dimension:
    kept = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight > 0]
    return Categorical(name, tuple(value for value, _ in kept), tuple(weight for _, weight in kept), when=when)


def listed(name: str, values: Sequence[Json], when: str | None = None) -> Dimension:
    """Return the dimension of listed values: one is fixed, numbers are in an order, others are not."""
    if len(values) == 1:
        return Fixed(name, values[0], when=when)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return Ordinal(name, tuple(sorted(values, key=float)), when=when)  # type: ignore[arg-type] # they are numbers
    return Categorical(name, tuple(values), when=when)


class _Given(Document):
    """What a program gives instead of a file: its errors name no line."""

    def error(self, location: Location, problem: str, hint: str = "") -> ConfigError:  # noqa: ARG002  # no line
        return ConfigError(f"{self.path}: {problem}", hint)


def of_mapping(content: Mapping[str, Json]) -> SearchSpace:
    """Return the space of a mapping that says what a space file does.

    Raises
    ------
    UsageError
        As :func:`parse` does.
    """
    dimensions, constraints = _content(_Given("the space", dict(content), ""))
    space = SearchSpace(tuple(dimensions.values()), constraints)
    space.draw(np.random.default_rng(0), _DRAWS)
    return space


def _read(path: Path) -> tuple[dict[str, Dimension], tuple[str, ...]]:
    """Return the dimensions and constraints of a file."""
    return _content(read(path, "space file"))


def _content(document: Document) -> tuple[dict[str, Dimension], tuple[str, ...]]:
    content = dict(document.content)
    constraints = content.pop("constraints", [])
    if isinstance(constraints, str):
        constraints = [constraints]
    if not isinstance(constraints, list) or not all(isinstance(each, str) for each in constraints):
        raise document.error(("constraints",), "`constraints` is no list of conditions", 'e.g. ["lr * batch < 10"]')
    return {name: _entry(document, name, entry) for name, entry in content.items()}, tuple(map(str, constraints))


def _entry(document: Document, name: str, entry: Json) -> Dimension:
    where: Location = (name,)
    if not name or any(char.isspace() or char in "=,'\"()`" for char in name) or name.startswith("-"):
        raise document.error(where, f"`{name}` cannot be the name of a param", "use letters, digits, `_`, `.`, `-`")
    try:
        if isinstance(entry, str):
            return from_distribution(name, parse_assignment(f"{name}={entry}")[1])
        if isinstance(entry, list):
            return listed(name, entry)
        if isinstance(entry, Mapping):
            return _mapping(document, name, entry)
        return Fixed(name, entry)
    except UsageError as error:
        if isinstance(error, ConfigError):
            raise
        raise document.error(where, error.message.removeprefix("--set "), _FORMS) from None
    except (ValueError, OverflowError) as error:
        raise document.error(where, str(error), _FORMS) from None


def _mapping(document: Document, name: str, entry: Mapping[str, Json]) -> Dimension:
    if name in _HEADINGS and not any(key in _KEYS for key in entry):
        hint = f"take away `{name}:` and the spaces before what is below it"
        raise document.error((name,), f"`{name}` is a heading, and params stand without one", hint)
    for key in entry:
        if key not in _KEYS:
            raise document.error((name, key), f"unknown key `{name}.{key}`", did_you_mean(key, _KEYS))
    kind, when = _kind(document, name, entry), entry.get("when")
    if when is not None and not isinstance(when, str):
        raise document.error((name, "when"), f"`{name}.when` is no condition", "e.g. `when: opt == sgd`")
    if kind == "fixed":
        return Fixed(name, entry.get("value"), when=when)
    if kind in ("categorical", "ordinal"):
        return _values(document, name, entry, kind, when)
    low, high = _number(document, name, entry, "low"), _number(document, name, entry, "high")
    prior: Prior = "log" if entry.get("log") else "uniform"
    if kind == "int" and not (low == int(low) and high == int(high)):
        raise document.error((name,), f"`{name}` is an int, but its ends are no whole numbers", "write `type: real`")
    if kind == "real" and "q" not in entry:
        return Real(name, low, high, prior, when=when)
    q = _number(document, name, entry, "q") if "q" in entry else 1
    return Int(name, low, high, prior, q, when=when)


def _kind(document: Document, name: str, entry: Mapping[str, Json]) -> str:
    """Return the type, worked out from the other keys where it is not said."""
    kind = entry.get("type")
    if kind is not None:
        if kind not in _TYPES or not isinstance(kind, str):
            hint = did_you_mean(str(kind), _TYPES, "it is one of")
            raise document.error((name, "type"), f"`{name}.type` cannot be {kind!r}", hint)
        return kind
    if "value" in entry:
        return "fixed"
    if "values" in entry:
        numbers = entry["values"]
        is_ordered = isinstance(numbers, list) and all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in numbers
        )
        return "ordinal" if is_ordered and "weights" not in entry else "categorical"
    whole = all(isinstance(entry.get(key), int) for key in ("low", "high"))
    return "int" if whole and "q" not in entry else "real"


def _values(document: Document, name: str, entry: Mapping[str, Json], kind: str, when: str | None) -> Dimension:
    values, weights = entry.get("values"), entry.get("weights")
    if not isinstance(values, list) or not values:
        raise document.error((name,), f"`{name}` has no list of values", f"e.g. `{name}: {{values: [16, 32, 64]}}`")
    if len(values) == 1:
        return Fixed(name, values[0], when=when)
    if kind == "ordinal":
        return Ordinal(name, tuple(values), when=when)
    if weights is None:
        return Categorical(name, tuple(values), when=when)
    if not isinstance(weights, list) or not all(isinstance(w, int | float) for w in weights):
        raise document.error((name, "weights"), f"`{name}.weights` is no list of numbers", "one for each value")
    total = math.fsum(weights)
    choice = Choice(tuple(values), tuple(float(w) / total for w in weights) if total else tuple(weights))
    return from_distribution(name, choice, when)


def _number(document: Document, name: str, entry: Mapping[str, Json], key: str) -> float:
    value = entry.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        problem = f"`{name}` has no `{key}`" if value is None else f"`{name}.{key}` must be a number, not {value!r}"
        raise document.error((name, key) if key in entry else (name,), problem, _FORMS)
    return value
