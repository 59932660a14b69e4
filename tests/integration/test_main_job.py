"""The main job on `here`: a real training script on real data, from the command line to the table."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Ems = Callable[..., subprocess.CompletedProcess[str]]
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def digits(project: Path) -> Path:
    """The digits example as a user's own project, with fewer epochs."""
    script = project / "train.py"
    shutil.copy(EXAMPLES / "digits" / "train.py", script)
    script.write_text(
        script.read_text().replace("EPOCHS = 20", "EPOCHS = 3").replace("[0.0001, 0.001, 0.01, 0.1]", "[0.001, 0.1]")
    )
    return script


def last_values(text: str, metric: str, per_run: int) -> list[float]:
    """Return the last value of ``metric`` of each block of ``per_run`` printed lines."""
    values = [float(value) for value in re.findall(rf"{metric}=(\S+)", text)]
    return values[per_run - 1 :: per_run]


def test_a_swept_script_gives_the_table_that_its_own_loops_print(digits: Path, ems: Ems) -> None:
    plain = subprocess.run([sys.executable, str(digits)], capture_output=True, text=True, check=True).stdout
    accuracies = last_values(plain, "acc", per_run=3)

    said = ems("parrun", "train.py", "--wait", "--python", sys.executable)
    ems("harvest")
    rows = json.loads(ems("report", "--format", "json").stdout)

    assert "6 runs = lr (2) x seed (3)" in said.stdout
    assert [(row["lr"], row["seed"]) for row in sorted(rows, key=lambda row: row["run"])] == [
        (lr, seed) for lr in (0.001, 0.1) for seed in range(3)
    ]
    assert [row["acc"] for row in sorted(rows, key=lambda row: row["run"])] == accuracies
    groups = json.loads(ems("report", "--by", "lr", "--metric", "acc", "--format", "json").stdout)
    assert [group["n"] for group in groups] == [3, 3]
    by_lr = {group["lr"]: group["acc"] for group in groups}
    assert by_lr[0.1] == pytest.approx(statistics.mean(accuracies[3:]))


def test_what_completed_before_is_not_run_again(project: Path, ems: Ems) -> None:
    (project / "helper.py").write_text("def double(x):\n    return x + x\n")
    (project / "train.py").write_text("import sys, helper\nprint('y:', helper.double(int(sys.argv[2])))\n")
    sweep = ("parrun", "train.py", "--python", sys.executable, "--set")
    ems(*sweep, "x=0..3", "--wait")

    assert "all 4 runs completed before" in ems(*sweep, "x=0..3", "--wait").stdout
    assert "2 runs" in ems(*sweep, "x=2..5", "--dry-run").stdout
    assert "4 runs" in ems(*sweep, "x=0..3", "--again", "--dry-run").stdout
    assert "4 runs" in ems(*sweep, "x=0..3", "--seed", "1", "--dry-run").stdout  # another EMS_SEED, another result
    (project / "notes.md").write_text("prose is no code")
    assert "all 4 runs completed before" in ems(*sweep, "x=0..3", "--dry-run").stdout
    (project / "config.yaml").write_text("width: 64")
    assert "4 runs" in ems(*sweep, "x=0..3", "--dry-run").stdout
    (project / "config.yaml").unlink()
    (project / "helper.py").write_text("def double(x):\n    return 2 * x\n")
    assert "4 runs" in ems(*sweep, "x=0..3", "--dry-run").stdout
    assert len(json.loads(ems("list", "--json").stdout)) == 1


def test_relative_paths_work_as_they_do_without_ems(project: Path, ems: Ems) -> None:
    (project / "configs").mkdir()
    (project / "configs" / "base.txt").write_text("41")
    (project / "sub").mkdir()
    (project / "sub" / "helper.py").write_text("def more(n):\n    return n + 1\n")
    (project / "sub" / "train.py").write_text(
        "import sys, helper\n"
        "n = helper.more(int(open('configs/base.txt').read()))\n"
        "open('result.txt', 'w').write(f'{n} {sys.argv[1:]}')\n"
        "open('configs/written.txt', 'w').write('beside a file of the project')\n"
        "print(f'n: {n}')\n"
    )
    ems("parrun", "sub/train.py", "--set", "x=1,2", "--wait", "--python", sys.executable)

    assert ems("cat", "last/1/result.txt").stdout == "42 ['--x', '2']"
    assert ems("cat", "last/0/configs/written.txt").stdout == "beside a file of the project"
    assert sorted(path.name for path in project.rglob("*.txt") if ".ems" not in path.parts) == ["base.txt"]
    assert [row["n"] for row in json.loads(ems("report", "--format", "json").stdout)] == [42, 42]


def test_failures_are_grouped_and_rerun_as_the_next_attempt(project: Path, ems: Ems) -> None:
    (project / "train.py").write_text(
        "import os, sys\n"
        "x = int(sys.argv[2])\n"
        "if x % 2 and os.environ['EMS_ATTEMPT'] == '1':\n"
        "    raise ValueError(f'odd {x}')\n"
        "print(f'y: {x * 10}')\n"
    )
    failed = ems("parrun", "train.py", "--set", "x=0..5", "--wait", "--python", sys.executable, code=1)
    assert "3 failed" in failed.stdout + failed.stderr
    assert "ValueError" in failed.stdout + failed.stderr

    ems("rerun", "last", "--failed", "--wait")

    rows = json.loads(ems("report", "--format", "json").stdout)
    assert sorted(row["y"] for row in rows) == [0, 10, 20, 30, 40, 50]
    shown = json.loads(ems("show", "last/1", "--json").stdout)
    assert [attempt["state"] for attempt in shown["attempts"]] == ["FAILED", "COMPLETED"]


def test_a_run_is_reproduced_and_compared(project: Path, ems: Ems) -> None:
    (project / "train.py").write_text(
        "import os, random\nrandom.seed(int(os.environ['EMS_SEED']))\nprint('y:', random.random())\n"
    )
    ems("parrun", "train.py", "--set", "x=1,2", "--wait", "--python", sys.executable)
    same = ems("reproduce", "last/1")
    assert "equal" in same.stdout + same.stderr

    (project / "train.py").write_text("import time\nprint('y:', time.time())\n")
    ems("parrun", "train.py", "--set", "x=1", "--wait", "--python", sys.executable)
    other = ems("reproduce", "last/0", code=1)
    assert "y" in other.stdout
    assert "equal" not in other.stdout.replace("not equal", "")
