"""``ems cluster cost``: what the machines of a cluster have cost, by whom and what for."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli import options as o
from ems.cli.cluster import LOOK, command
from ems.cli.cluster_status import OptionalName
from ems.errors import EmsError, NotFoundError, TargetError

if TYPE_CHECKING:
    from ems.cluster.cost import Amount, By, Costs
    from ems.cluster.definition import Definition
    from ems.cluster.energy import Factors
    from ems.cluster.ledger import Span
    from ems.cluster.usage import Usage

GROUPS = ("kind", "day", "experiment", "user")


@command(LOOK, "ems cluster cost", "ems cluster cost gce --by experiment", "ems cluster cost gce --by day --json")
def cost(
    name: OptionalName = None,
    by: Annotated[
        str, typer.Option("--by", metavar="WHAT", help="kind (default), day, experiment or user.", show_default=False)
    ] = "kind",
    as_json: o.AsJson = False,
) -> None:
    """Show what a cluster has cost: dollars, GPU-hours, energy and CO2e.

    All clusters of that name that this machine has known, those that are gone too. Machines are counted from their
    start to their end, without disks, addresses, traffic and taxes; what no job used is `idle`.
    """
    from ems.cluster import cost as library
    from ems.cluster import energy

    group = library.By(_checked(by))
    chosen = _named(name)
    spans, usage, troubles = _gathered(chosen)
    factors = energy.factors(_definition(chosen))
    now = datetime.now(UTC)
    found: Costs = {}
    for incarnation, said in usage.items():
        own = [each for each in spans if each.start.id == incarnation]
        for key, amount in library.costs(own, said, factors, now).items():
            found[key] = found.get(key, library.Amount()) + amount
    if as_json:
        _print_json(chosen, spans, found, group, factors)
    else:
        _show(chosen, spans, found, group, factors)
    _say_troubles(group, usage, troubles)


def _checked(by: str) -> str:
    from ems.document import did_you_mean
    from ems.errors import UsageError

    if by not in GROUPS:
        raise UsageError(f"costs cannot be added up by `{by}`", did_you_mean(by, list(GROUPS), "it is one of"))
    return by


def _named(name: str | None) -> str:
    """Return the cluster that is meant: the current one or, where the ledger knows one only, that."""
    from ems import registry
    from ems.cluster import ledger

    known = ledger.names()
    chosen = name or registry.current() or (known[0] if len(known) == 1 else None)
    if chosen is None:
        raise TargetError("no cluster is current", "name one: ems cluster cost NAME")
    return chosen


def _gathered(name: str) -> tuple[list[Span], dict[str, Usage], list[str]]:
    """Return times, and what SLURM said of each incarnation, as of now where the cluster answers; and what did not.

    Raises
    ------
    NotFoundError
        If this machine has never known such a cluster.
    """
    from ems.cluster import ledger, usage
    from ems.cluster.fleet import known
    from ems.cluster.record import Files

    troubles = []
    with suppress(NotFoundError):
        fleet = known(name)
        try:
            with Files(name).locked():  # what a command is changing this moment it writes down itself
                ledger.observe(fleet)
        except EmsError as error:
            troubles.append(f"as of the last command: {error.message}")
        ledger.share(fleet)
        usage.keep(fleet)
    spans = ledger.spans(ledger.Ledger(name).events())
    if not spans:
        listed = ", ".join(ledger.names())
        raise NotFoundError(
            f"nothing is written down of what a cluster `{name}` has cost",
            f"there is a ledger of {listed}" if listed else "ems cluster start writes one",
        )
    return spans, {each.start.id: usage.load(name, each.start.id) for each in spans}, troubles


def _definition(name: str) -> Definition | None:
    from ems.cli.cluster_life import definition_of
    from ems.cluster.fleet import known

    try:
        return known(name).definition
    except EmsError:
        with suppress(EmsError):
            return definition_of(name)
    return None


def _print_json(name: str, spans: list[Span], found: Costs, by: By, factors: Factors) -> None:
    from ems.cli import render
    from ems.cluster import cost as library

    rows = [{str(by): word, **_facts(each, factors)} for word, each in library.grouped(found, by).items()]
    render.print_json(
        {
            "cluster": name,
            "since": spans[0].begin.isoformat(),
            "by": str(by),
            "rows": rows,
            "total": _facts(library.total(found.values()), factors),
            "factors": dataclasses.asdict(factors),
        }
    )


def _facts(amount: Amount, factors: Factors) -> dict[str, float | None]:
    co2e = None if amount.kwh is None else amount.kwh * factors.g_co2e_per_kwh / 1000
    return {**dataclasses.asdict(amount), "usd": amount.usd, "kwh": amount.kwh, "kg_co2e": co2e}


def _show(name: str, spans: list[Span], found: Costs, by: By, factors: Factors) -> None:
    from ems.cli import render
    from ems.cluster import cost as library

    whole = library.total(found.values())
    running = sum(each.end is None for each in spans)
    state = f"{render.plural(running, 'machine')} running" if running else "nothing runs"
    render.say(f"{name}   since {spans[0].begin.date()}   {state}   {_dollars(whole, sign='$')}", "")
    titles = ("node-hours", "GPU-hours", "$", "kWh", "kg CO2e")
    columns = [render.Column(str(by), keep=True), *(render.Column(title, right=True) for title in titles)]
    rows = [[word, *_cells(each, factors)] for word, each in library.grouped(found, by).items()]
    render.print_table(columns, [*rows, ["total", *_cells(whole, factors)]], paged=False)
    if whole.unpriced_hours:
        render.note("a price is unknown: say `prices: {SIZE: DOLLARS_AN_HOUR}` in the definition")
    render.note(*factors.sources, "at full load, without memory; `energy:` in the definition says it better")


def _cells(amount: Amount, factors: Factors) -> list[str]:
    kwh = amount.kwh
    green = ["unknown"] * 2 if kwh is None else [_number(kwh), _number(kwh * factors.g_co2e_per_kwh / 1000)]
    return [_number(amount.hours), _number(amount.gpu_hours), _dollars(amount), *green]


def _number(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.01 or not value else f"{value:.1g}"


def _dollars(amount: Amount, sign: str = "") -> str:
    if amount.usd is not None:
        return f"{sign}{amount.usd:,.2f}"
    return f"{sign}{amount.known_usd:,.2f} + unknown" if amount.known_usd else ("price " if sign else "") + "unknown"


def _say_troubles(by: By, usage: dict[str, Usage], troubles: list[str]) -> None:
    from ems.cli import render

    is_by_job = str(by) in {"experiment", "user"}
    if is_by_job and any(each.asked is None for each in usage.values()):
        render.note("who used the nodes is not known of all of it: SLURM's accounting was not asked, or is off")
    render.note(*troubles)
