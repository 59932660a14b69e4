"""``ems plot STUDY``: the pictures of a study, as data that :mod:`ems.report.picture` and ``terminal`` draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from ems.errors import UsageError
from ems.model import Params
from ems.report.axis import Axis, short, ticks
from ems.report.picture import Band, Bars, Figure, Layer, Mesh, Panel, Points, Span, Style, Upright, Way
from ems.report.study import Model, Study, best, importance, timeline
from ems.search import acquisition, candidates
from ems.search import rungs as races
from ems.search.dimension import Floats
from ems.search.importance import METHOD
from ems.search.trial import Outcome, Trial
from ems.search.warp import Array

MAX_SLICES = 6  # params of one picture of slices
_ABREAST = 3  # slices beside each other
_MESH = 61  # points along a side of a contour
_LOG_FROM = 1000  # a metric that spans so much is drawn on a logarithmic axis
_WIDE = float(ndtri(0.975))  # of a 95 % band, in deviations


@dataclass(frozen=True, slots=True)
class Wish:
    """What of a study is to be drawn.

    Attributes
    ----------
    group
        None: that of the most trials.
    params
        For slice and contour; default: those that matter most.
    now
        When what still runs is taken to end, for timeline (ISO 8601).
    """

    group: str | None = None
    params: tuple[str, ...] = ()
    now: str = ""


def figure(study: Study, kind: str, wish: Wish) -> Figure:
    """Return a picture of a study.

    Parameters
    ----------
    kind
        One of :data:`KINDS`.

    Raises
    ------
    UsageError
        If there is nothing to draw yet, or a group or param is named that there is not.
    """
    group = _group(study, wish.group)
    _check_params(study, wish.params)
    return KINDS[kind](study, group, wish)


def _group(study: Study, asked: str | None) -> str | None:
    if asked is not None and asked not in study.problem.groups:
        known = f"the groups are {', '.join(study.problem.groups)}" if study.problem.groups else "it has no groups"
        raise UsageError(f"study {study.exp_id} has no group `{asked}`", known)
    if asked is not None or not study.problem.groups:
        return asked
    counts = {group: sum(t.group == group for t in study.trials) for group in study.problem.groups}
    return max(study.problem.groups, key=lambda group: counts[group])


def _check_params(study: Study, params: Sequence[str]) -> None:
    for name in params:
        if name not in study.problem.space.names:
            known = f"those that were searched are {', '.join(study.problem.space.names)}"
            raise UsageError(f"study {study.exp_id} did not search `{name}`", known)


def _title(study: Study, what: str, group: str | None) -> str:
    of = f", {group}" if group is not None else ""
    return f"{study.name} {study.exp_id}{of}: {what}"


def _nothing(study: Study) -> UsageError:
    return UsageError(
        f"study {study.exp_id} has too few values of {study.metric} yet", f"ems tune status {study.exp_id}"
    )


def _model(study: Study, group: str | None) -> Model:
    model = study.model(group)
    if model is None:
        raise _nothing(study)
    return model


# -- convergence ------------------------------------------------------------------------------------------------


def _convergence(study: Study, group: str | None, _: Wish) -> Figure:
    """Every value in the order of their coming in, the best so far; how far consecutive points are apart."""
    own = {trial.number: trial for trial in study.trials if trial.group == group and trial.number >= 0}
    layers: list[Layer] = []
    n_rungs = max(len(study.budgets), 1)
    ended = sorted(
        (each for each in study.segments if each.number in own and each.told >= 0),
        key=lambda each: (each.ended_at, each.told, each.number),
    )
    spent, at = 0.0, {}
    for index, each in enumerate(ended):
        spent += each.cost
        at[each.number, each.rung] = spent if study.budgets else float(index + 1)
    for rung in range(n_rungs):
        told = [
            (at[e.number, e.rung], e.value)
            for e in ended
            if e.rung == rung and e.outcome == "ok" and e.value is not None
        ]
        if not told:
            continue
        x, y = (tuple(map(float, column)) for column in zip(*told, strict=True))
        color = rung if study.budgets else None
        so_far = study.sign * np.minimum.accumulate(study.sign * np.array(y))
        name = f"{study.fidelity or 'step'} {study.budgets[rung]:g}" if study.budgets else "best so far"
        layers.append(Points(x, y, "" if study.budgets else "trial", "observed", color))
        end = max(at.values())
        layers.append(Way((*x, end), (*so_far.tolist(), float(so_far[-1])), name, "best", color, is_step=True))
    if not layers:
        raise _nothing(study)
    failed = sum(1 for trial in own.values() if trial.outcome.is_bad)
    x_name = f"{study.fidelity or 'steps'} spent" if study.budgets else "trials ended"
    notes = [f"{failed:,} of {len(own):,} trials failed and have no value"] if failed else []
    values = Panel(tuple(layers), x_name=x_name, y_name=study.metric, is_log_y=_is_wide(layers))
    apart = _apart(study, list(own.values())) if len(own) > 1 else None
    return Figure(
        _title(study, f"{study.metric} as the search went on", group),
        ((values,), (apart,)) if apart else ((values,),),
        (*notes, "values are of single runs: the best so far is lucky, too; ems report says what the model believes"),
        heights=(2.0, 1.0) if apart else (),
        size=(7.5, 5.6),
    )


def _is_wide(layers: Sequence[Layer]) -> bool:
    """Whether heights span so many powers that a few would flatten all others."""
    heights = [height for layer in layers if isinstance(layer, Points | Way) for height in layer.y]
    return min(heights) > 0 and max(heights) / min(heights) > _LOG_FROM


def _apart(study: Study, trials: Sequence[Trial]) -> Panel:
    """Draw how far each trial's params are from those of the one before, in the unit cube."""
    rows = candidates.Ground(study.problem.space).locate(trial.params for trial in trials)
    steps = np.nan_to_num(rows, nan=0.5)
    numbers = tuple(float(trial.number) for trial in trials[1:])
    distances = tuple(np.linalg.norm(np.diff(steps, axis=0), axis=1).tolist())
    layers = (Way(numbers, distances, style="plain"), Points(numbers, distances))
    return Panel(layers, x_name="trial", y_name="distance to the\none before")


# -- importance -------------------------------------------------------------------------------------------------


def _importance(study: Study, group: str | None, _: Wish) -> Figure:
    found = importance(study, group)
    if not found:
        raise _nothing(study)
    layers = (
        Bars(tuple(each.total for each in found), "with its interactions", 0),
        Bars(tuple(each.alone for each in found), "by itself", 1),
    )
    panel = Panel(layers, x_name=f"share of the variance of {study.metric}", y_labels=tuple(e.name for e in found))
    model = _model(study, group)
    return Figure(
        _title(study, f"what matters for {study.metric}{study.at(model.rung)}", group),
        ((panel,),),
        (METHOD,),
        size=(7.0, 1.8 + 0.42 * len(found)),
    )


# -- slices and contours ----------------------------------------------------------------------------------------


def _slice(study: Study, group: str | None, wish: Wish) -> Figure:
    """Draw the model along one param at a time, through the best configuration."""
    model = _model(study, group)
    through = _leader(study, model)
    active = [name for name in study.problem.space.names if name in through]
    chosen = list(wish.params or _by_importance(study, group, active))[:MAX_SLICES]
    inactive = [name for name in chosen if name not in through]
    if inactive:
        raise UsageError(
            f"`{inactive[0]}` plays no part in the best configuration, through which slices are made",
            f"--params {','.join(active)}",
        )
    pairs = [_slice_panels(study, model, group, through, name) for name in chosen]
    bands = math.ceil(len(pairs) / _ABREAST)
    abreast = math.ceil(len(pairs) / bands)
    rows: list[tuple[Panel, ...]] = []
    for i in range(0, len(pairs), abreast):
        rows += zip(*pairs[i : i + abreast], strict=True)
    words = ", ".join(f"{name}={short(value)}" for name, value in through.items())
    others = "; points differ in the other params, too" if len(study.problem.space.names) > 1 else ""
    return Figure(
        _title(study, f"the model of {study.metric}{study.at(model.rung)}", group),
        tuple(rows),
        (
            f"through the best by the model: {words}",
            "band: 95 % of the model's belief, without noise" + others,
        ),
        heights=(2.6, 1.0) * bands,
        size=(max(5.5, 3.3 * abreast), 5.0 if bands == 1 else 4.2 * bands),
        together=2,
    )


def _leader(study: Study, model: Model) -> Params:
    """Return the observed configuration with the best mean at the model's own rung."""
    mean, _ = model.posterior.predict(model.posterior.observed)
    row = model.posterior.observed[int(np.argmin(mean))]
    return study.problem.space.decode(np.nan_to_num(row, nan=0.5))


def _by_importance(study: Study, group: str | None, among: Sequence[str]) -> list[str]:
    return [each.name for each in importance(study, group) if each.name in among]


def _slice_panels(study: Study, model: Model, group: str | None, through: Params, name: str) -> tuple[Panel, Panel]:
    axis = Axis.of(study, name)
    rows = np.repeat(_row(study, through)[None, :], len(axis.units), axis=0)
    rows[:, axis.column] = axis.units
    rows = _settled(study, rows)
    mean, sd = study.predict(model, rows)
    score = _score(study, model, rows)
    x = axis.places
    layers = _belief(axis, mean, _WIDE * sd)
    known = [
        t
        for t in study.trials
        if t.group == group and name in t.params and math.isfinite(races.value_at(t, model.rung))
    ]
    values = tuple(study.sign * races.value_at(t, model.rung) for t in known)
    layers.append(Points(axis.at(known), values, "trials"))
    waiting = [t for t in study.trials if t.group == group and t.is_pending and name in t.params]
    if waiting:
        ahead, _ = study.predict(model, model.ground.locate(t.params for t in waiting))
        layers.append(Points(axis.at(waiting), tuple(ahead.tolist()), "under way, at the mean", "pending"))
    here = study.predict(model, model.ground.locate([through]))[0]
    layers.append(Points((axis.place(through[name]),), (float(here[0]),), "best", "best"))
    top = Panel(tuple(layers), y_name=study.metric, is_log_x=axis.is_log, x_labels=axis.labels)
    height = tuple(score.tolist())
    label = _SCORES[_strategy(study)]
    shown: list[Layer]
    if axis.labels:
        shown = [*(Way((at, at), (0.0, top_of), style="score") for at, top_of in zip(x, height, strict=True))]
        shown.append(Points(x, height, label, "score"))
    else:
        shown = [Band(x, (0.0,) * len(x), height, style="score"), Way(x, height, label, "score")]
    below = Panel(tuple(shown), x_name=name, y_name="acquisition", is_log_x=axis.is_log, x_labels=axis.labels)
    return top, below


def _belief(axis: Axis, mean: Array, reach: Array) -> list[Layer]:
    """Return the mean with its band; where values are no numbers, a point with a bar for each."""
    middle, low, high = (tuple(each.tolist()) for each in (mean, mean - reach, mean + reach))
    if not axis.labels:
        return [Band(axis.places, low, high, "95 % band"), Way(axis.places, middle, "mean", "mean")]
    bars = [Way((x, x), (a, b), "95 % band", "mean") for x, a, b in zip(axis.places, low, high, strict=True)]
    return [*bars, Points(axis.places, middle, "mean", "mean")]


def _row(study: Study, params: Params) -> Floats:
    return study.problem.space.encode(params)


def _settled(study: Study, rows: Floats) -> Floats:
    """Return rows as the model has them: NaN where a dimension is inactive."""
    return np.where(study.problem.space.active_rows(rows), rows, np.nan)


_SCORES: Mapping[str, str] = {
    "ei": "expected improvement, of its greatest",
    "pi": "probability of improvement, of its greatest",
    "lcb": "confidence bound, of its greatest",
}


def _strategy(study: Study) -> str:
    return {"pi": "pi", "ucb": "lcb", "lcb": "lcb"}.get(study.problem.sampler, "ei")


def _score(study: Study, model: Model, rows: Array) -> Array:
    """Return the acquisition at rows, 0 to 1 of its range there: of those that have none, expected improvement."""
    mean, sd = model.posterior.predict(rows)
    incumbent = float(np.min(model.posterior.predict(model.posterior.observed)[0]))
    strategy = _strategy(study)
    if strategy == "lcb":
        bound = acquisition.lower_bound(mean, sd)
        return np.asarray((bound - bound.min()) / max(float(np.ptp(bound)), 1e-12))
    function = acquisition.log_pi if strategy == "pi" else acquisition.log_ei
    logs = function(mean, sd, incumbent)
    return np.asarray(np.exp(logs - logs.max()))


def _contour(study: Study, group: str | None, wish: Wish) -> Figure:
    """Draw the model's mean over two params, through the best configuration; unless asked, those that are numbers."""
    model = _model(study, group)
    through = _leader(study, model)
    names = list(wish.params or _across_and_up(study, group, through))[:2]
    if len(names) < 2:
        raise UsageError(
            f"a contour is over two params, and {', '.join(names) or 'none'} is what there is",
            f"ems plot {study.exp_id} slice",
        )
    across, up = Axis.of(study, names[0], _MESH), Axis.of(study, names[1], _MESH)
    rows = np.tile(_row(study, through), (len(up.units) * len(across.units), 1))
    rows[:, across.column] = np.tile(across.units, len(up.units))
    rows[:, up.column] = np.repeat(up.units, len(across.units))
    mean, _ = study.predict(model, _settled(study, rows))
    allowed = study.problem.space.allowed(rows)
    z = np.where(allowed, mean, np.nan).reshape(len(up.units), len(across.units))
    known = [
        t
        for t in study.trials
        if t.group == group and set(names) <= set(t.params) and math.isfinite(races.value_at(t, model.rung))
    ]
    bad = [t for t in study.trials if t.group == group and set(names) <= set(t.params) and t.outcome.is_bad]
    layers: list[Layer] = [
        Mesh(across.places, up.places, tuple(tuple(row) for row in z.tolist()), f"mean of {study.metric}")
    ]
    layers.append(Points(across.at(known), up.at(known), "trials"))
    if bad:
        layers.append(Points(across.at(bad), up.at(bad), "failed", "failed"))
    layers.append(Points((across.place(through[names[0]]),), (up.place(through[names[1]]),), "best", "best"))
    panel = Panel(
        tuple(layers), names[0], names[1], across.is_log, up.is_log, x_labels=across.labels, y_labels=up.labels
    )
    others = ", ".join(f"{name}={short(value)}" for name, value in through.items() if name not in names)
    notes = (f"others as in the best by the model: {others}",) if others else ()
    title = _title(study, f"the model of {study.metric}{study.at(model.rung)}", group)
    return Figure(title, ((panel,),), notes, size=(7.0, 5.2))


def _across_and_up(study: Study, group: str | None, through: Params) -> list[str]:
    """Return the params that matter most, those between whose values something lies before those of words."""
    ranked = _by_importance(study, group, [name for name in study.problem.space.names if name in through])
    return sorted(ranked, key=lambda name: bool(Axis.of(study, name, 2).labels))


# -- parallel coordinates, rungs, timeline ----------------------------------------------------------------------


def _parallel(study: Study, group: str | None, _: Wish) -> Figure:
    """Draw a line a configuration through an axis a param; the metric is the last, and gives the colour."""
    rung = study.top_rung(group)
    if rung is None:
        raise _nothing(study)
    own = [t for t in study.trials if t.group == group and math.isfinite(races.value_at(t, rung))]
    own.sort(key=lambda t: -races.value_at(t, rung))  # the best on top
    values = np.array([races.value_at(t, rung) for t in own])
    ranks = np.argsort(np.argsort(values)) / max(len(values) - 1, 1)
    low, high = float(values.min()), float(values.max())
    heights = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    dimensions = study.problem.space.searched
    layers: list[Layer] = [Upright(float(i), d.name, tuple(ticks(d))) for i, d in enumerate(dimensions)]
    shown = heights if study.sign > 0 else 1 - heights
    ends = ((0.0, low), (1.0, high)) if study.sign > 0 else ((0.0, -high), (1.0, -low))
    layers.append(Upright(float(len(dimensions)), study.metric, tuple((at, f"{value:.4g}") for at, value in ends)))
    for trial, rank, height in zip(own, ranks.tolist(), shown.tolist(), strict=True):
        there = [(float(i), d.unit(trial.params[d.name])) for i, d in enumerate(dimensions) if d.name in trial.params]
        x, y = zip(*there, (float(len(dimensions)), height), strict=True)
        layers.append(Way(tuple(x), tuple(y), shade=rank))
    notes = ["dark is good; by rank"]
    if any(len(t.params) < max(len(each.params) for each in own) for t in own):
        notes.append("a line passes by the params that play no part in it")
    title = _title(study, f"{_count(len(own), 'configuration')} by {study.metric}{study.at(rung)}", group)
    return Figure(title, ((Panel(tuple(layers)),),), tuple(notes), size=(max(6.0, 1.6 * (len(dimensions) + 1)), 4.2))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _rungs(study: Study, group: str | None, _: Wish) -> Figure:
    """Each trial's way from rung to rung."""
    if not study.budgets:
        raise UsageError(
            f"study {study.exp_id} has no rungs: it was begun without --fidelity",
            f"ems plot {study.exp_id} convergence",
        )
    own = [t for t in study.trials if t.group == group and any(math.isfinite(value) for value in t.values)]
    if not own:
        raise _nothing(study)
    deepest = max(len(trial.values) for trial in own)
    layers: list[Layer] = []
    for trial in sorted(own, key=lambda t: len(t.values)):
        x, y = study.budgets[: len(trial.values)], tuple(study.sign * value for value in trial.values)
        layers.append(Way(x, y, color=None if len(trial.values) < deepest else 0))
        layers.append(Points(x, y))
    found = best(study, group, 1)
    (leader,) = [t for t in own if t.number == found[0].number]
    ends = study.budgets[: len(leader.values)]
    layers.append(Way(ends, tuple(study.sign * v for v in leader.values), f"best: trial {leader.number}", "best"))
    layers.append(Points(ends[-1:], (study.sign * leader.values[-1],), "", "best"))
    done = [sum(math.isfinite(races.value_at(t, rung)) for t in own) for rung in range(len(study.budgets))]
    counts = ", ".join(f"{n:,} at {b:g}" for b, n in zip(study.budgets, done, strict=True) if n)
    panel = Panel(
        tuple(layers), x_name=study.fidelity or "step", y_name=study.metric, is_log_x=True, x_ticks=study.budgets
    )
    title = _title(study, f"{study.metric} from rung to rung", group)
    return Figure(title, ((panel,),), (f"trials that completed a rung: {counts}",), size=(7.0, 4.6))


_LOOKS: Mapping[str, tuple[str, Style]] = {
    Outcome.OK: ("ok", "mean"),
    Outcome.STOPPED: ("stopped", "pending"),
    Outcome.PENDING: ("running", "score"),
    Outcome.LOST: ("lost", "plain"),
}


def _timeline(study: Study, _: str | None, wish: Wish) -> Figure:
    """Every worker's trials, and the holes between them."""
    line = timeline(study, wish.now)
    unit, name = (3600.0, "hours") if line.until > 7200 else (60.0, "minutes") if line.until > 180 else (1.0, "seconds")
    seen: set[str] = set()
    holes = [Span(lane, 0.0, line.until / unit, "idle" if lane == 0 else "", "idle") for lane in range(line.workers)]
    layers: list[Layer] = [*holes]
    for each in line.stints:
        label, style = _LOOKS.get(each.outcome, ("failed", "failed"))
        layers.append(Span(each.lane, each.start / unit, each.end / unit, "" if label in seen else label, style))
        seen.add(label)
    panel = Panel(
        tuple(layers),
        x_name=f"{name} since the first trial began",
        y_name="worker",
        y_labels=tuple(str(lane + 1) for lane in range(line.workers)),
    )
    return Figure(
        _title(study, f"{_count(line.workers, 'worker')}, idle {line.idle:.1%} of the time", None),
        ((panel,),),
        ("idle: share of all workers' time up to the last start; a lane is any worker that was free",),
        size=(7.5, min(1.8 + 0.28 * line.workers, 16.0)),
    )


KINDS: Mapping[str, Callable[[Study, str | None, Wish], Figure]] = {
    "convergence": _convergence,
    "parallel": _parallel,
    "importance": _importance,
    "slice": _slice,
    "contour": _contour,
    "rungs": _rungs,
    "timeline": _timeline,
}
