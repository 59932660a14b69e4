"""A simulated asynchronous search: workers with log-normal run times, an ask whenever one is free."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.tuning.problems import Task
from ems.search.problem import Problem
from ems.search.trial import Outcome, Proposal, Trial

Propose = Callable[[Problem, Sequence[Trial], int, Sequence[int]], list[Proposal]]


@dataclass
class Course:
    """What came of a search; the first three have an entry for each evaluation that ended, crashed or not.

    Attributes
    ----------
    regrets
        Least regret so far, without noise.
    chosen
        Regret, without noise, of what had the best observed value so far.
    at
        Simulated moments, in mean run times.
    ask_s
        CPU seconds of each call that asked.
    """

    regrets: list[float] = field(default_factory=list)
    chosen: list[float] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    ask_s: list[float] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)

    def evaluations_to(self, target: float) -> int | None:
        """Return how many evaluations had ended when the least regret first was at most ``target``; None: never."""
        return next((i + 1 for i, regret in enumerate(self.regrets) if regret <= target), None)


@dataclass
class Simulation:
    """Workers that evaluate a task; deterministic by seed.

    Attributes
    ----------
    sigma
        Of the logarithm of run times, whose mean is one.
    lottery
        Share of the evaluations that crash wherever they are.
    """

    task: Task
    workers: int = 1
    seed: int = 0
    sigma: float = 0.5
    lottery: float = 0.0

    def run(self, propose: Propose, evaluations: int, sampler: str = "gp") -> Course:
        """Return the course of a search of so many evaluations: an ask whenever workers are free."""
        problem = Problem(self.task.space, sampler=sampler, parallel=self.workers, trials=evaluations, seed=self.seed)
        rng = np.random.default_rng([self.seed, 7])
        course, ends = Course(), list[tuple[float, int]]()
        now = 0.0
        while len(course.at) < evaluations:
            room = min(self.workers - len(ends), evaluations - len(course.trials))
            if room > 0:
                for number in self._ask(propose, problem, course, room):
                    heapq.heappush(ends, (now + rng.lognormal(-(self.sigma**2) / 2, self.sigma), number))
            now, number = heapq.heappop(ends)
            course.trials[number] = self._evaluate(course.trials[number], rng)
            self._note(course, now, course.trials[number])
        return course

    def _ask(self, propose: Propose, problem: Problem, course: Course, room: int) -> Sequence[int]:
        first = len(course.trials)
        begun = time.process_time()
        proposals = propose(problem, course.trials, room, range(first, first + room))
        course.ask_s.append(time.process_time() - begun)
        course.trials += [Trial(first + i, p.params, origin=p.origin) for i, p in enumerate(proposals)]
        return range(first, len(course.trials))

    def _evaluate(self, trial: Trial, rng: np.random.Generator) -> Trial:
        value = self.task.value(trial.params) + self.task.noise * rng.standard_normal()
        if rng.random() < self.lottery or self.task.crashes(trial.params):
            return replace(trial, outcome=Outcome.CRASHED)
        return replace(trial, outcome=Outcome.OK, values=(value,))

    def _note(self, course: Course, now: float, trial: Trial) -> None:
        done = [each for each in course.trials if each.values]
        regret = self.task.regret(trial.params) if trial.values else np.inf
        course.at.append(now)
        course.regrets.append(min([regret, *course.regrets[-1:]]))
        course.chosen.append(self.task.regret(min(done, key=lambda each: each.values[0]).params) if done else np.inf)
