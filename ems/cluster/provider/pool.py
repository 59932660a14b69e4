"""Drivers for work side by side: libcloud's keep the answer on the connection, so that each has one user at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import Empty, LifoQueue
from typing import Generic, TypeVar

D = TypeVar("D")
T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 8


class Drivers(Generic[D]):
    """Drivers that are lent to one thread at a time; one is made where all are out.

    Parameters
    ----------
    make
        Makes a driver; it is called in the thread that needs it.
    """

    def __init__(self, make: Callable[[], D]) -> None:
        self._make = make
        self._free: LifoQueue[D] = LifoQueue()

    @contextmanager
    def one(self) -> Iterator[D]:
        """Have a driver that nobody else uses until the end of the block."""
        try:
            driver = self._free.get_nowait()
        except Empty:
            driver = self._make()
        try:
            yield driver
        finally:
            self._free.put(driver)


def side_by_side(do: Callable[[T], R], things: Sequence[T], at_once: int = AT_ONCE) -> list[R]:
    """Return what ``do`` gives for each thing, in order; the first error ends it when all have ended."""
    if len(things) < 2:
        return [do(each) for each in things]
    with ThreadPoolExecutor(min(at_once, len(things))) as pool:
        return list(pool.map(do, things))
