"""Calls of a cloud again, where waiting helps: rate limits and passing faults, never a quota or a stock-out."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait between tries: full jitter, so that many who were refused do not come back at once.

    The wait before try ``n`` is uniform between 0 and ``min(longest_s, first_s * 2**n)``, see M. Brooker, Exponential
    Backoff And Jitter, AWS Architecture Blog, 2015.

    Parameters
    ----------
    total_s
        After so long the last error is raised; a wait that would end later is not begun.
    """

    first_s: float = 0.5
    longest_s: float = 20.0
    total_s: float = 120.0
    sleep: Callable[[float], None] = time.sleep

    def retry(self, call: Callable[[], T], is_passing: Callable[[Exception], bool]) -> T:
        """Return what ``call`` returns, once it does.

        Parameters
        ----------
        is_passing
            Whether to ask again may help after this error; any other is raised at once.
        """
        tries, waited_s, began = 0, 0.0, time.monotonic()
        while True:
            try:
                return call()
            except Exception as error:
                wait_s = random.uniform(0, min(self.longest_s, self.first_s * 2**tries))
                spent_s = max(waited_s, time.monotonic() - began)
                if not is_passing(error) or spent_s + wait_s > self.total_s:
                    raise
            self.sleep(wait_s)
            tries, waited_s = tries + 1, waited_s + wait_s
