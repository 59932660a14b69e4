"""Staying with an experiment until its last run ends (``--wait``)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import typer

from ems.errors import ConnectionFailedError, ExecutorError
from ems.model import State

if TYPE_CHECKING:
    from ems.cli.session import Session
    from ems.model import Experiment

_LOST_LOOKS = 5  # so often in a row nobody knows of the rest: accounting may lag, but not for ever
_CHANGING = (State.PENDING, State.RUNNING)
POLL_S = {"here": (0.1, 1.0), "slurm": (1.0, 10.0)}  # first and longest pause between two looks


def until_finished(session: Session, experiment: Experiment, *, quiet: bool = False, says_next: bool = True) -> None:
    """Show progress until every run has ended, then harvest and say how it went.

    Ctrl-C ends the waiting, not the experiment.

    Raises
    ------
    typer.Exit
        With 1 if a run failed or was cancelled, with 130 after Ctrl-C.
    """
    from ems.cli import budget, render, results

    try:
        with render.progress() as show:
            counts = _watch(session, experiment, (lambda _: None) if quiet else show)
    except KeyboardInterrupt:
        render.note(
            f"{experiment.name} {experiment.id} goes on running without you",
            f"next: ems status · ems logs {experiment.id}/0 -f · ems cancel {experiment.id} · ems harvest",
        )
        raise typer.Exit(130) from None
    reports = session.harvest([experiment])
    if not quiet:
        results.say(reports)
        budget.say_refused(session, [experiment.id])
    lost = counts.get(State.UNKNOWN, 0)
    if lost:
        render.note(
            f"{render.plural(lost, 'run')} lost: no worker and no queue knows of {'it' if lost == 1 else 'them'}",
            f"next: ems rerun {experiment.id} --missing",
        )
    if counts.get(State.COMPLETED, 0) != experiment.n_runs:
        raise typer.Exit(1)
    if not quiet and says_next:
        render.note(f"next: ems report {experiment.id}")


class Patience:
    """Knows when nothing will change any more by itself: runs that nobody knows of are waited for a few looks."""

    def __init__(self) -> None:
        self._lost_looks = 0

    def is_over(self, counts: Mapping[State, int], is_sure: bool = True) -> bool:
        """Whether it makes no sense to look again; ``is_sure``: the scheduler has answered."""
        goes_on = any(counts.get(state) for state in _CHANGING)
        self._lost_looks = 0 if goes_on or not is_sure else self._lost_looks + 1
        return not goes_on and (not counts.get(State.UNKNOWN) or self._lost_looks > _LOST_LOOKS)


def _watch(session: Session, experiment: Experiment, show: Callable[[str], None]) -> dict[State, int]:
    """Look again and again, ever less often, until no run is left that will still change by itself."""
    from ems.cli import render

    started, patience = time.monotonic(), Patience()
    pause, longest = POLL_S.get(experiment.executor, (1.0, 10.0))
    while True:
        trouble = ""
        try:
            session.refresh([experiment])
        except (ExecutorError, ConnectionFailedError) as error:
            trouble = f"   {error.message}; trying again"
        counts = session.store.counts([experiment.id])[experiment.id]
        if patience.is_over(counts, is_sure=not trouble):
            return counts
        # in a log file only what changes is worth a line
        elapsed = f"   {render.duration(time.monotonic() - started)}" if sys.stderr.isatty() else ""
        show(f"{render.state_words(counts)} of {experiment.n_runs:,}{elapsed}{trouble}")
        time.sleep(pause)
        pause = min(longest, pause * 1.3)
