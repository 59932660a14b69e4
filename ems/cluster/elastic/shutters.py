"""Kinds that cannot be had now: the breaker of this cluster, fed with what the cloud says, and kept over restarts."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence

from ems.cluster.elastic.breaker import Breaker, Shut
from ems.cluster.elastic.here import FleetHere
from ems.cluster.failover import BACKOFF_S
from ems.cluster.provider.base import Refusal, RefusalCause
from ems.node import records

#: For how long a kind is shut after a refusal, in seconds; of what is sold out the back-off of its places decides.
_FOR_S = {
    RefusalCause.QUOTA: 600.0,
    RefusalCause.PERMISSION: 600.0,
    RefusalCause.INVALID: 1800.0,
    RefusalCause.RATE: 60.0,
}


class Shutters:
    """What is shut of one cluster.

    Parameters
    ----------
    fleet
        The cluster.
    """

    def __init__(self, fleet: FleetHere) -> None:
        self._fleet = fleet
        self._path = fleet.files.dir / "breaker.json"
        self.breaker = Breaker()
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            self.breaker = Breaker.from_json(json.loads(self._path.read_text()))

    def shut(self) -> dict[str, Shut]:
        """Return what cannot be had now: kind -> why and until when."""
        return self.breaker.shut(time.time())

    def admit(self, names: Sequence[str]) -> tuple[list[str], dict[str, Refusal]]:
        """Return the nodes that may be made, and why the others may not."""
        by_kind: dict[str, list[str]] = {}
        for name in names:
            by_kind.setdefault(self._fleet.kind(name), []).append(name)
        now = time.time()
        allowed = {name: None for kind, group in by_kind.items() for name in self.breaker.admit(kind, group, now)}
        shut = self.shut()
        left = {name: shut[self._fleet.kind(name)].reason for name in names if name not in allowed}
        return [*allowed], {name: Refusal(name, why, cause=RefusalCause.QUOTA) for name, why in left.items()}

    def refused(self, refused: Mapping[str, Refusal]) -> None:
        """Shut the kinds that the cloud does not give; what it may give at the next try counts as a failed boot."""
        now = time.time()
        for name, refusal in refused.items():
            kind = self._fleet.kind(name)
            if refusal.cause is RefusalCause.OTHER:
                self.breaker.booted(kind, name, registered=False, now=now)
            elif kind not in self.shut():
                self.breaker.close(kind, refusal.reason, self._for_s(kind, refusal.cause), now)
        self.save()

    def _for_s(self, kind: str, cause: RefusalCause) -> float:
        if cause is not RefusalCause.STOCKOUT:
            return _FOR_S[cause]
        zones, sizes = self._fleet.provider.traits.zones, self._fleet.definition.kind(kind).size
        return self._fleet.failover.opens_in(zones, sizes) or BACKOFF_S

    def booted(self, node: str, *, registered: bool) -> None:
        """Take note of how a boot ended."""
        self.breaker.booted(self._fleet.kind(node), node, registered=registered, now=time.time())
        self.save()

    def reopen(self, mark: str) -> None:
        """Open the kinds that are shut for a reason that holds these words."""
        for kind, shut in self.shut().items():
            if mark in shut.reason:
                self.breaker.open(kind)
                self.save()

    def open(self) -> None:
        """Forget all that was against any kind."""
        self.breaker.open()
        self.save()

    def save(self) -> None:
        """Keep it for the next start."""
        self._fleet.files.make()
        records.write_atomic(self._path, json.dumps(self.breaker.as_json(time.time())), durable=False)
