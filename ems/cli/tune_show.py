"""What is said of a study before it starts: the line that names it, and all that ``--dry-run`` shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ems.cli import submit

if TYPE_CHECKING:
    from ems.model import Params
    from ems.plan import Plan
    from ems.search.dimension import Dimension
    from ems.search.space import SearchSpace
    from ems.search.trial import Start, Trial
    from ems.study.driver import WakeReport
    from ems.study.spec import StudySpec

_UNITS = {"gpuh": "GPU-hours", "cpuh": "CPU-hours", "h": "hours", "usd": "US dollars", "trials": "trials"}


def headline(plan: Plan, spec: StudySpec) -> str:
    """Say in one line what is searched, how much of it, which code and where."""
    names = list(dict.fromkeys(name for name in _names(spec)))
    return (
        f"study {plan.experiment.id}  {plan.experiment.name}  {ending(spec)}, {spec.parallel:,} at a time: "
        f"{'lowest' if spec.goal == 'minimize' else 'highest'} {spec.metric} over {', '.join(names)}"
        f"   {submit.code_and_place(plan)}"
    )


def _names(spec: StudySpec) -> Sequence[str]:
    from ems.search.space import SearchSpace

    return SearchSpace.load(spec.space).names


def ending(spec: StudySpec, amounts: Mapping[str, float] | None = None) -> str:
    """Say when a study ends: ``60 trials``, ``300 epochs or 6 hours``."""
    said = spec.budget if amounts is None else amounts
    return " or ".join(amount(spec, unit, value) for unit, value in said.items()) or "no end"


def amount(spec: StudySpec, unit: str, value: float) -> str:
    """Say an amount of a budget: ``300 epochs``, ``6 hours``; epochs by the name of the fidelity."""
    from ems.cli import render

    noun = (spec.fidelity.name if spec.fidelity and spec.fidelity.name else unit) if unit == "epochs" else _UNITS[unit]
    if value == 1 and noun.endswith("s"):
        noun = noun[:-1]
    return f"{int(value):,} {noun}" if value == int(value) else f"{render.number(value)} {noun}"


def how(spec: StudySpec) -> str:
    """Say how is searched: ``gp``, ``gp, sync, asha over epochs 1, 3, 9, 27, 81``."""
    words = [spec.sampler, *(["sync"] if spec.mode == "sync" else [])]
    if spec.fidelity is not None and spec.scheduler != "none":
        rungs = ", ".join(f"{rung:g}" for rung in spec.fidelity.rungs)
        words.append(f"{spec.scheduler} over {spec.fidelity.name or 'steps'} {rungs}")
    if spec.seeds > 1:
        words.append(f"{spec.seeds} seeds each")
    if spec.confirm:
        words.append(f"the last {spec.confirm:.0%} confirm the best")
    if spec.warm_start:
        words.append(f"begun with what {', '.join(spec.warm_start)} found")
    if spec.groups:
        words.append(f"a search for each of {len(spec.groups):,} values of {spec.group_by}")
    return ", ".join(words)


def started_line(plan: Plan, report: WakeReport, seconds: float) -> str:
    """Say how the search goes and that it was started."""
    from ems.cli import render

    place = "terminal" if plan.target.executor.name == "here" and plan.target.remote is None else "laptop"
    began = f"{render.plural(report.asked, 'trial')} started in {render.duration(seconds)}"
    return f"{began}; you may close the {place}" + (f"\n{report.trouble}" if report.trouble else "")


# ------------------------------------------------------------------------------------------------ --dry-run


def show_plan(plan: Plan, spec: StudySpec, space: SearchSpace, known: Sequence[Trial], as_json: bool) -> None:
    """Show what would be searched and how: space, rungs, first proposals, budget, and the exact job.

    Parameters
    ----------
    known
        What it begins with, of other studies.
    """
    from ems.cli import render

    first = _first(spec, known)
    if as_json:
        render.print_json(
            {
                **submit.summary(plan),
                "experiment": None,
                "study": spec.dump(),
                "proposals": [dict(each.proposal.params) for each in first],
                "script": _script(plan, len(first)),
            }
        )
        return
    render.say(headline(plan, spec).replace(f"study {plan.experiment.id}", "dry run:", 1), how(spec), "")
    _show_space(space)
    render.say("", "first proposals (what follows depends on what they give):")
    _show_proposals(first)
    render.say("", *_costs(plan, spec), "", _script(plan, len(first)).rstrip("\n"))
    render.note("", "next: the same without --dry-run starts it")


def _first(spec: StudySpec, known: Sequence[Trial]) -> list[Start]:
    from ems.search.decide import decide
    from ems.search.trial import Start

    decided = decide(spec.problem(), known, spec.parallel, 0)
    return [each for each in decided.actions if isinstance(each, Start)]


def _script(plan: Plan, n_runs: int) -> str:
    """Return the job of the first trials, as it would be submitted."""
    from ems import submission

    experiment = replace(plan.experiment, n_runs=n_runs)
    chunks = submission.plan_chunks(experiment, range(n_runs), plan.target.executor.limits())
    return plan.target.executor.script(experiment, chunks[0]) if chunks else ""


def _show_space(space: SearchSpace) -> None:
    from ems.cli import render

    has_conditions = any(each.when for each in space.dimensions)
    columns = [render.Column("param", keep=True), render.Column("where", cut=True), render.Column("prior")]
    columns += [render.Column("when", cut=True)] if has_conditions else []
    rows = [[each.name, *describe(each), *([each.when or ""] if has_conditions else [])] for each in space.dimensions]
    render.print_table(columns, rows, paged=False)
    for constraint in space.constraints:
        render.say(f"so that {constraint}")


def describe(dimension: Dimension) -> tuple[str, str]:
    """Return where a param is looked for, and with which prior: ``("1e-05 to 0.1", "log")``."""
    from ems.cli import render
    from ems.search import dimension as kinds

    if isinstance(dimension, kinds.Real):
        return f"{render.number(dimension.low)} to {render.number(dimension.high)}", dimension.prior
    if isinstance(dimension, kinds.Int):
        step = "" if dimension.q == 1 else f" in steps of {dimension.q:g}"
        return f"{render.number(dimension.low)} to {render.number(dimension.high)}{step}", f"{dimension.prior}, whole"
    if isinstance(dimension, kinds.Shaped):
        shape = dimension.distribution
        return f"{type(shape).__name__.lower()} {_moments(shape)}", "its own"
    if isinstance(dimension, kinds.Fixed):
        return render.value_text(dimension.setting), "fixed"
    values = ", ".join(map(render.value_text, dimension.items()))
    return values, "in order" if isinstance(dimension, kinds.Ordinal) else "unordered"


def _moments(shape: object) -> str:
    from dataclasses import fields, is_dataclass

    pairs = [(each.name, getattr(shape, each.name)) for each in fields(shape)] if is_dataclass(shape) else []
    return ", ".join(f"{name} {value:g}" for name, value in pairs if value is not None)


def _show_proposals(first: Sequence[Start]) -> None:
    from ems.cli import render

    names = list(dict.fromkeys(name for each in first for name in each.proposal.params))
    grouped = any(each.group is not None for each in first)
    columns = [render.Column("trial", right=True, keep=True), *([render.Column("group")] if grouped else [])]
    columns += [render.Column("seed", right=True)]
    columns += [render.Column(name, cut=True) for name in names]
    rows = [
        [str(number), *([each.group or ""] if grouped else []), str(each.seed), *_cells(names, each.proposal.params)]
        for number, each in enumerate(first)
    ]
    render.print_table(columns, rows, paged=False)


def _cells(names: Iterable[str], params: Params) -> list[str]:
    from ems.cli import render

    return [render.value_text(params[name]) if name in params else render.ABSENT for name in names]


def _costs(plan: Plan, spec: StudySpec) -> Iterator[str]:
    """Say what a trial costs, and when the study ends."""
    from ems.cli import render

    resources = plan.experiment.resources
    parts = [render.plural(resources.gpus_per_run, "GPU")] if resources.gpus_per_run else []
    parts += [render.plural(resources.cpus or 1, "core")]
    parts += [f"at most {resources.time}"] if resources.time else []
    if spec.fidelity is not None and spec.scheduler != "none":
        rungs = spec.fidelity.rungs
        parts += [f"{rungs[0]:g} to {rungs[-1]:g} {spec.fidelity.name or 'steps'}"]
    parts += [f"{render.number(spec.usd_per_h)} US dollars an hour"] if spec.usd_per_h else []
    yield f"one trial: {', '.join(parts)}"
    yield f"the study ends after {ending(spec)}, or {spec.max_crashes} crashes in a row"
    trials, minutes = spec.budget.get("trials"), resources.time_min
    if trials is not None and resources.gpus_per_run and minutes is not None:
        hours = trials * resources.gpus_per_run * minutes / 60
        whole = " a rung" if spec.fidelity is not None and spec.scheduler != "none" else ""
        yield f"GPU-hours at most: {render.number(hours)}{whole}"
