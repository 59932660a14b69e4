"""Properties of search spaces: whatever the space, whatever is drawn."""

import json
import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ems.errors import UsageError
from ems.search import space_file
from ems.search.space import Categorical, Fixed, Int, Ordinal, Real, SearchSpace, Shaped
from ems.space.distribution import Beta, LogNormal, Normal

FEW = settings(max_examples=40, deadline=None)
finite = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
words = st.sampled_from(["adam", "sgd", "a b", "1", "", "ü"])
values = st.lists(
    st.one_of(words, st.booleans(), st.none(), st.integers(-3, 3), st.lists(st.integers(0, 3), max_size=2)),
    min_size=2,
    max_size=5,
    unique_by=json.dumps,
)


@st.composite
def dimensions(draw, name):
    when = draw(st.sampled_from([None, None, "x == sgd", "x != sgd", "not flag"]))
    low = draw(finite)
    high = low + draw(st.sampled_from([0.01, 1.0, 37.0, 1e5]))
    tiny = draw(st.sampled_from([1e-9, 1e-3, 1.0, 20.0]))
    whole = draw(st.integers(-20, 20))
    choices = draw(values)
    return draw(
        st.sampled_from(
            [
                Real(name, low, high, when=when),
                Real(name, tiny, tiny * draw(st.sampled_from([1.001, 7.0, 1e8])), "log", when=when),
                Int(name, whole, whole + draw(st.integers(0, 1000)), when=when),
                Int(name, 1, draw(st.integers(2, 10_000)), "log", when=when),
                Int(name, 0.05, 1.0, q=0.1, when=when),
                Int(name, 3, 300, "log", q=8, when=when),
                Shaped(name, Normal(low, 2.0), when=when),
                Shaped(name, Normal(0.0, 3.0, q=0.5), when=when),
                Shaped(name, LogNormal(0.0, 1.0), when=when),
                Shaped(name, Beta(2.0, 5.0), when=when),
                Categorical(name, tuple(choices), when=when),
                Categorical(name, ("a", "b", "c"), (0.2, 0.7, 0.1), when=when),
                Ordinal(name, (16, 32, 100), when=when),
                Fixed(name, choices[0], when=when),
            ]
        )
    )


@st.composite
def spaces(draw):
    """Dimensions on two that conditions name; the second's condition makes a chain of them."""
    first = Categorical("x", ("adam", "sgd", "lion"))
    flag = Categorical("flag", (False, True), when=draw(st.sampled_from([None, "x == 'adam'"])))
    others = [draw(dimensions(f"d{index}")) for index in range(draw(st.integers(0, 4)))]
    rest = [Real("lr", 1e-5, 1e-1, "log"), Int("batch", 1, 64)] if draw(st.booleans()) else []
    constraints = ("lr * batch < 1", "batch > 2 or x in (adam, sgd)") if rest else ()
    order = draw(st.permutations([first, flag, *others, *rest]))
    return SearchSpace(tuple(order), constraints)


@FEW
@given(spaces(), st.integers(0, 2**32))
def test_what_is_drawn_is_in_the_space_and_survives_encoding(space, seed):
    drawn = space.draw(np.random.default_rng(seed), 12)
    assert drawn == space.draw(np.random.default_rng(seed), 12)
    loaded = SearchSpace.load(space.dump())
    assert loaded == space
    for params in drawn:
        row = space.encode(params)
        assert row.shape == (len(space.names),)
        assert np.all((row >= 0) & (row <= 1))
        assert np.all(row[~space.active(params)] == 0.5)
        assert space.decode(row) == params
        assert json.loads(json.dumps(params)) == params  # plain values, none of NumPy's
        assert space.is_valid(params)
        assert not space.is_valid({**params, "stranger": 1})
        assert loaded.key(dict(reversed(params.items()))) == space.key(params)
        _check_by_hand(space, params)
    assert len({space.key(params) for params in drawn}) == len({json.dumps(params) for params in drawn})


def _check_by_hand(space, params):
    """Conditions and constraints as Python has them, not as our own evaluator does."""
    for dimension in space.dimensions:
        x, flag = params["x"], params.get("flag")
        holds = {
            None: True,
            "x == sgd": x == "sgd",
            "x != sgd": x != "sgd",
            "x == 'adam'": x == "adam",
            "not flag": flag is False,  # of an inactive one no condition holds
        }[dimension.when]
        assert (dimension.name in params) is holds
        if holds and isinstance(dimension, Real | Int):
            assert dimension.low - 1e-9 <= params[dimension.name] <= dimension.high + 1e-9
    if space.constraints:
        assert params["lr"] * params["batch"] < 1
        assert params["batch"] > 2 or params["x"] in ("adam", "sgd")


@FEW
@given(spaces(), st.integers(0, 2**32))
def test_rows_of_candidates_are_those_of_points(space, seed):
    rows = np.random.default_rng(seed).uniform(-0.2, 1.2, (8, len(space.names)))
    snapped = space.snap(rows)
    decoded = space.decode_rows(snapped)
    assert decoded == [space.decode(row) for row in rows.clip(0, 1)]
    for row, params, is_active, allowed in zip(
        snapped, decoded, space.active_rows(snapped), space.allowed(snapped), strict=True
    ):
        assert np.allclose(space.encode(params), row, atol=2e-6)  # reals are rounded
        assert list(is_active) == list(space.active(params))
        assert space.is_valid(params) or not allowed


def test_priors_are_kept_by_draws():
    space = SearchSpace(
        (
            Real("lr", 1e-4, 1.0, "log"),
            Int("n", 1, 4),
            Categorical("c", ("a", "b"), (0.8, 0.2)),
            Ordinal("o", (1, 2, 9)),
        )
    )
    drawn = space.draw(np.random.default_rng(0), 4000)
    n = len(drawn)
    assert abs(sum(p["lr"] < 1e-2 for p in drawn) / n - 0.5) < 0.05
    assert abs(sum(p["c"] == "a" for p in drawn) / n - 0.8) < 0.05
    for name, count, value in [("n", 4, 1), ("n", 4, 4), ("o", 3, 1), ("o", 3, 2), ("o", 3, 9)]:
        assert abs(sum(p[name] == value for p in drawn) / n - 1 / count) < 0.05


def test_points_of_a_countable_space_are_all_there_are():
    space = SearchSpace(
        (
            Categorical("opt", ("adam", "sgd")),
            Ordinal("momentum", (0.5, 0.9), when="opt == sgd"),
            Int("n", 1, 3),
            Fixed("f", 7, when="n == 2"),
        ),
        ("not (n == 3 and opt == adam)",),
    )
    expected = [
        {"opt": opt, **({"momentum": momentum} if opt == "sgd" else {}), "n": n, **({"f": 7} if n == 2 else {})}
        for opt, momentum, n in product(("adam", "sgd"), (0.5, 0.9), (1, 2, 3))
        if (opt == "sgd" or momentum == 0.5) and not (n == 3 and opt == "adam")
    ]
    assert sorted(map(json.dumps, space.points())) == sorted(map(json.dumps, expected))
    assert space.size == len(expected) == 8
    assert SearchSpace((Int("n", 1, 10**6),)).size is None or not SearchSpace((Int("n", 1, 10**6),)).is_countable
    assert SearchSpace((Real("x", 0, 1),)).size is None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("x ==", "no condition"),
        ("y > 1", "`y`"),
        ("x.__class__ == 1", "neither a param nor a value"),
        ("open('/etc/passwd')", "cannot have"),
        ("[x for x in (1, 2)]", "cannot have"),
        ("(lambda: 1)()", "cannot have"),
        ("x @ 2 > 1", "cannot have"),
        ("x in 3", "cannot have"),
        ("x[0] > 1", "cannot have"),
        ("(" * 300 + "x" + ")" * 300, "no condition"),
        ("x > 1 " * 1000, "characters"),
        ("c > 1", "no number"),
        ("x < 0", "satisfied by none"),
        ("9**9**9**9 < x", "satisfied by none"),
    ],
)
def test_conditions_that_cannot_be_meant_are_refused(text, part):
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        SearchSpace((Real("x", 1, 2), Categorical("c", ("a", "b"))), (text,)).draw(np.random.default_rng(0), 1)
    assert part in caught.value.message
    assert caught.value.hint


def test_constraints_compute_as_python_does():
    rng = np.random.default_rng(1)
    names = {"min": min, "max": max, "abs": abs, "log": math.log, "log10": math.log10, "sqrt": math.sqrt}
    dims = (Real("x", 0.5, 2), Int("n", 1, 9), Ordinal("a-b", (1, 2, 4)), Categorical("model.kind", ("cnn", "mlp")))
    for text in [
        "min(x, n, 3) * 2 - 1 < abs(-x) ** 2 + n % 2",
        "log(x) < 0 or n // 2 in (1, 2, 3)",
        "not x > 1 and 1 < n <= 7",
        "`a-b` >= 2 if n > 4 else `a-b` == 1",
        "model.kind == cnn or model.kind not in ('mlp', 'x')",
        "1 / (n - 4) > 0",
        "`model.kind` != mlp and true",
    ]:
        python = text.replace("`a-b`", "a_b").replace("`model.kind`", "kind").replace("model.kind", "kind")
        python = python.replace("1 / (n - 4)", "(1 / (n - 4) if n != 4 else math.inf)").replace("true", "True")
        for params in SearchSpace(dims).draw(rng, 20):
            there = {"x": params["x"], "n": params["n"], "a_b": params["a-b"], "kind": params["model.kind"]}
            expected = eval(python, {**names, "math": math, "cnn": "cnn", "mlp": "mlp"}, there)
            assert SearchSpace(dims, (text,)).is_valid(params) is bool(expected), (text, params)


@pytest.mark.parametrize(
    ("dims", "part"),
    [
        ((), "empty"),
        ((Fixed("x", 1),), "empty"),
        ((Real("x", 0, 1), Int("x", 1, 2)), "`x` is given twice"),
        ((Real("x", 0, 1, when="y > 1"), Real("y", 0, 1, when="z > 1"), Real("z", 0, 1, when="x > 1")), "circle"),
    ],
)
def test_spaces_that_cannot_be_meant_are_refused(dims, part):
    with pytest.raises(UsageError) as caught:
        SearchSpace(dims)
    assert part in caught.value.message
    assert caught.value.hint


def test_foreign_params_are_refused_by_name():
    space = SearchSpace((Real("lr", 0, 1), Categorical("opt", ("a", "b"))))
    with pytest.raises(UsageError, match="`opt` is one of"):
        space.encode({"lr": 0.5, "opt": "c"})
    with pytest.raises(UsageError, match="`lr` is a number"):
        space.key({"lr": "x", "opt": "a"})
    assert list(space.encode({"lr": 7, "opt": "b"})) == [1.0, 1.0]
    assert not space.is_valid({"lr": 7, "opt": "b"})
    with pytest.raises(UsageError, match="no search space"):
        SearchSpace.load("[]")


def test_words_of_set_and_files(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(
        "lr: loguniform(1e-5, 1e-1)\n"
        "units: {type: int, low: 16, high: 512, q: 16, log: true}\n"
        "batch: [64, 16, 32]\n"
        "opt: {values: [adam, sgd, lion], weights: [2, 1, 0]}\n"
        "momentum: {low: 0.0, high: 0.99, when: opt == sgd}\n"
        "epochs: 20\n"
        "depth: {low: 1, high: 4}\n"
        "constraints: lr * batch < 1\n"
    )
    space = space_file.parse(["depth=2", "wide=true,false", "lr=logspace(-3,-1,3)", "s=normal(0,1)"], file)
    assert space == SearchSpace(
        (
            Ordinal("lr", (0.001, 0.01, 0.1)),
            Int("units", 16, 512, "log", 16),
            Ordinal("batch", (16, 32, 64)),
            Categorical("opt", ("adam", "sgd"), (2 / 3, 1 / 3)),
            Real("momentum", 0.0, 0.99, when="opt == sgd"),
            Fixed("epochs", 20),
            Fixed("depth", 2),
            Categorical("wide", (True, False)),
            Shaped("s", Normal(0, 1)),
        ),
        ("lr * batch < 1",),
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: {low: 1, hgih: 2}", "line 1: unknown key `a.hgih`"),
        ("b: [1, 2]\na: {low: 1}", "line 2: `a` has no `high`"),
        ("a: {low: 2, high: 1}", "the lower end 2"),
        ("a: {low: 1, high: 2, q: 7}", "no multiple of 7"),
        ("a: {low: -1, high: 2, log: true}", "above 0"),
        ("a: {type: float, low: 1, high: 2}", "`a.type` cannot be 'float'"),
        ("a: {type: int, low: 1.5, high: 2}", "no whole numbers"),
        ("a: {type: ordinal}", "no list of values"),
        ("a: gauss(1, 2)", "no gauss"),
        ("a: [x, x]", "twice"),
        ("a: [1, 2]\nconstraints: [a > 5]", "satisfied by none"),
        ("a: [1, 2]\nconstraints: [3]", "no list of conditions"),
        ("a: {low: 1, high: 2, when: 3}", "no condition"),
        ("a: 3", "empty"),
        ("a: [1, 2]\nb c: 3", "cannot be the name"),
        ("params:\n  a: [1, 2]\n  b: uniform(0, 1)", "line 1: `params` is a heading"),
    ],
)
def test_files_that_cannot_be_meant_are_refused_where_they_are_wrong(tmp_path, text, part):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        space_file.parse([], file)
    assert part in caught.value.message


def test_a_sweep_file_of_bayes_is_a_space(tmp_path):
    from ems.space import sweep

    file = tmp_path / "sweep.yaml"
    file.write_text(
        "program: train.py\nmethod: bayes\nmetric: {name: loss}\nparameters:\n"
        "  lr: {distribution: log_uniform_values, min: 1e-5, max: 0.1}\n"
        "  opt: {values: [adam, sgd]}\n  n: {min: 1, max: 9}\n  q: {distribution: q_uniform, min: 0, max: 1, q: 0.25}\n"
        "  b: {distribution: beta, a: 2, b: 3}\n  f: {value: 3}\n"
    )
    space = space_file.parse([], sweep=sweep.load(file))
    assert space.dimensions == (
        Real("lr", 1e-5, 0.1, "log"),
        Categorical("opt", ("adam", "sgd")),
        Int("n", 1, 9),
        Int("q", 0, 1, q=0.25),
        Shaped("b", Beta(2, 3)),
        Fixed("f", 3),
    )


def test_params_that_a_sweep_file_nests_reach_runs_as_in_parrun(tmp_path):
    from ems.space import sweep
    from ems.study import asked
    from ems.study.spec import StudySpec

    file = tmp_path / "sweep.yaml"
    file.write_text(
        "method: bayes\nmetric: {name: loss}\nrun_cap: 9\nparameters:\n"
        "  model: {parameters: {depth: {min: 1, max: 9}, head: {parameters: {lr: {min: 0.1, max: 0.5}}}}}\n"
        "  b: {value: 3}\n"
    )
    read = sweep.load(file)
    spec = asked.specify(asked.of_sweep(read), space_file.parse([], sweep=read), "ab12cd34")
    spec = StudySpec.load(json.loads(json.dumps(spec.dump())))
    flat = {"model.depth": 2, "model.head.lr": 0.2, "b": 3}
    assert spec.problem().space.is_valid(flat)
    assert spec.run_params(flat, None, 0) == {"model": {"depth": 2, "head": {"lr": 0.2}}, "b": 3}
