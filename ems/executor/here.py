"""Runs on this machine: one pool of workers a chunk, which claim runs one by one and outlive the terminal.

submitit's controller, detached, holds the pool (:mod:`ems.node.worker`); its pickles and job objects are not used.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from submitit import LocalExecutor as SubmititLocal

from ems.errors import ExecutorError
from ems.executor import probes
from ems.executor.base import Check, Limits, Submission, resources_of, writing_to
from ems.model import Experiment, JobInfo, Resources, State
from ems.node import feed, install, records
from ems.node.records import ExperimentFiles, Record

_CONTROLLER = "submitit.local._local"
_FOREVER_S = 10 * 365 * 86_400


class _Pool(SubmititLocal):
    """submitit's local executor whose controller survives the terminal and holds a lock while it lives."""

    def start(self, command: str, lock: int) -> subprocess.Popen[bytes]:
        env = {
            **os.environ,
            "SUBMITIT_LOCAL_NTASKS": "1",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": str(_FOREVER_S),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "0",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
        }
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "controller.log").open("ab") as log:
            return subprocess.Popen(
                # The id is on disk before anything runs: a pool is found even if who started it was killed.
                ["sh", "-c", 'echo $$ > pid && exec "$@"', "sh", *_controller(self.folder)],
                env=env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,
            )


def places(experiment: Experiment, resources: Resources) -> int:
    """Return how many runs go on at a time on this machine: as many as were asked for, else as it has room for."""
    per_run = resources.gpus_per_run
    fits = len(probes.gpus()) // per_run if per_run else probes.cores() // (resources.cpus or 1)
    return experiment.workers or max(1, fits)


class HereExecutor:
    """Runs on this machine.

    Parameters
    ----------
    root
        The target's root.
    worker_python
        What starts the pool: any Python >= 3.8; default the one that runs ``ems``.
    """

    name = "here"

    def __init__(self, root: Path, worker_python: str | None = None) -> None:
        self.root = root
        self.worker_python = worker_python or shlex.quote(sys.executable)

    def check(self, resources: Resources) -> None:
        """See :meth:`Executor.check`; GPUs and nodes are bound by this machine, time by its workers.

        Raises
        ------
        ExecutorError
            If a run asks for more than this machine has.
        UsageError
            If the time limit is in none of sbatch's forms.
        """
        _ = resources.time_min  # raises
        asked = resources.gpus_per_run
        there = len(probes.gpus()) if asked else 0
        if asked > there:
            has = f"has {there}" if there else "has none"
            raise ExecutorError(
                f"each run asks for {asked} GPU{'s' if asked > 1 else ''}, and this machine {has}",
                "leave --gres and --gpus out, or run on a cluster with --on",
            )
        if (resources.nodes or 1) > 1:
            raise ExecutorError(
                f"each run asks for {resources.nodes} nodes, and this is one machine", "run on a cluster with --on"
            )

    def limits(self) -> Limits:
        """See :meth:`Executor.limits`: an experiment is one chunk."""
        return Limits(max_array_size=sys.maxsize)

    def script(self, experiment: Experiment, chunk: Record) -> str:
        """See :meth:`Executor.script`: the command of the pool."""
        resources = resources_of(experiment, chunk)
        devices = probes.gpus() if resources.gpus_per_run else []
        workers = min(places(experiment, resources), experiment.max_parallel or sys.maxsize)
        worker = Path(install.install_lib(self.root), "ems", "node", "worker.py")
        argv = [*shlex.split(self.worker_python), "-I", "-S", str(worker), os.fspath(self.root), experiment.id]
        argv += [str(chunk["chunk"]), "--here", "--workers", str(workers)]
        return shlex.join([*argv, *(["--gpus", ",".join(devices)] if devices else [])])

    def submit(self, experiment: Experiment, files: ExperimentFiles) -> Submission:
        """See :meth:`Executor.submit`."""
        if mark := next((mark for mark in ("%j", "%t", "%A", "%a") if mark in os.fspath(self.root)), None):
            raise ExecutorError(
                f"the root {self.root} has `{mark}` in its path, which submitit replaces", "set another `root:`"
            )

        submitted = []
        with writing_to(self.root):
            for number in feed.waiting(files):
                if feed.is_held(files):
                    break
                job = feed.submit(files, number, partial(self._start, experiment), find)
                if job is None and (running := find(files, number)):
                    job = feed.record_job(files, number, running)
                if job is not None and job != feed.CANCELLED:
                    submitted.append((number, job))
            return Submission(submitted, len(feed.waiting(files)))

    def _start(self, experiment: Experiment, files: ExperimentFiles, chunk: int, lock: int) -> str:
        record = records.read_json(files.chunk(chunk)) or {}
        pool = _Pool(folder=files.chunk(chunk, "pool")).start(self.script(experiment, record), lock)
        pool.returncode = 0  # it is meant to outlive us: nobody waits for it
        return _name(pool.pid)

    def refresh(self, jobs: Iterable[str]) -> dict[str, JobInfo]:
        """See :meth:`Executor.refresh`; looks into /proc."""
        return {job: _look(job) for job in jobs if job.startswith((self.name, feed.CANCELLED))}

    def cancel(self, jobs: Iterable[str]) -> None:
        """See :meth:`Executor.cancel`; workers pass SIGTERM on to their runs."""
        for pid in _alive(jobs):
            for worker in _workers(pid) or [pid]:
                _signal(worker, signal.SIGTERM)
                _signal(worker, signal.SIGCONT)  # a held one learns of it too

    def hold(self, jobs: Iterable[str], release: bool = False) -> None:
        """See :meth:`Executor.hold`; a pool that is stopped claims nothing, and its runs go on without it."""
        for pid in _alive(jobs):
            for worker in _workers(pid):
                _signal(worker, signal.SIGCONT if release else signal.SIGSTOP)

    def doctor(self) -> list[Check]:
        """See :meth:`Executor.doctor`."""
        devices = probes.gpus()
        said = f"{probes.cores()} cores, " + (f"GPUs {', '.join(devices)}" if devices else "no GPU")
        return [*probes.machine(self.root), Check("machine", True, said)]


def _controller(folder: Path) -> list[str]:
    # -P: nothing that lies in the working directory is imported instead of submitit or the standard library
    return [sys.executable, "-P", "-m", _CONTROLLER, str(folder)]


def find(files: ExperimentFiles, chunk: int) -> str | None:
    """Return the pool of a chunk that is alive, whose starter was killed before it could say so."""
    try:
        pid = int(Path(files.chunk(chunk, "pool"), "pid").read_text())
    except (OSError, ValueError):
        return None
    is_ours = os.fsencode(files.chunk(chunk, "pool")) in _command(pid)  # and not a later process of that id
    return _name(pid) if is_ours else None


def _name(pid: int) -> str:
    return f"here-{pid}-{_status(pid)[1]}"


def _look(job: str) -> JobInfo:
    if job.startswith(feed.CANCELLED):
        return JobInfo(job, State.CANCELLED, "CANCELLED", "cancelled before it was started")
    pid = next(_alive([job]), None)
    if pid is None:
        return JobInfo(job, State.UNKNOWN, "", "its workers are gone")
    is_held = any(_status(worker)[0] == "T" for worker in _workers(pid, limit_s=0))
    return JobInfo(job, State.RUNNING, "", "held" if is_held else "", os.uname().nodename)


def _alive(jobs: Iterable[str]) -> Iterator[int]:
    """Yield the controller of each pool that is alive, told from a later process of the same id by its start."""
    for job in jobs:
        name, _, rest = job.partition("-")
        pid, _, ticks = rest.partition("-")
        if name == "here" and pid.isdigit():
            state, start = _status(int(pid))
            if state not in ("", "Z", "X") and ticks in ("", str(start)):
                yield int(pid)


def _status(pid: int) -> tuple[str, int]:
    """Return state letter and start (clock ticks since boot) of a process, proc(5); ``("", 0)`` where there is none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    return words[0], int(words[19])


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _workers(pid: int, limit_s: float = 5.0) -> list[int]:
    """Return the worker that a controller has started, waiting for it to; a worker is its own."""
    deadline = time.monotonic() + limit_s
    while _CONTROLLER.encode() in _command(pid):
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            return []
        if children or time.monotonic() > deadline:
            return [int(child) for child in children]
        time.sleep(0.02)
    return [pid]


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
