"""``--curve``: lines of a metric over the steps of runs, or over a param.

plotext draws them in the terminal, matplotlib as an image; both are imported where they are needed.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ems.errors import EmsError, UsageError
from ems.model import State
from ems.report.frame import Field, Frame, Kind, Value, identity
from ems.report.query import Goal, Method
from ems.report.statistics import estimate

MARKERS = "●○▲△■□◆◇"  # one a line, so that colour is not needed
MAX_LINES = len(MARKERS)  # more cannot be told apart
_COLORS = ("cyan", "orange", "green", "magenta", "blue", "red")
_MAX_BARS = 3  # lines whose intervals can be told apart in a terminal
_MARK_ALL, _MARKED = 40, 10  # a line of up to so many points has a marker at each, a longer one so many markers
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

    @property
    def has_interval(self) -> bool:
        """Whether any point is a mean with an interval."""
        return any(value is not None for value in self.low)


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over one axis, and what has to be said beside them."""

    lines: tuple[Line, ...]
    x_name: str
    y_name: str
    is_log_x: bool = False
    is_log_y: bool = False
    notes: tuple[str, ...] = ()

    @property
    def has_bars(self) -> bool:
        """Whether a terminal shows intervals too: of few lines, on a linear axis, where there are any."""
        return len(self.lines) <= _MAX_BARS and not self.is_log_y and any(line.has_interval for line in self.lines)


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
    made = Plot(tuple(lines), axis.name if axis else "step", ", ".join(metrics), is_log_x, is_log_y)
    if any(line.has_interval for line in lines):
        notes.append(f"{'bars' if made.has_bars else '--png shades'}: 95 % CI of the mean (Student's t)")
    return replace(made, notes=tuple(notes))


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
                x, y = _finite(xs[i]), _finite(values[i])
                if x is not None and y is not None:
                    at.setdefault(x, []).append(y)
            if at:
                is_mean = is_mean or any(len(v) > 1 for v in at.values())
                lines.append(_mean_line(_label(metric, label, len(metrics)), at))
    over = _mean_note(frame, [*groups, axis]) if is_mean else []
    return _few(lines, frame, metrics, over)


def _finite(value: Value) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


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
    return [f"mean over {over or 'repeated runs'}"]


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
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() else repr(text)[1:-1]


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


def draw(drawn: Plot, width: int, height: int, is_coloured: bool = False) -> list[str]:
    """Return the plot as lines of text, its legend last; every line has a marker of its own.

    Parameters
    ----------
    drawn
        What to draw.
    width, height
        Of the plot without its legend, in cells.
    is_coloured
        Whether to add colours, which repeat what the markers say.

    Raises
    ------
    EmsError
        If plotext cannot be loaded.
    """
    plotext = load_plotext()
    plotext.terminal.limit(width=False, height=False)  # the room is the caller's to give, whatever the terminal
    figure = plotext.figure.clear().plot_size(width, height).theme("simple")
    figure.axes(active=False, axis="x", side="upper").axes(active=False, axis="y", side="right")
    pixels = [plotext.pixel(_COLORS[i % len(_COLORS)]) for i in range(len(drawn.lines))]
    lines = [_logarithmic(line, drawn.is_log_x, drawn.is_log_y) for line in drawn.lines]
    for signal in _signals(plotext, lines, pixels, drawn.has_bars):
        figure.draw(signal)
    scale_axis(figure.ruler("x"), [x for line in lines for x in line.x], width // 10, drawn.is_log_x)
    scale_axis(figure.ruler("y"), _heights(lines, drawn.has_bars), height // 3, drawn.is_log_y)
    figure.title(drawn.y_name + " (log)" * drawn.is_log_y).label(drawn.x_name + " (log)" * drawn.is_log_x)
    body = figure.build().string(colorless=not is_coloured).splitlines()
    markers = [plotext.colorize(m, p).string() if is_coloured else m for m, p in zip(MARKERS, pixels, strict=False)]
    return [*map(str.rstrip, body), *_legend([line.label for line in lines], markers, width)]


def load_plotext() -> Any:
    """Return plotext.

    Raises
    ------
    EmsError
        If it cannot be loaded.
    """
    try:
        import plotext  # noqa: PLC0415 - slow
    except ImportError as error:  # its compiled part is missing where there is no wheel for the machine
        raise EmsError(f"the curve cannot be drawn: {str(error).splitlines()[0]}", "--png FILE draws it too") from error
    return plotext


def _logarithmic(line: Line, is_log_x: bool, is_log_y: bool) -> Line:
    """Take logarithms here: with ticks of one's own, plotext 6.1 scales the data but not the limits."""
    x = tuple(map(math.log10, line.x)) if is_log_x else line.x
    y = tuple(map(math.log10, line.y)) if is_log_y else line.y
    return replace(line, x=x, y=y)


def _signals(plotext: Any, lines: Sequence[Line], pixels: Sequence[object], has_bars: bool) -> Iterator[object]:
    """Yield what plotext draws, what must not be hidden last: ways between points, intervals, points."""
    figure = plotext.figure
    for line, pixel in zip(lines, pixels, strict=True):
        yield figure.signal(line.x, line.y, marker=plotext.marker("·", pixel)).lines()
    marked = [_thinned(line, i / len(lines)) for i, line in enumerate(lines)]
    for line, pixel in zip(marked if has_bars else (), pixels, strict=False):
        both = zip(line.low, line.high, strict=True)
        lengths = [0.0 if low is None or high is None else high - low for low, high in both]
        yield figure.error(line.x, line.y, lengths, pixel=pixel)
    for line, pixel, marker in zip(marked, pixels, MARKERS, strict=False):
        yield figure.signal(line.x, line.y, marker=plotext.marker(marker, pixel))


def _thinned(line: Line, offset: float) -> Line:
    """Keep the points to mark: where there are too many, every so many, beside those of other lines."""
    every = 1 if len(line.x) <= _MARK_ALL else math.ceil(len(line.x) / _MARKED)
    kept = slice(int(offset * every), None, every)
    return Line(line.label, line.x[kept], line.y[kept], line.low[kept], line.high[kept])


def _heights(lines: Sequence[Line], has_bars: bool) -> list[float]:
    """Return what the y axis has to hold; wide intervals may run out of it rather than flatten the lines."""
    ys = [y for line in lines for y in line.y]
    room = max(ys) - min(ys) or math.inf
    ends = [v for line in lines for v in (*line.low, *line.high) if has_bars and v is not None]
    return [*ys, *(min(max(v, min(ys) - room), max(ys) + room) for v in ends)]


def scale_axis(ruler: Any, values: Sequence[float], most: int, is_log: bool) -> None:
    """Limit an axis to ``values``, with about ``most`` round ticks; powers of ten on a logarithmic one."""
    low, high = min(values), max(values)
    if not low < high:
        return  # plotext makes room around a single value
    most = max(2, most)
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m * most >= high - low)
    step = max(1.0, round(step)) if is_log else step
    ticks = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    ruler.ticks(ticks, [f"{10.0**tick:g}" if is_log else f"{tick:.6g}" for tick in ticks])
    ruler.lim(low, high)


def _legend(labels: Sequence[str], markers: Sequence[str], width: int) -> list[str]:
    """Put as many entries on a line as fit; below the plot, where it hides no point."""
    joined = "   ".join(f"{mark} {label}".replace(" ", "\xa0") for mark, label in zip(MARKERS, labels, strict=False))
    text = "\n".join(textwrap.wrap(joined, width)).replace("\xa0", " ")
    for plain, shown in zip(MARKERS, markers, strict=False):
        text = text.replace(f"{plain} ", f"{shown} ", 1)
    return text.splitlines()


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
