"""What comes to lie under a root, and goes from it: experiments as whole directories, the code that they run.

The same on this machine and on the far side of a wire; nothing here knows the store.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from ems import snapshot
from ems.errors import TargetError
from ems.executor import control
from ems.executor.base import Executor
from ems.model import Experiment, Run
from ems.node import install, records
from ems.node.records import ExperimentFiles, Record

_ABANDONED_S = 24 * 3600.0
_TRAVELS = re.compile(r"spec\.json|study\.json|runs\.jsonl|runs\.offsets|chunks/[0-9]+\.json")


def check(root: Path) -> None:
    """See that experiments can be written below ``root``.

    Raises
    ------
    TargetError
        If not, and why.
    """
    try:
        (root / "experiments").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(root, error) from error
    if not os.access(root / "experiments", os.W_OK):
        raise unwritable(root, PermissionError(errno.EACCES, "Permission denied"))
    _remove_left_overs(root)


def prepare(root: Path, snapshot_id: str) -> None:
    """Make the checkout of a snapshot, and what its workers run, unless they are there.

    Raises
    ------
    SnapshotError
        If the root does not hold the snapshot.
    TargetError
        If the root cannot be written.
    """
    snapshot.checkout(root, snapshot_id)
    try:
        install.install_lib(root)
    except OSError as error:
        raise unwritable(root, error) from error


def write(
    root: Path, experiment: Experiment, runs: Iterable[Run], chunks: Iterable[Record], study: Record | None = None
) -> None:
    """Write the whole directory of an experiment aside, then rename it: it is there completely or not at all.

    ``study`` is what ``study.json`` says of one.

    Raises
    ------
    TargetError
        If the root cannot be written; nothing is there then.
    """

    def fill(aside: ExperimentFiles) -> None:
        records.write_atomic(aside.spec, records.dump(asdict(experiment)))
        records.write_runs(aside, (asdict(run) for run in runs))
        for chunk in chunks:
            records.write_atomic(aside.chunk(chunk["chunk"]), records.dump(chunk), durable=False)
        if study is not None:
            records.write_atomic(aside.study, records.dump(study))

    _make_whole(root, experiment.id, fill)


def pack(files: ExperimentFiles) -> dict[str, bytes]:
    """Return what another root needs of an experiment to run it: file -> content."""
    names = ["spec.json", "runs.jsonl", "runs.offsets", *(f"chunks/{number}.json" for number in files.chunk_numbers())]
    names += ["study.json"] if Path(files.study).exists() else []
    return {name: Path(files.dir, name).read_bytes() for name in names}


def unpack(root: Path, experiment_id: str, content: Mapping[str, bytes]) -> None:
    """Write the directory of an experiment from what :func:`pack` returned; leave one that is there as it is.

    Raises
    ------
    TargetError
        If the root cannot be written, or a name is none that an experiment has.
    """
    strange = next((name for name in content if not _TRAVELS.fullmatch(name)), None)
    if strange is not None:
        raise TargetError(f"`{strange}` is no file of an experiment")

    def fill(aside: ExperimentFiles) -> None:
        for name, data in content.items():
            records.write_atomic(Path(aside.dir, name), data)

    if not Path(ExperimentFiles(root, experiment_id).spec).exists():
        _make_whole(root, experiment_id, fill)


def remove(executor: Executor, files: ExperimentFiles) -> int:
    """Cancel an experiment and delete its files; return how many bytes that freed. Killed half-way, repeat it.

    Raises
    ------
    ExecutorError
        If the scheduler cannot be reached; nothing is deleted then.
    TargetError
        If a file cannot be deleted.
    """
    before = _size(files.dir)
    if Path(files.dir).exists():
        _cancel(executor, files)
    return before - _size(files.dir) + delete(files)  # on a full disk, cancelling deletes too


def delete(files: ExperimentFiles) -> int:
    """Delete the files of an experiment that nothing runs of; return how many bytes that freed.

    Raises
    ------
    TargetError
        If one cannot be deleted.
    """
    # beside `experiments/`, so that nothing half-deleted is taken for an experiment
    aside = Path(files.root, "removed", files.id)
    freed = _size(files.dir) + _size(aside)
    try:
        if Path(files.dir).exists():
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            Path(files.dir).rename(aside)
        if aside.exists():
            shutil.rmtree(aside)
    except OSError as error:
        raise TargetError(f"cannot delete {error.filename}: {error.strerror}", "delete it by hand") from error
    return freed


def unwritable(root: Path, error: OSError) -> TargetError:
    """Return the error of a root that does not take an experiment."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return TargetError(
        f"{root} cannot be written: {error.strerror or error}",
        "free some room (`ems rm EXP` deletes an experiment's files) and type the command again; nothing was submitted"
        if full
        else "make it writable, or set `root:` in ems.yaml to a folder that is; nothing was submitted",
    )


def _make_whole(root: Path, experiment_id: str, fill: Callable[[ExperimentFiles], None]) -> None:
    aside = ExperimentFiles(root, f".{experiment_id}.{os.urandom(4).hex()}.aside")
    try:
        Path(aside.chunks).mkdir(parents=True)
        fill(aside)
        Path(aside.dir).rename(ExperimentFiles(root, experiment_id).dir)
    except OSError as error:
        if not Path(ExperimentFiles(root, experiment_id).spec).exists():  # else another process was first
            raise unwritable(root, error) from error
    finally:
        shutil.rmtree(aside.dir, ignore_errors=True)


def _remove_left_overs(root: Path) -> None:
    """Delete what submissions that were killed had written aside, once nobody can be writing it any more."""
    for aside in (root / "experiments").glob(".*.aside"):
        with suppress(OSError):
            if time.time() - aside.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(aside)


def _cancel(executor: Executor, files: ExperimentFiles) -> None:
    """Cancel an experiment; on a full disk, delete what its runs left to make room for the marks of that."""
    try:
        control.cancel(executor, files)
    except TargetError as error:
        if getattr(error.__cause__, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            raise
        executor.cancel(control.jobs(files))
        for output in Path(files.dir, "runs").glob("*/*"):
            if output.name != "attempts":
                _delete(output)
        control.cancel(executor, files)


def _delete(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _size(folder: str | Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(place, name).lstat().st_size
    return total
