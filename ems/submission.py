"""From what was typed to an experiment on disk and its first jobs.

The order makes every kill survivable: the code is frozen first; the experiment's directory is written aside and
renamed into place whole; the store learns of it; only then is anything handed to the scheduler. Killed before the
rename, nothing happened. Killed after it, ``ems rerun EXP --missing`` (or any later ``ems`` command) carries on,
and the workers' exclusive claims see to it that no run starts twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

from ems import counting, environment, provenance, snapshot, space, sweep, unroll
from ems.errors import ScriptError, TargetError, UsageError
from ems.executor.base import Submission
from ems.model import Experiment, Json, LoopRef, Params, PassAs, Point, Resources, Run
from ems.node import checkout, install, records
from ems.store import Store
from ems.target import Target


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that ``ems parrun`` or ``ems run`` was asked, after flags, config files and defaults were joined.

    Exactly one of four sources gives the points: ``single``; ``sets``/``sweep_file`` where given; else the script's
    own loops. ``sweep_file`` may also name the script.
    """

    script: Path | None
    target: Target
    args: tuple[str, ...] = ()
    cwd: Path = field(default_factory=Path.cwd)
    single: bool = False
    sets: tuple[str, ...] = ()
    zips: tuple[str, ...] = ()
    samples: int | None = None
    sample_seed: int = 0
    sweep_file: Path | None = None
    count_by_running: bool = False
    pass_as: PassAs | None = None  # None: flags, or none where the script's loops are swept
    name: str | None = None
    message: str | None = None
    tags: tuple[str, ...] = ()
    again: bool = False
    resources: Resources = field(default_factory=Resources)
    python: str | None = None
    setup: tuple[str, ...] = ()
    env: str | None = None  # "auto": an environment built once per content of the project's lock file
    container: str | None = None
    data: tuple[str, ...] | None = None  # None: the git-ignored top-level folders
    log_patterns: tuple[str, ...] = ()
    metric_files: tuple[str, ...] = ()
    max_file_mb: float = 50.0
    pack: int | None = None
    workers: int | None = None
    max_parallel: int | None = None
    grace_s: int = 60
    max_requeues: int = 3
    seed: int = 0
    worker_python: str | None = None
    command_line: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """An experiment that has been worked out but not submitted; its code is frozen already.

    ``runs()`` streams: a sweep may have a million points.
    """

    experiment: Experiment
    target: Target
    snapshot: snapshot.Snapshot
    points: Iterable[Point]
    done: Mapping[str, str]  # run key -> "EXP/INDEX" of a run that completed with the same code, params and args
    code_key: str
    n_points: int
    chunks: tuple[records.Record, ...]
    warnings: tuple[str, ...] = ()
    gpu_hours: float | None = None  # None: no time limit was asked, so nothing bounds them

    @property
    def n_skipped(self) -> int:
        """Points left out because they completed before."""
        return self.n_points - self.experiment.n_runs

    def runs(self) -> Iterator[Run]:
        """Yield the runs in order of index."""
        fresh = (r for r in _numbered(self.points, self.code_key, self.experiment) if r.key not in self.done)
        for index, run in enumerate(fresh):
            yield replace(run, index=index)

    def script(self) -> str:
        """Return the exact sbatch script of the first chunk, or the worker's command on ``here``."""
        return self.target.executor.script(self.experiment, self.chunks[0])


def plan(request: Request, store: Store) -> Plan:
    """Work out an experiment: count the points, freeze the code, leave out what completed before. Submits nothing.

    Raises
    ------
    UsageError
        If the request cannot be meant: no such script, no points, more than a million.
    ScriptError
        If the script does not compile or its loops cannot be counted.
    SnapshotError, ExecutorError, TargetError
        If the code cannot be frozen, or the target cannot give what is asked.
    """
    raise NotImplementedError


def submit(plan: Plan, store: Store) -> Submission:
    """Write the experiment down, then hand its first chunks to the executor.

    Raises
    ------
    TargetError
        If the root cannot be written.
    ExecutorError
        If the scheduler refuses; the experiment stays and ``ems rerun EXP --missing`` carries on.
    """
    raise NotImplementedError
