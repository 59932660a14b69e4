"""Which target is meant, and what is where."""

from __future__ import annotations

from pathlib import Path

import pytest

from ems import config, registry, target
from ems.errors import ConfigError, TargetError
from ems.executor.here import HereExecutor
from ems.executor.slurm import SlurmExecutor
from ems.ssh import Host


@pytest.fixture
def settings(tmp_path: Path) -> config.Settings:
    return config.load(tmp_path)


def with_file(project: Path, text: str, on: str | None = None) -> config.Settings:
    (project / "ems.yaml").write_text(text)
    return config.load(project, on=on)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "in_cluster", lambda: False)


def test_here_and_slurm_keep_their_files_in_the_project(tmp_path: Path, settings: config.Settings) -> None:
    here, slurm = (target.resolve(name, settings, tmp_path) for name in ("here", "slurm"))
    assert isinstance(here.executor, HereExecutor)
    assert isinstance(slurm.executor, SlurmExecutor)
    assert here.root == slurm.root == tmp_path / ".ems"
    assert (str(here), here.executor.name) == ("here", "here")


def test_without_a_word_it_is_the_cluster_if_there_is_one(
    tmp_path: Path, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert target.resolve(None, settings, tmp_path).name == "here"
    monkeypatch.setattr(target, "in_cluster", lambda: True)
    assert target.resolve(None, settings, tmp_path).name == "slurm"
    assert target.resolve("here", settings, tmp_path).name == "here"


def test_the_config_names_the_default_and_the_root(tmp_path: Path) -> None:
    settings = with_file(tmp_path, "on: lab\ntargets:\n  lab:\n    root: /scratch/me\n    worker_python: python3.9\n")
    found = target.resolve(None, settings, tmp_path)
    assert (found.name, found.root) == ("lab", Path("/scratch/me"))
    assert isinstance(found.executor, SlurmExecutor)
    assert found.executor.worker_python == "python3.9"


def test_an_unknown_target_names_the_known_ones(tmp_path: Path) -> None:
    settings = with_file(tmp_path, "targets:\n  lab: {}\n")
    with pytest.raises(TargetError) as error:
        target.resolve("moon", settings, tmp_path)
    assert "moon" in error.value.message
    assert "here, slurm, lab" in error.value.hint


class TestInCluster:
    """sbatch alone does not make a cluster: it must know its controller."""

    @pytest.fixture(autouse=True)
    def no_cluster(self) -> None:
        """The real function here."""

    @pytest.fixture
    def sbatch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "sbatch").write_text("#!/bin/sh\n")
        (tmp_path / "sbatch").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(target, "_CONFIGURATIONS", (str(tmp_path / "slurm.conf"),))
        for key in ("SLURM_CONF", "SLURM_CONF_SERVER"):
            monkeypatch.delenv(key, raising=False)

    def test_no_sbatch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
        assert not target.in_cluster()

    def test_sbatch_without_a_configuration(self, sbatch: None) -> None:
        assert not target.in_cluster()

    def test_a_configuration_file(self, sbatch: None, tmp_path: Path) -> None:
        (tmp_path / "slurm.conf").touch()
        assert target.in_cluster()

    def test_a_configuration_in_the_environment(self, sbatch: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_CONF", "/somewhere/slurm.conf")
        assert target.in_cluster()


@pytest.fixture
def far() -> registry.RemoteTarget:
    """A machine that is connected."""
    known = registry.RemoteTarget(
        "far", Host("me@far"), "/scratch/me", ("python3", "-m", "ems"), resources={"partition": "gpu", "time": "60"}
    )
    registry.save(known)
    return known


def test_a_connected_machine_has_a_mirror_in_the_project(tmp_path: Path, far: registry.RemoteTarget) -> None:
    found = target.resolve("far", config.load(tmp_path, on="far"), tmp_path)
    assert (found.name, found.root) == ("far", tmp_path / ".ems" / "remote" / "far")
    assert found.remote is found.executor
    assert found.executor.name == "slurm"  # known without asking


def test_the_current_cluster_is_meant_where_nobody_says(tmp_path: Path, far: registry.RemoteTarget) -> None:
    assert target.resolve(None, config.load(tmp_path), tmp_path).name == "here"
    registry.use("far")
    settings = config.load(tmp_path)
    assert target.resolve(None, settings, tmp_path).name == "far"
    assert settings.origins["on"] == "ems cluster use"
    assert target.resolve(None, with_file(tmp_path, "on: here\n"), tmp_path).name == "here"
    assert target.resolve("here", settings, tmp_path).name == "here"


def test_what_a_cluster_asks_for_yields_to_what_a_file_says(tmp_path: Path, far: registry.RemoteTarget) -> None:
    settings = with_file(tmp_path, "resources:\n  time: 2:00:00\n", on="far")
    assert (settings.resources.partition, settings.resources.time) == ("gpu", "2:00:00")
    assert settings.origins["resources.partition"] == "cluster far"
    assert config.load(tmp_path, on="here").resources.partition is None


def test_the_root_of_a_connected_machine_is_set_where_it_is_connected(
    tmp_path: Path, far: registry.RemoteTarget
) -> None:
    settings = with_file(tmp_path, "targets:\n  far:\n    root: /else\n", on="far")
    with pytest.raises(ConfigError, match="experiments on far lie in /scratch/me") as error:
        target.resolve("far", settings, tmp_path)
    assert "ems cluster connect far" in error.value.hint
    moved = with_file(tmp_path, "root: elsewhere\n", on="far")
    assert target.resolve("far", moved, tmp_path).root == tmp_path / ".ems" / "remote" / "far"


@pytest.mark.parametrize("name", ["$(touch pwned)", "../far", "-rf", "far\n", ""])
def test_a_name_that_none_can_have_is_no_target(tmp_path: Path, name: str, far: registry.RemoteTarget) -> None:
    with pytest.raises(TargetError, match="there is no target"):
        target.resolve(name or "none", config.load(tmp_path), tmp_path)
