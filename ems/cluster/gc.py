"""What is left of clusters: resources whose incarnation has no live controller, found by their labels and deleted.

A cluster lives as long as its controller is there, running or stopped (it is paused then). One whose making was cut
off lives, too, while somebody is at it: a command of this machine that holds its lock, or anybody who made something
of it a moment ago.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ems.cluster import catalog, lifecycle, price
from ems.cluster.definition import Definition
from ems.cluster.fleet import CONTROLLER_ROLE, Fleet, Report, quiet, verified
from ems.cluster.images import BAKE_ROLE, LEASE_S
from ems.cluster.provider import base, connect
from ems.cluster.provider.base import MachineState, Provider, Resource, Thing
from ems.cluster.record import MADE, Files, Journal, Phase, Record, label_value, names, owner
from ems.errors import ClusterError, EmsError

#: What is younger may still be in somebody's hands.
YOUNG = timedelta(minutes=10)
_BAKING = timedelta(seconds=LEASE_S)  # a machine that becomes an image has no controller beside it
_EMPTY_S = 300
_AGAIN_S = 1.0  # listings may be late: nothing is left once two of them, so far apart, say so
_CREATED = re.compile(r"(\d{4}-\d\d-\d\d)t(\d\d)-(\d\d)-(\d\d)")


@dataclass(frozen=True, slots=True)
class Leftover:
    """What is left of one incarnation of a cluster.

    Attributes
    ----------
    definition
        One by which its provider is reached.
    why
        Why nobody needs it.
    made
        When the last of it was made; None: unknown.
    price_per_hour
        US dollars of its machines; None: unknown.
    """

    cluster: str
    incarnation: str
    owner: str
    things: tuple[Resource, ...]
    why: str
    made: datetime | None
    price_per_hour: float | None
    definition: Definition

    def counts(self) -> dict[str, int]:
        """Return how many of each kind of thing there are."""
        return dict(Counter(str(each.thing) for each in self.things))


def definitions(project: Path | None, name: str | None = None) -> list[Definition]:
    """Return a definition for each provider, and place there, that the clusters known here and the files speak of.

    Parameters
    ----------
    name
        Only that of the cluster, or the definition, of this name.

    Raises
    ------
    NotFoundError
        If there is none of that name.
    """
    found = [verified(record) for record in _records() if name in {None, record.name}]
    if name is not None:
        return found or [catalog.load(name, project)]
    for entry in catalog.entries(project):
        try:
            found.append(entry.read())
        except EmsError:  # `ems cluster list` says what is wrong with it
            continue
    return list({each.provider.model_dump_json(): each for each in reversed(found)}.values())


def leftovers(
    definition: Definition,
    *,
    everyone: bool = False,
    images: bool = False,
    young: timedelta = YOUNG,
    report: Report = quiet,
) -> list[Leftover]:
    """Return what is left at a definition's provider, oldest first.

    Parameters
    ----------
    everyone
        Look at what others made as well; of it only what has no controller at all is left over.
    images
        Count baked images among it. They stay behind a cluster on purpose, for the next start.
    young
        What was made less long ago is in somebody's hands.

    Raises
    ------
    ProviderError
        If the provider cannot be asked.
    """
    report(definition.provider.kind, "looked through")
    groups: dict[tuple[str, str], list[Resource]] = {}
    for each in connect(definition.provider).list():
        is_mine = each.labels.get(base.OWNER) == label_value(owner())
        if (everyone or is_mine) and base.INCARNATION in each.labels:
            groups.setdefault((each.labels[base.CLUSTER], each.labels[base.INCARNATION]), []).append(each)
    found = [_judged(definition, name, incarnation, of_it, young) for (name, incarnation), of_it in groups.items()]
    kept = [_without_images(each) if not images else each for each in found if each is not None]
    return sorted((each for each in kept if each.things), key=lambda each: str(each.made))


def _without_images(left: Leftover) -> Leftover:
    return replace(left, things=tuple(each for each in left.things if each.thing is not Thing.IMAGE))


def _judged(
    definition: Definition, name: str, incarnation: str, things: Sequence[Resource], young: timedelta
) -> Leftover | None:
    """Return things as left over, or None where somebody needs them."""
    record = _record(name, incarnation)
    made = max((each for each in map(_made, things) if each), default=None)
    machines = [each for each in things if each.thing is Thing.MACHINE]
    is_baking = record is None and any(each.labels.get(base.ROLE) == BAKE_ROLE for each in machines)
    if made is not None and datetime.now(UTC) - made < (max(young, _BAKING) if is_baking and young else young):
        return None
    why = "" if record is not None and _is_locked(name) else _why(record, machines)
    if not why:
        return None
    cost = price.of_machines(definition, machines)
    said = things[0].labels.get(base.OWNER, "")
    return Leftover(name, incarnation, said, tuple(things), why, made, cost, definition)


def _why(record: Record | None, things: Iterable[Resource]) -> str:
    """Return why nobody needs a cluster that no command is at; empty where somebody may."""
    machines = [each for each in things if each.thing is Thing.MACHINE and each.state is not MachineState.FAILED]
    controller = next((each for each in machines if each.labels.get(base.ROLE) == CONTROLLER_ROLE), None)
    if controller is None:
        return "its controller is gone"
    if record is None or record.phase in {Phase.READY, Phase.PAUSED} or _answers(record, controller):
        return ""
    if record.phase is Phase.STOPPING:
        return "half deleted"
    return "" if Journal(Files(record.name)).is_at(MADE) else "its start was cut off"


def _answers(record: Record, controller: Resource) -> bool:
    if controller.state is not MachineState.RUNNING or not controller.ssh_address:
        return False
    try:
        host = Fleet(Files(record.name), record).host(controller)
        return host.run(["true"], timeout_s=10, check=False).returncode == 0
    except EmsError:
        return False


def _is_locked(name: str) -> bool:
    try:
        with Files(name).locked():
            return False
    except ClusterError:
        return True


def _records() -> Iterator[Record]:
    for name in names():
        try:
            record = Files(name).load()
            if record is not None and verified(record):
                yield record
        except EmsError:  # `ems cluster list` says so
            continue


def _record(name: str, incarnation: str) -> Record | None:
    return next((each for each in _records() if (each.name, each.incarnation) == (name, incarnation)), None)


def _made(thing: Resource) -> datetime | None:
    """Return when a thing was made; where the provider does not say, when its cluster was."""
    if thing.created_at is not None:
        return thing.created_at
    found = _CREATED.match(thing.labels.get(base.CREATED, ""))
    return datetime.fromisoformat(f"{found[1]}T{found[2]}:{found[3]}:{found[4]}+00:00") if found else None


def delete(left: Leftover, report: Report = quiet) -> int:
    """Delete what is left of a cluster, and forget it where this machine knows it; returns how much it was.

    Raises
    ------
    ClusterError
        If something cannot be deleted, or another command has taken the cluster up in the meantime.
    """
    provider = connect(left.definition.provider)
    images = [each for each in left.things if each.thing is Thing.IMAGE]
    if _record(left.cluster, left.incarnation) is None:
        count = _emptied(provider, left, report)
    else:
        with Files(left.cluster).locked():
            record = _record(left.cluster, left.incarnation)  # as it is now
            if record is None:
                count = _emptied(provider, left, report)
            else:
                fleet = Fleet(Files(left.cluster), record, report)
                _check_still(left, record, fleet.resources())
                count = lifecycle.stop(fleet)
    provider.destroy(images)
    return count + len(images)


def _check_still(left: Leftover, record: Record | None, things: Sequence[Resource]) -> None:
    """Refuse what is left over no more: between the look and the yes somebody may have gone on with it."""
    if things and not _why(record, things):
        raise ClusterError(f"somebody has taken up {left.cluster} in the meantime", "ems cluster gc looks again")


def _emptied(provider: Provider, left: Leftover, report: Report) -> int:
    labels = {base.CLUSTER: left.cluster, base.INCARNATION: left.incarnation}
    end, deleted, empty = time.monotonic() + _EMPTY_S, set[str](), 0
    while empty < 2:
        things = [each for each in provider.list(labels) if each.thing is not Thing.IMAGE]
        _check_still(left, None, things)
        report(left.cluster, f"{len(things)} left")
        deleted |= {each.id for each in things}
        if things and time.monotonic() > end:
            listed = ", ".join(f"{each.thing} {each.name}" for each in things)
            raise ClusterError(f"these cannot be deleted: {listed}", "ems cluster gc tries again")
        provider.destroy(things)
        empty = 0 if things else empty + 1
        time.sleep(_AGAIN_S if empty == 1 else 0)
    report(left.cluster, "gone")
    return len(deleted)


def total_price(found: Iterable[Leftover]) -> float | None:
    """Return US dollars an hour of everything that is left; None where some of it is unknown."""
    return price.total(each.price_per_hour for each in found)
