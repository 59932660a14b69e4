"""Pictures as text: what a terminal can show of them. plotext draws lines and points; bars and lanes are written."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from ems.report import curve
from ems.report.picture import Band, Bars, Figure, Layer, Panel, Points, Span, Way

_MARKS = {"observed": "●", "best": "★", "pending": "○", "failed": "✕", "mean": "◆", "score": "◆"}
_PIXELS = {"best": "orange", "mean": "cyan", "score": "green", "pending": "blue", "failed": "red"}
_COLORS = ("cyan", "orange", "green", "magenta", "blue", "red")
_LINES = "▪▫◆◇▲△"  # of lines that colours tell apart, where there are colours
_Signal: TypeAlias = tuple[list[float], list[float], str, bool, str]
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LANE = {"mean": "█", "pending": "▒", "score": "▓", "failed": "x", "plain": "~", "idle": "·"}


def can_draw(figure: Figure) -> bool:
    """Whether a terminal can show it: no heights over a plane, no axes that stand side by side."""
    kinds = (Bars, Span, Points, Way, Band)
    return all(isinstance(layer, kinds) for panel in figure.panels for layer in panel.layers)


def draw(figure: Figure, width: int, height: int, *, is_coloured: bool = False) -> list[str]:
    """Return a picture as lines of text, its title first and its notes last.

    Parameters
    ----------
    width, height
        Of the room for a panel, in cells; each has one of its own, below the others.

    Raises
    ------
    EmsError
        If plotext cannot be loaded.
    """
    total = sum(figure.heights or [1.0] * len(figure.rows)) / len(figure.rows)
    lines = [*textwrap.wrap(figure.title, width), ""]
    together = figure.together or len(figure.rows)
    for start in range(0, len(figure.rows), together):
        for column in range(len(figure.rows[start])):  # a column belongs together: a slice and its acquisition
            for i in range(start, start + together):
                share = figure.heights[i] / total if figure.heights else 1.0
                room = max(7, round(height * share / together))
                lines += _panel(figure.rows[i][column], width, room, is_coloured)
            lines.append("")
    return [*lines, *(line for note in figure.notes for line in textwrap.wrap(note, width))]


def _panel(panel: Panel, width: int, height: int, is_coloured: bool) -> list[str]:
    bars = [layer for layer in panel.layers if isinstance(layer, Bars)]
    spans = [layer for layer in panel.layers if isinstance(layer, Span)]
    if bars:
        return _bars(panel, bars, width)
    if spans:
        return _lanes(panel, spans, width)
    return _plotted(panel, width, height, is_coloured)


def _bars(panel: Panel, bars: Sequence[Bars], width: int) -> list[str]:
    room = max(map(len, panel.y_labels))
    most = max((value for layer in bars for value in layer.values), default=0.0) or 1.0
    others = [[f"   {layer.label} {value:.2f}" for value in layer.values] for layer in bars[1:]]
    cells = max(8, width - room - 8 - sum(max(map(len, each)) for each in others))
    lines = []
    for i, name in enumerate(panel.y_labels):
        eighths = round(8 * cells * bars[0].values[i] / most)
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        lines.append(f"{name:>{room}}  {bar} {bars[0].values[i]:.2f}{''.join(each[i] for each in others)}")
    return [*lines, f"{'':>{room}}  {panel.x_name}, {bars[0].label}"]


def _lanes(panel: Panel, spans: Sequence[Span], width: int) -> list[str]:
    room = max(map(len, panel.y_labels))
    end = max(span.end for span in spans) or 1.0
    cells = max(20, width - room - 2)
    lanes = [[" "] * cells for _ in panel.y_labels]
    for span in spans:
        first, last = (
            int(span.start / end * cells),
            max(int(span.start / end * cells) + 1, round(span.end / end * cells)),
        )
        lanes[span.lane][first:last] = [_LANE.get(span.style, "█")] * (min(last, cells) - first)
    labels = {span.label: _LANE.get(span.style, "█") for span in spans if span.label}
    legend = "   ".join(f"{mark} {label}" for label, mark in labels.items())
    lines = [f"{name:>{room}}  {''.join(lane).rstrip()}" for name, lane in zip(panel.y_labels, lanes, strict=True)]
    scale = f"0{f'{end:.3g} {panel.x_name}':>{cells - 1}}"
    return [*lines, f"{'':>{room}}  {scale}", f"{'':>{room}}  {legend}"]


def _plotted(panel: Panel, width: int, height: int, is_coloured: bool) -> list[str]:
    plotext = curve.load_plotext()
    plotext.terminal.limit(width=False, height=False)
    figure = plotext.figure.clear().plot_size(width, height).theme("simple")
    figure.axes(active=False, axis="x", side="upper").axes(active=False, axis="y", side="right")
    for x, y, mark, is_line, color in _finite(_signals(panel)):
        signal = plotext.figure.signal(x, y, marker=plotext.marker(mark, plotext.pixel(color)))
        figure.draw(signal.lines() if is_line else signal)
    xs = [x for layer in panel.layers for x in _scaled(_xs(layer), panel.is_log_x)]
    ys = [y for layer in panel.layers for y in _scaled(_ys(layer), panel.is_log_y) if math.isfinite(y)]
    if panel.x_labels:
        figure.ruler("x").ticks(list(range(len(panel.x_labels))), list(panel.x_labels))
        figure.ruler("x").lim(-0.3, len(panel.x_labels) - 0.7)
    elif panel.x_ticks:
        figure.ruler("x").ticks(_scaled(panel.x_ticks, panel.is_log_x), [f"{tick:g}" for tick in panel.x_ticks])
    else:
        curve.scale_axis(figure.ruler("x"), xs, width // 10, panel.is_log_x)
    curve.scale_axis(figure.ruler("y"), ys, height // 3, panel.is_log_y)
    figure.title(panel.y_name.replace("\n", " ")).label(panel.x_name + " (log)" * panel.is_log_x)
    body = figure.build().string(colorless=not is_coloured).splitlines()
    return [*map(str.rstrip, body), *_legend(panel, width)]


def _finite(signals: Iterator[_Signal]) -> Iterator[_Signal]:
    """Leave out heights that are none, such as of rungs that a trial began above: plotext aborts the process on NaN."""
    for xs, ys, mark, is_line, color in signals:
        known = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
        if known:
            yield [x for x, _ in known], [y for _, y in known], mark, is_line, color


def _signals(panel: Panel) -> Iterator[_Signal]:
    """Yield what plotext draws: places, marker, whether it is a line, colour."""
    for layer in panel.layers:
        x = _scaled(_xs(layer), panel.is_log_x)
        if isinstance(layer, Band):
            for edge in (layer.low, layer.high):
                if any(edge):
                    yield x, _scaled(edge, panel.is_log_y), "·", True, "gray"
        elif isinstance(layer, Way):
            y = _scaled(layer.y, panel.is_log_y)
            yield *(_steps(x, y) if layer.is_step else (x, y)), _line(layer), True, _color(layer)
        elif isinstance(layer, Points) and layer.x:
            yield x, _scaled(layer.y, panel.is_log_y), _MARKS.get(layer.style, "●"), False, _color(layer)


def _steps(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    corners = [(x[0], y[0])]
    for i in range(1, len(x)):
        corners += [(x[i], y[i - 1]), (x[i], y[i])]
    return [at for at, _ in corners], [height for _, height in corners]


def _line(layer: Way) -> str:
    return _LINES[(layer.color or 0) % len(_LINES)]


def _color(layer: Points | Way) -> str:
    return _PIXELS.get(layer.style, "default") if layer.color is None else _COLORS[layer.color % len(_COLORS)]


def _xs(layer: Layer) -> Sequence[float]:
    return layer.x if isinstance(layer, Points | Way | Band) else ()


def _ys(layer: Layer) -> Sequence[float]:
    return (*layer.low, *layer.high) if isinstance(layer, Band) else layer.y if isinstance(layer, Points | Way) else ()


def _scaled(values: Sequence[float], is_log: bool) -> list[float]:
    """Take logarithms here: with ticks of one's own, plotext 6.1 scales the data but not the limits."""
    return [math.log10(value) for value in values] if is_log else list(values)


def _legend(panel: Panel, width: int) -> list[str]:
    marks: dict[str, str] = {}
    for layer in panel.layers:
        if isinstance(layer, Points | Way | Band) and layer.label:
            mark = (
                _MARKS.get(layer.style, "▪")
                if isinstance(layer, Points)
                else "·"
                if isinstance(layer, Band)
                else _line(layer)
            )
            marks.setdefault(layer.label, mark)
    joined = "   ".join(f"{mark} {label}".replace(" ", "\xa0") for label, mark in marks.items())
    return [line.replace("\xa0", " ") for line in textwrap.wrap(joined, width)]
