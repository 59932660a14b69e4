"""``ems rerun`` and ``ems reproduce``: runs once more."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ems.cli import options as o
from ems.cli.app import AGAIN, command
from ems.errors import UsageError

if TYPE_CHECKING:
    from ems.cli.session import Session
    from ems.model import Experiment
    from ems.rerun import Difference


@command(AGAIN, "ems rerun last --failed --mem 32G", "ems rerun last/3", "ems rerun last --missing")
def rerun(
    addresses: Annotated[
        list[str],
        typer.Argument(
            metavar="EXP[/INDEX]...", help="An experiment, or runs of one: last, last/3.", show_default=False
        ),
    ],
    failed: Annotated[bool, typer.Option("--failed", help="The runs that failed or were cancelled.")] = False,
    missing: Annotated[
        bool, typer.Option("--missing", help="The runs that never started and are in no queue.")
    ] = False,
    all_: Annotated[bool, typer.Option("--all", help="Every run.")] = False,
    fresh: Annotated[
        bool | None,
        typer.Option("--fresh/--resume", help="Start from nothing, or from the checkpoint.", show_default=False),
    ] = None,
    gres: o.Gres = None,
    gpus: o.Gpus = None,
    cpus: o.Cpus = None,
    mem: o.Mem = None,
    time_: o.Time = None,
    partition: o.Partition = None,
    account: o.Account = None,
    qos: o.Qos = None,
    constraint: o.Constraint = None,
    nodes: o.Nodes = None,
    exclude: o.Exclude = None,
    alloc: o.Alloc = None,
    budget: o.Budget = None,
    wait: o.Wait = False,
    as_json: o.AsJson = False,
) -> None:
    """Run again from the same code, as the next attempt.

    Earlier attempts are kept. What failed goes on from its checkpoint unless --fresh is given; what completed starts
    from nothing. They keep to what is left of the experiment's budget, or to one of their own by --budget.
    """
    from ems import rerun as library
    from ems.cli import budget as money
    from ems.cli import render, submit, waiting
    from ems.cli.session import open_session
    from ems.model import Resources

    started = time.monotonic()
    resources = Resources(gres, gpus, cpus, mem, time_, partition, account, qos, constraint, nodes, exclude, alloc)
    with open_session() as session:
        experiment, indices = _runs(session, addresses)
        session.check_kept(experiment)
        which = _which(addresses[0], indices, failed=failed, missing=missing, every=all_)
        target = session.target(experiment.target)
        done = library.rerun(
            session.store,
            target,
            experiment,
            which,
            resources=resources,
            fresh=fresh,
            amounts=money.read(budget),
            price=lambda asked: money.price_on(target, asked),
        )
        if as_json:
            facts = submit.describe_submission(done.submission)
            render.print_json({"experiment": experiment.id, "runs": list(done.indices), **facts})
        else:
            runs = render.plural(len(done.indices), "run")
            render.say(f"experiment {experiment.id}  {experiment.name}  {runs} again   on {target.name}")
            render.say(submit.submitted_line(target, done.submission, time.monotonic() - started))
        if wait:
            waiting.until_finished(session, experiment, quiet=as_json)
        elif not as_json:
            render.note(f"next: ems status {experiment.id} · ems harvest {experiment.id}")


def _runs(session: Session, addresses: list[str]) -> tuple[Experiment, list[int]]:
    """Return the one experiment that is named, and the runs that are named of it (none: all of it is meant)."""
    found = [session.address(address) for address in addresses]
    experiment = found[0][0]
    other = next((each for each, _ in found if each.id != experiment.id), None)
    if other is not None:
        raise UsageError(f"{addresses[0]} and {other.id} are of two experiments", "rerun one experiment at a time")
    indices = [address.index for _, address in found if address.index is not None]
    if indices and len(indices) < len(found):
        raise UsageError(f"{experiment.id} is named as a whole and by its runs", "name it as a whole, or runs of it")
    return experiment, indices


def _which(address: str, indices: list[int], *, failed: bool, missing: bool, every: bool) -> str | list[int]:
    chosen = [word for word, on in (("failed", failed), ("missing", missing), ("all", every)) if on]
    if indices:
        if chosen:
            raise UsageError(f"`{address}` says which run already", f"leave --{chosen[0]} out")
        return indices
    if len(chosen) != 1:
        both = " and ".join(f"--{word}" for word in chosen)
        raise UsageError(
            f"{both} exclude each other" if both else "which runs?",
            f"ems rerun {address} --failed, --missing or --all; or name one: ems rerun {address}/0",
        )
    return chosen[0]


@command(AGAIN, "ems reproduce last/3")
def reproduce(run: o.RunAddress, as_json: o.AsJson = False) -> None:
    """Run once more as a new experiment, and compare.

    Same code, params and seed; then says whether the metrics are equal, or by how much they are not.
    """
    from ems import rerun as library
    from ems.cli import render, submit, waiting
    from ems.cli.session import open_session

    started = time.monotonic()
    with open_session() as session:
        original, index, _ = session.run(run)
        target = session.target(original.target)
        again, done = library.reproduce(session.store, target, original, index)
        if not as_json:
            render.say(f"experiment {again.id}  {again.name}  1 run = {original.id}/{index} again   on {target.name}")
            render.say(submit.submitted_line(target, done, time.monotonic() - started))
        session.harvest([original])
        waiting.until_finished(session, again, quiet=as_json, says_next=False)
        differences = library.compare(session.store, (original.id, index), (again.id, 0))
    if as_json:
        render.print_json(
            {"original": f"{original.id}/{index}", "reproduced": f"{again.id}/0", "metrics": _json(differences)}
        )
    else:
        _say(differences, f"{original.id}/{index}", f"{again.id}/0")
    if not differences or any(each.largest for each in differences):
        raise typer.Exit(1)


def _json(differences: list[Difference]) -> list[dict[str, Any]]:
    fields = ("metric", "original", "reproduced", "n_points", "largest")
    return [{field: getattr(each, field) for field in fields} for each in differences]


def _say(differences: list[Difference], original: str, reproduced: str) -> None:
    from ems.cli import render

    if not differences:
        render.say(f"{reproduced} completed, but neither it nor {original} has a metric to compare")
        return
    unequal = [each for each in differences if each.largest]
    points = sum(each.n_points for each in differences)
    if not unequal:
        names = ", ".join(each.metric for each in differences)
        render.say(
            f"{reproduced} equals {original}: {render.plural(points, 'point')} of {names} are the same to the last bit"
        )
        return
    render.say(
        f"{reproduced} differs from {original} in {len(unequal)} of {render.plural(len(differences), 'metric')}:"
    )
    columns = [
        render.Column("metric", keep=True),
        *(render.Column(title, right=True) for title in ("original", "reproduced", "points", "largest difference")),
    ]
    rows = [
        [
            each.metric,
            render.number(each.original, 8),
            render.number(each.reproduced, 8),
            f"{each.n_points:,}",
            render.number(each.largest, 3) if each.largest else "equal",
        ]
        for each in differences
    ]
    render.print_table(columns, rows, paged=False)
    render.note(
        "next: sources of chance that ems cannot seed: threads, GPU kernels, unseeded generators (use ems.seed())"
    )
