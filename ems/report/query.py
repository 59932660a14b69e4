"""What may be asked of a report: the nouns of its options."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Stat(enum.StrEnum):
    """Which one of a run's values of a metric stands for it."""

    LAST = "last"
    BEST = "best"
    MIN = "min"
    MAX = "max"
    MEAN = "mean"


class Goal(enum.StrEnum):
    """Which end of a metric is the good one."""

    MINIMIZE = "minimize"
    MAXIMIZE = "maximize"


class Method(enum.StrEnum):
    """How an interval is made."""

    T = "t"
    BOOTSTRAP = "bootstrap"


@dataclass(frozen=True, slots=True)
class Query:
    """What was asked of a report; names are those of :class:`ems.report.frame.Frame`.

    ``is_wide`` asks for every param, not only for those that vary: for files that programs read.
    """

    metrics: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    stat: Stat = Stat.LAST
    goals: Mapping[str, Goal] = field(default_factory=dict)
    where: str = ""
    sort: tuple[str, ...] = ()
    top: int | None = None
    columns: tuple[str, ...] = ()
    baseline: str = ""
    method: Method = Method.T
    is_wide: bool = False
