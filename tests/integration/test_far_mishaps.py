"""What a person is told, and what is left, when something is wrong with a machine over SSH."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ems import registry
from ems.ssh import Host, hint_of_break

Ems = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def train(project: Path) -> Path:
    (project / "train.py").write_text("print('acc: 0.5')\n")
    return project


def ended(ems: Ems) -> dict[str, Any]:
    deadline = time.monotonic() + 200
    while True:
        found: list[dict[str, Any]] = json.loads(ems("status", "--json").stdout)
        if not any(each["pending"] or each["running"] for each in found):
            return found[-1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_experiment_that_was_not_handed_over_is_kept_and_not_made_twice(far: Any, train: Path, ems: Ems) -> None:
    (far.folder / "home" / ".bashrc").write_text("echo Welcome\n")  # git cannot push to such a login shell
    said = ems("run", "train.py", "--on", "far", code=1).stderr
    kept = re.search(r"`ems rerun (\w+) --missing` carries on", said)
    assert kept is not None, said
    assert "type the command again" not in said
    assert "~/.bashrc" in said
    (far.folder / "home" / ".bashrc").unlink()
    ems("rerun", kept[1], "--missing")
    assert (ended(ems)["experiment"], ended(ems)["completed"]) == (kept[1], 1)
    assert ems("list").stdout.count("train") == 1


def test_a_version_mismatch_is_named_with_what_mends_it(far: Any, train: Path, ems: Ems) -> None:
    ems("run", "train.py", "--on", "far")
    registry.save(replace(far.target, ems=("env", "PYTHONPATH=" + str(other_version(far)), *far.target.ems)))
    for words, code in ((("status",), 0), (("harvest",), 1), (("cancel", "last"), 1)):
        done = ems(*words, code=code)
        assert "hint: ems cluster upgrade far" in done.stdout + done.stderr, words
    registry.save(far.target)
    assert ended(ems)["completed"] == 1


def other_version(far: Any) -> Path:
    """Return a folder whose ems is not quite this one."""
    folder: Path = far.folder / "other"
    shutil.copytree(Path(registry.__file__).parent, folder / "ems", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "ems" / "version.py").open("a") as file:
        file.write("# of another day\n")
    return folder


def test_who_forgets_the_current_cluster_hears_where_experiments_go(far: Any, train: Path, ems: Ems) -> None:
    ems("cluster", "use", "far")
    assert "next: ems doctor --on far" in ems("cluster", "list").stderr
    assert "far is forgotten; experiments stay on this machine" in ems("cluster", "forget", "far").stdout
    registry.save(far.target)
    assert ems("cluster", "forget", "far").stdout == "far is forgotten\n"


def test_where_git_is_gone_there_it_says_so(far: Any, train: Path, ems: Ems) -> None:
    ems("run", "train.py", "--on", "far")
    (train / "train.py").write_text("print('acc: 0.6')\n")
    tools = far.folder / "tools"
    tools.mkdir()
    for name in ("env", "sh", "bash"):
        (tools / name).symlink_to(shutil.which(name) or name)
    (far.folder / "home" / ".bashrc").write_text(f"export PATH={tools}\n")
    said = ems("run", "train.py", "--on", "far", code=1).stderr
    assert "error: there is no git on " in said
    assert "install git there" in said


def test_of_a_full_disk_there_the_hint_is_not_to_try_again_at_once() -> None:
    host = Host("me@login")
    said = b"cat: write error: No space left on device"
    assert "make room" in host.failure(subprocess.CompletedProcess((), 1, b"", said)).hint
    assert hint_of_break(b"rsync: " + said, host).startswith("make room")
    assert hint_of_break(b"Connection reset", host) == "type the command again: it carries on"
