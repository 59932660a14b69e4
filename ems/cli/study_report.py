"""``ems report STUDY``: the best configurations with the commands that run them, what matters, the rungs."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ems.cli.session import Session
    from ems.model import Experiment, Json
    from ems.report.study import Configuration, Study
    from ems.search.importance import Importance
    from ems.search.noise import Outlook
    from ems.study.standing import Standing

_TOP = 5  # configurations, unless --top says how many
_BAR = 24  # cells


def view(standing: Standing) -> Study:
    """Return what reports and pictures of a study are made of."""
    from ems.report.study import Study

    spec = standing.spec
    return Study(
        exp_id=standing.experiment.id,
        name=standing.experiment.name,
        metric=spec.metric,
        sign=spec.sign,
        problem=spec.problem(),
        trials=standing.trials,
        segments=standing.segments,
        budgets=spec.fidelity.rungs if spec.fidelity is not None and spec.is_promoting else (),
        fidelity=spec.fidelity.name if spec.fidelity is not None else "",
    )


def show(session: Session, experiment: Experiment, top: int | None, *, as_json: bool) -> None:
    """Print the report of a study.

    Raises
    ------
    NotFoundError
        If nothing was heard of its driver yet.
    """
    from ems.cli import render, tune_status

    standing = tune_status.load(session, experiment)
    study = view(standing)
    if as_json:
        render.print_json(describe(session, standing, study, top or _TOP))
        return
    lines = [_head(standing)]
    for group in study.groups:
        lines += ["", *_group_lines(standing, study, group, top or _TOP)]
    render.page(lines)
    has_values = any(each.outcome == "ok" for each in standing.segments)
    pictures = f"ems plot {experiment.id} slice · ems plot {experiment.id} convergence --png FILE"
    render.note("", f"next: {pictures if has_values else f'ems tune status {experiment.id}'}")


def _head(standing: Standing) -> str:
    from ems.cli import render, tune_show, tune_status

    experiment, spec = standing.experiment, standing.spec
    end = "lowest" if spec.goal == "minimize" else "highest"
    return (
        f"study {render.paint(f'{experiment.id}  {experiment.name}', 'bold')}  {standing.row.state.lower()}   "
        f"{end} {spec.metric}   {tune_show.how(spec)}   {tune_status.trials_line(standing)}"
    )


def _group_lines(standing: Standing, study: Study, group: str | None, top: int) -> Iterator[str]:
    from ems.cli import render
    from ems.report import study as report

    if group is not None:
        yield render.paint(f"{standing.spec.group_by}={group}", "bold")
    found = report.best(study, group, top)
    if not found:
        yield f"no value of {study.metric} yet"
        return
    yield from _best_lines(standing, study, found)
    ahead = report.outlook(study, group)
    if ahead is not None:
        yield from ("", _outlook_line(standing, ahead))
    shares = report.importance(study, group)
    if shares:
        yield from ("", *_importance_lines(study, group, shares))
    if study.budgets:
        yield from ("", *_rung_lines(study, group))


def _best_lines(standing: Standing, study: Study, found: Sequence[Configuration]) -> Iterator[str]:
    from ems.cli import render, tune_status

    names = [name for name in study.problem.space.names if any(name in each.params for each in found)]
    columns = [
        render.Column("trial", right=True, keep=True),
        render.Column(f"{study.metric} (mean ± sd)", keep=True),
        render.Column("observed", right=True),
        render.Column("n", right=True),
        *(render.Column(name, right=True) for name in names),
    ]
    observed = render.numbers([each.observed for each in found])
    rows = [
        [
            _trial(each.number),
            tune_status.spread(each.mean, each.sd) if math.isfinite(each.mean) else "no model yet",
            seen,
            str(each.n),
            *(render.value_text(each.params[name]) if name in each.params else "" for name in names),
        ]
        for each, seen in zip(found, observed, strict=True)
    ]
    table = render.layout(columns, rows, render.width())
    at = f", at {study.fidelity or 'step'} {found[0].budget:g}" if found[0].budget is not None else ""
    yield render.paint(f"best configurations by the model's mean{at}", "bold")
    yield from table.lines
    if table.left_out:
        yield render.paint(f"not shown for want of width: {', '.join(table.left_out)}", "dim")
    if not standing.experiment.script:  # of a program that asks and tells itself
        return
    yield ""
    yield render.paint("to run them once more", "bold")
    for each in found:
        yield f"{_trial(each.number):>5}  {tune_status.run_command(standing, each)}"


def _trial(number: int) -> str:
    return str(number) if number >= 0 else "given"


def _outlook_line(standing: Standing, ahead: Outlook) -> str:
    """Say whether more trials pay; stopping is offered, never done."""
    from ems.cli import render

    said = (
        f"one more trial is expected to gain {render.number(ahead.gain, 2)}, runs of the same params differ by "
        f"{render.number(ahead.noise, 2)} (sd): "
    )
    exp_id, goes_on = standing.experiment.id, not standing.row.is_finished
    if ahead.is_stop_offered:
        return said + ("nobody would see it; ems tune stop " + exp_id if goes_on else "more trials hardly pay")
    return said + ("it pays to go on" if goes_on else f"ems tune extend {exp_id} --trials 20 may pay")


def _importance_lines(study: Study, group: str | None, shares: Sequence[Importance]) -> Iterator[str]:
    from ems.cli import render
    from ems.search.importance import METHOD

    model = study.model(group)
    where = study.at(model.rung) if model is not None else ""
    room = max(len(each.name) for each in shares)
    yield render.paint(f"importance{where}", "bold") + f"   {METHOD}"
    for each in shares:
        bar = "█" * round(_BAR * each.total)
        yield f"{each.name:>{room}}  {each.total:4.2f}  {bar:<{_BAR}}  by itself {each.alone:.2f}"


def _rung_lines(study: Study, group: str | None) -> Iterator[str]:
    from ems.cli import render
    from ems.report import study as report

    found = report.rungs(study, group)
    titles = (study.fidelity or "step", "asked", "completed", "failed", "under way", f"best {study.metric}", "median")
    columns = [render.Column(title, right=True) for title in (*titles, "trial")]
    rows = [
        [
            f"{each.budget:g}",
            *(f"{n:,}" for n in (each.asked, each.completed, each.failed, each.pending)),
            *(render.number(value) if value is not None else "" for value in (each.best, each.median)),
            "" if each.best_number is None else str(each.best_number),
        ]
        for each in found
    ]
    yield render.paint("rungs", "bold") + "   values of different rungs are not compared"
    yield from render.layout(columns, rows, render.width()).lines
    for each in report.misleading(study, group):
        low, high, top = (study.budgets[rung] for rung in (each.low, each.high, -1))
        instead = f"--fidelity {titles[0]}={high:g}..{top:g}" if high < top else "without --fidelity"
        yield (
            f"{titles[0]} {low:g} hardly tells what is good at {high:g} (rank correlation {each.correlation:.2f} over "
            f"{each.count:,} trials): a search that begins higher may do better, {instead}"
        )


def describe(session: Session, standing: Standing, study: Study, top: int) -> dict[str, Json]:
    """Return the report as JSON."""
    from ems.cli import tune_status
    from ems.report import study as report
    from ems.search.importance import METHOD

    said = tune_status.describe(session, standing.experiment)
    best: list[Json] = []
    importance: list[Json] = []
    rungs: list[Json] = []
    outlooks: list[Json] = []
    for group in study.groups:
        best += [
            {**_finite(asdict(each)), "command": tune_status.run_command(standing, each)}
            for each in report.best(study, group, top)
        ]
        ahead = report.outlook(study, group)
        if ahead is not None:
            said_of = {"gain": ahead.gain, "noise": ahead.noise, "stop_offered": ahead.is_stop_offered}
            outlooks.append({"group": group, **said_of})
        importance += [{"group": group, **asdict(each)} for each in report.importance(study, group)]
        rungs += [{"group": group, **asdict(each)} for each in report.rungs(study, group)]
    return {
        **said,
        "best": best,
        "importance": importance,
        "importance_method": METHOD,
        "outlook": outlooks,
        "rungs": rungs,
    }


def _finite(record: dict[str, Json]) -> dict[str, Json]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
