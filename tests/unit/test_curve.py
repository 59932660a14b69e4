"""Which lines ``--curve`` draws, and how they look in a terminal and as an image."""

import itertools
import math
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ems.errors import EmsError, UsageError
from ems.model import State
from ems.report import curve
from ems.report.frame import Frame
from ems.store import RunRow, Summary

pytest.importorskip("matplotlib")
DONE, FAILED = State.COMPLETED, State.FAILED


def row(index, params, state=DONE, n=1, exp="e1", **metrics):
    summaries = {name: Summary(v, v, v, v, n, 0.0) for name, v in metrics.items()}
    return RunRow(exp, "train", index, params, state, "", 1, "", 1.5, None, "", "n1", "", 7, summaries)


def no_points(_metric):
    return []


def stepped(n_lr=2, n_seed=2, n=3):
    """Return runs of ``n`` steps, and their points: value = lr number + step + seed / 10."""
    rows = [
        row(i * n_seed + s, {"lr": 10.0**-i, "seed": s}, n=n, acc=float(i)) for i in range(n_lr) for s in range(n_seed)
    ]
    points = [
        (r.exp_id, r.index, step, r.index // n_seed + step + r.params["seed"] / 10) for r in rows for step in range(n)
    ]
    return Frame(rows), lambda metric: points if metric == "acc" else []


def test_runs_with_steps_are_a_line_each():
    frame, points = stepped()
    made = curve.plot(frame, ["acc"], points)
    assert [line.label for line in made.lines] == [
        "run 0 lr=1 seed=0", "run 1 lr=1 seed=1", "run 2 lr=0.1 seed=0", "run 3 lr=0.1 seed=1",
    ]  # fmt: skip
    assert (made.lines[1].x, made.lines[1].y) == ((0, 1, 2), (0.1, 1.1, 2.1))
    assert made.x_name == "step"


def test_by_averages_runs_with_an_interval():
    frame, points = stepped()
    made = curve.plot(frame, ["acc"], points, by=["lr"])
    assert [line.label for line in made.lines] == ["lr=1", "lr=0.1"]
    assert made.lines[0].y == pytest.approx((0.05, 1.05, 2.05))
    assert made.lines[0].low[0] < 0.05 < made.lines[0].high[0]
    assert made.notes == ("mean over seed", "bars: 95 % CI of the mean (Student's t)")


def test_failed_runs_are_in_no_mean_but_have_lines_of_their_own():
    frame, points = stepped()
    rows = [*frame.rows[:3], row(3, frame.rows[3].params, FAILED, n=3, acc=1.0)]
    averaged = curve.plot(Frame(rows), ["acc"], points, by=["lr"])
    assert averaged.lines[1].y == pytest.approx((1.0, 2.0, 3.0))
    assert "1 failed or cancelled runs left out" in averaged.notes
    assert len(curve.plot(Frame(rows), ["acc"], points).lines) == 4


def test_one_value_a_run_is_drawn_over_the_param_that_was_swept():
    rows = [row(i, {"lr": 10.0 ** (5 - i)}, train_acc=0.5 + i / 100, test_acc=0.5) for i in range(14)]
    made = curve.plot(Frame(rows), ["train_acc", "test_acc"], no_points)
    assert (made.x_name, made.is_log_x) == ("lr", True)
    assert [line.label for line in made.lines] == ["train_acc", "test_acc"]
    assert made.lines[0].x == tuple(10.0 ** (i - 8) for i in range(14))
    assert made.notes == ()


def test_seeds_are_averaged_over_not_drawn_over():
    rows = [row(i, {"width": 8 * (i // 2 + 1), "seed": i % 2}, acc=float(i % 2)) for i in range(6)]
    made = curve.plot(Frame(rows), ["acc"], no_points)
    assert (made.x_name, made.is_log_x) == ("width", False)
    assert made.lines[0].y == (0.5, 0.5, 0.5)
    assert made.notes[0].startswith("mean over seed")


def test_only_finite_values_are_drawn():
    values = [0.1, math.nan, math.inf, 0.4, 0.5]
    rows = [row(i, {"lr": lr}, acc=v) for i, (lr, v) in enumerate(zip([1, 2, 3, 4, math.inf], values, strict=True))]
    line = curve.plot(Frame(rows), ["acc"], no_points).lines[0]
    assert (line.x, line.y) == ((1, 4), (0.1, 0.4))


def test_by_splits_lines_over_a_param():
    rows = [
        row(i, {"lr": 10.0**-j, "opt": o}, acc=0.1 * i)
        for i, (o, j) in enumerate((o, j) for o in "ab" for j in range(3))
    ]
    made = curve.plot(Frame(rows), ["acc"], no_points, by=["opt"])
    assert [line.label for line in made.lines] == ["opt=a", "opt=b"]
    assert made.lines[0].x == (0.01, 0.1, 1.0)


def test_x_can_be_said():
    frame, points = stepped()
    assert curve.plot(frame, ["acc"], points, x="seed").x_name == "seed"
    assert curve.plot(frame, ["acc"], points, x="step").x_name == "step"


def test_too_many_lines_leave_the_ones_that_end_best():
    frame, points = stepped(n_lr=12, n_seed=1)
    made = curve.plot(frame, ["acc"], points)
    assert len(made.lines) == curve.MAX_LINES
    assert made.lines[-1].label.startswith("run 11 ")
    assert "end best of 12" in made.notes[-1]


def test_long_curves_are_thinned_and_keep_their_end():
    frame, points = stepped(1, 1, 5001)
    line = curve.plot(frame, ["acc"], points).lines[0]
    assert len(line.x) <= 402
    assert line.x[-1] == 5000


def test_a_metric_over_many_decades_is_drawn_logarithmically():
    rows = [row(i, {"i": i}, loss=10.0**-i) for i in range(6)]
    assert curve.plot(Frame(rows), ["loss"], no_points).is_log_y


def test_nothing_to_draw_is_said():
    with pytest.raises(UsageError, match="no point of acc"):
        curve.plot(Frame([row(0, {"lr": 1}, n=2, acc=float("nan"))]), ["acc"], no_points)
    with pytest.raises(UsageError, match="no run has a metric `ac`"):
        curve.plot(Frame([row(0, {"lr": 1}, acc=1.0)]), ["ac"], no_points)


# -- in the terminal


def lines(*ys, x=None, is_log_x=False, is_log_y=False, half=None):
    """Return a plot of lines over the same x, their intervals ``half`` to both sides."""

    def moved(values, by):
        return tuple(None if half is None else v + by for v in values)

    x = tuple(x or range(len(ys[0])))
    made = [curve.Line(f"i={i}", x, tuple(y), moved(y, -(half or 0)), moved(y, half)) for i, y in enumerate(ys)]
    return curve.Plot(tuple(made), "lr", "acc", is_log_x, is_log_y)


def text(plot, width=70, height=15, **options):
    return "\n".join(curve.draw(plot, width, height, **options))


def test_the_drawing_names_axes_and_lines():
    frame, points = stepped()
    drawn = curve.draw(curve.plot(frame, ["acc"], points, by=["lr"]), 60, 12)
    assert drawn[0].strip() == "acc"
    assert drawn[-2].strip() == "step"
    assert drawn[-1] == "● lr=1   ○ lr=0.1"


def test_a_line_rises_to_the_right_and_every_point_is_marked():
    rows = [row for row in curve.draw(lines([0.0, 1.0, 2.0, 3.0]), 60, 12) if "●" in row[:60] and "i=0" not in row]
    columns = [row.index("●") for row in rows]
    assert len(columns) == 4
    assert columns == sorted(columns, reverse=True)


def test_every_line_has_a_marker_of_its_own_and_no_way_hides_a_point():
    shown = text(lines([0, 5, 0], [5, 0, 5]))
    assert (shown.count("●"), shown.count("○")) == (4, 4)  # three points and the legend


def test_many_points_are_marked_here_and_there():
    shown = text(lines([math.sin(s / 100) for s in range(400)]))
    assert 5 <= shown.count("●") <= 15
    assert shown.count("·") > 50


def test_decades_are_evenly_spaced_on_a_logarithmic_axis():
    ticks, name = curve.draw(lines([1, 2, 3, 4], x=[1e-8, 1e-4, 1.0, 1e4], is_log_x=True), 70, 12)[-3:-1]
    assert ticks.split() == ["1e-08", "1e-06", "0.0001", "0.01", "1", "100", "10000"]
    assert name.strip() == "lr (log)"
    middles = [(match.start() + match.end()) / 2 for match in re.finditer(r"\S+", ticks)][1:-1]  # those at ends move in
    assert [b - a for a, b in itertools.pairwise(middles)] == pytest.approx([11] * 4, abs=1.5)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [(0.0, 1.0, ["0", "0.2", "0.4", "0.6", "0.8", "1"]), (0.93, 0.99, ["0.94", "0.96", "0.98"]),
     (0.0, 399.0, ["0", "100", "200", "300"]), (0.5, 0.5, None)],
)  # fmt: skip
def test_ticks_are_round(low, high, labels):
    rows = curve.draw(lines([low, high]), 70, 15)
    found = [row.partition("┤")[0].strip() for row in rows if "┤" in row]
    assert labels is None or found[::-1] == labels
    assert found


def test_intervals_are_bars_where_few_lines_have_them():
    with_bars = lines([1.0, 2.0, 3.0], half=0.8)
    columns = [row.index("●") for row in curve.draw(with_bars, 70, 15) if "●" in row]
    assert sum(row[columns[1] : columns[1] + 1] == "│" for row in curve.draw(with_bars, 70, 15)) >= 4
    assert with_bars.has_bars
    assert not lines([1.0, 2.0]).has_bars
    assert not lines(*[[1.0, 2.0]] * 4, half=0.1).has_bars
    assert not lines([1.0, 2.0], half=0.1, is_log_y=True).has_bars


def test_a_wide_interval_does_not_flatten_the_line():
    shown = curve.draw(lines([1.0, 2.0, 3.0], half=500.0), 70, 15)
    rows = [i for i, row in enumerate(shown[:-1]) if "●" in row]
    assert rows[-1] - rows[0] >= 3


finite = st.floats(-1e9, 1e9)
drawings = st.lists(st.lists(st.tuples(finite, finite), min_size=1, max_size=30), min_size=1, max_size=curve.MAX_LINES)


@given(drawings, st.integers(12, 100), st.integers(6, 30))
def test_any_lines_fit_the_room_they_are_given(points, width, height):
    made = [tuple(zip(*sorted(line), strict=True)) for line in points]
    some = tuple(curve.Line(f"run {i}", x, y, (None,) * len(x), (None,) * len(x)) for i, (x, y) in enumerate(made))
    drawn = curve.draw(curve.Plot(some, "step", "acc"), width, height)
    assert all(len(line) <= width for line in drawn)
    assert height <= len(drawn) <= height + len(some)


@given(st.lists(st.tuples(st.floats(1e-12, 1e12), st.floats(1e-12, 1e12)), min_size=1, max_size=20))
def test_any_positive_lines_fit_on_logarithmic_axes(points):
    x, y = zip(*sorted(points), strict=True)
    drawn = curve.draw(lines(y, x=x, is_log_x=True, is_log_y=True), 60, 12)
    assert all(len(line) <= 60 for line in drawn)


def test_colour_only_repeats_what_the_text_says():
    plot = lines([0, 5, 0], [5, 0, 5])
    painted, plain = text(plot, is_coloured=True), text(plot)
    assert "\x1b[" in painted
    assert "\x1b[" not in plain
    bare = re.sub(r"\x1b\[[0-9;]*m", "", painted)
    assert [line.rstrip() for line in bare.splitlines()] == plain.splitlines()


def test_a_param_that_is_no_plain_text_stays_on_its_line():
    rows = [row(i, {"i": i, "name": "a\x1b[31m\nb"}, acc=0.1 * i) for i in range(3)]
    made = curve.plot(Frame(rows), ["acc"], no_points, by=["name"])
    assert made.lines[0].label == r"name=a\x1b[31m\nb"


def test_where_plotext_cannot_be_loaded_the_image_is_offered(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotext", None)
    with pytest.raises(EmsError, match="the curve cannot be drawn: import of plotext") as caught:
        text(lines([1.0, 2.0]))
    assert "--png FILE" in caught.value.hint


# -- as an image


@pytest.mark.parametrize(("name", "magic"), [("c.png", b"\x89PNG"), ("c.svg", b"<?xml"), ("c.pdf", b"%PDF")])
def test_an_image_is_of_the_kind_its_name_says(tmp_path, name, magic):
    frame, points = stepped()
    curve.save(curve.plot(frame, ["acc"], points, by=["lr"]), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)


@pytest.mark.parametrize("name", ["no/such/folder.png", "c.nosuchkind"])
def test_an_image_that_cannot_be_written_is_said(tmp_path, name):
    frame, points = stepped()
    with pytest.raises(UsageError, match="cannot be written"):
        curve.save(curve.plot(frame, ["acc"], points), tmp_path / name)
