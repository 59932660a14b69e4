"""Rungs: how far each configuration has come, what it was worth there, and what that took of a budget of epochs.

Values of different rungs are never compared with one another: a run that trained three times as long is better for
that alone. Whatever ranks here ranks those that reached the same rung.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from ems.search.problem import Problem
from ems.search.trial import Origin, Outcome, Trial

OUTSIDE = (Origin.GIVEN, Origin.CONFIRM)  # no part of the race through the rungs


@dataclass(frozen=True, slots=True)
class Entry:
    """A configuration in the rungs: one trial, or its replicates, which go up together.

    Attributes
    ----------
    config
        Number of its first trial.
    numbers
        Its trials that can go on, lowest first (none that failed or was lost).
    rung
        That it is on its way to, or has completed.
    state
        PENDING until all its replicates completed ``rung``; bad where at least half of them failed.
    values
        Mean over the replicates at each rung up to ``rung``; NaN where it has none.
    behind
        Trials that have still to be promoted to ``rung``.
    missing
        Replicates that were not begun yet.
    """

    config: int
    numbers: tuple[int, ...]
    group: str | None
    bracket: int
    rung: int
    state: Outcome
    values: tuple[float, ...]
    behind: tuple[int, ...] = ()
    missing: int = 0

    def has_completed(self, rung: int) -> bool:
        """Whether it has a value at a rung that may be ranked."""
        is_past = rung < self.rung or (rung == self.rung and self.state in (Outcome.OK, Outcome.STOPPED))
        return is_past and rung < len(self.values) and math.isfinite(self.values[rung])

    def has_failed_at(self, rung: int) -> bool:
        """Whether it failed on the way to a rung."""
        return self.state.is_bad and self.rung == rung


def budgets(problem: Problem) -> tuple[float, ...]:
    """Return what each rung costs from the start; one rung that costs nothing where there is no fidelity."""
    return problem.fidelity.rungs if problem.fidelity else (0.0,)


def seed_of(problem: Problem, index: int) -> int:
    """Return the seed that the replicate ``index`` of every configuration runs with: paired over configurations."""
    return problem.seed + index


def value_at(trial: Trial, rung: int) -> float:
    """Objective of a trial at the end of a rung; NaN where it has none."""
    return trial.values[rung] if 0 <= rung < len(trial.values) else math.nan


def modelled_rung(problem: Problem, trials: Sequence[Trial]) -> int:
    """Return the highest rung with two values more than dimensions; the lowest that has any where none has so many."""
    counts = [sum(math.isfinite(value_at(each, rung)) for each in trials) for rung in range(problem.n_rungs)]
    needed = len(problem.space.names) + 2
    enough = [rung for rung, count in enumerate(counts) if count >= needed]
    return enough[-1] if enough else next((rung for rung, count in enumerate(counts) if count), 0)


def at_rung(trials: Sequence[Trial], rung: int) -> list[Trial]:
    """Return trials as if there were only that rung: their value there, if any, and no other.

    Those that have it are ended; those that wait below keep their place in the space, without a value.
    """
    return [_at_rung(each, rung) for each in trials]


def _at_rung(trial: Trial, rung: int) -> Trial:
    value = value_at(trial, rung)
    if not math.isfinite(value):
        return replace(trial, rung=0, values=())
    return replace(trial, rung=0, values=(value,), outcome=trial.outcome if trial.outcome.is_bad else Outcome.OK)


def entries(problem: Problem, trials: Iterable[Trial]) -> list[Entry]:
    """Return the configurations of the race, by number; without given ones, and without the confirmation's."""
    configs: dict[int, list[Trial]] = {}
    for trial in sorted(trials, key=lambda each: each.number):
        if trial.origin not in OUTSIDE:
            configs.setdefault(trial.number if trial.config < 0 else trial.config, []).append(trial)
    return [_entry(config, members, problem.seeds) for config, members in configs.items()]


def _entry(config: int, members: Sequence[Trial], seeds: int) -> Entry:
    first = members[0]
    live = [each for each in members if each.outcome is not Outcome.LOST]
    bad = [each for each in live if each.outcome.is_bad]
    good = [each for each in live if not each.outcome.is_bad]
    missing = max(0, seeds - len(members)) if live and not bad else 0
    rung = max(each.rung for each in members)
    behind: tuple[int, ...] = ()
    if not live:
        state = Outcome.LOST
    elif bad and 2 * len(bad) >= len(live):
        state, rung = bad[0].outcome, max(each.rung for each in bad)
    else:
        rung = max(each.rung for each in good)
        behind = tuple(each.number for each in good if each.rung < rung and each.outcome is Outcome.OK)
        state = _state(good, is_incomplete=bool(missing or behind))
    return Entry(
        config=config,
        numbers=tuple(each.number for each in good),
        group=first.group,
        bracket=first.bracket,
        rung=rung,
        state=state,
        values=tuple(_mean([value_at(each, at) for each in live]) for at in range(rung + 1)),
        behind=behind,
        missing=missing,
    )


def _state(good: Sequence[Trial], *, is_incomplete: bool) -> Outcome:
    if is_incomplete or any(each.is_pending for each in good):
        return Outcome.PENDING
    return Outcome.STOPPED if any(each.outcome is Outcome.STOPPED for each in good) else Outcome.OK


def _mean(values: Sequence[float]) -> float:
    finite = [each for each in values if math.isfinite(each)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def ranked(race: Iterable[Entry], rung: int) -> list[Entry]:
    """Those that a rung's quota counts, best first: failed ones come last, lost ones are left out."""
    arrived = [
        each
        for each in race
        if each.state is not Outcome.LOST and (each.has_completed(rung) or each.has_failed_at(rung))
    ]
    return sorted(arrived, key=lambda each: (each.values[rung] if each.has_completed(rung) else math.inf, each.config))


def charge(problem: Problem, trials: Iterable[Trial]) -> float:
    """Return what trials take of a budget of epochs: each up to the rung it is on its way to or reached.

    A segment that failed counts in full, one that was lost with its machine not at all, and one that was stopped up to
    the rung that it was on its way to. Given trials count nothing.
    """
    rungs = budgets(problem)
    total = 0.0
    for trial in trials:
        rung = trial.rung - 1 if trial.outcome is Outcome.LOST else trial.rung
        rung = min(rung, len(trial.values)) if trial.outcome is Outcome.STOPPED else rung
        if trial.origin is not Origin.GIVEN and 0 <= rung < len(rungs):
            total += rungs[rung]
    return total


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The best of a rung: mean ``value`` over ``count`` replicates of the configuration that began as ``config``."""

    group: str | None
    rung: int
    config: int
    value: float
    count: int


def incumbents(problem: Problem, trials: Iterable[Trial]) -> list[Incumbent]:
    """Return the best configuration of each rung of each group that has one; rungs ascending."""
    race = entries(problem, trials)
    found = []
    for group in dict.fromkeys(each.group for each in race):
        own = [each for each in race if each.group == group]
        for rung in range(problem.n_rungs):
            completed = [each for each in own if each.has_completed(rung)]
            if completed:
                best = min(completed, key=lambda each: (each.values[rung], each.config))
                found.append(Incumbent(group, rung, best.config, best.values[rung], len(best.numbers)))
    return found


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two rungs agree on the order of the configurations that completed both.

    ``correlation`` is Spearman's, NaN below three configurations. Only the better part of the lower rung goes on, so it
    understates how well the lower rung sorts good from bad.
    """

    low: int
    high: int
    count: int
    correlation: float

    @property
    def is_low(self) -> bool:
        """Whether the lower rung misleads: promotion by it may be worse than chance, the smallest rung is too short."""
        return self.count >= 8 and self.correlation < 0.2


def agreements(problem: Problem, trials: Iterable[Trial]) -> list[Agreement]:
    """Return the agreement of each rung with the next; ranks within each group, together over all groups."""
    race = entries(problem, trials)
    found = []
    for low in range(problem.n_rungs - 1):
        pairs = [each for each in race if each.has_completed(low) and each.has_completed(low + 1)]
        found.append(Agreement(low, low + 1, len(pairs), _spearman(pairs, low)))
    return found


def _spearman(pairs: Sequence[Entry], low: int) -> float:
    """Mean of the groups' correlations, by the number of their configurations; NaN where no group has three."""
    total, weight = 0.0, 0
    for group in dict.fromkeys(each.group for each in pairs):
        own = np.array([each.values[low : low + 2] for each in pairs if each.group == group])
        if len(own) >= 3 and np.all(np.ptp(own, axis=0) > 0):
            total += len(own) * float(stats.spearmanr(own[:, 0], own[:, 1]).statistic)
            weight += len(own)
    return total / weight if weight else math.nan


def ignored_fidelity(problem: Problem, steps: Mapping[int, Mapping[int, float]]) -> str:
    """Say how the script shows that it ignores the fidelity param; empty while it does not.

    Parameters
    ----------
    steps
        By trial number, for each rung that it completed, the greatest step at which the metric was logged by then.

    Returns
    -------
    str
        A sentence, as soon as two trials trained equally long in segments whose budgets differ: up to the same step at
        two rungs (each segment began anew, or did nothing), or as many steps again (each went on for a whole run).
    """
    if problem.fidelity is None:
        return ""
    rungs, name = problem.fidelity.rungs, problem.fidelity.name
    found = []
    for number, seen in sorted(steps.items()):
        for low, high in itertools.pairwise(sorted(seen)):
            grown, whole = seen[high] - seen[low], rungs[high] - rungs[low] == rungs[low]
            if grown == 0 or (grown == seen[low] and not whole):
                found.append((number, low, high))
                break
    if len(found) < 2:
        return ""
    number, low, high = found[0]
    return (
        f"The script ignores {name}: trial {number} logged up to step {steps[number][low]:g} with "
        f"{name}={rungs[low]:g} and up to step {steps[number][high]:g} with {name}={rungs[high]:g}, "
        f"and trial {found[1][0]} did the like."
    )
