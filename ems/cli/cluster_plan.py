"""``ems cluster plan`` and ``ems cluster check``: what would be made, what it would cost, and whether it can be had."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli import options as o
from ems.cli.cluster import LIFE, Name, command
from ems.errors import ClusterError

if TYPE_CHECKING:
    from ems.cluster.forecast import Forecast, Line
    from ems.cluster.provider.base import Finding

Nodes = Annotated[
    str | None,
    typer.Option("--nodes", metavar="N|KIND=N,...", help="How many nodes, of the first kind or of each kind."),
]


@command(LIFE, "ems cluster plan gce", "ems cluster plan gce --nodes 8")
def plan(name: Name, nodes: Nodes = None, as_json: o.AsJson = False) -> None:
    """Show what would be made, what it costs an hour, and the quota; make nothing.

    Prices are without disks, addresses, traffic and taxes. One that nobody knows is said to be unknown; `prices:` in
    the definition tells it.
    """
    from ems.cli import render
    from ems.cli.cluster_life import definition_of, parse_counts
    from ems.cluster import forecast

    definition = definition_of(name)
    counts = parse_counts(nodes, list(definition.nodes))
    found = forecast.forecast(definition, counts)
    if not as_json:
        _show(found)
    findings = forecast.inspect(definition, counts)
    if as_json:
        listed = [dataclasses.asdict(each) for each in findings]
        render.print_json({**dataclasses.asdict(found), "findings": listed})
        return
    for each in findings:
        if not each.is_good or each.subject in {"quota", forecast.LIMITS}:
            render.note(f"{each.subject}: {each.said}")
    if not all(each.is_good for each in findings):
        render.note(f"it cannot be made so: ems cluster check {name} says what helps")
    else:
        render.note(f"next: ems cluster start {name}")


@command(LIFE, "ems cluster check gce")
def check(name: Name, nodes: Nodes = None, as_json: o.AsJson = False) -> None:
    """Look at credentials, permissions, quota, image, sizes and zones; make nothing.

    `start` does the same before it makes anything.
    """
    from ems.cli import render
    from ems.cli.cluster_life import definition_of, parse_counts
    from ems.cluster import forecast

    definition = definition_of(name)
    findings = forecast.inspect(definition, parse_counts(nodes, list(definition.nodes)))
    if as_json:
        render.print_json([dataclasses.asdict(each) for each in findings])
    else:
        columns = [render.Column(title, keep=True) for title in ("", "what", "found")]  # a long one wraps
        render.print_table(columns, [_cells(each) for each in findings], paged=False)
    bad = [each for each in findings if not each.is_good]
    if bad:
        raise ClusterError(f"{name} cannot be made: {bad[0].said}", bad[0].hint)
    if not as_json:
        render.note(f"next: ems cluster start {name}")


def _cells(finding: Finding) -> list[str]:
    return ["good" if finding.is_good else "bad", finding.subject, finding.said]


def _show(found: Forecast) -> None:
    from ems.cli import render

    render.say(f"{found.name}   {found.image} by {found.provider}")
    titles = ("kind", "machines", "size", "GPUs each", "$/h each", "$/h")
    numbers = {"machines", "$/h each", "$/h"}
    columns = [render.Column(title, right=title in numbers) for title in titles]
    render.print_table(columns, [_row(each) for each in found.lines], paged=False)
    if found.price_per_hour is None:
        render.say("price: unknown; say `prices: {SIZE: DOLLARS_AN_HOUR}` in the definition")
    elif not found.price_per_hour:
        render.say("free of charge")
    else:
        of_gpu = f", ${found.price_per_gpu_hour:.2f} a GPU-hour" if found.price_per_gpu_hour is not None else ""
        up_to = f" to ${found.most_per_hour:.2f}" if found.most_per_hour != found.price_per_hour else ""
        render.say(f"about ${found.price_per_hour:.2f}{up_to} an hour{of_gpu}   prices: {found.prices}")


def _row(line: Line) -> list[str]:
    kind = f"{line.kind} (spot)" if line.spot else line.kind
    gpus = f"{line.gpus} {line.gpu_type}".strip() if line.gpus else ""
    each = line.price_per_hour
    numbers = list(dict.fromkeys((line.count, line.most)))
    costs = ["unknown"] * 2 if each is None else [f"{each:.3f}", " to ".join(f"{each * n:.3f}" for n in numbers)]
    return [kind, " to ".join(f"{n:,}" for n in numbers), " or ".join(line.sizes), gpus, *costs]
