"""What the runs of an experiment may take together, and how much of it they have; :mod:`ems.node.budget` keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from ems.errors import UsageError
from ems.model import Experiment, Json, Resources
from ems.node import records
from ems.node.budget import CPU_HOURS, GPU_HOURS, USD, hourly, longest_h
from ems.node.job import BUDGET
from ems.node.records import ExperimentFiles
from ems.store import Store

UNITS = (USD, GPU_HOURS, CPU_HOURS)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a budget stands.

    Attributes
    ----------
    amounts, spent
        By unit; what runs counts until now.
    n_refused
        Runs that were not started for want of it.
    """

    amounts: Mapping[str, float]
    spent: Mapping[str, float]
    n_refused: int

    def __str__(self) -> str:
        """Return ``2.1 of 6 gpuh``, by unit."""
        return ", ".join(f"{self.spent[unit]:.3g} of {amount:g} {unit}" for unit, amount in self.amounts.items())

    def as_json(self) -> dict[str, Json]:
        """Return the amounts, what was spent of them, and the number of runs that were refused."""
        return {"of": dict(self.amounts), "spent": dict(self.spent), "refused": self.n_refused}


def check_countable(amounts: Mapping[str, float], resources: Resources, target: str, usd_per_h: float | None) -> None:
    """See that what is measured of a run can reach an amount of GPU-hours or dollars.

    Raises
    ------
    UsageError
        If the runs ask for no GPU, or nobody knows what they cost, or they cost nothing.
    """
    if GPU_HOURS in amounts and not resources.gpus_per_run:
        raise UsageError("a budget of GPU-hours has no end: the runs ask for no GPU", "add --gres gpu:1, or use cpuh")
    if USD in amounts and usd_per_h is None:
        raise UsageError(
            f"what a run on {target} costs is not known, so a budget in US dollars cannot be kept",
            "give the budget in gpuh or cpuh, or set `prices:` in the cluster's definition",
        )
    if USD in amounts and not usd_per_h:
        raise UsageError(
            f"a run on {target} costs nothing, so a budget in US dollars has no end", "give the budget in gpuh or cpuh"
        )


def check(amounts: Mapping[str, float], resources: Resources, target: str, usd_per_h: float | None) -> None:
    """See that a budget can be kept by counting what runs take, and pays for one of them.

    Raises
    ------
    UsageError
        If not.
    """
    strange = next((unit for unit in amounts if unit not in UNITS), None)
    if strange is not None:
        raise UsageError(
            f"a budget of {amounts[strange]:g} {strange} is for a search: what a sweep runs is known before",
            "give it in what runs take together: --budget 50usd, 200gpuh or 400cpuh",
        )
    check_countable(amounts, resources, target, usd_per_h)
    most = most_of(amounts, resources, usd_per_h)
    short = next((unit for unit in most if most[unit] > amounts[unit] * (1 + 1e-9)), None)
    if short is not None:
        raise UsageError(
            f"a budget of {amounts[short]:g} {short} pays for no run: within its time limit of {resources.time} one "
            f"may take {most[short]:.3g}",
            f"--budget {_up(most[short]):g}{short} at least, or a shorter --time",
        )


def most_of(amounts: Mapping[str, float], resources: Resources, usd_per_h: float | None) -> dict[str, float]:
    """Return what one run may take of each unit; empty where no time limit is asked."""
    asked = asdict(resources)
    limit_h, rates = longest_h(asked), hourly(asked, usd_per_h)
    return {} if limit_h is None else {unit: rates[unit] * limit_h for unit in amounts}


def at_a_time(amounts: Mapping[str, float], resources: Resources, usd_per_h: float | None) -> int | None:
    """Return how many runs the budget pays for if each takes all of its time; None where none is asked."""
    most = most_of(amounts, resources, usd_per_h)
    return min((int(amounts[unit] / most[unit] + 1e-9) for unit in most if most[unit]), default=None)


def standing(store: Store, experiment: Experiment, files: ExperimentFiles) -> Standing | None:
    """Return how the budget of an experiment stands, that of its last rerun if that had one; None without any."""
    record = last(experiment, files)
    if record is None:
        return None
    rates = hourly(asdict(experiment.resources), record["usd_per_h"])
    (took_s,) = store.query(_TOOK, [experiment.id, record["since"]])[0]
    going = [begin for (begin,) in store.query(_GOING, [experiment.id, record["since"]])]
    now = datetime.now(UTC)
    hours = (took_s + sum(max(0.0, (now - datetime.fromisoformat(each)).total_seconds()) for each in going)) / 3600
    (n_refused,) = store.query(_REFUSED, [experiment.id, BUDGET])[0]
    return Standing(record["amounts"], {unit: rates.get(unit, 0.0) * hours for unit in record["amounts"]}, n_refused)


def last(experiment: Experiment, files: ExperimentFiles) -> records.Record | None:
    """Return the budget that holds now, as :class:`ems.node.budget.Budget` takes it; None without any."""
    newest = max(files.chunk_numbers(), default=0)
    chunk = records.read_json(files.chunk(newest)) if newest else None
    if chunk and chunk.get("budget"):
        found: records.Record = chunk["budget"]
        return found
    if not experiment.budget:
        return None
    return {"amounts": dict(experiment.budget), "usd_per_h": experiment.usd_per_h, "since": 0}


def enough_for(store: Store, experiment: Experiment, of: Standing, n_runs: int) -> str:
    """Return what so many more runs would take, as ``--budget`` reads it; empty where nothing tells."""
    (mean_s,) = store.query(_MEAN, [experiment.id])[0]
    unit, _ = max(of.amounts.items(), key=lambda item: of.spent[item[0]] / item[1])
    rate = hourly(asdict(experiment.resources), experiment.usd_per_h).get(unit, 0.0)
    limit_h = longest_h(asdict(experiment.resources))
    needed = n_runs * rate * mean_s / 3600 if mean_s else 0.0
    if limit_h is not None:  # else the last one would not be let in
        needed = max(needed, rate * limit_h)
    return f"{_up(needed):g}{unit}" if needed else ""


def _up(amount: float) -> float:
    """Return an amount with two digits, rounded up."""
    step = 10.0 ** (math.floor(math.log10(amount)) - 1)
    return float(f"{math.ceil(amount / step - 1e-9) * step:.12g}")


_OF = "FROM attempts a JOIN runs r ON r.id = a.run_id WHERE r.experiment_id = ? AND"
_TOOK = f"SELECT coalesce(sum(a.wall_s), 0) {_OF} a.chunk >= ?"
_GOING = f"SELECT a.started_at {_OF} a.chunk >= ? AND a.state = 'RUNNING' AND a.ended_at = '' AND a.started_at != ''"
_REFUSED = "SELECT count(*) FROM runs WHERE experiment_id = ? AND state = 'CANCELLED' AND reason = ?"
_MEAN = f"SELECT avg(a.wall_s) {_OF} a.state = 'COMPLETED'"
