"""A killed ``ems cluster start``, given again, has exactly the wanted nodes: killed at each line of its journal."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_KILLER = Path(__file__).parent / "journal_killer"
_WANTED = ["controller", "gpu-001"]
_MOST_LINES = 30


@pytest.fixture
def desk(desks: ModuleType, tmp_path: Path) -> Iterator[Any]:
    made = desks.Desk(tmp_path)
    yield made
    made.clear()
    assert made.resources() == []


@pytest.mark.parametrize(("when", "least"), [("before", 4), ("after", 3), ("amid", 2)])
def test_killed_at_each_line(desk: Any, when: str, least: int) -> None:
    """Each start goes on from the one before, which was killed a line earlier, until one has nothing more to do."""
    killed, line, code = 0, 1, -1
    while code and line < _MOST_LINES:
        env = {"PYTHONPATH": str(_KILLER), "EMS_TEST_JOURNAL_KILL": json.dumps({"line": line, "when": when})}
        code = desk.cluster("start", "--no-setup", "--yes", code=None, **env).returncode
        assert code in {0, -signal.SIGKILL, -signal.SIGALRM}
        killed, line = killed + (code != 0), line + 1
        there = [each for each in desk.resources() if each.thing != "image"]
        assert len({each.labels["ems-id"] for each in there}) <= 1, "a second cluster of the name was begun"
        assert len({each.name for each in there}) == len(there), "something is there twice"
        assert set(desk.machines()) <= set(_WANTED)
    assert killed >= least, "there were fewer lines than a start has"
    desk.cluster("start", "--no-setup", "--yes")
    assert desk.machines() == _WANTED
    assert {each.state for each in desk.resources() if each.thing == "machine"} == {"running"}
    desk.cluster("stop", "--yes")
    assert [each for each in desk.resources() if each.thing != "image"] == []
    assert not desk.state.exists()


def test_killed_stop_is_continued(desk: Any) -> None:
    desk.cluster("start", "--no-setup", "--yes")
    env = {"PYTHONPATH": str(_KILLER), "EMS_TEST_JOURNAL_KILL": json.dumps({"line": 1, "when": "amid"})}
    assert desk.cluster("stop", "--yes", code=None, **env).returncode < 0
    assert "half deleted" in desk.cluster("start", "--yes", code=1).stderr
    desk.cluster("stop", "--yes")
    assert [each for each in desk.resources() if each.thing != "image"] == []
    assert not desk.state.exists()


def test_two_starts_at_once_make_one_cluster(desk: Any) -> None:
    import threading

    codes = []

    def start() -> None:
        codes.append(desk.cluster("start", "--no-setup", "--yes", code=None).returncode)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(codes) in ([0, 0], [0, 1])  # the second waits for nothing: it says who is at it, or comes after
    assert desk.machines() == _WANTED


def test_another_laptop_does_not_double_a_cluster(desk: Any, desks: ModuleType, tmp_path: Path) -> None:
    desk.cluster("start", "--no-setup", "--yes")
    other = desks.Desk(tmp_path / "other", desk.name)
    said = other.cluster("start", "--yes", code=1).stderr
    assert "does not know" in said
    assert f"ems cluster status {desk.name} --adopt" in said
    assert desk.machines() == _WANTED
    other.cluster("stop", "--yes")  # by labels alone
    assert [each for each in desk.resources() if each.thing != "image"] == []


def test_machines_end_with_the_process_that_tests_them(desk: Any) -> None:
    desk.cluster("start", "--no-setup", "--yes")
    desk.guard.process.stdin.close()  # as the kernel does when that process is killed
    assert desk.guard.process.wait(300) == 0
    assert desk.resources() == []
