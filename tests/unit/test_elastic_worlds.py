"""Worlds in which everything goes wrong, and then nothing any more: nothing unsafe is done, and all ends in order.

SLURM is here what 22.05.8 does with nodes of State=CLOUD, as it was seen to do it (tests/slurm/test_elastic_control.py
asks the real one).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import count
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from ems.cluster.elastic.breaker import Breaker
from ems.cluster.elastic.control import Node
from ems.cluster.elastic.reconcile import Memory, plan
from ems.cluster.elastic.table import OURS, Verb
from ems.cluster.provider.base import MachineState, Resource, Thing

TICK_S = 5
BOOT_S, DELETE_S, JOB_S = 60, 40, 200
RESUME_S, SUSPEND_S, IDLE_S, SLURMD_S = 600, 120, 300, 120
NODES = ["c-gpu-001", "c-gpu-002", "c-gpu-003", "c-cpu-001"]
FLOOR = ["c-cpu-001"]
QUIET_S = 2 * 3600  # of two of the breaker's rests, and what comes after


@dataclass
class Machine:
    """A machine as it is, whatever the cloud says of it."""

    id: str
    name: str
    born: float
    listed_from: float
    state: str = "starting"
    shown: str = ""  # what the cloud says instead
    ends_at: float | None = None
    is_sick: bool = False  # its slurmd never registers
    was_registered: bool = False

    @property
    def is_alive(self) -> bool:
        return self.state in {"starting", "running"}


@dataclass
class SlurmNode:
    """A node as slurmctld has it."""

    name: str
    base: str = "IDLE"
    flags: set[str] = field(default_factory=lambda: {"POWERED_DOWN"})
    reason: str = ""
    address: str = ""  # of the machine that registered last
    since: float = 0.0  # of the last change of power, or the last use
    silent_since: float | None = None
    job_ends: float | None = None  # of a job that it has; inf: it has not begun

    @property
    def is_off(self) -> bool:
        return bool(self.flags & {"POWERED_DOWN", "POWERING_DOWN", "POWERING_UP"})

    def seen(self) -> Node:
        base = "ALLOCATED" if self.base == "IDLE" and self.job_ends is not None else self.base
        return Node(self.name, base, frozenset({"CLOUD", *self.flags}), self.reason, address=self.address)


class World:
    """A cloud, a SLURM and the service between them, by a clock that jumps."""

    def __init__(self, seed: int) -> None:
        self.now = 10_000.0
        self.random = Random(seed)
        self.ids = count()
        self.machines: list[Machine] = []
        self.nodes = {name: SlurmNode(name) for name in NODES}
        self.spool: list[tuple[str, str]] = []
        self.waiting = 0  # jobs
        self.done = 0
        self.refusals: dict[str, float] = {}  # kind -> until when the cloud has none
        self.lost_calls = 0.0  # the share of calls to the cloud that come to nothing
        self.is_boot_sick = False
        self.late_s = 0.0  # after which machines are listed
        self.refused: Counter[tuple[str, float]] = Counter()  # node, and until when its kind was shut
        self.unlisted = ""  # whose machine the next listing lacks
        self.start_service()
        self.breaker = Breaker()

    def start_service(self) -> None:
        """Start the service; it remembers nothing but what is shut."""
        self.memory = Memory("c")
        self.due = self.now
        self.deaf_until = self.now

    # -- the cloud ----------------------------------------------------------------------------------------------------

    def create(self, name: str, twice: bool = False) -> str:
        """Make a machine unless one of its name is there; returns why it is refused."""
        kind = name.split("-")[1]
        if self.refusals.get(kind, 0) > self.now:
            return "sold out"
        if self.random.random() >= self.lost_calls and (twice or name not in {each.name for each in self.machines}):
            made = Machine(f"m{next(self.ids)}", name, self.now, self.now + self.late_s, is_sick=self.is_boot_sick)
            self.machines.append(made)
        return ""

    def destroy(self, id_: str) -> None:
        """Have a machine deleted, which takes a while."""
        for each in self.machines:
            if each.id == id_ and each.ends_at is None and self.random.random() >= self.lost_calls:
                each.state, each.shown, each.ends_at = "stopping", "", self.now + DELETE_S

    def listed(self) -> list[Resource]:
        """Return what the cloud lists."""
        unlisted, self.unlisted = self.unlisted, ""
        return [
            Resource(Thing.MACHINE, each.id, each.name, {}, MachineState(each.shown or each.state), each.id)
            for each in self.machines
            if each.listed_from <= self.now and each.name != unlisted
        ]

    def _turn_cloud(self) -> None:
        for each in self.machines:
            if each.state == "starting" and self.now - each.born >= BOOT_S:
                each.state = "running"
                self._register(each)
        self.machines = [each for each in self.machines if each.ends_at is None or each.ends_at > self.now]

    # -- SLURM --------------------------------------------------------------------------------------------------------

    def _register(self, machine: Machine) -> None:
        """Have a slurmd say that it has booted; SLURM waits for one that did so after it was asked for."""
        node = self.nodes.get(machine.name)
        if node is None or machine.is_sick or "POWERING_DOWN" in node.flags:
            return
        if "POWERING_UP" in node.flags and machine.born < node.since - TICK_S:
            return
        machine.was_registered, node.address = True, machine.id
        node.base, node.since, node.silent_since = "IDLE", self.now, None
        node.flags -= {"POWERING_UP", "POWERED_DOWN", "NOT_RESPONDING"}
        if node.job_ends is not None:
            node.job_ends = self.now + JOB_S

    def serving(self, name: str) -> list[Machine]:
        """Return the machine whose slurmd answers where SLURM calls it."""
        called = (each for each in self.machines if each.id == self.nodes[name].address)
        return [each for each in called if each.was_registered and each.is_alive]

    def _requeue(self, node: SlurmNode) -> None:
        if node.job_ends is not None:
            node.job_ends = None
            self.waiting += 1

    def order(self, verb: Verb, name: str, why: str) -> None:
        """Do what scontrol is told."""
        node = self.nodes[name]
        if verb is Verb.DOWN:
            node.base, node.reason = "DOWN", why
            self._requeue(node)
        elif verb is Verb.RELEASE and (node.base == "DOWN" or "DRAIN" in node.flags):
            node.base = "IDLE"
            node.flags -= {"DRAIN"}
        elif verb is Verb.POWER_UP and "POWERED_DOWN" in node.flags:
            self._resume(node)
        elif verb is Verb.FORCE or (verb is Verb.POWER_DOWN and "POWERED_DOWN" not in node.flags):
            self._suspend(node)

    def _resume(self, node: SlurmNode) -> None:
        node.flags = (node.flags - {"POWERED_DOWN"}) | {"POWERING_UP", "NOT_RESPONDING"}
        node.since = self.now
        self.spool.append(("resume", node.name))

    def _suspend(self, node: SlurmNode) -> None:
        if "POWERING_DOWN" in node.flags:
            return
        self._requeue(node)
        node.base, node.flags, node.since = "IDLE", {"POWERING_DOWN"}, self.now
        self.spool.append(("suspend", node.name))

    def _turn_slurm(self) -> None:
        for node in self.nodes.values():
            past_s = self.now - node.since
            if "POWERING_DOWN" in node.flags and past_s >= SUSPEND_S:  # one that was declared down meanwhile stays so
                node.flags, node.silent_since = {"POWERED_DOWN"}, None
            elif "POWERING_UP" in node.flags and past_s >= RESUME_S:
                node.base, node.reason = "DOWN", "ResumeTimeout reached"
                node.flags = {"POWERED_DOWN", "NOT_RESPONDING"}
                self._requeue(node)
                self.spool.append(("suspend", node.name))
            elif not node.is_off:
                self._turn_in_service(node)
        self._schedule()

    def _turn_in_service(self, node: SlurmNode) -> None:
        if self.serving(node.name):
            node.silent_since = None
            node.flags -= {"NOT_RESPONDING"}
            if node.job_ends is not None and node.job_ends <= self.now:
                node.job_ends, node.since = None, self.now
                self.done += 1
        else:
            node.silent_since = node.silent_since or self.now
            node.flags |= {"NOT_RESPONDING"}
            if self.now - node.silent_since >= SLURMD_S and node.base != "DOWN":
                self.order(Verb.DOWN, node.name, "Not responding")
        if node.job_ends is None and self.now - node.since >= IDLE_S and node.name not in FLOOR:
            self._suspend(node)

    def _schedule(self) -> None:
        usable = [each for each in self.nodes.values() if each.base == "IDLE" and each.job_ends is None]
        usable = [each for each in usable if not each.flags & {"DRAIN", "NOT_RESPONDING", "POWERING_DOWN"}]
        for node in sorted(usable, key=lambda each: each.is_off)[: self.waiting]:
            self.waiting -= 1
            node.job_ends = self.now + JOB_S
            if "POWERED_DOWN" in node.flags:
                node.job_ends = float("inf")
                self._resume(node)

    # -- the service --------------------------------------------------------------------------------------------------

    def _turn_service(self) -> None:
        if self.deaf_until > self.now:
            return
        taken, self.spool = self.spool, []
        for _, name in (each for each in taken if each[0] == "suspend"):
            for machine in [each for each in self.machines if each.name == name]:
                self.destroy(machine.id)
        self._make([name for verb, name in taken if verb == "resume"])
        if self.now >= self.due:
            self._reconcile()

    def _make(self, names: Collection[str]) -> None:
        for kind in sorted({name.split("-")[1] for name in names}):
            group = sorted(name for name in names if name.split("-")[1] == kind)
            admitted = self.breaker.admit(kind, group, self.now)
            shut = self.breaker.shut(self.now)
            refused = {name: shut[kind].reason for name in group if name not in admitted}
            refused |= {name: said for name in admitted if (said := self.create(name))}
            for name, said in refused.items():
                if kind not in self.breaker.shut(self.now):
                    self.breaker.close(kind, said, 600, self.now)
                self.refused[name, self.breaker.shut(self.now)[kind].until] += 1
                self.order(Verb.DOWN, name, OURS + said)
                self.order(Verb.POWER_DOWN, name, "")

    def _reconcile(self) -> None:
        listed, nodes = self.listed(), {name: each.seen() for name, each in self.nodes.items()}
        self.memory = self.memory.look(listed, nodes, self.now, floor=FLOOR, shut=self.breaker.shut(self.now))
        for boot in self.memory.boots:
            self.breaker.booted(boot.node.split("-")[1], boot.node, registered=boot.registered, now=self.now)
        acts = plan(listed, nodes, self.memory, self.now)
        self.memory = self.memory.did(acts, self.now)
        for act in acts:
            if act.verb is Verb.DESTROY:
                assert act.machine is not None
                self._is_safe(act.machine.id)
                self.destroy(act.machine.id)
            elif act.verb is Verb.CREATE:
                self._make([act.node])
            else:
                node = self.nodes[act.node]
                assert node.job_ends is None or node.is_off or not self.serving(act.node)
                self.order(act.verb, act.node, act.why)
        self.due = self.now + (5 if self.memory.is_unsure else 30)

    def _is_safe(self, id_: str) -> None:
        """What is deleted is old, and nothing runs on it: SLURM has let go of its node, or calls another machine."""
        machine = next(each for each in self.machines if each.id == id_)
        assert self.now - machine.born >= 120
        node = self.nodes.get(machine.name)
        assert not (node and not node.is_off and node.base == "IDLE" and machine.is_alive and node.address == id_)

    # -- time passes --------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self.now < end:
            self.now += TICK_S
            self._turn_cloud()
            self._turn_slurm()
            self._turn_service()

    def change(self, name: str, *, state: str = "", shown: str = "") -> None:
        """Have machines be in another state, or said to be; either way their slurmd is as before, or dead."""
        for each in (each for each in self.machines if each.name == name):
            each.state, each.shown = state or each.state, shown
            each.was_registered = each.was_registered and bool(shown)

    def flag(self, name: str, flag: str, *, is_off: bool) -> None:
        """Have SLURM mark a node by itself, if it is powered down, or not."""
        node = self.nodes[name]
        if is_off == ("POWERED_DOWN" in node.flags) and (is_off or not node.is_off):
            node.flags |= {flag}
            node.reason = "Kill task failed"

    def vanish(self, name: str) -> None:
        """Lose machines without a trace."""
        self.machines = [each for each in self.machines if each.name != name]

    def more(self, **values: float | str) -> None:
        """Set what goes wrong, or what is to be done, from now on."""
        for name, value in values.items():
            setattr(self, name, value)

    def calm(self) -> None:
        """Have nothing go wrong any more."""
        self.more(is_boot_sick=False, lost_calls=0.0, late_s=0.0)
        for each in self.machines:
            each.is_sick = False


FAULTS: dict[str, Callable[[World, str], object]] = {
    "vanished": World.vanish,
    "stopped": lambda world, name: world.change(name, state="stopped"),
    "failed": lambda world, name: world.change(name, state="failed"),
    "slurmd dies": lambda world, name: world.change(name),
    "said to be unknown": lambda world, name: world.change(name, shown="unknown"),
    "said to have failed": lambda world, name: world.change(name, shown="failed"),
    "made twice": lambda world, name: world.create(name, twice=True),
    "a stranger": lambda world, _: world.create("c-gpu-099", twice=True),
    "requests are lost": lambda world, _: world.spool.clear(),
    "the service is killed": lambda world, _: world.start_service(),
    "the service hangs": lambda world, _: world.more(deaf_until=world.now + 900),
    "sold out": lambda world, name: world.refusals.update({name.split("-")[1]: world.now + 1500}),
    "no boot succeeds": lambda world, _: world.more(is_boot_sick=True),
    "calls to the cloud are lost": lambda world, _: world.more(lost_calls=0.5),
    "the cloud lists late": lambda world, _: world.more(late_s=100.0),
    "one listing lacks it": lambda world, name: world.more(unlisted=name),
    "drained": lambda world, name: world.flag(name, "DRAIN", is_off=False),
    "mute": lambda world, name: world.flag(name, "NOT_RESPONDING", is_off=True),
    "somebody says down": lambda world, name: world.order(Verb.DOWN, name, "somebody"),
    "somebody says power_down_force": lambda world, name: world.order(Verb.FORCE, name, ""),
    "calm": lambda world, _: world.calm(),
}


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 9999),
    st.lists(
        st.tuples(st.sampled_from(list(FAULTS)), st.sampled_from(NODES), st.integers(0, 400), st.integers(0, 2)),
        max_size=30,
    ),
)
def test_every_world_ends_in_order_and_no_machine_that_works_was_deleted(
    seed: int, faults: list[tuple[str, str, int, int]]
) -> None:
    world = World(seed)
    world.waiting = 3
    world.run(300)
    for what, name, seconds, jobs in faults:
        world.waiting += jobs
        FAULTS[what](world, name)
        world.run(seconds)
    world.calm()
    world.run(QUIET_S)
    assert world.waiting == 0
    assert {name: (each.base, sorted(each.flags)) for name, each in world.nodes.items()} == {
        name: ("IDLE", [] if name in FLOOR else ["POWERED_DOWN"]) for name in NODES
    }
    assert Counter(each.name for each in world.machines) == Counter(FLOOR)
    if not any("service" in what for what, *_ in faults):  # its node is held before a job asks for it for ever
        assert max(world.refused.values(), default=0) < 600 // SUSPEND_S
    # and it still works
    world.waiting, before = 4, world.done
    world.run(600)
    assert world.done == before + 4
