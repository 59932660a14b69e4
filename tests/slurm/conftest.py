"""Fixtures of the slurm tests: one real cluster for the session, a fresh project for each test."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any

import pytest

_HERE = Path(__file__).parent
_LIMIT_S = 1200  # of a test; most take seconds where nothing else runs


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
    """Mark everything in this folder, so that ``-m "not slurm"`` leaves it out; give it time on a busy machine."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker("slurm")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(_LIMIT_S))


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
def elastic() -> ModuleType:
    """The module elastic.py."""
    return _load("elastic")


@pytest.fixture(scope="session")
def cloud() -> ModuleType:
    """The module cloud.py."""
    return _load("cloud")


@pytest.fixture(scope="session")
def desks() -> ModuleType:
    """The module desk.py; skips, or fails under EMS_REQUIRE=slurm, where no containers can be made."""
    if shutil.which("podman") is None and shutil.which("docker") is None:
        if "slurm" in os.environ.get("EMS_REQUIRE", "").replace(",", " ").split():
            pytest.fail("EMS_REQUIRE=slurm, but there is neither docker nor podman")
        pytest.skip("there is neither docker nor podman")
    return _load("desk")


@pytest.fixture(scope="session")
def baked(desks: ModuleType, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Images of a controller and a node, which every cluster of the same definition starts from.

    They are baked by the first process of the session that needs them, and deleted by the last.
    """
    note = shared / "baked"  # the name of the cluster that they belong to
    baker = None
    with (shared / "baked.use").open("w") as use:
        with _alone(shared):
            fcntl.flock(use, fcntl.LOCK_SH)
            if not note.exists():
                baker = desks.Desk(tmp_path_factory.mktemp("baker"))
                _bake(baker, note)
        yield
        with _alone(shared):
            if baker is not None:
                baker.hand_over()
            try:
                fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process still starts from them
                return
            desks.Desk(tmp_path_factory.mktemp("sweeper"), note.read_text()).clear()
            note.unlink()


@contextmanager
def _alone(shared: Path) -> Iterator[None]:
    with (shared / "baked.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _bake(desk: Any, note: Path) -> None:
    try:
        desk.cluster("bake", timeout=1200)
        note.write_text(desk.name)
    except BaseException:
        desk.clear()
        raise


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


class Lab:
    """A project whose experiments go to the cluster: ``ems`` as a user types it, the store as SQLite has it."""

    def __init__(
        self, project: Path, ems: Callable[..., CompletedProcess[str]], slurm: Any, testbed: ModuleType
    ) -> None:
        self.project, self.ems, self.slurm = project, ems, slurm
        self.wait_until = testbed.wait_until

    def write(self, name: str, source: str) -> None:
        """Write a script."""
        (self.project / name).write_text(source)

    def parrun(self, *args: str, **options: Any) -> str:
        """``ems parrun ARGS… --on slurm``; returns the id of the experiment."""
        words = ("parrun", *args, "--on", "slurm", "--python", sys.executable, "--json")
        return str(json.loads(self.ems(*words, **options).stdout)["experiment"])

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask the store, read-only."""
        with closing(sqlite3.connect(f"file:{self.project}/.ems/ems.db?mode=ro", uri=True)) as db:
            return db.execute(sql, parameters).fetchall()

    def states(self, experiment: str) -> dict[int, str]:
        """State of each run, as the store has it."""
        return dict(self.query("SELECT idx, state FROM runs WHERE experiment_id = ? ORDER BY idx", experiment))

    def attempts(self, experiment: str) -> dict[int, list[dict[str, Any]]]:
        """Attempts of each run, oldest first, as the store has them."""
        columns = (
            "attempt",
            "state",
            "job",
            "host",
            "gpus",
            "started_at",
            "ended_at",
            "reason",
            "slurm_state",
            "signal",
        )
        sql = (
            f"SELECT r.idx, {', '.join(f'a.{name}' for name in columns)} FROM attempts a JOIN runs r ON r.id = a.run_id"
            " WHERE r.experiment_id = ? ORDER BY r.idx, a.attempt"
        )
        found = defaultdict(list)
        for index, *values in self.query(sql, experiment):
            found[index].append(dict(zip(columns, values, strict=True)))
        return dict(found)

    def metrics(self, experiment: str) -> dict[int, dict[str, Any]]:
        """Last value (or text) of each metric of each run, as the store has them."""
        sql = (
            "SELECT r.idx, m.name, coalesce(s.last, s.last_text) FROM summaries s"
            " JOIN runs r ON r.id = s.run_id JOIN metrics m ON m.id = s.metric_id WHERE r.experiment_id = ?"
        )
        found: dict[int, dict[str, Any]] = defaultdict(dict)
        for index, name, value in self.query(sql, experiment):
            found[index][name] = value
        return dict(found)

    def harvest(self) -> CompletedProcess[str]:
        """``ems harvest``."""
        return self.ems("harvest")

    def run_dir(self, experiment: str, index: int) -> Path:
        """Directory of a run."""
        return self.project / ".ems" / "experiments" / experiment / "runs" / str(index)

    def wait_for_start(self, experiment: str, *indices: int, limit_s: float = 300) -> None:
        """Wait until the runs have printed something."""
        logs = [self.run_dir(experiment, index) / "stdout.log" for index in indices]

        def started() -> bool:
            return all(log.exists() and log.stat().st_size for log in logs)

        with self._explained(experiment):
            self.wait_until(started, limit_s, f"start of runs {indices}")

    def wait_for_states(self, experiment: str, state: str, limit_s: float = 300) -> None:
        """Harvest until all runs are in ``state``."""

        def reached() -> bool:
            self.harvest()
            return set(self.states(experiment).values()) == {state}

        with self._explained(experiment):
            self.wait_until(reached, limit_s, f"all runs of {experiment} {state}")

    @contextmanager
    def _explained(self, experiment: str) -> Iterator[None]:
        """Add to a TimeoutError how ems, SLURM and the files of the runs stand."""
        try:
            yield
        except TimeoutError as error:
            folder = self.project / ".ems" / "experiments" / experiment
            for words in (("sinfo", "-N", "-l"), ("scontrol", "show", "job"), ("sacct", "-X", "-S", "now-1hour")):
                error.add_note(f"--- {' '.join(words)}\n{self.slurm.run(*words, check=False)[-8000:]}")
            error.add_note(f"--- ems status\n{self.ems('status', code=None)}")
            files = [path for path in folder.rglob("*") if path.is_file()]
            for path in sorted([*files, *(self.slurm.dir / "log").glob("slurm*")]):
                error.add_note(f"--- {path}\n{path.read_text(errors='replace')[-2000:]}")
            raise


@pytest.fixture
def labs(project: Path, ems: Callable[..., CompletedProcess[str]], testbed: ModuleType) -> Callable[[Any], Lab]:
    """Makes a project to submit from to a cluster."""
    return lambda cluster: Lab(project, ems, cluster, testbed)


@pytest.fixture
def lab(labs: Callable[[Any], Lab], slurm: Any) -> Lab:
    """A project to submit from."""
    return labs(slurm)
