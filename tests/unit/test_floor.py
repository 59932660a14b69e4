"""Elastic clusters as a client sees them, where nobody has to be asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ems.cli import cluster_life, cluster_plan
from ems.cluster import floor, forecast, images, ledger, lifecycle, overview, userdata
from ems.cluster.definition import Definition
from ems.cluster.elastic.standing import Shut, Status
from ems.cluster.fleet import Fleet
from ems.cluster.problems import problems
from ems.cluster.record import Files, new
from ems.cluster.scheduler import Job, NodeState
from ems.errors import ClusterError, UsageError

CONTENT: dict[str, Any] = {
    "name": "demo",
    "provider": {"kind": "gce", "service_account": "default"},
    "controller": {"size": "e2-standard-2"},
    "nodes": {
        "gpu": {"min": 1, "max": 8, "cpus": 4, "mem_gb": 15, "size": "n1-standard-4", "gpus": 2, "gpu_type": "t4"},
        "cpu": {"count": 2, "cpus": 2, "mem_gb": 8, "size": "e2-standard-2"},
    },
    "prices": {"e2-standard-2": 1.0, "n1-standard-4": 2.0, "t4": 0.5},
}


@pytest.fixture
def definition() -> Definition:
    return Definition.model_validate(CONTENT)


def fleet(definition: Definition, *wanted: str) -> Fleet:
    record = new(definition.name, definition.model_dump(mode="json"), definition.digest)
    made = Fleet(Files(definition.name), record)
    made.record = Files(definition.name).update(record, wanted=wanted)
    return made


def test_no_more_nodes_stay_than_are_declared(definition: Definition) -> None:
    floor.check_counts(definition, {"gpu": 8, "cpu": 0})
    with pytest.raises(UsageError, match=r"9 nodes are more than demo may have of `gpu`: its `max` is 8"):
        floor.check_counts(definition, {"gpu": 9})
    with pytest.raises(UsageError, match=r"3 nodes are more than demo may have of `cpu`: its `count` is 2"):
        floor.check_counts(definition, {"cpu": 3})


def test_what_is_looked_at_before_a_start_has_every_kind(definition: Definition) -> None:
    assert floor.samples(fleet(definition, "demo-cpu-001", "demo-cpu-002")) == [
        "demo-cpu-001",
        "demo-cpu-002",
        "demo-gpu-001",
    ]
    wanted = forecast.requests(Definition.model_validate({**CONTENT, "nodes": {"gpu": CONTENT["nodes"]["gpu"]}}), {})
    assert [each.name for each in wanted] == ["demo-controller", "demo-gpu-001"]


def test_a_forecast_says_what_it_costs_at_least_and_at_most(definition: Definition) -> None:
    found = forecast.forecast(definition, {})
    assert [(each.kind, each.count, each.most) for each in found.lines] == [
        ("controller", 1, 1),
        ("gpu", 1, 8),
        ("cpu", 2, 2),
    ]
    assert (found.price_per_hour, found.most_per_hour) == (1 + 3 + 2, 1 + 8 * 3 + 2)
    assert found.price_per_gpu_hour == pytest.approx(27 / 16)
    with pytest.raises(UsageError, match="its `max` is 8"):
        forecast.forecast(definition, {"gpu": 9})


@pytest.mark.parametrize(
    ("limit", "is_good", "said"),
    [
        (10, True, None),
        (9, True, "limits: the kinds may have 10 nodes, and `limits.max_nodes` is 9: no more than 9 are there at once"),
        (2, False, "limits: 3 nodes are to stay, and `limits.max_nodes` is 2"),
    ],
)
def test_a_plan_says_when_more_nodes_may_be_than_the_limit_lets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], limit: int, is_good: bool, said: str | None
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    limited = Definition.model_validate({**CONTENT, "limits": {"max_nodes": limit}})
    monkeypatch.setattr(cluster_life, "definition_of", lambda _name: limited)
    monkeypatch.setattr(forecast, "connect", lambda _section: SimpleNamespace(check=lambda _wanted: None))
    cluster_plan.plan("demo")
    lines = capsys.readouterr().err.splitlines()
    assert [each for each in lines if each.startswith("limits")] == ([said] if said else [])
    assert (lines[-1] == "next: ems cluster start demo") is is_good
    if is_good:
        cluster_plan.check("demo")
        assert (f"`limits.max_nodes` is {limit}" in capsys.readouterr().out) is (said is not None)
    else:
        with pytest.raises(ClusterError, match="3 nodes are to stay"):
            cluster_plan.check("demo")


def test_kinds_are_shown_with_what_shuts_them(definition: Definition) -> None:
    shut = {"gpu": Shut("ZONE_RESOURCE_POOL_EXHAUSTED", "2026-11-21T12:00:00.000Z")}
    shown = overview._kinds(
        fleet(definition, "demo-gpu-001"), ["demo-controller", "demo-gpu-001", "demo-gpu-002"], Status("now", shut=shut)
    )
    assert shown == [
        overview.KindView("gpu", 2, 1, 8, "ZONE_RESOURCE_POOL_EXHAUSTED", "2026-11-21T12:00:00.000Z"),
        overview.KindView("cpu", 0, 0, 2),
    ]


def test_a_node_that_slurm_knows_before_it_is_there_says_nothing_of_itself(definition: Definition) -> None:
    assert userdata.node_facts(definition, "demo-gpu-001", "gpu")["slurmd"] == ""
    plain = Definition.model_validate({**CONTENT, "nodes": {"cpu": CONTENT["nodes"]["cpu"]}})
    assert userdata.node_facts(plain, "demo-cpu-001", "cpu")["slurmd"] == "Feature=cpu CPUs=2 RealMemory=7782"


@pytest.mark.parametrize(
    ("word", "usable", "off", "coming"),
    [
        ("idle", True, False, False),
        ("mixed", True, False, False),
        ("idle-", True, False, False),  # planned for a job
        ("idle~", False, True, False),
        ("mixed#", False, False, True),
        ("idle%", False, False, False),
        ("idle*", False, False, False),
        ("down~", False, True, False),
        ("drained", False, False, False),
    ],
)
def test_what_slurms_marks_mean(word: str, usable: bool, off: bool, coming: bool) -> None:
    state = NodeState(word, (), "")
    assert (state.is_usable, state.is_off, state.is_coming) == (usable, off, coming)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("idle", "idle"),
        ("idle~", "powered down"),
        ("mixed#", "powering up"),
        ("idle%", "powering down"),
        ("idle*", "idle, not responding"),
        ("allocated*", "allocated, not responding"),
        ("down~", "down, powered down"),
        ("drained%", "drained, powering down"),
        ("", ""),
    ],
)
def test_slurms_marks_are_told_in_words(definition: Definition, word: str, said: str) -> None:
    shown = overview._view(fleet(definition), "demo-gpu-001", None, NodeState(word, ("gpu",), ""), {}, [])
    assert (shown.machine, shown.slurm) == ("gone", said)


def test_what_the_machine_before_said_of_its_boot_is_not_said_of_one_that_is_asked_for(definition: Definition) -> None:
    asked = NodeState("mixed#", ("gpu",), "")
    assert overview._view(fleet(definition), "demo-gpu-001", None, asked, {"stage": "ready"}, []).note == ""


@pytest.mark.parametrize("line", ["ResumeProgram", "suspendexcnodes"])
def test_how_nodes_come_and_go_is_for_ems_to_say(line: str) -> None:
    found = [each.message for each in problems(Definition.model_validate({**CONTENT, "slurm": {line: "x"}}))]
    assert found == [f"`slurm.{line}` is for ems to say"]


class Slurm:
    """A SLURM that says one thing after another, and the last for ever; keeps what it was asked for."""

    def __init__(self, *said: dict[str, str]) -> None:
        self.said, self.asked = list(said), list[str]()

    def look(self) -> tuple[dict[str, NodeState], dict[str, dict[str, str]]]:
        states = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        return {name: NodeState(state, (), "", "no such size") for name, state in states.items()}, {}

    def power_up(self, nodes: list[str]) -> None:
        self.asked += nodes

    power_down = power_up
    host = SimpleNamespace(run=lambda *_, **__: None, close=lambda: None)

    def jobs(self) -> list[Job]:
        return []

    def down(self, *_: object) -> None:
        pass

    forget_boot = down


@pytest.fixture
def paper(definition: Definition, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(images, "lacking", lambda _fleet: [])
    monkeypatch.setattr(floor, "_LOOK_S", 0.001)
    monkeypatch.setattr(floor, "standing", lambda _fleet: (None, ""))
    return fleet(definition, "demo-cpu-001", "demo-gpu-001")


def test_those_that_stay_are_waited_for(paper: Fleet) -> None:
    coming = {"demo-cpu-001": "idle", "demo-gpu-001": "idle#"}
    paper.__dict__["scheduler"] = Slurm(coming, coming, dict.fromkeys(coming, "idle"))
    assert floor.join(paper) == ["demo-cpu-001", "demo-gpu-001"]
    assert paper.record.left_out == {}


def test_one_that_goes_off_again_is_asked_for_anew_and_left_out_in_the_end(
    paper: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(floor, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _s: None))
    slurm = paper.__dict__["scheduler"] = Slurm({"demo-cpu-001": "idle", "demo-gpu-001": "down~"})
    assert floor.join(paper) == ["demo-cpu-001"]
    assert set(slurm.asked) == {"demo-gpu-001"}
    assert paper.record.left_out == {"demo-gpu-001": "no such size"}


@pytest.mark.parametrize(
    ("statuses", "until", "left_out"),
    [
        (9, "2026-11-21T12:30:00.000Z", {"demo-gpu-001": "not until 12:30 UTC: QUOTA_EXCEEDED"}),
        (2, "2026-11-21T12:30:00.000Z", {}),  # as it was before it was told to try again
        (9, "2026-11-21T12:01:00.000Z", {}),
    ],
)
def test_kinds_that_cannot_be_had_for_long_are_not_waited_for(
    paper: Fleet, monkeypatch: pytest.MonkeyPatch, statuses: int, until: str, left_out: dict[str, str]
) -> None:
    shut = {"gpu": Shut("QUOTA_EXCEEDED", until)}
    said = [Status(f"2026-11-21T12:00:0{number}.000Z", shut=shut) for number in range(statuses)]
    said.append(Status("2026-11-21T12:00:09.000Z"))  # it has opened
    monkeypatch.setattr(floor, "standing", lambda _fleet: (said.pop(0) if len(said) > 1 else said[0], ""))
    monkeypatch.setattr(floor, "_HEAR_S", 0.0)
    away = {"demo-cpu-001": "idle", "demo-gpu-001": "down~"}
    paper.__dict__["scheduler"] = Slurm(*[away] * 20, dict.fromkeys(away, "idle"))
    assert floor.join(paper) == ["demo-cpu-001", *(["demo-gpu-001"] if not left_out else [])]
    assert paper.record.left_out == left_out


def test_one_that_comes_is_waited_for_though_no_other_is_made(paper: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    shut, count = {"gpu": Shut("10 boots failed; demo-gpu-001 tries", "2026-11-21T12:30:00Z")}, iter(range(10, 60))
    monkeypatch.setattr(floor, "standing", lambda _fleet: (Status(f"2026-11-21T12:00:{next(count)}Z", shut=shut), ""))
    monkeypatch.setattr(floor, "_HEAR_S", 0.0)
    coming = {"demo-cpu-001": "idle", "demo-gpu-001": "idle#"}
    paper.__dict__["scheduler"] = Slurm(*[coming] * 20, dict.fromkeys(coming, "idle"))
    assert floor.join(paper) == ["demo-cpu-001", "demo-gpu-001"]


def test_a_cluster_is_there_though_none_of_those_that_stay_can_be_had(
    paper: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[str] = []
    for name in ("arm", "keep"):
        monkeypatch.setattr(floor, name, lambda _fleet, name=name: did.append(name))
    monkeypatch.setattr(floor, "join", lambda fleet: fleet.update(left_out={"demo-gpu-001": "sold out"}) or [])
    paper.__dict__["scheduler"] = SimpleNamespace(jobs=list)
    outcome = lifecycle.settle(paper)
    assert (outcome.ready, outcome.left_out) == ((), {"demo-gpu-001": "sold out"})
    assert outcome.untried == dict.fromkeys(["gpu/gpu", "cpu/cpu"], "their nodes come with jobs")
    monkeypatch.setattr(lifecycle, "want", lambda fleet, wanted: None)
    for name in ("observe", "share"):
        monkeypatch.setattr(ledger, name, lambda _fleet: None)
    did.clear()
    lifecycle.resize(paper, {"gpu": 2})
    assert did == ["arm", "keep"], "what was shut is tried again for somebody who asks"


def test_a_pause_has_slurm_know_that_all_are_off_what_was_taken_back_too(paper: Fleet) -> None:
    states = {"demo-cpu-001": "idle", "demo-cpu-002": "down*", "demo-gpu-001": "idle~", "demo-gpu-002": "mixed#"}
    slurm = paper.__dict__["scheduler"] = Slurm(states)
    lifecycle._requeue(paper, ["demo-cpu-001", "demo-gpu-002"])
    assert slurm.asked == ["demo-cpu-001", "demo-cpu-002", "demo-gpu-002"]
