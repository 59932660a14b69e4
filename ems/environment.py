"""Which Python a run gets: the one the user works with, or one built from the project's lock file.

``--env auto`` builds one virtual environment per content under ``ROOT/envs/HASH``, once: by uv where it is installed,
else by venv and pip. It is built in place under a lock (environments cannot be moved) and counts as there only
when its marker file is; a build that was killed is begun anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ems.errors import ConfigError, TargetError
from ems.node import container
from ems.node.records import now, write_atomic

_MARKER = "ems-ready.json"
_ISOLATED = ("/pipx/venvs/", "/uv/tools/")
_INCLUDE = re.compile(r"(?:-r|-c|--requirement|--constraint)[\s=]*(\S+)")
_EDITABLE = re.compile(r"(?:-e|--editable)[\s=]*(\S+)")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an environment is built from.

    Attributes
    ----------
    kind
        ``uv.lock``, ``requirements.txt`` or ``pyproject.toml``: the file in charge.
    requirements
        Lines for pip, for ``pyproject.toml`` only.
    digest
        SHA-256 over the content of every file that takes part.
    """

    kind: str
    requirements: tuple[str, ...]
    digest: str


def default_python() -> str:
    """Return the Python that ``python`` means to the user.

    That of the active virtual or conda environment; else the one ``ems`` is installed in, unless that is a tool's
    own (pipx, ``uv tool``): then the first on PATH.
    """
    conda = os.environ.get("CONDA_PREFIX") if os.environ.get("CONDA_DEFAULT_ENV") != "base" else None
    for prefix in filter(None, (os.environ.get("VIRTUAL_ENV"), conda)):
        python = Path(prefix, "bin", "python")
        if os.access(python, os.X_OK):
            return str(python)
    if any(place in f"{sys.prefix}/" for place in _ISOLATED):
        return shutil.which("python3") or "python3"
    return sys.executable or "python3"


def resolve(
    project: Path, root: Path, *, python: str | None = None, notice: Callable[[str], None] | None = None
) -> str:
    """Return the Python of the project's own environment on the target, building it where it is new.

    Parameters
    ----------
    project
        Where ``uv.lock``, ``requirements.txt`` or ``pyproject.toml`` lies; the first of these wins.
    root
        The target's root; the environment comes to lie in ``ROOT/envs/HASH``.
    python
        The Python it is based on; default: `default_python`.
    notice
        Is told, once, that a build begins: it may take minutes.

    Raises
    ------
    ConfigError
        If the project has none of the three files, or one that cannot be used.
    TargetError
        If the build fails; the message has the last words of uv or pip, the hint names the log.
    """
    recipe = read_recipe(project)
    base = python or default_python()
    key = hashlib.sha256(f"{recipe.kind}\n{recipe.digest}\n{_identity(base)}".encode()).hexdigest()[:16]
    folder = root / "envs" / key
    if not _is_ready(folder):
        with _locked(folder):
            if not _is_ready(folder):  # another process built it while we waited
                if notice is not None:
                    notice(f"building the environment of {recipe.kind} in {folder}")
                _build(recipe, project, folder, base)
    return str(folder / "bin" / "python")


def read_recipe(project: Path) -> Recipe:
    """Read what the project says of its dependencies.

    Raises
    ------
    ConfigError
        If there is no such file, it cannot be read, or it would install the user's live project.
    """
    if (project / "uv.lock").is_file():
        parts = [project / "uv.lock", project / "pyproject.toml"]
        return Recipe("uv.lock", (), _digest(*(_read(part) for part in parts)))
    if (project / "requirements.txt").is_file():
        return Recipe("requirements.txt", (), _digest(*_read_requirements(project / "requirements.txt", set())))
    if (project / "pyproject.toml").is_file():
        lines = _read_dependencies(project / "pyproject.toml")
        return Recipe("pyproject.toml", lines, _digest("\n".join(lines).encode()))
    raise ConfigError(
        f"{project} has no uv.lock, requirements.txt or pyproject.toml to build an environment from",
        "write one (`pip freeze > requirements.txt`), or name a Python: --python PATH",
    )


def check_container(image: str) -> None:
    """Make sure that this machine can start a container, before anything is queued for it.

    Parameters
    ----------
    image
        A file (``.sif``; ``.sqsh`` is enroot's), or ``docker://…`` for apptainer.

    Raises
    ------
    TargetError
        If no runtime is installed here, or only one that cannot start this kind of image.
    """
    try:
        container.find_runtime(image)
    except container.ContainerError as error:
        raise TargetError(error.message, error.hint) from error


def _build(recipe: Recipe, project: Path, folder: Path, base: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what a killed build left
    log = folder.with_suffix(".log")
    try:
        with log.open("wb") as output:
            for command, extra in _commands(recipe, folder, base):
                output.write(f"$ {' '.join(command)}\n".encode())
                output.flush()
                environment = {**_clean_environment(), **extra}
                subprocess.run(command, cwd=project, env=environment, stdout=output, stderr=output, check=True)
        record = {"v": 1, "built_at": now(), "from": recipe.kind, "digest": recipe.digest, "base": base}
        write_atomic(folder / _MARKER, json.dumps(record))
    except subprocess.CalledProcessError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise TargetError(
            f"the environment of {recipe.kind} cannot be built: {_last_words(log)}", f"see {log}"
        ) from error
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise TargetError(f"cannot write {folder}: {error.strerror or error}", "free some space there") from error


def _commands(recipe: Recipe, folder: Path, base: str) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Yield each command of a build with the variables it needs; run in the project's folder."""
    uv, python = shutil.which("uv"), str(folder / "bin" / "python")
    if recipe.kind == "uv.lock":
        if uv is None:
            raise TargetError(
                "uv.lock needs uv, which is not installed",
                "install it (`pip install uv`), or `uv export -o requirements.txt` and remove uv.lock",
            )
        words = ["sync", "--frozen", "--no-dev", "--no-install-project", "--no-install-workspace", "--python", base]
        yield [uv, *words], {"UV_PROJECT_ENVIRONMENT": str(folder)}
        return
    wanted = ["-r", "requirements.txt"] if recipe.kind == "requirements.txt" else list(recipe.requirements)
    if uv:
        yield [uv, "venv", "--python", base, str(folder)], {}
        install = [uv, "pip", "install", "--python", python]
    else:
        yield [base, "-m", "venv", str(folder)], {}
        install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    if wanted:
        yield [*install, *wanted], {}


def _read_requirements(path: Path, seen: set[Path]) -> Iterator[bytes]:
    """Yield the content of a requirements file, and of all files it names.

    Raises
    ------
    ConfigError
        If one is missing, or installs a folder: that would be the live project, not its snapshot.
    """
    path = path.resolve()
    if path in seen:
        return
    seen.add(path)
    content = _read(path)
    yield content
    for number, raw in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        line = raw.split(" #")[0].strip()
        if included := _INCLUDE.fullmatch(line):
            if "://" not in included[1]:
                yield from _read_requirements(path.parent / included[1], seen)
            continue
        editable = _EDITABLE.fullmatch(line)
        place = path.parent / (editable[1] if editable else line).split("[")[0].removeprefix("file://")
        if line and not line.startswith("#") and place.is_dir():
            raise ConfigError(
                f"{path} line {number}: `{line}` installs a folder as it is now, not as it was frozen",
                "remove the line and list what it depends on; runs import the project's own modules from the snapshot",
            )
        if line and place.is_file():  # a wheel beside the project
            yield _read(place)


def _read_dependencies(path: Path) -> tuple[str, ...]:
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    lines = project.get("dependencies", [])
    if "dependencies" in project.get("dynamic", []) or "dependencies" not in project:
        raise ConfigError(
            f"{path} does not list project.dependencies",
            "list them there, or in requirements.txt, or use --python PATH",
        )
    return tuple(str(line) for line in lines)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _identity(python: str) -> str:
    """Return what makes a Python another one: version, ABI, place, machine."""
    code = "import os,platform,sys;print(sys.version,sys.base_prefix,platform.machine(),platform.libc_ver())"
    try:
        found = subprocess.run([python, "-I", "-c", code], capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise TargetError(f"`{python}` is no Python that runs here", "name another one: --python PATH") from error
    return found.stdout


def _is_ready(folder: Path) -> bool:
    return (folder / _MARKER).exists() and (folder / "bin" / "python").exists()


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "fatal"))]
    return (errors or lines or ["no output"])[-1]


def _clean_environment() -> dict[str, str]:
    mine = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "UV_PROJECT_ENVIRONMENT", "CONDA_PREFIX")
    return {name: value for name, value in os.environ.items() if name not in mine}


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_suffix(".lock").open("w")
    except OSError as error:
        raise TargetError(f"cannot write {folder.parent}: {error.strerror}", "make it writable") from error
    with lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
