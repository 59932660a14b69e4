"""Axes, distributions and sweeps: what ``--set``, ``--zip`` and ``--samples`` mean. Pure.

``--set NAME=VALUES`` is a list to walk or a distribution to draw from::

    lr=0.1,0.01             numbers keep their type; true, false and null are JSON's
    opt=adam,'a, b'         words are strings; quotes keep commas, and make a string of a number: '0.1'
    layers=[64,64],[128]    a JSON list or object is one value
    seed=0..9               both ends; 0..1..0.25 with a step, 9..0..-1 downwards
    lr=logspace(-4,-1,7)    seven from 1e-4 to 1e-1; linspace(0,1,5); several forms may be joined: 0,0.1..0.5..0.1
    lr=loguniform(1e-5,1e-1)   with --samples N; uniform(a,b), int(a,b), logint(a,b), normal(mean,sd), choice(a,b,c)
"""

from __future__ import annotations

import difflib
import json
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice, product, takewhile
from pathlib import Path
from typing import TypeAlias

from ems.errors import UsageError
from ems.model import MAX_POINTS, Axis, Json, Params, Resources
from ems.space.distribution import Choice, Distribution, IntUniform, LogInt, LogUniform, Normal, Uniform

_INT = re.compile(r"[-+]?(?:0|[1-9]\d*)", re.ASCII)  # 007 is a word
_NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
_LIKE_RANGE = re.compile(r"[-+]?\.?\d.*\.\.", re.ASCII)
_CALL = re.compile(r"([A-Za-z_]\w*)\((.*)\)", re.DOTALL)
_WORDS: Mapping[str, Json] = {
    "true": True,
    "True": True,
    "false": False,
    "False": False,
    "null": None,
    "None": None,
    "inf": math.inf,
    "-inf": -math.inf,
    "nan": math.nan,
}


Dimension: TypeAlias = Axis | Distribution


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep file says; :func:`ems.space.sweep.load` reads it.

    Attributes
    ----------
    path
        The file, for messages.
    method
        ``grid``, ``random`` or ``bayes``.
    dimensions
        Name (nested ones joined by dots) to what it walks or is drawn from, in the order of the file.
    nested
        The path of each nested name: ``{"model.depth": ("model", "depth")}``.
    run_cap
        At most so many runs.
    metric, early_terminate
        As in the file, for ``ems tune``.
    """

    path: Path
    method: str
    dimensions: Mapping[str, Dimension]
    nested: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    program: str | None = None
    command: tuple[str, ...] | None = None
    name: str | None = None
    description: str | None = None
    run_cap: int | None = None
    metric: Mapping[str, Json] | None = None
    early_terminate: Mapping[str, Json] | None = None
    resources: Resources = field(default_factory=Resources)


@dataclass(frozen=True, slots=True)
class Points:
    """The points of a sweep; they are made as they are asked for.

    Attributes
    ----------
    axes
        Crossed; the last one varies fastest.
    count
        How many points there are; fewer than the product of the axes where a sweep file caps them.
    names
        The params in the order they were given, which is the order they are passed in.
    nested
        As in :class:`Sweep`.
    """

    axes: tuple[Axis, ...]
    count: int
    names: tuple[str, ...] = ()
    nested: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def iterate(self) -> Iterator[Params]:
        """Yield the params of each point."""
        flat = [name for axis in self.axes for name in axis.names]
        slots = [(self.nested.get(name, (name,)), flat.index(name)) for name in self.names]
        for combination in islice(product(*(axis.values for axis in self.axes)), self.count):
            drawn = [value for values in combination for value in values]
            params: dict[str, Json] = {}
            for path, slot in slots:
                put(params, path, drawn[slot])
            yield params


def put(params: dict[str, Json], path: Sequence[str], value: Json) -> None:
    """Set a param, inside of others where its path says so: ``("model", "depth")``."""
    for part in path[:-1]:
        inner = params.setdefault(part, {})
        assert isinstance(inner, dict)  # noqa: S101 - ems.space.sweep refuses a name that is both a value and a group
        params = inner
    params[path[-1]] = value


def build(
    sets: Sequence[str],
    zips: Sequence[str],
    samples: int | None,
    seed: int,
    sweep: Sweep | None = None,
) -> Points:
    """Return the points that a sweep file, ``--set``, ``--zip`` and ``--samples`` give together.

    Lists are crossed. Distributions are drawn together ``samples`` times, and what is drawn is one axis, crossed
    with the lists: 20 samples and ``seed=0..4`` are 100 runs.

    Parameters
    ----------
    sets
        ``NAME=VALUES`` each; a name of the sweep file is overridden, a new one added.
    zips
        ``NAME,NAME...`` each: lists of one length that are walked together.
    samples, seed
        How often distributions are drawn, and the seed of the draws.
    sweep
        A sweep file that was read.

    Raises
    ------
    UsageError
        If any of it cannot be meant, or there are no points or more than a million.
    """
    dimensions = dict(sweep.dimensions) if sweep else {}
    given: set[str] = set()
    for text in sets:
        name, dimension = parse_assignment(text)
        if name in given:
            raise UsageError(f"`{name}` is set twice", f"give all its values at once: --set {name}=A,B")
        given.add(name)
        dimensions[name] = dimension
    drawn = {name: d for name, d in dimensions.items() if not isinstance(d, Axis)}
    draws = _number_of_draws(drawn, samples, sweep)
    lists = {name: d for name, d in dimensions.items() if isinstance(d, Axis)}
    axes = _zip(lists, zips, drawn)
    nested = sweep.nested if sweep else {}
    _check_groups([nested.get(name, (name,)) for name in dimensions])
    cap = sweep.run_cap if sweep and samples is None else None
    count = math.prod([draws, *map(len, axes)])
    _check_count(min(count, cap or count))
    if drawn:
        # Where the first of them stood: its order is the order of the runs.
        before = set(takewhile(lambda name: name not in drawn, dimensions))
        position = sum(1 for axis in axes if before.intersection(axis.names))
        axes.insert(position, _draw(drawn, draws, seed))
    return Points(tuple(axes), min(count, cap or count), tuple(dimensions), nested)


def _check_groups(paths: Sequence[tuple[str, ...]]) -> None:
    for path in paths:
        for group in (path[:length] for length in range(1, len(path))):
            if group in paths:
                raise UsageError(
                    f"`{'.'.join(group)}` is both a value and the group of `{'.'.join(path)}`",
                    "set the one or the other",
                )


def _check_count(count: int) -> None:
    if count > MAX_POINTS:
        raise UsageError(
            f"this sweep has {count:,} points; at most {MAX_POINTS:,} can be submitted",
            "draw some of them: distributions with --samples N, or search with `ems tune`",
        )


def _number_of_draws(drawn: Mapping[str, Distribution], samples: int | None, sweep: Sweep | None) -> int:
    if sweep and (sweep.method == "bayes" or sweep.early_terminate):
        what = "`method: bayes`" if sweep.method == "bayes" else "`early_terminate`"
        raise UsageError(
            f"{sweep.path}: {what} chooses points while runs end, which parrun does not",
            f"ems tune {sweep.program or 'SCRIPT'} --space {sweep.path}, or `method: random` without early_terminate",
        )
    if samples is not None and samples < 1:
        raise UsageError(f"--samples {samples} draws nothing", "give a number above 0")
    if samples is not None and not drawn:
        raise UsageError(
            "--samples has nothing to draw from: every param is a list", "e.g. --set 'lr=choice(0.1,0.01)'"
        )
    count = samples if samples is not None else (sweep.run_cap if sweep else None)
    if drawn and count is None:
        names = ", ".join(f"`{name}`" for name in drawn)
        hint = "add --samples N" + (" or `run_cap: N` to the sweep file" if sweep else "")
        raise UsageError(f"{names} {'is' if len(drawn) == 1 else 'are'} drawn at random, but not how often", hint)
    return count or 1


def _draw(drawn: Mapping[str, Distribution], count: int, seed: int) -> Axis:
    # A generator for each name: adding a param leaves the draws of the others as they were.
    generators = {name: random.Random(f"{seed}:{name}") for name in drawn}
    columns = [[drawn[name].sample(generators[name]) for _ in range(count)] for name in drawn]
    return Axis(tuple(drawn), tuple(zip(*columns, strict=True)))


def _zip(lists: dict[str, Axis], zips: Sequence[str], drawn: Mapping[str, Distribution]) -> list[Axis]:
    """Join the lists that are walked together; each takes the place of its first."""
    together: dict[str, tuple[str, ...]] = {}
    for text in zips:
        names = tuple(name.strip() for name in text.split(","))
        if len(names) < 2:
            raise UsageError(f"--zip {text} names one param, and one cannot be paired", "e.g. --zip lr,batch")
        for name in names:
            _check_zipped(name, lists, drawn, together)
            if name in names[: names.index(name)] or names.count(name) > 1:
                raise UsageError(f"--zip {text} names `{name}` twice", "name each param once")
        lengths = [len(lists[name]) for name in names]
        if len(set(lengths)) > 1:
            counts = ", ".join(f"{name} has {length}" for name, length in zip(names, lengths, strict=True))
            raise UsageError(f"--zip {text} pairs lists of different lengths: {counts}", "give each as many values")
        together.update(dict.fromkeys(names, names))
    axes: dict[tuple[str, ...], Axis] = {}
    for name, axis in lists.items():
        group = together.get(name, (name,))
        if group not in axes:
            columns = [[values[0] for values in lists[member].values] for member in group]
            axes[group] = Axis(group, tuple(zip(*columns, strict=True))) if len(group) > 1 else axis
    return list(axes.values())


def _check_zipped(
    name: str, lists: Mapping[str, Axis], drawn: Mapping[str, Distribution], together: Mapping[str, object]
) -> None:
    if name in drawn:
        raise UsageError(
            f"--zip cannot pair `{name}`, which is drawn at random", "draws are taken together as they are"
        )
    if name not in lists:
        raise UsageError(f"--zip names `{name}`, which no --set gives", suggest(name, lists) or f"add --set {name}=A,B")
    if name in together:
        raise UsageError(f"`{name}` is in two --zip", "put all that go together into one: --zip a,b,c")


def suggest(word: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """Return "did you mean `...`?" for the word of ``known`` that is like ``word``; empty if none is."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean `{close[0]}`?" if close else ""


def parse_assignment(text: str) -> tuple[str, Dimension]:
    """Read ``NAME=VALUES``, see the module's docstring.

    Returns
    -------
    name
        The param.
    dimension
        An :class:`Axis` to walk, or a :class:`Distribution`.

    Raises
    ------
    UsageError
        If it cannot be meant; the message shows the part.
    """
    name, equals, values = text.partition("=")
    name = name.strip()
    if not equals or not name or not re.fullmatch(r"[^\s=,'\"()]+", name):
        raise UsageError(f"`{text}` is not NAME=VALUES", "e.g. --set lr=0.1,0.01")
    if name.startswith("-"):
        raise UsageError(f"`{text}` has dashes before its name", f"--set {name.lstrip('-')}={values}")
    try:
        items = _split(values)
        distribution = _parse_distribution(items[0]) if len(items) == 1 else None
        if distribution is not None:
            return name, distribution
        axis = Axis((name,), tuple((value,) for item in items for value in _parse_item(item)))
    except ValueError as error:
        raise UsageError(f"--set {text}: {error}", _FORMS) from error
    return name, axis


_FORMS = (
    "values are 0.1,0.01 or 0..9 or 0..1..0.25 or linspace(a,b,n) or logspace(a,b,n), or to draw from: uniform(a,b), "
    "loguniform(a,b), int(a,b), logint(a,b), normal(mean,sd), choice(a,b); quote what is a string all the same"
)


def _split(text: str) -> list[str]:
    """Split at the commas outside of quotes and brackets.

    Raises
    ------
    ValueError
        If a quote or bracket is left open, or a value is empty.
    """
    items, start, depth, quote = [], 0, 0, ""
    position = 0
    while position < len(text):
        char = text[position]
        if quote:
            if char == "\\" and quote == '"':
                position += 1
            elif char == quote:
                quote = ""
        elif char in "'\"" and (depth or not text[start:position].strip()):
            quote = char  # only where a value begins: it's is a word
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth == 0:
            items.append(text[start:position].strip())
            start = position + 1
        position += 1
    items.append(text[start:].strip())
    if quote or depth != 0:
        raise ValueError(f"a {'quote' if quote else 'bracket'} is not closed")
    if "" in items:
        raise ValueError("a value is empty" if len(items) > 1 or text else "there are no values")
    return items


def _parse_item(text: str) -> Sequence[Json]:
    """Read one item of a list: a value, or a form that gives several."""
    call = _CALL.fullmatch(text)
    if call:
        return _parse_list_call(call[1], call[2])
    if _LIKE_RANGE.match(text):
        return _parse_range(text)
    return [_parse_value(text)]


def _parse_value(text: str) -> Json:
    if text[0] in "'\"":
        return _parse_quoted(text)
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        number = float(text)
        if math.isinf(number):
            raise ValueError(f"{text} is too large for a number")
        return number
    if text[0] in "[{":
        try:
            value: Json = json.loads(text)
        except ValueError as error:
            raise ValueError(f"`{text}` is not JSON: {error}") from error
        return value
    return text


def _parse_quoted(text: str) -> str:
    quote = text[0]
    if len(text) < 2 or text[-1] != quote:
        raise ValueError(f"something follows the quoted part of `{text}`")
    if quote == '"':
        try:
            value: str = json.loads(text, strict=False)
        except ValueError as error:
            raise ValueError(f"`{text}` is not a quoted string: {error}") from error
        return value
    if quote in text[1:-1]:
        raise ValueError(f"something follows the quoted part of `{text}`")
    return text[1:-1]


def _parse_range(text: str) -> Sequence[Json]:
    parts = text.split("..")
    if len(parts) not in (2, 3) or not all(_NUMBER.fullmatch(part) for part in parts):
        raise ValueError(f"`{text}` is not a range")
    for part in parts:
        _parse_value(part)
    whole = all(_INT.fullmatch(part) for part in parts)
    start, stop, step = (*map(Decimal, parts), Decimal(1))[:3]  # decimal: 0..1..0.1 has eleven values, 0.3 among them
    if step == 0:
        raise ValueError(f"`{text}` has a step of 0")
    if (stop - start) * step < 0:
        down = f"{parts[0]}..{parts[1]}..-{parts[2].lstrip('+-') if len(parts) == 3 else 1}"
        mend = down if start > stop else f"{parts[0]}..{parts[1]}"
        raise ValueError(f"`{text}` never gets from {parts[0]} to {parts[1]}; write {mend}")
    if (stop - start) / step >= MAX_POINTS:
        raise ValueError(f"`{text}` has more than {MAX_POINTS:,} values")
    count = int((stop - start) / step) + 1
    values = [start + i * step for i in range(count)]
    return [int(value) for value in values] if whole else [float(value) for value in values]


def _parse_list_call(name: str, inside: str) -> Sequence[Json]:
    if name in _DISTRIBUTIONS:
        raise ValueError(f"{name}(...) is drawn at random and must stand alone")
    if name not in ("linspace", "logspace"):
        guess = suggest(name, [*_DISTRIBUTIONS, "linspace", "logspace"])
        raise ValueError(f"there is no {name}(...)" + (f"; {guess}" if guess else ""))
    numbers = _numbers(name, inside, 3)
    start, stop, count = numbers[0], numbers[1], numbers[2]
    if not isinstance(count, int) or not 1 <= count <= MAX_POINTS:
        raise ValueError(f"{name}({inside}): the number of values must be a whole number from 1 to {MAX_POINTS:,}")
    values = [start + (stop - start) * i / (count - 1) for i in range(count - 1)] + [stop] if count > 1 else [start]
    try:
        return [10.0**value for value in values] if name == "logspace" else [float(value) for value in values]
    except OverflowError as error:
        raise ValueError(f"{name}({inside}) goes beyond what a number can hold; its ends are exponents") from error


def _parse_distribution(text: str) -> Distribution | None:
    call = _CALL.fullmatch(text)
    if call is None or call[1] not in _DISTRIBUTIONS:
        return None
    name, inside = call[1], call[2]
    try:
        if name == "choice":
            return Choice(tuple(value for item in _split(inside) for value in _parse_item(item)))
        return _make(name, _numbers(name, inside, 2))
    except ValueError as error:
        raise ValueError(f"{name}({inside}): {error}") from error


def _make(name: str, numbers: list[int | float]) -> Distribution:
    if name in ("int", "logint"):
        low, high = numbers
        if not (isinstance(low, int) and isinstance(high, int)):
            raise ValueError("both ends must be whole numbers")
        return IntUniform(low, high) if name == "int" else LogInt(low, high)
    makers: Mapping[str, Callable[..., Distribution]] = {"uniform": Uniform, "loguniform": LogUniform, "normal": Normal}
    return makers[name](*numbers)


_DISTRIBUTIONS = ("uniform", "loguniform", "int", "logint", "normal", "choice")


def _numbers(name: str, inside: str, count: int) -> list[int | float]:
    numbers = [_parse_value(item) for item in _split(inside)]
    plain = [n for n in numbers if isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n)]
    if len(plain) != len(numbers) or len(numbers) != count:
        raise ValueError(f"{name} takes {count} numbers")
    return plain
