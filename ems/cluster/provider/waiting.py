"""What a cloud does in its own time is waited for by looking, ever less often."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_LOOK_S, _LONGEST_LOOK_S = 0.5, 5.0

T = TypeVar("T")


def until(look: Callable[[], T | None], limit_s: float) -> T | None:
    """Return what ``look`` returns once it is not None, or None after the limit; looks are ever further apart."""
    wait_s, end = _LOOK_S, time.monotonic() + limit_s
    while (found := look()) is None:
        if time.monotonic() + wait_s > end:
            return None
        time.sleep(wait_s)
        wait_s = min(_LONGEST_LOOK_S, wait_s * 1.5)
    return found
