"""Which model a person is shown: of values as they are, or bent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from ems.search.gp import Layout, Surrogate, matern52
from ems.search.warp import Warp

CROWDED = np.array([0.41, 0.75, 0.56, 0.15, 0.322, 0.324, 0.327, 0.303, 0.334, 0.333, 0.274, 0.275, 1.0, 0.276])[
    :, None
]


def test_the_evidence_is_the_density_of_the_values() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((9, 2))
    y = 5.0 + 3.0 * np.sum(x, axis=1)
    model = Surrogate.fit(x, y, rng, heavy_tail=math.inf)
    features = Layout.numeric(2).embed(x) / model.scales
    covariance = np.exp(model.theta[-2]) * matern52(features, features)[0] + np.exp(model.theta[-1]) * np.eye(9)
    expected = multivariate_normal(np.full(9, np.mean(y)), np.std(y) ** 2 * covariance).logpdf(y)
    assert model.evidence == pytest.approx(expected)


def test_bent_values_have_the_density_that_their_slopes_give() -> None:
    y = np.sort(np.random.default_rng(1).lognormal(size=40))
    warp = Warp.fit(y)
    steps = np.log(np.diff(warp.apply(y)) / np.diff(y))
    inner = (steps[:-1] + steps[1:]) / 2
    assert warp.log_slope(y[1:-1]) == pytest.approx(float(np.sum(inner)))


@pytest.mark.parametrize(("spoiled", "is_bent"), [(None, False), (1e6, True)])
def test_a_smooth_bowl_is_shown_as_it_is_and_an_outlier_pulled_in(spoiled: float | None, is_bent: bool) -> None:
    rng = np.random.default_rng(0)
    y = ((CROWDED - 0.3) ** 2)[:, 0]
    if spoiled is not None:
        y[1] = spoiled
    plain, bent = (Surrogate.fit(CROWDED, y, rng, heavy_tail=tail) for tail in (math.inf, 0.0))
    assert (bent.evidence > plain.evidence) is is_bent
