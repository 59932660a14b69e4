"""Experiments on another machine, typed on this one: the real command, a real sshd, real runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

Ems = Callable[..., CompletedProcess[str]]

TRAIN = """\
import argparse
import ems

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
lr = parser.parse_args().lr
for step in range(3):
    ems.log(step=step, loss=lr * step)
print("lr is", lr)
"""


@pytest.fixture
def train(project: Path) -> Path:
    (project / "train.py").write_text(TRAIN)
    return project


def test_a_sweep_runs_there_and_comes_back(far: Any, train: Path, ems: Ems) -> None:
    done = ems("parrun", "train.py", "--set", "lr=0.1,0.2", "--on", "far", "--wait")
    assert "on far" in done.stdout
    assert "you may close the laptop" in done.stdout
    [there] = (far.root / "experiments").iterdir()
    assert json.loads((there / "spec.json").read_text())["target"] == "far"
    assert (there / "runs" / "1" / "stdout.log").read_text() == "lr is 0.2\n"
    [shown] = json.loads(ems("status", "last", "--json").stdout)
    assert (shown["completed"], shown["target"]) == (2, "far")
    report = json.loads(ems("report", "--json").stdout)
    assert report
