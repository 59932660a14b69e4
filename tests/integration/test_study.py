"""A study's driver over real files and a real store; a desk stands where workers and SLURM are, and plays them."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ems import harvest, root
from ems.errors import ExecutorError, StoreError
from ems.executor import control
from ems.executor.base import Limits, Submission
from ems.model import Experiment, JobInfo, Resources, State
from ems.node import feed, records
from ems.search.decide import replay
from ems.search.dimension import Int, Real
from ems.search.problem import Fidelity
from ems.search.rungs import charge
from ems.search.space import SearchSpace
from ems.search.trial import Outcome, Trial
from ems.store import Store, studies
from ems.study import budget, clocks, driver, far, rows, session
from ems.study.clock import ClockState
from ems.study.spec import StudySpec

ID = "7f3a9c21"
SPACE = SearchSpace((Real("x", 0.0, 1.0),))


class Still:
    """A clock that does not go: the test wakes the driver."""

    lag_s = 1.0

    def __init__(self) -> None:
        self.due: list[float | None] = []

    def start(self, next_s: float) -> None:
        self.due.append(next_s)

    def wake(self) -> None:
        pass

    def stop(self) -> None:
        self.due.append(None)

    def state(self) -> ClockState:
        return ClockState(False)


class Desk:
    """Takes chunks as SLURM would, and writes what the workers of their runs would."""

    name = "slurm"

    def __init__(self, files: records.ExperimentFiles) -> None:
        self.files, self.cancelled = files, list[str]()
        self.words: dict[str, str] = {}  # what SLURM says of a task, else PENDING
        self.refusal = ""
        self.submitted = Counter[int]()
        self.places: dict[int, dict[int, int]] = {}

    def check(self, resources: Resources) -> None:
        pass

    def limits(self) -> Limits:
        return Limits(1000)

    def script(self, experiment: Experiment, chunk: records.Record) -> str:
        return ""

    def submit(self, experiment: Experiment, files: records.ExperimentFiles) -> Submission:
        done = []
        for number in feed.waiting(files):
            if self.refusal:
                raise ExecutorError(self.refusal)
            self.submitted[number] += 1
            done.append((number, feed.record_job(files, number, str(1000 + number))))
        return Submission(done)

    def refresh(self, jobs: Iterable[str]) -> dict[str, JobInfo]:
        states = {"PENDING": State.PENDING, "RUNNING": State.RUNNING, "CANCELLED": State.CANCELLED}
        found = {}
        for job in jobs:
            word = self.words.get(job, "PENDING")
            if word != "GONE":
                found[job] = JobInfo(job, states.get(word, State.FAILED), word)
        return found

    def cancel(self, jobs: Iterable[str]) -> None:
        self.cancelled += jobs

    def hold(self, jobs: Iterable[str], release: bool = False) -> None:
        pass

    def doctor(self) -> list[Any]:
        return []

    # ------------------------------------------------------------------------------------ the workers

    def queued(self) -> dict[int, tuple[int, dict[str, Any]]]:
        """Return the runs that no worker has taken: index -> (chunk, params of this segment)."""
        found = {}
        for number in self.files.chunk_numbers():
            chunk = records.read_json(self.files.chunk(number)) or {}
            for index in records.chunk_indices(chunk):
                last = records.last_attempt(self.files, index)
                if (last is None or last["chunk"] < number) and feed.job_of(self.files, number):
                    params = {**records.read_run(self.files, index)["params"], **records.chunk_params(chunk, index)}
                    found[index] = (number, params)
        return found

    def place(self, index: int) -> tuple[int, int]:
        """Return the newest chunk that a run is in, and its place there."""
        for number in reversed(self.files.chunk_numbers()):
            if number not in self.places:
                chunk = records.read_json(self.files.chunk(number)) or {"start": 0, "stop": 0}
                self.places[number] = {each: task for task, each in enumerate(records.chunk_indices(chunk))}
            if index in self.places[number]:
                return number, self.places[number][index]
        raise AssertionError(index)

    def task(self, index: int) -> str:
        """Return SLURM's name of the array task that a run is in."""
        number, task = self.place(index)
        return f"{1000 + number}_{task}"

    def run(
        self, index: int, values: Mapping[int, object] | None = None, state: str = "COMPLETED", **more: Any
    ) -> None:
        """Let a queued run be started and, unless its state is RUNNING, end; it logs ``values`` by step."""
        chunk, _ = self.place(index)
        last = records.last_attempt(self.files, index)
        number = 1 if last is None else last["attempt"] + 1
        lines = [
            {"step": step, "loss": value, "_t": time.time(), "_a": number} for step, value in (values or {}).items()
        ]
        path = Path(self.files.run(index, "metrics.jsonl"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        at = records.now()
        record = {"index": index, "attempt": number, "chunk": chunk, "state": state, "job": self.task(index)}
        record |= {"started_at": at, "resumed_from": number - 1 or None, "host": "n1", "restart": 0}
        record |= {} if state == "RUNNING" else {"ended_at": at, "wall_s": 2.0, "exit_code": 0}
        Path(self.files.attempt(index, number)).parent.mkdir(parents=True, exist_ok=True)
        records.write_atomic(self.files.attempt(index, number), records.dump(record | more), durable=False)


class Lab:
    """A study below a folder, its desk, and a driver that wakes when it is told to."""

    def __init__(self, folder: Path, experiment: Mapping[str, Any] | None = None, **spec: Any) -> None:
        self.root = folder / "root"
        given = spec.pop("given", ())
        known: dict[str, Any] = {"metric": "loss", "sampler": "random", "parallel": 4, "budget": {"trials": 10}}
        self.spec = StudySpec(ID, spec.pop("space", SPACE).dump(), **{**known, **spec})
        facts = Experiment(ID, "train", records.now(), "train.py", "5" * 40, 0, executor="slurm", study_id=ID)
        self.experiment = Experiment(
            **{**{name: getattr(facts, name) for name in facts.__slots__}, **(experiment or {})}
        )
        (self.root / "experiments").mkdir(parents=True)
        root.write(self.root, self.experiment, (), (), {**self.spec.dump(), "given": given})
        self.files = records.ExperimentFiles(self.root, ID)
        self.desk, self.clock = Desk(self.files), Still()

    def wake(self) -> driver.WakeReport:
        return driver.wake(self.root, ID, self.desk, self.clock)

    def ask(self, **record: Any) -> driver.WakeReport:
        records.ask_driver(self.files, record)
        return self.wake()

    def store(self) -> Store:
        return Store(Path(self.files.dir, rows.STORE))

    def study(self) -> studies.StudyRow:
        with self.store() as store:
            row = studies.study(store, ID)
            assert row is not None
            return row

    def trials(self) -> list[Trial]:
        with self.store() as store:
            return studies.trials(store, ID, self.spec.sign)

    def segments(self) -> list[studies.SegmentRow]:
        with self.store() as store:
            return studies.segments(store, ID)

    def finish(self, play: Callable[[int, dict[str, Any]], None], limit: int = 100) -> studies.StudyRow:
        """Let ``play`` run what is queued and wake the driver, until the study is over."""
        for _ in range(limit):
            self.wake()
            if self.study().is_finished:
                return self.study()
            for index, (_, params) in self.desk.queued().items():
                play(index, params)
        raise AssertionError(f"not over after {limit} wakes: {self.study()}")

    def bowl(self, index: int, params: dict[str, Any]) -> None:
        """Run a trial that logs a bowl over x."""
        self.desk.run(index, {1: (params["x"] - 0.3) ** 2})


@pytest.fixture
def lab(tmp_path: Path) -> Callable[..., Lab]:
    return lambda **facts: Lab(tmp_path, **facts)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is late on its way."""
    monkeypatch.setattr(harvest, "GONE_S", -5.0)


# ------------------------------------------------------------------------------------------------ a whole study


def test_a_study_asks_for_what_is_free_and_ends_with_its_budget(lab: Callable[..., Lab]) -> None:
    study = lab(budget={"trials": 10}, parallel=4)
    first = study.wake()
    assert (first.wake, first.asked, first.running, first.state) == (1, 4, 4, "RUNNING")
    assert study.clock.due == [first.next_s]
    assert study.wake().asked == 0, "nothing is free"
    row = study.finish(study.bowl)
    assert (row.state, row.ending) == ("FINISHED", "")
    assert "10 trials" in row.reason
    assert study.clock.due[-1] is None
    trials = study.trials()
    assert [each.number for each in trials] == list(range(10))
    assert {each.outcome for each in trials} == {Outcome.OK}
    assert [each.values for each in trials] == [((each.params["x"] - 0.3) ** 2,) for each in trials]  # type: ignore[operator]
    assert set(study.desk.submitted.values()) == {1}
    runs = list(records.iterate_runs(study.files))
    assert [run["params"] for run in runs] == [each.params for each in trials]
    assert len({run["key"] for run in runs}) == 10
    assert study.wake().next_s is None, "and that is how it stays"


def test_a_wake_that_is_repeated_proposes_the_same(tmp_path: Path) -> None:
    one, two = Lab(tmp_path / "1", parallel=3), Lab(tmp_path / "2", parallel=3)
    for each in (one, two):
        each.finish(each.bowl)
    assert one.trials() == two.trials()


def test_greater_is_better_where_the_goal_says_so(lab: Callable[..., Lab]) -> None:
    study = lab(goal="maximize", budget={"trials": 4})
    study.finish(lambda index, params: study.desk.run(index, {1: params["x"]}))
    assert [each.value for each in study.segments()] == [-each.values[0] for each in study.trials()]


def test_trials_are_queued_ahead_once_it_is_known_how_long_they_take(lab: Callable[..., Lab]) -> None:
    study = lab(parallel=4, budget={"trials": 40})
    study.wake()
    for index, (_, params) in study.desk.queued().items():
        study.bowl(index, params)
    report = study.wake()  # runs take 2 s, a wake comes after 1 s: half of the workers would be idle
    assert (report.told, report.asked) == (4, 4 + 2)


# ------------------------------------------------------------------------------------------------ rungs


def test_a_promoted_trial_goes_on_as_the_next_attempt_of_its_run(lab: Callable[..., Lab]) -> None:
    study = lab(scheduler="asha", fidelity=Fidelity("epochs", 1, 9, 3), budget={"epochs": 90}, parallel=6)
    trained: dict[int, list[tuple[int, int | None]]] = {}

    def train(index: int, params: dict[str, Any]) -> None:
        attempts = study.files.attempt_numbers(index)
        done = trained.setdefault(index, [])
        begin = done[-1][0] if done else 0
        study.desk.run(index, {epoch: params["x"] + 1 / epoch for epoch in range(begin + 1, params["epochs"] + 1)})
        done.append((params["epochs"], attempts[-1] if attempts else None))

    row = study.finish(train)
    assert row.state == "FINISHED", row.reason
    rungs = {index: [epochs for epochs, _ in done] for index, done in trained.items()}
    assert all(done == [1, 3, 9][: len(done)] for done in rungs.values())
    assert any(done == [1, 3, 9] for done in rungs.values())
    spent = sum(done[-1] for done in rungs.values())
    assert sum(each.cost for each in study.segments()) == spent <= 90
    for trial in study.trials():
        assert trial.values == pytest.approx([trial.params["x"] + 1 / epochs for epochs in rungs[trial.number]])
        assert len(trial.history) == len(trial.values) - 1
    assert all("epochs" not in run["params"] for run in records.iterate_runs(study.files))
    best = next(index for index, done in rungs.items() if done == [1, 3, 9])
    assert [(records.read_attempt(study.files, best, n) or {})["resumed_from"] for n in (1, 2, 3)] == [None, 1, 2]


def test_bad_trials_are_cancelled_on_their_way_where_they_cannot_be_resumed(lab: Callable[..., Lab]) -> None:
    study = lab(scheduler="stop", fidelity=Fidelity("epochs", 1, 9, 3), budget={"trials": 8}, parallel=8)

    def train(index: int, params: dict[str, Any]) -> None:
        assert params["epochs"] == 9
        curve = {epoch: params["x"] + 1 / epoch for epoch in range(1, 10)}
        if index < 4:
            study.desk.run(index, curve)
        else:  # came to 3 epochs so far, or to 2
            seen = range(1, 4 if index < 6 else 3)
            study.desk.run(index, {epoch: curve[epoch] + index for epoch in seen}, state="RUNNING")

    study.wake()
    for index, (_, params) in study.desk.queued().items():
        train(index, params)
    study.wake()
    stopped = {index for index in range(8) if records.cancelled_up_to(study.files, index)}
    assert stopped == {4, 5, 6, 7}
    assert sorted(study.desk.cancelled) == sorted(study.desk.task(index) for index in stopped)
    for index in stopped:
        path = study.files.attempt(index, 1)
        record = {**(records.read_json(path) or {}), "state": "CANCELLED", "reason": "cancelled"}
        records.write_atomic(path, records.dump({**record, "ended_at": records.now(), "wall_s": 1.0}))
    assert study.finish(train).state == "FINISHED"
    trials = study.trials()
    assert {each.outcome for each in trials[4:]} == {Outcome.STOPPED}
    assert [len(each.values) for each in trials] == [3, 3, 3, 3, 2, 2, 1, 1], "the rungs that they passed count"
    assert trials[5].values[1] == pytest.approx(trials[5].params["x"] + 1 / 3 + 5)  # type: ignore[operator]
    assert all(each.reason.startswith("place ") for each in study.segments() if each.outcome == Outcome.STOPPED)
    assert sum(each.cost for each in study.segments()) == charge(study.spec.problem(), trials) == 6 * 9 + 2 * 3


def test_a_program_that_asks_and_tells_is_charged_for_each_rung_once(tmp_path: Path) -> None:
    study = session.study("climb", {"x": "uniform(0,1)"}, fidelity="epochs=1..9", budget="60epochs", project=tmp_path)
    for trial in study:
        study.tell(trial, float(str(trial.params["x"])) + 1 / (trial.budget or 1))
    spent = charge(study.standing.spec.problem(), study.standing.trials)
    assert 40 < spent <= 60
    assert sum(each.cost for each in study.standing.segments) == spent


# ------------------------------------------------------------------------------------------------ what goes wrong


def test_what_a_machine_lost_is_tried_again_and_given_up_at_last(lab: Callable[..., Lab]) -> None:
    study = lab(budget={"trials": 6}, parallel=3)

    def play(index: int, params: dict[str, Any]) -> None:
        if index == 1 or (index == 2 and len(study.files.attempt_numbers(index)) < 2):
            study.desk.words[study.desk.task(index)] = "NODE_FAIL"
            study.desk.run(index, state="RUNNING")
        else:
            study.bowl(index, params)

    assert study.finish(play).state == "FINISHED"
    trials = study.trials()
    assert [each.outcome for each in trials[:3]] == [Outcome.OK, Outcome.LOST, Outcome.OK]
    assert sum(each.outcome is Outcome.OK for each in trials) == 6, "what was lost is made up for"
    assert [len(study.files.attempt_numbers(index)) for index in range(3)] == [1, 3, 3]
    assert [each.tries for each in study.segments()[:3]] == [1, 3, 3]
    assert study.segments()[1].reason == "node failure"


def test_while_a_lost_trial_waits_again_it_spends_nothing(lab: Callable[..., Lab]) -> None:
    study = lab(budget={"gpuh": 1.0, "trials": 2}, parallel=1)
    study.wake()
    study.desk.run(0, state="RUNNING")
    study.wake()
    assert study.segments()[0].started_at
    study.desk.words[study.desk.task(0)] = "NODE_FAIL"
    study.wake()
    (waiting,) = study.segments()
    assert (waiting.tries, waiting.started_at, waiting.outcome) == (2, "", "pending")
    later = "2099-01-01T00:00:00.000Z"
    assert budget.spent(study.spec, study.experiment, [waiting], later)["cpuh"] == waiting.wall_s / 3600
    study.desk.run(0, {1: 0.5})
    study.wake()
    assert study.segments()[0].started_at, "its last try is when it ran"


def test_whose_fault_it_was_decides_the_outcome(lab: Callable[..., Lab]) -> None:
    study = lab(budget={"trials": 8}, parallel=8, max_crashes=9)
    study.wake()
    ends: list[dict[str, Any]] = [
        {"values": {1: 0.5, 2: 0.25}},
        {"values": {1: 0.5, 2: math.nan}},
        {"values": {1: 0.5, 2: math.inf}},
        {"state": "FAILED", "reason": "ValueError: no (train.py:4)"},
        {"state": "FAILED", "reason": "CUDA out of memory (train.py:41)"},
        {"state": "FAILED", "reason": "time limit"},
        {"state": "CANCELLED", "reason": "cancelled"},
        {},
    ]
    for index, end in enumerate(ends):
        study.desk.run(index, **end)
    study.wake()
    expected = ["ok", "diverged", "diverged", "crashed", "oom", "timeout", "lost", "crashed"]
    assert [each.outcome for each in study.segments()[:8]] == expected
    assert study.segments()[0].value == 0.25
    assert [each.reason for each in study.segments()[6:8]] == ["cancelled", "it logged no value"]


def test_a_script_that_always_crashes_ends_the_study_with_the_reason(lab: Callable[..., Lab]) -> None:
    study = lab(parallel=1)
    row = study.finish(lambda index, _: study.desk.run(index, state="FAILED", reason="KeyError: 'lr' (train.py:4)"))
    assert row.state == "FAILED"
    assert row.reason == f"the first 3 trials failed, e.g. {ID}/2: KeyError: 'lr' (train.py:4)"


def test_crashes_in_a_row_end_the_study_and_it_can_be_resumed(lab: Callable[..., Lab]) -> None:
    study = lab(parallel=1, budget={"trials": 12})
    is_mended: list[bool] = []

    def play(index: int, params: dict[str, Any]) -> None:
        if index < 2 or is_mended:
            study.bowl(index, params)
        else:
            study.desk.run(index, state="FAILED", reason="ValueError")

    row = study.finish(play)
    assert (row.state, row.reason[:23]) == ("FAILED", "5 trials in a row faile")
    assert len(study.trials()) == 7
    is_mended.append(True)
    study.ask(kind="resume")
    assert study.finish(play).state == "FINISHED"
    assert [each.outcome for each in study.trials()] == [Outcome.OK] * 2 + [Outcome.CRASHED] * 5 + [Outcome.OK] * 5


@pytest.mark.parametrize(
    ("logged", "said"),
    [
        ({"acc": 0.5, "los": 1}, "no run logged loss; its runs logged acc, los"),
        ({}, "no run logged loss; its runs logged no metric at all: ems.log(NAME=value)"),
        ({"loss": "0.5 %"}, "loss is a text ('0.5 %'), and only numbers can be compared: log a number"),
    ],
)
def test_an_objective_that_cannot_be_compared_is_said_at_once(
    lab: Callable[..., Lab], logged: dict[str, Any], said: str
) -> None:
    study = lab(parallel=3)

    def play(index: int, params: dict[str, Any]) -> None:
        study.desk.run(index)
        if logged:
            Path(study.files.run(index, "metrics.jsonl")).write_text(json.dumps({"step": 0, **logged}) + "\n")

    row = study.finish(play)
    assert (row.state, row.reason) == ("FAILED", said)
    assert len(study.trials()) == 3


def test_a_fidelity_that_the_script_ignores_is_found(lab: Callable[..., Lab]) -> None:
    study = lab(scheduler="asha", fidelity=Fidelity("epochs", 1, 9, 3), budget={"epochs": 200}, parallel=6)
    row = study.finish(lambda index, params: study.desk.run(index, dict.fromkeys(range(1, 21), params["x"])))
    assert row.state == "FAILED"
    assert "epochs" in row.reason
    assert "20" in row.reason
    assert not any(each.is_pending for each in study.trials())


def test_an_outage_of_the_scheduler_is_waited_out(lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch) -> None:
    study = lab()
    study.wake()
    for index, (_, params) in study.desk.queued().items():
        study.bowl(index, params) if index else None

    def away(_: Iterable[str]) -> dict[str, JobInfo]:
        raise ExecutorError("Unable to contact slurm controller")

    with monkeypatch.context() as outage:
        outage.setattr(study.desk, "refresh", away)
        report = study.wake()
    assert (report.told, report.asked, report.trouble) == (3, 0, "Unable to contact slurm controller")
    assert study.study().failures == 0
    assert study.finish(study.bowl).state == "FINISHED"


def test_a_driver_that_fails_again_and_again_gives_up_and_says_why(lab: Callable[..., Lab]) -> None:
    study = lab()
    study.desk.refusal = "invalid partition specified: gpux"
    for _ in range(driver.MAX_FAILURES):
        with pytest.raises(ExecutorError, match="gpux"):
            study.wake()
    row = study.study()
    assert (row.state, row.failures) == ("FAILED", driver.MAX_FAILURES)
    assert row.reason == "the driver failed 5 times: invalid partition specified: gpux"
    assert study.wake().next_s is None
    with pytest.raises(ExecutorError, match="gpux"):
        study.ask(kind="resume")
    assert (study.study().state, study.study().failures) == ("RUNNING", 1), "it begins to count anew"
    study.desk.refusal = ""
    assert study.ask(kind="resume").running == 4
    assert study.finish(study.bowl).state == "FINISHED"
    assert len(study.trials()) == 10, "what was asked for before it was refused is what runs now"
    assert set(study.desk.submitted.values()) == {1}


def test_an_array_leaves_room_for_the_drivers_own_jobs(
    lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = lab(budget={"trials": 10}, parallel=10)
    monkeypatch.setattr(study.desk, "limits", lambda: Limits(1000, 10))
    study.wake()
    chunks = [records.read_json(study.files.chunk(number)) or {} for number in study.files.chunk_numbers()]
    assert max(chunk["tasks"] for chunk in chunks) <= 8, "ten would wait for ever: two jobs are the driver's"
    assert sum(chunk["tasks"] for chunk in chunks) == 10


def test_a_clock_that_stopped_before_the_first_wake_is_set_going_elsewhere(
    lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = lab()
    monkeypatch.setattr(clocks, "of", lambda *_: study.clock)
    site = Mock(kind="slurm", root=study.root, worker_python=None)
    assert far._revive(site, study.files), "nothing is known of it yet"
    assert study.clock.due == [0.0]
    study.finish(study.bowl)
    assert not far._revive(site, study.files)


# ------------------------------------------------------------------------------------------------ people


def test_a_study_is_stopped_and_goes_on_and_is_extended(lab: Callable[..., Lab]) -> None:
    study = lab(budget={"trials": 6}, parallel=2)
    study.wake()
    assert study.ask(kind="stop").state == "RUNNING", "two trials run still"
    row = study.finish(study.bowl)
    assert (row.state, row.reason, len(study.trials())) == ("STOPPED", "stopped by hand", 2)
    assert study.ask(kind="resume").asked == 3
    assert len(study.trials()) == 5
    study.ask(kind="stop", now=True)
    assert {each.reason for each in study.segments()[2:]} == {"stopped by hand"}
    row = study.finish(study.bowl)
    assert row.state == "STOPPED"
    assert [each.outcome for each in study.trials()] == [Outcome.OK] * 2 + [Outcome.STOPPED] * 3
    assert study.ask(kind="extend", budget={"trials": 1}).state == "STOPPED"
    study.ask(kind="resume")
    assert study.finish(study.bowl).state == "FINISHED"
    assert len(study.trials()) == 7, "what was added while it stood still counts"
    study.ask(kind="extend", budget={"trials": 2})
    assert study.finish(study.bowl).state == "FINISHED"
    assert len(study.trials()) == 9
    assert not list(Path(study.files.dir, "requests").iterdir())


def test_a_study_on_this_machine_goes_on_with_another_number_of_workers(lab: Callable[..., Lab]) -> None:
    study = lab(experiment={"max_parallel": 4, "workers": 4}, budget={"trials": 30})
    assert study.wake().asked == 4
    study.ask(kind="resume", changes={"parallel": 6})
    known = Experiment.load(records.read_json(study.files.spec) or {})
    assert (known.max_parallel, known.workers) == (6, 6), "which is what workers read"
    assert replace(known, max_parallel=4, workers=4) == study.experiment
    assert len(study.desk.queued()) == 6


def test_a_request_is_taken_in_once_whatever_is_killed(lab: Callable[..., Lab]) -> None:
    study = lab(budget={"trials": 2}, parallel=2)
    study.finish(study.bowl)
    records.ask_driver(study.files, {"kind": "extend", "budget": {"trials": 2}})
    (request,) = Path(study.files.dir, "requests").iterdir()
    kept = request.read_text()
    study.wake()
    request.write_text(kept)  # killed before it could be deleted
    study.finish(study.bowl)
    assert len(study.trials()) == 4
    assert study.study().spec["budget"] == {"trials": 4}


def test_trials_of_another_study_count_and_are_no_runs(lab: Callable[..., Lab]) -> None:
    given = [{"params": {"x": 0.31}, "group": None, "values": [0.0001]}, {"params": {"x": 0.9}, "values": [0.36]}]
    study = lab(sampler="gp", budget={"trials": 3}, parallel=1, given=given)
    study.finish(study.bowl)
    trials = study.trials()
    assert [(each.number, each.origin, each.values) for each in trials[:2]] == [
        (-2, "given", (0.36,)),
        (-1, "given", (0.0001,)),
    ]
    assert [each.number for each in trials[2:]] == [0, 1, 2]
    assert len(list(records.iterate_runs(study.files))) == 3


def test_the_projects_store_has_what_is_new(lab: Callable[..., Lab], tmp_path: Path) -> None:
    study = lab(budget={"trials": 6}, parallel=2)
    path = Path(study.files.dir, rows.STORE)
    with Store(tmp_path / "project" / ".ems" / "ems.db") as store:

        def bring() -> bool:
            known = rows.read(path, ID)
            assert known is not None
            return rows.put(store, known)

        assert rows.read(path, ID) is None, "neither of them knows anything yet"
        harvest.adopt(store, study.root)
        study.wake()
        assert bring()
        assert not bring(), "nothing is new"
        early = rows.read(path, ID)
        assert early is not None
        assert store.resolve(ID).n_runs == 0
        study.finish(study.bowl)
        assert ID in store.unsettled()
        assert bring()
        harvest.harvest(store, study.root, study.desk.refresh, [ID])
        assert not rows.put(store, early), "what was read before is old by now"
        assert studies.trials(store, ID) == study.trials()
        assert studies.study(store, ID) == study.study()
        assert store.resolve(ID).n_runs == 6
        assert store.unsettled() == set()
        assert [row.metrics["loss"].last for row in store.run_table([ID])] == [each.value for each in study.segments()]
        assert len(studies.wakes(store, ID)) == study.study().wakes
    with Store(tmp_path / "other" / ".ems" / "ems.db") as store:
        harvest.adopt(store, study.root)
        assert store.resolve(ID).n_runs == 6


def test_a_drivers_store_that_is_damaged_is_named_and_made_again_from_the_runs(
    lab: Callable[..., Lab], tmp_path: Path
) -> None:
    study = lab(budget={"trials": 6}, parallel=2)
    path = Path(study.files.dir, rows.STORE)
    study.wake()
    for index, (_, params) in study.desk.queued().items():
        study.bowl(index, params)
    study.wake()
    known = study.trials()
    for each in path.parent.glob(f"{rows.STORE}-*"):
        each.unlink()
    path.write_text("not a database, and long enough to be looked into\n" * 100)
    with pytest.raises(StoreError, match=r"the study's own store .* is damaged") as damaged:
        rows.read(path, ID)
    assert f"ems tune resume {ID}" in damaged.value.hint
    copy = damaged.value.hint.partition("; ems tune resume")[0]  # whose words are typed as they stand
    assert "study.db.damaged" in copy
    subprocess.run(["sh", "-ec", copy], cwd=tmp_path, check=True)
    assert study.finish(study.bowl).reason.startswith("All 6 trials")
    assert [each.params for each in study.trials()[: len(known)]] == [each.params for each in known]
    assert {records.last_attempt(study.files, index)["attempt"] for index in range(6)} == {1}, "none was made twice"


# ------------------------------------------------------------------------------------------------ what it costs


def test_a_wake_imports_neither_torch_nor_scikit(lab: Callable[..., Lab]) -> None:
    study = lab(sampler="gp", parallel=2)
    study.finish(study.bowl)
    code = (
        "import sys\nfrom pathlib import Path\nfrom ems.study import driver\n"
        "from ems.search import decide, samplers\n"
        "report = driver.wake(Path(sys.argv[1]), sys.argv[2], None, type('C', (), {'lag_s': 1, 'stop': print})())\n"
        "print(report.next_s, sorted({'torch', 'sklearn', 'skopt', 'pandas', 'typer'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, study.root, ID], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "None []"


# ------------------------------------------------------------------------------------------------ whatever happens


def test_two_drivers_on_a_file_system_without_locks_write_once(
    lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = lab(budget={"trials": 8}, parallel=4)
    study.wake()
    for index, (_, params) in study.desk.queued().items():
        study.bowl(index, params)
    number, seen = driver.handover.number_chunks, list[int]()

    def overtaken(*args: Any) -> Any:
        if not seen:  # this one has decided; meanwhile the other driver does all of it
            seen.append(1)
            study.wake()
        return number(*args)

    @contextlib.contextmanager
    def unlocked(_: records.ExperimentFiles) -> Iterator[bool]:
        yield True

    monkeypatch.setattr(driver, "_alone", unlocked)
    monkeypatch.setattr(driver.handover, "number_chunks", overtaken)
    with pytest.raises(StoreError, match="another driver"):
        study.wake()
    assert study.finish(study.bowl).state == "FINISHED"
    assert [each.number for each in study.trials()] == list(range(8))
    assert replay(study.spec.problem(), study.trials()) == []


def test_who_finds_the_driver_awake_leaves_it_to_that(lab: Callable[..., Lab]) -> None:
    study = lab()
    with records.locked(Path(study.files.dir, "driver.lock")):
        assert study.wake().wake == 0
    assert not Path(study.files.dir, "study.db").exists()
    assert Path(study.files.called).exists(), "it looks once more"


def test_an_experiment_that_is_cancelled_asks_for_no_more(lab: Callable[..., Lab]) -> None:
    study = lab(parallel=3)
    study.wake()
    study.bowl(0, study.desk.queued()[0][1])
    control.cancel(study.desk, study.files)
    row = study.finish(lambda *_: None)
    assert (row.state, row.reason) == ("STOPPED", "cancelled")
    assert [each.outcome for each in study.trials()] == [Outcome.OK, Outcome.STOPPED, Outcome.STOPPED]


def test_nothing_is_asked_for_while_an_experiment_is_held(lab: Callable[..., Lab]) -> None:
    study = lab(parallel=2, budget={"trials": 4})
    study.wake()
    control.hold(study.desk, study.files)
    for index, (_, params) in study.desk.queued().items():
        study.bowl(index, params)
    assert (study.wake().told, len(study.trials())) == (2, 2)
    control.hold(study.desk, study.files, release=True)
    assert study.finish(study.bowl).state == "FINISHED"


def test_each_group_gets_its_trials_and_its_name_as_a_param(lab: Callable[..., Lab]) -> None:
    study = lab(groups=("north", "south"), group_by="customer", seed_as="seed", seeds=2, budget={"trials": 12})
    study.finish(lambda index, params: study.desk.run(index, {1: params["x"] + params["seed"]}))
    trials, runs = study.trials(), list(records.iterate_runs(study.files))
    assert {each.group for each in trials} == {"north", "south"}
    assert [run["params"] for run in runs] == [
        {**each.params, "customer": each.group, "seed": each.seed} for each in trials
    ]
    assert [run["seed"] for run in runs] == [each.seed for each in trials]
    assert all(trials[each.config].params == each.params for each in trials)


ENDS = ("ok", "ok", "ok", "crash", "nan", "node", "late", "cancel")


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    ends=st.lists(st.sampled_from(ENDS), min_size=5, max_size=40),
    sampler=st.sampled_from(["random", "sobol", "gp"]),
    rungs=st.booleans(),
    people=st.dictionaries(st.integers(2, 8), st.sampled_from(["resume", "extend", "kill"]), max_size=3),
)
def test_whatever_happens_each_trial_is_made_once_and_the_replay_explains_it(
    tmp_path_factory: pytest.TempPathFactory, ends: list[str], sampler: str, rungs: bool, people: dict[int, str]
) -> None:
    facts = {"scheduler": "asha", "fidelity": Fidelity("epochs", 1, 4, 2)} if rungs else {}
    space = SearchSpace((Int("n", 1, 6), Real("x", 0.0, 1.0)), ("n * x < 4",))
    study = Lab(
        tmp_path_factory.mktemp("lab"), space=space, sampler=sampler, budget={"trials": 12}, max_crashes=99, **facts
    )
    queue, wakes = itertools.cycle(ends), itertools.count(1)

    def play(index: int, params: dict[str, Any]) -> None:
        how = next(queue)
        if how == "late":
            return
        first, values = params.get("epochs", 1), {1: params["x"] * params["n"]}
        values = {epoch: params["x"] + 1 / epoch for epoch in range(1, first + 1)} if rungs else values
        if how == "nan":
            values[first] = math.nan
        if how == "node":
            study.desk.words[study.desk.task(index)] = "NODE_FAIL"
        states = {"crash": "FAILED", "node": "RUNNING", "cancel": "CANCELLED"}
        study.desk.run(index, values, states.get(how, "COMPLETED"), reason="cancelled" if how == "cancel" else "")

    for _ in range(300):
        wish = people.get(next(wakes))
        if wish == "kill":  # after the decision, before it is carried out
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(driver.handover, "stop", Mock(side_effect=MemoryError))
                with pytest.raises(MemoryError):
                    study.wake()
        elif wish is not None:
            study.ask(kind=wish, budget={"trials": 1})
        study.wake()
        if study.study().is_finished:
            break
        for index, (_, params) in study.desk.queued().items():
            play(index, params)
    row, trials = study.study(), study.trials()
    assert row.is_finished
    assert [each.number for each in trials] == list(range(len(trials)))
    assert all(space.is_valid(each.params) for each in trials)
    assert len({space.key(each.params) for each in trials}) == len(trials)
    assert not any(each.is_pending for each in trials)
    assert set(study.desk.submitted.values()) == {1}
    for part in study.segments():
        assert 1 <= part.tries <= study.spec.max_tries
    if row.state == "FINISHED" and "extend" not in people.values():
        assert replay(study.spec.problem(), trials) == []
