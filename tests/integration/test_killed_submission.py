"""What a kill between two steps of a submission leaves behind."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

Ems = Callable[..., subprocess.CompletedProcess[str]]


def test_an_experiment_that_the_store_never_learnt_of_is_found_by_any_command(project: Path, ems: Ems) -> None:
    (project / "train.py").write_text("print('y: 1')\n")
    ems("parrun", "train.py", "--set", "x=1,2", "--wait", "--python", sys.executable)
    experiment = json.loads(ems("list", "--json").stdout)[0]["experiment"]
    with sqlite3.connect(project / ".ems" / "ems.db") as db:
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("DELETE FROM experiments")
    db.close()

    status = json.loads(ems("status", experiment, "--json").stdout)

    assert [each["completed"] for each in status] == [2]
    assert "2 completed" in ems("harvest").stdout


def test_waiting_ends_when_the_workers_are_gone(project: Path, ems: Ems) -> None:
    (project / "train.py").write_text(
        "import os, signal, sys\nif sys.argv[2] == '0':\n    os.kill(os.getppid(), signal.SIGKILL)\n"
    )
    said = ems("parrun", "train.py", "--set", "x=0..3", "--workers", "1", "--wait", "--python", sys.executable, code=1)
    assert "--missing" in said.stderr

    rerun = ems("rerun", "last", "--missing", "--wait", code=None)

    states = [run["state"] for run in json.loads(ems("ls", "last", "--json").stdout)]
    assert states[1:] == ["COMPLETED"] * 3, rerun.stderr


def test_what_a_killed_submission_wrote_aside_is_deleted_a_day_later(project: Path, ems: Ems) -> None:
    (project / "train.py").write_text("print('y: 1')\n")
    old, new = (project / ".ems" / "experiments" / f".{name}.aside" for name in ("0a", "0b"))
    for folder in (old, new):
        (folder / "chunks").mkdir(parents=True)
    two_days_ago = time.time() - 2 * 86_400
    os.utime(old, (two_days_ago, two_days_ago))

    ems("parrun", "train.py", "--set", "x=1", "--wait", "--python", sys.executable)

    assert not old.exists()
    assert new.exists()
    assert len(json.loads(ems("list", "--json").stdout)) == 1
