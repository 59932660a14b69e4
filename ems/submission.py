"""From a worked-out experiment to its directory on disk and its first jobs.

The order makes every kill survivable: the code is frozen first; the experiment's directory is written aside and
renamed into place whole; the store learns of it; only then is anything handed to the scheduler. Killed before the
rename, nothing happened. Killed after it, ``ems rerun EXP --missing`` (or any later ``ems`` command) carries on,
and the workers' exclusive claims see to it that no run starts twice.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath

from ems import snapshot
from ems.errors import TargetError
from ems.executor.base import Limits, Submission
from ems.model import Experiment, Json, Run
from ems.node import checkout, install, records
from ems.store import Store
from ems.target import Target

_ABANDONED_S = 24 * 3600.0


def start(
    experiment: Experiment,
    runs: Callable[[], Iterable[Run]],
    chunks: Iterable[records.Record],
    target: Target,
    store: Store,
) -> Submission:
    """Make a new experiment real, step by step in the order that survives a kill (see the module's docstring).

    Raises
    ------
    TargetError
        If the root cannot be written; nothing was submitted then.
    ExecutorError
        If the scheduler refuses; the experiment stays.
    """
    try:
        snapshot.checkout(target.root, experiment.snapshot)
        install.install_lib(target.root)
        # Where the script lies and where it starts stay real directories: that is where scripts write.
        keep = (experiment.cwd, str(PurePosixPath(experiment.script).parent))
        links = snapshot.plan_links(checkout.manifest(target.root, experiment.snapshot), keep=keep)
        experiment = replace(experiment, linked_dirs=links)
        _write_experiment(target.root, experiment, runs(), chunks)
    except OSError as error:
        raise _unwritable(target.root, error) from error
    store.add(experiment, runs())
    return target.executor.submit(experiment, records.ExperimentFiles(target.root, experiment.id))


def plan_chunks(
    experiment: Experiment,
    indices: Sequence[int],
    limits: Limits,
    *,
    first: int = 1,
    fresh: bool = False,
    resources: Mapping[str, Json] | None = None,
) -> list[records.Record]:
    """Split runs into array jobs that the scheduler takes.

    Under a limit of L submitted jobs a chunk has at most (L - 1) // 2 array tasks, so that the next one fits while the
    last task of the chunk before it, which feeds it, still counts.

    Parameters
    ----------
    indices
        The runs, in order; a range is kept as its two ends, so that a million runs stay a short record.
    first
        Number of the first chunk: chunk numbers ascend over the life of an experiment.
    fresh
        Whether the attempts start from nothing instead of their checkpoint.
    resources
        What to ask for instead of the experiment's, by name of the field of ``Resources``.
    """
    per_task = experiment.pack or 1
    n_tasks = -(-len(indices) // per_task)
    if experiment.executor == "here":
        size = n_tasks
    else:
        size = min(n_tasks, limits.max_array_size)
        if limits.max_submit is not None and n_tasks > limits.max_submit:
            size = max(1, min(size, (limits.max_submit - 1) // 2))
    chunks: list[records.Record] = []
    for number, start in enumerate(range(0, len(indices), max(1, size * per_task)), start=first):
        stop = min(start + size * per_task, len(indices))
        is_range = isinstance(indices, range) and indices.step == 1
        chunks.append(
            {
                "chunk": number,
                "start": indices[start] if is_range else None,
                "stop": indices[stop - 1] + 1 if is_range else None,
                "indices": None if is_range else list(indices)[start:stop],
                "tasks": -(-(stop - start) // per_task),
                "pack": experiment.pack,
                "executor": experiment.executor,
                "fresh": fresh,
                "resources": dict(resources) if resources else None,
                "created_at": records.now(),
            }
        )
    return chunks


def new_id(root: Path) -> str:
    """Return a new experiment id: 8 hex digits, not all of them decimal."""
    while True:
        candidate = secrets.token_hex(4)
        # All digits would read as a number wherever an id is typed.
        if not candidate.isdigit() and not (root / "experiments" / candidate).exists():
            return candidate


def check_root(root: Path) -> None:
    """See that experiments can be written below ``root``.

    Raises
    ------
    TargetError
        If not, and why.
    """
    try:
        (root / "experiments").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(root, error) from error
    if not os.access(root / "experiments", os.W_OK):
        raise _unwritable(root, PermissionError(errno.EACCES, "Permission denied"))
    _remove_left_overs(root)


def _remove_left_overs(root: Path) -> None:
    """Delete what submissions that were killed had written aside, once nobody can be writing it any more."""
    for aside in (root / "experiments").glob(".*.aside"):
        with suppress(OSError):
            if time.time() - aside.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(aside)


def _unwritable(root: Path, error: OSError) -> TargetError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return TargetError(
        f"{root} cannot be written: {error.strerror or error}",
        "free some room (`ems rm EXP` deletes an experiment's files) and type the command again; nothing was submitted"
        if full
        else "make it writable, or set `root:` in ems.yaml to a folder that is; nothing was submitted",
    )


def _write_experiment(
    root: Path, experiment: Experiment, runs: Iterable[Run], chunks: Iterable[records.Record]
) -> None:
    """Write the whole directory aside, then rename it: it is there completely or not at all."""
    files = records.ExperimentFiles(root, experiment.id)
    aside = records.ExperimentFiles(root, f".{experiment.id}.aside")
    try:
        Path(aside.chunks).mkdir(parents=True)
        records.write_atomic(aside.spec, records.dump(asdict(experiment)))
        records.write_runs(aside, (asdict(run) for run in runs))
        for chunk in chunks:
            records.write_atomic(aside.chunk(chunk["chunk"]), records.dump(chunk), durable=False)
        Path(aside.dir).rename(files.dir)
    except BaseException:
        shutil.rmtree(aside.dir, ignore_errors=True)
        raise
