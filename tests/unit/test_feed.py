"""Handing over chunks: one process after another, in files of their own. Kills are in tests/integration."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from ems.executor import control
from ems.node import feed, records
from ems.node.records import ExperimentFiles


class Scheduler:
    """Keeps a book of what it was handed, as SLURM does."""

    def __init__(self) -> None:
        self.book: list[int] = []
        self.fails_with: Exception | None = None
        self.asked = 0

    def start(self, files: ExperimentFiles, chunk: int, lock: int) -> str:
        if self.fails_with is not None:
            raise self.fails_with
        self.book.append(chunk)
        return str(1000 + chunk)

    def cancel(self, jobs: Iterable[str]) -> None:
        assert list(jobs) == ["1001_1"]

    def find(self, files: ExperimentFiles, chunk: int) -> str | None:
        self.asked += 1
        return str(1000 + chunk) if chunk in self.book else None


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ExperimentFiles]:
    def make(*sizes: int, **spec: object) -> ExperimentFiles:
        files = ExperimentFiles(tmp_path / "root", "7f3a9c21")
        Path(files.chunks).mkdir(parents=True)
        records.write_atomic(files.spec, records.dump(spec))
        start = 0
        for number, size in enumerate(sizes, start=1):
            chunk = {"chunk": number, "start": start, "stop": start + size, "tasks": size, "created_at": records.now()}
            records.write_atomic(files.chunk(number), records.dump(chunk))
            start += size
        return files

    return make


def test_a_chunk_is_handed_over_once(make: Callable[..., ExperimentFiles], scheduler: Scheduler) -> None:
    files = make(3, 3)
    assert feed.waiting(files) == [1, 2]
    assert feed.submit(files, 1, scheduler.start, scheduler.find) == "1001"
    assert feed.submit(files, 1, scheduler.start, scheduler.find) == "1001"
    assert scheduler.book == [1]
    assert scheduler.asked == 0, "the first to try needs to ask nobody"
    assert feed.waiting(files) == [2]
    job = records.read_json(files.chunk(1, "job"))
    assert job is not None
    assert (job["job"], job["tasks"]) == ("1001", 3)


def test_a_refusal_leaves_the_chunk_waiting(make: Callable[..., ExperimentFiles], scheduler: Scheduler) -> None:
    files = make(3)
    scheduler.fails_with = feed.RefusedError("AssocMaxSubmitJobLimit")
    with pytest.raises(feed.RefusedError) as refused:
        feed.submit(files, 1, scheduler.start, scheduler.find)
    assert refused.value.is_full
    assert feed.waiting(files) == [1]
    scheduler.fails_with = None
    assert feed.submit(files, 1, scheduler.start, scheduler.find) == "1001"
    assert scheduler.asked == 0, "what was refused is not in the queue"


def test_without_an_answer_the_next_one_asks_first(make: Callable[..., ExperimentFiles], scheduler: Scheduler) -> None:
    files = make(3)
    scheduler.book.append(1)  # it was taken, and only the answer lost
    scheduler.fails_with = feed.UnsureError("Socket timed out on send/recv operation")
    with pytest.raises(feed.UnsureError):
        feed.submit(files, 1, scheduler.start, scheduler.find)
    scheduler.fails_with = None
    assert feed.submit(files, 1, scheduler.start, scheduler.find) == "1001"
    assert scheduler.book == [1]


def test_nobody_interferes_with_who_is_at_it(make: Callable[..., ExperimentFiles], scheduler: Scheduler) -> None:
    files = make(3)
    Path(files.chunk(1, "intent")).write_text("{}")
    with Path(files.chunk(1, "intent")).open("r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert feed.submit(files, 1, scheduler.start, scheduler.find) is None
        assert scheduler.book == []
    assert feed.submit(files, 1, scheduler.start, scheduler.find) == "1001"
    assert scheduler.asked == 1


def test_without_locks_an_old_intent_is_given_up(
    make: Callable[..., ExperimentFiles], scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    files = make(3)
    intent = Path(files.chunk(1, "intent"))
    intent.write_text("{}")
    assert feed.submit(files, 1, scheduler.start, scheduler.find) is None
    os.utime(intent, (time.time() - 3600,) * 2)
    assert feed.submit(files, 1, scheduler.start, scheduler.find) == "1001"


def test_a_chunk_cancelled_while_it_waits_is_never_handed_over(
    make: Callable[..., ExperimentFiles], scheduler: Scheduler
) -> None:
    files = make(3, 3)
    feed.submit(files, 1, scheduler.start, scheduler.find)
    feed.cancel_waiting(files)
    assert feed.waiting(files) == []
    assert feed.submit(files, 2, scheduler.start, scheduler.find) == feed.CANCELLED
    assert scheduler.book == [1]


def test_nothing_is_left_beside_the_records(make: Callable[..., ExperimentFiles], scheduler: Scheduler) -> None:
    files = make(3)
    feed.submit(files, 1, scheduler.start, scheduler.find)
    assert sorted(os.listdir(files.chunks)) == ["1.intent", "1.job", "1.json"]


def test_the_attempts_tell_the_job_of_a_chunk(make: Callable[..., ExperimentFiles]) -> None:
    files = make(2, 2)
    assert feed.find_in_attempts(files, 2) is None
    for index, (chunk, job) in enumerate([(1, "7"), (1, "7"), (1, "7"), (2, "8")]):
        Path(files.run(index, "attempts")).mkdir(parents=True)
        records.write_atomic(files.attempt(index, 1), records.dump({"chunk": chunk, "array_job_id": job}))
    assert feed.find_in_attempts(files, 2) == "8"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Batch job submission failed: Job violates accounting/QOS policy (job submit limit, …)", "full"),
        ("QOSMaxSubmitJobPerUserLimit", "full"),
        ("AssocMaxSubmitJobLimit", "full"),
        ("Unable to contact slurm controller (connect failure)", "away"),
        ("invalid partition specified: foo", ""),
    ],
)
def test_what_sbatch_says_is_understood(said: str, kind: str) -> None:
    refusal = feed.RefusedError(said)
    assert (refusal.is_full, refusal.is_away) == (kind == "full", kind == "away")


def test_words_of_a_command_lose_its_name() -> None:
    said = "sbatch: error: invalid partition specified: foo\nsbatch: error: Batch job submission failed: Invalid name\n"
    assert feed.words(said) == "invalid partition specified: foo; Batch job submission failed: Invalid name"


def test_sbatch_gets_no_environment_of_a_surrounding_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "1.sh"
    script.write_text("#!/bin/bash\n#SBATCH --array=0-3\n#SBATCH --time=5\n#SBATCH --job-name=ems-a.1\n")
    gone = {
        "SLURM_JOB_ID": "7",
        "SLURMD_NODENAME": "n1",
        "EMS_INDEX": "3",
        "CUDA_VISIBLE_DEVICES": "0",
        "SBATCH_ARRAY_INX": "0-99",
        "SBATCH_TIMELIMIT": "1",
        "SBATCH_JOB_NAME": "mine",
        "SBATCH_WAIT": "1",
    }
    kept = {"SLURM_CONF": "/c", "SBATCH_PARTITION": "gpu", "SBATCH_ACCOUNT": "lab", "MODULEPATH": "/m"}
    for key, value in (gone | kept).items():
        monkeypatch.setenv(key, value)
    env = feed.clean_environment(str(script))
    assert not gone.keys() & env.keys()
    assert kept.items() <= env.items()


def test_max_parallel_lets_chunks_run_one_after_another(make: Callable[..., ExperimentFiles]) -> None:
    files = make(2, 2, max_parallel=2)
    assert feed._after_the_one_before(files, 1) == []
    assert feed._after_the_one_before(files, 2) == []
    records.write_atomic(files.chunk(1, "job"), records.dump({"job": "41"}))
    assert feed._after_the_one_before(files, 2) == ["--dependency=afterany:41"]


class TestAfterRun:
    """Who feeds, when the runs of a chunk end."""

    @pytest.fixture
    def fed(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        times: list[int] = []
        monkeypatch.setattr(feed, "feed", lambda files: times.append(1))
        monkeypatch.setattr(feed, "_PATIENCE_S", 0.0)
        monkeypatch.setattr(feed, "_RETRY_S", 3600.0)  # however slow the machine is
        return times

    def test_nothing_waits(self, make: Callable[..., ExperimentFiles], scheduler: Scheduler, fed: list[int]) -> None:
        files = make(2)
        feed.submit(files, 1, scheduler.start, scheduler.find)
        feed.after_run(files, 1, 0)
        assert fed == []
        assert not Path(files.chunk(1, "done")).exists()

    def test_the_last_of_a_chunk_and_who_comes_first(
        self, make: Callable[..., ExperimentFiles], scheduler: Scheduler, fed: list[int]
    ) -> None:
        files = make(3, 3)
        feed.submit(files, 1, scheduler.start, scheduler.find)
        feed.after_run(files, 1, 2)  # nobody has tried yet
        feed.after_run(files, 1, 0)  # somebody just did
        assert len(fed) == 1
        feed.after_run(files, 1, 1)
        assert len(fed) == 2

    def test_cancelled_runs_count_as_ended(
        self, make: Callable[..., ExperimentFiles], scheduler: Scheduler, fed: list[int]
    ) -> None:
        files = make(3, 3)
        feed.submit(files, 1, scheduler.start, scheduler.find)
        control.cancel(scheduler, files, [1])  # type: ignore[arg-type]  # as much of an executor as it takes
        feed.after_run(files, 1, 2)
        feed.after_run(files, 1, 0)
        assert len(fed) == 2

    def test_anyone_after_a_while(
        self, make: Callable[..., ExperimentFiles], scheduler: Scheduler, fed: list[int]
    ) -> None:
        files = make(9, 3)
        feed.submit(files, 1, scheduler.start, scheduler.find)
        feed.after_run(files, 1, 0)
        os.utime(feed._try_path(files), (time.time() - 3601,) * 2)
        feed.after_run(files, 1, 1)
        assert len(fed) == 2

    def test_a_full_disk_is_not_the_runs_fault(
        self, make: Callable[..., ExperimentFiles], monkeypatch: pytest.MonkeyPatch, fed: list[int]
    ) -> None:
        files = make(2, 2)

        def full(*_: object) -> bool:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(feed, "mark_done", full)
        feed.after_run(files, 1, 0)
        assert fed == []
