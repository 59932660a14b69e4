"""The Gaussian process: gradients, predictions against a direct formula, conditioning, degenerate data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ems.search.gp import N_FOR_THETA, Layout, Surrogate, log_posterior, log_prior, matern52, subset
from ems.search.warp import Warp

MIXED = Layout(levels=(0, 3, 0), conditional=(False, False, True))


def points(n: int, seed: int, layout: Layout = MIXED) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.random((n, layout.n_dimensions))
    for j, level in enumerate(layout.levels):
        if level:
            x[:, j] = rng.integers(level, size=n) / (level - 1)
        if layout.conditional[j]:
            x[rng.random(n) < 0.4, j] = np.nan
    return x


def values(x: np.ndarray) -> np.ndarray:
    return np.sin(5 * x[:, 0]) + x[:, 1] + 0.3 * np.nan_to_num(x[:, 2], nan=0.2)


def fitted(n: int = 25, seed: int = 0) -> tuple[Surrogate, np.ndarray, np.ndarray]:
    x = points(n, seed)
    y = values(x) + 0.05 * np.random.default_rng(seed).standard_normal(n)
    return Surrogate.fit(x, y, np.random.default_rng(0), MIXED), x, y


def numerical(function, theta: np.ndarray, step: float = 1e-6) -> np.ndarray:
    return np.array([(function(theta + e) - function(theta - e)) / (2 * step) for e in step * np.eye(len(theta))])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), log_noise=st.floats(-6, 0), log_scale=st.floats(-2, 2))
def test_gradients_are_those_of_finite_differences(seed, log_noise, log_scale):
    rng = np.random.default_rng(seed)
    x, y = points(12, seed), rng.standard_normal(12)
    theta = np.array([log_scale, *rng.normal(size=2), rng.normal(), log_noise])
    features = MIXED.embed(x)

    value, gradient = log_posterior(theta, features, MIXED.owners, y)

    assert np.isfinite(value)
    expected = numerical(lambda t: log_posterior(t, features, MIXED.owners, y)[0], theta)
    assert gradient == pytest.approx(expected, rel=1e-4, abs=1e-4 * max(1, np.abs(expected).max()))
    assert log_prior(theta)[1] == pytest.approx(numerical(lambda t: log_prior(t)[0], theta), rel=1e-5, abs=1e-6)


def test_the_kernel_is_that_of_matern():
    r = np.array([0.0, 0.3, 2.0])
    k, _ = matern52(np.zeros((1, 1)), r[:, None])
    s = np.sqrt(5) * r
    assert k[0] == pytest.approx((1 + s + s**2 / 3) * np.exp(-s))


def test_choices_are_equally_far_apart_and_inactive_is_as_far_from_all():
    layout = Layout(levels=(4, 0), conditional=(False, True))
    x = np.array([[0, 0.2], [1 / 3, 0.2], [1, 0.2], [0, np.nan], [0, 0.9], [0, np.nan]])
    e = layout.embed(x)
    squares = np.sum((e[:, None] - e[None]) ** 2, axis=2)
    assert squares[0, 1] == pytest.approx(1) == squares[0, 2] == squares[1, 2]
    assert squares[0, 3] == pytest.approx(1) == squares[4, 3]
    assert squares[3, 5] == 0
    assert squares[0, 4] == pytest.approx(0.7**2, rel=0.05)


def direct(model: Surrogate, x: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The posterior as in the book: k' (K + noise)^-1 y, with explicit inverses."""

    def kernel(a, b):
        scale = np.exp(model.theta[MIXED.owners])
        return np.exp(model.theta[-2]) * matern52(MIXED.embed(a) / scale, MIXED.embed(b) / scale)[0]

    inverse = np.linalg.inv(kernel(x, x) + np.exp(model.theta[-1]) * np.eye(len(x)))
    cross = kernel(at, x)
    return cross @ inverse @ y, kernel(at, at) - cross @ inverse @ cross.T


def test_predictions_are_those_of_the_direct_formula():
    model, x, y = fitted()
    at = points(40, 7)
    mean, covariance = direct(model, x, model.warp.apply(y), at)
    assert model.predict(at)[0] == pytest.approx(mean, abs=1e-7)
    assert model.predict(at)[1] ** 2 == pytest.approx(np.diag(covariance), abs=1e-7)
    assert model.covariance(at) == pytest.approx(covariance, abs=1e-7)


def test_conditioning_by_blocks_is_fitting_all_at_once():
    model, x, y = fitted()
    more, news = points(7, 3), np.linspace(-1, 1, 7)
    at = points(300, 5)  # many enough to be remembered
    model.predict(at)
    grown = model.condition(more[:2], news[:2] - model.predict(more[:2])[0])
    grown = grown.condition(more[2:], news[2:] - grown.predict(more[2:])[0])
    whole = Surrogate.of(
        np.vstack([x, more]), np.concatenate([model.warp.apply(y), news]), model.theta, MIXED, model.warp
    )
    for got in (grown.predict(at), grown.predict(at.copy())):
        assert got[0] == pytest.approx(whole.predict(at)[0], abs=1e-6)
        assert got[1] == pytest.approx(whole.predict(at)[1], abs=1e-6)
    assert model.predict(at)[1].sum() > grown.predict(at)[1].sum(), "the first model is as it was"
    assert len(grown.observed) == len(x)


def test_believing_leaves_the_mean_and_shrinks_the_deviation():
    model, _, _ = fitted()
    at = points(30, 9)
    believed = model.condition(at[:5])
    assert believed.predict(at)[0] == pytest.approx(model.predict(at)[0], abs=1e-9)
    assert np.all(believed.predict(at)[1] <= model.predict(at)[1] + 1e-9)


def test_draws_have_the_mean_and_covariance_of_the_posterior():
    model, _, _ = fitted(8)
    at = points(4, 11)
    draws = model.draw(at, np.random.default_rng(0), 20_000)
    assert draws.mean(axis=0) == pytest.approx(model.predict(at)[0], abs=0.04)
    assert np.cov(draws.T) == pytest.approx(model.covariance(at), abs=0.05)


@pytest.mark.parametrize(
    "y",
    [
        [3.0],
        [2.0, 2.0],
        [1e10] * 5,
        [0.0, 1.0, 1e10, 0.5, 0.2],
        [1e-300, 0.0, 1e-308],
        [5.0, 5.0, 5.0, 7.0],
        [-1e10, 0.0, 1.0],
    ],
)
def test_degenerate_values_give_finite_predictions(y):
    x = np.linspace(0, 1, len(y))[:, None] ** 2
    x[-1] = x[0]  # a duplicate, where there are two
    model = Surrogate.fit(x, np.array(y), np.random.default_rng(0))
    mean, sd = model.in_units(*model.predict(np.linspace(0, 1, 50)[:, None]))
    assert np.all(np.isfinite(mean))
    assert np.all(np.isfinite(sd))
    assert np.all(sd >= 0)


def test_an_outlier_does_not_flatten_the_model():
    x = np.linspace(0, 1, 20)[:, None]
    y = (x[:, 0] - 0.3) ** 2
    y[-1] = 1e10
    model = Surrogate.fit(x, y, np.random.default_rng(0))
    mean, _ = model.in_units(*model.predict(np.array([[0.3], [0.0]])))
    assert mean == pytest.approx([0.0, 0.09], abs=0.02)


def test_no_values_or_infinite_ones_are_refused():
    for y in (np.empty(0), np.array([1.0, np.inf])):
        with pytest.raises(ValueError, match="finite"):
            Surrogate.fit(np.zeros((len(y), 1)), y, np.random.default_rng(0))


def test_many_observations_are_fitted_on_a_part_and_predict_from_all():
    rng = np.random.default_rng(0)
    x = rng.random((N_FOR_THETA + 150, 2))
    y = np.sin(6 * x[:, 0]) + 0.01 * rng.standard_normal(len(x))
    model = Surrogate.fit(x, y, rng, heavy_tail=np.inf)
    assert len(model.observed) == len(x)
    assert model.noise == pytest.approx(0.01, rel=0.5)
    at = rng.random((50, 2))
    assert model.in_units(*model.predict(at))[0] == pytest.approx(np.sin(6 * at[:, 0]), abs=0.05)
    assert model.scales[1] > 3 * model.scales[0], "what does not matter has a long scale"


def test_a_subset_holds_the_best():
    y = np.random.default_rng(0).permutation(100).astype(float)
    kept = subset(y, 20, np.random.default_rng(0))
    assert len(set(kept)) == 20
    assert set(np.flatnonzero(y < 10)) <= set(kept)
    assert list(subset(y, 100, np.random.default_rng(0))) == list(range(100))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6).map(lambda v: round(v, 3)), min_size=1, max_size=30),
    st.sampled_from([0.0, 3.0, np.inf]),
)
def test_a_warp_keeps_the_order_and_can_be_undone(y, heavy_tail):
    y = np.array(y)
    warp = Warp.fit(y, heavy_tail)
    images = warp.apply(y)
    order = np.argsort(y)
    assert np.all(np.isfinite(images))
    assert np.all(np.diff(images[order]) >= -1e-9)
    good = y <= np.median(y)
    assert warp.invert(images)[good] == pytest.approx(y[good], rel=1e-6, abs=1e-3)
