"""Deleting the files of an experiment."""

from __future__ import annotations

from ems.model import Experiment
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
    freed = target.remove(experiment.id)
    store.remove(experiment.id, purge)
    return freed
