"""``ems tune status`` and ``best``: how a study stands, and what it has found."""

from __future__ import annotations

import json
import math
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli import options as o
from ems.cli.tune import LOOK, command
from ems.errors import ConnectionFailedError, ExecutorError, NotFoundError, StoreError, TargetError, UsageError
from ems.model import PassAs

if TYPE_CHECKING:
    from ems.cli.session import Session
    from ems.model import Experiment, Json, Params
    from ems.report.study import Configuration
    from ems.study.standing import Best, Standing

_WATCH_S = 2.0
_ORDER = ("ok", "running", "queued", "stopped", "crashed", "diverged", "timeout", "oom", "lost")
_STATE_STYLES = {"FINISHED": "green", "FAILED": "red", "STOPPED": "yellow", "RUNNING": "cyan"}

Study = Annotated[
    str, typer.Argument(metavar="STUDY", help="Id (a prefix will do), name, or `last`.", show_default=False)
]
AnyStudy = Annotated[
    str | None, typer.Argument(metavar="[STUDY]", help="Default: the newest study.", show_default=False)
]


@command(LOOK, "ems tune status", "ems tune status last --watch")
def status(
    study: AnyStudy = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again every 2 s, until it has ended.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Show the best so far, trials by state, workers, budget, next wake."""
    from ems.cli import render
    from ems.cli.session import open_session

    o.check_watch(watch, as_json)
    with open_session() as session:
        experiment = find(session, study)
        if as_json:
            render.note(*look(session, experiment))
            render.print_json(describe(session, experiment))
            return
        with render.screen() as show:
            while True:
                trouble = look(session, experiment)
                standing = load(session, experiment)
                show([*lines(standing), *trouble])
                if not watch or standing.row.is_finished:
                    break
                time.sleep(_WATCH_S)
        render.note("", _next(standing))


@command(LOOK, "ems tune best", "ems tune best last --json")
def best(study: AnyStudy = None, as_json: o.AsJson = False) -> None:
    """Show the best configuration, how sure that is, and the command that runs it."""
    from ems.cli import render
    from ems.cli.session import open_session

    with open_session() as session:
        experiment = find(session, study)
        render.note(*look(session, experiment))
        standing = load(session, experiment)
        if not standing.best:
            raise NotFoundError(
                f"no trial of {experiment.name} {experiment.id} has given a value of {standing.spec.metric} yet",
                f"ems tune status {experiment.id}",
            )
        if as_json:
            render.print_json([_describe_best(standing, each) for each in standing.best])
            return
        for each in standing.best:
            command_line = run_command(standing, each)
            render.say(*_best_lines(standing, each), *(["", command_line] if command_line else []))
        own = next((each.number for each in standing.best if each.number >= 0), None)
        again = f"ems reproduce {experiment.id}/{own} · " if experiment.script and own is not None else ""
        render.note("", f"next: {again}ems report {experiment.id} · ems plot {experiment.id} slice")


# ------------------------------------------------------------------------------------------------ looking


def find(session: Session, reference: str | None) -> Experiment:
    """Return a study; None: the newest.

    Raises
    ------
    NotFoundError
        If there is none.
    UsageError
        If it is an experiment, but no study.
    """
    if reference is None:
        found = [each for each in session.store.experiments() if each.study_id is not None]
        if not found:
            raise NotFoundError(
                f"there are no studies in {session.project}",
                "start one: ems tune train.py --set 'lr=loguniform(1e-5,1e-1)' --metric loss --trials 30",
            )
        return found[-1]
    experiment = session.experiment(reference)
    if experiment.study_id is None:
        raise UsageError(f"{experiment.name} {experiment.id} is no study", f"ems status {experiment.id}")
    return experiment


def look(session: Session, experiment: Experiment) -> list[str]:
    """Bring what is known of a study up to date; return what stands against that, to be said."""
    try:
        session.harvest([experiment])
    except (ExecutorError, TargetError, ConnectionFailedError, StoreError) as error:
        return ["", f"{error.message}; this is how it stood before", *([f"hint: {error.hint}"] if error.hint else [])]
    return []


def load(session: Session, experiment: Experiment) -> Standing:
    """Return how a study stands, as of the last look."""
    from ems.study import standing

    return standing.load(session.store, session.store.resolve(experiment.id))


# ------------------------------------------------------------------------------------------------ what is shown


def lines(standing: Standing) -> list[str]:
    """Return what ``ems tune status`` shows."""
    from ems.cli import render, tune_show

    experiment, spec, row = standing.experiment, standing.spec, standing.row
    state = render.paint(row.state.lower(), _STATE_STYLES.get(row.state, ""))
    head = f"study {experiment.id}  {experiment.name}  {state}   on {experiment.target}"
    facts = [("search", tune_show.how(spec)), *(("best", line) for line in _best_facts(standing))]
    facts.append(("trials", trials_line(standing)))
    if standing.rungs:
        name = (spec.fidelity.name if spec.fidelity else "") or "step"
        facts.append(("rungs", ", ".join(f"{name} {value:g}: {n:,}" for value, n in standing.rungs)))
    if not row.is_finished:
        running = standing.counts["running"]
        ahead = ": those queued ahead found room, too" if running > spec.parallel else ""
        facts.append(("workers", f"{running:,} of {spec.parallel:,} busy{ahead}"))
    facts.append(("budget", _budget_line(standing)))
    facts.append(("driver" if not row.is_finished else "ended", _driver_line(standing)))
    labels = [label if i == 0 or facts[i - 1][0] != label else "" for i, (label, _) in enumerate(facts)]
    return [head, "", *(line for label, (_, text) in zip(labels, facts, strict=True) for line in _wrapped(label, text))]


def _wrapped(label: str, text: str) -> list[str]:
    """Return a fact beside its label, on as many lines as a narrow terminal needs."""
    from ems.cli import render

    room = (render.width() or 1_000_000) - 9
    parts = textwrap.wrap(text, max(20, room), break_long_words=False, break_on_hyphens=False) or [""]
    return [f"{label if i == 0 else '':<8} {part}" for i, part in enumerate(parts)]


def _best_facts(standing: Standing) -> Iterator[str]:
    if not standing.best:
        yield f"no value of {standing.spec.metric} yet"
    for each in standing.best:
        group = f"{standing.spec.group_by}={each.group}: " if each.group is not None else ""
        yield f"{group}{value_words(standing, each)}, {trial_words(each.number)}"
        yield params_text(each.params)


def trial_words(number: int) -> str:
    """Say which trial is meant; those that another study gave have numbers below 0, and no run here."""
    return f"trial {number}" if number >= 0 else "known from --warm-start"


def value_words(standing: Standing, best: Best) -> str:
    """Say what the best is worth and how sure that is: ``loss 0.0123 ± 0.0021 at epochs 81``."""
    spec = standing.spec
    name = (spec.fidelity.name if spec.fidelity else "") or "step"
    at = f" at {name} {best.budget:g}" if best.budget is not None and spec.scheduler not in ("none", "stop") else ""
    return f"{spec.metric} {spread(best.mean, best.sd)}{at}"


def spread(mean: float, sd: float) -> str:
    """Show a number with its standard deviation, with the decimals that this deserves: ``0.92 ± 0.01``."""
    from ems.cli import render

    if not (math.isfinite(sd) and sd > 0) or not math.isfinite(mean):
        return render.number(mean)
    decimals = 1 - math.floor(math.log10(sd))
    if decimals < 0 or decimals > 9:
        return f"{mean:.3g} ± {sd:.2g}"
    return f"{mean:.{decimals}f} ± {sd:.{decimals}f}"


def params_text(params: Params) -> str:
    """Show params in one line: ``lr=0.01 opt=adam``."""
    from ems.cli import render

    return " ".join(f"{name}={render.value_text(value)}" for name, value in params.items())


def trials_line(standing: Standing) -> str:
    """Say how many trials there are by how they stand: ``42 ok, 8 running, 3 crashed``."""
    return ", ".join(f"{standing.counts[word]:,} {word}" for word in _ORDER if standing.counts[word]) or "none yet"


def _budget_line(standing: Standing) -> str:
    from ems.cli import render, tune_show

    said = []
    for unit, total in standing.spec.budget.items():
        used = standing.spent[unit]
        left = max(0.0, total - used)
        said.append(
            f"{render.number(used, 3)} of {tune_show.amount(standing.spec, unit, total)} spent, "
            f"{render.number(left, 3)} left"
        )
    return "; ".join(said)


def _driver_line(standing: Standing) -> str:
    from ems.cli import render

    row = standing.row
    if row.is_finished:
        return row.reason or row.state.lower()
    wakes = f"{render.plural(row.wakes, 'wake')} so far"
    failed = f"; the last {render.plural(row.failures, 'wake')} failed: {row.reason}" if row.failures else ""
    ending = f"; it is ending: {row.reason}" if row.ending and not row.failures else ""
    when = render.parse_time(row.next_wake)
    if when is None:
        return f"{wakes}{failed}{ending}"
    local = when.astimezone().strftime("%H:%M:%S")
    return f"wakes as runs end, at the latest at {local}; {wakes}{failed}{ending}"


def _next(standing: Standing) -> str:
    exp_id, row = standing.experiment.id, standing.row
    bad = next((each.number for each in reversed(standing.own) if each.outcome.is_bad), None)
    found = f"ems tune best {exp_id} · " if standing.best else f"ems logs {exp_id}/{bad} · " if bad is not None else ""
    if row.state == "RUNNING":
        return f"next: {found}ems tune stop {exp_id} · ems report {exp_id}"
    again = (
        f"ems tune resume {exp_id}" if row.state in ("STOPPED", "FAILED") else f"ems tune extend {exp_id} --trials 20"
    )
    if not standing.experiment.script:  # of a program that asks and tells itself, which alone can go on
        return f"next: {found}ems report {exp_id}"
    return f"next: {found}ems report {exp_id} · {again}"


def describe(session: Session, experiment: Experiment) -> dict[str, Json]:
    """Return what ``ems tune status --json`` prints."""
    standing = load(session, experiment)
    row, spec = standing.row, standing.spec
    return {
        "study": experiment.id,
        "name": experiment.name,
        "target": experiment.target,
        "state": row.state,
        "reason": row.reason,
        "is_ending": bool(row.ending),
        "metric": spec.metric,
        "goal": spec.goal,
        "best": [_describe_best(standing, each) for each in standing.best],
        "trials": {word: standing.counts[word] for word in _ORDER if standing.counts[word]},
        "rungs": [{"budget": value, "completed": n} for value, n in standing.rungs],
        "workers": {"busy": standing.counts["running"], "of": spec.parallel},
        "budget": {unit: {"of": total, "spent": standing.spent[unit]} for unit, total in spec.budget.items()},
        "wakes": row.wakes,
        "failures": row.failures,
        "next_wake": row.next_wake or None,
        "created_at": experiment.created_at,
    }


def _describe_best(standing: Standing, best: Best) -> dict[str, Json]:
    numbers = {
        key: value for key, value in asdict(best).items() if not (isinstance(value, float) and math.isnan(value))
    }
    return {**numbers, "command": run_command(standing, best)}


def _which(standing: Standing, best: Best) -> str:
    exp = standing.experiment
    run = f"{exp.name} {exp.id}"
    return f"{run}/{best.number}" if best.number >= 0 else f"{run}, {trial_words(best.number)}"


def _best_lines(standing: Standing, best: Best) -> list[str]:
    """Return what ``ems tune best`` says of one configuration."""
    from ems.cli import render

    spec = standing.spec
    group = f"   {spec.group_by}={best.group}" if best.group is not None else ""
    end = "lowest" if spec.goal == "minimize" else "highest"
    rows = [(name, render.value_text(value)) for name, value in best.params.items()]
    room = max(len(name) for name, _ in rows)
    so_far = "" if standing.row.is_finished else " so far"
    runs = f", mean of {best.n}" if best.n > 1 else " in one run"
    by_model = "" if math.isnan(best.sd) else f"{value_words(standing, best)} by the model (mean ± sd); "
    said = [
        f"{_which(standing, best)}: {end} {spec.metric}{so_far}{group}",
        *(f"  {name:<{room}}  {value}" for name, value in rows),
        f"{by_model}observed {render.number(best.observed)}{runs}",
    ]
    if best.runner_up is not None and math.isfinite(best.probability):
        chance = f"{best.probability:.2f}" if best.probability < 0.995 else "over 0.99"
        second = trial_words(best.runner_up)
        said.append(f"by the model better than the second best ({second}) with probability {chance}")
    return said


# ------------------------------------------------------------------------------------------------ the command


def run_command(standing: Standing, best: Best | Configuration) -> str:
    """Return the command that runs a configuration once, to be copied."""
    experiment, spec = standing.experiment, standing.spec
    if not experiment.script:  # of a program that asks and tells itself
        return ""
    params = {**spec.run_params(best.params, best.group, best.seed), **spec.overlay(best.budget)}
    words = ["ems", "run", experiment.script]
    for name, value in params.items():
        words += ["--set", f"{name}={_as_typed(name, value)}"]
    if "seed" not in params:
        words += ["--seed", str(best.seed)]
    if experiment.pass_as is not PassAs.FLAGS:
        words += ["--pass-as", str(experiment.pass_as)]
    words += ["--on", experiment.target]
    for field in fields(experiment.resources):
        value = getattr(experiment.resources, field.name)
        words += [f"--{field.name}", str(value)] if value is not None else []
    return shlex.join([*words, *(["--", *experiment.args] if experiment.args else [])])


def _as_typed(name: str, value: Json) -> str:
    """Return a value as ``--set`` reads it back, type and all."""
    from ems import space

    if not isinstance(value, str):
        return json.dumps(value, separators=(",", ":"))
    for text in (value, f"'{value}'"):
        try:
            found = space.parse_assignment(f"{name}={text}")[1]
        except UsageError:
            continue
        if getattr(found, "values", None) == ((value,),):
            return text
    return json.dumps(value)


# ------------------------------------------------------------------------------------------------ --wait


def until_ended(session: Session, experiment: Experiment, *, quiet: bool) -> None:
    """Show progress until a study has ended, then what it has found.

    Raises
    ------
    typer.Exit
        With 1 if the study failed or found nothing.
    """
    from ems.cli import render

    with render.progress() as show:
        standing = _watch(session, experiment, (lambda _: None) if quiet else show)
    if quiet:
        render.print_json(describe(session, experiment))
    else:
        render.say(*lines(standing))
        render.note("", _next(standing))
    if standing.row.state == "FAILED" or not standing.best:
        raise typer.Exit(1)


@contextmanager
def outlived(experiment: Experiment) -> Iterator[None]:
    """Take Ctrl-C for the end of the waiting, not of the study.

    Raises
    ------
    typer.Exit
        With 130 after Ctrl-C.
    """
    from ems.cli import render

    try:
        yield
    except KeyboardInterrupt:
        render.note(
            f"{experiment.name} {experiment.id} goes on without you",
            f"next: ems tune status {experiment.id} · ems tune stop {experiment.id}",
        )
        raise typer.Exit(130) from None


def _watch(session: Session, experiment: Experiment, show: Callable[[str], None]) -> Standing:
    from ems.cli import render, waiting

    started = time.monotonic()
    pause, longest = waiting.POLL_S.get(experiment.executor, (1.0, 10.0))
    while True:
        trouble = look(session, experiment)
        standing = load(session, experiment)
        if standing.row.is_finished:
            return standing
        elapsed = f"   {render.duration(time.monotonic() - started)}" if sys.stderr.isatty() else ""
        show(f"{progress_line(standing)}{elapsed}{'   ' + trouble[1] if trouble else ''}")
        time.sleep(pause)
        pause = min(longest, pause * 1.3)


def progress_line(standing: Standing) -> str:
    """Say in one line how far a study is: ``31 of 60 trials begun: 23 ok, 8 running   best loss 0.01 (trial 17)``."""
    from ems.cli import render

    found = _luckiest(standing)
    tail = f"   best {standing.spec.metric} {render.number(found[1])} (trial {found[0]})" if found else ""
    return f"{_how_far(standing)} begun: {trials_line(standing)}{tail}"


def short(standing: Standing) -> str:
    """Say in few words how far a study is, for a cell of a table: ``31 of 60 trials, loss 0.012``."""
    from ems.cli import render

    found = _luckiest(standing)
    return _how_far(standing) + (f", {standing.spec.metric} {render.number(found[1])}" if found else "")


def _how_far(standing: Standing) -> str:
    from ems.cli import render

    total = standing.spec.budget.get("trials")
    return f"{len(standing.own):,} of {total:,.0f} trials" if total else render.plural(len(standing.own), "trial")


def _luckiest(standing: Standing) -> tuple[int, float] | None:
    """Return the trial with the best value at the highest rung: cheap to find, unlike the model's belief."""
    values = [
        (each.rung, standing.spec.sign * each.value, each.number, each.value)
        for each in standing.segments
        if each.outcome == "ok" and each.value is not None and each.number >= 0
    ]
    if not values:
        return None
    top = max(rung for rung, *_ in values)
    _, _, number, value = min((each for each in values if each[0] == top), key=lambda each: each[1:3])
    return number, value
