"""Analytic problems to search on, with known optima; noise, crashes and mixed spaces on top of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ems.model import Params
from ems.search.space import Categorical, Int, Real, SearchSpace

Objective = Callable[[Params], float]


@dataclass(frozen=True)
class Task:
    """A function to minimise.

    Attributes
    ----------
    value
        Of params, without noise.
    optimum
        Its least value.
    noise
        Standard deviation of the normal noise that an evaluation adds.
    crashes
        Whether an evaluation of params crashes.
    """

    name: str
    space: SearchSpace
    value: Objective
    optimum: float
    noise: float = 0.0
    crashes: Callable[[Params], bool] = lambda _: False

    def regret(self, params: Params) -> float:
        """Return by how much params are worse than the best, without noise."""
        return self.value(params) - self.optimum

    def noisy(self, noise: float) -> Task:
        """Return the same task with noise."""
        return replace(self, name=f"{self.name}+noise", noise=noise)


def cube(low: float, high: float, d: int) -> SearchSpace:
    """Return the space of params x0 to x(d-1)."""
    return SearchSpace(tuple(Real(f"x{i}", low, high) for i in range(d)))


def vector(params: Params) -> np.ndarray:
    """Return the values x0, x1…"""
    return np.array([params[f"x{i}"] for i in range(len(params))], dtype=float)


def hartmann(d: int) -> Task:
    """Hartmann's function of 3 or 6 dimensions (Surjanovic & Bingham, Virtual Library of Simulation Experiments)."""
    weights = np.array([1.0, 1.2, 3.0, 3.2])
    if d == 3:
        a = np.array([[3, 10, 30], [0.1, 10, 35], [3, 10, 30], [0.1, 10, 35]])
        p = 1e-4 * np.array([[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]])
        optimum = -3.86278
    else:
        a = np.array(
            [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
        )
        p = 1e-4 * np.array(
            [
                [1312, 1696, 5569, 124, 8283, 5886],
                [2329, 4135, 8307, 3736, 1004, 9991],
                [2348, 1451, 3522, 2883, 3047, 6650],
                [4047, 8828, 8732, 5743, 1091, 381],
            ]
        )
        optimum = -3.32237

    def value(params: Params) -> float:
        return -float(weights @ np.exp(-np.sum(a * (vector(params) - p) ** 2, axis=1)))

    return Task(f"hartmann{d}", cube(0, 1, d), value, optimum)


def branin() -> Task:
    def value(params: Params) -> float:
        x, y = vector(params)
        x, y = 15 * x - 5, 15 * y
        return float(
            (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
            + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x)
            + 10
        )

    return Task("branin", cube(0, 1, 2), value, 0.397887)


def ackley(d: int, shift: float = 0.13, frequency: float = 1.0) -> Task:
    """Ackley's function on -10..10 with its optimum off the centre and wide ripples.

    The usual ``frequency`` is 2 pi: twenty ripples a side, which are noise to any model of a few hundred points.
    """

    def value(params: Params) -> float:
        z = 20 * (vector(params) - 0.5 - shift * np.cos(np.arange(d)))
        return float(-20 * np.exp(-0.2 * np.sqrt(np.mean(z**2))) - np.exp(np.mean(np.cos(frequency * z))) + 20 + math.e)

    return Task(f"ackley{d}", cube(0, 1, d), value, 0.0)


def levy(d: int) -> Task:
    def value(params: Params) -> float:
        w = 1 + (20 * vector(params) - 10 - 1) / 4
        middle = np.sum((w[:-1] - 1) ** 2 * (1 + 10 * np.sin(math.pi * w[:-1] + 1) ** 2))
        return float(np.sin(math.pi * w[0]) ** 2 + middle + (w[-1] - 1) ** 2 * (1 + np.sin(2 * math.pi * w[-1]) ** 2))

    return Task(f"levy{d}", cube(0, 1, d), value, 0.0)


def rosenbrock(d: int) -> Task:
    def value(params: Params) -> float:
        x = 4 * vector(params) - 2
        return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))

    return Task(f"rosenbrock{d}", cube(0, 1, d), value, 0.0)


def sphere_log(d: int) -> Task:
    """A bowl in the logarithm, with log-scaled params from 1e-5 to 1 and unequal weights."""

    def value(params: Params) -> float:
        z = np.log10(vector(params)) + 2.7 + 0.4 * np.arange(d) / d
        return float(np.sum(z**2 / (1.0 + np.arange(d))))

    space = SearchSpace(tuple(Real(f"x{i}", 1e-5, 1.0, "log") for i in range(d)))
    return Task(f"log-sphere{d}", space, value, 0.0)


def styblinski(d: int) -> Task:
    def value(params: Params) -> float:
        x = 10 * vector(params) - 5
        return float(np.sum(x**4 - 16 * x**2 + 5 * x) / 2 + 39.16616570377142 * d) / d

    return Task(f"styblinski{d}", cube(0, 1, d), value, 0.0)


def mixed() -> Task:
    """A conditional space like a training's: an optimiser, momentum for one of them only, a whole number, a log."""
    space = SearchSpace(
        (
            Categorical("opt", ("adam", "sgd", "rmsprop")),
            Real("lr", 1e-5, 1.0, "log"),
            Real("momentum", 0.0, 0.99, when="opt == sgd"),
            Int("layers", 1, 6),
            Int("units", 16, 512, "log"),
        )
    )
    best_lr = {"adam": -3.0, "sgd": -1.2, "rmsprop": -3.6}
    worse = {"adam": 0.08, "sgd": 0.0, "rmsprop": 0.15}

    def value(params: Params) -> float:
        opt = str(params["opt"])
        loss = worse[opt] + 0.1 * (math.log10(float(params["lr"])) - best_lr[opt]) ** 2  # type: ignore[arg-type]
        loss += 0.5 * (float(params.get("momentum", 0.9)) - 0.9) ** 2 if opt == "sgd" else 0.02  # type: ignore[arg-type]
        loss += 0.02 * (int(params["layers"]) - 3) ** 2 + 0.05 * (math.log2(float(params["units"])) - 7) ** 2  # type: ignore[arg-type, call-overload]
        return loss

    return Task("mixed", space, value, 0.0)


def crashing(task: Task, share: float, seed: int) -> Task:
    """Return the task with so large a share of its cube crashing: beyond a plane that leaves the best point whole.

    The plane's direction is drawn; it lies where the best point is well within what is left (a distance of 0.1).
    """
    rng = np.random.default_rng(seed)
    points = rng.random((4096, len(task.space.names)))
    values = [task.value(p) for p in task.space.decode_rows(points)]
    best = points[int(np.argmin(values))]
    for _ in range(1000):
        normal = rng.standard_normal(points.shape[1])
        normal /= np.linalg.norm(normal)
        edge = float(np.quantile(points @ normal, 1 - share))
        if best @ normal < edge - 0.1:
            break
    return replace(
        task,
        name=f"{task.name}+crashes",
        crashes=lambda params: bool(task.space.encode(params) @ normal > edge),
    )


DEVELOPED: tuple[Callable[[], Task], ...] = (
    branin,
    lambda: levy(8),
    lambda: styblinski(5),
    lambda: ackley(6).noisy(0.1),
    mixed,
)
"""On these the defaults were chosen."""

HELD_OUT: tuple[Callable[[], Task], ...] = (
    lambda: hartmann(6),
    lambda: hartmann(3),
    lambda: rosenbrock(5),
    lambda: ackley(10).noisy(0.1),
    lambda: sphere_log(5).noisy(0.1),
)
"""On these they are judged."""
