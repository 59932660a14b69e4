"""``ems cluster connect``, ``use``, ``upgrade``, ``forget``: clusters that exist already."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli import options as o
from ems.cli.cluster import CONNECT, Name, command

if TYPE_CHECKING:
    from ems.cluster.connect import Connected, Partition

Login = Annotated[
    str,
    typer.Argument(
        metavar="USER@LOGIN",
        help="Its login node, as ssh takes it.",
        show_default=False,
    ),
]


@command(
    CONNECT,
    "ems cluster connect uni me@login.example.org",
    "ems cluster connect uni me@login --ssh-option ProxyJump=me@gate",
    "ems cluster connect uni me@login --root '$SCRATCH/ems' --python /sw/python/3.12/bin/python3",
)
def connect(
    name: Name,
    login: Login,
    root: Annotated[
        str | None,
        typer.Option("--root", metavar="FOLDER", help="Where everything goes there; nodes must see it (~/ems)."),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option("--python", metavar="PATH", help="The Python there that ems gets; default: one is looked for."),
    ] = None,
    ssh_option: Annotated[
        list[str] | None,
        typer.Option("--ssh-option", metavar="KEY=VALUE", help="What `ssh -o` takes; may be repeated."),
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Use a cluster that exists: install ems there over SSH, and ask its SLURM what it has.

    Needs no root rights there. What ssh asks (a password, a one-time code) it asks once: all that follows uses the same
    connection. Experiments then go there; repeat it to ask anew.
    """
    from ems import registry
    from ems.cli import render
    from ems.cluster import connect as connecting

    host = connecting.host_of(login, tuple(ssh_option or ()))
    with render.progress() as report:
        done = connecting.connect(name, host, report, root=root or connecting.DEFAULT_ROOT, python=python)
    registry.use(name)
    if as_json:
        partitions = [asdict(each) for each in done.partitions]
        facts = {"version": _version(done), "partitions": partitions, "checks": [asdict(each) for each in done.checks]}
        render.print_json({"name": name, "executor": done.target.executor, "root": done.target.root, **facts})
    else:
        _say(done)
    missing = [check for check in done.checks if not check.ok]
    for check in missing:
        render.note(f"{check.name}: {check.message}", f"hint: {check.hint}" if check.hint else "")
    if missing:
        raise typer.Exit(1)
    render.note(f"next: ems parrun SCRIPT · ems doctor --on {name} · ems cluster use here")


def _say(done: Connected) -> None:
    from ems.cli import render
    from ems.version import __version__

    target = done.target
    what = f"SLURM {_version(done)}" if target.executor == "slurm" else "no SLURM: runs share its own cores"
    render.say(f"{target.name}   {target.host.destination}   {what}   ems {__version__} in {target.root}")
    if done.partitions:
        columns = [render.Column("partition", keep=True), render.Column("nodes", right=True)]
        columns += [render.Column("cpus", right=True), render.Column("mem", right=True), render.Column("gres")]
        columns += [render.Column("time limit"), render.Column("", cut=True)]
        render.say("")
        render.print_table(columns, [_row(each) for each in done.partitions], paged=False)
    limits = done.target.facts.get("limits")
    if done.partitions and isinstance(limits, dict):
        most = f"; at most {limits['max_submit']:,} queued" if limits.get("max_submit") else ""
        render.say("", f"arrays of up to {limits['max_array_size']:,} runs{most}")


def _row(partition: Partition) -> list[str]:
    from ems.cli import render

    notes = ["default"] if partition.is_default else []
    notes += [] if partition.is_up else ["down"]
    return [
        partition.name,
        f"{partition.nodes:,}",
        f"{partition.cpus:,}",
        render.size(partition.mem_mb * 2**20),
        ", ".join(partition.gres) or render.ABSENT,
        partition.time,
        ", ".join(notes),
    ]


def _version(done: Connected) -> str | None:
    slurm = done.target.facts.get("slurm")
    return str(slurm["version"]) if isinstance(slurm, dict) else None


@command(CONNECT, "ems cluster use uni", "ems cluster use here")
def use(name: Name) -> None:
    """Choose where experiments go unless --on or ems.yaml says; `here`: this machine."""
    from ems import registry
    from ems.cli import render

    registry.use(None if name == "here" else name)
    render.say(f"experiments go to {name}" if name != "here" else "experiments stay on this machine")


@command(CONNECT, "ems cluster upgrade uni")
def upgrade(name: Name) -> None:
    """Bring this ems to a cluster, where that one is of another version."""
    from ems.cli import render
    from ems.cluster import connect as connecting
    from ems.version import __version__

    with render.progress() as report:
        connecting.upgrade(name, report)
    render.say(f"{name} has ems {__version__}, as this machine has")


@command(CONNECT, "ems cluster forget uni")
def forget(name: Name) -> None:
    """Forget a connected cluster; what is there stays there."""
    from ems import registry
    from ems.cli import render
    from ems.cluster import connect as connecting

    was_current = registry.current() == name
    target = connecting.forget(name)
    render.say(f"{name} is forgotten" + ("; experiments stay on this machine" if was_current else ""))
    render.note(f"what is in {target.root} on {target.host.destination} stays there, ems in its folder venv among it")
