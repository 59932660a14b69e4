"""What is new below a root: chosen and sent by the machine that has it.

The one who asks says which files there are in its mirror, by size and time; what differs is sent. The order is such
that the mirror is, after every single frame, a state in which the root itself might have been, so that neither being
killed nor being read meanwhile does harm. Of each run come

1. attempts that have begun since, as they were then: what was printed after them is not taken for that of others;
2. what is gone: a run that began anew has put its files aside;
3. files, each as far as it reached when the attempts were read;
4. the records of attempts as they are: when one says that it has ended, all its files are there.

A file that grew is sent from where the mirror ends, with the fingerprint of what stands before; where the mirror has
something else there, it asks again for all of it.
"""

from __future__ import annotations

import bisect
import json
import os
import stat
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ems import outputs
from ems.model import State
from ems.node import feed, records
from ems.node.records import ExperimentFiles
from ems.remote.stream import BLOCK, fingerprint
from ems.remote.wire import Frame

Frames: TypeAlias = "Iterator[tuple[Frame, bytes]]"
Facts: TypeAlias = "Sequence[int]"  # size in bytes, time of modification in nanoseconds

_APPENDED = (".log", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt")
_WHOLE_BYTES = 1 << 20  # up to this a file that is not known to be appended to is sent as a whole
_RACY_NS = 2_000_000_000  # a file changed so recently may change again without its time telling
_LOOKS = 5  # at a run of which attempts begin while it is looked at
_CHUNK_FILES = ("json", "job")
_ENDED = ("ended_at", "exit_code", "signal", "max_rss_mb", "cpu_s", "wall_s", "error", "params", "slurm_state")


@dataclass(frozen=True, slots=True)
class Scope:
    """Which files of runs are meant.

    Attributes
    ----------
    metrics
        Those that a harvest reads.
    globs
        Further files that hold metrics, as in ``ems harvest --metric-files``.
    pattern
        Those that match, as in ``ems gather``.
    paths
        Just these, below the run's directory.
    attempts
        Whether the records of attempts come too.
    """

    metrics: bool = False
    globs: tuple[str, ...] = ()
    pattern: str | None = None
    paths: tuple[str, ...] = ()
    attempts: bool = True

    @classmethod
    def load(cls, record: Mapping[str, Any]) -> Scope:
        """Make a scope of what came over the wire."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**values)


STATES = Scope()
METRICS = Scope(metrics=True)


def frames(root: Path, experiments: Mapping[str, Any], scope: Scope) -> Frames:
    """Yield what is new, as the module says.

    Parameters
    ----------
    experiments
        By id: ``{"runs": [[start, stop], ...], "have": {path: [size, mtime_ns]}}``, paths below the experiment's
        directory.
    """
    for exp_id, asked in experiments.items():
        files = ExperimentFiles(root, exp_id)
        spec = records.read_json(files.spec)
        yield {"experiment": exp_id, "missing": spec is None}, b""
        if spec is not None:
            have: Mapping[str, Facts] = asked["have"]
            yield from _of_chunks(files, have)
            by_run = _by_run(have)
            for index in _started(files, asked["runs"]):
                yield from _Run(files, spec, index, by_run.get(index, {}), scope).frames()


def _started(files: ExperimentFiles, spans: Iterable[Sequence[int]]) -> list[int]:
    """Return the runs within ``spans`` that have a directory, ascending."""
    wanted = sorted(map(tuple, spans))
    starts = [start for start, _ in wanted]
    try:
        there = [int(name) for name in os.listdir(os.path.join(files.dir, "runs")) if name.isdigit()]  # noqa: PTH118, PTH208  # a hundred thousand names
    except FileNotFoundError:
        return []

    def is_wanted(index: int) -> bool:
        place = bisect.bisect_right(starts, index)
        return place > 0 and index < wanted[place - 1][1]

    return sorted(filter(is_wanted, there))


def _by_run(have: Mapping[str, Facts]) -> dict[int, dict[str, Facts]]:
    """Split ``runs/I/PATH`` by run."""
    found: dict[int, dict[str, Facts]] = {}
    for path, facts in have.items():
        top, _, rest = path.partition("/")
        index, _, name = rest.partition("/")
        if top == "runs" and index.isdigit():
            found.setdefault(int(index), {})[name] = facts
    return found


def _of_chunks(files: ExperimentFiles, have: Mapping[str, Facts]) -> Frames:
    """Yield chunks, jobs and whether it is held: workers feed waiting chunks while nobody looks."""
    names = [f"chunks/{number}.{kind}" for number in files.chunk_numbers() for kind in _CHUNK_FILES]
    held = os.path.basename(feed.hold_path(files))  # noqa: PTH119  # a name
    there = {name: facts for name in (*names, held) if (facts := _facts(files.dir, name)) is not None}
    # a chunk that is not here yet is about to be pushed
    yield from _gone("", {held} & have.keys(), there)
    for name, facts in there.items():
        if not _is_same(have.get(name), facts):
            yield from _whole(name, Path(files.dir, name).read_bytes(), facts)


class _Run:
    """One run, as it is sent."""

    def __init__(
        self, files: ExperimentFiles, spec: Mapping[str, Any], index: int, have: Mapping[str, Facts], scope: Scope
    ) -> None:
        self._files, self._spec, self._index, self._have, self._scope = files, spec, index, have, scope
        self._folder = files.run(index)
        self._prefix = f"runs/{index}/"

    def frames(self) -> Frames:
        """Yield what is new of the run; at the end whether all of what was asked for came, and the run has ended."""
        look = self._look()
        if look is None:
            yield {"run": self._index, "whole": False}, b""
            return
        attempts, there, left_out = look
        # of one attempt alone nothing can be taken for another's, and most runs have one
        if len(attempts) > 1 or any(name.startswith("attempts/") for name in self._have):
            for name, (data, facts) in attempts.items():
                if name not in self._have:
                    yield from _whole(self._prefix + name, _begun(data), (facts[0], facts[1] + 1))
        yield from _gone(self._prefix, self._have, self._all_there(attempts))
        is_complete = True
        for name, facts in there.items():
            is_complete &= yield from self._file(name, facts)
        for name, (data, facts) in attempts.items():
            if not _is_same(self._have.get(name), facts):
                yield from _whole(self._prefix + name, data, facts)
        last = next(reversed(attempts.values()), None)
        has_ended = last is not None and _has_ended(last[0])
        yield {"run": self._index, "whole": is_complete, "ended": has_ended, "left_out": left_out}, b""

    def _look(self) -> tuple[dict[str, tuple[bytes, Facts]], dict[str, Facts], list[str]] | None:
        """Return attempts and files of one moment; None where a new attempt began at each look."""
        for _ in range(_LOOKS):
            numbers = self._files.attempt_numbers(self._index)
            attempts = self._attempts(numbers) if self._scope.attempts else {}
            left_out: list[str] = []
            there = {}
            for name in self._wanted():
                facts = _facts(self._folder, name)
                if facts is None:
                    continue
                if self._is_too_large(name, facts):
                    left_out.append(name)
                else:
                    there[name] = facts
            if numbers == self._files.attempt_numbers(self._index):
                return attempts, there, left_out
        return None

    def _attempts(self, numbers: Iterable[int]) -> dict[str, tuple[bytes, Facts]]:
        found: dict[str, tuple[bytes, Facts]] = {}
        for number in numbers:
            name = f"attempts/{number}.json"
            with suppress(FileNotFoundError), Path(self._folder, name).open("rb") as file:
                facts = os.fstat(file.fileno())
                found[name] = (file.read(), (facts.st_size, facts.st_mtime_ns))
        return found

    def _wanted(self) -> list[str]:
        """Return the files that the scope means, below the run's directory."""
        scope, folder = self._scope, Path(self._folder)
        if scope.paths:
            return [path for path in scope.paths if not {"", ".", ".."}.intersection(path.split("/"))]
        if scope.pattern is not None:
            return sorted(outputs.matching(folder, scope.pattern, self._spec.get("cwd") or "."))
        if not scope.metrics:
            return []
        patterns = self._spec.get("log_patterns") or ()
        globs = (*(self._spec.get("metric_files") or ()), *scope.globs)
        return sorted(path for path in outputs.walk(folder) if outputs.kind(path, globs, with_stderr=bool(patterns)))

    def _is_too_large(self, name: str, facts: Facts) -> bool:
        if not self._scope.metrics or facts[0] <= outputs.MAX_CSV_BYTES:
            return False
        globs = (*(self._spec.get("metric_files") or ()), *self._scope.globs)
        return outputs.kind(name, globs) == "4" and not outputs.is_named(name, globs)

    def _all_there(self, attempts: Collection[str]) -> set[str]:
        """Return what of the mirror's files is here too, whether it is wanted now or not."""
        there = set(attempts)
        for name in self._have:
            if not name.startswith("attempts/") or not self._scope.attempts:
                facts = _facts(self._folder, name)
                if facts is not None:
                    there.add(name)
        return there

    def _file(self, name: str, facts: Facts) -> Generator[tuple[Frame, bytes], None, bool]:
        """Yield a file, or what was added to it; return whether it could be read."""
        had = self._have.get(name)
        if _is_same(had, facts):
            return True
        size = facts[0]
        is_appended = name.endswith(_APPENDED) or "tfevents" in name
        try:
            with Path(self._folder, name).open("rb", buffering=0) as file:
                if not is_appended and size <= _WHOLE_BYTES:
                    yield from _whole(self._prefix + name, os.pread(file.fileno(), size, 0), facts)
                    return True
                offset = had[0] if had is not None and 0 <= had[0] <= size else 0
                yield from _parts(self._prefix + name, file.fileno(), offset, facts, is_appended=is_appended)
        except OSError:  # moved away, or of another user: the next pull will see
            return False
        return True


def _facts(folder: str, name: str) -> Facts | None:
    """Return size and time of a regular file that a run wrote; None where there is none."""
    path = os.path.join(folder, name)  # noqa: PTH118  # ten thousands of them
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or records.is_untouched(found):
            return None
        # network file systems bring facts up to date when a file is opened, not when it is asked for
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(handle)
    finally:
        os.close(handle)
    return found.st_size, found.st_mtime_ns


def _is_same(had: Facts | None, facts: Facts) -> bool:
    return had is not None and tuple(had) == tuple(facts)


def _told(facts: Facts) -> int:
    """Return the time that the mirror gives its copy: another one, so that it is looked at again, if it may change."""
    return facts[1] + 1 if facts[1] > time.time_ns() - _RACY_NS else facts[1]


def _whole(path: str, data: bytes, facts: Facts) -> Frames:
    """Yield a file that replaces the mirror's at once."""
    yield {"file": path, "whole": True, "mtime": _told(facts)}, data


def _parts(path: str, handle: int, offset: int, facts: Facts, *, is_appended: bool) -> Frames:
    """Yield a file from ``offset`` to where it ended when it was looked at."""
    size, told = facts[0], _told(facts)
    header: Frame = {"file": path, "at": offset}
    if offset:
        header |= {"seen": fingerprint(handle, offset, is_appended=is_appended), "appended": is_appended}
    while True:
        data = os.pread(handle, min(BLOCK, size - offset), offset)
        offset += len(data)
        if offset >= size or not data:  # cut off meanwhile: then its time tells
            yield {**header, "mtime": told}, data
            return
        yield header, data
        header = {"on": True}


def _gone(prefix: str, had: Iterable[str], there: Collection[str]) -> Frames:
    for name in had:
        if name not in there:
            yield {"gone": prefix + name}, b""


def _begun(data: bytes) -> bytes:
    """Return the record of an attempt as it was when it began."""
    try:
        record = json.loads(data)
    except ValueError:
        return data
    begun = {key: value for key, value in record.items() if key not in _ENDED}
    return records.dump({**begun, "state": State.RUNNING, "reason": ""}).encode()


def _has_ended(data: bytes) -> bool:
    try:
        return State(json.loads(data).get("state")).is_finished
    except (ValueError, AttributeError):
        return False
