"""Scripts and users that do what nobody meant them to: one run, or one command, suffers from it and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

Ems = Callable[..., subprocess.CompletedProcess[str]]


def states(ems: Ems, *args: str) -> list[str]:
    """Return the state of each run of the newest experiment, in order."""
    rows = json.loads(ems("report", *args, "--columns", "run,state", "--json").stdout)
    return [row["state"] for row in sorted(rows, key=lambda row: row["run"])]


def test_a_run_that_deletes_its_directory_ends_alone(ems: Ems, project: Path) -> None:
    (project / "train.py").write_text(
        "import os, shutil\nif os.environ['I'] == '0':\n    shutil.rmtree(os.environ['EMS_RUN_DIR'])\n"
    )
    ems("parrun", "train.py", "--set", "i=0..2", "--pass-as", "env", "--workers", "1", "--wait")
    assert states(ems) == ["COMPLETED"] * 3


def test_a_script_whose_name_looks_like_an_option_runs(ems: Ems, project: Path) -> None:
    (project / "-m.py").write_text("for lr in [1, 2]:\n    print('acc:', lr)\n")
    ems("parrun", "./-m.py", "--wait")
    assert states(ems) == ["COMPLETED"] * 2
    ems("run", "./-m.py", "--wait")
    assert states(ems) == ["COMPLETED"]


@pytest.mark.parametrize("leftover", ["out.bin", None])
def test_rm_makes_room_on_a_full_disk(
    ems: Ems, small_disk: Callable[[str], Path], project: Path, leftover: str | None
) -> None:
    disk = small_disk("600k")
    (project / "ems.yaml").write_text(f"root: {disk / 'ems'}\n")
    (project / "train.py").write_text("import sys\nopen('out.bin', 'wb').write(b'x' * 30_000)\nprint('x' * 30_000)\n")
    ems("run", "train.py", "--wait")
    (run,) = disk.glob("ems/experiments/*/runs/0")
    if leftover is None:
        shutil.rmtree(run / "files")
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)
    freed = float(ems("rm", "last", "--yes").stdout.split(": ")[1].split(" kB freed")[0])
    assert freed > (60 if leftover else 30)
    assert not run.parent.parent.exists()


def test_a_notebook_is_refused_with_what_makes_it_a_script(ems: Ems, project: Path) -> None:
    (project / "my nb.ipynb").write_text('{"cells": []}')
    said = ems("run", "my nb.ipynb", code=2).stderr
    assert "my nb.ipynb is a notebook" in said
    assert "jupyter nbconvert --to script 'my nb.ipynb'" in said


def test_status_names_what_runs_again_what_a_killed_pool_lost(ems: Ems, project: Path) -> None:
    (project / "train.py").write_text("import os\nos.kill(os.getppid(), 9)\n")
    ems("parrun", "train.py", "--set", "i=0..2", "--workers", "1", "--wait", code=1)
    said = ems("status").stderr
    assert "--failed · ems rerun" in said
    assert "--missing" in said


def test_a_command_whose_output_is_closed_does_its_work(ems: Ems, project: Path) -> None:
    (project / "train.py").write_text("print('acc: 1')\n")
    ems("run", "train.py", "--wait")
    shell = f'exec "{sys.executable}" -m ems report -o table.csv >&- 2>&-'
    assert subprocess.run(["sh", "-c", shell], cwd=project, check=False).returncode == 0
    assert "acc" in (project / "table.csv").read_text()


def test_a_misspelt_script_leaves_nothing_behind(ems: Ems, project: Path) -> None:
    assert "there is no script folder/tran.py" in ems("parrun", "folder/tran.py", code=2).stderr
    assert "there is no script tran.py" in ems("run", "tran.py", code=2).stderr
    assert [path.name for path in project.iterdir()] == [".git"]


def test_without_git_it_is_git_that_is_missing(ems: Ems, project: Path) -> None:
    (project / "train.py").write_text("")
    shutil.rmtree(project / ".git")
    assert "error: git is not installed\n" in ems("run", "train.py", code=1, PATH=str(project)).stderr


def test_a_deleted_working_directory_is_said(ems: Ems, project: Path) -> None:
    shell = f'mkdir gone && cd gone && rmdir ../gone && exec "{sys.executable}" -P -m ems status'
    said = subprocess.run(["sh", "-c", shell], cwd=project, check=False, capture_output=True, text=True)
    assert said.returncode == 1
    assert "error: the folder that you are in is not there any more\n" in said.stderr
