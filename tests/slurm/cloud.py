"""A cloud whose machines are slurmd: for a service that makes and deletes nodes of a real SLURM of plain processes.

:class:`Cloud` lives in the test, so that machines outlive a service that is killed; :class:`Provider`, in the service's
process, asks it over a socket. Each machine runs ``slurmd -N NAME -b`` under a reaper of its own. The cloud itself
counts what there is, and notes whenever there were two machines of one name.
"""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket
from typing import Any

from ems.cluster.provider.base import MachineRequest, MachineState, Refusal, RefusalCause, Resource, Thing, Traits
from ems.errors import ProviderError

ZONES = ("here-a", "here-b")


class Cloud:
    """Machines, and what goes wrong with them.

    Parameters
    ----------
    path
        The socket to listen on.
    boot
        Starts what a machine of that name runs; returns what has ``kill()``.

    Attributes
    ----------
    machines
        By id.
    refusals
        Zone, or what else names of machines hold -> (cause, words) by which creations are refused.
    trouble
        Words by which every call fails; empty: none does.
    is_deaf
        Whether machines are made that never boot.
    raises_after
        Whether creations raise an error after the machines were made.
    late_s
        For how long listings lack a machine that was made.
    twice
        Names of which there were two machines at once.
    calls
        Every call: verb and names.
    """

    def __init__(self, path: Path, boot: Callable[[str], Any]) -> None:
        self.path = path
        self.machines: dict[str, dict[str, Any]] = {}
        self.refusals: dict[str, tuple[str, str]] = {}
        self.trouble = ""
        self.is_deaf = False
        self.raises_after = False
        self.late_s = 0.0
        self.twice: set[str] = set()
        self.calls: list[tuple[str, list[str]]] = []
        self._boot = boot
        self._running: dict[str, Any] = {}
        self._count = 0
        self._lock = threading.Lock()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Answer until the end of the block; then no machine is left."""
        cloud = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                verb, content = json.loads(self.rfile.readline())
                self.wfile.write(json.dumps(cloud.answer(verb, content)).encode() + b"\n")

        server = socketserver.ThreadingUnixStreamServer(str(self.path), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
            self.clear()

    def clear(self) -> None:
        """End all machines, and everything that was to go wrong."""
        with self._lock:
            for id_ in list(self.machines):
                self._end(id_)
        self.refusals, self.trouble, self.is_deaf, self.raises_after, self.late_s = {}, "", False, False, 0.0
        self.twice.clear()
        self.calls.clear()

    def names(self) -> list[str]:
        """Return the names of the machines that there are, sorted."""
        with self._lock:
            return sorted(each["name"] for each in self.machines.values())

    def zones(self) -> dict[str, str]:
        """Return where each machine is."""
        with self._lock:
            return {each["name"]: each["zone"] for each in self.machines.values()}

    def lose(self, name: str) -> None:
        """Take a machine away as by a power cut."""
        with self._lock:
            for id_ in [id_ for id_, each in self.machines.items() if each["name"] == name]:
                self._end(id_)

    def add(self, name: str, labels: dict[str, str], zone: str = ZONES[0]) -> str:
        """Make a machine that nobody asked for, and which boots nothing; returns its id."""
        with self._lock:
            return str(self._add({"name": name, "labels": labels, "zone": zone}, boots=False)["id"])

    def answer(self, verb: str, content: Any) -> Any:
        """Do what the service asks for."""
        with self._lock:
            self.calls.append((verb, [each["name"] for each in content]))
            if self.trouble:
                return {"error": self.trouble}
            if verb == "list":
                seen = time.time() - self.late_s
                return [each for each in self.machines.values() if each["made"] <= seen]
            if verb == "destroy":
                for each in content:
                    self._end(each["id"])
                return []
            made = [self._create(each) for each in content]
            return {"error": "the connection broke"} if self.raises_after else made

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        there = [each for each in self.machines.values() if each["name"] == request["name"]]
        same = [each for each in there if each["zone"] == request["zone"]]
        if same:
            return same[0]
        for mark, (cause, words) in self.refusals.items():
            if mark == request["zone"] or mark in request["name"]:
                return {"name": request["name"], "refused": words, "cause": cause, "zone": request["zone"]}
        if there:
            self.twice.add(request["name"])
        return self._add(request, boots=not self.is_deaf)

    def _add(self, request: dict[str, Any], *, boots: bool) -> dict[str, Any]:
        self._count += 1
        id_ = f"m{self._count}"
        self.machines[id_] = {**request, "id": id_, "made": time.time()}
        if boots:
            self._running[id_] = self._boot(request["name"])
        return self.machines[id_]

    def _end(self, id_: str) -> None:
        if (running := self._running.pop(id_, None)) is not None:
            running.kill()
        self.machines.pop(id_, None)


class Provider:
    """The seam of :mod:`ems.cluster.provider.base` to a :class:`Cloud` in another process."""

    traits = Traits(False, False, True, has_names=True, zones=ZONES, has_spot=True)

    def __init__(self, path: str) -> None:
        self._path = path

    def check(self, requests: Sequence[MachineRequest]) -> None:
        """Nothing can be wrong before."""

    def prepare(self, labels: dict[str, str]) -> None:
        """Nothing is shared."""

    def create(self, requests: Sequence[MachineRequest]) -> list[Resource | Refusal]:
        """Have machines made."""
        asked = [
            {"name": each.name, "labels": each.labels, "zone": each.zone, "spot": each.spot, "size": each.size or ""}
            for each in requests
        ]
        return [_result(each) for each in self._ask("create", asked)]

    def list(self, labels: dict[str, str] | None = None) -> list[Resource]:
        """Return the machines that there are."""
        found = [_resource(each) for each in self._ask("list", [])]
        return [each for each in found if (labels or {}).items() <= each.labels.items()]

    def destroy(self, resources: Sequence[Resource]) -> None:
        """Have machines deleted."""
        self._ask("destroy", [{"id": each.id, "name": each.name} for each in resources])

    def _ask(self, verb: str, content: Any) -> Any:
        with socket(AF_UNIX, SOCK_STREAM) as connection:
            connection.connect(self._path)
            connection.sendall(json.dumps([verb, content]).encode() + b"\n")
            answer = json.loads(connection.makefile("rb").readline())
        if isinstance(answer, dict):
            raise ProviderError(answer["error"])
        return answer


def _result(said: dict[str, Any]) -> Resource | Refusal:
    if "refused" in said:
        return Refusal(said["name"], said["refused"], cause=RefusalCause(said["cause"]), zone=said["zone"])
    return _resource(said)


def _resource(said: dict[str, Any]) -> Resource:
    return Resource(
        Thing.MACHINE,
        said["id"],
        said["name"],
        said["labels"],
        MachineState.RUNNING,
        zone=said["zone"],
        spot=said.get("spot", False),
        created_at=datetime.fromtimestamp(said["made"], UTC),
    )
