"""Steering what has been submitted: cancel, hold, release, remove."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from ems.errors import TargetError
from ems.model import Experiment
from ems.node import feed, records
from ems.node.records import ExperimentFiles, Record
from ems.store import Store
from ems.target import Target


def jobs(files: ExperimentFiles) -> list[str]:
    """Return the jobs of an experiment's chunks that were handed over, in order."""
    found = (feed.job_of(files, number) for number in files.chunk_numbers())
    return [job for job in found if job not in (None, feed.CANCELLED)]


def cancel(target: Target, experiment: Experiment, indices: Collection[int] | None = None) -> None:
    """End runs, and let those that have not started never start.

    Parameters
    ----------
    indices
        Which runs; None: the whole experiment, chunks included that were not handed to the scheduler yet.

    Raises
    ------
    ExecutorError
        If the scheduler cannot be reached.
    TargetError
        If the root cannot be written.
    """
    files = ExperimentFiles(target.root, experiment.id)
    try:
        if indices is None:
            feed.cancel_waiting(files)
        for index in () if indices is None else indices:
            records.cancel(files, index)
    except OSError as error:
        raise TargetError(f"cannot write to {target.root}: {error.strerror}", "ems doctor") from error
    chosen = jobs(files) if indices is None else [job for index in indices for job in _own_jobs(files, index)]
    target.executor.cancel(chosen)


def _own_jobs(files: ExperimentFiles, index: int) -> Iterator[str]:
    """Yield the array tasks that hold this run and no other; workers that share one see the run's own mark."""
    for number in files.chunk_numbers():
        chunk = records.read_json(files.chunk(number)) or {}
        job = feed.job_of(files, number)
        if job is not None and job.isdigit() and not chunk.get("pack"):
            task = _task(chunk, index)
            if task is not None:
                yield f"{job}_{task}"


def _task(chunk: Record, index: int) -> int | None:
    indices = records.chunk_indices(chunk)
    return indices.index(index) if index in indices else None


def hold(target: Target, experiment: Experiment, *, release: bool = False) -> None:
    """Let nothing more of an experiment start (what runs goes on), or let it start again.

    Raises
    ------
    ExecutorError
        If the scheduler cannot be reached.
    TargetError
        If the root cannot be written.
    """
    files = ExperimentFiles(target.root, experiment.id)
    mark = Path(files.dir, "hold")
    try:
        if release:
            mark.unlink(missing_ok=True)
        else:
            mark.touch()
    except OSError as error:
        raise TargetError(f"cannot write {mark}: {error.strerror}", "ems doctor") from error
    target.executor.hold(jobs(files), release=release)
    if release:
        target.executor.submit(experiment, files)


def remove(store: Store, target: Target, experiment: Experiment, *, purge: bool = False) -> int:
    """Cancel an experiment and delete its files; keep its record and results in the store unless ``purge``.

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
    freed = 0
    if Path(files.dir).exists():
        cancel(target, experiment)
        freed = _size(files.dir)
        # renamed first: killed half-way, nothing of it is found and adopted again
        aside = f"{files.dir}.removed"
        shutil.rmtree(aside, ignore_errors=True)
        try:
            Path(files.dir).rename(aside)
            shutil.rmtree(aside)
        except OSError as error:
            raise TargetError(f"cannot delete {error.filename}: {error.strerror}", "delete it by hand") from error
    store.remove(experiment.id, purge)
    return freed


def _size(folder: str) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(place, name).lstat().st_size
    return total
