"""Environments built for real: once per content, by uv or by venv and pip, whoever asks and however often."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ems import environment
from ems.errors import ConfigError, TargetError

UV = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))  # the test group brings it


@pytest.fixture(params=["pip", "uv"])
def builder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Only one of the two builders is on PATH."""
    tools = tmp_path / "tools"
    tools.mkdir()
    if request.param == "uv":
        (tools / "uv").symlink_to(UV)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin" if not shutil.which("uv", path="/usr/bin:/bin") else str(tools))
    return str(request.param)


def add_wheel(project: Path, version: str = "1.0") -> None:
    """Put a package into the project's own index, so that no network is needed."""
    (project / "wheels").mkdir(exist_ok=True)
    about = f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n"
    with zipfile.ZipFile(project / "wheels" / f"tiny-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", f"version = {version!r}\n")
        wheel.writestr(f"tiny-{version}.dist-info/METADATA", about)
        wheel.writestr(
            f"tiny-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"tiny-{version}.dist-info/RECORD", "")


def require(project: Path, version: str = "1.0") -> None:
    add_wheel(project, version)
    (project / "requirements.txt").write_text(f"--no-index\n--find-links ./wheels\ntiny=={version}\n")


def imported(python: str) -> str:
    code = "import tiny; print(tiny.version)"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout.strip()


def test_an_environment_is_built_once_per_content(project: Path, builder: str) -> None:
    root, told = project / ".ems", []
    require(project)
    python = environment.resolve(project, root, python=sys.executable, notice=told.append)
    assert imported(python) == "1.0"
    made = Path(python).stat().st_ctime_ns
    assert environment.resolve(project, root, python=sys.executable, notice=told.append) == python
    assert Path(python).stat().st_ctime_ns == made
    assert len(told) == 1
    require(project, "2.0")
    other = environment.resolve(project, root, python=sys.executable)
    assert (imported(other), imported(python)) == ("2.0", "1.0")
    require(project, "1.0")
    assert environment.resolve(project, root, python=sys.executable) == python


def test_a_failed_build_is_said_in_the_builders_words_and_tried_again(project: Path, builder: str) -> None:
    (project / "requirements.txt").write_text("--no-index\ntiny-package-that-is-not-there==9\n")
    with pytest.raises(TargetError, match=r"the environment of requirements.txt cannot be built: .+") as caught:
        environment.resolve(project, project / ".ems", python=sys.executable)
    log = Path(caught.value.hint.removeprefix("see "))
    assert "tiny-package-that-is-not-there" in log.read_text()
    assert not [path for path in (project / ".ems" / "envs").iterdir() if path.is_dir()]
    require(project)
    assert imported(environment.resolve(project, project / ".ems", python=sys.executable)) == "1.0"


def test_what_a_killed_build_left_is_not_used(project: Path) -> None:
    require(project)
    python = Path(environment.resolve(project, project / ".ems", python=sys.executable))
    (python.parents[1] / "ems-ready.json").unlink()
    (python.parents[1] / "leftover").touch()
    assert environment.resolve(project, project / ".ems", python=sys.executable) == str(python)
    assert not (python.parents[1] / "leftover").exists()
    assert imported(str(python)) == "1.0"


def test_two_at_once_build_one(project: Path) -> None:
    require(project)
    code = (
        "import sys; from pathlib import Path; from ems import environment\n"
        "p = Path(sys.argv[1]); print(environment.resolve(p, p / '.ems', python=sys.executable, notice=print))\n"
    )
    command = [sys.executable, "-c", code, str(project)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [line for process in both for line in process.communicate(timeout=240)[0].splitlines()]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(line.startswith("building") for line in lines) == 1
    (python,) = {line for line in lines if not line.startswith("building")}
    assert imported(python) == "1.0"


def test_uv_lock_gives_its_exact_versions(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(UV).parent}:{os.environ['PATH']}")
    add_wheel(project, "1.0")
    (project / "pyproject.toml").write_text(
        '[project]\nname = "mine"\nversion = "0"\nrequires-python = ">=3.11"\ndependencies = ["tiny"]\n'
        '[tool.uv]\nno-index = true\nfind-links = ["./wheels"]\n'
    )
    subprocess.run([UV, "lock", "--python", sys.executable], cwd=project, check=True, capture_output=True)
    add_wheel(project, "2.0")  # newer, but not what was locked
    before = (project / "uv.lock").read_bytes()
    python = environment.resolve(project, project / ".ems", python=sys.executable)
    assert imported(python) == "1.0"
    assert (project / "uv.lock").read_bytes() == before
    assert not (project / ".venv").exists()


def test_uv_lock_without_uv_is_said(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (project / "pyproject.toml").touch()
    (project / "uv.lock").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match=r"uv.lock needs uv, which is not installed"):
        environment.resolve(project, project / ".ems", python=sys.executable)


def test_what_is_no_python_is_said(project: Path) -> None:
    (project / "requirements.txt").touch()
    for name in ("/nowhere/python", "/bin/false"):
        with pytest.raises(TargetError, match=f"`{name}` is no Python that runs here"):
            environment.resolve(project, project / ".ems", python=name)


def test_nothing_is_built_for_a_project_that_says_nothing(project: Path) -> None:
    with pytest.raises(ConfigError):
        environment.resolve(project, project / ".ems", python=sys.executable)
    assert os.listdir(project) == [".git"]
