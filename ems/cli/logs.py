"""``ems logs``: what a run prints."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from ems.cli import options as o
from ems.cli.app import FILES, command
from ems.errors import ConnectionFailedError, ExecutorError, NotFoundError

if TYPE_CHECKING:
    from ems.cli.session import Session
    from ems.model import Experiment
    from ems.outputs import RunFiles

_POLL_S, _REMOTE_POLL_S, _REFRESH_S = 0.2, 1.0, 2.0
_BLOCK = 1 << 16


@command(FILES, "ems logs last/0 -f", "ems logs last/3 --err", "ems logs last/3 --attempt 1")
def logs(
    run: o.RunAddress = "last",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Stay, and print more as it comes, until the run ends.")
    ] = False,
    err: Annotated[bool, typer.Option("--err", "-e", help="What it printed to stderr.")] = False,
    lines: Annotated[
        int | None, typer.Option("--lines", "-n", metavar="N", min=0, help="Only the last N lines.")
    ] = None,
    attempt: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only that attempt; default: all.")] = None,
) -> None:
    """Print what a run has printed."""
    from ems.cli.session import open_session

    with open_session() as session:
        experiment, index, _ = session.run(run)
        files = session.run_files(experiment, index)
        stream = "stderr" if err else "stdout"
        start, stop = _span(session, experiment, index, attempt, stream)
        printed = _print_part(files, f"{stream}.log", start, stop, lines)
        if printed is None and not follow:
            is_gone = experiment.id in session.store.removed()
            why = "its files were removed" if is_gone else f"it is {session.state(experiment, index).lower()}"
            raise NotFoundError(f"{experiment.id}/{index} has printed nothing: {why}", f"ems status {experiment.id}")
        if follow and stop is None:
            _follow(session, experiment, index, files, f"{stream}.log", start if printed is None else printed)
        elif printed == start and not err:
            _say_if_elsewhere(files, run)


def _span(
    session: Session, experiment: Experiment, index: int, attempt: int | None, stream: str
) -> tuple[int, int | None]:
    """Return from which byte to which (None: to the end) an attempt's part of the log reaches."""
    from ems.node import records
    from ems.remote.pull import STATES

    if attempt is None:
        return 0, None
    with suppress(ConnectionFailedError):
        session.target(experiment.target).pull({experiment.id: [index]}, STATES)
    files = session.files(experiment)
    numbers = files.attempt_numbers(index)
    if attempt not in numbers:
        raise NotFoundError(
            f"{files.id}/{index} has no attempt {attempt}",
            f"it has {', '.join(map(str, numbers))}" if numbers else f"ems status {files.id}",
        )
    begins = [
        int((records.read_json(files.attempt(index, number)) or {}).get(f"{stream}_from", 0))
        for number in (attempt, attempt + 1)
        if number in numbers
    ]
    return begins[0], begins[1] if len(begins) == 2 else None


def _print_part(files: RunFiles, name: str, start: int, stop: int | None, lines: int | None) -> int | None:
    """Print a part of a log to stdout as it is; return up to which byte, None where there is no log."""
    try:
        file = files.open(name)
    except FileNotFoundError:
        return None
    with file:
        end = file.seek(0, 2) if stop is None else stop
        file.seek(start if lines is None else _last_lines(file, start, end, lines))
        while block := file.read(max(0, min(_BLOCK, end - file.tell()))):
            sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()
    return end


def _last_lines(file: BinaryIO, start: int, end: int, lines: int) -> int:
    """Return where the last ``lines`` lines between two bytes begin, reading from the end."""
    found, position = 0, end
    while position > start:
        size = min(_BLOCK, position - start)
        file.seek(position - size)
        block = file.read(size)
        at = len(block)
        if position == end and block.endswith(b"\n"):
            at -= 1  # the end of the last line begins no other
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            found += 1
            if found == lines:
                return position - size + at + 1
        position -= size
    return start if lines else end


def _follow(session: Session, experiment: Experiment, index: int, files: RunFiles, name: str, position: int) -> None:
    """Print what is added to a log until the run has ended; a machine that is away for a while is waited for."""
    from ems.cli import render

    target = session.target(experiment.target)
    pause_s = _POLL_S if target.remote is None else _REMOTE_POLL_S
    if not files.exists():
        render.note(f"{experiment.id}/{index} has not started; waiting for it (Ctrl-C ends the waiting)")
    files = target.run_files(experiment, index)  # not what was pulled of it, where its machine is away just now
    next_refresh, is_away = 0.0, False
    while True:
        try:
            if time.monotonic() >= next_refresh:
                with suppress(ExecutorError):  # the scheduler is away: the log is still there to be read
                    session.refresh([experiment])
                next_refresh = time.monotonic() + _REFRESH_S
            is_over = session.state(experiment, index).is_finished  # before reading: the last words are not missed
            position = _print_part(files, name, position, None, None) or position
            is_away = False
            if is_over:
                return
        except ConnectionFailedError as error:
            if not is_away:
                render.note(f"{error.message}; trying again (Ctrl-C ends it)")
            is_away = True
        time.sleep(pause_s)


def _say_if_elsewhere(files: RunFiles, run: str) -> None:
    from ems.cli import render

    if any(name == "stderr.log" for name, _, _ in files.written()):
        render.note(f"nothing on stdout; on stderr there is: ems logs {run} --err")
