"""Where trials go wrong: the probability that one does not crash, diverge, or run out of time or memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import log_ndtr

from ems.search.gp import Layout, Surrogate
from ems.search.warp import Array

LEAST_SD = 0.05  # of the share of failures: no model is surer than that
FUTILE = 1e-3  # at less than that probability points come last: improvements get small without bound, too
_LAST = 1e4


@dataclass(frozen=True, slots=True)
class Feasibility:
    """A least-squares classifier (Rasmussen & Williams 2006, section 6.5): a Gaussian process on labels 1 and 0.

    It estimates the share of trials that fail at a point. Crashes that strike anywhere are noise to it, and move no
    point ahead of another.
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
        """Return the log of the probability that most trials at ``x`` (m, d) go well: what acquisition functions add.

        Gelbart, Snoek & Adams 2014, "Bayesian Optimization with Unknown Constraints", section 3: the improvement times
        the probability that the constraint holds, here that the share of failures is below one half. The share itself
        would not do: an improvement that a model extrapolates outweighs any odds.
        """
        share, sd = self.model.in_units(*self.model.predict(x))
        weight: Array = log_ndtr((0.5 - share) / np.maximum(sd, LEAST_SD))
        return np.where(weight < np.log(FUTILE), weight - _LAST, weight)
