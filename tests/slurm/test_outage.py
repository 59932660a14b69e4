"""SLURM away, and ems killed: nothing is lost, nothing happens twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLER = Path(__file__).parent / "killer"

# leaves a line a start in a file that all runs share
TALLY_SCRIPT = """
import os, sys
with open(os.path.join(os.environ["TALLY"], "tally"), "a") as file:
    file.write("%s %s\\n" % (os.environ["EMS_EXPERIMENT"], os.environ["EMS_INDEX"]))
print("acc=%s" % sys.argv[2])
"""

# logs some steps over about a second; the last run ends when the test lets it
STEPS_SCRIPT = """
import os, sys, time
import ems
for step in range(40):
    ems.log(step=step, loss=int(sys.argv[2]) + 1 / (step + 1), note="step %d" % step)
    time.sleep(0.03)
while sys.argv[2] == "39" and not os.path.exists(os.environ["GATE"]):
    time.sleep(0.05)
print("acc=%s" % sys.argv[2])
"""

# logs a step, and ends when the test lets it
GATED_SCRIPT = """
import os, sys, time
import ems
ems.log(step=0, loss=int(sys.argv[2]))
while not os.path.exists(os.environ["GATE"]):
    time.sleep(0.05)
print("acc=%s" % sys.argv[2])
"""


def test_controller_down_during_submit(lab):
    lab.write("train.py", "print('acc=1')")
    lab.slurm.stop_controller(kill=True)
    said = lab.ems("parrun", "train.py", "--set", "i=0..3", "--on", "slurm", code=1)
    assert "does not answer" in said.stderr
    assert "hint:" in said.stderr
    lab.slurm.heal()  # what the tests before have cancelled may be back
    experiment = lab.parrun("train.py", "--set", "i=0..3")
    lab.wait_for_states(experiment, "COMPLETED")
    assert all(len(each) == 1 for each in lab.attempts(experiment).values())


def test_controller_goes_down_between_planning_and_sbatch(lab, killer):
    """The experiment is kept, and the next command hands it over."""
    lab.write("train.py", "print('acc=1')")
    words = ("parrun", "train.py", "--set", "i=0..3", "--on", "slurm", "--python", sys.executable)
    process = killer.start(*words, kind=SBATCH, signal="SIGSTOP")
    lab.slurm.stop_controller(kill=True)
    os.kill(process.pid, signal.SIGCONT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 1, stdout + stderr
    assert "does not answer" in stderr
    assert "hint:" in stderr
    lab.slurm.heal()
    [(experiment,)] = lab.query("SELECT id FROM experiments ORDER BY created_at DESC LIMIT 1")
    assert set(lab.states(experiment).values()) == {"PENDING"}
    lab.ems("status")
    lab.wait_for_states(experiment, "COMPLETED")
    assert all(len(each) == 1 for each in lab.attempts(experiment).values())


def test_controller_down_during_harvest(lab, tmp_path, monkeypatch):
    """What the runs themselves wrote is harvested all the same; no run changes its state because SLURM is silent."""
    gate = tmp_path / "gate"
    monkeypatch.setenv("GATE", str(gate))
    lab.write("train.py", GATED_SCRIPT)
    experiment = lab.parrun("train.py", "--set", "i=0..3", "--max-parallel", "2")
    lab.wait_until((lab.run_dir(experiment, 0) / "metrics.jsonl").exists, 180, "first metrics")
    lab.harvest()
    lab.slurm.stop_controller()
    said = lab.harvest()
    assert "does not answer" in said.stderr
    assert "states are as the workers recorded them" in said.stderr
    assert not set(lab.states(experiment).values()) & {"FAILED", "CANCELLED", "UNKNOWN"}
    said = lab.ems("status").stdout
    assert "Unable to contact slurm controller" in said
    assert "this is how it stood before" in said
    gate.touch()
    lab.slurm.start_controller()
    lab.slurm.wait_for_nodes()
    lab.wait_for_states(experiment, "COMPLETED")
    assert all(len(each) == 1 for each in lab.attempts(experiment).values())
    assert {m["acc"] for m in lab.metrics(experiment).values()} == {0, 1, 2, 3}


class Killer:
    """Runs ``ems`` so that it is killed, or stopped, right before one of its steps; see killer/sitecustomize.py."""

    def __init__(self, project: Path, log: Path) -> None:
        self.project, self.log = project, log

    def start(self, *words: str, **kill: object) -> subprocess.Popen[str]:
        """Start ``ems WORDS…``, to be killed as ``kill`` says; if to be stopped, return when it stands still."""
        env = {"PYTHONPATH": str(KILLER), "EMS_TEST_STEPS": str(self.log), "EMS_TEST_KILL": json.dumps(kill)}
        process = subprocess.Popen(
            [sys.executable, "-m", "ems", *words],
            cwd=self.project,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if kill.get("signal") == "SIGSTOP":
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), process.communicate()
        return process

    def kill(self, *words: str, **kill: object) -> bool:
        """Run ``ems WORDS…`` until it is killed; return whether it was."""
        process = self.start(*words, **kill)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode in (0, -signal.SIGKILL, -signal.SIGALRM), stderr
        return process.returncode != 0

    def steps(self, *words: str) -> list[str]:
        """Run ``ems WORDS…`` to its end; return the kinds of its steps, in order."""
        self.log.unlink(missing_ok=True)
        process = self.start(*words)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        return self.log.read_text().splitlines()


@pytest.fixture
def killer(project, tmp_path):
    return Killer(project, tmp_path / "steps")


SBATCH = "start sbatch --parsable #.ems/experiments/#/chunks/#.sh"


def kills(steps: list[str]) -> list[dict[str, object]]:
    """Where to kill: at the first and at the last step of each kind, in order."""
    last = {kind: steps.count(kind) for kind in steps}
    return [{"kind": kind, "nth": nth} for kind in dict.fromkeys(steps) for nth in sorted({1, last[kind]})]


def test_parrun_killed_at_every_step(lab, killer, tmp_path, monkeypatch):
    monkeypatch.setenv("TALLY", str(tmp_path))
    lab.write("train.py", TALLY_SCRIPT)
    words = ("parrun", "train.py", "--set", "i=0..1", "--again", "--on", "slurm", "--python", sys.executable)
    killer.steps(*words)  # the first one in a project makes the store, the checkout and so on, and is another test
    steps = killer.steps(*words)
    assert steps.count(SBATCH) == 1
    points = kills(steps) + [{"kind": SBATCH, "delay_s": delay_s} for delay_s in (0.002, 0.006, 0.012, 0.02)]
    survived = [point for point in points if not killer.kill(*words, **point)]
    # those that race with sbatch may be too late; git's index decides by the clock whether it must look again
    assert [point for point in survived if "delay_s" not in point and "snapshots.git" not in str(point["kind"])] == []

    on_disk = sorted(path.name for path in (lab.project / ".ems" / "experiments").glob("[0-9a-f]*"))
    assert len(on_disk) >= len(steps) - steps.index("sql BEGIN IMMEDIATE"), "kills after the experiment was written"
    said = {experiment: lab.ems("rerun", experiment, "--missing", code=None) for experiment in on_disk}
    lab.slurm.wait_for_empty_queue()
    lab.harvest()
    states = lab.query("SELECT e.id, r.state FROM experiments e LEFT JOIN runs r ON r.experiment_id = e.id")
    assert sorted({experiment for experiment, _ in states}) == on_disk
    assert [(state, said[experiment]) for experiment, state in states if state != "COMPLETED"] == []
    assert len(states) == 2 * len(on_disk)
    assert lab.query("SELECT DISTINCT attempt FROM attempts") == [(1,)]
    tally = (tmp_path / "tally").read_text().splitlines()
    assert sorted(tally) == sorted(f"{experiment} {index}" for experiment in on_disk for index in range(2))


def test_first_parrun_of_a_project_killed_at_every_step(lab, killer, tmp_path, monkeypatch):
    """Killed while store, snapshot or checkout are made: the same command typed again simply works."""
    monkeypatch.setenv("TALLY", str(tmp_path))
    lab.write("train.py", TALLY_SCRIPT)
    words = ("parrun", "train.py", "--set", "i=0..1", "--again", "--on", "slurm", "--python", sys.executable)
    steps = killer.steps(*words)
    points = kills(steps[: steps.index(SBATCH)])
    for point in points[:: max(1, len(points) // 6)]:
        subprocess.run(["rm", "-rf", ".ems"], cwd=lab.project, check=True)
        assert killer.kill(*words, **point), point
        experiment = lab.parrun("train.py", "--set", "i=0..1", "--again")
        lab.slurm.wait_for_empty_queue()
        lab.harvest()  # learns of what a kill after the rename left
        lab.ems("status")  # hands it over
        lab.slurm.wait_for_empty_queue()
        lab.harvest()
        assert lab.query("SELECT DISTINCT state FROM runs") == [("COMPLETED",)], point
        assert lab.states(experiment) == {0: "COMPLETED", 1: "COMPLETED"}
    tally = (tmp_path / "tally").read_text().splitlines()
    assert len(tally) == len(set(tally))


def dump(project: Path, lab) -> dict[str, list[tuple[object, ...]]]:
    """All that the store says of runs, attempts and points, without its own row numbers."""
    runs = "JOIN runs r ON r.id = t.run_id"
    return {
        # without slurm_state: SLURM is only asked of runs that have not recorded their end
        "runs": lab.query(
            "SELECT experiment_id, idx, params, seed, key, state, reason, attempt, chain FROM runs ORDER BY 1, 2"
        ),
        "attempts": lab.query(
            "SELECT r.experiment_id, r.idx, t.attempt, t.chunk, t.state, t.host, t.job, t.started_at, t.ended_at,"
            f" t.exit_code, t.reason, t.wall_s, t.resumed_from FROM attempts t {runs} ORDER BY 1, 2, 3"
        ),
        "points": lab.query("SELECT * FROM curves ORDER BY 1, 2, 3, 4, 5"),
        "summaries": lab.query(
            "SELECT r.experiment_id, r.idx, m.name, t.n, t.n_nan, t.n_text, t.last, t.last_text, t.last_step,"
            f" t.min, t.max, round(t.sum, 9) FROM summaries t {runs} JOIN metrics m ON m.id = t.metric_id"
            " ORDER BY 1, 2, 3"
        ),
    }


def test_harvest_killed_in_a_loop_while_runs_finish(lab, tmp_path, monkeypatch):
    gate = tmp_path / "gate"
    monkeypatch.setenv("GATE", str(gate))
    lab.write("train.py", STEPS_SCRIPT)
    experiment = lab.parrun("train.py", "--set", "i=0..39", "--max-parallel", "8")
    chance = random.Random(4)
    kills = 0
    began = time.monotonic()
    lab.harvest()
    whole_s = time.monotonic() - began  # on this machine, as busy as it is
    deadline = time.monotonic() + 500
    while lab.slurm.queue():
        assert time.monotonic() < deadline, f"{kills} kills, {lab.slurm.queue()}"
        process = subprocess.Popen(
            [sys.executable, "-m", "ems", "harvest"],
            cwd=lab.project,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            process.wait(whole_s * chance.uniform(0.2, 1.1))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
        if kills >= 5:
            gate.touch()
    lab.wait_for_states(experiment, "COMPLETED")
    survived = dump(lab.project, lab)

    store = lab.project / ".ems" / "ems.db"
    for file in store.parent.glob("ems.db*"):
        file.rename(lab.project.parent / file.name)
    lab.harvest()
    fresh = dump(lab.project, lab)
    assert len(fresh["runs"]) == 40
    assert sum(row[2] == "loss" for row in fresh["points"]) == 40 * 40
    for table, rows in fresh.items():
        assert survived[table] == rows, table


@pytest.mark.parametrize("n_runs", [1, 60])
def test_states_cost_two_calls_whatever_the_number_of_runs(lab, tmp_path, n_runs):
    """One squeue and one sacct a refresh, counted by wrappers in front of the real ones."""
    lab.write("train.py", "import time; time.sleep(120)")
    for _ in range(2):
        lab.parrun("train.py", "--set", f"i=1..{n_runs}", "--again", "--grace", "1")
    folder, calls = tmp_path / "counted", tmp_path / "calls"
    folder.mkdir()
    for name in ("squeue", "sacct", "scontrol", "sinfo", "sbatch", "sacctmgr", "scancel"):
        wrapper = folder / name
        wrapper.write_text(f'#!/bin/sh\necho {name} >>{calls}\nexec {shutil.which(name)} "$@"\n')
        wrapper.chmod(0o755)
    lab.ems("status", PATH=f"{folder}:{os.environ['PATH']}")
    said = calls.read_text().split()
    assert said.count("squeue") == 1
    assert said.count("sacct") <= 1
    assert not set(said) - {"squeue", "sacct"}
    for experiment in json.loads(lab.ems("list", "--json").stdout):
        lab.ems("cancel", experiment["experiment"])
