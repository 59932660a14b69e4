"""What SLURM asks for: a file for each call of ResumeProgram, SuspendProgram and ResumeFailProgram.

The programs are one shell script, ``ems-power``, which returns in milliseconds, since slurmctld waits for it. It writes
aside and renames to ``<nanoseconds>-<pid>.resume`` (``.suspend``, ``.fail``): the first line is the list of nodes as
SLURM gave it, the rest what $SLURM_RESUME_FILE says of the jobs that they are for. A file stays until what it asks for
is done, so that a service that was killed does it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from ems.cluster.scheduler import expand
from ems.model import Json

_NAME = re.compile(r"(\d{1,20})-\d{1,10}\.(resume|suspend|fail)")
_LONGEST = 4 * 1024 * 1024  # bytes; a job's entry in SLURM's file takes about 200
_ABANDONED_S = 3600.0
#: How SLURM names the nodes of a job: up to 22.05, from 23.02 on, and those that it has besides.
_NODE_KEYS = ("nodes_resume", "nodes", "nodes_alloc")


class Verb(StrEnum):
    """What SLURM wants."""

    RESUME = "resume"  # boot these nodes
    SUSPEND = "suspend"  # nobody needs them
    FAIL = "fail"  # they did not register in time: SLURM has given them up


@dataclass(frozen=True, slots=True)
class Request:
    """One call of SLURM's.

    Attributes
    ----------
    at_ns
        When it was written down: nanoseconds since 1970, by this machine's clock.
    jobs
        Job id -> the nodes that it waits for, where SLURM said so.
    """

    path: Path
    verb: Verb
    at_ns: int
    nodes: tuple[str, ...]
    jobs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wish:
    """What all requests together come to, in the order in which they were written.

    Attributes
    ----------
    resume
        Nodes to boot -> when that was asked for last, in nanoseconds since 1970.
    suspend
        Nodes whose machines are to go; one that is also in ``resume`` goes first, and then comes anew.
    jobs
        Node -> the jobs that wait for it.
    """

    resume: dict[str, int] = field(default_factory=dict)
    suspend: tuple[str, ...] = ()
    jobs: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Spool:
    """The folder of requests.

    Parameters
    ----------
    is_node
        Whether a name is that of a compute node of this cluster: of nothing else is a machine made or deleted.
    """

    def __init__(self, folder: Path, is_node: Callable[[str], bool]) -> None:
        self.folder = folder
        self._is_node = is_node

    def names(self) -> list[str]:
        """Return the names of the files that wait, oldest first."""
        try:
            with os.scandir(self.folder) as entries:  # five times a second
                files = [each.name for each in entries if not each.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        return sorted(filter(_NAME.fullmatch, files), key=lambda name: (int(name.partition("-")[0]), name))

    def read(self) -> list[Request]:
        """Return the requests that wait, oldest first; what cannot be read, or was never renamed, is deleted."""
        self._sweep()
        found = [(name, self._request(name)) for name in self.names()]
        self._forget(self.folder / name for name, request in found if request is None)
        return [request for _, request in found if request is not None]

    def done(self, requests: Iterable[Request]) -> None:
        """Forget requests: what they asked for was done."""
        self._forget(each.path for each in requests)

    def _request(self, name: str) -> Request | None:
        path = self.folder / name
        text = _content(path)
        found = _NAME.fullmatch(name)
        if text is None or found is None:
            return None
        first, _, rest = text.partition("\n")
        try:
            nodes = tuple(node for node in expand(first.strip()) if self._is_node(node))
        except ValueError:
            return None
        return Request(path, Verb(found[2]), int(found[1]), nodes, self._jobs(rest)) if nodes else None

    def _jobs(self, text: str) -> dict[str, tuple[str, ...]]:
        """Return which nodes each job waits for, by the words of any version; nothing where the text is none."""
        try:
            jobs = json.loads(text)["jobs"]
            listed = [(str(job["job_id"]), _nodes_of(job)) for job in jobs]
        except (ValueError, TypeError, KeyError):
            return {}
        return {job: tuple(filter(self._is_node, nodes)) for job, nodes in listed}

    def _sweep(self) -> None:
        """Delete what was written aside an hour ago: its writer was killed."""
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.folder):
                with contextlib.suppress(OSError):
                    is_old = time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED_S
                    if is_old and not _NAME.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
                        Path(entry).unlink()

    @staticmethod
    def _forget(paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)


def _content(path: Path) -> str | None:
    """Return a file's text; None for what is no plain file of a sane size: SLURM's user may write in the folder."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with open(handle, "rb", closefd=False) as file:
            content = file.read(_LONGEST + 1)
    except OSError:  # a folder
        return None
    finally:
        os.close(handle)
    return content.decode(errors="replace") if len(content) <= _LONGEST else None


def _nodes_of(job: Mapping[str, Json]) -> list[str]:
    return [node for key in _NODE_KEYS if isinstance(said := job.get(key), str) for node in expand(said)]


def gather(requests: Sequence[Request]) -> Wish:
    """Return what requests come to: the last word about a node counts, and what is there of it goes before."""
    resume: dict[str, int] = {}
    suspend: dict[str, None] = {}
    jobs: dict[str, dict[str, None]] = {}
    for request in requests:
        for node in request.nodes:
            if request.verb is Verb.RESUME:
                resume[node] = request.at_ns
                continue
            resume.pop(node, None)
            suspend[node] = None
        for job, nodes in request.jobs.items():
            for node in nodes:
                jobs.setdefault(node, {})[job] = None
    return Wish(resume, tuple(suspend), {node: tuple(ids) for node, ids in jobs.items()})
