"""Rungs and the models over them: the stack, BOHB's densities, what a report says of rungs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ems.search import fidelity, groups, kde
from ems.search.candidates import Ground
from ems.search.model import Known
from ems.search.problem import Fidelity, Problem
from ems.search.rungs import agreements, at_rung, charge, ignored_fidelity, modelled_rung
from ems.search.space import Categorical, Real, SearchSpace
from ems.search.trial import Origin, Outcome, Trial

PLANE = SearchSpace((Real("x", 0.0, 1.0), Real("y", 0.0, 1.0)))
EPOCHS = Fidelity("epochs", 1, 27, 3)
PROBLEM = Problem(PLANE, "gp", "asha", fidelity=EPOCHS, parallel=4, seed=3)


def loss(params: dict[str, float], rung: int) -> float:
    """What falls with the rungs, the faster the greater x is: the lowest rung's best is not the top's."""
    bowl = (params["x"] - 0.3) ** 2 + (params["y"] - 0.7) ** 2
    return bowl + 0.15 * (3 - rung) / 3 * (1 - params["x"])


def climbed(counts: tuple[int, ...], seed: int = 0) -> list[Trial]:
    """Trials of which so many reached each rung, the best of each rung going on."""
    points = PLANE.draw(np.random.default_rng(seed), counts[0])
    heights = np.zeros(counts[0], dtype=int)
    for rung, count in enumerate(counts[1:], 1):
        there = [n for n in range(counts[0]) if heights[n] == rung - 1]
        heights[sorted(there, key=lambda n: loss(points[n], rung - 1))[:count]] = rung
    return [
        Trial(n, p, 0, n, rung=int(h), outcome=Outcome.OK, values=tuple(loss(p, r) for r in range(h + 1)))
        for n, (p, h) in enumerate(zip(points, heights, strict=True))
    ]


def stack_of(trials: list[Trial], top: int) -> fidelity.Stack:
    known = [Known.of(Ground(PLANE), at_rung(trials, rung)) for rung in range(top + 1)]
    return fidelity.Stack.fit(known, np.random.default_rng(0))


def test_the_stack_predicts_the_top_rung_from_a_few_values_there():
    trials = climbed((40, 13, 5))
    stack = stack_of(trials, 2)
    fresh = PLANE.draw(np.random.default_rng(9), 200)
    x = Ground(PLANE).locate(fresh)
    truth = np.array([loss(each, 2) for each in fresh])
    mean, sd = stack.in_units(*stack.predict(x))
    alone = stack_of(at_rung(trials, 2), 0)
    error, error_alone = (
        float(np.sqrt(np.mean((m - truth) ** 2))) for m in (mean, alone.in_units(*alone.predict(x))[0])
    )
    assert error < 0.6 * error_alone
    assert stats.spearmanr(mean, truth).statistic > 0.9
    good = truth < np.quantile(truth, 0.3)
    assert np.mean(np.abs(mean - truth)[good] < 3 * sd[good]) > 0.9, "where it matters it knows how sure it is"
    drawn = stack.draw(x[:5], np.random.default_rng(1), 4000)
    assert drawn.mean(axis=0) == pytest.approx(stack.predict(x[:5])[0], abs=0.1)
    assert drawn.std(axis=0) == pytest.approx(stack.predict(x[:5])[1], rel=0.1)
    believing = stack.condition(x[:1])
    assert believing.predict(x[:1])[0] == pytest.approx(stack.predict(x[:1])[0], abs=1e-6)
    assert believing.predict(x[:1])[1] < 0.7 * stack.predict(x[:1])[1]
    assert len(stack.observed) == 40


def test_the_model_is_of_the_highest_rung_with_enough_values_and_sees_no_other():
    trials = climbed((12, 4, 1))
    assert modelled_rung(PROBLEM, trials) == 1
    assert modelled_rung(PROBLEM, []) == 0
    seen = at_rung([*trials, Trial(12, {"x": 0.1, "y": 0.1}, rung=2, values=(1.0, 2.0))], 1)
    assert {each.values for each in seen if each.values} == {(each.values[1],) for each in trials if each.rung} | {
        (2.0,)
    }
    assert not seen[-1].is_pending, "its value at this rung is known, whatever it does now"
    higher = [replace(trials[0], values=(math.nan, 1.0), rung=1)]
    assert at_rung(higher, 0)[0].values == ()


def test_proposals_lie_where_the_top_rung_is_good_and_a_tenth_is_of_sobol():
    trials = climbed((40, 13, 5))
    found = fidelity.propose(PROBLEM, trials, range(100, 160), None, 0)
    assert len({PLANE.key(each.params) for each in found}) == 60
    origins = Counter(each.origin for each in found)
    assert 1 <= origins[Origin.RANDOM] <= 14
    assert origins[Origin.MODEL] == 60 - origins[Origin.RANDOM]
    best = [loss(each.params, 2) for each in found if each.origin is Origin.MODEL][:5]
    assert np.median(best) < np.quantile([loss(each.params, 2) for each in trials], 0.15)


def test_bohb_proposes_where_good_ones_are_dense_and_keeps_categories_apart():
    space = SearchSpace((Real("x", 0.0, 1.0), Categorical("opt", ("a", "b", "c"))))
    problem = Problem(space, scheduler="bohb", fidelity=EPOCHS, seed=1)
    rng = np.random.default_rng(0)
    points = space.draw(rng, 60)
    values = [abs(each["x"] - 0.2) + (each["opt"] != "b") for each in points]
    trials = [Trial(n, p, outcome=Outcome.OK, values=(v,)) for n, (p, v) in enumerate(zip(points, values, strict=True))]
    found = kde.propose(problem, trials, range(60, 120), None, 0)
    chosen = [each for each in found if each.origin is Origin.MODEL]
    assert 30 <= len(chosen) <= 50, "a third is random"
    assert np.mean([each.params["opt"] == "b" for each in chosen]) > 0.8
    assert np.median([abs(each.params["x"] - 0.2) for each in chosen]) < 0.15
    crashed = [replace(each, outcome=Outcome.CRASHED, values=()) if each.params["x"] < 0.5 else each for each in trials]
    away = [each.params["x"] for each in kde.propose(problem, crashed, range(60, 120), None, 0) if each.acquisition]
    assert np.mean(np.array(away) > 0.45) > 0.8, "failed ones are bad ones"
    density = kde.Density.of(SearchSpace((Real("x", 0.0, 1.0),)), np.array([[0.4], [0.6]]))
    mass = np.exp(density.log_density(np.linspace(-1, 2, 3001)[:, None])).sum() * 1e-3 / math.sqrt(2 * math.pi)
    assert mass == pytest.approx(1.0, abs=1e-2)


def test_the_group_that_promises_most_gets_more_and_none_is_left_out():
    problem = Problem(PLANE, "gp", groups=("open", "solved", "new"), seed=1)

    def search(group: str, seed: int, values) -> list[Trial]:
        points = PLANE.draw(np.random.default_rng(seed), 14)
        pairs = enumerate(zip(points, values(points), strict=True))
        return [Trial(n, p, 0, n, group, outcome=Outcome.OK, values=(float(v),)) for n, (p, v) in pairs]

    slope = search("open", 1, lambda points: [100 * each["x"] + 50 * each["y"] for each in points])
    flat = np.random.default_rng(3).normal(size=14)
    noisy = search("solved", 2, lambda points: flat)
    chosen = groups.choices(problem, [*slope, *noisy], 28)
    first = [next(chosen) for _ in range(8)]
    assert first[:7] == ["new"] * 7, "first an initial design, then at least half of an even share"
    early = noisy[:10] + [replace(t, group="new") for t in noisy[:10]]
    given = Counter(group for group, _ in zip(groups.choices(problem, [*slope, *early], 34), range(9), strict=False))
    assert given["open"] >= max(given["solved"], given["new"])


def test_low_agreement_of_rungs_is_told_and_measured_within_groups():
    rng = np.random.default_rng(0)

    def rungs_of(noise_sd: float, shift: float = 0.0, group: str | None = None) -> list[Trial]:
        low = rng.random(12)
        high = low + noise_sd * rng.normal(size=12)
        return [Trial(n, {"x": 0.1, "y": 0.1}, 0, n, group, rung=1, outcome=Outcome.OK, values=(a + shift, b - shift))
                for n, (a, b) in enumerate(zip(low, high, strict=True))]  # fmt: skip

    good = agreements(PROBLEM, rungs_of(0.01))[0]
    assert (good.low, good.high, good.count) == (0, 1, 12)
    assert good.correlation > 0.9
    assert not good.is_low
    assert agreements(PROBLEM, rungs_of(100.0))[0].correlation < 0.7
    misled = [replace(each, values=(each.values[0], -each.values[0])) for each in rungs_of(0.0)]
    assert agreements(PROBLEM, misled)[0].is_low
    two = rungs_of(0.01, group="a") + [
        replace(t, number=t.number + 50, config=t.config + 50) for t in rungs_of(0.01, 9.0, "b")
    ]
    assert agreements(PROBLEM, two)[0].correlation > 0.9, "groups are ranked each for itself"
    assert math.isnan(agreements(PROBLEM, good and rungs_of(0.0)[:2])[0].correlation)


@pytest.mark.parametrize(
    ("steps", "is_ignored"),
    [
        ({0: {0: 27, 1: 27}, 1: {0: 27, 1: 27}}, True),  # begins anew each time, or has nothing left to do
        ({0: {0: 27, 1: 54}, 1: {0: 27, 1: 54, 2: 81}}, True),  # goes on for a whole run each time
        ({0: {0: 27, 1: 27}, 1: {0: 1, 1: 3}}, False),  # one may be an accident
        ({0: {0: 1, 1: 3, 2: 9}, 1: {0: 1, 1: 3}}, False),
        ({0: {0: 100, 1: 300}, 1: {0: 100, 1: 300}}, False),  # steps are batches
        ({0: {0: 27}, 1: {0: 27}}, False),
    ],
)
def test_a_script_that_ignores_the_fidelity_is_found_out(steps, is_ignored):
    said = ignored_fidelity(PROBLEM, steps)
    assert bool(said) is is_ignored
    assert not said or said.startswith("The script ignores epochs: trial 0 logged up to step 27 with epochs=1")


def test_epochs_are_charged_to_the_rung_that_is_under_way():
    trials = [
        Trial(0, {}, rung=2, values=(1.0, 1.0)),  # pending
        Trial(1, {}, rung=1, outcome=Outcome.CRASHED, values=(1.0,)),
        Trial(2, {}, rung=1, outcome=Outcome.LOST, values=(1.0,)),
        Trial(3, {}, rung=3, outcome=Outcome.STOPPED, values=(1.0,)),
        Trial(-1, {}, rung=3, outcome=Outcome.OK, values=(1.0,), origin=Origin.GIVEN),
    ]
    assert charge(PROBLEM, trials) == 9 + 3 + 1 + 3
