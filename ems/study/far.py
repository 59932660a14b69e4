"""Studies on other machines: what the agent does there for the driver, and what it answers.

The driver and its store are where the runs are. This side hears all rows of the study each time it asks: a few hundred
bytes for each trial, and nothing that could be out of step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ems import root, snapshot
from ems.errors import SnapshotError, UsageError
from ems.executor.base import writing_to
from ems.node import records
from ems.node.records import ExperimentFiles
from ems.remote.site import Site
from ems.study import clocks, driver, rows


def attend(site: Site, args: Mapping[str, Any], _: bytes) -> dict[str, Any]:
    """Take in a request, wake the driver or see that it will wake, and return the rows of the study.

    Parameters
    ----------
    args
        ``id``; ``request``, what people wish, or None; ``wish``, its name, by which it is taken in once however often
        it is asked; ``wake``, whether the driver is to wake now; ``runs``, how many lines of ``runs.jsonl`` are known.

    Returns
    -------
    dict
        ``lacks`` where the other side has to send something first; else ``known``, the rows, and ``report``, the fields
        of ``WakeReport``, where it was to wake, or ``revived``.
    """
    files = site.files(args["id"])
    spec = records.read_json(files.spec)
    if spec is None:
        return {"lacks": "experiment"}
    try:
        root.prepare(site.root, spec["snapshot"])
    except SnapshotError:
        if snapshot.has(site.root / "snapshots.git", spec["snapshot"]):
            raise
        return {"lacks": "snapshot"}
    if args["request"] is not None:
        with writing_to(site.root):
            records.ask_driver(files, args["request"], _name(args["wish"]))
    answer = _wake(site, files) if args["wake"] else {"revived": _revive(site, files)}
    return {**answer, "known": _known(files, int(args["runs"]))}


def _name(wish: str) -> str:
    """Return the name of a request; what is none could lead out of the folder of requests."""
    if not wish.isalnum():
        raise UsageError(f"`{wish}` is not the name of a request")
    return wish


def _wake(site: Site, files: ExperimentFiles) -> dict[str, Any]:
    ticking = clocks.of(site.kind, site.root, files.id, site.worker_python)
    return {"report": asdict(driver.wake(site.root, files.id, site.executor, ticking))}


def _revive(site: Site, files: ExperimentFiles) -> bool:
    """Set the clock going where it stopped though the study goes on; return whether it had."""
    known = rows.read(Path(files.dir, rows.STORE), files.id)
    if (known is not None and known.is_finished) or not Path(files.study).exists():
        return False
    ticking = clocks.of(site.kind, site.root, files.id, site.worker_python)
    if ticking.state().is_running:
        return False
    ticking.start(0.0)
    return True


def _known(files: ExperimentFiles, n_runs: int) -> dict[str, Any] | None:
    """Return the rows of the study, and the lines of the runs that the other side does not have."""
    known = rows.read(Path(files.dir, rows.STORE), files.id)
    if known is None:
        return None
    new = list(records.iterate_runs(files, n_runs)) if records.count_runs(files) > n_runs else []
    return {"study": known.study, "tables": known.tables, "runs": new}
