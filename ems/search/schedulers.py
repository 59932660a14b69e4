"""Who goes on to the next rung, in which bracket a new trial begins, and which running one is stopped.

``asha``: asynchronous successive halving by promotion (Li et al. 2020, "A System for Massively Parallel Hyperparameter
Tuning", algorithm 2): of those that reached a rung, the best ``1 / eta`` go on, as soon as they are; the best of all at
once, the others only as many as that share of the rung (delayed promotion: Li et al. 2022, "Hyper-Tune", section 4.2).
``hyperband`` and ``bohb`` do so in brackets that begin at different rungs (Li et al. 2018, table 1). In mode ``sync``
a rung of a bracket is first filled and finished, and then promotes once. ``stop`` promotes nobody: each trial runs to
the end at once, and is cancelled where it is not among the best ``1 / eta`` at a rung that it passes; without a
fidelity, by the median rule (Golovin et al. 2017, "Google Vizier", section 3.2.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ems.search.problem import Problem
from ems.search.rungs import Entry, budgets, ranked, value_at
from ems.search.trial import Outcome, Promote, Stop, Trial

Curves = Mapping[int, Sequence[tuple[float, float]]]  # of each trial: (budget, value), ascending

_MEDIAN_NEEDS = 5  # curves of others before the median of them stops anybody


def first_rung(problem: Problem, bracket: int) -> int:
    """Rung that trials of a bracket begin at: 0, the top where nothing is promoted, or by the kind of the bracket."""
    if problem.scheduler in ("none", "stop"):
        return problem.n_rungs - 1
    return bracket % problem.n_rungs if problem.scheduler in ("hyperband", "bohb") else 0


def bracket_size(problem: Problem, bracket: int) -> int:
    """How many configurations begin in a bracket: such that each kind takes about as many epochs as the others.

    ``ceil(n_rungs / (s + 1) * eta ** s)`` where ``s`` rungs follow the first; ``eta ** s`` where there is one kind.
    """
    if problem.fidelity is None:
        return 1
    after = problem.n_rungs - 1 - first_rung(problem, bracket)
    share = problem.n_rungs / (after + 1) if problem.scheduler in ("hyperband", "bohb") else 1.0
    return max(1, math.ceil(share * problem.fidelity.eta**after - 1e-9))


def next_bracket(problem: Problem, race: Sequence[Entry]) -> int:
    """Bracket that the next configuration begins in, given those of its group, in order.

    In mode ``sync`` brackets are numbered on, and each is filled before the next begins; else there is one of each
    kind for good, and the next configuration goes where the share of ``bracket_size`` is least.
    """
    counts: dict[int, int] = {}
    for entry in race:
        counts[entry.bracket] = counts.get(entry.bracket, 0) + 1
    if problem.mode == "sync" and problem.scheduler in ("asha", "hyperband", "bohb"):
        newest = max(counts, default=0)
        return newest + (counts.get(newest, 0) >= bracket_size(problem, newest))
    kinds = range(problem.n_rungs if problem.scheduler in ("hyperband", "bohb") else 1)
    return min(kinds, key=lambda kind: (counts.get(kind, 0) / bracket_size(problem, kind), kind))


def promotions(problem: Problem, race: Sequence[Entry], *, closed: bool) -> list[Promote]:
    """Segments that are due now: what replicates lag behind their configuration, then the highest rungs first.

    Parameters
    ----------
    closed
        Whether no new configuration will begin: then a bracket that is not full is finished as it is.
    """
    if problem.fidelity is None or problem.scheduler in ("none", "stop"):
        return []
    due = [Promote(number, entry.rung) for entry in race for number in entry.behind]
    chosen: list[tuple[int, int, Entry]] = []
    for own in brackets(race).values():
        rule = _promoted_sync if problem.mode == "sync" else _promoted_async
        chosen += [(-entry.rung, place, entry) for place, entry in rule(problem, own, closed=closed)]
    chosen.sort(key=lambda each: (each[0], each[1], each[2].config))
    return due + [Promote(number, entry.rung + 1) for _, _, entry in chosen for number in entry.numbers]


def brackets(race: Sequence[Entry]) -> dict[tuple[str | None, int], list[Entry]]:
    """Entries by group and bracket: only within one of these are they ranked against one another."""
    found: dict[tuple[str | None, int], list[Entry]] = {}
    for entry in race:
        found.setdefault((entry.group, entry.bracket), []).append(entry)
    return found


def _promoted_async(problem: Problem, own: Sequence[Entry], *, closed: bool) -> list[tuple[int, Entry]]:
    """Of each rung, the best ``1 / eta`` of those that arrived so far, where they were not promoted yet.

    While new ones begin, no more than that share of the rung go on in all, beside the best of it. A search that learns
    makes most newcomers better than those before: all would go on, one by one, though the best third at the end is a
    third only, and little would be left to begin new ones. Delayed promotion is from Hyper-Tune (Li et al. 2022, VLDB
    15:6, D-ASHA); that the best of a rung does not wait is ours.
    """
    found = []
    for rung in reversed(range(problem.n_rungs - 1)):
        order = ranked(own, rung)
        quota = _share(problem, len(order))
        due = [(place, each) for place, each in enumerate(order[:quota]) if _waits_at(each, rung)]
        left = quota - sum(each.rung > rung for each in order)
        is_best = bool(due) and due[0][0] == 0
        found += due if closed else due[: max(left, int(is_best))]
    return found


def _promoted_sync(problem: Problem, own: Sequence[Entry], *, closed: bool) -> list[tuple[int, Entry]]:
    """Of the lowest rung that is full and finished, the best ``1 / eta``, at least one that can go on."""
    bracket = own[0].bracket
    if not closed and len(own) < bracket_size(problem, bracket):
        return []
    for rung in range(first_rung(problem, bracket), problem.n_rungs - 1):
        if any(each.state is Outcome.PENDING and each.rung <= rung for each in own):
            return []
        order = ranked(own, rung)
        quota = max(1, _share(problem, len(order)))
        due = [(place, each) for place, each in enumerate(order[:quota]) if _waits_at(each, rung)]
        if due:
            return due
    return []


def _share(problem: Problem, count: int) -> int:
    """Return how many of a rung's ``count`` go on."""
    return math.floor(count / problem.fidelity.eta + 1e-9) if problem.fidelity else 0


def _waits_at(entry: Entry, rung: int) -> bool:
    return entry.rung == rung and entry.state is Outcome.OK and entry.has_completed(rung)


def finale(problem: Problem, race: Sequence[Entry], left: float) -> list[Promote]:
    """When nothing begins any more and nothing is due: the best of the highest rung goes on, until one is at the top.

    Successive halving alone leaves nobody at the top when the search was small, and a rung that cannot be carried to
    the top has no value that can be told from others. With a budget of epochs, what is left of it carries more of them
    there, as long as it pays the whole way; so no segment is begun for nothing.

    Parameters
    ----------
    left
        Epochs that may be spent still; infinite without such a budget.
    """
    if problem.fidelity is None or problem.scheduler in ("none", "stop"):
        return []
    due: list[Promote] = []
    rungs, top = budgets(problem), problem.n_rungs - 1
    for group in dict.fromkeys(each.group for each in race):
        own = [each for each in race if each.group == group]
        is_done = any(each.has_completed(top) for each in own)
        if is_done and math.isinf(left):
            continue
        for rung in reversed(range(top)):
            waiting = [each for each in ranked(own, rung) if _waits_at(each, rung)]
            price = (rungs[top] - rungs[rung]) * len(waiting[0].numbers) if waiting else 0.0
            if waiting and price <= left:
                left -= price
                due += [Promote(number, rung + 1) for number in waiting[0].numbers]
                break
    return due


def stops(problem: Problem, trials: Sequence[Trial], curves: Curves | None) -> list[Stop]:
    """Choose running trials that will not be among the best, with what says so; only for scheduler ``stop``.

    Parameters
    ----------
    curves
        Of the trials that run; those of ended ones help where their ``values`` hold NaN.
    """
    if problem.scheduler != "stop" or not curves:
        return []
    rule = _asha_stop if problem.fidelity is not None and problem.n_rungs > 1 else _median_stop
    found = []
    for trial in sorted(trials, key=lambda each: each.number):
        if trial.is_pending and curves.get(trial.number):
            peers = [each for each in trials if each.group == trial.group and each.number != trial.number]
            reason = rule(problem, trial, peers, curves)
            found += [Stop(trial.number, reason)] if reason else []
    return found


def _asha_stop(problem: Problem, trial: Trial, peers: Sequence[Trial], curves: Curves) -> str:
    """Say how it is not among the best 1/eta of all that passed the highest rung that its curve passed; else empty."""
    if problem.fidelity is None:
        return ""
    name, eta = problem.fidelity.name or "step", problem.fidelity.eta
    for rung, budget in reversed(list(enumerate(budgets(problem)[:-1]))):
        mine = _passed(trial, rung, budget, curves)
        if math.isnan(mine):
            continue
        others = [value for each in peers if not math.isnan(value := _passed(each, rung, budget, curves))]
        place, count = 1 + sum(value < mine for value in others), len(others) + 1
        if count >= eta and place > max(1, _share(problem, count)):
            return f"place {place} of the {count} that came to {name}={budget:g}; 1 in {eta:g} goes on"
        return ""
    return ""


def _passed(trial: Trial, rung: int, budget: float, curves: Curves) -> float:
    """Value of a trial at a rung: as told, else the last of its curve up to there, once it went so far."""
    known = value_at(trial, rung)
    points = curves.get(trial.number, ())
    if math.isfinite(known) or not points or points[-1][0] < budget:
        return known
    return [value for at, value in points if at <= budget][-1] if points[0][0] <= budget else math.nan


def _median_stop(problem: Problem, trial: Trial, peers: Sequence[Trial], curves: Curves) -> str:
    """Say how its best so far is worse than the median of the others' means up to the same step; else empty."""
    del problem
    step, best = curves[trial.number][-1][0], min(value for _, value in curves[trial.number])
    means = [
        float(np.mean([value for at, value in points if at <= step]))
        for each in peers
        if (points := curves.get(each.number)) and points[0][0] <= step <= points[-1][0]
    ]
    if len(means) < _MEDIAN_NEEDS or best <= float(np.median(means)):
        return ""
    return f"its best up to step {step:g} is worse than the median of {len(means)} others' means until then"
