"""The user's project: where it begins, which files belong to it. Only ever read.

Git is asked without optional locks, hooks or a file-system monitor, so that the user's index, HEAD, stash and
hooks stay untouched.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from pathspec import GitIgnoreSpec

from ems.errors import ConfigError, SnapshotError

Found: TypeAlias = tuple[str, os.stat_result]

#: Folders that never belong to the code unless git tracks them: caches, environments, and our own.
CACHES = frozenset(
    {
        ".ems", ".git", ".hg", ".svn", ".venv", "__pycache__", "node_modules", ".ipynb_checkpoints", ".direnv",
        ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".tox", ".nox", ".eggs", ".cache", ".idea",
        ".vscode", ".import_linter_cache",
    }
)  # fmt: skip

IGNORE_FILE = ".emsignore"

#: A folder without git in which more files than this are found is hardly a project (somebody's home, rather).
MAX_LOOSE_FILES = 100_000


def project_root(script: Path) -> Path:
    """Return the git top level of ``script`` (a file or a folder), or else the script's folder.

    Symlinks of the folder are resolved, not that of the script itself.
    """
    folder = script if script.is_dir() else script.parent
    folder = Path(os.path.realpath(folder))
    return next((place for place in (folder, *folder.parents) if is_repository(place)), folder)


def is_repository(folder: Path) -> bool:
    """Whether ``folder`` is the top of a git work tree (a worktree or submodule has a file ``.git``)."""
    marker = folder / ".git"
    return marker.is_file() or (marker / "HEAD").exists()


def git(folder: Path, *args: str, check: bool = True) -> bytes:
    """Ask the user's repository at ``folder``; return what git printed.

    Raises
    ------
    SnapshotError
        If git is missing or, with ``check``, fails; in git's own words.
    """
    with start_git(folder, *args) as process:
        output, errors = process.communicate()
    if check and process.returncode != 0:
        words = errors.decode("utf-8", "replace").strip()
        first, _, rest = words.partition("\n")
        raise SnapshotError(f"git cannot read {folder}: {first.removeprefix('fatal: ')}", rest.strip())
    return output


def start_git(folder: Path, *args: str) -> subprocess.Popen[bytes]:
    """Start git in the user's repository at ``folder`` so that it reads only; its output comes through pipes.

    Raises
    ------
    SnapshotError
        If git is not installed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {
        "GIT_OPTIONAL_LOCKS": "0",  # `status` and `diff` would rewrite the index to remember file times
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "LC_ALL": "C",
    }
    safe = ("core.fsmonitor=false", "core.hooksPath=/dev/null", "diff.autoRefreshIndex=false", "core.quotePath=false")
    command = ["git", "-C", str(folder), *(word for setting in safe for word in ("-c", setting)), *args]
    try:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        raise SnapshotError("git is not installed", "install git, e.g. `apt install git`") from None


def files(project: Path, leave_out: Iterable[Path] = ()) -> dict[str, os.stat_result]:
    """List the files that make up the project as it is now: relative path -> lstat, sorted by path.

    Tracked files, untracked ones that git does not ignore, and those of submodules and nested repositories;
    without git everything but caches and environments. ``.emsignore`` (the syntax of ``.gitignore``) leaves out more.

    Parameters
    ----------
    project
        The project's root.
    leave_out
        Folders that are never part of it, such as the root of a target that lies inside.

    Raises
    ------
    SnapshotError
        If git cannot list the files, or a folder without git holds too many.
    """
    barred = tuple(os.path.relpath(place, project) + "/" for place in leave_out if place.is_relative_to(project))
    wanted = _not_ignored(project)
    found = (item for item in _list(project, "") if not item[0].startswith(barred) and wanted(item[0]))
    return dict(sorted(found))


def ignored_top_level(project: Path) -> list[str]:
    """Return the top-level folders that git ignores, without caches and environments: the default of ``data:``.

    A folder whose content alone is ignored (``data/*`` with a tracked ``data/.gitkeep``) gives its ignored
    children instead: ``data/mnist``.

    Raises
    ------
    SnapshotError
        If git cannot list them.
    """
    if not is_repository(project):
        return []
    listing = git(project, "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory")
    names = [os.fsdecode(name).rstrip("/") for name in listing.split(b"\0")[:-1]]
    top = [name for name in names if "/" not in name and _is_data(project / name)]
    below = [name for name in names if name.count("/") == 1 and _is_shell(project, name.split("/")[0])]
    return sorted(top + [name for name in below if Path(name).name not in CACHES])


def changed_files(project: Path) -> subprocess.Popen[bytes] | None:
    """Start counting the files that differ from the user's commit; None without git. See `count_changed`."""
    if not is_repository(project):
        return None
    return start_git(project, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")


def count_changed(status: subprocess.Popen[bytes] | None) -> int:
    """Return how many files `changed_files` found changed, added or deleted; caches do not count."""
    if status is None:
        return 0
    with status:
        output, _ = status.communicate()
    paths = [os.fsdecode(line[3:]) for line in output.split(b"\0")[:-1]]
    return sum(1 for path in paths if CACHES.isdisjoint(path.split("/")))


def head(project: Path) -> str | None:
    """Return the user's commit (40 hex), None without git or before the first commit."""
    if not is_repository(project):
        return None
    return git(project, "rev-parse", "--verify", "--quiet", "HEAD", check=False).decode().strip() or None


def _list(folder: Path, prefix: str) -> Iterator[Found]:
    """Yield the files of ``folder``, which lies at ``prefix`` in the project."""
    paths = _list_git(folder) if is_repository(folder) else _list_loose(folder)
    for path in paths:
        try:
            facts = os.lstat(f"{folder}/{path}")
        except (FileNotFoundError, NotADirectoryError):  # deleted, but still in the index
            continue
        if stat.S_ISREG(facts.st_mode) or stat.S_ISLNK(facts.st_mode):
            yield prefix + path, facts
        elif stat.S_ISDIR(facts.st_mode) and is_repository(folder / path):  # a submodule or a nested repository
            yield from _list(folder / path, prefix + path.rstrip("/") + "/")


def _list_git(folder: Path) -> Iterator[str]:
    listing = git(folder, "ls-files", "-z", "-t", "--cached", "--others", "--exclude-standard").split(b"\0")[:-1]
    entries = [(line[:1] == b"?", os.fsdecode(line[2:])) for line in listing]
    marker = "/pyvenv.cfg"
    environments = tuple(path.removesuffix("pyvenv.cfg") for new, path in entries if new and path.endswith(marker))
    for new, path in entries:
        if not new or (CACHES.isdisjoint(path.split("/")) and not path.startswith(environments)):
            yield path


def _list_loose(folder: Path) -> Iterator[str]:
    count = 0
    for place, folders, names in os.walk(folder):
        at = Path(place)
        here = "" if at == folder else f"{at.relative_to(folder)}/"
        apart = {name for name in folders if (at / name).is_symlink() or is_repository(at / name)}
        folders[:] = [name for name in folders if name not in apart and name not in CACHES and not _is_venv(at / name)]
        count += len(names)
        if count > MAX_LOOSE_FILES:
            raise SnapshotError(
                f"{folder} holds more than {MAX_LOOSE_FILES:,} files",
                "put the script into a folder of its own, run `git init` there, "
                f"or list what is no code in {IGNORE_FILE}",
            )
        yield from (here + name for name in (*names, *sorted(apart)))


def _not_ignored(project: Path) -> Callable[[str], bool]:
    """Return the test whether a path is kept by ``.emsignore``."""
    source = project / IGNORE_FILE
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return lambda _: True
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} cannot be read: {error}") from error
    try:
        spec = GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}", "it has the syntax of .gitignore") from error
    return lambda path: not spec.match_file(path)


def _is_data(place: Path) -> bool:
    name = place.name
    return place.is_dir() and name not in CACHES and not name.endswith(".egg-info") and not _is_venv(place)


def _is_shell(project: Path, name: str) -> bool:
    """Whether all that git tracks in a top-level folder is there to keep or describe it (.gitkeep, README)."""
    tracked = git(project, "ls-files", "-z", "--", f":(literal,top){name}").split(b"\0")[:-1]
    kinds = (b".git", b"readme", b".dvc")
    return bool(tracked) and all(path.rsplit(b"/")[-1].lower().startswith(kinds) for path in tracked)


def _is_venv(place: Path) -> bool:
    return (place / "pyvenv.cfg").exists()
