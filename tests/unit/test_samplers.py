"""Properties of proposals, whatever the sampler."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ems.search.problem import SAMPLERS, Fidelity, Problem
from ems.search.samplers import n_initial, propose
from ems.search.space import Categorical, Fixed, Int, Ordinal, Real, SearchSpace
from ems.search.trial import Origin, Outcome, Trial

MIXED = SearchSpace(
    (
        Real("lr", 1e-5, 1e-1, "log"),
        Int("units", 16, 512),
        Categorical("opt", ("adam", "sgd")),
        Real("momentum", 0, 1, when="opt == sgd"),
        Ordinal("batch", (16, 32, 64)),
        Fixed("dataset", [1, 2]),
    ),
    ("lr * batch < 1",),
)
TINY = SearchSpace(
    (Categorical("opt", ("adam", "sgd")), Int("n", 1, 3), Categorical("nesterov", (False, True), when="opt == sgd")),
    ("n < 3 or opt == sgd",),
)
OUTCOMES = [Outcome.OK] * 5 + [Outcome.PENDING, Outcome.CRASHED, Outcome.DIVERGED, Outcome.LOST, Outcome.STOPPED]


def told(number, params, value, outcome=Outcome.OK, group=None):
    values = (value,) if outcome in (Outcome.OK, Outcome.STOPPED) else ()
    return Trial(number, params, config=number, group=group, outcome=outcome, values=values)


def exhaust(problem, batch):
    """Ask until there is no more; every answer is told but each third, which stays pending."""
    trials = []
    for _ in range(40):
        numbers = range(len(trials), len(trials) + batch)
        proposals = propose(problem, trials, batch, numbers, None, 0)
        if not proposals:
            return trials
        for number, proposal in zip(numbers, proposals, strict=False):
            outcome = Outcome.PENDING if number % 3 == 2 else Outcome.OK
            trials.append(told(number, proposal.params, float(proposal.params["n"]), outcome))
    raise AssertionError("it never ends")


@pytest.mark.parametrize("sampler", ["random", "grid", "sobol", "tpe", "gp", "ts"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_space_of_n_points_yields_n_proposals_and_no_more(sampler, batch):
    trials = exhaust(Problem(TINY, sampler, seed=3), batch)
    keys = {TINY.key(trial.params) for trial in trials}
    assert len(keys) == len(trials) == TINY.size == 8


def test_skopt_yields_all_points_of_a_space_too():
    assert len(exhaust(Problem(SearchSpace((Int("n", 1, 5),)), "skopt", seed=3, trials=6), 2)) == 5


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([sampler for sampler in SAMPLERS if sampler != "skopt"]),
    st.integers(0, 1000),
    st.lists(st.tuples(st.sampled_from(OUTCOMES), st.floats(-1e12, 1e12)), max_size=14),
    st.integers(1, 3),
)
def test_proposals_are_new_allowed_and_follow_from_what_is_known(sampler, seed, results, count):
    drawn = MIXED.draw(np.random.default_rng(seed), len(results))
    trials = [
        told(number, params, value, outcome)
        for number, (params, (outcome, value)) in enumerate(zip(drawn, results, strict=True))
    ]
    problem = Problem(MIXED, sampler, seed=seed, trials=50)
    numbers = range(len(trials), len(trials) + count)
    proposals = propose(problem, trials, count, numbers, None, 0)
    assert proposals == propose(problem, trials, count, numbers, None, 0)
    assert len(proposals) == count
    keys = {MIXED.key(proposal.params) for proposal in proposals}
    assert len(keys) == count
    assert not keys & {MIXED.key(trial.params) for trial in trials}
    assert all(MIXED.is_valid(proposal.params) for proposal in proposals)


@pytest.mark.parametrize("space", [SearchSpace(MIXED.dimensions), MIXED], ids=["free", "constrained"])
def test_skopt_lives_through_what_it_cannot_stand(space):
    drawn = space.draw(np.random.default_rng(0), 9)
    bad = {3: Outcome.CRASHED, 4: Outcome.DIVERGED, 5: Outcome.PENDING}
    trials = [told(n, p, 1e10 if n == 0 else 1e-3 * n, bad.get(n, Outcome.OK)) for n, p in enumerate(drawn)]
    problem = Problem(space, "skopt", seed=1)
    proposals = propose(problem, trials, 2, [9, 10], None, 0)
    assert len({space.key(proposal.params) for proposal in proposals}) == 2
    assert all(space.is_valid(proposal.params) and math.isfinite(proposal.mean) for proposal in proposals)
    assert all(abs(proposal.mean) < 1 for proposal in proposals), "the one of 1e10 would flatten the model"
    assert proposals == propose(problem, trials, 2, [9, 10], None, 0)


def test_skopt_spaces_are_given_and_taken():
    skopt_space = pytest.importorskip("skopt.space")
    theirs = skopt_space.Space(
        [
            skopt_space.Real(1e-5, 1e-1, "log-uniform", name="lr"),
            skopt_space.Integer(16, 512, name="units"),
            skopt_space.Categorical(["adam", "sgd"], name="opt"),
        ]
    )
    ours = SearchSpace.from_skopt(theirs)
    assert ours.dimensions[:2] == (Real("lr", 1e-5, 0.1, "log"), Int("units", 16, 512))
    assert ours.to_skopt() == theirs
    assert SearchSpace.from_skopt(theirs.dimensions) == ours


@pytest.mark.parametrize("sampler", ["tpe", "gp", "skopt"])
def test_the_initial_design_comes_first_and_waits_for_values(sampler):
    problem = Problem(MIXED, sampler, seed=5, trials=30)
    first = propose(problem, [], 12, range(12), None, 0)
    assert {proposal.origin for proposal in first} == {Origin.INITIAL}
    assert n_initial(problem) == 7
    trials = [told(n, proposal.params, float(n)) for n, proposal in enumerate(first[:5])]
    wanted = [Origin.INITIAL, Origin.INITIAL]
    assert [p.origin for p in propose(problem, trials, 3, range(5, 8), None, 0)][:2] == wanted
    assert [p.params for p in propose(problem, trials, 2, range(5, 7), None, 0)] == [p.params for p in first[5:7]]


def test_groups_search_by_themselves():
    problem = Problem(TINY, "sobol", groups=("a", "b"), seed=1)
    ours = propose(problem, [], 8, range(8), "a", 0)
    trials = [told(n, proposal.params, 0.0, group="a") for n, proposal in enumerate(ours)]
    assert propose(problem, trials, 1, [8], "a", 0) == []
    assert len(propose(problem, trials, 8, range(8, 16), "b", 0)) == 8


def test_a_grid_is_even_and_gets_finer_where_more_is_wanted():
    space = SearchSpace((Real("x", 0, 1), Int("n", 1, 3), Categorical("c", ("a", "b"))))
    problem = Problem(space, "grid", trials=18)
    points = [proposal.params for proposal in propose(problem, [], 18, range(18), None, 0)]
    assert sorted({point["x"] for point in points}) == [0.0, 0.5, 1.0]
    assert len({space.key(point) for point in points}) == 18
    trials = [told(n, point, 0.0) for n, point in enumerate(points)]
    assert {p.params["x"] for p in propose(problem, trials, 12, range(18, 30), None, 0)} == {0.25, 0.75}


def test_tpe_models_the_highest_rung_that_enough_have_reached():
    """At the low rung 0 is best, at the high one 1: what is proposed lies at 1."""
    space = SearchSpace((Real("x", 0, 1),))
    trials = [
        Trial(n, {"x": n / 20}, config=n, rung=1, outcome=Outcome.OK, values=(n / 20, 1 - n / 20)) for n in range(21)
    ]
    problem = Problem(space, "tpe", fidelity=Fidelity("epochs", 1, 3), seed=0)
    proposals = propose(problem, trials, 10, range(21, 31), None, 0)
    assert np.median([proposal.params["x"] for proposal in proposals]) > 0.7


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_model_finds_the_better_part_of_the_space(sampler):
    """Of 40 evaluations most of the last 20 are nearer the minimum than those of the prior would be."""
    problem = Problem(MIXED, sampler, seed=2, trials=40)
    trials = []
    for number in range(40):
        (proposal,) = propose(problem, trials, 1, [number], None, 0)
        params = proposal.params
        value = (math.log10(params["lr"]) + 3) ** 2 + (params["opt"] == "adam") + abs(params.get("momentum", 0) - 0.3)
        trials.append(told(number, params, value))
    expected = 4 / 3 + 0.5 + 0.2  # about, of the prior
    assert np.median([trial.values[0] for trial in trials[-20:]]) < expected / 2
