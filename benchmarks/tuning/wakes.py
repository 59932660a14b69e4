"""Workers that find their next trial in a queue, which the driver fills when it wakes: how often they find none."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.tuning.problems import Task, hartmann
from ems.search import samplers
from ems.search.problem import Problem
from ems.search.trial import Outcome, Trial
from ems.study import buffer

WORKERS, EVALUATIONS, RUN_S = 8, 96, 600.0


def idle(seeds: int) -> Iterator[tuple[str, float, float]]:
    """Yield how many were queued ahead, the idle share up to the last start, and the median regret at the end."""
    ahead = buffer.size(WORKERS, RUN_S, RUN_S)
    for name, queued in (("nothing", 0), (f"the driver's own buffer ({ahead})", ahead)):
        found = [_run(hartmann(6), queued, seed) for seed in range(seeds)]
        yield name, float(np.mean([share for share, _ in found])), float(np.median([regret for _, regret in found]))


def _run(task: Task, ahead: int, seed: int) -> tuple[float, float]:
    """Return the idle share and the regret of one search whose driver wakes every ``RUN_S`` seconds."""
    rng = np.random.default_rng([seed, 11])
    problem = Problem(task.space, parallel=WORKERS, trials=EVALUATIONS, seed=seed)
    trials: list[Trial] = []
    queue: list[int] = []
    free_since = [0.0] * WORKERS
    running: list[tuple[float, int]] = []  # (end, number)
    wake_at, idle_s, last_start = 0.0, 0.0, 0.0
    while len(trials) < EVALUATIONS or running or queue:
        now = min(wake_at, running[0][0]) if running else wake_at
        while running and running[0][0] <= now:
            _, number = heapq.heappop(running)
            value = (task.value(trials[number].params),)
            trials[number] = replace(trials[number], outcome=Outcome.OK, values=value, told=0)
            free_since.append(now)
        if now == wake_at:
            pending = sum(each.is_pending for each in trials)
            count = min(WORKERS + ahead - pending, EVALUATIONS - len(trials))
            if count > 0:
                numbers = range(len(trials), len(trials) + count)
                proposals = samplers.propose(problem, trials, count, list(numbers), None, 0)
                trials += [Trial(number, each.params) for number, each in zip(numbers, proposals, strict=True)]
                queue += numbers
            wake_at += RUN_S
        while queue and free_since:
            idle_s += now - free_since.pop()
            heapq.heappush(running, (now + RUN_S * rng.lognormal(-0.125, 0.5), queue.pop(0)))
            last_start = now
        if len(trials) >= EVALUATIONS and not queue and not running:
            break
    regret = min(task.regret(each.params) for each in trials if each.values)
    return idle_s / (WORKERS * last_start), regret
