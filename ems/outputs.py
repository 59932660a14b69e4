"""The files that a run has written: which they are, and which of them hold metrics.

| kind | file | metrics |
|---|---|---|
| 1 | ``metrics.jsonl`` (``metrics-RANK.jsonl``) | ``ems.log()`` |
| 2 | ``**/metrics.jsonl`` | one JSON object a line, written by the script itself |
| 3 | ``**/results.json`` | one JSON document |
| 4 | ``**/*.csv`` | columns with a header |
| 5 | ``**/*tfevents*`` | TensorBoard scalars |
| 7 | what a person named and no other kind is | printed lines |
| 8, 9 | ``stdout.log``; ``stderr.log`` only by patterns | printed lines |

Only what the script wrote counts: the project's own files are links, or untouched copies, in the run's view.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, TypeAlias

from ems.node import records

MAX_CSV_BYTES = 64 * 2**20  # a larger one that nobody named is data, not a log
TOO_LARGE = f"larger than {MAX_CSV_BYTES >> 20} MB: left out unless --metric-files"
_OWN = ("stdout.log", "stderr.log", "metrics.jsonl")  # beside files/, the records that people ask for
_SKIPPED_DIRS = frozenset({"attempts", "checkpoint", "__pycache__", "node_modules"})
_LOGS = {"stdout.log": "8", "stderr.log": "9"}
_FORMS = {
    "1": re.compile(r"metrics(-\d+)?\.jsonl"),
    "2": re.compile(r"(.*/)?metrics\.jsonl"),
    "3": re.compile(r"(.*/)?results\.json"),
    "4": re.compile(r".*\.csv"),
    "5": re.compile(r".*tfevents[^/]*"),
}
_BY_SUFFIX = {".json": "3", ".csv": "4", ".tsv": "4", ".jsonl": "2", ".ndjson": "2"}


def kind(path: str, globs: Sequence[str] = (), with_stderr: bool = False) -> str:
    """Return the digit of a file's kind; empty for one without metrics.

    Parameters
    ----------
    path
        Below the run's directory, with ``/``.
    globs
        Further files that hold metrics, as the script calls them.
    with_stderr
        Whether what is printed to stderr is read too.
    """
    name = path.rpartition("/")[2]
    if path in _LOGS:
        return _LOGS[path] if path == "stdout.log" or with_stderr else ""
    found = next((digit for digit, form in _FORMS.items() if form.fullmatch(path)), "")
    if not found and any(fnmatch.fnmatch(each, glob) for glob in globs for each in (below(path), name)):
        found = _BY_SUFFIX.get("." + name.rpartition(".")[2].lower(), "7")
    return found


def is_named(path: str, globs: Sequence[str]) -> bool:
    """Whether a person named this very file, so that it is read whatever its size."""
    return any(fnmatch.fnmatch(below(path), glob) for glob in globs)


def below(path: str) -> str:
    """Return a path below the run's directory as the script sees it."""
    return path.removeprefix("files/")


def walk(folder: Path, prefix: str = "", skipped: Collection[str] = _SKIPPED_DIRS) -> Iterator[str]:
    """Yield the paths of what a run has written below ``folder``: not the links and untouched files of the project."""
    try:
        entries = list(os.scandir(folder / prefix))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    for entry in entries:
        path = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in skipped and not entry.name.startswith("."):
                yield from walk(folder, path + "/", skipped)
        elif entry.is_file(follow_symlinks=False) and _is_written(entry):
            yield path


def _is_written(entry: os.DirEntry[str]) -> bool:
    try:
        return not records.is_untouched(entry.stat(follow_symlinks=False))
    except FileNotFoundError:  # the run, or what tidies up after it, has just removed it
        return False


def matching(folder: Path, pattern: str, cwd: str) -> Iterator[str]:
    """Yield the paths below a run's directory that match a shell pattern.

    Parameters
    ----------
    pattern
        Of the path as the script sees it, of the path below the run's directory (``checkpoint/*.pt``,
        ``stdout.log``), or of the name alone.
    cwd
        Where the script works in the project.
    """
    base = "" if cwd == "." else f"{cwd}/"
    for path in walk(folder, skipped=("attempts", "__pycache__")):
        seen = below(path)
        names = [path, seen, seen.removeprefix(base)]
        if "/" not in pattern:
            names.append(seen.rpartition("/")[2])
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            yield path


#: Path as a person names it, size in bytes, time of modification (unix).
Written: TypeAlias = "tuple[str, int, float]"


class RunFiles(Protocol):
    """What of a run people look at, wherever it lies."""

    def exists(self) -> bool:
        """Whether the run has a folder."""
        ...

    def written(self) -> list[Written]:
        """Return what the run has written: its records, its checkpoint, its own files.

        The project's files that the run only sees (links, and unchanged copies of modules) are left out.
        """
        ...

    def find(self, names: Sequence[str], cwd: str = ".") -> list[str | None]:
        """Find what a person means by files of the run: what the script wrote first, then the run's own records.

        Parameters
        ----------
        cwd
            Where the script works in the project: what it calls ``out.csv`` is found by that name.

        Returns
        -------
        list of str or None
            Of each the path below the run's folder, with ``/`` at the end of a folder's; None where there is none, or
            it lies outside of the run.
        """
        ...

    def open(self, path: str) -> BinaryIO:
        """Open a file, by its path below the run's folder.

        Raises
        ------
        FileNotFoundError
            If it is not there.
        """
        ...

    def copy(self, places: Mapping[str, Path]) -> None:
        """Copy files, by their paths below the run's folder, over what is there."""
        ...


class RunFolder:
    """A run whose files lie on this machine, or in a mirror of another: see :class:`RunFiles`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether the run has a folder."""
        return self.path.is_dir()

    def written(self) -> list[Written]:
        """Return what the run has written."""
        return list(self._written())

    def _written(self) -> Iterator[Written]:
        for name in _OWN:
            with suppress(FileNotFoundError):
                facts = (self.path / name).stat()
                if facts.st_size:
                    yield name, facts.st_size, facts.st_mtime
        for top in ("checkpoint", "files"):
            for path in sorted((self.path / top).rglob("*")):
                try:
                    facts = path.lstat()
                except FileNotFoundError:  # removed meanwhile
                    continue
                if not stat.S_ISREG(facts.st_mode):
                    continue
                relative = path.relative_to(self.path / top).as_posix()
                if top == "files" and records.is_untouched(facts):
                    continue
                yield relative if top == "files" else f"{top}/{relative}", facts.st_size, facts.st_mtime

    def find(self, names: Sequence[str], cwd: str = ".") -> list[str | None]:
        """Return the paths below the folder of what a person calls ``names``."""
        return [self._find(name, cwd) for name in names]

    def _find(self, name: str, cwd: str) -> str | None:
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            return None
        for place in ("files", f"files/{cwd}", ""):
            path = self.path / place / name
            if path.exists():
                found = path.relative_to(self.path).as_posix()
                return f"{found}/" if path.is_dir() else found
        return None

    def open(self, path: str) -> BinaryIO:
        """Open a file, by its path below the folder."""
        if ".." in PurePosixPath(path).parts or path.startswith("/"):
            raise FileNotFoundError(path)
        return (self.path / path).open("rb")

    def copy(self, places: Mapping[str, Path]) -> None:
        """Copy files, by their paths below the folder."""
        for path, place in places.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.path / path, place)
