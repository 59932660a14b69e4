"""Data sets by content, beside the experiments of a root: ``data/HASH`` is one for ever, ``data/NAME`` a link to one.

An experiment keeps which content each name meant when it was submitted. So a data set that is pushed again under its
name is a new one, and what was submitted before goes on with the one that it was submitted with.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ems.errors import TargetError, UsageError
from ems.node.records import locked, write_atomic

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{40}")
_BLOCK = 1 << 20

_RACY_NS = 2_000_000_000  # a file changed so recently may change again without its time telling

# size, time of the last change in nanoseconds, inode; the time of modification can be set back by whoever writes
Facts = tuple[int, int, int]


def check_name(name: str) -> str:
    """Return a name that a data set may have.

    Raises
    ------
    UsageError
        If it may not.
    """
    if not _NAME.fullmatch(name) or _HASH.fullmatch(name):
        raise UsageError(
            f"`{name}` cannot be the name of a data set", "use letters, digits, dots and dashes, a letter first"
        )
    return name


def place(root: Path, content: str) -> Path:
    """Return where a content lies under a root, or would.

    Raises
    ------
    UsageError
        If it is no hash.
    """
    if not _HASH.fullmatch(content):
        raise UsageError(f"`{content}` is not the hash of a data set")
    return root / "data" / content


def arrival(root: Path, content: str) -> Path:
    """Return the folder in which a content comes together, so that a push that was broken off goes on."""
    return place(root, content).with_name(f".{content}.part")


def names(root: Path) -> dict[str, str]:
    """Return the data sets under a root: name -> hash."""
    found = {}
    with suppress(FileNotFoundError):
        for entry in sorted((root / "data").iterdir()):
            if entry.is_symlink() and _NAME.fullmatch(entry.name):
                content = os.readlink(entry)  # noqa: PTH115  # a name, no path
                if _HASH.fullmatch(content):
                    found[entry.name] = content
    return found


def settle(root: Path, content: str, name: str) -> None:
    """Take in what has come together, and let ``name`` mean it from now on. Safe to repeat, and beside others.

    Raises
    ------
    TargetError
        If what came is not what was sent.
    UsageError
        If it cannot be the name of a data set.
    """
    final, part, link = place(root, content), arrival(root, content), place(root, content).with_name(check_name(name))
    with locked(root / "data.lock"):  # asked once more after a break, the first one may still be at it
        if not final.exists():
            if digest(part) != content:
                raise TargetError(
                    f"what came of the data set {name} is not what was sent: it was changed meanwhile", "push it again"
                )
            _protect(part)
            part.rename(final)
        aside = final.with_name(f".{name}.aside")
        aside.unlink(missing_ok=True)
        aside.symlink_to(content)
        aside.replace(link)


def _protect(folder: Path) -> None:
    """Let nobody change a data set by mistake: the experiments of others read it, too."""
    for place_, _, files in os.walk(folder, topdown=False):
        for name in (*files, ""):
            path = os.path.join(place_, name)  # noqa: PTH118  # a million of them
            os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) & ~0o222)  # noqa: PTH101, PTH116  # as above


def copy(source: Path, into: Path) -> None:
    """Copy a folder, links followed; what a copy that was broken off has left is gone on from."""
    into.mkdir(parents=True, exist_ok=True)
    for folder, _, _ in os.walk(into):
        Path(folder).chmod(0o755)  # it may have been broken off when all was there and protected
    wanted = {path: (facts.st_size, facts.st_mtime_ns) for path, facts in files(source)}
    there = {path: (facts.st_size, facts.st_mtime_ns) for path, facts in files(into)}
    for path, facts in there.items():
        if facts != wanted.get(path):
            (into / path).unlink()
    for path, facts in wanted.items():
        if facts != there.get(path):
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / path, into / path)


def files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and facts of every file below a folder, links followed.

    Raises
    ------
    UsageError
        If there is something that is neither file nor folder, or a link that leads back to where it came from.
    """
    yield from _files(folder, "", frozenset())


def _files(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, os.stat_result]]:
    facts = folder.stat()
    key = (facts.st_dev, facts.st_ino)
    if key in above:
        raise UsageError(f"{folder} is a link to a folder that it lies in", "remove it")
    for entry in sorted(os.scandir(folder), key=lambda each: os.fsencode(each.name)):
        try:
            found = entry.stat()
        except FileNotFoundError:
            raise UsageError(f"{entry.path} is a link to nothing", "remove it") from None
        if stat.S_ISDIR(found.st_mode):
            yield from _files(Path(entry.path), f"{prefix}{entry.name}/", above | {key})
        elif stat.S_ISREG(found.st_mode):
            yield prefix + entry.name, found
        else:
            raise UsageError(f"{entry.path} is neither a file nor a folder", "remove it")


def digest(folder: Path, cache: Path | None = None, progress: Callable[[int], None] | None = None) -> str:
    """Return the hash of what a folder holds: names, contents, and which files are programs; 40 hex digits.

    Empty folders and times do not count.

    Parameters
    ----------
    cache
        A file that remembers the hash of each file by size, time of its last change, and inode, so that the second
        look at a large data set takes no longer than listing it.
    progress
        Called with the number of bytes read so far.
    """
    found = list(files(folder))
    known = _load(cache)
    sure_before = time.time_ns() - _RACY_NS
    n_read = 0

    def of(each: tuple[str, os.stat_result]) -> tuple[str, Facts, str]:
        nonlocal n_read
        path, facts = each
        key = (facts.st_size, facts.st_ctime_ns, facts.st_ino)
        had = known.get(path)
        if had is not None and had[0] == key:
            return path, key, had[1]
        seen = _of_file(folder / path)
        n_read += facts.st_size
        if progress is not None:
            progress(n_read)
        return path, key, seen

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets go of the interpreter
        entries = list(pool.map(of, found))
    _save(cache, [entry for entry in entries if entry[1][1] < sure_before])
    total = hashlib.blake2b(b"ems data 1\n", digest_size=20)
    for (path, facts), (_, _, seen) in zip(found, entries, strict=True):
        is_program = "x" if facts.st_mode & 0o100 else "-"
        total.update(f"{is_program} {seen} {json.dumps(path)}\n".encode())
    return total.hexdigest()


def _of_file(path: Path) -> str:
    seen = hashlib.blake2b(digest_size=20)
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            seen.update(block)
    return seen.hexdigest()


def _load(cache: Path | None) -> Mapping[str, tuple[Facts, str]]:
    if cache is None:
        return {}
    try:
        return {path: ((a, b, c), seen) for path, (a, b, c), seen in json.loads(cache.read_text())}
    except (OSError, ValueError, TypeError):
        return {}


def _save(cache: Path | None, entries: list[tuple[str, Facts, str]]) -> None:
    if cache is not None:
        cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(cache.with_suffix(".lock")):
            write_atomic(cache, json.dumps(entries), durable=False)
