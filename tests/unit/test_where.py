"""Conditions of ``--where``."""

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ems.errors import UsageError
from ems.model import State
from ems.report.frame import Frame
from ems.report.where import select
from ems.store import RunRow, Summary


def row(index, params, state=State.COMPLETED, **metrics):
    summaries = {name: Summary(v, v, v, v, 1, 0.0) for name, v in metrics.items()}
    return RunRow("e1", "train", index, params, state, "", 1, "", 1.5, None, "", "n1", "", 7, summaries)


FRAME = Frame(
    [
        row(0, {"lr": 0.1, "opt": {"name": "adam"}, "val-split": 1, "amp": True, "group": "a"}, acc=0.9),
        row(1, {"lr": 0.01, "opt": {"name": "sgd"}, "val-split": 2, "amp": False, "group": "it's"}, acc=math.nan),
        row(2, {"lr": 1e-3, "opt": {"name": "adam"}, "val-split": 3, "amp": None, "group": None}, State.FAILED),
    ]
)


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("lr < 0.1", [1, 2]),
        ("lr < 0.1 and state = 'COMPLETED'", [1]),
        ("state = 'completed'", [0, 1]),
        ("state != 'COMPLETED' or acc > .5", [0, 2]),
        ("lr <= 1e-3", [2]),
        ("lr<1E-2", [2]),
        ("opt.name = 'adam'", [0, 2]),
        ("\"opt.name\" = 'sgd'", [1]),
        ("val-split >= 2", [1, 2]),
        ("val-split - 1 = 1", [1]),
        ("group = 'it''s'", [1]),
        ("group is null", [2]),
        ("amp", [0]),
        ("amp = true", [0]),
        ("not amp", [1]),
        ("acc is null", [1, 2]),
        ("acc < 100", [0]),
        ("run in (0, 2)", [0, 2]),
        ("run between 1 and 2", [1, 2]),
        ("opt.name like 'a%'", [0, 2]),
        ("max(lr, 0.05) = 0.05", [1, 2]),
        ("abs(lr - 0.1) < 1e-9", [0]),
        ("case when lr > 0.05 then 1 else 0 end", [0]),
        ("LR < 0.1", [1, 2]),
        ("host = 'n1' and wall_s > 1 and attempt = 1", [0, 1, 2]),
        ("1", [0, 1, 2]),
    ],
)
def test_select(condition, found):
    assert select(FRAME, condition) == found


@pytest.mark.parametrize(
    ("condition", "message", "hint"),
    [
        ("lrr < 1", "there is no column `lrr`", "did you mean `lr`?"),
        ('"opt.nam" = 1', "there is no column `opt.nam`", "did you mean `opt.name`?"),
        ("state = COMPLETED", "there is no column `COMPLETED`", "single quotes: 'COMPLETED'"),
        ("opt.name = adam", "there is no column `adam`", "single quotes: 'adam'"),
        ("lr <", "cannot be read", "as in SQL"),
        ("lr < 1) or (1", None, None),
        ("lr = ?", "", "as in SQL"),
        ("nofunction(lr)", "no such function", "as in SQL"),
        ("", "cannot be read", "as in SQL"),
    ],
)
def test_a_bad_condition_is_explained(condition, message, hint):
    if message is None:
        # brackets that close ours only regroup a condition over the same columns
        assert select(FRAME, condition) == [0, 1, 2]
        return
    with pytest.raises(UsageError) as caught:
        select(FRAME, condition)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "condition",
    [
        "1); drop table t; --",
        "(select 1)",
        "lr in (select 1 from sqlite_master)",
        "load_extension('x')",
        "exists (with recursive r(n) as (select 1 union all select n from r) select n from r)",
        "attach database 'x' as y",
        "writefile('/tmp/x', 'y')",
        "randomblob(1000000000)",
    ],
)
def test_a_condition_can_do_nothing_but_compare(condition):
    with pytest.raises(UsageError):
        select(FRAME, condition)


@given(st.text(max_size=40))
def test_any_text_selects_runs_or_is_refused(condition):
    with contextlib.suppress(UsageError):
        assert set(select(FRAME, condition)) <= {0, 1, 2}


names = st.text(st.characters(codec="utf-8", exclude_characters='"`\0'), min_size=1, max_size=12)


@given(names, st.integers(-5, 5))
def test_a_param_of_any_name_can_be_asked_for_in_quotes(name, value):
    frame = Frame([row(0, {name: value}), row(1, {name: 99})])
    column = next(each for each in frame.fields.values() if each.kind == "param")
    assert select(frame, f'"{column.name}" = {value}') == [0]


def test_numbers_beyond_sqlites_integers_can_be_compared():
    assert select(Frame([row(0, {"n": 10**30}), row(1, {"n": 1})]), "n > 5") == [0]
