"""Where to try next: the order of zones and sizes, without those that were sold out a moment ago. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

#: A zone and a size; None where the provider has none, or chooses.
Place: TypeAlias = tuple[str | None, str | None]

#: How long a place that was sold out is not asked again: what ParallelCluster waits.
BACKOFF_S = 600.0


class Failover:
    """The places where machines can be had, and which of them were sold out.

    A size is preferred over a zone: all zones are tried for the first size, then all for the second.

    Parameters
    ----------
    clock
        Seconds that only ever grow.
    """

    def __init__(self, *, backoff_s: float = BACKOFF_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._backoff_s = backoff_s
        self._clock = clock
        self._sold_out: dict[Place, float] = {}

    def places(self, zones: Sequence[str], sizes: Sequence[str]) -> list[Place]:
        """Return where to try, best first; empty: everything was sold out within the back-off."""
        return [each for each in _all(zones, sizes) if self._is_open(each)]

    def refused(self, place: Place) -> None:
        """Remember that a place was sold out now."""
        self._sold_out[place] = self._clock()

    def opens_in(self, zones: Sequence[str], sizes: Sequence[str]) -> float:
        """Return the seconds until a place may be tried; 0: one may now."""
        listed = _all(zones, sizes)
        waits = [self._sold_out[each] + self._backoff_s - self._clock() for each in listed if not self._is_open(each)]
        return 0.0 if len(waits) < len(listed) else min(waits)

    def _is_open(self, place: Place) -> bool:
        since = self._sold_out.get(place)
        return since is None or self._clock() - since >= self._backoff_s


def _all(zones: Sequence[str], sizes: Sequence[str]) -> list[Place]:
    return [(zone, size) for size in (*sizes,) or (None,) for zone in (*zones,) or (None,)]
