"""Where an experiment came from: commit and dirty diff, Python and packages, host, command line.

The environment is not recorded, but for an allow-list of names that hold no secrets.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, cast

from ems.errors import TargetError
from ems.model import Json
from ems.node.records import write_atomic
from ems.snapshot.project import git, head, is_repository, start_git
from ems.version import __version__

#: Variables that change what a run computes and hold no secrets.
ALLOWED = (
    "CONDA_DEFAULT_ENV", "CUBLAS_WORKSPACE_CONFIG", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "LANG", "LC_ALL",
    "LD_LIBRARY_PATH", "LOADEDMODULES", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED", "PYTHONPATH", "TZ", "VIRTUAL_ENV",
)  # fmt: skip

_INLINE_BYTES = 100_000  # a larger diff is stored aside
_MAX_DIFF_BYTES = 20_000_000

# Runs in the run's own Python (>= 3.8). The names of the metadata folders say it all: opening each METADATA file, as
# `pip freeze` does, takes seconds on a network file system.
_PROBE = r"""
import json, os, platform, re, sys
found = {}
for place in sys.path:
    try:
        names = os.listdir(place or ".")
    except OSError:
        continue
    for name in names:
        if name.endswith((".dist-info", ".egg-info")) and "-" in name[:-10]:
            words = name[:-10].split("-")
            package, line = words[0].replace("_", "-").lower(), "%s==%s" % (words[0], words[1])
            if package in found:
                continue
            try:
                with open(os.path.join(place, name, "direct_url.json"), encoding="utf-8") as file:
                    origin = json.load(file)
                commit = origin.get("vcs_info", {}).get("commit_id")
                url = re.sub("//[^/@]*@", "//", origin["url"])  # no password
                line = "%s @ %s%s" % (words[0], url, "@" + commit if commit else "")
            except (OSError, ValueError, KeyError):
                pass
            found[package] = line
sys.stdout.write(json.dumps({
    "executable": sys.executable, "version": platform.python_version(),
    "implementation": platform.python_implementation(), "packages": [found[name] for name in sorted(found)],
}))
"""


def collect(
    project: Path,
    command_line: Sequence[str],
    python: str,
    env_allow: Collection[str] = ALLOWED,
    *,
    aside: Path | None = None,
) -> dict[str, Json]:
    """Record where an experiment comes from.

    Parameters
    ----------
    project
        The project's root.
    command_line
        What the user typed.
    python
        The Python of the runs; where it cannot be asked from here, ``python`` is recorded as None.
    env_allow
        Names of the environment variables that are recorded.
    aside
        Where a diff over 100 kB is stored, by its content's hash; without it, it is cut to 100 kB.

    Returns
    -------
    dict
        ``commit``, ``branch``, ``dirty_diff`` (text), ``dirty_diff_bytes``, ``dirty_diff_file``, ``untracked`` (paths),
        ``python`` (executable, version, implementation), ``packages`` (lines as of ``pip freeze``), ``host``,
        ``user``, ``platform``, ``ems``, ``cwd``, ``command_line``, ``environment``.

    Raises
    ------
    SnapshotError
        If git cannot read the user's repository.
    TargetError
        If ``aside`` cannot be written.
    """
    probe = _start_probe(python)  # it runs while git is asked
    try:
        record = _git_facts(project, aside)
    except BaseException:
        if probe:
            probe.communicate()
        raise
    return record | _around(probe, command_line, env_allow)


def surroundings(command_line: Sequence[str], python: str, env_allow: Collection[str] = ALLOWED) -> dict[str, Json]:
    """Record what is around the code: all of :func:`collect` but what git knows."""
    return _around(_start_probe(python), command_line, env_allow)


def _around(
    probe: subprocess.Popen[bytes] | None, command_line: Sequence[str], env_allow: Collection[str]
) -> dict[str, Json]:
    answer = probe.communicate()[0] if probe else b""
    described = json.loads(answer) if answer.startswith(b"{") else {}
    packages = described.pop("packages", [])
    return {
        "python": described or None,
        "packages": packages,
        "host": platform.node(),
        "user": _user(),
        "platform": platform.platform(),
        "ems": __version__,
        "cwd": str(Path.cwd()),
        "command_line": list(command_line),
        "environment": {name: os.environ[name] for name in sorted(env_allow) if name in os.environ},
    }


def _git_facts(project: Path, aside: Path | None) -> dict[str, Json]:
    if not is_repository(project):
        return {}
    commit = head(project)
    branch = git(project, "symbolic-ref", "--quiet", "--short", "HEAD", check=False).decode().strip()
    listing = git(project, "ls-files", "-z", "--others", "--exclude-standard").split(b"\0")[:-1]
    untracked: list[Json] = [os.fsdecode(path) for path in listing[:1000]]
    whole = _dirty_diff(project) if commit else b""
    record: dict[str, Json] = {
        "commit": commit,
        "branch": branch or None,
        "untracked": untracked,
        "n_untracked": len(listing),
        "dirty_diff": whole[:_INLINE_BYTES].decode("utf-8", "replace"),
        "dirty_diff_bytes": len(whole),
    }
    if len(whole) > _INLINE_BYTES and aside is not None:
        record |= {"dirty_diff": "", "dirty_diff_file": _store(aside, whole)}
    return record


def _dirty_diff(project: Path) -> bytes:
    """Return the diff of tracked files against the user's commit, 20 MB of it at most."""
    with start_git(project, "diff", "--no-color", "--no-ext-diff", "--no-textconv", "HEAD") as process:
        output, errors = cast("list[IO[bytes]]", [process.stdout, process.stderr])
        diff = output.read(_MAX_DIFF_BYTES)
        process.kill()
        errors.read()
    # without leave to refresh the index, git also names files that were only touched: a header with nothing below
    return re.sub(rb"^diff --git .*\n(?=diff --git |\Z)", b"", diff, flags=re.MULTILINE)


def _store(aside: Path, diff: bytes) -> str:
    path = aside / f"{hashlib.sha256(diff).hexdigest()[:16]}.diff"
    try:
        aside.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_atomic(path, diff)
    except OSError as error:
        raise TargetError(f"cannot write {path}: {error.strerror}", "free some space there") from error
    return str(path)


def _start_probe(python: str) -> subprocess.Popen[bytes] | None:
    # in the root directory, since `-c` puts the working directory on the path
    command = [str(Path(python).absolute()) if "/" in python else python, "-c", _PROBE]
    quiet = subprocess.DEVNULL
    try:
        return subprocess.Popen(command, cwd="/", stdin=quiet, stdout=subprocess.PIPE, stderr=quiet)
    except OSError:  # it may exist on the nodes only
        return None


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a name for the user's number
        return None
