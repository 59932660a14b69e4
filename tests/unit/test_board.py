"""The live lines of a cluster's start."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ems.cli import board


def test_the_clock_of_what_is_done_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(board.time, "monotonic", lambda: now[0])
    lines = board.Board()
    lines.is_terminal = True
    lines.report("network", "being made")
    now[0] += 2
    lines.report("network", "there")
    lines.report("node", "boots")
    now[0] += 30
    shown = Console(file=io.StringIO(), width=80)
    shown.print(lines.draw())
    text = shown.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above
    assert [line.split()[:2] for line in text.splitlines()] == [["network", "2"], ["node", "30"], ["32", "s"]]
