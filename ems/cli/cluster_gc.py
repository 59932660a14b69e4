"""``ems cluster gc``, and the reminder of it that other commands give."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli import options as o
from ems.cli.cluster import LIFE, command
from ems.errors import ClusterError, EmsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ems.cluster.definition import Definition
    from ems.cluster.gc import Leftover


@command(LIFE, "ems cluster gc", "ems cluster gc gce --yes", "ems cluster gc --all")
def gc(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Look only where this cluster's machines are.", show_default=False),
    ] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Also what other people left.")] = False,
    images: Annotated[bool, typer.Option("--images", help="Also the baked images of clusters that are gone.")] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", metavar="MIN", min=0, help="Leave alone what was made since then.")
    ] = 10.0,
    yes: o.Yes = False,
    as_json: o.AsJson = False,
) -> None:
    """Find what clusters have left behind, and delete it.

    Looks by label at every provider that your clusters and definitions name, for machines, disks, addresses, rules
    and networks whose cluster has no controller any more, or was begun and never finished.
    """
    from ems.cli import render
    from ems.cli.setup import project_here
    from ems.cluster import gc as cleaning

    def look(definition: Definition) -> list[Leftover] | EmsError:
        try:
            return cleaning.leftovers(definition, everyone=everyone, images=images, young=young)
        except EmsError as error:
            return error

    young = timedelta(minutes=older_than)
    places = list(cleaning.definitions(project_here(), name))
    with ThreadPoolExecutor() as pool:
        looks = list(pool.map(look, places))
    errors = [each for each in looks if isinstance(each, EmsError)]
    unseen = _unseen(places, looks)
    if errors and len(errors) == len(looks):
        hint = errors[0].hint if len(unseen) == 1 else "`ems cluster check NAME` says what helps"
        raise ClusterError("; ".join(unseen), hint)
    render.note(*unseen)
    listed = [each for part in looks if not isinstance(part, EmsError) for each in part]
    found = list({each.incarnation: each for each in listed}.values())  # one place may be in several definitions
    if as_json:
        render.print_json([_plain(each) for each in found])
    elif not found:
        render.say("nothing is left of any cluster" + (" where it was looked" if unseen else ""))
    else:
        render.say(*_lines(found))
    if found and (yes or not as_json):
        _delete(found, yes=yes, is_quiet=as_json)


def _unseen(places: Sequence[Definition], looks: Sequence[list[Leftover] | EmsError]) -> list[str]:
    """Say which places were not looked at, in a sentence a reason."""
    names: dict[str, list[str]] = {}
    for place, found in zip(places, looks, strict=True):
        if isinstance(found, EmsError):
            name = " ".join(dict.fromkeys((place.provider.kind, place.name)))
            names.setdefault(found.message, []).append(name)
    return [
        f"{', '.join(each)} {'was' if len(each) == 1 else 'were'} not looked at: {why}" for why, each in names.items()
    ]


def _delete(found: list[Leftover], *, yes: bool, is_quiet: bool) -> None:
    from ems.cli import render
    from ems.cli.board import board
    from ems.cli.steer import confirm
    from ems.cluster import gc as cleaning

    count = sum(len(each.things) for each in found)
    if not yes and not confirm(f"delete {render.plural(count, 'resource')}?"):
        raise typer.Exit(1)
    failed = []
    with board() as report:
        for each in found:
            try:
                cleaning.delete(each, report)
            except EmsError as error:
                failed.append(f"{each.cluster}: {error.message}")
    if failed:
        raise ClusterError("; ".join(failed), "ems cluster gc tries again")
    if not is_quiet:
        render.say(f"{render.plural(count, 'resource')} deleted")


def _lines(found: list[Leftover]) -> list[str]:
    from ems.cluster import gc as cleaning

    lines = [_line(each) for each in found]
    total = cleaning.total_price(found)
    known = "an unknown price" if total is None else f"${total:.2f}"
    return lines if total == 0 else [*lines, f"all of it costs {known} an hour" + _besides(found)]


def _besides(found: list[Leftover]) -> str:
    """Return what a price does not tell: that disks and addresses cost as well."""
    kinds = {kind for each in found for kind in each.counts()}
    return ", and what its disks and addresses cost" if kinds & {"disk", "address", "image"} else ""


def _line(left: Leftover) -> str:
    from ems.cli import render

    things = ", ".join(render.plural(count, kind) for kind, count in left.counts().items())
    cost = "price unknown" if left.price_per_hour is None else f"${left.price_per_hour:.2f} an hour"
    age = render.ago(left.made.isoformat()) if left.made else "age unknown"
    free = left.price_per_hour == 0
    where = left.definition.provider.kind
    return f"{left.cluster} ({left.owner}, {where})   {things}   {age}   {'' if free else f'{cost}   '}{left.why}"


def _plain(left: Leftover) -> dict[str, object]:
    things = [
        {"thing": str(each.thing), "name": each.name, "id": each.id, "state": str(each.state)} for each in left.things
    ]
    return {
        "cluster": left.cluster,
        "incarnation": left.incarnation,
        "owner": left.owner,
        "provider": left.definition.provider.kind,
        "why": left.why,
        "made": left.made.isoformat() if left.made else None,
        "price_per_hour": left.price_per_hour,
        "things": things,
    }


def remind(definition: Definition) -> None:
    """Say on stderr what is left at a cluster's provider; nothing where nothing is, or nobody can be asked.

    Containers cost nothing but the look: that is for `ems cluster gc` alone.
    """
    from ems.cli import render
    from ems.cluster import gc as cleaning

    if definition.provider.kind == "container":
        return
    try:
        found = cleaning.leftovers(definition)
    except EmsError:
        return
    if found:
        count = sum(len(each.things) for each in found)
        whose = ", ".join(sorted({each.cluster for each in found}))
        render.note(f"{render.plural(count, 'resource')} left over of {whose}: ems cluster gc")
