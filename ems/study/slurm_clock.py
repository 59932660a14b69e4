"""The clock of a study on SLURM: a small job that comes again, called forward by runs that end.

Between two wakes it waits in the queue and holds nothing. As a command, ``python -m ems.study.slurm_clock [--guard]
ROOT STUDY [WORKER_PYTHON]`` is one wake: what the job runs, and with ``--guard`` what the user's scrontab does, where
there is one, so that the job is submitted anew should it be lost.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ems.errors import ExecutorError, NotFoundError
from ems.executor import scrontab
from ems.executor.base import writing_to
from ems.executor.recurring import Recurring
from ems.model import Experiment, State
from ems.node import feed, records
from ems.node.records import ExperimentFiles
from ems.study import rows
from ems.study.clock import ClockState
from ems.study.threads import load_numpy

_GUARD = "--guard"  # of the command: not the job itself, but what sees that it is there
_GUARD_S = 300  # it comes again after this where a wake was killed so that nobody settled when
_CALLED_S = 5.0  # until the next wake where a run ended while this one worked
_FAILED_S = 10.0  # after a wake that failed; twice as long after each further one
_LATE_S = 120.0  # past its time SLURM is asked whether the job is still there


class SlurmClock:
    """A job named ``ems-tune-STUDY``; see :class:`ems.study.clock.Clock`.

    Parameters
    ----------
    root, study_id
        Of the study.
    worker_python
        What starts workers; None: see :class:`ems.executor.slurm.SlurmExecutor`.
    is_ours
        Whether this process is the job's.
    """

    lag_s = 10.0  # SLURM starts a job, Python starts, SLURM starts a run

    def __init__(self, root: Path, study_id: str, worker_python: str | None = None, *, is_ours: bool = False) -> None:
        self._files = ExperimentFiles(root, study_id)
        self._worker_python = worker_python
        self._is_ours = is_ours
        self._seen = records.called_at(self._files)
        self._job = Recurring(Path(self._files.dir), "driver", f"ems-tune-{study_id}")

    def start(self, next_s: float) -> None:
        """See :meth:`Clock.start`."""
        if self._is_ours:
            next_s = min(next_s, _CALLED_S) if self._was_called() else next_s
            self._job.move(next_s)
        else:
            self._write_script()
            self._job.submit(next_s)
            self._guard()
        self._note(next_s)

    def wake(self) -> None:
        """See :meth:`Clock.wake`."""
        records.call_driver(self._files)
        feed.call_forward(self._files)

    def stop(self) -> None:
        """See :meth:`Clock.stop`."""
        self._job.end()
        self._note_path.unlink(missing_ok=True)
        if self._guard_path.exists():
            with suppress(ExecutorError):  # then it comes once more, and finds that nothing is left to do
                scrontab.remove(self._job.job_name)
                self._guard_path.unlink(missing_ok=True)

    def state(self) -> ClockState:
        """See :meth:`Clock.state`. SLURM is asked only where the next wake is late, or nobody noted when it is."""
        note = records.read_json(self._note_path) or {}
        next_at = str(note.get("next_at") or "")
        if next_at and datetime.fromisoformat(next_at).timestamp() + _LATE_S > time.time():
            return ClockState(True, next_at, f"job {self._job.successor()}")
        found = self._job.waiting()
        if found is None:
            return ClockState(False)
        is_running = found.state is State.RUNNING
        return ClockState(True, "" if is_running else next_at, f"job {found.job} ({found.reason or found.slurm_state})")

    def retry(self) -> None:
        """Have the driver wake again after one that failed, each time later; no more once the study has failed."""
        known = rows.read(Path(self._files.dir, rows.STORE), self._files.id)
        if known is not None and known.is_finished:
            self.stop()
        else:
            self.start(min(_GUARD_S, _FAILED_S * 2.0 ** (known.failures if known else 0)))

    @property
    def _note_path(self) -> Path:
        return Path(self._files.dir, "driver.json")

    def _note(self, next_s: float) -> None:
        at = datetime.now(UTC) + timedelta(seconds=next_s)
        record = {"clock": "slurm", "job": self._job.successor(), "next_at": f"{at:%FT%TZ}"}
        records.write_atomic(self._note_path, records.dump(record), durable=False)

    @property
    def _guard_path(self) -> Path:
        return Path(self._files.dir, "driver.scrontab")  # there once the user's scrontab has an entry of ours

    def _guard(self) -> None:
        """Where SLURM has a scrontab, have it see every quarter of an hour that the job is there."""
        if self._guard_path.exists() or not scrontab.is_available():
            return
        options = [f"--job-name={self._job.job_name}-guard", f"--output={self._job.path('log')}", "--open-mode=append"]
        asked = Experiment.load(records.read_json(self._files.spec) or {}).resources
        given = {name: getattr(asked, name) for name in ("partition", "account", "qos")}
        options += [f"--{name}={value}" for name, value in given.items() if value is not None]
        self._guard_path.touch()
        with suppress(ExecutorError):  # the job goes without, as on most sites
            scrontab.add(self._job.job_name, options, self._command(_GUARD))

    def _command(self, *options: str) -> list[str]:
        argv = [sys.executable, "-P", "-m", "ems.study.slurm_clock", *options, self._files.root, self._files.id]
        return argv + ([self._worker_python] if self._worker_python else [])

    def _was_called(self) -> bool:
        """Whether something happened since this wake began to look."""
        return records.called_at(self._files) != self._seen

    def _write_script(self) -> None:
        experiment = Experiment.load(records.read_json(self._files.spec) or {})
        with writing_to(Path(self._files.root)):
            self._job.write(self._command(), experiment.resources, _GUARD_S)


def main(argv: list[str]) -> int:
    """Wake the driver of a study once; return the exit status."""
    from ems.executor.slurm import SlurmExecutor  # noqa: PLC0415  # submitit takes a while to import
    from ems.study import driver  # noqa: PLC0415  # which needs the clocks

    load_numpy()
    is_guard = argv[0] == _GUARD
    root, study_id, *worker_python = argv[is_guard:]
    python = worker_python[0] if worker_python else None
    clock = SlurmClock(Path(root), study_id, python, is_ours=not is_guard)
    try:
        report = driver.wake(Path(root), study_id, SlurmExecutor(Path(root), python), clock)
    except NotFoundError:  # the study was removed
        clock.stop()
        return 0
    except Exception as error:  # noqa: BLE001  # whatever it is: it is in the log, and the next wake carries on
        sys.stderr.write(f"{records.now()} the wake failed: {type(error).__name__}: {error}\n")
        clock.retry()
        return 1
    if report.wake == 0:  # another one is at work, and looks once more
        clock.start(_CALLED_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
