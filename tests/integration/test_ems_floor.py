"""The script that has SLURM and emsd leave the nodes alone that stay."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "templates/roles/elastic/files/ems-floor"
CONF = ["ClusterName=c", "NodeName=c-gpu-[001-008] State=CLOUD", "NodeSet=gpu Feature=gpu"]


@pytest.fixture
def floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with files and an scontrol of its own."""
    loader = SourceFileLoader("ems_floor", str(SCRIPT))
    spec = spec_from_loader("ems_floor", loader)
    assert spec is not None
    module = module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    monkeypatch.setattr(module, "FLOOR", str(tmp_path / "floor"))
    monkeypatch.setattr(module, "CONF", str(tmp_path / "slurm.conf"))
    (tmp_path / "slurm.conf").write_text("\n".join(CONF) + "\n")
    (tmp_path / "floor").write_text("")
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$*" >>"${0%/*}/asked"\n[ ! -e "${0%/*}/away" ]\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return module


@pytest.fixture
def keep(floor: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Have nodes stay; returns how often SLURM was told of any until now."""

    def run(*names: str) -> int:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{name}\n" for name in names)))
        floor.main()
        asked = tmp_path / "asked"
        return len(asked.read_text().splitlines()) if asked.exists() else 0

    return run


def test_slurm_is_told_of_what_changed_alone(keep: Callable[..., int], tmp_path: Path) -> None:
    assert keep("c-gpu-001", "c-gpu-002") == 1
    assert (tmp_path / "slurm.conf").read_text().splitlines() == [
        *CONF[:2],
        "SuspendExcNodes=c-gpu-001,c-gpu-002",
        *CONF[2:],
    ]
    assert (tmp_path / "floor").read_text() == "c-gpu-001\nc-gpu-002\n"
    assert keep("c-gpu-001", "c-gpu-002") == 1
    assert keep() == 2
    assert (tmp_path / "slurm.conf").read_text().splitlines() == CONF
    assert (tmp_path / "floor").read_text() == ""


def test_a_slurm_that_did_not_hear_is_told_again(keep: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "away").touch()
    with pytest.raises(subprocess.CalledProcessError):
        keep("c-gpu-001")
    (tmp_path / "away").unlink()
    assert keep("c-gpu-001") == 2
    assert (tmp_path / "floor").read_text() == "c-gpu-001\n"
