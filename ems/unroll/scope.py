"""Where the names of a script are bound and used: what static evaluation may rely on.

A name has the value of its binding only if nothing can come between: a second binding, a change in place, or code
that binds names nobody sees (``exec``, ``globals()``, ``from x import *``).
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_READERS = (ast.Compare, ast.UnaryOp, ast.FormattedValue, ast.Expr, ast.If, ast.While, ast.Assert)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

# Calls that leave their arguments as they are and keep no reference to them; _PURE only if nothing in them changes.
_PURE_DEEP = frozenset({"all", "any", "bool", "isinstance", "len", "print", "repr", "str", "type"})
_PURE = _PURE_DEEP | {"dict", "enumerate", "list", "max", "min", "reversed", "set", "sorted", "sum", "tuple", "zip"}
_READING_METHODS = frozenset({"copy", "count", "get", "index", "items", "keys", "tolist", "values"})


@dataclass(frozen=True, slots=True)
class Use:
    """One place where a name is bound or read.

    ``deferred``: inside a function, so that nothing is known of when it happens.
    """

    node: ast.AST
    binds: bool
    deferred: bool


class Scope:
    """The uses of the names of one scope, those in the functions within it included.

    Parameters
    ----------
    root
        The module, or the function.
    headers
        The iterables of the swept loops: reading a name there is what it is for.
    end
        The line after which nothing matters, since it runs after the loops; None where there is no such line.
    """

    def __init__(
        self,
        root: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef,
        headers: Iterable[ast.expr] = (),
        end: int | None = None,
    ) -> None:
        self.root = root
        self.end = end
        self._harmless = {id(node) for header in headers for node in ast.walk(header)}
        self.uses: dict[str, list[Use]] = defaultdict(list)
        self.wild: list[Use] = []  # what may bind any name
        self.parents = {child: node for node in ast.walk(root) for child in ast.iter_child_nodes(node)}
        self._checking: set[str] = set()
        self.local = set() if isinstance(root, ast.Module) else local_names(root)
        for statement in root.body:
            self._visit(statement, frozenset(), deferred=False, in_class=False)

    def bindings(self, name: str) -> list[Use]:
        """Every place that binds ``name``, but for those that run only after the loops."""
        return [use for use in self.uses.get(name, ()) if use.binds and not self.is_late(use.node)]

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield what encloses ``node``, innermost first."""
        while node in self.parents:
            node = self.parents[node]
            yield node

    def change(self, name: str, deep: bool) -> ast.AST | None:
        """Return the first place that may change the object ``name`` stands for, or None.

        Parameters
        ----------
        deep
            Whether there are changeable objects inside the object, too.
        """
        if name in self._checking:  # a = b; b = a
            return None
        self._checking.add(name)
        try:
            reads = (use.node for use in self.uses.get(name, ()) if not use.binds)
            matter = (node for node in reads if not self.is_late(node) and id(node) not in self._harmless)
            return next((node for node in matter if self._may_change(node, deep)), None)
        finally:
            self._checking.discard(name)

    def is_late(self, node: ast.AST) -> bool:
        """Whether ``node`` runs only after the loops."""
        return self.end is not None and node.lineno > self.end  # type: ignore[attr-defined] # no statement lacks one

    def _may_change(self, node: ast.AST, deep: bool) -> bool:  # noqa: PLR0911 - a case a kind of node
        """Whether the expression around ``node`` may change, or pass on, the object that ``node`` gives."""
        parent = self.parents[node]
        match parent:
            case ast.Starred() | ast.For() | ast.comprehension() | ast.BinOp():
                return deep  # only what is in it is passed on
            case ast.keyword():
                return self._display_may_change(self.parents[parent])
            case ast.Call() if parent.func is not node:
                return not self._is_pure(parent, deep)
            case ast.Subscript(ctx=ast.Load()) if parent.value is node:
                return deep and self._may_change(parent, deep)
            case ast.Attribute():
                return self._method_may_change(parent, deep)
            case ast.List() | ast.Tuple() | ast.Dict():
                return self._display_may_change(parent)
            case ast.Assign() | ast.AnnAssign():
                return self._alias_may_change(parent, deep)
        return not isinstance(parent, _READERS)

    def _is_pure(self, call: ast.Call, deep: bool) -> bool:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name == "product":
            return not deep
        if not isinstance(call.func, ast.Name) or self.bindings(name):
            return False
        one_of_many = name in ("max", "min") and len(call.args) != 1
        return name in (_PURE_DEEP if deep else _PURE) and not one_of_many

    def _method_may_change(self, attribute: ast.Attribute, deep: bool) -> bool:
        call = self.parents[attribute]
        if attribute.attr not in _READING_METHODS or not isinstance(call, ast.Call):
            return True
        return deep and self._may_change(call, deep)

    def _display_may_change(self, display: ast.AST) -> bool:
        """``grid = [name, other]`` and ``dict(a=name)``: harmless if nothing changes what is in ``grid``."""
        known = not isinstance(display, ast.Call) or getattr(display.func, "id", "") in ("dict", "print")
        return not known or self._may_change(display, True)

    def _alias_may_change(self, assign: ast.Assign | ast.AnnAssign, deep: bool) -> bool:
        targets = assign.targets if isinstance(assign, ast.Assign) else [assign.target]
        for target in targets:
            # Anything but a name of this very scope with this one binding is out of sight.
            if not isinstance(target, ast.Name) or [use.node for use in self.bindings(target.id)] != [target]:
                return True
            if self.change(target.id, deep) is not None:
                return True
        return False

    def _add(self, name: str, node: ast.AST, hidden: frozenset[str], binds: bool, deferred: bool) -> None:
        if name not in hidden:
            self.uses[name].append(Use(node, binds, deferred))

    def _visit(self, node: ast.AST, hidden: frozenset[str], deferred: bool, in_class: bool) -> None:
        for name in _bound_here(node):
            if not in_class:
                self._add(name, node, hidden, True, deferred)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            self._add(node.id, node, hidden, False, deferred)
        if _binds_anything(node):
            self.wild.append(Use(node, True, deferred))
        if isinstance(node, _FUNCTIONS):
            self._visit_function(node, hidden, deferred, in_class)
            return
        if isinstance(node, _COMPREHENSIONS):
            self._visit(node.generators[0].iter, hidden, deferred, in_class)  # the one part outside its scope
            hidden |= {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
        for child in ast.iter_child_nodes(node):
            self._visit(child, hidden, deferred, in_class or isinstance(node, ast.ClassDef))

    def _visit_function(self, node: Function, hidden: frozenset[str], deferred: bool, in_class: bool) -> None:
        body: list[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else list(node.body)
        inside = set(map(id, body))
        for child in ast.iter_child_nodes(node):
            if id(child) not in inside:  # defaults, decorators and annotations belong to the scope around
                self._visit(child, hidden, deferred, in_class)
        hidden |= local_names(node)
        elsewhere = _declared(node, ast.Global)
        hidden = hidden - elsewhere if isinstance(self.root, ast.Module) else hidden | elsewhere
        for child in body:
            self._visit(child, hidden, True, False)


def local_names(function: Function) -> set[str]:
    """Return the names that are local to ``function``."""
    args = function.args
    every = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]
    names = {arg.arg for arg in every}
    if isinstance(function, ast.Lambda):
        return names
    names.update(name for node in _own_nodes(function.body) for name in _bound_here(node))
    return names - _declared(function, ast.Global) - _declared(function, ast.Nonlocal)


def _own_nodes(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Walk the nodes of a scope, not those of functions and classes in it, nor variables of comprehensions."""
    for node in nodes:
        yield node
        if not isinstance(node, (*_FUNCTIONS, ast.ClassDef, *_COMPREHENSIONS)):
            yield from _own_nodes(ast.iter_child_nodes(node))
        elif isinstance(node, _COMPREHENSIONS):
            yield from (inner for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr))
            yield from (walrus.target for walrus in ast.walk(node) if isinstance(walrus, ast.NamedExpr))


def _declared(function: Function, kind: type[ast.Global] | type[ast.Nonlocal]) -> set[str]:
    body = [] if isinstance(function, ast.Lambda) else function.body
    return {name for node in _own_nodes(body) if isinstance(node, kind) for name in node.names}


def _bound_here(node: ast.AST) -> list[str]:  # noqa: PLR0911 - a case a kind of node
    """Return the names that this very node binds."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            return [name]
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            return [name]
        case ast.MatchMapping(rest=str(name)):
            return [name]
        case ast.Import(names=aliases):
            return [alias.asname or alias.name.split(".")[0] for alias in aliases]
        case ast.ImportFrom(names=aliases):
            return [alias.asname or alias.name for alias in aliases if alias.name != "*"]
    return []


def _binds_anything(node: ast.AST) -> bool:
    match node:
        case ast.ImportFrom(names=[ast.alias(name="*")]):
            return True
        case ast.Call(func=ast.Name(id="exec" | "globals")):
            return True
        case ast.Call(func=ast.Name(id="locals" | "vars"), args=[], keywords=[]):
            return True
    return False
