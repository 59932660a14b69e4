"""The table that was asked for: one row a run or one a group, the best marked, groups against a baseline. Pure."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ems.errors import UsageError
from ems.model import State
from ems.report import baseline, where
from ems.report.frame import Field, Frame, Kind, did_you_mean, identity
from ems.report.groups import Group, group, numbers, rest
from ems.report.query import Goal, Method, Query, Stat
from ems.report.statistics import SMALL_BOOTSTRAP, Estimate, estimate
from ems.report.table import Column, Table, sort, sort_key

if TYPE_CHECKING:
    from ems.store import RunRow

GROUPING = (Kind.PARAM, Kind.FACT)


def make(rows: Iterable[RunRow], query: Query) -> Table:
    """Make the table; see :func:`ems.report.tabulate`."""
    whole = Frame(list(rows), query.stat, query.goals)
    metrics = _metrics(whole, query)
    frame = whole.take(where.select(whole, query.where)) if query.where else whole
    is_grouped = bool(query.by or query.baseline)
    table = _by_group(frame, query, metrics) if is_grouped else _by_run(whole, frame, query, metrics)
    return replace(table, notes=(_whose(whole, frame, query), *table.notes))


def _whose(whole: Frame, frame: Frame, query: Query) -> str:
    """Say whose results these are: ``train 7f3a9c21: 11 completed, 1 failed``."""
    names = list(dict.fromkeys(f"{row.exp_name} {row.exp_id}" for row in whole.rows))
    name = names[0] if len(names) == 1 else f"{len(names)} experiments"
    states = Counter(row.state for row in frame.rows)
    counted = ", ".join(f"{states[state]:,} {state.lower()}" for state in State if states.get(state))
    chosen = f" ({len(frame.rows):,} of {len(whole.rows):,} runs: {query.where})" if query.where else ""
    return f"{name}: {counted or 'no runs'}{chosen}"


def _metrics(frame: Frame, query: Query) -> list[Field]:
    """Return the metrics to show: those typed, else all."""
    for name in query.goals:
        frame.find(name, (Kind.METRIC,))
    chosen = [frame.find(name, (Kind.METRIC,)) for name in query.metrics] or frame.of_kind(Kind.METRIC)
    unknown = [each.name for each in chosen if frame.goal(each) is None]
    if query.stat is Stat.BEST and unknown:
        raise UsageError(
            f"--stat best: is a low or a high `{unknown[0]}` the better one",
            f"say --minimize {shlex.quote(unknown[0])} or --maximize {shlex.quote(unknown[0])}",
        )
    return chosen


# -- one row a run ----------------------------------------------------------------------------------------------


def _by_run(whole: Frame, frame: Frame, query: Query, metrics: list[Field]) -> Table:
    has_states = any(row.state is not State.COMPLETED for row in frame.rows)
    frame = frame.take(_ordered(frame, query, metrics))
    chosen = _chosen(whole, query, metrics, has_states)
    columns = [_run_column(frame, each, is_plain=query.is_wide) for each in chosen]
    among = " among completed runs" if has_states and _any_completed(frame) else ""
    return Table(tuple(columns), tuple(_best_notes(frame, metrics, columns, query, among)))


def _any_completed(frame: Frame) -> bool:
    return any(row.state is State.COMPLETED for row in frame.rows)


def _chosen(whole: Frame, query: Query, metrics: list[Field], has_states: bool) -> list[Field]:
    """Return the columns: those typed, or the run, its params, its metrics and its state."""
    facts = {name: whole.fields[name] for name in ("experiment", "run", "state")}
    if query.columns == ("all",):
        return list(whole.fields.values())
    if query.columns:
        return [whole.find(name) for name in query.columns]
    if query.is_wide:
        return [facts["experiment"], facts["run"], *whole.of_kind(Kind.PARAM), *metrics, facts["state"]]
    names = [each for each in whole.fields.values() if each.key == "exp_name" and len(_distinct(whole, each)) > 1]
    return [facts["run"], *names, *whole.varying, *metrics, *([facts["state"]] if has_states else [])]


def _distinct(frame: Frame, column: Field) -> set[object]:
    return set(map(identity, frame.values(column)))


def _run_column(frame: Frame, each: Field, is_plain: bool) -> Column:
    cells = frame.values(each)
    if each.kind is Kind.METRIC:
        values = [c if isinstance(c, int | float) else None for c in cells]
        if _any_completed(frame):
            values = [v if r.state is State.COMPLETED else None for v, r in zip(values, frame.rows, strict=True)]
        return Column(each.name, cells, "metric", _best(values, frame.goal(each)))
    if each.kind is Kind.FACT and each.key == "index" and not is_plain and len({r.exp_id for r in frame.rows}) > 1:
        return Column(each.name, cells, texts=[f"{row.exp_id}/{row.index}" for row in frame.rows])
    return Column(each.name, cells)


def _best(values: Sequence[float | None], goal: Goal | None) -> frozenset[int]:
    """Rows with the best of ``values``; NaN never is, and one value alone is no best."""
    known = [(i, v) for i, v in enumerate(values) if v is not None and not math.isnan(v)]
    if goal is None or len(known) < 2:
        return frozenset()
    top = (min if goal is Goal.MINIMIZE else max)(v for _, v in known)
    return frozenset(i for i, v in known if v == top)


def _best_notes(
    frame: Frame, metrics: list[Field], columns: Sequence[Column], query: Query, among: str = ""
) -> Iterator[str]:
    marked = {column.name for column in columns if column.best}
    ends = {Goal.MINIMIZE: "lowest", Goal.MAXIMIZE: "highest", None: ""}
    words = [f"{ends[frame.goal(each)]} {each.name}" for each in metrics if each.name in marked]
    value = "" if query.stat is Stat.LAST else f"{query.stat} value of each run; "
    if words or value:
        yield value + (f"best: {', '.join(words)}{among}" if words else "no best marked")
    unknown = [each.name for each in metrics if frame.goal(each) is None and _is_numeric(frame, each)]
    if unknown and (not words or query.metrics):
        name = shlex.quote(unknown[0])
        yield f"to mark the best: --minimize {name} or --maximize {name}"


def _is_numeric(frame: Frame, metric: Field) -> bool:
    return any(isinstance(value, int | float) for value in frame.values(metric))


# -- order ------------------------------------------------------------------------------------------------------


def _ordered(frame: Frame, query: Query, metrics: list[Field]) -> list[int]:
    """Return positions of runs as sorted and cut by the query."""
    keys = [(frame.values(frame.find(name)), is_down) for name, is_down in map(sort_key, query.sort)]
    goals = {each.name: frame.goal(each) for each in metrics}
    if query.top is not None and not keys:
        first = _first_with_goal(goals)
        keys = [(frame.values(frame.fields[first]), goals[first] is Goal.MAXIMIZE)]
    return sort(len(frame.rows), keys)[: query.top]


def _first_with_goal(goals: Mapping[str, Goal | None]) -> str:
    for name, goal in goals.items():
        if goal is not None:
            return name
    raise UsageError("--top needs an order", "add --sort NAME, --minimize METRIC or --maximize METRIC")


# -- one row a group --------------------------------------------------------------------------------------------


def _by_group(frame: Frame, query: Query, metrics: list[Field]) -> Table:
    wanted = baseline.read(frame, query.baseline) if query.baseline else {}
    by = [frame.find(name, GROUPING) for name in query.by]
    by += [each for each in wanted if each not in by]
    metrics = [each for each in metrics if query.metrics or _is_numeric(frame, each)]
    if wanted and not query.metrics:
        metrics = metrics[:1]  # each comparison takes three columns
    groups = group(frame, by)
    columns = [Column(each.name, [group.key[i] for group in groups]) for i, each in enumerate(by)]
    columns.append(Column(_free("n", by), [len(group.completed) for group in groups], "count"))
    notes = [_interval_note(frame, by, query)]
    family: list[Column] = []
    for metric in metrics:
        values = numbers(frame, metric)
        estimates = [estimate([values[i] for i in g.completed if i in values], query.method) for g in groups]
        best = _best([e.mean for e in estimates], frame.goal(metric))
        columns.append(Column(metric.name, estimates, "metric", best, texts=None))
        if wanted:
            family += baseline.against(frame, groups, by, wanted, metric, values, query.method)
    columns += baseline.corrected(family)
    notes += baseline.notes(frame, by, query.baseline, family)
    columns += _counts(frame, groups, by)
    notes += _group_notes(frame, columns, groups, query)
    notes += _best_notes(frame, metrics, columns, replace(query, stat=Stat.LAST))
    return _finish(columns, notes, query, {each.name: frame.goal(each) for each in metrics})


def _finish(columns: list[Column], notes: list[str], query: Query, goals: Mapping[str, Goal | None]) -> Table:
    named = {column.name: column for column in columns}
    keys = []
    for name, is_down in map(sort_key, query.sort):
        if name not in named:
            raise UsageError(f"the table has no column `{name}` to sort by", did_you_mean(name, named, "there are"))
        keys.append((named[name].cells, is_down))
    if query.top is not None and not keys:
        first = _first_with_goal(goals)
        keys = [(named[first].cells, goals[first] is Goal.MAXIMIZE)]
    order = sort(len(columns[0].cells), keys)[: query.top]
    if query.columns and query.columns != ("all",):
        for name in query.columns:
            if name not in named:
                raise UsageError(f"the table has no column `{name}`", did_you_mean(name, named, "there are"))
        columns = [named[name] for name in query.columns]
    return Table(tuple(column.take(order) for column in columns), tuple(notes))


def _interval_note(frame: Frame, by: Sequence[Field], query: Query) -> str:
    over = [f"{each.name} ({len(_distinct(frame, each))})" for each in rest(frame, by)]
    how = "Student's t" if query.method is Method.T else "bootstrap (BCa, 10,000 resamples)"
    which = "" if query.stat is Stat.LAST else f" of the {query.stat} value of each run"
    return f"mean ± 95 % CI{which} by {how}, over {' x '.join(over) or 'repeated runs'}"


def _free(name: str, by: Sequence[Field]) -> str:
    return f"{name}_runs" if name in {each.name for each in by} else name


def _counts(frame: Frame, groups: Sequence[Group], by: Sequence[Field]) -> Iterator[Column]:
    """Yield how many of each group failed, and how many are in other states than failed and completed."""
    failed = [sum(frame.rows[i].state is State.FAILED for i in group.rows) for group in groups]
    texts = [f"{n} of {len(g.rows)}" if n else "0" for n, g in zip(failed, groups, strict=True)]
    yield Column(_free("failed", by), failed, "count", texts=texts)
    other = [len(g.rows) - len(g.completed) - n for n, g in zip(failed, groups, strict=True)]
    if any(other):
        yield Column(_free("other", by), other, "count")


def _group_notes(frame: Frame, columns: Sequence[Column], groups: Sequence[Group], query: Query) -> Iterator[str]:
    failed = sum(row.state is State.FAILED for row in frame.rows)
    if failed:
        ids = dict.fromkeys(row.exp_id for row in frame.rows if row.state is State.FAILED)
        again = f"ems rerun {next(iter(ids))} --failed" if len(ids) == 1 else "ems rerun EXP --failed"
        yield f"{failed} failed and in no mean, so intervals are wider: {again}"
    for column in columns:
        cells = [cell for cell in column.cells if isinstance(cell, Estimate)]
        lost = sum(cell.n_not_finite for cell in cells)
        if lost and column.kind == "metric" and not column.title:
            yield f"{column.name}: {lost} nan or inf in no mean"
    completed = [frame.rows[i] for group in groups for i in group.completed]
    repeated = len(completed) - len({(row.seed, repr(row.params)) for row in completed})
    if repeated:
        yield f"{repeated} repeat the params and EMS_SEED of another run: too narrow intervals, if the script uses it"
    sizes = [len(group.completed) for group in groups]
    if sizes and max(sizes) < 2:
        yield "no intervals: they take two or more completed runs a group"
    elif query.method is Method.BOOTSTRAP and min(sizes, default=SMALL_BOOTSTRAP) < SMALL_BOOTSTRAP:
        yield f"a bootstrap of n < {SMALL_BOOTSTRAP} is too narrow: --ci t is safer"
