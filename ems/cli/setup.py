"""``ems config`` and ``ems doctor``: what is set, and what is missing."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import typer

from ems.cli import options as o
from ems.cli.app import SETUP, command


@command(SETUP, "ems config", "ems config --on slurm --json")
def config(on: o.On = None, as_json: o.AsJson = False) -> None:
    """Show each setting with where it came from."""
    from ems import config as settings_
    from ems.cli import render

    project = project_here()
    settings = settings_.load(project, on=on)
    rows = list(settings.items())
    if as_json:
        render.print_json({key: {"value": value, "origin": origin} for key, value, origin in rows})
        return
    columns = [render.Column("setting", keep=True), render.Column("value", cut=True), render.Column("from")]
    shown = [
        [key, render.ABSENT if value in (None, ()) else render.value_text(value), origin] for key, value, origin in rows
    ]
    render.print_table(columns, shown)
    render.note("", f"files: {project / settings_.PROJECT_FILE} · {settings_.user_path()}")


@command(SETUP, "ems doctor", "ems doctor --on slurm")
def doctor(on: o.On = None, as_json: o.AsJson = False) -> None:
    """Say what is missing on this machine, and how to mend it."""
    from ems import config as settings_
    from ems import target
    from ems.cli import render

    project = project_here()
    settings = settings_.load(project, on=on)
    chosen = target.resolve(on, settings, project)
    with closing(chosen):
        checks = chosen.executor.doctor()
    if as_json:
        fields = ("name", "ok", "message", "hint")
        render.print_json([{field: getattr(check, field) for field in fields} for check in checks])
    else:
        root = chosen.root if chosen.remote is None else chosen.remote.agent.target.root
        render.say(f"on {chosen.name}, root {root}")
        columns = [render.Column("check", keep=True), render.Column("", keep=True), render.Column("found", cut=True)]
        marks = {True: "ok", False: "missing"}
        rows = [[check.name, marks[check.ok], check.message] for check in checks]
        render.print_table(columns, rows, paged=False)
        hints = [f"{check.name}: {check.hint}" for check in checks if check.hint]
        if hints:
            render.say("", *hints)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def project_here() -> Path:
    """Return the project that the working directory belongs to."""
    from ems import snapshot, store

    path = store.find(Path.cwd())
    return path.parent.parent if path.exists() else snapshot.project_root(Path.cwd())
