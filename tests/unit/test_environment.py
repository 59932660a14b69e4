"""What an environment is built from, and which Python is the user's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ems import environment
from ems.errors import ConfigError, TargetError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def kind_and_digest(folder: Path) -> tuple[str, str]:
    recipe = environment.read_recipe(folder)
    return recipe.kind, recipe.digest


def test_the_most_exact_file_wins(folder: Path) -> None:
    (folder / "pyproject.toml").write_text('[project]\nname = "x"\ndependencies = ["numpy>=1.26", "tqdm"]\n')
    recipe = environment.read_recipe(folder)
    assert (recipe.kind, recipe.requirements) == ("pyproject.toml", ("numpy>=1.26", "tqdm"))
    (folder / "requirements.txt").write_text("numpy\n")
    assert environment.read_recipe(folder).kind == "requirements.txt"
    (folder / "uv.lock").write_text("version = 1\n")
    assert environment.read_recipe(folder).kind == "uv.lock"


def test_a_project_without_any_is_told_what_to_write(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no uv.lock, requirements.txt or pyproject.toml") as caught:
        environment.read_recipe(folder)
    assert "pip freeze > requirements.txt" in caught.value.hint


def test_only_what_takes_part_changes_the_digest(folder: Path) -> None:
    text = '[project]\nname = "x"\nversion = "{}"\ndependencies = ["numpy{}"]\n'
    (folder / "pyproject.toml").write_text(text.format(1, ""))
    first = kind_and_digest(folder)
    (folder / "pyproject.toml").write_text(text.format(2, ""))
    assert kind_and_digest(folder) == first
    (folder / "pyproject.toml").write_text(text.format(2, ">2"))
    assert kind_and_digest(folder) != first


def test_files_that_a_requirements_file_names_take_part(folder: Path) -> None:
    (folder / "requirements").mkdir()
    (folder / "requirements.txt").write_text("-r requirements/base.txt\n--constraint=limits.txt\n./w.whl\n")
    (folder / "requirements" / "base.txt").write_text("-r ../requirements.txt  # a circle\nnumpy\n")
    (folder / "limits.txt").write_text("numpy<3\n")
    (folder / "w.whl").write_text("1")
    seen = {kind_and_digest(folder)}
    for name, content in {"requirements/base.txt": "torch\n", "limits.txt": "numpy<2\n", "w.whl": "2"}.items():
        (folder / name).write_text(content)
        seen.add(kind_and_digest(folder))
    assert len(seen) == 4


@pytest.mark.parametrize("line", ["-e .", ".", "./lib", "--editable=./lib[extra]", "-e ./lib  # ours"])
def test_a_live_folder_is_refused_with_its_line(folder: Path, line: str) -> None:
    (folder / "lib").mkdir()
    (folder / "requirements.txt").write_text(f"# ours\nnumpy\n{line}\n")
    with pytest.raises(ConfigError, match=r"requirements.txt line 3: .* as it is now, not as it was frozen"):
        environment.read_recipe(folder)


@pytest.mark.parametrize(
    "line", ["-e git+https://example.org/x.git#egg=x", "numpy==2.0 ; python_version > '3.8'", "--pre"]
)
def test_other_lines_are_left_to_pip(folder: Path, line: str) -> None:
    (folder / "requirements.txt").write_text(line)
    assert environment.read_recipe(folder).kind == "requirements.txt"


@pytest.mark.parametrize(
    "text",
    [
        '[project]\nname = "x"\n',
        '[project]\nname="x"\ndynamic = ["dependencies"]\n',
        "[tool.poetry]\n",
        "not = toml = at all",
    ],
)
def test_a_pyproject_that_says_nothing_is_refused(folder: Path, text: str) -> None:
    (folder / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"pyproject.toml"):
        environment.read_recipe(folder)


def test_a_missing_included_file_is_named(folder: Path) -> None:
    (folder / "requirements.txt").write_text("-r base.txt\n")
    with pytest.raises(ConfigError, match=r"base.txt cannot be read: No such file"):
        environment.read_recipe(folder)


def _fake_environment(folder: Path) -> Path:
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch(mode=0o755)
    return python


def test_the_active_environment_is_the_users_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV"):
        monkeypatch.delenv(name, raising=False)
    assert environment.default_python() == sys.executable
    conda, venv = _fake_environment(folder / "conda"), _fake_environment(folder / "venv")
    monkeypatch.setenv("CONDA_PREFIX", str(folder / "conda"))
    monkeypatch.setenv("CONDA_DEFAULT_ENV", "base")  # always on; says nothing
    assert environment.default_python() == sys.executable
    monkeypatch.setenv("CONDA_DEFAULT_ENV", "torch")
    assert environment.default_python() == str(conda)
    monkeypatch.setenv("VIRTUAL_ENV", str(folder / "venv"))
    assert environment.default_python() == str(venv)
    monkeypatch.setenv("VIRTUAL_ENV", str(folder / "deleted"))
    assert environment.default_python() == str(conda)


def test_a_tool_environment_is_not_the_users_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "prefix", "/home/u/.local/share/pipx/venvs/ems")
    python = folder / "python3"
    python.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(folder))
    assert environment.default_python() == str(python)


def _install(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_missing_container_runtime_is_said_early(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(TargetError, match=r"no apptainer or singularity or enroot on \S+ to start the container a.sif"):
        environment.check_container("a.sif")
    _install(folder, "enroot", monkeypatch)
    environment.check_container("a.sqsh")
    with pytest.raises(TargetError, match="enroot cannot start docker://x directly") as caught:
        environment.check_container("docker://x")
    assert "enroot import" in caught.value.hint
    _install(folder, "apptainer", monkeypatch)
    environment.check_container("docker://x")
