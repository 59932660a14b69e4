"""What is measured, a section a question; each returns a table, and how its figures stand to their targets."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.tuning import peers, problems, race, real
from benchmarks.tuning.cores import CORES
from benchmarks.tuning.loop import Course, Propose, Simulation
from ems.search import samplers
from ems.search.problem import Problem
from ems.search.trial import Proposal, Trial

OURS = ("gp", "ts", "lp", "ucb", "tpe", "random")
FLOOR = 1e-6  # of regret, whose logarithm is averaged
SKIP = {
    "hartmann6 async": ("skopt gp_hedge",),
    "ackley10": ("skopt EI", "skopt gp_hedge", "BoTorch LogEI", "Optuna GP"),
}


@dataclass
class Section:
    """A table and what it says of the targets."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_markdown(self, letter: str) -> str:
        """Return it as a part of RESULTS.md."""
        lines = [f"## {letter.upper()}. {self.title}", ""]
        lines += [f"| {' | '.join(self.columns)} |", f"|{'---|' * len(self.columns)}"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join([*lines, "", *self.notes])


def judged(what: str, value: str, target: str, met: bool) -> str:
    """Return a line that says how a figure stands to its target."""
    return f"- {what}: **{value}** (target {target}: {'met' if met else 'MISSED'})"


def interval(values: Sequence[float], of: Callable[[np.ndarray], float] = np.median) -> str:
    """Return a statistic with its bootstrapped 95 % interval."""
    sample = np.asarray(values, dtype=float)
    rng = np.random.default_rng(0)
    draws = [of(rng.choice(sample, len(sample))) for _ in range(2000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{of(sample):.3g} [{low:.2g}, {high:.2g}]"


# ---------------------------------------------------------------------------------------------- full evaluations


def ours(problem: Problem, trials: Sequence[Trial], count: int, numbers: Sequence[int]) -> list[Proposal]:
    """Propose as `ems tune` does."""
    return samplers.propose(problem, trials, count, list(numbers), None, 0)


def proposer(name: str, d: int, seed: int) -> Propose:
    """Return a peer as what a simulation asks."""
    peer, told = peers.ASKERS[name](d, seed), set[int]()

    def propose(_: Problem, trials: Sequence[Trial], count: int, numbers: Sequence[int]) -> list[Proposal]:
        for each in trials:
            if each.values and each.number not in told:
                told.add(each.number)
                peer.tell(each.number, each.values[0])
        asked = [peer.ask(number) for number in list(numbers)[:count]]
        return [Proposal({f"x{i}": float(value) for i, value in enumerate(point)}) for point in asked]

    return propose


@functools.cache
def held_out(name: str) -> problems.Task:
    """Return a held-out task by name."""
    return next(task for make in problems.HELD_OUT if (task := make()).name == name)


def course(task: str, method: str, evaluations: int, workers: int, seed: int, lottery: float = 0.0) -> Course:
    """Run one search; methods of ems are called ``ems NAME``."""
    chosen = held_out(task)
    simulation = Simulation(chosen, workers=workers, seed=seed, lottery=lottery)
    if method.startswith("ems "):
        return simulation.run(ours, evaluations, method.removeprefix("ems "))

    def searched() -> dict[str, list[float]]:
        found = simulation.run(proposer(method, len(chosen.space.names), seed), evaluations)
        return {name: getattr(found, name) for name in ("regrets", "chosen", "at", "ask_s")}

    return Course(**kept(f"{task} {method} {evaluations} {workers} {seed} {lottery:g}", searched))


def kept(name: str, compute: Callable[[], Any]) -> Any:
    """Return what was computed under this name, now or before: of peers alone, which stay when ems changes."""
    path = real.CACHE / f"{name}.json"
    if not path.exists():
        real.CACHE.mkdir(exist_ok=True)
        found = json.dumps(compute())
        path.write_text(found)
    return json.loads(path.read_text())


def every(run: Callable[[int], Course], seeds: int) -> list[Course]:
    """Run a search for each seed, a core each."""
    with ProcessPoolExecutor(CORES) as pool:
        return list(pool.map(run, range(seeds)))


def methods(skip: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Return what is measured, and a line for what is not."""
    found, left = [f"ems {name}" for name in OURS], []
    for name in peers.ASKERS:
        lacking = peers.missing(name)
        if name in skip:
            left.append(f"{name} (takes too long)")
        elif lacking:
            left.append(f"{name} (needs {lacking})")
        elif name != "random":
            found.append(name)
    return found, ["Not run: " + ", ".join(left) + "."] if left else []


def compared(
    title: str, task: str, evaluations: int, workers: int, seeds: int, solved: float, skip: Sequence[str] = ()
) -> Section:
    """Compare all methods on a task."""
    names, notes = methods(skip)
    columns = (
        "method",
        "seeds",
        "median final regret",
        "mean log10 regret over the run",
        f"reached {solved:g}",
        "median evaluations to it",
        "CPU s/suggestion",
    )
    table = Section(title, columns, notes=notes)
    ranked: list[tuple[float, Sequence[str]]] = []
    for name in names:
        few = seeds if name.startswith(("ems", "Optuna TPE", "hyper", "Sobol")) else max(2, seeds // 2)
        found = every(functools.partial(course, task, name, evaluations, workers), few)
        area = [float(np.mean(np.log10(np.maximum(each.regrets, FLOOR)))) for each in found]
        to = [each.evaluations_to(solved) or np.inf for each in found]
        asked = sum(sum(each.ask_s) for each in found) / sum(len(each.at) for each in found)
        hits = sum(np.isfinite(to))
        middle = float(np.median(to))
        row = (
            name,
            str(few),
            interval([each.regrets[-1] for each in found]),
            interval(area, np.mean),
            f"{hits}/{few}",
            f"{middle:.0f}" if np.isfinite(middle) else f"> {evaluations}",
            f"{asked:.3f}",
        )
        ranked.append((float(np.mean(area)), row))
        print("   ", *row, sep="  ", flush=True)
    table.rows = [row for _, row in sorted(ranked, key=lambda each: each[0])]
    return table


def a_hartmann6(seeds: int) -> Section:
    table = compared("Hartmann6, one at a time, 60 evaluations", "hartmann6", 60, 1, seeds, 0.01)
    solved = next(row[4] for row in table.rows if row[0] == "ems gp")
    n, of = map(int, solved.split("/"))
    table.notes.append(judged("Hartmann6 solved (regret < 0.01) in 60 evaluations", solved, "18/20", n >= 0.9 * of))
    return table


def b_hartmann6_async(seeds: int) -> Section:
    return compared(
        "Hartmann6, 8 asynchronous workers, 96 evaluations, log-normal run times",
        "hartmann6",
        96,
        8,
        seeds,
        0.01,
        SKIP["hartmann6 async"],
    )


def c_rosenbrock(seeds: int) -> Section:
    return compared(
        "Rosenbrock5, 8 asynchronous workers, 96 evaluations",
        "rosenbrock5",
        96,
        8,
        seeds,
        5.0,
        ("skopt gp_hedge", "BoTorch LogEI"),
    )


def d_ackley80(seeds: int) -> Section:
    table = compared(
        "Noisy Ackley10, 80 asynchronous workers, 400 evaluations",
        "ackley10+noise",
        400,
        80,
        max(2, seeds // 2),
        1.0,
        SKIP["ackley10"],
    )
    row = next(row for row in table.rows if row[0] == "ems gp")
    n, of = map(int, row[4].split("/"))
    table.notes.append(
        judged(
            "80 workers under regret 1 within 400 evaluations",
            f"{row[4]} seeds, median regret {row[2]}",
            "most seeds",
            n > of / 2,
        )
    )
    return table


def e_latency(_: int) -> Section:
    """80 suggestions at 1,000 observations with 80 pending, 10 dimensions."""
    task = problems.ackley(10)
    rng = np.random.default_rng(0)
    rows = task.space.decode_rows(rng.random((1080, 10)))
    from ems.search.trial import Outcome

    known = [
        Trial(i, p, outcome=Outcome.OK, values=(task.value(p) + 0.1 * rng.standard_normal(),))
        for i, p in enumerate(rows[:1000])
    ]
    pending = [Trial(1000 + i, p) for i, p in enumerate(rows[1000:])]
    table = Section(
        "80 suggestions at 1,000 observations, 80 pending, 10 dimensions", ("sampler", "seconds of CPU for 80")
    )
    for name in ("gp", "ts", "lp", "ucb"):
        problem = Problem(task.space, sampler=name, parallel=160, seed=0)
        began = time.process_time()
        found = ours(problem, [*known, *pending], 80, range(1080, 1160))
        took = time.process_time() - began
        assert len(found) == 80
        table.rows.append((f"ems {name}", f"{took:.2f}"))
        if name == "gp":
            table.notes.append(judged("80 suggestions", f"{took:.2f} s", "5 s", took < 5))
    return table


def f_crashes(seeds: int) -> Section:
    """Evaluations to a target with 30 % of the space crashing."""
    table = Section(
        "30 % of the space crash (beyond a plane that leaves the best point): evaluations to the target, all counted",
        ("problem", "target", "without crashes", "with", "more"),
    )
    more = []
    for name, target in (("hartmann6", 0.2), ("hartmann3", 0.05), ("log-sphere5+noise", 0.5)):
        whole = every(functools.partial(course, name, "ems gp", 120, 8), seeds)
        broken = every(functools.partial(_crashed, name), seeds)
        without, with_ = (
            np.median([each.evaluations_to(target) or 120 for each in found]) for found in (whole, broken)
        )
        more.append(with_ / without - 1)
        table.rows.append((name, f"{target:g}", f"{without:.0f}", f"{with_:.0f}", f"{more[-1]:+.0%}"))
    table.notes.append(
        judged(
            "more evaluations, mean over the problems", f"{np.mean(more):+.0%}", "+15 %", float(np.mean(more)) <= 0.15
        )
    )
    return table


def _crashed(name: str, seed: int) -> Course:
    task = problems.crashing(held_out(name), 0.3, seed)
    return Simulation(task, workers=8, seed=seed).run(ours, 120)


# ---------------------------------------------------------------------------------------------- learning curves


def _raced(name: str, method: str, target: float, horizon: float, seed: int) -> float:
    """Return when a method reached the target, in epochs of one worker; infinity: not before the horizon."""
    task = real.task(name)
    track = race.Track(task, 8, seed)
    if method in peers.CLIMBERS:
        climber = functools.partial(peers.CLIMBERS[method], task.d, seed, real.EPOCHS)
        return float(
            kept(
                f"{name} {method} {target:.6f} {horizon:g} {seed}",
                lambda: race.theirs(track, horizon, climber(), target).time_to(target),
            )
        )
    sampler, scheduler = RACERS[method]
    generator = peers.HpBandSter(task.d, seed) if method.startswith("hpbandster") else None
    return race.ours(track, horizon, seed, target, sampler, scheduler, generator).time_to(target)


RACERS: Mapping[str, tuple[str, str]] = {
    "ems gp + asha": ("gp", "asha"),
    "ems bohb": ("gp", "bohb"),
    "ems hyperband": ("random", "hyperband"),
    "ems random + asha": ("random", "asha"),
    "hpbandster's KDE + ems asha": ("random", "asha"),
}


def g_curves(seeds: int) -> Section:
    title = "Real learning curves: 5 params of scikit-learn's perceptron on digits; to the loss of one in 600 at random"
    return raced(title, "digits-5", 400.0, seeds)


def j_hard_curves(seeds: int) -> Section:
    title = "Real learning curves: 8 params of a deeper perceptron on digits; to the loss of one in 3,000 at random"
    return raced(title, "digits-8", 600.0, seeds)


def raced(title: str, name: str, horizon: float, seeds: int) -> Section:
    """Race everybody to a target on real learning curves of 1 to 81 epochs, with 8 workers."""
    columns = ("method", "seeds", "median epochs of one worker to the target", "reached it", "speed-up over random")
    table = Section(title, columns)
    losses, target = real.pool(name), real.target(name)
    random = float(np.median(race.random_times(losses, 8, target, 2000)))
    found: dict[str, tuple[float, Sequence[str]]] = {}
    for method in (each for each in (*RACERS, *peers.CLIMBERS) if not peers.missing(each)):
        few = seeds if method in ("ems gp + asha", "Syne Tune BOHB") else max(2, seeds // 2)
        with ProcessPoolExecutor(CORES) as pool:
            times = list(pool.map(functools.partial(_raced, name, method, target, horizon), range(few)))
        middle, hits = float(np.median(times)), sum(map(np.isfinite, times))
        is_known = np.isfinite(middle)
        shown = f"{middle:.0f}" if is_known else f"> {horizon:g}"
        speed = f"{random / middle:.1f}" if is_known else f"< {random / horizon:.1f}"
        found[method] = (min(middle, horizon), (method, str(few), shown, f"{hits}/{few}", speed))
        print("   ", *found[method][1], sep="  ", flush=True)
    table.rows = [
        *(row for _, row in sorted(found.values(), key=lambda each: each[0])),
        ("random, all to the end", "2000 draws", f"{random:.0f}", "", "1"),
    ]
    reached = losses <= target
    least = int((reached.argmax(axis=1) + 1)[reached.any(axis=1)].min())
    table.notes.append(
        f"The random model that reached the loss took {least} epochs to it: as soon, no method is more than "
        f"{random / least:.0f} times faster than random."
    )
    mine = found["ems gp + asha"][0]
    table.notes.append(judged("over random", f"{random / mine:.0f}x", "50x", random / mine >= 50))
    if "Syne Tune BOHB" in found:
        ahead = found["Syne Tune BOHB"][0] / mine
        table.notes.append(judged("over BOHB (Syne Tune's)", f"{ahead:.1f}x", "4x", ahead >= 4))
    return table


# ---------------------------------------------------------------------------------------------- the driver, noise


def h_idle(seeds: int) -> Section:
    """Idle share where the driver wakes once per mean run time."""
    from benchmarks.tuning.wakes import idle

    table = Section(
        "A driver that wakes once per mean run time: 8 workers, 96 evaluations of Hartmann6",
        ("queued ahead", "idle share of the workers", "median regret at the end"),
    )
    for name, share, regret in idle(seeds):
        table.rows.append((name, f"{share:.1%}", f"{regret:.3g}"))
        if "buffer" in name:
            table.notes.append(judged("idle", f"{share:.1%}", "2 %", share <= 0.02))
    return table


def i_claims(_: int) -> Section:
    """False claims of a better configuration, looked for after each of up to 25 pairs."""
    title = (
        "Which of two is better: up to 25 paired runs, a look after each; noise of .5 points, of which .72 is common"
    )
    table = Section(
        title, ("true difference", "noise", "claimed the better", "claimed the worse", "runs each when decided")
    )
    rng = np.random.default_rng(0)
    for difference in (0.0, 0.2):
        for noise, draw in (
            ("normal", rng.standard_normal),
            ("heavy tails (t3)", lambda n: rng.standard_t(3, n) / 3**0.5),
        ):
            right, wrong, pairs = _claims(difference, draw, 1000)
            table.rows.append((f"{difference:g} points", noise, f"{right:.1%}", f"{wrong:.1%}", f"{pairs:.0f}"))
            if noise == "normal":
                false = right + wrong if difference == 0 else wrong
                table.notes.append(
                    judged(f"false claims at {difference:g} points", f"{false:.1%}", "5 %", false <= 0.05)
                )
    return table


def _claims(difference: float, draw: Callable[[int], np.ndarray], repeats: int) -> tuple[float, float, float]:
    """Return the shares of right and wrong claims (of either one where the two are equal), and pairs to a claim."""
    from ems.search.noise import compare

    right, wrong, pairs = 0, 0, []
    for _ in range(repeats):
        common, own = 0.5 * 0.72**0.5, 0.5 * 0.28**0.5
        shared = common * draw(25)
        a, b = shared + own * draw(25), difference + shared + own * draw(25)
        for n in range(4, 26):
            found = compare(list(a[:n]), list(b[:n]))
            if found.is_decided:
                right, wrong = right + found.is_better, wrong + (not found.is_better)
                pairs.append(n)
                break
    return right / repeats, wrong / repeats, float(np.mean(pairs)) if pairs else np.nan


SECTIONS: Mapping[str, Callable[[int], Section]] = {
    "a": a_hartmann6,
    "b": b_hartmann6_async,
    "c": c_rosenbrock,
    "d": d_ackley80,
    "e": e_latency,
    "f": f_crashes,
    "g": g_curves,
    "h": h_idle,
    "i": i_claims,
    "j": j_hard_curves,
}
