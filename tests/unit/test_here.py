"""What ``here`` would start, and what this machine has; nothing is started."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path

import pytest

from ems.errors import ExecutorError, UsageError
from ems.executor import here, probes
from ems.executor.here import HereExecutor
from ems.model import Experiment, Resources, State
from ems.node.records import ExperimentFiles, Record


def an_experiment(resources: Resources | None = None, **fields: object) -> Experiment:
    values: dict[str, object] = {
        "id": "7f3a9c21",
        "name": "train",
        "created_at": "2026-11-21T09:30:00.000Z",
        "script": "train.py",
        "snapshot": "0" * 40,
        "n_runs": 12,
        "resources": resources or Resources(),
    }
    return Experiment(**(values | fields))  # type: ignore[arg-type]  # fields are given by name


def a_chunk(**fields: object) -> Record:
    return {"chunk": 3, "start": 0, "stop": 12, "tasks": 12, "pack": None, "resources": None} | fields


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HereExecutor:
    monkeypatch.setenv("EMS_HERE_GPUS", "0,1,2,3")
    monkeypatch.setattr(probes, "cores", lambda: 8)
    return HereExecutor(tmp_path / "root")


def options(script: str) -> dict[str, str]:
    words = shlex.split(script)
    return {word: words[i + 1] for i, word in enumerate(words) if word in ("--workers", "--gpus")}


def test_the_command_is_the_worker(executor: HereExecutor) -> None:
    words = shlex.split(executor.script(an_experiment(), a_chunk()))
    assert words[1:3] == ["-I", "-S"]
    assert Path(words[3]).parts[-3:] == ("ems", "node", "worker.py")
    assert words[4:] == [str(executor.root), "7f3a9c21", "3", "--here", "--workers", "8"]


@pytest.mark.parametrize(
    ("resources", "fields", "expected"),
    [
        (Resources(), {}, {"--workers": "8"}),
        (Resources(cpus=3), {}, {"--workers": "2"}),
        (Resources(cpus=99), {}, {"--workers": "1"}),
        (Resources(), {"workers": 20}, {"--workers": "20"}),
        (Resources(), {"max_parallel": 3}, {"--workers": "3"}),
        (Resources(), {"workers": 2, "max_parallel": 3}, {"--workers": "2"}),
        (Resources(gpus="1"), {}, {"--workers": "4", "--gpus": "0,1,2,3"}),
        (Resources(gres="gpu:a100:2"), {}, {"--workers": "2", "--gpus": "0,1,2,3"}),
        (Resources(gres="gpu:3"), {}, {"--workers": "1", "--gpus": "0,1,2,3"}),
    ],
)
def test_as_many_workers_as_fit(
    executor: HereExecutor, resources: Resources, fields: dict[str, object], expected: dict[str, str]
) -> None:
    assert options(executor.script(an_experiment(resources, **fields), a_chunk())) == expected


def test_a_rerun_asks_for_something_else(executor: HereExecutor) -> None:
    script = executor.script(an_experiment(Resources(cpus=8)), a_chunk(resources={"gres": "gpu:2", "cpus": 1}))
    assert options(script) == {"--workers": "2", "--gpus": "0,1,2,3"}
    assert options(executor.script(an_experiment(Resources(cpus=8)), a_chunk(resources={"cpus": 2}))) == {
        "--workers": "4"
    }


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        (Resources(gres="gpu:5"), "asks for 5 GPUs, and this machine has 4"),
        (Resources(nodes=2), "2 nodes, and this is one machine"),
    ],
)
def test_what_one_machine_cannot_give(executor: HereExecutor, resources: Resources, said: str) -> None:
    with pytest.raises(ExecutorError, match=said):
        executor.check(resources)


@pytest.mark.parametrize("limit", ["banana", "1h", "", "-5"])
def test_a_time_limit_that_no_worker_could_read(executor: HereExecutor, limit: str) -> None:
    with pytest.raises(UsageError, match="is not a time limit"):
        executor.check(Resources(time=limit))


def test_a_gpu_where_there_is_none(executor: HereExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMS_HERE_GPUS", "")
    with pytest.raises(ExecutorError, match="asks for 1 GPU, and this machine has none"):
        executor.check(Resources(gpus="1"))


def test_a_root_that_submitit_would_misread(tmp_path: Path) -> None:
    root = tmp_path / "50%tests"
    with pytest.raises(ExecutorError, match="%t"):
        HereExecutor(root).submit(an_experiment(), ExperimentFiles(root, "7f3a9c21"))


def test_a_process_is_told_from_a_later_one_of_its_id() -> None:
    me = here._name(os.getpid())
    assert list(here._alive([me, "here-0-1", "here-x", "7_1"])) == [os.getpid()]
    name, _, ticks = me.rpartition("-")
    later = f"{name}-{int(ticks) - 1}"
    assert list(here._alive([later])) == []
    assert here._look(later).state is State.UNKNOWN
    assert here._look(me).state is State.RUNNING


def test_a_signal_to_nobody_is_no_error() -> None:
    here._signal(2**22 - 3, signal.SIGCONT)


@pytest.mark.parametrize(
    ("said", "found"),
    [("0,1", ["0", "1"]), ("", []), ("GPU-8a,MIG-3", ["GPU-8a", "MIG-3"]), ("2,-1,0", ["2"]), (" 3 ,", ["3"])],
)
def test_gpus_as_the_environment_says(said: str, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMS_HERE_GPUS", said)
    assert probes.gpus() == found


@pytest.mark.parametrize(
    ("visible", "found"), [(None, ["0", "1", "2"]), ("1", ["1"]), ("", []), ("-1", []), ("2,0", ["2", "0"])]
)
def test_gpus_as_the_driver_says(visible: str | None, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMS_HERE_GPUS", raising=False)
    monkeypatch.setattr(probes, "_count", lambda: 3)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert probes.gpus() == found


def test_doctor_names_an_unwritable_root(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = {check.name: check for check in HereExecutor(Path("/proc/no/such")).doctor()}
    assert not checks["root"].ok
    assert "root:" in checks["root"].hint
