"""``ems tune stop``, ``resume`` and ``extend``: what people want of a study that goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli import options as o
from ems.cli.tune import STEER, command
from ems.cli.tune_status import Study

if TYPE_CHECKING:
    from ems.cli.session import Session
    from ems.model import Experiment
    from ems.study.driver import WakeReport
    from ems.target import Target


@command(STEER, "ems tune stop last", "ems tune stop last --now")
def stop(
    study: Study,
    now: Annotated[bool, typer.Option("--now", help="Cancel what runs, too.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """End a search; what runs may end first."""
    from ems.cli.session import open_session
    from ems.study import requests

    with open_session() as session:
        experiment, target = find(session, study)
        _say(session, experiment, requests.stop(session.store, target, experiment.id, now=now), as_json)


@command(STEER, "ems tune resume last", "ems tune resume 7f3a9c21")
def resume(study: Study, as_json: o.AsJson = False) -> None:
    """Have a search go on that was stopped, failed, or lost its driver."""
    from ems.cli.session import open_session
    from ems.study import requests

    with open_session() as session:
        experiment, target = find(session, study)
        _say(session, experiment, requests.resume(session.store, target, experiment.id), as_json)


@command(STEER, "ems tune extend last --trials 20", "ems tune extend last --budget 100epochs,2h")
def extend(
    study: Study,
    trials: Annotated[
        int | None, typer.Option("--trials", metavar="N", help="So many trials more.", show_default=False)
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option("--budget", metavar="AMOUNT", help="So much more: 100epochs, 10gpuh, 6h.", show_default=False),
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Give a search more trials or budget; one that has ended goes on."""
    from ems.cli import tune_status
    from ems.cli.session import open_session
    from ems.errors import UsageError
    from ems.study import requests, words

    if trials is not None and trials < 1:
        raise UsageError(f"--trials {trials} adds none", "give a whole number above 0: --trials 20")
    with open_session() as session:
        experiment, target = find(session, study)
        spec = tune_status.spec_of(session, experiment)
        more = words.parse_budget(budget or (), spec.fidelity.name if spec.fidelity else None)
        if trials is not None:
            more[words.TRIALS] = more.get(words.TRIALS, 0.0) + trials
        if not more:
            raise UsageError("extend it by how much?", f"ems tune extend {experiment.id} --trials 20, or --budget 6h")
        _say(session, experiment, requests.extend(session.store, target, experiment.id, more), as_json)


def find(session: Session, reference: str) -> tuple[Experiment, Target]:
    """Return a study and its target, its rows as new as they can be had."""
    from ems.cli import tune_status

    experiment = tune_status.find(session, reference)
    session.check_kept(experiment)
    return experiment, session.target(experiment.target)


def _say(session: Session, experiment: Experiment, report: WakeReport, as_json: bool) -> None:
    from ems.cli import render, tune_status

    if as_json:
        render.print_json(tune_status.describe(session, experiment))
        return
    render.say(*tune_status.lines(session, experiment))
    render.note(*([report.trouble] if report.trouble else []), f"next: ems tune status {experiment.id}")
