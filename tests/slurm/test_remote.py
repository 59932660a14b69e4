"""Experiments typed on a laptop that go to a real SLURM over a real SSH connection."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TRAIN = """\
import os, pathlib, sys, time
import ems

while not (pathlib.Path(os.environ["EMS_ROOT"]) / "gate").exists():
    time.sleep(0.02)
ems.log(step=0, gpu=len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")))
"""
_LIMIT_S = 300


@pytest.fixture
def login(make_far: Callable[..., Any], slurm: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A login node of the cluster, over SSH; on this side nothing knows of the cluster."""
    env = slurm.environment({})
    monkeypatch.delenv("SLURM_CONF")
    return make_far(executor="slurm", environment={"SLURM_CONF": env["SLURM_CONF"]})


def counts(ems: Any) -> dict[str, int]:
    [shown] = json.loads(ems("status", "last", "--json").stdout)
    return {name: shown[name] for name in ("pending", "running", "completed", "failed", "cancelled") if shown[name]}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_a_sweep_is_an_array_job_there_and_comes_back(login: Any, project: Path, ems: Any) -> None:
    (project / "train.py").write_text(TRAIN)
    words = ("parrun", "train.py", "--set", "lr=0.1,0.2,0.3", "--gres", "gpu:1", "--on", "far", "--json")
    script = json.loads(ems(*words, "--dry-run").stdout)["script"]
    assert "#SBATCH --array=0-2" in script
    assert f"{login.root}/lib/" in script
    [job] = json.loads(ems(*words).stdout)["jobs"]
    assert job.isdigit()
    wait_until(lambda: counts(ems).get("running", 0) > 0, "nothing runs")
    ems("cancel", "last/2")
    wait_until(lambda: counts(ems).get("cancelled") == 1, "run 2 is not cancelled")
    (login.root / "gate").touch()
    wait_until(lambda: counts(ems) == {"completed": 2, "cancelled": 1}, "it does not end")
    ems("rerun", "last/2", "--wait")
    ems("harvest")
    assert counts(ems) == {"completed": 3}
    [attempt] = login.root.glob("experiments/*/runs/0/attempts/1.json")
    assert json.loads(attempt.read_text())["job"] == f"{job}_0"


def test_what_slurm_refuses_is_said_in_its_words(login: Any, project: Path, ems: Any) -> None:
    (project / "train.py").write_text(TRAIN)
    done = ems("parrun", "train.py", "--set", "lr=0.1", "--on", "far", "--partition", "moon", code=1)
    assert "SLURM refuses" in done.stderr
    assert "moon" in done.stderr or "partition" in done.stderr
    assert not list((login.root / "experiments").iterdir())


def test_doctor_sees_the_cluster(login: Any, project: Path, ems: Any) -> None:
    found = {each["name"]: each for each in json.loads(ems("doctor", "--on", "far", "--json", code=None).stdout)}
    assert found["ssh"]["ok"]
    assert found["python"]["ok"]
    assert any("slurm" in json.dumps(each).lower() for name, each in found.items() if name != "ssh")
