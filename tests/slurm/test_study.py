"""Studies on a real SLURM, their driver a job that comes again: killed, doubled, left alone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ems.node import records
from ems.node.records import ExperimentFiles
from ems.search.decide import replay
from ems.store import Store, studies
from ems.study.spec import StudySpec

# leaves a line an attempt that comes to its end in a file that all share; one in ten runs crashes, by its params
TRIAL = """
import os, time
import ems
x, y = ems.params()["x"], ems.params()["y"]
time.sleep(1.5)
assert os.environ["CUDA_VISIBLE_DEVICES"].isdecimal()
if int(x * 1e6) % 10 == 0:
    raise ValueError("one in ten")
ems.log(step=1, loss=(x - 0.3) ** 2 + (y - 0.6) ** 2)
with open(os.path.join(os.environ["TALLY"], "tally"), "a") as file:
    file.write("%s %s\\n" % (os.environ["EMS_INDEX"], os.environ["EMS_ATTEMPT"]))
"""

# trains as long as it is told to, and goes on from its checkpoint
CLIMB = """
import json, os
import ems
p = ems.params()
state = ems.checkpoint() / "state.json"
done = json.loads(state.read_text()) if state.exists() else 0
for epoch in range(done + 1, p["epochs"] + 1):
    ems.log(step=epoch, loss=(p["x"] - 0.3) ** 2 + 1 / epoch)
    with open(os.path.join(os.environ["TALLY"], "epochs"), "a") as file:
        file.write("%s %d\\n" % (os.environ["EMS_INDEX"], epoch))
    state.write_text(json.dumps(epoch))
"""


class Study:
    """A study of the lab, and its driver."""

    def __init__(self, lab: Any, *args: str) -> None:
        self.lab = lab
        words = ("tune", "train.py", *args, "--on", "slurm", "--python", sys.executable, "--json")
        self.id = str(json.loads(lab.ems(*words).stdout)["study"])
        self.folder: Path = lab.project / ".ems" / "experiments" / self.id

    def standing(self) -> dict[str, Any]:
        """``ems tune status --json``."""
        shown = json.loads(self.lab.ems("tune", "status", self.id, "--json").stdout)
        return dict(shown[0] if isinstance(shown, list) else shown)

    def finish(self, limit_s: float) -> None:
        """Wait until it is over; nobody looks meanwhile but at a file, so that it has to go on by itself."""
        self.lab.wait_until(lambda: self.row().is_finished, limit_s, f"the end of study {self.id}")

    def row(self) -> studies.StudyRow:
        with Store(self.folder / "study.db") as store:
            row = studies.study(store, self.id)
        assert row is not None
        return row

    def completed(self, number: int) -> list[tuple[int, bool]]:
        """Return each attempt at a trial, oldest first, and whether it completed."""
        files = ExperimentFiles(self.folder.parents[1], self.id)
        attempts = (records.read_attempt(files, number, each) or {} for each in files.attempt_numbers(number))
        return [(each["attempt"], each["state"] == "COMPLETED") for each in attempts]

    def drivers(self) -> list[int]:
        """Processes of a wake that is under way."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if b"ems.study.slurm_clock" in words and self.id.encode() in words:
                    found.append(int(path.parent.name))
        return found


def test_sixty_trials_survive_a_killed_driver_lost_nodes_and_crashes(
    lab: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TALLY", str(tmp_path))
    lab.write("train.py", TRIAL)
    space = ("--set", "x=uniform(0,1)", "--set", "y=uniform(0,1)", "--metric", "loss", "--goal", "minimize")
    study = Study(lab, *space, "--trials", "60", "--parallel", "8", "--gres", "gpu:1", "--seed", "1")
    rng, due, killed, lost = random.Random(7), dict[int, float](), 0, 0
    names = list(lab.slurm.node_names)

    def torment() -> bool:
        """Kill drivers at any moment of their wakes, which take a second or more, and two nodes under way."""
        nonlocal killed, lost
        for pid in study.drivers() if killed < 20 else []:
            moment = due.setdefault(pid, time.monotonic() + rng.uniform(0.0, 1.0))
            if time.monotonic() >= moment:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        if lost < 2 and killed >= 4 * (lost + 1):
            lab.slurm.kill_node(names[lost])
            lab.slurm.start_node(names[lost])
            lost += 1
        return study.row().is_finished

    lab.wait_until(torment, 1000, f"the end of study {study.id}")
    assert killed >= 10
    assert lost == 2
    with Store(study.folder / "study.db") as store:
        parts, trials = studies.segments(store, study.id), studies.trials(store, study.id)
        row, wakes = studies.study(store, study.id), studies.wakes(store, study.id)
    assert row is not None
    assert row.state == studies.FINISHED, row.reason
    assert sorted(each.number for each in parts) == list(range(60))
    outcomes = Counter(each.outcome for each in parts)
    assert set(outcomes) == {"ok", "crashed"}, outcomes
    finished = [tuple(map(int, line.split())) for line in (tmp_path / "tally").read_text().splitlines()]
    assert len(finished) == len(set(finished)), "an attempt was made twice"
    for number in sorted(each.number for each in parts if each.outcome == "ok"):
        # one whose node was lost between its last line and the record of its end has to be made once more
        *before, (last, is_done) = study.completed(number)
        assert is_done
        assert (number, last) in finished
        assert not any(is_done for _, is_done in before), "no trial ran to its end twice"
    assert sorted({number for number, _ in finished}) == sorted(each.number for each in parts if each.outcome == "ok")
    assert replay(StudySpec.load(row.spec).problem(), trials) == []
    best = min((each.value, each.number) for each in parts if each.value is not None)
    lab.harvest()
    assert study.standing()["state"] == "FINISHED"
    [timeline] = json.loads(lab.ems("plot", study.id, "timeline", "--json").stdout)
    calls = [each.calls for each in wakes]
    print(f"{killed} drivers killed, {lost} nodes lost, {len(wakes)} wakes of at most {max(calls)} scheduler calls")
    print(timeline["title"], best)


def test_rungs_are_array_tasks_that_go_on_from_their_checkpoint(lab: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TALLY", str(tmp_path))
    lab.write("train.py", CLIMB)
    space = ("--set", "x=uniform(0,1)", "--metric", "loss", "--goal", "minimize", "--fidelity", "epochs=1..9")
    study = Study(lab, *space, "--budget", "60epochs", "--parallel", "4", "--scheduler", "asha")
    study.finish(600)
    row = study.row()
    assert row.state == studies.FINISHED, row.reason
    lines = [tuple(map(int, line.split())) for line in (tmp_path / "epochs").read_text().splitlines()]
    assert len(lines) == len(set(lines)) <= 60, "no epoch was trained twice, nor one that the budget does not pay"
    assert {epoch for _, epoch in lines} == set(range(1, 10))
    lab.harvest()
    steps = dict(lab.query("SELECT run, max(step) FROM curves WHERE experiment = ? GROUP BY run", study.id))
    assert set(steps.values()) == {1, 3, 9}


def test_a_study_that_is_stopped_leaves_nothing_in_the_queue(lab: Any) -> None:
    lab.write("train.py", "import time, ems\nems.log(step=1, loss=1.0)\ntime.sleep(600)\n")
    study = Study(
        lab, "--set", "x=uniform(0,1)", "--metric", "loss", "--goal", "minimize", "--trials", "9", "--parallel", "3"
    )
    lab.wait_until(lambda: lab.slurm.queue() != [], 180, "jobs")
    lab.ems("tune", "stop", study.id, "--now")
    study.finish(300)
    lab.slurm.wait_for_empty_queue()
    assert study.row().state == studies.STOPPED
