"""Runs as named columns: facts of the run, its params (nested ones flat), one value of each metric.

Names are the user's own. ``experiment``, ``run`` and ``state`` are always the run's; a param of such a name is
``param_NAME``; a metric with the name of either is ``metric_NAME``; any other fact that a param or metric is named
like is ``run_NAME``. The long form may always be typed.
"""

from __future__ import annotations

import difflib
import enum
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from ems.errors import UsageError
from ems.model import Json
from ems.report.query import Goal, Stat

if TYPE_CHECKING:
    from ems.store import RunRow, Summary

_CORE = {"experiment": "exp_id", "run": "index", "state": "state"}
_FACTS = {
    "name": "exp_name",
    "slurm_state": "slurm_state",
    "attempt": "attempt",
    "seed": "seed",
    "started_at": "started_at",
    "wall_s": "wall_s",
    "max_rss_mb": "max_rss_mb",
    "gpus": "gpus",
    "host": "host",
    "reason": "reason",
}


_SCALARS = (float, int, str, bool, type(None))
_LOW = re.compile(
    r"loss(es)?|err(ors?)?|r?mse|mae|mape|nll|b?ce|crossentropy|perplexity|ppl|[wc]er|fid|kl|regret|costs?|times?|"
    r"latency|seconds|runtime|brier|ece|bp[cb]|divergence|distance|residuals?|deviation|violations?"
)
_HIGH = re.compile(
    r"acc(uracy)?|f1|auc|auroc|auprc|m?ap|precision|recall|sensitivity|specificity|scores?|rewards?|returns?|r2|m?iou|"
    r"dice|bleu|rouge|meteor|psnr|ssim|elbo|likelihood|throughput|top\d|mcc|kappa|em|ndcg|mrr|hits?|success|wins?|"
    r"correlation|pearson|spearman"
)


def guess_goal(metric: str) -> Goal | None:
    """Read from a metric's name which end is the good one: ``val_loss`` low, ``test/acc`` high, ``x`` unknown."""
    words = {word.lower() for word in re.findall(r"[A-Za-z][a-z]*\d*|[A-Z]+\d*", metric)}
    words |= {word.lower() for word in re.split(r"[^A-Za-z0-9]+", metric)}
    if any(map(_LOW.fullmatch, words)):
        return Goal.MINIMIZE
    return Goal.MAXIMIZE if any(map(_HIGH.fullmatch, words)) else None


class Kind(enum.StrEnum):
    """What a column holds."""

    FACT = "fact"
    PARAM = "param"
    METRIC = "metric"


@dataclass(frozen=True, slots=True)
class Field:
    """One column that runs have: ``key`` is its name within its kind."""

    name: str
    kind: Kind
    key: str


Value = Json
"""A cell: a param's JSON value, a number, a text, or None where a run has no such thing."""


@dataclass(frozen=True)
class Frame:
    """Runs, and what they can be asked for.

    Parameters
    ----------
    rows
        The runs, from :meth:`ems.store.Store.run_table`.
    stat
        Which value of a metric stands for a run.
    goals
        Goals as typed, by metric; the others are guessed from their names.
    """

    rows: Sequence[RunRow]
    stat: Stat = Stat.LAST
    goals: Mapping[str, Goal] = field(default_factory=dict)

    @cached_property
    def _params(self) -> list[dict[str, Json]]:
        return [flatten(row.params) for row in self.rows]

    @cached_property
    def fields(self) -> dict[str, Field]:
        """Every column by name: core facts, params and metrics in order of appearance, other facts."""
        found = {name: Field(name, Kind.FACT, key) for name, key in _CORE.items()}
        for kind, keys in (
            (Kind.PARAM, dict.fromkeys(key for params in self._params for key in params)),
            (Kind.METRIC, dict.fromkeys(key for row in self.rows for key in row.metrics)),
            (Kind.FACT, _FACTS),
        ):
            for key in keys:
                name = f"{'run' if kind is Kind.FACT else kind}_{key}" if key in found else key
                found.setdefault(name, Field(name, kind, _FACTS[key] if kind is Kind.FACT else key))
        return found

    def of_kind(self, kind: Kind) -> list[Field]:
        """All columns of one kind, in order of appearance."""
        return [each for each in self.fields.values() if each.kind is kind]

    def find(self, typed: str, kinds: Collection[Kind] = tuple(Kind)) -> Field:
        """Find a column by its name, or by ``param_NAME`` and ``metric_NAME``.

        Raises
        ------
        UsageError
            If there is none among ``kinds``; the hint names the nearest.
        """
        prefixes = {
            f"{'run' if each.kind is Kind.FACT else each.kind}_{each.key}": each for each in self.fields.values()
        }
        own_kind = {
            each.key: each for each in self.fields.values() if each.kind in kinds and each.kind is not Kind.FACT
        }
        for names in (self.fields, prefixes, own_kind):
            if typed in names and names[typed].kind in kinds:
                return names[typed]
        raise self._unknown(typed, kinds)

    def _unknown(self, typed: str, kinds: Collection[Kind]) -> UsageError:
        noun = next(iter(kinds)).value if len(kinds) == 1 else "param or fact" if Kind.METRIC not in kinds else "column"
        names = [each.name for each in self.fields.values() if each.kind in kinds]
        return UsageError(f"no run has a {noun} `{typed}`", did_you_mean(typed, names, "there are"))

    def values(self, column: Field) -> list[Value]:
        """One value a run, in order; None where a run has none."""
        if column.kind is Kind.PARAM:
            return [params.get(column.key) for params in self._params]
        if column.kind is Kind.FACT:
            return [getattr(row, column.key) for row in self.rows]
        goal = self.goal(column)
        return [None if (s := row.metrics.get(column.key)) is None else pick(s, self.stat, goal) for row in self.rows]

    def goal(self, metric: Field) -> Goal | None:
        """Which end of a metric is the good one; None where neither was typed and the name does not say."""
        return self.goals.get(metric.key) or guess_goal(metric.key)

    def has(self, param: Field) -> list[bool]:
        """Whether each run has the param at all (null is a value)."""
        return [param.key in params for params in self._params]

    @cached_property
    def varying(self) -> list[Field]:
        """The params that are not the same in all runs."""
        return [each for each in self.of_kind(Kind.PARAM) if self._varies(each)]

    def _varies(self, param: Field) -> bool:
        return len(set(map(identity, self.values(param)))) > 1 or len(set(self.has(param))) > 1

    def take(self, indices: Iterable[int]) -> Frame:
        """Keep only some of the runs; names stay as they are here."""
        chosen = list(indices)
        taken = Frame([self.rows[i] for i in chosen], self.stat, self.goals)
        taken.__dict__.update(fields=self.fields, _params=[self._params[i] for i in chosen])
        return taken


def pick(summary: Summary, stat: Stat, goal: Goal | None = None) -> Value:
    """Take the value that stands for a run; a text where the script logged one last.

    ``best`` needs a goal and is None without.
    """
    if stat is Stat.BEST:
        stat = Stat.MIN if goal is Goal.MINIMIZE else Stat.MAX if goal is Goal.MAXIMIZE else Stat.BEST
    if stat is Stat.LAST:
        return summary.last
    value: float | None = {Stat.MIN: summary.min, Stat.MAX: summary.max, Stat.MEAN: summary.mean}.get(stat)
    # min and max pass over NaN: a run that logged nothing else is NaN, not silent
    is_nan = value is None and isinstance(summary.last, float) and math.isnan(summary.last)
    return math.nan if is_nan and stat is not Stat.BEST else value


def flatten(params: Mapping[str, Json], prefix: str = "") -> dict[str, Json]:
    """Write nested params flat: ``{"opt": {"lr": 1}}`` as ``{"opt.lr": 1}``."""
    flat: dict[str, Json] = {}
    for name, value in params.items():
        if type(value) not in _SCALARS and isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def identity(value: Value) -> object:
    """Something hashable that equal values share: 1 and 1.0 are equal, 1 and true are not, NaN equals itself."""
    if type(value) in (str, int):  # most are, and 10,000 rows ask
        return value
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, float) and math.isnan(value):
        return ("nan",)
    if isinstance(value, Mapping) or (isinstance(value, Sequence) and not isinstance(value, str)):
        return ("json", json.dumps(value, sort_keys=True, default=str))
    return value


def did_you_mean(typed: str, names: Collection[str], otherwise: str) -> str:
    """``did you mean `loss`?``, or what there is."""
    near = difflib.get_close_matches(typed.lower(), [name.lower() for name in names], 1, 0.6)
    if near:
        return f"did you mean `{next(name for name in names if name.lower() == near[0])}`?"
    shown = [f"`{name}`" for name in list(names)[:20]]
    return f"{otherwise} {', '.join(shown)}{' and more' if len(names) > len(shown) else ''}" if shown else ""
