"""Pictures as data: panels of points, lines, bands, bars. Drawn as an image or a page here, as text in ``terminal``."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ems.errors import EmsError, UsageError
from ems.model import Json

Numbers: TypeAlias = tuple[float, ...]
Style: TypeAlias = Literal["observed", "best", "pending", "failed", "mean", "score", "plain", "idle"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933")  # for all eyes
_INK, _FAINT = "#222222", "#999999"
_STYLES: dict[str, str] = {
    "observed": "#333333",
    "best": "#D55E00",
    "pending": "#56B4E9",
    "failed": "#CC3311",
    "mean": "#0072B2",
    "score": "#009E73",
    "plain": "#777777",
    "idle": "#DDDDDD",
}
_SHADES = "viridis_r"  # of what is best, dark
_LONGEST_NAME = 16  # letters of what stands at a tick
_NAMES_ROOM = 30  # letters that have room side by side below a panel
_FEW_POWERS = 100.0  # a logarithmic axis that spans less has ticks at 2 and 5 as well
_RC: Any = {
    "text.parse_math": False,  # names of metrics have underscores and dollars
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.titlesize": 9.5,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.framealpha": 0.8,
    "legend.edgecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "ems",
}


@dataclass(frozen=True, slots=True)
class Points:
    """Single points; ``color`` picks one of :data:`COLORS` instead of the style's."""

    x: Numbers
    y: Numbers
    label: str = ""
    style: Style = "observed"
    color: int | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """A line; ``shade`` from 0 (best) to 1 colours it by a value, ``is_step`` goes by steps."""

    x: Numbers
    y: Numbers
    label: str = ""
    style: Style = "plain"
    color: int | None = None
    shade: float | None = None
    is_step: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    """What lies between two lines."""

    x: Numbers
    low: Numbers
    high: Numbers
    label: str = ""
    style: Style = "mean"


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars from 0, the first on top, one for each of the panel's ``y_labels``."""

    values: Numbers
    label: str = ""
    color: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """Something that lasts, on a lane."""

    lane: int
    start: float
    end: float
    label: str = ""
    style: Style = "mean"


@dataclass(frozen=True, slots=True)
class Mesh:
    """Heights over a grid: ``z[i][j]`` at ``y[i]``, ``x[j]``; NaN where there is none."""

    x: Numbers
    y: Numbers
    z: tuple[Numbers, ...]
    label: str = ""


@dataclass(frozen=True, slots=True)
class Upright:
    """An axis of its own, upright at ``x``: what its heights from 0 to 1 stand for."""

    x: float
    name: str
    ticks: tuple[tuple[float, str], ...]


Layer: TypeAlias = "Points | Way | Band | Bars | Span | Mesh | Upright"


@dataclass(frozen=True, slots=True)
class Panel:
    """Layers over one pair of axes, the last on top; labels stand for 0, 1, 2… where values are no numbers."""

    layers: tuple[Layer, ...]
    x_name: str = ""
    y_name: str = ""
    is_log_x: bool = False
    is_log_y: bool = False
    x_labels: tuple[str, ...] = ()
    y_labels: tuple[str, ...] = ()
    x_ticks: Numbers = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """Panels, row by row and as many in each, and what has to be said beside them.

    Attributes
    ----------
    heights
        Of the rows, in proportion; all the same where none are given.
    together
        So many rows belong together, the panels of a column below each other; 0: all of them.
    size
        Inches.
    """

    title: str
    rows: tuple[tuple[Panel, ...], ...]
    notes: tuple[str, ...] = ()
    heights: Numbers = ()
    size: tuple[float, float] = (7.5, 4.5)
    together: int = 0

    @property
    def panels(self) -> list[Panel]:
        """All of them, row by row."""
        return [panel for row in self.rows for panel in row]

    def dump(self) -> dict[str, Json]:
        """Return it as JSON: what is drawn, by layer; what is not finite is null."""
        return {
            "title": self.title,
            "notes": list(self.notes),
            "panels": [
                {
                    "x": panel.x_name,
                    "y": panel.y_name,
                    "x_labels": list(panel.x_labels),
                    "y_labels": list(panel.y_labels),
                    "layers": [
                        {"kind": type(layer).__name__.lower(), **_plain(asdict(layer))} for layer in panel.layers
                    ],
                }
                for panel in self.panels
            ],
        }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- as files ---------------------------------------------------------------------------------------------------


def save(figure: Figure, path: Path) -> None:
    """Write an image; the suffix says which kind (png, pdf, svg).

    Raises
    ------
    EmsError
        If matplotlib is not installed.
    UsageError
        If the file cannot be written, or is of no kind that matplotlib knows.
    """
    try:
        _render(figure, path, "--png", path.suffix.lstrip(".").lower() or None)
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"{path} cannot be written: {words}", "name a .png, .pdf or .svg in a folder that exists"
        ) from error


def page(figures: Sequence[Figure], title: str) -> str:
    """Return a page of HTML with the figures inside: nothing in it is looked up elsewhere.

    Raises
    ------
    EmsError
        If matplotlib is not installed.
    """
    parts = [_section(figure) for figure in figures]
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


def _section(figure: Figure) -> str:
    buffer = io.StringIO()
    _render(figure, buffer, "--html", "svg")
    drawn = buffer.getvalue()
    # without the prologue, which names a DTD on the network, and without who made it
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in figure.notes)
    return f"<section><h2>{html.escape(figure.title)}</h2>{drawn}{notes}</section>"


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fafafa; margin: 2rem auto; max-width: 60rem;
  padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.05rem; margin: 0 0 .5rem; }}
section {{ background: #fff; border: 1px solid #e3e3e3; border-radius: 8px; padding: 1rem 1.25rem; margin: 1rem 0; }}
section p {{ color: #666; font-size: .85rem; margin: .25rem 0; }}
svg {{ height: auto; max-width: 100%; }} svg text {{ font-family: system-ui, sans-serif !important; }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


def _render(figure: Figure, to: Any, option: str, kind: str | None) -> None:
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow
        from matplotlib.figure import Figure as Canvas  # noqa: PLC0415
    except ImportError as error:
        raise EmsError(f"{option} needs matplotlib, which is not installed", "pip install 'ems[plot]'") from error
    with mpl.rc_context(_RC):
        canvas = Canvas(figsize=figure.size, layout="constrained")
        if kind != "svg":  # a page says them itself
            canvas.suptitle(figure.title, fontsize=11, color=_INK)
            if figure.notes:
                canvas.supxlabel("\n".join(figure.notes), fontsize=7.5, color="#666666")
        # rows have as many panels each: a column shares its x, a row its y
        grid = canvas.add_gridspec(len(figure.rows), len(figure.rows[0]), height_ratios=figure.heights or None)
        for i, row in enumerate(figure.rows):
            first: Any = None
            for j, panel in enumerate(row):
                axes = canvas.add_subplot(grid[i, j], sharey=first)
                first = first or axes
                _draw_panel(canvas, axes, panel)
                _label(axes, panel, is_first=j == 0)
        # without a date: the same study gives the same file
        canvas.savefig(to, dpi=160, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _draw_panel(canvas: Any, axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import LogLocator  # noqa: PLC0415 - see _render

    axes.set_xscale("log" if panel.is_log_x else "linear")
    axes.set_yscale("log" if panel.is_log_y else "linear")
    for layer in panel.layers:
        _DRAW[type(layer)](canvas, axes, layer)
    if panel.x_labels:
        _name_ticks(axes.xaxis, panel.x_labels)
        if not any(isinstance(layer, Mesh) for layer in panel.layers):
            axes.set_xlim(-0.5, len(panel.x_labels) - 0.5)
    if panel.y_labels:
        _name_ticks(axes.yaxis, panel.y_labels)
    for axis, is_log in ((axes.xaxis, panel.is_log_x), (axes.yaxis, panel.is_log_y)):
        if is_log:  # 0.001 rather than a power, which would be set as a formula
            low, high = axis.get_view_interval()
            if low > 0 and high / low < _FEW_POWERS:
                axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter(lambda *_: "")
    if not panel.is_log_x and not panel.x_labels and _counts(panel):
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if panel.x_ticks:
        axes.set_xticks(panel.x_ticks, [f"{tick:g}" for tick in panel.x_ticks])
    if any(isinstance(layer, Bars | Span) for layer in panel.layers):
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(panel.y_labels) - 0.4, -0.6)
    if any(isinstance(layer, Upright) for layer in panel.layers):
        axes.set(xticks=[], yticks=[], ylim=(-0.04, 1.12))
        axes.spines[:].set_visible(False)


def _counts(panel: Panel) -> bool:
    """Whether what lies along x is counted: there is no trial 1.5."""
    places = [at for layer in panel.layers if isinstance(layer, Points | Way) for at in layer.x]
    return bool(places) and all(at == int(at) for at in places)


def _name_ticks(axis: Any, names: Sequence[str]) -> None:
    """Write names at 0, 1, 2…; long ones are cut, and along x stand aslant so that none covers the next."""
    is_below = axis.axis_name == "x"
    shown = [_cut(name, _LONGEST_NAME if is_below else 2 * _LONGEST_NAME) for name in names]
    axis.set_ticks(range(len(names)), shown)
    if is_below and len(names) * max(map(len, shown)) > _NAMES_ROOM:
        for tick in axis.get_ticklabels():
            tick.set(rotation=30, ha="right", rotation_mode="anchor")


def _cut(name: str, longest: int) -> str:
    """Leave out the middle of a long name: those that are alike differ at either end."""
    end = longest // 3
    return name if len(name) <= longest else f"{name[: longest - end - 1]}…{name[-end:]}"


def _label(axes: Any, panel: Panel, *, is_first: bool) -> None:
    """Name the axes and the layers; of panels in a row only the first says what they have in common."""
    axes.set(xlabel=panel.x_name, ylabel=panel.y_name if is_first else "")
    axes.tick_params(labelleft=is_first)
    named = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if not is_first or len(named) < 2:
        return
    is_full = any(isinstance(layer, Bars | Span | Mesh) for layer in panel.layers)  # no room within, so above
    place: dict[str, Any] = {"loc": "best"}
    if is_full:
        place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": len(named)}
    legend = axes.legend(named.values(), named.keys(), fontsize=7.5, **place)
    legend.set_in_layout(is_full)


def _color(layer: Points | Way) -> str:
    return _STYLES[layer.style] if layer.color is None else COLORS[layer.color % len(COLORS)]


def _draw_points(_: Any, axes: Any, layer: Points) -> None:
    looks: dict[str, dict[str, Any]] = {
        "best": {"marker": "*", "s": 130, "zorder": 5, "edgecolor": "white", "linewidth": 0.8},
        "pending": {"marker": "o", "s": 22, "facecolor": "none", "edgecolor": _color(layer), "linewidth": 1.2},
        "failed": {"marker": "x", "s": 22, "linewidth": 1.2},
        "mean": {"marker": "D", "s": 30, "zorder": 4, "linewidth": 0},
        "score": {"marker": "D", "s": 30, "zorder": 4, "linewidth": 0},
    }
    look = looks.get(layer.style, {"marker": "o", "s": 16, "alpha": 0.8, "linewidth": 0, "zorder": 3})
    color = {} if "facecolor" in look else {"color": _color(layer)}
    axes.scatter(layer.x, layer.y, label=layer.label, clip_on=False, **look, **color)


def _draw_way(_: Any, axes: Any, layer: Way) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - see _render

    color = _color(layer) if layer.shade is None else mpl.colormaps[_SHADES](1 - layer.shade)
    thin = layer.style == "plain" and layer.color is None
    axes.plot(
        layer.x,
        layer.y,
        label=layer.label or "_",
        color=color,
        linewidth=0.9 if thin else 1.8,
        alpha=0.55 if thin and layer.shade is None else 0.9,
        drawstyle="steps-post" if layer.is_step else "default",
    )


def _draw_band(_: Any, axes: Any, layer: Band) -> None:
    axes.fill_between(
        layer.x, layer.low, layer.high, color=_STYLES[layer.style], alpha=0.18, linewidth=0, label=layer.label or "_"
    )


def _draw_bars(_: Any, axes: Any, layer: Bars) -> None:
    # a second layer is narrower, and lies on the first
    axes.barh(
        range(len(layer.values)),
        layer.values,
        height=0.62 - 0.3 * layer.color,
        color=COLORS[5 if layer.color else 0],
        label=layer.label,
    )


def _draw_span(_: Any, axes: Any, layer: Span) -> None:
    axes.barh(
        layer.lane,
        layer.end - layer.start,
        left=layer.start,
        height=0.72,
        color=_STYLES[layer.style],
        edgecolor=(0.0, 0.0, 0.0, 0.35) if layer.style != "idle" else "none",
        linewidth=0.3,
        label=layer.label or "_",
    )


def _draw_mesh(canvas: Any, axes: Any, layer: Mesh) -> None:
    drawn = axes.contourf(layer.x, layer.y, layer.z, levels=14, cmap=_SHADES)
    axes.contour(drawn, colors="white", linewidths=0.4, alpha=0.6)
    bar = canvas.colorbar(drawn, ax=axes, label=layer.label)
    bar.outline.set_visible(False)


def _draw_upright(_: Any, axes: Any, layer: Upright) -> None:
    axes.axvline(layer.x, ymin=0.03, ymax=0.9, color=_FAINT, linewidth=1, zorder=0)
    axes.text(layer.x, 1.06, layer.name, ha="center", va="bottom", color=_INK, fontweight="bold")
    for height, text in layer.ticks:
        box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
        axes.text(
            layer.x + 0.02,
            height,
            _cut(text, 2 * _LONGEST_NAME),
            fontsize=7,
            va="center",
            color="#444444",
            bbox=box,
            zorder=6,
        )


_DRAW: dict[type, Any] = {
    Points: _draw_points,
    Way: _draw_way,
    Band: _draw_band,
    Bars: _draw_bars,
    Span: _draw_span,
    Mesh: _draw_mesh,
    Upright: _draw_upright,
}
