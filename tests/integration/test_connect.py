"""``ems cluster connect``: a real sshd, a real virtual environment there, and pip with and without an index."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ems import registry

Ems = Callable[..., subprocess.CompletedProcess[str]]


def options(far: Any) -> list[str]:
    """Return what a user would have in ~/.ssh/config (ssh reads that of the real home, whatever HOME says)."""
    host = far.host()
    said = {
        "Port": host.port,
        "IdentityFile": host.identity,
        "UserKnownHostsFile": host.known_hosts,
        "HostKeyAlias": host.host_key_alias,
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
    }
    return [f"--ssh-option={key}={value}" for key, value in said.items()]


def set_there(far: Any, **environment: str) -> None:
    """Have sessions there begin with more environment."""
    far.stop()
    far.environment = environment
    far.start()


@pytest.fixture
def connect(far: Any, ems: Ems) -> Callable[..., Any]:
    """``ems cluster connect uni … --json``."""

    def run(*args: str, **more: Any) -> Any:
        done = ems("cluster", "connect", "uni", far.host().destination, *options(far), "--json", *args, **more)
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr

    yield run
    if found := registry.load("uni"):
        found.host.close()


def test_a_machine_over_ssh_becomes_the_current_target(connect: Any, far: Any, ems: Ems, project: Path) -> None:
    said = connect("--root", "$HOME/deep er/ems")
    root = far.folder / "home" / "deep er" / "ems"
    assert (said["root"], said["executor"]) == (str(root), "here")
    assert [check["name"] for check in said["checks"] if not check["ok"]] == []
    assert registry.current() == "uni"
    target = registry.get("uni")
    assert target.ems == (f"{root}/venv/bin/python", "-m", "ems")
    assert not (root / ".wheels").exists()
    version = target.host.run([*target.ems, "--version"]).stdout.decode()
    assert version == ems("--version").stdout
    (project / "train.py").write_text("import ems\nfor lr in (1, 2):\n    ems.log(lr=lr)\n")
    ems("parrun", "train.py", "--wait")
    assert "uni" in ems("list").stdout
    before = (root / "venv").stat().st_ino
    assert connect("--root", str(root))["root"] == str(root)
    assert (root / "venv").stat().st_ino == before, "what is whole stays"
