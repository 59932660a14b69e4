"""Where a run works: a view of the project in the run's own directory.

Real directories, in which every file of the snapshot, and of the data that git ignores, stands at its usual relative
path. Python files and other small ones are copies: a script may overwrite them as it does on the laptop, and finds
itself in the view even where it resolves ``__file__``. All others are symbolic links into the read-only checkout, and
directories with very many files are linked as a whole. So relative reads work as in the project, and relative writes
land in the run's own directory. When the run has ended, everything it did not write is removed again: 10,000 runs keep
no 10,000 copies of the project.

The symbolic links exist once, in ``ROOT/views/PLAN/``; each view has hard links to them. That needs no inode (of which
file servers give few) and where making one is slow, is fifty times faster.

Compiled modules are kept for the next runs of a snapshot in ``ROOT/pycache/SNAPSHOT/FOLDER``; each view has hard links
to them in a ``__pycache__`` of its own. One folder for all would give a run the module that another one wrote: Python
tells them apart by size and second only. (PYTHONPYCACHEPREFIX has that fault too, and numpy and torch compiled anew.)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from itertools import islice

from ems.node import records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

_LINK = 0o120000  # git's mode of a symbolic link
_MAX_MODULES, _MAX_MODULE_BYTES = 1000, 1 << 20  # Python files that are copied
_MAX_COPIES, _MAX_COPY_BYTES = 200, 1 << 16  # other files that are copied, the least deep ones first
_MAX_DATA = 1000  # files and directories of the data that are shown one by one


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
        self._copies: Dict[str, Tuple[bytes, int]] = {}  # path -> content, mode
        self._left = _MAX_COPIES
        folders: Set[str] = set()
        data = {path.rstrip("/"): target for path, target in (data or {}).items()}
        whole = {*self._links, *data}
        for path in sorted(files, key=lambda path: path.count("/")):
            if whole.isdisjoint(_lineage(path)):
                is_link = int(str(files[path][0])) == _LINK
                source = os.path.join(self._code, path)
                self._plan(path, os.readlink(source) if is_link else source, is_link)
        modules = {os.path.dirname(path) for path in self._copies if path.endswith(".py") and path != script}
        kept = os.path.join(root, "pycache", snapshot)
        self._compiled = {os.path.join(folder, "__pycache__"): os.path.join(kept, folder) for folder in modules}
        folders.update(self._compiled)
        for path, target in data.items():
            folders.update(self._spread(path, target))
        folders.update(os.path.dirname(path) for path in (*self._links, *self._copies))
        self._dirs = sorted({parent for folder in folders for parent in _lineage(folder)})
        self._originals = _originals(os.path.join(root, "views"), list(self._links.items()))

    def _plan(self, path: str, source: str, is_link: bool = False) -> None:
        """Plan to copy a file if it is small, else to link it; a link to a link of the project is that link."""
        found = None if is_link else _ask(os.stat, source)
        content = _ask(_read, source) if found and self._may_copy(path, found) else None
        if found and content is not None:
            self._copies[path] = content, 0o755 if found.st_mode & 0o100 else 0o644
        else:
            self._links[path] = source

    def _may_copy(self, path: str, found: os.stat_result) -> bool:
        if not stat.S_ISREG(found.st_mode):
            return False
        if path.endswith(".py"):
            return len(self._copies) < _MAX_MODULES and found.st_size <= _MAX_MODULE_BYTES
        self._left -= found.st_size <= _MAX_COPY_BYTES
        return self._left >= 0 and found.st_size <= _MAX_COPY_BYTES

    def _spread(self, path: str, target: str) -> Iterator[str]:
        """Plan a file or directory of the data, and yield the directories that are to be real ones."""
        queue, left = [(path, target)], _MAX_DATA
        while queue:
            path, target = queue.pop(0)
            if os.path.islink(target) or not os.path.isdir(target):
                self._plan(path, target, os.path.islink(target))
                continue
            names = _names(target, left)
            if names is None:
                self._links[path] = target
                continue
            yield path
            left -= len(names)
            queue.extend((os.path.join(path, name), os.path.join(target, name)) for name in names)

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
        for path, (content, mode) in self._copies.items():
            _unless_there(_copy, base + path, content, mode)
        for place, kept in self._compiled.items():
            for name in _ask(os.listdir, kept) or ():
                with contextlib.suppress(OSError):  # only a matter of speed
                    os.link(os.path.join(kept, name), os.path.join(base + place, name))

    def clear(self, folder: str) -> None:
        """Remove from ``folder`` what the run did not write: links, unchanged copies, directories left empty."""
        base = folder + "/"
        for path, target in self._links.items():
            if _ask(os.readlink, base + path) == target:
                _ask(os.unlink, base + path)
        untouched = {path for path in self._copies if _is_untouched(base + path)}
        for place, kept in self._compiled.items():
            self._keep_compiled(base, place, kept, untouched)
        for path in untouched:
            _ask(os.unlink, base + path)
        for path in reversed(self._dirs):
            _ask(os.rmdir, base + path)

    def _keep_compiled(self, base: str, place: str, kept: str, untouched: Set[str]) -> None:
        """Empty a ``__pycache__``, keeping what was compiled of the project's modules as the run found them."""
        for name in _ask(os.listdir, base + place) or ():
            path = os.path.join(base + place, name)
            if name.endswith(".pyc") and os.path.join(os.path.dirname(place), name.split(".")[0] + ".py") in untouched:
                with contextlib.suppress(OSError):
                    os.makedirs(kept, exist_ok=True)
                    os.rename(path, os.path.join(kept, name))
            _ask(os.unlink, path)  # where it was there already, too: renaming a file to itself does nothing


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


def _copy(path: str, content: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        view, written = memoryview(content), 0
        while written < len(content):
            written += os.write(handle, view[written:])
        os.utime(handle, (records.UNTOUCHED_AT, records.UNTOUCHED_AT))
    finally:
        os.close(handle)


def _names(folder: str, limit: int) -> Optional[List[str]]:
    """Return what is in a directory, None where it cannot be read or holds more than ``limit`` entries."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, limit + 1)]
    except OSError:
        return None
    return names if len(names) <= limit else None


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _is_untouched(path: str) -> bool:
    found = _ask(os.lstat, path)
    return found is not None and records.is_untouched(found)


def _unless_there(make: Callable[..., object], *args: object) -> None:
    with contextlib.suppress(FileExistsError):
        make(*args)


def _ask(question: Callable[[str], object], path: str):  # type: ignore[no-untyped-def]  # whatever the question returns
    try:
        return question(path)
    except OSError:
        return None
