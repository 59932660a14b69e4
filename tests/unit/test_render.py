"""Tables, numbers and words as commands print them."""

import io
import math
import sys
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from ems.cli import render
from ems.cli.render import Column, layout
from ems.errors import EmsError
from ems.model import State
from ems.report.curve import MARKERS


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.98166, 0.5], ["0.9817", "0.5000"]),
        ([0.98166, 1.0], ["0.982", "1.000"]),
        ([12.5, 0.0012, None, math.nan], ["12.50", "0.0012", "-", "nan"]),
        ([1.0, 20.0], ["1", "20"]),
        ([3e-8, 1.25e-7], ["3.000e-08", "1.250e-07"]),
        ([math.inf, -math.inf], ["inf", "-inf"]),
        ([1e12, 2.5], ["1.000e+12", "2.500e+00"]),
        ([0.0, 0.25], ["0.0000", "0.2500"]),
        ([], []),
    ],
)
def test_a_column_of_numbers_has_the_digits_it_deserves(values, shown):
    assert render.numbers(values) == shown


@given(st.lists(st.none() | st.floats()))
def test_any_numbers_can_be_shown(values):
    assert len(render.numbers(values)) == len(values)


@given(st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=20))
def test_shown_numbers_are_near_the_true_ones(values):
    for value, shown in zip(values, render.numbers(values), strict=True):
        assert float(shown) == pytest.approx(value, rel=0.06)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.1, "0.1"), (1e-5, "1e-05"), (0.0031622776, "0.00316228"), (10, "10"), (2.0, "2"), (True, "true"),
        (None, "null"), ("adam", "adam"), ([1, "a"], '[1,"a"]'), ({"a": 1}, '{"a":1}'), ("a\nb", "a\\nb"),
    ],
)  # fmt: skip
def test_a_param_is_shown_as_it_was_typed(value, shown):
    assert render.value_text(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.42, "0.4 s"), (12.3, "12 s"), (59.4, "59 s"), (59.9, "1:00"), (761, "12:41"), (3723, "1:02:03"),
     (183840, "2d 03:04"), (None, "-")],
)  # fmt: skip
def test_duration(seconds, shown):
    assert render.duration(seconds) == shown


@pytest.mark.parametrize(
    ("n_bytes", "shown"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (20e6, "20 MB"), (3e15, "3000 TB")]
)
def test_size(n_bytes, shown):
    assert render.size(n_bytes) == shown


@pytest.mark.parametrize(
    ("then", "shown"),
    [("2026-11-21T09:29:48.000Z", "12 s ago"), ("2026-11-21T09:25:00.000Z", "5 min ago"), ("", "-"),
     ("2026-11-21T06:00:00.000Z", "3 h ago"), ("2026-11-19T09:30:00.000Z", "2 days ago")],
)  # fmt: skip
def test_ago(then, shown):
    assert render.ago(then, datetime(2026, 11, 21, 9, 30, tzinfo=UTC)) == shown


def test_clock_names_the_day_unless_it_is_today():
    assert render.clock("2020-01-02T03:04:05.000Z").startswith("2020-01-0")
    while True:
        now = datetime.now(UTC)
        shown = render.clock(now.isoformat())
        if datetime.now().astimezone().date() == now.astimezone().date():  # else it was midnight in between
            break
    assert len(shown) == len("12:34")
    assert render.clock("not a time") == "-"


def test_state_words_follow_the_life_of_a_run():
    assert render.state_words({State.FAILED: 1, State.COMPLETED: 1200, State.RUNNING: 0}) == "1,200 completed, 1 failed"
    assert render.state_words({}) == "no runs"


COLUMNS = [Column("run", right=True, keep=True), Column("name", cut=True), Column("acc", right=True), Column("state")]
ROWS = [("0", "a name that is long", "0.98", "completed"), ("10", "short", "0.5", "failed")]


def test_columns_are_aligned_and_nothing_trails():
    assert layout(COLUMNS, ROWS).lines == [
        "run  name                  acc  state",
        "  0  a name that is long  0.98  completed",
        " 10  short                 0.5  failed",
    ]


def test_a_narrow_terminal_cuts_text_before_it_loses_columns():
    cut = layout(COLUMNS, ROWS, 34)
    assert cut.lines[1] == "  0  a name that…  0.98  completed"
    assert cut.left_out == ()


def test_a_very_narrow_terminal_says_which_columns_it_leaves_out():
    cut = layout(COLUMNS, ROWS, 20)
    assert cut.left_out == ("state",)
    assert all(len(line) <= 20 for line in cut.lines)


text = st.text(max_size=20)


@given(st.lists(st.tuples(text, text, text), max_size=8), st.integers(12, 60))
def test_no_line_is_wider_than_asked_and_none_breaks(rows, width):
    columns = [Column("a", cut=True), Column("b", cut=True, right=True), Column("c", cut=True)]
    drawn = layout(columns, rows, width)
    assert len(drawn.lines) == len(rows) + 1
    assert all(cell_len(line) <= width for line in drawn.lines)
    assert all(line.isprintable() or line == "" for line in map(_without_odd_spaces, drawn.lines))


def _without_odd_spaces(line):
    # unassigned and private characters are not "printable" to Python but move no cursor
    return "".join(c for c in line if ord(c) < 128)


def test_escape_codes_in_a_cell_do_not_reach_the_terminal():
    assert "\x1b" not in "".join(layout([Column("p")], [("\x1b[31mred\nnext",)]).lines)


def test_wide_characters_keep_columns_aligned():
    lines = layout([Column("名前"), Column("x")], [("名", "1"), ("é", "2")]).lines
    assert {cell_len(line[: line.index(mark)]) for line, mark in zip(lines, "x12", strict=True)} == {6}


def test_print_error_names_the_hint(capsys):
    render.print_error(EmsError("it broke", "mend it"))
    assert capsys.readouterr().err == "error: it broke\n\nhint: mend it\n"


def test_say_falls_back_where_the_encoding_has_no_such_sign(monkeypatch):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", file)
    render.say("0.98 ± 0.01", "é")
    file.seek(0)
    assert file.read() == "0.98 +/- 0.01\n?\n"


def test_lines_of_a_curve_stay_apart_in_ascii(monkeypatch):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", file)
    render.say(MARKERS, "1┤·│", " └┬─")
    file.seek(0)
    markers, *axes = file.read().splitlines()
    assert len(set(markers)) == len(MARKERS)
    assert "?" not in markers
    assert axes == ["1+-|", " ++-"]


def test_without_a_terminal_there_is_no_colour_no_width_and_no_pager(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS")
    monkeypatch.delenv("NO_COLOR")
    assert render.width() is None
    assert render.paint("text", "bold red") == "text"
    render.page(["line"] * 500)
    assert capsys.readouterr().out == "line\n" * 500


def test_colour_is_used_only_where_it_shows(monkeypatch):
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert render.paint("text", "red") == "\x1b[31mtext\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert render.paint("text", "red") == "text"


def test_progress_off_a_terminal_prints_each_change_once(capsys):
    with render.progress() as show:
        for line in ("1 of 2", "1 of 2", "2 of 2"):
            show(line)
    assert capsys.readouterr().err == "1 of 2\n2 of 2\n"
    with render.progress(every_s=3600) as show:
        for n_bytes in range(1000):
            show(f"{n_bytes} B")
    assert capsys.readouterr().err == ""


def test_screen_off_a_terminal_prints_what_has_changed(capsys):
    with render.screen() as show:
        for lines in (["a"], ["a"], ["b"]):
            show(lines)
    assert capsys.readouterr().out == "a\nb\n"
