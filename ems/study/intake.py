"""A study's rows into the project's store, from wherever its driver keeps them."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from ems.executor.base import writing_to
from ems.node import records
from ems.node.records import Record
from ems.remote.executor import RemoteExecutor
from ems.store import Store
from ems.study import rows
from ems.target import Target


def bring(store: Store, target: Target, study_id: str) -> bool:
    """Copy what is new of a study into ``store``; return whether anything was. Never waits for the driver.

    On another machine, whose driver is set going where it had stopped, this is one question.

    Raises
    ------
    StoreError
        If the store cannot be written.
    ConnectionFailedError
        If the other machine cannot be reached.
    """
    if target.remote is not None:
        attend(store, target, target.remote, study_id)
        return True
    known = rows.read(Path(target.files(study_id).dir, rows.STORE), study_id)
    return known is not None and rows.put(store, known)


def attend(
    store: Store,
    target: Target,
    remote: RemoteExecutor,
    study_id: str,
    *,
    request: Record | None = None,
    wake: bool = False,
) -> dict[str, Any]:
    """Have another machine look after a study, and take in what it says of it; see :mod:`ems.study.far`.

    Returns
    -------
    dict
        ``report``, the fields of ``WakeReport``, where ``wake`` was asked for, else ``revived``.

    Raises
    ------
    EmsError
        What :func:`ems.study.driver.wake` raises there; or the machine cannot be reached.
    """
    files = target.files(study_id)
    answer = remote.study(files, request=request, wish=secrets.token_hex(8), wake=wake, runs=records.count_runs(files))
    known = answer["known"]
    if known is not None:
        with writing_to(target.root), records.locked(Path(files.dir, "rerun.lock")):
            records.append_runs(files, known["runs"])
        rows.put(store, rows.Rows(known["study"], known["tables"]))
    return answer
