"""What a cluster does by itself when nobody needs it: ``idle: {after_min: 30, do: pause}``.

Nobody needs it while its queue is empty and nobody is connected to the controller. Then it pauses (nodes are deleted,
the controller stops itself, its disk stays) or stops (all machines are deleted, the controller last; what is left costs
nothing, and the next ``ems cluster`` command of its user sweeps it away). It stops only once the results are safe, and
pauses while they are not.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ems.cluster import definition, ledger, nodes
from ems.cluster.elastic import safety
from ems.cluster.elastic.control import Control
from ems.cluster.elastic.here import FleetHere
from ems.cluster.elastic.standing import Board
from ems.cluster.provider.base import MachineState, Resource
from ems.errors import ClusterError, EmsError
from ems.node import records
from ems.node.job import process_start

log = logging.getLogger("emsd")

LOOK_S = 30.0
_GONE_S = 300.0  # until nodes that were deleted are gone
_END_S = 300.0  # until this machine is
_LATE_S = 5.0  # listings may be late: two of them, so far apart, have to be empty
_AGAIN_S = 600.0  # after an attempt that failed
# how sshd calls a process that serves somebody who has logged in: `sshd: ems@pts/0`, `sshd-session: ems@notty`
_SESSION = re.compile(rb"sshd(?:-session)?: [^\0@]+@\S+")


@dataclass(frozen=True, slots=True)
class Idleness:
    """Since when nobody has needed the cluster, in seconds of a clock; None: somebody does. Pure."""

    since: float | None = None

    def look(self, *, is_needed: bool, now: float) -> Idleness:
        """Return what follows from a look."""
        if is_needed:
            return Idleness()
        return self if self.since is not None else Idleness(now)

    def is_over(self, after_min: float, now: float) -> bool:
        """Whether it has lasted so long that something is done."""
        return self.since is not None and now - self.since >= after_min * 60


def people(proc: Path = Path("/proc")) -> int:
    """Return how many connections there are of people, and programs of theirs, that have logged in over SSH."""
    titles = (_content(path / "cmdline") for path in proc.glob("[0-9]*"))
    return sum(_SESSION.match(title) is not None for title in titles)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has just ended
        return b""


class Keeper:
    """Knows since when nobody has needed a cluster, and has it rest.

    Parameters
    ----------
    people
        Counts who is connected.
    clock
        Seconds since this machine was booted, those asleep included.
    """

    def __init__(
        self,
        fleet: FleetHere,
        control: Control,
        board: Board,
        *,
        people: Callable[[], int] = people,
        clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        if fleet.definition.idle is None:
            raise ValueError("nothing says what is done when it is idle")
        self.fleet, self.control, self.board = fleet, control, board
        self.spec: definition.Idle = fleet.definition.idle
        self._people, self._clock = people, clock
        self._due = 0.0
        self._path = fleet.files.dir / "idle.json"
        self.idleness = self._known()

    def look(self) -> bool:
        """Look every half minute whether anybody needs the cluster; return whether nobody has for long enough.

        Raises
        ------
        ClusterError
            If SLURM does not answer: then nobody knows.
        """
        now = self._clock()
        if now < self._due:
            return False
        self._due = now + min(LOOK_S, self.spec.after_min * 60 / 4)
        self._remember(self.idleness.look(is_needed=self.is_needed(), now=now))
        return self.idleness.is_over(self.spec.after_min, now)

    def is_needed(self) -> bool:
        """Whether something is in the queue, or somebody connected."""
        return bool(self.control.jobs()) or self._people() > 0

    def rest(self) -> None:
        """Pause or stop the cluster; does not return where that succeeds, for this machine ends with it.

        Raises
        ------
        EmsError
            If the cloud does not let it; after a while it is tried again.
        """
        self._due = self._clock() + _AGAIN_S
        do = self.spec.do
        unsafe = safety.lacks(self.fleet, self.is_needed) if do == "stop" else ""
        if self.is_needed():  # to copy results takes its time
            self._remember(Idleness())
            return
        if unsafe:
            self.board.note(f"paused instead of stopped: {unsafe}")
            do = "pause"
        self.board.note(f"to {do}: nobody has needed it for {self.spec.after_min:g} min")
        self.board.show({}, phase=do)
        self.fleet.look()
        with self.fleet.journal.step(do, [self.fleet.record.controller, *self._computes()]):
            self._clear(is_kept=do == "pause" and self._keeps_nodes)
            if self.is_needed():  # to delete machines takes minutes
                self._remember(Idleness())
                if self.fleet.definition.is_elastic:  # its nodes come anew
                    self.board.note("goes on: somebody needs it again")
                    return
                do = "pause"  # what waits in the queue outlives that
            self._end(do)

    # -- nodes first --------------------------------------------------------------------------------------------------

    @property
    def _keeps_nodes(self) -> bool:
        """Whether nodes are stopped only: where they cost nothing, as `ems cluster pause` does."""
        return self.fleet.provider.traits.is_free and not self.fleet.definition.is_elastic

    def _computes(self) -> dict[str, Resource]:
        return {name: each for name, each in self.fleet.machines().items() if self.fleet.kind(name)}

    def _clear(self, *, is_kept: bool) -> None:
        """Have SLURM let go of all nodes, then delete their machines, or stop those that are kept."""
        computes, provider = self._computes(), self.fleet.provider
        names = sorted(computes)
        if self.fleet.definition.is_elastic:  # SLURM is to know that they are off when it runs again, those lost too
            on = [name for name, each in self.control.nodes().items() if "POWERED_DOWN" not in each.flags]
            self.control.power_down(on, force=True)
        else:
            self.control.down(names, "paused by ems")
        for path in (path for name in names for path in self.fleet.paths.traces(name)):
            path.unlink(missing_ok=True)
        if is_kept:
            provider.stop([each for each in computes.values() if each.state is not MachineState.STOPPED])
            return
        end, empty = time.monotonic() + _GONE_S, 0
        while empty < 2:
            left = [*self._computes().values(), *(each for each in self.fleet.doubles() if self.fleet.kind(each.name))]
            if left:
                if time.monotonic() > end:
                    raise ClusterError(f"{left[0].name} cannot be deleted", "it is tried again")
                nodes.destroy(self.fleet, left)
            empty = 0 if left else empty + 1
            time.sleep(_LATE_S if empty == 1 and not provider.traits.is_free else 0.2)
            self.fleet.look()
        if not self.fleet.definition.is_elastic:
            self.control.forget(names)

    # -- then this machine --------------------------------------------------------------------------------------------

    def _end(self, do: str) -> None:
        controller = self.fleet.machines()[self.fleet.record.controller]
        ledger.observe(self.fleet)
        ledger.ended(self.fleet, [controller])  # afterwards there is nobody to write it down
        self._path.unlink(missing_ok=True)
        os.sync()
        if do == "pause":
            self.fleet.provider.stop([controller])
        else:
            self.fleet.provider.destroy([controller])
        time.sleep(_END_S)
        raise ClusterError(f"{controller.name} is still there after it was to {do}", "it is tried again")

    # -- what outlives a restart of the service -----------------------------------------------------------------------

    def _remember(self, idleness: Idleness) -> None:
        if idleness == self.idleness:
            return
        self.idleness = idleness
        self.board.idle_since = self._moment()
        self.fleet.files.make()
        records.write_atomic(self._path, json.dumps({"boot": _boot(), "since": idleness.since}), durable=False)

    def _known(self) -> Idleness:
        """Return what an earlier process of this boot has seen; who starts a machine needs it for a while."""
        try:
            found = json.loads(self._path.read_text())
            since = found["since"] if found["boot"] == _boot() else self._clock()
            known = Idleness(None if since is None else min(float(since), self._clock()))
        except (OSError, ValueError, TypeError, KeyError):
            known = Idleness(self._clock())
        self.idleness = known
        self.board.idle_since = self._moment()
        return known

    def _moment(self) -> str | None:
        since = self.idleness.since
        return None if since is None else ledger.iso(datetime.now(UTC) - timedelta(seconds=self._clock() - since))


def _boot() -> str:
    """Return what tells this boot of this machine, or container, from others."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}-{process_start(1)}"


def keep(fleet: FleetHere, stop: threading.Event, control: Control | None = None) -> None:
    """Look after a cluster whose nodes do not come and go, until told to stop."""
    board = Board(fleet.paths.state)
    keeper = Keeper(fleet, control or Control(), board)
    while not stop.is_set():
        try:
            if keeper.look():
                keeper.rest()
            board.trouble = ""
        except EmsError as error:
            board.trouble = error.message
            log.warning("%s", error.message)
        board.show({})
        stop.wait(min(LOOK_S, keeper.spec.after_min * 60 / 4))
    board.show({}, phase="stopped")
