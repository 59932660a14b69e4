"""One look at the machines and the nodes, and what follows from it by the table. Pure.

::

    memory = memory.look(machines, nodes, now, floor=floor, shut=breaker.shut(time.time()))
    acts = plan(machines, nodes, memory, now)
    …
    memory = memory.did(acts, now)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from ems.cluster.definition import Definition, node_number
from ems.cluster.elastic.breaker import Shut
from ems.cluster.elastic.control import Node
from ems.cluster.elastic.table import OFF, OURS, SERVING, TABLE, Cell, Standing, Verb, Vm, When, standing
from ems.cluster.provider.base import MachineState, Resource

#: How long SLURM waits for a node, in seconds, where the definition does not say (ResumeTimeout in slurm.conf.j2).
RESUME_S = 600.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things are waited for, in seconds.

    Attributes
    ----------
    young_s
        A machine that was first seen less than this ago is left alone.
    again_s
        What was done is not done again before.
    boot_s
        A node powers up; more than ResumeTimeout, after which SLURM itself gives it up.
    late_s
        Any other state that is to end.
    stale_s
        After a gap as long between two looks a node may have been made anew: what was seen before it is forgotten.
    """

    young_s: float = 120.0
    again_s: float = 120.0
    boot_s: float = RESUME_S + 60
    late_s: float = 300.0
    stale_s: float = 120.0

    @classmethod
    def of(cls, definition: Definition) -> Pace:
        """Return the pace of a cluster, whose nodes may be given longer to come than they are by default."""
        options = (definition.slurm, *(each.options for each in definition.partitions.values()))
        said = [value for each in options for key, value in each.items() if key.lower() == "resumetimeout"]
        return cls(boot_s=max([RESUME_S, *(float(value) if value.isdigit() else inf for value in said)]) + 60)

    def wait_s(self, when: When, found: Standing) -> float:
        """Return how long a node has to have stood so."""
        late_s = self.boot_s if found is Standing.COMING else self.late_s
        return {When.NOW: 0.0, When.SETTLED: self.young_s, When.LATE: late_s}[when]


@dataclass(frozen=True, slots=True)
class Act:
    """Something to be done.

    Attributes
    ----------
    machine
        What is to be deleted; of a node whose machine has vanished, the machine it had; None: none was seen.
    vm
        The state of its machine.
    why
        For SLURM's reason, and for people.
    """

    verb: Verb
    node: str
    why: str
    vm: Vm = Vm.ABSENT
    machine: Resource | None = None


@dataclass(frozen=True, slots=True)
class Boot:
    """How a boot ended: whether the node registered."""

    node: str
    registered: bool


@dataclass(frozen=True, slots=True)
class Memory:
    """What has to be known of earlier looks.

    Attributes
    ----------
    cluster
        Its name, which those of its nodes begin with.
    first_seen
        Machine's id -> when it was first listed, by this memory's clock: a cloud's own may be wrong.
    machines
        Node -> the machine that it has, or was last seen with.
    missed
        Node -> in how many listings in a row there was no machine.
    standings
        Node -> how SLURM stands to it, and since when.
    cells, before
        Node -> what its machine and SLURM ask for together, in this look and in the one before.
    relics
        Ids of machines that were there when SLURM had let go of their node.
    booting
        Nodes that power up, and whose machine is there.
    boots
        What came of boots since the look before.
    done
        (verb, machine's id or node) -> when.
    looked_at
        When that was.
    floor
        Nodes that stay.
    shut
        Kind -> why it cannot be had now.
    """

    cluster: str
    pace: Pace = Pace()
    first_seen: Mapping[str, float] = field(default_factory=dict)
    machines: Mapping[str, Resource] = field(default_factory=dict)
    missed: Mapping[str, int] = field(default_factory=dict)
    standings: Mapping[str, tuple[Standing, float]] = field(default_factory=dict)
    cells: Mapping[str, Cell] = field(default_factory=dict)
    before: Mapping[str, Cell] = field(default_factory=dict)
    relics: frozenset[str] = frozenset()
    booting: frozenset[str] = frozenset()
    boots: tuple[Boot, ...] = ()
    done: Mapping[tuple[Verb, str], float] = field(default_factory=dict)
    looked_at: float = 0.0
    floor: frozenset[str] = frozenset()
    shut: Mapping[str, Shut] = field(default_factory=dict)

    def look(
        self,
        machines: Sequence[Resource],
        nodes: Mapping[str, Node],
        now: float,
        *,
        floor: Iterable[str] = (),
        shut: Mapping[str, Shut] | None = None,
    ) -> Memory:
        """Return what is known after a look.

        Parameters
        ----------
        machines
            The nodes' machines as the provider lists them; those of a name more than once, too. What is no node of
            this cluster is left out.
        nodes
            As SLURM has them.
        now
            Seconds of a clock that only ever grows.
        """
        if now - self.looked_at > self.pace.stale_s:
            fresh = Memory(self.cluster, self.pace, self.first_seen, relics=self.relics, looked_at=now)
            return fresh.look(machines, nodes, now, floor=floor, shut=shut)
        ours = [each for each in machines if _is_ours(self.cluster, each.name, nodes)]
        seen = replace(
            self,
            first_seen={each.id: self.first_seen.get(each.id, now) for each in [*ours, *self.machines.values()]},
            looked_at=now,
            floor=frozenset(floor),
            shut=shut or {},
            done={what: at for what, at in self.done.items() if now - at < self.pace.again_s},
        )
        chosen = seen.chosen(ours, nodes)
        names = {name for name in nodes if _is_ours(self.cluster, name, nodes)} | {*chosen}
        missed = {name: 0 if name in chosen else self.missed.get(name, 0) + 1 for name in names}
        standings = {name: seen._standing(nodes.get(name), name, chosen.get(name), now) for name in names}
        off = {name for name in names if standings[name][0] in OFF}
        relics = {chosen[name].id for name in off & {*chosen}} | (self.relics & {*seen.first_seen})
        return replace(
            seen,
            machines={**{name: each for name, each in self.machines.items() if self._keeps(name, standings)}, **chosen},
            missed=missed,
            standings=standings,
            cells={name: TABLE[vm_of(chosen.get(name)), standings[name][0]] for name in names},
            before=self.cells,
            relics=frozenset(relics),
            booting=frozenset(name for name in chosen if standings[name][0] is Standing.COMING),
            boots=tuple(_ended(self.booting, standings)),
        )

    def _standing(self, node: Node | None, name: str, machine: Resource | None, now: float) -> tuple[Standing, float]:
        shut = self.shut.get(kind_of(self.cluster, name))
        found = standing(node, is_floor=name in self.floor, closed=shut.reason if shut else "")
        if found is Standing.COMING and machine is not None and machine.id in self.relics:
            found = Standing.STALE
        before, since = self.standings.get(name, (None, now))
        return found, since if before is found else now

    def _keeps(self, name: str, standings: Mapping[str, tuple[Standing, float]]) -> bool:
        """Whether a node that has no machine now is still the one that had one, and was not made anew since."""
        before, found = (each[name][0] if name in each else Standing.STRANGER for each in (self.standings, standings))
        has_come = before is Standing.COMING and self.missed.get(name) == 0
        return found in SERVING and (before in SERVING or has_come)

    def chosen(self, machines: Sequence[Resource], nodes: Mapping[str, Node]) -> dict[str, Resource]:
        """Return the machine of each node: of several the one that serves, else the oldest that has not failed."""

        def rank(each: Resource) -> tuple[bool, bool, str, float, str]:
            node = nodes.get(each.name)
            serves = node is not None and bool(each.address) and node.address == each.address
            is_failed = each.state is MachineState.FAILED
            return not serves, is_failed, str(each.created_at or ""), self.first_seen[each.id], each.id

        return {each.name: each for each in sorted(machines, key=rank, reverse=True)}

    def did(self, acts: Iterable[Act], now: float) -> Memory:
        """Return what is known after acts: they are not repeated at once."""
        more = {(each.verb, _subject(each)): now for each in acts}
        return replace(self, done={**self.done, **more})

    @property
    def is_unsure(self) -> bool:
        """Whether this look asks for what the one before did not: another one soon tells."""
        return any(cell.verbs and self.before.get(name) != cell for name, cell in self.cells.items())


def _is_ours(cluster: str, name: str, nodes: Mapping[str, Node]) -> bool:
    """Whether a name is that of a node which comes and goes, or could be."""
    node = nodes.get(name)
    return node_number(cluster, name) is not None and (node is None or "CLOUD" in node.flags)


def kind_of(cluster: str, node: str) -> str:
    """Return the kind of a node; empty for what is none of that cluster."""
    found = node_number(cluster, node)
    return found[0] if found else ""


def vm_of(machine: Resource | None) -> Vm:
    """Return the state of a machine as the table has it."""
    return Vm.ABSENT if machine is None else Vm(machine.state.value)


def _ended(booting: Iterable[str], standings: Mapping[str, tuple[Standing, float]]) -> Iterator[Boot]:
    """Yield how boots ended; a node that SLURM drains as it comes is of no use, and has failed.

    One that goes already, or is gone, may have come and served between two looks: of that nothing is known.
    """
    for name in sorted(booting):
        found = standings[name][0] if name in standings else Standing.STRANGER
        if found in {Standing.IDLE, Standing.BUSY, Standing.KEPT}:
            yield Boot(name, registered=True)
        elif found in {Standing.DOWN, Standing.DOWNED, Standing.MUTE, Standing.AILING}:
            yield Boot(name, registered=False)


def plan(machines: Sequence[Resource], nodes: Mapping[str, Node], memory: Memory, now: float) -> list[Act]:
    """Return what is to be done, in the order in which it is to be done.

    Parameters
    ----------
    machines, nodes, now
        Those that ``memory`` looked at last.
    """
    if not nodes:  # SLURM without any node is one that has not read its configuration
        return []
    acts = list(_doubles(machines, nodes, memory))
    for name, cell in memory.cells.items():
        acts += _acts(name, cell, memory, now) if cell.verbs else ()
    order = list(Verb)
    fresh = [each for each in acts if _may(each, memory, now)]
    return sorted(fresh, key=lambda each: (order.index(each.verb), each.node))


def _doubles(machines: Sequence[Resource], nodes: Mapping[str, Node], memory: Memory) -> Iterator[Act]:
    ours = [each for each in machines if each.id in memory.first_seen]
    keep = memory.chosen(ours, nodes)
    for each in ours:
        if each.id != keep[each.name].id:
            yield Act(Verb.DESTROY, each.name, "another machine has its name", vm_of(each), each)


def _acts(name: str, cell: Cell, memory: Memory, now: float) -> Iterator[Act]:
    found, since = memory.standings[name]
    is_absent = memory.missed[name] > 0
    if (is_absent and memory.missed[name] < 2) or memory.before.get(name, Cell()).verbs != cell.verbs:
        return
    if now - since < memory.pace.wait_s(cell.when, found):
        return
    machine = memory.machines.get(name)
    vm = Vm.ABSENT if is_absent else vm_of(machine)
    why = _why(name, vm, found, memory)
    for verb in cell.verbs:
        yield Act(verb, name, why, vm, machine)


def _may(act: Act, memory: Memory, now: float) -> bool:
    """Whether its machine is old enough, and it was not done a moment ago.

    The machine of a node that serves may be one that the cloud is late to list: then its age is that of the service.
    """
    if (act.verb, _subject(act)) in memory.done:
        return False
    found, since = memory.standings[act.node]
    if found not in SERVING | {Standing.COMING} and act.vm is Vm.ABSENT:
        return True
    seen = since if act.machine is None else memory.first_seen[act.machine.id]
    return now - seen >= memory.pace.young_s


def _why(name: str, vm: Vm, found: Standing, memory: Memory) -> str:
    if found in {Standing.CLOSED, Standing.CLOSING}:
        return OURS + memory.shut[kind_of(memory.cluster, name)].reason
    if found is Standing.WANTED:
        return OURS + "it is one of those that stay"
    if vm is Vm.ABSENT:
        return OURS + "its machine is gone"
    return f"{OURS}its machine is {vm.value}, the node {found.value}"


def _subject(act: Act) -> str:
    return act.machine.id if act.verb is Verb.DESTROY and act.machine is not None else act.node
