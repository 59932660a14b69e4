"""Loops of a script become axes: right, or refused by name and line; never silently wrong."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ems.errors import ScriptError
from ems.model import Axis, LoopRef
from ems.node import launch
from ems.unroll import Unrolled, unroll


def unrolled(source: str) -> Unrolled:
    result = unroll(source, "train.py")
    assert result is not None
    return result


def params(source: str) -> list[Any]:
    return [dict(point.params) for point in unrolled(source).points]


def refusal(source: str) -> str:
    with pytest.raises(ScriptError) as caught:
        unroll(source, "train.py")
    assert caught.value.hint
    return caught.value.message


def values(source: str, name: str = "x") -> list[Any]:
    return [point[name] for point in params(source)]


# ------------------------------------------------------------------------------------------- which loops


def test_no_loop_at_module_level_is_none() -> None:
    assert unroll("x = 1\nwhile x < 3:\n    x += 1\ndef f():\n    for i in range(3): pass\n", "train.py") is None


def test_a_perfect_nest_is_crossed_the_last_loop_fastest() -> None:
    result = unrolled("for lr in [0.1, 0.01]:\n    for seed in range(2):\n        train(lr, seed)\n")
    assert [(p.loops, dict(p.params)) for p in result.points] == [
        ((0, 0), {"lr": 0.1, "seed": 0}),
        ((0, 1), {"lr": 0.1, "seed": 1}),
        ((1, 0), {"lr": 0.01, "seed": 0}),
        ((1, 1), {"lr": 0.01, "seed": 1}),
    ]
    assert result.loops == (LoopRef(1, 0, ("lr",), 2), LoopRef(2, 4, ("seed",), 2))
    assert result.axes == (Axis(("lr",), ((0.1,), (0.01,))), Axis(("seed",), ((0,), (1,))))
    assert result.warnings == ()


def test_a_nest_ends_where_something_stands_between_its_loops() -> None:
    source = "for lr in [1, 2]:\n    model = build(lr)\n    for epoch in range(100):\n        model.step()\n"
    assert params(source) == [{"lr": 1}, {"lr": 2}]


def test_only_the_first_nest_is_swept() -> None:
    assert params("for a in [1]:\n    pass\nfor b in loader():\n    pass\n") == [{"a": 1}]


@pytest.mark.parametrize("test", ["__name__ == '__main__'", '"__main__" == __name__'])
def test_loops_of_the_main_block_see_names_of_the_module(test: str) -> None:
    assert values(f"xs = [1, 2]\ndef f():\n    for y in z: pass\nif {test}:\n    for x in xs:\n        f()\n") == [1, 2]


def test_marked_loops_are_swept_alone_wherever_they_are() -> None:
    source = """
lrs = [0.1, 0.2]
for path in paths(): pass
def main():
    seeds = range(3)
    for lr in lrs:  # ems: sweep
        data = load(lr)
        # ems: sweep
        for seed in seeds:
            for epoch in epochs(): pass
main()
"""
    result = unrolled(source)
    assert [loop.names for loop in result.loops] == [("lr",), ("seed",)]
    assert len(result.points) == 6
    assert result.warnings == ("line 6: what stands between the loops on lines 6 and 9 runs in every run",)


def test_a_marker_may_stand_in_a_head_of_several_lines() -> None:
    assert values("for y in f(): pass\nfor x in [\n    1,  # one\n    2,\n]:  # ems: sweep\n    pass\n") == [1, 2]


def test_a_marker_in_a_string_is_no_marker() -> None:
    assert values("note = '# ems: sweep'\nfor x in [1]: pass\n") == [1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1  # ems: sweep\n", "train.py line 1: `# ems: sweep` marks no `for` loop"),
        ("# ems: sweep\nwhile f(): pass\n", "train.py line 1: `# ems: sweep` marks no `for` loop"),
        ("for x in [1]: pass  # ems: swep\n", "train.py line 1: `# ems: swep` is nothing that ems knows"),
        (
            "for x in [1]: pass  # ems: sweep\nfor y in [1]: pass  # ems: sweep\n",
            "train.py: the loops marked on lines 1 and 2 are not one inside the other",
        ),
        (
            "for x in [1]:  # ems: sweep\n    def f():\n        for y in [1]: pass  # ems: sweep\n",
            "train.py: the loops marked on lines 1 and 3 are not one inside the other",
        ),
        ("for o.x in [1]: pass\n", "train.py line 1: the loop over `o.x` binds no plain names"),
        (
            "for x in [1]:\npass\n",
            "train.py line 2: expected an indented block after 'for' statement on line 1: `pass`",
        ),
        ("return 3\n", "train.py line 1: 'return' outside function"),
        ("x = 1\0\n", "train.py: source code string cannot contain null bytes"),
        ("for x in []: pass\n", "train.py line 1: the loops have no items, so there is nothing to run"),
        (
            "for x in range(1001):\n  for y in range(1000): pass\n",
            "train.py line 1: the loops have 1,001,000 combinations, and at most 1,000,000 can be submitted",
        ),
    ],
)
def test_what_cannot_be_meant_is_said_with_its_line(source: str, message: str) -> None:
    assert refusal(source).startswith(message)


def test_more_combinations_than_may_be_are_counted_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ems.unroll.MAX_POINTS", 1000)  # a million takes seconds
    message = "train.py line 1: the loops have more than 1,000 combinations"
    assert refusal("for x in range(2):\n  for y in range(x, 600): pass\n").startswith(message)
    assert len(unroll("for x in range(2):\n  for y in range(x, 500): pass\n", "train.py").points) == 999


# ------------------------------------------------------------------------------------------- what they walk


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("range(3)", [0, 1, 2]),
        ("range(5, -2, -3)", [5, 2, -1]),
        ("[0.1, 'a', None, True, (1, 2), {'k': [1]}]", [0.1, "a", None, True, [1, 2], {"k": [1]}]),
        ("1e-3, 1e-2", [1e-3, 1e-2]),
        ("'ab'", ["a", "b"]),
        ("'adam sgd'.split()", ["adam", "sgd"]),
        ("{'a': 1, 'b': 2}", ["a", "b"]),
        ("{'a': 1, 'b': 2}.items()", [["a", 1], ["b", 2]]),
        ("dict(a=1, b=2).values()", [1, 2]),
        ("enumerate('ab', start=1)", [[1, "a"], [2, "b"]]),
        ("zip([1, 2, 3], 'ab')", [[1, "a"], [2, "b"]]),
        ("reversed([1, 2])", [2, 1]),
        ("sorted({3, 1, 2})", [1, 2, 3]),
        ("itertools.product([1, 2], 'a')", [[1, "a"], [2, "a"]]),
        ("prod([1], repeat=2)", [[1, 1]]),
        ("[10 ** -k for k in range(1, 4) if k != 2]", [0.1, 0.001]),
        ("(f'm{i:02d}' for i in range(2))", ["m00", "m01"]),
        ("[1, 2][::-1] + [3] * 2", [2, 1, 3, 3]),
        ("[*range(2), *'a']", [0, 1, "a"]),
        ("np.linspace(0, 1, num=3)", [0.0, 0.5, 1.0]),
        ("np.logspace(-2, 0, 3)", [0.01, 0.1, 1.0]),
        ("np.geomspace(1, 100, 3).tolist()", [1.0, 10.0, 100.0]),
        ("logspace(0, 1, 2)", [1.0, 10.0]),
        ("numpy.arange(0, 1, 0.5)", [0.0, 0.5]),
        ("10.0 ** np.arange(-2, 0)", [0.01, 0.1]),
        ("range(len([4, 5]))", [0, 1]),
        ("[math.pi, math.sqrt(4)]", [3.141592653589793, 2.0]),
        ("[1] if 2 > 1 else f()", [1]),
        ("[b'x', 1j]", ["b'x'", "1j"]),
    ],
)
def test_items_follow_from_the_text(expression: str, expected: list[object]) -> None:
    imports = "import itertools, math, numpy; import numpy as np; from numpy import logspace"
    assert values(f"{imports}; from itertools import product as prod\nfor x in {expression}: pass\n") == expected


def test_targets_are_taken_apart_as_python_does() -> None:
    source = "for i, (a, *rest), [b] in [(1, (2, 3, 4), [5])]: pass\n"
    assert params(source) == [{"i": 1, "a": 2, "rest": [3, 4], "b": 5}]


def test_items_of_unknown_value_are_shown_as_they_are_written() -> None:
    result = unrolled("for model, n in [(Net(3), 1), (lambda: 0, 2)]: pass\n")
    assert [dict(p.params) for p in result.points] == [{"model": "Net(3)", "n": 1}, {"model": "lambda: 0", "n": 2}]
    assert [loop.known for loop in result.loops] == [False]


def test_an_inner_loop_may_depend_on_an_outer_variable() -> None:
    result = unrolled("for n in range(3):\n  for k in range(n):\n    for s in 'ab': pass\n")
    assert [(p.params["n"], p.params["k"]) for p in result.points if p.params["s"] == "a"] == [(1, 0), (2, 0), (2, 1)]
    assert [loop.size for loop in result.loops] == [3, -1, 2]
    assert [(axis.names, len(axis)) for axis in result.axes] == [(("n", "k"), 3), (("s",), 2)]
    assert len({p.loops for p in result.points}) == 6


def test_an_outer_variable_that_is_bound_again_is_not_compared_on_the_node() -> None:
    result = unrolled("for _ in range(2):\n  for _ in range(3): pass\n")
    assert [loop.known for loop in result.loops] == [False, True]
    assert [p.loops for p in result.points] == [(a, b) for a in range(2) for b in range(3)]


@pytest.mark.parametrize(
    ("above", "loop", "reason"),
    [
        ("", "args.lrs", "`args` has no value before the script runs"),
        ("xs = load()", "xs", "`load` has no value before the script runs (line 1)"),
        ("xs = [1]\nxs = [2]", "xs", "`xs` is bound on lines 1, 2"),
        ("xs = [1]\nxs += [2]", "xs", "`xs` is bound on lines 1, 2"),
        ("xs = [1]\nxs.append(2)", "xs", "`xs` may be changed (line 2)"),
        ("xs = [1]\nys = xs\nys.append(2)", "xs", "`xs` may be changed"),
        ("xs = [[1]]\nxs[0].append(2)", "xs[0]", "`xs` may be changed (line 2)"),
        ("def f(): xs.append(1)\nxs = [1]", "xs", "`xs` may be changed (line 1)"),
        ("xs = [1]\nshuffle(xs)", "xs", "`xs` may be changed (line 2)"),
        ("if f():\n  xs = [1]", "xs", "`xs` is not bound in the straight line above the loop (line 2)"),
        ("for xs in [[1]] if f() else []: pass\nys = 1  # ems: sweep", "xs", "marks no `for` loop"),
        ("xs = [1]\ndef f():\n  global xs\n  xs = [2]", "xs", "`xs` is bound on lines 1, 4"),
        ("xs = [1]\nexec(open('c.py').read())", "xs", "may bind `xs` anew (line 2)"),
        ("xs = [1]\nglobals().update(c)", "xs", "`globals()` may bind `xs` anew (line 2)"),
        ("from torch import *", "range(3)", "`from torch import *` may bind `range` anew (line 1)"),
        ("def range(n): return [n]", "range(3)", "`range` is not bound by a plain assignment (line 1)"),
        ("xs = zip([1], [2])", "xs", "`xs` is an iterator, which can be walked once only"),
        ("", "{1, 2}", "a set has another order in every process"),
        ("", "list({'a', 'b'})", "a set has another order in every process"),
        ("xs = {'a'}", "[*xs]", "a set has another order in every process"),
        ("", "range(10 ** 9)", "it has more than 1,000,000 items"),
        ("", "[0] * 10 ** 12", "it has more than 1,000,000 items"),
        ("", "range(10 ** 10 ** 10)", "it has more than 1,000,000 items"),
        ("import numpy as np", "np.arange(0, 1, 1e-12)", "it has more than 1,000,000 items"),
        ("import numpy as np", "np.linspace(0, 1, 10**12)", "it has more than 1,000,000 items"),
        ("import numpy as np", "np.random.rand(3)", "`np.random.rand(3)` has no value before the script runs"),
        ("", "3", "object is not iterable"),
        ("", "[1, 2][5]", "list index out of range"),
        ("", "1 / 0", "division by zero"),
        ("", "len(zip([1], [2]))", "has no len()"),
        ("", "reversed(enumerate([1]))", "object is not reversible"),
        ("", "[y for y in [f()] if y]", "`f()` has no value before the script runs"),
        ("", "str([f()])", "`f()` has no value before the script runs"),
        ("", "range(0.5)", "cannot be interpreted as an integer"),
    ],
)
def test_what_cannot_be_counted_is_refused_with_the_reason(above: str, loop: str, reason: str) -> None:
    message = refusal(f"{above}\nfor x in {loop}: pass\n")
    assert reason in message
    assert "train.py" in message


@pytest.mark.parametrize(
    "above",
    [
        "xs = [1, 2]\nprint(len(xs), xs, f'{xs}', xs[0], max(xs), 3 in xs, xs.index(1))\nys = [2 * x for x in xs]",
        "xs: list = [1, 2]\nif xs:\n  pass\ntotal = len(xs) * 2",
        "xs, ys = [1, 2], [3]",
        "ys = [1, 2]\nxs = ys[:]\nzs = {'xs': xs}\nprint(len(zs))",
        "def f(xs):\n  xs.append(3)\n  return xs\nxs = (1, 2)\nf(xs)",
        "def f():\n  xs = []\n  xs.append(1)\nxs = [1, 2]",
        "g = {'lr': [1, 2], 'b': [3]}\nxs = g['lr']",
        "exec('a = 1')\nxs = [1, 2]",
        "import numpy as np\nxs = np.array([1, 2])",
        "n = 3\nxs = range(1, n)",
    ],
)
def test_harmless_uses_are_allowed(above: str) -> None:
    assert values(f"{above}\nfor x in xs:\n  train(x)\nxs.append(7)\nxs = 3\n") == [1, 2]


def test_names_of_functions_and_classes_around_are_refused() -> None:
    loop = "for x in xs: pass  # ems: sweep"
    assert "`xs` may belong to the class around" in refusal(f"xs = [1]\nclass K:\n  xs = [2]\n  {loop}\n")
    assert "`xs` belongs to a function around" in refusal(f"xs = [1]\ndef f(xs):\n  def g():\n    {loop}\n")
    assert "has no value" in refusal(f"xs = [1]\ndef f(xs):\n  {loop}\n")
    assert values(f"xs = [1]\nclass K:\n  xs = [2]\n  def f(self):\n    {loop}\n") == [1]


def test_the_choices_are_in_the_hint() -> None:
    with pytest.raises(ScriptError) as caught:
        unroll("for lr, b in f(): pass\n", "train.py")
    assert all(word in caught.value.hint for word in ("--set lr=", "--count-by-running", "# ems: sweep"))


def test_what_runs_otherwise_is_a_warning() -> None:
    source = """
for x in [1]:
    for y in [2]:
        while True:
            break
        if f():
            break
    else:
        g()
import os
save()
plot()
"""
    assert unrolled(source).warnings == (
        "line 7: `break` stops no other run: each has one item of the loop on line 3",
        "line 9: the `else` of the loop on line 3 runs in every run",
        "lines 11-12: what follows the loops runs at the end of every run",
    )


def test_code_after_the_main_block_is_a_warning_too() -> None:
    source = "if __name__ == '__main__':\n    for x in [1]: pass\n    a()\nb()\n"
    lines = [warning.partition(":")[0] for warning in unrolled(source).warnings]
    assert sorted(lines) == ["line 3", "line 4"]


def test_windows_line_ends_and_a_byte_order_mark_are_read() -> None:
    result = unrolled("\ufeffxs = [1]\r\nfor x in xs:\r\n    pass\r\n")
    assert result.loops[0].line == 2


def test_columns_are_those_of_python_on_the_node() -> None:
    loop = unrolled("é = 1; ü = [\n2]\nif 1:\n  pass\nfor x in ü: pass\n").loops[0]
    assert (loop.line, loop.column) == (5, 0)


# ------------------------------------------------------------------------------------------- against plain execution

_small = st.integers(-4, 6)
_scalars = st.one_of(
    _small,
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.text(alphabet="ab'\"\\\né$(", max_size=3),
    st.none(),
    st.booleans(),
    st.tuples(_small, st.text("xy", max_size=2)),
)
_lists = st.lists(_scalars, max_size=4).map(repr)


@st.composite
def _iterables(draw: st.DrawFn, variables: tuple[str, ...], constants: tuple[str, ...], depth: int = 1) -> str:
    """An expression that gives an iterable; may use whole numbers in ``variables`` and lists in ``constants``."""
    number = st.one_of(_small.map(str), *([st.sampled_from(variables)] if variables else []))
    inner = _iterables(variables, constants, depth - 1) if depth else _lists
    step = st.sampled_from(["1", "-1", "2", "-3"])
    forms: list[Callable[[], str]] = [
        lambda: draw(_lists),
        lambda: f"range({draw(number)}, {draw(number)}, {draw(step)})",
        lambda: f"range({draw(number)})",
        lambda: f"tuple({draw(_lists)})",
        lambda: f"[{draw(number)}, {draw(number)}, [{draw(number)}]]",
        lambda: f"{{{draw(_small)!r}: 1, {draw(_scalars)!r}: 2}}",
        lambda: f"{{{draw(_small)!r}: 1, 'k': (2,)}}.items()",
        lambda: f"enumerate({draw(inner)})",
        lambda: f"zip({draw(inner)}, {draw(inner)})",
        lambda: f"list({draw(inner)})[{draw(number)}:]",
        lambda: f"itertools.product({draw(inner)}, [{draw(number)}])",
        lambda: f"reversed(list({draw(inner)}))",
        lambda: f"[i * {draw(number)} for i in range({draw(number)}) if i != {draw(step)}]",
        lambda: f"np.linspace({draw(number)}, {draw(number)}, abs({draw(step)}))",
        lambda: f"np.arange({draw(number)}, {draw(number)}).tolist()",
        lambda: f"logspace({draw(number)} / 2, {draw(number)} / 3, 3)",
        lambda: draw(st.sampled_from(constants)),
    ]
    return draw(st.sampled_from(forms))()


_IMPORTS = ["import contextlib, copy, itertools", "import numpy as np", "from numpy import logspace"]
_MUTATIONS = [
    "print(len(A), A)",
    "C = A + [1]",
    "C = list(A)\nC.append(3)",
    "A.append(9)",
    "A = [8]",
    "A += [1]",
    "del A[:1]",
    "A[:0] = [5]",
    "C = A\nC.insert(0, 7)",
    "C = [A]\nC[0].append(4)",
    "C = dict(a=A)\nC['a'].append(4)",
    "def f():\n    A.append(1)\nf()",
    "def f(v):\n    v.append(1)\nf(A)",
    "def f():\n    global A\n    A = [2]\nf()",
    "def f():\n    A = []\n    A.append(1)\nf()",
    "for i in range(2): A.append(i)",
    "for i in A: pass",
    "exec('A = [7]')",
    "globals()['A'] = [6]",
    "if True:\n    A = [3]",
    "A.sort(key=str)",
    "(lambda v: v.clear())(A)",
    "[A.append(0) for _ in range(2)]",
    "sorted(A, key=str)",
    "class K:\n    A = [1]\n    A.append(2)",
    "import numpy as A",
    "B = iter(A)\nnext(B, 0)",
    "B = max(A, A)\nB.append(1)",
    "(A := [1])",
    "try:\n    A = [1]\nfinally:\n    pass",
    "with contextlib.nullcontext(A) as B: B.append(1)",
    "C, D = A, 3\nC.append(2)",
    "setattr(A, '__doc__', 1) if 0 else A.extend('ab')",
]


_BETWEEN = [  # what may stand between two marked loops; the second may use m
    "m = [x0, 1]",
    "m = [1, 2]\nm.append(x0)",
    "m = x0 = [1]",
    "m = A\nA[:] = A[:1]",
    "m = list(A)",
    "m = [k for k in range(3)]",
    "m = x0 if isinstance(x0, list) else [x0]\nm.append(1)",
]


@st.composite
def scripts(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A random script that notes its loop variables, and their names in order."""
    loops, names = draw(_nests())
    if draw(st.booleans()):
        loops = ["if __name__ == '__main__':", *("    " + line for line in loops)]
    return "\n".join([*_IMPORTS, f"A = {draw(_lists)}", *loops, ""]), names


@st.composite
def hostile_scripts(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A random script that does everything to the list ``A`` which its loops walk."""
    mutations = st.lists(st.sampled_from(_MUTATIONS), min_size=1, max_size=2)
    between = draw(st.sampled_from([None, *_BETWEEN]))
    loops, names = draw(_nests("A", between))
    where = draw(st.sampled_from(["module", "function", "above function", "before call", "in loop"]))
    lines = [*_IMPORTS, f"A = {draw(_lists)}"]
    if where in ("module", "above function"):
        lines += draw(mutations)
    if where == "module":
        return "\n".join([*lines, *loops, ""]), names
    inside = "\n".join([*(draw(mutations) if where == "function" else []), *loops])
    if where == "in loop":
        inside = "for round in range(2):\n" + textwrap.indent("\n".join([inside, *draw(mutations)]), "    ")
    after = draw(mutations) if where == "before call" else []
    return "\n".join([*lines, "def main():", textwrap.indent(inside, "    "), *after, "main()", ""]), names


@st.composite
def _nests(draw: st.DrawFn, first: str = "", between: str | None = None) -> tuple[list[str], list[str]]:
    variables: tuple[str, ...] = ()
    names: list[str] = []
    lines: list[str] = []
    mark = "  # ems: sweep" if first else ""  # a mutation may be the first loop of the script
    for level in range(draw(st.integers(1, 3))):
        iterable = first if first and level == 0 else draw(_iterables(variables, ("A",)))
        if level == 1 and between is not None:
            lines.append(textwrap.indent(f"item = copy.deepcopy(x0)\n{between}", "    "))
            iterable = draw(st.sampled_from(["m", iterable]))
        names.append(f"x{level}")
        lines.append("    " * level + f"for {names[-1]} in {iterable}:{mark}")
        if iterable.startswith(("range", "[i *")):
            variables = (*variables, names[-1])
    # What is noted is the item, not what the code between has made of the variable.
    noted = ["item" if name == "x0" and "item = " in "".join(lines) else name for name in names]
    lines.append("    " * len(names) + f"NOTE(({', '.join(noted)},))")
    return "\n".join(lines).split("\n"), names


def run(code: Any) -> list[list[Any]] | None:
    """Run a script; return what it noted, each as JSON; None if it fails."""
    noted: list[list[Any]] = []

    def note(items: tuple[Any, ...]) -> None:
        noted.append([launch.as_json(item)[0] for item in items])

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, {"NOTE": note, "__name__": "__main__"})
    except Exception:  # noqa: BLE001 - random scripts fail in every way
        return None
    return noted


def narrow(source: str, result: Unrolled, number: int) -> list[list[Any]] | None:
    """Run a script as run ``number`` of its sweep."""
    point = result.points[number]
    loops = json.loads(launch.arguments([_asdict(loop) for loop in result.loops], point.loops)[2])
    wrap = launch.Narrow(loops, point.params, lambda params: None)
    builtins.__ems_sweep__ = wrap  # type: ignore[attr-defined] # as the launcher does
    try:
        return run(launch.narrowed(source, "train.py", loops))
    finally:
        del builtins.__ems_sweep__  # type: ignore[attr-defined] # put there above


def _asdict(loop: LoopRef) -> dict[str, Any]:
    return {name: getattr(loop, name) for name in ("line", "column", "names", "size", "known")}


def same(a: Any, b: Any) -> bool:
    return repr(a) == repr(b)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scripts(), st.randoms(use_true_random=False))
def test_points_are_the_combinations_of_plain_execution_in_their_order(script: tuple[str, list[str]], rng: Any) -> None:
    source, names = script
    plain = run(source)
    if not plain:
        with pytest.raises(ScriptError):
            unroll(source, "train.py")
        return
    result = unrolled(source)
    assert same([[p.params[name] for name in names] for p in result.points], plain)
    for number in rng.sample(range(len(plain)), min(4, len(plain))):
        assert same(narrow(source, result, number), [plain[number]])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hostile_scripts())
def test_whatever_happens_above_the_loops_points_are_right_or_refused(script: tuple[str, list[str]]) -> None:
    source, names = script
    plain = run(source)
    try:
        result = unrolled(source)
    except ScriptError:
        event("refused")
        return
    event("counted")
    rounds = 2 if "for round in" in source else 1  # every run walks an unmarked loop around the swept ones wholly
    # A script that fails by itself fails as a run, too.
    assert plain is None or same([[p.params[name] for name in names] for p in result.points] * rounds, plain)
