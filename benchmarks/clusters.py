"""The figures (j), (k) and (m): a SLURM cluster in containers on this machine, from baked images."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import EMS, NO_OP, Figure, run, timed

NODES = (2, 8)  # nodes that are there when one more is asked for
DEFINITION = """
provider: {kind: container}
controller: {cpus: 2, mem_gb: 2}
nodes:
  gpu: {count: 2, cpus: 4, mem_gb: 1, gpus: 4}
"""


JOBS = 3
ELASTIC = """
provider: {kind: container}
controller: {cpus: 2, mem_gb: 2}
nodes:
  gpu: {max: 8, cpus: 4, mem_gb: 1, gpus: 4}
"""
# Prints the seconds between a submission and the job's first line; both clocks are this machine's
FIRST_LINE = """
cd && rm -f first && began=$(date +%s.%N)
sbatch -Q --gres gpu:1 --nodelist "$1" -o /dev/null --wrap 'date +%s.%N >first.part; mv first.part first'
until [ -e first ]; do sleep 0.1; done
echo "$began $(cat first)" | awk '{ print $2 - $1 }'
"""


@contextmanager
def laptop(definition: str = DEFINITION) -> Iterator[tuple[str, Path, dict[str, str]]]:
    """Yield a cluster's name, a project that defines it, and the environment of a user who has nothing else."""
    folder = Path(tempfile.mkdtemp(prefix="ems-bench-cluster-"))
    name = f"bench{uuid.uuid4().hex[:4]}"
    (folder / "cluster").mkdir()
    (folder / "cluster" / f"{name}.yaml").write_text(definition)
    (folder / "train.py").write_text(NO_OP)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    env = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "XDG_CONFIG_HOME": str(folder / "config")}
    try:
        yield name, folder, env
    finally:
        run([*EMS, "cluster", "stop", name, "--yes", "--images"], folder, env)
        shutil.rmtree(folder, ignore_errors=True)


def starting(_: object) -> Iterator[Figure]:
    """From `ems cluster start` to the end of the first job, and one node more, where 2 and where 8 are there."""
    if shutil.which("podman") is None and shutil.which("docker") is None:
        sys.stderr.write("no docker or podman: figures j and k are left out\n")
        return
    with laptop() as (name, folder, env):
        run([*EMS, "cluster", "bake", name], folder, env)
        start = timed(lambda: run([*EMS, "cluster", "start", name, "--yes"], folder, env))
        job = timed(lambda: run([*EMS, "parrun", "train.py", "--set", "x=1", "--gres", "gpu:1", "--wait"], folder, env))
        yield Figure("j", "start 1 + 2 nodes from baked images, test job passed", f"{start:.1f} s")
        total = start + job
        yield Figure(
            "j", "from `ems cluster start` to the first finished run", f"{total:.1f} s", "at most 60 s", total <= 60
        )
        yield from one_more(name, folder, env)


def one_more(name: str, folder: Path, env: dict[str, str]) -> Iterator[Figure]:
    """One node more, to idle in SLURM (its test job included), where few and where many are there."""
    for present in NODES:
        run([*EMS, "cluster", "resize", name, f"gpu={present}"], folder, env)
        took = timed(lambda more=present + 1: run([*EMS, "cluster", "resize", name, f"gpu={more}"], folder, env))
        states = json.loads(run([*EMS, "cluster", "status", name, "--json"], folder, env))["nodes"]
        idle = sum(each["slurm"] == "idle" for each in states)
        if idle != present + 1:
            raise RuntimeError(f"{idle} of {present + 1} nodes are idle: {states}")
        what = f"one more node where {present} are there, `ems cluster resize` as a whole"
        yield Figure("k", what, f"{took:.1f} s", "at most 15 s", took <= 15)


def scaling(_: object) -> Iterator[Figure]:
    """From `sbatch` on a cluster without a compute node to the job's first line."""
    if shutil.which("podman") is None and shutil.which("docker") is None:
        sys.stderr.write("no docker or podman: figure m is left out\n")
        return
    with laptop(ELASTIC) as (name, folder, env):
        run([*EMS, "cluster", "bake", name], folder, env)
        start = timed(lambda: run([*EMS, "cluster", "start", name, "--yes"], folder, env))
        yield Figure("m", "start a controller whose nodes come with jobs, from a baked image", f"{start:.1f} s")
        there = [*EMS, "cluster", "ssh", "--on", name, "--", "sh", "-c", FIRST_LINE, "sh"]
        took = [float(run([*there, f"{name}-gpu-{number + 1:03d}"], folder, env)) for number in range(JOBS)]
        shown = ", ".join(f"{each:.1f} s" for each in took)
        yield Figure(
            "m", f"`sbatch` without a node to the job's first line, {JOBS} jobs", shown, "at most 40 s", max(took) <= 40
        )
