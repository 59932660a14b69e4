"""What a study is: plain data, as ``study.json`` and the store keep it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ems.model import Json, Params
from ems.search.problem import Fidelity, Problem
from ems.space import put

MINIMIZE, MAXIMIZE = "minimize", "maximize"


@dataclass(frozen=True, slots=True)
class StudySpec:
    """A study: what is searched, by which metric, and when it ends.

    Attributes
    ----------
    id
        That of its experiment.
    space
        As :meth:`ems.search.space.SearchSpace.dump` gives it.
    metric, goal
        What a run is judged by: the metric's value at its greatest step is to be the least (``minimize``) or greatest.
    group_by
        Name of the param that gets a trial's group; empty without groups.
    seed_as
        Name of a param that gets a trial's seed, beside ``EMS_SEED``; empty: none.
    budget
        How much of each unit of :data:`ems.study.words.UNITS` may be spent; ``trials`` and ``epochs`` among them.
    usd_per_h
        What one run costs an hour; None where the target's prices are not known.
    max_crashes
        So many runs that crash one after another, with none that did not between them, end the study.
    max_tries
        How often a run is tried that a machine lost.
    wake_s
        Seconds between two wakes at most; None: the clock's own.
    warm_start
        Other studies whose trials it began with.
    nested
        The path of each param that a run gets inside another: ``{"model.depth": ("model", "depth")}``.
    """

    id: str
    space: str
    metric: str
    goal: str = MINIMIZE
    sampler: str = "gp"
    scheduler: str = "none"
    mode: str = "async"
    fidelity: Fidelity | None = None
    parallel: int = 1
    seeds: int = 1
    confirm: float = 0.0
    groups: tuple[str, ...] = ()
    group_by: str = ""
    seed_as: str = ""
    seed: int = 0
    budget: Mapping[str, float] = field(default_factory=dict)
    usd_per_h: float | None = None
    max_crashes: int = 5
    max_tries: int = 3
    wake_s: float | None = None
    warm_start: tuple[str, ...] = ()
    nested: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def load(cls, record: Mapping[str, Any]) -> StudySpec:
        """Make a spec of its JSON; keys of a later version are passed over."""
        known = {each.name for each in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record.items() if name in known
        }
        fidelity = record.get("fidelity")
        values["fidelity"] = Fidelity(**fidelity) if fidelity else None
        return cls(**values)

    def dump(self) -> dict[str, Json]:
        """Return it as JSON that :meth:`load` reads."""
        return asdict(self)

    @property
    def sign(self) -> float:
        """What values are multiplied by so that less is better; its own inverse."""
        return -1.0 if self.goal == MAXIMIZE else 1.0

    @property
    def is_promoting(self) -> bool:
        """Whether trials go from rung to rung, each a segment of its own."""
        return self.fidelity is not None and self.scheduler not in ("none", "stop")

    def problem(self) -> Problem:
        """Return what decisions depend on."""
        from ems.search.space import SearchSpace  # noqa: PLC0415  # numpy: only who decides pays for it

        trials = self.budget.get("trials")
        return Problem(
            space=SearchSpace.load(self.space),
            sampler=self.sampler,
            scheduler=self.scheduler,
            mode=self.mode,
            fidelity=self.fidelity,
            parallel=self.parallel,
            trials=None if trials is None else int(trials),
            epochs=self.budget.get("epochs"),
            seeds=self.seeds,
            confirm=self.confirm,
            groups=self.groups,
            seed=self.seed,
        )

    def run_params(self, params: Params, group: str | None, seed: int) -> dict[str, Json]:
        """Return what a trial's run gets at every rung: its params, and its group and seed where they are params."""
        more: dict[str, Json] = {}
        if self.group_by and group is not None:
            more[self.group_by] = group
        if self.seed_as:
            more[self.seed_as] = seed
        given: dict[str, Json] = {}
        for name, value in {**params, **more}.items():
            put(given, self.nested.get(name, (name,)), value)
        return given

    def budget_of(self, rung: int) -> float | None:
        """Return the value of the fidelity param at a rung; None without one.

        A trial that is stopped on its way, rather than sent on from rung to rung, is given the whole way.
        """
        if self.fidelity is None:
            return None
        return self.fidelity.rungs[rung] if self.is_promoting else self.fidelity.high

    def overlay(self, budget: float | None) -> dict[str, Json]:
        """Return the params that a segment adds to those of its run; none where the fidelity only counts its steps."""
        if self.fidelity is None or budget is None or not self.fidelity.name:
            return {}
        return {self.fidelity.name: int(budget) if float(budget).is_integer() else budget}
