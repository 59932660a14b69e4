"""A small SLURM job that comes again: one that runs, one that waits behind it, never two at a time.

The script submits its successor before anything else, ``--dependency=singleton`` keeps the two apart, and ``--begin``
lets the successor wait. So it goes on however the command ends, kill -9 and a lost node included.

Files in a folder on the shared file system: ``NAME.sh``, the script; ``NAME.job``, the number of the successor, which
runs may call forward (:func:`ems.node.feed.call_forward`); ``NAME.log``.
"""

from __future__ import annotations

import getpass
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ems.errors import ExecutorError
from ems.executor.script import Script, insert_raw, parameters
from ems.executor.slurm import ask, call, tell
from ems.executor.states import from_slurm
from ems.model import JobInfo, Resources, State
from ems.node import feed, records

_TIME_MIN = 30
_RETRY_S = 2  # after a command that was killed
_KILLED = 128  # and more: exit status by a signal


@dataclass(frozen=True, slots=True)
class Recurring:
    """A job that comes again.

    Parameters
    ----------
    folder
        Where its files lie.
    name
        Of its files.
    job_name
        By which SLURM knows it; nothing else of this user may have it.
    """

    folder: Path
    name: str
    job_name: str

    def path(self, suffix: str) -> Path:
        """Return the path of one of its files."""
        return self.folder / f"{self.name}.{suffix}"

    def write(self, command: Sequence[str], resources: Resources, guard_s: int) -> None:
        """Write the script.

        Parameters
        ----------
        command
            What it runs each time, and what settles when it comes again (:meth:`move`, :meth:`end`). Killed, it comes
            again at once.
        resources
            Of the runs it serves: partition, account, QOS and raw flags are its own too, nothing that it would waste.
        guard_s
            After so many seconds it comes again where nobody settled that.
        """
        own = replace(resources, gres=None, gpus=None, cpus=1, mem=None, nodes=1, time=str(_TIME_MIN))
        writer = Script(folder=str(self.folder))
        writer.update_parameters(
            job_name=self.job_name, wckey=None, stderr_to_stdout=True, use_srun=False, **parameters(own)
        )
        writer.parameters["additional_parameters"] = {
            "output": str(self.path("log")).replace("%", "%%"),
            "open-mode": "append",
            "chdir": str(self.folder),
            "dependency": "singleton",
            "requeue": True,
        }
        records.write_atomic(self.path("sh"), insert_raw(writer.text(self._body(command, guard_s)), own))

    def _body(self, command: Sequence[str], guard_s: int) -> str:
        script, job = (shlex.quote(str(self.path(suffix))) for suffix in ("sh", "job"))
        return "\n".join(
            (
                f"next=$(sbatch --parsable --begin=now+{guard_s} {script}) || next=",
                "next=${next%%;*}",
                f'[ -z "$next" ] || {{ echo "$next" > {job}.$$ && mv {job}.$$ {job}; }}',
                shlex.join(command),
                "status=$?",
                f'if [ $status -ge {_KILLED} ] && [ -n "$next" ]; then',
                f'scontrol update JobId="$next" StartTime=now+{_RETRY_S}',
                "fi",
                "exit $status",
            )
        )

    def submit(self, begin_s: float) -> None:
        """Submit it where neither it nor a successor is in the queue.

        Raises
        ------
        ExecutorError
            If SLURM refuses.
        """
        if self.waiting() is not None:
            return
        argv = ["sbatch", "--parsable", f"--begin=now+{max(0, round(begin_s))}", str(self.path("sh"))]
        done = call(argv, env=feed.clean_environment(str(self.path("sh"))))
        job = done.stdout.strip().partition(";")[0]
        if done.returncode != 0 or not job.isdigit():
            raise ExecutorError(
                f"SLURM does not take the job that drives the study: {feed.words(done.stderr)}",
                "change what is asked for (--partition, --account, --qos)",
            )
        records.write_atomic(self.path("job"), f"{job}\n")

    def successor(self) -> str:
        """Return the job that comes next as far as the files say; empty where they say nothing."""
        for suffix in ("job", "job.called"):
            with suppress(FileNotFoundError):
                return self.path(suffix).read_text().strip()
        return ""

    def move(self, begin_s: float) -> None:
        """Have the successor begin in so many seconds. Nothing where it has begun."""
        job = self.successor() or (self.waiting() or JobInfo("", State.UNKNOWN, "")).job
        if job:
            tell(["scontrol", "update", f"JobId={job}", f"StartTime=now+{max(0, round(begin_s))}"])
            records.write_atomic(self.path("job"), f"{job}\n")  # its time is that of the last wake; see call_forward

    def end(self) -> None:
        """Have it come no more; one that runs goes on to its end."""
        jobs = ask(["squeue", "-h", "-t", "PENDING", f"--name={self.job_name}", "-u", getpass.getuser(), "-o", "%i"])
        if jobs.split():
            tell(["scancel", "--quiet", *jobs.split()])
        for suffix in ("job", "job.called"):
            self.path(suffix).unlink(missing_ok=True)

    def waiting(self) -> JobInfo | None:
        """Return the job that is in the queue: one that runs rather than its successor; None where there is none."""
        answer = ask(["squeue", "-h", f"--name={self.job_name}", "-u", getpass.getuser(), "-o", "%i|%T|%R|%S"])
        found = [line.split("|") for line in answer.splitlines() if line.count("|") == 3]
        jobs = [JobInfo(job, from_slurm(word), word, reason, start_estimate=at) for job, word, reason, at in found]
        return min(jobs, key=lambda each: each.state is not State.RUNNING, default=None)
