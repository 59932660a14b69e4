"""Run a script as ``python SCRIPT ARGS...`` would, with chosen ``for`` loops narrowed to one item each.

    python launch.py --loops JSON SCRIPT ARGS...
    python launch.py --count JSON OUT SCRIPT ARGS...

The script's syntax tree is changed, not its text: only the iterable of each swept loop is wrapped, so that line
numbers, ``__file__``, ``sys.argv`` and ``sys.path[0]`` are those of the original, and what the launcher adds is cut
out of tracebacks. Iterables are evaluated here, by the script itself, and checked against what was counted at
submission: a run that would execute another combination than its params say stops instead.

A process that the script starts anew by its own path (``os.execv``, not fork) runs the original, with all its loops.
"""

from __future__ import annotations

import ast
import builtins
import json
import math
import os
import re
import sys
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Sized, Tuple

Loop = Mapping[str, Any]  # line, column, names, size, known and, to narrow it, index
Counted = Dict[str, Any]  # points: [[item numbers, params], ...]; sizes and known: one entry a loop
MAX_POINTS = 1000000
NOT_REACHED = "ems: the script ended without reaching its loops"
_WRAP = "__ems_sweep__"
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of an object, another one in every process
_BARE: Dict[str, Any] = {"__cached__": None, "__annotations__": {}}  # some versions give them to every script


class LoopChanged(BaseException):
    """A swept loop is not here what it was at submission. No ``except Exception`` of the script may hide it."""


def arguments(loops: Sequence[Loop], indices: Sequence[int]) -> List[str]:
    """Return the words between the interpreter and the script that run one combination.

    Parameters
    ----------
    loops
        The experiment's loops, outermost first, as in ``spec.json``.
    indices
        The item number of each loop.
    """
    chosen = [dict(loop, index=index) for loop, index in zip(loops, indices)]  # noqa: B905 - Python 3.8
    return [os.path.abspath(__file__), "--loops", json.dumps(chosen, separators=(",", ":"))]


def as_json(value: Any, show: Callable[[Any], str] = repr) -> Tuple[Any, bool]:
    """Return ``(value as JSON, True)``, or ``(what show says of it, False)`` where JSON cannot hold it.

    Tuples become lists; NumPy's and torch's scalars and arrays the numbers in them.
    """
    for plain in (bool, int, float, str):  # a subclass (numpy.float64, an IntEnum) becomes the plain kind
        if isinstance(value, plain):
            return (str.__str__(value) if plain is str else plain(value)), True
    if value is None:
        return None, True
    if isinstance(value, (list, tuple)):
        items = [as_json(item, show) for item in value]
        return [item for item, _ in items], all(known for _, known in items)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        fields = {key: as_json(item, show) for key, item in value.items()}
        return {key: item for key, (item, _) in fields.items()}, all(known for _, known in fields.values())
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        return as_json(value.tolist(), show)
    return _ADDRESS.sub("", show(value))[:1000], False


def same(expected: Any, actual: Any) -> bool:
    """Whether two JSON values are the same item; floats may differ as those of two NumPy builds do."""
    if isinstance(expected, bool) or isinstance(actual, bool):
        return expected is actual
    if isinstance(expected, float) or isinstance(actual, float):
        numbers = isinstance(expected, (int, float)) and isinstance(actual, (int, float))
        both_nan = numbers and math.isnan(expected) and math.isnan(actual)
        return both_nan or (numbers and math.isclose(expected, actual, rel_tol=1e-9, abs_tol=1e-15))
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(map(same, expected, actual))
    if isinstance(expected, dict) and isinstance(actual, dict):
        return expected.keys() == actual.keys() and all(same(expected[key], actual[key]) for key in expected)
    return bool(expected == actual)


def bind(names: Any, item: Any) -> Iterator[Tuple[str, Any]]:
    """Yield ``(name, value)`` as ``for NAMES in [item]`` would bind them; ``names`` is nested like the target."""
    if isinstance(names, str):
        yield names, item
        return
    items = list(item)
    star = next((i for i, name in enumerate(names) if isinstance(name, str) and name.startswith("*")), None)
    if star is not None:
        after = len(items) - (len(names) - star - 1)
        if after >= star:
            items[star:after] = [items[star:after]]
    if len(items) != len(names):
        raise ValueError("%d values for %d names" % (len(items), len(names)))
    for name, value in zip(names, items):  # noqa: B905 - Python 3.8
        yield from bind(name[1:] if isinstance(name, str) and name.startswith("*") else name, value)


def target_names(target: ast.expr) -> Any:
    """Return the names of a loop's target, nested as it is; a starred one begins with ``*``.

    Raises
    ------
    ValueError
        If the target is not made of names (``for self.x in ...``).
    """
    if isinstance(target, ast.Name):
        return target.id
    if isinstance(target, ast.Starred) and isinstance(target.value, ast.Name):
        return "*" + target.value.id
    if isinstance(target, (ast.Tuple, ast.List)):
        return [target_names(element) for element in target.elts]
    raise ValueError("the loop does not bind plain names")


def flat_names(names: Any) -> List[str]:
    """Return nested names in order, without stars."""
    return [names.lstrip("*")] if isinstance(names, str) else [flat for name in names for flat in flat_names(name)]


class Narrow:
    """Gives each swept loop its one item, after checking that it is the one that was counted.

    Parameters
    ----------
    loops
        The loops with their ``index``, outermost first.
    expected
        The run's params, against which items are checked.
    record
        Called with the params that the loops really gave, whenever one more is known.
    """

    def __init__(self, loops: Sequence[Loop], expected: Mapping[str, Any], record: Callable[[Dict[str, Any]], None]):
        self.loops = loops
        self.expected = expected
        self.record = record
        self.actual: Dict[str, Any] = {}
        self.reached = [False] * len(loops)

    def __call__(self, iterable: Iterable[Any], number: int, names: Any) -> Iterator[Any]:
        """Iterate over the chosen item of loop ``number`` alone."""
        loop = self.loops[number]
        index, size = loop["index"], loop["size"]
        _refuse_sets(iterable, loop)
        self.reached[number] = True
        length = len(iterable) if isinstance(iterable, Sized) else None
        if length is not None and size not in (-1, length):
            raise _changed(loop, length)
        count = 0
        for count, item in enumerate(iterable, 1):
            if count - 1 == index:
                self._check(loop, names, item)
                yield item
                if length is not None or size == -1:
                    return
            # An iterator's length shows only at its end. Its rest is drawn after the body has run: a generator may
            # change the item that it gave.
        if count <= index or size not in (-1, count):
            raise _changed(loop, count)

    def _check(self, loop: Loop, names: Any, item: Any) -> None:
        try:
            values = list(bind(names, item))
        except (TypeError, ValueError):
            return  # the loop itself is about to say so, in Python's own words
        for name, value in values:
            plain, is_json = as_json(value)
            known = loop.get("known", True) and is_json and name in self.expected
            if known and not same(self.expected[name], plain):
                raise LoopChanged(
                    "item %d of the loop on line %d has %s=%r here, but it was %r when the sweep was counted"
                    % (loop["index"], loop["line"], name, plain, self.expected[name])
                )
            # The text that makes an object says more than its repr, and is the same in every run.
            self.actual[name] = plain if is_json else self.expected.get(name, plain)
        self.record(self.actual)


class Count:
    """Walks the loops alone, their bodies left out, and notes every combination."""

    def __init__(self, loops: Sequence[Loop]) -> None:
        self.loops = loops
        self.sizes: List[List[int]] = [[] for _ in loops]
        self.indices = [0] * len(loops)
        self.params: List[Dict[str, Any]] = [{} for _ in loops]
        self.known = [True] * len(loops)
        self.points: List[Tuple[List[int], Dict[str, Any]]] = []

    def __call__(self, iterable: Iterable[Any], number: int, names: Any) -> Iterator[Any]:
        """Iterate over all items of loop ``number``."""
        loop = self.loops[number]
        _refuse_sets(iterable, loop)
        count = 0
        for item in iterable:
            values = [(name, as_json(value)) for name, value in bind(names, item)]
            self.params[number] = {name: plain for name, (plain, _) in values}
            self.known[number] = self.known[number] and all(is_json for _, (_, is_json) in values)
            self.indices[number] = count
            count += 1
            if number == len(self.loops) - 1:
                self._note(loop)
            yield item
        if count not in self.sizes[number]:
            self.sizes[number].append(count)
        if number == 0:
            raise _Counted

    def _note(self, loop: Loop) -> None:
        if len(self.points) == MAX_POINTS:
            raise LoopChanged("the loops down to line %d give more than %d combinations" % (loop["line"], MAX_POINTS))
        self.points.append((list(self.indices), {k: v for params in self.params for k, v in params.items()}))


class _Counted(BaseException):
    """Every combination is known; nothing after the loops may run."""


def _refuse_sets(iterable: Iterable[Any], loop: Loop) -> None:
    if isinstance(iterable, (set, frozenset)):
        raise LoopChanged(
            "the loop on line %d walks a set, whose order differs between processes; use a list or sorted(...)"
            % loop["line"]
        )


def _changed(loop: Loop, count: int) -> LoopChanged:
    counted = "%d were counted" % loop["size"] if loop["size"] != -1 else "it should have item %d" % loop["index"]
    return LoopChanged("the loop on line %d has %d items here, but %s" % (loop["line"], count, counted))


class _Rewrite(ast.NodeTransformer):
    def __init__(self, loops: Sequence[Loop], counting: bool) -> None:
        self.numbers = {(loop["line"], loop["column"]): number for number, loop in enumerate(loops)}
        self.counting = counting
        self.found = 0

    def visit_For(self, node: ast.For) -> ast.AST:
        number = self.numbers.get((node.lineno, node.col_offset))
        if number is not None:
            self.found += 1
            self._wrap(node, number)
        return self.generic_visit(node)

    def _wrap(self, node: ast.For, number: int) -> None:
        structure = ast.parse(repr(target_names(node.target)), mode="eval").body
        added = [ast.Name(_WRAP, ast.Load()), ast.Constant(number, kind=None), structure]
        call = ast.Call(added[0], [node.iter, *added[1:]], [])
        for new in (call, added[0], added[1], *ast.walk(structure)):
            ast.copy_location(new, node.iter)
        node.iter = call
        if self.counting:
            node.orelse = []
            if number == len(self.numbers) - 1:
                node.body = [ast.copy_location(ast.Pass(), node)]


def narrowed(source: "bytes | str", filename: str, loops: Sequence[Loop], counting: bool = False) -> Any:
    """Compile a script with its loops handed to the built-in ``__ems_sweep__``.

    Raises
    ------
    LoopChanged
        If a loop is not where it should be.
    """
    tree = ast.parse(source, filename)
    rewrite = _Rewrite(loops, counting)
    tree = rewrite.visit(tree)
    if rewrite.found != len(loops):
        raise LoopChanged("%s is not the script whose loops were counted" % filename)
    return compile(tree, filename, "exec", dont_inherit=True)


def execute(script: str, args: Sequence[str], loops: Sequence[Loop], wrap: Callable[..., Iterator[Any]]) -> None:
    """Become ``python SCRIPT ARGS...``, with the swept loops given to ``wrap``."""
    # Since 3.9 __file__ is absolute, but not normalised; sys.path[0] always follows links.
    path = os.path.join(os.getcwd(), script) if sys.version_info >= (3, 9) else script
    sys.argv = [script, *args]
    if not (getattr(sys.flags, "safe_path", False) or sys.flags.isolated):
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    main = _main_module(path)
    setattr(builtins, _WRAP, wrap)
    try:
        with open(path, "rb") as file:
            source = file.read()
        exec(narrowed(source, path, loops, isinstance(wrap, Count)), main.__dict__)  # noqa: S102 - it is the script
    except BaseException:
        # Whatever hook the script has set stays in charge; it only sees a traceback without this file.
        hook = sys.excepthook
        sys.excepthook = lambda kind, error, tb: hook(kind, error.with_traceback(_scripts_own(tb)), _scripts_own(tb))
        raise


def _main_module(path: str) -> Any:
    from importlib.machinery import SourceFileLoader

    launcher = sys.modules["__main__"]
    main = type(sys)("__main__")
    names = main.__dict__
    names.update(__file__=path, __builtins__=builtins, __loader__=SourceFileLoader("__main__", path))
    names.update({name: value for name, value in _BARE.items() if name in vars(launcher)})
    sys.modules["__main__"] = main
    sys.modules["__ems_launcher__"] = launcher  # its globals must outlive it
    return main


def _scripts_own(tb: Any) -> Any:
    frames = []
    while tb is not None:
        if tb.tb_frame.f_code.co_filename != _scripts_own.__code__.co_filename:
            frames.append(tb)
        tb = tb.tb_next
    for kept in reversed(frames):
        tb = type(kept)(tb, kept.tb_frame, kept.tb_lasti, kept.tb_lineno)
    return tb


def _write_params(path: str, params: Mapping[str, Any]) -> None:
    aside = "%s.%d.aside" % (path, os.getpid())
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(params, file)
    os.replace(aside, path)


def _run(loops: Sequence[Loop], script: str, args: Sequence[str]) -> None:
    out = os.environ.get("EMS_LOOP_PARAMS")
    expected = json.loads(os.environ.get("EMS_PARAMS") or "{}")
    narrow = Narrow(loops, expected, lambda params: _write_params(out, params) if out else None)
    try:
        execute(script, args, loops, narrow)
    finally:
        if not all(narrow.reached) and sys.exc_info()[0] in (None, SystemExit):
            line = loops[narrow.reached.index(False)]["line"]
            print("ems: the script ended without reaching its loop on line %d" % line, file=sys.stderr)  # noqa: T201


def _count(loops: Sequence[Loop], out: str, script: str, args: Sequence[str]) -> None:
    count = Count(loops)
    try:
        execute(script, args, loops, count)
    except SystemExit as error:
        if error.code not in (None, 0):
            raise
    except _Counted:
        with open(out, "w", encoding="utf-8") as file:
            json.dump({"points": count.points, "sizes": count.sizes, "known": count.known}, file)
        # The script is in the middle of its work: none of its exit handlers may take that for the end of a run.
        os._exit(0)
    sys.exit(NOT_REACHED)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Read the command line, see the module's docstring."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[0] == "--count":
        _count(json.loads(words[1]), words[2], words[3], words[4:])
    else:
        _run(json.loads(words[1]), words[2], words[3:])


if __name__ == "__main__":
    main()
