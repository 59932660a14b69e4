"""The job that a worker runs in: SLURM's, or a pool on this machine."""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Mapping, Optional, Tuple

    from ems.node.records import Record

TIME_LIMIT, PREEMPTED, CANCELLED, TERMINATED = "time limit", "preempted", "cancelled", "terminated by SLURM"
BUDGET = "budget"  # not started for want of it
_SCONTROL_TIMEOUT_S = 20
_REQUEUE_S = 10


class Job:
    """Who asks for runs: name, restarts, and what can be asked of the scheduler.

    Parameters
    ----------
    environ
        The worker's environment.
    here
        A pool on this machine, whatever SLURM_* variables are around.
    """

    def __init__(self, environ: Mapping[str, str], here: bool = False) -> None:
        self.is_slurm = not here and "SLURM_JOB_ID" in environ
        slurm = environ if self.is_slurm else {}
        self.array_job_id = slurm.get("SLURM_ARRAY_JOB_ID", "")
        self.array_task_id = slurm.get("SLURM_ARRAY_TASK_ID", "")
        self.name = "here-%d" % os.getpid()
        if self.is_slurm:
            self.name = slurm["SLURM_JOB_ID"]
        if self.array_job_id:
            self.name = "%s_%s" % (self.array_job_id, self.array_task_id)
        self.restart = int(slurm.get("SLURM_RESTART_COUNT") or 0)
        self.partition = slurm.get("SLURM_JOB_PARTITION", "")
        self.host = slurm.get("SLURMD_NODENAME") or os.uname().nodename
        self.boot_id = _read("/proc/sys/kernel/random/boot_id")
        self.pid = os.getpid()
        self.pid_start = process_start(self.pid)

    def facts(self) -> Record:
        """Return what every attempt records of its job."""
        return {
            "host": self.host,
            "pid": self.pid,
            "pid_start": self.pid_start,
            "boot_id": self.boot_id,
            "job": self.name,
            "array_job_id": self.array_job_id,
            "array_task_id": self.array_task_id,
            "restart": self.restart,
            "partition": self.partition,
        }

    def why_terminated(self) -> str:
        """Say why SIGTERM came: TIME_LIMIT, PREEMPTED, CANCELLED, or TERMINATED where SLURM does not tell."""
        if not self.is_slurm:
            return CANCELLED
        answer = _ask("scontrol", "show", "job", "-o", self.name) or ""
        state, preempted = _field(answer, "JobState"), _field(answer, "PreemptTime")
        if state == "PREEMPTED" or preempted not in ("", "None", "N/A"):
            return PREEMPTED
        return {"CANCELLED": CANCELLED, "TIMEOUT": TIME_LIMIT}.get(state, TERMINATED)

    def is_preempted(self) -> bool:
        """Whether SLURM means to take this job's node for another one."""
        return self.is_slurm and self.why_terminated() == PREEMPTED

    def requeue(self) -> bool:
        """Put this job back into SLURM's queue; return whether SLURM took it."""
        # by its name as an array task: the id of the task that was started last means the array as a whole
        return self.is_slurm and _ask("scontrol", "requeue", self.name) is not None

    def throttle(self, at_a_time: int) -> None:
        """Have no more than so many tasks of this job's array run at a time."""
        if self.array_job_id:
            _ask("scontrol", "update", "JobId=" + self.array_job_id, "ArrayTaskThrottle=%d" % at_a_time)

    def cancel_pending(self) -> None:
        """Have no other task of this job's array start; one that SLURM does not cancel finds out for itself."""
        if self.array_job_id:
            _ask("scancel", "--quiet", "--state=PENDING", self.array_job_id)


def process_start(pid: int) -> int:
    """Return when process ``pid`` started in clock ticks since boot (proc(5), field 22); 0 where there is none."""
    stat = _read("/proc/%d/stat" % pid)
    return int(stat.rpartition(")")[2].split()[19]) if stat else 0


def oom_kills() -> int:
    """Return how often the kernel has killed a process for want of memory since boot, in cgroups too."""
    found = re.search(r"^oom_kill (\d+)", _read("/proc/vmstat"), re.MULTILINE)
    return int(found.group(1)) if found else 0


def seconds(limit: Optional[str]) -> Optional[float]:
    """Read a time limit in SLURM's forms: ``90`` (minutes), ``90:30``, ``1:30:00``, ``2-12``, ``2-12:30[:00]``.

    None without a limit, and for UNLIMITED.

    Raises
    ------
    ValueError
        If it is none of these forms.
    """
    if limit is None or limit.upper() in ("UNLIMITED", "INFINITE", "-1"):
        return None
    found = re.match(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?\Z", limit.strip(), re.ASCII)
    if found is None:
        raise ValueError("`%s` is not a time limit" % limit)
    days, first, second, third = found.groups()
    clock = [int(part or 0) for part in (first, second, third)]
    if days is None and third is None:  # MM[:SS]
        clock = [0, *clock[:2]]
    return int(days or 0) * 86400.0 + clock[0] * 3600 + clock[1] * 60 + clock[2]


def notice(limit: Optional[str], grace_s: float) -> Tuple[int, float]:
    """Return when SLURM is to tell of the time limit (seconds before it), and the grace that then fits.

    Ten seconds more than the grace, to kill what has not ended and to requeue; but at most half of a short limit, so
    that the run has the other half.
    """
    limit_s = seconds(limit)
    before_s = grace_s + _REQUEUE_S
    if limit_s:
        before_s = min(before_s, max(limit_s / 2, 1.0))
    return int(before_s), min(grace_s, max(before_s - _REQUEUE_S, before_s / 2))


def _ask(*argv: str) -> Optional[str]:
    """Return the output of a command of SLURM's, None where it fails."""
    import subprocess

    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_SCONTROL_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")


def _field(answer: str, name: str) -> str:
    found = re.search(r"\b%s=(\S+)" % name, answer)
    return found.group(1) if found else ""


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""
