"""``ems tune SCRIPT``: from what was typed to a study that goes on by itself."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ems.cli import options as o
from ems.cli import submit
from ems.cli.app import SUBMIT, group
from ems.errors import EmsError, UsageError

if TYPE_CHECKING:
    from ems.cli.session import Session
    from ems.config import Settings
    from ems.model import Params
    from ems.plan import Plan
    from ems.search.space import SearchSpace
    from ems.space import Sweep
    from ems.study.asked import Asked
    from ems.study.driver import WakeReport
    from ems.study.spec import StudySpec

SECTIONS = START, LOOK, STEER = "Start", "Look", "Steer"
SPACE, JUDGE, END, HOW = "What to search", "What is good", "When it ends", "How to search"
COMMANDS = ("status", "best", "stop", "resume", "extend")
_PARALLEL = 8  # trials at a time on a cluster, where nobody says
_MOST_PARALLEL = 10_000  # beyond it even the first proposals take minutes
_LONGEST_WAKE = 86_400.0  # seconds

command = group(
    SUBMIT,
    "tune",
    "Search a script's params: runs choose the ones after them.",
    SECTIONS,
    "ems tune train.py --set 'lr=loguniform(1e-5,1e-1)' --metric loss --trials 30",
    "ems tune status",
)

Sets = Annotated[
    list[str] | None,
    o.option(
        SPACE,
        "--set",
        metavar="NAME=WHERE",
        help="A param and where to look: loguniform(1e-5,1e-1) | uniform(0,1) | int(16,512) | logint(1,64) | "
        "adam,sgd; a single value is passed on.",
    ),
]
Space = Annotated[
    str | None,
    o.option(SPACE, "--space", metavar="FILE", help="YAML with params, `when` and constraints, or a W&B sweep file."),
]
GroupBy = Annotated[
    str | None,
    o.option(SPACE, "--group-by", metavar="COLUMN=FILE.csv", help="A search for each value of a column, one budget."),
]
WarmStart = Annotated[
    list[str] | None,
    o.option(SPACE, "--warm-start", metavar="STUDY", help="Begin with what another study has found."),
]
Metric = Annotated[
    str | None, o.option(JUDGE, "--metric", metavar="NAME", help="What trials are judged by: its last value.")
]
Goal = Annotated[
    str | None,
    o.option(JUDGE, "--goal", metavar="<minimize|maximize>", help="Needless where the name says it: loss, acc."),
]
Seeds = Annotated[
    int | None,
    o.option(JUDGE, "--seeds", metavar="N", help="Try each configuration with N seeds, the same ones for all."),
]
SeedAs = Annotated[
    str | None,
    o.option(JUDGE, "--seed-as", metavar="NAME", help="A param that gets the seed, beside EMS_SEED."),
]
Confirm = Annotated[
    str | None,
    o.option(JUDGE, "--confirm", metavar="SHARE", help="Spend the last part, e.g. 15%, on more seeds of the best few."),
]
Trials = Annotated[int | None, o.option(END, "--trials", metavar="N", help="After so many trials.")]
Budget = Annotated[
    list[str] | None,
    o.option(END, "--budget", metavar="AMOUNT", help="300epochs, 40gpuh, 100cpuh, 6h, 50usd; several with commas."),
]
MaxCrashes = Annotated[
    int | None, o.option(END, "--max-crashes", metavar="K", help="After K crashes in a row (default 5).")
]
Parallel = Annotated[
    int | None,
    o.option(
        HOW,
        "--parallel",
        metavar="N",
        help="Trials at a time (default: what fits here, else 8); on SLURM up to N more that are queued ahead may run.",
    ),
]
Fidelity = Annotated[
    str | None,
    o.option(HOW, "--fidelity", metavar="NAME=LOW..HIGH", help="A param that says how long to train: epochs=1..81."),
]
Eta = Annotated[
    float | None, o.option(HOW, "--eta", metavar="ETA", help="One of so many trials trains on (default 3).")
]
Scheduler = Annotated[
    str | None,
    o.option(HOW, "--scheduler", metavar="<asha|hyperband|bohb|stop|none>", help="Default: asha with --fidelity."),
]
Sampler = Annotated[
    str | None,
    o.option(
        HOW,
        "--sampler",
        metavar="NAME",
        help="gp (default), ts, lp, ucb, ei, pi, lcb, tpe, skopt, random, sobol or grid.",
    ),
]
Mode = Annotated[
    str | None,
    o.option(HOW, "--mode", metavar="<async|sync>", help="sync: wait for the whole batch (default async)."),
]
Seed = Annotated[int | None, o.option(HOW, "--seed", metavar="S", help="Same seed, same proposals (default 0).")]
Wake = Annotated[
    float | None, o.option(HOW, "--wake", metavar="SECONDS", help="Look at least so often (default: as runs end).")
]
Wait = Annotated[bool, o.option(o.THEN, "--wait", help="Stay until it ends; exit 1 if it failed.")]
DryRun = Annotated[
    bool, o.option(o.THEN, "--dry-run", help="Show space, rungs, first proposals, budget and job; start nothing.")
]

_SEARCH: Mapping[str, Any] = {
    "sets": Sets,
    "space": Space,
    "group_by": GroupBy,
    "warm_start": WarmStart,
    "metric": Metric,
    "goal": Goal,
    "seeds": Seeds,
    "seed_as": SeedAs,
    "confirm": Confirm,
    "trials": Trials,
    "budget": Budget,
    "max_crashes": MaxCrashes,
    "parallel": Parallel,
    "fidelity": Fidelity,
    "eta": Eta,
    "scheduler": Scheduler,
    "sampler": Sampler,
    "mode": Mode,
    "seed": Seed,
    "wake": Wake,
}
_TUNE: Mapping[str, Any] = {
    "script": submit.Script,
    "script_args": submit.ScriptArgs,
    **_SEARCH,
    "on": o.On,
    **submit.RESOURCES,
    **{name: type_ for name, type_ in submit.SETTINGS.items() if name not in ("seed", "max_parallel")},
    "name": o.Name,
    "message": o.Message,
    "tags": o.Tags,
    "wait": Wait,
    "dry_run": DryRun,
    "as_json": o.AsJson,
}


@command(
    START,
    "ems tune train.py --set 'lr=loguniform(1e-5,1e-1)' --set opt=adam,sgd --metric val_loss --trials 60 --parallel 8",
    "ems tune train.py --space space.yaml --metric acc --fidelity epochs=1..81 --budget 300epochs --gres gpu:1",
    "ems tune --space sweep.yaml                           a Weights & Biases sweep file, as it is",
    "ems tune train.py --space space.yaml --metric loss --trials 60 --dry-run",
    "ems tune status",
)
@submit.typed_by(_TUNE)
def tune(ctx: typer.Context, **typed: Any) -> None:
    """Search a script's params: runs choose the ones after them.

    The script need not know: it gets its params as in any run, and logs the metric. The search goes on by itself:
    `ems tune status`, `best`, `stop`, `resume` and `extend` look at it and steer it (each has its own --help).
    """
    _check_word(typed["script"])
    submit.check_words(ctx, {**typed, "sweep": typed["space"]})
    from ems.cli import render, tune_show, tune_status
    from ems.cli.session import open_session
    from ems.study import begin

    started = time.monotonic()
    project = submit.project_of({**typed, "sweep": typed["space"]})
    read = _read(ctx, project, typed)
    with open_session(project) as session:
        plan, spec = _plan(ctx, session, typed, read)
        render.note(*read.notes, *(f"warning: {warning}" for warning in plan.warnings))
        if typed["dry_run"]:
            tune_show.show_plan(plan, spec, read.space, begin.known(spec, session.store), typed["as_json"])
            return
        if not typed["as_json"]:
            render.say(tune_show.headline(plan, spec))
        try:
            report = begin.start(plan, spec, plan.target, session.store)
        except KeyboardInterrupt:
            render.note(f"interrupted while starting; {_what_is_left(plan)}")
            raise
        except EmsError as error:
            if _is_kept(plan):
                error.hint = submit.carries_on(error.hint, spec.id, f"ems tune resume {spec.id}")
            raise
        with tune_status.outlived(plan.experiment):
            _go_on(session, plan, typed, report, time.monotonic() - started)


def _go_on(session: Session, plan: Plan, typed: Mapping[str, Any], report: WakeReport, seconds: float) -> None:
    """Say that a study has been started; stay with it where that is wished."""
    from ems.cli import render, tune_show, tune_status

    exp_id = plan.experiment.id
    if typed["as_json"] and not typed["wait"]:
        render.print_json({**submit.summary(plan), "study": exp_id, "asked": report.asked})
    elif not typed["as_json"]:
        render.say(tune_show.started_line(plan, report, seconds))
    if typed["wait"]:
        tune_status.until_ended(session, plan.experiment, quiet=typed["as_json"])
    elif not typed["as_json"]:
        away = "" if Path.cwd().is_relative_to(session.project) else f"cd {session.project} && "
        render.note(f"next: {away}ems tune status · ems tune best · ems report last · ems tune stop {exp_id}")


def _check_word(script: str | None) -> None:
    """Take a misspelt command for one, rather than for a script that is not there."""
    from ems.space import suggest

    if script is not None and "." not in script and "/" not in script and not Path(script).exists():
        near = suggest(script, COMMANDS)
        if near:
            raise UsageError(f"`{script}` is no command of `ems tune`, and no script", near)


def _is_kept(plan: Plan) -> bool:
    return Path(plan.target.files(plan.experiment.id).spec).exists()


def _what_is_left(plan: Plan) -> str:
    exp_id = plan.experiment.id
    return f"next: ems tune resume {exp_id} · ems rm {exp_id}" if _is_kept(plan) else "nothing was started"


# ------------------------------------------------------------------------------------------------ what was typed


@dataclass(frozen=True, slots=True)
class _Typed:
    """What was typed, read as far as that needs no store and no scheduler."""

    settings: Settings
    space: SearchSpace
    sweep: Sweep | None
    asked: Asked
    spec: StudySpec  # without an id, for one trial at a time
    notes: tuple[str, ...] = ()


def _read(ctx: typer.Context, project: Path, typed: Mapping[str, Any]) -> _Typed:
    """Read what was typed; what cannot be meant is said here, before anything is written.

    Raises
    ------
    UsageError
        If there is such.
    """
    from ems.study.asked import check_args, of_sweep, specify

    settings = submit.settings_of(project, typed)
    sweep = _sweep(typed["space"])
    asked = _asked(typed)
    notes: tuple[str, ...] = ()
    if sweep is not None:
        from_file = of_sweep(sweep, typed["eta"], asked.fidelity)
        asked = asked.over(from_file)
        notes = tuple(f"{typed['space']}: {note}" for note in from_file.notes)
    space = read_space(typed["sets"], typed["space"])
    if sweep is not None and asked.fidelity is not None:
        space = _without(space, asked.fidelity.name)
    spec = specify(asked, space, "", seed=settings.seed)
    check_args(asked.fidelity, space, ctx.obj["script_args"])
    return _Typed(settings, space, sweep, asked, spec, notes)


def _asked(typed: Mapping[str, Any]) -> Asked:
    """Read the options that say what is searched for, and how."""
    from ems.study import words
    from ems.study.asked import Asked

    for name in ("trials", "parallel", "seeds", "max_crashes"):
        if typed[name] is not None and typed[name] < 1:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} {typed[name]} is none", f"give a whole number above 0: --{option} 8")
    if (typed["parallel"] or 0) > _MOST_PARALLEL:
        problem = f"--parallel {typed['parallel']} is more than one search can keep busy"
        raise UsageError(problem, f"at most {_MOST_PARALLEL}")
    if typed["wake"] is not None and not 0 < typed["wake"] <= _LONGEST_WAKE:
        problem = f"--wake {typed['wake']:g} is no time after which to look again"
        raise UsageError(problem, "seconds, up to a day: --wake 60")
    if typed["eta"] is not None and not typed["fidelity"] and not typed["space"]:
        problem = "--eta says how many trials train on, and no param says how long they train"
        raise UsageError(problem, "add e.g. --fidelity epochs=1..81, or leave --eta out")
    fidelity = words.parse_fidelity(typed["fidelity"], typed["eta"]) if typed["fidelity"] else None
    return Asked(
        metric=typed["metric"],
        goal=words.check_goal(typed["goal"]) if typed["goal"] else None,
        sampler=words.check_sampler(typed["sampler"]) if typed["sampler"] else None,
        scheduler=words.check_scheduler(typed["scheduler"]) if typed["scheduler"] else None,
        mode=words.check_mode(typed["mode"]) if typed["mode"] else None,
        fidelity=fidelity,
        trials=typed["trials"],
        budget=words.parse_budget(typed["budget"] or (), fidelity.name if fidelity else None),
        parallel=typed["parallel"],
        seeds=typed["seeds"],
        confirm=words.parse_share(typed["confirm"]) if typed["confirm"] else None,
        groups=words.read_groups(typed["group_by"], Path.cwd()) if typed["group_by"] else None,
    )


def read_space(sets: Sequence[str] | None, name: str | None) -> SearchSpace:
    """Read the space that ``--set`` and the file of ``--space`` give together, of whichever of both kinds it is."""
    from ems.search import space_file

    sweep = _sweep(name)
    return space_file.parse(sets or (), Path(name) if name and sweep is None else None, sweep)


def _sweep(name: str | None) -> Sweep | None:
    """Read a Weights & Biases sweep file; None where ``--space`` names another kind of file."""
    from ems import document
    from ems.space import sweep

    if name is None:
        return None
    content = document.read(Path(name), "space file").content
    return sweep.load(Path(name)) if "method" in content and "parameters" in content else None


# ------------------------------------------------------------------------------------------------ what it becomes


def _plan(ctx: typer.Context, session: Session, typed: Mapping[str, Any], read: _Typed) -> tuple[Plan, StudySpec]:
    """Freeze the code, and fill in what only the target and the store know."""
    from ems import plan as planning
    from ems.cli import budget as cli_budget
    from ems.study import budget

    if typed["name"]:
        _check_name(session, typed["name"], read.spec)
    warm_start = tuple(_study_id(session, reference) for reference in typed["warm_start"] or ())
    request = submit.request(ctx, session, {**typed, "sets": None, "sweep": typed["space"] if read.sweep else None})
    seed_as = typed["seed_as"] or _seed_flag(request.script, read.spec, request.args)
    request = replace(request, trial=_example(read, seed_as), max_parallel=None)
    plan = planning.plan(request, session.store)
    spec = replace(
        read.spec,
        id=plan.experiment.id,
        parallel=read.asked.parallel or read.settings.max_parallel or _places(plan),
        seed_as=seed_as,
        warm_start=warm_start,
        usd_per_h=cli_budget.price(plan),
        wake_s=typed["wake"],
        **({"max_crashes": typed["max_crashes"]} if typed["max_crashes"] else {}),
    )
    budget.check(spec, plan.experiment)
    return plan, spec


def _seed_flag(script: Path | None, spec: StudySpec, args: Sequence[str]) -> str:
    """Return ``seed`` where trials differ by their seed alone and the script takes it by a flag of that name."""
    if (spec.seeds == 1 and not spec.confirm) or script is None or '"seed"' in spec.space or "--seed" in args:
        return ""
    return "seed" if re.search(r"""["']--seed["']""", script.read_text(encoding="utf-8", errors="replace")) else ""


def _example(read: _Typed, seed_as: str) -> Params:
    """Return what one trial gets, to see now whether that can reach the script."""
    import numpy as np

    spec = replace(read.spec, seed_as=seed_as)
    drawn = read.space.draw(np.random.default_rng(spec.seed), 1)[0]
    group = spec.groups[0] if spec.groups else None
    return {**spec.run_params(drawn, group, spec.seed), **spec.overlay(spec.budget_of(0))}


def _without(space: SearchSpace, name: str) -> SearchSpace:
    """Return the space without a param that the rungs give a value."""
    from ems.search.space import SearchSpace

    left = tuple(dimension for dimension in space.dimensions if dimension.name != name)
    return space if len(left) == len(space.dimensions) else SearchSpace(left, space.constraints)


def _places(plan: Plan) -> int:
    """Return how many trials run at a time where nobody says."""
    from ems.executor import here

    if plan.target.executor.name != "here" or plan.target.remote is not None:
        return _PARALLEL
    return here.places(plan.experiment, plan.experiment.resources)


def _study_id(session: Session, reference: str) -> str:
    """Return the id of a study that is there to begin with.

    Raises
    ------
    UsageError
        If the experiment is no study.
    """
    experiment = session.experiment(reference)
    if experiment.study_id is None:
        raise UsageError(
            f"{experiment.name} {experiment.id} is no study", "--warm-start takes one that `ems tune` has made"
        )
    return experiment.id


def _check_name(session: Session, name: str, spec: StudySpec) -> None:
    """Refuse a second study of a name while the first goes on: `ems tune best NAME` means one of them.

    Raises
    ------
    UsageError
        If there is one.
    """
    from ems.store import studies

    for exp_id in studies.unfinished(session.store):
        if session.experiment(exp_id).name != name:
            continue
        row = studies.study(session.store, exp_id)
        same = row is not None and all(row.spec.get(key) == getattr(spec, key) for key in ("space", "metric", "goal"))
        raise UsageError(
            f"the study {name} {exp_id} goes on" + ("" if same else ", and searches another space or metric"),
            f"`ems tune status {exp_id}` shows it, `ems tune stop {exp_id}` ends it; or choose another --name",
        )
