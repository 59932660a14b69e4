"""``ems tune stop``, ``resume`` and ``extend``: what people want of a study that goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli import options as o
from ems.cli.tune import STEER, command, read_space
from ems.cli.tune_status import Study
from ems.errors import UsageError

if TYPE_CHECKING:
    from ems.cli.session import Session
    from ems.model import Experiment
    from ems.study.standing import Standing


@command(STEER, "ems tune stop last", "ems tune stop last --now")
def stop(
    study: Study,
    now: Annotated[bool, typer.Option("--now", help="Cancel what runs, too.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """End a search; what runs may end first."""
    from ems.cli import render
    from ems.cli.session import open_session
    from ems.study import requests

    with open_session() as session:
        found = find(session, study)
        if found.row.is_finished:
            render.note(f"{study} has ended already")
            _say(session, found.experiment, "", as_json)
            return
        target = session.target(found.experiment.target)
        report = requests.stop(session.store, target, found.experiment.id, now=now)
        _say(session, found.experiment, report.trouble, as_json)


@command(STEER, "ems tune resume last", "ems tune resume last --parallel 16")
def resume(
    study: Study,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=WHERE", help="Its space, to be sure of it.", show_default=False),
    ] = None,
    space: Annotated[
        str | None, typer.Option("--space", metavar="FILE", help="The same, from a file.", show_default=False)
    ] = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", metavar="N", help="Trials at a time from now on.", show_default=False)
    ] = None,
    sampler: Annotated[
        str | None, typer.Option("--sampler", metavar="NAME", help="How to search from now on.", show_default=False)
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Have a search go on that was stopped, failed, or lost its driver."""
    from ems.cli.session import open_session
    from ems.study import requests, words

    if parallel is not None and parallel < 1:
        raise UsageError(f"--parallel {parallel} lets nothing run", "give a whole number above 0: --parallel 8")
    with open_session() as session:
        found = find(session, study)
        exp_id = found.experiment.id
        if found.row.state == "FINISHED":
            raise UsageError(
                f"{found.experiment.name} {exp_id} is finished: {found.row.reason}",
                f"give it more: ems tune extend {exp_id} --trials 20",
            )
        spec = replace(
            found.spec,
            space=read_space(sets, space).dump() if sets or space else found.spec.space,
            parallel=parallel or found.spec.parallel,
            sampler=words.check_sampler(sampler) if sampler else found.spec.sampler,
        )
        target = session.target(found.experiment.target)
        report = requests.resume(session.store, target, exp_id, spec if spec != found.spec else None)
        _say(session, found.experiment, report.trouble, as_json)


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
    from ems.cli.session import open_session
    from ems.study import requests, words

    if trials is not None and trials < 1:
        raise UsageError(f"--trials {trials} adds none", "give a whole number above 0: --trials 20")
    with open_session() as session:
        found = find(session, study)
        more = words.parse_budget(budget or (), found.spec.fidelity.name if found.spec.fidelity else None)
        if trials is not None:
            more[words.TRIALS] = more.get(words.TRIALS, 0.0) + trials
        if not more:
            raise UsageError(
                "extend it by how much?", f"ems tune extend {found.experiment.id} --trials 20, or --budget 6h"
            )
        target = session.target(found.experiment.target)
        report = requests.extend(session.store, target, found.experiment.id, more)
        _say(session, found.experiment, report.trouble, as_json)


def find(session: Session, reference: str) -> Standing:
    """Return how a study stands, as new as that can be had; its files are there.

    Raises
    ------
    NotFoundError
        If there is no such study, or its files were removed.
    UsageError
        If a program asks and tells it.
    """
    from ems.cli import render, tune_status

    experiment = tune_status.find(session, reference)
    session.check_kept(experiment)
    render.note(*tune_status.look(session, experiment))
    found = tune_status.load(session, experiment)
    if not experiment.script:
        raise UsageError(
            f"{experiment.name} {experiment.id} has no driver: a program asks and tells it",
            f"ems.study({experiment.name!r}) goes on with it, and with more trials=N where it is over",
        )
    return found


def _say(session: Session, experiment: Experiment, trouble: str, as_json: bool) -> None:
    from ems.cli import render, tune_status

    if as_json:
        render.print_json(tune_status.describe(session, experiment))
        return
    render.say(*tune_status.lines(tune_status.load(session, experiment)))
    render.note("", *([trouble] if trouble else []), f"next: ems tune status {experiment.id}")
