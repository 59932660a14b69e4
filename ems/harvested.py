"""Which runs have been harvested to another machine: what says so lies with them, for a cluster that means to end.

``experiments/EXP/harvested.json`` is ``{"runs": [[start, stop, attempt], …]}``: of the runs from ``start`` up to
``stop`` everything that a harvest brings was brought, up to that attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

from ems.node import records
from ems.node.records import ExperimentFiles


def note(files: ExperimentFiles, runs: Mapping[int, int]) -> None:
    """Write down runs that were harvested, by the number of their last attempt; what is known of others stays."""
    known = of(files)
    merged = known | {index: max(attempt, known.get(index, 0)) for index, attempt in runs.items()}
    if merged != known:
        records.write_atomic(_path(files), records.dump({"runs": list(_stretches(merged))}))


def of(files: ExperimentFiles) -> dict[int, int]:
    """Return the runs that were harvested, by the number of their last attempt."""
    if not _path(files).is_file():  # a pipe would hold for ever whoever looks
        return {}
    try:
        stretches, n_runs = (records.read_json(_path(files)) or {}).get("runs", ()), records.count_runs(files)
        return {index: attempt for start, stop, attempt in stretches for index in range(start, min(stop, n_runs))}
    except (OSError, ValueError, TypeError):  # damaged: nothing is known
        return {}


def left(files: ExperimentFiles) -> list[int]:
    """Return the runs of an experiment that were started and have not been harvested as they are now."""
    known = of(files)
    return [
        index
        for index in range(records.count_runs(files))
        if (attempts := files.attempt_numbers(index)) and attempts[-1] > known.get(index, 0)
    ]


def _path(files: ExperimentFiles) -> Path:
    return Path(files.dir, "harvested.json")


def _stretches(runs: Mapping[int, int]) -> Iterable[list[int]]:
    ordered = sorted(runs.items())
    breaks = [i + 1 for i, (a, b) in enumerate(pairwise(ordered)) if b != (a[0] + 1, a[1])]
    for start, stop in pairwise([0, *breaks, len(ordered)]):
        if start < stop:
            yield [ordered[start][0], ordered[stop - 1][0] + 1, ordered[start][1]]
