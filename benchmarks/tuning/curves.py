"""Time to a target on synthetic learning curves over an analytic problem: which scheduler and sampler is soonest.

``python -m benchmarks.tuning.curves [--problem styblinski5] [--seeds 8] [--wall 324] [METHOD…]``. Rungs of 1, 3, 9, 27
and 81 epochs, noise .004, 8 workers, one epoch a unit of time; a configuration's curve falls by a power of the epochs
that differs over the space, so that curves cross. Values are scaled like error rates, half of the random configurations
below .4; targets are what one in 100, 1,000, 10,000 of them reaches. The incumbent is the best of the highest rung that
any has completed. On the problems of `DEVELOPED` the rules of promotion were chosen.
"""

from __future__ import annotations

import argparse
import heapq
import math
import statistics
import time
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from benchmarks.tuning.problems import DEVELOPED, HELD_OUT, Task, vector
from ems.model import Params
from ems.search.decide import decide
from ems.search.problem import Fidelity, Problem
from ems.search.rungs import incumbents
from ems.search.trial import Outcome, Promote, Start, Trial

WORKERS = 8
MIDDLE = 0.4  # of the regrets of random configurations
RANDOM_WALL = 20 * 648.0
EPOCHS = Fidelity("epochs", 1, 81, 3)
RARE = (1e-2, 1e-3, 1e-4)
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

    The less the height and the exponents differ, the better do short runs tell of long ones.
    """

    task: Task
    height: float = 0.3
    slow: float = 0.05
    fast: float = 1.0
    noise: float = 0.004

    @cached_property
    def _random(self) -> np.ndarray:
        """Regrets of random configurations, ascending."""
        drawn = self.task.space.draw(np.random.default_rng(0), 20_000)
        return np.sort([self.task.regret(params) for params in drawn])

    @cached_property
    def targets(self) -> tuple[float, ...]:
        """Regrets that few random configurations reach."""
        return tuple(float(each) / self.scale for each in np.quantile(self._random, RARE))

    @cached_property
    def scale(self) -> float:
        """What values of the problem are divided by."""
        return float(np.median(self._random)) / MIDDLE

    def regret(self, params: Params) -> float:
        """Return by how much params are worse than the best when trained to the end."""
        return self.task.regret(params) / self.scale

    def value(self, params: Params, epochs: float, rng: np.random.Generator) -> float:
        """Return what a run of so many epochs reports."""
        weights = np.random.default_rng(1).standard_normal(len(params))
        bend = 0.5 + 0.5 * math.sin(3 * float((vector(params) - 0.5) @ weights))
        power = -(self.slow + (self.fast - self.slow) * bend)
        fall = self.height * (epochs**power - EPOCHS.high**power)
        return self.regret(params) + fall + self.noise * float(rng.standard_normal())


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
        found.append((now, curves.regret(trials[best.config].params)))
        if found[-1][1] <= min(curves.targets) and best.rung == problem.n_rungs - 1:
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
                found.append(((batch + 1) * EPOCHS.high, curves.regret(params)))
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
    parser.add_argument("--problem", default="styblinski5")
    parser.add_argument("--height", type=float, default=0.3)
    parser.add_argument("--exponents", type=float, nargs=2, default=(0.05, 1.0))
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    given = parser.parse_args()
    tasks = [make() for make in (*DEVELOPED, *HELD_OUT)]
    curves = Curves(next(each for each in tasks if each.name == given.problem), given.height, *given.exponents)
    rows = [random_course(curves, seed, RANDOM_WALL) for seed in range(given.seeds)]
    base = [statistics.median(time_to(row, target) for row in rows) for target in curves.targets]
    print(
        "| method | "
        + " | ".join(f"to {target:.3f} (than random)" for target in curves.targets)
        + " | CPU s a decision |"
    )
    print("|---|" + "---|" * (len(RARE) + 1))
    print("| random, full length | " + " | ".join(_cell(each, each, RANDOM_WALL) for each in base) + " | 0 |")
    for name in given.methods:
        runs = [course(curves, seed, given.wall, **METHODS[name]) for seed in range(given.seeds)]
        times = [statistics.median(time_to(run, target) for run, _ in runs) for target in curves.targets]
        cells = [_cell(mine, other, given.wall) for mine, other in zip(times, base, strict=True)]
        cost = sum(spent for _, spent in runs) / sum(len(run) for run, _ in runs)
        print(f"| {name} | " + " | ".join(cells) + f" | {cost:.3f} |", flush=True)


if __name__ == "__main__":
    main()
