"""Runs as named columns."""

import math

import pytest

from ems.errors import UsageError
from ems.model import State
from ems.report import Goal, Stat
from ems.report.frame import Frame, Kind, did_you_mean, flatten, guess_goal, identity, pick
from ems.store import RunRow, Summary


def row(index, params, **metrics):
    summaries = {name: Summary(v, v, v, v, 1, 0.0) for name, v in metrics.items()}
    return RunRow("e1", "train", index, params, State.COMPLETED, "", 1, "", 1.5, None, "", "n1", "", 7, summaries)


@pytest.mark.parametrize(
    ("metric", "goal"),
    [("loss", "min"), ("val_loss", "min"), ("testAcc", "max"), ("test/acc", "max"), ("top1", "max"), ("RMSE", "min"),
     ("val.F1", "max"), ("x", None), ("glossary", None), ("accelerate", None), ("error_rate", "min")],
)  # fmt: skip
def test_goal_is_guessed_from_whole_words(metric, goal):
    assert guess_goal(metric) == {"min": Goal.MINIMIZE, "max": Goal.MAXIMIZE, None: None}[goal]


def test_columns_have_the_users_own_names():
    frame = Frame([row(0, {"lr": 0.1, "opt": {"name": "adam", "wd": 0}}, acc=0.9)])
    assert list(frame.fields)[:7] == ["experiment", "run", "state", "lr", "opt.name", "opt.wd", "acc"]


def test_names_that_two_things_share_are_told_apart():
    frame = Frame([row(0, {"loss": "mse", "state": "on", "seed": 3}, loss=0.2)])
    shown = {name: frame.values(frame.find(name))[0] for name in ("loss", "metric_loss", "param_state", "state")}
    assert shown == {"loss": "mse", "metric_loss": 0.2, "param_state": "on", "state": State.COMPLETED}
    assert frame.values(frame.find("seed")) == [3]
    assert frame.values(frame.find("run_seed")) == [7]
    assert frame.values(frame.find("loss", (Kind.METRIC,))) == [0.2]
    assert frame.find("param_loss") == frame.find("loss")


def test_an_unknown_name_comes_with_the_nearest():
    frame = Frame([row(0, {"lr": 0.1}, accuracy=0.9)])
    with pytest.raises(UsageError, match="no run has a metric `acuracy`") as caught:
        frame.find("acuracy", (Kind.METRIC,))
    assert caught.value.hint == "did you mean `accuracy`?"


def test_hints_list_what_there_is_when_nothing_is_near():
    assert did_you_mean("zzz", ["lr", "seed"], "there are") == "there are `lr`, `seed`"


def test_varying_params_are_those_that_differ_or_are_missing_somewhere():
    frame = Frame([row(0, {"lr": 1, "a": 1, "b": None}), row(1, {"lr": 1.0, "a": True})])
    assert [each.name for each in frame.varying] == ["a", "b"]


def test_taking_runs_keeps_the_names():
    frame = Frame([row(0, {"lr": 1}, acc=0.5), row(1, {"wd": 2})])
    taken = frame.take([1])
    assert list(taken.fields) == list(frame.fields)
    assert taken.values(taken.fields["wd"]) == [2]
    assert taken.values(taken.fields["acc"]) == [None]


SUMMARY = Summary(last=3.0, min=1.0, max=5.0, mean=2.5, n=4, last_step=9)


@pytest.mark.parametrize(
    ("stat", "goal", "value"),
    [(Stat.LAST, None, 3.0), (Stat.MIN, None, 1.0), (Stat.MAX, None, 5.0), (Stat.MEAN, None, 2.5),
     (Stat.BEST, Goal.MINIMIZE, 1.0), (Stat.BEST, Goal.MAXIMIZE, 5.0), (Stat.BEST, None, None)],
)  # fmt: skip
def test_pick(stat, goal, value):
    assert pick(SUMMARY, stat, goal) == value


def test_a_run_of_nothing_but_nan_is_nan_not_silent():
    assert math.isnan(pick(Summary(math.nan, None, None, math.nan, 3, 2), Stat.MIN))
    assert pick(Summary("done", None, None, None, 1, 0), Stat.MIN) is None
    assert pick(Summary("done", None, None, None, 1, 0), Stat.LAST) == "done"


def test_flatten_keeps_empty_mappings():
    assert flatten({"a": {"b": {"c": 1}}, "d": {}}) == {"a.b.c": 1, "d": {}}


def test_identity_knows_true_from_one_and_nan_from_nothing():
    assert identity(1) == identity(1.0)
    assert identity(True) != identity(1)
    assert identity(math.nan) == identity(math.nan)
    assert identity([1, 2]) == identity((1, 2))
    assert hash(identity({"a": [1]})) == hash(identity({"a": [1]}))
