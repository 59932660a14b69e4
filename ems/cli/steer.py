"""``ems cancel``, ``ems hold``, ``ems release`` and ``ems rm``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli import options as o
from ems.cli.app import STEER, command
from ems.model import State

if TYPE_CHECKING:
    from ems.cli.session import Session
    from ems.model import Experiment


@command(STEER, "ems cancel last", "ems cancel last/3")
def cancel(address: o.ExpOrRun) -> None:
    """End an experiment, or one run of it."""
    from ems.cli import render
    from ems.cli.session import open_session

    with open_session() as session:
        experiment, parsed = session.address(address)
        indices = None if parsed.index is None else [parsed.index]
        if _is_over(session, experiment, parsed.index):
            render.say(f"{address} has ended already: {_states(session, experiment)}")
            return
        session.target(experiment.target).cancel(experiment.id, indices)
        session.refresh([experiment])
        what = f"{experiment.name} {experiment.id}" + ("" if parsed.index is None else f"/{parsed.index}")
        render.say(f"cancelled {what}: {_states(session, experiment)}")
        rerun = f"ems rerun {experiment.id}" + (" --failed" if parsed.index is None else f"/{parsed.index}")
        render.note(f"next: ems status {experiment.id} · ems harvest {experiment.id} · {rerun}")


def _is_over(session: Session, experiment: Experiment, index: int | None) -> bool:
    session.refresh([experiment])
    if index is not None:
        return session.state(experiment, index).is_finished
    return all(state.is_finished for state in session.store.counts([experiment.id])[experiment.id])


def _states(session: Session, experiment: Experiment) -> str:
    from ems.cli import render

    return render.state_words(session.store.counts([experiment.id])[experiment.id])


@command(STEER, "ems hold last", "ems hold last/3")
def hold(address: o.ExpOrRun = "last") -> None:
    """Let nothing more start; what runs goes on."""
    _hold(address, release=False)


@command(STEER, "ems release last")
def release(address: o.ExpOrRun = "last") -> None:
    """Let what was held start again."""
    _hold(address, release=True)


def _hold(address: str, *, release: bool) -> None:
    from ems.cli import render
    from ems.cli.session import open_session

    with open_session() as session:
        experiment, parsed = session.address(address)
        session.check_kept(experiment)
        indices = None if parsed.index is None else [parsed.index]
        session.target(experiment.target).hold(experiment.id, indices, release=release)
        session.refresh([experiment])
        done = "released" if release else "held"
        what = experiment.id if parsed.index is None else f"{experiment.id}/{parsed.index}"
        render.say(f"{done} {experiment.name} {what}: {_states(session, experiment)}")
        render.note("next: ems status" if release else f"next: ems release {what}")


@command(STEER, "ems rm 7f3a9c21", "ems rm 7f3a9c21 --purge --yes")
def rm(
    experiment: o.Exp,
    purge: Annotated[bool, typer.Option("--purge", help="Forget the results in the store, too.")] = False,
    yes: o.Yes = False,
) -> None:
    """Cancel an experiment and delete its files.

    Its record and its harvested results stay in the store, unless --purge is given.
    """
    from ems import removal
    from ems.cli import render
    from ems.cli.session import open_session

    with open_session() as session:
        found = session.experiment(experiment)
        counts = session.store.counts([found.id])[found.id]
        going = sum(n for state, n in counts.items() if not state.is_finished and state is not State.UNKNOWN)
        what = f"{found.name} {found.id}, {render.plural(found.n_runs, 'run')} ({_states(session, found)})"
        if not yes and not confirm(f"delete the files{' and all results' if purge else ''} of {what}?"):
            render.note("nothing was deleted")
            raise typer.Exit(1)
        freed = removal.remove(session.store, session.target(found.target), found, purge=purge)
    cancelled = f", {render.plural(going, 'run')} cancelled" if going else ""
    kept = "" if purge else "; its record and harvested results are kept (--purge forgets them)"
    render.say(f"removed {what}: {render.size(freed)} freed{cancelled}{kept}")


def confirm(question: str) -> bool:
    """Ask on a terminal.

    Raises
    ------
    UsageError
        If nobody is there to answer.
    """
    import sys

    from ems.errors import UsageError

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("nobody is there to confirm", "add --yes")
    return bool(typer.confirm(question, err=True))
