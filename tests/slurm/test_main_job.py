"""The main job on a real SLURM with GPUs: a real classifier on real data, equal to the same sweep on `here`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_digits_sweep_gives_on_slurm_what_it_gives_here(lab):
    source = (EXAMPLES / "digits" / "train.py").read_text()
    lab.write(
        "train.py",
        source.replace("EPOCHS = 20", "EPOCHS = 3")
        .replace("[0.0001, 0.001, 0.01, 0.1]", "[0.001, 0.1]")
        .replace("range(3)", "range(2)"),
    )

    said = lab.ems(
        "parrun", "train.py", "--on", "slurm", "--gres", "gpu:1", "--mem", "1G", "--python", sys.executable, "--wait"
    )
    on_slurm = rows_of_last(lab)
    lab.ems("parrun", "train.py", "--on", "here", "--again", "--python", sys.executable, "--wait")
    here = rows_of_last(lab)

    assert "on slurm" in said.stdout
    assert "submitted array job" in said.stdout
    assert [(row["lr"], row["seed"]) for row in on_slurm] == [(lr, seed) for lr in (0.001, 0.1) for seed in range(2)]
    assert {row["state"] for row in on_slurm} == {"COMPLETED"}
    assert metrics(on_slurm) == metrics(here)


def rows_of_last(lab):
    rows = json.loads(lab.ems("report", "last", "--format", "json").stdout)
    return sorted(rows, key=lambda row: row["run"])


def metrics(rows):
    return [{name: row[name] for name in ("acc", "loss")} for row in rows]


def test_the_learning_rate_example_is_swept_with_its_axis_from_numpy(lab):
    shutil.copy(EXAMPLES / "mlp_learning_rate" / "train.py", lab.project / "train.py")
    lab.write(
        "train.py",
        (lab.project / "train.py")
        .read_text()
        .replace("-8, 40)", "-8, 5)")
        .replace("=1000,\n        ran", "=50,\n        ran"),
    )
    lab.ems("parrun", "train.py", "--on", "slurm", "--mem", "1G", "--python", sys.executable, "--wait")
    rows = rows_of_last(lab)
    assert [round(row["learning_rate"], 12) for row in rows] == [
        1e5,
        round(10**1.75, 12),
        round(10**-1.5, 12),
        round(10**-4.75, 12),
        1e-8,
    ]
    assert all(0.4 < row["test_accuracy"] <= 1 for row in rows)
