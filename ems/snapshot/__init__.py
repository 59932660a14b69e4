"""Content -> commit: freeze the project's files, byte for byte, in a bare repository of our own.

The user's repository is only asked which files there are (:mod:`ems.snapshot.project`); contents are read from disk and
streamed into ``git fast-import``, so that no filter, hook, index or line-ending rule of the user's takes part.
Author, date and message are fixed: the same content is the same commit, whoever takes it and whenever.

Speed comes from a cache beside the repository, path -> (size, times, inode, mode, blob): only files whose stat
differs are read again. As in git's own index, a file that changed in the instant before it was read is not trusted
(Documentation/technical/racy-git.txt).
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ems.errors import SnapshotError
from ems.node import checkout as node_checkout
from ems.node.records import locked, write_atomic
from ems.snapshot.fastimport import Stamp, stamp_of, write_commit
from ems.snapshot.project import changed_files, count_changed, files, head, ignored_top_level, project_root

__all__ = [
    "Change",
    "Snapshot",
    "changed",
    "checkout",
    "code_key",
    "diff",
    "export",
    "has",
    "ignored_top_level",
    "paths",
    "plan_links",
    "prepare",
    "project_root",
    "take",
]

_MB = 1_000_000
#: What decides over a run's result: modules, and what they are configured by. Prose and results are neither.
_CODE = (".py", ".yaml", ".yml", ".toml", ".json", ".ini", ".cfg", ".gin", ".sh", ".so", ".c", ".cpp", ".cu")
# what ems makes in a root, see ems.node.records
_OF_ROOT = ("snapshots.git", "code", "experiments", "lib", "envs", "pycache", "views", "diffs", "removed")
_RACY_NS = 2_000_000_000  # a file younger than this when it was read is read again next time


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The frozen code.

    Attributes
    ----------
    id
        The commit, 40 hex digits.
    n_files
        Files in it.
    changed_files
        Files that differ from ``user_commit``, untracked ones included.
    user_commit
        The user's commit, None without git or before the first one.
    is_new
        Whether this content had not been frozen before.
    """

    id: str
    n_files: int
    changed_files: int
    user_commit: str | None
    is_new: bool


@dataclass(frozen=True, slots=True)
class Change:
    """One file that differs between two snapshots: ``kind`` is ``added``, ``deleted`` or ``modified``."""

    path: str
    kind: str


def take(project: Path, git_dir: Path, *, max_file_mb: float = 50) -> Snapshot:
    """Freeze the project as it is now into the bare repository ``git_dir``, which is made where missing.

    Uncommitted, untracked (not ignored) files and those of submodules are part of it; what ``.emsignore`` names is
    not. Symlinks stay symlinks; a relative one that leads out of the project is made absolute, so that it leads to
    the same place from a checkout.

    Parameters
    ----------
    project
        The project's root; see `project_root`.
    git_dir
        ``ROOT/snapshots.git``; its parent, if it lies in the project, is no part of the snapshot.
    max_file_mb
        A file larger than this many megabytes (10^6 bytes) is refused.

    Raises
    ------
    SnapshotError
        If a file is too large or cannot be read, there are no files, or ``git_dir`` cannot be written.
    """
    project, git_dir = Path(os.path.realpath(project)), Path(os.path.realpath(git_dir))
    status = changed_files(project)  # git counts while we read
    try:
        # a root that is the project itself must not freeze what it grows
        leave_out = [git_dir.parent / name for name in _OF_ROOT] if git_dir.parent == project else [git_dir.parent]
        found = files(project, leave_out=leave_out)
        _refuse(project, found, max_file_mb)
        with _guarded(git_dir):
            commit, is_new = _freeze(project, git_dir, found)
    except BaseException:
        if status is not None:
            status.kill()
            status.communicate()
        raise
    return Snapshot(commit, len(found), count_changed(status), head(project), is_new)


def prepare(git_dir: Path) -> None:
    """Make the bare repository that takes snapshots, unless it is there.

    Raises
    ------
    SnapshotError
        If ``git_dir`` cannot be written.
    """
    with _guarded(git_dir):
        _make_repository(git_dir)


def checkout(root: Path, snapshot: str) -> Path:
    """Make the read-only checkout ``ROOT/code/SNAPSHOT`` unless it is there; return its path.

    Raises
    ------
    SnapshotError
        If the root cannot be written or does not hold the snapshot.
    """
    with _as_snapshot_error():
        return Path(node_checkout.ensure(os.fspath(root), snapshot))


def paths(git_dir: Path, snapshot: str) -> list[str]:
    """List the files of a snapshot, relative to the project's root.

    Raises
    ------
    SnapshotError
        If it is not in ``git_dir``.
    """
    with _as_snapshot_error():
        return [path for path, _, _ in node_checkout.tree(os.fspath(git_dir), snapshot)]


def code_key(git_dir: Path, snapshot: str, script: str) -> str:
    """Hash the script, every module and every configuration file of a snapshot: the same key is the same code.

    Parameters
    ----------
    git_dir, snapshot
        Where it is, and its id.
    script
        Path relative to the project's root.

    Raises
    ------
    SnapshotError
        If the script is not part of the snapshot.
    """
    with _as_snapshot_error():
        entries = node_checkout.tree(os.fspath(git_dir), snapshot)
    if script not in (path for path, _, _ in entries):
        raise SnapshotError(
            f"{script} is not part of the snapshot",
            "git or .emsignore ignores it (`git check-ignore -v FILE` says why), or it is a link out of the project",
        )
    digest = hashlib.sha256(os.fsencode(script))
    for path, mode, blob in entries:
        if path == script or path.endswith(_CODE):
            digest.update(b"\0%o %s %s" % (mode, blob.encode(), os.fsencode(path)))
    return digest.hexdigest()[:40]


def changed(git_dir: Path, before: str, after: str) -> tuple[Change, ...]:
    """List the files that differ between two snapshots, by path.

    Raises
    ------
    SnapshotError
        If one of them is not in ``git_dir``.
    """
    kinds = {b"A": "added", b"D": "deleted"}
    words = _git(git_dir, "diff-tree", "-r", "-z", "--no-renames", "--name-status", before, after).split(b"\0")
    pairs = zip(words[0:-1:2], words[1::2], strict=True)
    return tuple(Change(os.fsdecode(path), kinds.get(kind, "modified")) for kind, path in pairs)


def diff(git_dir: Path, before: str, after: str, *, paths: Iterable[str] = ()) -> str:
    """Return the unified diff of two snapshots, of ``paths`` only where given.

    Raises
    ------
    SnapshotError
        If one of them is not in ``git_dir``.
    """
    options = ("-r", "-p", "-M", "--no-color", "--no-ext-diff", "--no-textconv", "--no-commit-id")
    chosen = ("--", *(f":(literal){path}" for path in paths)) if paths else ()
    return _git(git_dir, "diff-tree", *options, before, after, *chosen).decode("utf-8", "replace")


def export(git_dir: Path, snapshot: str, folder: Path) -> int:
    """Write the files of a snapshot to a new or empty ``folder``, for a person to work on; return their number.

    Raises
    ------
    SnapshotError
        If ``folder`` holds something already, cannot be written, or the snapshot is not there.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()) or (folder.is_dir() and any(folder.iterdir())):
        raise SnapshotError(f"{folder} is not empty", "name a folder that does not exist yet")
    with _as_snapshot_error():
        entries = node_checkout.tree(os.fspath(git_dir), snapshot)
        try:
            return len(node_checkout.extract(os.fspath(git_dir), entries, os.fspath(folder), writable=True))
        except OSError as error:
            raise SnapshotError(f"cannot write {folder}: {error.strerror or error}") from error


def plan_links(paths: Iterable[str], limit: int = 2000, keep: Iterable[str] = ()) -> tuple[str, ...]:
    """Choose the directories that a view links as a whole, so that it needs at most ``limit`` links.

    Small directories are opened first: those stay real, so that a script can write beside what it reads there. Only
    the large ones (a data set of many files) become one link, and are read-only for the run.

    Parameters
    ----------
    paths
        Files of the snapshot, relative; a manifest will do.
    limit
        Most links wanted.
    keep
        Directories that stay real whatever the number: where the script lies and where it starts.

    Returns
    -------
    tuple of str
        Directories, sorted; empty if all files fit.
    """
    children, sizes = _directories(paths)
    wanted = {"", *(parent for path in keep for parent in _parents(path))}
    closed = [("" not in wanted, sizes.get("", 0), "")]
    n_links, linked = 1, []
    while closed:
        optional, _, folder = heapq.heappop(closed)
        n_opened = n_links - 1 + len(children.get(folder, ()))
        if optional and n_opened > limit:
            linked.append(folder)
            continue
        n_links = n_opened
        for child in children.get(folder, ()):
            if child in children:
                heapq.heappush(closed, (child not in wanted, sizes[child], child))
    return tuple(sorted(linked))


def _refuse(project: Path, found: Mapping[str, os.stat_result], max_file_mb: float) -> None:
    if not found:
        raise SnapshotError(f"{project} holds no files", "git or .emsignore ignores all of them")
    large = [(facts.st_size, path) for path, facts in found.items() if facts.st_size > max_file_mb * _MB]
    if large:
        large.sort(reverse=True)
        names = ", ".join(f"{path} ({size / _MB:,.0f} MB)" for size, path in large[:5])
        more = f" and {len(large) - 5} more" if len(large) > 5 else ""
        raise SnapshotError(
            f"larger than {max_file_mb:g} MB: {names}{more}",
            "list them in .gitignore or .emsignore (runs still see ignored top-level folders, or what `data:` in "
            f"ems.yaml names), or raise the limit: --max-file {-(-large[0][0] // _MB)}",
        )


def _freeze(project: Path, git_dir: Path, found: Mapping[str, os.stat_result]) -> tuple[str, bool]:
    """Return the commit of these files, and whether it is new."""
    _make_repository(git_dir)
    cache = git_dir / "ems" / f"{hashlib.sha256(os.fsencode(project)).hexdigest()[:16]}.json"
    known, n_last, last = _read_cache(cache)
    started_ns = time.time_ns()
    stale = {path for path, facts in found.items() if known.get(path, ())[:5] != stamp_of(facts)}
    if not stale and len(found) == len(known) == n_last and has(git_dir, last):
        return last, False
    try:
        commit, stamps = write_commit(
            project, git_dir, found, {path: known[path] for path in found if path not in stale}
        )
    except SnapshotError:
        if len(stale) == len(found):
            raise
        # the repository may have lost objects that the cache believes to be there
        commit, stamps = write_commit(project, git_dir, found, {})
    is_new = not has(git_dir, commit)
    if is_new:
        _git(git_dir, "update-ref", f"refs/snapshots/{commit}", commit)
    before = started_ns - _RACY_NS
    settled = {path: stamp for path, stamp in stamps.items() if int(stamp[1]) < before and int(stamp[2]) < before}
    record = {"v": 1, "commit": commit, "n_files": len(stamps), "files": settled}
    write_atomic(cache, json.dumps(record), durable=False)
    return commit, is_new


def _read_cache(path: Path) -> tuple[dict[str, Stamp], int, str]:
    """Return what was known at the last snapshot: stamps, number of files, commit; nothing if it cannot be read."""
    try:
        record = json.loads(path.read_bytes())
        return record["files"], record["n_files"], record["commit"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}, 0, ""


def _make_repository(git_dir: Path) -> None:
    if not (git_dir / "HEAD").exists():
        _git(git_dir, "init", "--quiet", "--bare", "--template=", str(git_dir))
        _git(git_dir, "config", "gc.auto", "0")  # a snapshot is for good
    (git_dir / "ems").mkdir(exist_ok=True)


def has(git_dir: Path, commit: str) -> bool:
    """Whether a repository holds the snapshot, to the end."""
    if not commit:
        return False
    command = [
        "git",
        "--git-dir",
        str(git_dir),
        "rev-parse",
        "--quiet",
        "--verify",
        f"refs/snapshots/{commit}^{{tree}}",
    ]
    return (
        subprocess.run(command, capture_output=True, check=False, env=node_checkout.clean_environment()).returncode == 0
    )


def _git(git_dir: Path, *args: str) -> bytes:
    command = ["git", "--git-dir", str(git_dir), *args]
    result = subprocess.run(command, capture_output=True, check=False, env=node_checkout.clean_environment())
    if result.returncode != 0:
        words = result.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit {result.returncode}"]
        raise SnapshotError(f"git cannot use {git_dir}: {words[-1].removeprefix('fatal: ')}")
    return result.stdout


@contextlib.contextmanager
def _guarded(git_dir: Path) -> Iterator[None]:
    """One snapshot at a time in this repository; what the disk refuses is a SnapshotError."""
    try:
        git_dir.mkdir(parents=True, exist_ok=True)
        with locked(git_dir / "ems.lock"):  # where there are no locks, git's own still keep it whole
            yield
    except OSError as error:
        if error.filename == "git":
            raise SnapshotError("git is not installed", "install git, e.g. `apt install git`") from error
        raise SnapshotError(
            f"cannot write {git_dir}: {error.strerror or error}", "free some space there, or set another `root`"
        ) from error


@contextlib.contextmanager
def _as_snapshot_error() -> Iterator[None]:
    try:
        yield
    except node_checkout.CheckoutError as error:
        raise SnapshotError(error.message, error.hint) from error


def _directories(paths: Iterable[str]) -> tuple[dict[str, set[str]], dict[str, int]]:
    """Return the children of each directory, and the number of files below it."""
    children: dict[str, set[str]] = {}
    sizes: dict[str, int] = {}
    for path in paths:
        child = path
        while child:
            parent = child.rpartition("/")[0]
            children.setdefault(parent, set()).add(child)
            sizes[parent] = sizes.get(parent, 0) + 1
            child = parent
    return children, sizes


def _parents(path: str) -> Iterator[str]:
    """Yield a directory and all above it but the root."""
    path = os.path.normpath(path)
    while path not in {"", ".", ".."}:
        yield path
        path = path.rpartition("/")[0]
