"""Where trials go wrong: the probability that one does not crash, diverge, or run out of time or memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from ems.search.gp import Layout, Surrogate
from ems.search.warp import Array

LEAST = 0.01  # probability that is always left: a model of few crashes is no proof


@dataclass(frozen=True, slots=True)
class Feasibility:
    """A least-squares classifier (Rasmussen & Williams 2006, section 6.5): a Gaussian process on labels 1 and 0.

    Its mean estimates the probability itself; crashes that strike anywhere are noise to it, and move no point ahead of
    another.
    """

    model: Surrogate

    @classmethod
    def fit(cls, good: Array, bad: Array, rng: np.random.Generator, layout: Layout) -> Self | None:
        """Return the model of points that went well (n, d) and badly (m, d); None where none went badly or well."""
        if not len(bad) or not len(good):
            return None
        labels = np.repeat([0.0, 1.0], [len(good), len(bad)])  # of what is minimised: failures
        return cls(Surrogate.fit(np.vstack([good, bad]), labels, rng, layout, heavy_tail=np.inf))

    def log_weight(self, x: Array) -> Array:
        """Return the log of the probability that trials at ``x`` (m, d) go well: what acquisition functions add.

        Gelbart, Snoek & Adams 2014, "Bayesian Optimization with Unknown Constraints", equation 6: the improvement
        times the probability that the constraint holds.
        """
        mean, sd = self.model.predict(x)
        return np.log(np.clip(1.0 - self.model.in_units(mean, sd)[0], LEAST, 1.0))
