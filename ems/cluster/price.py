"""What machines cost: the definition's own prices, then the shipped table; what neither knows is unknown, never 0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ems.cluster.definition import Definition
from ems.cluster.provider.base import Resource


def total(prices: Iterable[float | None]) -> float | None:
    """Return the sum; None as soon as one of them is unknown."""
    known: list[float] = []
    for each in prices:
        if each is None:
            return None
        known.append(each)
    return sum(known)


def of_kind(definition: Definition, kind: str) -> float | None:
    """Return US dollars an hour of one machine of a kind (``controller`` is one), by its first size; None: unknown."""
    sizes = definition.kind(kind).size
    return _of(definition, sizes[0] if sizes else "")


def of_machines(definition: Definition, machines: Sequence[Resource]) -> float | None:
    """Return US dollars an hour of machines that are there, by what they really are; None where one is unknown."""
    return total(_of(definition, each.size) for each in machines)


def _of(definition: Definition, size: str) -> float | None:
    if definition.provider.kind == "container":
        return 0.0
    return definition.prices.get(size)
