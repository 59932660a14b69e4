"""Files of runs over the wire: what the far side does for pulls, ``ems ls``, ``ems cat``, ``ems logs``, ``ems get``.

And the near side of it: :class:`RemoteRun` is to a run there what :class:`ems.outputs.RunFolder` is to one here.
"""

from __future__ import annotations

import io
import json
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from ems import outputs
from ems.errors import ConnectionFailedError, NotFoundError
from ems.node.records import ExperimentFiles
from ems.outputs import Written
from ems.remote import pull, stream
from ems.remote.client import Agent
from ems.remote.mirror import Mirror
from ems.remote.pull import Scope
from ems.remote.site import Operation, Site
from ems.remote.wire import Frame

_BLOCK = 1 << 20  # of what is read at a time: one round trip each


# ------------------------------------------------------------------------------------------ there


def _pull(site: Site, _: dict[str, Any], data: bytes) -> None:
    """Send what is new; see :mod:`ems.remote.pull`."""
    request = json.loads(zlib.decompress(data))
    scope = Scope.load(request["scope"])
    for exp_id in request["experiments"]:
        site.files(exp_id)
    for pack in stream.packed(pull.frames(site.root, request["experiments"], scope)):
        site.send(*pack)


def _exists(site: Site, args: dict[str, Any], _: bytes) -> bool:
    """Whether a run has a folder."""
    return _folder(site, args).exists()


def _listing(site: Site, args: dict[str, Any], _: bytes) -> list[Written]:
    """Return what a run has written."""
    return _folder(site, args).written()


def _find(site: Site, args: dict[str, Any], _: bytes) -> list[str | None]:
    """Return the paths below the run's folder of what a person calls files; a folder's ends with ``/``."""
    return _folder(site, args).find(args["names"], args["cwd"])


def _read(site: Site, args: dict[str, Any], _: bytes) -> int | None:
    """Send a part of a file; return its size, None where there is none."""
    try:
        with _folder(site, args).open(args["path"]) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(args["offset"])
            for pack in stream.packed([({}, file.read(min(args["size"], _BLOCK)))]):
                site.send(*pack)
    except FileNotFoundError:
        return None
    return size


def _folder(site: Site, args: dict[str, Any]) -> outputs.RunFolder:
    return outputs.RunFolder(Path(site.files(args["experiment"]).run(int(args["index"]))))


TABLE: dict[str, Operation] = {"pull": _pull, "exists": _exists, "listing": _listing, "find": _find, "read": _read}


# ------------------------------------------------------------------------------------------ here


def pull_by(agent: Agent) -> Any:
    """Return what asks an agent for what is new, as :meth:`ems.remote.mirror.Mirror.pull` wants it."""

    def call(request: Frame) -> Iterable[tuple[Frame, bytes]]:
        return agent.stream("pull", zlib.compress(json.dumps(request).encode(), 1))

    return call


class RemoteRun:
    """The files of one run on another machine.

    Parameters
    ----------
    agent
        That of the machine.
    exp_id, index
        Which run.
    aside
        A folder for what is being fetched.
    """

    def __init__(self, agent: Agent, exp_id: str, index: int, aside: Path) -> None:
        self._agent = agent
        self._aside = aside
        self._run: dict[str, Any] = {"experiment": exp_id, "index": index}

    def exists(self) -> bool:
        """Whether the run has a folder."""
        return bool(self._agent.call("exists", **self._run))

    def written(self) -> list[Written]:
        """Return path, size in bytes and time of what the run has written."""
        return [(_inside(path), size, at) for path, size, at in self._agent.call("listing", **self._run)]

    def find(self, names: Sequence[str], cwd: str = ".") -> list[str | None]:
        """Return the paths below the run's folder of what a person calls ``names``; a folder's ends with ``/``."""
        found = self._agent.call("find", names=list(names), cwd=cwd, **self._run)
        return [path if path is None else _inside(path) for path in found]

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading.

        Raises
        ------
        FileNotFoundError
            If it is not there.
        """
        raw = _RemoteFile(self._agent, {**self._run, "path": path})
        return cast("BinaryIO", io.BufferedReader(raw, _BLOCK))

    def copy(self, places: Mapping[str, Path]) -> None:
        """Copy files, by their paths below the run's folder; broken off, the next one goes on where it was."""
        exp_id, index = self._run["experiment"], self._run["index"]
        scope = Scope(paths=tuple(places), attempts=False)
        Mirror(self._aside).pull(pull_by(self._agent), {exp_id: [index]}, scope)
        for path, place in places.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            source = Path(ExperimentFiles(self._aside, exp_id).run(index, path))
            if source.exists():
                shutil.move(source, place)
            else:  # the project's own, which a run only sees
                with self.open(path) as file, place.open("wb") as copy:
                    shutil.copyfileobj(file, copy)
        shutil.rmtree(self._aside, ignore_errors=True)


def _inside(path: str) -> str:
    """Return a path that the other machine named; where a file is copied to follows from it.

    Raises
    ------
    ConnectionFailedError
        If it leads out of the folder of its run.
    """
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise ConnectionFailedError(f"the other machine names {path!r}, which is no file of a run", "ems doctor")
    return path


class _RemoteFile(io.RawIOBase):
    """A file that is read over the wire; it may grow meanwhile."""

    def __init__(self, agent: Agent, place: dict[str, Any]) -> None:
        self._agent, self._place = agent, place
        self._at = 0
        if self._ask(0)[1] is None:
            raise FileNotFoundError(place["path"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence)
        self._at = offset + (self._size() if base is None else base)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        into = memoryview(buffer).cast("B")
        data, _ = self._ask(len(into))
        into[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _size(self) -> int:
        size = self._ask(0)[1]
        if size is None:
            raise NotFoundError(f"{self._place['path']} is no longer there")
        return size

    def _ask(self, size: int) -> tuple[bytes, int | None]:
        parts = self._agent.stream("read", offset=self._at, size=size, **self._place)
        packs: list[tuple[Frame, bytes]] = []
        while True:
            try:
                packs.append(next(parts))
            except StopIteration as end:
                return b"".join(data for _, data in stream.unpacked(packs)), end.value
