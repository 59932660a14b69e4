"""``ems tune status`` and ``best``: how a study stands, and what it has found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli import options as o
from ems.cli.tune import LOOK, command
from ems.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from ems.cli.session import Session
    from ems.model import Experiment, Json
    from ems.study.spec import StudySpec

_WATCH_S = 2.0

Study = Annotated[
    str, typer.Argument(metavar="STUDY", help="Id (a prefix will do), name, or `last`.", show_default=False)
]
AnyStudy = Annotated[
    str | None, typer.Argument(metavar="[STUDY]", help="Default: the newest study.", show_default=False)
]


@command(LOOK, "ems tune status", "ems tune status last --watch")
def status(
    study: AnyStudy = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again every 2 s, until it has ended.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Show the best so far, trials by state, workers, budget, next wake."""
    from ems.cli import render
    from ems.cli.session import open_session

    o.check_watch(watch, as_json)
    with open_session() as session:
        experiment = find(session, study)
        if as_json:
            render.print_json(describe(session, experiment))
            return
        render.say(*lines(session, experiment))


@command(LOOK, "ems tune best", "ems tune best last --json")
def best(study: AnyStudy = None, as_json: o.AsJson = False) -> None:
    """Show the best configuration, how sure that is, and what runs it."""
    from ems.cli.session import open_session

    with open_session() as session:
        find(session, study)
        raise NotImplementedError


def find(session: Session, reference: str | None) -> Experiment:
    """Return a study; None: the newest.

    Raises
    ------
    NotFoundError
        If there is none.
    UsageError
        If it is an experiment, but no study.
    """
    if reference is None:
        found = [each for each in session.store.experiments() if each.study_id is not None]
        if not found:
            raise NotFoundError(
                f"there are no studies in {session.project}",
                "start one: ems tune train.py --set 'lr=loguniform(1e-5,1e-1)' --metric loss --trials 30",
            )
        return found[-1]
    experiment = session.experiment(reference)
    if experiment.study_id is None:
        raise UsageError(f"{experiment.name} {experiment.id} is no study", f"ems status {experiment.id}")
    return experiment


def spec_of(session: Session, experiment: Experiment) -> StudySpec:
    """Return what a study is."""
    raise NotImplementedError


def lines(session: Session, experiment: Experiment) -> list[str]:
    """Return what ``ems tune status`` shows."""
    raise NotImplementedError


def describe(session: Session, experiment: Experiment) -> dict[str, Json]:
    """Return what ``ems tune status --json`` prints."""
    raise NotImplementedError


def until_ended(session: Session, experiment: Experiment, *, quiet: bool) -> None:
    """Show progress until a study has ended."""
    raise NotImplementedError
