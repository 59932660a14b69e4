"""What ``ems doctor`` looks at on any machine, and the GPUs of this one."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ems.executor.base import Check

_PROBE_MB = 16
_SLOW_MB_S = 20.0
_LITTLE_MB = 1024


def gpus() -> list[str]:
    """Return the GPUs that runs on this machine may use, by the ids that CUDA_VISIBLE_DEVICES takes.

    EMS_HERE_GPUS (``0,1``; empty for none) says so outright; else CUDA_VISIBLE_DEVICES narrows what nvidia-smi lists.
    """
    said = os.environ.get("EMS_HERE_GPUS")
    if said is None and _count() > 0:
        said = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(str(number) for number in range(_count())))
    ids = [word.strip() for word in (said or "").split(",") if word.strip()]
    return ids[: ids.index("-1")] if "-1" in ids else ids  # CUDA ignores what follows -1


def _count() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines()) if done.returncode == 0 else 0


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine(root: Path) -> Iterator[Check]:
    """Look at Python, git and the root."""
    yield Check("python", True, f"{platform.python_version()} at {sys.executable}")
    git = shutil.which("git")
    version = (
        subprocess.run([git, "--version"], capture_output=True, text=True, check=False).stdout.strip() if git else ""
    )
    yield Check("git", git is not None, version or "missing", "" if git else "install git: the code is frozen with it")
    yield from _root(root)


def _root(root: Path) -> Iterator[Check]:
    folder = next((path for path in (root, *root.parents) if path.exists()), Path("/"))
    try:
        speed = _write_speed_mb_s(folder)
    except OSError as error:
        hint = "set `root:` in ems.yaml to a folder that you may write, seen by all nodes"
        yield Check("root", False, f"{root} cannot be written: {error.strerror}", hint)
        return
    slow = speed < _SLOW_MB_S
    yield Check("root", True, f"{root}, {speed:.0f} MB/s", "slow: set `root:` to a faster file system" if slow else "")
    space = os.statvfs(folder)
    free_mb = space.f_bavail * space.f_frsize // 2**20
    inodes = space.f_favail if space.f_files else None  # some file systems count none
    enough = free_mb >= _LITTLE_MB and (inodes is None or inodes >= 10_000)
    said = f"{free_mb / 1024:.1f} GB free" + ("" if inodes is None else f", {inodes:,} files")
    yield Check("space", enough, said, "" if enough else "free some: ems rm EXP deletes the files of an experiment")


def _write_speed_mb_s(folder: Path) -> float:
    block = os.urandom(2**20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".ems-doctor-") as file:
        start = time.perf_counter()
        for _ in range(_PROBE_MB):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return _PROBE_MB / (time.perf_counter() - start)
