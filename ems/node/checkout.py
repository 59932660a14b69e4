"""The read-only checkout of a snapshot: made once on a target, verified before every run.

``code/SNAPSHOT`` holds the files, ``code/SNAPSHOT.json`` its manifest::

    {"v": 1, "snapshot": ID, "files": {path: [mode, size, mtime_ns, ctime_ns, blob]}}

where ``mode`` is git's (0o100644, 0o100755, 0o120000) and ``blob`` git's SHA-1 of the content. Checking 20,000 files
by stat takes a fraction of a second; only those whose stat differs are read and hashed. Making a checkout needs git
(login nodes have it), verifying one does not (compute nodes may lack it).
"""

from __future__ import annotations

import json
import os
import stat

from ems.node.records import TYPE_CHECKING, write_atomic

if TYPE_CHECKING:  # verifying starts every run: what only making a checkout needs is imported there
    import subprocess
    from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

    from ems.node.records import PathLike

    Manifest = Dict[str, List[Any]]  # path -> [mode, size, mtime_ns, ctime_ns, blob]
    Entry = Tuple[str, int, str]  # path, mode, blob

_SYMLINK = 0o120000
_EXECUTABLE = 0o100755
_PIECE = 1 << 20  # bytes read at a time
_IGNORED = "__pycache__"  # Python may write it beside a module; it changes nothing that a run computes


class CheckoutError(Exception):
    """A checkout cannot be made, or is not what the snapshot says; ``hint`` says how to mend it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def path_of(root: PathLike, snapshot: str) -> str:
    """Return the path of ``code/SNAPSHOT``; makes nothing."""
    return os.path.join(os.fspath(root), "code", snapshot)


def ensure(root: PathLike, snapshot: str) -> str:
    """Make ``code/SNAPSHOT`` unless it is there, and return its path.

    It is made aside and renamed: two at once are safe, and one that was killed leaves nothing that is used.

    Raises
    ------
    CheckoutError
        If ``snapshots.git`` does not hold the snapshot or the root cannot be written.
    """
    final = path_of(root, snapshot)
    if os.path.exists(final) and os.path.exists(final + ".json"):
        return final
    git_dir = os.path.join(os.fspath(root), "snapshots.git")
    entries = tree(git_dir, snapshot)
    try:
        os.makedirs(os.path.dirname(final), exist_ok=True)
        files = None if os.path.exists(final) else _make(git_dir, entries, final)
        if files is None:  # another process made it, and may have been killed before it wrote the manifest
            files = _describe(final, entries)
        write_atomic(final + ".json", json.dumps({"v": 1, "snapshot": snapshot, "files": files}))
    except OSError as error:
        raise CheckoutError(
            "cannot write the checkout %s: %s" % (final, error.strerror or error),
            "free some space or inodes there, or set another `root` in the configuration",
        ) from error
    return final


def manifest(root: PathLike, snapshot: str) -> Manifest:
    """Return what the checkout should hold: path -> [mode, size, mtime_ns, ctime_ns, blob].

    Raises
    ------
    CheckoutError
        If there is no checkout, or its manifest is damaged.
    """
    path = path_of(root, snapshot) + ".json"
    try:
        with open(path, "rb") as file:
            files: Manifest = json.loads(file.read())["files"]
            return files
    except FileNotFoundError:
        raise CheckoutError("the checkout %s is missing" % path[:-5], "`ems rerun` makes it again") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckoutError("the manifest %s cannot be read: %s" % (path, error), _mend(path[:-5])) from error


def verify(root: PathLike, snapshot: str, files: Optional[Manifest] = None) -> None:
    """Check that the checkout is what the snapshot says, file by file; ``__pycache__`` is nobody's business.

    Parameters
    ----------
    root, snapshot
        The target's root and the id of the snapshot.
    files
        The manifest, if the caller has read it already.

    Raises
    ------
    CheckoutError
        If a file was changed, added or removed; the message names up to five.
    """
    base = path_of(root, snapshot)
    files = manifest(root, snapshot) if files is None else files
    suspects, added, seen = [], [], 0
    for path, found in _walk(base):
        known = files.get(path)
        if known is None:
            added.append(path)
            continue
        seen += 1
        if known[1:4] != [found.st_size, found.st_mtime_ns, found.st_ctime_ns]:
            suspects.append((path, found))
    changed = [path for path, found in suspects if not _same(os.path.join(base, path), found, files[path])]
    missing = [] if seen == len(files) else sorted(set(files).difference(path for path, _ in _walk(base)))
    _complain(base, changed, missing, added)
    if suspects:  # touched, restored from a backup, or stamped late by NFS: remember, so that the next check is quick
        _restamp(base, files, suspects)


def tree(git_dir: PathLike, snapshot: str) -> List[Entry]:
    """List the files of a snapshot as (path, mode, blob), in git's order.

    Raises
    ------
    CheckoutError
        If the repository does not hold the snapshot.
    """
    listing = _git(git_dir, "ls-tree", "-r", "-z", "--full-tree", snapshot)
    entries = []
    for line in listing.split(b"\0")[:-1]:
        facts, path = line.split(b"\t", 1)
        mode, _, blob = facts.decode("ascii").split(" ")
        entries.append((os.fsdecode(path), int(mode, 8), blob))
    return entries


def extract(git_dir: PathLike, entries: Iterable[Entry], folder: PathLike, writable: bool = False) -> Manifest:
    """Write files of a snapshot below ``folder``, byte for byte: no filter, no line-ending conversion.

    The modes obey the umask; ``writable`` leaves the owner's write bit.

    Raises
    ------
    CheckoutError
        If an object is missing or damaged.
    OSError
        If ``folder`` cannot be written.
    """
    made, base = {""}, os.fspath(folder)
    files = {}  # type: Manifest
    os.makedirs(base, exist_ok=True)
    for entry, content in _contents(git_dir, list(entries)):
        path, mode, _ = entry
        parent = os.path.dirname(path)
        if parent not in made:
            os.makedirs(os.path.join(base, parent), exist_ok=True)
            made.add(parent)
        files[path] = _facts(entry, _write(os.path.join(base, path), mode, content, writable))
    if not writable:
        for directory in sorted({p for path in made for p in _parents(path)}, reverse=True):
            os.chmod(os.path.join(base, directory), _mode(base) & 0o555)
        os.chmod(base, _mode(base) & 0o555)
    return files


def blob_id(content: bytes) -> str:
    """Return git's SHA-1 of ``content`` as a blob."""
    import hashlib

    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - git's own naming


def clean_environment() -> Dict[str, str]:
    """Return the environment for git on our own repository: nobody's GIT_DIR, hooks or configuration."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    kept.update(GIT_CONFIG_NOSYSTEM="1", GIT_CONFIG_GLOBAL=os.devnull, LC_ALL="C")
    return kept


def _make(git_dir: str, entries: List[Entry], final: str) -> Optional[Manifest]:
    """Extract aside and rename to ``final``; None if another process was first."""
    aside = _aside(final)
    try:
        files = extract(git_dir, entries, aside)
        os.rename(aside, final)  # fails on a directory that is not empty: whoever is first wins
    except BaseException as error:
        _delete(aside)
        if isinstance(error, OSError) and os.path.isdir(final):
            return None
        raise
    return files


def _describe(base: str, entries: List[Entry]) -> Manifest:
    """Build the manifest of a checkout that somebody else made, reading every file."""
    files, changed, missing = {}, [], []  # type: Tuple[Manifest, List[str], List[str]]
    for entry in entries:
        path = os.path.join(base, entry[0])
        try:
            found = os.lstat(path)
        except OSError:
            missing.append(entry[0])
            continue
        files[entry[0]] = _facts(entry, found)
        if not _same(path, found, files[entry[0]]):
            changed.append(entry[0])
    _complain(base, changed, missing, [])
    return files


def _same(path: str, found: os.stat_result, known: List[Any]) -> bool:
    """Whether kind, executable bit and content are those of the snapshot."""
    import hashlib

    mode, blob = known[0], known[4]
    if stat.S_ISLNK(found.st_mode):
        return bool(mode == _SYMLINK and blob_id(os.fsencode(os.readlink(path))) == blob)
    if not stat.S_ISREG(found.st_mode) or (mode == _EXECUTABLE) != bool(found.st_mode & 0o111):
        return False
    digest = hashlib.sha1(b"blob %d\0" % found.st_size)  # noqa: S324 - git's own naming
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(_PIECE), b""):
            digest.update(piece)
    return digest.hexdigest() == str(blob)


def _walk(base: str, prefix: str = "") -> Iterator[Tuple[str, os.stat_result]]:
    """Yield relative path and lstat of everything below ``base`` that is no directory."""
    try:
        scan = os.scandir(os.path.join(base, prefix))
    except FileNotFoundError:
        return
    with scan:
        for item in scan:
            path = prefix + item.name
            if item.is_dir(follow_symlinks=False):
                if item.name != _IGNORED:
                    yield from _walk(base, path + "/")
            else:
                yield path, item.stat(follow_symlinks=False)


def _complain(base: str, changed: List[str], missing: List[str], added: List[str]) -> None:
    kinds = (("changed", changed), ("missing", missing), ("added", added))
    parts = ["%s: %s" % (kind, _names(paths)) for kind, paths in kinds if paths]
    if parts:
        raise CheckoutError("checkout was tampered with: %s (in %s)" % ("; ".join(parts), base), _mend(base))


def _names(paths: List[str]) -> str:
    shown = [path if path.isprintable() else repr(path) for path in sorted(paths)[:5]]
    return ", ".join(shown) + (" and %d more" % (len(paths) - 5) if len(paths) > 5 else "")


def _mend(base: str) -> str:
    import shlex

    quoted = shlex.quote(base)
    return "chmod -R u+w %s; rm -rf %s %s.json, then `ems rerun` makes it anew" % (quoted, quoted, quoted)


def _restamp(base: str, files: Manifest, suspects: "List[Tuple[str, os.stat_result]]") -> None:
    for path, found in suspects:
        files[path] = [files[path][0], found.st_size, found.st_mtime_ns, found.st_ctime_ns, files[path][4]]
    record = {"v": 1, "snapshot": os.path.basename(base), "files": files}
    import contextlib

    with contextlib.suppress(OSError):  # only a matter of speed: the checkout has been found right
        write_atomic(base + ".json", json.dumps(record), durable=False)


def _facts(entry: Entry, found: os.stat_result) -> List[Any]:
    return [entry[1], found.st_size, found.st_mtime_ns, found.st_ctime_ns, entry[2]]


def _contents(git_dir: PathLike, entries: List[Entry]) -> Iterator[Tuple[Entry, bytes]]:
    """Yield each file with its content through one git process; checks every hash."""
    import subprocess
    import tempfile

    with tempfile.TemporaryFile() as wanted:
        wanted.write(b"".join(blob.encode("ascii") + b"\n" for _, _, blob in entries))
        wanted.seek(0)
        command = ["git", "--git-dir", os.fspath(git_dir), "cat-file", "--batch", "--buffer"]
        with _start(command, stdin=wanted, stdout=subprocess.PIPE) as process:
            objects = process.stdout  # type: Any
            for entry in entries:
                head = objects.readline().split()
                content = objects.read(int(head[2])) if len(head) == 3 else b""
                objects.read(1)
                if len(head) != 3 or blob_id(content) != entry[2]:
                    process.kill()
                    raise CheckoutError("%s: the object of %s is missing or damaged" % (git_dir, entry[0]))
                yield entry, content


def _write(path: str, mode: int, content: bytes, writable: bool) -> os.stat_result:
    if mode == _SYMLINK:
        os.symlink(os.fsdecode(content), path)
        return os.lstat(path)
    permissions = (0o555 if mode == _EXECUTABLE else 0o444) | (0o200 if writable else 0)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, permissions)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        return os.fstat(descriptor)


def _git(git_dir: PathLike, *args: str) -> bytes:
    import subprocess

    command = ["git", "--git-dir", os.fspath(git_dir), *args]
    with _start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        output, errors = process.communicate()
    if process.returncode != 0:
        words = errors.decode("utf-8", "replace").strip().splitlines() or ["exit %d" % process.returncode]
        raise CheckoutError("git cannot read %s: %s" % (os.fspath(git_dir), words[-1]))
    return bytes(output)


def _start(command: List[str], **streams: Any) -> "subprocess.Popen[bytes]":
    import subprocess

    try:
        return subprocess.Popen(command, env=clean_environment(), **streams)
    except FileNotFoundError:
        raise CheckoutError("git is not installed here", "install git") from None


def _parents(path: str) -> Iterator[str]:
    while path:
        yield path
        path = os.path.dirname(path)


def _mode(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def _aside(path: str) -> str:
    # the same parent: renaming a read-only directory into another one is not allowed
    return os.path.join(os.path.dirname(path), ".%s.%s.aside" % (os.path.basename(path), os.urandom(6).hex()))


def _delete(path: str) -> None:
    """Delete a tree whose directories are read-only."""
    import shutil

    for folder, _, _ in os.walk(path):  # top down: a folder is opened before it is entered
        os.chmod(folder, 0o700)
    shutil.rmtree(path, ignore_errors=True)
