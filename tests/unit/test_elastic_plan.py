"""What becomes of nodes that come and go: the table, and worlds in which everything goes wrong and then calms down."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ems.cluster.definition import Definition
from ems.cluster.elastic.breaker import Shut
from ems.cluster.elastic.control import Node
from ems.cluster.elastic.reconcile import Act, Memory, Pace, plan
from ems.cluster.elastic.table import OFF, OURS, TABLE, Standing, Verb, Vm, standing
from ems.cluster.provider.base import MachineState, Resource, Thing


def node(name: str = "c-gpu-001", base: str = "IDLE", *flags: str, reason: str = "", address: str = "") -> Node:
    return Node(name, base, frozenset({"CLOUD", *flags}), reason, address=address)


def machine(name: str = "c-gpu-001", state: str = "running", id_: str = "", address: str = "") -> Resource:
    return Resource(Thing.MACHINE, id_ or f"id-{name}", name, {}, MachineState(state), address)


class Watch:
    """Looks again and again, as the service does."""

    def __init__(self) -> None:
        self.memory, self.now = Memory("c"), 1000.0

    def look(
        self, machines: list[Resource], nodes: list[Node], looks: int = 2, step_s: float = 120.0, **known: Any
    ) -> list[Act]:
        """Look at what does not change; returns what is planned at the last look, which is not done."""
        states = {each.name: each for each in nodes}
        for _ in range(looks):
            self.now += step_s
            self.memory = self.memory.look(machines, states, self.now, **known)
            acts = plan(machines, states, self.memory, self.now)
        return acts


@pytest.fixture
def watch() -> Watch:
    return Watch()


def verbs(acts: list[Act]) -> list[str]:
    return [act.verb.value for act in acts]


# -- the table --------------------------------------------------------------------------------------------------------


def test_the_table_says_something_for_everything_and_keeps_machines_of_nodes_that_serve() -> None:
    assert TABLE.keys() == {(vm, each) for vm in Vm for each in Standing}
    serving = {Standing.IDLE, Standing.BUSY, Standing.KEPT, Standing.AILING, Standing.DOWN}
    for (vm, found), cell in TABLE.items():
        assert not (found in serving and Verb.DESTROY in cell.verbs)
        # no machine of a node that SLURM has let go of stays, and nothing is deleted that is not there
        assert (Verb.DESTROY in cell.verbs) or not (found in OFF and vm is not Vm.ABSENT)
        assert not (vm is Vm.ABSENT and Verb.DESTROY in cell.verbs)
        assert not (vm is not Vm.ABSENT and Verb.CREATE in cell.verbs)


@pytest.mark.parametrize(
    ("base", "flags", "reason", "found"),
    [
        ("IDLE", "POWERED_DOWN", "", "resting"),
        ("IDLE", "NOT_RESPONDING POWERED_DOWN", "", "mute"),
        ("IDLE", "NOT_RESPONDING POWERED_DOWN POWER_DOWN", "", "mute"),
        ("DOWN", "NOT_RESPONDING POWERED_DOWN", "ResumeTimeout reached", "mute"),
        ("DOWN", "POWERED_DOWN", "somebody", "downed"),
        ("IDLE", "DRAIN POWERED_DOWN", "Kill task failed", "downed"),
        ("IDLE", "DRAIN POWERED_DOWN", "fan is loud", "parked"),
        ("MIXED", "POWERED_DOWN", "", "coming"),
        ("MIXED", "NOT_RESPONDING POWERING_UP", "", "coming"),
        ("DOWN", "NOT_RESPONDING POWERING_UP", "ems: sold out", "coming"),
        ("IDLE", "POWERED_DOWN POWER_UP", "", "coming"),
        ("IDLE", "POWERING_DOWN", "ems: sold out", "going"),
        ("ALLOCATED", "POWERING_DOWN", "", "going"),
        ("IDLE", "POWER_DOWN", "", "idle"),
        ("ALLOCATED", "POWER_DOWN", "", "busy"),
        ("ALLOCATED", "NOT_RESPONDING", "", "busy"),
        ("IDLE", "COMPLETING DRAIN", "Kill task failed", "busy"),
        ("MIXED", "DRAIN", "fan is loud", "busy"),
        ("IDLE", "PLANNED", "", "idle"),
        ("IDLE", "DRAIN", "Low RealMemory (reported:1 < 90.00% of configured:2)", "ailing"),
        ("IDLE", "DRAIN", "fan is loud", "kept"),
        ("DOWN", "NOT_RESPONDING", "Not responding", "down"),
        ("DOWN", "POWER_DOWN", "ems: its machine is gone", "down"),
        ("DOWN", "NOT_RESPONDING POWER_DOWN", "ems: its machine is gone", "down"),
        ("DOWN", "DRAIN", "ems: preempted: the cloud takes this machine back", "down"),
        ("UNKNOWN", "", "", "busy"),
        ("LATER", "NEW_WORD", "", "busy"),
    ],
)
def test_how_slurm_stands_to_a_node(base: str, flags: str, reason: str, found: str) -> None:
    assert standing(node("c-gpu-001", base, *flags.split(), reason=reason)) == found


def test_a_kind_that_is_shut_and_the_floor_change_how_it_stands_only_to_nodes_that_are_off() -> None:
    resting, down = node("n", "IDLE", "POWERED_DOWN"), node("n", "DOWN", "POWERED_DOWN", reason="ems: sold out")
    assert standing(None) is Standing.STRANGER
    assert standing(resting, is_floor=True) is Standing.WANTED
    assert standing(resting, is_floor=True, closed="sold out") is Standing.CLOSED
    assert standing(down, closed="sold out") is Standing.HELD
    assert standing(node("n", "IDLE", "POWERING_DOWN", reason="ems: sold out"), closed="sold out") is Standing.CLOSING
    assert standing(node("n", "DOWN", "POWERING_DOWN", reason="ems: sold out"), closed="sold out") is Standing.GOING
    assert standing(node("n", "DOWN", "POWERED_DOWN", reason="ResumeTimeout reached"), closed="x") is Standing.CLOSED
    assert standing(down) is Standing.DOWNED
    assert standing(node("n", "IDLE"), is_floor=True, closed="sold out") is Standing.IDLE


# -- one look after another -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["running", "starting", "stopped", "failed"])
def test_a_machine_that_nobody_needs_goes_once_it_is_old_and_was_seen_twice(state: str) -> None:
    for nodes in ([node("c-gpu-001", "IDLE", "POWERED_DOWN")], [node("c-gpu-002", "IDLE", "POWERED_DOWN")]):
        watch, there = Watch(), [machine(state=state)]
        assert not watch.look(there, nodes, looks=1)
        assert not watch.look(there, nodes, looks=1, step_s=119)
        acts = watch.look(there, nodes, looks=1, step_s=2)
        assert [(act.verb, act.machine) for act in acts] == [("destroy", there[0])]
        watch.memory = watch.memory.did(acts, watch.now)
        assert not watch.look(there, nodes, looks=1, step_s=30)
        assert watch.look(there, nodes, looks=1)


def test_a_node_is_lost_when_two_listings_in_a_row_lack_its_machine_and_what_it_had_is_told(watch: Watch) -> None:
    busy = [node("c-gpu-001", "ALLOCATED")]
    watch.look([machine()], busy)
    assert not watch.look([], busy, looks=1)
    assert watch.memory.is_unsure
    assert not watch.look([machine()], busy, looks=1)
    assert not watch.look([], busy, looks=1)
    acts = watch.look([], busy, looks=1)
    assert verbs(acts) == ["down", "power_down"]
    assert acts[0].why == "ems: its machine is gone"
    assert acts[0].machine == machine()
    assert not watch.memory.is_unsure


def test_a_node_that_serves_although_its_machine_is_not_listed_yet_is_left_alone_for_a_while(watch: Watch) -> None:
    for _ in range(11):
        assert not watch.look([], [node()], looks=1, step_s=10)
    assert verbs(watch.look([], [node()], looks=2, step_s=10)) == ["down", "power_down"]


def test_what_was_seen_before_a_long_gap_confirms_nothing(watch: Watch) -> None:
    watch.look([machine()], [node("c-gpu-001", "MIXED")])
    assert not watch.look([], [node("c-gpu-001", "MIXED")], looks=1)
    assert not watch.look([], [node("c-gpu-001", "MIXED")], looks=1, step_s=900)
    assert not watch.look([], [node("c-gpu-001", "MIXED")], looks=1, step_s=110)
    assert watch.look([], [node("c-gpu-001", "MIXED")], looks=1, step_s=30)


def test_a_boot_may_take_as_long_as_slurm_waits_for_it(watch: Watch) -> None:
    coming = [node("c-gpu-001", "MIXED", "POWERING_UP")]
    assert not watch.look([machine()], coming, looks=6)
    assert verbs(watch.look([machine()], coming, looks=1)) == ["down", "power_down"]

    said: dict[str, Any] = {"name": "c", "provider": "gce", "nodes": {"gpu": {"max": 2, "cpus": 1, "mem_gb": 1}}}
    assert Pace.of(Definition.model_validate(said)) == Pace()
    assert Pace.of(Definition.model_validate({**said, "slurm": {"resumetimeout": 1800}})).boot_s == 1860
    options = {"p": {"nodes": ["gpu"], "options": {"ResumeTimeout": "INFINITE"}}}
    assert Pace.of(Definition.model_validate({**said, "partitions": options})).boot_s == math.inf


def test_of_two_machines_of_one_name_the_younger_goes_unless_it_is_the_one_that_serves(watch: Watch) -> None:
    older, younger = machine(id_="a", address="10.0.0.1"), machine(id_="b", address="10.0.0.2")
    watch.look([older], [node()])
    assert not watch.look([older, younger], [node()], step_s=30)  # it is young
    for address, goes in (("c-gpu-001", "b"), ("10.0.0.1", "b"), ("10.0.0.2", "a")):
        acts = watch.look([younger, older], [node("c-gpu-001", "MIXED", address=address)])
        assert [(act.verb, act.machine.id) for act in acts if act.machine] == [("destroy", goes)]


def test_a_machine_from_before_its_node_was_powered_up_is_made_anew(watch: Watch) -> None:
    """Its slurmd does not register again: SLURM waits for one that booted after it was asked for."""
    coming = [node("c-gpu-001", "MIXED", "NOT_RESPONDING", "POWERING_UP")]
    watch.look([machine()], [node("c-gpu-001", "IDLE", "POWERED_DOWN")], looks=1)
    assert verbs(watch.look([machine()], coming)) == ["destroy"]
    assert verbs(watch.look([], coming)) == ["create"]
    assert not watch.look([machine(id_="new")], coming, looks=4)


def test_nodes_of_a_kind_that_is_shut_are_held_and_the_floor_comes_by_itself(watch: Watch) -> None:
    shut = {"gpu": Shut("sold out everywhere", 9e9)}
    resting = [node("c-gpu-001", "IDLE", "POWERED_DOWN"), node("c-cpu-001", "IDLE", "POWERED_DOWN")]
    acts = watch.look([], resting, shut=shut, floor=["c-gpu-001", "c-cpu-001"])
    assert [(act.verb, act.node, act.why) for act in acts] == [
        ("down", "c-gpu-001", "ems: sold out everywhere"),
        ("power_up", "c-cpu-001", "ems: it is one of those that stay"),
    ]
    held = [node("c-gpu-001", "DOWN", "POWERED_DOWN", reason=f"{OURS}sold out everywhere")]
    assert not watch.look([], held, shut=shut)
    assert verbs(watch.look([], held)) == ["release"]


def test_nothing_is_believed_of_a_slurm_without_nodes_and_what_is_of_others_is_left_alone(watch: Watch) -> None:
    assert not watch.look([machine()], [], looks=3)
    others = [machine("d-gpu-001"), machine("c-controller"), machine("c-gpu-0001"), machine("c-gpu-002")]
    static = Node("c-gpu-002", "DOWN", frozenset({"POWERED_DOWN"}))
    assert not watch.look(others, [node("c-gpu-001", "IDLE", "POWERED_DOWN"), static], looks=3)


def test_boots_are_told_apart(watch: Watch) -> None:
    coming = [node(f"c-gpu-00{number}", "MIXED", "POWERING_UP") for number in range(1, 6)]
    machines = [machine(each.name) for each in coming[:4]]  # the fifth was never made
    watch.look(machines, coming, looks=1)
    came = [
        node("c-gpu-001", "MIXED"),
        node("c-gpu-002", "DOWN", "POWERED_DOWN", "NOT_RESPONDING", reason="ResumeTimeout reached"),
        node("c-gpu-003", "IDLE", "DRAIN", reason="Low RealMemory"),
        node("c-gpu-004", "MIXED", "POWERING_UP"),
        node("c-gpu-005", "DOWN", "POWERED_DOWN", reason="ems: no quota"),
    ]
    watch.look(machines, came, looks=1)
    assert {boot.node[-1]: boot.registered for boot in watch.memory.boots} == {"1": True, "2": False, "3": False}
    watch.look(machines, came, looks=1)
    assert not watch.memory.boots
