"""``ems data …``: data sets for runs, copied to where they run once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated

import typer

from ems.cli import options as o
from ems.cli.app import SUBMIT, group
from ems.errors import UsageError

SECTIONS = ("Data sets",)

command = group(
    SUBMIT,
    "data",
    "Copy data sets to where runs find them, in $EMS_DATA.",
    SECTIONS,
    "ems data push data/mnist mnist --on uni",
)


@command(SECTIONS[0], "ems data push data/mnist mnist", "ems data push ~/imagenet imagenet --on uni")
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder.", show_default=False)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Runs find it as $EMS_DATA/NAME.", show_default=False)],
    on: o.On = None,
    as_json: o.AsJson = False,
) -> None:
    """Copy a folder to a target, once: only what is not there travels.

    Experiments go on with the content that the name had when they were submitted.
    """
    from contextlib import closing

    from ems import config, dataset, target
    from ems.cli import render
    from ems.cli.setup import project_here

    dataset.check_name(name)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", "name the folder that holds the data set")
    project = project_here()
    with closing(target.resolve(on, config.load(project, on=on), project)) as chosen, render.progress(10) as show:
        content = dataset.digest(folder, _cache(folder), lambda done: show(f"reading {folder}: {render.size(done)}"))
        is_new = chosen.push_data(folder, content, name, lambda words: show(f"sending {folder}: {words}"))
    if as_json:
        render.print_json({"name": name, "hash": content, "target": chosen.name, "sent": is_new})
        return
    done = "copied to" if is_new else "already on"
    render.say(f"{folder} is {done} {chosen.name} as {name} ({content[:8]})")
    render.note(f"runs that are submitted from now on find it in $EMS_DATA/{name}")


@command(SECTIONS[0], "ems data list --on uni", name="list")
def list_(on: o.On = None, as_json: o.AsJson = False) -> None:
    """List the data sets of a target."""
    from contextlib import closing

    from ems import config, target
    from ems.cli import render
    from ems.cli.setup import project_here

    project = project_here()
    with closing(target.resolve(on, config.load(project, on=on), project)) as chosen:
        found = chosen.datasets()
    if as_json:
        render.print_json([{"name": name, "hash": content} for name, content in found.items()])
        return
    rows = [[name, content[:8]] for name, content in found.items()]
    render.print_table([render.Column("data set", keep=True), render.Column("content")], rows)


def _cache(folder: Path) -> Path:
    """Return where the hashes of a folder's files are remembered."""
    from ems import registry

    seen = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=8).hexdigest()
    return registry.state_dir() / "data" / f"{seen}.json"
