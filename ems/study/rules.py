"""When a study ends though its budget is not spent: what shows that going on is no use. Also what curves tell."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ems.search.trial import Outcome
from ems.store import Store
from ems.store.studies import FAILED, SegmentRow, StudyRow
from ems.study.outcomes import NO_VALUE, TEXT
from ems.study.spec import StudySpec

_FIRST = 3  # trials that may all crash before a script that never works is the likely reason
_CRASHES = (Outcome.CRASHED, Outcome.OOM, Outcome.TIMEOUT)

Curves = Mapping[int, Sequence[tuple[float, float]]]


def verdict(store: Store, spec: StudySpec, row: StudyRow, parts: Sequence[SegmentRow]) -> tuple[str, str, bool]:
    """Return the state that a study comes to, why, and whether what runs is of no use either; empty: it goes on."""
    said = _mute(store, spec, row, parts) or _ignored(spec, parts)
    if said:
        return FAILED, said, True
    said = _crashes(spec, row, parts)
    return (FAILED, said, False) if said else ("", "", False)


def _mute(store: Store, spec: StudySpec, row: StudyRow, parts: Sequence[SegmentRow]) -> str:
    """Say that the metric never appears, or is a text, as soon as the first trials that completed show it."""
    mute = [each for each in parts if each.told > row.resumed and each.reason.startswith((NO_VALUE, TEXT))]
    has_value = any(each.value is not None or each.outcome == Outcome.DIVERGED for each in parts)
    is_last = not any(each.is_pending for each in parts)
    if has_value or not mute or (len(mute) < 2 and not is_last):
        return ""
    text = next((each.reason.removeprefix(TEXT) for each in mute if each.reason.startswith(TEXT)), None)
    if text is not None:
        return f"{spec.metric} is a text ({text!r}), and only numbers can be compared: log a number"
    seen = [name for name in store.metric_names([spec.id]) if name != spec.metric]
    listed = ", ".join(seen[:10]) + (f" and {len(seen) - 10} more" if len(seen) > 10 else "")
    there = f"its runs logged {listed}" if seen else "its runs logged no metric at all: ems.log(NAME=value)"
    return f"no run logged {spec.metric}; {there}"


def _ignored(spec: StudySpec, parts: Sequence[SegmentRow]) -> str:
    """Say that the fidelity param changes nothing: trials log up to the same step whatever its value."""
    if not spec.is_promoting:
        return ""
    steps: dict[int, dict[int, float]] = defaultdict(dict)
    for each in parts:
        if each.outcome == Outcome.OK and each.chunk and each.last_step is not None and each.points > 1:
            steps[each.number][each.rung] = each.last_step
    steps = {number: seen for number, seen in steps.items() if len(seen) > 1}
    if not steps:
        return ""
    from ems.search.rungs import ignored_fidelity  # noqa: PLC0415  # numpy and scipy: only where it is needed

    return ignored_fidelity(spec.problem(), steps)


def _crashes(spec: StudySpec, row: StudyRow, parts: Sequence[SegmentRow]) -> str:
    """Say that trials crash one after another."""
    told = [each for each in parts if each.told > row.resumed and each.chunk and each.outcome != Outcome.LOST]
    told.sort(key=lambda each: (each.told, each.ended_at, each.number))
    streak = 0
    while streak < len(told) and told[-1 - streak].outcome in _CRASHES:
        streak += 1
    is_all = streak == len(told) and streak >= min(_FIRST, spec.max_crashes)
    if streak < spec.max_crashes and not is_all:
        return ""
    which = f"the first {streak} trials" if is_all else f"{streak} trials in a row"
    last = told[-1]
    return f"{which} failed, e.g. {spec.id}/{last.number}: {last.reason}"


# -------------------------------------------------------------------------------------------------- curves


def curves(store: Store, spec: StudySpec) -> dict[int, list[tuple[float, float]]]:
    """Return what each trial logged so far as (budget, value), ascending, of which less is better.

    The first step counts as one unit of the fidelity.
    """
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    first: dict[int, float] = {}
    for _, index, step, value in store.curves([spec.id], spec.metric):
        if math.isfinite(value):
            begin = first.setdefault(index, step)
            found[index].append((step - begin + 1, spec.sign * value))
    return dict(found)


def passed(spec: StudySpec, ended: Sequence[SegmentRow], known: Curves) -> list[SegmentRow]:
    """Return a segment for each rung that trials passed on their way, where they run it at once (``stop``).

    Also those that were stopped, with what they cost: up to the rung that they were on their way to, as
    :func:`ems.search.rungs.charge` counts it.
    """
    if spec.scheduler != "stop" or spec.fidelity is None:
        return []
    found = []
    for segment in ended:
        points, reached = known.get(segment.number, ()), 0
        for rung, budget in enumerate(spec.fidelity.rungs[: segment.rung]):
            before = [value for at, value in points if at <= budget]
            if before and points[-1][0] >= budget:
                value, reached = spec.sign * before[-1], rung + 1
                found.append(
                    replace(
                        segment,
                        rung=rung,
                        budget=budget,
                        chunk=0,
                        outcome=Outcome.OK.value,
                        value=value,
                        cost=0.0,
                        reason="",
                        wall_s=0.0,
                    )
                )
        if segment.outcome == Outcome.STOPPED:
            found.append(replace(segment, cost=spec.fidelity.rungs[reached]))
    return found
