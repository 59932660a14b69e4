"""Real learning curves: a multilayer perceptron trained epoch by epoch on scikit-learn's own data sets.

Five params (learning rate, weight decay, width, momentum, batch size), held-out cross-entropy after every epoch. A pool
of random configurations is trained to the end once and kept in ``.cache``: random search and what only picks among
random configurations are replayed from it as often as wanted; everybody else trains for itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tuning.cores import CORES

CACHE = Path(__file__).parent / ".cache"
EPOCHS = 81
D = 5
WORST = 10.0  # cross-entropy of what diverged


@dataclass(frozen=True)
class Task:
    """One data set, split once."""

    name: str
    train: tuple[Any, Any] = field(repr=False)
    held_out: tuple[Any, Any] = field(repr=False)

    def curve(self, point: np.ndarray, seed: int) -> Iterator[float]:
        """Yield the held-out cross-entropy after each epoch, for ever.

        Parameters
        ----------
        point
            In the unit cube, shape (5,).
        """
        from sklearn.metrics import log_loss
        from sklearn.neural_network import MLPClassifier

        labels = np.unique(self.train[1])
        model = MLPClassifier(solver="sgd", random_state=seed, **params(point))
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            while True:
                try:
                    model.partial_fit(*self.train, classes=labels)
                    loss = log_loss(self.held_out[1], model.predict_proba(self.held_out[0]), labels=labels)
                except ValueError:  # weights that are no numbers any more
                    loss = WORST
                yield min(float(loss), WORST) if np.isfinite(loss) else WORST


def params(point: np.ndarray) -> dict[str, Any]:
    """Return what a point of the unit cube means to MLPClassifier."""
    rate, decay, width, momentum, batch = point
    return {
        "learning_rate_init": float(10 ** (-5 + 5 * rate)),
        "alpha": float(10 ** (-6 + 6 * decay)),
        "hidden_layer_sizes": (round(8 * 16**width),),
        "momentum": float(0.99 * momentum),
        "batch_size": round(32 * 8**batch),
    }


def task(name: str) -> Task:
    """Return a task by the name of its data set: ``digits``, ``breast_cancer``, ``wine``."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    data, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    data = (data - data.mean(0)) / (data.std(0) + 1e-9)
    train, held_out, known, unknown = train_test_split(data, labels, test_size=0.4, random_state=0, stratify=labels)
    return Task(name, (train, known), (held_out, unknown))


def pool(name: str, n: int = 600) -> np.ndarray:
    """Return the curves of ``n`` random configurations, shape (n, 81); trained where the cache has fewer."""
    CACHE.mkdir(exist_ok=True)
    path = CACHE / f"{name}-{D}x{EPOCHS}.npy"
    known: np.ndarray = np.load(path) if path.exists() else np.empty((0, EPOCHS))
    if len(known) < n:
        with ProcessPoolExecutor(CORES) as workers:
            new = list(workers.map(partial(_train, name), range(len(known), n), chunksize=8))
        known = np.vstack([known, *new])
        np.save(path, known)
    return known[:n]


def pool_point(index: int) -> np.ndarray:
    """Return the point of a configuration of the pool, shape (5,)."""
    return np.random.default_rng([81, index]).random(D)


def _train(name: str, index: int) -> np.ndarray:
    curve = task(name).curve(pool_point(index), seed=index)
    return np.array([next(curve) for _ in range(EPOCHS)])
