"""What a study may spend and has spent, of what only who runs the trials can measure: hours, and money.

Trials and epochs are counted where they are decided (:mod:`ems.search.decide`), so that none is begun in vain.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ems.budget import check_countable
from ems.errors import UsageError
from ems.model import Experiment
from ems.node import records
from ems.node.budget import CPU_HOURS, GPU_HOURS, USD
from ems.store.studies import SegmentRow
from ems.study.outcomes import seconds
from ems.study.spec import StudySpec
from ems.study.words import EPOCHS, HOURS, TRIALS

_MEASURED = (HOURS, CPU_HOURS, GPU_HOURS, USD)


def check(spec: StudySpec, experiment: Experiment) -> None:
    """See that the budget ends the study, can be counted, and pays for one trial.

    Raises
    ------
    UsageError
        If not.
    """
    budget = spec.budget
    empty = next((unit for unit, amount in budget.items() if not amount > 0), None)
    if not budget:
        raise UsageError("nothing ends this study", "add --trials 60, or --budget 300epochs, 40gpuh, 6h")
    if empty is not None:
        raise UsageError(f"a budget of {budget[empty]:g} {empty} pays for no trial", "give it more")
    if budget.get(TRIALS, spec.seeds) < spec.seeds:
        raise UsageError(
            f"{budget[TRIALS]:g} trials do not pay for one configuration with {spec.seeds} seeds",
            f"--trials {spec.seeds} at least, or fewer --seeds",
        )
    if EPOCHS in budget:
        _check_epochs(spec, budget[EPOCHS])
    check_countable(budget, experiment.resources, experiment.target, spec.usd_per_h)


def _check_epochs(spec: StudySpec, amount: float) -> None:
    if spec.fidelity is None:
        raise UsageError(
            "a budget of epochs needs to know which param says how long a run trains", "--fidelity epochs=1..81"
        )
    whole = spec.fidelity.high * spec.seeds
    if amount * (1 - spec.confirm) < whole:
        raise UsageError(
            f"{amount:g} epochs do not pay for one trial, which takes {whole:g} to the end",
            f"--budget {whole / (1 - spec.confirm):g}epochs at least, or a smaller --fidelity",
        )


def spent(spec: StudySpec, experiment: Experiment, parts: Sequence[SegmentRow], now: str = "") -> dict[str, float]:
    """Return what has been spent so far of every unit that can be counted, running segments included.

    Parameters
    ----------
    now
        UTC ISO-8601; default the present.
    """
    now = now or records.now()
    run_h = sum(each.wall_s + _elapsed_s(each, now) for each in parts) / 3600
    resources = experiment.resources
    found = {
        TRIALS: float(len({each.number for each in parts if each.number >= 0})),
        HOURS: seconds(experiment.created_at, now) / 3600,
        CPU_HOURS: run_h * (resources.cpus or 1),
        GPU_HOURS: run_h * resources.gpus_per_run,
    }
    if spec.fidelity is not None:
        found[EPOCHS] = sum(each.cost for each in parts if not each.is_pending)
    if spec.usd_per_h is not None:
        found[USD] = run_h * spec.usd_per_h
    return found


def share(spec: StudySpec, experiment: Experiment, parts: Sequence[SegmentRow], now: str = "") -> float:
    """Return which share of the measured budgets is used up, what is queued or runs counted to its expected end."""
    now = now or records.now()
    used = spent(spec, experiment, parts, now)
    ended = [each.wall_s for each in parts if not each.is_pending and each.wall_s]
    to_come_h = 0.0
    if ended:
        mean_s = fmean(ended)
        to_come_h = sum(max(0.0, mean_s - _elapsed_s(each, now)) for each in parts if each.is_pending) / 3600
    more = {
        CPU_HOURS: to_come_h * (experiment.resources.cpus or 1),
        GPU_HOURS: to_come_h * experiment.resources.gpus_per_run,
        USD: to_come_h * (spec.usd_per_h or 0.0),
    }
    units = [unit for unit in _MEASURED if unit in spec.budget]
    return max(((used[unit] + more.get(unit, 0.0)) / spec.budget[unit] for unit in units), default=0.0)


def _elapsed_s(segment: SegmentRow, now: str) -> float:
    return max(0.0, seconds(segment.started_at, now)) if segment.is_pending and segment.started_at else 0.0


def describe(spec: StudySpec, experiment: Experiment, parts: Sequence[SegmentRow]) -> str:
    """Say what was spent of the measured budgets: ``2.1 of 6 h``; empty where there are none."""
    used, units = spent(spec, experiment, parts), [unit for unit in _MEASURED if unit in spec.budget]
    return ", ".join(f"{used[unit]:.3g} of {spec.budget[unit]:g} {unit}" for unit in units)
