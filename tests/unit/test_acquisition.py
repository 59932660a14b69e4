"""Acquisition functions against quadrature and their limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr

from ems.search import acquisition


def test_log_h_is_exact_from_the_far_tail_to_the_middle():
    z = np.array([-1e6, -1001.0, -999.0, -200.0, -38.0, -10.0, -3.0])
    # h(z) = int t phi(t - z) dt over t > 0; with u = -z t the integrand is u exp(-u) times what hardly varies
    u, weights = np.polynomial.laguerre.laggauss(80)
    integrals = np.sum(weights * u * np.exp(-0.5 * (u / z[:, None]) ** 2), axis=1)
    expected = -0.5 * z**2 - 0.5 * np.log(2 * np.pi) - 2 * np.log(-z) + np.log(integrals)
    assert acquisition.log_h(z) == pytest.approx(expected, rel=1e-9)
    near = np.array([-1.001, -1.0, -0.999, 0.0, 2.0, 40.0])
    plain = np.log(np.exp(-0.5 * near**2) / np.sqrt(2 * np.pi) + near * ndtr(near))
    assert acquisition.log_h(near) == pytest.approx(plain, rel=1e-9)
    assert np.all(np.diff(acquisition.log_h(np.linspace(-50, 5, 5000))) > 0)


def test_log_ei_is_the_expected_improvement_by_quadrature():
    mean, sd, incumbent = np.array([0.4, 1.5, -0.2]), np.array([0.3, 0.2, 1.0]), 0.5
    nodes, weights = np.polynomial.legendre.leggauss(400)
    for m, s, got in zip(mean, sd, acquisition.log_ei(mean, sd, incumbent), strict=True):
        low = m - 12 * s
        y = low + (incumbent - low) * (nodes + 1) / 2
        density = np.exp(-0.5 * ((y - m) / s) ** 2) / (s * np.sqrt(2 * np.pi))
        assert np.exp(got) == pytest.approx(
            np.sum(weights * (incumbent - y) * density) * (incumbent - low) / 2, rel=1e-9
        )


def test_probability_and_bound_prefer_what_they_should():
    assert np.exp(acquisition.log_pi(np.array([0.0]), np.array([1.0]), 0.0, xi=0.0)) == pytest.approx([0.5])
    assert np.isfinite(acquisition.log_pi(np.array([50.0]), np.array([0.1]), 0.0)).all()
    assert acquisition.lower_bound(np.array([1.0]), np.array([0.5]), kappa=2.0) == pytest.approx([0.0])


def test_a_pending_point_repels_within_its_ball_only():
    where = np.random.default_rng(0).random((2000, 2))
    means = 3 * where[:, 0]  # a slope of 3 everywhere
    centres = np.array([[0.6, 0.5]])
    radii = acquisition.ball_radii(centres, np.array([1.8]), np.array([0.0]), 0.9, where, means)
    assert radii == pytest.approx([0.3], rel=0.1)  # (1.8 - 0.9) / 3
    near, edge, far = acquisition.log_penalty(np.array([[0.6, 0.5], [0.4, 0.5], [0.0, 0.0]]), centres, radii)
    assert near < -10 < edge < far <= 0
    assert far == pytest.approx(0.0, abs=0.02)
    assert np.all(acquisition.log_penalty(where, np.empty((0, 2)), np.empty(0)) == 0)
