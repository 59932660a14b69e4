"""Which kinds of nodes cannot be had now, why, and until when: so that nothing is made, and deleted, for ever.

A kind is shut when its boots do not end in a registration, ten times in a row, whatever is wrong with them
(ParallelCluster's protected mode); after half an hour one node tries (half-open), and opens it or shuts it anew. It is
shut, too, for as long as the cloud says so: everywhere sold out, no quota, no permission.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Self

from ems.model import Json

BOOTS = 10  # in a row that never registered
REST_S = 1800.0


@dataclass(frozen=True, slots=True)
class Shut:
    """Why a kind cannot be had, in the cloud's words or in ours, and until when (seconds since 1970)."""

    reason: str
    until: float


@dataclass
class _Kind:
    failed: int = 0  # boots in a row
    shut: Shut | None = None
    is_tripped: bool = False  # by boots: then one node tries first


class Breaker:
    """What is against the kinds of one cluster.

    Parameters
    ----------
    boots
        How many boots in a row have to fail.
    rest_s
        Seconds until one node tries.
    """

    def __init__(self, boots: int = BOOTS, rest_s: float = REST_S) -> None:
        self.boots, self.rest_s = boots, rest_s
        self._kinds: dict[str, _Kind] = {}

    def booted(self, kind: str, node: str, *, registered: bool, now: float) -> None:
        """Take note of how a boot ended."""
        each = self._of(kind)
        if registered:
            self._kinds[kind] = _Kind(shut=None if each.is_tripped else each.shut)
            return
        each.failed += 1
        if each.is_tripped or each.failed >= self.boots:
            reason = f"{each.failed} boots in a row never registered, {node} was the last"
            each.shut, each.is_tripped = Shut(reason, now + self.rest_s), True

    def close(self, kind: str, reason: str, for_s: float, now: float) -> None:
        """Shut a kind for a time, because the cloud says so."""
        each = self._of(kind)
        if each.shut is None or each.shut.until < now + for_s:
            each.shut = Shut(reason, now + for_s)

    def open(self, kind: str = "") -> None:
        """Forget what was against a kind, or against all: ``ems cluster setup`` does so."""
        for name in [kind] if kind else list(self._kinds):
            self._kinds.pop(name, None)

    def shut(self, now: float) -> dict[str, Shut]:
        """Return what cannot be had now, and why."""
        return {name: each.shut for name, each in self._kinds.items() if each.shut and now < each.shut.until}

    def admit(self, kind: str, names: Sequence[str], now: float) -> list[str]:
        """Return which of the nodes that SLURM asks for are to be made now: all, the one that tries, or none.

        While one tries its kind is shut to all others.
        """
        if kind in self.shut(now):
            return []
        each = self._of(kind)
        if not each.is_tripped or not names:
            return list(names)
        # no longer than a rest: whatever becomes of that node, another one tries then
        each.shut = Shut(f"{each.failed} boots in a row never registered; {min(names)} tries", now + self.rest_s)
        return [min(names)]

    def as_json(self, now: float) -> dict[str, Json]:
        """Return what is to survive a restart of the service."""
        shut = self.shut(now)
        return {name: asdict(each) for name, each in self._kinds.items() if each.failed or name in shut}

    @classmethod
    def from_json(cls, content: Mapping[str, Json]) -> Self:
        """Return what :meth:`as_json` kept; kinds whose content is damaged are left out."""
        breaker = cls()
        for name, each in content.items():
            with suppress(TypeError, ValueError, KeyError):
                breaker._kinds[name] = _parse(each)
        return breaker

    def _of(self, kind: str) -> _Kind:
        return self._kinds.setdefault(kind, _Kind())


def _parse(content: Json) -> _Kind:
    if not isinstance(content, dict):
        raise TypeError(content)
    shut = content.get("shut")
    known = Shut(str(shut["reason"]), float(shut["until"])) if isinstance(shut, dict) else None
    return _Kind(int(content["failed"]), known, bool(content["is_tripped"]))
