"""Time to a target on synthetic learning curves over Hartmann6: which scheduler and sampler finds good params soonest.

``python -m benchmarks.tuning.curves [--seeds 8] [--wall 324] [METHOD…]``. Rungs of 3, 9, 27 and 81 epochs, noise .004,
8 workers, one epoch a unit of time; a configuration's curve falls by a power of the epochs that differs over the space,
so that curves cross. Values are a fifth of Hartmann's, like error rates: of random configurations three in 1,000 have a
regret below .20, one in 1,000 below .15. The incumbent is the best of the highest rung that any has completed.
"""

from __future__ import annotations

import argparse
import heapq
import math
import statistics
import time
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.tuning.problems import Task, hartmann, vector
from ems.model import Params
from ems.search.decide import decide
from ems.search.problem import Fidelity, Problem
from ems.search.rungs import incumbents
from ems.search.trial import Outcome, Promote, Start, Trial

WORKERS = 8
SCALE = 5.0
RANDOM_WALL = 20 * 648.0
EPOCHS = Fidelity("epochs", 3, 81, 3)
TARGETS = (0.20, 0.15, 0.10)
METHODS = {
    "ems asha + gp": {"scheduler": "asha", "sampler": "gp"},
    "ems asha + ts": {"scheduler": "asha", "sampler": "ts"},
    "ems hyperband + gp": {"scheduler": "hyperband", "sampler": "gp"},
    "ems asha + tpe": {"scheduler": "asha", "sampler": "tpe"},
    "ems bohb (KDE)": {"scheduler": "bohb"},
    "ems asha + random": {"scheduler": "asha", "sampler": "random"},
    "ems hyperband + random": {"scheduler": "hyperband", "sampler": "random"},
    "ems full + gp": {"scheduler": "none", "sampler": "gp"},
}


@dataclass(frozen=True)
class Curves:
    """Learning curves: f(x) + height (e^-b(x) - 81^-b(x)), the exponent b between ``slow`` and ``fast``.

    The rank correlation of 3, 9 and 27 epochs with 81 is .85, .91 and .95 by default, .58, .74 and .88 with height
    .6 and exponents from .02 to .6.
    """

    task: Task
    height: float = 0.2
    slow: float = 0.05
    fast: float = 1.0
    noise: float = 0.004

    def value(self, params: Params, epochs: float, rng: np.random.Generator) -> float:
        """Return what a run of so many epochs reports."""
        weights = np.random.default_rng(1).standard_normal(6)
        bend = 0.5 + 0.5 * math.sin(3 * float((vector(params) - 0.5) @ weights))
        power = -(self.slow + (self.fast - self.slow) * bend)
        fall = self.height * (epochs**power - EPOCHS.high**power)
        return self.task.value(params) / SCALE + fall + self.noise * float(rng.standard_normal())


def course(curves: Curves, seed: int, wall: float, **options: str) -> tuple[list[tuple[float, float]], float]:
    """Search for ``wall`` epochs of time; returns (time, regret of the incumbent) where it changed, and CPU seconds."""
    problem = Problem(curves.task.space, fidelity=EPOCHS, parallel=WORKERS, seed=seed, **options)  # type: ignore[arg-type]
    rng = np.random.default_rng([seed, 11])
    trials: dict[int, Trial] = {}
    running: list[tuple[float, int]] = []
    found: list[tuple[float, float]] = []
    now, spent = 0.0, 0.0
    while now < wall:
        begun = time.process_time()
        actions = decide(problem, list(trials.values()), WORKERS - len(running), len(trials)).actions
        spent += time.process_time() - begun
        for action in actions:
            number, below = len(trials), 0.0
            if isinstance(action, Start):
                trials[number] = Trial(number, action.proposal.params, bracket=action.bracket, rung=action.rung)
            elif isinstance(action, Promote):
                number, below = action.number, EPOCHS.rungs[action.rung - 1]
                trials[number] = replace(trials[number], rung=action.rung, outcome=Outcome.PENDING)
            heapq.heappush(running, (now + EPOCHS.rungs[action.rung] - below, number))
        now, number = heapq.heappop(running)
        trial = trials[number]
        value = curves.value(trial.params, EPOCHS.rungs[trial.rung], rng)
        below_it = (*trial.values, *[math.nan] * (trial.rung - len(trial.values)))
        trials[number] = replace(trial, outcome=Outcome.OK, values=(*below_it, value))
        best = incumbents(problem, trials.values())[-1]
        found.append((now, curves.task.regret(trials[best.config].params) / SCALE))
        if found[-1][1] <= min(TARGETS) and best.rung == problem.n_rungs - 1:
            break
    return found, spent


def random_course(curves: Curves, seed: int, wall: float) -> list[tuple[float, float]]:
    """Random configurations at full length, as many as ``wall`` epochs of time allow."""
    rng = np.random.default_rng([seed, 12])
    found, least = [], math.inf
    for batch in range(int(wall / EPOCHS.high)):
        for params in curves.task.space.draw(rng, WORKERS):
            value = curves.value(params, EPOCHS.high, rng)
            if value < least:
                least = value
                found.append(((batch + 1) * EPOCHS.high, curves.task.regret(params) / SCALE))
    return found


def time_to(found: list[tuple[float, float]], target: float) -> float:
    """Return when the incumbent first was as good as the target; infinite: never."""
    return next((at for at, regret in found if regret <= target), math.inf)


def _cell(mine: float, random: float, wall: float) -> str:
    """Write a median time and how many times random search takes; what was not reached is only known to be more."""
    if math.isinf(mine):
        return f">{wall:.0f}"
    return f"{mine:.0f} ({'>' * math.isinf(random)}{min(random, RANDOM_WALL) / mine:.1f}x)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--wall", type=float, default=324)
    parser.add_argument("--height", type=float, default=0.2)
    parser.add_argument("--exponents", type=float, nargs=2, default=(0.05, 1.0))
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    given = parser.parse_args()
    curves = Curves(hartmann(6), given.height, *given.exponents)
    rows = [random_course(curves, seed, RANDOM_WALL) for seed in range(given.seeds)]
    base = [statistics.median(time_to(row, target) for row in rows) for target in TARGETS]
    print("| method | " + " | ".join(f"to {target:.2f} (than random)" for target in TARGETS) + " | CPU s a decision |")
    print("|---|" + "---|" * (len(TARGETS) + 1))
    print("| random, full length | " + " | ".join(_cell(each, each, RANDOM_WALL) for each in base) + " | 0 |")
    for name in given.methods:
        runs = [course(curves, seed, given.wall, **METHODS[name]) for seed in range(given.seeds)]
        times = [statistics.median(time_to(run, target) for run, _ in runs) for target in TARGETS]
        cells = [_cell(mine, other, given.wall) for mine, other in zip(times, base, strict=True)]
        cost = sum(spent for _, spent in runs) / sum(len(run) for run, _ in runs)
        print(f"| {name} | " + " | ".join(cells) + f" | {cost:.3f} |", flush=True)


if __name__ == "__main__":
    main()
