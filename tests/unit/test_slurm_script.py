"""The exact text for sbatch, and what is read from SLURM's answers; no SLURM needed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ems.errors import ExecutorError, UsageError
from ems.executor.slurm import SlurmExecutor, _info, _refusal, expand
from ems.model import Experiment, Resources, State
from ems.node import feed
from ems.node.job import notice
from ems.node.records import Record


def an_experiment(resources: Resources | None = None, **fields: object) -> Experiment:
    values: dict[str, object] = {
        "id": "7f3a9c21",
        "name": "train",
        "created_at": "2026-11-21T09:30:00.000Z",
        "script": "train.py",
        "snapshot": "0" * 40,
        "n_runs": 12,
        "executor": "slurm",
        "resources": resources or Resources(),
    }
    return Experiment(**(values | fields))  # type: ignore[arg-type]  # fields are given by name


def a_chunk(**fields: object) -> Record:
    return {"chunk": 3, "start": 0, "stop": 12, "tasks": 12, "pack": None, "resources": None} | fields


def options(script: str) -> dict[str, str | None]:
    """What sbatch would read, the last of equal options counting."""
    found: dict[str, str | None] = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            for word in shlex.split(line.removeprefix("#SBATCH ")):
                name, _, value = word.partition("=")
                found[name] = value or None
    return found


@pytest.fixture
def executor(tmp_path: Path) -> SlurmExecutor:
    return SlurmExecutor(tmp_path / "root")


def test_nothing_is_asked_that_was_not(executor: SlurmExecutor) -> None:
    script = executor.script(an_experiment(), a_chunk())
    root = executor.root
    assert options(script) == {
        "--array": "0-11",
        "--chdir": str(root),
        "--job-name": "ems-7f3a9c21.3",
        "--open-mode": "append",
        "--output": f"{root}/experiments/7f3a9c21/chunks/3.log",
        "--requeue": None,
        "--signal": "B:USR1@70",
    }


def test_the_command_is_the_worker_and_replaces_the_shell(executor: SlurmExecutor) -> None:
    lines = executor.script(an_experiment(), a_chunk()).splitlines()
    assert lines[0] == "#!/bin/bash"
    words = shlex.split(lines[-1] or lines[-2])
    assert words[:4] == ["exec", "$python", "-I", "-S"]
    assert Path(words[4]).parts[-3:] == ("ems", "node", "worker.py")
    assert Path(words[4]).parent.is_dir()
    assert words[5:] == [str(executor.root), "7f3a9c21", "3"]
    assert "srun" not in "\n".join(lines)


def test_everything_that_can_be_asked(executor: SlurmExecutor) -> None:
    asked = Resources(
        gres="gpu:a100:1",
        gpus="2",
        cpus=4,
        mem="32G",
        time="1-00:00:00",
        partition="gpu",
        account="lab",
        qos="high",
        constraint="a100|h100",
        nodes=2,
        exclude="n[1-3]",
    )
    found = options(executor.script(an_experiment(asked, max_parallel=5), a_chunk()))
    expected = {
        "--gres": "gpu:a100:1",
        "--gpus": "2",
        "--cpus-per-task": "4",
        "--mem": "32G",
        "--time": "1-00:00:00",
        "--partition": "gpu",
        "--account": "lab",
        "--qos": "high",
        "--constraint": "a100|h100",
        "--nodes": "2",
        "--exclude": "n[1-3]",
        "--array": "0-11%5",
    }
    assert expected.items() <= found.items()


@pytest.mark.parametrize(
    ("time", "grace_s", "before_s", "fits_s"),
    [
        (None, 60, 70, 60),
        ("4:00:00", 60, 70, 60),
        ("4:00:00", 0, 10, 0),
        ("1", 60, 30, 20),  # half of a short limit is the run's own
        ("1", 5, 15, 5),
        ("0:10", 60, 5, 2.5),
        ("UNLIMITED", 60, 70, 60),
        ("0", 60, 70, 60),  # SLURM's word for no limit
    ],
)
def test_a_short_limit_leaves_the_run_half_of_it(
    executor: SlurmExecutor, time: str | None, grace_s: int, before_s: int, fits_s: float
) -> None:
    assert notice(time, grace_s) == (before_s, fits_s)
    script = executor.script(an_experiment(Resources(time=time), grace_s=grace_s), a_chunk())
    assert options(script)["--signal"] == f"B:USR1@{before_s}"


def test_a_rerun_asks_for_something_else(executor: SlurmExecutor) -> None:
    experiment = an_experiment(Resources(mem="8G", partition="gpu"))
    found = options(executor.script(experiment, a_chunk(resources={"mem": "32G"})))
    assert (found["--mem"], found["--partition"]) == ("32G", "gpu")


def test_packed_runs_need_fewer_tasks(executor: SlurmExecutor) -> None:
    assert options(executor.script(an_experiment(pack=5), a_chunk(tasks=3, pack=5)))["--array"] == "0-2"


def test_raw_arguments_come_last_and_stay_quoted(executor: SlurmExecutor) -> None:
    asked = Resources(mem="8G", alloc="--mem=64G -C 'a b' --comment=\"$(touch x); y\" --mail-type END")
    script = executor.script(an_experiment(asked), a_chunk())
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert lines[-1] == "#SBATCH --mem=64G -C 'a b' '--comment=$(touch x); y' --mail-type END"
    assert script.index(lines[-1]) < script.index("exec ")


@pytest.mark.parametrize(
    "raw", ["--array=0-3", "-a 1-2", "-a1-2", "-Jmine", "--job-name mine", "-o x", "--wrap=ls", "-W", "--arr=1"]
)
def test_raw_arguments_may_not_take_the_runs_from_ems(executor: SlurmExecutor, raw: str) -> None:
    with pytest.raises(UsageError, match="--alloc"):
        executor.script(an_experiment(Resources(alloc=raw)), a_chunk())


@pytest.mark.parametrize("raw", ["--comment='open", "--mem=1G\n#SBATCH --array=0-5"])
def test_raw_arguments_that_cannot_be_split(executor: SlurmExecutor, raw: str) -> None:
    with pytest.raises(UsageError):
        executor.script(an_experiment(Resources(alloc=raw)), a_chunk())


def test_short_raw_options_that_look_like_ours_pass(executor: SlurmExecutor) -> None:
    script = executor.script(an_experiment(Resources(alloc="-A lab --acctg-freq=30")), a_chunk())
    assert "#SBATCH -A lab --acctg-freq=30" in script


def test_odd_roots_are_quoted(tmp_path: Path) -> None:
    root = tmp_path / "it's 100% odd $HOME"
    script = SlurmExecutor(root, "/opt/my python/bin/python3 -q").script(an_experiment(), a_chunk())
    assert options(script)["--chdir"] == str(root)
    assert (options(script)["--output"] or "").startswith(str(root).replace("%", "%%"))
    command = next(line for line in script.splitlines() if line.startswith("exec "))
    assert shlex.split(command)[-3] == str(root)


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("7_3", ["7_3"]),
        ("8", ["8"]),
        ("7_[4-6%3]", ["7_4", "7_5", "7_6"]),
        ("7_[0,2,5-6]", ["7_0", "7_2", "7_5", "7_6"]),
        ("7_[0-5:2%4]", ["7_0", "7_2", "7_4"]),
        ("7_[1]", ["7_1"]),
    ],
)
def test_array_tasks_as_sacct_writes_them(name: str, tasks: list[str]) -> None:
    assert expand(name) == tasks


def test_what_slurm_says_of_a_task() -> None:
    info = _info("7_3", "PENDING", "", "Resources", "2026-11-21T14:05:00")
    assert (info.state, info.reason, info.start_estimate) == (State.PENDING, "Resources", "2026-11-21T14:05:00")
    info = _info("7_3", "RUNNING", "n1", "None", "2026-11-21T14:05:00")
    assert (info.state, info.reason, info.node, info.start_estimate) == (State.RUNNING, "", "n1", "")
    info = _info("7_3", "CANCELLED by 1000", "None assigned", "")
    assert (info.state, info.slurm_state, info.node) == (State.CANCELLED, "CANCELLED", "")


def test_without_slurm_it_says_so(executor: SlurmExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ExecutorError, match="no sbatch"):
        executor.check(Resources())
    checks = {check.name: check for check in executor.doctor()}
    assert not checks["sbatch"].ok
    assert re.search("log in", checks["sbatch"].hint)
    assert not checks["git"].ok


def test_a_refresh_of_nothing_asks_nobody(executor: SlurmExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert executor.refresh([]) == {}
    assert executor.refresh(["cancelled_4"])["cancelled_4"].state is State.CANCELLED


def test_commands_without_a_cluster_are_told_from_a_refusal() -> None:
    said = "fetch_config: DNS SRV lookup failed; Could not establish a configuration source"
    error = _refusal(feed.RefusedError(said))
    assert error.message == "SLURM's commands are here, but this machine belongs to no cluster"
    assert "--on here" in error.hint
