"""Daemons that end, with all that they started, when their holder does.

Each is the child of a *reaper* (this file run as a program): a child subreaper (prctl(2)), so that whatever the daemon
starts and disowns stays its descendant. A reaper kills all its descendants as soon as its standard input ends, which
happens when :meth:`Daemon.kill` closes it and also when the process that holds the daemon is killed in any way. So
nothing outlives its holder, and nothing is ever killed by name.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
CGROUPS = Path("/sys/fs/cgroup")


class Daemon:
    """One foreground process under a reaper of its own.

    Parameters
    ----------
    remove
        A directory that the reaper removes when the cluster's holder was killed; :meth:`kill` leaves it alone.
    """

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], log: Path, *, node: str = "", remove: Path | None = None
    ) -> None:
        self.name = argv[0]
        self.log = log
        reaper = [sys.executable, "-I", __file__, str(remove or ""), node, *argv]
        with log.open("ab") as output:
            self._reaper = subprocess.Popen(
                reaper,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=dict(env),
                start_new_session=True,
            )
        assert self._reaper.stdout is not None
        self.pid = int(self._reaper.stdout.readline() or 0)

    @property
    def is_alive(self) -> bool:
        """Whether the daemon, or something it left behind, still runs."""
        return self._reaper.poll() is None

    def terminate(self) -> None:
        """Let the daemon end by itself (SIGTERM), e.g. for slurmctld to save its state."""
        self._ask(b"T")

    def kill(self) -> None:
        """Kill the daemon and all its descendants, at once (SIGKILL)."""
        self._ask(b"K")

    def _ask(self, request: bytes) -> None:
        assert self._reaper.stdin is not None
        assert self._reaper.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._reaper.stdin.write(request)
            self._reaper.stdin.flush()
        self._reaper.wait(120)
        self._reaper.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._reaper.stdin.close()


def _remove_cgroups(node: str) -> None:
    """Remove what slurmd made for its jobs where memory is enforced; it does not do so itself when killed."""
    for top in CGROUPS.glob(f"*/slurm_{node}") if node else ():
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


def remove_tree(folder: Path) -> None:
    """Remove a directory that a dying process may still write to for a moment."""
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _reap(remove: str, node: str, argv: list[str]) -> int:
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    alarm = _wake_on_child()
    # the reaper is single-threaded, so a preexec_fn is safe
    daemon = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=2, preexec_fn=die_with_parent)  # noqa: PLW1509
    print(daemon.pid, flush=True)
    request = _wait_for_request(daemon.pid, alarm)
    if request == b"T":
        daemon.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(60)
    _kill_descendants()
    _remove_cgroups(node)
    if request == b"" and remove:
        remove_tree(Path(remove))
    return 0


def _wake_on_child() -> int:
    """Return a file descriptor that becomes readable whenever a child ends."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    return readable


def _wait_for_request(daemon: int, alarm: int) -> bytes:
    """Wait for a byte from, or the end of, the holder; or for the end of the daemon. Collect orphans meanwhile."""
    while True:
        ready, _, _ = select.select([0, alarm], [], [])
        if 0 in ready:
            return os.read(0, 1)
        os.read(alarm, 4096)
        if daemon in _collect(daemon):
            return b"K"


def _collect(daemon: int) -> set[int]:
    """Wait for every child that has ended; the daemon itself is left to its Popen."""
    ended = set()
    for child in _children(os.getpid()):
        if child == daemon:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                ended.add(child)
            continue
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, os.WNOHANG)
    return ended


def _children(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(word) for word in (thread / "children").read_text().split()]
    return found


def _kill_descendants() -> None:
    """Kill until none is left: what forks meanwhile is caught in the next round, orphans come to this process."""
    while family := _children(os.getpid()):
        seen = list(family)
        while family:
            family = [child for parent in family for child in _children(parent)]
            seen += family
        for pid in seen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(_reap(sys.argv[1], sys.argv[2], sys.argv[3:]))
