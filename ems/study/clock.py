"""When a study's driver wakes: the clock that calls it, whatever machine or scheduler it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ClockState:
    """How a clock stands.

    Attributes
    ----------
    is_running
        Whether it will wake the driver by itself.
    next_at
        When at the latest (UTC ISO-8601); empty where that is not known.
    where
        What it is: ``process 4711 on host``, ``job 1842``; empty where it is nothing.
    """

    is_running: bool
    next_at: str = ""
    where: str = ""


class Clock(Protocol):
    """Wakes the driver of one study, again and again, until it is told to stop.

    A call from within a wake and one from any ``ems`` command mean the same, whoever runs the wake.
    """

    @property
    def lag_s(self) -> float:
        """Seconds that usually pass between the end of a run and the wake that it causes."""
        ...

    def start(self, next_s: float) -> None:
        """Have the driver wake within ``next_s`` seconds, and set the clock going where it does not.

        Raises
        ------
        EmsError
            If it cannot be set going.
        """
        ...

    def wake(self) -> None:
        """Have the driver wake as soon as it can: something happened. Nothing where the clock does not go."""
        ...

    def stop(self) -> None:
        """Have the driver wake no more; from within a wake: after this one."""
        ...

    def state(self) -> ClockState:
        """Look whether it goes."""
        ...
