"""Weights & Biases sweep files, as people have them on disk, plus a ``resources:`` block.

The format is https://docs.wandb.ai/models/sweeps/sweep-config-keys; what ``distribution`` means is taken from
https://github.com/wandb/sweeps (config/schema.json). An unknown key is an error, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from ems.document import Document, Location, read
from ems.errors import ConfigError
from ems.model import MAX_POINTS, Axis, Json, Resources
from ems.node import argv
from ems.space import Dimension, Sweep, suggest
from ems.space.distribution import Beta, Choice, Distribution, IntUniform, LogNormal, LogUniform, Normal, Uniform

__all__ = ["Sweep", "load"]

_KEYS = ("program", "method", "parameters", "metric", "name", "description", "command", "run_cap", "early_terminate")
_OURS = ("resources",)
_OF_THE_SERVICE = ("project", "entity", "apiVersion", "kind", "controller")  # say nothing about the runs
_NOT_HERE = ("job", "image_uri", "scheduler", "metrics")
_METHODS = ("grid", "random", "bayes")
_METRIC = ("name", "goal", "target", "impute", "impute_while_running")
_EARLY = ("type", "min_iter", "max_iter", "s", "eta", "strict")

Numbers: TypeAlias = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Kind:
    """A ``distribution:`` with the keys it must and may have, and what it is."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    make: Callable[[Numbers], Distribution] | None = None


def _q(n: Numbers) -> float | None:
    return n["q"]


_BOUNDS, _MOMENTS, _SHAPES = ("min", "max"), ("mu", "sigma"), ("a", "b")
_DEFAULTS = MappingProxyType({"mu": 0.0, "sigma": 1.0, "a": 1.0, "b": 1.0, "q": 1})
_KINDS: Mapping[str, _Kind] = {
    "constant": _Kind(("value",), ()),
    "categorical": _Kind(("values",), ()),
    "categorical_w_probabilities": _Kind(("values", "probabilities"), ()),
    "int_uniform": _Kind(_BOUNDS, (), lambda n: IntUniform(int(n["min"]), int(n["max"]))),
    "uniform": _Kind(_BOUNDS, (), lambda n: Uniform(n["min"], n["max"])),
    "q_uniform": _Kind(_BOUNDS, ("q",), lambda n: Uniform(n["min"], n["max"], _q(n))),
    # Ends of log_uniform are exponents of e, those of log_uniform_values the values themselves.
    "log_uniform": _Kind(_BOUNDS, (), lambda n: LogUniform(math.exp(n["min"]), math.exp(n["max"]))),
    "q_log_uniform": _Kind(_BOUNDS, ("q",), lambda n: LogUniform(math.exp(n["min"]), math.exp(n["max"]), _q(n))),
    "inv_log_uniform": _Kind(_BOUNDS, (), lambda n: LogUniform(math.exp(-n["max"]), math.exp(-n["min"]))),
    "log_uniform_values": _Kind(_BOUNDS, (), lambda n: LogUniform(n["min"], n["max"])),
    "q_log_uniform_values": _Kind(_BOUNDS, ("q",), lambda n: LogUniform(n["min"], n["max"], _q(n))),
    "inv_log_uniform_values": _Kind(_BOUNDS, (), lambda n: LogUniform(n["min"], n["max"])),
    "normal": _Kind((), _MOMENTS, lambda n: Normal(n["mu"], n["sigma"])),
    "q_normal": _Kind((), (*_MOMENTS, "q"), lambda n: Normal(n["mu"], n["sigma"], _q(n))),
    "log_normal": _Kind((), _MOMENTS, lambda n: LogNormal(n["mu"], n["sigma"])),
    "q_log_normal": _Kind((), (*_MOMENTS, "q"), lambda n: LogNormal(n["mu"], n["sigma"], _q(n))),
    "beta": _Kind((), _SHAPES, lambda n: Beta(n["a"], n["b"])),
    "q_beta": _Kind((), (*_SHAPES, "q"), lambda n: Beta(n["a"], n["b"], _q(n))),
}
_PARAMETER = (
    "value",
    "values",
    "probabilities",
    "min",
    "max",
    "q",
    "mu",
    "sigma",
    "a",
    "b",
    "distribution",
    "parameters",
)


def load(path: Path) -> Sweep:
    """Read a sweep file.

    ``method: bayes`` and ``early_terminate`` are read as well; :func:`ems.space.build` refuses them.

    Raises
    ------
    ConfigError
        If it cannot be read, has an unknown key, or a value that cannot be meant; names file, line and key.
    """
    document = read(path, "sweep file")
    content = document.content
    _check_keys(document, (), content, (*_KEYS, *_OURS, *_OF_THE_SERVICE, *_NOT_HERE))
    for key in _NOT_HERE:
        if key in content:
            raise document.error(
                (key,), f"`{key}` needs the service of Weights & Biases", "remove it, name a `program`"
            )
    if "method" not in content:
        raise ConfigError(f"{path} has no `method`", "write `method: grid`, or `method: random` and `run_cap: N`")
    method = _one_of(document, ("method",), content["method"], _METHODS)
    parameters = dict(_parameters(document, ("parameters",), content.get("parameters"), ()))
    names = {location: ".".join(location) for location in parameters}
    if len(set(names.values())) < len(names):
        twice = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise document.error(("parameters",), f"`{twice}` stands twice, nested and with a dot", "keep one of them")
    return Sweep(
        path=path,
        method=method,
        dimensions={names[where]: _dimension(document, where, spec, method) for where, spec in parameters.items()},
        nested={names[where]: where for where in parameters if len(where) > 1},
        program=_text(document, "program"),
        command=_command(document),
        name=_text(document, "name"),
        description=_text(document, "description"),
        run_cap=_whole(document, ("run_cap",), content["run_cap"]) if "run_cap" in content else None,
        metric=_metric(document),
        early_terminate=_early_terminate(document),
        resources=_resources(document),
    )


def _check_keys(document: Document, where: Location, content: Mapping[str, Json], known: Collection[str]) -> None:
    for key in content:
        if key not in known:
            name = ".".join(map(str, (*where, key)))
            hint = suggest(key, list(known)) or f"known keys: {', '.join(known)}"
            raise document.error((*where, key), f"unknown key `{name}`", hint)


def _parameters(
    document: Document, where: Location, content: Json, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Json]]]:
    """Yield the path of each parameter with its keys; nested ones in place."""
    if not isinstance(content, Mapping) or not content:
        raise document.error(where, f"`{_dotted(where)}` names no parameters", "e.g. `lr: {values: [0.1, 0.01]}`")
    for name, spec in content.items():
        here = (*where, name)
        if not name or any(c.isspace() or c in "=," for c in name) or name.startswith("-"):
            raise document.error(here, f"`{name}` cannot be the name of a param", "use letters, digits, `_`, `.`, `-`")
        if not isinstance(spec, Mapping):
            form = "values" if isinstance(spec, list) else "value"
            raise document.error(here, f"`{_dotted(here)}` is no mapping", f"write `{name}: {{{form}: {spec}}}`")
        _check_keys(document, here, spec, _PARAMETER)
        if "parameters" not in spec:
            yield (*path, name), spec
        elif len(spec) == 1:
            yield from _parameters(document, (*here, "parameters"), spec["parameters"], (*path, name))
        else:
            other = next(key for key in spec if key != "parameters")
            raise document.error((*here, other), f"`{_dotted(here)}` has both `parameters` and `{other}`")


def _dimension(document: Document, path: tuple[str, ...], spec: Mapping[str, Json], method: str) -> Dimension:
    where: Location = ("parameters", *(part for name in path for part in (name, "parameters")))[:-1]
    name = ".".join(path)
    distribution = _distribution_name(document, where, spec)
    kind = _KINDS[distribution]
    for key in spec:
        if key not in (*kind.required, *kind.optional, "distribution"):
            raise document.error((*where, key), f"`{name}`: {distribution} has no `{key}`", _takes(distribution))
    for key in kind.required:
        if key not in spec:
            raise document.error(where, f"`{name}`: {distribution} needs `{key}`", _takes(distribution))
    try:
        if kind.make is None:
            return _listed(document, where, name, spec, method)
        numbers = {
            key: _number(document, (*where, key), spec.get(key, _DEFAULTS.get(key)))
            for key in (*kind.required, *kind.optional)
        }
        if distribution == "int_uniform" and not all(isinstance(n, int) for n in numbers.values()):
            raise document.error(where, f"`{name}`: int_uniform takes whole numbers", "use `distribution: uniform`")
        made = kind.make(numbers)
    except (ValueError, OverflowError) as error:
        raise document.error(where, f"`{name}`: {error}", _takes(distribution)) from error
    return made if method != "grid" else _enumerate(document, where, name, distribution, numbers)


def _takes(distribution: str) -> str:
    kind = _KINDS[distribution]
    parts = [*(f"`{key}`" for key in kind.required), *(f"`{key}` if you like" for key in kind.optional)]
    exponents = (
        "; its ends are exponents of e, those of log_uniform_values are not" if "log_uniform" in distribution else ""
    )
    return f"{distribution} takes {', '.join(parts)}" + ("" if distribution.endswith("_values") else exponents)


def _distribution_name(document: Document, where: Location, spec: Mapping[str, Json]) -> str:
    """Return the distribution, worked out from the other keys as W&B does where it is not said."""
    if "distribution" in spec:
        return _one_of(document, (*where, "distribution"), spec["distribution"], tuple(_KINDS))
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if "min" in spec or "max" in spec:
        whole = all(isinstance(spec.get(key, 0), int) for key in _BOUNDS)
        return "int_uniform" if whole else "uniform"
    hint = "write value, values, min and max, or a distribution"
    raise document.error(where, f"`{_dotted(where)}` does not say which values it takes", hint)


def _listed(document: Document, where: Location, name: str, spec: Mapping[str, Json], method: str) -> Dimension:
    if "value" in spec:
        return Axis((name,), ((spec["value"],),))
    values = spec["values"]
    if not isinstance(values, list) or not values:
        raise document.error((*where, "values"), f"`{name}` has no list of values", "e.g. `values: [0.1, 0.01]`")
    weights = spec.get("probabilities")
    if weights is not None and not isinstance(weights, list):
        raise document.error((*where, "probabilities"), f"`{name}`: `probabilities` is no list", "one for each value")
    if method == "grid":
        if weights is not None:
            raise _not_a_grid(document, where, name, "probabilities")
        return Axis((name,), tuple((value,) for value in values))
    numbers = [_number(document, (*where, "probabilities", i), weight) for i, weight in enumerate(weights or ())]
    return Choice(tuple(values), tuple(numbers) if weights is not None else None)


def _enumerate(document: Document, where: Location, name: str, distribution: str, numbers: Numbers) -> Axis:
    if distribution not in ("int_uniform", "q_uniform"):
        raise _not_a_grid(document, where, name, distribution)
    low, high, step = (Decimal(repr(numbers.get(key, 1))) for key in ("min", "max", "q"))
    count = int((high - low) / step) + 1
    if count > MAX_POINTS:
        raise document.error(where, f"`{name}` has {count:,} values; a sweep has at most {MAX_POINTS:,} points")
    whole = all(isinstance(number, int) for number in numbers.values())
    values = (low + i * step for i in range(count))
    return Axis((name,), tuple((int(value) if whole else float(value),) for value in values))


def _not_a_grid(document: Document, where: Location, name: str, what: str) -> ConfigError:
    return document.error(
        where, f"`{name}`: a grid cannot walk {what}", "list `values`, or write `method: random` and `run_cap: N`"
    )


def _command(document: Document) -> tuple[str, ...] | None:
    command = document.content.get("command")
    if command is None:
        return None
    if not isinstance(command, list) or not command or not all(isinstance(c, str | int | float) for c in command):
        hint = "one word an item: [${env}, ${interpreter}, ${program}, ${args}]"
        raise document.error(("command",), "`command` must be a list of words", hint)
    words = tuple(str(word) for word in command)
    try:
        argv.check_command(words)
    except ValueError as error:
        raise document.error(("command",), str(error), f"the macros are {', '.join(argv.MACROS)}") from error
    return words


def _metric(document: Document) -> Mapping[str, Json] | None:
    metric = _section(document, "metric", _METRIC)
    if metric is None:
        return None
    if not isinstance(metric.get("name"), str):
        raise document.error(("metric",), "`metric` needs a `name`", "e.g. `metric: {name: loss, goal: minimize}`")
    if "goal" in metric:
        _one_of(document, ("metric", "goal"), metric["goal"], ("minimize", "maximize"))
    return metric


def _early_terminate(document: Document) -> Mapping[str, Json] | None:
    early = _section(document, "early_terminate", _EARLY)
    if early is not None:
        _one_of(document, ("early_terminate", "type"), early.get("type"), ("hyperband",))
    return early


def _resources(document: Document) -> Resources:
    names = [field.name for field in dataclass_fields(Resources)]
    section = _section(document, "resources", names) or {}
    values: dict[str, str | int | None] = {}
    for name, value in section.items():
        if name in ("cpus", "nodes") and value is not None:
            values[name] = _whole(document, ("resources", name), value)
        elif value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
            values[name] = None if value is None else str(value)
        else:
            raise document.error(("resources", name), f"`resources.{name}` must be text", "as sbatch takes it")
    return Resources(**values)  # type: ignore[arg-type] # cpus and nodes are the ints


def _section(document: Document, key: str, known: Collection[str]) -> Mapping[str, Json] | None:
    section = document.content.get(key)
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise document.error((key,), f"`{key}` must be a mapping", f"its keys are {', '.join(known)}")
    _check_keys(document, (key,), section, known)
    return section


def _text(document: Document, key: str) -> str | None:
    value = document.content.get(key)
    if isinstance(value, Mapping | list | bool):
        raise document.error((key,), f"`{key}` must be text")
    return None if value is None else str(value)


def _whole(document: Document, where: Location, value: Json) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise document.error(where, f"`{_dotted(where)}` must be a whole number above 0, not {value!r}")
    return value


def _number(document: Document, where: Location, value: Json) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise document.error(where, f"`{_dotted(where)}` must be a number, not {value!r}")
    return value


def _one_of(document: Document, where: Location, value: Json, choices: tuple[str, ...]) -> str:
    if value not in choices or not isinstance(value, str):
        hint = suggest(str(value), choices) or f"choose one of {', '.join(choices)}"
        raise document.error(where, f"`{_dotted(where)}` cannot be {value!r}", hint)
    return value


def _dotted(where: Location) -> str:
    return ".".join(map(str, where))
