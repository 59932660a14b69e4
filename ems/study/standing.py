"""How a study stands, from the project's store alone: the best so far and how sure that is, trials, budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from ems.errors import NotFoundError
from ems.model import Experiment, Params, State
from ems.search.trial import Origin, Outcome, Trial
from ems.store import Store, studies
from ems.store.studies import SegmentRow, StudyRow
from ems.study import budget
from ems.study.spec import StudySpec

RUNNING, QUEUED = "running", "queued"
MODEL_NEEDS = 3  # configurations; below, what was observed is all there is to say


@dataclass(frozen=True, slots=True)
class Best:
    """The configuration that is believed to be best, of a group and at the highest rung that anything completed.

    Attributes
    ----------
    number
        Of its first trial; its run has that index.
    mean, sd
        What the model believes the metric to be there, in the user's sign, and how sure it is; what was observed and
        NaN where there is no model yet.
    observed, n
        Mean of what its trials gave, and how many there are.
    budget
        Value of the fidelity param there; None without one.
    runner_up, probability
        Number of the second best, and the probability that this one is better; None and NaN where there is no second.
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
    runner_up: int | None
    probability: float


@dataclass(frozen=True)
class Standing:
    """What the store knows of a study."""

    experiment: Experiment
    row: StudyRow
    spec: StudySpec
    trials: Sequence[Trial]
    segments: Sequence[SegmentRow]
    states: Mapping[int, State]

    @cached_property
    def own(self) -> list[Trial]:
        """Trials that it ran itself, none that it was given."""
        return [each for each in self.trials if each.origin is not Origin.GIVEN]

    @cached_property
    def counts(self) -> Counter[str]:
        """Trials by how they stand: ``ok``, ``running``, ``queued``, ``crashed``, …; ``ok`` is the end of some rung."""
        return Counter(self._word(each) for each in self.own)

    def _word(self, trial: Trial) -> str:
        if trial.outcome is not Outcome.PENDING:
            return str(trial.outcome)
        return RUNNING if self.states.get(trial.number) is State.RUNNING else QUEUED

    @cached_property
    def spent(self) -> dict[str, float]:
        """How much was spent of each unit of the budget."""
        end = max((each.ended_at for each in self.segments), default="") if self.row.is_finished else ""
        used = budget.spent(self.spec, self.experiment, self.segments, end)
        return {unit: used.get(unit, 0.0) for unit in self.spec.budget}

    @cached_property
    def rungs(self) -> list[tuple[float, int]]:
        """Value of the fidelity param at each rung, and how many trials have completed it; empty without rungs."""
        fidelity = self.spec.fidelity
        if fidelity is None or self.spec.scheduler in ("none", "stop"):
            return []
        done = Counter(each.rung for each in self.segments if each.outcome == Outcome.OK and each.number >= 0)
        return [(value, done[rung]) for rung, value in enumerate(fidelity.rungs)]

    @cached_property
    def best(self) -> list[Best]:
        """The best of each group that has one; without groups the one, or none."""
        groups: Sequence[str | None] = self.spec.groups or (None,)
        return [found for group in groups if (found := self._best(group)) is not None]

    def _best(self, group: str | None) -> Best | None:
        rung = self._top_rung(group)
        if rung is None:
            return None
        from ems.search import noise  # noqa: PLC0415  # scipy: only who asks for the best pays for it

        problem = self.spec.problem()
        leader = noise.leader(problem, self.trials, group, rung)
        if leader is None:
            return None
        same = [
            each
            for each in self.trials
            if each.group == group and _value(each, rung) is not None and each.params == leader.params
        ]
        values = [value for each in same if (value := _value(each, rung)) is not None]
        is_modelled = self._n_known(group, rung) >= MODEL_NEEDS
        return Best(
            group=group,
            number=leader.config,
            params=leader.params,
            seed=same[0].seed,
            mean=self.spec.sign * (leader.mean if is_modelled else fmean(values)),
            sd=leader.sd if is_modelled else math.nan,
            observed=self.spec.sign * fmean(values),
            n=len(values),
            budget=self.spec.budget_of(rung),
            runner_up=leader.runner_up,
            probability=leader.probability if leader.runner_up is not None and is_modelled else math.nan,
        )

    def _n_known(self, group: str | None, rung: int) -> int:
        return len({each.config for each in self.trials if each.group == group and _value(each, rung) is not None})

    def _top_rung(self, group: str | None) -> int | None:
        """Return the highest rung at which the group has a value: others are not compared with it."""
        rungs = [
            rung
            for each in self.trials
            if each.group == group
            for rung in range(len(each.values))
            if _value(each, rung) is not None
        ]
        return max(rungs, default=None)


def _value(trial: Trial, rung: int) -> float | None:
    value = trial.values[rung] if rung < len(trial.values) else math.nan
    return value if math.isfinite(value) else None


def load(store: Store, experiment: Experiment) -> Standing:
    """Return how a study stands.

    Raises
    ------
    NotFoundError
        If nothing was heard of its driver yet.
    """
    row = studies.study(store, experiment.id)
    if row is None:
        raise NotFoundError(
            f"nothing was heard yet of the study {experiment.name} {experiment.id}", f"ems tune resume {experiment.id}"
        )
    spec = StudySpec.load(row.spec)
    return Standing(
        experiment=experiment,
        row=row,
        spec=spec,
        trials=studies.trials(store, experiment.id, spec.sign),
        segments=studies.segments(store, experiment.id),
        states=dict(store.states(experiment.id)),
    )
