"""How many trials are queued ahead, so that a worker whose run ends finds the next one while the driver sleeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from ems.store.studies import SegmentRow

_RECENT = 50  # segments whose mean tells how long one takes


def mean_run_s(parts: Sequence[SegmentRow]) -> float | None:
    """Return how long the last segments took on average; None before the first has ended."""
    ended = sorted((each for each in parts if each.told >= 0 and each.wall_s), key=lambda each: each.told)
    return fmean(each.wall_s for each in ended[-_RECENT:]) if ended else None


def size(parallel: int, lag_s: float, run_s: float | None) -> int:
    """Return how many trials to queue beyond those that run.

    While the driver sleeps ``lag_s``, ``parallel * lag_s / run_s`` runs end; more than ``parallel`` ahead would only
    have the search decide on less knowledge.

    Parameters
    ----------
    lag_s
        Seconds between the end of a run and the wake that sees it.
    run_s
        How long a run takes; None: not known, and nothing is queued.
    """
    if run_s is None:
        return 0
    return min(parallel, math.ceil(parallel * lag_s / max(run_s, 1e-3)))


def patience_s(run_s: float | None, looks: bool) -> float:
    """Return after how many seconds to wake at the latest, though nothing has called: something may have been lost.

    Parameters
    ----------
    looks
        Whether running trials are looked at to stop the bad ones.
    """
    if run_s is None:
        return 15.0
    return min(60.0, max(2.0, run_s / (10 if looks else 1)))
