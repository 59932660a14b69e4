"""What clusters have cost: the ledger, SLURM's accounting, energy, and sums that add up by whatever grouping."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ems.cluster import cost, energy, ledger, usage
from ems.cluster.cost import IDLE, Amount, By, costs, grouped, total
from ems.cluster.definition import Definition
from ems.cluster.ledger import START, STOP, Event, Ledger, Seen, Span, Step, difference, iso, spans
from ems.cluster.spans import Gist
from ems.cluster.usage import Usage, Use

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
FACTORS = energy.factors(None)


def at(hours: float) -> datetime:
    return NOON + timedelta(hours=hours)


def event(word: str = START, hours: float = 0.0, node: str = "demo-gpu-001", **more: object) -> Event:
    base = Event("i" * 32, node, "gpu", "n1", "z", False, 2.0, 4, "t4", 8, word, iso(at(hours)), "eve")
    return replace(base, **more)  # type: ignore[arg-type]  # of the event's own names


def use(
    begin: float, end: float | None, gpus: int = 1, node: str = "demo-gpu-001", name: str = "x", user: str = "eve"
) -> Use:
    return Use(f"{name}{begin}", name, user, (node,), 2, gpus, at(begin), None if end is None else at(end))


# -- the ledger -------------------------------------------------------------------------------------------------

_EVENTS = st.lists(
    st.builds(
        event,
        st.sampled_from([START, STOP]),
        st.integers(0, 40).map(lambda n: n / 4),
        st.sampled_from(["demo-gpu-001", "demo-gpu-002", "demo-controller"]),
        size=st.sampled_from(["n1", "n2"]),
    ),
    max_size=25,
)


@settings(max_examples=40)
@given(_EVENTS, st.integers(0, 60))
def test_a_ledger_that_is_read_twice_or_is_torn_counts_once(events: list[Event], torn: int) -> None:
    text = ledger.dump(events)
    assert ledger.parse(text) == list(dict.fromkeys(events))
    once, twice = spans(ledger.parse(text)), spans(ledger.parse(text + text))
    assert once == twice
    last = ledger.dump([event(node="demo-gpu-999")])
    assert ledger.parse(text + last[: min(torn, len(last) - 2)]) == ledger.parse(text)
    for node in {each.start.node for each in once}:  # a machine never costs twice at a time
        own = [each for each in once if each.start.node == node]
        assert all(one.end is not None and one.end <= other.begin for one, other in pairwise(own))


@settings(max_examples=60)
@given(st.lists(st.frozensets(st.sampled_from("abc")), max_size=8), st.data())
def test_however_often_commands_look_each_machine_counts_as_long_as_it_was_there(
    there: list[frozenset[str]], data: st.DataObject
) -> None:
    """Each step of time some machines are there; a look that is lost with its command is made up by the next."""
    events: list[Event] = []
    for hour, nodes in enumerate(there):
        seen = {}
        for node in nodes:
            since = hour
            while since and node in there[since - 1]:
                since -= 1
            seen[node] = Seen(event(node=node), at(since))
        is_last = hour == len(there) - 1
        changed = hour and there[hour - 1] != nodes
        for _ in range(2 if changed or is_last or not hour else data.draw(st.integers(0, 2))):
            new = difference(events, seen, (), at(hour))
            events += new
            assert not new or not difference(events, seen, (), at(hour)), "to look again adds nothing"
    hours = sum(((each.end or at(max(len(there) - 1, 0))) - each.begin) / timedelta(hours=1) for each in spans(events))
    assert hours == sum(len(nodes) for nodes in there[:-1])


def test_what_a_killed_command_did_is_known_by_the_journal() -> None:
    steps = [
        Step(at(1), "create", frozenset({"demo-gpu-001"})),
        Step(at(3), "destroy", frozenset({"demo-gpu-001"})),
        Step(at(5), "wake", frozenset({"demo-gpu-001"})),
    ]
    [started] = difference([], {"demo-gpu-001": Seen(event())}, steps[:1], at(2))
    assert started.moment == at(1)
    [stopped] = difference([started], {}, steps[:2], at(9))
    assert (stopped.event, stopped.moment) == (STOP, at(3))
    woken = Seen(event(), created=at(1))  # a machine that was stopped keeps the day of its making
    [again] = difference([started, stopped], {"demo-gpu-001": woken}, steps, at(9))
    assert (again.event, again.moment) == (START, at(5))
    [lease] = difference([started], {}, (), at(99), timedelta(hours=12))
    assert lease.moment == at(13), "the cloud deleted it when its time was up"


def test_a_machine_that_was_made_anew_is_another_one() -> None:
    first = event(hours=0)
    anew = Seen(event(size="n2", usd_per_hour=9.0), at(4))
    stop, start = difference([first], {"demo-gpu-001": anew}, (), at(6))
    assert (stop.event, stop.moment, start.usd_per_hour, start.moment) == (STOP, at(4), 9.0, at(4))
    assert difference([first, stop, start], {"demo-gpu-001": anew}, (), at(7)) == []


def test_the_file_takes_each_line_once_and_goes_on_after_a_torn_one() -> None:
    book = Ledger("demo")
    assert (book.events(), ledger.names()) == ([], [])
    book.add("i" * 32, lambda _: [event()])
    with book.path.open("a") as file:
        file.write('{"id": "torn')
    book.add("i" * 32, lambda there: [*there, event(STOP, 2)])
    assert book.events() == [event(), event(STOP, 2)]
    assert len(book.path.read_text().splitlines()) == 3
    assert ledger.names() == ["demo"]


@settings(max_examples=100)
@given(_EVENTS, st.integers(1, 8), st.booleans())
@example([event(size="n1"), event(size="n2"), event(hours=1, size="n1")], 1, True)  # one of no time
def test_the_gist_of_a_ledger_says_what_runs_when_the_others_ended_and_what_they_cost(
    events: list[Event], step: int, in_order: bool
) -> None:
    """However the ledger was read part by part; what is older than the gist remembers has it read anew."""
    events = sorted(events, key=lambda each: each.at) if in_order else events
    gist = Gist("i" * 32)
    for end in range(step, len(events) + step, step):
        part = [*events[end - step : end], event(node="demo-gpu-009", id="another incarnation")]
        found = gist.then(part, end)
        assert found is not None or not in_order
        gist = found or Gist("i" * 32).then(events[:end], end) or gist
        gist = Gist.parse(gist.dump(), "i" * 32)
        whole, short = spans(events[:end]), spans(gist.events)
        assert [each for each in short if each.end is None] == [each for each in whole if each.end is None]
        ends, known = ({each.start.node: each.end for each in part if each.end} for part in (whole, short))
        assert known == ends
        paid = sum(each.usd(at(99)) or 0 for each in short) + (gist.usd or 0)
        assert paid == pytest.approx(sum(each.usd(at(99)) or 0 for each in whole))
    if in_order:
        lasting = [each.start.node for each in spans(gist.events) if each.end is not None and each.end > each.begin]
        assert len(lasting) == len({*lasting}), "one for each machine"
    assert Gist.parse(gist.dump()[:-9], "i" * 32) == Gist("i" * 32), "one that is torn is none"


def test_a_change_of_a_long_ledger_reads_only_what_was_added_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_FAR", 2000)
    book, many = Ledger("demo"), [event([START, STOP][hour % 2], hour / 2) for hour in range(100)]
    for each in [*many, event(START, 51, node="demo-gpu-002")]:
        book.add("i" * 32, lambda _, each=each: [each])
    book.add("i" * 32, lambda _: [event(START, 52)])
    whole = book.path.read_text()
    assert book.events() == [*many, event(START, 51, node="demo-gpu-002"), event(START, 52)]
    there: list[Event] = []
    book.path.write_text(re.sub("[^\n]", " ", whole[:-4000]) + whole[-4000:])  # who reads this sees no more of it
    book.add("i" * 32, lambda known: there.extend(known) or [])
    assert len(there) < 20
    assert [(each.start.node[-1], each.end) for each in spans(there)][-2:] == [("2", None), ("1", None)]
    known = book.gist("i" * 32)
    assert sum(each.usd(at(52)) or 0 for each in spans(known.events)) + (known.usd or 0) == 50 * 1.0 + 2 * 1.0
    book.path.write_text(whole)
    late = event(START, 0.25, node="demo-gpu-003")
    for each in (late, event(STOP, 0.1)):  # what comes late is put where it belongs
        book.add("i" * 32, lambda _, each=each: [each])
        assert book.gist("i" * 32).then([], 0) is not None
    assert {each.start.node[-1] for each in spans(book.gist("i" * 32).events)} == {"1", "2", "3"}
    book.path.write_text(ledger.dump([late]))  # another file, shorter than the gist knows it
    assert book.gist("i" * 32).events == (late,)
    assert book.gist("j" * 32).events == ()


# -- costs ------------------------------------------------------------------------------------------------------

_SPANS = st.lists(
    st.builds(
        lambda node, begin, length, usd, gpus: Span(
            event(START, begin, node, kind=node[5:8], usd_per_hour=usd, gpus=gpus), at(begin + length)
        ),
        st.sampled_from(["demo-gpu-001", "demo-cpu-001"]),
        st.integers(0, 60),
        st.integers(1, 60),
        st.sampled_from([None, 0.0, 2.5]),
        st.sampled_from([0, 4]),
    ),
    max_size=4,
)
_USES = st.lists(
    st.builds(
        use,
        st.integers(-10, 100),
        st.none() | st.integers(-5, 120),
        st.integers(0, 4),
        st.sampled_from(["demo-gpu-001", "demo-cpu-001"]),
        st.sampled_from(["ems-7f3a9c21.0", "ems-00000000.3", "theirs"]),
        st.sampled_from(["eve", "bob"]),
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(_SPANS, _USES, st.sampled_from([{}, {"demo-gpu-001": 8, "demo-cpu-001": 2}]))
def test_sums_add_up_to_what_the_machines_cost_by_whatever_they_are_grouped(
    times: list[Span], uses: list[Use], cpus: dict[str, int]
) -> None:
    found = costs(times, Usage(tuple(uses), cpus), FACTORS, at(200))
    hours = [((each.end or at(200)) - each.begin) / timedelta(hours=1) for each in times]
    whole = total(found.values())
    priced = [(each.start.usd_per_hour, length) for each, length in zip(times, hours, strict=True)]
    assert whole.hours == pytest.approx(sum(hours))
    assert whole.gpu_hours == pytest.approx(sum(h * each.start.gpus for each, h in zip(times, hours, strict=True)))
    assert whole.known_usd == pytest.approx(sum(usd * length for usd, length in priced if usd is not None))
    assert (whole.usd is None) == any(usd is None for usd, _ in priced), "unknown is never 0"
    for by in By:
        sums = total(grouped(found, by).values())
        for name in Amount.__slots__:
            assert getattr(sums, name) == pytest.approx(getattr(whole, name))
    assert all(amount.hours >= 0 for amount in found.values())


def test_a_job_pays_for_its_part_of_the_gpus_and_the_rest_is_idle() -> None:
    machine = Span(event(hours=0), at(24))  # from noon to noon, $2 an hour, four GPUs
    ours = use(6, 18, gpus=1, name="ems-7f3a9c21.4")
    theirs = use(20, None, gpus=2, name="train", user="bob")
    found = costs([machine], Usage((ours, theirs), {"demo-gpu-001": 8}), FACTORS, at(24))
    by = {word: each.usd for word, each in grouped(found, By.EXPERIMENT).items()}
    assert by == pytest.approx({"7f3a9c21": 12 * 2 / 4, "other": 4 * 2 / 2, IDLE: 48 - 6 - 4})
    users = grouped(found, By.USER)
    assert {word: each.gpu_hours for word, each in users.items()} == pytest.approx({"eve": 12, "bob": 8, IDLE: 76})
    days = grouped(found, By.DAY)
    assert {day: each.hours for day, each in days.items()} == pytest.approx({"2026-03-01": 12, "2026-03-02": 12})
    kwh = 24 * (4 * 70 + 8 * 6) * 1.56 / 1000  # TDP of a T4, 6 W a thread, the world's mean PUE
    assert total(found.values()).kwh == pytest.approx(kwh)


def test_a_node_without_gpus_is_shared_by_its_cpus() -> None:
    assert cost.part_of_node(2, 0, 1, 0, 8) == 0.25
    assert cost.part_of_node(16, 0, 4, 0, 8) == 0.5, "of each of four nodes"
    assert cost.part_of_node(8, 1, 1, 4, 8) == 0.25, "its GPUs are what it costs"
    assert cost.part_of_node(2, 0, 1, 4, 8) == 0.25, "who has none pays by CPUs"
    assert cost.part_of_node(2, 0, 1, 0, None) == 1.0


def test_a_run_costs_its_part_of_its_nodes_in_all_its_attempts() -> None:
    book = [Span(event(hours=0), at(5)), Span(event(hours=6, usd_per_hour=4.0))]
    attempts = [cost.Stretch("demo-gpu-001", at(1), 3600), cost.Stretch("demo-gpu-001", at(7), 1800)]
    assert cost.of_run(attempts, book, {}, 2, 1, 1) == pytest.approx(2 / 4 + 4 / 4 / 2)
    assert cost.of_run(attempts, book, {"demo-gpu-001": 16}, 2, 0, 1) == pytest.approx(2 / 8 + 4 / 8 / 2)
    assert cost.of_run([], book, {}, 1, 1, 1) == 0.0
    elsewhere = cost.Stretch("theirs", at(1), 60)
    assert cost.of_run([*attempts, elsewhere], book, {}, 2, 1, 1) is None, "unknown is never 0"
    unpriced = [Span(event(usd_per_hour=None))]
    assert cost.of_run(attempts, unpriced, {}, 2, 1, 1) is None


def test_energy_is_reckoned_by_factors_that_are_named_and_may_be_said() -> None:
    def content(**more: object) -> Definition:
        return Definition.model_validate({"name": "demo", "provider": "gce", "nodes": {"cpu": {}}, **more})

    google = energy.factors(content())
    assert (google.pue, google.g_co2e_per_kwh) == (1.09, 412.72)
    assert "us-central1" in google.sources[3]
    own = energy.factors(content(energy={"pue": 1.5, "watts": {"mi300": 750}, "watts_per_cpu": 4}))
    assert own.kw(2, "mi300", 10) == pytest.approx((2 * 750 + 10 * 4) * 1.5 / 1000)
    assert "definition's own" in own.sources[2]
    assert own.kw(1, "x9", 10) is None
    assert own.kw(0, "", None) is None, "unknown is never 0"
    assert energy.factors(None).g_co2e_per_kwh == 473


# -- SLURM's accounting -----------------------------------------------------------------------------------------


def test_what_slurm_says_is_read() -> None:
    text = """cpus|demo-controller|2
cpus|demo-gpu-001|8
job|12_3|ems-7f3a9c21.0|eve|1772366400|1772370000|demo-gpu-[001-002]|billing=4,cpu=4,gres/gpu:t4=2,gres/gpu=2,mem=2G,node=2|cpu=2,gres/gpu=2
job|13|odd|name|bob|1772366400|Unknown|demo-gpu-001|cpu=1,mem=1G,node=1|cpu=1,mem=1G
job|14_[4-7]|waits|bob|Unknown|Unknown|None assigned||cpu=1
job|15|left|bob|1772366400|1772366400|None assigned||cpu=1,gres/gpu=1
job|16|wordless|bob|1772366400|1772370000|demo-gpu-001|billing=1,cpu=2,mem=1G|cpu=1,gres/gpu=4,node=1
job|torn
asked
"""
    found = usage.parse(text, NOON)
    first, second, left, wordless = found.uses
    assert (first.experiment, first.nodes, first.cpus, first.gpus) == (
        "7f3a9c21",
        ("demo-gpu-001", "demo-gpu-002"),
        4,
        2,
    )
    assert (first.begin, first.end) == (NOON, at(1))
    assert (second.name, second.user, second.end, second.experiment) == ("odd|name", "bob", None, usage.OTHER)
    assert (left.cpus, left.gpus) == (0, 0), "it never had anything"
    assert (wordless.cpus, wordless.gpus) == (2, 4), (
        "GPUs that SLURM forgot to write down are those that were asked for"
    )
    assert found.cpus == {"demo-controller": 2, "demo-gpu-001": 8}
    assert found.asked == NOON
    assert usage.parse("cpus|a|2\n", NOON).asked is None, "no accounting there"


def test_a_job_that_has_ended_meanwhile_counts_once() -> None:
    running, over = use(0, None), use(0, 2)
    assert usage.merged(Usage((running,)), Usage((over,), {"a": 1}, NOON)) == Usage((over,), {"a": 1}, NOON)
    assert usage.load("demo", "i") == Usage()
