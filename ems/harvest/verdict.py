"""What state a run is in: from its worker's record first, from the scheduler where that has no end. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from ems.model import JobInfo, State
from ems.node.job import TERMINATED, process_start
from ems.node.records import Record

# SLURM's words in a researcher's
_REASONS = {
    "OUT_OF_MEMORY": "out of memory",
    "TIMEOUT": "time limit",
    "DEADLINE": "deadline reached",
    "NODE_FAIL": "node failure",
    "BOOT_FAIL": "node did not boot",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
    "LAUNCH_FAILED": "the job could not be started",
}
NOT_STARTED = "its job has ended without starting it"


@dataclass(frozen=True, slots=True)
class Verdict:
    """State of a run, SLURM's word beside it, and why it is not COMPLETED, in one line."""

    state: State
    slurm_state: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run stands in its newest chunk: the chunk's job (None: not handed over yet) and what to ask for it."""

    job: str | None
    key: str = ""  # of the run's own array task; the job's where runs share tasks
    is_shared: bool = False


def needs_scheduler(record: Record | None, place: Place) -> bool:
    """Whether the record leaves open how the run stands."""
    if record is None:
        return place.job is not None
    return not has_ended(record)


def has_ended(record: Record | None) -> bool:
    """Whether an attempt recorded an end after which nothing follows by itself, and why."""
    return record is not None and _state(record).is_finished and record.get("reason") != TERMINATED


def decide(
    record: Record | None, place: Place, infos: Mapping[str, JobInfo] | None, before: Verdict, by_slurm: bool
) -> Verdict:
    """Decide how a run stands.

    Parameters
    ----------
    record
        Its last attempt of the newest chunk, None where that has not started it.
    infos
        What the scheduler said; None if it did not answer. A job that it left out is one it does not know.
    before
        What the store holds.
    """
    if record is None:
        return _not_started(place, infos, before, by_slurm)
    state, reason = _state(record), str(record.get("reason") or "")
    info = (infos or {}).get(str(record.get("job", "")))
    if state.is_finished:
        if reason == TERMINATED and info is not None and info.state.is_finished:
            return Verdict(info.state, info.slurm_state, _reason(info))
        return Verdict(state, info.slurm_state if info is not None and info.state == state else "", reason)
    if not by_slurm:
        return _by_its_worker(record, state, reason, infos)
    return _cut_off(record, state, reason, infos, before)


def _cut_off(
    record: Record, state: State, reason: str, infos: Mapping[str, JobInfo] | None, before: Verdict
) -> Verdict:
    """Decide on an attempt that recorded no end, or one that was requeued, by what SLURM says of its job."""
    job = str(record.get("job", ""))
    info = (infos or {}).get(job)
    if info is None and (infos is None or before.state.is_finished):
        # nobody knows better than before
        is_known = before.state.is_finished or before.state is State.UNKNOWN
        return before if is_known else Verdict(state, before.slurm_state if before.state is state else "", reason)
    if info is None:
        return Verdict(State.UNKNOWN, "", f"SLURM does not know job {job} any more and its worker recorded no end")
    if info.state is State.COMPLETED:
        return Verdict(State.FAILED, info.slurm_state, "its worker recorded no end")
    return Verdict(info.state, info.slurm_state, _reason(info))


def _not_started(place: Place, infos: Mapping[str, JobInfo] | None, before: Verdict, by_slurm: bool) -> Verdict:
    if place.job is None or infos is None:
        return before if place.job else Verdict(State.PENDING)
    info = infos.get(place.key) or infos.get(place.job)
    if info is None:
        if before.state.is_finished:
            return before
        said = f"SLURM does not know job {place.key} any more" if by_slurm else "its workers are gone"
        return Verdict(State.UNKNOWN, "", f"never started: {said}")
    if info.state is State.COMPLETED or (info.state is State.UNKNOWN and not by_slurm):
        return Verdict(State.UNKNOWN, info.slurm_state, f"never started: {info.reason or NOT_STARTED}")
    if info.state is State.RUNNING and (place.is_shared or not by_slurm):
        return Verdict(State.PENDING, "", info.reason)  # its turn comes
    return Verdict(info.state, info.slurm_state, _reason(info))


def _by_its_worker(record: Record, state: State, reason: str, infos: Mapping[str, JobInfo] | None) -> Verdict:
    """Decide on an attempt without SLURM: it runs while its worker is alive, on this machine or on another.

    Many machines have the same name; the id of its boot tells whether it is this one.
    """
    if state is not State.RUNNING:
        return Verdict(state, "", reason)
    is_namesake = record.get("host") == os.uname().nodename
    if is_namesake and record.get("boot_id") == _boot_id():
        is_running = is_alive(int(record.get("pid") or 0), int(record.get("pid_start") or 0))
        return Verdict(State.RUNNING) if is_running else Verdict(State.FAILED, "", "worker lost")
    info = (infos or {}).get(str(record.get("job", "")))
    is_going = info is not None and info.state in (State.RUNNING, State.PENDING)
    if infos is None or is_going or (info is None and not is_namesake):
        return Verdict(state, "", reason)
    return Verdict(State.FAILED, "", "worker lost: the machine was restarted" if is_namesake else "worker lost")


def is_alive(pid: int, start: int) -> bool:
    """Whether process ``pid`` that started at clock tick ``start`` still is; not a later one of the same number."""
    return pid > 0 and process_start(pid) == start


def _state(record: Record) -> State:
    try:
        return State(str(record.get("state")))
    except ValueError:
        return State.UNKNOWN


def _reason(info: JobInfo) -> str:
    if info.state in (State.PENDING, State.RUNNING):
        return info.reason if info.reason not in ("None", "") else ""
    said = _REASONS.get(info.slurm_state)
    if said is None and info.exit_code:
        said = f"exit code {info.exit_code}"
    return said or info.reason or info.slurm_state


def of_shared_jobs(infos: Mapping[str, JobInfo], jobs: Iterable[str]) -> dict[str, JobInfo]:
    """Return ``infos`` with one entry for each of ``jobs`` as a whole: that of a task that goes on, if any does."""
    wanted = set(jobs)
    whole: dict[str, JobInfo] = {}
    for key, info in infos.items():
        job = key.partition("_")[0]
        if job in wanted and (job not in whole or whole[job].state.is_finished):
            whole[job] = info
    return {**infos, **whole}


@cache
def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123  # no path of ours
            return file.read().strip()
    except OSError:
        return ""
