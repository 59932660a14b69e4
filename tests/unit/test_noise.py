"""What luck can explain: claims that are wrong no more often than is said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ems.search.noise import compare, leader, outlook, probability_better, thresholds, wilcoxon
from ems.search.problem import Problem
from ems.search.space import Real, SearchSpace
from ems.search.trial import Outcome, Trial

LINE = Problem(SearchSpace((Real("x", 0.0, 1.0),)))


def trial(number: int, x: float, y: float | None, **more) -> Trial:
    known = {"outcome": Outcome.OK, "values": (y,)} if y is not None else {}
    return Trial(number, {"x": x}, **known, **more)


def test_wilcoxon_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for n in (4, 9, 25, 100):
        d = rng.standard_normal(n) + 0.2
        method = "exact" if n <= 60 else "asymptotic"
        expected = stats.wilcoxon(d, method=method, correction=n > 60).pvalue
        assert wilcoxon(d) == pytest.approx(expected, rel=1e-6)
    assert wilcoxon(np.zeros(3)) == 1.0
    assert wilcoxon(np.array([1.0, 1.0, 1.0, 1.0])) == pytest.approx(2 / 16)  # ties: by sign patterns


def test_claims_about_equals_are_rare_over_all_looks_and_real_differences_are_seen():
    rng = np.random.default_rng(1)

    def claims(shift: float, count: int) -> tuple[int, int]:
        """Claims that a is better, and that b is, where every look may end the comparison."""
        ends = []
        for _ in range(count):
            seed_noise = rng.standard_normal(25)
            a, b = (seed_noise + 0.6 * rng.standard_normal(25) + s for s in (shift, 0.0))
            looks = (compare(a[:n], b[:n]) for n in range(4, 26, 3))
            ends.append(next((look.is_better for look in looks if look.is_decided), None))
        return ends.count(True), ends.count(False)

    better, worse = claims(0.0, 200)
    assert better + worse <= 22  # 5 % are 10; 22 is 3.9 standard deviations more
    better, worse = claims(-0.8, 40)
    assert better >= 33
    assert worse == 0


def test_thresholds_grow_and_end_below_alpha():
    bounds = thresholds(25)
    assert np.all(bounds[:4] == 0)
    assert np.all(np.diff(bounds[3:]) > 0)
    assert 0.02 < bounds[-1] < 0.05
    assert np.all(thresholds(2) == 0)


def test_a_comparison_of_few_or_equal_or_broken_values_claims_nothing():
    assert not compare([], []).is_decided
    assert compare([1.0], [2.0]).difference == -1.0
    assert not compare([1.0, 1.0] * 10, [1.0, 1.0] * 10).is_decided
    assert compare([1.0, math.nan, 2.0], [1.5, 1.0, 2.5]).n == 2
    with pytest.raises(ValueError, match="zip"):
        compare([1.0], [])


def test_the_probability_is_that_of_student_t():
    a, b = [1.0, 2.0, 1.5], [1.2, 2.5, 1.4]
    assert probability_better(a, b) > 0.5
    assert probability_better(a, b) == pytest.approx(1 - stats.ttest_rel(a, b, alternative="less").pvalue)
    assert probability_better([1.0], [2.0]) == 0.5
    assert (probability_better([1, 1], [2, 2]), probability_better([1, 1], [1, 1])) == (1.0, 0.5)


def test_the_leader_is_best_by_the_model_not_by_the_luckiest_run():
    rng = np.random.default_rng(0)
    xs = np.repeat(np.linspace(0, 1, 11), 4)
    trials = [trial(i, round(x, 3), (x - 0.5) ** 2 + 0.02 * rng.standard_normal()) for i, x in enumerate(xs)]
    trials.append(trial(99, 0.97, -0.01))  # luck
    best = leader(LINE, trials)
    assert abs(best.params["x"] - 0.5) <= 0.1
    assert best.n == 4
    assert best.config == min(t.number for t in trials if t.params == best.params)
    assert 0 < best.sd < 0.02
    assert 0.5 <= best.probability <= 1.0
    assert best.runner_up not in (None, best.config)


def test_the_leader_of_one_or_none():
    assert leader(LINE, [trial(0, 0.5, None)]) is None
    only = leader(LINE, [trial(3, 0.5, 1.25), trial(4, 0.1, None)])
    assert (only.config, only.mean, only.runner_up, only.probability) == (3, pytest.approx(1.25), None, 0.5)


def test_a_stop_is_offered_where_nothing_more_is_to_be_gained():
    rng = np.random.default_rng(0)
    flat = [trial(i, x, 1 + 0.1 * rng.standard_normal()) for i, x in enumerate(np.linspace(0, 1, 30))]
    assert outlook(LINE, flat).is_stop_offered
    falling = [trial(i, x, -x) for i, x in enumerate(np.linspace(0, 0.4, 6))]
    assert not outlook(LINE, falling).is_stop_offered
    assert outlook(LINE, falling[:2]) is None
