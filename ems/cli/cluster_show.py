"""``ems cluster list``, ``show`` and ``schema``: what there is, and what a definition means."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli import options as o
from ems.cli.cluster import DEFINE, LOOK, Name, command

if TYPE_CHECKING:
    from ems.cluster.catalog import Entry
    from ems.cluster.definition import Definition

CONNECTED = "connected"


@dataclass(frozen=True, slots=True)
class Row:
    """A cluster that could be, or is.

    Attributes
    ----------
    origin
        Where its definition is from: ``project``, ``user``, ``ems``; None where there is none.
    state
        ``making``, ``ready``, ``paused``, ``stopping``, ``connected``; None: it is not there.
    """

    name: str
    origin: str | None
    path: str | None
    provider: str | None
    nodes: dict[str, int]
    state: str | None
    is_current: bool
    description: str
    error: str | None = None


@command(LOOK, "ems cluster list", "ems cluster list --json", name="list")
def list_(as_json: o.AsJson = False) -> None:
    """List definitions, and the clusters that are there."""
    from ems.cli import render

    rows = _rows()
    if as_json:
        render.print_json([asdict(row) for row in rows])
        return
    columns = [render.Column("cluster", keep=True), render.Column("state", keep=True), render.Column("nodes")]
    columns += [render.Column("provider"), render.Column("defined in"), render.Column("", cut=True)]
    render.print_table(columns, [_cells(row) for row in rows], paged=False)
    there = next((row for row in rows if row.state), None)
    if there is None:
        render.note("", f"next: ems cluster start {_startable(rows)}")
    else:
        looks = "ems doctor --on" if there.state == "connected" else "ems cluster status"
        render.note("", f"next: {looks} {there.name}")


def _rows() -> list[Row]:
    from ems import registry
    from ems.cli.setup import project_here
    from ems.cluster import catalog, record

    project, current = project_here(), registry.current()
    defined = {entry.name: entry for entry in catalog.entries(project)}
    names = {*defined, *registry.names(), *record.names()}
    return [_row_of(defined.get(name), name, current) for name in sorted(names)]


def _row_of(entry: Entry | None, name: str, current: str | None) -> Row:
    """Join what the definition says with what this machine remembers of the cluster."""
    from ems.errors import EmsError

    error = definition = state = None
    nodes: dict[str, int] = {}
    try:
        definition = entry.read() if entry else None
        nodes = {kind: spec.count for kind, spec in definition.nodes.items()} if definition else {}
        state, wanted = _remembered(name)
        nodes = wanted or nodes
    except EmsError as caught:
        error = caught.message
    return Row(
        name,
        entry.origin if entry else None,
        str(entry.path) if entry else None,
        definition.provider.kind if definition else None,
        nodes,
        state,
        name == current,
        definition.description if definition else "",
        error,
    )


def _remembered(name: str) -> tuple[str | None, dict[str, int]]:
    """Return state and number of nodes by kind of a cluster that is there."""
    from ems import registry
    from ems.cluster.definition import node_number
    from ems.cluster.record import Files

    record = Files(name).load()
    if record is None:
        return (CONNECTED if registry.load(name) else None), {}
    nodes: dict[str, int] = {}
    for node in record.wanted:
        kind, _ = node_number(name, node) or ("", 0)
        nodes[kind] = nodes.get(kind, 0) + 1
    return str(record.phase), nodes


def _cells(row: Row) -> list[str]:
    from ems.cli import render

    state = row.state or render.ABSENT
    return [
        row.name,
        f"{state}, current" if row.is_current else state,
        ", ".join(f"{count} {kind}" for kind, count in row.nodes.items()) or render.ABSENT,
        row.provider or render.ABSENT,
        row.origin or render.ABSENT,
        row.error or row.description,
    ]


def _startable(rows: list[Row]) -> str:
    return next((row.name for row in rows if not row.error and not row.state), "local")


@command(DEFINE, "ems cluster show local", "ems cluster show local > cluster/mine.yaml")
def show(name: Name, as_json: o.AsJson = False) -> None:
    """Show a definition with everything that its file leaves open."""
    import yaml

    from ems.cli import render

    definition, origin, notes = _definition(name)
    if as_json:
        resolved = definition.model_dump(mode="json")
        render.print_json({"definition": resolved, "digest": definition.digest, "from": origin})
        return
    content = definition.model_dump(mode="json", exclude={"name"}, exclude_none=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    typer.echo(text, nl=False)
    render.note("", f"from {origin}", *notes)


def _definition(name: str) -> tuple[Definition, str, list[str]]:
    """Return a definition, where it is from, and what is to be said of it: of a cluster that is there, its own."""
    from ems.cli.setup import project_here
    from ems.cluster import catalog
    from ems.cluster.definition import Definition
    from ems.cluster.record import Files
    from ems.errors import NotFoundError

    record = Files(name).load()
    try:
        entry = catalog.find(name, project_here())
    except NotFoundError:
        if record is None:
            raise
        return Definition.model_validate(record.definition), "the record of the cluster", []
    definition = entry.read()
    if record is not None and record.digest != definition.digest:
        return definition, str(entry.path), ["the cluster that is there was made by another version of it"]
    return definition, str(entry.path), []


@command(DEFINE, "ems cluster schema", "ems cluster schema --write")
def schema(
    write: Annotated[
        bool, typer.Option("--write", help="Write it to the project's cluster/schema.json, for your editor.")
    ] = False,
) -> None:
    """Print the JSON schema of definitions."""
    from ems.cli import render
    from ems.cli.setup import project_here
    from ems.cluster import catalog

    if not write:
        typer.echo(catalog.schema(), nl=False)
        return
    path = project_here() / catalog.FOLDER / catalog.SCHEMA_FILE
    path.parent.mkdir(exist_ok=True)
    path.write_text(catalog.schema())
    render.say(f"wrote {path}")
    render.note(f"first line of a definition: # yaml-language-server: $schema={catalog.SCHEMA_FILE}")
