"""Which lines ``--curve`` draws."""

import pytest

from ems import curve
from ems.errors import UsageError
from ems.frame import Frame
from ems.model import State
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
    assert made.notes == ("mean over seed; --png shades its 95 % CI (Student's t)",)


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


def test_the_drawing_names_axes_and_lines():
    frame, points = stepped()
    drawn = curve.draw(curve.plot(frame, ["acc"], points, by=["lr"]), 60, 12)
    assert drawn[0] == "acc"
    assert drawn[-2].strip() == "step"
    assert drawn[-1] == "● lr=1   ○ lr=0.1"
    assert all(len(line) <= 60 for line in drawn)


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
