"""Means, intervals and paired tests: known cases, scipy's own answers, and values that no formula likes."""

import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ems.report import Method
from ems.report.statistics import estimate, holm, paired

moderate = st.floats(-1e6, 1e6)


@given(st.lists(moderate, min_size=2, max_size=40))
def test_t_interval_is_scipys(values):
    found = estimate(values)
    assert found.mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9)
    if np.ptp(values) > 1e-6:
        low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-7, abs=1e-6)


def test_bootstrap_is_close_to_scipys_bca():
    values = np.random.default_rng(3).exponential(size=40)
    theirs = scipy.stats.bootstrap((values,), np.mean, method="BCa", n_resamples=10_000, rng=1).confidence_interval
    found = estimate(list(values), Method.BOOTSTRAP)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert found.high - found.mean > found.mean - found.low  # skewed data: no symmetric interval in disguise
    assert found == estimate(list(values), Method.BOOTSTRAP)  # the same table twice


@given(st.lists(moderate, min_size=2, max_size=12))
def test_bootstrap_interval_stays_within_the_values(values):
    found = estimate(values, Method.BOOTSTRAP)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack


def test_t_interval_covers_the_true_mean_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(size=(2000, 4))
    found = [estimate(list(row)) for row in samples]
    assert 0.93 < np.mean([e.low <= 0 <= e.high for e in found]) < 0.97


def test_no_value_and_one_value_have_no_interval():
    assert estimate([]).mean is None
    one = estimate([0.5])
    assert (one.mean, one.half_width, one.n) == (0.5, None, 1)


def test_equal_values_have_an_interval_of_no_width():
    found = estimate([0.1] * 7)
    assert (found.mean, found.half_width) == (0.1, 0.0)


def test_values_that_are_not_finite_are_counted_not_averaged():
    found = estimate([1.0, 3.0, math.nan, math.inf])
    assert (found.mean, found.n, found.n_not_finite) == (2.0, 2, 2)


@given(st.lists(st.tuples(moderate, moderate), min_size=2, max_size=30))
def test_paired_is_scipys(pairs):
    a, b = map(np.array, zip(*pairs, strict=True))
    found = paired(list(a), list(b))
    if np.ptp(a - b) > 1e-3:
        theirs = scipy.stats.ttest_rel(a, b)
        assert found.p == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)
        assert found.effect == pytest.approx(np.mean(a - b) / np.std(a - b, ddof=1), rel=1e-6, abs=1e-12)


def test_a_shift_by_a_constant_is_no_evidence():
    found = paired([1.1, 2.1, 3.1], [1.0, 2.0, 3.0])
    assert found.difference.mean == pytest.approx(0.1)
    assert found.p is None
    assert found.effect is None


def test_the_same_values_differ_by_nothing():
    assert paired([1.0, 2.0], [1.0, 2.0]).p == 1.0


def test_one_pair_has_a_difference_but_no_test():
    found = paired([1.5], [1.0])
    assert (found.difference.mean, found.p) == (0.5, None)


def test_pairs_that_are_not_finite_are_left_out():
    found = paired([1.0, math.nan, 3.0, 5.0], [0.5, 1.0, 2.0, math.inf])
    assert (found.difference.n, found.difference.n_not_finite) == (2, 2)


@pytest.mark.parametrize("unit", [1e-200, 1e-20, 1.0, 1e200])
def test_the_unit_of_a_metric_does_not_matter(unit):
    values, baseline = [3.0 * unit, 5.0 * unit, 4.5 * unit], [1.0 * unit, 2.0 * unit, 3.0 * unit]
    found = paired(values, baseline)
    assert (found.p, found.effect) == pytest.approx((0.03901, 2.8368), rel=1e-3)  # t = 4.9135 of 2 degrees of freedom
    assert found.difference.half_width == pytest.approx(1.8973 * unit, rel=1e-3)
    assert estimate(values, Method.BOOTSTRAP).low >= 3.0 * unit


def test_a_long_column_is_resampled_in_little_memory():
    tracemalloc.start()
    found = estimate([float(i % 7) for i in range(5_000)], Method.BOOTSTRAP)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.low < found.mean < found.high
    assert peak < 200e6  # all 10,000 resamples at once would take 400 MB


def test_paired_refuses_different_lengths():
    with pytest.raises(ValueError, match="shorter"):
        paired([1.0, 2.0], [1.0])


def test_holm_on_a_worked_example():
    # Holm (1979): smallest times m, next times m - 1, never below the one before
    assert holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_never_lowers_a_p_value_nor_changes_their_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)
