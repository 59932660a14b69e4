"""Experiments on another machine, typed on this one: the real command, a real sshd, real runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from ems import registry, snapshot
from ems.errors import ConnectionFailedError, SnapshotError, TargetError, UsageError
from ems.model import Experiment
from ems.node.records import ExperimentFiles
from ems.remote.client import Agent
from ems.remote.executor import RemoteExecutor
from ems.remote.push import push

Ems = Callable[..., CompletedProcess[str]]

TRAIN = """\
import argparse
import ems

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
lr = parser.parse_args().lr
for step in range(3):
    ems.log(step=step, loss=lr * step)
print("lr is", lr)
"""


@pytest.fixture
def train(project: Path) -> Path:
    (project / "train.py").write_text(TRAIN)
    return project


def test_a_sweep_runs_there_and_comes_back(far: Any, train: Path, ems: Ems) -> None:
    done = ems("parrun", "train.py", "--set", "lr=0.1,0.2", "--on", "far", "--wait")
    assert "on far" in done.stdout
    assert "you may close the laptop" in done.stdout
    [there] = (far.root / "experiments").iterdir()
    assert json.loads((there / "spec.json").read_text())["target"] == "far"
    assert (there / "runs" / "1" / "stdout.log").read_text() == "lr is 0.2\n"
    assert json.loads((there / "harvested.json").read_text()) == {"runs": [[0, 2, 1]]}, "it may delete itself now"
    [shown] = json.loads(ems("status", "last", "--json").stdout)
    assert (shown["completed"], shown["target"]) == (2, "far")
    report = json.loads(ems("report", "--json").stdout)
    assert report


# ---------------------------------------------------------------------------------------------------- the code


def sizes(repository: Path) -> int:
    return sum(path.stat().st_size for path in (repository / "objects").rglob("*") if path.is_file())


def freeze(project: Path, mirror: Path) -> str:
    return snapshot.take(project, mirror / "snapshots.git").id


@pytest.fixture
def executor(far: Any, tmp_path: Path) -> Iterator[RemoteExecutor]:
    """The executor of ``far``, with a mirror of its own."""
    agent = Agent(far.target)
    yield RemoteExecutor(agent, tmp_path / "mirror")
    agent.close()


def test_only_what_is_missing_there_travels(far: Any, train: Path, executor: RemoteExecutor) -> None:
    (train / "weights.bin").write_bytes(os.urandom(2_000_000))
    first = freeze(train, executor.mirror)
    executor.push(first)
    there = far.root / "snapshots.git"
    assert sizes(there) > 2_000_000
    before = sizes(there)
    (train / "train.py").write_text(TRAIN + "# changed\n")
    second = freeze(train, executor.mirror)
    executor.push(second)
    assert sizes(there) - before < 20_000
    for each in (first, second):
        assert snapshot.paths(there, each) == ["train.py", "weights.bin"]
    executor.push(second)
    assert not executor.agent.call("lacks", snapshots=[first, second])


def test_a_push_that_breaks_is_done_again(far: Any, train: Path, executor: RemoteExecutor) -> None:
    code = freeze(train, executor.mirror)
    assert executor.agent.call("lacks", snapshots=[code]) == [code]
    executor.agent.close()
    far.stop()
    with pytest.raises(ConnectionFailedError, match="did not reach far"):
        push(executor.mirror / "snapshots.git", far.target, code)
    far.start()
    executor.push(code)
    assert snapshot.paths(far.root / "snapshots.git", code) == ["train.py"]


def test_the_code_of_somebody_who_does_not_have_it_is_an_error(train: Path, executor: RemoteExecutor) -> None:
    freeze(train, executor.mirror)
    with pytest.raises(SnapshotError, match="neither here nor there"):
        executor.push("5" * 40)


# ------------------------------------------------------------------------------------- what breaks in the middle

_LIMIT_S = 120


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def attempts(far: Any) -> list[str]:
    return sorted(
        f"{path.parents[1].name}/{path.stem} {json.loads(path.read_text())['state']}"
        for path in far.root.glob("experiments/*/runs/*/attempts/*.json")
    )


@pytest.mark.parametrize("how", ["killed", "broken"])
def test_a_submission_that_breaks_at_any_frame_is_neither_lost_nor_doubled(
    how: str, far: Any, train: Path, ems: Ems, broken_at: Any
) -> None:
    frames, n_known, is_over = 0, 0, False
    while not is_over:
        shutil.rmtree(train / ".ems", ignore_errors=True)
        far.root = far.folder / "home" / f"ems-{how}-{frames}"  # workers of the one before may still be about to end
        registry.save(replace(far.target, root=str(far.root)))
        words = ["parrun", "train.py", "--set", "lr=0.1,0.2", "--on", "far", "--again"]
        done = subprocess.run(broken_at(how, frames, *words), cwd=train, capture_output=True, text=True)
        is_over = done.returncode == 0
        assert is_over or done.returncode == (-signal.SIGKILL if how == "killed" else 1), done.stderr
        assert "Traceback" not in done.stderr
        is_known = json.loads(ems("list", "--json", code=None).stdout or "[]")
        if is_known:
            ems("status", code=None)  # as any later command does, it carries on
            wait_until(lambda: attempts(far) == ["0/1 COMPLETED", "1/1 COMPLETED"], f"{frames}: {attempts(far)}")
            [spec] = far.root.glob("experiments/*/spec.json")
            assert json.loads(spec.read_text())["id"] == is_known[0]["experiment"]
            assert len(list(far.root.glob("experiments/*/chunks/*.job"))) == 1
        else:
            assert not list(far.root.glob("experiments/*"))
        n_known += bool(is_known)
        frames += 1 if how == "killed" and is_known else 3  # before that the other side is only asked
    assert n_known > (5 if how == "killed" else 2)


@pytest.mark.parametrize("frames", [7, 11, 12, 13, 14, 15])
def test_a_rerun_that_breaks_is_neither_lost_nor_doubled(
    far: Any, train: Path, ems: Ems, frames: int, broken_at: Any
) -> None:
    ems("parrun", "train.py", "--set", "lr=0.1", "--on", "far", "--wait")
    words = broken_at("killed", frames, "rerun", "last", "--all")
    done = subprocess.run(words, cwd=train, capture_output=True, text=True)
    queued = list((train / ".ems" / "remote").glob("far/experiments/*/chunks/2.json"))
    if not queued:
        assert done.returncode == -signal.SIGKILL
        ems("rerun", "last", "--all")
    ems("status")
    wait_until(lambda: attempts(far) == ["0/1 COMPLETED", "0/2 COMPLETED"], f"{frames}: {attempts(far)}")
    ems("status")
    assert attempts(far) == ["0/1 COMPLETED", "0/2 COMPLETED"]
    assert len(list(far.root.glob("experiments/*/chunks/*.job"))) == 2


# ------------------------------------------------------------------------------------------------ every command

GATED = """\
import argparse, os, pathlib, time
import ems

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
lr = parser.parse_args().lr
while not (pathlib.Path(os.environ["EMS_ROOT"]) / "gate").exists():
    time.sleep(0.02)
ems.log(step=0, loss=lr)
if lr > 0.3 and os.environ["EMS_ATTEMPT"] == "1":
    raise SystemExit("too large")
"""


def counts(ems: Ems, *address: str) -> dict[str, int]:
    [shown] = json.loads(ems("status", *(address or ("last",)), "--json").stdout)
    return {name: shown[name] for name in ("pending", "running", "completed", "failed", "cancelled") if shown[name]}


def test_held_released_cancelled_rerun_and_removed_from_the_laptop(far: Any, project: Path, ems: Ems) -> None:
    (project / "train.py").write_text(GATED)
    done = ems("parrun", "train.py", "--set", "lr=0.1,0.2,0.4", "--on", "far", "--workers", "1", "--json")
    exp_id = json.loads(done.stdout)["experiment"]
    wait_until(lambda: counts(ems) == {"pending": 2, "running": 1}, "it does not start")
    assert "held" in ems("hold", "last").stdout
    assert "held" in ems("status").stdout
    assert "released" in ems("release", "last").stdout
    assert "held" not in ems("status").stdout
    assert "cancelled train" in ems("cancel", f"{exp_id}/1").stdout
    wait_until(lambda: counts(ems) == {"pending": 1, "running": 1, "cancelled": 1}, "run 1 is not cancelled")
    (far.root / "gate").touch()
    wait_until(lambda: counts(ems) == {"completed": 1, "failed": 1, "cancelled": 1}, "it does not end")
    assert "2 runs again   on far" in ems("rerun", "last", "--failed").stdout
    wait_until(lambda: counts(ems) == {"completed": 3}, "the rerun does not end")
    assert attempts(far) == [
        "0/1 COMPLETED",
        "1/1 CANCELLED",
        "1/2 COMPLETED",
        "2/1 FAILED",
        "2/2 COMPLETED",
    ]
    there, here = far.root / "experiments" / exp_id, project / ".ems" / "remote" / "far" / "experiments" / exp_id
    assert there.exists()
    assert here.exists()
    assert "removed train" in ems("rm", exp_id, "--yes").stdout
    assert not there.exists()
    assert not here.exists()
    assert counts(ems, exp_id) == {"completed": 3}


def test_cancelled_as_a_whole_while_it_runs(far: Any, project: Path, ems: Ems) -> None:
    (project / "train.py").write_text(GATED)
    ems("parrun", "train.py", "--set", "lr=0.1,0.2", "--on", "far", "--grace", "0")
    wait_until(lambda: "running" in counts(ems), "it does not start")
    ems("cancel", "last")
    wait_until(lambda: counts(ems) == {"cancelled": 2}, "it does not end")
    again = ems("cancel", "last").stdout
    assert "has ended already" in again


@pytest.fixture
def unsent(train: Path, ems: Ems, executor: RemoteExecutor) -> tuple[ExperimentFiles, Experiment]:
    """Two runs as the laptop has them before the other side hears of them."""
    done = ems("parrun", "train.py", "--set", "lr=0.1,0.2", "--on", "here", "--wait", "--json")
    files = ExperimentFiles(executor.mirror, json.loads(done.stdout)["experiment"])
    shutil.copytree(train / ".ems" / "snapshots.git", executor.mirror / "snapshots.git")
    shutil.copytree(train / ".ems" / "experiments" / files.id, files.dir)
    shutil.rmtree(Path(files.dir, "runs"))
    Path(files.chunk(1, "job")).unlink()
    return files, Experiment.load(json.loads(Path(files.spec).read_text()))


def test_what_is_being_removed_is_not_sent_anew(
    far: Any, executor: RemoteExecutor, unsent: tuple[ExperimentFiles, Experiment]
) -> None:
    files, experiment = unsent
    far.stop()
    with pytest.raises(ConnectionFailedError):
        executor.remove(files)
    far.start()
    assert executor.submit(experiment, files).submitted == []
    assert not list(far.root.glob("experiments/*"))
    executor.remove(files)
    assert not Path(files.dir).exists()


def test_what_is_held_or_cancelled_before_it_was_sent_does_not_start(
    far: Any, executor: RemoteExecutor, unsent: tuple[ExperimentFiles, Experiment]
) -> None:
    files, experiment = unsent
    executor.hold_runs(files)
    assert executor.submit(experiment, files).submitted == []
    executor.cancel_runs(files, [0])
    executor.hold_runs(files, release=True)
    executor.submit(experiment, files)
    wait_until(lambda: attempts(far) == ["0/1 CANCELLED", "1/1 COMPLETED"], "the other one does not end")


def test_where_another_laptop_queued_runs_first_its_runs_count_and_this_one_goes_on(
    far: Any, train: Path, ems: Ems
) -> None:
    ems("parrun", "train.py", "--set", "lr=0.1,0.2", "--on", "far", "--wait")
    [there] = far.root.glob("experiments/*/chunks")
    [here] = (train / ".ems" / "remote" / "far").glob("experiments/*/chunks")
    first = json.loads((here / "1.json").read_text())
    (there / "2.json").write_text(json.dumps({**first, "chunk": 2, "start": 1, "stop": 2, "tasks": 1}))
    for number in (2, 3):
        (here / f"{number}.json").write_text(json.dumps({**first, "chunk": number}))
    assert "queued by another laptop" in (shown := ems("status", "last", code=None)).stdout + shown.stderr
    assert json.loads((here / "2.json").read_text()) == json.loads((there / "2.json").read_text())
    assert not (here / "3.json").exists()
    ems("status", "last")
    wait_until(lambda: attempts(far) == ["0/1 COMPLETED", "1/1 COMPLETED", "1/2 COMPLETED"], str(attempts(far)))
    assert "2 runs again" in ems("rerun", "last", "--all").stdout


def test_a_run_is_reproduced_there(far: Any, train: Path, ems: Ems) -> None:
    ems("parrun", "train.py", "--set", "lr=0.1,0.2", "--on", "far", "--wait")
    done = ems("reproduce", "last/1")
    assert "3 points of loss are the same to the last bit" in done.stdout
    assert "nothing to do" in ems("parrun", "train.py", "--set", "lr=0.1,0.2", "--on", "far").stdout


def test_a_dry_run_shows_what_would_run_there_and_leaves_nothing(far: Any, train: Path, ems: Ems) -> None:
    done = ems("parrun", "train.py", "--set", "lr=0.1,0.2", "--on", "far", "--dry-run")
    assert f"{far.root}/lib/" in done.stdout
    assert "1 pool of workers: 2 tasks" in done.stdout
    assert not list((far.root / "experiments").iterdir())
    assert not list((train / ".ems" / "remote" / "far" / "experiments").glob("*"))


def test_doctor_looks_there(far: Any, train: Path, ems: Ems) -> None:
    done = ems("doctor", "--on", "far")
    assert f"on far, root {far.root}" in done.stdout
    assert "ssh" in done.stdout
    far.stop()
    assert "cannot be reached" in ems("doctor", "--on", "far", code=1).stderr
    far.start()


def test_the_current_cluster_is_where_experiments_go(far: Any, train: Path, ems: Ems) -> None:
    registry.save(replace(far.target, resources={"cpus": 1}))
    registry.use("far")
    settings = {key: each["value"] for key, each in json.loads(ems("config", "--json").stdout).items()}
    assert (settings["on"], settings["resources.cpus"]) == ("far", 1)
    assert "on far" in ems("parrun", "train.py", "--set", "lr=0.1", "--wait").stdout
    (train / "ems.yaml").write_text("on: here\n")
    assert "on here" in ems("parrun", "train.py", "--set", "lr=0.1", "--again", "--wait").stdout
    (train / "ems.yaml").write_text("targets:\n  far:\n    root: /elsewhere\n")
    assert "`root` cannot be set here" in ems("parrun", "train.py", "--on", "far", code=2).stderr


def test_what_is_not_there_is_said_before_anything_travels(far: Any, train: Path, ems: Ems) -> None:
    base = ["parrun", "train.py", "--set", "lr=0.1", "--on", "far"]
    assert "there is no Python `/no/python`" in ems(*base, "--python", "/no/python", code=1).stderr
    assert "this machine has none" in ems(*base, "--gres", "gpu:1", code=1).stderr
    (train / "data").mkdir()
    assert "`data:` names data, which far does not see" in ems(*base, "--data", "data", code=2).stderr
    assert not list((far.root / "experiments").iterdir())


def test_an_environment_is_built_there_once(far: Any, train: Path, ems: Ems) -> None:
    (train / "requirements.txt").write_text("")
    ems("parrun", "train.py", "--set", "lr=0.1", "--on", "far", "--env", "auto", "--wait")
    [spec] = far.root.glob("experiments/*/spec.json")
    assert json.loads(spec.read_text())["python"].startswith(f"{far.root}/envs/")


def test_a_laptop_without_the_machine_shows_what_it_knew(far: Any, train: Path, ems: Ems) -> None:
    ems("parrun", "train.py", "--set", "lr=0.1", "--on", "far", "--wait")
    exp_id = json.loads(ems("list", "--json").stdout)[0]["experiment"]
    before = ems("report", exp_id, "--json").stdout
    (train / "train.py").write_text(GATED)
    ems("parrun", "train.py", "--set", "lr=0.1,0.2", "--on", "far")
    far.stop()
    assert ems("report", exp_id, "--json").stdout == before
    shown = ems("status", "last")
    assert "cannot be reached" in shown.stdout + shown.stderr
    far.start()
    (far.root / "gate").touch()
    wait_until(lambda: counts(ems) == {"completed": 2}, "it went on without us")


# ----------------------------------------------------------------------------------------------- hostile words

NASTY = [
    "$(touch pwned)",
    "`touch pwned`",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "a\nb; touch pwned",
    "-rf",
    "--help",
    "| touch pwned",
    "&& touch pwned &&",
    "*",
    "~",
    "é\u2028\U0001f600",
    "\\",
    "%s %j",
]
ECHO = """\
import json, os, sys
import ems
ems.log(step=0, ok=1)
print(json.dumps([sys.argv[1:], json.loads(os.environ["EMS_PARAMS"])]))
"""


def test_params_and_arguments_arrive_as_they_were_typed_and_execute_nothing(far: Any, project: Path, ems: Ems) -> None:
    (project / "train.py").write_text(ECHO)
    sweep = {"method": "grid", "parameters": {"x": {"values": NASTY}}}
    (project / "sweep.yaml").write_text(json.dumps(sweep, ensure_ascii=False))
    ems("parrun", "train.py", "--sweep", "sweep.yaml", "--on", "far", "--wait", "--pass-as", "none", "--", *NASTY)
    for index, word in enumerate(NASTY):
        [path] = far.root.glob(f"experiments/*/runs/{index}/stdout.log")
        assert json.loads(path.read_text()) == [NASTY, {"x": word}]
    assert not [*far.folder.rglob("pwned"), *project.rglob("pwned")]


@pytest.mark.parametrize("name", ["$(touch pwned).py", "it's;touch pwned.py", "-rf.py", "a b\n.py", "`touch pwned`.py"])
def test_files_of_any_name_reach_the_other_side(far: Any, project: Path, ems: Ems, name: str) -> None:
    (project / name).write_text(ECHO)
    (project / "$(touch pwned)").mkdir()
    (project / "$(touch pwned)" / "`touch pwned`\n").write_text("content")
    ems("run", f"./{name}", "--on", "far", "--wait", "--name", "$(touch${IFS}pwned)", "--message", "'; touch pwned")
    assert json.loads(ems("logs", "last").stdout) == [[], {}]
    [spec] = far.root.glob("experiments/*/spec.json")
    code = json.loads(spec.read_text())["snapshot"]
    assert (far.root / "code" / code / "$(touch pwned)" / "`touch pwned`\n").read_text() == "content"
    assert not [path for path in (*far.folder.rglob("pwned"), *project.rglob("pwned")) if path.name == "pwned"]


@pytest.mark.parametrize("place", ["it's $(touch pwned)", "-rf", "a\nb", "ü ; touch pwned", "50%25 ?#"])
def test_a_root_of_any_name(far: Any, train: Path, ems: Ems, place: str) -> None:
    root = far.folder / "home" / place
    registry.save(replace(far.target, root=str(root)))
    ems("parrun", "train.py", "--set", "lr=0.1,0.2", "--on", "far", "--wait")
    assert len(list(root.glob("experiments/*/runs/*/attempts/1.json"))) == 2
    assert counts(ems) == {"completed": 2}
    assert not [*far.folder.rglob("pwned"), *train.rglob("pwned")]


@pytest.mark.parametrize(
    "destination", ["-oProxyCommand=touch pwned", "$(touch pwned)@127.0.0.1", "127.0.0.1;touch pwned"]
)
def test_a_destination_is_a_name_and_nothing_else(far: Any, train: Path, ems: Ems, destination: str) -> None:
    registry.save(replace(far.target, host=far.host(destination=destination)))
    done = ems("parrun", "train.py", "--set", "lr=0.1", "--on", "far", code=1)
    assert "error:" in done.stderr
    assert not [*far.folder.rglob("pwned"), *train.rglob("pwned")]


def test_the_other_side_takes_no_path_for_an_id(executor: RemoteExecutor) -> None:
    for do in ("submit", "cancel", "hold", "remove", "take_in"):
        for exp_id in ("../../etc", "7f3a9c2", "$(touch p)", "", "7f3a9c21/..", "-rf", "7f3a9c21\n"):
            with pytest.raises(UsageError, match="is not the id of an experiment"):
                executor.agent.call(do, zlib.compress(b""), id=exp_id, files=[], indices=None, release=False, chunks=[])


def test_the_other_side_takes_no_file_that_an_experiment_has_not(far: Any, executor: RemoteExecutor) -> None:
    with pytest.raises(TargetError, match="is no file of an experiment"):
        executor.agent.call("take_in", zlib.compress(b"x"), id="7f3a9c21", files=[["../../pwned", 1]])
    assert not list(far.folder.rglob("pwned"))


def test_of_a_cluster_that_is_gone_everything_that_came_back_can_be_seen(far: Any, train: Path, ems: Ems) -> None:
    done = ems("parrun", "train.py", "--set", "lr=0.1,0.2", "--on", "far", "--wait", "--json")
    exp_id = json.loads(done.stdout)["experiment"]
    before = ems("report", "--json").stdout
    (train / "train.py").write_text(GATED)
    ems("parrun", "train.py", "--set", "lr=0.1", "--on", "far")
    registry.forget("far")
    assert "the cluster far is gone" in ems("status", "last").stdout
    assert ems("report", exp_id, "--json").stdout == before
    assert exp_id in ems("show", exp_id).stdout
    assert exp_id in ems("list").stdout
    assert ems("diff", exp_id, "last", "--stat").stdout
    ems("checkout", exp_id, str(train / "then"))
    assert (train / "then" / "train.py").read_text() == TRAIN
    for words in (
        ("parrun", "train.py", "--on", "far", "--set", "lr=1"),
        ("cancel", "last"),
        ("rerun", exp_id, "--all"),
    ):
        done = ems(*words, code=1)
        assert "the cluster far is gone" in done.stderr, words
        assert "`ems cluster start far` makes the cluster anew, empty" in done.stderr
        assert "`ems cluster connect far user@login`" in done.stderr
    assert "removed train" in ems("rm", "last", "--yes").stdout
    registry.save(far.target)
    (far.root / "gate").touch()


def test_a_folder_that_git_ignores_is_the_data_set_of_its_name_there(far: Any, project: Path, ems: Ems) -> None:
    (project / ".gitignore").write_text("corpus/\n")
    (project / "corpus").mkdir()
    (project / "corpus" / "words.txt").write_text("one two")
    (project / "train.py").write_text("print(open('corpus/words.txt').read())\n")
    said = ems("run", "train.py", "--on", "far", "--dry-run").stderr
    assert "warning: git ignores corpus" in said
    assert "ems data push corpus corpus --on far" in said
    ems("data", "push", "corpus", "corpus", "--on", "far")
    assert "corpus" not in ems("run", "train.py", "--on", "far", "--wait").stderr
    assert ems("logs", "last").stdout == "one two\n"
