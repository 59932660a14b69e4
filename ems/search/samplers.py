"""Which params to try next: the entry to all samplers, and those that need no model of the objective.

A proposal follows from the space, the trials so far, the study's seed and the number of the trial that it is for:
whoever asks again gets the same. No point is proposed twice, and where there are no more points there are no more
proposals.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias
from zlib import crc32

import numpy as np

from ems.model import Params
from ems.search.dimension import Dimension, Floats
from ems.search.problem import Problem
from ems.search.space import SearchSpace
from ems.search.trial import Origin, Proposal, Trial

Sampler: TypeAlias = Callable[[Problem, Sequence[Trial], int, Sequence[int], str | None, int], list[Proposal]]

UNINFORMED = ("random", "grid", "sobol")
_MIN_VALUES = 3  # with fewer there is nothing to model
_MAX_WALKED = 100_000  # points of a grid, most of which constraints forbid
_REDRAWS = 64  # of a point that was had, or is not allowed


def propose(
    problem: Problem,
    trials: Sequence[Trial],
    count: int,
    numbers: Sequence[int],
    group: str | None,
    rung: int,
    model: Sampler | None = None,
) -> list[Proposal]:
    """Return what to try next.

    Parameters
    ----------
    trials
        All of the study, in the order of their numbers.
    count
        How many proposals are wanted.
    numbers
        Of the trials that they are for, at least ``count``.
    group
        Whose search it is; None without groups.
    rung
        At which the new trials begin.
    model
        Takes the place of the sampler's own model, once the initial design is made.

    Returns
    -------
    list of Proposal
        Fewer than ``count`` where the space has no more points: all different, and different from the group's trials.

    Raises
    ------
    UsageError
        If no point satisfies the constraints, or a trial is not of this space.
    """
    own = [trial for trial in trials if trial.group == group]
    fresh = Fresh(problem.space, own)
    sampler = problem.sampler
    chosen: list[Proposal] = []
    initial = count if sampler in UNINFORMED else _initial(problem, own, count)
    if sampler == "random":
        chosen += _random(problem, fresh, numbers[:initial])
    elif sampler == "grid":
        chosen += _walk(fresh, _grid(problem), initial, Origin.MODEL)
    elif initial:
        origin = Origin.MODEL if sampler == "sobol" else Origin.INITIAL
        chosen += _walk(fresh, _sobol(problem, group), initial, origin)
    if sampler not in UNINFORMED and count > initial and not fresh.is_exhausted:
        told = _pending(own, chosen, numbers, group)
        for proposal in (model or _model(sampler))(problem, told, count - initial, numbers[initial:count], group, rung):
            if fresh.take(proposal.params):
                chosen.append(proposal)
    if len(chosen) < count:  # what a model proposed twice, or a sequence did not reach
        chosen += _random(problem, fresh, numbers[len(chosen) : count])
    return chosen


def n_initial(problem: Problem) -> int:
    """Return how many points are tried before there is a model: two more than dimensions, at most half of all."""
    points = len(problem.space.names) + 2
    return points if problem.trials is None else min(points, max(_MIN_VALUES, problem.trials // 2))


def _initial(problem: Problem, own: Sequence[Trial], count: int) -> int:
    """Return how many of ``count`` new points belong to the initial design: all while hardly a value has come in."""
    wanted = n_initial(problem)
    if sum(1 for trial in own if trial.values) < min(_MIN_VALUES, wanted):
        return count
    return min(count, max(0, wanted - sum(1 for trial in own if trial.config in (-1, trial.number))))


def _pending(
    own: Sequence[Trial], chosen: Sequence[Proposal], numbers: Sequence[int], group: str | None
) -> list[Trial]:
    """Return the trials with those that were chosen just now as pending ones."""
    now = max((trial.asked for trial in own), default=0)
    return [
        *own,
        *(
            Trial(number, proposal.params, config=number, group=group, origin=proposal.origin, asked=now)
            for number, proposal in zip(numbers, chosen, strict=False)
        ),
    ]


def _model(sampler: str) -> Sampler:
    # each is imported where it is asked for: skopt alone takes more than a second
    if sampler == "skopt":
        from ems.search.with_skopt import propose as sample  # noqa: PLC0415
    elif sampler == "tpe":
        from ems.search.tpe import propose as sample  # noqa: PLC0415
    else:
        from ems.search.model import propose as sample  # noqa: PLC0415
    return sample


class Fresh:
    """Keeps account of the points that were had, so that none comes twice.

    Parameters
    ----------
    space
        Whose points they are.
    trials
        That were made so far.
    """

    def __init__(self, space: SearchSpace, trials: Sequence[Trial]) -> None:
        self.space = space
        self._keys = {space.key(trial.params) for trial in trials}

    def take(self, params: Params) -> bool:
        """Return whether a point is new and allowed; from now on it is not new."""
        key = self.space.key(params)
        if key in self._keys or not self.space.is_valid(params):
            return False
        self._keys.add(key)
        return True

    @property
    def is_exhausted(self) -> bool:
        """Whether it is known that there are no more points."""
        size = self.space.size if self.space.is_countable else None
        return size is not None and len(self._keys) >= size

    def rest(self) -> list[Params]:
        """Return the points that are left of a countable space."""
        return [params for params in self.space.points() if self.space.key(params) not in self._keys]


def generator(problem: Problem, number: int) -> np.random.Generator:
    """Return the random numbers of one suggestion."""
    return np.random.default_rng([problem.seed, number])


def _random(problem: Problem, fresh: Fresh, numbers: Sequence[int]) -> list[Proposal]:
    found = []
    for number in numbers:
        params = _draw(fresh, generator(problem, number))
        if params is None:
            break
        found.append(Proposal(params, Origin.RANDOM))
    return found


def _draw(fresh: Fresh, rng: np.random.Generator) -> Params | None:
    """Return a new point; None where there is none."""
    tries = 0 if fresh.is_exhausted else _REDRAWS
    for _ in range(tries):
        (params,) = fresh.space.draw(rng, 1)
        if fresh.take(params):
            return params
    rest = fresh.rest() if fresh.space.is_countable and not fresh.is_exhausted else []
    if not rest:
        return None
    params = rest[int(rng.integers(len(rest)))]
    fresh.take(params)
    return params


def _walk(fresh: Fresh, points: Iterator[Floats], count: int, origin: Origin) -> list[Proposal]:
    """Return the first new ones of the points of a sequence.

    It begins at the beginning each time, so that no place in it has to be remembered.
    """
    found: list[Proposal] = []
    for matrix in points:
        if len(found) >= count or fresh.is_exhausted:
            break
        for params in fresh.space.decode_rows(matrix[fresh.space.allowed(matrix)]):
            if len(found) < count and fresh.take(params):
                found.append(Proposal(params, origin))
    return found


def _sobol(problem: Problem, group: str | None) -> Iterator[Floats]:
    """Yield the points of a scrambled Sobol sequence, some at a time."""
    from scipy.stats import qmc  # noqa: PLC0415 - half a second that a report of a study does not need

    space = problem.space
    rng = np.random.default_rng([problem.seed, 0 if group is None else crc32(group.encode())])
    engine = qmc.Sobol(len(space.names), rng=rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that powers of two are balanced
        for _ in range(64):
            yield space.spread(engine.random(256))


def _grid(problem: Problem) -> Iterator[Floats]:
    """Yield the points of a grid that is fine enough for all trials, then those of finer ones."""
    space = problem.space
    steps = _steps(space.searched, problem.trials)
    walked = 0
    while walked < _MAX_WALKED:
        axes = [_levels(dimension, steps) for dimension in space.searched]
        rows = itertools.product(*axes)
        while batch := list(itertools.islice(rows, 1024)):
            walked += len(batch)
            yield space.snap(np.array(batch))
        if all(count is not None and count <= len(axis) for count, axis in zip(space.levels, axes, strict=True)):
            return
        steps = 2 * steps - 1  # the points that there were are points of the finer grid too


def _steps(dimensions: Sequence[Dimension], wanted: int | None) -> int:
    """Return in how many values a number has to be cut for so many points; without a number, 5."""
    if wanted is None:
        return 5
    enough = (
        k for k in itertools.count(2) if k > wanted or math.prod(len(_levels(d, k)) for d in dimensions) >= wanted
    )
    return next(enough)


def _levels(dimension: Dimension, steps: int) -> Floats:
    """Return where the values of a grid lie: all categories, and at most ``steps`` numbers."""
    if dimension.count is not None and (dimension.kind == "categorical" or dimension.count <= steps):
        return np.array([dimension.unit(value) for value in dimension.items()])
    return np.unique(dimension.snap(np.linspace(0.0, 1.0, steps)))
