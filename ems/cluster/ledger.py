"""The ledger of a cluster: when each machine began and ceased to cost something, one JSON line an event.

Kept at ``$XDG_STATE_HOME/ems/ledgers/NAME.jsonl``, where it outlives the cluster, and at :data:`SHARED` on the cluster,
where whoever else makes machines of it appends. Lines are only ever added; both files together say what was, however
often a line is in them: a start of what runs, and a stop of what does not, count for nothing.

Before and after each command what is there is compared with what the ledger says; what a command itself deletes is
written down as soon as it is gone. So a command that was killed anywhere is completed by the next one, from the
provider's list and the journal.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from ems.cluster import price
from ems.cluster.fleet import Fleet
from ems.cluster.provider import base
from ems.cluster.provider.base import MachineState, Resource
from ems.cluster.record import Phase, owner, texts
from ems.cluster.spans import START, STOP, Event, Gist, Span, dump, is_alike, iso, parse, spans
from ems.errors import ClusterError, EmsError
from ems.node import records
from ems.registry import check_name, state_dir

__all__ = ["START", "STOP", "Event", "Span", "dump", "iso", "parse", "spans"]  # what others read a ledger with

#: The ledger on the cluster's share.
SHARED = "/opt/ems/state/ledger.jsonl"
_COSTS_NOTHING = (MachineState.STOPPED, MachineState.FAILED)
_ENDING = ("destroy", "pause", "stop")  # steps of the journal that end machines
_BEGINNING = ("create", "wake")
_SAME = timedelta(seconds=5)  # clocks of a cloud and a client differ
_ASK_S = 60
_FAR = 64 * 1024  # bytes; what is read besides the gist at each change
# Prints from which byte on it goes on, then that; from the first where no line ends there (any more)
_SINCE = f"""size=$(wc -c <{SHARED}) || size=0
[ "$1" -le "$size" ] && [ -z "$(tail -c "+$1" {SHARED} 2>/dev/null | head -c 1)" ] || set -- 0
echo "$1"; tail -c "+$(($1 + 1))" {SHARED} 2>/dev/null; exit 0"""
_APPEND = f"flock {SHARED}.lock sh -c '(wc -c <{SHARED}) 2>/dev/null || echo 0; cat >>{SHARED} && sync {SHARED}'"

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seen:
    """A machine that is there: the event of its start but for the moment, and when it was made, if that is known."""

    start: Event
    created: datetime | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A line of the journal: what was, or was about to be, done to machines."""

    at: datetime
    verb: str
    nodes: frozenset[str] = field(default_factory=frozenset)


def difference(
    events: Sequence[Event],
    seen: Mapping[str, Seen],
    steps: Sequence[Step],
    now: datetime,
    lease: timedelta | None = None,
) -> list[Event]:
    """Return the events that are missing, so that the ledger says what is there.

    Parameters
    ----------
    events
        Of this incarnation.
    seen
        The machines that are there and cost something, by name.
    steps
        The journal: it knows when a command that was killed did what it did.
    lease
        After which the cloud itself deletes a machine.
    """
    known = spans(events)
    running = {each.start.node: each for each in known if each.end is None}
    ends = {each.start.node: each.end for each in known if each.end is not None}
    missing = []
    for node, machine in seen.items():
        span = running.get(node)
        if span is not None and _is_same(span, machine):
            continue
        last = ends.get(node)
        if span is not None:
            last = min(_end(span, steps, now, lease), max(machine.created or now, span.begin))
            missing.append(replace(span.start, event=STOP, at=iso(last), by=machine.start.by))
        begin = _begin(node, machine, last, steps, now)
        missing.append(replace(machine.start, event=START, at=iso(begin)))
    for node, span in running.items():
        if node not in seen:
            missing.append(replace(span.start, event=STOP, at=iso(_end(span, steps, now, lease)), by=owner()))
    return missing


def _is_same(span: Span, machine: Seen) -> bool:
    is_newer = machine.created is not None and machine.created > span.begin + _SAME
    return is_alike(span.start, machine.start) and not is_newer


def _begin(node: str, machine: Seen, last: datetime | None, steps: Sequence[Step], now: datetime) -> datetime:
    """Return since when a machine runs: since it was made or, where it ran before, was last started."""
    if machine.created is not None and (last is None or machine.created >= last):
        return min(machine.created, now)
    begun = [each.at for each in steps if each.verb in _BEGINNING and node in each.nodes]
    recent = [at for at in begun if last is None or at >= last]
    return max(min(recent), last or min(recent)) if recent else max(now, last or now)


def _end(span: Span, steps: Sequence[Step], now: datetime, lease: timedelta | None) -> datetime:
    """Return when a machine that is gone ended, or at the latest did."""
    node, begin = span.start.node, span.begin
    done = [each.at for each in steps if each.verb in _ENDING and node in each.nodes and begin <= each.at <= now]
    last = max(done) if done else max(now, begin)
    return last if lease is None else min(last, begin + lease)


class Ledger:
    """The ledger of the clusters of one name; several commands may write it at once.

    Beside it lies the gist of its beginning, so that a change reads only what was added since; whoever is killed leaves
    the one of before, or none.

    Parameters
    ----------
    path
        Default: the one on this machine. The one on the share is locked as :func:`share` does.
    """

    def __init__(self, name: str, path: Path | None = None) -> None:
        self.path = path or state_dir() / "ledgers" / f"{check_name(name)}.jsonl"
        self._lock = None if path is None else path.with_name(f"{path.name}.lock")
        self._gist, self._marks = self.path.with_suffix(".gist"), self.path.with_suffix(".shared")

    def events(self) -> list[Event]:
        """Return all events; none where there is no ledger."""
        return parse((self._read() or b"").decode(errors="replace"))

    def gist(self, incarnation: str) -> Gist:
        """Return what it comes to for an incarnation."""
        return self._look(incarnation)[0]

    def add(self, incarnation: str, missing: Callable[[list[Event]], Iterable[Event]]) -> None:
        """Append what is missing of an incarnation; whoever else writes waits meanwhile.

        Parameters
        ----------
        missing
            Is given what is there of it, as far as that matters: the events of :class:`Gist`.
        """
        with self._locked() as handle:
            there, is_far = self._look(incarnation)
            known = set(there.events)
            _append(handle, [each for each in missing([*there.events]) if each not in known])
            if is_far:
                records.write_atomic(self._gist, there.dump())

    def merge(self, start: int, theirs: Iterable[Event]) -> tuple[list[Event], int]:
        """Append events from elsewhere, but for those that are in the file from the byte ``start`` on.

        Returns
        -------
        list of Event, int
            What is in the file from there on, and its size after this.
        """
        with self._locked() as handle:
            text = self._read(start)
            own = parse((self._read() or b"" if text is None else text).decode(errors="replace"))
            known = set(own)
            _append(handle, [each for each in theirs if each not in known])
            return own, os.fstat(handle).st_size

    def shared(self, incarnation: str) -> tuple[int, int]:
        """Return of how much of this ledger, and of that on the share, the other one has all, in bytes."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            said = json.loads(self._marks.read_text())
            if said["id"] == incarnation and self._read(int(said["here"])) is not None:  # else another file is here now
                return int(said["here"]), int(said["there"])
        return 0, 0

    def mark_shared(self, incarnation: str, here: int, there: int) -> None:
        """Remember what :meth:`shared` returns."""
        records.write_atomic(self._marks, json.dumps({"id": incarnation, "here": here, "there": there}) + "\n")

    def _look(self, incarnation: str) -> tuple[Gist, bool]:
        """Return the gist, and whether so much had to be read for it that it is to be kept."""
        try:
            kept = Gist.parse(self._gist.read_text(errors="replace"), incarnation)
        except FileNotFoundError:
            kept = Gist(incarnation)
        found = self._follow(kept)
        is_near = found is not None and found.size - kept.size <= _FAR
        return found or self._follow(Gist(incarnation)) or kept, not is_near

    def _follow(self, before: Gist) -> Gist | None:
        """Return the gist of all where that of a beginning is known; None: it is not, of this file."""
        text = self._read(before.size)
        if text is None:
            return None if before.size else before
        return before.then(parse(text.decode(errors="replace")), before.size + text.rfind(b"\n") + 1)

    def _read(self, start: int = 0) -> bytes | None:
        """Return what is there from the byte at which a line begins; None: there is no such line, or no file."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, start - 1))
                return file.read() if not start or file.read(1) == b"\n" else None
        except FileNotFoundError:
            return None

    @contextmanager
    def _locked(self) -> Iterator[int]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags, mode = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600 if self._lock is None else 0o644
        handle = os.open(self.path, flags, mode)
        try:
            with (self._lock or self.path).open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield handle
        finally:
            os.close(handle)


def _append(handle: int, events: Sequence[Event]) -> None:
    """Add whole lines to a ledger, and see them on the disk."""
    if not events:
        return
    size = os.fstat(handle).st_size
    is_torn = size and os.pread(handle, 1, size - 1) != b"\n"
    os.write(handle, (("\n" if is_torn else "") + dump(events)).encode())
    os.fsync(handle)


def names() -> list[str]:
    """Return the names of all clusters that have a ledger on this machine, sorted."""
    return sorted(path.stem for path in Path(state_dir() / "ledgers").glob("*.jsonl"))


def _of(fleet: Fleet) -> Ledger:
    return Ledger(fleet.name, fleet.ledger_path)


def observe(fleet: Fleet) -> None:
    """Have the ledger say what is there."""
    there = {name: each for name, each in fleet.machines().items() if each.state not in _COSTS_NOTHING}
    seen, done = {name: _seen(fleet, each) for name, each in there.items()}, steps(fleet)

    def missing(events: list[Event]) -> list[Event]:
        return difference(events, seen, done, datetime.now(UTC), _lease(fleet))

    _of(fleet).add(fleet.record.incarnation, missing)


def ended(fleet: Fleet, machines: Sequence[Resource]) -> None:
    """Write down machines that were there a moment ago and are gone, whether the ledger knew of them or not."""
    seen, done, now = {each.name: _seen(fleet, each) for each in machines}, steps(fleet), datetime.now(UTC)

    def missing(events: list[Event]) -> list[Event]:
        own = [each for each in events if each.node in seen]
        there = {each.name: seen[each.name] for each in machines if each.state not in _COSTS_NOTHING}
        starts = difference(own, there, done, now, _lease(fleet))
        return [*starts, *difference([*own, *starts], {}, (), now, _lease(fleet))]

    _of(fleet).add(fleet.record.incarnation, missing)


def share(fleet: Fleet) -> None:
    """Exchange events with the cluster's share; where it does not answer, the next command does.

    What is there was written by whoever makes machines from within the cluster, or from another laptop. Of both ledgers
    only what was added since the last exchange is read; where another one wrote meanwhile, or this is killed, some of
    it is read again.
    """
    if fleet.record.phase is not Phase.READY:
        return
    own, incarnation = Ledger(fleet.name), fleet.record.incarnation
    with suppress(EmsError, ValueError):
        here, there = own.shared(incarnation)
        said = fleet.host().run(["sh", "-c", _SINCE, "sh", str(there)], timeout_s=_ASK_S).stdout
        start, _, text = said.partition(b"\n")
        size, end = int(start) + len(text), int(start) + text.rfind(b"\n") + 1
        theirs = [each for each in parse(text.decode(errors="replace")) if each.id == incarnation]
        mine, here = own.merge(here if int(start) == there else 0, theirs)
        known = set(theirs)
        more = [each for each in mine if each.id == incarnation and each not in known]
        if more:
            data = (("\n" if end < size else "") + dump(more)).encode()
            done = fleet.host().run(["sudo", "sh", "-c", _APPEND], data=data, timeout_s=_ASK_S)
            end = size + len(data) if int(done.stdout) == size else end  # else another one wrote before
        own.mark_shared(incarnation, here, end)


def kept(change: Callable[Concatenate[Fleet, P], T]) -> Callable[Concatenate[Fleet, P], T]:
    """Have the ledger say what is there before a change of a cluster, and after it, however it ends."""

    @wraps(change)
    def run(fleet: Fleet, /, *args: P.args, **kwargs: P.kwargs) -> T:
        observe(fleet)
        try:
            result = change(fleet, *args, **kwargs)
        except EmsError:
            with suppress(EmsError):
                observe(fleet)
            raise
        with suppress(EmsError):  # the change is done; the next command writes down what it did
            observe(fleet)
        share(fleet)
        return result

    return run


def check_limit(fleet: Fleet, wanted: Sequence[str] | None = None) -> None:
    """See that what is wanted stays within ``limits.max_cost`` until ``max_hours`` or, without them, for an hour.

    Parameters
    ----------
    wanted
        The compute nodes; default: as they are written down.

    Raises
    ------
    ClusterError
        If it does not, or a price is unknown.
    """
    limits = fleet.definition.limits
    if limits.max_cost is None:
        return
    now, book = datetime.now(UTC), _of(fleet).gist(fleet.record.incarnation)
    spent = price.total([book.usd, *(each.usd(now) for each in spans(book.events))])
    kinds = ["controller", *(fleet.kind(node) for node in (fleet.record.wanted if wanted is None else wanted))]
    rate = price.total(price.of_kind(fleet.definition, kind) for kind in kinds)
    if spent is None or rate is None:
        raise ClusterError(
            f"`limits.max_cost` of {fleet.name} cannot be kept: what its machines cost is not known",
            "say `prices: {SIZE: DOLLARS_AN_HOUR}` in the definition",
        )
    hours = limits.max_hours or 1.0
    if spent + rate * hours > limits.max_cost:
        raise ClusterError(
            f"{fleet.name} may cost ${limits.max_cost:.2f}: ${spent:.2f} are spent, and {len(kinds)} machines would "
            f"cost ${rate * hours:.2f} in {hours:g} h",
            "ask for fewer nodes, or raise `limits.max_cost` in the definition before the cluster is made",
        )


def _lease(fleet: Fleet) -> timedelta | None:
    hours = fleet.definition.limits.max_hours
    return None if hours is None or fleet.provider.traits.is_free else timedelta(hours=hours)


def _seen(fleet: Fleet, machine: Resource) -> Seen:
    definition = fleet.definition
    kind = "controller" if machine.name == fleet.record.controller else fleet.kind(machine.name)
    is_known = kind == "controller" or kind in definition.nodes
    spec = definition.kind(kind) if is_known else None
    meant = price.machine_of(definition, kind) if is_known else price.Machine("")
    labelled = replace(machine, labels={**machine.labels, base.KIND: kind})
    event = Event(
        id=fleet.record.incarnation,
        node=machine.name,
        kind=kind,
        size=machine.size or meant.size,
        zone=machine.zone,
        spot=machine.spot,
        usd_per_hour=price.of_machines(definition, [labelled]),
        gpus=spec.gpus if spec else 0,
        gpu_type=(spec.gpu_type or meant.gpu_type) if spec and spec.gpus else "",
        cpus=spec.cpus if spec else None,
        event=START,
        at="",
        by=owner(),
    )
    return Seen(event, machine.created_at)


def steps(fleet: Fleet) -> list[Step]:
    """Return what the journal of this machine says was done to machines, or was about to be."""
    found = []
    for line in fleet.journal.lines():
        with suppress(ValueError, TypeError, KeyError):
            at = datetime.fromisoformat(str(line["at"]))
            found.append(Step(at, str(line["step"]).split(" ")[0], frozenset(texts(line["things"]))))
    return found
