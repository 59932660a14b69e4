"""A small SLURM job that comes again: one that runs, one that waits behind it, never two at a time.

The script submits its successor before anything else, ``--dependency=singleton`` keeps the two apart, and ``--begin``
lets the successor wait. So it goes on however the command ends, kill -9 and a lost node included. Where SLURM takes no
successor (too many jobs are queued), the script asks again until it does, for as long as it may run.

A job that is not the one that ``NAME.job`` names has been doubled: SLURM requeued it from a lost node, or two commands
submitted one each. It submits no successor while the one that is named waits: else each would have its own for ever,
and as ``singleton`` lets them begin in the order of their numbers only, none could be called forward past the others.

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
_REFUSED_S = 20  # between two tries where SLURM takes no successor
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
                "succeed() {",
                f'next=$(sbatch --parsable --begin="now+$1" {script}) || next=',
                "next=${next%%;*}",
                f'[ -z "$next" ] || {{ echo "$next" > {job}.$$ && mv {job}.$$ {job}; }}',
                "}",
                f"next=$(cat {job} 2>/dev/null || cat {job}.called 2>/dev/null)",
                '[ "$next" != "$SLURM_JOB_ID" ] || next=',
                '[ -z "$next" ] || next=$(squeue -h -t PENDING -j "$next" -o %i 2>/dev/null)',
                f'[ -n "$next" ] || succeed {guard_s}',
                shlex.join(command),
                "status=$?",
                f'if [ $status -ge {_KILLED} ] && [ -n "$next" ]; then',
                f'scontrol update JobId="$next" StartTime=now+{_RETRY_S}',
                "fi",
                f'while [ -z "$next" ] && {{ [ -e {job} ] || [ -e {job}.called ]; }}; do',  # gone: it is to end
                f"sleep {_REFUSED_S}",
                f"succeed {_RETRY_S}",
                "done",
                "exit $status",
            )
        )

    def submit(self, begin_s: float) -> None:
        """Submit it where none waits in the queue: one that runs may be about to end for good.

        Raises
        ------
        ExecutorError
            If SLURM refuses.
        """
        if self._queued("PENDING"):
            return
        self._forget()
        argv = ["sbatch", "--parsable", f"--begin=now+{max(0, round(begin_s))}", str(self.path("sh"))]
        done = call(argv, env=feed.clean_environment(str(self.path("sh"))))
        job = done.stdout.strip().partition(";")[0]
        if done.returncode != 0 or not job.isdigit():
            raise ExecutorError(
                f"SLURM does not take the job that drives the study: {feed.words(done.stderr)}",
                "change what is asked for (--partition, --account, --qos)",
            )
        records.create_exclusive(str(self.path("job")), f"{job}\n")  # unless it has begun, and named its successor

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
        jobs = [each.job for each in self._queued("PENDING")]
        if jobs:
            tell(["scancel", "--quiet", *jobs])
        self._forget()

    def waiting(self) -> JobInfo | None:
        """Return the job that is in the queue: one that runs rather than its successor; None where there is none."""
        return min(self._queued(), key=lambda each: each.state is not State.RUNNING, default=None)

    def _queued(self, *states: str) -> list[JobInfo]:
        """Ask SLURM for the jobs of its name, in these states or in any that is not an end."""
        which = ["-t", ",".join(states)] if states else []
        form = ["-u", getpass.getuser(), "-o", "%i|%T|%R|%S"]
        answer = ask(["squeue", "-h", *which, f"--name={self.job_name}", *form])
        found = [line.split("|") for line in answer.splitlines() if line.count("|") == 3]
        return [JobInfo(job, from_slurm(word), word, reason, start_estimate=at) for job, word, reason, at in found]

    def _forget(self) -> None:
        for suffix in ("job", "job.called"):
            self.path(suffix).unlink(missing_ok=True)
