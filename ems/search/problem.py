"""What is searched for, and how: everything that decisions depend on but the trials themselves. Plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ems.search.space import SearchSpace

SAMPLERS = ("gp", "skopt", "ts", "lp", "ucb", "ei", "pi", "lcb", "tpe", "random", "grid", "sobol")
SCHEDULERS = ("asha", "hyperband", "bohb", "stop", "none")
MODES = ("async", "sync")


@dataclass(frozen=True, slots=True)
class Fidelity:
    """A param that says how long a run trains, e.g. ``epochs=1..81`` with ``eta`` 3.

    Attributes
    ----------
    low, high
        Smallest and largest value, both whole numbers where the param counts something.
    eta
        Of so many trials of a rung one goes on to the next.
    """

    name: str
    low: float
    high: float
    eta: float = 3.0

    @property
    def rungs(self) -> tuple[float, ...]:
        """Budgets of the rungs, ascending; the last is ``high``: those of 1..81 by 3 are 1, 3, 9, 27, 81."""
        count = int(math.log(self.high / self.low) / math.log(self.eta) + 1e-9) + 1
        raw = [self.high / self.eta**step for step in reversed(range(count))]
        return tuple(
            float(round(each)) if float(self.low).is_integer() and float(self.high).is_integer() else each
            for each in raw
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """A search.

    Attributes
    ----------
    parallel
        How many trials run at a time when all workers are busy (per study, not per group).
    trials
        At most so many trials (evaluations: replicates count); None: the budget alone ends it.
    epochs
        At most so much of the fidelity in all, as `ems.search.rungs.charge` counts it; None: no such budget.
    seeds
        How often each configuration is evaluated, with paired seeds.
    confirm
        Share of the trials that is spent at the end on replicates of the best.
    groups
        Values of the grouping column; a search each, one budget. Empty: one search.
    seed
        Of the search; with a trial's number it makes a suggestion reproducible.
    """

    space: SearchSpace
    sampler: str = "gp"
    scheduler: str = "none"
    mode: str = "async"
    fidelity: Fidelity | None = None
    parallel: int = 1
    trials: int | None = None
    epochs: float | None = None
    seeds: int = 1
    confirm: float = 0.0
    groups: tuple[str, ...] = ()
    seed: int = 0

    @property
    def n_rungs(self) -> int:
        """Number of rungs; 1 without a fidelity."""
        return len(self.fidelity.rungs) if self.fidelity else 1
