"""What a study has found: best configurations, importance of params, rungs, how busy the workers were."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from statistics import fmean

import numpy as np

from ems.errors import UsageError
from ems.model import Params
from ems.search import importance as importances
from ems.search import model as models
from ems.search import noise
from ems.search import rungs as races
from ems.search.candidates import Ground
from ems.search.fidelity import Stack
from ems.search.gp import Posterior
from ems.search.importance import Importance
from ems.search.noise import Outlook
from ems.search.problem import Problem
from ems.search.trial import Outcome, Trial
from ems.search.warp import Array
from ems.store.studies import SegmentRow

_CLOCK_S = 0.05  # by so much a run may seem to begin before the one that it follows
MODEL_NEEDS = 3  # values of different points


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration with what is believed of it.

    Attributes
    ----------
    number, seed
        Of its first trial; its run has that index.
    mean, sd
        What the model believes the metric to be there, in the user's sign, and how sure it is; NaN without a model.
    observed, n
        Mean of what its trials gave, and how many they are.
    """

    group: str | None
    number: int
    params: Params
    seed: int
    mean: float
    sd: float
    observed: float
    n: int
    budget: float | None


@dataclass(frozen=True, slots=True)
class Rung:
    """How trials fared at one rung: how many were sent there, completed it, failed at it, are on their way."""

    budget: float
    asked: int
    completed: int
    failed: int
    pending: int
    best: float | None
    median: float | None
    best_number: int | None


@dataclass(frozen=True)
class Model:
    """The model of one group at one rung."""

    ground: Ground
    posterior: Posterior
    rung: int


@dataclass(frozen=True)
class Study:
    """All that reports and pictures of a study are made of.

    Attributes
    ----------
    sign
        What the search's values are multiplied by to give the metric: -1 where it is maximised.
    trials
        As the search knows them, minimised.
    budgets
        Value of the fidelity param at each rung; empty where there are none.
    fidelity
        Name of that param.
    """

    exp_id: str
    name: str
    metric: str
    sign: float
    problem: Problem
    trials: Sequence[Trial]
    segments: Sequence[SegmentRow]
    budgets: tuple[float, ...] = ()
    fidelity: str = ""

    @property
    def groups(self) -> tuple[str | None, ...]:
        """Each has a search of its own; one None without groups."""
        return self.problem.groups or (None,)

    @cached_property
    def _models(self) -> dict[str | None, Model | None]:
        return {}

    def model(self, group: str | None) -> Model | None:
        """Return the model of the highest rung with enough values; None where hardly any are known."""
        if group not in self._models:
            self._models[group] = self._fit(group)
        return self._models[group]

    def _fit(self, group: str | None) -> Model | None:
        own = [trial for trial in self.trials if trial.group == group]
        rung = races.modelled_rung(self.problem, own)
        ground = Ground(self.problem.space)
        known = models.Known.of(ground, own, group, rung)
        if len(np.unique(known.x, axis=0)) < MODEL_NEEDS:
            return None
        return Model(ground, self.stacked(own, rung)(known, np.random.default_rng(self.problem.seed)), rung)

    def stacked(self, own: Sequence[Trial], rung: int) -> models.Factory:
        """Return what makes the model of a rung: a stack with those below, which have seen more of the space."""

        def factory(known: models.Known, rng: np.random.Generator) -> Posterior:
            if not rung:
                return models.fit_faithful(known, rng)
            group = own[0].group
            below = [models.Known.of(known.ground, races.at_rung(own, each), group) for each in range(rung)]
            return Stack.fit([*below, known], rng)

        return factory

    def at(self, rung: int) -> str:
        """Say which rung: `` at epochs 27``; nothing where there is only one."""
        return f" at {self.fidelity or 'step'} {self.budgets[rung]:g}" if self.budgets else ""

    def predict(self, model: Model, x: Array) -> tuple[Array, Array]:
        """Return the metric's mean and deviation at points ``x`` of shape (m, d), in the user's sign: two of (m,)."""
        mean, sd = model.posterior.in_units(*model.posterior.predict(x))
        return self.sign * mean, sd

    def top_rung(self, group: str | None) -> int | None:
        """Return the highest rung with a value: others are not compared with it."""
        own = [trial for trial in self.trials if trial.group == group]
        found = [rung for t in own for rung in range(len(t.values)) if math.isfinite(t.values[rung])]
        return max(found, default=None)


def best(study: Study, group: str | None, top: int) -> list[Configuration]:
    """Return the best configurations of the highest rung, by the model's mean: the luckiest run is not always first.

    Where there are too few values for a model, by what was observed.
    """
    rung = study.top_rung(group)
    if rung is None:
        return []
    by_key: dict[str, list[Trial]] = {}
    for trial in study.trials:
        if trial.group == group and math.isfinite(races.value_at(trial, rung)):
            by_key.setdefault(study.problem.space.key(trial.params), []).append(trial)
    members = list(by_key.values())
    beliefs = _beliefs(study, group, rung, members)
    found = [
        Configuration(
            group=group,
            number=same[0].number,
            params=same[0].params,
            seed=same[0].seed,
            mean=mean,
            sd=sd,
            observed=study.sign * fmean(races.value_at(trial, rung) for trial in same),
            n=len(same),
            budget=study.budgets[rung] if study.budgets else None,
        )
        for same, (mean, sd) in zip(members, beliefs, strict=True)
    ]
    found.sort(key=lambda each: study.sign * (each.observed if math.isnan(each.mean) else each.mean))
    return found[:top]


def _beliefs(
    study: Study, group: str | None, rung: int, members: Sequence[Sequence[Trial]]
) -> list[tuple[float, float]]:
    ground = Ground(study.problem.space)
    if len(members) < MODEL_NEEDS:
        return [(math.nan, math.nan)] * len(members)
    known = models.Known.of(ground, study.trials, group, rung)
    model = Model(ground, models.fit_faithful(known, np.random.default_rng(study.problem.seed)), rung)
    mean, sd = study.predict(model, ground.locate(same[0].params for same in members))
    return list(zip(mean.tolist(), sd.tolist(), strict=True))


def importance(study: Study, group: str | None) -> list[Importance]:
    """Return the params by how much they matter, by the model of :meth:`Study.model`; empty without one."""
    model = study.model(group)
    if model is None:
        return []
    own = [trial for trial in study.trials if trial.group == group]
    return importances.importance(study.problem, own, group, model.rung, study.stacked(own, model.rung))


def outlook(study: Study, group: str | None) -> Outlook | None:
    """Return whether more trials pay; None with few values, and with rungs: the highest has too few to say."""
    return None if study.budgets else noise.outlook(study.problem, study.trials, group)


def rungs(study: Study, group: str | None) -> list[Rung]:
    """Return the table of rungs; empty where there are none."""
    own = {trial.number for trial in study.trials if trial.group == group}
    return [_rung(study, own, rung, budget) for rung, budget in enumerate(study.budgets)]


def misleading(study: Study, group: str | None) -> list[races.Agreement]:
    """Return the rungs whose order is not that of the next: who goes on by it is chosen by luck."""
    own = [trial for trial in study.trials if trial.group == group]
    return [each for each in races.agreements(study.problem, own) if each.is_low]


def _rung(study: Study, own: set[int], rung: int, budget: float) -> Rung:
    parts = [each for each in study.segments if each.rung == rung and each.number in own]
    told = [(study.sign * each.value, each.number) for each in parts if each.outcome == "ok" and each.value is not None]
    counts = Counter(each.outcome for each in parts)
    n_bad = sum(n for outcome, n in counts.items() if Outcome(outcome).is_bad or outcome == Outcome.LOST)
    lowest = min(told, default=None)
    return Rung(
        budget=budget,
        asked=len(parts),
        completed=counts[Outcome.OK],
        failed=n_bad,
        pending=counts[Outcome.PENDING],
        best=None if lowest is None else study.sign * lowest[0],
        median=study.sign * float(np.median([value for value, _ in told])) if told else None,
        best_number=None if lowest is None else lowest[1],
    )


@dataclass(frozen=True, slots=True)
class Stint:
    """What one worker did from ``start`` to ``end``, in seconds since the first trial began."""

    lane: int
    start: float
    end: float
    number: int
    rung: int
    outcome: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """Who worked when.

    Attributes
    ----------
    idle
        Share of the workers' time, from the first start to the last one, in which they had nothing to do: what comes
        after the last start is the end of the search, which no driver can fill.
    until
        That last start, in seconds.
    workers
        How many there are.
    """

    stints: tuple[Stint, ...]
    workers: int
    until: float
    idle: float


def timeline(study: Study, now: str = "") -> Timeline:
    """Lay the segments on lanes, a worker each: which of them ran which nobody needs to know.

    Parameters
    ----------
    now
        When what still runs is taken to end (ISO 8601); default: with the last that ended.

    Raises
    ------
    UsageError
        If nothing has begun yet.
    """
    begun = sorted(
        ((datetime.fromisoformat(each.started_at), each) for each in study.segments if _has_run(each)),
        key=lambda pair: pair[0],
    )
    if not begun:
        raise UsageError(f"no trial of {study.name} {study.exp_id} has begun yet", f"ems tune status {study.exp_id}")
    zero = begun[0][0]
    ends = [datetime.fromisoformat(each.ended_at) for _, each in begun if each.ended_at]
    last = datetime.fromisoformat(now) if now else max(ends, default=begun[-1][0])
    stints: list[Stint] = []
    free: list[float] = []  # from when each lane is
    for at, each in begun:
        start = (at - zero).total_seconds()
        end = datetime.fromisoformat(each.ended_at) if each.ended_at else last
        lane = next((i for i, since in enumerate(free) if since <= start + _CLOCK_S), len(free))
        stints.append(
            Stint(lane, start, max((end - zero).total_seconds(), start), each.number, each.rung, each.outcome)
        )
        free[lane : lane + 1] = [stints[-1].end]
    workers = max(len(free), study.problem.parallel)
    until = max(stint.start for stint in stints)
    busy = sum(min(stint.end, until) - stint.start for stint in stints)
    idle = 1 - busy / (workers * until) if until > 0 else 0.0
    return Timeline(tuple(stints), workers, until, max(idle, 0.0))


def _has_run(segment: SegmentRow) -> bool:
    return bool(segment.started_at) and segment.number >= 0
