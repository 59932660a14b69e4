"""``--curve``: lines of a metric over the steps of runs, or over a param, in the terminal and as an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ems import canvas
from ems.errors import EmsError, UsageError
from ems.frame import Field, Frame, Goal, Kind, Value, identity
from ems.model import State
from ems.statistics import Method, estimate

MAX_LINES = len(canvas.MARKERS)  # more cannot be told apart
_LOG_FROM = 1000  # a metric that spans so much is drawn on a logarithmic axis
_BINS = 400  # points of a line; more than a terminal or a page can show

Points = Callable[[str], Iterable[tuple[str, int, float, float]]]
"""From a metric to (experiment id, run index, step, value); :meth:`ems.store.Store.curves` with its experiments."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot: ``low`` and ``high`` bound its 95 % interval where several runs are averaged."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over one axis, and what has to be said beside them."""

    lines: tuple[Line, ...]
    x_name: str
    y_name: str
    is_log_x: bool = False
    is_log_y: bool = False
    notes: tuple[str, ...] = ()


def plot(frame: Frame, metrics: Sequence[str], points: Points, by: Sequence[str] = (), x: str = "") -> Plot:
    """Choose the lines.

    Parameters
    ----------
    frame
        The runs to draw, their stat and goals.
    metrics
        Metrics by name; each is a line (or more).
    points
        Where the points of a metric come from.
    by
        Params that make a line each; runs that agree in them are averaged.
    x
        ``step``, or a param; default: ``step`` where runs have several, else the numeric param that varies.

    Raises
    ------
    UsageError
        If a metric or param is not there, or nothing is left to draw.
    """
    fields = [frame.find(name, (Kind.METRIC,)) for name in metrics]
    groups = [frame.find(name, (Kind.PARAM, Kind.FACT)) for name in by]
    axis = None if x == "step" else frame.find(x, (Kind.PARAM,)) if x else _axis(frame, fields, groups)
    kept = _without_failed(frame) if groups or axis else frame
    if axis is None:
        lines, notes = _over_steps(kept, fields, groups, points)
    else:
        lines, notes = _over_param(kept, fields, [each for each in groups if each != axis], axis)
    if len(kept.rows) < len(frame.rows):
        notes.append(f"{len(frame.rows) - len(kept.rows):,} failed or cancelled runs left out")
    if not lines:
        raise UsageError(f"there is no point of {', '.join(metrics)} to draw", "ems harvest")
    is_log_x = axis is not None and _is_log({value for line in lines for value in line.x})
    ys = [value for line in lines for value in line.y]
    is_log_y = min(ys) > 0 and max(ys) / min(ys) > _LOG_FROM
    return Plot(tuple(lines), axis.name if axis else "step", ", ".join(metrics), is_log_x, is_log_y, tuple(notes))


def _axis(frame: Frame, metrics: Sequence[Field], groups: Sequence[Field]) -> Field | None:
    """Return the param to draw over, None for steps: runs of one point a metric have no curve of their own."""
    if any((s := row.metrics.get(each.key)) is not None and s.n > 1 for row in frame.rows for each in metrics):
        return None
    numeric = [each for each in frame.varying if _is_numeric(frame.values(each))]
    others = [each for each in numeric if each not in groups and each.name.lower() not in ("seed", "rep", "fold")]
    return next(iter([*others, *(each for each in groups if each in numeric)]), None)


def _is_numeric(values: Sequence[Value]) -> bool:
    known = [v for v in values if v is not None]
    return bool(known) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)


def _is_log(values: Collection[float]) -> bool:
    """Whether positive values are spread over powers rather than steps: two decades, their middle far down."""
    xs = sorted(values)
    if len(xs) < 3 or xs[0] <= 0 or xs[-1] / xs[0] < 100:
        return False
    return xs[len(xs) // 2] < 0.2 * xs[-1]


# -- lines ------------------------------------------------------------------------------------------------------


def _over_param(
    frame: Frame, metrics: Sequence[Field], groups: Sequence[Field], axis: Field
) -> tuple[list[Line], list[str]]:
    xs = frame.values(axis)
    lines, is_mean = [], False
    for metric in metrics:
        values = frame.values(metric)
        for label, positions in _grouped(frame, groups).items():
            at: dict[float, list[float]] = {}
            for i in positions:
                x, y = xs[i], values[i]
                if isinstance(x, int | float) and isinstance(y, int | float) and math.isfinite(y):
                    at.setdefault(float(x), []).append(float(y))
            if at:
                is_mean = is_mean or any(len(v) > 1 for v in at.values())
                lines.append(_mean_line(_label(metric, label, len(metrics)), at))
    over = _mean_note(frame, [*groups, axis]) if is_mean else []
    return _few(lines, frame, metrics, over)


def _over_steps(
    frame: Frame, metrics: Sequence[Field], groups: Sequence[Field], points: Points
) -> tuple[list[Line], list[str]]:
    lines: list[Line] = []
    single = [] if groups else [Field("run", Kind.FACT, "index"), *frame.varying]
    labels = {
        (frame.rows[i].exp_id, frame.rows[i].index): label
        for label, positions in _grouped(frame, groups or single, is_run=not groups).items()
        for i in positions
    }
    for metric in metrics:
        at: dict[str, dict[float, list[float]]] = {}
        for exp_id, index, step, value in points(metric.key):
            label = labels.get((exp_id, index))
            if label is not None and math.isfinite(value):
                at.setdefault(label, {}).setdefault(step, []).append(value)
        order = [label for label in dict.fromkeys(labels.values()) if label in at]
        lines += [_mean_line(_label(metric, label, len(metrics)), _thin(at[label])) for label in order]
    is_mean = len(set(labels.values())) < len(labels)
    return _few(lines, frame, metrics, _mean_note(frame, groups) if is_mean else [])


def _mean_note(frame: Frame, fixed: Sequence[Field]) -> list[str]:
    over = " x ".join(each.name for each in frame.varying if each not in fixed)
    return [f"mean over {over or 'repeated runs'}; --png shades its 95 % CI (Student's t)"]


def _without_failed(frame: Frame) -> Frame:
    """Keep what may be averaged: a run that failed at half its way would pull the mean where it ended."""
    ended_badly = (State.FAILED, State.CANCELLED)
    return frame.take(i for i, row in enumerate(frame.rows) if row.state not in ended_badly)


def _grouped(frame: Frame, groups: Sequence[Field], is_run: bool = False) -> dict[str, list[int]]:
    """Return the positions of the runs under each label, such as ``lr=0.1 opt=adam``."""
    cells = [frame.values(each) for each in groups]
    found: dict[tuple[object, ...], list[int]] = {}
    for i, row in enumerate(frame.rows):
        own = (row.exp_id,) if is_run else ()
        found.setdefault((*own, *(identity(column[i]) for column in cells)), []).append(i)
    names: dict[str, list[int]] = {}
    for positions in found.values():
        first = positions[0]
        words = [f"{each.name}={_text(column[first])}" for each, column in zip(groups, cells, strict=True)]
        if is_run:
            row = frame.rows[first]
            words[0] = f"{row.exp_id}/{row.index}" if len({r.exp_id for r in frame.rows}) > 1 else f"run {row.index}"
        names.setdefault(" ".join(words), []).extend(positions)
    return names


def _text(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _label(metric: Field, group: str, n_metrics: int) -> str:
    return group if n_metrics == 1 and group else f"{metric.name} {group}".strip()


def _mean_line(label: str, at: Mapping[float, Sequence[float]]) -> Line:
    xs = sorted(at)
    estimates = [estimate(at[x], Method.T) for x in xs]
    means = tuple(e.mean if e.mean is not None else math.nan for e in estimates)
    return Line(label, tuple(xs), means, tuple(e.low for e in estimates), tuple(e.high for e in estimates))


def _thin(at: Mapping[float, list[float]]) -> dict[float, list[float]]:
    """Keep so many steps as can be shown, evenly, the last among them."""
    steps = sorted(at)
    every = max(1, math.ceil(len(steps) / _BINS))
    return {step: at[step] for step in (*steps[::every], steps[-1])}


def _few(lines: list[Line], frame: Frame, metrics: Sequence[Field], notes: list[str]) -> tuple[list[Line], list[str]]:
    """Keep the lines that end best, in their order, or the first ones where no goal is known; say so."""
    if len(lines) <= MAX_LINES:
        return lines, notes
    goal = frame.goal(metrics[0]) if len(metrics) == 1 else None
    ranked = sorted(lines, key=lambda line: line.y[-1], reverse=goal is Goal.MAXIMIZE) if goal else lines
    kept = {line.label for line in ranked[:MAX_LINES]}
    which = f"the {MAX_LINES} lines that end best" if goal else f"the first {MAX_LINES} lines"
    note = f"{which} of {len(lines)}; --by PARAM averages runs, --where picks some"
    return [line for line in lines if line.label in kept][:MAX_LINES], [*notes, note]


# -- drawing ----------------------------------------------------------------------------------------------------


def draw(
    drawn: Plot, width: int, height: int, paint: Callable[[int, str], str] | None = None, is_ascii: bool = False
) -> list[str]:
    """Return the plot as lines of text, its legend last; every line has a marker of its own.

    Parameters
    ----------
    drawn
        What to draw.
    width, height
        Of the plot without its legend, in cells.
    paint
        Colours a text of line number i.
    is_ascii
        Whether only ASCII can be shown.
    """
    pairs = [(line.x, line.y) for line in drawn.lines]
    body = canvas.draw(pairs, width, height, drawn.is_log_x, drawn.is_log_y, paint, is_ascii)
    legend = [f"{canvas.marker(i, is_ascii)} {line.label}" for i, line in enumerate(drawn.lines)]
    painted = [paint(i, word) if paint else word for i, word in enumerate(legend)]
    scales = " (log)" if drawn.is_log_x else ""
    heading = drawn.y_name + (" (log)" if drawn.is_log_y else "")
    return [heading, *body, f"{drawn.x_name}{scales}".rjust(width), *_packed(legend, painted, width)]


def _packed(words: Sequence[str], painted: Sequence[str], width: int) -> list[str]:
    """Put as many words on a line as fit, three spaces apart; ``painted`` are the same with their colour."""
    lines: list[str] = []
    room = 0
    for word, shown in zip(words, painted, strict=True):
        if lines and len(word) + 3 <= room:
            lines[-1] += f"   {shown}"
            room -= len(word) + 3
        else:
            lines.append(shown)
            room = width - len(word)
    return lines


def save(drawn: Plot, path: Path) -> None:
    """Write the plot as an image; the suffix of ``path`` says which kind (png, pdf, svg).

    Raises
    ------
    EmsError
        If matplotlib is not installed.
    UsageError
        If the file cannot be written, or is of no kind that matplotlib knows.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and slow
    except ImportError as error:
        raise EmsError("--png needs matplotlib, which is not installed", "pip install 'ems[plot]'") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for line, marker in zip(drawn.lines, "osv^D<>p", strict=False):
        (shown,) = axes.plot(line.x, line.y, marker=marker, markersize=3, label=line.label)
        low = [y if v is None else v for v, y in zip(line.low, line.y, strict=True)]
        high = [y if v is None else v for v, y in zip(line.high, line.y, strict=True)]
        axes.fill_between(line.x, low, high, alpha=0.2, color=shown.get_color(), linewidth=0)
    axes.set(xlabel=drawn.x_name, ylabel=drawn.y_name, xscale="log" if drawn.is_log_x else "linear")
    axes.set_yscale("log" if drawn.is_log_y else "linear")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"{path} cannot be written: {words}", "name a .png, .pdf or .svg in a folder that exists"
        ) from error
