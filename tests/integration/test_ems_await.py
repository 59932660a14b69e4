"""The script by which SLURM notices at once that the nodes of a job are there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "templates/roles/elastic/files/ems-await"
# Says each time what the next line of `said` says, and the last one for ever
SCONTROL = """#!/bin/sh
cd "${0%/*}"
echo "$*" >>asked
head -n 1 said
[ "$(wc -l <said)" -eq 1 ] || sed -i 1d said
"""


def _await(folder: Path, *states: str) -> list[str]:
    """Run it for a job on two nodes, of which SLURM says in turn these states; returns what SLURM was asked."""
    (folder / "said").write_text("".join(f"NodeName=c-gpu-001 State={state} ThreadsPerCore=1\n" for state in states))
    (folder / "asked").write_text("")
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "c-gpu-[001-002]"}
    assert subprocess.run([SCRIPT], env=env, timeout=120, check=False).returncode == 0
    return (folder / "asked").read_text().splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    return tmp_path


def test_a_job_whose_nodes_are_there_is_not_held_up(folder: Path) -> None:
    for state in ("ALLOCATED+CLOUD", "MIXED+CLOUD+DRAIN", "DOWN+CLOUD+NOT_RESPONDING"):
        assert _await(folder, state) == ["-o show node c-gpu-[001-002]"]


def test_a_job_waits_until_its_nodes_are_there(folder: Path) -> None:
    coming = ("MIXED+CLOUD+POWERED_DOWN", "MIXED+CLOUD+NOT_RESPONDING+POWERING_UP")
    assert len(_await(folder, *coming, "MIXED+CLOUD")) == 3


def test_a_slurm_that_does_not_answer_is_no_reason_to_fail_a_job(folder: Path) -> None:
    (folder / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    assert _await(folder, "") == []
