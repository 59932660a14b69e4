"""The files that a run has written, while it goes on writing and removing them."""

from __future__ import annotations

import os
from pathlib import Path

from ems import outputs
from ems.node import records


def test_what_a_run_removes_meanwhile_is_passed_over(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "c.csv", "project.py"):
        (tmp_path / name).write_text("x\n")
    os.utime(tmp_path / "project.py", (records.UNTOUCHED_AT, records.UNTOUCHED_AT))
    found = outputs.walk(tmp_path)
    first = next(found)  # the folder has been listed now
    gone = next(name for name in ("a.csv", "b.csv") if name != first)
    (tmp_path / gone).unlink()
    (tmp_path / "project.py").unlink()
    assert {first, *found} == {"a.csv", "b.csv", "c.csv"} - {gone}
