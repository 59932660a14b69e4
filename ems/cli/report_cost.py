"""``ems report --cost``: what runs have cost, as one more metric of theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from ems.errors import EmsError, NotFoundError

if TYPE_CHECKING:
    from ems.cli.session import Session
    from ems.cluster.cost import Stretch
    from ems.model import Experiment
    from ems.report.query import Query
    from ems.store import RunRow

USD, GPU_HOURS = "cost_usd", "gpu_hours"
_STRETCHES = """
SELECT r.idx, a.host, a.started_at, a.wall_s FROM attempts a JOIN runs r ON r.id = a.run_id
WHERE r.experiment_id = ? AND a.wall_s IS NOT NULL AND a.started_at != ''
"""


def with_cost(
    session: Session, experiments: Sequence[Experiment], rows: Sequence[RunRow], query: Query
) -> tuple[list[RunRow], Query]:
    """Return runs with what they have cost: dollars, or GPU-hours where nobody knows a price; and show it.

    All attempts that have ended count.

    Raises
    ------
    NotFoundError
        If neither is known of any run.
    """
    from ems.report import Goal
    from ems.store import Summary

    known = {(exp.id, index): (name, value) for exp in experiments for index, name, value in _known(session, exp)}
    priced = []
    for row in rows:
        name, value = known.get((row.exp_id, row.index), ("", 0.0))
        more = {name: Summary(value, value, value, value, 1, 0.0)} if name else {}
        priced.append(replace(row, metrics={**row.metrics, **more}))
    names = sorted({name for name, _ in known.values()})
    if not names:
        raise NotFoundError(
            "what these runs have cost is not known: they were not on a cluster that ems made, and asked for no GPU",
            "ems harvest, if they have ended since; ems cluster cost NAME says what a cluster has cost",
        )
    metrics = (*query.metrics, *names) if query.metrics else ()
    return priced, replace(query, metrics=metrics, goals={**dict.fromkeys(names, Goal.MINIMIZE), **query.goals})


def _known(session: Session, experiment: Experiment) -> Iterator[tuple[int, str, float]]:
    """Yield each run whose cost is known, in what, and how much it is."""
    from ems.cluster import cost, ledger, usage

    spans, node_cpus = [], dict[str, int]()
    with suppress(EmsError):  # `here` and `slurm` are no clusters
        spans = ledger.spans(ledger.Ledger(experiment.target).events())
        for incarnation in dict.fromkeys(each.start.id for each in spans):
            node_cpus |= usage.load(experiment.target, incarnation).cpus
    asked = experiment.resources
    gpus, nodes = asked.gpus_per_run, asked.nodes or 1
    for index, parts in _stretches(session, experiment).items():
        usd = cost.of_run(parts, spans, node_cpus, asked.cpus or 1, gpus, nodes)
        if usd is not None:
            yield index, USD, usd
        elif gpus:
            yield index, GPU_HOURS, sum(each.wall_s for each in parts) * gpus * nodes / 3600


def _stretches(session: Session, experiment: Experiment) -> dict[int, list[Stretch]]:
    from ems.cluster.cost import Stretch

    found: dict[int, list[Stretch]] = {}
    for index, host, begin, wall_s in session.store.query(_STRETCHES, [experiment.id]):
        found.setdefault(index, []).append(Stretch(host or "", datetime.fromisoformat(begin), wall_s))
    return found
