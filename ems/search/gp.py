"""A Gaussian process over configurations: what the search knows of the objective. numpy and scipy only.

A Matern-5/2 kernel with a length scale for each dimension ("ARD"; Rasmussen & Williams 2006, equation 4.17 and section
5.1) and learnt noise, fitted by maximum a posteriori. Points come as arrays of shape (n, d) in the unit cube, NaN where
a dimension is inactive; :class:`Layout` lays them into a Euclidean space in which distance alone is the kernel's
argument, so that categorical and inactive dimensions cost no code of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cholesky, lapack, solve_triangular
from scipy.optimize import minimize

from ems.search.warp import HEAVY_TAIL, Array, Warp

N_FOR_THETA = 250  # hyper-parameters are fitted on so many points at most: the cost grows with the cube
N_MOST = 3000  # of more observations 2000 are kept: the better half of these by value, the others at random
N_KEPT = 2000
N_REMEMBERED = 256  # from so many points on, predictions are remembered for when a few more are conditioned on
NOISE_LEAST = 1e-6  # of the variance of y; keeps the Cholesky factor regular where points coincide
_LOG_SCALE_BOUNDS = (np.log(0.01), np.log(30.0))
_LOG_SIGNAL_BOUNDS = (np.log(0.01), np.log(30.0))
_LOG_NOISE_BOUNDS = (np.log(NOISE_LEAST), np.log(2.0))


class Posterior(Protocol):
    """What acquisition functions need of a model; one of several fidelities is one, too.

    Values are minimised, and in the model's own units (about standardised); :meth:`in_units` gives them back in those
    of the objective.
    """

    @property
    def observed(self) -> Array:
        """Points at which the objective is known, (n, d); pending ones are not among them."""
        ...

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation, without noise, at points ``x`` (m, d): two arrays (m,)."""
        ...

    def draw(self, x: Array, rng: np.random.Generator, count: int) -> Array:
        """Return ``count`` joint draws at points ``x`` (m, d): an array (count, m)."""
        ...

    def condition(self, x: Array, lift: Array | None = None) -> Self:
        """Return the model as if its own mean had been observed at ``x`` (m, d), or ``lift`` (m,) more.

        Without a lift means stay and deviations shrink.
        """
        ...

    def in_units(self, mean: Array, sd: Array) -> tuple[Array, Array]:
        """Return means and standard deviations in units of the objective."""
        ...


@dataclass(frozen=True, slots=True)
class Layout:
    """How points are laid into a Euclidean space.

    A numeric dimension is one column. A categorical one has a column a choice, one-hot over the square root of two:
    two choices are at distance one, as by the Hamming kernel (Hutter 2009, section 11.3.1). A numeric dimension that
    may be inactive is an arc of radius one, and inactive its centre: at distance one from all that are active, and from
    each other at none (Swersky et al. 2013, "Raiders of the Lost Architecture", section 3).

    Attributes
    ----------
    levels
        For each dimension the number of choices, 0 if it is numeric.
    conditional
        For each dimension whether it may be inactive.
    """

    levels: tuple[int, ...]
    conditional: tuple[bool, ...]

    @classmethod
    def numeric(cls, n_dimensions: int) -> Layout:
        """Return the layout of a cube without categories and conditions."""
        return cls((0,) * n_dimensions, (False,) * n_dimensions)

    @property
    def n_dimensions(self) -> int:
        """Number of dimensions before the embedding, d."""
        return len(self.levels)

    @property
    def owners(self) -> npt.NDArray[np.intp]:
        """For each column of the embedding the dimension that it belongs to."""
        widths = [level or 1 + may_be for level, may_be in zip(self.levels, self.conditional, strict=True)]
        return np.repeat(np.arange(len(widths)), widths)

    def embed(self, x: Array) -> Array:
        """Return points ``x`` (n, d) of the cube, NaN where inactive, as points (n, D) of the Euclidean space."""
        if not any(self.levels) and not any(self.conditional):
            return x
        return np.hstack([self._columns(x[:, j], j) for j in range(self.n_dimensions)])

    def _columns(self, x: Array, j: int) -> Array:
        if self.levels[j]:
            choice = np.rint(x * (self.levels[j] - 1))  # NaN equals none
            return np.asarray((choice[:, None] == np.arange(self.levels[j])) / np.sqrt(2.0))
        if self.conditional[j]:
            return np.asarray(np.nan_to_num(np.stack([np.sin(x), np.cos(x)], axis=1), nan=0.0))
        return x[:, None]


def matern52(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the Matern-5/2 correlation of points (n, D) and (m, D), and its slope ``-d k / d (r^2 / 2)``.

    k = (1 + s + s^2 / 3) exp(-s) with s = sqrt(5) r (Rasmussen & Williams 2006, equation 4.17); the slope is
    5/3 (1 + s) exp(-s), which all gradients are made of.
    """
    squares = np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1) - 2.0 * (a @ b.T)
    s = np.sqrt(5.0 * np.maximum(squares, 0.0))
    decay = np.exp(-s)
    slope = (5.0 / 3.0) * (1.0 + s) * decay
    return (1.0 + s + s * s / 3.0) * decay, slope


def log_posterior(theta: Array, features: Array, owners: npt.NDArray[np.intp], y: Array) -> tuple[float, Array]:
    """Return the log of the hyper-parameters' posterior density, up to a constant, and its gradient.

    Log marginal likelihood and its gradient by Rasmussen & Williams 2006, equations 5.8 and 5.9. The sums over pairs
    of weighted squared differences are made of matrix products: sum_ab w_ab (x_a - x_b)^2 = 2 w_a. x_a^2 - 2 x'Wx.

    Parameters
    ----------
    theta
        Logarithms of the d length scales, of the signal's variance and of the noise's, (d + 2,).
    features
        Embedded points, (n, D).
    owners
        Dimension of each column, (D,).
    y
        Standardised values, (n,).

    Raises
    ------
    LinAlgError
        If the covariance is not positive definite.
    """
    d, n = len(theta) - 2, len(y)
    signal, noise = np.exp(theta[d]), np.exp(theta[d + 1])
    scaled = features / np.exp(theta[owners])
    correlation, slope = matern52(scaled, scaled)
    covariance = signal * correlation
    covariance[np.diag_indices(n)] += noise
    factor = cholesky(covariance, lower=True, check_finite=False)
    inverse, _ = lapack.dpotri(factor, lower=True)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    alpha = inverse @ y
    value = -0.5 * y @ alpha - np.sum(np.log(np.diag(factor)))
    weights = np.outer(alpha, alpha) - inverse
    pull = weights * slope
    per_column = np.sum(scaled**2 * pull.sum(axis=1)[:, None], axis=0) - np.sum(scaled * (pull @ scaled), axis=0)
    gradient = np.empty_like(theta)
    gradient[:d] = signal * np.bincount(owners, weights=per_column, minlength=d)
    gradient[d] = 0.5 * signal * np.sum(weights * correlation)
    gradient[d + 1] = 0.5 * noise * np.trace(weights)
    prior, slope_of_prior = log_prior(theta)
    return float(value + prior), gradient + slope_of_prior


def log_prior(theta: Array) -> tuple[float, Array]:
    """Return the log prior density of hyper-parameters ``theta``, up to a constant, and its gradient.

    That of Optuna's GPSampler (optuna 4, ``_gp/prior.py``): -(a + 1/a)/10 for the inverse squared length scale a,
    Gamma(2, 1) for the signal's variance, Gamma(1.1, 30) for the noise's.
    """
    d = len(theta) - 2
    squared = np.exp(2.0 * theta[:d])
    signal, noise = np.exp(theta[d]), np.exp(theta[d + 1])
    value = -0.1 * np.sum(squared + 1.0 / squared) + theta[d] - signal + 0.1 * theta[d + 1] - 30.0 * noise
    gradient = np.empty_like(theta)
    gradient[:d] = -0.2 * (squared - 1.0 / squared)
    gradient[d] = 1.0 - signal
    gradient[d + 1] = 0.1 - 30.0 * noise
    return float(value), gradient


def fit_theta(features: Array, owners: npt.NDArray[np.intp], y: Array, n_dimensions: int) -> Array:
    """Return the hyper-parameters of greatest posterior density, (d + 2,), by L-BFGS-B from two starts."""
    d = n_dimensions
    bounds = [_LOG_SCALE_BOUNDS] * d + [_LOG_SIGNAL_BOUNDS, _LOG_NOISE_BOUNDS]

    def loss(theta: Array) -> tuple[float, Array]:
        try:
            value, gradient = log_posterior(theta, features, owners, y)
        except LinAlgError:
            return 1e10, np.zeros_like(theta)
        return -value, -gradient

    starts = [np.array([np.log(scale)] * d + [0.0, np.log(noise)]) for scale, noise in ((1.0, 1e-3), (0.3, 1e-2))]
    found = [
        minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60}) for start in starts
    ]
    best: Array = min(found, key=lambda each: float(each.fun)).x
    return best


def subset(y: Array, most: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Return indices of at most ``most`` values: the better half of those by value, the others at random, in order."""
    if len(y) <= most:
        return np.arange(len(y))
    order = np.argsort(y, kind="stable")
    others = rng.choice(order[most // 2 :], most - most // 2, replace=False)
    return np.sort(np.concatenate([order[: most // 2], others]))


class Surrogate:
    """A fitted Gaussian process: a :class:`Posterior`.

    Immutable to its callers. Internally in whitened form: with L the Cholesky factor of the covariance and z = L^-1 y,
    the mean at x is v'z and its variance k(x, x) - v'v, where v = L^-1 k(X, x). A point that is conditioned on adds a
    row to L; where it is believed (y = mean) its entry of z is 0.
    """

    def __init__(self, layout: Layout, theta: Array, x: Array, warp: Warp, z: Array, factor: Array, n_observed: int):
        self.layout, self.theta, self.warp = layout, theta, warp
        self._x, self._z, self._factor, self._n_observed = x, z, factor, n_observed
        self._scaled = self._scale(x)
        self._remembered: tuple[Array, Array] | None = None

    @classmethod
    def fit(
        cls,
        x: Array,
        y: Array,
        rng: np.random.Generator,
        layout: Layout | None = None,
        theta: Array | None = None,
        heavy_tail: float = HEAVY_TAIL,
    ) -> Surrogate:
        """Fit the model to values ``y`` (n,) at points ``x`` (n, d).

        Parameters
        ----------
        x
            In the unit cube; NaN where a dimension is inactive.
        y
            Finite, minimised, in any units: extreme bad values are pulled in (:mod:`ems.search.warp`).
        rng
            Chooses the subset on which hyper-parameters are fitted, where there are more than 250 points.
        layout
            Of the dimensions; all numeric by default.
        theta
            Hyper-parameters, where they are known: none are fitted then.
        heavy_tail
            See :meth:`Warp.fit`.

        Raises
        ------
        ValueError
            If there is no point, or a value is not finite.
        """
        if not len(y) or not np.all(np.isfinite(y)):
            raise ValueError(f"a model needs at least one value, all finite: got {len(y)}")
        layout = layout or Layout.numeric(x.shape[1])
        kept = subset(y, N_MOST if len(y) <= N_MOST else N_KEPT, rng)
        x, y = x[kept], y[kept]
        warp = Warp.fit(y, heavy_tail)
        values = warp.apply(y)
        if theta is None:
            few = subset(values, N_FOR_THETA, rng)
            theta = fit_theta(layout.embed(x[few]), layout.owners, values[few], layout.n_dimensions)
        return cls.of(x, values, theta, layout, warp)

    @classmethod
    def of(cls, x: Array, values: Array, theta: Array, layout: Layout, warp: Warp) -> Surrogate:
        """Return the model of warped ``values`` (n,) at ``x`` (n, d) for given hyper-parameters."""
        scaled = layout.embed(x) / np.exp(theta[layout.owners])
        correlation, _ = matern52(scaled, scaled)
        factor = _robust_cholesky(np.exp(theta[-2]) * correlation, float(np.exp(theta[-1])))
        z = solve_triangular(factor, values, lower=True, check_finite=False)
        return cls(layout, theta, x, warp, z, factor, len(x))

    @property
    def observed(self) -> Array:
        """Points at which the objective is known, (n, d)."""
        return self._x[: self._n_observed]

    @property
    def scales(self) -> Array:
        """Length scales, one a dimension, in units of the cube's sides."""
        return np.exp(self.theta[:-2])

    @property
    def noise(self) -> float:
        """Standard deviation of an evaluation around the mean, in units of the objective, near the best values."""
        return float(np.exp(0.5 * self.theta[-1]) * self.warp.scale)

    @property
    def evidence(self) -> float:
        """Log density of the observed values, in units of the objective, for the hyper-parameters that were fitted.

        Rasmussen & Williams 2006, eq. 2.30, with the slopes of the warp (Snelson et al. 2004, "Warped Gaussian
        Processes"), so that models of values that were bent and of those that were not can be compared.
        """
        n = self._n_observed
        z, factor = self._z[:n], self._factor[:n, :n]
        images = -0.5 * float(z @ z) - float(np.sum(np.log(np.diagonal(factor)))) - 0.5 * n * math.log(2.0 * math.pi)
        return images + self.warp.log_slope(self.warp.invert(np.tril(factor) @ z))

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation at ``x`` (m, d); see :class:`Posterior`.

        For the same array object (never written to in between) as in a call before this model was conditioned on more
        points, only what those change is computed.
        """
        v = self._whiten(x)
        variance = np.exp(self.theta[-2]) - np.einsum("ij,ij->j", v, v)
        return self._z @ v, np.sqrt(np.maximum(variance, 1e-12))

    def covariance(self, x: Array) -> Array:
        """Return the joint posterior covariance at ``x`` (m, d), without noise: (m, m)."""
        v = self._whiten(x)
        scaled = self._scale(x)
        prior: Array = np.exp(self.theta[-2]) * matern52(scaled, scaled)[0]
        return prior - v.T @ v

    def draw(self, x: Array, rng: np.random.Generator, count: int) -> Array:
        """Return ``count`` joint draws at ``x``; one Cholesky factor serves all of them."""
        factor = _robust_cholesky(self.covariance(x), 1e-8)
        mean: Array = self._z @ self._whiten(x)
        return mean + rng.standard_normal((count, len(x))) @ factor.T

    def condition(self, x: Array, lift: Array | None = None) -> Surrogate:
        """Return the model that has seen its own mean at ``x`` (m, d) too, or ``lift`` (m,) more, in its own units.

        Kriging believer (Ginsbourger et al. 2010, section 4.2). The Cholesky factor grows by a block of rows.
        """
        v = self._whiten(x)
        scaled = self._scale(x)
        prior = np.exp(self.theta[-2]) * matern52(scaled, scaled)[0]
        corner = _robust_cholesky(prior - v.T @ v, float(np.exp(self.theta[-1])))
        n, m = len(self._z), len(x)
        factor = np.zeros((n + m, n + m), order="F")
        factor[:n, :n], factor[n:, :n], factor[n:, n:] = self._factor, v.T, corner
        fresh = np.zeros(m) if lift is None else solve_triangular(corner, lift, lower=True, check_finite=False)
        z = np.concatenate([self._z, fresh])
        grown = Surrogate(self.layout, self.theta, np.vstack([self._x, x]), self.warp, z, factor, self._n_observed)
        grown._remembered = self._remembered
        return grown

    def in_units(self, mean: Array, sd: Array) -> tuple[Array, Array]:
        """Return means and standard deviations in units of the objective."""
        return self.warp.invert(mean), (self.warp.invert(mean + sd) - self.warp.invert(mean - sd)) / 2.0

    def _scale(self, x: Array) -> Array:
        scaled: Array = self.layout.embed(x) / np.exp(self.theta[self.layout.owners])
        return scaled

    def _whiten(self, x: Array) -> Array:
        """Return L^-1 k(X, x), (n, m): the rows that were remembered, and those of points conditioned on since."""
        rows = np.empty((0, len(x)))
        if self._remembered is not None and self._remembered[0] is x:
            rows = self._remembered[1]
        known, n = len(rows), len(self._z)
        if known < n:
            block = np.exp(self.theta[-2]) * matern52(self._scaled[known:], self._scale(x))[0]
            block -= self._factor[known:, :known] @ rows
            corner = self._factor[known:, known:]
            fresh = solve_triangular(corner, block, lower=True, check_finite=False, overwrite_b=True)
            rows = np.vstack([rows, fresh]) if known else fresh
        if len(x) >= N_REMEMBERED:
            self._remembered = (x, rows)
        return rows


def _robust_cholesky(matrix: Array, diagonal: float) -> Array:
    """Return the lower Cholesky factor of ``matrix`` plus ``diagonal``, or more where rounding needs it."""
    for _ in range(12):
        regular = matrix.copy(order="F")
        regular[np.diag_indices(len(matrix))] += diagonal
        try:
            factor: Array = cholesky(regular, lower=True, check_finite=False, overwrite_a=True)
        except LinAlgError:
            diagonal = max(10.0 * diagonal, 1e-10)
            continue
        return factor
    raise LinAlgError("covariance is not positive definite")
