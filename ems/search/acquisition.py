"""Acquisition functions: what a point is worth, given mean and deviation there. Greater is better; y is minimised."""

from __future__ import annotations

import numpy as np
from scipy.special import erfcx, log1p, log_ndtr, ndtr

from ems.search.warp import Array

XI_EI = 0.01  # of a standard deviation of y: by how much `ei` asks to improve (skopt's default)
XI_PI = 0.1  # more for `pi`, which else takes the smallest step that is sure (Jones 2001, section 5)
KAPPA_LCB = 1.96  # skopt's default
KAPPA_UCB = 1.8  # Vizier's (Song et al. 2024)

_LOG_SQRT_2PI = 0.5 * np.log(2.0 * np.pi)
_LOG_SQRT_HALF_PI = 0.5 * np.log(0.5 * np.pi)


def log_h(z: Array) -> Array:
    """Return log(phi(z) + z Phi(z)), exact to rounding for any z.

    Ament et al. 2023, "Unexpected Improvements to Expected Improvement for Bayesian Optimization", equation 9: the
    plain formula underflows below z = -38 and cancels long before.
    """
    z = np.asarray(z, dtype=float)
    high = np.maximum(z, -1.0)
    plain = np.log(np.exp(-0.5 * high**2 - _LOG_SQRT_2PI) + high * ndtr(high))
    low = np.minimum(z, -1.0)
    # erfcx(-z / sqrt 2) |z| sqrt(pi / 2) tends to one: its complement is what is left of phi by z Phi
    complement = -np.expm1(np.log(erfcx(-low / np.sqrt(2.0)) * -low) + _LOG_SQRT_HALF_PI)
    exact = np.log(np.maximum(complement, 1e-300))
    asymptotic = -2.0 * np.log(-low) + log1p(-3.0 / np.maximum(low**2, 4.0))
    tail = np.where(low > -1e3, exact, asymptotic)
    result: Array = np.where(z > -1.0, plain, -0.5 * low**2 - _LOG_SQRT_2PI + tail)
    return result


def log_ei(mean: Array, sd: Array, incumbent: float, xi: float = 0.0) -> Array:
    """Return the log of the expected improvement by at least ``xi`` over ``incumbent``.

    EI = sd h(z) with z = (incumbent - xi - mean) / sd (Jones, Schonlau & Welch 1998, equation 15), by :func:`log_h`.
    """
    return np.log(sd) + log_h((incumbent - xi - mean) / sd)


def log_pi(mean: Array, sd: Array, incumbent: float, xi: float = XI_PI) -> Array:
    """Return the log of the probability of an improvement by at least ``xi`` (Kushner 1964)."""
    result: Array = log_ndtr((incumbent - xi - mean) / sd)
    return result


def lower_bound(mean: Array, sd: Array, kappa: float = KAPPA_LCB) -> Array:
    """Return the lower confidence bound kappa deviations below the mean, turned so that greater is better.

    Srinivas et al. 2010, "Gaussian Process Optimization in the Bandit Setting", algorithm 1.
    """
    return kappa * sd - mean


def ball_radii(centres: Array, mean: Array, sd: Array, least: float, where: Array, means: Array) -> Array:
    """Return the radii (k,) of the balls around pending points in which the optimum is not to be expected.

    Alvi et al. 2019, "Asynchronous Batch Bayesian Optimisation with Improved Local Penalisation" (PLAyBOOK), sections 4
    and 4.1: expected radius (mean - least) / L plus sd / L, with a local Lipschitz constant L for each point. L is here
    the steepest slope of the model's means from the point to the nearest fiftieth of candidates: no further
    predictions are needed.

    Parameters
    ----------
    centres, mean, sd
        Pending points, embedded, (k, D), and what the model predicts there, (k,).
    least
        Best value so far.
    where, means
        Candidates, embedded, (m, D), and the model's means there, (m,).
    """
    if not len(centres):
        return np.empty(0)
    distances = _distances(centres, where)
    near = min(max(2, len(where) // 50), len(where) - 1)
    closest = np.argpartition(distances, near, axis=1)[:, :near]
    rises = np.abs(means[closest] - mean[:, None]) / np.maximum(np.take_along_axis(distances, closest, axis=1), 1e-6)
    radii: Array = (np.abs(mean - least) + sd) / np.maximum(np.max(rises, axis=1, initial=0.0), 1e-3)
    return radii


def log_penalty(x: Array, centres: Array, radii: Array) -> Array:
    """Return the log of what remains of the acquisition at ``x`` (m, D) beside pending points: 0 far from them.

    The product over the balls of min(distance / radius, 1), made smooth by a p-norm with p = -5 (Alvi et al. 2019,
    section 4.1).
    """
    if not len(centres):
        return np.zeros(len(x))
    ratios = np.maximum(_distances(x, centres), 1e-6) / np.maximum(radii, 1e-9)
    penalty: Array = -0.2 * np.sum(np.log1p(ratios**-5.0), axis=1)
    return penalty


def _distances(a: Array, b: Array) -> Array:
    squares = np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1) - 2.0 * (a @ b.T)
    distances: Array = np.sqrt(np.maximum(squares, 0.0))
    return distances
