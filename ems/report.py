"""Runs of the store as a table: one row a run or one a group, the best marked, groups against a baseline. Pure.

What is typed comes as a :class:`Query`, what is shown goes as a :class:`Table`; :mod:`ems.cli.report` prints it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from ems import where
from ems.errors import UsageError
from ems.frame import Field, Frame, Goal, Kind, Stat, Value, did_you_mean, identity
from ems.model import State
from ems.statistics import SMALL_BOOTSTRAP, Estimate, Method, Paired, estimate, holm, paired

if TYPE_CHECKING:
    from ems.store import RunRow

Cell: TypeAlias = "Value | Estimate"
GROUPING = (Kind.PARAM, Kind.FACT)


@dataclass(frozen=True, slots=True)
class Query:
    """What was asked of a report; names are those of :class:`ems.frame.Frame`.

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


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Parameters
    ----------
    name
        What files call it.
    cells
        One a row.
    kind
        ``value`` (params and facts, as they are), ``metric``, ``count`` or ``p``; estimates are ``metric`` too.
    best
        Rows whose cell is the best of the column.
    title
        What the table calls it, where that is not ``name``.
    texts
        What the table shows, where that is not the cells.
    """

    name: str
    cells: Sequence[Cell]
    kind: str = "value"
    best: frozenset[int] = frozenset()
    title: str = ""
    texts: Sequence[str] | None = None

    def take(self, rows: Sequence[int]) -> Column:
        """Keep some rows, in the order given."""
        texts = None if self.texts is None else [self.texts[i] for i in rows]
        best = frozenset(new for new, old in enumerate(rows) if old in self.best)
        return replace(self, cells=[self.cells[i] for i in rows], texts=texts, best=best)


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length, and what has to be said beside them, one sentence a note."""

    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.columns[0].cells) if self.columns else 0

    def records(self) -> Iterator[dict[str, Value]]:
        """Yield one flat record a row; an estimate ``acc`` becomes ``acc``, ``acc_ci_low``, ``acc_ci_high``, ``acc_n``."""
        for i in range(len(self)):
            record: dict[str, Value] = {}
            for column in self.columns:
                cell = column.cells[i]
                if isinstance(cell, Estimate):
                    for suffix, value in zip(("", "_ci_low", "_ci_high", "_n"), _numbers_of(cell), strict=True):
                        record[column.name + suffix] = value
                else:
                    record[column.name] = cell
            yield record


def _numbers_of(cell: Estimate) -> tuple[float | None, float | None, float | None, int]:
    return cell.mean, cell.low, cell.high, cell.n


def tabulate(rows: Iterable[RunRow], query: Query) -> Table:
    """Make the table that was asked for.

    Raises
    ------
    UsageError
        If something asked for is not there, or cannot be meant; the hint names what there is.
    """
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
            f"say --minimize {unknown[0]} or --maximize {unknown[0]}",
        )
    return chosen


# -- one row a run ----------------------------------------------------------------------------------------------


def _by_run(whole: Frame, frame: Frame, query: Query, metrics: list[Field]) -> Table:
    has_states = any(row.state is not State.COMPLETED for row in frame.rows)
    frame = frame.take(_ordered(frame, query, metrics))
    chosen = _chosen(whole, query, metrics, has_states)
    columns = [_run_column(frame, each, is_plain=query.is_wide) for each in chosen]
    among = " among completed runs" if has_states else ""
    return Table(tuple(columns), tuple(_best_notes(frame, metrics, columns, query, among)))


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
        counted = [row.state is State.COMPLETED for row in frame.rows]
        numbers = [c if isinstance(c, int | float) else None for c in cells]
        finished = [n if ok else None for n, ok in zip(numbers, counted, strict=True)] if any(counted) else numbers
        return Column(each.name, cells, "metric", _best(finished, frame.goal(each)))
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
        yield f"to mark the best: --minimize {unknown[0]} or --maximize {unknown[0]}"


def _is_numeric(frame: Frame, metric: Field) -> bool:
    return any(isinstance(value, int | float) for value in frame.values(metric))


# -- order ------------------------------------------------------------------------------------------------------


def _ordered(frame: Frame, query: Query, metrics: list[Field]) -> list[int]:
    """Return positions of runs as sorted and cut by the query."""
    keys = [(frame.values(frame.find(name)), is_down) for name, is_down in map(_sort_key, query.sort)]
    goals = {each.name: frame.goal(each) for each in metrics}
    if query.top is not None and not keys:
        first = _first_with_goal(goals)
        keys = [(frame.values(frame.fields[first]), goals[first] is Goal.MAXIMIZE)]
    return _sorted(len(frame.rows), keys)[: query.top]


def _first_with_goal(goals: Mapping[str, Goal | None]) -> str:
    for name, goal in goals.items():
        if goal is not None:
            return name
    raise UsageError("--top needs an order", "add --sort NAME, --minimize METRIC or --maximize METRIC")


def _sort_key(typed: str) -> tuple[str, bool]:
    """Read ``acc``, ``-acc`` or ``acc desc``: the name, and whether the largest comes first."""
    name, _, direction = typed.rpartition(" ")
    if name and direction.lower() in ("asc", "desc"):
        return name.strip(), direction.lower() == "desc"
    return typed.removeprefix("-"), typed.startswith("-")


def _sorted(n: int, keys: Sequence[tuple[Sequence[Cell], bool]]) -> list[int]:
    order = list(range(n))
    for cells, is_down in reversed(keys):  # stable: the first key, applied last, decides
        values = [cell.mean if isinstance(cell, Estimate) else cell for cell in cells]
        present = [i for i in order if not _is_missing(values[i])]
        present.sort(key=lambda i: _rank(values[i]), reverse=is_down)
        order = present + [i for i in order if _is_missing(values[i])]  # what is missing comes last, up or down
    return order


def _is_missing(value: Value) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _rank(value: Value) -> tuple[int, float, str]:
    """Order numbers before texts, and both among themselves."""
    if isinstance(value, int | float):
        return 0, value, ""
    return 1, 0.0, value if isinstance(value, str) else json.dumps(value, default=str)


# -- one row a group --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Group:
    key: tuple[Value, ...]
    rows: list[int]
    completed: list[int]


def _by_group(frame: Frame, query: Query, metrics: list[Field]) -> Table:
    wanted = _read_baseline(frame, query.baseline) if query.baseline else {}
    by = [frame.find(name, GROUPING) for name in query.by]
    by += [each for each in wanted if each not in by]
    metrics = [each for each in metrics if query.metrics or _is_numeric(frame, each)]
    if wanted and not query.metrics:
        metrics = metrics[:1]  # each comparison takes three columns
    groups = _groups(frame, by)
    columns = [Column(each.name, [group.key[i] for group in groups]) for i, each in enumerate(by)]
    columns.append(Column(_free("n", by), [len(group.completed) for group in groups], "count"))
    notes = [_interval_note(frame, by, query)]
    family: list[Column] = []
    for metric in metrics:
        values = _finite_or_not(frame, metric)
        estimates = [estimate([values[i] for i in g.completed if i in values], query.method) for g in groups]
        best = _best([e.mean for e in estimates], frame.goal(metric))
        columns.append(Column(metric.name, estimates, "metric", best, texts=None))
        if wanted:
            family += _against(frame, groups, by, wanted, metric, values, query)
    columns += _corrected(family)
    notes += _baseline_notes(frame, by, query, family)
    columns += _counts(frame, groups, by)
    notes += _group_notes(frame, columns, groups, query)
    notes += _best_notes(frame, metrics, columns, replace(query, stat=Stat.LAST))
    return _finish(columns, notes, query, {each.name: frame.goal(each) for each in metrics})


def _finish(columns: list[Column], notes: list[str], query: Query, goals: Mapping[str, Goal | None]) -> Table:
    named = {column.name: column for column in columns}
    keys = []
    for name, is_down in map(_sort_key, query.sort):
        if name not in named:
            raise UsageError(f"the table has no column `{name}` to sort by", did_you_mean(name, named, "there are"))
        keys.append((named[name].cells, is_down))
    if query.top is not None and not keys:
        first = _first_with_goal(goals)
        keys = [(named[first].cells, goals[first] is Goal.MAXIMIZE)]
    order = _sorted(len(columns[0].cells), keys)[: query.top]
    if query.columns and query.columns != ("all",):
        for name in query.columns:
            if name not in named:
                raise UsageError(f"the table has no column `{name}`", did_you_mean(name, named, "there are"))
        columns = [named[name] for name in query.columns]
    return Table(tuple(column.take(order) for column in columns), tuple(notes))


def _groups(frame: Frame, by: Sequence[Field]) -> list[_Group]:
    """Group the runs; in order of the values where those are numbers, else of first appearance."""
    cells = [frame.values(each) for each in by]
    ranks = [_ranks(column) for column in cells]
    groups: dict[tuple[object, ...], _Group] = {}
    places: dict[tuple[object, ...], tuple[float, ...]] = {}
    for i, row in enumerate(frame.rows):
        key = tuple(identity(column[i]) for column in cells)
        if key not in groups:
            groups[key] = _Group(tuple(column[i] for column in cells), [], [])
            places[key] = tuple(rank[part] for rank, part in zip(ranks, key, strict=True))
        groups[key].rows.append(i)
        if row.state is State.COMPLETED:
            groups[key].completed.append(i)
    return [groups[key] for key in sorted(groups, key=places.__getitem__)]


def _ranks(cells: Sequence[Value]) -> dict[object, float]:
    distinct = {identity(cell): cell for cell in cells}
    ordered = list(distinct)
    if all(isinstance(v, int | float) and not _is_missing(v) for v in distinct.values() if v is not None):
        ordered.sort(key=lambda key: _rank(distinct[key]))
    return {key: rank for rank, key in enumerate(ordered)}


def _finite_or_not(frame: Frame, metric: Field) -> dict[int, float]:
    return {i: float(v) for i, v in enumerate(frame.values(metric)) if isinstance(v, int | float)}


def _rest(frame: Frame, by: Sequence[Field]) -> list[Field]:
    """Return the params that vary within groups: what the mean goes over, and what pairs are paired by."""
    return [each for each in frame.varying if each not in by]


def _interval_note(frame: Frame, by: Sequence[Field], query: Query) -> str:
    over = [f"{each.name} ({len(_distinct(frame, each))})" for each in _rest(frame, by)]
    how = "Student's t" if query.method is Method.T else "bootstrap (BCa, 10,000 resamples)"
    which = "" if query.stat is Stat.LAST else f" of the {query.stat} value of each run"
    return f"mean ± 95 % CI{which} by {how}, over {' x '.join(over) or 'repeated runs'}"


def _free(name: str, by: Sequence[Field]) -> str:
    return f"{name}_runs" if name in {each.name for each in by} else name


def _counts(frame: Frame, groups: Sequence[_Group], by: Sequence[Field]) -> Iterator[Column]:
    """Yield how many of each group failed, and how many have not ended well for another reason."""
    failed = [sum(frame.rows[i].state is State.FAILED for i in group.rows) for group in groups]
    texts = [f"{n} of {len(g.rows)}" if n else "0" for n, g in zip(failed, groups, strict=True)]
    yield Column(_free("failed", by), failed, "count", texts=texts)
    other = [len(g.rows) - len(g.completed) - n for n, g in zip(failed, groups, strict=True)]
    if any(other):
        yield Column(_free("unfinished", by), other, "count", title="not ended")


def _group_notes(frame: Frame, columns: Sequence[Column], groups: Sequence[_Group], query: Query) -> Iterator[str]:
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
    sizes = [len(group.completed) for group in groups]
    if sizes and max(sizes) < 2:
        yield "no intervals: they take two or more completed runs a group"
    elif query.method is Method.BOOTSTRAP and min(sizes, default=SMALL_BOOTSTRAP) < SMALL_BOOTSTRAP:
        yield f"a bootstrap of n < {SMALL_BOOTSTRAP} is too narrow: --ci t is safer"


# -- against a baseline -----------------------------------------------------------------------------------------


def _read_baseline(frame: Frame, typed: str) -> dict[Field, Value]:
    """Read ``lr=0.1,opt=adam``: which value each of these columns has in the baseline."""
    wanted: dict[Field, Value] = {}
    for part in typed.split(","):
        name, equals, text = (word.strip() for word in part.partition("="))
        if not equals or not name:
            raise UsageError(f"--baseline `{typed}` is not NAME=VALUE", 'e.g. --baseline "lr=0.1" or "lr=0.1,opt=adam"')
        column = frame.find(name, GROUPING)
        present = {identity(v): v for v in frame.values(column)}
        matches = [v for v in present.values() if _is_meant(v, text)]
        if not matches:
            values = ", ".join(_show(v) for v in list(present.values())[:12])
            raise UsageError(f"--baseline `{typed}`: no run has {name}={text}", f"its values are {values}")
        wanted[column] = matches[0]
    return wanted


def _show(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _is_meant(value: Value, text: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return math.isclose(float(text), value, rel_tol=1e-9)
        except ValueError:
            return False
    return text.strip("'\"") == _show(value) or text == _show(value)


def _against(
    frame: Frame,
    groups: Sequence[_Group],
    by: Sequence[Field],
    wanted: Mapping[Field, Value],
    metric: Field,
    values: Mapping[int, float],
    query: Query,
) -> list[Column]:
    """Compare each group with the one that has the baseline's values, over the runs that agree in all else."""
    rest = _rest(frame, by)
    if not rest:
        raise UsageError(
            f"--baseline: nothing pairs the runs, no param but {', '.join(each.name for each in by)} varies",
            "repeat each point over seeds: ems parrun SCRIPT --set seed=0..4 ...",
        )
    others = [frame.values(each) for each in rest]
    sides = [_by_pair(group, others, values) for group in groups]
    bases = _bases(groups, by, wanted)
    results = [
        None if base is None or base == i else _compare(sides[i], sides[base], query) for i, base in enumerate(bases)
    ]
    nothing = Estimate(None, None, None, 0)
    differences: list[Cell] = [r.difference if r else nothing for r in results]
    words = ["baseline" if base == i else "" for i, base in enumerate(bases)]
    name = metric.name
    return [
        Column(f"{name}_difference", differences, "metric", title=f"{name} vs baseline", texts=words),
        Column(f"{name}_effect", [r.effect if r else None for r in results], "metric", title="effect"),
        Column(f"{name}_p", [r.p if r else None for r in results], "p", title="p"),
    ]


def _bases(groups: Sequence[_Group], by: Sequence[Field], wanted: Mapping[Field, Value]) -> list[int | None]:
    """Return for each group the one that has the baseline's values and agrees in the rest of what it is grouped by."""
    found = {tuple(map(identity, group.key)): i for i, group in enumerate(groups)}
    return [
        found.get(tuple(identity(wanted.get(each, own)) for each, own in zip(by, group.key, strict=True)))
        for group in groups
    ]


def _compare(
    values: Mapping[tuple[object, ...], float], base: Mapping[tuple[object, ...], float], query: Query
) -> Paired | None:
    shared = [pair for pair in values if pair in base]
    return paired([values[p] for p in shared], [base[p] for p in shared], query.method) if shared else None


def _by_pair(
    group: _Group, others: Sequence[Sequence[Value]], values: Mapping[int, float]
) -> dict[tuple[object, ...], float]:
    """Return the mean value of each combination of the other params (repeats are one pair, not several)."""
    found: dict[tuple[object, ...], list[float]] = {}
    for i in group.completed:
        if i in values:
            found.setdefault(tuple(identity(column[i]) for column in others), []).append(values[i])
    return {key: math.fsum(v) / len(v) if all(map(math.isfinite, v)) else math.nan for key, v in found.items()}


def _corrected(family: Sequence[Column]) -> list[Column]:
    """Replace the p values of all tests of one table by Holm's."""
    tests = [column for column in family if column.kind == "p"]
    flat: list[float | None] = [p for c in tests for p in c.cells if p is None or isinstance(p, float)]
    adjusted = iter(holm(flat))
    new = {column.name: replace(column, cells=[next(adjusted) for _ in column.cells]) for column in tests}
    return [new.get(column.name, column) for column in family]


def _baseline_notes(frame: Frame, by: Sequence[Field], query: Query, family: Sequence[Column]) -> Iterator[str]:
    if not family:
        return
    tests = sum(p is not None for column in family if column.kind == "p" for p in column.cells)
    correction = f", Holm-corrected for {tests} tests" if tests > 1 else ""
    pairs = [cell.n for column in family for cell in column.cells if isinstance(cell, Estimate) and cell.n]
    counted = (
        f"{min(pairs)}" if pairs and min(pairs) == max(pairs) else f"{min(pairs)} to {max(pairs)}" if pairs else "no"
    )
    same = ", ".join(each.name for each in _rest(frame, by))
    yield (
        f"baseline {query.baseline}: mean difference ± 95 % CI over {counted} pairs of the same {same}; "
        f"effect: Cohen's d_z; p: paired t test, two-sided{correction}"
    )
