"""The confirmation: the last part of a budget goes on paired replicates of the best, so that the winner is no luck.

The best of many noisy values is one that was lucky. So the best few configurations run again, all with the same fresh
seeds; they race by these values alone, and who is very likely worse than the leader drops out (Maron & Moore 1997,
"The Racing Algorithm"). The last two run until one is better by `ems.search.noise.compare`, which allows for being
asked after each round, or the budget is spent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ems.model import Params
from ems.search import noise
from ems.search.problem import Problem
from ems.search.rungs import Entry, entries, seed_of, value_at
from ems.search.trial import Origin, Outcome, Proposal, Start, Trial

MOST = 5  # configurations that race
_ROUNDS = 8  # that the budget should pay for all of them: from about so many on a claim can be made
_DROPS_AT = 0.975  # probability that the leader is better, from the fourth round on


def reserved(problem: Problem) -> int:
    """Return how many of the trials are kept for the confirmation: its share, at least two where there is one."""
    if problem.trials is None or problem.confirm <= 0:
        return 0
    return min(max(2, round(problem.confirm * problem.trials)), problem.trials - 1)


def confirmations(problem: Problem, trials: Sequence[Trial], n_total: float) -> tuple[list[Start], str]:
    """Return the replicates to begin now, and, once there are none, what the confirmation came to.

    Parameters
    ----------
    n_total
        How many trials of the confirmation are paid for, those that were made among them; infinite where another
        budget ends it.
    """
    if problem.confirm <= 0:
        return [], ""
    races = _races(problem, trials, n_total)
    return [start for race in races for start in race.due()], " ".join(filter(None, (race.result() for race in races)))


def _races(problem: Problem, trials: Sequence[Trial], n_total: float) -> list[Race]:
    """Return a race for each group; where the budget is not enough for all groups, the first ones'."""
    race = entries(problem, trials)
    found: list[tuple[str | None, list[int]]] = []
    for group in problem.groups or (None,):
        best = _best([each for each in race if each.group == group])
        if len(best) > 1:
            found.append((group, best))
    if not found:
        return []
    share = n_total / len(found)
    if share < 2:
        found, share = found[: int(n_total // 2)], 2.0
    by_config = {config for _, configs in found for config in configs}
    made: dict[int, dict[int, Trial]] = {config: {} for config in by_config}
    for each in trials:
        if each.origin is Origin.CONFIRM and each.config in made:
            made[each.config][each.seed - seed_of(problem, problem.seeds)] = each
    params = {each.number: each.params for each in trials if each.number in by_config}
    return [
        Race(problem, group, tuple(configs[: _n_candidates(share)]), share, params, made) for group, configs in found
    ]


def _best(own: Sequence[Entry]) -> list[int]:
    """Return the configurations that did best, by the highest rung that each reached."""
    rated = [(rung, each) for each in own for rung in [_reached(each)] if rung >= 0]
    rated.sort(key=lambda pair: (-pair[0], pair[1].values[pair[0]], pair[1].config))
    return [each.config for _, each in rated][:MOST]


def _reached(entry: Entry) -> int:
    """Return the highest rung that an entry completed, -1 if none or if it failed later."""
    if entry.state.is_bad:
        return -1
    return max((rung for rung in range(entry.rung + 1) if entry.has_completed(rung)), default=-1)


def _n_candidates(n_total: float) -> int:
    return MOST if math.isinf(n_total) else max(2, min(MOST, int(n_total) // _ROUNDS))


@dataclass(frozen=True)
class Race:
    """Candidates of a group, best first, and the trials that each has had, by round.

    Attributes
    ----------
    n_total
        Trials that it may take in all.
    made
        By configuration and round.
    """

    problem: Problem
    group: str | None
    candidates: tuple[int, ...]
    n_total: float
    params: dict[int, Params]
    made: dict[int, dict[int, Trial]]

    @property
    def _most(self) -> int:
        """Rounds that two of them could be compared in."""
        return noise.MOST_PAIRS if math.isinf(self.n_total) else max(2, min(noise.MOST_PAIRS, int(self.n_total) // 2))

    def _values(self, config: int) -> list[float]:
        top = self.problem.n_rungs - 1
        made = self.made[config]
        return [
            value_at(made[at], top) if at in made and made[at].outcome is Outcome.OK else math.nan
            for at in range(self._most)
        ]

    @cached_property
    def standing(self) -> list[int]:
        """Those still in the race, best first by the mean of their values here; those without one behind."""
        healthy = [each for each in self.candidates if not self._fails(each)]
        order = sorted(healthy, key=lambda each: (_mean(self._values(each)), self.candidates.index(each)))
        if not order:
            return []
        leader = self._values(order[0])
        return [each for at, each in enumerate(order) if at < 2 or not self._is_behind(leader, self._values(each))]

    @staticmethod
    def _is_behind(leader: Sequence[float], values: Sequence[float]) -> bool:
        pairs = sum(math.isfinite(a) and math.isfinite(b) for a, b in zip(leader, values, strict=True))
        return pairs >= noise.FIRST_LOOK and noise.probability_better(leader, values) > _DROPS_AT

    @cached_property
    def _is_decided(self) -> bool:
        """Whether there is nobody to race against any more, or one of the last two is better."""
        if len(self.standing) < 2:
            return True
        first, second = self.standing[:2]
        return len(self.standing) == 2 and self._compare(self._values(first), self._values(second)).is_decided

    def _compare(self, a: Sequence[float], b: Sequence[float]) -> noise.Comparison:
        return noise.compare(a, b, self._most, noise.ALPHA / (len(self.candidates) - 1))

    def _fails(self, config: int) -> bool:
        """Whether at least two of its replicates failed, and as many as went well."""
        outcomes = [each.outcome for each in self.made[config].values()]
        n_bad = sum(each.is_bad for each in outcomes)
        return n_bad >= 2 and n_bad >= sum(each is Outcome.OK for each in outcomes)

    def due(self) -> list[Start]:
        """Return the replicates to begin, round by round: only rounds that are paid for all who stand."""
        if self._is_decided:
            return []
        left = self.n_total - sum(
            each.outcome is not Outcome.LOST for config in self.candidates for each in self.made[config].values()
        )
        starts: list[Start] = []
        for at in range(self._most):
            missing = [each for each in self.candidates if each in self.standing and at not in self.made[each]]
            if len(missing) > left:
                break
            starts += [self._start(each, at) for each in missing]
            left -= len(missing)
        return starts

    def _start(self, config: int, at: int) -> Start:
        seed, rung = seed_of(self.problem, self.problem.seeds + at), self.problem.n_rungs - 1
        return Start(Proposal(self.params[config], Origin.CONFIRM), seed, config, self.group, rung=rung)

    def result(self) -> str:
        """Say how the best compares with the second best; empty where neither has a value."""
        ranked = sorted(self.candidates, key=lambda each: (_mean(self._values(each)), each))
        first, second = ranked[0], ranked[1]
        told = self._compare(self._values(first), self._values(second))
        where = f" of {self.group}" if self.group is not None else ""
        if not told.n:
            return ""
        pairs = f"{told.n} paired run{'s' * (told.n > 1)}"
        if told.is_better:
            return f"Trial {first}{where} is better than trial {second}, the next best, by {pairs}."
        leads = f"Trial {first}{where} leads trial {second}, the next best, in {pairs}: "
        if told.n < noise.FIRST_LOOK:
            return f"{leads}too few to claim that it is better."
        return f"{leads}not enough to claim that it is better (probability {told.probability:.2f})."


def _mean(values: Sequence[float]) -> float:
    finite = [each for each in values if math.isfinite(each)]
    return math.fsum(finite) / len(finite) if finite else math.inf
