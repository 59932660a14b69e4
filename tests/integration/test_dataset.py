"""Data sets: staged once by content, found by runs as ``$EMS_DATA/NAME``, for ever what they were at submission."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from ems import dataset
from ems.errors import TargetError, UsageError

Ems = Callable[..., CompletedProcess[str]]

SHOW = "import os; print(open(os.environ['EMS_DATA'] + '/numbers/a.txt').read())\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "it's $(touch pwned)"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("one")
    (folder / "sub" / "-x\n.bin").write_bytes(os.urandom(300_000))
    (folder / "sub" / "linked").symlink_to(folder / "a.txt")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path: (folder / path).read_bytes() for path, _ in dataset.files(folder)}


def stored(root: Path, name: str) -> Path:
    return root / "data" / dataset.names(root)[name]


@pytest.mark.parametrize("on", ["far", "here"])
def test_runs_read_what_a_name_meant_when_they_were_submitted(
    on: str, far: Any, project: Path, folder: Path, ems: Ems, tmp_path: Path
) -> None:
    root = far.root if on == "far" else project / ".ems"
    (project / "show.py").write_text(SHOW)
    assert "is copied to" in ems("data", "push", str(folder), "numbers", "--on", on).stdout
    assert "is already on" in ems("data", "push", str(folder), "numbers", "--on", on).stdout
    assert content(stored(root, "numbers")) == content(folder)
    first = json.loads(ems("run", "show.py", "--on", on, "--json").stdout)["experiment"]
    wait_for(root, first)
    (folder / "a.txt").write_text("two")
    ems("data", "push", str(folder), "numbers", "--on", on)
    second = json.loads(ems("run", "show.py", "--on", on, "--again", "--json").stdout)["experiment"]
    wait_for(root, second)
    ems("rerun", first, "--all")
    wait_for(root, first, attempt=2)
    assert printed(root, first) == "one\none\n"
    assert printed(root, second) == "two\n"
    [listed] = json.loads(ems("data", "list", "--on", on, "--json").stdout)
    assert listed["hash"] == dataset.digest(folder)
    assert not list(tmp_path.rglob("pwned"))


def wait_for(root: Path, exp_id: str, attempt: int = 1) -> None:
    path = root / "experiments" / exp_id / "runs" / "0" / "attempts" / f"{attempt}.json"
    deadline = time.monotonic() + 120
    while not (path.exists() and json.loads(path.read_text()).get("ended_at")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def printed(root: Path, exp_id: str) -> str:
    return (root / "experiments" / exp_id / "runs" / "0" / "stdout.log").read_text()


def test_a_push_that_is_broken_off_goes_on_and_is_whole(far: Any, project: Path, folder: Path, ems: Ems) -> None:
    for number in range(40):
        (folder / f"{number}.bin").write_bytes(os.urandom(500_000))
    command = [sys.executable, "-m", "ems", "data", "push", str(folder), "big", "--on", "far"]
    part = dataset.arrival(far.root, dataset.digest(folder))

    def has_begun() -> bool:
        with suppress(FileNotFoundError):  # it is not there yet, or has got its name
            return any(name.endswith(".bin") for name in os.listdir(part))
        return False

    with subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not has_begun():
            time.sleep(0.002)
        far.drop()
        process.wait(120)
    assert dataset.names(far.root) == {} or process.returncode == 0
    ems("data", "push", str(folder), "big", "--on", "far")
    assert content(stored(far.root, "big")) == content(folder)
    assert [path.name for path in (far.root / "data").iterdir() if path.name.startswith(".")] == []


def test_what_came_is_checked(tmp_path: Path, folder: Path) -> None:
    wanted = dataset.digest(folder)
    dataset.copy(folder, dataset.arrival(tmp_path, wanted))
    (dataset.arrival(tmp_path, wanted) / "a.txt").write_text("other")
    with pytest.raises(TargetError, match="not what was sent"):
        dataset.settle(tmp_path, wanted, "numbers")
    assert dataset.names(tmp_path) == {}
    dataset.copy(folder, dataset.arrival(tmp_path, wanted))
    dataset.settle(tmp_path, wanted, "numbers")
    assert not os.access(stored(tmp_path, "numbers") / "a.txt", os.W_OK) or os.geteuid() == 0
    assert (stored(tmp_path, "numbers") / "a.txt").stat().st_mode & 0o222 == 0


def test_two_who_take_in_the_same_content_do_not_hinder_each_other(tmp_path: Path, folder: Path) -> None:
    """As when the connection broke, and the question is asked again while the first one is being answered."""
    content = dataset.digest(folder)
    dataset.copy(folder, dataset.arrival(tmp_path, content))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: dataset.settle(tmp_path, content, name), "abcd"))
    assert dataset.names(tmp_path) == dict.fromkeys("abcd", content)
    with pytest.raises(UsageError, match="cannot be the name"):
        dataset.settle(tmp_path, content, "../x")


def test_a_copy_that_was_broken_off_is_gone_on_from(tmp_path: Path, folder: Path) -> None:
    into = tmp_path / "copy"
    (folder / "a.txt").chmod(0o444)
    dataset.copy(folder, into)
    kept = (into / "a.txt").stat().st_ino
    (into / "sub" / "-x\n.bin").write_bytes(b"torn")
    (into / "left over").touch()
    dataset._protect(into)
    dataset.copy(folder, into)
    assert content(into) == content(folder)
    assert (into / "a.txt").stat().st_ino == kept


def test_a_file_that_may_change_again_within_the_tick_is_read_again(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "_RACY_NS", 3600 * 10**9)  # however slow the machine is
    cache = tmp_path / "cache.json"
    dataset.digest(folder, cache)
    read: list[int] = []
    dataset.digest(folder, cache, read.append)
    assert read
    facts = (folder / "a.txt").stat()
    (folder / "a.txt").write_text("uno")
    os.utime(folder / "a.txt", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert dataset.digest(folder, cache) == dataset.digest(folder)


def test_the_hash_tells_names_contents_and_programs(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tick: Callable[[], None]
) -> None:
    monkeypatch.setattr(dataset, "_RACY_NS", 0)
    cache = tmp_path / "cache.json"
    tick()
    seen = {dataset.digest(folder, cache)}
    read: list[int] = []
    assert dataset.digest(folder, cache, read.append) in seen
    assert read == []
    for change in (
        lambda: (folder / "a.txt").write_text("uno"),
        (folder / "sub" / "linked").unlink,
        lambda: (folder / "a.txt").rename(folder / "b.txt"),
        lambda: (folder / "b.txt").chmod(0o755),
    ):
        tick()
        change()
        tick()
        found = dataset.digest(folder, cache)
        assert found == dataset.digest(folder)
        assert found not in seen
        seen.add(found)


def test_what_cannot_be_sent_is_named(project: Path, folder: Path, ems: Ems) -> None:
    (folder / "sub" / "loop").symlink_to(folder)
    with pytest.raises(UsageError, match="a link to a folder that it lies in"):
        dataset.digest(folder)
    (folder / "sub" / "loop").unlink()
    os.mkfifo(folder / "pipe")
    assert "neither a file nor a folder" in ems("data", "push", str(folder), "x", "--on", "here", code=2).stderr
    for name in ("../x", "a/b", "a b", "", "x$(touch pwned)"):
        assert "cannot be the name" in ems("data", "push", str(folder), name, "--on", "here", code=2).stderr
    assert "is not a folder" in ems("data", "push", "nowhere", "x", "--on", "here", code=2).stderr


def test_a_run_says_that_its_data_set_is_gone(project: Path, folder: Path, ems: Ems) -> None:
    (project / "show.py").write_text(SHOW)
    ems("data", "push", str(folder), "numbers", "--on", "here")
    exp_id = json.loads(ems("run", "show.py", "--on", "here", "--json").stdout)["experiment"]
    wait_for(project / ".ems", exp_id)
    subprocess.run(["rm", "-rf", str(stored(project / ".ems", "numbers"))], check=True)
    ems("rerun", exp_id, "--all")
    wait_for(project / ".ems", exp_id, attempt=2)
    record = json.loads((project / ".ems/experiments" / exp_id / "runs/0/attempts/2.json").read_text())
    assert record["reason"].startswith("the data set numbers is no longer in ")
