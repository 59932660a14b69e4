"""From a worked-out experiment to its directory on disk and its first jobs.

The order makes every kill survivable: the code is frozen first; the experiment's directory is written aside and
renamed into place whole; the store learns of it; only then is anything handed to the scheduler. Killed before the
rename, nothing happened. Killed after it, ``ems rerun EXP --missing`` (or any later ``ems`` command) carries on,
and the workers' exclusive claims see to it that no run starts twice.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ems import root, snapshot
from ems.executor.base import Limits, Submission
from ems.model import Experiment, Json, Run
from ems.node import records
from ems.store import Store
from ems.target import Target


def start(
    experiment: Experiment,
    runs: Callable[[], Iterable[Run]],
    chunks: Iterable[records.Record],
    target: Target,
    store: Store,
    study: records.Record | None = None,
) -> Submission:
    """Make a new experiment real, step by step in the order that survives a kill (see the module's docstring).

    ``study`` is what its ``study.json`` says, where its runs are chosen while it goes on.

    Raises
    ------
    TargetError
        If the root cannot be written; nothing was submitted then.
    ExecutorError
        If the scheduler refuses; the experiment stays.
    """
    if target.remote is None:
        root.prepare(target.root, experiment.snapshot)
    # Where the script lies and where it starts stay real directories: that is where scripts write.
    keep = (experiment.cwd, str(PurePosixPath(experiment.script).parent))
    if snapshot.has(target.repository, experiment.snapshot):  # that of a rerun may be on the far side only
        links = snapshot.plan_links(snapshot.paths(target.repository, experiment.snapshot), keep=keep)
        experiment = replace(experiment, linked_dirs=links)
    root.write(target.root, experiment, runs(), chunks, study)
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
    budget: records.Record | None = None,
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
    budget
        The one that holds instead of the experiment's, as :class:`ems.node.budget.Budget` takes it.
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
                **({"budget": dict(budget)} if budget else {}),
                "created_at": records.now(),
            }
        )
    return chunks


def new_id(place: Path) -> str:
    """Return a new experiment id: 8 hex digits, not all of them decimal; ``place`` is the root."""
    while True:
        candidate = secrets.token_hex(4)
        # All digits would read as a number wherever an id is typed.
        if not candidate.isdigit() and not (place / "experiments" / candidate).exists():
            return candidate
