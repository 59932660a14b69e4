"""Fixtures of the slurm tests: one real cluster for the session, a fresh project for each test."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_HERE = Path(__file__).parent


def _load(name: str) -> ModuleType:
    """Import a module of this folder (tests are no package, see --import-mode=importlib)."""
    full = f"ems_slurm_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, _HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder, so that ``-m "not slurm"`` leaves it out."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker("slurm")


@pytest.fixture(scope="session")
def testbed() -> ModuleType:
    """The module testbed.py; skips, or fails under EMS_REQUIRE=slurm, where no SLURM can be started."""
    module = _load("testbed")
    if reason := module.why_not():
        if "slurm" in os.environ.get("EMS_REQUIRE", "").replace(",", " ").split():
            pytest.fail(f"EMS_REQUIRE=slurm, but there is no SLURM: {reason}")
        pytest.skip(f"no SLURM: {reason}")
    return module


@pytest.fixture(scope="session")
def _cluster(testbed: ModuleType) -> Iterator[Any]:
    with testbed.Cluster(enforce_memory=testbed.can_enforce_memory()) as cluster:
        yield cluster


@pytest.fixture
def slurm(_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The session's cluster (testbed.Cluster: two nodes of 8 CPUs and 4 fake GPUs), whole again after each test."""
    for name, value in _cluster.environment().items():
        monkeypatch.setenv(name, value)
    yield _cluster
    _cluster.heal()
