"""What is reported and drawn of a study, from trials that are known."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ems.cli import study_report
from ems.errors import UsageError
from ems.report import picture, study_plots, terminal
from ems.report.picture import Bars, Mesh, Panel, Points, Span, Way
from ems.report.study import Study, best, importance, misleading, outlook, rungs, timeline
from ems.report.study_plots import KINDS, Wish
from ems.search.problem import Fidelity, Problem
from ems.search.space import Categorical, Int, Ordinal, Real, SearchSpace
from ems.search.trial import Outcome, Trial
from ems.store.studies import SegmentRow

SPACE = SearchSpace(
    (
        Real("lr", 1e-5, 1e-1, "log"),
        Int("units", 16, 512),
        Categorical("opt", ("adam", "sgd")),
        Real("momentum", 0.0, 0.99, when="opt == sgd"),
        Ordinal("batch_$size", (16, 32, 64)),
    ),
    ("lr * units < 40",),
)


def second(at: float) -> str:
    return f"2026-01-01T00:{int(at // 60):02d}:{at % 60:06.3f}+00:00"


def segment(number: int, rung: int, value: float | None, outcome: Outcome = Outcome.OK, **more: object) -> SegmentRow:
    row = SegmentRow(
        number, rung, None, number, 1, str(outcome), value, 1.0, 0, -1 if outcome is Outcome.PENDING else 1, "",
        second(number), "" if outcome is Outcome.PENDING else second(number + 1), "n1", 1.0, 1, 1.0,
    )  # fmt: skip
    return replace(row, **more)


def loss(params: dict[str, object]) -> float:
    return (math.log10(float(params["lr"])) + 3) ** 2 + 0.1 * (params["opt"] == "adam")


def made(n: int = 24, sign: float = 1.0, group: str | None = None) -> Study:
    """A study of ``n`` trials, the last two under way, one in ten crashed."""
    trials, parts = [], []
    for number, params in enumerate(SPACE.draw(np.random.default_rng(0), n)):
        outcome = Outcome.CRASHED if number % 10 == 3 else Outcome.PENDING if number >= n - 2 else Outcome.OK
        values = (loss(params),) if outcome is Outcome.OK else ()
        trials.append(Trial(number, params, config=number, group=group, outcome=outcome, values=values, told=1))
        parts.append(segment(number, 0, sign * values[0] if values else None, outcome))
    problem = Problem(SPACE, parallel=2, groups=(group,) if group else ())
    return Study("ab12cd34", "toy", "val_$loss", sign, problem, trials, parts)


def climbed() -> Study:
    """Nine trials at 1 epoch, of which the best three went on to 3 and the very best to 9."""
    trials, parts = [], []
    for number, params in enumerate(SearchSpace(SPACE.dimensions[:1]).draw(np.random.default_rng(0), 9)):
        depth = 3 if number == 4 else 2 if number in (1, 7) else 1
        values = tuple((10.0 - number % 5) / 3**rung for rung in range(depth))
        trials.append(Trial(number, params, config=number, rung=depth - 1, outcome=Outcome.OK, values=values))
        parts += [segment(number, rung, value, cost=float(3**rung)) for rung, value in enumerate(values)]
    problem = Problem(SearchSpace(SPACE.dimensions[:1]), fidelity=Fidelity("epochs", 1, 9), scheduler="asha")
    return Study("ab12cd34", "curve", "loss", 1.0, problem, trials, parts, (1.0, 3.0, 9.0), "epochs")


def layers(panel: Panel, kind: type) -> list:
    return [layer for layer in panel.layers if isinstance(layer, kind)]


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["minimized", "maximized"])
def test_the_best_are_those_that_the_model_believes_in(sign):
    study = made(sign=sign)
    lucky = study.trials[0]
    same = [replace(lucky, number=n, config=0, values=(5.0,)) for n in (50, 51, 52)]
    study = replace(study, trials=[replace(lucky, values=(-1.0,)), *study.trials[1:], *same])
    found = best(study, None, 5)
    assert [each.number for each in found[:1]] != [0], "its one lucky run is not all that is known of it"
    assert [sign * each.mean for each in found] == sorted(sign * each.mean for each in found)
    assert all(each.sd > 0 and each.n == 1 for each in found)
    top = min((t for t in study.trials if t.values), key=lambda t: t.values[0] if t.number else math.inf)
    assert top.number in {each.number for each in found}
    assert found[0].observed == pytest.approx(sign * study.trials[found[0].number].values[0])


def test_a_rung_that_misleads_is_named():
    study = climbed()
    assert misleading(study, None) == []
    trials = [Trial(n, {"lr": 0.01}, config=n, rung=1, outcome=Outcome.OK, values=(n, (7 * n) % 9)) for n in range(9)]
    study = replace(study, trials=trials, segments=[segment(n, 0, 1.0) for n in range(9)])
    assert [(each.low, each.high, each.count) for each in misleading(study, None)] == [(0, 1, 9)]
    said = " ".join(study_report._rung_lines(study, None))
    assert "epochs 1 hardly tells what is good at 3 (rank correlation 0.10 over 9 trials)" in said
    assert said.endswith("--fidelity epochs=3..9")


def test_two_trials_are_no_model_but_are_shown():
    study = made(4)
    assert [math.isnan(each.mean) for each in best(study, None, 5)] == [True, True]
    assert importance(study, None) == []
    with pytest.raises(UsageError, match="too few values"):
        study_plots.figure(study, "slice", Wish())
    with pytest.raises(UsageError, match="has begun yet"):
        timeline(replace(study, segments=[]))


def test_importance_finds_the_param_that_matters():
    found = importance(made(40), None)
    assert [found[0].name, len(found)] == ["lr", 5]
    assert found[0].total > 0.8


def test_more_trials_do_not_pay_where_nobody_would_see_the_gain():
    study, rng = made(24), np.random.default_rng(0)
    thrice = [
        replace(t, number=100 * i + t.number, values=tuple(0.01 * v + rng.normal() for v in t.values))
        for i in range(3)
        for t in study.trials
    ]  # runs of the same params differ by far more than params do
    ahead = outlook(replace(study, trials=thrice), None)
    assert ahead is not None
    assert ahead.is_stop_offered
    assert ahead.gain < ahead.noise
    assert outlook(made(4), None) is None
    assert outlook(climbed(), None) is None


def test_rungs_are_counted_each_by_itself():
    study = climbed()
    table = rungs(study, None)
    assert [(r.budget, r.asked, r.completed) for r in table] == [(1.0, 9, 9), (3.0, 3, 3), (9.0, 1, 1)]
    assert [(r.best, r.best_number) for r in table] == [(6.0, 4), (2.0, 4), (pytest.approx(2 / 3), 4)]
    assert best(study, None, 5)[0].budget == 9.0
    assert len(best(study, None, 5)) == 1, "others have no value there"


def test_idle_is_what_workers_wait_until_the_last_start():
    """Two workers: one works from 0 to 6, the other from 0 to 2 and from 4 to 9; the last start is at 4."""
    times = [(0, 6), (0, 2), (4, 9)]
    parts = [segment(n, 0, 1.0, started_at=second(start), ended_at=second(end)) for n, (start, end) in enumerate(times)]
    parts.append(segment(3, 0, None, Outcome.PENDING, started_at=""))
    line = timeline(replace(made(4), segments=parts))
    assert [(s.lane, s.start, s.end) for s in line.stints] == [(0, 0, 6), (1, 0, 2), (1, 4, 9)]
    assert (line.workers, line.until) == (2, 4.0)
    assert line.idle == pytest.approx(2 / 8)
    going = replace(parts[2], ended_at="", outcome="pending")
    running = timeline(replace(made(4), segments=[*parts[:2], going]), now=second(20))
    assert running.stints[2].end == 20
    figure = study_plots.figure(replace(made(4), segments=parts), "timeline", Wish())
    assert "idle 25.0%" in figure.title
    assert [span.style for span in layers(figure.panels[0], Span)] == ["idle", "idle", "mean", "mean", "mean"]


@pytest.mark.parametrize(
    ("kind", "sign"), [*((kind, 1.0) for kind in KINDS if kind != "rungs"), ("parallel", -1.0), ("convergence", -1.0)]
)
def test_every_picture_is_drawn(kind, sign, tmp_path):
    figure = study_plots.figure(made(sign=sign), kind, Wish())
    path = tmp_path / "a.png"
    picture.save(figure, path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    json.loads(json.dumps(figure.dump(), allow_nan=False))
    if not terminal.can_draw(figure):
        assert kind in ("parallel", "contour")
        return
    lines = terminal.draw(figure, 72, 16)
    assert max(map(len, lines)) <= 72
    assert lines[0] in figure.title


def test_long_names_at_an_axis_are_cut_and_stand_aslant():
    from matplotlib.figure import Figure as Canvas

    def shown(*names: str) -> list[tuple[str, float]]:
        canvas = Canvas()
        axes = canvas.add_subplot()
        picture._draw_panel(canvas, axes, picture.Panel((Points((0.0, 1.0), (0.0, 1.0)),), x_labels=names))
        return [(tick.get_text(), tick.get_rotation()) for tick in axes.get_xticklabels()]

    assert shown("adam", "$sgd$") == [("adam", 0.0), ("$sgd$", 0.0)]
    assert shown("resnet50_pretrained_v1", "resnet50_pretrained_v2") == [
        ("resnet50_p…ed_v1", 30.0),
        ("resnet50_p…ed_v2", 30.0),
    ]


def test_a_slice_shows_what_the_model_believes_along_each_param():
    study = made(40)
    figure = study_plots.figure(study, "slice", Wish(params=("lr", "opt")))
    (lr, opt), (lr_score, _) = figure.rows
    mean = next(way for way in layers(lr, Way) if way.style == "mean")
    at = mean.x[int(np.argmin(mean.y))]
    assert 3e-4 < at < 3e-3, "the minimum is at 1e-3"
    assert lr.is_log_x
    assert not opt.is_log_x
    assert opt.x_labels == ("adam", "sgd")
    observed = next(points for points in layers(lr, Points) if points.style == "observed")
    assert sorted(observed.y) == sorted(t.values[0] for t in study.trials if t.values)
    assert len(next(p for p in layers(lr, Points) if p.style == "pending").x) == 2
    score = layers(lr_score, Way)[0]
    assert (min(score.y) >= 0, max(score.y)) == (True, pytest.approx(1.0))
    with pytest.raises(UsageError, match="did not search `depth`"):
        study_plots.figure(study, "slice", Wish(params=("depth",)))


def test_slices_go_on_in_the_next_rows_and_a_terminal_shows_them_in_order():
    names = ("lr", "units", "opt", "batch_$size")
    figure = study_plots.figure(made(40), "slice", Wish(params=names))
    assert [[panel.x_name for panel in row] for row in figure.rows[1::2]] == [list(names[:2]), list(names[2:])]
    drawn = terminal.draw(figure, 72, 16)
    shown = [line.strip().removesuffix(" (log)") for line in drawn]
    assert [line for line in shown if line in names] == list(names)


def test_unless_asked_a_contour_is_over_params_that_are_numbers():
    (panel,) = study_plots.figure(made(40), "contour", Wish()).panels
    assert {panel.x_name, panel.y_name} <= {"lr", "units", "momentum"}
    asked = study_plots.figure(made(40), "contour", Wish(params=("opt", "lr"))).panels[0]
    assert asked.x_labels == ("adam", "sgd")
    with pytest.raises(UsageError, match="over two params, and lr is what there is"):
        study_plots.figure(climbed(), "contour", Wish())


def test_lines_that_colours_tell_apart_differ_without_colours():
    drawn = "\n".join(terminal.draw(study_plots.figure(climbed(), "convergence", Wish()), 72, 16))
    legend = next(line for line in drawn.splitlines() if "epochs 1 " in line)
    marks = [legend[legend.index(f" epochs {budget}") - 1] for budget in (1, 3, 9)]
    assert len(set(marks)) == 3
    assert all(drawn.count(mark) > 1 for mark in marks)


def test_a_terminal_shows_trials_that_began_above_the_lowest_rung():
    study = climbed()
    study.trials[4] = replace(study.trials[4], values=(math.nan, *study.trials[4].values[1:]))
    drawn = "\n".join(terminal.draw(study_plots.figure(study, "rungs", Wish()), 72, 16))
    assert "★" in drawn
    assert "8 at 1, 3 at 3, 1 at 9" in drawn
    assert picture.page([study_plots.figure(study, "rungs", Wish())], "toy").count("<svg") == 1


def test_a_contour_leaves_out_what_constraints_forbid():
    figure = study_plots.figure(made(40), "contour", Wish(params=("lr", "units")))
    (mesh,) = layers(figure.panels[0], Mesh)
    for y, row in zip(mesh.y, mesh.z, strict=True):
        for x, z in zip(mesh.x, row, strict=True):
            assert math.isnan(z) is (x * y >= 40)


def test_convergence_follows_the_best_and_never_compares_rungs():
    study = made()
    (top,), (below,) = study_plots.figure(study, "convergence", Wish()).rows
    (best_so_far,) = layers(top, Way)
    values = [t.values[0] for t in study.trials if t.values]
    assert list(best_so_far.y[:-1]) == list(np.minimum.accumulate(values))
    assert len(layers(below, Points)[0].x) == len(study.trials) - 1
    (panel,), _ = study_plots.figure(climbed(), "convergence", Wish()).rows
    assert [way.label for way in layers(panel, Way)] == ["epochs 1", "epochs 3", "epochs 9"]
    assert panel.x_name == "epochs spent"


def test_rungs_are_drawn_where_there_are_any(tmp_path):
    figure = study_plots.figure(climbed(), "rungs", Wish())
    assert figure.notes == ("trials that completed a rung: 9 at 1, 3 at 3, 1 at 9",)
    picture.save(figure, tmp_path / "a.svg")
    assert terminal.draw(figure, 60, 14)
    with pytest.raises(UsageError, match="has no rungs"):
        study_plots.figure(made(), "rungs", Wish())


def test_a_group_is_drawn_by_itself():
    study = made(group="north")
    assert ", north" in study_plots.figure(study, "importance", Wish(group="north")).title
    assert layers(study_plots.figure(study, "importance", Wish()).panels[0], Bars)
    with pytest.raises(UsageError, match="no group `south`"):
        study_plots.figure(study, "importance", Wish(group="south"))


def test_a_page_is_whole_without_a_network(tmp_path):
    study = replace(made(), name="<b>toy & co")
    page = picture.page([study_plots.figure(study, kind, Wish()) for kind in ("slice", "timeline")], "<b>toy & co")
    assert page.count("<svg") == 2
    assert "<b>toy" not in page
    links = set(re.findall(r"""(?:href|src|url)\s*[=(]\s*["']?([^"')\s>]+)""", page))
    assert all(link.startswith("#") for link in links), "only parts of the page itself"
    assert set(re.findall(r"https?://[^\"'\s<>]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_what_cannot_be_written_is_said(tmp_path: Path):
    figure = study_plots.figure(made(), "importance", Wish())
    for path in (tmp_path / "no" / "a.png", tmp_path / "a.tiff2"):
        with pytest.raises(UsageError, match="cannot be written"):
            picture.save(figure, path)
