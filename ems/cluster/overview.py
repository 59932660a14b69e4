"""What there is to see of a cluster: machines, nodes, queue, uptime, cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from ems.cluster import floor, ledger, nodes, price
from ems.cluster.elastic.standing import Status
from ems.cluster.fleet import Fleet
from ems.cluster.provider.base import MachineState, Resource
from ems.cluster.record import Phase
from ems.cluster.scheduler import Boot, Job, NodeState
from ems.errors import ConnectionFailedError

#: How long a node may boot before SLURM or its own first word is missed; SLURM itself waits for ten minutes.
LATE = timedelta(seconds=nodes.SILENT_S)


@dataclass(frozen=True, slots=True)
class NodeView:
    """One machine.

    Attributes
    ----------
    machine
        The provider's word for it; ``gone`` where there is none.
    slurm
        SLURM's word, e.g. ``idle``, ``powering down``; empty where it knows no such node, or cannot be asked.
    note
        Why it is not at work.
    is_late
        Whether its boot has failed, or has said nothing for longer than :data:`LATE`: its logs tell why.
    """

    name: str
    kind: str
    machine: str
    slurm: str = ""
    partitions: tuple[str, ...] = ()
    gres: str = ""
    note: str = ""
    jobs: int = 0
    is_late: bool = False


@dataclass(frozen=True, slots=True)
class KindView:
    """A kind of node of an elastic cluster.

    Attributes
    ----------
    up
        How many machines there are.
    floor, most
        How many stay whatever the queue says, and how many there may be.
    shut, until
        Why none of it is made now, and until when (UTC, ISO-8601); empty where it is.
    """

    kind: str
    up: int
    floor: int
    most: int
    shut: str = ""
    until: str = ""


@dataclass(frozen=True, slots=True)
class Overview:
    """A cluster as it stands.

    Attributes
    ----------
    nodes
        The controller, and the compute nodes; of an elastic cluster those that are there, or should be.
    kinds
        Of an elastic cluster.
    trouble
        Why SLURM could not be asked; empty where it could.
    stalled
        What keeps the cluster's service from its work; empty where nothing does, or there is none.
    idle_since
        Since when nobody has used it (UTC, ISO-8601), as its service says.
    notes
        What its service did last, newest first: the moment (UTC, ISO-8601) and a sentence.
    price_per_hour
        Of all machines that run; None where the provider names no price.
    """

    name: str
    phase: str
    incarnation: str
    owner: str
    created: str
    uptime_s: float
    nodes: Sequence[NodeView]
    jobs: Mapping[str, int] = field(default_factory=dict)
    trouble: str = ""
    price_per_hour: float | None = None
    kinds: Sequence[KindView] = ()
    idle_since: str | None = None
    stalled: str = ""
    notes: Sequence[tuple[str, str]] = ()

    @property
    def cost(self) -> float | None:
        """What it has cost since it was made, at the price of what runs now."""
        return None if self.price_per_hour is None else self.price_per_hour * self.uptime_s / 3600


def look(fleet: Fleet) -> Overview:
    """Ask provider and SLURM how a cluster stands; neither is changed."""
    record = fleet.record
    machines = fleet.machines()
    controller = machines.get(record.controller)
    states: dict[str, NodeState] = {}
    boots: dict[str, Boot] = {}
    jobs, trouble, service, stalled = list[Job](), "", None, ""
    if controller is not None and controller.state is MachineState.RUNNING:
        try:
            states, boots = fleet.scheduler.look()
            jobs = fleet.scheduler.jobs()
            if fleet.definition.has_service:
                service, stalled = floor.standing(fleet)
        except ConnectionFailedError as error:
            is_begun = record.phase is Phase.MAKING  # what a SLURM that is not set up says helps nobody
            trouble = f"it is not set up yet; `ems cluster start {fleet.name}` goes on" if is_begun else error.message
    else:
        trouble = _why_away(fleet, controller)
    on = [name for name, state in states.items() if fleet.definition.is_elastic and not state.is_off]
    names = sorted({*machines, *record.wanted, *on} - {record.controller})
    since = {} if trouble else _booted(fleet, machines.values())  # else nobody knows which have registered
    views = [
        _view(fleet, name, machines.get(name), states.get(name), boots.get(name, {}), jobs, since.get(name))
        for name in names
    ]
    first = NodeView(record.controller, "controller", str(controller.state) if controller else "gone")
    running = [each for each in machines.values() if each.state is MachineState.RUNNING]
    return Overview(
        record.name,
        str(record.phase),
        record.incarnation,
        record.owner,
        record.created,
        _since(record.created),
        [first, *views],
        _count(jobs),
        trouble,
        price.of_machines(fleet.definition, running),
        _kinds(fleet, machines, service),
        service.idle_since if service else None,
        stalled,
        service.notes if service else (),
    )


def _why_away(fleet: Fleet, controller: Resource | None) -> str:
    """Say that the controller does not run, and where it did that by itself, what follows."""
    said = f"{fleet.record.controller} is {controller.state if controller else 'gone'}"
    if fleet.definition.idle is None or fleet.record.phase is not Phase.READY:
        return said
    if controller is None:
        return (
            f"{said}: nobody needed it; `ems cluster stop {fleet.name}` sweeps away what is left, which costs nothing"
        )
    if controller.state is MachineState.STOPPED:
        return f"{said}: nobody needed it; ems cluster resume {fleet.name}"
    return said


def _booted(fleet: Fleet, machines: Iterable[Resource]) -> dict[str, datetime]:
    """Return since when machines that run have been there, or were last woken, where that is known."""
    found = {each.name: each.created_at for each in machines if each.state is MachineState.RUNNING and each.created_at}
    for step in ledger.steps(fleet):
        if step.verb == "wake":
            found |= {name: max(step.at, found[name]) for name in step.nodes & found.keys()}
    return found


def _view(
    fleet: Fleet,
    name: str,
    machine: Resource | None,
    state: NodeState | None,
    boot: Boot,
    jobs: Sequence[Job],
    since: datetime | None = None,
) -> NodeView:
    is_coming = machine is not None and (state is None or state.is_coming)
    stage = str(boot.get("stage") or "") if is_coming else ""  # else it was of an earlier machine
    note = str(fleet.record.left_out.get(name) or boot.get("error") or (state.reason if state else "") or stage)
    waited = datetime.now(UTC) - max(since, _said_at(boot) or since) if since and is_coming else timedelta()
    is_silent = waited > LATE and stage in {"", "ready"}
    if is_silent and not boot.get("error"):
        note = f"not registered after {waited // timedelta(minutes=1)} min{f': {note}' if note else ''}"
    return NodeView(
        name,
        fleet.kind(name),
        str(machine.state) if machine else "gone",
        state.words if state else "",
        state.partitions if state else (),
        state.gres if state else "",
        note,
        sum(name in job.hosts for job in jobs),
        is_silent or (is_coming and bool(boot.get("error"))),
    )


def _said_at(boot: Boot) -> datetime | None:
    """Return when a node said what it last said of its boot, by its own clock: what it installs takes its time."""
    try:
        said = datetime.fromisoformat(str(boot.get("at")))
    except ValueError:
        return None
    return said if said.tzinfo else None


def _kinds(fleet: Fleet, machines: Iterable[str], service: Status | None) -> list[KindView]:
    """Return how the kinds of an elastic cluster stand."""
    if not fleet.definition.is_elastic:
        return []
    up, stay = (Counter(map(fleet.kind, names)) for names in (machines, fleet.record.wanted))
    shut = service.shut if service else {}
    found = []
    for kind in fleet.definition.nodes:
        most = floor.most(fleet.definition, kind)
        why, until = (shut[kind].why, shut[kind].until) if kind in shut else ("", "")
        found.append(KindView(kind, up[kind], stay[kind], most, why, until))
    return found


def _count(jobs: Sequence[Job]) -> dict[str, int]:
    return dict(Counter(job.state for job in jobs))


def _since(iso: str) -> float:
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(iso)).total_seconds()
    except ValueError:  # a label's form of it
        return 0.0
