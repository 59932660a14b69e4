"""Harvest on real files and a real store: every result exactly once, whatever was torn, killed or run twice."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ems.errors import ExecutorError
from ems.harvest import HarvestReport, adopt, harvest, refresh_states
from ems.harvest.intake import Intake
from ems.model import JobInfo, State
from ems.store import Store

Content = Callable[[Store], Any]


def gone(jobs: Any) -> dict[str, JobInfo]:
    """A scheduler that knows no job."""
    return {}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / ".ems" / "ems.db") as opened:
        yield opened


def reap(store: Store, farm: Any, **more: Any) -> HarvestReport:
    return harvest(store, farm.root, more.pop("refresh", gone), **more)


def fresh(farm: Any, content: Content) -> Any:
    """What a harvest into a new store gives."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "ems.db") as new:
        reap(new, farm)
        return content(new)


def curve(store: Store, metric: str, index: int = 0) -> list[tuple[float, float]]:
    return [(step, value) for _, i, step, value in store.curves(["7f3a9c21"], metric) if i == index]


def last(store: Store, index: int = 0) -> dict[str, float | str]:
    return {name: summary.last for name, summary in list(store.run_table())[index].metrics.items()}


# -- metrics


def test_states_and_metrics_of_a_whole_experiment(store: Store, farm: Any, content: Content) -> None:
    for index in range(3):
        farm.attempt(index, max_rss_mb=12.5, gpus="0", host="node1")
        for step in range(5):
            farm.log(index, step, loss=1 / (step + 1), acc=0.1 * step)
    (found,) = reap(store, farm).experiments
    assert (found.completed, found.new_completed, found.new_points, found.failed) == (3, 3, 30, 0)
    row = list(store.run_table())[1]
    assert (row.state, row.wall_s, row.max_rss_mb, row.gpus, row.host) == (State.COMPLETED, 1.5, 12.5, "0", "node1")
    summary = row.metrics["loss"]
    assert (summary.last, summary.min, summary.max, summary.n, summary.last_step) == (0.2, 0.2, 1.0, 5, 4)
    assert summary.mean == pytest.approx(sum(1 / k for k in range(1, 6)) / 5)
    assert store.metric_names() == ["loss", "acc"]
    wide = store.query('SELECT run, lr, "opt.name", loss, acc FROM runs_wide WHERE run = 2')
    assert wide == [(2, 0.1 * 3, "sgd", 0.2, 0.4)]
    assert content(store) == fresh(farm, content)


def test_a_second_harvest_finds_nothing_and_touches_no_file(store: Store, farm: Any, content: Content) -> None:
    for index in range(3):
        farm.attempt(index)
        farm.log(index, 0, loss=1)
    reap(store, farm)
    before = content(store)
    farm.log(0, 1, loss=9)  # after the end: a settled run is not read again
    report = reap(store, farm)
    assert report.experiments == ()
    assert content(store) == before


def test_nan_and_infinity_come_back(store: Store, farm: Any) -> None:
    farm.attempt(0)
    for step, value in enumerate([1.0, math.nan, math.inf, -math.inf, math.nan]):
        farm.log(0, step, loss=value)
    farm.write(0, "metrics.jsonl", '{"step":9,"phase":"done","_a":1}\n', append=True)
    reap(store, farm)
    values = [value for _, value in curve(store, "loss")]
    assert [str(value) for value in values] == ["1.0", "nan", "inf", "-inf", "nan"]
    summary = next(store.run_table()).metrics["loss"]
    assert math.isnan(summary.last)
    assert math.isnan(summary.mean)
    assert (summary.min, summary.max, summary.n) == (-math.inf, math.inf, 5)
    assert last(store)["phase"] == "done"
    assert store.query("SELECT avg(value) FROM curves WHERE value < 9e99 AND value > -9e99") == [(1.0,)]


def test_running_runs_give_what_they_have_and_torn_lines_wait(store: Store, farm: Any, content: Content) -> None:
    farm.attempt(0, state="RUNNING", host="elsewhere")
    farm.log(0, 0, loss=1)
    farm.write(0, "metrics.jsonl", '{"step":1,"lo', append=True)
    reap(store, farm)
    assert curve(store, "loss") == [(0, 1.0)]
    farm.write(0, "metrics.jsonl", 'ss":0.5,"_a":1}\n', append=True)
    assert reap(store, farm).new_points == 1
    farm.attempt(0)
    farm.log(0, 2, loss=0.25)
    (found,) = reap(store, farm).experiments
    assert (found.new_completed, found.new_points) == (1, 1)
    assert curve(store, "loss") == [(0, 1.0), (1, 0.5), (2, 0.25)]
    assert content(store) == fresh(farm, content)


def test_a_requeued_run_continues_its_curve_and_the_later_attempt_wins(
    store: Store, farm: Any, content: Content
) -> None:
    farm.attempt(0, 1, "PENDING", reason="time limit")
    for step in range(5):
        farm.log(0, step, attempt=1, loss=10 + step)
    reap(store, farm)
    farm.attempt(0, 2, "RUNNING", resumed_from=1, host="elsewhere")
    farm.log(0, 3, attempt=2, loss=3)
    reap(store, farm)
    assert curve(store, "loss") == [(0, 10.0), (1, 11.0), (2, 12.0), (3, 3.0), (4, 14.0)]
    farm.log(0, 4, attempt=2, loss=4)
    farm.log(0, 5, attempt=2, loss=5)
    farm.attempt(0, 2, resumed_from=1)
    reap(store, farm)
    assert curve(store, "loss")[-3:] == [(3, 3.0), (4, 4.0), (5, 5.0)]
    summary = next(store.run_table()).metrics["loss"]
    assert (summary.n, summary.last, summary.min, summary.max) == (6, 5.0, 3.0, 12.0)
    assert store.query("SELECT count(*) FROM points") == [(8,)]  # what the first attempt said is kept
    assert [each.state for each in store.attempts("7f3a9c21", 0)] == [State.PENDING, State.COMPLETED]
    assert content(store) == fresh(farm, content)


def test_a_rerun_from_nothing_counts_alone_and_earlier_attempts_are_kept(
    store: Store, farm: Any, content: Content
) -> None:
    farm.attempt(0, 1, "FAILED", reason="ValueError: x (train.py:3)")
    for step in range(5):
        farm.log(0, step, attempt=1, loss=10, old=1)
    (found,) = reap(store, farm).experiments
    assert (found.failed, found.new_failed) == (1, 1)
    farm.chunk(2, indices=[0], start=0, stop=1)
    refresh_states(store, farm.root, gone)
    assert store.states("7f3a9c21")[0] == (0, State.UNKNOWN)  # nobody knows the job of the new chunk
    farm.attempt(0, 2, chunk=2)
    farm.log(0, 0, attempt=2, loss=2)
    (found,) = reap(store, farm).experiments
    assert (found.completed, found.failed, found.new_completed) == (1, 0, 1)
    assert curve(store, "loss") == [(0, 2.0)]
    assert last(store) == {"loss": 2.0}
    assert store.query("SELECT count(*) FROM points") == [(11,)]
    assert len(store.attempts("7f3a9c21", 0)) == 2
    assert content(store) == fresh(farm, content)


def test_printed_lines_belong_to_the_attempt_that_printed_them(store: Store, farm: Any, content: Content) -> None:
    first, second = b"acc: 0.1\nacc: 0.2\nacc: 0.9", b"acc: 0.3\nepoch=7 loss=2\n"
    farm.write(0, "stdout.log", first)
    farm.attempt(0, 1, "RUNNING", host="elsewhere", stdout_from=0)
    reap(store, farm)
    assert curve(store, "acc") == [(0, 0.1), (1, 0.2)]
    farm.attempt(0, 1, "FAILED", stdout_from=0)
    reap(store, farm)
    assert last(store) == {"acc": 0.9}  # an unfinished last line counts when nothing more comes
    farm.chunk(2, indices=[0], start=0, stop=1)
    farm.write(0, "stdout.log", second, append=True)
    farm.attempt(0, 2, chunk=2, stdout_from=len(first))
    reap(store, farm)
    assert curve(store, "acc") == [(0, 0.3)]
    assert curve(store, "loss") == [(7, 2.0)]
    assert content(store) == fresh(farm, content)


def test_patterns_of_the_experiment_read_stderr_too(store: Store, make_farm: Any) -> None:
    farm = make_farm(log_patterns=(r"wer=(?P<wer>\S+)",))
    farm.write(0, "stdout.log", "acc: 1\n")
    farm.write(0, "stderr.log", "INFO wer=12.5\n")
    farm.attempt(0)
    reap(store, farm)
    assert last(store) == {"wer": 12.5}


def test_a_pattern_that_is_none_is_a_problem_and_no_end(store: Store, make_farm: Any) -> None:
    farm = make_farm(log_patterns=("(",))
    farm.write(0, "stdout.log", "acc: 1\n")
    farm.attempt(0)
    assert "log_patterns of 7f3a9c21" in reap(store, farm).problems[0]
    assert last(store) == {"acc": 1.0}


# -- files that scripts write


def test_files_that_scripts_write(store: Store, farm: Any) -> None:
    farm.attempt(0)
    farm.write(0, "files/results.json", '{"test": {"acc": 0.9}, "time": 3}')
    farm.write(0, "files/out/history.csv", "epoch,loss\n1,0.5\n2,0.25\n")
    farm.write(0, "files/metrics.jsonl", '{"epoch": 1, "f1": 0.3}\n')
    farm.write(0, "stdout.log", "bleu: 27\n")
    reap(store, farm)
    assert last(store) == {"f1": 0.3, "test.acc": 0.9, "time": 3.0, "loss": 0.25, "bleu": 27.0}
    assert curve(store, "loss") == [(1, 0.5), (2, 0.25)]


def test_the_projects_own_files_are_no_results(store: Store, farm: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("a,b\n1,2\n")
    farm.attempt(0, state="RUNNING", host="elsewhere")
    view = Path(farm.files.run(0, "files"))
    view.mkdir()
    (view / "data").symlink_to(tmp_path / "data")
    (view / "train.csv").symlink_to(tmp_path / "data" / "train.csv")
    farm.write(0, "attempts/1-checkpoint/results.json", '{"x": 1}')
    farm.write(0, "checkpoint/log.csv", "y\n1\n")
    reap(store, farm)
    assert last(store) == {}


def test_a_file_written_anew_replaces_what_it_gave(store: Store, farm: Any, content: Content) -> None:
    farm.attempt(0, state="RUNNING", host="elsewhere")
    farm.write(0, "files/log.csv", "epoch,loss,gone\n1,0.5,1\n2,0.25,1\n")
    farm.write(0, "files/results.json", '{"acc": 1, "gone": 2}')
    reap(store, farm)
    farm.write(0, "files/log.csv", "epoch,loss\n1,9\n2,8\n3,7\n4,6\n5,5\n")
    farm.write(0, "files/results.json", '{"acc": 2')  # being written
    reap(store, farm)
    assert curve(store, "loss") == [(1, 9.0), (2, 8.0), (3, 7.0), (4, 6.0), (5, 5.0)]
    farm.write(0, "files/results.json", '{"acc": 2}')
    farm.attempt(0)
    reap(store, farm)
    assert last(store) == {"acc": 2.0, "loss": 5.0}
    assert content(store) == fresh(farm, content)


def test_a_file_that_grows_is_read_on(store: Store, farm: Any, content: Content) -> None:
    farm.attempt(0, state="RUNNING", host="elsewhere")
    for epoch in range(1, 6):
        header = "epoch,loss\n" if epoch == 1 else ""
        farm.write(0, "files/log.csv", f"{header}{epoch},{1 / epoch}\n", append=True)
        assert reap(store, farm).new_points == 1
    farm.attempt(0)
    reap(store, farm)
    assert content(store) == fresh(farm, content)


def test_one_name_in_several_files(store: Store, farm: Any, content: Content) -> None:
    farm.attempt(0, state="RUNNING", host="elsewhere")
    farm.write(0, "stdout.log", "epoch=1 loss=1\nepoch=2 loss=2\n")
    farm.write(0, "files/val.csv", "epoch,loss\n1,10\n")
    reap(store, farm)
    assert last(store) == {"loss": 10.0}
    farm.write(0, "files/train.csv", "epoch,loss\n1,20\n")
    farm.write(0, "stdout.log", "epoch=3 loss=3\n", append=True)
    reap(store, farm)
    assert last(store) == {"loss": 20.0, "val.csv/loss": 10.0}
    farm.log(0, 100, loss=30)
    farm.write(0, "files/val.csv", "2,11\n", append=True)
    farm.attempt(0)
    reap(store, farm)
    assert last(store) == {"loss": 30.0, "train.csv/loss": 20.0, "val.csv/loss": 11.0}
    assert content(store) == fresh(farm, content)


def test_a_file_takes_over_what_was_only_printed_before(store: Store, farm: Any, content: Content) -> None:
    farm.attempt(0, state="RUNNING", host="elsewhere")
    farm.write(0, "stdout.log", "epoch=1 loss=1\nepoch=2 loss=2\n")
    reap(store, farm)
    assert last(store) == {"loss": 2.0}
    farm.write(0, "files/results.json", '{"loss": 0.5}')
    farm.attempt(0)
    reap(store, farm)
    assert curve(store, "loss") == [(0, 0.5)]
    assert content(store) == fresh(farm, content)


def test_files_that_are_gone_count_until_the_run_begins_anew(store: Store, farm: Any) -> None:
    farm.attempt(0)
    results = farm.write(0, "files/results.json", '{"acc": 1}')
    reap(store, farm)
    results.unlink()
    reap(store, farm, metric_globs=["x"])  # looks at settled runs again
    assert last(store) == {"acc": 1.0}
    farm.chunk(2, indices=[0], start=0, stop=1)
    farm.attempt(0, 2, chunk=2)
    reap(store, farm)
    assert last(store) == {}


def test_progress_is_told(store: Store, farm: Any) -> None:
    for index in range(3):
        farm.attempt(index)
    told: list[tuple[int, int]] = []
    reap(store, farm, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (3, 3)


def test_ranks_are_kept_apart(store: Store, farm: Any) -> None:
    farm.attempt(0)
    farm.log(0, 0, loss=1)
    farm.write(0, "metrics-3.jsonl", '{"step":0,"loss":2,"_a":1}\n')
    reap(store, farm)
    assert last(store) == {"loss": 1.0, "rank3/loss": 2.0}


def test_malformed_files_are_named_with_their_line_and_the_rest_is_kept(store: Store, farm: Any) -> None:
    farm.attempt(0)
    farm.attempt(1)
    farm.write(0, "files/x.csv", "epoch,loss\n1,0.5\nbroken\n3,0.1\n")
    farm.write(0, "files/results.json", '{"acc": 1,\n"b": }')
    farm.write(0, "metrics.jsonl", b'\0\0\0\0\n{"step":1,"f1":2,"_a":1}\n')
    farm.write(1, "attempts/1.json", "{")
    problems = "\n".join(reap(store, farm).problems)
    assert "7f3a9c21/0/x.csv line 3: 1 cell where the header has 2" in problems
    assert "7f3a9c21/0/results.json line 2: not JSON" in problems
    assert "7f3a9c21/0/metrics.jsonl line 1: not JSON" in problems
    assert "7f3a9c21/1/attempts/1.json" in problems
    assert last(store) == {"loss": 0.1, "f1": 2.0}


def test_further_files_by_glob_also_of_settled_runs(store: Store, farm: Any) -> None:
    farm.attempt(0)
    farm.write(0, "files/out/eval.json", '{"bleu": 27}')
    farm.write(0, "files/out/train.log", "ppl: 12\n")
    reap(store, farm)
    assert last(store) == {}
    reap(store, farm, metric_globs=["out/*"])
    assert last(store) == {"bleu": 27.0, "ppl": 12.0}
    assert reap(store, farm, metric_globs=["out/*"]).new_points == 0


def test_a_huge_table_that_nobody_named_is_data(store: Store, farm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ems.outputs.MAX_CSV_BYTES", 10)
    farm.attempt(0)
    farm.write(0, "files/data.csv", "x,y\n" + "1,2\n" * 10)
    assert "7f3a9c21/0/data.csv: larger than" in reap(store, farm).problems[0]
    assert last(store) == {}
    reap(store, farm, metric_globs=["*.csv"])
    assert last(store) == {"x": 1.0, "y": 2.0}


def test_files_larger_than_what_is_read_at_a_time(
    store: Store, farm: Any, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm.attempt(0)
    for step in range(300):
        farm.log(0, step, loss=step)
    expected = fresh(farm, content)
    monkeypatch.setattr("ems.harvest.readers.MAX_BYTES", 1000)
    monkeypatch.setattr("ems.harvest._BATCH_POINTS", 7)
    assert reap(store, farm).new_points == 300
    assert content(store) == expected


LINE = st.one_of(
    st.builds(
        lambda step, name, value: json.dumps({"step": step, name: value, "_a": 1}).encode(),
        st.integers(0, 6),
        st.sampled_from(["a", "b"]),
        st.one_of(st.floats(width=32), st.integers(-9, 9), st.sampled_from(["x", "NaN"])),
    ),
    st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"")),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(lines=st.lists(LINE, max_size=10), cuts=st.lists(st.integers(0, 400), max_size=3))
def test_whenever_it_is_harvested_the_store_is_that_of_a_fresh_harvest(
    lines: list[bytes], cuts: list[int], content: Content, tmp_path_factory: pytest.TempPathFactory, make_farm: Any
) -> None:
    farm = type(make_farm(exp_id=os.urandom(4).hex()))(tmp_path_factory.mktemp("root"), 1)
    data = b"".join(line + b"\n" for line in lines)
    farm.attempt(0, state="RUNNING", host="elsewhere")
    with Store(farm.root / "ems.db") as store:
        position = 0
        for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
            farm.write(0, "metrics.jsonl", data[position:cut], append=True)
            reap(store, farm)
            position = cut
        farm.attempt(0)
        reap(store, farm)
        assert content(store) == fresh(farm, content)


# -- states


def test_one_question_to_the_scheduler_for_all_and_none_when_all_have_ended(store: Store, make_farm: Any) -> None:
    farm = make_farm(n_runs=50, executor="slurm")
    calls: list[list[str]] = []

    def ask(jobs: Any) -> dict[str, JobInfo]:
        calls.append(list(jobs))
        return {job: JobInfo(job, State.PENDING, "PENDING", "Resources") for job in jobs}

    farm.attempt(0)
    farm.attempt(1, state="RUNNING")
    adopt(store, farm.root)
    refresh_states(store, farm.root, ask)
    assert len(calls) == 1
    assert sorted(calls[0]) == sorted(f"1841_{index}" for index in range(1, 50))
    assert store.query("SELECT reason, slurm_state FROM runs WHERE idx = 7") == [("Resources", "PENDING")]
    for index in range(50):
        farm.attempt(index)
    reap(store, farm, refresh=ask)
    assert len(calls) == 1
    assert store.counts() == {"7f3a9c21": {State.COMPLETED: 50}}


def test_a_run_that_ended_while_the_scheduler_was_asked(store: Store, make_farm: Any) -> None:
    farm = make_farm(executor="slurm")
    farm.attempt(0, state="RUNNING")

    def ask(jobs: Any) -> dict[str, JobInfo]:
        farm.attempt(0)
        farm.log(0, 0, loss=1)
        return {"1841_0": JobInfo("1841_0", State.COMPLETED, "COMPLETED")}

    (found,) = reap(store, farm, refresh=ask).experiments
    assert (found.completed, found.new_completed, found.new_points) == (1, 1, 1)


def test_a_killed_run_takes_its_state_from_slurm_and_is_settled_later(
    store: Store, make_farm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm = make_farm(executor="slurm", n_runs=1)
    farm.attempt(0, state="RUNNING")
    farm.log(0, 0, loss=1)

    def killed(jobs: Any) -> dict[str, JobInfo]:
        return {"1841_0": JobInfo("1841_0", State.FAILED, "OUT_OF_MEMORY")}

    (found,) = reap(store, farm, refresh=killed).experiments
    assert (found.failed, found.new_failed) == (1, 0)  # its record may be late
    assert found.failures[0].cause == "out of memory"
    assert store.attempts("7f3a9c21", 0)[0].reason == "out of memory"
    monkeypatch.setattr("ems.harvest.GONE_S", -1.0)
    assert reap(store, farm, refresh=killed).experiments[0].new_failed == 1
    assert reap(store, farm, refresh=killed).experiments == ()


def test_a_scheduler_that_is_down_is_said_and_loses_nothing(store: Store, make_farm: Any) -> None:
    farm = make_farm(executor="slurm")
    farm.attempt(0)
    farm.attempt(1, state="RUNNING")
    farm.log(0, 0, loss=1)
    farm.log(1, 0, loss=2)

    def down(jobs: Any) -> dict[str, JobInfo]:
        raise ExecutorError("squeue: error: Unable to contact slurm controller")

    report = reap(store, farm, refresh=down)
    assert "Unable to contact" in str(report.trouble)
    assert report.new_points == 2
    assert store.counts() == {"7f3a9c21": {State.COMPLETED: 1, State.RUNNING: 1, State.PENDING: 1}}
    with pytest.raises(ExecutorError):
        refresh_states(store, farm.root, down)
    up = {"1841_1": JobInfo("1841_1", State.RUNNING, "RUNNING"), "1841_2": JobInfo("1841_2", State.RUNNING, "RUNNING")}
    reap(store, farm, refresh=lambda jobs: up)
    assert store.counts() == {"7f3a9c21": {State.COMPLETED: 1, State.RUNNING: 2}}


def test_a_worker_that_died_here_has_lost_its_run(store: Store, farm: Any) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with subprocess.Popen(["sleep", "600"]) as process:
        facts = {"host": os.uname().nodename, "boot_id": boot, "pid": process.pid}
        start = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
        farm.attempt(0, state="RUNNING", pid_start=start, **facts)
        reap(store, farm)
        assert store.states("7f3a9c21")[0] == (0, State.RUNNING)
        process.kill()
    report = reap(store, farm)
    assert store.states("7f3a9c21")[0] == (0, State.FAILED)
    assert report.experiments[0].failures[0].cause == "worker lost"
    assert report.experiments[0].new_failed == 1


def test_params_of_loops_that_were_not_known_before(store: Store, farm: Any) -> None:
    farm.attempt(0, params={"lr": 0.5, "model": "<function f>"})
    reap(store, farm)
    (run,) = store.runs("7f3a9c21", [0])
    assert run.params == {"lr": 0.5, "opt": {"name": "sgd"}, "model": "<function f>"}
    assert store.query("SELECT model FROM runs_wide WHERE run = 0") == [("<function f>",)]


def test_failures_are_grouped_by_cause(store: Store, make_farm: Any) -> None:
    farm = make_farm(n_runs=5)
    for index in range(4):
        error = {"type": "ValueError", "message": f"bad {index}", "where": "train.py:3", "traceback": ""}
        farm.attempt(index, state="FAILED", reason=f"ValueError: bad {index} (train.py:3)", error=error)
    farm.attempt(4, state="FAILED", reason="killed by SIGSEGV", signal="SIGSEGV")
    (found,) = reap(store, farm).experiments
    assert [(each.count, each.example) for each in found.failures] == [(4, 0), (1, 4)]
    assert found.failures[0].example_params == {"lr": 0.1, "opt": {"name": "sgd"}}
    assert found.failures[1].rerun_command == "ems rerun 7f3a9c21/4"


def test_an_experiment_that_the_store_does_not_know_is_found_and_a_purged_one_is_not(store: Store, farm: Any) -> None:
    broken = farm.root / "experiments" / "broken00"
    broken.mkdir()
    (broken / "spec.json").write_text("{")
    farm.attempt(0)
    report = reap(store, farm)
    assert report.adopted == ("7f3a9c21",)
    assert "experiments/broken00 cannot be read" in report.problems[0]
    assert store.resolve("last") == farm.experiment
    assert list(store.runs("7f3a9c21")) == farm.runs
    store.remove("7f3a9c21")
    assert reap(store, farm).adopted == ()
    assert store.counts()["7f3a9c21"] == {State.COMPLETED: 1, State.CANCELLED: 2}


# -- killed, and two at once

# a third word: once; a fourth: killed before the Nth of its statements, or of the files that it opens
HARVEST = """
import os, signal, sys
from ems import harvest
from ems.store import Store
harvest._BATCH_POINTS = 40
left = int(sys.argv[4]) if len(sys.argv) > 4 else 10**9

def step(what, *_):
    global left
    if what == "open" or what[:1].isupper():
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

with Store(sys.argv[1]) as store:
    store.db.set_trace_callback(step)
    sys.addaudithook(step)
    while True:
        report = harvest.harvest(store, sys.argv[2], lambda jobs: {})
        if len(sys.argv) > 3 or not report.experiments:
            break
"""


def start_harvest(farm: Any, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", HARVEST, str(farm.root / "ems.db"), str(farm.root), *more])


def grow(farm: Any, step: int, n_runs: int) -> None:
    """One step of every run: a logged point, a printed line, a row; some end, some are requeued, some begin anew."""
    for index in range(n_runs):
        attempt = 1 if step < 10 else 2
        if step == 0:
            farm.attempt(index, 1, "RUNNING", host="elsewhere")
        if step == 10:
            farm.attempt(index, 1, "PENDING")
            size = Path(farm.files.run(index, "stdout.log")).stat().st_size
            farm.attempt(index, 2, "RUNNING", host="elsewhere", stdout_from=size, resumed_from=index % 2 or None)
        farm.log(index, step - 2 if attempt == 2 else step, attempt=attempt, loss=step / (index + 1), acc=math.nan)
        farm.write(index, "stdout.log", f"step {step}: f1={step}\nstray: {index}\n", append=True)
        farm.write(index, "files/log.csv", "epoch,ppl\n" if step == 0 else f"{step},{index}\n", append=True)
        farm.write(index, "files/results.json", json.dumps({"final": step}))


def finish(farm: Any, n_runs: int) -> None:
    for index in range(n_runs):
        size = json.loads(Path(farm.files.attempt(index, 2)).read_text())["stdout_from"]
        state = "FAILED" if index % 3 == 0 else "COMPLETED"
        farm.attempt(index, 2, state, stdout_from=size, resumed_from=index % 2 or None)


def test_killed_again_and_again_while_runs_go_on_it_ends_equal_to_a_fresh_harvest(
    make_farm: Any, content: Content
) -> None:
    farm, killed = make_farm(n_runs=12), 0
    for step in range(20):
        grow(farm, step, 12)
        # each time at another moment of its work
        killed += start_harvest(farm, "once", str(23 * step)).wait(200) == -signal.SIGKILL
    finish(farm, 12)
    print(f"killed {killed} times")
    assert killed >= 5
    assert start_harvest(farm, "once").wait(200) == 0
    with Store(farm.root / "ems.db") as store:
        assert content(store) == fresh(farm, content)
        assert store.query("PRAGMA integrity_check") == [("ok",)]
        assert store.counts() == {"7f3a9c21": {State.COMPLETED: 8, State.FAILED: 4}}


def test_a_harvest_that_was_overtaken_writes_nothing_old(
    store: Store, farm: Any, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm.attempt(0, state="RUNNING", host="elsewhere")
    farm.log(0, 0, loss=1)
    read, calls = Intake.read, []

    def read_slowly(*args: Any) -> bool:
        result = read(*args)
        if not calls:  # meanwhile the run ends, and another harvest brings that in
            calls.append(1)
            farm.log(0, 1, loss=2)
            farm.attempt(0)
            with Store(store.path) as other:
                reap(other, farm)
        return result

    monkeypatch.setattr(Intake, "read", read_slowly)
    assert reap(store, farm).new_points == 0
    assert content(store) == fresh(farm, content)


def test_an_experiment_whose_runs_cannot_be_read_is_a_problem_and_stops_no_other(store: Store, farm: Any) -> None:
    broken = farm.root / "experiments" / "0badc0de"
    broken.mkdir()
    (broken / "spec.json").write_text(Path(farm.files.spec).read_text().replace("7f3a9c21", "0badc0de"))
    farm.attempt(0)
    found = reap(store, farm)
    assert found.adopted == ("7f3a9c21",)
    assert found.experiments[0].new_completed == 1
    assert "experiments/0badc0de cannot be read: " in found.problems[0]
    assert "runs.jsonl" in found.problems[0]


@pytest.mark.parametrize("ends", [False, True])
def test_a_look_at_the_states_meanwhile_costs_no_points(
    store: Store, farm: Any, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    farm.attempt(0, state="RUNNING", host="elsewhere")
    farm.log(0, 0, loss=1)
    read, calls = Intake.read, []

    def read_slowly(*args: Any) -> bool:
        result = read(*args)
        if not calls:  # as `ems status --watch` does in another terminal
            calls.append(1)
            if ends:
                farm.attempt(0)
            with Store(store.path) as other:
                refresh_states(other, farm.root, gone)
        return result

    monkeypatch.setattr(Intake, "read", read_slowly)
    found = reap(store, farm)
    assert (found.new_points, found.experiments[0].new_completed) == (1, int(ends))
    assert last(store) == {"loss": 1}


def test_a_look_without_news_writes_nothing(store: Store, farm: Any) -> None:
    farm.attempt(0, state="RUNNING", host="elsewhere")
    farm.attempt(1, state="PENDING", reason="time limit")
    adopt(store, farm.root)
    refresh_states(store, farm.root, gone)
    before = store.query("PRAGMA data_version"), store.query("SELECT version FROM runs")
    with Store(store.path) as other:
        refresh_states(other, farm.root, gone)
    assert (store.query("PRAGMA data_version"), store.query("SELECT version FROM runs")) == before


def test_several_harvests_at_once_while_runs_go_on(make_farm: Any, content: Content) -> None:
    farm = make_farm(n_runs=12)
    for step in range(20):
        grow(farm, step, 12)
        if step in (3, 12):
            early = [start_harvest(farm, "once") for _ in range(2)]
        if step in (7, 16):
            assert [process.wait(200) for process in early] == [0, 0]
    finish(farm, 12)
    late = [start_harvest(farm) for _ in range(3)]
    assert [process.wait(200) for process in late] == [0, 0, 0]
    with Store(farm.root / "ems.db") as store:
        assert content(store) == fresh(farm, content)
        assert store.query("SELECT count(*) FROM runs WHERE NOT settled") == [(0,)]


def test_a_disk_that_is_full_loses_nothing(make_farm: Any, content: Content, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("600k")
    farm = make_farm(n_runs=3)
    for index in range(3):
        farm.attempt(index)
        for step in range(4000):
            farm.log(index, step, loss=step, acc=step)
    with Store(disk / "ems.db") as store:
        with pytest.raises(Exception, match=re.escape(f"the disk of the store {disk / 'ems.db'} is full")):
            reap(store, farm)
        assert store.query("SELECT count(*) FROM points")[0][0] < 24_000
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        reap(store, farm)
        assert content(store) == fresh(farm, content)
