"""What state a run is in, from its record and what the scheduler says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ems.harvest.verdict import Place, Verdict, decide, has_ended, is_alive, needs_scheduler, of_shared_jobs
from ems.model import JobInfo, State
from ems.node.job import TERMINATED, process_start

PENDING = Verdict(State.PENDING)
PLACE = Place("1842", "1842_3")
BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def info(state: State, word: str, job: str = "1842_3", **more: object) -> dict[str, JobInfo]:
    return {job: JobInfo(job, state, word, **more)}  # type: ignore[arg-type]


def record(state: str, **more: object) -> dict[str, object]:
    return {"state": state, "job": "1842_3", "chunk": 1, "attempt": 1, **more}


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED"])
def test_a_recorded_end_decides_and_needs_no_scheduler(state: str) -> None:
    ended = record(state, reason="x")
    assert has_ended(ended)
    assert not needs_scheduler(ended, PLACE)
    assert decide(ended, PLACE, None, PENDING, True) == Verdict(State(state), "", "x")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (info(State.RUNNING, "SUSPENDED"), Verdict(State.RUNNING, "SUSPENDED")),
        (info(State.PENDING, "REQUEUED", reason="BeginTime"), Verdict(State.PENDING, "REQUEUED", "BeginTime")),
        (info(State.FAILED, "OUT_OF_MEMORY"), Verdict(State.FAILED, "OUT_OF_MEMORY", "out of memory")),
        (info(State.FAILED, "NODE_FAIL"), Verdict(State.FAILED, "NODE_FAIL", "node failure")),
        (info(State.FAILED, "FAILED", exit_code=9), Verdict(State.FAILED, "FAILED", "exit code 9")),
        (info(State.CANCELLED, "CANCELLED"), Verdict(State.CANCELLED, "CANCELLED", "cancelled")),
        (info(State.COMPLETED, "COMPLETED"), Verdict(State.FAILED, "COMPLETED", "its worker recorded no end")),
        (info(State.UNKNOWN, "REVOKED"), Verdict(State.UNKNOWN, "REVOKED", "REVOKED")),
    ],
)
def test_slurm_decides_on_a_run_whose_worker_recorded_no_end(said: dict[str, JobInfo], expected: Verdict) -> None:
    assert decide(record("RUNNING"), PLACE, said, PENDING, True) == expected


def test_a_silent_scheduler_changes_nothing() -> None:
    assert decide(record("RUNNING"), PLACE, None, PENDING, True) == Verdict(State.RUNNING)
    assert decide(None, PLACE, None, Verdict(State.PENDING, "PENDING", "Resources"), True).reason == "Resources"
    known = Verdict(State.FAILED, "OUT_OF_MEMORY", "out of memory")
    assert decide(record("RUNNING"), PLACE, None, known, True) == known


def test_absence_is_unknown_and_never_done() -> None:
    verdict = decide(record("RUNNING"), PLACE, {}, Verdict(State.RUNNING), True)
    assert verdict.state is State.UNKNOWN
    assert "1842_3" in verdict.reason
    assert decide(None, PLACE, {}, PENDING, True).state is State.UNKNOWN


def test_what_slurm_has_forgotten_stays_what_it_was() -> None:
    known = Verdict(State.FAILED, "OUT_OF_MEMORY", "out of memory")
    assert decide(record("RUNNING"), PLACE, {}, known, True) == known


def test_a_worker_that_could_not_tell_why_it_was_ended_leaves_it_to_slurm() -> None:
    ended = record("FAILED", reason=TERMINATED)
    assert needs_scheduler(ended, PLACE)
    said = info(State.FAILED, "TIMEOUT")
    assert decide(ended, PLACE, said, PENDING, True) == Verdict(State.FAILED, "TIMEOUT", "time limit")
    assert decide(ended, PLACE, None, PENDING, True) == Verdict(State.FAILED, "", TERMINATED)


def test_runs_that_nobody_has_started() -> None:
    assert decide(None, Place(None), {}, PENDING, True) == PENDING
    waiting = decide(None, PLACE, info(State.PENDING, "PENDING", reason="Priority"), PENDING, True)
    assert waiting == Verdict(State.PENDING, "PENDING", "Priority")
    assert decide(None, PLACE, info(State.RUNNING, "RUNNING"), PENDING, True).state is State.RUNNING
    assert decide(None, PLACE, info(State.CANCELLED, "CANCELLED"), PENDING, True).state is State.CANCELLED
    assert decide(None, PLACE, info(State.COMPLETED, "COMPLETED"), PENDING, True).state is State.UNKNOWN
    # a whole array that is pending may be named by its own id
    assert decide(None, PLACE, info(State.PENDING, "PENDING", "1842"), PENDING, True).state is State.PENDING


def test_runs_that_share_array_tasks_wait_while_any_task_goes_on() -> None:
    shared = Place("7", "7", is_shared=True)
    said = info(State.COMPLETED, "COMPLETED", "7_0") | info(State.RUNNING, "RUNNING", "7_1")
    assert decide(None, shared, of_shared_jobs(said, ["7"]), PENDING, True).state is State.PENDING
    over = info(State.COMPLETED, "COMPLETED", "7_0") | info(State.COMPLETED, "COMPLETED", "7_1")
    assert decide(None, shared, of_shared_jobs(over, ["7"]), PENDING, True).state is State.UNKNOWN


def test_a_pool_on_this_machine() -> None:
    pool = Place("here-5-1", "here-5-1")
    alive = {"here-5-1": JobInfo("here-5-1", State.RUNNING, "", "held")}
    gone = {"here-5-1": JobInfo("here-5-1", State.UNKNOWN, "", "its workers are gone")}
    assert decide(None, pool, alive, PENDING, False) == Verdict(State.PENDING, "", "held")
    assert decide(None, pool, gone, PENDING, False).reason == "never started: its workers are gone"


def test_a_worker_on_this_machine_that_is_gone_has_lost_its_run() -> None:
    here = {"host": os.uname().nodename, "boot_id": BOOT, "pid": os.getpid(), "pid_start": process_start(os.getpid())}
    pool = Place("here-5-1", "here-5-1")
    assert decide(record("RUNNING", **here), pool, {}, PENDING, False) == Verdict(State.RUNNING)
    later = here | {"pid_start": 1}  # the number was given to another process since
    assert decide(record("RUNNING", **later), pool, {}, PENDING, False) == Verdict(State.FAILED, "", "worker lost")
    restarted = decide(record("RUNNING", **(here | {"boot_id": "x"})), pool, {}, PENDING, False)
    assert restarted.state is State.FAILED
    elsewhere = decide(record("RUNNING", **(later | {"host": "other"})), pool, {}, PENDING, False)
    assert elsewhere.state is State.RUNNING
    gone = {"here-5-1": JobInfo("here-5-1", State.UNKNOWN, "", "its workers are gone")}
    there = record("RUNNING", **(later | {"host": "other", "job": "here-5-1"}))
    assert decide(there, pool, gone, PENDING, False) == Verdict(State.FAILED, "", "worker lost")
    alive = {"here-5-1": JobInfo("here-5-1", State.RUNNING, "")}
    assert decide(there, pool, alive, PENDING, False) == Verdict(State.RUNNING)
    namesake = record("RUNNING", **(here | {"boot_id": "that of another machine", "job": "here-5-1"}))
    for said in (alive, None):
        assert decide(namesake, pool, said, PENDING, False) == Verdict(State.RUNNING)
    assert decide(namesake, pool, gone, PENDING, False).state is State.FAILED
    assert not is_alive(0, 0)


def test_a_record_with_a_word_of_a_later_version_is_unknown() -> None:
    assert decide(record("DREAMING"), PLACE, None, PENDING, True).state is State.UNKNOWN
