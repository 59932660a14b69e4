"""What `ems status` says of jobs that wait; and what it was told by whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from ems.cli import files, main, results, status, submit, waiting
from ems.cli.session import Session
from ems.errors import NotFoundError, UsageError
from ems.executor.base import Submission
from ems.harvest import HarvestReport
from ems.model import Experiment, JobInfo, Run, State
from ems.node import records
from ems.outputs import RunFolder
from ems.store import Store
from ems.target import Target

EXPERIMENT = Experiment("7f3a9c21", "train", records.now(), "train.py", "5" * 40, 4, executor="slurm", target="slurm")


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """An experiment of two chunks, the first of which is array job 1842."""
    files = records.ExperimentFiles(tmp_path / ".ems", EXPERIMENT.id)
    Path(files.chunks).mkdir(parents=True)
    records.write_atomic(files.spec, records.dump(asdict(EXPERIMENT)))
    for number, (start, stop) in enumerate([(0, 3), (3, 4)], start=1):
        chunk = {"chunk": number, "start": start, "stop": stop, "indices": None, "tasks": stop - start}
        records.write_atomic(files.chunk(number), records.dump(chunk))
    records.write_atomic(files.chunk(1, "job"), records.dump({"job": "1842"}))
    with Store(tmp_path / ".ems" / "ems.db") as store:
        store.add(EXPERIMENT, [Run(i, {"lr": i}, i, f"k{i}") for i in range(4)])
        yield Session(tmp_path, store)


def pending(task: int, reason: str, start: str = "") -> JobInfo:
    return JobInfo(f"1842_{task}", State.PENDING, "PENDING", reason, start_estimate=start)


def test_next_says_what_waits_for_what_and_when_it_may_start(session: Session) -> None:
    infos = [pending(0, "Resources"), pending(1, "Resources", "2031-01-02T14:05:00"), pending(2, "Priority")]
    session.jobs = {info.job: info for info in infos} | {"99_0": pending(9, "another experiment")}
    said = status._next(session, EXPERIMENT)
    assert said == "2 wait for Resources, 1 waits for Priority, start ~Thu 14:05, 1 array job to submit"


def test_json_has_the_same(session: Session) -> None:
    session.jobs = {"1842_1": pending(1, "Resources", "2031-01-02T14:05:00")}
    said = status._json(session, EXPERIMENT)
    assert (said["pending"], said["jobs"], said["waiting_chunks"]) == (4, ["1842"], 1)
    assert (said["reasons"], said["start_estimate"]) == ({"Resources": 1}, "2031-01-02T14:05:00")


def test_lines_fit_eighty_columns(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    heading, row = status._lines(session, [EXPERIMENT])
    assert max(len(heading), len(row)) <= 80
    assert heading.split()[:4] == ["experiment", "name", "on", "pending"]
    assert row.split()[:4] == ["7f3a9c21", "train", "slurm", "4"]


@pytest.mark.parametrize(
    ("executor", "done", "said"),
    [
        ("slurm", Submission([(1, "1842")]), "submitted array job 1842 in 0.6 s; you may close the laptop"),
        ("slurm", Submission([(1, "7"), (2, "8")]), "submitted 2 array jobs 7, 8 in 0.6 s; you may close the laptop"),
        ("here", Submission([(1, "here-5-9")]), "started in 0.6 s; you may close the terminal"),
        (
            "slurm",
            Submission([(1, "7")], 3, "AssocMaxSubmitJobLimit"),
            (
                "submitted array job 7 in 0.6 s; you may close the laptop\n"
                "3 more array jobs wait for room in the queue (AssocMaxSubmitJobLimit)"
            ),
        ),
        (
            "slurm",
            Submission([], 1, "full"),
            "nothing was submitted\n1 more array job waits for room in the queue (full)",
        ),
    ],
)
def test_what_was_handed_over_in_one_line(executor: str, done: Submission, said: str) -> None:
    target = Target(executor, Path("root"), SimpleNamespace(name=executor))  # type: ignore[arg-type]  # only its name
    assert submit.submitted_line(target, done, 0.6) == said


def test_what_nobody_knows_of_is_waited_for_a_few_looks() -> None:
    patience, lost = waiting.Patience(), {State.COMPLETED: 2, State.UNKNOWN: 1}
    assert not patience.is_over({State.RUNNING: 1, State.UNKNOWN: 3})
    assert not any(patience.is_over(lost, is_sure=False) for _ in range(20))
    looks = [patience.is_over(lost) for _ in range(6)]
    assert looks == [False] * 5 + [True]
    assert waiting.Patience().is_over({State.COMPLETED: 2, State.FAILED: 1})


def test_watching_says_news_only_and_ends_with_the_runs(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks: list[Sequence[Experiment] | None] = []

    def harvest(chosen: Sequence[Experiment] | None, *_: object) -> list[HarvestReport]:
        looks.append(chosen)
        if len(looks) == 3:
            session.store.remove(EXPERIMENT.id)
        return [HarvestReport((), 0.0)]

    monkeypatch.setattr(session, "harvest", harvest)
    monkeypatch.setattr("ems.cli.session.open_session", lambda: nullcontext(session))
    monkeypatch.setattr(results, "_WATCH_S", 0.0)
    assert main(["harvest", "--watch"]) == 0
    assert looks == [None, [EXPERIMENT], [EXPERIMENT]]
    assert capsys.readouterr().out == "nothing new in 0.0 s\n"


def test_a_log_file_gets_a_line_a_second_of_a_long_harvest(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def harvest(
        chosen: object, globs: object, tell: Callable[[int, int], None], fetching: object
    ) -> list[HarvestReport]:
        for done in range(100):
            tell(done, 100)
        return []

    clock = count()
    monkeypatch.setattr(results, "time", SimpleNamespace(monotonic=lambda: next(clock) / 10))
    monkeypatch.setattr(session, "harvest", harvest)
    results._harvest(session, None, ())
    assert 5 <= len(capsys.readouterr().err.splitlines()) <= 10


@pytest.mark.parametrize("command", ["status", "harvest"])
def test_watching_prints_no_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--watch", "--json"]) == 2
    assert capsys.readouterr().err.startswith("error: --watch and --json exclude each other")


def test_a_folder_of_a_run_is_found_as_the_script_calls_it(tmp_path: Path) -> None:
    written = tmp_path / "files" / "sub" / "out" / "x.txt"
    written.parent.mkdir(parents=True)
    written.write_text("hi")
    found = RunFolder(tmp_path).written()
    for name in ("out", "sub/out"):
        folder, inside = files.written_below(found, name, f"last/0/{name}", "sub")
        assert (str(folder), [path for path, _, _ in inside]) == ("sub/out", ["sub/out/x.txt"])
    with pytest.raises(NotFoundError, match="last/0/nowhere is not there"):
        files.written_below(found, "nowhere", "last/0/nowhere", "sub")


def test_a_run_is_found_by_its_address(session: Session) -> None:
    assert session.run("train/3/out/x.csv") == (EXPERIMENT, 3, "out/x.csv")
    with pytest.raises(UsageError, match="names an experiment of 4 runs, not a run"):
        session.run("last")
