"""``ems parrun`` and ``ems run``: from what was typed to an experiment that runs."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ems.cli import options as o
from ems.cli.app import SUBMIT, command
from ems.errors import EmsError, UsageError

if TYPE_CHECKING:
    from ems.cli.session import Session
    from ems.config import Settings
    from ems.executor.base import Submission
    from ems.model import Json
    from ems.plan import Plan, Request
    from ems.target import Target

_AGAIN = re.compile(r"type the command again(: it carries on|; nothing was submitted)?|try again")
_SHOWN = 100  # runs that --dry-run lists

Script = Annotated[
    str | None,
    typer.Argument(metavar="[SCRIPT]", help="The training script; a sweep file may name it.", show_default=False),
]
ScriptArgs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[-- SCRIPT_ARGS]", help="What every run of the script is given besides.", show_default=False
    ),
]

# One table instead of two signatures of forty parameters: name -> type, in the order of --help
_SWEEP: Mapping[str, Any] = {
    "zips": o.Zips,
    "samples": o.Samples,
    "sweep": o.Sweep,
    "count_by_running": o.CountByRunning,
}
RESOURCES: Mapping[str, Any] = {
    "gres": o.Gres,
    "gpus": o.Gpus,
    "cpus": o.Cpus,
    "mem": o.Mem,
    "time": o.Time,
    "partition": o.Partition,
    "account": o.Account,
    "qos": o.Qos,
    "constraint": o.Constraint,
    "nodes": o.Nodes,
    "exclude": o.Exclude,
    "alloc": o.Alloc,
}
SETTINGS: Mapping[str, Any] = {
    "pass_as": o.PassParams,
    "seed": o.Seed,
    "max_parallel": o.MaxParallel,
    "pack": o.Pack,
    "workers": o.Workers,
    "grace_s": o.Grace,
    "max_requeues": o.MaxRequeues,
    "python": o.Python,
    "setup": o.Setup,
    "env": o.Env,
    "container": o.Container,
    "data": o.Data,
    "max_file_mb": o.MaxFile,
    "log_patterns": o.LogPatterns,
    "metric_files": o.MetricFiles,
}
_PARRUN: Mapping[str, Any] = {
    "script": Script,
    "script_args": ScriptArgs,
    "sets": o.Sets,
    **_SWEEP,
    "again": o.Again,
    "on": o.On,
    **RESOURCES,
    "budget": o.Budget,
    **SETTINGS,
    "name": o.Name,
    "message": o.Message,
    "tags": o.Tags,
    "wait": o.Wait,
    "dry_run": o.DryRun,
    "as_json": o.AsJson,
}
_RUN = {
    name: type_ for name, type_ in _PARRUN.items() if name not in {*_SWEEP, "budget", "max_parallel", "pack", "workers"}
}


def typed_by(table: Mapping[str, Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function that takes keywords the signature that typer is to read; flags are off by default."""

    def sign(function: Callable[..., None]) -> Callable[..., None]:
        kind = inspect.Parameter.KEYWORD_ONLY
        context = inspect.Parameter("ctx", kind, annotation=typer.Context)
        defaults = {name: False if get_args(type_)[0] is bool else None for name, type_ in table.items()}
        typed = [inspect.Parameter(n, kind, default=defaults[n], annotation=t) for n, t in table.items()]
        function.__signature__ = inspect.Signature([context, *typed])  # type: ignore[attr-defined]  # read by inspect
        function.__annotations__ = {"ctx": typer.Context, **table}
        return function

    return sign


@command(
    SUBMIT,
    "ems parrun train.py                                  the script's own loops",
    "ems parrun train.py --set lr=0.1,0.01 --set seed=0..9",
    "ems parrun train.py --set 'lr=loguniform(1e-5,1e-1)' --samples 20",
    "ems parrun --sweep sweep.yaml --gres gpu:1 --time 2:00:00 --budget 50usd",
    "ems parrun train.py --dry-run -- --epochs 3",
)
@typed_by(_PARRUN)
def parrun(ctx: typer.Context, **typed: Any) -> None:
    """Sweep a script: one run for each point, all in parallel."""
    _submit(ctx, typed, single=False)


@command(SUBMIT, "ems run train.py --set lr=0.1 --gres gpu:1 -- --epochs 3")
@typed_by(_RUN)
def run(ctx: typer.Context, **typed: Any) -> None:
    """Run a script once."""
    _submit(ctx, typed, single=True)


def _submit(ctx: typer.Context, typed: dict[str, Any], single: bool) -> None:
    check_words(ctx, typed)
    from ems import plan as planning
    from ems.cli import budget, render, waiting
    from ems.cli.session import open_session

    started = time.monotonic()
    with open_session(project_of(typed)) as session:
        amounts = budget.read(typed.get("budget"))
        plan = budget.within(amounts, planning.plan(request(ctx, session, typed, single), session.store))
        for warning in plan.warnings:
            render.note(f"warning: {warning}")
        if not plan.experiment.n_runs:
            _say_nothing_to_do(plan, typed["as_json"])
            return
        if typed["dry_run"]:
            _show_plan(plan, typed["as_json"])
            return
        if not typed["as_json"]:
            render.say(headline(plan), *budget.lines(plan.experiment))
        try:
            done = planning.submit(plan, session.store)
        except KeyboardInterrupt:
            exp_id = plan.experiment.id
            is_kept = Path(plan.target.files(exp_id).spec).exists()
            what = f"next: ems status · ems rerun {exp_id} --missing" if is_kept else "nothing was submitted"
            render.note(f"interrupted while submitting; {what}")
            raise
        except EmsError as error:
            if Path(plan.target.files(plan.experiment.id).spec).exists():
                error.hint = carries_on(error.hint, plan.experiment.id, f"ems rerun {plan.experiment.id} --missing")
            raise
        if typed["as_json"]:
            render.print_json({**summary(plan), **describe_submission(done)})
        else:
            render.say(submitted_line(plan.target, done, time.monotonic() - started))
        if typed["wait"]:
            waiting.until_finished(session, plan.experiment, quiet=typed["as_json"])
        elif not typed["as_json"]:
            _say_next(session)


def carries_on(hint: str, exp_id: str, command: str) -> str:
    """Return a hint for an experiment that is kept: the same command once more would make another one of it."""
    how = f"`{command}` carries on, `ems rm {exp_id}` drops it"
    said, n_said = _AGAIN.subn(how, hint)
    return said if n_said else f"{hint}; then {how}" if hint else how


def check_words(ctx: typer.Context, typed: Mapping[str, Any]) -> None:
    """Refuse words that are not meant for ems, and a command that names no script.

    Raises
    ------
    UsageError
        If there are such, or none is named.
    """
    if typed["script_args"]:
        extra = " ".join(typed["script_args"])
        raise UsageError(
            f"`{extra}` is not meant for ems",
            f"what is meant for the script stands after `--`: ems {ctx.info_name} {typed['script']} -- {extra}",
        )
    if typed["script"] is None and typed.get("sweep") is None:
        raise UsageError("no script is named", f"ems {ctx.info_name} train.py")


def project_of(typed: Mapping[str, Any]) -> Path:
    """Return where the experiment is kept: the script's git project, or without git where the user works.

    So ``ems status`` finds it from where ``ems parrun folder/train.py`` was typed.
    """
    from ems import config, store
    from ems import plan as planning
    from ems.snapshot import project

    here = Path.cwd().resolve()
    if typed["script"] is not None:
        planning.script_at(Path(typed["script"]), here)  # no store is left beside a script that is not there
    root = project.project_root(here / (typed["script"] or typed["sweep"]))
    is_marked = any((root / name).exists() for name in (config.PROJECT_FILE, store.FOLDER))
    if project.is_repository(root) or is_marked or not root.is_relative_to(here):
        return root
    return store.find(here).parent.parent


def settings_of(project: Path, typed: Mapping[str, Any]) -> Settings:
    """Return the settings with what was typed on top."""
    from ems import config

    flags = {name: typed.get(name) for name in SETTINGS}
    flags |= {f"resources.{name}": typed[name] for name in RESOURCES}
    return config.load(project, on=typed["on"], flags=flags)


def request(ctx: typer.Context, session: Session, typed: Mapping[str, Any], single: bool = False) -> Request:
    """Return what was asked for, flags and settings joined."""
    from ems import target
    from ems.plan import Request

    settings = settings_of(session.project, typed)
    context: Mapping[str, tuple[str, ...]] = ctx.obj
    return Request(
        script=Path(typed["script"]) if typed["script"] else None,
        target=session.use(target.resolve(settings.on, settings, session.project)),
        args=context["script_args"],
        single=single,
        sets=tuple(typed["sets"] or ()),
        zips=tuple(typed.get("zips") or ()),
        samples=typed.get("samples"),
        sample_seed=settings.seed,
        sweep_file=Path(typed["sweep"]) if typed.get("sweep") else None,
        count_by_running=bool(typed.get("count_by_running")),
        name=typed["name"],
        message=typed["message"],
        tags=tuple(typed["tags"] or ()),
        again=bool(typed.get("again")),
        resources=settings.resources,
        pack=None if single else settings.pack,
        max_parallel=None if single else settings.max_parallel,
        command_line=context["typed"],
        **{name: getattr(settings, name) for name in (*(set(SETTINGS) - {"pack", "max_parallel"}), "worker_python")},
    )


# ------------------------------------------------------------------------------------------------ what is said


def headline(plan: Plan) -> str:
    """Say in one line what runs, how often, which code and where."""
    from ems.cli import render

    experiment = plan.experiment
    runs = render.plural(experiment.n_runs, "run")
    if plan.axes:
        runs += " = " + " x ".join(f"{','.join(axis.names)} ({len(axis):,})" for axis in plan.axes)
    if len(plan.skipped):
        runs += f" - {len(plan.skipped):,} completed before"
    return f"experiment {experiment.id}  {experiment.name}  {runs}   {code_and_place(plan)}"


def code_and_place(plan: Plan) -> str:
    """Say which code runs, and where: ``code 51e0b7d4 (b2c41f + 3 changed files)   on gce, partition gpu``."""
    from ems.cli import render

    frozen, partition = plan.snapshot, plan.experiment.resources.partition
    base = frozen.user_commit[:6] if frozen.user_commit else "no commit"
    if frozen.changed_files:
        base += f" + {render.plural(frozen.changed_files, 'changed file')}"
    return f"code {frozen.id[:8]} ({base})   on {plan.target.name}" + (f", partition {partition}" if partition else "")


def submitted_line(target: Target, done: Submission, seconds: float) -> str:
    """Say what was handed over: ``submitted array job 1842 in 0.6 s; you may close the laptop``."""
    from ems.cli import render

    jobs = [job for _, job in done.submitted]
    if target.executor.name == "here":
        said = "started" if jobs else "nothing new was started"
        line = f"{said} in {render.duration(seconds)}; you may close the {'laptop' if target.remote else 'terminal'}"
    else:
        named = ", ".join(jobs) if len(jobs) <= 5 else f"{jobs[0]} to {jobs[-1]}"
        what = f"submitted {render.plural(len(jobs), 'array job')}" if len(jobs) > 1 else "submitted array job"
        line = (
            f"{what} {named} in {render.duration(seconds)}; you may close the laptop"
            if jobs
            else "nothing was submitted"
        )
    if done.waiting_chunks:
        waits = "waits" if done.waiting_chunks == 1 else "wait"
        line += f"\n{render.plural(done.waiting_chunks, 'more array job')} {waits} for room in the queue"
        line += f" ({done.refusal})" if done.refusal else ""
    return line


def summary(plan: Plan) -> dict[str, Json]:
    """Say in JSON what a plan is."""
    experiment = plan.experiment
    return {
        "experiment": experiment.id,
        "name": experiment.name,
        "runs": experiment.n_runs,
        "skipped": len(plan.skipped),
        "target": plan.target.name,
        "snapshot": plan.snapshot.id,
        "warnings": list(plan.warnings),
        "gpu_hours": plan.gpu_hours,
        "budget": dict(experiment.budget) or None,
    }


def describe_submission(done: Submission) -> dict[str, Json]:
    """Say in JSON what was handed over."""
    return {
        "jobs": [job for _, job in done.submitted],
        "waiting_chunks": done.waiting_chunks,
        "refusal": done.refusal,
    }


def _say_next(session: Session) -> None:
    from ems.cli import render

    away = "" if Path.cwd().is_relative_to(session.project) else f"cd {session.project} && "
    render.note(f"next: {away}ems status · ems logs last/0 -f · ems harvest · ems report")


def _say_nothing_to_do(plan: Plan, as_json: bool) -> None:
    from ems.cli import render

    if as_json:
        render.print_json({**summary(plan), "experiment": None, "jobs": []})
        return
    example = next(iter(plan.skipped.values()), "")
    what = "this run" if len(plan.skipped) == 1 else f"all {len(plan.skipped):,} runs"
    render.say(f"nothing to do: {what} completed before with the same code, params and args, e.g. {example}")
    render.note(f"next: ems report {example.partition('/')[0]} · add --again to run once more")


def _show_plan(plan: Plan, as_json: bool) -> None:
    """Show what would be submitted: the runs, the chunks, the script, the GPU-hours."""
    from ems.cli import budget, render

    if as_json:
        runs = [{"index": each.index, "seed": each.seed, "params": each.params} for each in plan.runs()]
        render.print_json(
            {**summary(plan), "experiment": None, "points": runs, "chunks": plan.chunks, "script": plan.script()}
        )
        return
    head = headline(plan).replace(f"experiment {plan.experiment.id}", "dry run:", 1)
    render.say(head, *budget.lines(plan.experiment), "")
    shown = list(islice(plan.runs(), _SHOWN))
    names = list(dict.fromkeys(name for each in shown for name in each.params))
    columns = [render.Column("run", right=True, keep=True), *(render.Column(name, cut=True) for name in names)]
    rows = [[str(each.index), *(render.value_text(each.params.get(name)) for name in names)] for each in shown]
    more = plan.experiment.n_runs - len(shown)
    render.print_table(
        columns, rows, footer=[f"… {more:,} more runs; --json lists all"] if more > 0 else [], paged=False
    )
    render.say("", *_chunk_lines(plan), f"GPU-hours at most: {_gpu_hours(plan)}", "", plan.script().rstrip("\n"))
    render.note("", "next: the same without --dry-run submits it")


def _chunk_lines(plan: Plan) -> list[str]:
    from ems.cli import render

    noun = "array job" if plan.target.executor.name == "slurm" else "pool of workers"
    tasks = [int(chunk["tasks"]) for chunk in plan.chunks]
    nouns = "array jobs" if noun == "array job" else "pools of workers"
    sizes = " + ".join(f"{size:,}" for size in tasks) if len(tasks) <= 5 else f"{len(tasks)} x up to {max(tasks):,}"
    return [f"{render.plural(len(tasks), noun, nouns)}: {sizes} {'tasks' if max(tasks, default=0) != 1 else 'task'}"]


def _gpu_hours(plan: Plan) -> str:
    from ems.cli import render

    hours = plan.gpu_hours
    gpus, runs = plan.experiment.resources.gpus_per_run, plan.experiment.n_runs
    if hours is None:
        return "not bounded, since no --time is asked"
    if not gpus:
        return "0 (no GPU is asked)"
    limit = plan.experiment.resources.time
    return f"{render.number(hours)} = {render.plural(runs, 'run')} x {render.plural(gpus, 'GPU')} x {limit}"
