"""What the store gives out of a run: its row, and a summary of each of its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ems.model import Params, State


@dataclass(frozen=True, slots=True)
class Summary:
    """One metric of one run over its current points.

    ``last`` is the value at the greatest step, a text where the script logged one. ``min`` and ``max`` pass over
    NaN, ``mean`` does not; they are None where no value is a number.
    """

    last: float | str
    min: float | None
    max: float | None
    mean: float | None
    n: int
    last_step: float


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run as a report sees it. Times in seconds, memory in MiB; None and "" where unknown."""

    exp_id: str
    exp_name: str
    index: int
    params: Params
    state: State
    slurm_state: str
    attempt: int
    started_at: str
    wall_s: float | None
    max_rss_mb: float | None
    gpus: str
    host: str
    reason: str
    seed: int = 0
    metrics: Mapping[str, Summary] = field(default_factory=dict)


def summary(
    last: Any, last_text: Any, low: Any, high: Any, total: Any, n: int, n_nan: int, n_text: int, last_step: float
) -> Summary:
    """Make a summary of its row, where NaN and texts stand beside the numbers."""
    final: float | str = math.nan if last_text == "NaN" else last_text if last is None else last
    mean: float | None = None
    if n_nan:
        mean = math.nan
    elif low is not None:
        mean = (math.nan if total is None else total) / (n - n_text)
    return Summary(final, low, high, mean, n, last_step)
