"""``ems ls``, ``ems cat`` and ``ems get``: the files of runs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli import options as o
from ems.cli.app import FILES, command
from ems.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from ems.cli.session import Session
    from ems.model import Experiment
    from ems.outputs import RunFiles, Written

Address = Annotated[
    str,
    typer.Argument(metavar="EXP[/INDEX[/FOLDER]]", help="An experiment, a run, or a folder of it.", show_default=False),
]
File = Annotated[str, typer.Argument(metavar="EXP/INDEX/FILE", help="e.g. last/3/results.json.", show_default=False)]
FileOrRun = Annotated[
    str, typer.Argument(metavar="EXP/INDEX[/FILE]", help="A run, or a file or folder of it.", show_default=False)
]


@command(FILES, "ems ls last", "ems ls last/3", "ems ls last/3/checkpoint")
def ls(address: Address = "last", as_json: o.AsJson = False) -> None:
    """List the runs of an experiment, or the files of a run."""
    from ems.cli import render
    from ems.cli.session import open_session

    with open_session() as session:
        experiment, parsed = session.address(address)
        if parsed.index is None:
            _list_runs(session, experiment, as_json)
            return
        written = run_files(session, experiment, parsed.index).written()
        _, found = written_below(written, parsed.file, address, experiment.cwd)
    if as_json:
        render.print_json([{"path": path, "bytes": size, "modified": _iso(at)} for path, size, at in found])
        return
    columns = [render.Column("file", keep=True), render.Column("size", right=True), render.Column("modified")]
    rows = [[render.clean(path), render.size(size), render.ago(_iso(at))] for path, size, at in found]
    render.print_table(columns, rows)
    if found:
        example = found[0][0]
        render.note("", f"next: ems cat {parsed.experiment}/{parsed.index}/{example} · ems get {address}")


def _list_runs(session: Session, experiment: Experiment, as_json: bool) -> None:
    from ems.cli import render

    rows = list(session.store.run_table([experiment.id]))
    if as_json:
        fields = ("index", "state", "params", "attempt", "started_at", "wall_s", "max_rss_mb", "gpus", "host", "reason")
        render.print_json([{field: getattr(row, field) for field in fields} for row in rows])
        return
    names = list(dict.fromkeys(name for row in rows for name in row.params))
    columns = [
        render.Column("run", right=True, keep=True),
        render.Column("state", keep=True),
        *(render.Column(name, cut=True) for name in names),
        render.Column("attempt", right=True),
        render.Column("time", right=True),
        render.Column("reason", cut=True),
    ]
    cells = [
        [
            str(row.index),
            render.state_cell(row.state),
            *(render.value_text(row.params[name]) if name in row.params else render.ABSENT for name in names),
            str(row.attempt or render.ABSENT),
            render.duration(row.wall_s),
            render.clean(row.reason),
        ]
        for row in rows
    ]
    render.print_table(columns, cells)


@command(FILES, "ems cat last/3/results.json", "ems cat last/3/stdout.log | tail")
def cat(address: File) -> None:
    """Print a file of a run, byte for byte."""
    from ems.cli.session import open_session

    with open_session() as session:
        experiment, index, file = session.run(address)
        if file is None:
            raise UsageError(f"`{address}` names no file", f"ems ls {address}")
        files = run_files(session, experiment, index)
        path = find_file(files, file, address, experiment.cwd)
        if path.endswith("/"):
            raise UsageError(f"{address} is a folder", f"ems ls {address}")
        with files.open(path) as source:
            shutil.copyfileobj(source, sys.stdout.buffer)
    sys.stdout.buffer.flush()


@command(FILES, "ems get last/3/model.pt", "ems get last/3 run3/")
def get(
    address: FileOrRun,
    destination: Annotated[
        Path | None, typer.Argument(metavar="[DEST]", help="File or folder; default: here, under its own name.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite what is there.")] = False,
) -> None:
    """Copy what a run has written: a file, a folder, or all."""
    from ems.cli import render
    from ems.cli.session import open_session

    with open_session() as session:
        experiment, index, file = session.run(address)
        files = run_files(session, experiment, index)
        found = find_file(files, file, address, experiment.cwd) if file is not None else "/"
        if not found.endswith("/"):
            place = destination or Path(PurePosixPath(found).name)
            copies = {found: place / PurePosixPath(found).name if place.is_dir() else place}
        else:
            place = destination or Path(f"{experiment.name}-{index}")
            folder, inside = written_below(files.written(), file, address, experiment.cwd)
            names = [path for path, _, _ in inside]
            sources = zip(files.find(names, experiment.cwd), names, strict=True)
            copies = {path: place / PurePosixPath(name).relative_to(folder) for path, name in sources if path}
        there = [target for target in copies.values() if target.exists()]
        if there and not force:
            raise UsageError(f"{there[0]} exists already", "add --force to overwrite it, or name another place")
        files.copy(copies)
    render.note(f"copied {render.plural(len(copies), 'file')} to {place}")


# -- where files are ---------------------------------------------------------------------------------------------


def run_files(session: Session, experiment: Experiment, index: int) -> RunFiles:
    """Return the files of a run where they are; where that is out of reach, those that were pulled before.

    Raises
    ------
    NotFoundError
        If it has none: the run has not started, or its files were removed.
    """
    files = session.run_files(experiment, index)
    if not files.exists():
        gone = experiment.id in session.store.removed()
        raise NotFoundError(
            f"{experiment.name} {experiment.id}/{index} has no files" + (": they were removed" if gone else " yet"),
            f"ems reproduce {experiment.id}/{index}" if gone else f"ems status {experiment.id}",
        )
    return files


def find_file(files: RunFiles, file: str, address: str, cwd: str = ".") -> str:
    """Return the path below a run's folder of what a person calls ``file``; a folder's ends with ``/``.

    Raises
    ------
    NotFoundError
        If there is none, or it lies outside of the run.
    """
    [found] = files.find([file], cwd)
    if found is None:
        raise _not_there(address, file)
    return found


def written_below(
    written: Sequence[Written], folder: str | None, address: str, cwd: str = "."
) -> tuple[PurePosixPath, list[Written]]:
    """Return a folder of a run (None: all of it) as the project names it, and what of ``written`` lies in it.

    Raises
    ------
    NotFoundError
        If it has written nothing there.
    """
    if folder is None:
        return PurePosixPath("."), list(written)
    for place in (PurePosixPath(folder), PurePosixPath(cwd, folder)):
        inside = [facts for facts in written if PurePosixPath(facts[0]).is_relative_to(place)]
        if inside:
            return place, inside
    raise _not_there(address, folder)


def _not_there(address: str, file: str) -> NotFoundError:
    return NotFoundError(f"{address} is not there", f"ems ls {address.removesuffix('/' + file)}")


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
