"""How the service stands: a heartbeat that nodes watch, and a status that people and `ems cluster status` read.

The heartbeat is rewritten every ten seconds; a node compares whether it *changes*, since clocks differ. The status is
written aside and renamed whenever something in it is another, and at the latest every half minute.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ems.cluster.elastic import breaker
from ems.cluster.ledger import iso
from ems.node import records

HEARTBEAT, STATUS = "heartbeat", "elastic.json"  # in /opt/ems/state
BEAT_S = 10.0
TURN_S = 3600.0  # a turn of the service that takes longer hangs: then nodes had better end
_AGAIN_S = 30.0
_NOTES = 20

log = logging.getLogger("emsd")


@dataclass(frozen=True, slots=True)
class Shut:
    """A kind of which no machine is made for a while.

    Attributes
    ----------
    why
        In the cloud's words.
    until
        UTC, ISO-8601.
    """

    why: str
    until: str


@dataclass(frozen=True, slots=True)
class Status:
    """What the service knows, for people.

    Attributes
    ----------
    phase
        ``works``, ``trouble``, ``stopped`` (in good order), or ``pause`` and ``stop`` where the cluster does so itself.
    trouble
        What kept the last turn from being done; empty where nothing did.
    shut
        Kind -> why and until when none of it is made.
    machines
        Kind -> how many machines there are.
    notes
        What was done last, newest first: the moment and a sentence.
    idle_since
        UTC, ISO-8601; None while something runs, waits, or somebody is logged in.
    """

    at: str
    phase: str = "works"
    trouble: str = ""
    shut: dict[str, Shut] = field(default_factory=dict)
    machines: dict[str, int] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()
    idle_since: str | None = None


def parse(text: str) -> Status | None:
    """Return what the status file says; None for what is none (another version's, torn)."""
    try:
        found: dict[str, Any] = json.loads(text)
        shut = {kind: Shut(str(each["why"]), str(each["until"])) for kind, each in found["shut"].items()}
        notes = tuple((str(at), str(said)) for at, said in found["notes"])
        machines = {str(kind): int(count) for kind, count in found["machines"].items()}
        idle = found["idle_since"]
        words = {key: str(found[key]) for key in ("at", "phase", "trouble")}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return Status(**words, shut=shut, machines=machines, notes=notes, idle_since=None if idle is None else str(idle))


class Heart:
    """The heartbeat.

    Parameters
    ----------
    clock
        Seconds that only ever grow.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = folder / HEARTBEAT
        self._clock = clock
        self._count = 0
        self._last: float | None = None
        self._lock = threading.Lock()

    def beat(self, *, now: bool = False) -> None:
        """Write the heartbeat anew where the last one is ten seconds old."""
        with self._lock:
            if not now and self._last is not None and self._clock() - self._last < BEAT_S:
                return
            self._count += 1
            records.write_atomic(self._path, f"{records.now()} {self._count}\n", durable=False)
            self._path.chmod(0o644)
            self._last = self._clock()

    @contextmanager
    def beating(self, every_s: float = 1.0) -> Iterator[None]:
        """Beat beside what is done inside this, for an hour at most.

        A cloud may take longer to make one node than the others wait for a heartbeat before they switch themselves off.
        """
        began, is_done = self._clock(), threading.Event()

        def beat() -> None:
            while not is_done.wait(every_s) and self._clock() - began < TURN_S:
                with suppress(OSError):  # the turn itself meets it, too, and says so
                    self.beat()

        thread = threading.Thread(target=beat, name="heart", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_done.set()
            thread.join()


class Board:
    """The status as it grows, and where it is written.

    Attributes
    ----------
    trouble
        What kept the last turn from being done; empty where nothing did.
    idle_since
        See :class:`Status`.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = folder / STATUS
        self._clock = clock
        self._last: tuple[Status, float] | None = None
        self._notes = self._said_before()
        self._machines: dict[str, int] = {}
        self.trouble = ""
        self.idle_since: str | None = None

    def _said_before(self) -> list[tuple[str, str]]:
        """Return what an earlier process noted: why the cluster was paused is read after it was resumed."""
        try:
            before = parse(self._path.read_text())
        except OSError:
            return []
        return list(before.notes) if before is not None else []

    def note(self, said: str) -> None:
        """Remember what was done, for people."""
        log.info("%s", said)
        self._notes = [(records.now(), said), *self._notes][:_NOTES]

    def count(self, machines: Mapping[str, int]) -> None:
        """Remember how many machines there are of each kind."""
        self._machines = dict(machines)

    def show(self, shut: Mapping[str, breaker.Shut], *, phase: str = "works") -> None:
        """Write the status, where it is another one or half a minute old.

        Parameters
        ----------
        shut
            Kind -> why it cannot be had now, and until when.
        """
        status = Status(
            at="",
            phase="trouble" if self.trouble and phase == "works" else phase,
            trouble=self.trouble,
            shut={kind: Shut(each.reason, iso(datetime.fromtimestamp(each.until, UTC))) for kind, each in shut.items()},
            machines=self._machines,
            notes=tuple(self._notes),
            idle_since=self.idle_since,
        )
        if self._last is not None and self._last[0] == status and self._clock() - self._last[1] < _AGAIN_S:
            return
        content = asdict(replace(status, at=records.now()))
        records.write_atomic(self._path, json.dumps(content, indent=1) + "\n", durable=False)
        self._path.chmod(0o644)
        self._last = (status, self._clock())
