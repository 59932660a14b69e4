"""What --set, --zip and --samples mean."""

from __future__ import annotations

import json
import math
import random
import re
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ems import space
from ems.errors import ConfigError, UsageError
from ems.model import Axis
from ems.space import Sweep, build, parse_assignment
from ems.space.distribution import Beta, Choice, IntUniform, LogInt, LogNormal, LogUniform, Normal, Uniform


def values(text: str) -> list[Any]:
    name, axis = parse_assignment(f"x={text}")
    assert isinstance(axis, Axis)
    assert axis.names == (name,)
    return [value for (value,) in axis.values]


def points(*sets: str, zips: tuple[str, ...] = (), samples: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    made = build(sets, zips, samples, seed)
    listed = [dict(params) for params in made.iterate()]
    assert len(listed) == made.count == math.prod(map(len, made.axes))
    return listed


def refusal(*sets: str, zips: tuple[str, ...] = (), samples: int | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        build(sets, zips, samples, 0)
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.1,0.01", [0.1, 0.01]),
        ("1, 2 ,+3,-4", [1, 2, 3, -4]),
        ("1.0,1e-4,.5,5.", [1.0, 0.0001, 0.5, 5.0]),
        ("true,false,null", [True, False, None]),
        ("True,False,None", [True, False, None]),
        ("inf,-inf", [math.inf, -math.inf]),
        ("adam,sgd", ["adam", "sgd"]),
        ("none,007,1_000,0x10,1e,--x,it's", ["none", "007", "1_000", "0x10", "1e", "--x", "it's"]),
        ("'0.1',\"true\",'a, b',''", ["0.1", "true", "a, b", ""]),
        (r'"a\nb\"c","é"', ['a\nb"c', "é"]),
        ('[64,64],[128],{"a": [1, 2]}', [[64, 64], [128], {"a": [1, 2]}]),
        ("٣,１", ["٣", "１"]),  # noqa: RUF001 - digits of other scripts are words
        ("../a,../b..c", ["../a", "../b..c"]),
        ("a=b,$(rm -rf),`id`", ["a=b", "$(rm -rf)", "`id`"]),
        ("0..3", [0, 1, 2, 3]),
        ("-2..2..2,9", [-2, 0, 2, 9]),
        ("3..1..-1", [3, 2, 1]),
        ("0..1..0.25", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("0..0.5..0.1", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        ("5..5", [5]),
        ("1e-3..3e-3..1e-3", [0.001, 0.002, 0.003]),
        ("logspace(-4,-1,4)", [0.0001, 0.001, 0.01, 0.1]),
        ("linspace(0, 1, 5)", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("0,linspace(1,2,2),adam", [0, 1.0, 2.0, "adam"]),
        ("linspace(3,7,1)", [3.0]),
    ],
)
def test_values_keep_the_kind_they_are_written_in(text: str, expected: list[object]) -> None:
    assert repr(values(text)) == repr(expected)


def test_nan_is_a_number() -> None:
    assert math.isnan(values("nan")[0])


@given(
    st.lists(
        st.recursive(
            st.one_of(st.text(), st.integers(), st.floats(allow_nan=False), st.booleans(), st.none()),
            lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=2)),
            max_leaves=5,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_json_is_read_back_as_it_was(items: list[Any]) -> None:
    text = ",".join(json.dumps(item) if not isinstance(item, float) else repr(item) for item in items)
    assume("Infinity" not in text)
    assert repr(values(text)) == repr(items)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_word_is_itself_or_refused_or_says_what_else_it_is(text: str) -> None:
    """No word becomes another one, and only what Python reads as a number becomes a number."""
    assume(".." not in text and not set("'\"[{(").intersection(text))
    try:
        made = values(text)
    except UsageError:
        return
    for value, part in zip(made, (part.strip() for part in text.split(",")), strict=True):
        if value is None or isinstance(value, bool):
            assert part in ("null", "None", "true", "True", "false", "False")
        else:
            assert value == part or repr(float(part)) == repr(float(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "`lr` is not NAME=VALUES"),
        ("=3", "`=3` is not NAME=VALUES"),
        ("a b=3", "`a b=3` is not NAME=VALUES"),
        ("--lr=3", "`--lr=3` has dashes before its name"),
        ("lr=", "--set lr=: there are no values"),
        ("lr=1,,2", "a value is empty"),
        ("lr=1,", "a value is empty"),
        ("lr='a", "a quote is not closed"),
        ("lr=[1,2", "a bracket is not closed"),
        ("lr=1)", "a bracket is not closed"),
        ("lr='a'b", "something follows the quoted part of `'a'b`"),
        (r'lr="\q"', "is not a quoted string"),
        ("lr=[1,a]", "`[1,a]` is not JSON"),
        ("lr=1e400", "1e400 is too large for a number"),
        ("lr=0..x", "`0..x` is not a range"),
        ("lr=0..1..2..3", "is not a range"),
        ("lr=00..09", "is not a range"),
        ("lr=1..", "is not a range"),
        ("lr=9..0", "`9..0` never gets from 9 to 0; write 9..0..-1"),
        ("lr=0..9..-1", "`0..9..-1` never gets from 0 to 9; write 0..9"),
        ("lr=0..9..0", "has a step of 0"),
        ("lr=0..1e12", "`0..1e12` has more than 1,000,000 values"),
        ("lr=0..1e400..1e399", "too large"),
        ("lr=linspace(0,1)", "linspace takes 3 numbers"),
        ("lr=linspace(0,1,0)", "must be a whole number from 1"),
        ("lr=linspace(0,1,2.5)", "must be a whole number from 1"),
        ("lr=logspace(0,1000,3)", "its ends are exponents"),
        ("lr=loguniforn(1,2)", "there is no loguniforn(...); did you mean `loguniform`?"),
        ("lr=uniform(2,1)", "uniform(2,1): the lower end 2 is not below the upper end 1"),
        ("lr=loguniform(0,1)", "loguniform(0,1): the lower end must be above 0, not 0"),
        ("lr=int(1,2.5)", "both ends must be whole numbers"),
        ("lr=normal(0,0)", "the standard deviation must be above 0, not 0"),
        ("lr=uniform(a,1)", "uniform takes 2 numbers"),
        ("lr=uniform(0,inf)", "uniform takes 2 numbers"),
        ("lr=uniform(0,1),2", "uniform(...) is drawn at random and must stand alone"),
    ],
)
def test_what_cannot_be_meant_is_said(text: str, message: str) -> None:
    assert message in refusal(text, samples=3)


def test_lists_are_crossed_the_last_one_fastest() -> None:
    assert points("lr=0.1,0.01", "seed=0..1") == [
        {"lr": 0.1, "seed": 0},
        {"lr": 0.1, "seed": 1},
        {"lr": 0.01, "seed": 0},
        {"lr": 0.01, "seed": 1},
    ]


def test_nothing_set_is_one_point_without_params() -> None:
    assert points() == [{}]


@given(st.lists(st.lists(st.integers(), min_size=1, max_size=4), min_size=1, max_size=4))
def test_crossing_is_the_product(lists: list[list[int]]) -> None:
    sets = [f"p{i}={','.join(map(str, items))}" for i, items in enumerate(lists)]
    assert [tuple(point.values()) for point in points(*sets)] == list(product(*lists))


@given(st.lists(st.tuples(st.integers(), st.integers(), st.integers()), min_size=1, max_size=5), st.integers(1, 3))
def test_zipped_lists_are_walked_together(rows: list[tuple[int, int, int]], others: int) -> None:
    a, b, c = (",".join(str(row[i]) for row in rows) for i in range(3))
    made = points(f"a={a}", f"k=0..{others - 1}", f"b={b}", f"c={c}", zips=("a,b,c",))
    assert [list(point) for point in made] == [["a", "k", "b", "c"]] * len(made)
    assert [(p["a"], p["b"], p["c"], p["k"]) for p in made] == [(*row, k) for row in rows for k in range(others)]


def test_draws_are_crossed_with_lists() -> None:
    made = points("seed=0..1", "lr=loguniform(1e-5,1e-1)", "n=int(1,3)", samples=3)
    assert [point["seed"] for point in made] == [0, 0, 0, 1, 1, 1]
    assert [(p["lr"], p["n"]) for p in made[:3]] == [(p["lr"], p["n"]) for p in made[3:]]
    assert len({p["lr"] for p in made}) == 3


def test_the_seed_decides_the_draws_and_another_param_does_not() -> None:
    drawn = [p["lr"] for p in points("lr=uniform(0,1)", samples=5, seed=7)]
    assert drawn == [p["lr"] for p in points("n=normal(0,1)", "lr=uniform(0,1)", samples=5, seed=7)]
    assert drawn != [p["lr"] for p in points("lr=uniform(0,1)", samples=5, seed=8)]


@pytest.mark.parametrize(
    ("sets", "zips", "samples", "message"),
    [
        (("lr=1", "lr=2"), (), None, "`lr` is set twice"),
        (("lr=1,2", "b=1"), ("lr,b",), None, "different lengths: lr has 2, b has 1"),
        (("lr=1", "batch=1"), ("lr,bacth",), None, "--zip names `bacth`, which no --set gives"),
        (("lr=1",), ("lr",), None, "--zip lr names one param"),
        (("lr=1", "b=1"), ("lr,lr",), None, "--zip lr,lr names `lr` twice"),
        (("lr=1", "b=1", "c=1"), ("lr,b", "b,c"), None, "`b` is in two --zip"),
        (("lr=1", "b=int(1,2)"), ("lr,b",), 2, "--zip cannot pair `b`, which is drawn at random"),
        (("lr=uniform(0,1)",), (), None, "`lr` is drawn at random, but not how often"),
        (("lr=1,2",), (), 5, "--samples has nothing to draw from"),
        (("lr=uniform(0,1)",), (), 0, "--samples 0 draws nothing"),
        (("lr=uniform(0,1)",), (), 1_000_001, "this sweep has 1,000,001 points; at most 1,000,000"),
        (("a=0..999", "b=0..999", "c=0..1"), (), None, "this sweep has 2,000,000 points; at most 1,000,000"),
    ],
)
def test_what_does_not_go_together_is_said(
    sets: tuple[str, ...], zips: tuple[str, ...], samples: int | None, message: str
) -> None:
    assert message in refusal(*sets, zips=zips, samples=samples)


def test_a_million_points_stream() -> None:
    made = build(["a=0..999", "b=0..999"], [], None, 0)
    assert made.count == 1_000_000
    assert list(islice(made.iterate(), 2)) == [{"a": 0, "b": 0}, {"a": 0, "b": 1}]


# ------------------------------------------------------------------------------------------- over a sweep file


def sweep(method: str = "grid", **kwargs: Any) -> Sweep:
    dimensions = {"lr": Axis(("lr",), ((1,), (2,))), "opt.beta": Axis(("opt.beta",), ((0.9,),))}
    return Sweep(Path("s.yaml"), method, kwargs.pop("dimensions", dimensions), {"opt.beta": ("opt", "beta")}, **kwargs)


def test_set_overrides_the_file_in_its_place_and_nested_names_stay_nested() -> None:
    made = build(["opt.beta=0.5,0.6", "seed=3"], [], None, 0, sweep())
    assert list(made.iterate())[1] == {"lr": 1, "opt": {"beta": 0.6}, "seed": 3}
    assert made.count == 4


def test_a_cap_takes_the_first_points_of_a_grid_and_counts_the_draws() -> None:
    assert build(["seed=0..9"], [], None, 0, sweep(run_cap=3)).count == 3
    drawn = sweep("random", dimensions={"lr": Uniform(0, 1)}, run_cap=4)
    assert build([], [], None, 0, drawn).count == 4
    assert build([], [], 7, 0, drawn).count == 7


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (sweep("bayes"), "s.yaml: `method: bayes` chooses points while runs end"),
        (sweep(early_terminate={"type": "hyperband"}), "s.yaml: `early_terminate` chooses points while runs end"),
        (sweep("random", dimensions={"lr": Uniform(0, 1)}), "`lr` is drawn at random, but not how often"),
    ],
)
def test_what_needs_more_than_parrun_is_said(made: Sweep, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        build([], [], None, 0, made)
    assert "ems tune" in caught.value.hint or "run_cap" in caught.value.hint


def test_a_value_where_the_file_has_a_group_is_refused() -> None:
    with pytest.raises(UsageError, match=re.escape("`opt` is both a value and the group of `opt.beta`")):
        build(["opt=3"], [], None, 0, sweep())
    assert not issubclass(UsageError, ConfigError)


# ------------------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize(
    ("distribution", "kind", "low", "high"),
    [
        (Uniform(-1, 2), float, -1, 2),
        (Uniform(0, 1, 0.1), float, 0, 1),
        (Uniform(0, 100, 10), int, 0, 100),
        (LogUniform(1e-5, 1e-1), float, 1e-5, 1e-1),
        (LogUniform(8, 512, 8), int, 8, 512),
        (IntUniform(3, 5), int, 3, 5),
        (LogInt(1, 1000), int, 1, 1000),
        (Normal(5, 1), float, -5, 15),
        (Normal(5, 1, 1), int, -5, 15),
        (LogNormal(0, 1), float, 0, 1e4),
        (Beta(2, 3), float, 0, 1),
        (Beta(2, 3, 0.25), float, 0, 1),
    ],
)
def test_draws_are_of_the_kind_and_in_the_bounds(distribution: Any, kind: type, low: float, high: float) -> None:
    rng = random.Random(1)
    drawn = [distribution.sample(rng) for _ in range(2000)]
    assert {type(value) for value in drawn} == {kind}
    assert low <= min(drawn) <= max(drawn) <= high
    assert len(set(drawn)) > 2


def test_multiples_are_written_as_people_write_them() -> None:
    rng = random.Random(1)
    assert {Uniform(0, 0.5, 0.1).sample(rng) for _ in range(500)} == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5}


def test_a_logarithmic_draw_is_uniform_in_the_logarithm() -> None:
    rng = random.Random(1)
    drawn = [math.log10(LogUniform(1e-4, 1).sample(rng)) for _ in range(4000)]  # type: ignore[arg-type] # a float
    for decade in range(-4, 0):
        assert 0.22 < sum(decade <= value < decade + 1 for value in drawn) / len(drawn) < 0.28
    whole = [LogInt(1, 3).sample(rng) for _ in range(6000)]
    shares = [math.log(b / a) / math.log(3.5 / 0.5) for a, b in ((0.5, 1.5), (1.5, 2.5), (2.5, 3.5))]
    assert [whole.count(n) / len(whole) for n in (1, 2, 3)] == pytest.approx(shares, abs=0.03)


def test_weights_decide_a_choice() -> None:
    rng = random.Random(1)
    drawn = [Choice(("a", None, [1]), (0.5, 0.5, 0)).sample(rng) for _ in range(500)]
    assert [1] not in drawn
    assert 200 < drawn.count("a") < 300


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Choice(()), "nothing to choose from"),
        (lambda: Choice((1, 2), (1,)), "1 probabilities for 2 values"),
        (lambda: Choice((1, 2), (0.5, 0.6)), "add up to 1"),
        (lambda: Choice((1, 2), (1.5, -0.5)), "at least 0"),
        (lambda: Uniform(0, 1, 0), "q must be above 0"),
        (lambda: Uniform(0, math.nan), "is not below"),
        (lambda: LogNormal(0, -1), "the standard deviation must be above 0"),
        (lambda: Beta(0, 1), "a must be above 0"),
    ],
)
def test_a_distribution_that_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_suggestions_are_near() -> None:
    assert space.suggest("vlaues", ["value", "values"]) == "did you mean `values`?"
    assert space.suggest("zzz", ["value"]) == ""
