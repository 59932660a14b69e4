"""Deleting the files of an experiment."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from ems.errors import TargetError
from ems.executor import control
from ems.model import Experiment
from ems.node.records import ExperimentFiles
from ems.store import Store
from ems.target import Target


def remove(store: Store, target: Target, experiment: Experiment, *, purge: bool = False) -> int:
    """Cancel an experiment and delete its files; keep its record and results in the store unless ``purge``.

    Killed half-way, it can be repeated.

    Returns
    -------
    int
        Bytes that were freed.

    Raises
    ------
    ExecutorError
        If the scheduler cannot be reached; nothing is deleted then.
    TargetError
        If a file cannot be deleted.
    """
    files = ExperimentFiles(target.root, experiment.id)
    # beside `experiments/`, so that nothing half-deleted is taken for an experiment
    aside = target.root / "removed" / experiment.id
    freed = _size(files.dir) + _size(aside)
    if Path(files.dir).exists():
        _cancel(target, files)
    try:
        if Path(files.dir).exists():
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            Path(files.dir).rename(aside)
        if aside.exists():
            shutil.rmtree(aside)
    except OSError as error:
        raise TargetError(f"cannot delete {error.filename}: {error.strerror}", "delete it by hand") from error
    store.remove(experiment.id, purge)
    return freed


def _cancel(target: Target, files: ExperimentFiles) -> None:
    """Cancel an experiment; on a full disk, delete what its runs left to make room for the marks of that."""
    try:
        control.cancel(target.executor, files)
    except TargetError as error:
        if getattr(error.__cause__, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            raise
        target.executor.cancel(control.jobs(files))
        for output in Path(files.dir, "runs").glob("*/*"):
            if output.name != "attempts":
                _delete(output)
        control.cancel(target.executor, files)


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
