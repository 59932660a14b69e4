"""``ems report``: the results of experiments as a table or a curve."""

from __future__ import annotations

import enum
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli.app import RESULTS, command
from ems.errors import UsageError
from ems.report import Goal, Method, Query, Stat, tabulate

if TYPE_CHECKING:
    from ems.cli.session import Session
    from ems.model import Experiment
    from ems.report.table import Table

WHAT, SHOW, WRITE = "What to show", "Statistics", "Where to"
_LOOK_S = 0.3  # how long a report may look for runs that have ended since the last harvest
_LOOK_AT = 100  # so many of them it looks at however slow the machine is

Names = list[str] | None


class Format(enum.StrEnum):
    """How a table is written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    MD = "md"
    LATEX = "latex"

    @property
    def is_for_programs(self) -> bool:
        """Whether numbers are written in full and every param is a column."""
        return self in (Format.CSV, Format.JSON)


SUFFIXES = {
    ".csv": Format.CSV,
    ".json": Format.JSON,
    ".md": Format.MD,
    ".markdown": Format.MD,
    ".tex": Format.LATEX,
    ".txt": Format.TABLE,
}


def _option(panel: str, *flags: str, help: str, metavar: str | None = None) -> object:  # noqa: A002  # typer's word
    return typer.Option(*flags, help=help, metavar=metavar, rich_help_panel=panel, show_default=False)


@command(
    RESULTS,
    "ems report --by lr",
    "ems report --metric acc --sort -acc --top 10",
    "ems report --where \"lr < 0.1 and state = 'COMPLETED'\"",
    "ems report --by opt --baseline opt=sgd --metric acc",
    "ems report --curve loss --by lr --png loss.png",
    "ems report --by lr --format latex -o table.tex",
)
def report(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[EXP]...", help="Ids, names or `all`; default: last.", show_default=False),
    ] = None,
    metric: Annotated[Names, _option(WHAT, "--metric", metavar="NAMES", help="Only these metrics: acc,loss.")] = None,
    stat: Annotated[Stat, _option(WHAT, "--stat", help="Which value of a run counts (default last).")] = Stat.LAST,
    where: Annotated[str, _option(WHAT, "--where", metavar="SQL", help="Only runs for which this holds.")] = "",
    sort: Annotated[
        Names, _option(WHAT, "--sort", metavar="NAMES", help="Order; -NAME or 'NAME desc' for largest first.")
    ] = None,
    top: Annotated[
        int | None, _option(WHAT, "--top", metavar="N", help="Only the first N (without --sort: the best N).")
    ] = None,
    columns: Annotated[
        Names, _option(WHAT, "--columns", metavar="NAMES", help="Only these columns, in this order; `all` for all.")
    ] = None,
    minimize: Annotated[
        Names, _option(WHAT, "--minimize", metavar="METRICS", help="Low is good (a name like loss says so itself).")
    ] = None,
    maximize: Annotated[
        Names, _option(WHAT, "--maximize", metavar="METRICS", help="High is good (a name like acc says so itself).")
    ] = None,
    by: Annotated[
        Names, _option(SHOW, "--by", metavar="PARAMS", help="One row a value: mean ± 95 % CI over the rest, n, failed.")
    ] = None,
    ci: Annotated[Method, _option(SHOW, "--ci", help="Interval by Student's t (default) or bootstrap.")] = Method.T,
    baseline: Annotated[
        str,
        _option(
            SHOW, "--baseline", metavar="NAME=VALUE", help="Paired test and effect of each group against this one."
        ),
    ] = "",
    cost: Annotated[
        bool, _option(SHOW, "--cost", help="Also what runs cost: dollars, or GPU-hours where no price is known.")
    ] = False,
    curve: Annotated[
        Names, _option(SHOW, "--curve", metavar="METRICS", help="Draw metrics over steps, or over the swept param.")
    ] = None,
    x: Annotated[str, _option(SHOW, "--x", metavar="NAME", help="Of --curve: `step` or a param.")] = "",
    png: Annotated[
        Path | None, _option(WRITE, "--png", metavar="FILE", help="Also write the curve as an image.")
    ] = None,
    form: Annotated[Format | None, _option(WRITE, "--format", help="Default: table, or what FILE's name says.")] = None,
    as_json: Annotated[bool, _option(WRITE, "--json", help="The same as --format json.")] = False,
    output: Annotated[
        Path | None, _option(WRITE, "--output", "-o", metavar="FILE", help="Write to a file instead.")
    ] = None,
) -> None:
    """Show the results as a table or a curve.

    One row a run, or one a group with --by; the best is marked. Of a study:
    the best configurations, what matters, the rungs (--columns all: its runs).
    """
    from ems.cli import budget
    from ems.cli.session import open_session

    chosen = _format(form, as_json, output)
    if cost and curve:
        raise UsageError("--curve draws no cost", "leave one of --cost and --curve out")
    if png is not None and not curve:
        raise UsageError("--png draws a curve, but no metric was named", "add --curve METRIC")
    query = Query(
        metrics=_split(metric),
        by=_split(by),
        stat=stat,
        goals={**dict.fromkeys(_split(minimize), Goal.MINIMIZE), **dict.fromkeys(_split(maximize), Goal.MAXIMIZE)},
        where=where,
        sort=_split(sort),
        top=_positive(top),
        columns=_split(columns),
        baseline=baseline,
        method=ci,
        is_wide=chosen.is_for_programs,
    )
    with open_session() as session:
        found = _experiments(session, experiments or ["last"])
        if _is_of_study(found, query, chosen) and not curve and not cost and output is None:
            from ems.cli import study_report

            study_report.show(session, found[0], query.top, as_json=chosen is Format.JSON)
        elif curve:
            _draw(session, found, query, _split(curve), x, png, output)
        else:
            _tabulate(session, found, query, chosen, output, cost=cost)
        _say_what_is_new(session, found)
        budget.say_refused(session, [each.id for each in found])


def _is_of_study(found: Sequence[Experiment], query: Query, chosen: Format) -> bool:
    """Whether a study is reported as one: nothing was said that shapes a table of runs."""
    said = (query.metrics, query.by, query.goals, query.where, query.sort, query.columns, query.baseline)
    is_plain = not any(said) and query.stat is Stat.LAST and chosen in (Format.TABLE, Format.JSON)
    return is_plain and len(found) == 1 and found[0].study_id is not None


def _split(typed: Names) -> tuple[str, ...]:
    """Names, however they were typed: ``--metric a,b`` or ``--metric a --metric b``."""
    return tuple(name.strip() for each in typed or () for name in each.split(",") if name.strip())


def _positive(top: int | None) -> int | None:
    if top is not None and top < 1:
        raise UsageError(f"--top {top} leaves nothing to show", "--top 10")
    return top


def _format(form: Format | None, as_json: bool, output: Path | None) -> Format:
    if as_json and form not in (None, Format.JSON):
        raise UsageError(f"--json and --format {form} contradict each other", "give one of them")
    if as_json or form is not None:
        return form or Format.JSON
    return Format.TABLE if output is None else SUFFIXES.get(output.suffix.lower(), Format.TABLE)


def _experiments(session: Session, typed: Sequence[str]) -> list[Experiment]:
    if "all" in typed:
        return session.store.experiments()
    found = {each.id: each for each in map(session.experiment, typed)}
    return list(found.values())


# -- tables -----------------------------------------------------------------------------------------------------


def _tabulate(
    session: Session,
    experiments: Sequence[Experiment],
    query: Query,
    form: Format,
    output: Path | None,
    *,
    cost: bool = False,
) -> None:
    from ems.cli import formats, render, report_cost

    rows = list(session.store.run_table([each.id for each in experiments]))
    if cost:
        rows, query = report_cost.with_cost(session, experiments, rows, query)
    table = tabulate(rows, query)
    if output is not None:
        _write(output, formats.write(table, form))
        render.note(f"wrote {render.plural(len(table), 'row')} to {output}")
    elif form is Format.TABLE:
        _show(table)
    else:
        sys.stdout.write(formats.write(table, form))
        if form.is_for_programs:
            render.note(*formats.notes(table, 100))


def _show(table: Table) -> None:
    from ems.cli import formats, render

    width = render.width()
    lines, left_out = formats.lines(table, width)
    notes = formats.notes(table, min(width or 100, 100))
    if left_out:
        notes.append(f"not shown for want of width: {', '.join(left_out)} (--columns, or -o FILE)")
    body = [render.paint(lines[0], "bold"), *lines[1:]] if len(table) else ["no run to show"]
    render.page([*body, "", *(render.paint(line, "dim") for line in notes)], n_header=1)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}", "name a file in a folder that exists"
        ) from error


# -- curves -----------------------------------------------------------------------------------------------------


def _draw(
    session: Session,
    experiments: Sequence[Experiment],
    query: Query,
    metrics: Sequence[str],
    x: str,
    png: Path | None,
    output: Path | None,
) -> None:
    from ems.cli import render
    from ems.report import curve, where
    from ems.report.frame import Frame

    ids = [each.id for each in experiments]
    frame = Frame(list(session.store.run_table(ids)), query.stat, query.goals)
    frame = frame.take(where.select(frame, query.where)) if query.where else frame
    plot = curve.plot(frame, metrics, lambda name: session.store.curves(ids, name), query.by, x)
    if png is not None:
        curve.save(plot, png)
    width = min(render.width() or 80, 120)
    height = max(10, min(22, shutil.get_terminal_size((80, 24)).lines - 5))
    lines = curve.draw(plot, width, height, is_coloured=output is None and render.has_colour())
    if output is not None:
        _write(output, "\n".join([*lines, ""]))
    else:
        render.say(*lines, *plot.notes)
    for path in (png, output):
        if path is not None:
            render.note(f"wrote {path}")


# -- what a harvest would add -----------------------------------------------------------------------------------


def _say_what_is_new(session: Session, experiments: Sequence[Experiment]) -> None:
    """Say to stderr when runs have ended since the last harvest, and how to bring them in."""
    from ems.cli import render

    ended, is_all = _ended_since_harvest(session, experiments)
    if ended:
        ids = [experiments[0].id] if len(experiments) == 1 else []
        count = render.plural(ended, "run") if is_all else f"{ended:,} or more runs"
        render.note(f"{count} ended since the last harvest: {' '.join(['ems harvest', *ids])}")


def _ended_since_harvest(session: Session, experiments: Sequence[Experiment]) -> tuple[int, bool]:
    """Count the runs with an end on file that the store has not harvested; whether time allowed to look at all."""
    from ems.node.records import ExperimentFiles, last_attempt

    deadline, looks, ended = time.monotonic() + _LOOK_S, 0, 0
    removed = session.store.removed()
    for experiment in experiments:
        waiting = session.store.query("SELECT idx FROM runs WHERE experiment_id = ? AND NOT settled", [experiment.id])
        if not waiting or experiment.id in removed:
            continue
        files = ExperimentFiles(session.target(experiment.target).root, experiment.id)
        for (index,) in waiting:
            if looks >= _LOOK_AT and time.monotonic() > deadline:
                return ended, False
            looks += 1
            record = last_attempt(files, index)
            ended += record is not None and record.get("state") in ("COMPLETED", "FAILED", "CANCELLED")
    return ended, True
