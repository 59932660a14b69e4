"""What machines cost, by whom and what for: the ledger's times joined with SLURM's accounting. Pure.

A job pays for its part of the node's GPUs or, where it has none, of its CPUs. What no job paid for is ``idle``, the
controller with it. Where these parts are more than the whole node the jobs share what it costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TypeAlias

from ems.cluster.energy import Factors
from ems.cluster.ledger import Span
from ems.cluster.usage import Usage, Use

#: What no job used.
IDLE = "idle"


class By(StrEnum):
    """What costs are added up by; days are UTC's."""

    KIND = "kind"
    DAY = "day"
    EXPERIMENT = "experiment"
    USER = "user"


@dataclass(frozen=True, slots=True)
class Key:
    """What a part of the cost is of."""

    kind: str
    day: str
    experiment: str
    user: str

    def by(self, what: By) -> str:
        """Return the word that it is added up under."""
        return str(getattr(self, what.value)) or IDLE


@dataclass(frozen=True, slots=True)
class Amount:
    """A cost.

    Attributes
    ----------
    hours
        Of nodes.
    known_usd, unpriced_hours
        Dollars of what has a known price, and hours of what has none.
    known_kwh, unmetered_hours
        The same of energy.
    """

    hours: float = 0.0
    gpu_hours: float = 0.0
    known_usd: float = 0.0
    unpriced_hours: float = 0.0
    known_kwh: float = 0.0
    unmetered_hours: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.hours + other.hours,
            self.gpu_hours + other.gpu_hours,
            self.known_usd + other.known_usd,
            self.unpriced_hours + other.unpriced_hours,
            self.known_kwh + other.known_kwh,
            self.unmetered_hours + other.unmetered_hours,
        )

    @property
    def usd(self) -> float | None:
        """US dollars; None where a part of them is unknown."""
        return None if self.unpriced_hours else self.known_usd

    @property
    def kwh(self) -> float | None:
        """Energy; None where a part of it is unknown."""
        return None if self.unmetered_hours else self.known_kwh


Costs: TypeAlias = dict[Key, Amount]


def costs(spans: Iterable[Span], usage: Usage, factors: Factors, now: datetime) -> Costs:
    """Return what machines have cost until now, in parts that no grouping has to split."""
    of_node: dict[str, list[Use]] = {}
    for use in usage.uses:
        for node in use.nodes:
            of_node.setdefault(node, []).append(use)
    found: Costs = {}
    for span in spans:
        cpus = usage.cpus.get(span.start.node, span.start.cpus)
        kw = factors.kw(span.start.gpus, span.start.gpu_type, cpus)
        for begin, end, parts in _pieces(span, of_node.get(span.start.node, []), cpus, now):
            day, hours = begin.astimezone(UTC).date().isoformat(), (end - begin) / timedelta(hours=1)
            for (experiment, user), (part, of_gpus) in parts.items():
                key = Key(span.start.kind, day, experiment, user)
                amount = replace(_amount(span, hours * part, kw), gpu_hours=hours * of_gpus * span.start.gpus)
                found[key] = found.get(key, Amount()) + amount
    return found


def _amount(span: Span, hours: float, kw: float | None) -> Amount:
    usd = span.start.usd_per_hour
    return Amount(
        hours,
        0.0,
        0.0 if usd is None else usd * hours,
        hours if usd is None else 0.0,
        0.0 if kw is None else kw * hours,
        hours if kw is None else 0.0,
    )


#: Experiment and user -> their part of the node's price, and of its GPUs.
Parts: TypeAlias = Mapping[tuple[str, str], tuple[float, float]]


def _pieces(
    span: Span, uses: Sequence[Use], cpus: int | None, now: datetime
) -> Iterator[tuple[datetime, datetime, Parts]]:
    """Yield the times within a day in which the same jobs ran, and each one's parts of the node; they add up to 1."""
    first, last = span.begin, span.end or now
    marks = {first, last, *_midnights(first, last)}
    events: dict[datetime, tuple[list[Use], list[Use]]] = {}
    for use in uses:
        begin, end = max(use.begin, first), min(use.end or now, last)
        if begin < end:
            events.setdefault(begin, ([], []))[0].append(use)
            events.setdefault(end, ([], []))[1].append(use)
    active: dict[int, Use] = {}
    at = first
    for mark in sorted({*marks, *events}):
        if mark > at:
            yield at, mark, _parts(span, active.values(), cpus)
            at = mark
        came, went = events.get(mark, ((), ()))
        for use in went:
            active.pop(id(use), None)
        for use in came:
            active[id(use)] = use


def _midnights(first: datetime, last: datetime) -> Iterator[datetime]:
    day = first.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    while day < last:
        yield day
        day += timedelta(days=1)


def _parts(span: Span, uses: Iterable[Use], cpus: int | None) -> Parts:
    paid: dict[tuple[str, str], float] = {}
    held: dict[tuple[str, str], float] = {}
    for use in uses:
        key, gpus = (use.experiment, use.user), span.start.gpus
        paid[key] = paid.get(key, 0.0) + part_of_node(use.cpus, use.gpus, len(use.nodes), gpus, cpus)
        held[key] = held.get(key, 0.0) + (min(1.0, use.gpus / len(use.nodes) / gpus) if gpus else 0.0)
    paid, held = _whole(paid), _whole(held)
    return {key: (paid[key], held[key]) for key in paid if paid[key] or held[key]}


def _whole(parts: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Return parts of which none is too much, and the rest of them as what is idle."""
    total = sum(parts.values())
    scale = 1 / total if total > 1 else 1.0
    return {**{key: part * scale for key, part in parts.items()}, (IDLE, ""): max(0.0, 1 - total)}


def part_of_node(cpus: int, gpus: int, n_nodes: int, node_gpus: int, node_cpus: int | None) -> float:
    """Return what a job pays for of each of its nodes: its part of the GPUs or, without any, of the CPUs; at most 1.

    Where nobody knows how many CPUs a node has, it pays for all of it.
    """
    if node_gpus and gpus:
        return min(1.0, gpus / n_nodes / node_gpus)
    return min(1.0, cpus / n_nodes / node_cpus) if node_cpus else 1.0


def total(amounts: Iterable[Amount]) -> Amount:
    """Return the sum."""
    return sum(amounts, Amount())


def grouped(found: Costs, by: By) -> dict[str, Amount]:
    """Return the sums, the dearest first (days in their order); with the same total whatever they are added up by."""
    sums: dict[str, Amount] = {}
    for key, amount in found.items():
        word = key.by(by)
        sums[word] = sums.get(word, Amount()) + amount
    if by is By.DAY:
        return dict(sorted(sums.items()))
    return dict(sorted(sums.items(), key=lambda each: (-each[1].known_usd, -each[1].gpu_hours, -each[1].hours)))


@dataclass(frozen=True, slots=True)
class Stretch:
    """An attempt of a run that has ended: where, since when, how long."""

    host: str
    begin: datetime
    wall_s: float


def of_run(
    stretches: Iterable[Stretch], spans: Iterable[Span], node_cpus: Mapping[str, int], cpus: int, gpus: int, nodes: int
) -> float | None:
    """Return US dollars of a run, all of its attempts; None where the price of one of its nodes is unknown.

    Parameters
    ----------
    spans, node_cpus
        Of its cluster.
    cpus, gpus
        That it asks for on each of its ``nodes``.
    """
    of_node: dict[str, list[Span]] = {}
    for span in spans:
        of_node.setdefault(span.start.node, []).append(span)
    usd = 0.0
    for each in stretches:
        near = [span for span in of_node.get(each.host, ()) if span.begin <= each.begin <= (span.end or each.begin)]
        found = near[0] if near else None
        if found is None or found.start.usd_per_hour is None:
            return None
        part = part_of_node(cpus, gpus, 1, found.start.gpus, node_cpus.get(each.host, found.start.cpus))
        usd += found.start.usd_per_hour * part * nodes * each.wall_s / 3600
    return usd
