"""What an expression of a script will be, found without running the script.

Only expressions whose value follows from the text are evaluated: literals, arithmetic, comprehensions, and calls of
the pure functions listed here. Everything else raises :class:`UnknownError`; nothing is ever guessed. Real
objects are used throughout (a ``zip`` is a ``zip``, an array an array), so that what would fail in the script fails
here too.
"""

from __future__ import annotations

import ast
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeAlias

from ems.model import MAX_POINTS

FAILURES = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)  # of a user's expression

# Any: the values of a user's script.
Value: TypeAlias = Any
Resolve: TypeAlias = Callable[[ast.Name], Value]


class UnknownError(Exception):
    """The value does not follow from the text.

    Parameters
    ----------
    node
        The expression to blame.
    reason
        Why, to follow "because"; empty where the expression says it all.
    """

    def __init__(self, node: ast.AST, reason: str = "") -> None:
        super().__init__(reason)
        self.node = node
        self.reason = reason


class Opaque:
    """An item whose value is not known before the run, only the text that makes it.

    It may be carried about, but whatever would have to look at it raises :class:`UnknownError`.
    """

    def __init__(self, node: ast.AST, text: str) -> None:
        self._node = node
        self.text = text

    def _refuse(self, *_: object) -> NoReturn:
        raise UnknownError(self._node)

    __eq__ = __hash__ = __bool__ = __len__ = __iter__ = __str__ = __repr__ = __format__ = __index__ = _refuse
    __contains__ = __getitem__ = __lt__ = __gt__ = __le__ = __ge__ = _refuse


class Imported(str):
    """The dotted name of an imported module or function."""

    __slots__ = ()


def bounded(values: Iterable[Value]) -> list[Value]:
    """Return at most ``MAX_POINTS`` values as a list.

    Raises
    ------
    OverflowError
        If there are more.
    """
    taken = list(itertools.islice(values, MAX_POINTS + 1))
    if len(taken) > MAX_POINTS:
        raise OverflowError(f"it has more than {MAX_POINTS:,} items")
    return taken


def _check_size(size: object) -> None:
    if isinstance(size, int | float) and size > MAX_POINTS:
        raise OverflowError(f"it has more than {MAX_POINTS:,} items")


def _over_list(function: Callable[..., Value]) -> Callable[..., Value]:
    """Bound the iterables that ``function`` walks at once."""

    def walk(*args: Value, **kwargs: Value) -> Value:
        return function(
            *(bounded(a) if isinstance(a, Iterable) and not isinstance(a, str) else a for a in args), **kwargs
        )

    return walk


def _dict(*args: Value, **kwargs: Value) -> dict[Value, Value]:
    # A mapping stays one; only other iterables are pairs.
    return dict(*(a if isinstance(a, Mapping) else bounded(a) for a in args), **kwargs)


def _has_opaque(value: Value) -> bool:
    return isinstance(value, Opaque) or (isinstance(value, list | tuple) and any(map(_has_opaque, value)))


def _numpy(name: str) -> Callable[..., Value]:
    def call(*args: Value, **kwargs: Value) -> Value:
        import numpy as np  # noqa: PLC0415 - slow to import: only for scripts that use it

        if any(_has_opaque(a) for a in args):
            raise TypeError("an item is not known before the run")
        if name == "arange":
            numbers = [a for a in args if isinstance(a, int | float)]
            start, stop, step = (*numbers, 1)[:3] if len(numbers) > 1 else (0, *numbers, 1)[:3]
            _check_size((stop - start) / step)
        elif name != "array":
            _check_size(args[2] if len(args) > 2 else kwargs.get("num"))
        with np.errstate(all="ignore"):
            return getattr(np, name)(*args, **kwargs)

    return call


BUILTINS: Mapping[str, Callable[..., Value]] = {
    "abs": abs,
    "bool": bool,
    "dict": _dict,
    "enumerate": enumerate,
    "float": float,
    "int": int,
    "len": len,
    "list": bounded,
    "max": _over_list(max),
    "min": _over_list(min),
    "range": range,
    "reversed": reversed,
    "round": round,
    "set": _over_list(set),
    "sorted": _over_list(sorted),
    "str": str,
    "sum": _over_list(sum),
    "tuple": lambda values=(): tuple(bounded(values)),
    "zip": zip,
}
ORDERLESS = tuple(BUILTINS[name] for name in ("bool", "len", "max", "min", "set", "sorted"))  # may be given a set
IMPORTS: Mapping[str, Value] = {
    "itertools.product": _over_list(itertools.product),
    "itertools.combinations": _over_list(itertools.combinations),
    "itertools.permutations": _over_list(itertools.permutations),
    "itertools.chain": itertools.chain,
    **{f"numpy.{name}": _numpy(name) for name in ("linspace", "logspace", "geomspace", "arange", "array")},
    **{f"{module}.{name}": getattr(math, name) for module in ("math", "numpy") for name in ("pi", "e", "inf", "nan")},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "exp", "floor", "log", "log10", "log2", "sqrt")},
}
METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset({"split", "strip", "lower", "upper"}),
    list: frozenset({"copy", "index", "count"}),
    tuple: frozenset({"index", "count"}),
    dict: frozenset({"items", "keys", "values", "get", "copy"}),
}
ARRAY_METHODS = frozenset({"tolist", "copy"})

_BINARY: Mapping[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Value], Value]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
}
_COMPARE: Mapping[type[ast.cmpop], Callable[[Value, Value], Value]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}


def is_array(value: Value) -> bool:
    """Whether ``value`` is a NumPy array or scalar."""
    return hasattr(value, "dtype") and hasattr(value, "tolist")


class Evaluator:
    """Evaluates expressions.

    Parameters
    ----------
    resolve
        Gives the value of a name, :class:`Imported` for what was imported and :data:`BUILTINS` for those; raises
        :class:`UnknownError` where it cannot.
    """

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._local: list[dict[str, Value]] = []  # variables of the comprehensions around

    def __call__(self, node: ast.expr) -> Value:
        """Return the value of ``node``.

        Raises
        ------
        UnknownError
            If it does not follow from the text, or would fail in the script too.
        """
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise UnknownError(node)
        try:
            return method(node)
        except UnknownError:
            raise
        except (*FAILURES, RecursionError) as error:
            raise UnknownError(node, str(error)) from error

    def _item(self, node: ast.expr) -> Value:
        """Evaluate an element of a display; what is not known is carried as it is written."""
        try:
            value = self(node)
        except UnknownError:
            return Opaque(node, ast.unparse(node))
        # An iterator as an item has no value to show; a set shows another one in every process.
        shapeless = hasattr(value, "__next__") or isinstance(value, set)
        return Opaque(node, ast.unparse(node)) if shapeless else value

    def _items(self, nodes: Iterable[ast.expr]) -> list[Value]:
        items: list[Value] = []
        for node in nodes:
            items += self._spread(node.value) if isinstance(node, ast.Starred) else [self._item(node)]
        return items

    def _spread(self, node: ast.expr) -> list[Value]:
        return bounded(no_set(node, self(node)))

    def _constant(self, node: ast.Constant) -> Value:
        return node.value

    def _name(self, node: ast.Name) -> Value:
        for scope in reversed(self._local):
            if node.id in scope:
                return scope[node.id]
        value = self._resolve(node)
        if isinstance(value, Imported) or callable(value):
            raise UnknownError(node)  # a function or module itself, not called
        return value

    def _list(self, node: ast.List) -> Value:
        return self._items(node.elts)

    def _tuple(self, node: ast.Tuple) -> Value:
        return tuple(self._items(node.elts))

    def _set(self, node: ast.Set) -> Value:
        return {self(element) for element in node.elts}

    def _dict(self, node: ast.Dict) -> Value:
        result: dict[Value, Value] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            result.update(self(value) if key is None else {self(key): self._item(value)})
        return result

    def _unaryop(self, node: ast.UnaryOp) -> Value:
        if type(node.op) not in _UNARY:
            raise UnknownError(node)
        return _UNARY[type(node.op)](self(node.operand))

    def _binop(self, node: ast.BinOp) -> Value:
        left, right = self(node.left), self(node.right)
        if type(node.op) not in _BINARY or (isinstance(node.op, ast.Mod) and isinstance(left, str)):
            raise UnknownError(node)
        if isinstance(node.op, ast.Pow) and isinstance(left, int) and isinstance(right, int):
            _check_size(abs(left).bit_length() * right)  # 10**10**10 would take the machine
        if isinstance(node.op, ast.Mult):
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, list | tuple | str):
                    _check_size(len(sequence) * times)
        return _BINARY[type(node.op)](left, right)

    def _boolop(self, node: ast.BoolOp) -> Value:
        stop_at = isinstance(node.op, ast.Or)
        value: Value = None
        for operand in node.values:
            value = self(operand)
            if bool(value) is stop_at:
                break
        return value

    def _compare(self, node: ast.Compare) -> Value:
        left = self(node.left)
        for op, operand in zip(node.ops, node.comparators, strict=True):
            right = self(operand)
            if isinstance(left, Opaque) or isinstance(right, Opaque):
                raise UnknownError(node)  # also for `is`, which nothing could overload
            if isinstance(op, ast.Is | ast.IsNot) and left is not None and right is not None:
                raise UnknownError(node)  # identity of numbers and strings is the interpreter's own affair
            holds = _COMPARE[type(op)](left, right)
            if not holds:
                return holds
            left = right
        return holds

    def _ifexp(self, node: ast.IfExp) -> Value:
        return self(node.body if self(node.test) else node.orelse)

    def _subscript(self, node: ast.Subscript) -> Value:
        return self(node.value)[self(node.slice)]

    def _slice(self, node: ast.Slice) -> Value:
        return slice(*(None if part is None else self(part) for part in (node.lower, node.upper, node.step)))

    def _joinedstr(self, node: ast.JoinedStr) -> Value:
        return "".join(self(part) for part in node.values)

    def _formattedvalue(self, node: ast.FormattedValue) -> Value:
        value = no_set(node, self(node.value))
        convert: Mapping[int, Callable[[Value], str]] = {ord("s"): str, ord("r"): repr, ord("a"): ascii}
        shown = value if node.conversion == -1 else convert[node.conversion](value)
        return format(shown, "" if node.format_spec is None else self(node.format_spec))

    def _attribute(self, node: ast.Attribute) -> Value:
        dotted = self._dotted(node)
        value = None if dotted is None else IMPORTS.get(dotted)
        if value is None or callable(value):
            raise UnknownError(node)
        return value

    def _dotted(self, node: ast.expr) -> str | None:
        """Return ``numpy.linspace`` for ``np.linspace``; None if it is not rooted in an import."""
        if isinstance(node, ast.Attribute):
            root = self._dotted(node.value)
            return None if root is None else f"{root}.{node.attr}"
        if isinstance(node, ast.Name) and not self._is_local(node):
            value = self._resolve(node)
            return str(value) if isinstance(value, Imported) else None
        return None

    def _is_local(self, node: ast.Name) -> bool:
        return any(node.id in scope for scope in self._local)

    def _call(self, node: ast.Call) -> Value:
        function = self._function(node)
        args = [
            value
            for arg in node.args
            for value in (self._spread(arg.value) if isinstance(arg, ast.Starred) else [self(arg)])
        ]
        kwargs: dict[str, Value] = {}
        for keyword in node.keywords:
            kwargs.update(self(keyword.value) if keyword.arg is None else {keyword.arg: self(keyword.value)})
        if function not in ORDERLESS:
            for value in args:
                no_set(node, value)
        return function(*args, **kwargs)

    def _function(self, node: ast.Call) -> Callable[..., Value]:
        function = node.func
        dotted = self._dotted(function)
        found: Value = None
        if dotted is not None:
            found = IMPORTS.get(dotted)
        elif isinstance(function, ast.Attribute):
            found = self._method(function)
        elif isinstance(function, ast.Name) and not self._is_local(function):
            found = self._resolve(function)
        if not callable(found):
            raise UnknownError(node)
        return found  # type: ignore[no-any-return] # callable() does not narrow Any

    def _method(self, node: ast.Attribute) -> Callable[..., Value]:
        owner = self(node.value)
        allowed = ARRAY_METHODS if is_array(owner) else METHODS.get(type(owner), frozenset())
        if node.attr not in allowed:
            raise UnknownError(node)
        method: Callable[..., Value] = getattr(owner, node.attr)
        return method

    def _listcomp(self, node: ast.ListComp) -> Value:
        return bounded(self._comprehend(node.generators, lambda: self._item(node.elt)))

    def _generatorexp(self, node: ast.GeneratorExp) -> Value:
        return iter(bounded(self._comprehend(node.generators, lambda: self._item(node.elt))))

    def _setcomp(self, node: ast.SetComp) -> Value:
        return set(bounded(self._comprehend(node.generators, lambda: self(node.elt))))

    def _dictcomp(self, node: ast.DictComp) -> Value:
        return dict(bounded(self._comprehend(node.generators, lambda: (self(node.key), self._item(node.value)))))

    def _comprehend(self, generators: list[ast.comprehension], element: Callable[[], Value]) -> Iterable[Value]:
        if not generators:
            yield element()
            return
        first, *rest = generators
        for item in no_set(first.iter, self(first.iter)):
            self._local.append(dict(unpack(first.target, item)))
            try:
                if all(self(condition) for condition in first.ifs):
                    yield from self._comprehend(rest, element)
            finally:
                self._local.pop()


def no_set(node: ast.AST, values: Value) -> Value:
    """Return ``values``, unless they have no order.

    Raises
    ------
    UnknownError
        If it is a set: item 3 of it is another one in another process.
    """
    if isinstance(values, set | frozenset):
        raise UnknownError(node, "a set has another order in every process; use a list or sorted(...)")
    return values


def unpack(target: ast.expr, value: Value) -> list[tuple[str, Value]]:
    """Return ``(name, value)`` pairs as ``for TARGET in [value]`` would bind them.

    Raises
    ------
    UnknownError
        If the target is not made of names, or the value does not fit it.
    """
    if isinstance(target, ast.Name):
        return [(target.id, value)]
    if not isinstance(target, ast.Tuple | ast.List):
        raise UnknownError(target, "it does not bind plain names")
    starred = [i for i, element in enumerate(target.elts) if isinstance(element, ast.Starred)]
    elements = [element.value if isinstance(element, ast.Starred) else element for element in target.elts]
    if isinstance(value, Opaque):
        if starred:
            raise UnknownError(target)
        parts: list[Value] = [Opaque(target, f"({value.text})[{i}]") for i in range(len(elements))]
    else:
        parts = bounded(no_set(target, value))
    if starred:
        first, after = starred[0], len(parts) - (len(elements) - starred[0] - 1)
        if after >= first:
            parts[first:after] = [parts[first:after]]
    if len(parts) != len(elements):
        raise UnknownError(target, f"an item has {len(parts)} values for {len(elements)} names")
    return [pair for element, part in zip(elements, parts, strict=True) for pair in unpack(element, part)]
