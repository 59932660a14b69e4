"""The contract of every Executor, on a real SLURM; and what is SLURM's own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ems.errors import ExecutorError
from ems.executor import control
from ems.executor.slurm import SlurmExecutor
from ems.model import Resources, State
from ems.node import feed, records


def _load(path: Path) -> ModuleType:
    """Import a test module by its path (tests are no package, see --import-mode=importlib)."""
    spec = importlib.util.spec_from_file_location(f"ems_contract_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


contract = _load(Path(__file__).parents[1] / "integration" / "test_executor_contract.py")


@pytest.fixture
def bench(project: Path, slurm: Any) -> Iterator[Any]:
    """A root to submit from; ``slurm`` puts the cluster into the environment."""
    (project / "train.py").write_text(contract.SCRIPT)
    root = project.parent / "root"
    root.mkdir()
    made = contract.Lab(root, SlurmExecutor(root, sys.executable), project)
    yield made
    made.close()


class TestSlurm(contract.Contract):  # type: ignore[misc,name-defined]  # loaded by path
    """The contract on SLURM."""

    @pytest.fixture
    def lab(self, bench: Any) -> Any:
        return bench

    def check_submitted_once(self, lab: Any, files: Any) -> None:
        for number in (1, 2):
            known = feed._ask(["squeue", "-h", "-t", "all", "-o", "%F", f"--name={feed.job_name(files, number)}"])
            assert set(known.split()) == {feed.job_of(files, number)}


def jobs_of(lab: Any, files: Any) -> list[str]:
    return [str(feed.job_of(files, number)) for number in files.chunk_numbers()]


def test_limits_are_those_of_the_cluster(bench: Any, slurm: Any) -> None:
    assert bench.executor.limits().max_array_size == 1001
    assert bench.executor.limits().max_submit is None
    with slurm.limits(MaxSubmitJobs=9):
        assert bench.executor.limits().max_submit == 9


def test_a_full_queue_is_fed_by_the_runs_themselves(bench: Any, slurm: Any) -> None:
    bench.gate.touch()
    with slurm.limits(MaxSubmitJobs=5):
        experiment, files = bench.make(9, chunk_size=2)
        done = bench.executor.submit(experiment, files)
        assert [chunk for chunk, _ in done.submitted] == [1, 2]
        assert done.waiting_chunks == 3
        assert "ubmit" in done.refusal
        bench.wait(lambda: bench.states(files, 9) == ["COMPLETED"] * 9)
    assert sorted(bench.started()) == list(range(9))
    assert len(set(jobs_of(bench, files))) == 5


def test_max_parallel_holds_across_chunks(bench: Any) -> None:
    experiment, files = bench.make(4, chunk_size=2, max_parallel=1)
    bench.executor.submit(experiment, files)
    bench.wait(bench.started)
    infos = bench.executor.refresh(jobs_of(bench, files))
    assert [info.state for info in infos.values()].count(State.RUNNING) == 1
    ask = lambda: bench.executor.refresh(jobs_of(bench, files)).values()  # noqa: E731
    bench.wait(lambda: any("Dependency" in info.reason for info in ask()))  # once the scheduler has looked at it
    bench.gate.touch()
    bench.wait(lambda: bench.states(files, 4) == ["COMPLETED"] * 4)
    assert bench.started() == [0, 1, 2, 3]


def test_why_something_waits_and_until_when(bench: Any, slurm: Any) -> None:
    experiment, files = bench.make(60, resources=Resources(cpus=8, time="5"))
    [(_, job)] = bench.executor.submit(experiment, files).submitted
    bench.wait(bench.started)
    bench.wait(lambda: bench.executor.refresh([job])[f"{job}_59"].reason in ("Resources", "Priority"))
    infos = bench.executor.refresh([job])
    assert len(infos) == 60
    assert {info.node for info in infos.values() if info.state is State.RUNNING} <= set(slurm.node_names)
    control.cancel(bench.executor, files)


def test_what_the_controller_forgot_is_in_the_accounting(bench: Any, slurm: Any) -> None:
    bench.gate.touch()
    experiment, files = bench.make(3)
    [(_, job)] = bench.executor.submit(experiment, files).submitted
    bench.wait(lambda: bench.states(files, 3) == ["COMPLETED"] * 3)
    with slurm.configured(MinJobAge=2):
        bench.wait(lambda: not slurm.run("squeue", "-h", "-t", "all", "-j", f"{job},{job}"))
        states = lambda: {key: info.state for key, info in bench.executor.refresh([job]).items()}  # noqa: E731
        bench.wait(lambda: State.RUNNING not in states().values())  # slurmdbd hears of the end a moment later
        assert states() == {f"{job}_{n}": State.COMPLETED for n in range(3)}
        # and so is a job whose id was lost with its submitter
        Path(files.chunk(1, "job")).unlink()
        for index in range(3):
            Path(files.attempt(index, 1)).unlink()
        assert feed.find(files, 1) == job


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        (Resources(partition="nowhere"), "invalid partition specified: nowhere"),
        (Resources(gres="gpu:99"), "node configuration is not available"),
        (Resources(alloc="--no-such-option"), "no-such-option"),
        (Resources(time="soon"), "time"),
    ],
)
def test_sbatch_says_early_and_in_its_own_words(bench: Any, resources: Resources, said: str) -> None:
    with pytest.raises(ExecutorError) as refused:
        bench.executor.check(resources)
    assert said.lower() in refused.value.message.lower()


def test_the_controller_is_away(bench: Any, slurm: Any) -> None:
    bench.gate.touch()
    experiment, files = bench.make(2)
    slurm.stop_controller()
    try:
        with pytest.raises(ExecutorError, match="SLURM does not answer"):
            bench.executor.submit(experiment, files)
        with pytest.raises(ExecutorError, match="SLURM does not answer"):
            bench.executor.refresh(["1_0"])
        assert not all(check.ok for check in bench.executor.doctor())
    finally:
        slurm.start_controller()
    assert len(bench.executor.submit(experiment, files).submitted) == 1
    bench.wait(lambda: bench.states(files, 2) == ["COMPLETED"] * 2)


def test_odd_characters_in_the_root_reach_sbatch_whole(bench: Any) -> None:
    root = bench.root.parent / 'it\'s a 100% "odd" $HOME root'
    root.mkdir()
    odd = contract.Lab(root, SlurmExecutor(root, sys.executable), bench.project)
    odd.gate.touch()
    experiment, files = odd.make(1, resources=Resources(alloc="--comment='a b; $(touch x)'"))
    odd.executor.submit(experiment, files)
    odd.wait(lambda: odd.states(files, 1) == ["COMPLETED"])
    assert Path(files.chunk(1, "log")).exists()
    odd.close()


def test_the_scheduler_is_asked_twice_whatever_the_number_of_runs(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ems.executor import slurm as module

    bench.gate.touch()
    experiment, files = bench.make(20)
    [(_, job)] = bench.executor.submit(experiment, files).submitted
    asked: list[str] = []
    call = module.call
    monkeypatch.setattr(module, "call", lambda argv, **kwargs: asked.append(argv[0]) or call(argv, **kwargs))
    bench.executor.refresh([f"{job}_{task}" for task in range(20)] + [f"{9_000_000 + n}_0" for n in range(5_000)])
    assert asked == ["squeue", "sacct"]
    bench.wait(lambda: bench.states(files, 20) == ["COMPLETED"] * 20)
    assert records.read_json(files.chunk(1, "job"))
