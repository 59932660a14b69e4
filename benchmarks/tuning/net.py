"""A multilayer perceptron in numpy with eight hyper-parameters, trained epoch by epoch.

Two hidden layers of rectifiers, dropout after each, stochastic gradient descent with momentum and weight decay on
cross-entropy. Its rate falls by a power of the epochs so far, so that an epoch is the same whatever comes after it. A
fifth of the time of scikit-learn's: thousands of random configurations can be trained to the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

D = 8
Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Settings:
    """Hyper-parameters, in the order of a point of the cube."""

    rate: float
    momentum: float
    batch: int
    width: int
    decay: float
    dropout: float
    fading: float
    gain: float

    @classmethod
    def at(cls, point: np.ndarray) -> Settings:
        """Return what a point of the unit cube, shape (8,), means."""
        rate, momentum, batch, width, decay, dropout, fading, gain = map(float, point)
        return cls(
            rate=10 ** (-4 + 4 * rate),
            momentum=0.99 * momentum,
            batch=round(32 * 8**batch),
            width=round(8 * 16**width),
            decay=10 ** (-6 + 5 * decay),
            dropout=0.6 * dropout,
            fading=1.2 * fading,
            gain=10 ** (-1 + 1.5 * gain),
        )


class Net:
    """The perceptron while it is trained."""

    def __init__(self, settings: Settings, sizes: tuple[int, int], seed: int) -> None:
        self._settings, self._rng = settings, np.random.default_rng(seed)
        widths = (sizes[0], settings.width, settings.width, sizes[1])
        self._weights = [self._drawn(a, b) for a, b in itertools.pairwise(widths)]
        self._speeds = [np.zeros_like(each) for each in self._weights]

    def _drawn(self, before: int, after: int) -> Floats:
        """Return weights by He et al. 2015, times the gain; the last row is the bias."""
        spread = self._settings.gain * (2 / before) ** 0.5
        weights = spread * self._rng.standard_normal((before + 1, after))
        weights[-1] = 0.0
        return weights.astype(np.float32)

    def epoch(self, x: Floats, one_hot: Floats, number: int) -> None:
        """Train on all rows once, in a random order, as the epoch of this number (from 0)."""
        s = self._settings
        rate = np.float32(s.rate * (1 + number) ** -s.fading)
        order = self._rng.permutation(len(x))
        for first in range(0, len(x), s.batch):
            rows = order[first : first + s.batch]
            gradients = self._gradients(x[rows], one_hot[rows])
            for index, (weights, gradient) in enumerate(zip(self._weights, gradients, strict=True)):
                gradient[:-1] += np.float32(s.decay) * weights[:-1]
                self._speeds[index] = np.float32(s.momentum) * self._speeds[index] - rate * gradient
                self._weights[index] = weights + self._speeds[index]

    def _gradients(self, x: Floats, one_hot: Floats) -> list[Floats]:
        keep = np.float32(1 - self._settings.dropout)
        layers, value = [x], x
        for weights in self._weights[:-1]:
            value = np.maximum(value @ weights[:-1] + weights[-1], 0)
            if keep < 1:
                value *= (self._rng.random(value.shape, dtype=np.float32) < keep) / keep
            layers.append(value)
        error = (_softmax(value @ self._weights[-1][:-1] + self._weights[-1][-1]) - one_hot) / np.float32(len(x))
        found: list[Floats] = []
        for weights, below in zip(reversed(self._weights), reversed(layers), strict=True):
            found.append(np.vstack([below.T @ error, error.sum(axis=0)]))
            if below is not x:
                error = (error @ weights[:-1].T) * (below > 0) / keep
        return found[::-1]

    def loss(self, x: Floats, labels: np.ndarray) -> float:
        """Return the mean cross-entropy of labels (n,) at rows (n, p)."""
        for weights in self._weights[:-1]:
            x = np.maximum(x @ weights[:-1] + weights[-1], 0)
        found = _softmax(x @ self._weights[-1][:-1] + self._weights[-1][-1])
        return float(-np.mean(np.log(np.maximum(found[np.arange(len(labels)), labels], 1e-7))))


def _softmax(scores: Floats) -> Floats:
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    found: Floats = raised / raised.sum(axis=1, keepdims=True)
    return found


def curve(
    point: np.ndarray, seed: int, train: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray]
) -> Iterator[float]:
    """Yield the held-out cross-entropy after each epoch, for ever; NaN once the weights are no numbers.

    Parameters
    ----------
    point
        In the unit cube, shape (8,).
    train, held_out
        Standardised rows (n, p) and their labels 0 to k-1, (n,).
    """
    x, labels = train[0].astype(np.float32), train[1]
    one_hot = np.eye(labels.max() + 1, dtype=np.float32)[labels]
    rows = held_out[0].astype(np.float32)
    net = Net(Settings.at(point), (x.shape[1], one_hot.shape[1]), seed)
    number = 0
    with np.errstate(all="ignore"):
        while True:
            net.epoch(x, one_hot, number)
            number += 1
            yield net.loss(rows, held_out[1])
