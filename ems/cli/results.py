"""``ems harvest``, ``ems gather`` and ``ems reduce``: bring results together."""

from __future__ import annotations

import enum
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ems.cli import options as o
from ems.cli.app import RESULTS, command
from ems.errors import ConnectionFailedError, NotFoundError, TargetError, UsageError

if TYPE_CHECKING:
    from ems.cli.session import Session
    from ems.harvest import ExperimentHarvest, HarvestReport
    from ems.harvest.failures import FailureGroup
    from ems.model import Experiment

_WATCH_S, _PROGRESS_S = 5.0, 1.0
_MAX_PROBLEMS = 20


@command(RESULTS, "ems harvest", "ems harvest last --metric-files 'out/*.csv'", "ems harvest --watch")
def harvest(
    experiments: o.Experiments = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until all runs have ended.")] = False,
    metric_files: o.MetricFiles = None,
    as_json: o.AsJson = False,
) -> None:
    """Collect every result that is there into the store.

    Incremental, and safe at any moment: results of running runs are included, nothing is counted twice.
    """
    from ems.cli import budget, render, waiting
    from ems.cli.session import open_session

    o.check_watch(watch, as_json)
    patience = waiting.Patience()
    with open_session() as session:
        chosen = [session.experiment(reference) for reference in experiments] if experiments else None
        reports = _harvest(session, chosen, metric_files or ())
        if as_json:
            render.print_json(_json(reports))
            _end_as(reports)
            return
        say(reports)
        budget.say_refused(session, [each.exp_id for report in reports for each in report.experiments])
        while watch and not patience.is_over(session.counts(left := _unfinished(session, chosen))):
            time.sleep(_WATCH_S)
            reports = _harvest(session, left, metric_files or ())
            if news := [report for report in reports if _is_news(report)]:
                say(news)
    _end_as(reports)
    render.note("next: ems report" + (f" {experiments[0]}" if experiments and len(experiments) == 1 else ""))


def _end_as(reports: Sequence[HarvestReport]) -> None:
    """Fail where a machine was not reached: what there is was taken, but nobody knows what is new."""
    if any(isinstance(report.trouble, ConnectionFailedError | TargetError) for report in reports):
        raise typer.Exit(1)


def _harvest(session: Session, chosen: Sequence[Experiment] | None, globs: Sequence[str]) -> list[HarvestReport]:
    from ems.cli import render

    with render.progress() as show:
        said = time.monotonic()

        def tell(words: str) -> None:
            nonlocal said
            if time.monotonic() - said > _PROGRESS_S:  # a short harvest needs no progress, a log file not every step
                said = time.monotonic()
                show(words)

        return session.harvest(
            chosen,
            globs,
            lambda done, total: tell(f"harvesting {done:,} of {total:,} runs"),
            lambda came: tell(f"fetching: {render.size(came)}"),
        )


def _unfinished(session: Session, chosen: Sequence[Experiment] | None) -> list[Experiment]:
    ids = None if chosen is None else {each.id for each in chosen}
    return [each for each in session.unfinished() if (ids is None or each.id in ids) and not session.out_of_reach(each)]


def _is_news(report: HarvestReport) -> bool:
    return bool(report.problems or any(e.new_points or e.new_completed or e.new_failed for e in report.experiments))


def say(reports: Sequence[HarvestReport]) -> None:
    """Say what harvests have brought: a line an experiment, a line a cause of failure."""
    from ems.cli import render

    for report in reports:
        for exp_id in report.adopted:
            render.note(f"found {exp_id}, which the store did not know")
        for each in report.experiments:
            render.say(_line(each, report.seconds), *(_failure_line(each, group) for group in each.failures))
        for problem in report.problems[:_MAX_PROBLEMS]:
            render.note(f"not read: {render.clean(problem)}")
        if len(report.problems) > _MAX_PROBLEMS:
            render.note(f"… {len(report.problems) - _MAX_PROBLEMS:,} more; --json lists all")
        if report.trouble is not None:
            is_away = isinstance(report.trouble, ConnectionFailedError | TargetError)
            known = "this is what came of it before" if is_away else "states are as the workers recorded them"
            hint = [f"hint: {report.trouble.hint}"] if report.trouble.hint else []
            render.note(f"{report.trouble.message}; {known}", *hint)
    if not any(report.experiments for report in reports):
        render.say(f"nothing new in {render.duration(sum(report.seconds for report in reports))}")


def _line(found: ExperimentHarvest, seconds: float) -> str:
    """Return ``train 7f3a9c21: 5 completed (+3), 1 failed, 1,240 new points in 0.4 s``."""
    from ems.cli import render

    words = []
    for state in ("completed", "failed", "cancelled", "running", "pending", "unknown"):
        count, new = getattr(found, state), getattr(found, f"new_{state}", 0)
        if count:
            words.append(f"{count:,} {state}" + (f" (+{new:,})" if new else ""))
    points = render.plural(found.new_points, "new point")
    return f"{found.name} {found.exp_id}: {', '.join([*words, points])} in {render.duration(seconds)}"


def _failure_line(found: ExperimentHarvest, group: FailureGroup) -> str:
    from ems.cli import render

    params = "".join(f" {name}={render.value_text(value)}" for name, value in group.example_params.items())
    cause = f"{group.count:,} failed: {render.clean(group.cause)}, e.g. {found.exp_id}/{group.example}{params}"
    then = group.advice or f"rerun: {group.rerun_command}"
    room = render.width() or 200
    return f"{cause}    {then}" if len(cause) + len(then) + 4 <= room else f"{cause}\n    {then}"


def _json(reports: Sequence[HarvestReport]) -> dict[str, Any]:
    return {
        "experiments": [asdict(each) for report in reports for each in report.experiments],
        "seconds": sum(report.seconds for report in reports),
        "problems": [problem for report in reports for problem in report.problems],
        "adopted": [exp_id for report in reports for exp_id in report.adopted],
        "trouble": next((report.trouble.message for report in reports if report.trouble is not None), None),
    }


# -- files of all runs -------------------------------------------------------------------------------------------


class TableFormat(enum.StrEnum):
    """What ``ems reduce`` writes to stdout."""

    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"


@command(RESULTS, "ems gather last '*.png' figures/", "ems gather last model.pt models/")
def gather(
    experiment: o.Exp,
    pattern: Annotated[
        str,
        typer.Argument(metavar="PATTERN", help="Name or path in the run: '*.png', 'out/*.csv'.", show_default=False),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; made if need be.", show_default=False)],
    as_json: o.AsJson = False,
) -> None:
    """Copy files of all runs into one folder, as INDEX-NAME."""
    from ems import collect
    from ems.cli import render
    from ems.cli.session import open_session
    from ems.remote.pull import Scope

    with open_session() as session:
        found = session.experiment(experiment)
        with session.fetched(found, Scope(pattern=pattern, attempts=False)) as (root, is_fetched):
            gathered = collect.gather(root, found, pattern, folder, move=is_fetched)
    if as_json:
        files = [{"run": index, "file": file, "copy": str(copy)} for index, file, copy in gathered.files]
        render.print_json({"experiment": found.id, "files": files, "missing": list(gathered.missing)})
    else:
        n_runs = found.n_runs - len(gathered.missing)
        files_of = f"{render.plural(len(gathered.files), 'file')} of {render.plural(n_runs, 'run')}"
        render.say(f"copied {files_of} to {folder}")
        _say_missing(found, pattern, gathered.missing)
    if not gathered.files:
        raise typer.Exit(1)


@command(
    RESULTS,
    "ems reduce last results.csv -o all.csv",
    "ems reduce last results.json | head",
    "ems reduce last w.npz -o w.npz",
)
def reduce(
    experiment: o.Exp,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="csv, json, jsonl or npz, as the script calls it.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there, in the format of its name.")
    ] = None,
    form: Annotated[TableFormat, typer.Option("--format", help="Of what is printed without -o.")] = TableFormat.CSV,
) -> None:
    """Join a file of all runs into one table, params as columns."""
    from ems import collect
    from ems.cli import render
    from ems.cli.session import open_session
    from ems.remote.pull import Scope

    with open_session() as session:
        found = session.experiment(experiment)
        runs = list(session.store.runs(found.id))
        with session.fetched(found, Scope(paths=collect.places(file, found.cwd), attempts=False)) as (root, _):
            reduced = collect.reduce(root, found, runs, file)
    for problem in reduced.problems[:_MAX_PROBLEMS]:
        render.note(f"not read: {render.clean(problem)}")
    if len(reduced.missing) == len(runs):
        raise NotFoundError(f"no run of {found.name} {found.id} has a file {file}", f"ems ls {found.id}/0")
    if output is not None:
        collect.write(reduced, output)
        size = "" if reduced.arrays else f"{render.plural(len(reduced.rows), 'row')} of "
        render.note(f"wrote {size}{render.plural(len(runs) - len(reduced.missing), 'run')} to {output}")
    elif reduced.arrays:
        raise UsageError("arrays cannot be printed", f"ems reduce {experiment} {file} -o {Path(file).name}")
    else:
        sys.stdout.write(collect.dump(reduced, form))
    _say_missing(found, file, reduced.missing)


def _say_missing(experiment: Experiment, what: str, missing: Sequence[int]) -> None:
    from ems.cli import render

    if missing:
        listed = ", ".join(map(str, missing[:20])) + (", …" if len(missing) > 20 else "")
        render.note(
            f"{render.plural(len(missing), 'run')} without {what}: {listed}",
            f"next: ems status {experiment.id} · ems rerun {experiment.id} --failed",
        )
