"""The driver's store: opened, written in one transaction a wake, closed. See :mod:`ems.store.studies` for its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple
from datetime import UTC, datetime, timedelta

from ems.errors import StoreError
from ems.model import Experiment, Run
from ems.node import records
from ems.node.records import ExperimentFiles, Record
from ems.search.trial import Origin, Outcome, Start
from ems.store import Store, studies, wide
from ems.store.studies import SegmentRow, StudyRow, TrialRow, WakeRow
from ems.study.spec import StudySpec


def open_study(store: Store, files: ExperimentFiles, experiment: Experiment) -> StudyRow:
    """Return how the study stands; the first time, take it in from its files, with the trials that were given to it."""
    row = studies.study(store, files.id)
    if row is not None:
        return row
    record = records.read_json(files.study) or {}
    spec = StudySpec.load(record)
    store.add(experiment, map(Run.load, records.iterate_runs(files)))
    with store.write() as db:
        db.execute("INSERT OR IGNORE INTO studies (id, spec) VALUES (?, ?)", [spec.id, records.dump(spec.dump())])
        for place, given in enumerate(record.get("given") or (), start=1):
            _give(store, spec, -place, given)
    return studies.study(store, files.id) or StudyRow(spec.id, spec.dump())


def _give(store: Store, spec: StudySpec, number: int, given: Record) -> None:
    """Add a trial of another study: known from the first wake on, and without a run."""
    values = given["values"]
    row = TrialRow(
        number, number, given["params"], 0, given.get("group"), 0, Origin.GIVEN.value, None, None, None, asked=0
    )
    parts = [
        SegmentRow(
            *(number, rung, spec.budget_of(rung), 0, 0, Outcome.OK.value, value, 0.0, 0, 0),
            *("", "", "", "", 0.0, 0, None),
        )
        for rung, value in enumerate(values)
        if value is not None
    ]
    _insert(store, spec.id, [row], parts)


def trial(spec: StudySpec, number: int, start: Start, wake: int) -> TrialRow:
    """Return the row of a new trial; what the model predicted in the metric's own sign."""
    proposal = start.proposal
    mean = None if proposal.mean is None else spec.sign * proposal.mean
    config = number if start.config is None else start.config
    return TrialRow(
        *(number, config, proposal.params, start.seed, start.group, start.bracket, proposal.origin.value),
        *(mean, proposal.sd, proposal.acquisition, wake),
    )


def segment(spec: StudySpec, number: int, rung: int, wake: int) -> SegmentRow:
    """Return the row of a segment that is asked for; its chunk is not known yet."""
    return SegmentRow(
        *(number, rung, spec.budget_of(rung), 0, 1, Outcome.PENDING.value, None, 0.0, wake, -1),
        *("", "", "", "", 0.0, 0, None),
    )


def commit(
    store: Store,
    row: StudyRow,
    spec: StudySpec,
    *,
    trials: Sequence[TrialRow],
    segments: Sequence[SegmentRow],
    wake: WakeRow | None,
    wishes: Iterable[str],
) -> None:
    """Write what a wake learnt and decided, all or nothing; None for ``wake`` where that was next to nothing.

    Raises
    ------
    StoreError
        If another driver was awake meanwhile: nothing is written then.
    """
    with store.write() as db:
        (wakes,) = db.execute("SELECT wakes FROM studies WHERE id = ?", [row.id]).fetchone()
        if wakes != row.wakes:
            raise StoreError(f"another driver of {row.id} was awake at the same time", "nothing: the next wake goes on")
        _insert(store, row.id, trials, segments)
        if wake is None:
            return
        db.execute(f"INSERT INTO wakes VALUES ({_marks(10)})", [row.id, *astuple(wake)])  # noqa: S608  # question marks
        db.executemany(
            "INSERT INTO requests (study_id, name, wake) VALUES (?, ?, ?)",
            [(row.id, name, wake.wake) for name in wishes],
        )
        db.execute(
            "UPDATE studies SET failures = CASE WHEN resumed = ? THEN failures ELSE 0 END,"  # resumed, it is forgiven
            " spec = ?, cache = ?, state = ?, reason = ?, ending = ?, resumed = ?, wakes = ? WHERE id = ?",
            [
                *(row.resumed, records.dump(spec.dump()), records.dump(dict(row.cache))),
                *(row.state, row.reason, row.ending, row.resumed, wake.wake, row.id),
            ],
        )


def close_wake(store: Store, study_id: str, wake: int, cost: tuple[float, float, int], next_s: float | None) -> None:
    """Note what a wake cost (seconds, seconds of CPU, calls of the scheduler), that it did not fail, and the next."""
    due = "" if next_s is None else _later(next_s)
    with store.write() as db:
        db.execute(
            "UPDATE wakes SET wall_s = ?, cpu_s = ?, calls = ? WHERE study_id = ? AND wake = ?", [*cost, study_id, wake]
        )
        db.execute("UPDATE studies SET failures = 0, next_wake = ? WHERE id = ?", [due, study_id])


def _insert(store: Store, study_id: str, trials: Iterable[TrialRow], segments: Iterable[SegmentRow]) -> None:
    """Write rows, those that are there in place of the old ones. Call it inside :meth:`Store.write`."""
    store.db.executemany(
        f"INSERT OR REPLACE INTO trials VALUES ({_marks(1 + len(studies.TRIAL_COLUMNS))})",  # noqa: S608  # question marks
        [(study_id, row.number, row.config, wide.dump_params(row.params), *astuple(row)[3:]) for row in trials],
    )
    store.db.executemany(
        f"INSERT OR REPLACE INTO segments VALUES ({_marks(1 + len(studies.SEGMENT_COLUMNS))})",  # noqa: S608  # as above
        [(study_id, *astuple(row)) for row in segments],
    )


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _later(seconds: float) -> str:
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
