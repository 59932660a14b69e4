"""``ems cluster connect`` to the login node of a real SLURM, from another machine as far as ssh can tell."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ems import registry

SCRIPT = """
import os

import ems

for lr in (0.1, 0.2, 0.4):
    gpus = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    ems.log(loss=1 - lr, job=int(os.environ["SLURM_ARRAY_TASK_ID"]), gpus=len(gpus))
"""


def test_a_slurm_cluster_over_ssh_is_asked_what_it_has_and_takes_a_sweep(
    slurm: Any,
    make_far: Callable[..., Any],
    ems: Callable[..., subprocess.CompletedProcess[str]],
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    login = make_far(environment={"SLURM_CONF": slurm.environment({})["SLURM_CONF"], "PIP_NO_COMPILE": "1"})
    monkeypatch.delenv("SLURM_CONF")  # this machine knows nothing of it
    host = login.host()
    options = [f"Port={host.port}", f"IdentityFile={host.identity}", f"UserKnownHostsFile={host.known_hosts}"]
    options += [f"HostKeyAlias={host.host_key_alias}", "BatchMode=yes"]
    words = [f"--ssh-option={each}" for each in options]
    said = json.loads(ems("cluster", "connect", "uni", host.destination, *words, "--json", timeout=500).stdout)
    try:
        assert said["executor"] == "slurm"
        assert said["version"] == slurm.run("sinfo", "--version").split()[-1]
        assert [check for check in said["checks"] if not check["ok"]] == []
        found = {each["name"]: each for each in said["partitions"]}
        assert set(found) == {"main", "urgent"}
        main = found["main"]
        assert (main["is_default"], main["is_up"], main["nodes"], main["cpus"]) == (True, True, 2, 8)
        assert (main["mem_mb"], main["gres"], main["time"]) == (slurm.memory_mb, ["gpu:4"], "infinite")
        target = registry.get("uni")
        assert target.resources == {"partition": "main"}
        assert target.facts["limits"] == {"max_array_size": 1001, "max_submit": None}

        (project / "train.py").write_text(SCRIPT)
        asked = json.loads(ems("config", "--json").stdout)["resources.partition"]
        assert (asked["value"], "uni" in asked["origin"]) == ("main", True)
        ems("parrun", "train.py", "--gres", "gpu:1", "--wait", timeout=400)
        with closing(sqlite3.connect(project / ".ems" / "ems.db")) as store:
            states = store.execute("SELECT DISTINCT state FROM runs").fetchall()
            points = store.execute("SELECT metric, max(value) FROM curves GROUP BY metric ORDER BY metric").fetchall()
        assert states == [("COMPLETED",)]
        assert points == [("gpus", 1.0), ("job", 2.0), ("loss", 0.9)]
    finally:
        host = registry.get("uni").host
        host.close()
