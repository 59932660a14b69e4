"""Lines drawn with characters."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ems.canvas import MARKERS, Scale, draw, marker

RISING = [
    "   1+          .o",
    "    |        ..",
    "    |      ..",
    " 0.5+    ..",
    "    |  ..",
    "   0+o.",
    "    ++-----+----+",
    "     0     5   10",
]


def test_a_rising_line_runs_from_bottom_left_to_top_right():
    assert draw([([0, 10], [0.0, 1.0])], 18, 8, is_ascii=True) == RISING


def test_every_line_has_a_marker_of_its_own_and_no_dot_hides_a_point():
    text = "\n".join(draw([([0, 1, 2], [0, 5, 0]), ([0, 1, 2], [5, 0, 5])], 60, 15))
    assert text.count(MARKERS[0]) == 3
    assert text.count(MARKERS[1]) == 3


def test_many_points_are_marked_here_and_there():
    steps = list(range(1000))
    text = "\n".join(draw([(steps, [math.sin(s / 100) for s in steps])], 70, 15))
    assert 5 <= text.count(MARKERS[0]) <= 15


def test_decades_are_evenly_spaced_on_a_logarithmic_axis():
    xs = [1e-8, 1e-4, 1.0, 1e4]
    last = draw([(xs, [1, 2, 3, 4])], 70, 10, is_log_x=True)[-1]
    assert last.split() == ["1e-08", "1e-05", "0.01", "10", "10000"]
    ends = [last.index(label) + len(label) / 2 for label in last.split()]
    assert ends[2] - ends[1] == pytest.approx(ends[3] - ends[2], abs=1.5)


@pytest.mark.parametrize(
    ("low", "high", "most", "labels"),
    [(0, 1, 5, ["0", "0.2", "0.4", "0.6", "0.8", "1"]), (0.93, 0.99, 3, ["0.94", "0.96", "0.98"]),
     (0, 1000, 4, ["0", "200", "400", "600", "800", "1000"])],
)  # fmt: skip
def test_ticks_are_round(low, high, most, labels):
    assert [label for _, label in Scale(low, high, 20).ticks(most)] == labels


finite = st.floats(-1e9, 1e9)


@given(
    st.lists(st.lists(st.tuples(finite, finite), min_size=1, max_size=30), min_size=1, max_size=len(MARKERS)),
    st.integers(30, 100),
    st.integers(8, 30),
)
def test_any_lines_fit_the_room_they_are_given(lines, width, height):
    given_lines = [tuple(zip(*sorted(line), strict=True)) for line in lines]
    drawn = draw(given_lines, width, height)
    assert len(drawn) == height
    assert all(len(line) <= width for line in drawn)


@given(st.lists(st.tuples(st.floats(1e-12, 1e12), st.floats(1e-12, 1e12)), min_size=1, max_size=20))
def test_any_positive_lines_fit_on_logarithmic_axes(points):
    x, y = zip(*sorted(points), strict=True)
    drawn = draw([(x, y)], 60, 12, is_log_x=True, is_log_y=True)
    assert len(drawn) == 12
    assert all(len(line) <= 60 for line in drawn)


def test_painted_text_is_the_same_text():
    lines = [([0, 1, 2], [0, 5, 0]), ([0, 1, 2], [5, 0, 5])]
    painted = draw(lines, 50, 10, paint=lambda number, text: f"<{number}>{text}</>")
    plain = [line.replace("<0>", "").replace("<1>", "").replace("</>", "").rstrip() for line in painted]
    assert plain == draw(lines, 50, 10)


def test_ascii_stays_ascii():
    lines = [([0, 1], [i, -i]) for i in range(len(MARKERS))]
    assert all(line.isascii() for line in draw(lines, 50, 10, is_ascii=True))
    assert marker(0, is_ascii=True) == "o"
