"""Tables as text, CSV, JSON, Markdown and LaTeX."""

import csv
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ems.cli.formats import lines, write
from ems.model import State
from ems.report.statistics import Estimate
from ems.report.table import Column, Table

RUNS = Table(
    (
        Column("run", [0, 1, 10]),
        Column("lr", [0.1, 1e-5, None]),
        Column("acc", [0.98166, 0.5, None], "metric", frozenset({0})),
        Column("loss", [math.nan, math.inf, 0.25], "metric"),
        Column("state", [State.COMPLETED, State.COMPLETED, State.FAILED]),
    ),
    ("train 7f3a: 2 completed, 1 failed",),
)
GROUPS = Table(
    (
        Column("opt", ["adam_w", "a|b & c"]),
        Column("n", [3, 2], "count"),
        Column("acc", [Estimate(0.982, 0.979, 0.985, 3), Estimate(0.931, 0.89, 0.972, 1)], "metric", frozenset({0})),
        Column("acc_p", [None, 0.00001], "p", title="p"),
        Column("failed", [0, 1], "count", texts=["0", "1 of 3"]),
    ),
    ("mean ± 95 % CI",),
)


def test_the_table_is_aligned_and_says_best_in_words():
    assert lines(RUNS, None)[0] == [
        "run     lr     acc         loss  state",
        "  0    0.1  0.9817 best     nan  completed",
        "  1  1e-05  0.5000          inf  completed",
        " 10      -       -       0.2500  failed",
    ]


def test_groups_show_intervals_and_whose_n_differs():
    assert lines(GROUPS, None)[0] == [
        "opt      n                  acc              p  failed",
        "adam_w   3  0.982 ± 0.003       best         -       0",
        "a|b & c  2  0.931 ± 0.041 (n=1)       < 0.0001  1 of 3",
    ]


def test_an_asymmetric_interval_shows_its_ends():
    table = Table((Column("acc", [Estimate(0.9, 0.8, 0.93, 5), Estimate(0.5, None, None, 1)], "metric"),))
    assert lines(table, None)[0][1:] == ["0.90 [0.80, 0.93]", "0.50"]


def test_params_that_six_digits_cannot_tell_apart_are_shown_in_full():
    table = Table((Column("lr", [0.12345671, 0.12345672]),))
    assert lines(table, None)[0] == ["        lr", "0.12345671", "0.12345672"]


def test_columns_that_do_not_fit_are_named_and_the_state_stays():
    drawn, left_out = lines(RUNS, 30)
    assert left_out == ("acc", "loss")
    assert drawn[0].split() == ["run", "lr", "state"]


def test_text_ends_with_its_notes():
    assert write(RUNS, "table").endswith("\n\ntrain 7f3a: 2 completed, 1 failed\n")


def test_json_is_a_list_of_flat_objects():
    records = json.loads(write(RUNS, "json"))
    assert records[0] | {"loss": None} == {"run": 0, "lr": 0.1, "acc": 0.98166, "loss": None, "state": "COMPLETED"}
    assert math.isnan(records[0]["loss"])
    assert (records[1]["loss"], records[2]["acc"]) == (math.inf, None)
    assert json.loads(write(GROUPS, "json"))[1] == {
        "opt": "a|b & c", "n": 2, "acc": 0.931, "acc_ci_low": 0.89, "acc_ci_high": 0.972, "acc_n": 1, "acc_p": 1e-05,
        "failed": 1,
    }  # fmt: skip


def test_csv_has_full_numbers_and_one_header():
    rows = list(csv.DictReader(io.StringIO(write(RUNS, "csv"))))
    assert rows[0] == {"run": "0", "lr": "0.1", "acc": "0.98166", "loss": "nan", "state": "COMPLETED"}
    assert rows[2]["lr"] == ""


def test_an_empty_table_is_still_a_table():
    empty = Table((Column("run", []), Column("acc", [], "metric")))
    assert write(empty, "csv") == "run,acc\n"
    assert write(empty, "json") == "[]\n"
    for form in ("table", "csv", "json", "md", "latex"):
        write(empty, form)


def test_markdown_escapes_and_makes_the_best_bold():
    text = write(GROUPS, "md").splitlines()
    assert text[:4] == [
        "| opt | n | acc | p | failed |",
        "| --- | ---: | ---: | ---: | ---: |",
        r"| adam\_w | 3 | **0.982 ± 0.003** | - | 0 |",
        r"| a\|b & c | 2 | 0.931 ± 0.041 (n=1) | < 0.0001 | 1 of 3 |",
    ]


def test_latex_is_a_booktabs_tabular():
    text = write(GROUPS, "latex")
    assert r"\begin{tabular}{lrrrr}" in text
    assert r"adam\_w & 3 & \textbf{0.982 $\pm$ 0.003} & - & 0 \\" in text
    assert r"a|b \& c & 2 & 0.931 $\pm$ 0.041 (n=1) & $<$ 0.0001 & 1 of 3 \\" in text
    assert text.startswith("% mean ± 95 % CI\n")


values = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.lists(st.integers(), max_size=3)
)


@given(st.lists(st.tuples(values, st.none() | st.floats() | st.text(max_size=5)), max_size=6))
def test_anything_can_be_written_in_every_format(rows):
    table = Table((Column("p", [p for p, _ in rows]), Column("m", [m for _, m in rows], "metric")))
    for form in ("table", "md", "latex"):
        assert write(table, form)
    assert len(list(csv.reader(io.StringIO(write(table, "csv"), newline="")))) == len(rows) + 1
    back = json.loads(write(table, "json"))
    assert repr([(r["p"], r["m"]) for r in back]) == repr(rows)


@pytest.mark.parametrize("estimates", [
    [Estimate(1e-9, 0.9e-9, 1.1e-9, 3)], [Estimate(1e20, 0.9e20, 1.1e20, 3)], [Estimate(0.0, 0.0, 0.0, 2)],
    [Estimate(None, None, None, 0)], [Estimate(5.0, 5.0, 5.0, 4), Estimate(7.0, None, None, 1)],
])  # fmt: skip
def test_any_estimate_can_be_shown(estimates):
    drawn, _ = lines(Table((Column("acc", estimates, "metric"),)), None)
    assert len(drawn) == len(estimates) + 1
