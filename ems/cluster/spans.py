"""When machines cost something: events, the times that they come to, and the gist of very many. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime

from ems.cluster import price

START, STOP = "start", "stop"


@dataclass(frozen=True, slots=True)
class Event:
    """A machine that began (``start``) or ceased (``stop``) to cost something.

    Attributes
    ----------
    id
        The cluster's incarnation.
    usd_per_hour
        Without disks, addresses and traffic; None: unknown.
    cpus
        None where only its size says it.
    at
        UTC, ISO-8601.
    by
        Who wrote it.
    """

    id: str
    node: str
    kind: str
    size: str
    zone: str
    spot: bool
    usd_per_hour: float | None
    gpus: int
    gpu_type: str
    cpus: int | None
    event: str
    at: str
    by: str

    @property
    def moment(self) -> datetime:
        """When it was."""
        return datetime.fromisoformat(self.at)


@dataclass(frozen=True, slots=True)
class Span:
    """A time in which a machine cost something; ``end`` is None while it does."""

    start: Event
    end: datetime | None = None

    @property
    def begin(self) -> datetime:
        """When it began."""
        return self.start.moment

    def usd(self, now: datetime) -> float | None:
        """US dollars that it has cost until now; None: unknown."""
        hours = ((self.end or now) - self.begin).total_seconds() / 3600
        return None if self.start.usd_per_hour is None else self.start.usd_per_hour * hours


def iso(moment: datetime) -> str:
    """Return a moment as it is written."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def parse(text: str) -> list[Event]:
    """Return every event once, in the order of the lines; what is no event (a torn line) is passed over."""
    return list(dict.fromkeys(found for line in text.splitlines() if (found := _event(line)) is not None))


def dump(events: Iterable[Event]) -> str:
    """Return the lines of events."""
    return "".join(json.dumps(asdict(each)) + "\n" for each in events)


_KEYS = [each.name for each in fields(Event)]


def _event(line: str) -> Event | None:
    try:
        found = json.loads(line)
        event = Event(**{key: found[key] for key in _KEYS})
        is_whole = event.event in {START, STOP} and event.moment.tzinfo is not None
    except (ValueError, TypeError, KeyError):
        return None
    return event if is_whole else None


def spans(events: Iterable[Event]) -> list[Span]:
    """Return the times that machines cost something, in order of their beginning.

    A start of what runs already is the same machine, unless it is of another size or in another zone.
    """
    running: dict[tuple[str, str], Event] = {}
    found: list[Span] = []
    for event in sorted(dict.fromkeys(events), key=lambda each: each.moment):
        key = (event.id, event.node)
        before = running.get(key)
        if event.event == STOP:
            if before is not None:
                found.append(Span(running.pop(key), event.moment))
        elif before is None:
            running[key] = event
        elif not is_alike(before, event):
            found.append(Span(before, event.moment))
            running[key] = event
    found += [Span(each) for each in running.values()]
    return sorted(found, key=lambda each: (each.begin, each.start.node))


def is_alike(one: Event, other: Event) -> bool:
    """Whether both may be of the same machine: of the same size, in the same zone."""
    return all(not a or not b or a == b for a, b in ((one.size, other.size), (one.zone, other.zone)))


@dataclass(frozen=True, slots=True)
class Gist:
    """What a ledger comes to for one incarnation, as far as anything that follows depends on it.

    Attributes
    ----------
    id
        The incarnation.
    size
        Of how much of the ledger this is the gist, in bytes.
    usd
        What the times have cost that are not among ``events``; None: unknown.
    events
        Of each machine those since the last of its times that has ended began; all where none has.
    """

    id: str
    size: int = 0
    usd: float | None = 0.0
    events: tuple[Event, ...] = ()

    def then(self, more: Iterable[Event], size: int) -> Gist | None:
        """Return the gist with what follows in the ledger.

        None: some of it is older than what is known of its machine here; then the ledger has to be read from its
        beginning.
        """
        first: dict[str, datetime] = {}
        for each in self.events:
            first[each.node] = min(each.moment, first.get(each.node, each.moment))
        new = [each for each in more if each.id == self.id]
        if any(each.node in first and each.moment < first[each.node] for each in new):
            return None
        events = tuple(dict.fromkeys((*self.events, *new)))
        ended = [each for each in spans(events) if each.end is not None]
        last = {each.start.node: each for each in ended}
        paid = [each.usd(each.begin) for each in ended if each is not last[each.start.node]]
        kept = [each for each in events if each.node not in last or each.moment >= last[each.node].begin]
        return Gist(self.id, size, price.total([self.usd, *paid]), tuple(kept))

    def dump(self) -> str:
        """Return it as text, for :meth:`parse`."""
        head = {"id": self.id, "size": self.size, "usd": self.usd, "count": len(self.events)}
        return json.dumps(head) + "\n" + dump(self.events)

    @staticmethod
    def parse(text: str, incarnation: str) -> Gist:
        """Return what :meth:`dump` wrote, or an empty one where that was of another incarnation, or is not whole."""
        head, _, lines = text.partition("\n")
        try:
            said = json.loads(head)
            found = Gist(str(said["id"]), int(said["size"]), said["usd"], tuple(parse(lines)))
            is_whole = found.id == incarnation and len(found.events) == said["count"]
        except (ValueError, TypeError, KeyError):
            is_whole = False
        return found if is_whole else Gist(incarnation)
