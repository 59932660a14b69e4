"""``ems cluster status``, ``ssh``, ``put``, ``get``, ``logs``, ``export``, ``import``."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli import options as o
from ems.cli.cluster import LOOK, REACH, Name, command
from ems.errors import ConnectionFailedError, TargetError, UsageError

if TYPE_CHECKING:
    from ems.cluster.definition import Definition
    from ems.cluster.fleet import Fleet
    from ems.cluster.overview import KindView, NodeView, Overview
    from ems.ssh import Host

OptionalName = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="Default: the current cluster.", show_default=False)
]
On = Annotated[
    str | None,
    typer.Option("--on", metavar="NAME", help="Which cluster; default: the current one.", show_default=False),
]

_NOTES = 3  # of what its service did last


@command(LOOK, "ems cluster status", "ems cluster status local --json", "ems cluster status local --adopt")
def status(
    name: OptionalName = None,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Rebuild what this machine knows of it, from its labels alone.")
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Show machines, nodes, queue, uptime and cost."""
    from ems.cli import render
    from ems.cli.cluster_gc import remind
    from ems.cluster import overview

    fleet = _adopted(name) if adopt else _fleet(name)
    found = overview.look(fleet)
    if as_json:
        render.print_json({**dataclasses.asdict(found), "cost": found.cost})
        return
    render.say(_headline(found), "")
    columns = [
        render.Column("node", keep=True),
        *(render.Column(title) for title in ("kind", "machine", "slurm", "partitions", "gres")),
        render.Column("jobs", right=True),
        render.Column("note", cut=True),
    ]
    render.print_table(columns, [_row(each) for each in found.nodes], paged=False)
    if found.kinds:
        render.say("")
        titles = ("kind", "machines", "stay", "at most", "made")
        numbers = [render.Column(each, right=each not in ("kind", "made"), keep=each == "kind") for each in titles]
        render.print_table(numbers, [_kind_row(each) for each in found.kinds], paged=False)
        shut = [each for each in found.kinds if each.shut]
        render.say(*(f"no {each.kind} until {each.until[11:16]} UTC: {each.shut}" for each in shut))
        if shut:
            render.note(f"`ems cluster setup {found.name}` has it tried again at once")
    queue = ", ".join(f"{count:,} {state.lower()}" for state, count in sorted(found.jobs.items())) or "empty"
    render.say("", f"queue: not known, {found.trouble}" if found.trouble else f"queue: {queue}")
    render.say(
        *_rest_lines(found, fleet.definition), *(f"{at[11:16]} UTC: {said}" for at, said in found.notes[:_NOTES])
    )
    if found.stalled:
        render.note(f"{found.stalled}: ems cluster setup {found.name}")
    remind(fleet.definition)
    late = [each.name for each in found.nodes if each.is_late]
    if late:
        others = f" (and of {len(late) - 1} more)" if len(late) > 1 else ""
        render.note(f"`ems cluster logs {found.name} {late[0]}` tells why {late[0]} does not come{others}")
    lost = [] if found.kinds else [each.name for each in found.nodes if each.machine == "gone"]
    if lost:
        render.note(f"next: `ems cluster start {found.name}` makes {', '.join(lost)} anew")


def _rest_lines(found: Overview, definition: Definition) -> list[str]:
    """Say since when nobody has used a cluster, and what it does about that."""
    if found.idle_since is None or definition.idle is None:
        return []
    spec = definition.idle
    return [f"nobody has used it since {found.idle_since[11:16]} UTC: after {spec.after_min:g} min it is to {spec.do}"]


def _headline(found: Overview) -> str:
    from ems.cli import render

    price, cost = found.price_per_hour, found.cost
    if price is None or cost is None:
        costs = "price unknown"
    else:
        costs = "free of charge" if not price else f"{price:.2f} an hour, about {cost:.2f} so far"
    return f"{found.name}  {found.phase}   up {render.duration(found.uptime_s)}   {costs}   made by {found.owner}"


def _row(node: NodeView) -> list[str]:
    jobs = f"{node.jobs:,}" if node.jobs else ""
    return [node.name, node.kind, node.machine, node.slurm, ",".join(node.partitions), node.gres, jobs, node.note]


def _kind_row(kind: KindView) -> list[str]:
    made = f"not until {kind.until[11:16]} UTC" if kind.shut else "as needed" if kind.most > kind.floor else ""
    return [kind.kind, f"{kind.up:,}", f"{kind.floor:,}", f"{kind.most:,}", made]


def _adopted(name: str | None) -> Fleet:
    from ems.cli.board import board
    from ems.cli.setup import project_here
    from ems.cluster import catalog, handover
    from ems.cluster.record import Files

    if name is None:
        raise UsageError("which cluster?", "ems cluster status NAME --adopt")
    definition = catalog.load(name, project_here())
    with Files(name).locked(), board() as report:
        return handover.adopt(name, definition, report)


def _fleet(name: str | None) -> Fleet:
    """Return a cluster, or the current one.

    Raises
    ------
    TargetError
        If none is named and none is current.
    """
    from ems.cluster.fleet import known

    return known(_chosen(name))


def _host(name: str | None) -> Host:
    """Return the controller of a cluster or, of one that was connected, its login node."""
    from ems import registry
    from ems.cluster.fleet import known

    target = registry.load(_chosen(name))
    return target.host if target is not None and target.cluster is None else known(_chosen(name)).host()


def _chosen(name: str | None) -> str:
    from ems import registry

    chosen = name or registry.current()
    if chosen is None:
        raise TargetError("no cluster is current", "name one, or choose it: ems cluster use NAME")
    return chosen


@command(
    REACH,
    "ems cluster ssh",
    "ems cluster ssh gpu-001",
    "ems cluster ssh -- squeue --me",
    "ems cluster ssh -- sh -c 'cd data; ls | wc -l'",
)
def ssh(
    ctx: typer.Context,
    node: Annotated[
        str | None, typer.Argument(metavar="[NODE]", help="Default: the controller.", show_default=False)
    ] = None,
    on: On = None,
) -> None:
    """Log in, or run the command that follows `--`.

    Each of its words arrives there as it is; `;`, `|`, `*` and `$` mean something only in a line for `sh -c`.
    """
    host = _host(on) if node is None else _fleet(on).node_host(node)
    words = list(ctx.obj["script_args"])
    argv = host.argv(words, tty=bool(words) and os.isatty(0) and os.isatty(1))
    os.execvp(argv[0], argv)  # noqa: S606 - the user's own login, without a shell


@command(REACH, "ems cluster put data.csv", "ems cluster put model/ /home/ems/models/")
def put(
    paths: Annotated[list[str], typer.Argument(metavar="PATH... [DEST]", help="What to send; then where to.")],
    on: On = None,
) -> None:
    """Copy files to the cluster's share by rsync; default: the login user's home."""
    host = _host(on)
    *sources, dest = paths if len(paths) > 1 else [*paths, ""]
    for source in sources:
        if not Path(source).exists():
            raise UsageError(f"there is no {source}", "check the path: it is relative to where you are")
    _rsync(host, [_local(each) for each in sources], _remote(host, dest))


@command(REACH, "ems cluster get results.csv", "ems cluster get models/best.pt .")
def get(
    paths: Annotated[list[str], typer.Argument(metavar="PATH... [DEST]", help="What to fetch; then where to.")],
    on: On = None,
) -> None:
    """Copy files from the cluster's share by rsync; default: to here."""
    host = _host(on)
    *sources, dest = paths if len(paths) > 1 else [*paths, "."]
    _rsync(host, [_remote(host, each) for each in sources], _local(dest))


def _local(path: str) -> str:
    """Return a path that rsync takes for one on this machine, whatever colons and dashes are in it."""
    return path if path.startswith("/") else f"./{path}"


def _remote(host: Host, path: str) -> str:
    return f"{host.destination}:{path if path.startswith('/') else f'./{path}'}"


def _rsync(host: Host, sources: list[str], dest: str) -> None:
    # --protect-args: names reach the other side as they are, never through a shell
    words = ["rsync", "-a", "--partial", "--protect-args", "--info=progress2" if os.isatty(2) else "--info=stats0"]
    try:
        done = subprocess.run([*words, "-e", host.remote_shell(), "--", *sources, dest], check=False)
    except FileNotFoundError:
        raise ConnectionFailedError("there is no rsync on this machine", "install rsync") from None
    if done.returncode:
        raise ConnectionFailedError(f"rsync ended with status {done.returncode}", "see what it said above")


@command(LOOK, "ems cluster logs local", "ems cluster logs local gpu-001", "ems cluster logs local -n 200")
def logs(
    name: Name,
    node: Annotated[
        str | None, typer.Argument(metavar="[NODE]", help="Default: the controller.", show_default=False)
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Of each log.")] = 50,
) -> None:
    """Show the ends of what slurmctld or slurmd, cloud-init, and what of ems works there, wrote."""
    from ems.cli import render
    from ems.cluster import logs as library

    for title, text in library.tails(_fleet(name), node, lines):
        render.say(f"--- {title}", *text.splitlines())


@command(REACH, "ems cluster export local local.ems")
def export(name: Name, file: Annotated[Path, typer.Argument(metavar="FILE", help="It must not be there yet.")]) -> None:
    """Write what another laptop needs to command a cluster, its keys among it, to a file."""
    from ems.cli import render
    from ems.cluster import handover

    handover.export(name, file)
    render.say(f"{file} holds the keys of {name}: whoever reads it commands the cluster")
    render.note(f"next, on the other machine: ems cluster import {file}")


@command(REACH, "ems cluster import local.ems", name="import")
def import_(file: Annotated[Path, typer.Argument(metavar="FILE", help="What `export` wrote.")]) -> None:
    """Take over a cluster that another laptop has exported."""
    from ems.cli import render
    from ems.cluster import handover

    fleet = handover.take(file)
    render.say(f"{fleet.name} is known here now")
    render.note(f"next: ems cluster status {fleet.name}")
