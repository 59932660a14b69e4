"""The figures (a) to (i). Each function measures one and yields its rows."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks import clouds, clusters, over_ssh
from benchmarks.harness import EMS, Figure, median, project, run, timed

Environment = Mapping[str, str]

MAP_ARRAY = """
import sys, submitit

def no_op(index):
    return None

def main(folder, count, hold):
    executor = submitit.SlurmExecutor(folder=folder)
    more = {"hold": True} if hold else {}
    executor.update_parameters(time=10, array_parallelism=10_000, use_srun=False, additional_parameters=more)
    executor.map_array(no_op, range(count))

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "hold")
"""


def wait_for_queue(env: Environment, cwd: Path) -> None:
    """Return once SLURM's queue is empty."""
    while run(["squeue", "--noheader"], cwd, env).strip():
        time.sleep(0.05)


def cancel_all(env: Environment, cwd: Path) -> None:
    """End every job of the test cluster, and wait until it is."""
    run(["scancel", "--user", run(["id", "-un"], cwd, env).strip()], cwd, env)
    wait_for_queue(env, cwd)


def submitting(slurm: Environment) -> Iterator[Figure]:
    """(a) Submitting N runs: ems as a whole process, a raw sbatch of an array, and submitit's map_array."""
    for count, limit_s in ((1_000, 2.0), (10_000, None)):
        ems_s, map_s, raw_s = _submit_three_ways(count, slurm)
        met = ems_s < map_s and (limit_s is None or ems_s <= limit_s)
        goal = "below map_array" + ("" if limit_s is None else f" and at most {limit_s:g} s")
        yield Figure("a", f"submit {count:,} runs: `ems parrun`, the whole process", f"{ems_s:.2f} s", goal, met)
        yield Figure("a", f"submit {count:,} runs: submitit `map_array`, the whole process", f"{map_s:.2f} s")
        yield Figure("a", f"submit {count:,} runs: raw `sbatch --array`", f"{raw_s:.2f} s")


def _submit_three_ways(count: int, slurm: Environment) -> tuple[float, float, float]:
    """Return seconds by ems, by map_array, by sbatch; the jobs are held, so that none runs meanwhile."""
    with project() as folder:
        raw = ["sbatch", "--hold", f"--array=0-{count - 1}", "--output=/dev/null", "--wrap=true"]
        raw_s = timed(lambda: run(raw, folder, slurm))
        cancel_all(slurm, folder)
        ems = [*EMS, "parrun", "train.py", "--on", "slurm", "--set", f"x=0..{count - 1}", "--alloc=--hold"]
        ems_s = timed(lambda: run(ems, folder, slurm))
        cancel_all(slurm, folder)
        (folder / "map_array.py").write_text(MAP_ARRAY)
        argv = [sys.executable, "map_array.py", str(folder / "submitit"), str(count), "hold"]
        map_s = timed(lambda: run(argv, folder, slurm))
        cancel_all(slurm, folder)
    return ems_s, map_s, raw_s


def running(slurm: Environment) -> Iterator[Figure]:
    """(b) 200 no-op runs from submission to an empty queue."""
    count = 200
    with project() as folder:
        ems = [*EMS, "parrun", "train.py", "--on", "slurm", "--set", f"x=0..{count - 1}"]

        def by_ems() -> None:
            run(ems, folder, slurm)
            wait_for_queue(slurm, folder)

        ems_s = timed(by_ems)
        (folder / "map_array.py").write_text(MAP_ARRAY)

        def by_map_array() -> None:
            run([sys.executable, "map_array.py", str(folder / "submitit"), str(count), "run"], folder, slurm)
            wait_for_queue(slurm, folder)

        map_s = timed(by_map_array)
    yield Figure(
        "b", f"{count} no-op runs on SLURM: ems", f"{ems_s:.1f} s", "at most half of map_array", ems_s <= map_s / 2
    )
    yield Figure("b", f"{count} no-op runs on SLURM: submitit `map_array`", f"{map_s:.1f} s")


def overhead_here(_: Environment) -> Iterator[Figure]:
    """(c) A no-op Python run on `here` against `xargs -P`, per run: 400 runs less 100, so that start-up cancels."""
    cores = len(os.sched_getaffinity(0))
    few, many = 100, 400
    with project() as folder:

        def by_ems(count: int) -> float:
            argv = [*EMS, "parrun", "train.py", "--again", "--set", f"x=0..{count - 1}", "--python", sys.executable]
            # not --wait, which looks at most once a second: that is no cost of a run
            return timed(lambda: wait_for_runs(folder, str(json.loads(run([*argv, "--json"], folder))["experiment"])))

        def by_xargs(count: int) -> float:
            argv = ["sh", "-c", f"seq {count} | xargs -P {cores} -I X {sys.executable} train.py --x X"]
            return timed(lambda: run(argv, folder))

        by_xargs(few)
        ems_ms = _slope_ms(by_ems, few, many)
        xargs_ms = _slope_ms(by_xargs, few, many)
    ratio = ems_ms / xargs_ms
    yield Figure(
        "c",
        "a no-op python run on `here`",
        f"{ems_ms:.1f} ms, {ratio:.2f} times xargs",
        "at most 1.5 times",
        ratio <= 1.5,
    )
    yield Figure("c", f"the same by `xargs -P {cores}`", f"{xargs_ms:.1f} ms")


def wait_for_runs(folder: Path, experiment: str) -> None:
    """Return once every run of an experiment on `here` has ended, by its own records."""
    place = folder / ".ems" / "experiments" / experiment
    for index in range(len((place / "runs.jsonl").read_text().splitlines())):
        attempt = place / "runs" / str(index) / "attempts" / "1.json"
        while not (attempt.exists() and json.loads(attempt.read_text()).get("ended_at")):
            time.sleep(0.01)


def _slope_ms(measure: Callable[[int], float], few: int, many: int) -> float:
    pairs = sorted((measure(many) - measure(few)) / (many - few) for _ in range(3))
    return pairs[1] * 1000


def harvesting(_: Environment) -> Iterator[Figure]:
    """(d) Harvest of 1,000 runs x 1,000 points, then again with nothing new; MLflow's SQLite store on the same."""
    runs, points = 1_000, 1_000
    with project() as folder:
        made = finished_experiment(folder, runs, points)
        first_s = timed(lambda: run([*EMS, "harvest"], folder))
        again_s = median(lambda: run([*EMS, "harvest"], folder), repeats=3, warm_up=0)
        stored = (
            int(run(["sqlite3", ".ems/ems.db", "select count(*) from points"], folder))
            if shutil.which("sqlite3")
            else made
        )
    rate = stored / first_s
    yield Figure(
        "d",
        f"harvest {stored:,} points",
        f"{rate:,.0f} points/s ({first_s:.1f} s)",
        "at least 100,000 points/s",
        rate >= 1e5,
    )
    yield Figure("d", "harvest with nothing new", f"{again_s:.2f} s", "under 0.5 s", again_s < 0.5)
    yield _mlflow(runs=20, points=points)


def _mlflow(runs: int, points: int) -> Figure:
    what = f"MLflow's SQLite store, the same points by log_batch ({runs} runs timed)"
    try:
        from mlflow.entities import Metric
        from mlflow.store.tracking import sqlalchemy_store
    except ImportError:
        return Figure("d", what, "not measured: mlflow is not installed")
    with project() as folder:
        store = sqlalchemy_store.SqlAlchemyStore(f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts"))
        experiment = store.create_experiment("bench")

        def log() -> None:
            for _ in range(runs):
                run_id = store.create_run(experiment, "bench", 0, [], "run").info.run_id
                store.log_batch(run_id, [Metric("loss", random.random(), 0, step) for step in range(points)], [], [])

        seconds = timed(log)
    return Figure("d", what, f"{runs * points / seconds:,.0f} points/s")


def finished_experiment(folder: Path, runs: int, points: int) -> int:
    """Run a sweep of ``runs`` no-ops on `here`, then give each ``points`` metric lines; return the number of points."""
    argv = [*EMS, "parrun", "train.py", "--set", f"x=0..{runs - 1}", "--python", sys.executable]
    experiment = str(json.loads(run([*argv, "--json"], folder))["experiment"])
    wait_for_runs(folder, experiment)
    for index in range(runs):
        numbers = random.Random(index)
        with (folder / f".ems/experiments/{experiment}/runs/{index}/metrics.jsonl").open("a") as file:
            for step in range(points):
                line = {"step": step, "loss": numbers.random(), "_t": 1.7e9 + step, "_a": 1}
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
    return runs * points


def reporting(_: Environment) -> Iterator[Figure]:
    """(e) Report over 10,000 runs."""
    runs = 10_000
    with project() as folder:
        finished_experiment_of_results(folder, runs)
        run([*EMS, "harvest"], folder)
        rows_s = median(lambda: run([*EMS, "report"], folder), repeats=3)
        by_s = median(lambda: run([*EMS, "report", "--by", "lr"], folder), repeats=3)
    yield Figure("e", f"report of {runs:,} runs, a row each", f"{rows_s:.2f} s", "under 1 s", rows_s < 1)
    yield Figure("e", f"report of {runs:,} runs, --by lr", f"{by_s:.2f} s", "under 1 s", by_s < 1)


def finished_experiment_of_results(folder: Path, runs: int) -> None:
    """Run a sweep of ``runs`` that each print one metric."""
    (folder / "train.py").write_text("import sys\nprint(f'acc: 0.{hash(tuple(sys.argv)) % 1000:03d}')\n")
    argv = [
        *EMS,
        "parrun",
        "train.py",
        "--set",
        "lr=logspace(-4,-1,10)",
        "--set",
        f"seed=0..{runs // 10 - 1}",
        "--wait",
    ]
    run([*argv, "--python", sys.executable], folder)


def starting(_: Environment) -> Iterator[Figure]:
    """(f) `ems --help` against the smallest typer + rich program."""
    hello = """
    import typer
    from rich.console import Console

    app = typer.Typer()

    @app.command()
    def hello(name: str = "world") -> None:
        Console().print(f"hello {name}")

    app()
    """
    with project(textwrap.dedent(hello), "hello.py") as folder:
        script = shutil.which("ems", path=str(Path(sys.executable).parent))
        ems_s = median(lambda: run([script, "--help"] if script else [*EMS, "--help"], folder), repeats=11, warm_up=2)
        hello_s = median(lambda: run([sys.executable, "hello.py", "--help"], folder), repeats=11, warm_up=2)
    ratio = ems_s / hello_s
    yield Figure(
        "f", "`ems --help`", f"{ems_s * 1000:.0f} ms, {ratio:.2f} times hello", "at most 1.5 times", ratio <= 1.5
    )
    yield Figure("f", "a bare typer + rich hello, --help", f"{hello_s * 1000:.0f} ms")


def scheduler_calls(slurm: Environment) -> Iterator[Figure]:
    """(g) Calls of SLURM's commands in one `ems status` with 1, 100 and 5,000 pending runs."""
    counts = {}
    for runs in (1, 100, 5_000):
        with project() as folder:
            argv = [*EMS, "parrun", "train.py", "--on", "slurm", "--set", f"x=1..{runs}", "--alloc=--hold"]
            run(argv, folder, slurm)
            log = folder / "calls.log"
            env = dict(slurm, PATH=f"{counting_shims(folder, log, slurm)}:{slurm['PATH']}")
            run([*EMS, "status"], folder, env)
            counts[runs] = len(log.read_text().splitlines()) if log.exists() else 0
            cancel_all(slurm, folder)
    shown = ", ".join(f"{runs:,} run{'' if runs == 1 else 's'}: {count}" for runs, count in counts.items())
    yield Figure("g", "scheduler calls in one `ems status`", shown, "constant", len(set(counts.values())) == 1)


def counting_shims(folder: Path, log: Path, slurm: Environment) -> Path:
    """Make commands of SLURM's names that write a line to ``log`` and then are SLURM's; return their folder."""
    shims = folder / ".shims"
    shims.mkdir()
    (folder / ".gitignore").write_text(".shims\ncalls.log\n")
    for name in ("squeue", "sacct", "scontrol", "sacctmgr", "sinfo", "sbatch"):
        real = shutil.which(name, path=slurm["PATH"])
        (shims / name).write_text(f'#!/bin/sh\necho {name} >> "{log}"\nexec {real} "$@"\n')
        (shims / name).chmod(0o755)
    return shims


FIGURES: dict[str, tuple[Callable[[Environment], Iterator[Figure]], bool]] = {
    "a": (submitting, True),
    "b": (running, True),
    "c": (overhead_here, False),
    "d": (harvesting, False),
    "e": (reporting, False),
    "f": (starting, False),
    "g": (scheduler_calls, True),
    "h": (over_ssh.harvesting, False),
    "i": (over_ssh.pushing, False),
    "j": (clusters.starting, False),
    "l": (clouds.thousand, False),
    "m": (clusters.scaling, False),
}
