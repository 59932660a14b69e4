"""The nouns: frozen records and enums, no I/O.

A value of a param is JSON: its type survives from the command line to the report.
Times are UTC ISO-8601 strings with a ``Z`` (``2026-11-21T09:30:00.123Z``); durations carry their unit in the name.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from ems.errors import UsageError
from ems.node import job, slots

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
Params: TypeAlias = Mapping[str, Json]

MAX_POINTS = 1_000_000  # of one sweep; more is a mistake or needs `ems tune`


class State(enum.StrEnum):
    """The state of a run. What cannot be mapped is UNKNOWN, never "done"."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"

    @property
    def is_finished(self) -> bool:
        """Whether the run will not change any more by itself."""
        return self in (State.COMPLETED, State.FAILED, State.CANCELLED)


class PassAs(enum.StrEnum):
    """How params reach the script, beside EMS_PARAMS, which is always set."""

    FLAGS = "flags"  # --lr 0.1; true as a bare flag, false and null left out
    HYDRA = "hydra"  # lr=0.1
    POSITIONAL = "positional"  # 0.1, in the order of the params
    ENV = "env"  # LR=0.1 in the environment
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension of a sweep.

    ``names`` has more than one entry where the values of several params move together (``--zip``,
    ``for i, lr in enumerate(...)``); each element of ``values`` is then a tuple of that length.
    """

    names: tuple[str, ...]
    values: tuple[tuple[Json, ...], ...]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class LoopRef:
    """One ``for`` of the script that is an axis: where it stands and how many items it has.

    ``size`` is -1 where it depends on an outer loop. Where ``known`` is false, params hold the source text of some
    items, since their values show only on the node.
    """

    line: int
    column: int  # in bytes of UTF-8, as in ast
    names: tuple[str, ...]
    size: int
    known: bool = True


@dataclass(frozen=True, slots=True)
class Point:
    """What one run gets: params, and the item number of each swept loop (empty without loops)."""

    params: Params
    loops: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Resources:
    """What SLURM is asked for, in SLURM's own words; None where nothing is asked."""

    gres: str | None = None
    gpus: str | None = None
    cpus: int | None = None
    mem: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int | None = None
    exclude: str | None = None
    alloc: str | None = None

    @property
    def gpus_per_run(self) -> int:
        """GPUs that one run asks for by ``gpus`` or ``gres`` (``gpu:2``, ``gpu:a100:2``, ``2``, ``a100:2``)."""
        return slots.gpus_per_run({"gpus": self.gpus, "gres": self.gres})

    @property
    def time_min(self) -> float | None:
        """The time limit in minutes; None where none is asked, and for ``UNLIMITED``.

        Raises
        ------
        UsageError
            If ``time`` is in none of sbatch's forms: ``90``, ``90:30``, ``1:30:00``, ``2-12``, ``2-12:30[:00]``.
        """
        try:
            limit_s = job.seconds(self.time)
        except ValueError as error:
            raise UsageError(
                str(error), "write minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS, e.g. --time 4:00:00"
            ) from error
        return None if limit_s is None else limit_s / 60


@dataclass(frozen=True, slots=True)
class Experiment:
    """A named question: entry point, sweep, resources. Mirrors ``spec.json`` field by field.

    ``script`` and ``cwd`` are relative to the project's root with ``/``; ``data`` maps a path in the
    project to an absolute path on the target; ``datasets`` maps a name in ``$EMS_DATA`` to the hash of a data set
    there; ``command`` is the W&B sweep ``command:`` list or None; ``budget`` is what all runs may take together, by
    unit (``usd``, ``gpuh``, ``cpuh``), and ``usd_per_h`` what one of them costs.
    """

    id: str
    name: str
    created_at: str
    script: str
    snapshot: str
    n_runs: int
    cwd: str = "."
    args: tuple[str, ...] = ()
    command: tuple[str, ...] | None = None
    pass_as: PassAs = PassAs.FLAGS
    source: str = "set"  # loops | set | sweep | single | study
    axes: tuple[Mapping[str, Json], ...] = ()  # [{"names": ["lr"], "size": 4}], for display
    loops: tuple[LoopRef, ...] = ()
    resources: Resources = field(default_factory=Resources)
    executor: str = "here"  # here | slurm
    target: str = "here"
    python: str = "python3"
    setup: tuple[str, ...] = ()
    container: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    datasets: Mapping[str, str] = field(default_factory=dict)
    linked_dirs: tuple[str, ...] = ()  # directories of the view that are linked as a whole
    pack: int | None = None
    workers: int | None = None
    max_parallel: int | None = None
    grace_s: int = 60
    max_requeues: int = 3
    seed: int = 0
    tags: tuple[str, ...] = ()
    message: str | None = None
    command_line: tuple[str, ...] = ()
    log_patterns: tuple[str, ...] = ()
    metric_files: tuple[str, ...] = ()
    provenance: Mapping[str, Json] = field(default_factory=dict)
    study_id: str | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    usd_per_h: float | None = None

    @classmethod
    def load(cls, record: Mapping[str, Any]) -> Experiment:
        """Make an experiment of its ``spec.json``; keys of a later version are passed over.

        Raises
        ------
        TypeError
            If a key is missing.
        """
        known = {each.name for each in fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k in known}
        values["loops"] = tuple(
            LoopRef(**{**loop, "names": tuple(loop["names"])}) for loop in record.get("loops") or ()
        )
        values["resources"] = Resources(**(record.get("resources") or {}))
        values["pass_as"] = PassAs(record.get("pass_as") or PassAs.FLAGS)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of the entry point with one set of params: ``EXP/INDEX``. A line of ``runs.jsonl``."""

    index: int
    params: Params
    seed: int
    key: str  # same key = same code, params, args and seed
    loops: tuple[int, ...] = ()

    @classmethod
    def load(cls, record: Mapping[str, Any]) -> Run:
        """Make a run of its line in ``runs.jsonl``."""
        loops = tuple(record.get("loops") or ())
        return cls(record["index"], record["params"], record["seed"], record["key"], loops)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a run, as its worker recorded it. Mirrors ``attempts/N.json``; see :mod:`ems.node.records`."""

    index: int
    attempt: int
    chunk: int
    state: State
    host: str = ""
    pid: int = 0
    job: str = ""  # array_job_id_array_task_id, job_id, or here-PID
    slurm_state: str = ""
    started_at: str = ""
    ended_at: str = ""
    exit_code: int | None = None
    signal: str = ""
    reason: str = ""  # one line: why it is not COMPLETED
    gpus: str = ""
    max_rss_mb: float | None = None
    cpu_s: float | None = None
    wall_s: float | None = None
    resumed_from: int | None = None


@dataclass(frozen=True, slots=True)
class JobInfo:
    """What the scheduler says of one array task or job."""

    job: str  # "1842_3" or "1843"
    state: State
    slurm_state: str  # SLURM's own word
    reason: str = ""
    node: str = ""
    start_estimate: str = ""
    exit_code: int | None = None
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """``EXP[/INDEX[/FILE]]`` as typed."""

    experiment: str
    index: int | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        Raises
        ------
        UsageError
            If ``text`` is not of the form ``EXP[/INDEX[/FILE]]``.
        """
        match = re.fullmatch(r"([^/\s]+)(?:/(\d+)(?:/(.+))?)?/?", text, re.DOTALL)  # a file may be called anything
        if match is None:
            raise UsageError(
                f"`{text}` is not an address of an experiment or run",
                "write EXP, EXP/INDEX or EXP/INDEX/FILE, e.g. last, last/3, last/3/model.pt",
            )
        name, index, file = match.groups()
        return cls(name, None if index is None else int(index), file)

    def __str__(self) -> str:
        parts = [self.experiment, *(str(p) for p in (self.index, self.file) if p is not None)]
        return "/".join(parts)
