"""``ems plot``: pictures of a study, in the terminal, as an image, as a page."""

from __future__ import annotations

import enum
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli import options as o
from ems.cli.app import RESULTS, command
from ems.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ems.report.picture import Figure
    from ems.report.study import Study
    from ems.report.study_plots import Wish


class Picture(enum.StrEnum):
    """What of a study is drawn."""

    CONVERGENCE = "convergence"
    PARALLEL = "parallel"
    IMPORTANCE = "importance"
    SLICE = "slice"
    CONTOUR = "contour"
    RUNGS = "rungs"
    TIMELINE = "timeline"


@command(
    RESULTS,
    "ems plot last slice",
    "ems plot last convergence --png convergence.png",
    "ems plot last contour --params lr,units --png contour.png",
    "ems plot last --html study.html",
)
def plot(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Id, name, or `last`.", show_default=False)],
    kinds: Annotated[
        list[Picture] | None,
        typer.Argument(metavar="[KIND]...", help=f"{' | '.join(Picture)}. Default: all of them.", show_default=False),
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Write an image (.png, .pdf or .svg).")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page that needs no network.")
    ] = None,
    params: Annotated[
        str, typer.Option("--params", metavar="NAMES", help="Of slice and contour; default: those that matter most.")
    ] = "",
    group: Annotated[
        str | None, typer.Option("--group", metavar="VALUE", help="Of a study with groups; default: the largest.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Draw how a study went and what it has learnt.

    Convergence: values and the best so far. Slice: the model along each param
    through the best, its 95 % band, the acquisition, the trials. Contour: the
    model over two params. Parallel: a line a configuration. Importance: what
    matters. Rungs: from rung to rung. Timeline: workers, busy and idle.
    """
    from ems.cli import render, study_report, tune_status
    from ems.cli.session import open_session
    from ems.report.study_plots import Wish

    asked = tuple(name.strip() for name in params.split(",") if name.strip())
    with open_session() as session:
        experiment = tune_status.find(session, study)
        render.note(*tune_status.look(session, experiment))
        view = study_report.view(tune_status.load(session, experiment))
    wish = Wish(group, asked, datetime.now(UTC).isoformat(timespec="seconds"))
    figures = _figures(view, kinds, wish)
    if as_json:
        render.print_json([each.dump() for each in figures])
        return
    _write(figures, f"{experiment.name} {experiment.id}", png, page)
    if png is None and page is None:
        _show(figures, experiment.id, kinds or [])


def _figures(view: Study, kinds: Sequence[Picture] | None, wish: Wish) -> list[Figure]:
    """Draw the kinds; of all, those for which there is something to draw."""
    from ems.report.study_plots import figure

    if kinds:
        return [figure(view, kind, wish) for kind in kinds]
    found = []
    for kind in Picture:
        try:
            found.append(figure(view, kind, wish))
        except UsageError:  # no rungs, or too few values yet: the first says which
            if kind is Picture.CONVERGENCE:
                raise
    return found


def _write(figures: Sequence[Figure], title: str, png: Path | None, page: Path | None) -> None:
    from ems.cli import render
    from ems.report import picture

    if png is not None:
        if len(figures) > 1:
            raise UsageError(
                f"--png writes one picture, and {len(figures)} were named",
                "name one, e.g. `ems plot last slice --png slice.png`, or write all of them with --html FILE",
            )
        picture.save(figures[0], png)
        render.note(f"wrote {png}")
    if page is not None:
        try:
            page.write_text(picture.page(figures, title), encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"{page} cannot be written: {error.strerror}", "name a file in a folder that exists"
            ) from error
        render.note(f"wrote {page}")


def _show(figures: Sequence[Figure], exp_id: str, kinds: Sequence[Picture]) -> None:
    from ems.cli import render
    from ems.report import terminal

    width = min(render.width() or 80, 110)
    height = max(14, min(24, shutil.get_terminal_size((80, 24)).lines - 4))
    drawn = [figure for figure in figures if terminal.can_draw(figure)]
    if not drawn:
        raise UsageError(
            "this picture is too fine for a terminal", f"ems plot {exp_id} {kinds[0]} --png FILE, or --html FILE"
        )
    lines: list[str] = []
    for figure in drawn:
        lines += [*terminal.draw(figure, width, height, is_coloured=render.has_colour()), ""]
    render.page(lines[:-1])
    if len(drawn) < len(figures):
        render.note(f"next: ems plot {exp_id} --html FILE shows the finer ones, too")
