"""What goes on side by side, shown live: a line for each machine and each part of the work, with its time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ems.cli import render

if TYPE_CHECKING:
    from rich.table import Table


_AT_REST = frozenset({"there", "set up", "idle", "passed", "gone", "answers"})  # the clock of such a line stands still


class Board:
    """Lines on stderr: subject, time, what is done now. On a terminal redrawn in place, else printed as they change."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lines: dict[str, tuple[str, float, float]] = {}  # text, since when it is so, when the subject began
        self._lock = threading.Lock()
        self.is_terminal = sys.stderr.isatty()

    def report(self, subject: str, text: str) -> None:
        """Say what is done of a subject now; safe from any thread."""
        now = time.monotonic()
        with self._lock:
            before = self._lines.get(subject)
            if before is not None and before[0] == text:
                return
            self._lines[subject] = (text, now, before[2] if before else now)
            if not self.is_terminal:
                render.note(f"{now - self._began:6.1f} s  {subject}: {text}")

    def draw(self) -> Table:
        """Return all lines."""
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_column(justify="left", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(justify="left", no_wrap=True, overflow="ellipsis")
        now = time.monotonic()
        with self._lock:
            for subject, (text, since, began) in self._lines.items():
                took = (since if text in _AT_REST else now) - began
                table.add_row(render.clean(subject), f"{took:.0f} s", render.clean(text))
        table.add_row("", f"{now - self._began:.0f} s", "in all")
        return table


@contextmanager
def board() -> Iterator[Callable[[str, str], None]]:
    """Give a function that says what is done of a subject now; what it showed goes away at the end."""
    shown = Board()
    if not shown.is_terminal:
        yield shown.report
        return
    from rich.live import Live

    with Live(console=render.err(), get_renderable=shown.draw, refresh_per_second=4, transient=True):
        yield shown.report
