"""A mount namespace of its own for podman on machines whose ``/sys/fs/cgroup`` its runtime cannot use.

Sandboxes mount the cgroups of version 1 and 2 side by side, where crun wants version 2 alone. Instead of changing the
machine, podman is run in a mount namespace in which it is so. The namespace is held by a file, not by a process
of ours, is one for the whole machine (two would break each other's networks) and is dropped with the last container.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ems.errors import ProviderError

_FOLDER = Path("/run/ems")
_FILE = _FOLDER / "podman.ns"
# /run/netns, too, has to be of its own: names of network namespaces are mounts, which other namespaces do not see
_SETUP = """set -e
mount -t tmpfs tmpfs /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p /run/netns
mount -t tmpfs tmpfs /run/netns
mount --make-shared /run/netns
"""


def is_there() -> bool:
    """Whether podman's namespace has been made on this machine; it is root's, other users have podmans of their own."""
    return os.geteuid() == 0 and _is_mounted(_FILE)


def _is_mounted(path: Path) -> bool:
    mounts = Path("/proc/self/mountinfo")  # Path.is_mount misses what is mounted onto itself
    return mounts.exists() and any(line.split()[4] == str(path) for line in mounts.read_text().splitlines())


def entry() -> tuple[str, ...]:
    """Return the words that put a command into the namespace; it needs absolute paths."""
    return ("nsenter", f"--mount={_FILE}", "--")


def is_home_of(process: int) -> bool:
    """Whether a process is in the namespace."""
    try:
        return is_there() and Path(f"/proc/{process}/ns/mnt").stat().st_ino == _FILE.stat().st_ino
    except OSError:
        return False


def make() -> None:
    """Make the namespace unless it is there.

    Raises
    ------
    ProviderError
        If this machine does not let us.
    """
    with _lock(fcntl.LOCK_EX):
        if _is_mounted(_FILE):
            return
        _FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
        # a namespace can be held only by a file on a mount that is not shared with it
        if not _is_mounted(_FOLDER):
            _call("mount", "--bind", str(_FOLDER), str(_FOLDER))
            _call("mount", "--make-private", str(_FOLDER))
        _FILE.touch()
        _call("unshare", f"--mount={_FILE}", "--propagation", "private", "sh", "-c", _SETUP)


@contextmanager
def in_use() -> Iterator[None]:
    """Keep the namespace from being dropped by another process in the meantime."""
    with _lock(fcntl.LOCK_SH):
        yield


def drop(engine: str) -> None:
    """Drop the namespace where no container is left on this machine and no other process is about to make one."""
    if not is_there():
        return
    try:
        with _lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
            left = subprocess.run([*entry(), engine, "ps", "-aq"], capture_output=True, text=True, check=False)
            if left.returncode == 0 and not left.stdout.strip():
                subprocess.run(["umount", str(_FILE), str(_FOLDER)], capture_output=True, check=False)
                _FILE.unlink(missing_ok=True)
    except BlockingIOError:
        return


@contextmanager
def _lock(how: int) -> Iterator[None]:
    with Path("/run/ems.lock").open("w") as file:
        fcntl.flock(file, how)
        yield


def _call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        raise ProviderError(
            f"podman needs a mount namespace of its own on this machine, and `{words[0]}` refuses: {said}",
            "use a machine with Docker, or one whose /sys/fs/cgroup is cgroup2",
        )
