"""From what the driver's store says to what workers read: runs, chunks, marks of those to be stopped. Repeatable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

from ems import submission
from ems.errors import ExecutorError
from ems.executor import control
from ems.executor.base import Executor, Limits
from ems.model import Experiment, Run
from ems.node import records
from ems.node.records import ExperimentFiles, Record
from ems.store import Store, studies
from ems.store.studies import SegmentRow, TrialRow
from ems.study.spec import StudySpec


def number_chunks(
    experiment: Experiment, files: ExperimentFiles, asked: Sequence[SegmentRow], limits: Limits, last: int
) -> dict[int, int]:
    """Return the chunk that each trial of ``asked`` goes into: one for all, or as many as the scheduler needs.

    Parameters
    ----------
    last
        Greatest chunk that the driver's store names.
    """
    first = max([last, *files.chunk_numbers()]) + 1
    numbers = sorted(each.number for each in asked)
    chunks = submission.plan_chunks(experiment, numbers, limits, first=first)
    return {index: chunk["chunk"] for chunk in chunks for index in records.chunk_indices(chunk)}


def write(store: Store, spec: StudySpec, experiment: Experiment, files: ExperimentFiles) -> None:
    """Write the runs and chunks that the store knows and the disk does not yet.

    Raises
    ------
    OSError
        If the root cannot be written; the next wake repeats it.
    """
    count = records.count_runs(files)
    (n_trials,) = store.query("SELECT count(*) FROM trials WHERE study_id = ? AND number >= 0", [spec.id])[0]
    if n_trials > count:
        rows = (row for row in studies.trial_rows(store, spec.id) if row.number >= count)
        records.append_runs(files, (asdict(run_of(spec, row)) for row in rows))
    there = set(files.chunk_numbers())
    missing = [
        each for each in studies.segments(store, spec.id) if each.is_pending and each.chunk and each.chunk not in there
    ]
    for number in sorted({each.chunk for each in missing}):
        chunk = _chunk(spec, experiment, number, [each for each in missing if each.chunk == number])
        if not records.create_exclusive(files.chunk(number), records.dump(chunk)):
            raise ExecutorError(f"chunk {number} of {spec.id} was written by another command", "wait, and look again")


def follow(spec: StudySpec, experiment: Experiment, files: ExperimentFiles) -> Experiment:
    """Return the experiment with as many workers as its study has by now: since it was resumed with another number.

    Also writes it to where workers read how many of them may run; where those bound nothing there is nothing to do.
    """
    if experiment.max_parallel in (None, spec.parallel):
        return experiment
    workers = spec.parallel if experiment.workers == experiment.max_parallel else experiment.workers
    experiment = replace(experiment, max_parallel=spec.parallel, workers=workers)
    records.write_atomic(files.spec, records.dump(asdict(experiment)))
    return experiment


def run_of(spec: StudySpec, row: TrialRow) -> Run:
    """Return the run of a trial. Its key is its own: how long it trains is no param of it."""
    params = spec.run_params(row.params, row.grp, row.seed)
    return Run(row.number, params, row.seed, f"{spec.id}/{row.number}")


def _chunk(spec: StudySpec, experiment: Experiment, number: int, parts: Iterable[SegmentRow]) -> Record:
    budgets = {each.number: each.budget for each in parts}
    indices = sorted(budgets)
    chunk = submission.plan_chunks(experiment, indices, Limits(len(indices)), first=number)[0]
    overlays = {str(index): spec.overlay(budgets[index]) for index in indices}
    return {**chunk, "params": {index: each for index, each in overlays.items() if each}}


def stop(executor: Executor, files: ExperimentFiles, parts: Iterable[SegmentRow]) -> int:
    """Cancel the segments that are to be stopped; return how many there were. Those that have ended stay so.

    Raises
    ------
    ExecutorError
        If the scheduler cannot be reached; the next wake repeats it.
    """
    numbers = [each.number for each in parts if each.is_pending and each.reason]
    if numbers:
        control.cancel(executor, files, numbers)
    return len(numbers)
