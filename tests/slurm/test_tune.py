"""An example of `ems tune` as it is written down, on a real SLURM with GPUs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "mlp_learning_rate" / "tune.py"


def test_the_learning_rate_is_searched_on_gpus(lab):
    shutil.copy(EXAMPLE, lab.project / "tune.py")
    words = ("tune", "tune.py", "--set", "learning_rate=loguniform(1e-5,1e5)", "--metric", "accuracy", "--trials", "4")
    words += ("--parallel", "2", "--gres", "gpu:1", "--on", "slurm", "--python", sys.executable)
    planned = lab.ems(*words, "--time", "10", "--dry-run").stdout
    assert "one trial: 1 GPU, 1 core, at most 10" in planned
    assert "#SBATCH --gres=gpu:1" in planned
    assert lab.slurm.queue() == []
    said = lab.ems(*words, "--wait", timeout=400)
    assert "2 trials started in " in said.stdout
    assert "you may close the laptop" in said.stdout
    shown = json.loads(lab.ems("tune", "status", "--json").stdout)
    assert (shown["state"], shown["trials"]) == ("FINISHED", {"ok": 4})
    assert 0.4 < shown["best"][0]["mean"] < 1
    lab.slurm.wait_for_empty_queue()
