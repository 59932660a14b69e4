"""Studies on this machine: real runs, a real driver, killed wherever it can be."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import json
import os
import random
import re
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ems import harvest, rerun
from ems import plan as planning
from ems import target as targets
from ems.config import load
from ems.errors import NotFoundError, UsageError
from ems.executor import control
from ems.executor.here import HereExecutor
from ems.model import State
from ems.node import feed, records
from ems.search.decide import replay
from ems.search.dimension import Real
from ems.search.problem import Fidelity
from ems.search.space import SearchSpace
from ems.search.trial import Outcome
from ems.store import Store, studies
from ems.study import begin, driver, intake, requests
from ems.study.clock import ClockState, HereClock
from ems.study.spec import StudySpec

SCRIPT = """
import os, ems
index = int(os.environ["EMS_INDEX"])
with open(os.environ["TALLY"], "a") as tally:
    tally.write(f"{index}\\n")
if index % 10 == 4:
    raise RuntimeError("one in ten")
ems.log(step=1, loss=sum((value - 0.3) ** 2 for value in ems.params().values()))
"""
SPACE = SearchSpace((Real("x", 0.0, 1.0), Real("y", 0.0, 1.0)))
LIMIT_S = 240.0


class Still:
    """A clock that does not go: the test wakes the driver."""

    lag_s = 0.5

    def start(self, next_s: float) -> None:
        pass

    def wake(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def state(self) -> ClockState:
        return ClockState(False)


class Lab:
    """A study of a real script."""

    def __init__(self, project: Path, store: Store, script: str, **spec: Any) -> None:
        (project / "train.py").write_text(script)
        self.store, self.tally = store, project.parent / "tally"
        self.target = targets.resolve("here", load(project), project)
        request = planning.Request(
            Path("train.py"), self.target, trial={"x": 0.5, "y": 0.5}, python=sys.executable, cwd=project
        )
        self.plan = planning.plan(request, store)
        self.id = self.plan.experiment.id
        known: dict[str, Any] = {"metric": "loss", "sampler": "gp", "parallel": 4, "budget": {"trials": 12}}
        self.spec = StudySpec(self.id, spec.pop("space", SPACE).dump(), **{**known, **spec})
        self.files = self.target.files(self.id)

    def start(self) -> driver.WakeReport:
        return begin.start(self.plan, self.spec, self.target, self.store)

    def row(self) -> studies.StudyRow:
        intake.bring(self.store, self.target, self.id)
        row = studies.study(self.store, self.id)
        assert row is not None
        return row

    def segments(self) -> list[studies.SegmentRow]:
        intake.bring(self.store, self.target, self.id)
        return studies.segments(self.store, self.id)

    def wait(self, condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, f"{self.row()}\n{self.segments()}"
            time.sleep(0.05)

    def n_ended(self) -> int:
        """Return how many attempts have ended."""
        paths = Path(self.files.dir, "runs").glob("*/attempts/*.json")
        return sum((records.read_json(path) or {}).get("state") in ("COMPLETED", "FAILED") for path in paths)

    def has_news(self) -> bool:
        """Whether a wake has something to do: a run has ended, or the last wake was killed half-way."""
        pending = [each for each in self.segments() if each.is_pending]
        is_cut_off = not pending or any(feed.job_of(self.files, each.chunk) is None for each in pending)
        return is_cut_off or self.n_ended() > len(self.segments()) - len(pending)

    def end(self) -> None:
        """Leave nothing running."""
        if Path(self.files.dir).exists():
            control.cancel(self.target.executor, self.files)
            self.wait(lambda: not HereClock(self.target.root, self.id).state().is_running)
            jobs = control.jobs(self.files)
            self.wait(
                lambda: all(info.state is not State.RUNNING for info in self.target.executor.refresh(jobs).values())
            )


@pytest.fixture
def lab(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Lab]]:
    monkeypatch.setenv("TALLY", str(project.parent / "tally"))
    made: list[Lab] = []
    with Store(project / ".ems" / "ems.db") as store:

        def make(script: str = SCRIPT, **spec: Any) -> Lab:
            made.append(Lab(project, store, script, **spec))
            return made[-1]

        yield make
        for each in made:
            each.end()


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(begin, "clock_of", lambda *_: Still())


def check_exactly_once(study: Lab, n_trials: int) -> None:
    """See that each trial was made once, and that its wakes decided as an undisturbed search would have."""
    trials = studies.trials(study.store, study.id)
    assert [each.number for each in trials] == list(range(n_trials))
    assert Counter(study.tally.read_text().split()) == {str(index): 1 for index in range(n_trials)}
    crashed = {each.number for each in trials if each.outcome is Outcome.CRASHED}
    assert crashed == set(range(4, n_trials, 10))
    assert {each.outcome for each in trials if each.number not in crashed} == {Outcome.OK}
    assert replay(study.spec.problem(), trials) == []


# ------------------------------------------------------------------------------------------------ killed


def _killer() -> ModuleType:
    path = Path(__file__).parents[1] / "slurm" / "killer" / "sitecustomize.py"
    spec = importlib.util.spec_from_file_location("ems_tests_killer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fork_wake(study: Lab, kill_at: int | None = None) -> int:
    """Wake the driver in a process of its own, which is killed right before its Nth step; return its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        if kill_at is not None:
            killer = _killer()._Killer({"kind": "any", "nth": kill_at}, "")
            step = killer.step
            killer.step = lambda _: step("any")
            sys.addaudithook(killer.hook)
        driver.wake(study.target.root, study.id, HereExecutor(study.target.root), Still())
        os._exit(0)
    except BaseException:  # noqa: BLE001  # nothing may reach pytest in this process
        traceback.print_exc()
        os._exit(1)


def ended(pid: int) -> int:
    """Wait for a process; return 0 or by which signal it ended."""
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "it failed; its traceback is above"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


@pytest.mark.usefixtures("still")
def test_killed_at_every_step_and_woken_twice_at_once(lab: Callable[..., Lab]) -> None:
    study = lab(budget={"trials": 30}, parallel=8)
    study.start()
    kills, deepest, at, moments = 0, 0, 1, random.Random(5)
    while not study.row().is_finished:
        study.wait(study.has_news)
        if ended(fork_wake(study, at)) == signal.SIGKILL:
            kills, deepest, at = kills + 1, max(deepest, at), at + 1
        else:  # it had no so many steps: all of them were gone through
            at, pid = 1, fork_wake(study)
            time.sleep(moments.uniform(0.0, 0.03))
            os.kill(pid, signal.SIGKILL)
            ended(pid)
            assert [ended(pid) for pid in (fork_wake(study), fork_wake(study))] == [0, 0]
    print(f"killed {kills} times, at up to the {deepest}th step of a wake")
    assert deepest > 30
    check_exactly_once(study, 30)


# ------------------------------------------------------------------------------------------------ by its own clock

# the eighth and what comes after it waits until its driver was killed as often as is meant
TRAINED = """
import argparse, os, time, ems
while int(os.environ["EMS_INDEX"]) > 7 and not os.path.exists(os.environ["TALLY"] + ".gate"):
    time.sleep(0.02)
parser = argparse.ArgumentParser()
for name in ("x", "y", "epochs"):
    parser.add_argument("--" + name, type=float)
args = parser.parse_args()
state = ems.checkpoint() / "epoch"
begin = int(state.read_text()) if state.exists() else 0
for epoch in range(begin + 1, int(args.epochs) + 1):
    time.sleep(0.1)
    ems.log(step=epoch, acc=1 - (args.x - 0.3) ** 2 - (args.y - 0.3) ** 2 - 1 / (epoch + 1))
    state.write_text(str(epoch))
"""


def test_a_study_goes_through_its_rungs_though_its_driver_is_killed(lab: Callable[..., Lab]) -> None:
    study = lab(
        TRAINED,
        metric="acc",
        goal="maximize",
        scheduler="asha",
        fidelity=Fidelity("epochs", 1, 9, 3),
        budget={"epochs": 60},
        parallel=4,
    )
    clock = HereClock(study.target.root, study.id)
    study.start()
    killed: list[str] = []
    for count in (1, 4):
        study.wait(lambda count=count: sum(each.told >= 0 for each in study.segments()) >= count)
        study.wait(lambda: clock.state().where not in ("", *killed))
        killed.append(clock.state().where)
        os.kill(int(killed[-1].split()[1]), signal.SIGKILL)
        study.wait(lambda: not clock.state().is_running)
        assert begin.look_after(study.target, study.id, study.store)
        assert clock.state().is_running
    study.tally.with_name("tally.gate").touch()
    study.wait(lambda: study.row().is_finished)
    study.wait(lambda: not clock.state().is_running)

    assert study.row().state == "FINISHED"
    assert not Path(study.files.dir, "driver.json").exists()
    trials, parts = studies.trials(study.store, study.id, study.spec.sign), study.segments()
    assert {each.outcome for each in trials} == {Outcome.OK}
    assert replay(study.spec.problem(), trials) == []
    assert sum(each.cost for each in parts) <= 60
    assert max(each.rung for each in parts) == 2
    for each in parts:
        x, y = (float(trials[each.number].params[name]) for name in ("x", "y"))  # type: ignore[arg-type]
        assert each.budget is not None
        assert each.value == pytest.approx(1 - (x - 0.3) ** 2 - (y - 0.3) ** 2 - 1 / (each.budget + 1))
        assert each.last_step == each.budget
    top = next(each.number for each in parts if each.rung == 2)
    logged = [json.loads(line) for line in Path(study.files.run(top, "metrics.jsonl")).read_text().splitlines()]
    assert [(line["step"], line["_a"]) for line in logged] == [(1, 1), (2, 2), (3, 2), *((n, 3) for n in range(4, 10))]

    harvest.harvest(study.store, study.target.root, study.target.executor.refresh)
    assert study.store.resolve(study.id).n_runs == len(trials)
    with pytest.raises(UsageError, match="is decided by its search"):
        rerun.rerun(study.store, study.target, study.store.resolve(study.id), "all")
    again, _ = rerun.reproduce(study.store, study.target, study.store.resolve(study.id), top)
    assert again.study_id is None
    assert records.read_run(study.target.files(again.id), 0)["params"] == {**trials[top].params, "epochs": 9}
    study.wait(lambda: (records.last_attempt(study.target.files(again.id), 0) or {}).get("state") == "COMPLETED")


def test_without_locks_a_clock_is_known_by_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    folder = tmp_path / "experiments" / "7f3a9c21"
    folder.mkdir(parents=True)
    clock = HereClock(tmp_path, "7f3a9c21")
    assert not clock.state().is_running, "there is no lock file"
    (folder / "clock.lock").touch()
    assert not clock.state().is_running, "and nobody noted itself"
    for pid, host, is_running in ((os.getpid(), os.uname().nodename, True), (2**22 + 1, os.uname().nodename, False)):
        (folder / "driver.json").write_text(json.dumps({"pid": pid, "host": host}))
        assert clock.state().is_running is is_running
    (folder / "driver.json").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    assert clock.state().where == "process 1 on elsewhere"


def test_what_a_killed_worker_leaves_is_run_again(lab: Callable[..., Lab]) -> None:
    mean = 'if (index, os.environ["EMS_ATTEMPT"]) == (1, "1"):\n    os.kill(os.getppid(), 9)\n    1 / 0\n'
    study = lab(SCRIPT.replace("if index", mean + "if index"), parallel=2, budget={"trials": 4}, wake_s=1.0)
    study.start()
    study.wait(lambda: study.row().is_finished)
    trials = studies.trials(study.store, study.id)
    assert [each.outcome for each in trials] == [Outcome.OK] * 4
    assert study.segments()[1].tries == 2
    assert replay(study.spec.problem(), trials) == []


def test_a_study_ends_when_it_is_told_to_and_can_be_removed(lab: Callable[..., Lab]) -> None:
    study = lab("import time\ntime.sleep(100)\n", parallel=2)
    clock = HereClock(study.target.root, study.id)
    study.start()
    assert clock.state().is_running
    with pytest.raises(UsageError, match="nothing is added"):
        requests.extend(study.store, study.target, study.id, {})
    other = replace(study.spec, space=SearchSpace((Real("x", 0.0, 2.0), Real("y", 0.0, 1.0))).dump())
    with pytest.raises(UsageError, match="cannot go on with another space"):
        requests.resume(study.store, study.target, study.id, other)
    requests.stop(study.store, study.target, study.id, now=True)
    study.wait(lambda: study.row().is_finished)
    assert (study.row().state, {each.outcome for each in study.segments()}) == ("STOPPED", {"stopped"})
    study.wait(lambda: not clock.state().is_running)
    requests.resume(study.store, study.target, study.id)
    assert clock.state().is_running
    study.target.remove(study.id)
    study.wait(lambda: not clock.state().is_running)
    assert not Path(study.files.dir).exists()
    with pytest.raises(NotFoundError, match="are not in") as gone:
        requests.stop(study.store, study.target, study.id)
    assert f"`ems rm {study.id}`" in gone.value.hint
    assert study.row().state == "RUNNING"
    study.store.remove(study.id)
    assert (study.row().state, study.row().reason) == ("STOPPED", "its files were removed")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"budget": {}}, "nothing ends this study"),
        ({"budget": {"trials": 2}, "seeds": 3}, "2 trials do not pay for one configuration with 3 seeds"),
        ({"budget": {"epochs": 90}}, "which param says how long a run trains"),
        (
            {"budget": {"epochs": 8}, "fidelity": Fidelity("epochs", 1, 9, 3), "scheduler": "asha"},
            "8 epochs do not pay for one trial, which takes 9 to the end",
        ),
        ({"budget": {"gpuh": 4}}, "the runs ask for no GPU"),
        ({"budget": {"usd": 4}}, "what a run on here costs is not known"),
        ({"budget": {"h": 0.0}}, "a budget of 0 h pays for no trial"),
    ],
)
def test_a_study_that_cannot_be_meant_leaves_nothing_behind(lab: Callable[..., Lab], facts: Any, said: str) -> None:
    study = lab(**facts)
    with pytest.raises(UsageError, match=re.escape(said)):
        study.start()
    assert not Path(study.files.dir).exists()
    assert study.store.ids() == []


@pytest.mark.usefixtures("still")
def test_trials_of_another_study_are_brought_along(lab: Callable[..., Lab]) -> None:
    first = lab(sampler="random", budget={"trials": 5})
    first.start()
    while not first.row().is_finished:
        first.wait(first.has_news)
        begin.wake(first.target, first.id, first.store)
    second = lab(space=SearchSpace((Real("x", 0.0, 1.0), Real("y", 0.0, 0.6))), warm_start=(first.id,))
    second.start()
    given = {each.values for each in studies.trials(second.store, second.id) if each.number < 0}
    fitting = [each for each in studies.trials(first.store, first.id) if each.params["y"] <= 0.6]  # type: ignore[operator]
    assert given == {each.values for each in fitting if each.values} != set()
    with pytest.raises(UsageError, match="searched for another thing: to minimize loss"):
        lab(metric="acc", warm_start=(first.id,)).start()
