"""What people wish of a study (``requests/NAME.json``), as its driver takes it in: each once, whatever is killed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ems.node import records
from ems.node.records import ExperimentFiles
from ems.store import Store
from ems.store.studies import FINISHED, RUNNING, STOPPED, StudyRow
from ems.study.spec import StudySpec

STOP, RESUME, EXTEND = "stop", "resume", "extend"


@dataclass(frozen=True, slots=True)
class Wish:
    """One request: the name of its file, and what it says."""

    name: str
    record: dict[str, Any]


def pending(store: Store, files: ExperimentFiles, study_id: str) -> list[Wish]:
    """Return what has not been taken in yet, the oldest first."""
    done = {name for (name,) in store.query("SELECT name FROM requests WHERE study_id = ?", [study_id])}
    found = []
    for path in Path(files.dir, "requests").glob("*.json"):
        if path.stem in done:  # the wake that took it in was killed before it could delete it
            path.unlink(missing_ok=True)
            continue
        with suppress(ValueError):
            record = records.read_json(path)
            if record is not None:
                found.append(Wish(path.stem, record))
    return sorted(found, key=lambda wish: (str(wish.record.get("at")), wish.name))


def apply(row: StudyRow, spec: StudySpec, wished: Sequence[Wish], wake: int) -> tuple[StudyRow, StudySpec, bool]:
    """Return how the study stands after these wishes, and whether what runs is to be cancelled."""
    is_now = False
    for wish in wished:
        kind = wish.record.get("kind")
        if kind == STOP and row.state == RUNNING:
            row = replace(row, ending=STOPPED, reason=str(wish.record.get("reason") or "stopped by hand"))
            is_now = is_now or bool(wish.record.get("now"))
        elif kind == RESUME:
            row, is_now = _going(row, wake), False
            spec = StudySpec.load({**spec.dump(), **(wish.record.get("changes") or {})})
        elif kind == EXTEND:
            more = {unit: spec.budget.get(unit, 0.0) + by for unit, by in wish.record["budget"].items()}
            spec = replace(spec, budget={**spec.budget, **more})
            if FINISHED in (row.state, row.ending):
                row = _going(row, wake)
    return row, spec, is_now


def _going(row: StudyRow, wake: int) -> StudyRow:
    """Return a study that goes on; what crashed before is forgiven."""
    return replace(row, state=RUNNING, ending="", reason="", resumed=wake - 1)


def forget(files: ExperimentFiles, wished: Sequence[Wish]) -> None:
    """Delete the files of what was taken in."""
    for wish in wished:
        Path(files.dir, "requests", f"{wish.name}.json").unlink(missing_ok=True)
