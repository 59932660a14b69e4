"""A race on real learning curves: simulated workers, a clock that counts epochs, real training behind every value.

What counts is the moment at which the first model with a held-out loss at or under the target exists, after whichever
epoch: the same for all, whatever they optimise. Workers are as fast as one another but for one part in a hundred.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.tuning import real
from benchmarks.tuning.peers import Climber, HpBandSter
from ems.model import Params
from ems.search.decide import decide
from ems.search.problem import Fidelity, Problem
from ems.search.space import Real, SearchSpace
from ems.search.trial import Outcome, Promote, Start, Trial


@dataclass
class Result:
    """Best loss so far over time; ``at`` in epochs of one worker."""

    at: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)

    def note(self, now: float, loss: float) -> None:
        if not self.best or loss < self.best[-1]:
            self.at.append(now)
            self.best.append(loss)

    def time_to(self, target: float) -> float:
        """Return when the target was reached; infinity: never."""
        return next((at for at, best in zip(self.at, self.best, strict=True) if best <= target), float("inf"))


def point(params: Params) -> np.ndarray:
    """Return params x0… as a point of the cube."""
    return np.array([params[f"x{i}"] for i in range(len(params))])


@dataclass(order=True)
class _Segment:
    """Some epochs of a trial on a worker."""

    ends: float
    number: int
    value: float = field(compare=False)
    found: tuple[float, float] = field(compare=False)  # when its least loss was there, and that


class Track:
    """Workers that train; segments end in the order of time."""

    def __init__(self, task: real.Task, workers: int, seed: int) -> None:
        self.task, self.workers, self.now, self.result = task, workers, 0.0, Result()
        self._seed, self._jitter = seed, np.random.default_rng([seed, 3])
        self._curves: dict[int, Iterator[float]] = {}
        self._running: list[_Segment] = []
        self.losses: dict[int, list[float]] = {}  # of each trial, by epoch

    @property
    def free(self) -> int:
        """How many workers have nothing to do."""
        return self.workers - len(self._running)

    def train(self, number: int, where: np.ndarray, epochs: int) -> None:
        """Have a free worker train a trial so many epochs further."""
        curve = self._curves.setdefault(number, self.task.curve(where, self._seed))
        losses = list(itertools.islice(curve, epochs))
        self.losses.setdefault(number, []).extend(losses)
        took = epochs * (1 + 0.01 * self._jitter.standard_normal())
        best = int(np.argmin(losses))
        found = (self.now + took * (best + 1) / epochs, losses[best])
        heapq.heappush(self._running, _Segment(self.now + took, number, losses[-1], found))

    def wait(self) -> tuple[int, float]:
        """Return number and last loss of the segment that ends next."""
        segment = heapq.heappop(self._running)
        self.now = segment.ends
        self.result.note(*segment.found)
        return segment.number, segment.value


def ours(
    track: Track,
    horizon: float,
    seed: int,
    target: float,
    sampler: str = "gp",
    scheduler: str = "asha",
    generator: HpBandSter | None = None,
) -> Result:
    """Run what `ems tune` runs, without its cluster: decide, train what is asked for, decide again at every end.

    With ``generator`` the params of new trials are that one's.
    """
    ladder = Fidelity("epochs", 1, real.EPOCHS)
    space = SearchSpace(tuple(Real(f"x{i}", 0.0, 1.0) for i in range(track.task.d)))
    problem = Problem(space, sampler, scheduler, fidelity=ladder, parallel=track.workers, seed=seed)
    rungs = [int(each) for each in ladder.rungs]
    trials: list[Trial] = []
    while track.now < horizon and track.result.time_to(target) == float("inf"):
        for action in decide(problem, trials, track.free, len(trials)).actions:
            if isinstance(action, Start):
                number, done, proposal = len(trials), 0, action.proposal
                params = generator.point(rungs[action.rung]) if generator else proposal.params
                trials.append(
                    Trial(number, params, 0, number, None, action.bracket, action.rung, origin=proposal.origin)
                )
            elif isinstance(action, Promote):
                number, done = action.number, rungs[action.rung - 1]
                trials[number] = replace(trials[number], rung=action.rung, outcome=Outcome.PENDING)
            track.train(number, point(trials[number].params), rungs[trials[number].rung] - done)
        number, _ = track.wait()
        trial = trials[number]
        values = tuple(track.losses[number][epochs - 1] for epochs in rungs[: trial.rung + 1])
        trials[number] = replace(trial, outcome=Outcome.OK, values=values)
        if generator:
            generator.learn(trial.params, rungs[trial.rung], values[-1])
    return track.result


def theirs(track: Track, horizon: float, climber: Climber, target: float) -> Result:
    """Run a peer that judges every epoch."""
    started, reached = 0, dict[int, int]()
    while track.now < horizon and track.result.time_to(target) == float("inf"):
        while track.free:
            track.train(started, climber.start(started), 1)
            reached[started] = 1
            started += 1
        number, value = track.wait()
        if reached[number] == real.EPOCHS:
            climber.finish(number, real.EPOCHS, value)
        elif climber.goes_on(number, reached[number], value):
            reached[number] += 1
            track.train(number, np.empty(0), 1)
    return track.result


def random_times(losses: np.ndarray, workers: int, target: float, repeats: int, seed: int = 0) -> np.ndarray:
    """Return times to the target of random search that trains everything to the end, shape (repeats,).

    Parameters
    ----------
    losses
        Of the pool, shape (n, epochs). Configurations are drawn with replacement, as often as it takes.
    """
    rng = np.random.default_rng(seed)
    reached = losses <= target
    is_hit, first = reached.any(axis=1), reached.argmax(axis=1) + 1
    hits = np.flatnonzero(is_hit)
    if not len(hits):
        return np.full(repeats, np.inf)
    waits = rng.geometric(len(hits) / len(losses), repeats)  # evaluations until the first hit
    return (waits - 1) // workers * losses.shape[1] + first[rng.choice(hits, repeats)]
