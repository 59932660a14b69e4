"""Conditions and constraints of a space: ``opt == sgd``, ``lr * batch < 10``. Read from the text, never executed.

An expression is evaluated for many points at once: a name stands for an array, with an entry a point. What has no
value (``log(-1)``, a division by zero) is NaN or infinite, and no comparison with NaN holds.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ems.errors import UsageError

Column: TypeAlias = NDArray[Any]  # float64, or object where values are no numbers
Columns: TypeAlias = Mapping[str, Column]
Compute: TypeAlias = Callable[[Columns], Any]

MAX_LENGTH = 2_000  # characters; more is no condition that a person wrote
_HINT = (
    "write e.g. 'opt == sgd', 'lr * batch < 10', 'depth in (2, 4) and not wide'; there are + - * / // % **, "
    "and, or, not, in, min, max, abs, log, log10, log2, exp, sqrt; `a-name` in backticks"
)
_WORDS: Mapping[str, Any] = {"true": True, "false": False, "null": None, "inf": np.inf, "pi": np.pi}
_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.true_divide,
    ast.FloorDiv: np.floor_divide,
    ast.Mod: np.mod,
    ast.Pow: np.power,
}
_FUNCTIONS: Mapping[str, tuple[Callable[..., Any], bool]] = {  # whether of several
    "abs": (np.abs, False),
    "exp": (np.exp, False),
    "log": (np.log, False),
    "log10": (np.log10, False),
    "log2": (np.log2, False),
    "sqrt": (np.sqrt, False),
    "max": (np.maximum, True),
    "min": (np.minimum, True),
}


def _numbers(value: Any) -> Any:
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind not in "fiub":
        raise TypeError("it computes with what is no number")
    return array.astype(float)


def _equal(left: Any, right: Any) -> Any:
    return np.asarray(left, dtype=object) == np.asarray(right, dtype=object)


def _order(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda left, right: compare(_numbers(left), _numbers(right))


_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: _equal,
    ast.NotEq: lambda left, right: np.logical_not(_equal(left, right)),
    ast.Lt: _order(operator.lt),
    ast.LtE: _order(operator.le),
    ast.Gt: _order(operator.gt),
    ast.GtE: _order(operator.ge),
}


@dataclass(frozen=True)
class Expression:
    """A condition on params.

    Attributes
    ----------
    text
        As it was written.
    names
        The params that it names.
    """

    text: str
    names: frozenset[str]
    _compute: Compute

    def holds(self, columns: Columns, count: int) -> NDArray[np.bool_]:
        """Return for each of ``count`` points whether it is true.

        Parameters
        ----------
        columns
            Each param of ``names`` to its values, shape ``(count,)``.

        Raises
        ------
        UsageError
            If it computes with what is no number.
        """
        try:
            with np.errstate(all="ignore"):
                value = np.asarray(self._compute(columns))
        except TypeError as error:
            raise UsageError(f"`{self.text}` cannot be computed: {error}", _HINT) from error
        if value.dtype.kind == "f":
            value = np.nan_to_num(value)
        return np.broadcast_to(value.astype(bool), (count,))


def parse(text: str, names: Collection[str], words: Collection[str]) -> Expression:
    """Read an expression.

    Parameters
    ----------
    names
        Of params.
    words
        Values of params that may be written without quotes.

    Raises
    ------
    UsageError
        If it is no expression, or names what is neither a param nor a value; the message shows the part.
    """
    ticked: list[str] = []

    def stand_in(match: re.Match[str]) -> str:
        ticked.append(match[1])
        return f"_ticked_{len(ticked) - 1}"

    if len(text) > MAX_LENGTH:
        raise UsageError(f"`{text[:40]}…` has more than {MAX_LENGTH:,} characters", _HINT)
    try:
        node = ast.parse(re.sub(r"`([^`]+)`", stand_in, text.strip()), mode="eval").body
        reader = _Reader(text, names, words, ticked)
        compute = reader.read(node)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"`{text}` is no condition: {getattr(error, 'msg', None) or error}", _HINT) from error
    return Expression(text, frozenset(reader.used), compute)


class _Reader:
    """Turns a syntax tree into a function of the columns."""

    def __init__(self, text: str, names: Collection[str], words: Collection[str], ticked: list[str]) -> None:
        self._text = text
        self._names = names
        self._words = words
        self._ticked = ticked
        self.used: set[str] = set()

    def read(self, node: ast.expr) -> Compute:
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise self._refuse(node)
        compute: Compute = method(node)
        return compute

    def _refuse(self, node: ast.AST) -> UsageError:
        part = ast.unparse(node)
        return UsageError(f"`{self._text}` has `{part}`, which a condition cannot have", _HINT)

    def _constant(self, node: ast.Constant) -> Compute:
        if not isinstance(node.value, bool | int | float | str | None):
            raise self._refuse(node)
        # whole numbers as floats: 10**10**10 is infinite, not the end of the machine
        value = float(node.value) if type(node.value) is int else node.value
        return lambda _: value

    def _name(self, node: ast.Name) -> Compute:
        name = self._ticked[int(node.id[8:])] if re.fullmatch(r"_ticked_\d+", node.id) else node.id
        return self._named(name, node)

    def _attribute(self, node: ast.Attribute) -> Compute:
        return self._named(ast.unparse(node), node)  # model.depth

    def _named(self, name: str, node: ast.AST) -> Compute:
        if name in self._names:
            self.used.add(name)
            return lambda columns: columns[name]
        if name in _WORDS:
            return lambda _: _WORDS[name]
        if name in self._words:
            return lambda _: name
        if not isinstance(node, ast.Name | ast.Attribute):
            raise self._refuse(node)
        raise UsageError(
            f"`{self._text}` names `{name}`, which is neither a param nor a value of one",
            f"the params are {', '.join(self._names)}",
        )

    def _unaryop(self, node: ast.UnaryOp) -> Compute:
        operand = self.read(node.operand)
        if isinstance(node.op, ast.Not):
            return lambda columns: np.logical_not(operand(columns))
        if isinstance(node.op, ast.USub | ast.UAdd):
            sign = -1.0 if isinstance(node.op, ast.USub) else 1.0
            return lambda columns: sign * _numbers(operand(columns))
        raise self._refuse(node)

    def _binop(self, node: ast.BinOp) -> Compute:
        function = _BINARY.get(type(node.op))
        if function is None:
            raise self._refuse(node)
        left, right = self.read(node.left), self.read(node.right)
        return lambda columns: function(_numbers(left(columns)), _numbers(right(columns)))

    def _boolop(self, node: ast.BoolOp) -> Compute:
        parts = [self.read(value) for value in node.values]
        join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return lambda columns: reduce(join, (np.asarray(part(columns)).astype(bool) for part in parts))

    def _compare(self, node: ast.Compare) -> Compute:
        sides = [node.left, *node.comparators]
        tests = [
            self._membership(a, op, b) if isinstance(op, ast.In | ast.NotIn) else self._comparison(a, op, b)
            for a, op, b in zip(sides, node.ops, node.comparators, strict=False)
        ]
        return lambda columns: reduce(np.logical_and, (test(columns) for test in tests))

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Compute:
        compare = _COMPARE.get(type(op))
        if compare is None:
            raise self._refuse(ast.Compare(left, [op], [right]))
        a, b = self.read(left), self.read(right)
        return lambda columns: compare(a(columns), b(columns))

    def _membership(self, item: ast.expr, op: ast.cmpop, among: ast.expr) -> Compute:
        if not isinstance(among, ast.List | ast.Tuple | ast.Set) or not among.elts:
            raise self._refuse(ast.Compare(item, [op], [among]))
        value, members = self.read(item), [self.read(each) for each in among.elts]
        turn = np.logical_not if isinstance(op, ast.NotIn) else np.asarray

        def compute(columns: Columns) -> Any:
            found = value(columns)
            return turn(reduce(np.logical_or, (_equal(found, member(columns)) for member in members)))

        return compute

    def _ifexp(self, node: ast.IfExp) -> Compute:
        test, yes, no = self.read(node.test), self.read(node.body), self.read(node.orelse)
        return lambda columns: np.where(np.asarray(test(columns)).astype(bool), yes(columns), no(columns))

    def _call(self, node: ast.Call) -> Compute:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in _FUNCTIONS or node.keywords or not node.args:
            raise self._refuse(node)
        function, is_of_several = _FUNCTIONS[name]
        if not is_of_several and len(node.args) != 1:
            raise self._refuse(node)
        parts = [self.read(each) for each in node.args]
        if is_of_several:
            return lambda columns: reduce(function, (_numbers(part(columns)) for part in parts))
        return lambda columns: function(_numbers(parts[0](columns)))
