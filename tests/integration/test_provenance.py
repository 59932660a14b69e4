"""Where an experiment came from: what is recorded, and what never is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ems import provenance
from ems.errors import SnapshotError, TargetError

SECRET = "hunter2-do-not-store"


def git(folder: Path, *args: str) -> str:
    words = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *args]
    return subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def committed(project: Path) -> Path:
    (project / "train.py").write_text("print(1)\n")
    (project / "readme").write_text("hello\n")
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    return project


def collect(project: Path, **options: Any) -> Mapping[str, Any]:
    record = provenance.collect(project, ["ems", "parrun", "train.py"], sys.executable, **options)
    assert json.loads(json.dumps(record)) == record  # it goes into spec.json
    return record


def test_commit_and_dirty_diff(committed: Path) -> None:
    clean = collect(committed)
    assert clean["commit"] == git(committed, "rev-parse", "HEAD").strip()
    assert clean["branch"] == "main"
    assert (clean["dirty_diff"], clean["dirty_diff_bytes"], clean["untracked"]) == ("", 0, [])
    (committed / "train.py").write_text("print(2)\n")
    (committed / "new.py").touch()
    dirty = collect(committed)
    assert "-print(1)\n+print(2)\n" in dirty["dirty_diff"]
    assert dirty["untracked"] == ["new.py"]
    (committed / "new.py").unlink()
    git(committed, "stash", "-q")
    Path(committed / "again.diff").write_text(dirty["dirty_diff"])
    git(committed, "apply", "again.diff")  # it is a diff that git takes
    assert (committed / "train.py").read_text() == "print(2)\n"


def test_a_file_that_was_only_touched_is_not_dirty_and_the_index_stays(committed: Path) -> None:
    os.utime(committed / "readme", (1, 1))
    (committed / "train.py").write_text("print(2)\n")
    before = (committed / ".git" / "index").read_bytes()
    record = collect(committed)
    assert record["dirty_diff"].count("diff --git") == 1
    assert (committed / ".git" / "index").read_bytes() == before


def test_no_diff_tool_or_filter_of_the_user_is_run(committed: Path) -> None:
    trap = committed / "trap"
    git(committed, "config", "diff.external", f"touch {trap}; true")
    git(committed, "config", "diff.loud.textconv", f"touch {trap}; cat")
    git(committed, "config", "core.pager", f"touch {trap}")
    git(committed, "config", "color.ui", "always")
    (committed / ".gitattributes").write_text("* diff=loud\n")
    (committed / "train.py").write_text("print(2)\n")
    assert "-print(1)\n+print(2)\n" in collect(committed)["dirty_diff"]
    assert not trap.exists()


def test_a_large_diff_is_cut_or_stored_aside(committed: Path, tmp_path: Path) -> None:
    (committed / "train.py").write_text("".join(f"x = {n}\n" for n in range(30_000)))
    cut = collect(committed)
    assert len(cut["dirty_diff"]) == 100_000
    assert cut["dirty_diff_bytes"] > 300_000
    aside = collect(committed, aside=tmp_path / "diffs")
    assert aside["dirty_diff"] == ""
    stored = Path(aside["dirty_diff_file"])
    assert stored.stat().st_size == aside["dirty_diff_bytes"]
    assert collect(committed, aside=tmp_path / "diffs")["dirty_diff_file"] == str(stored)
    (tmp_path / "file").touch()
    with pytest.raises(TargetError, match="cannot write"):
        collect(committed, aside=tmp_path / "file")


def test_before_the_first_commit_and_without_git(project: Path, tmp_path: Path) -> None:
    (project / "train.py").touch()
    record = collect(project)
    assert (record["commit"], record["dirty_diff"], record["untracked"]) == (None, "", ["train.py"])
    assert "commit" not in collect(tmp_path)


def test_a_detached_head_has_no_branch(committed: Path) -> None:
    git(committed, "checkout", "-q", "--detach")
    record = collect(committed)
    assert record["branch"] is None
    assert record["commit"]


def test_a_broken_repository_is_said(committed: Path) -> None:
    (committed / ".git" / "index").write_bytes(b"DIRC garbage that is long enough to be read as a header")
    with pytest.raises(SnapshotError, match="git cannot read"):
        collect(committed)


def test_python_host_and_command_line(committed: Path) -> None:
    record = collect(committed)
    assert record["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert record["python"]["executable"] == sys.executable
    assert record["host"] == os.uname().nodename
    assert record["command_line"] == ["ems", "parrun", "train.py"]
    assert record["cwd"] == str(committed)


def test_packages_are_those_of_pip_freeze(committed: Path) -> None:
    freeze = [sys.executable, "-m", "pip", "freeze", "--all", "--disable-pip-version-check"]
    result = subprocess.run(freeze, capture_output=True, text=True, cwd="/", check=True)

    def names(lines: list[str]) -> set[str]:
        pairs = (
            line.lower().replace("_", "-").replace(".", "-").split("==")
            for line in lines
            if "==" in line and line[0] != "#"
        )
        return {"==".join(pair) for pair in pairs}

    ours, theirs = names(collect(committed)["packages"]), names(result.stdout.splitlines())
    assert theirs <= ours
    assert len(theirs) > 10


def test_an_editable_package_is_recorded_by_its_place(committed: Path, tmp_path: Path) -> None:
    place = tmp_path / "site" / "mine-1.0.dist-info"
    place.mkdir(parents=True)
    (place / "direct_url.json").write_text(
        '{"url": "https://me:secret@example.org/mine.git", "vcs_info": {"commit_id": "abc"}}'
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", provenance._PROBE]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd="/")
    assert "mine @ https://example.org/mine.git@abc" in json.loads(answer.stdout)["packages"]


def test_the_python_of_the_run_is_asked_even_by_a_relative_name(committed: Path, tmp_path: Path) -> None:
    (committed / "venv").symlink_to(Path(sys.executable).parent)
    record = provenance.collect(committed, [], "venv/python")
    assert record["packages"]
    for name in ("/nowhere/python", "no-such-python", "/bin/false"):
        record = provenance.collect(committed, [], name)
        assert (record["python"], record["packages"]) == (None, [])


def test_the_environment_is_not_stored_but_for_the_allow_list(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("MINE", "yes")
    record = collect(committed)
    assert record["environment"]["OMP_NUM_THREADS"] == "3"
    assert "MINE" not in record["environment"]
    assert SECRET not in json.dumps(record)
    assert collect(committed, env_allow=["MINE"])["environment"] == {"MINE": "yes"}
    suspicious = ("KEY", "TOKEN", "SECRET", "PASS", "CREDENTIAL")
    assert not [name for name in provenance.ALLOWED if any(word in name for word in suspicious)]
