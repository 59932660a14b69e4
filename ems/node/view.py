"""Where a run works: a view of the project in the run's own directory.

Real directories, in which every file of the snapshot stands at its usual relative path. Python files are small copies,
so that ``__file__`` lies in the view even where a script resolves it; all others are symbolic links into the read-only
checkout. Relative reads work as in the project, relative writes land in the run's own directory. When the run has
ended, everything it did not write is removed again: 10,000 runs keep no 10,000 copies of the project.

The symbolic links exist once, in ``ROOT/views/PLAN/``; each view has hard links to them. That needs no inode (of which
file servers give few) and where making one is slow, is fifty times faster.

Compiled modules are shared by all runs of a snapshot: ``__pycache__`` of each folder is a link to
``ROOT/pycache/SNAPSHOT/FOLDER``. (PYTHONPYCACHEPREFIX would do that too, but has numpy and torch compiled anew.)
"""

from __future__ import annotations

import contextlib
import hashlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterable, Iterator, Mapping, Optional, Sequence, Tuple

_LINK = 0o120000  # git's mode of a symbolic link
_MAX_COPIES = 1000  # Python files beyond this number are linked
_MAX_COPY_BYTES = 1 << 20  # and so are larger ones


class View:
    """The plan of a view: made once by a worker, then built for each of its runs.

    Parameters
    ----------
    root, snapshot
        The target's root and the id of the snapshot, whose checkout is ``ROOT/code/SNAPSHOT``.
    files
        The snapshot's files: path -> [git's mode, ...]; see :mod:`ems.node.checkout`.
    linked_dirs
        Directories of the snapshot that are linked as a whole, because they are large.
    data
        Further paths of the project (what git ignores but runs need) -> absolute path on the target. They hide
        what the snapshot has below them.
    script
        The entry point, which Python never keeps compiled.
    """

    def __init__(
        self,
        root: str,
        snapshot: str,
        files: Mapping[str, Sequence[object]],
        linked_dirs: Iterable[str] = (),
        data: Optional[Mapping[str, str]] = None,
        script: str = "",
    ) -> None:
        self._code = os.path.join(root, "code", snapshot)
        self._links: Dict[str, str] = {path: os.path.join(self._code, path) for path in linked_dirs}
        self._links.update((path.rstrip("/"), target) for path, target in (data or {}).items())
        self._copies: Dict[str, Tuple[bytes, int, int]] = {}  # path -> content, mode, mtime_ns
        whole = set(self._links)
        for path, facts in files.items():
            if whole.isdisjoint(_lineage(path)):
                self._plan(path, int(str(facts[0])))
        for folder in {os.path.dirname(path) for path in self._copies if path != script}:
            self._share_compiled(os.path.join(root, "pycache", snapshot, folder), folder)
        paths = (*self._links, *self._copies)
        self._dirs = sorted({parent for path in paths for parent in _lineage(os.path.dirname(path))})
        self._originals = _originals(os.path.join(root, "views"), list(self._links.items()))

    def _plan(self, path: str, mode: int) -> None:
        source = os.path.join(self._code, path)
        if mode == _LINK:
            self._links[path] = os.readlink(source)
        elif path.endswith(".py") and len(self._copies) < _MAX_COPIES and os.path.getsize(source) <= _MAX_COPY_BYTES:
            with open(source, "rb") as file:
                found = os.stat(file.fileno())
                self._copies[path] = file.read(), 0o755 if mode & 0o100 else 0o644, found.st_mtime_ns
        else:
            self._links[path] = source

    def _share_compiled(self, shared: str, folder: str) -> None:
        try:
            os.makedirs(shared, exist_ok=True)
        except OSError:
            return  # only a matter of speed
        self._links.setdefault(os.path.join(folder, "__pycache__"), shared)

    def make(self, folder: str) -> None:
        """Build the view in ``folder``; what an earlier attempt of the run left there wins over the snapshot.

        Raises
        ------
        OSError
            If ``folder`` cannot be written.
        """
        base = folder + "/"
        os.makedirs(folder, exist_ok=True)
        for path in self._dirs:
            _unless_there(os.mkdir, base + path)
        for number, (path, target) in enumerate(self._links.items()):
            _unless_there(_link, "%s/%d" % (self._originals, number), target, base + path)
        for path, (content, mode, mtime_ns) in self._copies.items():
            _unless_there(_copy, base + path, content, mode, mtime_ns)

    def clear(self, folder: str) -> None:
        """Remove from ``folder`` what the run did not write: links, unchanged copies, directories left empty."""
        base = folder + "/"
        for path, target in self._links.items():
            if _ask(os.readlink, base + path) == target:
                _ask(os.unlink, base + path)
        for path, (content, _, mtime_ns) in self._copies.items():
            found = _ask(os.lstat, base + path)
            if found is not None and (found.st_size, found.st_mtime_ns) == (len(content), mtime_ns):
                _ask(os.unlink, base + path)
        for path in reversed(self._dirs):
            _ask(os.rmdir, base + path)


def _lineage(path: str) -> Iterator[str]:
    """Yield ``path`` and the directories above it, up to but without the top."""
    while path:
        yield path
        path = os.path.dirname(path)


def _originals(folder: str, links: Sequence[Tuple[str, str]]) -> str:
    """Make the symbolic links of a plan, named by their number, unless they are there; return their directory."""
    digest = hashlib.sha256("\0".join(target for _, target in links).encode("utf-8", "surrogateescape"))
    final = os.path.join(folder, digest.hexdigest()[:16])
    if not os.path.isdir(final):
        aside = "%s.%s.aside" % (final, os.urandom(6).hex())
        try:
            os.makedirs(aside)
            for number, (_, target) in enumerate(links):
                os.symlink(target, "%s/%d" % (aside, number))
            os.rename(aside, final)
        except OSError:  # another worker was first, or the disk is full: then the run's own links say so
            import shutil

            shutil.rmtree(aside, ignore_errors=True)
    return final


def _link(original: str, target: str, path: str) -> None:
    try:
        os.link(original, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # no such file system, or too many links to one file
        os.symlink(target, path)


def _copy(path: str, content: bytes, mode: int, mtime_ns: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        view, written = memoryview(content), 0
        while written < len(content):
            written += os.write(handle, view[written:])
        os.utime(handle, ns=(mtime_ns, mtime_ns))  # compiled modules are valid for one mtime
    finally:
        os.close(handle)


def _unless_there(make: Callable[..., object], *args: object) -> None:
    with contextlib.suppress(FileExistsError):
        make(*args)


def _ask(question: Callable[[str], object], path: str):  # type: ignore[no-untyped-def]  # whatever the question returns
    try:
        return question(path)
    except OSError:
        return None
