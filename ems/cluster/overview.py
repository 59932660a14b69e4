"""What there is to see of a cluster: machines, nodes, queue, uptime, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ems.cluster import price
from ems.cluster.fleet import Fleet
from ems.cluster.provider.base import MachineState
from ems.cluster.scheduler import Boot, Job, NodeState
from ems.errors import ConnectionFailedError


@dataclass(frozen=True, slots=True)
class NodeView:
    """One machine.

    Attributes
    ----------
    machine
        The provider's word for it; ``gone`` where there is none.
    slurm
        SLURM's word; empty where it knows no such node, or cannot be asked.
    note
        Why it is not at work.
    """

    name: str
    kind: str
    machine: str
    slurm: str = ""
    partitions: tuple[str, ...] = ()
    gres: str = ""
    note: str = ""
    jobs: int = 0


@dataclass(frozen=True, slots=True)
class Overview:
    """A cluster as it stands.

    Attributes
    ----------
    trouble
        Why SLURM could not be asked; empty where it was.
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
    jobs, trouble = list[Job](), ""
    if controller is not None and controller.state is MachineState.RUNNING:
        try:
            states, boots = fleet.scheduler.look()
            jobs = fleet.scheduler.jobs()
        except ConnectionFailedError as error:
            trouble = error.message
    else:
        trouble = f"{record.controller} is {controller.state if controller else 'gone'}"
    views = []
    for name in sorted({*machines, *record.wanted} - {record.controller}):
        state, machine = states.get(name), machines.get(name)
        boot = boots.get(name, {})
        note = str(record.left_out.get(name) or boot.get("error") or (state.reason if state else ""))
        if state is None and not note:
            note = str(boot.get("stage") or "")
        views.append(
            NodeView(
                name,
                fleet.kind(name),
                str(machine.state) if machine else "gone",
                state.state if state else "",
                state.partitions if state else (),
                state.gres if state else "",
                note,
                sum(name in job.hosts for job in jobs),
            )
        )
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
    )


def _count(jobs: Sequence[Job]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for job in jobs:
        counts[job.state] = counts.get(job.state, 0) + 1
    return counts


def _since(iso: str) -> float:
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(iso)).total_seconds()
    except ValueError:  # a label's form of it
        return 0.0
