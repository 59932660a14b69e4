"""What this machine remembers of a cluster: a record, and a journal of what was about to be done to it.

Labels are the truth of what exists (:mod:`ems.cluster.provider.base`); this is a cache that
:mod:`ems.cluster.handover` rebuilds from them. Under ``$XDG_STATE_HOME/ems/clusters/NAME/``, mode 700, its files 600::

    record.json      the cluster as it is wanted; written aside and renamed
    journal.jsonl    a line before and a line after each thing done to the world, flushed to the disk before it is done
    lock             held by the one command that changes the cluster
    key, key.pub, known_hosts, hostkeys/, munge.key     see ems.cluster.keys
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any

from ems.cluster.definition import MAX_NODES, node_name, node_number
from ems.cluster.provider import base
from ems.errors import ClusterError
from ems.model import Json
from ems.node import records
from ems.registry import check_name, state_dir

_FORMAT = 1
MOST_JOURNAL = 1024 * 1024  # bytes of the journal of a service that lives for months
#: The step of the journal by which machines that were made, and are not set up yet, are not taken for left over.
MADE = "made"


class Phase(StrEnum):
    """How far a cluster has come, as this machine knows it."""

    MAKING = "making"  # machines are being made, or `start --no-setup` has made them
    READY = "ready"
    PAUSED = "paused"
    BAKING = "baking"  # nothing but machines that become images
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Record:
    """A cluster as it is wanted.

    Attributes
    ----------
    incarnation
        Told apart by it: a cluster that was stopped and another one of the same name.
    definition
        The resolved definition it was made by, and its digest; the digest is also a label of the controller.
    wanted
        The names of the compute nodes that it should have.
    munge
        Fingerprint of its munge key.
    """

    name: str
    incarnation: str
    owner: str
    created: str
    definition: dict[str, Json]
    digest: str
    wanted: tuple[str, ...] = ()
    munge: str = ""
    phase: Phase = Phase.MAKING
    left_out: dict[str, str] = field(default_factory=dict)  # node -> why it is not there

    @property
    def controller(self) -> str:
        """The controller's name."""
        return f"{self.name}-controller"

    def labels(self, **more: str) -> dict[str, str]:
        """Return the labels of everything that belongs to this cluster, and those in ``more`` beside them."""
        return {
            base.CLUSTER: self.name,
            base.INCARNATION: self.incarnation,
            base.OWNER: label_value(self.owner),
            base.CREATED: label_value(self.created),
            base.DEFINITION: self.digest[:63],
            **more,
        }


def new(name: str, definition: dict[str, Json], digest: str) -> Record:
    """Return the record of a cluster that is not there yet."""
    return Record(check_name(name), uuid.uuid4().hex, owner(), records.now(), definition, digest)


def owner() -> str:
    """Return who owns what is made here: the user's name on this machine."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def label_value(text: str) -> str:
    """Return text as every provider takes it for a label's value: lower case, digits, ``-`` and ``_``, 63 at most."""
    return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:63]


def choose(cluster: str, preferred: Iterable[str], kind: str, count: int) -> list[str]:
    """Return ``count`` names of a kind: of those in ``preferred`` the first ones, then the lowest that are free."""
    have = [name for name in preferred if (found := node_number(cluster, name)) and found[0] == kind]
    free = (node_name(cluster, kind, number) for number in range(1, MAX_NODES + 1))
    more = (name for name in free if name not in have)
    return sorted([*have, *islice(more, max(0, count - len(have)))][:count])


class Files:
    """The folder of one cluster; makes nothing until something is written."""

    def __init__(self, name: str) -> None:
        self.name = check_name(name)
        self.dir = state_dir() / "clusters" / name

    @property
    def _record(self) -> Path:
        return self.dir / "record.json"

    def load(self) -> Record | None:
        """Return the record, or None where this machine knows no such cluster.

        Raises
        ------
        ClusterError
            If it is damaged.
        """
        try:
            record = _parse(json.loads(self._record.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ClusterError(
                f"{self._record} cannot be read: {error}",
                f"move it aside, then `ems cluster status {self.name} --adopt` writes it anew",
            ) from error
        if record.name != self.name:
            raise ClusterError(f"{self._record} is of the cluster `{record.name}`", "move it aside")
        return record

    def save(self, record: Record) -> Record:
        """Write the record; returns it."""
        self.make()
        text = json.dumps({"format": _FORMAT, **asdict(record)}, indent=1)
        records.write_atomic(self._record, text + "\n")
        self._record.chmod(0o600)
        return record

    def update(self, record: Record, **changes: object) -> Record:
        """Write the record with some fields changed; returns it."""
        return self.save(replace(record, **changes))  # type: ignore[arg-type]  # the dataclass checks names

    def make(self) -> None:
        """Make the folder; nobody else may look into it."""
        self.dir.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.dir.mkdir(mode=0o700, exist_ok=True)
        self.dir.chmod(0o700)

    def delete(self) -> None:
        """Forget everything; the record goes last, so that a forgetting that is cut short is continued."""
        for path in sorted(self.dir.glob("*")):
            if path not in {self._record, self._lock}:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)
        shutil.rmtree(self.dir, ignore_errors=True)

    @property
    def _lock(self) -> Path:
        return self.dir / "lock"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one command that changes this cluster.

        Raises
        ------
        ClusterError
            If another command of this user's is changing it.
        """
        while True:
            self.make()
            handle = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._take(handle)
                if self._is_current(handle):  # the one who held it before may have deleted the folder
                    try:
                        yield
                    finally:
                        self._tidy()
                    return
            finally:
                os.close(handle)

    def _take(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(handle, 32, 0).decode(errors="replace").strip()
            raise ClusterError(
                f"another command is changing the cluster `{self.name}`", f"wait until process {who} has ended"
            ) from None
        os.truncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), self._lock.stat())
        except FileNotFoundError:
            return False

    def _tidy(self) -> None:
        """Leave no folder behind that holds nothing but the lock."""
        if self.dir.is_dir() and {entry.name for entry in self.dir.iterdir()} <= {"lock"}:
            shutil.rmtree(self.dir, ignore_errors=True)


def _parse(found: dict[str, Any]) -> Record:
    if found.pop("format") != _FORMAT:
        raise ValueError("another version of ems wrote it")
    found["wanted"], found["phase"] = tuple(found["wanted"]), Phase(found["phase"])
    return Record(**found)


def texts(value: Json) -> list[str]:
    """Return the elements of a list as texts; none of what is no list."""
    return [str(each) for each in value] if isinstance(value, list) else []


def names() -> list[str]:
    """Return the names of all clusters that this machine knows, sorted."""
    return sorted(path.parent.name for path in (state_dir() / "clusters").glob("*/record.json"))


class Journal:
    """What was about to be done, and what of it was done: one line each, on the disk before the world changes."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._path = files.dir / "journal.jsonl"

    @contextmanager
    def step(self, step: str, things: Iterable[str] = ()) -> Iterator[None]:
        """Do something to the world inside this: a line before it, one after it."""
        listed = list(things)
        self._append(step, listed, "begin")
        try:
            yield
        except BaseException as error:
            self._append(step, listed, "failed", str(error) or type(error).__name__)
            raise
        self._append(step, listed, "done")

    def unfinished(self) -> list[str]:
        """Return the steps whose last line is no good end: whoever did them was killed, or an error ended them."""
        return list(self.begun())

    def begun(self) -> dict[str, list[str]]:
        """Return the steps that were begun and never ended well, each with what it was about to be done to.

        One that failed is among them: the connection may have broken, or Ctrl-C come, after the cloud had begun.
        """
        last = {str(line["step"]): line for line in self.lines()}
        return {step: texts(line.get("things")) for step, line in last.items() if line["is"] != "done"}

    def is_at(self, step: str) -> bool:
        """Whether the last thing that was done is this, and it ended well."""
        return [(line["step"], line["is"]) for line in self.lines()[-1:]] == [(step, "done")]

    def compact(self, most: int = MOST_JOURNAL) -> None:
        """Forget what was done long ago, once the file is longer than ``most`` bytes: half of that is kept.

        What was begun and never ended well is kept however old it is. For the one process that writes it.
        """
        if not self._path.exists() or self._path.stat().st_size <= most:
            return
        lines, room = self.lines(), most // 2
        last = {str(line["step"]): number for number, line in enumerate(lines)}
        kept = []
        for number, line in reversed(list(enumerate(lines))):
            text = json.dumps(line) + "\n"
            room -= len(text)
            if room >= 0 or (last[str(line["step"])] == number and line["is"] != "done"):
                kept.append(text)
        records.write_atomic(self._path, "".join(reversed(kept)))
        self._path.chmod(0o600)

    def lines(self) -> list[dict[str, Json]]:
        """Return every whole line; a torn last one is none."""
        try:
            text = self._path.read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return []
        found = []
        for line in text.splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return [line for line in found if isinstance(line, dict) and {"step", "is"} <= line.keys()]

    def _append(self, step: str, things: list[str], state: str, said: str = "") -> None:
        self._files.make()
        line = {"at": records.now(), "step": step, "is": state, "things": things} | ({"said": said} if said else {})
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        handle = os.open(self._path, flags, 0o600)
        try:
            size = os.fstat(handle).st_size
            is_torn = size and os.pread(handle, 1, size - 1) != b"\n"
            os.write(handle, (("\n" if is_torn else "") + json.dumps(line) + "\n").encode())
            os.fsync(handle)
        finally:
            os.close(handle)
