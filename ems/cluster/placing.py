"""Machines are asked for in one zone and size after another, until nowhere is left where they are not sold out.

Which place was tried is in the journal before it is: a command that was killed in between, and is given again, asks
there first, where the cloud answers that the machine exists. So no machine is made a second time in another zone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ems.cluster.failover import Place
from ems.cluster.fleet import Fleet
from ems.cluster.provider import base
from ems.cluster.provider.base import MachineRequest, Refusal, RefusalCause, Resource
from ems.cluster.record import texts

#: The first word of the journal's steps by which machines are made.
STEP = "create"
_NO_ZONE = "-"


@dataclass
class _Search:
    """Where one machine was asked for already, by this command and by those that were cut off."""

    request: MachineRequest
    begun: Collection[Place]
    tried: set[Place] = field(default_factory=set)
    refusal: Refusal | None = None


def place(fleet: Fleet, wanted: Sequence[MachineRequest]) -> list[Resource | Refusal]:
    """Have machines made; those that are alike and go to the same place by one call.

    Only what is sold out is tried elsewhere; any other refusal is final.
    """
    begun = _begun(fleet)
    left = [_Search(each, begun.get(each.name, ())) for each in wanted]
    results: dict[str, Resource | Refusal] = {}
    while left:
        groups: dict[Place, list[_Search]] = {}
        for search in left:
            where = _next(fleet, search)
            if where is None:
                results[search.request.name] = search.refusal or _sold_out(fleet, search.request)
            else:
                groups.setdefault(where, []).append(search)
        left = []
        for where, group in groups.items():
            left += _try(fleet, where, group, results)
    return [results[each.name] for each in wanted]


def _try(fleet: Fleet, where: Place, group: Sequence[_Search], results: dict[str, Resource | Refusal]) -> list[_Search]:
    """Ask for machines at one place; returns those that are sold out there."""
    zone, size = where
    for search in group:
        search.tried.add(where)
        if zone:
            fleet.report(search.request.name, f"being made in {zone}")
    requests = [replace(each.request, zone=zone, size=size) for each in group]
    with fleet.journal.step(_step(where), [each.name for each in requests]):
        made = fleet.provider.create(requests)
    again = []
    for search, result in zip(group, made, strict=True):
        if isinstance(result, Refusal) and result.cause is RefusalCause.STOCKOUT and (zone or size):
            fleet.failover.refused(where)
            fleet.report(search.request.name, f"sold out in {zone}" if zone else f"{size} is sold out")
            search.refusal = result
            again.append(search)
        else:
            results[result.name] = result
    return again


def _next(fleet: Fleet, search: _Search) -> Place | None:
    """Return where to ask next; None: everywhere it is sold out."""
    places = (*search.begun, *fleet.failover.places(*_choice(fleet, search.request)))
    return next((each for each in places if each not in search.tried), None)


def _choice(fleet: Fleet, request: MachineRequest) -> tuple[Sequence[str], Sequence[str]]:
    return fleet.provider.traits.zones, fleet.definition.kind(request.labels[base.KIND]).size


def _sold_out(fleet: Fleet, request: MachineRequest) -> Refusal:
    wait_s = fleet.failover.opens_in(*_choice(fleet, request))
    reason = f"it was sold out in every zone a moment ago; to be tried again in {wait_s:.0f} s"
    return Refusal(request.name, reason, "name more `zones`, or more sizes, in the definition", RefusalCause.STOCKOUT)


def _step(where: Place) -> str:
    zone, size = where
    return " ".join([STEP, zone or _NO_ZONE, *([size] if size else [])]) if any(where) else STEP


def _begun(fleet: Fleet) -> Mapping[str, Collection[Place]]:
    """Return where machines were asked for without an answer: the machine's name -> the places.

    Each for itself: what was asked for at the same place since, and was answered, may have been other machines.
    """
    found: dict[str, dict[Place, None]] = {}
    for line in fleet.journal.lines():
        verb, *words = str(line["step"]).split(" ")
        if verb != STEP or not words:
            continue
        where = (None if words[0] == _NO_ZONE else words[0], next(iter(words[1:]), None))
        for name in texts(line.get("things")):
            places = found.setdefault(name, {})
            places |= {where: None}
            if line["is"] == "done":
                del places[where]
    return found
