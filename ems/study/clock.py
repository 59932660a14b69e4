"""When a study's driver wakes: the clock that calls it, whatever machine or scheduler it is made of."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from ems.errors import NotFoundError
from ems.executor.base import writing_to
from ems.node import records
from ems.node.records import ExperimentFiles
from ems.study.threads import load_numpy

_POLL_S = 0.2  # a look at one file
_LONGEST_REST_S = 5.0
_FAILED_S = 5.0  # after a wake that failed; twice as long after each further one
_LOCK = "EMS_CLOCK_LOCK"  # names the descriptor of the lock that a new process is handed


@dataclass(frozen=True, slots=True)
class ClockState:
    """How a clock stands.

    Attributes
    ----------
    is_running
        Whether it will wake the driver by itself.
    next_at
        When at the latest (UTC ISO-8601); empty where that is not known.
    where
        What it is: ``process 4711 on host``, ``job 1842``; empty where it is nothing.
    """

    is_running: bool
    next_at: str = ""
    where: str = ""


class Clock(Protocol):
    """Wakes the driver of one study, again and again, until it is told to stop.

    A call from within a wake and one from any ``ems`` command mean the same, whoever runs the wake.
    """

    @property
    def lag_s(self) -> float:
        """Seconds that usually pass between the end of a run and the wake that it causes."""
        ...

    def start(self, next_s: float) -> None:
        """Have the driver wake within ``next_s`` seconds, and set the clock going where it does not.

        Raises
        ------
        EmsError
            If it cannot be set going.
        """
        ...

    def wake(self) -> None:
        """Have the driver wake as soon as it can: something happened. Nothing where the clock does not go."""
        ...

    def stop(self) -> None:
        """Have the driver wake no more; from within a wake: after this one."""
        ...

    def state(self) -> ClockState:
        """Look whether it goes."""
        ...


class HereClock:
    """A process of its own on this machine, which ends with the study; a terminal that closes does not end it.

    Parameters
    ----------
    root, study_id
        Of the study.
    worker_python
        What starts workers; None: the Python of ``ems``.
    """

    lag_s = 0.5

    def __init__(self, root: Path, study_id: str, worker_python: str | None = None) -> None:
        self._files = ExperimentFiles(root, study_id)
        self._worker_python = worker_python
        self._is_ours = False  # whether this process is the clock

    def start(self, next_s: float) -> None:
        """See :meth:`Clock.start`."""
        if self._is_ours:
            self._note(next_s)
        elif not self.state().is_running:
            self._spawn()

    def wake(self) -> None:
        """See :meth:`Clock.wake`."""
        records.call_driver(self._files)

    def stop(self) -> None:
        """See :meth:`Clock.stop`: the process finds that nothing is left to do."""
        records.call_driver(self._files)

    def state(self) -> ClockState:
        """See :meth:`Clock.state`; who holds the lock lives, and where there are no locks who noted itself does."""
        try:
            with Path(self._files.dir, "clock.lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return ClockState(False)
        except BlockingIOError:
            return self._noted()
        except OSError:
            return self._noted() if self._lives() else ClockState(False)
        return ClockState(False)

    def _noted(self) -> ClockState:
        record = self._record()
        where = f"process {record.get('pid')} on {record.get('host')}" if record else ""
        return ClockState(True, str(record.get("next_at") or ""), where)

    def _record(self) -> records.Record:
        try:
            return records.read_json(self._path) or {}
        except ValueError:
            return {}

    def _lives(self) -> bool:
        """Whether the process that noted itself is there; of another machine's nobody here knows, and it counts."""
        record = self._record()
        if not record or record.get("host") != os.uname().nodename:
            return bool(record)
        return Path("/proc", str(record["pid"])).exists()

    @property
    def _path(self) -> str:
        return os.path.join(self._files.dir, "driver.json")  # noqa: PTH118  # as the other paths of records

    def _spawn(self) -> None:
        argv = [sys.executable, "-P", "-m", "ems.study.clock", self._files.root, self._files.id]
        argv += [self._worker_python] if self._worker_python else []
        with (
            writing_to(Path(self._files.root)),
            self._alone() as lock,
            Path(self._files.dir, "driver.log").open("ab") as log,
        ):
            if lock is None:
                return
            # the lock is handed on: nobody finds the clock standing still while its process starts
            process = subprocess.Popen(
                argv,
                env={**os.environ, _LOCK: str(lock)},
                cwd=self._files.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,
            )
        process.returncode = 0  # it is meant to outlive us: nobody waits for it

    def _note(self, next_s: float) -> None:
        at = datetime.now(UTC) + timedelta(seconds=next_s)
        record = {"clock": "here", "pid": os.getpid(), "host": os.uname().nodename, "next_at": f"{at:%FT%TZ}"}
        records.write_atomic(self._path, records.dump(record), durable=False)

    # ---------------------------------------------------------------------------------------- the process

    def run(self) -> None:
        """Be the clock: wake the driver until the study is over or gone. Returns at once where another process is."""
        with self._alone() as lock:
            if lock is None:
                return
            self._is_ours = True
            with contextlib.suppress(NotFoundError, FileNotFoundError):
                self._note(0.0)
                failures = 0
                while (next_s := self._beat(failures)) is not None:
                    failures = failures + 1 if next_s < 0 else 0
        with contextlib.suppress(FileNotFoundError):
            Path(self._path).unlink()

    def _beat(self, failures: int) -> float | None:
        """Wake the driver once, then sleep; return None at the end of the study, less than 0 where the wake failed."""
        from ems.executor.here import HereExecutor  # noqa: PLC0415  # submitit takes a while to import
        from ems.study import driver  # noqa: PLC0415  # which needs this module

        root, seen, began = Path(self._files.root), records.called_at(self._files), time.monotonic()
        worked_s = -time.process_time()
        try:
            report = driver.wake(root, self._files.id, HereExecutor(root, self._worker_python), self)
        except NotFoundError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is: it is in the log, and the next wake carries on
            sys.stderr.write(f"{records.now()} the wake failed: {type(error).__name__}: {error}\n")
            sys.stderr.flush()
            if failures + 1 >= driver.MAX_FAILURES:
                return None
            next_s, result = _FAILED_S * 2.0**failures, -1.0
        else:
            if report.next_s is None:
                return None
            next_s = result = report.next_s
        # at most half of the time is spent on it
        worked_s += time.process_time()
        time.sleep(min(worked_s, _LONGEST_REST_S))
        self._sleep(began + next_s, seen if result >= 0 else None)
        return result

    def _sleep(self, until: float, seen: int | None) -> None:
        """Sleep until a time, or a call since ``seen``.

        Raises
        ------
        FileNotFoundError
            If the study is gone.
        """
        while time.monotonic() < until:
            if seen is not None and records.called_at(self._files) != seen:
                return
            Path(self._files.study).stat()
            time.sleep(_POLL_S)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[int | None]:
        """Hold the clock's lock, or the one that was handed on to this process; yield its number, None if another has.

        A file system without locks goes without.
        """
        handed = os.environ.pop(_LOCK, "")
        path = int(handed) if handed else os.path.join(self._files.dir, "clock.lock")  # noqa: PTH118  # as above
        with open(path, "wb") as lock:  # noqa: PTH123  # a number is no path
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            except OSError:
                pass
            yield lock.fileno()


def main(argv: list[str]) -> None:
    """Be the clock of a study on this machine: ``python -m ems.study.clock ROOT STUDY [WORKER_PYTHON]``."""
    load_numpy()
    root, study_id, *worker_python = argv
    HereClock(Path(root), study_id, worker_python[0] if worker_python else None).run()


if __name__ == "__main__":
    main(sys.argv[1:])
