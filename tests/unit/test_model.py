"""The nouns: what a state, an address, a time limit and a GPU request mean."""

from __future__ import annotations

import pytest

from ems.errors import UsageError
from ems.model import Address, Resources, State


def test_only_three_states_are_finished() -> None:
    assert {state for state in State if state.is_finished} == {State.COMPLETED, State.FAILED, State.CANCELLED}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("last", Address("last")),
        ("7f3a9c21/", Address("7f3a9c21")),
        ("last/3", Address("last", 3)),
        ("train/12/checkpoint/last.pt", Address("train", 12, "checkpoint/last.pt")),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    assert Address.parse(text) == expected


@pytest.mark.parametrize("text", ["", "/", "a b", "last/x", "last//3", "last/-1"])
def test_what_is_no_address_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="not an address"):
        Address.parse(text)


def test_an_address_prints_as_typed() -> None:
    assert str(Address.parse("last/3/model.pt")) == "last/3/model.pt"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:30", 90.5),
        ("1:30:00", 90),
        ("2-12", 3600),
        ("2-12:30", 3630),
        ("1-0:0:30", 1440.5),
        ("UNLIMITED", None),
    ],
)
def test_time_limits_in_sbatch_forms(text: str, minutes: float | None) -> None:
    assert Resources(time=text).time_min == minutes


@pytest.mark.parametrize("text", ["", "1h", "-5", "1:2:3:4", "1.5"])
def test_what_is_no_time_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a time limit"):
        _ = Resources(time=text).time_min


@pytest.mark.parametrize(
    ("resources", "count"),
    [
        (Resources(), 0),
        (Resources(gres="gpu"), 1),
        (Resources(gres="gpu:2"), 2),
        (Resources(gres="gpu:a100:2"), 2),
        (Resources(gres="tmpdisk:5,gpu:3"), 3),
        (Resources(gpus="4"), 4),
        (Resources(gpus="a100:4"), 4),
    ],
)
def test_gpus_asked_for(resources: Resources, count: int) -> None:
    assert resources.gpus_per_run == count
