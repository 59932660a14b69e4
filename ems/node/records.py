"""The record of a run: paths and the file formats that worker, executors and harvest share.

One root a target, on a file system that all nodes see::

    snapshots.git/                      bare; each snapshot a commit
    code/SNAPSHOT/                      one read-only checkout; code/SNAPSHOT.json its manifest
    lib/HASH/ems/                       ems/__init__.py and ems/node, for PYTHONPATH of workers and runs
    experiments/EXP/spec.json           the experiment (ems.model.Experiment)
    experiments/EXP/runs.jsonl          one line a run, in order of index (ems.model.Run)
    experiments/EXP/runs.offsets        n + 1 little-endian uint64: where line i of runs.jsonl begins
    experiments/EXP/chunks/C.json       {"chunk": C, "indices": [..] or null, "start": a, "stop": b}; before its sbatch;
                                        of a study also "params": {I: {"epochs": 9}}, laid over those of run I;
                                        "budget": that of a rerun
    experiments/EXP/chunks/C.sh         the exact sbatch script (slurm only)
    experiments/EXP/chunks/C.intent     created exclusively by whoever is about to submit chunk C
    experiments/EXP/chunks/C.job        {"job": "1842", "submitted_at": ..., "tasks": n}; after sbatch has answered
    experiments/EXP/data/NAME           link to ROOT/data/HASH: EMS_DATA of its runs
    experiments/EXP/chunks/C.done/I     empty; run I of chunk C has ended (only while chunks wait to be fed)
    experiments/EXP/rerun.lock          held by whoever chooses runs for further chunks
    experiments/EXP/budget-C.jsonl      what runs took and may take, of the budget from chunk C on (ems.node.budget)
    experiments/EXP/harvested.json      which runs were harvested to another machine (ems.harvested)
    experiments/EXP/study.json          of a study: what is searched (ems.study.spec.StudySpec)
    experiments/EXP/study.db            written by its driver alone, which holds driver.lock
    experiments/EXP/requests/NAME.json  what people want of a study; its driver takes it in
    experiments/EXP/called              touched when a run of a study has ended: its driver wakes
    experiments/EXP/runs/I/attempts/N.json   claimed by creating it exclusively; replaced when the attempt ends
    experiments/EXP/runs/I/stdout.log, stderr.log   appended to by every attempt; N.json says from which byte
    experiments/EXP/runs/I/metrics.jsonl     ems.log(): one flat JSON object a line
    experiments/EXP/runs/I/checkpoint/       survives requeues
    experiments/EXP/runs/I/files/            the view: the script's project root; what it writes stays here
    experiments/EXP/runs/I/attempts/N-files, N-checkpoint   what attempt N left, where the next one began anew
    experiments/EXP/runs/I/cancel            the highest chunk for which this run is cancelled
    data/HASH/, data/NAME               data sets by content, and links to those that names mean now
    pycache/SNAPSHOT/, views/PLAN/      compiled modules and links that the views of runs share

Every file that another process reads is written aside and renamed, or is append-only lines of which a torn
last one is ignored.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from datetime import datetime, timezone

# 2000-01-01, the time of modification of what is copied into a run's view: any other time, and the run wrote the file
UNTOUCHED_AT = 946684800

TYPE_CHECKING = False  # importing typing would cost a worker a fifth of its start
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, Iterator, List, Optional, Union

    PathLike = Union[str, "os.PathLike[str]"]
    Record = Dict[str, Any]
else:
    PathLike, Record = str, dict

_OFFSET = struct.Struct("<Q")


def now() -> str:
    """Return the present as UTC ISO-8601 with milliseconds, e.g. ``2026-11-21T09:30:00.123Z``."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class ExperimentFiles:
    """The paths of one experiment under a root; makes nothing."""

    def __init__(self, root: PathLike, experiment_id: str) -> None:
        self.root = os.fspath(root)
        self.id = experiment_id
        self.dir = os.path.join(self.root, "experiments", experiment_id)
        self.spec = os.path.join(self.dir, "spec.json")
        self.runs = os.path.join(self.dir, "runs.jsonl")
        self.offsets = os.path.join(self.dir, "runs.offsets")
        self.chunks = os.path.join(self.dir, "chunks")
        self.data = os.path.join(self.dir, "data")
        self.study = os.path.join(self.dir, "study.json")
        self.called = os.path.join(self.dir, "called")

    def chunk(self, number: int, suffix: str = "json") -> str:
        """Path of ``chunks/C.SUFFIX``."""
        return os.path.join(self.chunks, "%d.%s" % (number, suffix))

    def run(self, index: int, *parts: str) -> str:
        """Path of, or below, the directory of run ``index``."""
        return os.path.join(self.dir, "runs", str(index), *parts)

    def attempt(self, index: int, attempt: int) -> str:
        """Path of ``attempts/N.json``."""
        return self.run(index, "attempts", "%d.json" % attempt)

    def chunk_numbers(self) -> List[int]:
        """Numbers of all chunks, ascending; empty where there are none."""
        return _numbers(self.chunks)

    def attempt_numbers(self, index: int) -> List[int]:
        """Numbers of the attempts of run ``index``, ascending."""
        return _numbers(self.run(index, "attempts"))


def _numbers(folder: str) -> List[int]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())


def write_atomic(path: PathLike, content: Union[str, bytes], durable: bool = True) -> None:
    """Write aside, rename over ``path``: readers see the old content or the new, never a part.

    ``durable`` also flushes to disk first; attempts do without (a power cut then loses a record, not its truth:
    SLURM knows).
    """
    aside = _write_aside(path, content, durable)
    try:
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def create_exclusive(path: PathLike, content: Union[str, bytes], durable: bool = True) -> bool:
    """Create ``path`` with its whole content if nobody has yet; return whether this call did.

    Uses link(2), which is atomic on NFS too.
    """
    aside = _write_aside(path, content, durable)
    try:
        os.link(aside, path)
    except FileExistsError:
        return os.stat(aside).st_nlink > 1  # NFS asks again where an answer got lost: then it was this call
    else:
        return True
    finally:
        os.unlink(aside)


def _write_aside(path: PathLike, content: Union[str, bytes], durable: bool) -> str:
    aside = "%s.%s.aside" % (os.fspath(path), os.urandom(6).hex())
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    try:
        with open(aside, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        if os.path.exists(aside):
            os.unlink(aside)
        raise
    return aside


@contextlib.contextmanager
def locked(path: PathLike) -> Iterator[None]:
    """Wait for, and hold, the file ``path`` locked by flock(2); a file system without locks goes without."""
    import fcntl

    with open(path, "wb") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_json(path: PathLike) -> Optional[Record]:
    """Return the JSON object in ``path``; None where the file is missing."""
    try:
        with open(path, "rb") as file:
            record: Record = json.loads(file.read())
            return record
    except FileNotFoundError:
        return None


def dump(record: Record) -> str:
    """Compact JSON; NaN and Infinity are kept as Python's json writes them."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def write_runs(files: ExperimentFiles, lines: Iterable[Record]) -> int:
    """Write ``runs.jsonl`` and ``runs.offsets`` (streaming); return the number of runs."""
    count, position = 0, 0
    with open(files.runs, "wb") as runs, open(files.offsets, "wb") as offsets:
        for record in lines:
            offsets.write(_OFFSET.pack(position))
            line = dump(record).encode("utf-8", "surrogatepass") + b"\n"
            runs.write(line)
            position += len(line)
            count += 1
        offsets.write(_OFFSET.pack(position))
        _flush(runs)
        _flush(offsets)
    return count


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def read_run(files: ExperimentFiles, index: int) -> Record:
    """Return the line of run ``index`` by two seeks, whatever the number of runs."""
    with open(files.offsets, "rb") as offsets:
        offsets.seek(index * _OFFSET.size)
        (start,), (stop,) = _OFFSET.unpack(offsets.read(8)), _OFFSET.unpack(offsets.read(8))
    with open(files.runs, "rb") as runs:
        runs.seek(start)
        record: Record = json.loads(runs.read(stop - start))
        return record


def append_runs(files: ExperimentFiles, lines: Iterable[Record]) -> int:
    """Add the runs of ``lines`` that are not there yet, which follow those that are; return the number of runs then.

    Only one process may do so at a time. Killed half-way, it is repeated: what offsets do not name is not there, and
    readers do not see it.

    Raises
    ------
    ValueError
        If a line is missing between those that are there and those to come.
    """
    count = count_runs(files)
    with open(files.offsets, "r+b") as offsets, open(files.runs, "r+b") as runs:
        offsets.seek(count * _OFFSET.size)
        (position,) = _OFFSET.unpack(offsets.read(_OFFSET.size))
        runs.truncate(position)
        offsets.truncate((count + 1) * _OFFSET.size)
        runs.seek(position)
        ends = []
        for record in lines:
            if record["index"] < count:
                continue
            if record["index"] != count:
                raise ValueError("run %d follows run %d" % (record["index"], count - 1))
            line = dump(record).encode("utf-8", "surrogatepass") + b"\n"
            runs.write(line)
            position += len(line)
            count += 1
            ends.append(_OFFSET.pack(position))
        if ends:
            _flush(runs)
            offsets.seek(0, os.SEEK_END)
            offsets.write(b"".join(ends))
            _flush(offsets)
    return count


def count_runs(files: ExperimentFiles) -> int:
    """Return the number of runs that there are by now; 0 where the experiment is gone."""
    try:
        return max(0, os.stat(files.offsets).st_size // _OFFSET.size - 1)
    except FileNotFoundError:
        return 0


def iterate_runs(files: ExperimentFiles, first: int = 0) -> Iterator[Record]:
    """Yield every line of ``runs.jsonl`` in order of index, from run ``first`` on."""
    with open(files.runs, "rb") as runs, open(files.offsets, "rb") as offsets:
        offsets.seek(first * _OFFSET.size)
        start = offsets.read(_OFFSET.size)
        if len(start) < _OFFSET.size:
            return
        runs.seek(_OFFSET.unpack(start)[0])
        for _ in range(count_runs(files) - first):
            yield json.loads(runs.readline())


def chunk_indices(chunk: Record) -> "Union[range, List[int]]":
    """Return the run indices of a chunk record, in the order of its array tasks."""
    return range(chunk["start"], chunk["stop"]) if chunk.get("indices") is None else chunk["indices"]


def chunk_params(chunk: Record, index: int) -> Record:
    """Return what a chunk lays over the params of run ``index``: for how long it trains this time."""
    found: Record = (chunk.get("params") or {}).get(str(index)) or {}
    return found


def last_attempt(files: ExperimentFiles, index: int) -> Optional[Record]:
    """Return the newest attempt record of run ``index``, or None."""
    numbers = files.attempt_numbers(index)
    return read_attempt(files, index, numbers[-1]) if numbers else None


def read_attempt(files: ExperimentFiles, index: int, attempt: int) -> Optional[Record]:
    """Return an attempt record, or None where there is none.

    One that a power cut emptied (attempts are not flushed to disk) says only its number: any chunk may go on from it.
    """
    try:
        return read_json(files.attempt(index, attempt))
    except ValueError:
        return {"index": index, "attempt": attempt, "chunk": 0, "state": "UNKNOWN", "job": "", "restart": 0}


def cancelled_up_to(files: ExperimentFiles, index: int) -> int:
    """Return the highest chunk for which run ``index`` is cancelled by itself; 0 where it is not.

    ``runs/I/cancel`` holds that number: what :func:`cancel` writes, workers look for.
    """
    try:
        with open(files.run(index, "cancel")) as file:
            return int(file.read())
    except (FileNotFoundError, ValueError):
        return 0


def cancel(files: ExperimentFiles, index: int) -> None:
    """Have run ``index`` not be started, or ended within a second, by the workers of all present chunks."""
    os.makedirs(files.run(index), exist_ok=True)
    write_atomic(files.run(index, "cancel"), "%d\n" % max(files.chunk_numbers(), default=0), durable=False)


def call_driver(files: ExperimentFiles) -> None:
    """Leave a sign for a study's driver that something happened, e.g. that a run has ended. Never raises."""
    with contextlib.suppress(OSError), open(files.called, "wb"):
        pass


def called_at(files: ExperimentFiles) -> int:
    """Return when a study's driver was last called, ns by the file server's clock; 0: never. Only to compare."""
    try:
        return os.stat(files.called).st_mtime_ns
    except FileNotFoundError:
        return 0


def ask_driver(files: ExperimentFiles, request: Record, name: str = "") -> None:
    """Leave a request for a study's driver, e.g. ``{"kind": "stop"}``, and call it; see ems.study.wishes.

    Of one name it is taken in once, however often it is left.
    """
    folder = os.path.join(files.dir, "requests")
    os.makedirs(folder, exist_ok=True)
    write_atomic(os.path.join(folder, (name or os.urandom(8).hex()) + ".json"), dump({"at": now(), **request}))
    call_driver(files)


def is_untouched(found: os.stat_result) -> bool:
    """Whether a file below ``runs/I/files`` is the project's, as the run found it; so are links there."""
    return found.st_mtime == UNTOUCHED_AT


def has_waiting_chunks(files: ExperimentFiles) -> bool:
    """Whether a chunk has not been handed to the scheduler yet."""
    names = set(os.listdir(files.chunks))
    return any(n.endswith(".json") and n[:-5].isdigit() and n[:-5] + ".job" not in names for n in names)
