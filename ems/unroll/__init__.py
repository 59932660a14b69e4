"""The loops of a script become the axes of an experiment.

What the loops (:mod:`ems.unroll.loops`) walk is worked out from the text (:mod:`ems.unroll.evaluator`), never by
running it, and what cannot be worked out is refused by name and line. Each run then executes the script with those
loops narrowed to one item each (:mod:`ems.node.launch`), which checks the items once more.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ems.errors import ScriptError
from ems.model import MAX_POINTS, Axis, Json, LoopRef, Point
from ems.node.launch import as_json, flat_names, target_names
from ems.unroll.evaluator import (
    BUILTINS,
    FAILURES,
    Evaluator,
    Imported,
    Opaque,
    UnknownError,
    Value,
    bounded,
    is_array,
    no_set,
    unpack,
)
from ems.unroll.loops import LOOPS, Nest, find, find_differences, text_of, top_level
from ems.unroll.scope import Scope, Use, local_names


@dataclass(frozen=True, slots=True)
class Unrolled:
    """What the loops of a script give.

    Attributes
    ----------
    loops
        The swept loops, outermost first.
    points
        Every combination in the order of plain execution; ``Point.loops`` has the item number of each loop.
    axes
        For display: loops whose items depend on an outer loop are one axis with it.
    warnings
        What runs otherwise than in plain execution, each with its line.
    """

    loops: tuple[LoopRef, ...]
    points: tuple[Point, ...]
    axes: tuple[Axis, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Item:
    bound: dict[str, Value]
    params: dict[str, Json]
    known: bool


def unroll(source: str, filename: str) -> Unrolled | None:
    """Return what the loops of a script give, or None if there is no loop to sweep.

    Parameters
    ----------
    source
        The text of the script.
    filename
        Its name in messages.

    Raises
    ------
    ScriptError
        If it does not compile, if a marker marks no loop, or if the loops cannot be counted without running the
        script; the message names the line, the hint the choices.
    """
    nest = find(source, filename)
    if nest is None:
        return None
    return _Unroller(nest).unroll()


class _Unroller:
    """Works out the items of each loop of a nest, for every combination of the loops around it."""

    def __init__(self, nest: Nest) -> None:
        self.nest = nest
        headers = [loop.iter for loop in nest.loops]
        parents = {child: node for node in ast.walk(nest.tree) for child in ast.iter_child_nodes(node)}
        around = list(_chain(nest.loops[0], parents))
        functions = [node for node in around if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        own = around[: around.index(functions[0])] if functions else around
        # Inside another loop, what follows this nest comes before its next round.
        end = None if any(isinstance(node, LOOPS) for node in own) else nest.loops[0].end_lineno
        self.module = Scope(nest.tree, headers, None if functions else end)
        self.function = Scope(functions[0], headers, end) if functions else None
        self.closed_over = {name for function in functions[1:] for name in local_names(function)}
        self.in_class = any(isinstance(node, ast.ClassDef) for node in own)
        self.above = _statements_above(nest.loops[-1], parents)
        self.env: dict[str, Value] = {}
        self.depends = False
        self.cache: dict[int, list[_Item]] = {}
        self.sizes: list[set[int]] = [set() for _ in nest.loops]
        self.known = [True for _ in nest.loops]

    def unroll(self) -> Unrolled:
        points: list[Point] = []
        for point in self._points(0, (), {}):
            if not points and len(self.cache) == len(self.nest.loops):
                self._check_count(math.prod(map(len, self.cache.values())))
            if len(points) == MAX_POINTS:
                self._check_count(None)
            points.append(point)
        return assemble(
            self.nest, points, self.sizes, self.known, [d not in self.cache for d in range(len(self.sizes))]
        )

    def _check_count(self, count: int | None) -> None:
        """Refuse too many points; None: more, but nobody knows how many."""
        if count is None or count > MAX_POINTS:
            many = f"more than {MAX_POINTS:,} combinations" if count is None else f"{count:,} combinations"
            raise ScriptError(
                f"{self.nest.filename} line {self.nest.loops[0].lineno}: the loops have {many}, and at most "
                f"{MAX_POINTS:,} can be submitted",
                "split the sweep, draw points with --set and --samples, or search with `ems tune`",
            )

    def _points(self, depth: int, indices: tuple[int, ...], params: dict[str, Json]) -> Iterator[Point]:
        if depth == len(self.nest.loops):
            yield Point(params, indices)
            return
        outer = self.env
        for index, item in enumerate(self._items(depth)):
            self.env = {**outer, **item.bound}
            yield from self._points(depth + 1, (*indices, index), {**params, **item.params})
        self.env = outer

    def _items(self, depth: int) -> list[_Item]:
        if depth in self.cache:
            return self.cache[depth]
        loop = self.nest.loops[depth]
        self.depends = False
        try:
            items = [_make_item(loop.target, value) for value in self._walk(loop.iter)]
        except UnknownError as unknown:
            raise self._refusal(loop, unknown) from unknown
        if not self.depends:
            self.cache[depth] = items
        self.sizes[depth].add(len(items))
        self.known[depth] = self.known[depth] and all(item.known for item in items)
        return items

    def _walk(self, iterable: ast.expr) -> list[Value]:
        try:
            return bounded(no_set(iterable, Evaluator(self._resolve)(iterable)))
        except FAILURES as error:
            raise UnknownError(iterable, str(error)) from error

    def _refusal(self, loop: ast.For, unknown: UnknownError) -> ScriptError:
        line = getattr(unknown.node, "lineno", loop.lineno)
        reason = unknown.reason or f"`{text_of(unknown.node)}` has no value before the script runs"
        where = "" if line == loop.lineno else f" (line {line})"
        return ScriptError(
            f"{self.nest.filename} line {loop.lineno}: cannot count `for {text_of(loop.target)} in "
            f"{text_of(loop.iter)}` without running the script: {reason}{where}",
            f"give the values with --set {flat_names(target_names(loop.target))[0]}=..., add --count-by-running, or "
            "mark the loops to sweep with `# ems: sweep`",
        )

    def _resolve(self, name: ast.Name) -> Value:
        """Return what ``name`` stands for at the loops."""
        if name.id in self.env:
            return self._loop_variable(name)
        if self.in_class:
            raise UnknownError(name, f"`{name.id}` may belong to the class around")
        scope = self.module
        if self.function and name.id in self.function.local:
            scope = self.function
        elif name.id in self.closed_over:
            raise UnknownError(name, f"`{name.id}` belongs to a function around")
        bindings = scope.bindings(name.id)
        if not bindings and scope is self.module and name.id in BUILTINS:
            self._refuse_wild(name, None)
            return BUILTINS[name.id]
        imported = {_imported(use.node, name.id) for use in bindings}
        if len(bindings) != 1 and (len(imported) != 1 or None in imported):
            lines = sorted({getattr(use.node, "lineno", 0) for use in bindings})
            reason = f"`{name.id}` is bound on lines {', '.join(map(str, lines))}" if lines else ""
            raise UnknownError(name, reason)
        return self._bound_value(name, bindings[0], scope)

    def _loop_variable(self, name: ast.Name) -> Value:
        self.depends = True
        scope = self.function if self.function and name.id in self.function.local else self.module
        targets = {id(node) for loop in self.nest.loops for node in ast.walk(loop.target)}
        first, last = self.nest.loops[0].lineno, self.nest.loops[-1].lineno
        for use in scope.bindings(name.id):
            between = first <= getattr(use.node, "lineno", 0) <= last and id(use.node) not in targets
            if between or use.deferred:
                raise UnknownError(use.node, f"`{name.id}` is bound anew")
        value = self.env[name.id]
        change = None if self.nest.is_perfect or _depth(value) == 0 else scope.change(name.id, True)
        if change is not None:
            raise UnknownError(change, f"`{name.id}` may be changed")
        return value

    def _bound_value(self, name: ast.Name, binding: Use, scope: Scope) -> Value:
        statement = next(node for node in (binding.node, *scope.ancestors(binding.node)) if isinstance(node, ast.stmt))
        above = self.above | ({id(s) for s in top_level(self.nest.tree)} if self.function else set())
        straight = id(statement) in above and not binding.deferred
        same_function = scope is self.function or self.function is None
        if not straight or (same_function and statement.lineno > name.lineno):
            raise UnknownError(binding.node, f"`{name.id}` is not bound in the straight line above the loop")
        self._refuse_wild(name, statement)
        dotted = _imported(statement, name.id)
        if dotted is not None:
            return Imported(dotted)
        value = self._assigned(name, statement)
        if hasattr(value, "__next__"):
            raise UnknownError(name, f"`{name.id}` is an iterator, which can be walked once only; make it a list")
        depth = _depth(value)
        for target in _assigned_names(statement) if depth else ():
            change = scope.change(target, depth > 1)
            if change is not None:
                raise UnknownError(change, f"`{target}` may be changed")
        return value

    def _assigned(self, name: ast.Name, statement: ast.stmt) -> Value:
        match statement:
            case ast.Assign(targets=targets, value=expression):
                pass
            case ast.AnnAssign(target=target, value=ast.expr() as expression):
                targets = [target]
            case _:
                raise UnknownError(statement, f"`{name.id}` is not bound by a plain assignment")
        # A binding sees no variables of the comprehension that asks for it: a new evaluator.
        value = Evaluator(self._resolve)(expression)
        if isinstance(value, set) and not all(isinstance(target, ast.Name) for target in targets):
            no_set(statement, value)
        bound = dict(pair for target in targets for pair in unpack(target, value))
        if name.id not in bound:
            raise UnknownError(statement)
        return bound[name.id]

    def _refuse_wild(self, name: ast.Name, statement: ast.stmt | None) -> None:
        """Refuse a name that ``exec``, ``globals()`` or a star import may have bound since ``statement``."""
        for scope in filter(None, (self.module, self.function)):
            for use in scope.wild:
                star = isinstance(use.node, ast.ImportFrom)
                line = getattr(use.node, "lineno", 0)
                since = star if statement is None else use.deferred or line > statement.lineno
                if since and not scope.is_late(use.node):
                    raise UnknownError(use.node, f"`{text_of(use.node)}` may bind `{name.id}` anew")


def assemble(
    nest: Nest, points: list[Point], sizes: Iterable[set[int]], known: Iterable[bool], dependent: list[bool]
) -> Unrolled:
    """Put together what was found of a nest, whichever way it was counted.

    Parameters
    ----------
    sizes
        For each loop, every number of items it was seen with.
    known
        For each loop, whether all values it gives are known.
    dependent
        For each loop, whether its items depend on an outer one.

    Raises
    ------
    ScriptError
        If there is no combination at all.
    """
    names = [tuple(flat_names(target_names(loop.target))) for loop in nest.loops]
    if not points:
        raise ScriptError(
            f"{nest.filename} line {nest.loops[0].lineno}: the loops have no items, so there is nothing to run",
            "check what they walk, or give the values with --set",
        )
    refs = [
        LoopRef(
            line=loop.lineno,
            column=loop.col_offset,
            names=names[depth],
            size=seen.pop() if len(seen) == 1 else -1,
            # An outer variable that an inner loop binds again is in no param, so nothing can be compared with it.
            known=is_known and not {*names[depth]} & {name for inner in names[depth + 1 :] for name in inner},
        )
        for depth, (loop, seen, is_known) in enumerate(zip(nest.loops, map(set, sizes), known, strict=True))
    ]
    return Unrolled(tuple(refs), tuple(points), tuple(_axes(names, points, dependent)), tuple(find_differences(nest)))


def _axes(names: list[tuple[str, ...]], points: list[Point], dependent: list[bool]) -> Iterator[Axis]:
    """Yield the axes: loops down to the last dependent one together, each other loop by itself."""
    joint = max((depth for depth, depends in enumerate(dependent) if depends), default=0) + 1
    groups = [range(joint), *(range(depth, depth + 1) for depth in range(joint, len(names)))]
    for group in groups:
        axis_names = tuple(dict.fromkeys(name for depth in group for name in names[depth]))
        values: dict[tuple[int, ...], tuple[Json, ...]] = {}
        for point in points:
            where = point.loops[group.start : group.stop]
            if where not in values:
                values[where] = tuple(point.params[name] for name in axis_names)
        yield Axis(axis_names, tuple(values.values()))


def _chain(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Iterator[ast.AST]:
    while node in parents:
        node = parents[node]
        yield node


def _statements_above(loop: ast.For, parents: dict[ast.AST, ast.AST]) -> set[int]:
    """Return the ids of the statements that surely run before ``loop``, in the blocks around it."""
    above: set[int] = set()
    node: ast.AST = loop
    for parent in _chain(loop, parents):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(parent, name, None)
            if isinstance(block, list) and node in block:
                above.update(id(statement) for statement in block[: block.index(node)])
        node = parent
    return above


def _make_item(target: ast.expr, value: Value) -> _Item:
    bound = dict(unpack(target, value))
    shown = {name: as_json(part, _show) for name, part in bound.items()}
    return _Item(bound, {name: plain for name, (plain, _) in shown.items()}, all(known for _, known in shown.values()))


def _show(value: Value) -> str:
    return value.text if isinstance(value, Opaque) else repr(value)


def _depth(value: Value) -> int:
    """Return 0 for what cannot change, 1 for a list or dict of such, 2 where changeable things are nested."""
    if is_array(value) and value.ndim:
        return 2  # a slice of an array is a view of it
    inner = value.values() if isinstance(value, dict) else value
    if not isinstance(value, list | tuple | dict | set):
        return 0
    changeable = isinstance(value, list | dict | set)
    return 2 if any(_depth(item) for item in inner) else int(changeable)


def _imported(node: ast.AST, name: str) -> str | None:
    """Return the dotted name that an import statement binds ``name`` to."""
    match node:
        case ast.Import(names=aliases):
            found = [a.name if a.asname else a.name.split(".")[0] for a in aliases if _alias_name(a) == name]
        case ast.ImportFrom(module=str(module), names=aliases, level=0):
            found = [f"{module}.{a.name}" for a in aliases if (a.asname or a.name) == name]
        case _:
            return None
    return found[-1] if found else None


def _alias_name(alias: ast.alias) -> str:
    return alias.asname or alias.name.split(".")[0]


def _assigned_names(statement: ast.stmt) -> list[str]:
    return [n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
