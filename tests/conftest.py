"""Fixtures for every test: a clean environment and a project to work in."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest

# No verdict depends on how busy the machine is; where one decides on a change, none depends on the draw of examples
hypothesis.settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="EMS_REQUIRE" in os.environ,
)
hypothesis.settings.load_profile("patient")

# What is started with the signal ignored, as by `make test &`, passes that on; tests send it to what they start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before numpy is loaded, here and in what tests start: several processes share the cores already.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests, begin with the long ones; of one turn, as pytest-randomly shuffled."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _load("schedule").turn(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep together what shares machines; the ways of ``--dist`` know no groups by folder."""
    return _load("schedule").Schedule(config, log)


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this session see (pytest-xdist gives each worker a folder in one of them all)."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(request.config, "workerinput") else own


@pytest.fixture(autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the developer's own configuration or of a surrounding job reaches a test."""
    for name in list(os.environ):
        if name.startswith(("EMS_", "SLURM_JOB", "SLURM_ARRAY", "GIT_")) and name != "EMS_REQUIRE":
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("EMS_SLOTS", str(home / "slots"))  # tests beside each other do not wait for each other's cores
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / ".local" / "state"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """An empty git project, and the working directory of the test."""
    folder = tmp_path / "project"
    folder.mkdir()
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run([*git, "init", "-q"], cwd=folder, check=True)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture
def ems(project: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``ems ARGS…`` in the project as a user would; ``code=None`` accepts any exit status."""

    def run(*args: str, code: int | None = 0, timeout: float = 600, **env: str) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-m", "ems", *args],
            cwd=project,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert code is None or result.returncode == code, (
            f"ems {args}: {result.returncode}\n{result.stdout}{result.stderr}"
        )
        assert "Traceback (most recent call last)" not in result.stderr, result.stderr
        return result

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Make a file system that is soon full: ``small_disk("600k")`` returns its folder. Only root can mount one."""
    if os.geteuid() != 0:
        assert os.environ.get("EMS_REQUIRE") is None, "only root can mount a small disk"
        pytest.skip("only root can mount a small disk")
    made: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / "small"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "ems-test", str(folder)], check=True)
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def make_far(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Make the target ``far``, a machine over SSH; see :class:`Far` in sshd.py."""
    sshd = _load("sshd")
    if reason := sshd.why_not():
        assert os.environ.get("EMS_REQUIRE") is None, reason
        pytest.skip(reason)
    made: list[Any] = []

    def make(**facts: Any) -> Any:
        made.append(sshd.Far(tmp_path / "far", **facts))
        return made[-1]

    yield make
    for far in made:
        far.end()


@pytest.fixture
def far(make_far: Callable[..., Any]) -> Any:
    """A target ``far`` over SSH, not the current one: ``ems parrun train.py --on far``."""
    return make_far()


def _load(name: str) -> ModuleType:
    """Import a module beside this one (tests are no package, see --import-mode=importlib)."""
    full = f"ems_tests_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]
