"""``ems status`` and ``ems list``: how experiments stand."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli import options as o
from ems.cli.app import LOOK, command
from ems.errors import ConnectionFailedError, ExecutorError, TargetError
from ems.model import State

if TYPE_CHECKING:
    from ems.cli.session import Session
    from ems.model import Experiment, JobInfo, Json

_WATCH_S = 2.0


@command(LOOK, "ems status", "ems status last --watch")
def status(
    experiment: Annotated[
        str | None,
        typer.Argument(
            metavar="[EXP]", help="Default: all that are not finished, else the newest.", show_default=False
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again every 2 s, until all have ended.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Count runs by state; say what they wait for.

    With SLURM's estimate of when the next one starts, where there is one.
    """
    from ems.cli import budget, render, waiting
    from ems.cli.session import open_session

    o.check_watch(watch, as_json)
    patience = waiting.Patience()
    with open_session() as session:
        chosen = [session.experiment(experiment)] if experiment else session.unfinished()
        chosen = chosen or session.store.experiments()[-1:]
        if as_json:
            render.note(*_refresh(session, chosen))
            render.print_json([_json(session, each) for each in chosen])
            return
        with render.screen() as show:
            while True:
                trouble = _refresh(session, chosen)
                show([*_lines(session, chosen), *trouble])
                if not watch or patience.is_over(session.counts(chosen), is_sure=not trouble):
                    break
                time.sleep(_WATCH_S)
        budget.say_refused(session, [each.id for each in chosen])
        _say_next(session, chosen)


def _refresh(session: Session, experiments: Sequence[Experiment]) -> list[str]:
    """Bring states up to date; where the scheduler or a target is away say so, and show what was known."""
    try:
        session.refresh(experiments)
    except (ExecutorError, TargetError, ConnectionFailedError) as error:
        hint = [f"hint: {error.hint}"] if error.hint else []
        return ["", f"{error.message}; this is how it stood before", *hint]
    return []


def _is_over(session: Session, experiment: Experiment) -> bool:
    return all(state.is_finished for state in session.store.counts([experiment.id])[experiment.id])


def _lines(session: Session, experiments: Sequence[Experiment]) -> list[str]:
    from ems.cli import render

    if not experiments:
        return ["no experiments yet"]
    counts = session.store.counts([each.id for each in experiments])
    states = [*(State.PENDING, State.RUNNING, State.COMPLETED, State.FAILED)]
    states += [state for state in (State.CANCELLED, State.UNKNOWN) if any(state in each for each in counts.values())]
    columns = [
        render.Column("experiment", keep=True),
        render.Column("name", cut=True),
        render.Column("on"),
        *(render.Column(state.lower(), right=True, keep=True) for state in states),
        render.Column("elapsed", right=True),
        render.Column("next", cut=True),
    ]
    rows = [
        [
            each.id,
            each.name,
            each.target,
            *(_count_cell(state, counts[each.id].get(state, 0)) for state in states),
            render.duration(_elapsed_s(session, each)),
            _next(session, each),
        ]
        for each in experiments
    ]
    return render.layout(columns, rows, render.width()).lines


def _count_cell(state: State, count: int) -> str:
    from ems.cli import render

    return render.Styled(f"{count:,}", render.STATE_STYLES.get(state, "") if count else "")


def _elapsed_s(session: Session, experiment: Experiment) -> float | None:
    """Seconds from submission to the end of the last run, or to now where one is still to end."""
    from ems.cli import render

    created = render.parse_time(experiment.created_at)
    if created is None:
        return None
    if not _is_over(session, experiment):
        return (datetime.now(UTC) - created).total_seconds()
    ended = render.parse_time(session.store.last_end(experiment.id))
    return (ended - created).total_seconds() if ended is not None else None


@dataclass(frozen=True, slots=True)
class _Queue:
    """What of an experiment the scheduler has, and what is still to go there."""

    jobs: Sequence[str] = ()
    waiting: Sequence[JobInfo] = ()
    n_chunks: int = 0
    is_held: bool = False
    out_of_reach: str = ""  # why nothing of this is known


def _queue(session: Session, experiment: Experiment) -> _Queue:
    from ems.executor import control
    from ems.node import feed

    out_of_reach = session.out_of_reach(experiment)
    if out_of_reach or experiment.id in session.store.removed():
        return _Queue(out_of_reach=out_of_reach)
    files = session.files(experiment)
    jobs = control.jobs(files)
    known = set(jobs)
    waiting = [
        info for name, info in session.jobs.items() if info.state is State.PENDING and name.partition("_")[0] in known
    ]
    return _Queue(jobs, waiting, len(feed.waiting(files)), feed.is_held(files))


def _next(session: Session, experiment: Experiment) -> str:
    """``2 wait for Resources, start ~14:05``: what is to come, or what stands against it."""
    from ems.cli import budget, render

    queue = _queue(session, experiment)
    reasons = Counter(info.reason for info in queue.waiting if info.reason)
    words = [f"{n:,} {'waits' if n == 1 else 'wait'} for {reason}" for reason, n in reasons.most_common(2)]
    starts = sorted(info.start_estimate for info in queue.waiting if info.start_estimate)
    words += [f"start ~{_local_clock(starts[0])}"] if starts else []
    words += [f"{render.plural(queue.n_chunks, 'array job')} to submit"] if queue.n_chunks else []
    words += ["held"] if queue.is_held else []
    words += [queue.out_of_reach] if queue.out_of_reach else []
    return ", ".join([*_search(session, experiment), *budget.words(session, experiment), *words])


def _search(session: Session, experiment: Experiment) -> list[str]:
    """Say how far a study is: ``12 of 60 trials, loss 0.012``; nothing of what is no study."""
    if experiment.study_id is None:
        return []
    from ems.cli import tune_status

    return [tune_status.short(tune_status.load(session, experiment))]


def _local_clock(moment: str) -> str:
    """Show squeue's time, which is local and without a zone."""
    try:
        when = datetime.fromisoformat(moment)
    except ValueError:
        return moment
    now = datetime.now(when.tzinfo)
    return when.strftime("%H:%M" if when.date() == now.date() else "%a %H:%M")


def _json(session: Session, experiment: Experiment) -> dict[str, Json]:
    from ems.cli import budget

    counts = session.store.counts([experiment.id])[experiment.id]
    queue, means = _queue(session, experiment), budget.standing(session, experiment)
    return {
        "experiment": experiment.id,
        "name": experiment.name,
        "target": experiment.target,
        "runs": experiment.n_runs,
        **{state.lower(): counts.get(state, 0) for state in State},
        "elapsed_s": _elapsed_s(session, experiment),
        "jobs": list(queue.jobs),
        "waiting_chunks": queue.n_chunks,
        "held": queue.is_held,
        "reasons": dict(Counter(info.reason for info in queue.waiting if info.reason)),
        "start_estimate": min((info.start_estimate for info in queue.waiting if info.start_estimate), default=None),
        "created_at": experiment.created_at,
        "budget": means.as_json() if means is not None else None,
    }


def _say_next(session: Session, experiments: Sequence[Experiment]) -> None:
    from ems.cli import render

    if not experiments:
        render.note("next: ems parrun SCRIPT")
        return
    counts = session.store.counts([each.id for each in experiments])
    left = [each.id for each in experiments if each.id not in session.store.removed()]
    again = [
        f"ems rerun {with_some[-1]} {which}"
        for state, which in ((State.FAILED, "--failed"), (State.UNKNOWN, "--missing"))
        if (with_some := [exp_id for exp_id in left if counts[exp_id].get(state)])
    ]
    render.note("", " · ".join(["next: ems harvest", *(again or ["ems report"])]))


@command(LOOK, "ems list", "ems list --tag paper --json", name="list")
def list_(
    tag: Annotated[
        str | None, typer.Option("--tag", metavar="TAG", help="Only those with this tag.", show_default=False)
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """List the experiments of this project, oldest first."""
    from ems.cli import render
    from ems.cli.session import open_session

    with open_session() as session:
        trouble = _refresh(session, session.unfinished())
        found = [each for each in session.store.experiments() if tag is None or tag in each.tags]
        counts, removed = session.store.counts([each.id for each in found]), session.store.removed()
    if as_json:
        render.note(*trouble)
        render.print_json([_listed(each, counts[each.id], removed.get(each.id)) for each in found])
        return
    titles = ("experiment", "name", "created", "on", "runs", "states", "tags", "message")
    columns = [
        render.Column(
            title, right=title == "runs", keep=title in ("experiment", "name"), cut=title in ("name", "message")
        )
        for title in titles
    ]
    rows = [
        [
            each.id,
            each.name,
            render.ago(each.created_at),
            each.target,
            f"{each.n_runs:,}",
            render.state_words(counts[each.id]) + (", files removed" if each.id in removed else ""),
            ",".join(each.tags),
            render.clean(each.message or ""),
        ]
        for each in found
    ]
    render.print_table(columns, rows)
    render.note(*trouble)


def _listed(experiment: Experiment, counts: dict[State, int], removed_at: str | None) -> dict[str, Json]:
    names = ("name", "created_at", "target", "script", "message", "snapshot")
    return {
        "experiment": experiment.id,
        **{name: getattr(experiment, name) for name in names},
        "runs": experiment.n_runs,
        "states": {str(state): n for state, n in counts.items()},
        "tags": list(experiment.tags),
        "removed_at": removed_at,
    }
