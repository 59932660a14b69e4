"""A mirror: the root of another machine, as far as it was pulled, below the project here.

It has the layout of any root, so that everything that reads one reads it. Its files' sizes and times are the cursor:
there is no other record of what was pulled, and so none that could be wrong. See :mod:`ems.remote.pull` for the order
in which things come, by which a pull that is killed at any byte leaves what the next one goes on from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeAlias

from ems import outputs
from ems.errors import ConnectionFailedError
from ems.executor.base import writing_to
from ems.node import records
from ems.node.records import ExperimentFiles
from ems.remote.pull import STATES, Scope
from ems.remote.stream import fingerprint, unpacked
from ems.remote.wire import BrokenWireError, Frame

Call: TypeAlias = "Callable[[Frame], Iterable[tuple[Frame, bytes]]]"
Cursor: TypeAlias = "dict[str, tuple[int, int]]"

_ROUNDS = 5  # of asking again for files that are not what they were taken for
_OF_NO_USE = (-1, 0)  # size and time of a file that is to come as a whole
_LOCK, _ASIDE = "pull.lock", "pull.aside"


@dataclass(slots=True)
class Pulled:
    """What a pull brought.

    Attributes
    ----------
    complete
        By experiment the runs of which every file that was asked for is here, and whether they had ended before.
    missing
        Experiments that the other machine does not have.
    left_out
        ``EXP/INDEX/FILE`` of what is too large to be asked for unnamed.
    n_bytes
        Of contents that came.
    """

    complete: dict[str, dict[int, bool]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    n_bytes: int = 0


class Mirror:
    """The mirror below ``root``.

    Parameters
    ----------
    root
        Its root; made if need be.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def pull(
        self,
        call: Call,
        runs: Mapping[str, Collection[int]],
        scope: Scope = STATES,
        progress: Callable[[int], None] | None = None,
    ) -> Pulled:
        """Bring what is new of some runs; waits for another pull into this mirror.

        Parameters
        ----------
        call
            Sends what is asked for to the other machine (see :func:`ems.remote.pull.frames`) and yields the packs
            that come back.
        runs
            By experiment, which runs; those that have not started cost nothing.
        scope
            Which of their files.
        progress
            Called with the number of bytes that have come.

        Raises
        ------
        ConnectionFailedError, TargetError
            If the other machine cannot be reached, or the mirror cannot be written. What came stays, and is right.
        """
        pulled = Pulled()
        left, mistaken = runs, frozenset[str]()
        if not runs:
            return pulled
        with writing_to(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with records.locked(self.root / _LOCK):
                for left_rounds in reversed(range(_ROUNDS)):
                    work, came = _Work(self.root, left, pulled), pulled.n_bytes
                    try:
                        work.apply(call(self._request(left, scope, mistaken)), progress)
                    except ConnectionFailedError:
                        if pulled.n_bytes == came or not left_rounds:
                            raise
                        continue  # something came: it goes on from there
                    left, mistaken = work.again, frozenset(work.mistaken)
                    if not left:
                        return pulled
        return pulled

    def _request(self, runs: Mapping[str, Collection[int]], scope: Scope, mistaken: Collection[str]) -> Frame:
        experiments = {}
        for exp_id, indices in runs.items():
            have = self.cursor(exp_id, indices, scope)
            for name in have.keys() & {each.removeprefix(f"{exp_id}/") for each in mistaken}:
                have[name] = _OF_NO_USE
            experiments[exp_id] = {"runs": _spans(indices), "have": have}
        return {"experiments": experiments, "scope": asdict(scope)}

    def cursor(self, exp_id: str, indices: Collection[int], scope: Scope = STATES) -> Cursor:
        """Return size and time of what is here of some runs, by path below the experiment's directory."""
        files = ExperimentFiles(self.root, exp_id)
        found: Cursor = {}
        names = [f"chunks/{entry.name}" for entry in _entries(files.chunks) if entry.name.endswith((".json", ".job"))]
        for name in [*names, "hold"]:
            with suppress(OSError):
                there = Path(files.dir, name).lstat()
                found[name] = (there.st_size, there.st_mtime_ns)
        wanted = indices if isinstance(indices, range | set | frozenset) else set(indices)
        for entry in _entries(os.path.join(files.dir, "runs")):  # noqa: PTH118  # thousands of runs
            if entry.name.isdigit() and int(entry.name) in wanted:
                top = "attempts" if scope == STATES else ""
                for name, facts in _below(os.path.join(entry.path, top), top and f"{top}/"):  # noqa: PTH118  # as above
                    found[f"runs/{entry.name}/{name}"] = facts
        return found


class _Work:
    """Puts the frames of one answer where they belong.

    Attributes
    ----------
    again
        Runs of which a file is not what it was taken for; nothing that came of them after it was taken.
    mistaken
        Those files, ``EXP/runs/I/PATH``.
    """

    def __init__(self, root: Path, asked: Mapping[str, Collection[int]], pulled: Pulled) -> None:
        self._root, self._pulled = root, pulled
        self._asked = {exp_id: frozenset(indices) for exp_id, indices in asked.items()}
        self.again: dict[str, set[int]] = {}
        self.mistaken: set[str] = set()
        self._exp_id, self._folder = "", root
        self._told: set[int] = set()  # runs of this experiment of which something was said
        self._skips = False  # to the end of this run
        self._file: BinaryIO | None = None
        self._place = root  # where the open file belongs; it is aside if it is to replace what is there
        self._is_aside = False

    def apply(self, packs: Iterable[tuple[Frame, bytes]], progress: Callable[[int], None] | None = None) -> None:
        """Take all frames in order.

        Raises
        ------
        ConnectionFailedError
            If what comes is no answer, or ends too early.
        """
        try:
            for header, data in unpacked(packs):
                self._take(header, data)
                if progress is not None and data:
                    progress(self._pulled.n_bytes)
            self._close_experiment()
        except BrokenWireError as error:
            raise ConnectionFailedError(f"the answer of the other machine is damaged: {error}", "try again") from error
        finally:
            self._drop()

    def _take(self, header: Frame, data: bytes) -> None:
        self._pulled.n_bytes += len(data)
        if "experiment" in header:
            self._open_experiment(header)
        elif "run" in header:
            self._close_run(header)
        elif self._skips:
            return
        elif "gone" in header:
            self._remove(self._path(header["gone"]))
        else:
            if "file" in header:
                self._open(header)
            if self._file is not None:
                self._file.write(data)
            if "mtime" in header and self._drop():
                self._finish(header["mtime"])

    def _close_experiment(self) -> None:
        """Note that runs of which nothing came have nothing there."""
        if self._exp_id and self._exp_id not in self._pulled.missing:
            complete = self._pulled.complete.setdefault(self._exp_id, {})
            complete.update(dict.fromkeys(self._asked[self._exp_id] - self._told, False))

    def _open_experiment(self, header: Frame) -> None:
        self._close_experiment()
        self._told = set()
        self._exp_id = str(header["experiment"])
        if self._exp_id not in self._asked:
            raise BrokenWireError(f"{self._exp_id} was not asked for")
        self._folder = Path(ExperimentFiles(self._root, self._exp_id).dir)
        if header.get("missing"):
            self._pulled.missing.append(self._exp_id)

    def _close_run(self, header: Frame) -> None:
        index = int(header["run"])
        self._told.add(index)
        if self._skips:
            self.again.setdefault(self._exp_id, set()).add(index)
        elif header["whole"]:
            self._pulled.complete.setdefault(self._exp_id, {})[index] = bool(header["ended"])
        named = (f"{self._exp_id}/{index}/{outputs.below(name)}" for name in header.get("left_out") or ())
        self._pulled.left_out += named
        self._skips = False

    def _path(self, name: str) -> Path:
        """Return where a path belongs; what the other machine says must not reach beyond what was asked for."""
        parts = name.split("/")
        is_run = len(parts) > 2 and parts[0] == "runs" and parts[1].isdecimal()
        is_own = name == "hold" or (len(parts) == 2 and parts[0] == "chunks")
        is_asked = is_own or (is_run and int(parts[1]) in self._asked[self._exp_id])
        if not is_asked or any(part in ("", ".", "..") for part in parts) or "\0" in name:
            raise BrokenWireError(f"{name!r} was not asked for")
        return self._folder / name

    def _open(self, header: Frame) -> None:
        self._drop()  # one that could not be read to its end over there
        name, offset = header["file"], header.get("at", 0)
        self._place = self._path(name)
        self._is_aside = not offset and bool(header.get("whole") or self._place.exists())
        if offset:
            self._file = _known(self._place, offset, header["seen"], is_appended=header["appended"])
            if self._file is None:
                self.mistaken.add(f"{self._exp_id}/{name}")
                self._skips = True
        else:
            self._file = _create(self._root / _ASIDE if self._is_aside else self._place)

    def _drop(self) -> bool:
        """Close the file that is open; return whether one was."""
        if self._file is None:
            return False
        self._file.close()
        self._file = None
        return True

    def _finish(self, mtime_ns: int) -> None:
        """Put the file in place; its time, by which it is known as pulled, comes last."""
        at = self._root / _ASIDE if self._is_aside else self._place
        os.utime(at, ns=(mtime_ns, mtime_ns))
        if self._is_aside:
            _replace(at, self._place)

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == self._folder or not _is_removed(folder):
                return


def _known(path: Path, size: int, seen: str, *, is_appended: bool) -> BinaryIO | None:
    """Open a file at its end, to append to it; None where it is not the beginning of the other machine's."""
    try:
        file = path.open("r+b", buffering=0)
    except FileNotFoundError:
        return None
    is_whole = file.seek(0, os.SEEK_END) == size
    if is_whole and fingerprint(file.fileno(), size, is_appended=is_appended) == seen:
        return file
    file.close()
    return None


def _create(path: Path) -> BinaryIO:
    try:
        return path.open("wb", buffering=0)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb", buffering=0)


def _replace(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)


def _is_removed(folder: Path) -> bool:
    """Remove a folder if it is empty; return whether it was."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except FileNotFoundError:
        return []


def _below(folder: str, prefix: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield path, size and time of all files below a folder."""
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path, f"{prefix}{entry.name}/")
        elif entry.name != "cancel" or prefix:  # what this side asks of the other
            facts = entry.stat(follow_symlinks=False)
            yield prefix + entry.name, (facts.st_size, facts.st_mtime_ns)


def _spans(indices: Collection[int]) -> list[tuple[int, int]]:
    """Return numbers as half-open ranges."""
    spans: list[tuple[int, int]] = []
    for index in sorted(indices):
        if spans and spans[-1][1] == index:
            spans[-1] = (spans[-1][0], index + 1)
        else:
            spans.append((index, index + 1))
    return spans
