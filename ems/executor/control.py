"""Cancelling and holding an experiment or some of its runs, whatever executor has it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

from ems.errors import ExecutorError, NotFoundError, UsageError
from ems.executor import here
from ems.executor.base import Executor, writing_to
from ems.node import feed, records
from ems.node.records import ExperimentFiles, Record


def jobs(files: ExperimentFiles, indices: Collection[int] | None = None) -> list[str]:
    """Return the jobs of an experiment: of each chunk handed over, or the array task of each of some runs.

    Runs that share an array task (``--pack``) or a pool have no task of their own and are left out.
    """
    if indices is None:
        named = (_job_of(files, number) for number in files.chunk_numbers())
        return [job for job in named if job not in ("", feed.CANCELLED)]
    found = []
    for index, chunk in _chunks_of(files, indices):
        job = feed.job_of(files, chunk["chunk"])
        if job is not None and job.isdigit() and not chunk.get("pack"):
            found.append(f"{job}_{list(records.chunk_indices(chunk)).index(index)}")
    return found


def cancel(executor: Executor, files: ExperimentFiles, indices: Collection[int] | None = None) -> None:
    """End an experiment, or some of its runs: what runs is ended, what waits will not start, what ended stays.

    Safe to repeat, and at any moment: a run that a worker claims meanwhile is ended by it.

    Raises
    ------
    ExecutorError
        If the scheduler cannot be reached; repeating it carries on.
    TargetError
        If the root cannot be written.
    NotFoundError
        If there is no such run.
    """
    with writing_to(Path(files.root)):
        if indices is None:
            if Path(files.study).exists():  # or its driver would begin others
                records.ask_driver(files, {"kind": "stop", "now": True, "reason": "cancelled"})
            _cancel_waiting(files)
            executor.cancel(jobs(files))
            _mark_cancelled(files)
            return
        tasks = jobs(files, indices)
        for index, chunk in _chunks_of(files, indices):
            if not _is_over(files, index, chunk):
                records.cancel(files, index)
                _claim(files, index, chunk)
                if records.has_waiting_chunks(files):
                    feed.mark_done(files, chunk["chunk"], index)  # the last one to end feeds the next chunk
        executor.cancel(tasks)


def hold(
    executor: Executor, files: ExperimentFiles, indices: Collection[int] | None = None, release: bool = False
) -> None:
    """Let nothing more of an experiment, or of some of its runs, start; or with ``release`` let it start again.

    Raises
    ------
    ExecutorError
        If the scheduler cannot be reached.
    UsageError
        If single runs are named that share their workers with others.
    """
    if indices is None:
        mark = Path(feed.hold_path(files))
        with writing_to(Path(files.root)):
            if release:
                mark.unlink(missing_ok=True)
            else:
                mark.touch()
        executor.hold(jobs(files), release)
        return
    tasks = jobs(files, indices)
    if len(tasks) < len(indices):
        raise UsageError(
            f"runs of {files.id} are started by shared workers, or not yet submitted: they cannot be held one by one",
            f"ems {'release' if release else 'hold'} {files.id}",
        )
    executor.hold(tasks, release)


def _job_of(files: ExperimentFiles, number: int) -> str:
    record = records.read_json(files.chunk(number, "job"))
    if record is not None:
        return str(record.get("was") or record["job"])
    return here.find(files, number) or ""


def _cancel_waiting(files: ExperimentFiles) -> None:
    feed.cancel_waiting(files)
    in_doubt = [number for number in feed.waiting(files) if here.find(files, number) is None]
    if in_doubt:
        raise ExecutorError(
            f"chunk {in_doubt[0]} of {files.id} is being submitted, or SLURM does not answer", "repeat the command"
        )


def _chunks_of(files: ExperimentFiles, indices: Collection[int]) -> Iterator[tuple[int, Record]]:
    """Yield each run with the newest chunk that it is in.

    Raises
    ------
    NotFoundError
        If a run is in none.
    """
    left = set(indices)
    for number in reversed(files.chunk_numbers()):
        chunk = records.read_json(files.chunk(number)) or {"start": 0, "stop": 0}
        there = left.intersection(records.chunk_indices(chunk))
        yield from ((index, chunk) for index in sorted(there))
        left -= there
        if not left:
            return
    raise NotFoundError(f"{files.id} has no run {min(left)}", f"ems ls {files.id}")


def _is_over(files: ExperimentFiles, index: int, chunk: Record) -> bool:
    last = records.last_attempt(files, index)
    return (
        last is not None and last["chunk"] == chunk["chunk"] and last["state"] in ("COMPLETED", "FAILED", "CANCELLED")
    )


def _claim(files: ExperimentFiles, index: int, chunk: Record) -> None:
    """Claim the attempt that a worker would, so that none starts the run; leave it where one has it already.

    The record names no job: then not even the job that was to resume the run takes it for its own.
    """
    last = records.last_attempt(files, index)
    if last is not None and last["chunk"] == chunk["chunk"] and last["state"] == "RUNNING":
        return
    now = records.now()
    record: Record = {
        "v": 1,
        "index": index,
        "attempt": 1 if last is None else last["attempt"] + 1,
        "chunk": chunk["chunk"],
        "state": "CANCELLED",
        "reason": "cancelled",
        "job": "",
        "host": "",
        "restart": 0,
        "started_at": now,
        "ended_at": now,
        "exit_code": None,
        "signal": "",
        "resumed_from": last["attempt"] if last is not None and last["chunk"] == chunk["chunk"] else None,
    }
    Path(files.run(index, "attempts")).mkdir(parents=True, exist_ok=True)
    records.create_exclusive(files.attempt(index, record["attempt"]), records.dump(record))


def _mark_cancelled(files: ExperimentFiles) -> None:
    """Have the runs that no worker has claimed known as cancelled, even after the scheduler has forgotten them."""
    for number in files.chunk_numbers():
        path = files.chunk(number, "job")
        with contextlib.suppress(FileNotFoundError):
            record = records.read_json(path)
            if record is not None and record["job"] != feed.CANCELLED:
                records.write_atomic(path, records.dump({**record, "job": feed.CANCELLED, "was": record["job"]}))
