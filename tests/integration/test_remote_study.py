"""Studies on another machine, typed on this one: the real command, a real sshd, a driver over there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

Ems = Callable[..., CompletedProcess[str]]

TRAIN = """\
import ems

x = ems.params()["x"]
if x > 0.95:
    raise SystemExit("too far")
ems.log(step=1, loss=(x - 0.3) ** 2)
"""


@pytest.fixture
def train(project: Path) -> Path:
    (project / "train.py").write_text(TRAIN)
    return project


def standing(ems: Ems) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(ems("tune", "status", "last", "--json").stdout)
    return shown[0] if isinstance(shown, list) else shown


def wait_for(ems: Ems, state: str, limit_s: float = 200.0) -> dict[str, Any]:
    deadline = time.monotonic() + limit_s
    while (shown := standing(ems))["state"] != state:
        assert time.monotonic() < deadline, shown
    return shown


def test_a_study_goes_on_there_and_is_seen_here(far: Any, train: Path, ems: Ems) -> None:
    asked = ("--set", "x=uniform(0,1)", "--metric", "loss", "--goal", "minimize", "--trials", "8", "--parallel", "2")
    done = ems("tune", "train.py", *asked, "--sampler", "sobol", "--on", "far")
    assert "on far" in done.stdout
    wait_for(ems, "FINISHED")
    [there] = (far.root / "experiments").iterdir()
    assert (there / "study.db").exists(), "the driver's store lies where the runs are"
    ems("harvest")
    rows = json.loads(ems("report", "last", "--json").stdout)
    assert rows
    ems("tune", "extend", "last", "--trials", "2")
    wait_for(ems, "FINISHED")
    assert len((there / "runs.jsonl").read_text().splitlines()) == 10
    [mirror] = (train / ".ems" / "remote" / "far" / "experiments").iterdir()
    assert (mirror / "runs.jsonl").read_text() == (there / "runs.jsonl").read_text()


def test_what_is_wished_from_here_is_taken_in_there(far: Any, train: Path, ems: Ems) -> None:
    (train / "train.py").write_text("import time, ems\nems.log(step=1, loss=1.0)\ntime.sleep(600)\n")
    asked = ("--set", "x=uniform(0,1)", "--metric", "loss", "--goal", "minimize", "--trials", "8", "--parallel", "2")
    ems("tune", "train.py", *asked, "--sampler", "random", "--on", "far")
    ems("tune", "stop", "last", "--now")
    assert wait_for(ems, "STOPPED")["state"] == "STOPPED"
