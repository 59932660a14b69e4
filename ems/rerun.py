"""Runs once more: from the same snapshot, as the next attempt (rerun) or as a new experiment (reproduce)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ems import budget, harvest, snapshot, submission
from ems.errors import NotFoundError, UsageError
from ems.executor.base import Submission, writing_to
from ems.model import Experiment, Resources, Run, State
from ems.node import records
from ems.node.budget import USD
from ems.remote.pull import STATES
from ems.store import Store
from ems.target import Target

#: What ``--failed``, ``--missing`` and ``--all`` choose from; a missing run has no attempt besides.
_STATES = {
    "failed": {State.FAILED, State.CANCELLED},
    "missing": {State.CANCELLED, State.UNKNOWN},
    "all": set(State),
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of a reproduced run beside the original's; equal where ``largest`` is 0."""

    metric: str
    original: float | None  # last value
    reproduced: float | None
    n_points: int
    largest: float  # largest absolute difference over the steps; inf where one side lacks a step


@dataclass(frozen=True, slots=True)
class Rerun:
    """What a rerun queued."""

    indices: tuple[int, ...]
    submission: Submission


def rerun(
    store: Store,
    target: Target,
    experiment: Experiment,
    which: str | Sequence[int],
    *,
    resources: Resources | None = None,
    fresh: bool | None = None,
    amounts: Mapping[str, float] | None = None,
    price: Callable[[Resources], float | None] = lambda _: None,
) -> Rerun:
    """Queue runs again as their next attempts.

    What was never handed to the scheduler (a killed or refused submission) is handed over first.

    Parameters
    ----------
    which
        ``"failed"`` (failed or cancelled), ``"missing"`` (never started and in no queue), ``"all"``, or indices.
    resources
        What to ask for instead; None fields keep the experiment's.
    fresh
        True: start from nothing; False: go on from the checkpoint. Default: from nothing where the run completed.
    amounts
        The budget of these runs; without one what is left of the budget before holds for them, too.
    price
        Returns what a run with such resources costs an hour.

    Raises
    ------
    UsageError
        If a chosen run is still pending or running, or the budget cannot be kept.
    NotFoundError
        If there is no such run, or nothing to rerun.
    """
    if experiment.study_id is not None:
        raise UsageError(
            f"which runs of {experiment.id} are made is decided by its search",
            f"`ems tune resume {experiment.id}` has it go on, `ems reproduce {experiment.id}/0` repeats one run",
        )
    if experiment.executor != target.executor.name and not target.is_gone:
        raise UsageError(f"{experiment.id} ran on {experiment.executor}", f"add --on {experiment.target}")
    files = records.ExperimentFiles(target.root, experiment.id)
    fed = target.executor.submit(experiment, files)
    with writing_to(target.root), records.locked(Path(files.dir, "rerun.lock")):
        _refresh(store, target, experiment)
        states = dict(store.states(experiment.id))
        chosen = _choose(store, experiment, states, which)
        if chosen:
            asked = {key: value for key, value in asdict(resources or Resources()).items() if value is not None}
            whole = replace(experiment.resources, **asked)
            kept = _budget(files, experiment, whole, amounts, price)
            target.executor.check(whole)
            if target.remote is None:  # else the other side does when it is handed the chunks
                snapshot.checkout(target.root, experiment.snapshot)
            _queue(
                files, experiment, target, _by_freshness(chosen, states, fresh), {"resources": asked, "budget": kept}
            )
    if not chosen:
        if fed.submitted:
            return Rerun((), fed)
        raise NotFoundError(f"{experiment.name} {experiment.id} has no {which} runs", f"ems status {experiment.id}")
    done = target.executor.submit(experiment, files)
    _refresh(store, target, experiment)
    return Rerun(tuple(chosen), replace(done, submitted=[*fed.submitted, *done.submitted]))


def _refresh(store: Store, target: Target, experiment: Experiment) -> None:
    every = {experiment.id: range(experiment.n_runs)}
    target.pull(every, STATES)
    harvest.refresh_states(store, target.root, target.asking(every), [experiment.id])


def _queue(
    files: records.ExperimentFiles,
    experiment: Experiment,
    target: Target,
    split: dict[bool, list[int]],
    changes: dict[str, Any],
) -> None:
    """Write the chunks of the chosen runs, after all that there are; ``changes`` are of :func:`plan_chunks`."""
    limits = target.executor.limits()
    for fresh, indices in split.items():
        first = max(files.chunk_numbers(), default=0) + 1
        for chunk in submission.plan_chunks(experiment, indices, limits, first=first, fresh=fresh, **changes):
            if not records.create_exclusive(files.chunk(chunk["chunk"]), records.dump(chunk)):
                raise UsageError(f"runs of {experiment.id} are being queued by another command", "repeat this one")


def _budget(
    files: records.ExperimentFiles,
    experiment: Experiment,
    resources: Resources,
    amounts: Mapping[str, float] | None,
    price: Callable[[Resources], float | None],
) -> records.Record | None:
    """Return the budget for a rerun's chunks: a new one, or the one that held before."""
    if not amounts:
        before = budget.last(experiment, files)
        if before is None or before["usd_per_h"] is None:
            return before
        return {**before, "usd_per_h": price(resources) or before["usd_per_h"]}
    usd_per_h = price(resources) if USD in amounts else None
    budget.check(amounts, resources, experiment.target, usd_per_h)
    return {"amounts": dict(amounts), "usd_per_h": usd_per_h, "since": max(files.chunk_numbers(), default=0) + 1}


def _choose(store: Store, experiment: Experiment, states: dict[int, State], which: str | Sequence[int]) -> list[int]:
    if isinstance(which, str):
        wanted = _STATES[which]
        chosen = [index for index, state in states.items() if state in wanted]
        if which == "missing":
            chosen = [index for index in chosen if not store.attempts(experiment.id, index)]
    else:
        chosen = list(which)
        absent = [index for index in chosen if index not in states]
        if absent:
            raise NotFoundError(
                f"{experiment.id} has no run {absent[0]}",
                f"its runs are 0 to {experiment.n_runs - 1}: ems ls {experiment.id}",
            )
    busy = [index for index in chosen if states[index] in (State.PENDING, State.RUNNING)]
    if busy:
        raise UsageError(
            f"run {experiment.id}/{busy[0]} is {states[busy[0]].lower()}"
            + (f", and {len(busy) - 1} more are not finished" if len(busy) > 1 else ""),
            f"wait for it, or `ems cancel {experiment.id}/{busy[0]}` first",
        )
    return sorted(chosen)


def _by_freshness(chosen: list[int], states: dict[int, State], fresh: bool | None) -> dict[bool, list[int]]:
    """Split into those that start from nothing and those that go on from their checkpoint."""
    split: dict[bool, list[int]] = {}
    for index in chosen:
        from_nothing = states[index] is State.COMPLETED if fresh is None else fresh
        split.setdefault(from_nothing, []).append(index)
    return split


def reproduce(store: Store, target: Target, experiment: Experiment, index: int) -> tuple[Experiment, Submission]:
    """Submit one run as a new experiment with the same code, params and seed.

    Raises
    ------
    NotFoundError
        If there is no such run.
    """
    original = next(iter(store.runs(experiment.id, [index])), None)
    if original is None:
        raise NotFoundError(f"{experiment.id} has no run {index}", f"its runs are 0 to {experiment.n_runs - 1}")
    original = _as_trained(target, original, experiment)
    again = replace(
        experiment,
        study_id=None,
        id=submission.new_id(target.root),
        name=f"{experiment.name}-again",
        created_at=records.now(),
        n_runs=1,
        pack=None,
        budget={},
        message=f"reproduces {experiment.id}/{index}",
        # the code is that of then; Python, packages and host are those of now
        provenance={**experiment.provenance, **target.surroundings(experiment.command_line, experiment.python)},
    )
    chunks = submission.plan_chunks(again, range(1), target.executor.limits())

    def runs() -> list[Run]:
        return [replace(original, index=0)]

    return again, submission.start(again, runs, chunks, target, store)


def _as_trained(target: Target, run: Run, experiment: Experiment) -> Run:
    """Return a run with the params that its newest chunk laid over its own: for how long a trial was trained."""
    files = target.files(experiment.id)
    for number in reversed(files.chunk_numbers() if experiment.study_id else ()):
        more = records.chunk_params(records.read_json(files.chunk(number)) or {}, run.index)
        if more:
            return replace(run, params={**run.params, **more})
    return run


def compare(store: Store, original: tuple[str, int], reproduced: tuple[str, int]) -> list[Difference]:
    """Compare the metrics of two runs ``(experiment id, index)``, point by point."""
    first, second = _points(store, original), _points(store, reproduced)
    return [
        _difference(name, first.get(name, {}), second.get(name, {})) for name in sorted(first.keys() | second.keys())
    ]


def _points(store: Store, run: tuple[str, int]) -> dict[str, dict[float, float]]:
    experiment, index = run
    metrics: dict[str, dict[float, float]] = {}
    for name in store.metric_names([experiment]):
        steps = {step: value for _, i, step, value in store.curves([experiment], name) if i == index}
        if steps:
            metrics[name] = steps
    return metrics


def _difference(name: str, first: dict[float, float], second: dict[float, float]) -> Difference:
    def apart(step: float) -> float:
        if step not in first or step not in second:
            return math.inf
        a, b = first[step], second[step]
        return 0.0 if a == b or (math.isnan(a) and math.isnan(b)) else abs(a - b)

    steps = first.keys() | second.keys()
    return Difference(
        metric=name,
        original=first[max(first)] if first else None,
        reproduced=second[max(second)] if second else None,
        n_points=len(steps),
        largest=max((apart(step) for step in steps), default=0.0),
    )
