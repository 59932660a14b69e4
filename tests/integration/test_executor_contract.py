"""What every Executor promises, shown by real runs; here for ``here``, in tests/slurm for SLURM.

tests/slurm/test_executor_contract.py takes the class :class:`Contract` and the class :class:`Lab` from this file.
"""

from __future__ import annotations

import inspect
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ems import snapshot
from ems.errors import ExecutorError
from ems.executor import control
from ems.executor.base import Executor, Submission
from ems.executor.here import HereExecutor
from ems.model import Experiment, Resources, State
from ems.node import checkout, records
from ems.node.records import ExperimentFiles, Record
from ems.remote.client import Agent
from ems.remote.executor import RemoteExecutor

SCRIPT = """\
import os, pathlib, time
root = pathlib.Path(os.environ["EMS_ROOT"])
with open(root / "started", "a") as file:
    file.write(os.environ["EMS_INDEX"] + "\\n")
while not (root / "gate").exists():
    time.sleep(0.02)
"""
# Submits in a process of its own, which is killed before the given step of those that Python tells of (see
# test_feed.py); submitit is imported before that.
KILLED_AT = """
import dataclasses, json, os, signal, sys
from pathlib import Path
from ems.executor.here import HereExecutor
from ems.executor.slurm import SlurmExecutor
from ems.model import Experiment, Resources
from ems.node.records import ExperimentFiles
kind, root, name, steps = sys.argv[1:5]
files = ExperimentFiles(root, name)
spec = json.loads(Path(files.spec).read_text())
experiment = Experiment(**{**spec, "resources": Resources(**spec["resources"])})
executor = {"here": HereExecutor, "slurm": SlurmExecutor}[kind](Path(root))
left = int(steps)

def hook(event, args):
    global left
    if event in ("open", "os.link", "os.remove", "os.rename", "os.listdir", "fcntl.flock", "subprocess.Popen"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
executor.submit(experiment, files)
os._exit(0)
"""


class Lab:
    """Makes experiments under one root, and looks at what became of them."""

    def __init__(self, root: Path, executor: Executor, project: Path) -> None:
        self.root, self.executor, self.project = root, executor, project
        self.gate = root / "gate"
        self.made: list[ExperimentFiles] = []

    def make(self, n: int, *, chunk_size: int | None = None, **fields: object) -> tuple[Experiment, ExperimentFiles]:
        """Write an experiment of ``n`` runs as the submitting side does, but hand nothing over."""
        code = snapshot.take(self.project, self.root / "snapshots.git").id
        checkout.ensure(self.root, code)
        values: dict[str, object] = {
            "id": secrets.token_hex(4),
            "name": "contract",
            "created_at": records.now(),
            "script": "train.py",
            "snapshot": code,
            "n_runs": n,
            "executor": self.executor.name,
            "target": self.executor.name,
            "python": sys.executable,
            "grace_s": 2,
        }
        experiment = Experiment(**(values | fields))  # type: ignore[arg-type]  # fields are given by name
        files = ExperimentFiles(self.root, experiment.id)
        Path(files.chunks).mkdir(parents=True)
        records.write_atomic(files.spec, records.dump(asdict(experiment)))
        runs = ({"index": i, "params": {}, "seed": i, "key": str(i), "loops": []} for i in range(n))
        records.write_runs(files, runs)
        size = chunk_size or n
        for number, start in enumerate(range(0, n, size), start=1):
            self._write_chunk(files, number, start, min(start + size, n))
        self.made.append(files)
        return experiment, files

    def _write_chunk(self, files: ExperimentFiles, number: int, start: int, stop: int) -> None:
        chunk: Record = {"chunk": number, "start": start, "stop": stop, "indices": None, "tasks": stop - start}
        chunk |= {"pack": None, "executor": self.executor.name, "fresh": False, "resources": None}
        records.write_atomic(files.chunk(number), records.dump({**chunk, "created_at": records.now()}))

    def submit_killed_at(self, files: ExperimentFiles, step: int) -> int:
        argv = [sys.executable, "-c", KILLED_AT, self.executor.name, str(self.root), files.id, str(step)]
        return subprocess.run(argv, cwd=Path(__file__).parents[2], check=False, timeout=200).returncode

    def states(self, files: ExperimentFiles, n: int) -> list[str]:
        """State of the last attempt of each run; empty where there is none."""
        return [(records.last_attempt(files, index) or {"state": ""})["state"] for index in range(n)]

    def verdicts(self, files: ExperimentFiles, n: int) -> list[str]:
        """State of each run, of its last attempt's record if that has ended for good, else of its job."""
        keys, found = {}, self.states(files, n)
        job = (records.read_json(files.chunk(1, "job")) or {"job": ""})["job"]
        for index, state in enumerate(found):
            if state not in ("COMPLETED", "FAILED", "CANCELLED"):
                last = records.last_attempt(files, index)
                keys[index] = last["job"] if last else f"{job}_{index}"
        infos = self.executor.refresh(keys.values())
        return [infos[keys[index]].state if keys.get(index) in infos else found[index] for index in range(n)]

    def started(self) -> list[int]:
        """Index of every run in the order of their starts."""
        book = self.root / "started"
        return [int(line) for line in book.read_text().split()] if book.exists() else []

    def is_over(self, job: str) -> bool:
        """Whether nothing of a job waits or runs."""
        found = self.executor.refresh([job])
        return all(info.state not in (State.PENDING, State.RUNNING) for info in found.values())

    def wait(self, condition: Callable[[], object], limit_s: float = 200) -> None:
        """Wait for a condition; show what there is when it does not come."""
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(self._story())
            time.sleep(0.05)

    def _story(self) -> str:
        told = []
        for files in self.made:
            told.append(f"{files.id}: {sorted(os.listdir(files.chunks))}")
            told += [f"  {i}: {records.last_attempt(files, i)}" for i in range(3)]
            logs = [*Path(files.chunks).glob("*.log"), *Path(files.chunks).glob("*.pool/*")]
            told += [f"  {path.name}: {path.read_text(errors='replace')[-1500:]}" for path in logs]
        return "not in time\n" + "\n".join(told)

    def close(self) -> None:
        """End everything and wait until it has."""
        self.gate.touch()
        for files in self.made:
            jobs = control.jobs(files)
            self.executor.cancel(jobs)
            self.wait(lambda jobs=jobs: all(self.is_over(job) for job in jobs))


class Contract:
    """The promises; a subclass or module gives the fixture ``lab``."""

    def test_at_most_eight_methods(self) -> None:
        methods = [name for name, value in vars(Executor).items() if inspect.isfunction(value) and name[0] != "_"]
        assert len(methods) <= 8, methods

    def test_every_run_once(self, lab: Lab) -> None:
        lab.gate.touch()
        experiment, files = lab.make(5)
        done = lab.executor.submit(experiment, files)
        assert [chunk for chunk, _ in done.submitted] == [1]
        assert (done.waiting_chunks, done.refusal) == (0, "")
        again = lab.executor.submit(experiment, files)
        assert (list(again.submitted), again.waiting_chunks) == ([], 0)
        lab.wait(lambda: lab.states(files, 5) == ["COMPLETED"] * 5)
        assert sorted(lab.started()) == [0, 1, 2, 3, 4]
        assert all(files.attempt_numbers(index) == [1] for index in range(5))
        job = done.submitted[0][1]
        lab.wait(lambda: lab.is_over(job))

    def test_more_than_one_chunk(self, lab: Lab) -> None:
        lab.gate.touch()
        experiment, files = lab.make(5, chunk_size=2)
        done = lab.executor.submit(experiment, files)
        assert [chunk for chunk, _ in done.submitted] == [1, 2, 3]
        assert len({job for _, job in done.submitted}) == 3
        lab.wait(lambda: lab.states(files, 5) == ["COMPLETED"] * 5)
        assert sorted(lab.started()) == [0, 1, 2, 3, 4]

    def test_the_script_is_told_beforehand(self, lab: Lab) -> None:
        experiment, files = lab.make(2)
        text = lab.executor.script(experiment, records.read_json(files.chunk(1)) or {})
        assert "worker.py" in text
        assert experiment.id in text
        assert lab.executor.limits().max_array_size >= 1

    def test_a_job_is_known_while_it_runs(self, lab: Lab) -> None:
        experiment, files = lab.make(2)
        [(_, job)] = lab.executor.submit(experiment, files).submitted
        lab.wait(lambda: lab.states(files, 2) == ["RUNNING"] * 2)
        found = lab.executor.refresh([job])
        assert found
        assert {info.state for info in found.values()} == {State.RUNNING}
        assert all(key == info.job for key, info in found.items())
        lab.gate.touch()
        lab.wait(lambda: lab.is_over(job))
        assert lab.states(files, 2) == ["COMPLETED"] * 2

    def test_cancel_all(self, lab: Lab) -> None:
        experiment, files = lab.make(40, max_parallel=2)
        [(_, job)] = lab.executor.submit(experiment, files).submitted
        lab.wait(lambda: "RUNNING" in lab.states(files, 40))
        control.cancel(lab.executor, files)
        lab.wait(lambda: lab.is_over(job))
        control.cancel(lab.executor, files)  # what has ended is no error
        assert set(lab.verdicts(files, 40)) == {"CANCELLED"}
        assert lab.states(files, 40)[39] == "", "it was never claimed, and is known as cancelled all the same"
        assert len(lab.started()) <= 2

    def test_cancel_at_once(self, lab: Lab) -> None:
        experiment, files = lab.make(3)
        [(_, job)] = lab.executor.submit(experiment, files).submitted
        control.cancel(lab.executor, files)
        lab.wait(lambda: lab.is_over(job))
        assert "RUNNING" not in lab.states(files, 3)
        assert "COMPLETED" not in lab.states(files, 3)

    def test_cancel_what_waits(self, lab: Lab) -> None:
        experiment, files = lab.make(2, chunk_size=1)
        control.cancel(lab.executor, files)
        assert lab.executor.submit(experiment, files) == Submission([], 0, "")
        assert lab.started() == []

    def test_cancel_one_that_runs_and_one_that_waits(self, lab: Lab) -> None:
        experiment, files = lab.make(4, max_parallel=2)
        lab.executor.submit(experiment, files)
        lab.wait(lambda: len(lab.started()) == 2)
        control.cancel(lab.executor, files, [0, 3])
        assert lab.states(files, 4)[3] == "CANCELLED"
        lab.wait(lambda: lab.verdicts(files, 4)[0] == "CANCELLED")
        lab.gate.touch()
        lab.wait(lambda: lab.verdicts(files, 4) == ["CANCELLED", "COMPLETED", "COMPLETED", "CANCELLED"])
        assert sorted(lab.started()) == [0, 1, 2]
        control.cancel(lab.executor, files, range(4))
        assert lab.verdicts(files, 4) == ["CANCELLED", "COMPLETED", "COMPLETED", "CANCELLED"], "what ended stays"

    def test_hold_and_release(self, lab: Lab) -> None:
        experiment, files = lab.make(3, max_parallel=1)
        [(_, job)] = lab.executor.submit(experiment, files).submitted
        lab.wait(lab.started)
        control.hold(lab.executor, files)
        lab.gate.touch()
        first = lab.started()[0]
        lab.wait(lambda: _is_gone(records.last_attempt(files, first)))
        assert any("held" in info.reason.lower() for info in lab.executor.refresh([job]).values())
        other, other_files = lab.make(1)
        lab.executor.submit(other, other_files)
        lab.wait(lambda: lab.states(other_files, 1) == ["COMPLETED"])
        held = [state for index, state in enumerate(lab.states(files, 3)) if index != first]
        assert held == ["", ""], "what came later has run meanwhile, what is held has not started"
        control.hold(lab.executor, files, release=True)
        lab.wait(lambda: lab.states(files, 3) == ["COMPLETED"] * 3)

    def test_chunks_of_a_held_experiment_wait(self, lab: Lab) -> None:
        experiment, files = lab.make(1)
        control.hold(lab.executor, files)
        assert lab.executor.submit(experiment, files) == Submission([], 1, "")
        control.hold(lab.executor, files, release=True)
        assert len(lab.executor.submit(experiment, files).submitted) == 1

    def test_what_cannot_be_had_is_refused_early(self, lab: Lab) -> None:
        with pytest.raises(ExecutorError) as refused:
            lab.executor.check(Resources(gres="gpu:999"))
        assert refused.value.hint
        lab.executor.check(Resources())

    def test_an_unknown_job_is_no_error(self, lab: Lab) -> None:
        lab.executor.cancel(["999999_7", "here-999999-1"])
        found = lab.executor.refresh(["999999_7"])
        assert all(not info.state.is_finished for info in found.values())

    def test_doctor_finds_nothing_amiss(self, lab: Lab) -> None:
        checks = lab.executor.doctor()
        assert {"python", "git", "root"} <= {check.name for check in checks}
        assert [check for check in checks if not check.ok] == []

    def test_killed_at_every_step_of_submission(self, lab: Lab) -> None:
        """Each step costs a start of Python: steps are sampled, the same in each run of the tests."""
        lab.gate.touch()
        step, status = 0, -signal.SIGKILL
        while status == -signal.SIGKILL:
            experiment, files = lab.make(2, chunk_size=1)
            (lab.root / "started").unlink(missing_ok=True)
            status = lab.submit_killed_at(files, step)
            lab.executor.submit(experiment, files)
            lab.wait(lambda e=experiment, f=files: lab.executor.submit(e, f).waiting_chunks == 0)
            lab.wait(lambda f=files: lab.states(f, 2) == ["COMPLETED"] * 2)
            assert sorted(lab.started()) == [0, 1], f"killed at step {step}"
            self.check_submitted_once(lab, files)
            step += 5
        assert status == 0
        assert step > 20, "the hook saw nothing"

    def check_submitted_once(self, lab: Lab, files: ExperimentFiles) -> None:
        """Ask the scheduler itself, where it can be asked."""


def _is_gone(attempt: Record | None) -> bool:
    """Whether the script of an attempt has ended, told from /proc: a held pool records it later."""
    if attempt is None or attempt["state"] != "RUNNING":
        return True
    return not any(_environment(pid).get("EMS_INDEX") == str(attempt["index"]) for pid in _descendants(attempt["pid"]))


def _descendants(pid: int) -> list[int]:
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(word) for word in words if _lives(word)]


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _environment(pid: int) -> dict[str, str]:
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


@pytest.fixture
def lab(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A root of its own, whose workers wait for no other test's."""
    monkeypatch.setenv("EMS_SLOTS", str(tmp_path / "slots"))
    monkeypatch.setenv("EMS_HERE_GPUS", "")
    (project / "train.py").write_text(SCRIPT)
    root = tmp_path / "root"
    root.mkdir()
    made = Lab(root, HereExecutor(root), project)
    yield made
    made.close()


class TestHere(Contract):
    """The contract on this machine."""


class TestOverSSH(Contract):
    """The contract on a machine that is reached over SSH; its root and the mirror are one folder that both can see."""

    test_killed_at_every_step_of_submission = None  # its own: see test_remote.py

    @pytest.fixture
    def lab(self, far: Any, project: Path) -> Iterator[Lab]:
        """A root of its own, whose workers wait for no other test's."""
        (project / "train.py").write_text(SCRIPT)
        far.root.mkdir()
        agent = Agent(far.target)
        made = Lab(far.root, RemoteExecutor(agent, far.root), project)
        yield made
        made.close()
        agent.close()
