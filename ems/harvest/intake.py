"""The files of one run that hold metrics (:mod:`ems.outputs`), read on from where the last harvest stopped.

A file that was written anew (another beginning than before, or shorter) is read anew, and what it gave before is void.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path

from ems import outputs
from ems.harvest import readers
from ems.harvest.points import Batch, RunState, Source
from ems.node.records import ExperimentFiles
from ems.store.wide import flatten

_EDGE = 256  # bytes at the beginning and before the position, by which a file is known again


class Intake:
    """Reads the files of the runs of one experiment.

    Parameters
    ----------
    files
        Its paths.
    patterns
        Regular expressions for printed lines; none: the usual forms.
    globs
        Further files to read, relative to the working tree of a run.

    Raises
    ------
    re.error
        If a pattern is none.
    """

    def __init__(self, files: ExperimentFiles, patterns: Sequence[str] = (), globs: Iterable[str] = ()) -> None:
        self._files = files
        self._patterns = tuple(patterns)
        self._globs = tuple(globs)
        self.problems: list[str] = []
        readers.printed(self._patterns)

    def read(self, run: RunState, is_final: bool) -> bool:
        """Put what is new into ``run.batches``; return whether all of it has been read.

        Parameters
        ----------
        is_final
            Whether the run has ended, so that nothing more comes.
        """
        folder = Path(self._files.run(run.index))
        before = self._files.attempt_numbers(run.index)
        if before and before[-1] != run.last_attempt:
            return False
        is_complete, n_problems = True, len(self.problems)
        found = sorted(self._find(folder, run))
        for key in found:
            try:
                is_complete &= self._read_file(run, key, folder / key[1:], is_final)
            except FileNotFoundError:
                is_complete = False
            except OSError as error:
                self._complain(run, key, error.strerror or str(error))
        self._drop_missing(run, found)
        # an attempt that began meanwhile may have printed what would be taken for the one before
        if self._files.attempt_numbers(run.index) != before:
            run.batches.clear()
            del self.problems[n_problems:]
            return False
        return is_complete

    def _find(self, folder: Path, run: RunState) -> set[str]:
        found = {key for key in run.sources if (folder / key[1:]).is_file()}
        for path in outputs.walk(folder):
            kind = self._kind(path)
            if kind:
                found.add(kind + path)
        return found

    def _kind(self, path: str) -> str:
        return outputs.kind(path, self._globs, with_stderr=bool(self._patterns))

    def _read_file(self, run: RunState, key: str, path: Path, is_final: bool) -> bool:
        """Read one file on; return whether its end was reached."""
        old = run.sources.get(key)
        if key[0] == "5" and not _has_tensorboard():
            if is_final:
                self._complain(run, key, "left out: pip install 'ems[tensorboard]', then --metric-files '*tfevents*'")
            return True
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            if key[0] == "3":
                return self._read_document(run, key, file.read(readers.MAX_BYTES), is_final)
            if key[0] == "4" and facts.st_size > outputs.MAX_CSV_BYTES and not outputs.is_named(key[1:], self._globs):
                if old is None:
                    self._complain(
                        run, key, f"larger than {outputs.MAX_CSV_BYTES >> 20} MB: left out unless --metric-files"
                    )
                    run.batches.append(Batch(Source(key, size=facts.st_size, attempt=run.last_attempt), {}))
                return True
            is_anew = old is not None and (
                facts.st_size < old.offset or _fingerprint(file.fileno(), old.offset) != old.fingerprint
            )
            source = deepcopy(old) if old is not None and not is_anew else Source(key)
            data = os.pread(file.fileno(), readers.MAX_BYTES, source.offset)
            at_end = source.offset + len(data) >= facts.st_size
            if not data and not is_anew:
                return True
            read = self._read_bytes(run, source, data, is_final and at_end)
            source.offset += read.consumed
            source.size, source.mtime_ns, source.attempt = facts.st_size, facts.st_mtime_ns, run.last_attempt
            source.fingerprint = _fingerprint(file.fileno(), source.offset)
        self._report(run, key, read)
        if read.consumed or read.points or is_anew:
            run.batches.append(Batch(source, _prefixed(key, read.points), is_anew))
        return at_end

    def _read_bytes(self, run: RunState, source: Source, data: bytes, is_last: bool) -> readers.Read:
        if source.key[0] in "789":
            reader = self._printed(run)
            if source.key[0] in "89":
                return _by_attempt(reader, run, source, data, is_last)
        else:
            reader = {"1": readers.jsonl, "2": readers.jsonl, "4": readers.table, "5": readers.tensorboard}[
                source.key[0]
            ]
        return readers.read_all(reader, data, source.state) if is_last else reader(data, source.state)

    def _printed(self, run: RunState) -> readers.Reader:
        names = flatten(run.params)
        return readers.printed(self._patterns, {*names, *(path[-1] for path in names.values())})

    def _read_document(self, run: RunState, key: str, data: bytes, is_final: bool) -> bool:
        """Read a file that is written whole: again when its content has changed."""
        fingerprint = hashlib.blake2b(data, digest_size=8).hexdigest()
        old = run.sources.get(key)
        if old is not None and old.fingerprint == fingerprint:
            return True
        read = readers.document(data, {})
        if read.n_problems and not is_final:  # it may just be being written
            return False
        self._report(run, key, read)
        source = Source(key, len(data), len(data), 0, fingerprint, run.last_attempt)
        run.batches.append(Batch(source, read.points, is_anew=old is not None))
        return True

    def _drop_missing(self, run: RunState, found: Iterable[str]) -> None:
        """Void what files gave that are gone, if the run has begun anew since; else it still counts."""
        for key, source in run.sources.items():
            if key not in found and source.attempt not in run.chain:
                run.batches.append(Batch(source, {}, is_anew=True, is_gone=True))

    def _report(self, run: RunState, key: str, read: readers.Read) -> None:
        for problem in read.problems:
            self._complain(run, key, problem, separator=" ")
        if read.n_problems > len(read.problems):
            more = read.n_problems - len(read.problems)
            self._complain(run, key, f"{more:,} more {'line' if more == 1 else 'lines'} like these")

    def _complain(self, run: RunState, key: str, what: str, separator: str = ": ") -> None:
        self.problems.append(f"{self._files.id}/{run.index}/{outputs.below(key[1:])}{separator}{what}")


def _fingerprint(handle: int, offset: int) -> str:
    """Return by what a file is known again: its first bytes and those before ``offset``."""
    head = os.pread(handle, min(_EDGE, offset), 0)
    last = os.pread(handle, min(_EDGE, offset), max(0, offset - _EDGE))
    return hashlib.blake2b(head + last, digest_size=8).hexdigest()


def _by_attempt(reader: readers.Reader, run: RunState, source: Source, data: bytes, is_last: bool) -> readers.Read:
    """Read a log to which several attempts appended, each from a byte that its record names."""
    column = 2 if source.key[0] == "8" else 3
    starts = [(attempt[column] or 0, attempt[0] or 0, attempt[1]) for attempt in run.attempts]
    end = source.offset + len(data)
    total = readers.Read()
    for place, (start, attempt, resumed) in enumerate(starts):
        stop = starts[place + 1][0] if place + 1 < len(starts) else end
        first, past = max(start, source.offset) - source.offset, min(stop, end) - source.offset
        if past <= first:
            continue
        if source.state.get("attempt") != attempt:
            source.state["attempt"] = attempt
            if resumed is None:  # begun anew: what has no step counts from 0 again
                source.state.pop("counts", None)
        is_closed = stop < end or (stop == end and place + 1 < len(starts))
        part = data[first:past]
        if is_closed and not part.endswith(b"\n"):
            part += b"\n"  # the attempt was ended in the middle of a line
        read = readers.read_all(reader, part, source.state) if is_last and not is_closed else reader(part, source.state)
        total.consumed = first + min(read.consumed, past - first)
        for name, points in read.points.items():
            total.points.setdefault(name, []).extend((attempt, *point[1:]) for point in points)
    return total


def _prefixed(key: str, points: dict[str, list[readers.Point]]) -> dict[str, list[readers.Point]]:
    """Name the metrics of other ranks than 0 after their rank."""
    rank = re.fullmatch(r"1metrics-(\d+)\.jsonl", key)
    return {f"rank{rank[1]}/{name}": found for name, found in points.items()} if rank else points


@functools.cache
def _has_tensorboard() -> bool:
    try:
        readers.tensorboard(b"", {})
    except ImportError:
        return False
    return True
