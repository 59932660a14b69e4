"""``--budget``: what an experiment may cost, as it is typed and as it is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ems.errors import EmsError

if TYPE_CHECKING:
    from ems.budget import Standing
    from ems.cli.session import Session
    from ems.model import Experiment, Resources
    from ems.plan import Plan
    from ems.target import Target

_HINT = "e.g. --budget 50usd, 200gpuh or 400cpuh; several are joined by commas"


def read(typed: Sequence[str] | None) -> dict[str, float]:
    """Read ``50usd,200gpuh``: amounts by unit; empty where nothing was said."""
    from ems.study import words

    return words.parse_budget(typed, hint=_HINT) if typed else {}


def price(plan: Plan) -> float | None:
    """Return what a run costs an hour, in US dollars; None where nobody knows."""
    return price_on(plan.target, plan.experiment.resources)


def price_on(target: Target, resources: Resources) -> float | None:
    """Return what a run that asks for such resources costs an hour, in US dollars; None where nobody knows."""
    if target.remote is None:
        return None
    from ems.cluster import price as prices

    return prices.of_run(target.name, resources)


def within(amounts: Mapping[str, float], plan: Plan) -> Plan:
    """Return the plan of an experiment that keeps to a budget.

    No more runs at a time than it pays for: more would take nodes only to wait for the others.

    Raises
    ------
    UsageError
        If that budget cannot be kept, or pays for no run.
    """
    if not amounts:
        return plan
    from ems import budget
    from ems.node.budget import USD

    experiment = plan.experiment
    usd_per_h = price(plan) if USD in amounts else None
    budget.check(amounts, experiment.resources, experiment.target, usd_per_h)
    most = budget.at_a_time(amounts, experiment.resources, usd_per_h)
    tasks = experiment.max_parallel
    if most is not None and most < experiment.n_runs:
        fit = max(1, most // (experiment.pack or 1))
        tasks = min(fit, tasks or fit)
    return replace(plan, experiment=replace(experiment, budget=amounts, usd_per_h=usd_per_h, max_parallel=tasks))


def lines(experiment: Experiment) -> list[str]:
    """Say which budget an experiment keeps to, and what it pays for at least; nothing without one."""
    if not experiment.budget:
        return []
    from ems import budget
    from ems.cli import render

    asked, runs = experiment.resources, experiment.n_runs
    amounts = ", ".join(f"{amount:g} {unit}" for unit, amount in experiment.budget.items())
    most = budget.at_a_time(experiment.budget, asked, experiment.usd_per_h)
    if most is None:
        sure = "no run is started beyond it; without --time those that run then may exceed it"
    elif most >= runs:
        sure = f"pays for all {render.plural(runs, 'run')}"
    else:
        sure = f"pays for {render.plural(most, 'run')} of {asked.time}; those that end earlier make room for more"
    return [f"budget {amounts}: {sure}"]


def standing(session: Session, experiment: Experiment) -> Standing | None:
    """Return how the budget of an experiment stands, from the store; None where it has none."""
    if experiment.study_id is not None:
        return None
    from ems import budget

    try:
        return budget.standing(session.store, experiment, session.files(experiment))
    except EmsError:  # its cluster is unknown here; nothing can be learnt of it anyway
        return None


def words(session: Session, experiment: Experiment) -> list[str]:
    """Say how a budget stands: ``4 over budget``, ``2.1 of 6 gpuh``; nothing without one."""
    found = standing(session, experiment)
    if found is None:
        return []
    return [*([f"{found.n_refused:,} over budget"] if found.n_refused else []), str(found)]


def say_refused(session: Session, exp_ids: Iterable[str]) -> None:
    """Say which experiments left runs out for want of budget, and how these are had all the same."""
    from ems import budget
    from ems.cli import render

    for exp_id in exp_ids:
        experiment = session.experiment(exp_id)
        found = standing(session, experiment)
        if found is None or not found.n_refused:
            continue
        more = budget.enough_for(session.store, experiment, found, found.n_refused)
        runs = "run was" if found.n_refused == 1 else "runs were"
        render.note(
            f"{experiment.name} {exp_id}: {found.n_refused:,} {runs} not started: budget ({found} spent)    "
            f"ems rerun {exp_id} --failed{f' --budget {more}' if more else ''}"
        )
