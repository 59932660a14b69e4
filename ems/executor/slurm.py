"""SLURM: one array job a chunk, one squeue and one sacct a refresh.

submitit knows sbatch's parameters and writes the script; its job objects, its pickles and its idea of "done" are not
used. The scripts are all written before the first is submitted; :mod:`ems.node.feed` submits them.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ems.errors import ExecutorError
from ems.executor import probes
from ems.executor.base import Check, Limits, Submission, resources_of, writing_to
from ems.executor.script import Script, flags, insert_raw, parameters, raw_flags
from ems.executor.states import from_slurm, spell_out
from ems.model import Experiment, JobInfo, Resources, State
from ems.node import feed, install, records
from ems.node.job import notice
from ems.node.records import ExperimentFiles, Record

_TIMEOUT_S = 60
_MAX_ARGUMENT = 100_000  # characters; Linux takes 131,072 in one argument


class SlurmExecutor:
    """Array jobs through the SLURM whose commands are on this machine.

    Parameters
    ----------
    root
        The target's root, on a file system that the nodes see.
    worker_python
        What starts the worker on a node: any Python >= 3.8.
    """

    name = "slurm"

    def __init__(self, root: Path, worker_python: str | None = None) -> None:
        self.root = root
        self.worker_python = worker_python

    # -- before ----------------------------------------------------------------------------------------------

    def check(self, resources: Resources) -> None:
        """See :meth:`Executor.check`; asks sbatch itself by ``--test-only``."""
        if shutil.which("sbatch") is None:
            raise ExecutorError("there is no sbatch on this machine", "log in to the cluster, or run with --on here")
        lines = ["#!/bin/sh", *flags(parameters(resources)), *raw_flags(resources), "true", ""]
        done = call(["sbatch", "--test-only"], stdin="\n".join(lines), env=feed.clean_environment())
        if done.returncode != 0 and not feed.RefusedError(done.stderr).is_full:
            raise _refusal(feed.RefusedError(feed.words(done.stderr)))

    def limits(self) -> Limits:
        """See :meth:`Executor.limits`; asks slurmctld, and the accounting where limits are enforced."""
        config = ask(["scontrol", "show", "config"])
        array = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE)
        tasks = re.search(r"^SchedulerParameters\s*=.*max_array_tasks=(\d+)", config, re.MULTILINE)
        sizes = [int(found.group(1)) for found in (array, tasks) if found]
        enforced = re.search(r"^AccountingStorageEnforce\s*=.*\b(limits|safe)\b", config, re.MULTILINE)
        return Limits(max(1, min(sizes, default=1001)), _max_submit() if enforced else None)

    def script(self, experiment: Experiment, chunk: Record) -> str:
        """See :meth:`Executor.script`: the exact text for sbatch."""
        files = ExperimentFiles(self.root, experiment.id)
        resources = resources_of(experiment, chunk)
        number = chunk["chunk"]
        writer = Script(folder=files.chunks)
        writer.update_parameters(
            job_name=feed.job_name(files, number),
            wckey=None,
            stderr_to_stdout=True,
            use_srun=False,
            **parameters(resources),
        )
        parallel = f"%{experiment.max_parallel}" if experiment.max_parallel else ""
        writer.parameters["additional_parameters"] = {
            "array": f"0-{chunk['tasks'] - 1}{parallel}",
            "output": files.chunk(number, "log").replace("%", "%%"),
            "open-mode": "append",
            "chdir": os.fspath(self.root),
            # seconds before the time limit at which the worker, which is the batch shell, learns of it
            "signal": f"B:USR1@{notice(resources.time, experiment.grace_s)[0]}",
            "requeue": True,
        } | ({"gpus": resources.gpus} if resources.gpus else {})
        worker = str(Path(install.install_lib(self.root), "ems", "node", "worker.py"))
        command = shlex.join(["-I", "-S", worker, os.fspath(self.root), experiment.id, str(number)])
        return insert_raw(writer.text(f"{self._choose_python()} {command}"), resources)

    def _choose_python(self) -> str:
        """Return shell text that becomes the worker's Python.

        That of ems where nodes see it too: `python3` may be a shim that takes longer to start than the worker.
        """
        if self.worker_python:
            return f"exec {shlex.join(shlex.split(self.worker_python))}"
        own = shlex.quote(sys.executable)
        return f'python={own}\n[ -x "$python" ] || python=python3\nexec "$python"'

    # -- during ----------------------------------------------------------------------------------------------

    def submit(self, experiment: Experiment, files: ExperimentFiles) -> Submission:
        """See :meth:`Executor.submit`."""
        submitted: list[tuple[int, str]] = []
        with writing_to(self.root):
            self._write_scripts(experiment, files)
            for number in feed.waiting(files):
                try:
                    fed = feed.feed(files, [number])
                except feed.RefusedError as refusal:
                    if refusal.is_full:
                        return Submission(submitted, len(feed.waiting(files)), str(refusal))
                    raise _refusal(refusal) from refusal
                if not fed:  # held, or another process is feeding
                    break
                submitted += [(chunk, job) for chunk, job in fed if job != feed.CANCELLED]
            return Submission(submitted, len(feed.waiting(files)))

    def _write_scripts(self, experiment: Experiment, files: ExperimentFiles) -> None:
        """Write the scripts of all chunks first: workers that feed later ones know nothing of submitit."""
        for number in feed.waiting(files):
            if not Path(files.chunk(number, "sh")).exists():
                chunk = records.read_json(files.chunk(number)) or {}
                records.write_atomic(files.chunk(number, "sh"), self.script(experiment, chunk))

    def refresh(self, jobs: Iterable[str]) -> dict[str, JobInfo]:
        """See :meth:`Executor.refresh`; one squeue, and one sacct if squeue does not answer for all."""
        asked, answer = set(), {}
        for job in jobs:
            if job[:1].isdigit():
                asked.add(job)
            elif job.partition("_")[0] == feed.CANCELLED:  # a chunk that was cancelled before it was submitted
                answer[job] = JobInfo(job, State.CANCELLED, "CANCELLED", "cancelled before it was submitted")
        if not asked:
            return answer
        ids = sorted({job.partition("_")[0] for job in asked}, key=int)
        found = _in_queue(ids)
        known = found.keys() | {job.partition("_")[0] for job in found}
        if missing := sorted({job.partition("_")[0] for job in asked - known}, key=int):
            found = _in_accounting(missing) | found
        return answer | found

    def cancel(self, jobs: Iterable[str]) -> None:
        """See :meth:`Executor.cancel`."""
        for batch in _batches(job for job in jobs if job[:1].isdigit()):
            tell(["scancel", "--quiet", *batch])

    def hold(self, jobs: Iterable[str], release: bool = False) -> None:
        """See :meth:`Executor.hold`; only pending tasks can be held, the others stay as they are."""
        for batch in _batches(job for job in jobs if job[:1].isdigit()):
            tell(["scontrol", "release" if release else "hold", *batch])

    def doctor(self) -> list[Check]:
        """See :meth:`Executor.doctor`."""
        return [*probes.machine(self.root), *_doctor(self)]


# ---------------------------------------------------------------------------------------------- asking SLURM


def call(
    argv: Sequence[str], stdin: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands.

    Raises
    ------
    ExecutorError
        If there is no such command here, or it gives no answer.
    """
    try:
        return subprocess.run(
            argv,
            input=stdin or "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            env=env,
            check=False,
        )
    except FileNotFoundError:
        raise ExecutorError(
            f"there is no {argv[0]} on this machine", "log in to the cluster, or run with --on here"
        ) from None
    except subprocess.TimeoutExpired:
        raise ExecutorError(f"{argv[0]} gave no answer within {_TIMEOUT_S} s", "try again; ems doctor") from None


def ask(argv: Sequence[str], env: dict[str, str] | None = None) -> str:
    """Return what one of SLURM's commands prints.

    Raises
    ------
    ExecutorError
        If it refuses, in its own words.
    """
    done = call(argv, env=env)
    if done.returncode != 0:
        raise _refusal(feed.RefusedError(feed.words(done.stderr) or f"{argv[0]}: exit status {done.returncode}"))
    return done.stdout


def tell(argv: Sequence[str]) -> None:
    """Run a command to which jobs that have ended (or were never pending) are no error."""
    done = call(argv)
    said = [line for line in done.stderr.splitlines() if not _HARMLESS.search(line)]
    if done.returncode != 0 and said:
        raise _refusal(feed.RefusedError(feed.words("\n".join(said))))


_HARMLESS = re.compile(
    r"already (finished|completing)|No error|Invalid job id|not pending|no longer pending|complet", re.IGNORECASE
)


def _refusal(refusal: feed.RefusedError) -> ExecutorError:
    said = str(refusal)
    if "establish a configuration source" in said:  # the commands are installed, slurm.conf is not
        return ExecutorError(
            "SLURM's commands are here, but this machine belongs to no cluster", "go to a login node, or use --on here"
        )
    if refusal.is_away or "Unexpected message" in said:
        return ExecutorError(
            f"SLURM does not answer: {said}", "nothing is lost: repeat the command when it is back; ems doctor"
        )
    if isinstance(refusal, feed.UnsureError):
        return ExecutorError(
            f"SLURM gave no clear answer: {said}", "repeat the command: what was taken is found again by its name"
        )
    return ExecutorError(f"SLURM refuses: {said}", "change what is asked for (--partition, --gres, --time, --account)")


def _batches(jobs: Iterable[str], size: int = 1000) -> Iterator[list[str]]:
    every = sorted(set(jobs))
    for start in range(0, len(every), size):
        yield every[start : start + size]


def _job_list(ids: Sequence[str]) -> list[str]:
    """Return ``-j IDS``, or the user's jobs as a whole where the list is too long for an argument."""
    text = ",".join(ids)
    return [f"--jobs={text}"] if len(text) < _MAX_ARGUMENT else [f"--user={getpass.getuser()}"]


def _in_queue(ids: Sequence[str]) -> dict[str, JobInfo]:
    """Ask slurmctld; it also remembers what ended within the last minutes (MinJobAge)."""
    wanted = set(ids)
    done = call(["squeue", "-h", "-r", "-t", "all", "-o", "%F|%K|%A|%T|%N|%S|%r", *_job_list(ids)])
    # squeue calls a single unknown job an error; of several it leaves the unknown out
    if done.returncode != 0 and "Invalid job id specified" not in done.stderr:
        raise _refusal(feed.RefusedError(feed.words(done.stderr) or "squeue failed"))
    found = {}
    for line in done.stdout.splitlines():
        array, task, job, word, node, start, reason = line.split("|", 6)
        if array in wanted or job in wanted:
            key = f"{array}_{task}" if task.isdigit() else job
            found[key] = _info(key, word, node, reason, start)
    return found


def _in_accounting(ids: Sequence[str]) -> dict[str, JobInfo]:
    """Ask slurmdbd for jobs that slurmctld has forgotten; a site without accounting knows nothing of them."""
    env = {**os.environ, "SLURM_BITSTR_LEN": "0"}  # array tasks in full, not cut after 64 characters
    options = _job_list(ids)
    if options[0].startswith("--user"):
        options += ["-S", "now-30days"]
    done = (
        call(["sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode,NodeList", *options], env=env)
        if shutil.which("sacct")
        else None
    )
    wanted, found = set(ids), {}
    for line in done.stdout.splitlines() if done else ():
        name, word, code, node = line.split("|", 3)
        if name.partition("_")[0] in wanted:
            exit_code, _, signal = code.partition(":")
            for key in expand(name):
                found[key] = replace(
                    _info(key, word, node, ""),
                    exit_code=int(exit_code) if exit_code.isdigit() and signal == "0" else None,
                )
    return found


def expand(name: str) -> list[str]:
    """Spell out array tasks as sacct names them: ``7_[0-2,5%3]`` -> ``7_0 7_1 7_2 7_5``; ``7_[0-4:2]`` has a step."""
    array, bracket, tasks = name.partition("_[")
    if not bracket:
        return [name]
    keys: list[str] = []
    for part in tasks.rstrip("]").partition("%")[0].split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if found:
            first, last, step = int(found[1]), int(found[2] or found[1]), int(found[3] or 1)
            keys += [f"{array}_{task}" for task in range(first, last + 1, step)]
    return keys


def _info(job: str, word: str, node: str, reason: str, start: str = "") -> JobInfo:
    state = from_slurm(word)
    return JobInfo(
        job=job,
        state=state,
        slurm_state=spell_out(word),
        reason="" if reason == "None" else reason,
        node="" if node in ("None assigned", "(null)") else node,
        start_estimate=start if state is State.PENDING and start[:1].isdigit() else "",
    )


# ---------------------------------------------------------------------------------------------- limits and health


def _max_submit() -> int | None:
    """Return the smallest bound on the user's submitted jobs: of the associations and of the QOS that they may use."""
    show = ["sacctmgr", "-n", "-P", "show"]
    of_user = [*show, "assoc", f"user={getpass.getuser()}", "format=MaxSubmitJobs,GrpSubmitJobs,QOS"]
    of_qos = [*show, "qos", "format=Name,MaxSubmitJobsPerUser,MaxSubmitJobsPerAccount,GrpSubmitJobs"]
    try:
        with ThreadPoolExecutor(2) as pool:  # each takes a quarter of a second, whatever is asked
            associations, qualities = (text.splitlines() for text in pool.map(ask, (of_user, of_qos)))
    except ExecutorError:  # no accounting, or it is away: sbatch will say when it is too much
        return None
    bounds, allowed = [], set()
    for jobs, group, names in (line.split("|") for line in associations):
        bounds += [jobs, group]
        allowed.update(names.split(","))
    for name, *limits in (line.split("|") for line in qualities):
        bounds += limits if name in allowed else []
    return min((int(bound) for bound in bounds if bound.isdigit()), default=None)


def _doctor(executor: SlurmExecutor) -> Iterator[Check]:
    for program, why, hint in (
        ("sbatch", "submits", "log in to the cluster, or install slurm-client"),
        ("squeue", "tells states", "install slurm-client"),
        ("scontrol", "requeues and holds", "install slurm-client"),
    ):
        path = shutil.which(program)
        yield Check(program, path is not None, path or f"missing; {why}", "" if path else hint)
    if shutil.which("scontrol") is None:
        return
    try:
        version = ask(["scontrol", "--version"]).strip()
        ping = ask(["scontrol", "ping"]).strip()
        is_up = " UP" in ping
        yield Check(
            "slurmctld",
            is_up,
            f"{version}; {ping.splitlines()[0]}",
            "" if is_up else "ask the cluster's administrators",
        )
    except ExecutorError as error:
        yield Check("slurmctld", False, error.message, "check SLURM_CONF, or ask the cluster's administrators")
        return
    yield _check_accounting()
    limits = executor.limits()
    bound = "no bound" if limits.max_submit is None else str(limits.max_submit)
    yield Check("limits", True, f"{limits.max_array_size} tasks an array; jobs submitted at a time: {bound}")
    yield _check_partitions()


def _check_accounting() -> Check:
    hint = "states of runs that were killed are then known for a few minutes only (MinJobAge): harvest in time"
    try:
        ask(["sacct", "-X", "-n", "-P", "-S", "now-1minutes", "-o", "JobID"])
    except ExecutorError as error:
        return Check("sacct", False, error.message, hint)
    return Check("sacct", True, "accounting answers")


def _check_partitions() -> Check:
    lines = ask(["sinfo", "-h", "-o", "%R|%a|%F|%G"]).splitlines()
    parts = []
    for line in dict.fromkeys(lines):
        name, up, nodes, gres = line.split("|")
        parts.append(
            f"{name} {up}, nodes {nodes} (allocated/idle/other/total)" + ("" if gres == "(null)" else f", {gres}")
        )
    usable = any("|up|" in line for line in lines)
    return Check("partitions", usable, "; ".join(parts) or "none", "" if usable else "ask the cluster's administrators")
