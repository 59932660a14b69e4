"""One search for each value of a column, of one budget: which group the next configuration is for.

Each group has its own trials, rungs and model: what is good for one says nothing about another. The group whose best
proposal promises most gets the next configuration; a part is shared out evenly, so that none is given up on a guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ems.search.problem import Problem
from ems.search.trial import Origin, Trial


def choices(problem: Problem, trials: Sequence[Trial], n_asked: int) -> Iterator[str | None]:
    """Yield the group of each next configuration, in order; ends where every configuration has been tried.

    Without groups it yields None.
    """
    del n_asked
    counts = _configs(problem, trials)
    size = problem.space.size
    while open_ := [each for each in counts if size is None or counts[each] < size]:
        group = min(open_, key=lambda each: counts[each])
        counts[group] += 1
        yield group


def is_exhausted(problem: Problem, trials: Sequence[Trial]) -> bool:
    """Whether every configuration of a space that can be counted has been tried, in every group."""
    size = problem.space.size
    return size is not None and min(_configs(problem, trials).values()) >= size


def _configs(problem: Problem, trials: Sequence[Trial]) -> dict[str | None, int]:
    """How many different configurations each group has had."""
    seen: dict[str | None, set[str]] = {group: set() for group in problem.groups or (None,)}
    for trial in trials:
        if trial.origin is not Origin.GIVEN and trial.group in seen:
            seen[trial.group].add(problem.space.key(trial.params))
    return {group: len(keys) for group, keys in seen.items()}
