"""The confirmation: what is left at the end goes on paired replicates of the best, so that the winner is no luck."""

from __future__ import annotations

from collections.abc import Sequence

from ems.search.problem import Problem
from ems.search.trial import Start, Trial


def reserved(problem: Problem) -> int:
    """How many of the trials are kept for the confirmation: its share, at least two where there is one."""
    if problem.trials is None or problem.confirm <= 0:
        return 0
    return min(max(2, round(problem.confirm * problem.trials)), problem.trials - 1)


def confirmations(problem: Problem, trials: Sequence[Trial], n_left: float) -> tuple[list[Start], str]:
    """Return the replicates to begin now, and what there is to say once there are none."""
    del problem, trials, n_left
    return [], ""
