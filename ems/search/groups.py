"""One search for each value of a column, of one budget: which group the next configuration is for.

Each group has its own trials, rungs and model: what is good for one says nothing about another. The group whose best
proposal promises most gets the next configuration: the expected improvement, as a share of what the search has won
there over the median so far, so that groups of other units compare. Half of the configurations are shared out evenly,
so that no group is given up on a guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ems.search import noise, samplers
from ems.search.problem import Problem
from ems.search.rungs import at_rung, modelled_rung, value_at
from ems.search.trial import Origin, Trial

FLOOR = 0.5  # of an even share, that each group gets
MOST_ASKED = 12  # groups whose promise is looked at in a wake: each costs a fit of its model

_Group = str | None


def choices(problem: Problem, trials: Sequence[Trial], n_asked: int) -> Iterator[_Group]:
    """Yield the group of each next configuration, in order; ends where every configuration has been tried.

    Without groups it yields None.

    Parameters
    ----------
    n_asked
        Number of the next trial: seeds which groups are looked at, where there are many.
    """
    counts = _configs(problem, trials)
    size = problem.space.size
    begun = dict.fromkeys(counts, 0)
    promised: dict[_Group, float] | None = None
    while open_ := [each for each in counts if size is None or counts[each] < size]:
        group = _short(problem, counts, open_)
        if group is None and (not problem.groups or problem.sampler in samplers.UNINFORMED):
            group = min(open_, key=lambda each: counts[each])  # nothing is learnt: evenly
        elif group is None:
            if promised is None:
                promised = _promises(problem, trials, open_, n_asked)
            worth = {each: value for each, value in promised.items() if each in open_}
            group = max(worth or dict.fromkeys(open_, 0.0), key=lambda each: worth.get(each, 0.0) / (1 + begun[each]))
        counts[group] += 1
        begun[group] += 1
        yield group


def is_exhausted(problem: Problem, trials: Sequence[Trial]) -> bool:
    """Return whether every configuration of a space that can be counted has been tried, in every group."""
    size = problem.space.size
    return size is not None and min(_configs(problem, trials).values()) >= size


def _configs(problem: Problem, trials: Sequence[Trial]) -> dict[_Group, int]:
    """Return how many different configurations each group has had."""
    seen: dict[_Group, set[str]] = {group: set() for group in problem.groups or (None,)}
    for trial in trials:
        if trial.origin is not Origin.GIVEN and trial.group in seen:
            seen[trial.group].add(problem.space.key(trial.params))
    return {group: len(keys) for group, keys in seen.items()}


def _short(problem: Problem, counts: dict[_Group, int], open_: Sequence[_Group]) -> _Group:
    """Return the group that has least, if it lacks an initial design or the even part; else None."""
    group = min(open_, key=lambda each: counts[each])
    even = FLOOR * sum(counts.values()) / len(counts)
    return group if counts[group] < max(samplers.n_initial(problem), even) else None


def _promises(problem: Problem, trials: Sequence[Trial], open_: Sequence[_Group], n_asked: int) -> dict[_Group, float]:
    """Return what one more configuration promises each group, at most :data:`MOST_ASKED` of them, taken at random."""
    rng = np.random.default_rng([problem.seed, n_asked])
    asked = open_ if len(open_) <= MOST_ASKED else [open_[i] for i in sorted(rng.permutation(len(open_))[:MOST_ASKED])]
    return {group: _promise(problem, [each for each in trials if each.group == group], group) for group in asked}


def _promise(problem: Problem, own: Sequence[Trial], group: _Group) -> float:
    """Return the expected improvement as a share of what was won; without a model infinity, so that it gets values.

    Pending configurations share it.
    """
    rung = modelled_rung(problem, own)
    values = [value for each in own if math.isfinite(value := value_at(each, rung))]
    outlook = noise.outlook(problem, at_rung(own, rung), group) if values else None
    if outlook is None:
        return math.inf
    won = float(np.median(values)) - min(values)
    return outlook.gain / (won if won > 0 else 1.0) / (1 + sum(each.is_pending for each in own))
