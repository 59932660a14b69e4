"""Run records and SLURM's states -> store. Runs any number of times, at any moment, and may be killed at any point.

The states come first (:func:`refresh_states`, all that ``ems status`` needs): each run's attempt record, and one
question to the scheduler for all runs that have none that ends. Then the metrics of runs that are not settled: what
is new in their files, a transaction for every hundred runs or so that moves positions, points and summaries together.
A run is settled when it has ended and all its files have been read; it is then not touched again until a rerun.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ems.errors import EmsError, StoreError
from ems.harvest import failures, points
from ems.harvest.intake import Intake
from ems.harvest.refresh import Refresh, present, refresh_states
from ems.model import Experiment, Run, State
from ems.node import records
from ems.node.records import ExperimentFiles
from ems.store import Store, wide

__all__ = ["ExperimentHarvest", "HarvestReport", "adopt", "failed", "harvest", "refresh_states"]

GONE_S = 60.0  # how long a worker's record may be late (network file systems) after the scheduler says it is over
_BATCH_RUNS = 200
_BATCH_POINTS = 50_000


@dataclass(frozen=True, slots=True)
class ExperimentHarvest:
    """What a harvest found of one experiment; ``new_*`` were brought in by this one."""

    exp_id: str
    name: str
    n_runs: int
    completed: int
    failed: int
    cancelled: int
    running: int
    pending: int
    unknown: int
    new_completed: int
    new_failed: int
    new_points: int
    failures: tuple[failures.FailureGroup, ...] = ()


@dataclass(frozen=True, slots=True)
class HarvestReport:
    """What a harvest brought in.

    ``problems`` are lines such as ``7f3a9c21/3/x.csv line 7: ..`` (what is wrong in files; the rest was read).
    ``trouble`` is set if the scheduler did not answer: states are then as the workers recorded them.
    """

    experiments: tuple[ExperimentHarvest, ...]
    seconds: float
    problems: tuple[str, ...] = ()
    adopted: tuple[str, ...] = ()
    trouble: EmsError | None = None

    @property
    def new_points(self) -> int:
        """Points brought in, of all experiments."""
        return sum(each.new_points for each in self.experiments)


def harvest(
    store: Store,
    root: Path,
    refresh: Refresh | Mapping[str, Refresh],
    exp_ids: Collection[str] | None = None,
    metric_globs: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    complete: Mapping[str, Mapping[int, bool]] | None = None,
) -> HarvestReport:
    """Bring states and metrics of runs into the store.

    Parameters
    ----------
    root
        The target's root.
    refresh
        Asks the scheduler; one for all, or one for each executor's name.
    exp_ids
        Which experiments; default: all below ``root``, those included that the store does not know yet.
    metric_globs
        Further files that hold metrics, relative to a run's working tree; settled runs are then looked at again.
    progress
        Called with the number of runs done and of all.
    complete
        Where ``root`` is a mirror: by experiment the runs of which every file has come, and whether they had ended
        before. No other is settled. None: nothing is missing anywhere.

    Raises
    ------
    StoreError
        If the store cannot be written. Nothing is lost: the next harvest carries on.
    """
    started = time.monotonic()
    problems: list[str] = []
    adopted = adopt(store, root, problems) if exp_ids is None else []
    trouble: EmsError | None = None
    try:
        refresh_states(store, root, refresh, exp_ids, problems)
    except StoreError:
        raise
    except EmsError as error:
        trouble = error
    work: dict[str, list[int]] = {}
    for exp_id in present(store, root, exp_ids):
        run_ids = _to_read(store, exp_id, again=bool(metric_globs))
        if run_ids or exp_ids is not None:
            work[exp_id] = run_ids
    tell = _Progress(progress, sum(map(len, work.values())))
    found = tuple(
        _Reaper(
            store,
            root,
            exp_id,
            metric_globs,
            problems,
            tell,
            None if complete is None else complete.get(exp_id, {}),
        ).run(ids)
        for exp_id, ids in work.items()
    )
    return HarvestReport(found, time.monotonic() - started, tuple(problems), tuple(adopted), trouble)


def adopt(store: Store, root: Path, problems: list[str] | None = None) -> list[str]:
    """Add the experiments below ``root`` that the store does not know, and return their ids."""
    folder = Path(root) / "experiments"
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    known, adopted = set(store.ids()), []
    for name in names:
        # a name with a dot is of an experiment that was never finished: its submission was killed
        if name in known or name.startswith(".") or not (folder / name / "spec.json").is_file():
            continue
        files = ExperimentFiles(root, name)
        try:
            experiment = Experiment.load(records.read_json(files.spec) or {})
            experiment = replace(experiment, n_runs=records.count_runs(files))  # a study has got some since
            store.add(experiment, (Run.load(line) for line in records.iterate_runs(files)))
            adopted.append(experiment.id)
        except (OSError, ValueError, TypeError, KeyError) as error:
            if problems is not None:
                problems.append(f"experiments/{name} cannot be read: {error}")
    return adopted


def _to_read(store: Store, exp_id: str, again: bool) -> list[int]:
    """Return the ids of runs that may have something new: started, and not settled."""
    rows = store.query(
        "SELECT id FROM runs WHERE experiment_id = ?1 AND (NOT settled OR ?2)"
        " AND (attempt > 0 OR state IN ('COMPLETED', 'FAILED', 'CANCELLED')) ORDER BY id",
        [exp_id, again],
    )
    return [run_id for (run_id,) in rows]


class _Progress:
    def __init__(self, call: Callable[[int, int], None] | None, total: int) -> None:
        self._call, self._total, self._done = call, total, 0

    def add(self, count: int) -> None:
        self._done += count
        if self._call is not None:
            self._call(min(self._done, self._total), self._total)


# -- metrics


class _Reaper:
    """Reads the metrics of the runs of one experiment into the store."""

    def __init__(
        self,
        store: Store,
        root: Path,
        exp_id: str,
        globs: Sequence[str],
        problems: list[str],
        tell: _Progress,
        complete: Mapping[int, bool] | None,
    ) -> None:
        self._store, self._problems, self._tell, self._complete = store, problems, tell, complete
        self._experiment = store.resolve(exp_id)
        files = ExperimentFiles(root, exp_id)
        globs = (*self._experiment.metric_files, *globs)
        try:
            self._intake = Intake(files, self._experiment.log_patterns, globs)
        except re.error as error:
            problems.append(f"log_patterns of {exp_id}: {error}; the usual forms were looked for instead")
            self._intake = Intake(files, (), globs)
        self._settled: list[str] = []  # states of the runs settled by this harvest
        self._new_points = 0

    def run(self, run_ids: list[int]) -> ExperimentHarvest:
        """Read all of ``run_ids``."""
        while run_ids:
            again: list[int] = []
            for start in range(0, len(run_ids), _BATCH_RUNS):
                again += self._read(run_ids[start : start + _BATCH_RUNS])
            run_ids = again
        self._problems += self._intake.problems
        return _summarize(self._store, self._experiment, self._settled, self._new_points)

    def _read(self, run_ids: list[int]) -> list[int]:
        """Read some runs; return those to be read on: there is more in them, or somebody else was faster."""
        again: list[int] = []
        waiting: list[points.RunState] = []
        n_points = 0
        gone_before = time.time() - GONE_S
        for run in points.load(self._store.db, run_ids, gone_before):
            is_final = State(run.state).is_finished and self._is_all_here(run)
            is_complete = self._intake.read(run, is_final)
            run.is_settled = is_complete and is_final and (run.has_ended or run.is_gone)
            if run.batches and not is_complete:
                again.append(run.id)
            if run.batches or run.is_settled or run.has_new_chain:
                waiting.append(run)
                n_points += sum(len(found) for batch in run.batches for found in batch.points.values())
            if n_points >= _BATCH_POINTS:
                again += self._write(waiting)
                waiting, n_points = [], 0
        again += self._write(waiting)
        self._tell.add(len(run_ids) - len(set(again)))
        return sorted(set(again))

    def _is_all_here(self, run: points.RunState) -> bool:
        """Whether no file of an ended run can be more than what was read; of a mirror, only the pull knows.

        Another command may bring the end of a run into the mirror, and not yet its files, after the pull of this one.
        Where nobody recorded an end none will come, and the pull has brought what there was.
        """
        if self._complete is None:
            return True
        had_ended = self._complete.get(run.index)
        return bool(had_ended) or (had_ended is False and run.is_gone and not run.has_ended)

    def _write(self, runs: list[points.RunState]) -> list[int]:
        """Write what was read; return the runs that somebody else has changed since, of which nothing is written."""
        if not runs:
            return []
        with self._store.write() as db:
            writer = points.Writer(db)
            written = [run for run in runs if writer.apply(run)]
            if writer.has_new_names:
                self._store.refresh_wide()
        self._settled += [run.state for run in written if run.is_settled and not run.was_settled]
        self._new_points += writer.n_points
        return list({run.id for run in runs} - {run.id for run in written})


def _summarize(store: Store, experiment: Experiment, settled: list[str], new_points: int) -> ExperimentHarvest:
    counts = store.counts([experiment.id])[experiment.id]
    states = (State.COMPLETED, State.FAILED, State.CANCELLED, State.RUNNING, State.PENDING, State.UNKNOWN)
    groups = failures.group(
        failed(store, experiment.id), experiment.id, experiment.resources, counts.get(State.CANCELLED, 0)
    )
    done, broken, cancelled, running, pending, unknown = (counts.get(state, 0) for state in states)
    return ExperimentHarvest(
        exp_id=experiment.id,
        name=experiment.name,
        n_runs=experiment.n_runs,
        completed=done,
        failed=broken,
        cancelled=cancelled,
        running=running,
        pending=pending,
        unknown=unknown,
        new_completed=settled.count(State.COMPLETED),
        new_failed=settled.count(State.FAILED),
        new_points=new_points,
        failures=tuple(groups),
    )


def failed(store: Store, exp_id: str) -> list[failures.Failure]:
    """Return the failed runs of an experiment with what is known of why."""
    rows = store.query(
        "SELECT r.idx, r.params, r.reason, r.slurm_state, a.error FROM runs r"
        " LEFT JOIN attempts a ON a.run_id = r.id AND a.attempt = r.attempt"
        " WHERE r.experiment_id = ? AND r.state = 'FAILED' ORDER BY r.idx",
        [exp_id],
    )
    return [
        failures.Failure(index, wide.load_params(params), reason, slurm_state, json.loads(error) if error else None)
        for index, params, reason, slurm_state, error in rows
    ]
