"""What every figure needs: a project to measure in, a clock, and a table of what came out."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

EMS = [sys.executable, "-m", "ems"]
NO_OP = "pass\n"


@dataclass(frozen=True)
class Figure:
    """One measured number beside its target."""

    letter: str
    what: str
    value: str
    target: str = ""
    met: bool | None = None  # None: nothing to meet, given for comparison


@contextmanager
def project(script: str = NO_OP, name: str = "train.py") -> Iterator[Path]:
    """Yield a fresh git project with one script; it and its ``.ems`` are gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ems-bench-"))
    try:
        subprocess.run(["git", "init", "-q", str(folder)], check=True)
        (folder / name).write_text(script)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(argv: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command and return its standard output; a failure shows all of what it said."""
    result = subprocess.run(argv, cwd=cwd, env=dict(env or os.environ), capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}\n{result.stdout}{result.stderr}")
    return result.stdout


def timed(action: Callable[[], object]) -> float:
    """Return the seconds of wall clock that ``action`` took."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def median(action: Callable[[], object], repeats: int = 5, warm_up: int = 1) -> float:
    """Return the median of ``repeats`` timings in seconds, after ``warm_up`` that are not counted."""
    for _ in range(warm_up):
        action()
    return statistics.median(timed(action) for _ in range(repeats))


def children_cpu_s() -> float:
    """Return the CPU seconds of all children that have ended and been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def machine() -> str:
    """Describe the machine in one line: nothing that names it."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{model}, {cores} cores, {memory_gb:.0f} GB, {system}"
