"""New configurations where there are rungs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ems.search.problem import Problem
from ems.search.trial import Origin, Proposal, Trial


def propose(
    problem: Problem, trials: Sequence[Trial], numbers: Sequence[int], group: str | None, rung: int
) -> list[Proposal]:
    """Propose a new configuration for each of the numbers; fewer where the space has no more."""
    del rung
    space = problem.space
    seen = {space.key(each.params) for each in trials if each.group == group}
    found: list[Proposal] = []
    for number in numbers:
        rng = np.random.default_rng([problem.seed, number])
        fresh = next((each for each in space.draw(rng, 16) if space.key(each) not in seen), None)
        if fresh is not None:
            seen.add(space.key(fresh))
            found.append(Proposal(fresh, Origin.RANDOM))
    return found
