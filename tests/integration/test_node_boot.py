"""A compute node's first script, whose share and whose systemd are files here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parents[2] / "templates/roles/slurm_compute/files/ems-node-boot"


@pytest.mark.parametrize("is_elastic", [False, True])
def test_an_elastic_node_that_never_comes_is_switched_off(tmp_path: Path, is_elastic: bool) -> None:
    script, told, share = tmp_path / "boot", tmp_path / "told", tmp_path / "opt"
    text = _SCRIPT.read_text().replace("/etc/ems/", f"{tmp_path}/").replace("/opt/ems/", f"{share}/")
    script.write_text(text)
    node = {
        "name": "demo-cpu-001",
        "slurmd": "" if is_elastic else "Feature=cpu",
        "incarnation": "a1",
        "share": "volume",
    }
    (tmp_path / "node.json").write_text(json.dumps(node))
    final = share / "templates/roles/slurm_compute/files/ems-node"
    for path, words in ((tmp_path / "bin/systemd-run", f'printf "%s " "$@" >{told}; exit 1'), (final, "echo booted")):
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{words}\n")
        path.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    with subprocess.Popen([sys.executable, script], env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 120
            while is_elastic and not told.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            assert process.poll() is None, "it waits for the share"
            (share / "etc").mkdir()
            (share / "etc/ready").write_text("a1\n")
            assert process.communicate(timeout=120)[0] == "booted\n", "no matter whether there was a timer already"
        finally:
            process.kill()
    said = told.read_text() if told.exists() else ""
    assert said == ("--unit=ems-node-late --on-active=1h systemctl poweroff --force " if is_elastic else "")
