"""The commands as a user types them, on this machine: files, steering, rerun, reproduce, exit statuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from ems.model import Run
from ems.store import Store

Ems = Callable[..., "subprocess.CompletedProcess[str]"]

TRAIN = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--seed", type=int)
args = parser.parse_args()
print("acc:", 1 - args.lr)
with open("out.csv", "w") as file:
    file.write("epoch,loss\\n0,%s\\n1,%s\\n" % (args.lr, args.lr / 2))
if args.lr > 0.5:
    raise ValueError("diverged at step %d" % args.seed)
"""
# waits for a file that the test makes, as long as a test may take: nothing outlives one that fails
GATED = """
import pathlib, time
print("started", flush=True)
for _ in range(3000):
    if pathlib.Path({gate!r}).exists():
        break
    time.sleep(0.1)
print("acc: 0.5", flush=True)
"""


@pytest.fixture
def train(project: Path) -> Path:
    (project / "train.py").write_text(TRAIN)
    return project / "train.py"


@pytest.fixture
def gate(project: Path, tmp_path: Path) -> Iterator[Path]:
    """A script whose runs wait until the gate is there."""
    path = tmp_path / "gate"
    (project / "gated.py").write_text(GATED.format(gate=str(path)))
    yield path
    path.touch()


def parsed(result: subprocess.CompletedProcess[str]) -> object:
    return json.loads(result.stdout)


def wait_for(condition: Callable[[], bool], limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def counts(ems: Ems, experiment: str = "last") -> dict[str, int]:
    (row,) = json.loads(ems("status", experiment, "--json").stdout)
    return {state: row[state] for state in ("pending", "running", "completed", "failed", "cancelled") if row[state]}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished and harvested experiment of 2 x 2 runs, of which two failed."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    sweep = ["parrun", "train.py", "--set", "lr=0.1,0.9", "--set", "seed=0..1", "--on", "here", "--wait"]
    done = subprocess.run(
        [sys.executable, "-m", "ems", *sweep], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    return folder


@pytest.fixture
def swept(finished: Path, project: Path, ems: Ems) -> str:
    """The id of that experiment, in a copy of that project."""
    shutil.copytree(finished, project, symlinks=True, dirs_exist_ok=True)
    (folder,) = (project / ".ems" / "experiments").iterdir()
    return folder.name


def test_parrun_says_what_where_and_what_next(ems: Ems, train: Path) -> None:
    done = ems("parrun", "train.py", "--set", "lr=0.1,0.2", "--on", "here", "-m", "why", "--tag", "a")
    first, second = done.stdout.splitlines()
    assert first.startswith("experiment ")
    assert "  train  2 runs = lr (2)   code " in first
    assert first.endswith("   on here")
    assert second.startswith("started in ")
    assert done.stderr.startswith("next: ems status")
    wait_for(lambda: counts(ems) == {"completed": 2})


def test_wait_harvests_and_fails_where_a_run_failed(ems: Ems, train: Path) -> None:
    bad = ems("parrun", "train.py", "--set", "lr=0.1,0.9", "--set", "seed=3", "--on", "here", "--wait", code=1)
    assert "1 completed (+1), 1 failed (+1)" in bad.stdout
    assert "1 failed: ValueError: diverged at step 3 (train.py:11)" in bad.stdout
    assert "rerun: ems rerun" in bad.stdout
    good = ems("run", "train.py", "--set", "lr=0.3", "--set", "seed=1", "--on", "here", "--wait")
    assert "1 completed (+1)" in good.stdout


def test_what_completed_is_skipped_with_a_count(ems: Ems, swept: str, train: Path) -> None:
    again = ems("parrun", "train.py", "--set", "lr=0.1", "--set", "seed=0..1", "--on", "here")
    assert "nothing to do: all 2 runs completed before" in again.stdout
    assert "--again" in again.stderr
    forced = ems("parrun", "train.py", "--set", "lr=0.1", "--set", "seed=0..1", "--on", "here", "--again", "--wait")
    assert "2 completed (+2)" in forced.stdout


def test_dry_run_shows_everything_and_submits_nothing(ems: Ems, train: Path) -> None:
    shown = ems("parrun", "train.py", "--set", "lr=0.1,0.9", "--on", "here", "--dry-run", "--", "--seed", "4").stdout
    assert "dry run:  train  2 runs = lr (2)" in shown
    assert "worker.py" in shown
    assert "GPU-hours at most: 0" in shown
    facts = parsed(ems("parrun", "train.py", "--set", "lr=0.1,0.9", "--on", "here", "--dry-run", "--json"))
    assert [point["params"] for point in facts["points"]] == [{"lr": 0.1}, {"lr": 0.9}]
    assert parsed(ems("list", "--json")) == []


def test_files_of_runs(ems: Ems, swept: str, project: Path) -> None:
    runs = parsed(ems("ls", swept, "--json"))
    assert [(run["index"], run["state"]) for run in runs] == [
        (0, "COMPLETED"),
        (1, "COMPLETED"),
        (2, "FAILED"),
        (3, "FAILED"),
    ]
    files = [file["path"] for file in parsed(ems("ls", f"{swept}/0", "--json"))]
    assert files == ["stdout.log", "out.csv"], "links to the project's files are not the run's"
    assert ems("cat", f"{swept}/0/out.csv").stdout == "epoch,loss\n0,0.1\n1,0.05\n"
    assert ems("logs", f"{swept}/2").stdout == "acc: 0.09999999999999998\n"
    assert "ValueError: diverged" in ems("logs", f"{swept}/2", "--err", "-n", "1").stdout
    ems("get", f"{swept}/0/out.csv", "copy.csv")
    assert (project / "copy.csv").read_text().startswith("epoch,loss")
    refused = ems("get", f"{swept}/0/out.csv", "copy.csv", code=2)
    assert "exists already" in refused.stderr
    ems("get", f"{swept}/0")
    assert (project / "train-0" / "out.csv").exists()


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["cat", "last/0/nope.txt"], 1, "last/0/nope.txt is not there"),
        (["cat", "last/0/../../spec.json"], 1, "is not there"),
        (["cat", "last/9/out.csv"], 1, "has no run 9"),
        (["logs", "last"], 2, "names an experiment of 4 runs, not a run"),
        (["show", "nosuch"], 1, "there is no experiment `nosuch`"),
        (["rerun", "last"], 2, "which runs?"),
        (["rerun", "last/0", "--failed"], 2, "says which run already"),
        (["rerun", "last", "--missing"], 1, "has no missing runs"),
        (["reduce", "last", "x.bin"], 2, "its format is not known"),
        (["reduce", "last", "none.csv"], 1, "no run of train"),
        (["rm", "last"], 2, "nobody is there to confirm"),
        (["parrun", "tran.py"], 2, "there is no script tran.py"),
        (["parrun", "."], 2, ". is a folder"),
    ],
)
def test_what_cannot_be_is_said(ems: Ems, swept: str, argv: list[str], code: int, message: str) -> None:
    said = ems(*argv, code=code)
    assert said.stdout == ""
    assert message in said.stderr.splitlines()[0]
    assert "\nhint: " in said.stderr


def test_gather_and_reduce(ems: Ems, swept: str, project: Path) -> None:
    ems("gather", swept, "out.csv", "all")
    assert sorted(path.name for path in (project / "all").iterdir()) == [f"{i}-out.csv" for i in range(4)]
    rows = ems("reduce", swept, "out.csv").stdout.splitlines()
    assert rows[:3] == ["run,lr,seed,epoch,loss", "0,0.1,0,0,0.1", "0,0.1,0,1,0.05"]
    assert len(rows) == 1 + 4 * 2
    said = ems("reduce", swept, "out.csv", "-o", "all.json").stderr
    assert "wrote 8 rows of 4 runs to all.json" in said
    assert json.loads((project / "all.json").read_text())[0]["lr"] == 0.1


def test_rerun_is_the_same_run_and_the_next_attempt(ems: Ems, swept: str) -> None:
    ems("rerun", swept, "--failed", "--wait", code=1)
    facts = parsed(ems("show", f"{swept}/2", "--json"))
    assert [(a["attempt"], a["state"]) for a in facts["attempts"]] == [(1, "FAILED"), (2, "FAILED")]
    assert facts["error"]["type"] == "ValueError"
    assert ems("logs", f"{swept}/2", "--attempt", "2").stdout == "acc: 0.09999999999999998\n"
    done = parsed(ems("rerun", f"{swept}/0", f"{swept}/1", "--json"))
    assert done["runs"] == [0, 1]
    wait_for(lambda: counts(ems) == {"completed": 2, "failed": 2})
    assert len(parsed(ems("list", "--json"))) == 1


def test_two_reruns_at_once_queue_each_run_once(ems: Ems, gate: Path) -> None:
    gate.touch()
    ems("parrun", "gated.py", "--set", "x=0..3", "--on", "here", "--pass-as", "none", "--wait")
    gate.unlink()
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda which: ems("rerun", *which, code=None), [["last", "--all"], ["last/1", "last/2"]]))
    gate.touch()
    assert sorted(each.returncode for each in said) == [0, 2], said
    wait_for(lambda: counts(ems) == {"completed": 4})
    attempts = [len(parsed(ems("show", f"last/{index}", "--json"))["attempts"]) for index in range(4)]
    assert attempts in ([2, 2, 2, 2], [1, 2, 2, 1])


def test_reproduce_says_equal(ems: Ems, swept: str) -> None:
    said = ems("reproduce", f"{swept}/1").stdout
    assert f"equals {swept}/1: 3 points of acc, loss are the same to the last bit" in said


def test_what_is_around_a_reproduction_is_that_of_now(ems: Ems, swept: str) -> None:
    ems("reproduce", f"{swept}/1", OMP_NUM_THREADS="3")
    facts = parsed(ems("diff", swept, "last", "--json"))
    assert facts["environment"] == {"$OMP_NUM_THREADS": ["-", "3"]}
    assert facts["code"] == []


def test_reproduce_says_by_how_much_not(ems: Ems, project: Path) -> None:
    (project / "chance.py").write_text("import os; print('acc:', os.getpid())")
    ems("run", "chance.py", "--on", "here", "--wait")
    said = ems("reproduce", "last", code=1).stdout
    assert "differs from" in said
    assert "largest difference" in said


def test_diff_and_checkout(ems: Ems, swept: str, train: Path, tmp_path: Path) -> None:
    train.write_text(TRAIN.replace("1 - args.lr", "2 - args.lr"))
    ems("run", "train.py", "--set", "lr=0.1", "--on", "here", "--wait")
    facts = parsed(ems("diff", swept, "last", "--json"))
    assert facts["code"] == [{"path": "train.py", "kind": "modified"}]
    assert facts["params"] == {"lr": ["0.1,0.9", "0.1"], "seed": ["0,1", "-"]}
    assert facts["environment"] == {}
    shown = ems("diff", swept, "last").stdout
    assert '+print("acc:", 2 - args.lr)' in shown
    ems("checkout", swept, str(tmp_path / "code"))
    assert (tmp_path / "code" / "train.py").read_text() == TRAIN


def test_rm_keeps_the_record_and_purge_does_not(ems: Ems, swept: str, project: Path) -> None:
    assert "files removed" not in ems("list").stdout
    ems("rm", swept, "--yes")
    assert not (project / ".ems" / "experiments" / swept).exists()
    assert "files removed" in ems("list").stdout
    assert len(json.loads(ems("report", swept, "--format", "json").stdout)) == 4
    assert "rerun" not in ems("status", swept).stderr
    assert "files   removed" in ems("show", f"{swept}/0").stdout
    for command in (["hold", swept], ["rerun", swept, "--failed"]):
        assert f"the files of train {swept} were removed" in ems(*command, code=1).stderr
    assert "they were removed" in ems("cat", f"{swept}/0/out.csv", code=1).stderr
    ems("harvest")
    ems("rm", swept, "--purge", "--yes")
    assert parsed(ems("list", "--json")) == []


def test_cancel_ends_what_runs_and_what_waits(ems: Ems, gate: Path) -> None:
    ems("parrun", "gated.py", "--set", "x=0..9", "--pass-as", "env", "--workers", "1", "--grace", "1", "--on", "here")
    wait_for(lambda: counts(ems).get("running") == 1)
    ems("cancel", "last/7")
    assert counts(ems) == {"pending": 8, "running": 1, "cancelled": 1}
    ems("cancel", "last")
    wait_for(lambda: counts(ems) == {"cancelled": 10})
    assert "has ended already" in ems("cancel", "last").stdout


def test_hold_and_release(ems: Ems, gate: Path) -> None:
    ems("parrun", "gated.py", "--set", "x=0..2", "--pass-as", "env", "--workers", "1", "--on", "here")
    wait_for(lambda: counts(ems).get("running") == 1)
    ems("hold")
    assert parsed(ems("status", "--json"))[0]["held"] is True
    gate.touch()
    ems("release", "last")
    wait_for(lambda: counts(ems) == {"completed": 3})


def test_ctrl_c_ends_the_waiting_and_not_the_experiment(ems: Ems, gate: Path, project: Path) -> None:
    command = [sys.executable, "-m", "ems", "run", "gated.py", "--on", "here", "--wait"]
    with subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        for line in waiting.stderr:
            if "running" in line:
                break
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=200)
    assert waiting.returncode == 130
    assert "goes on running without you" in said
    assert "Traceback" not in said
    assert counts(ems) == {"running": 1}
    gate.touch()
    wait_for(lambda: counts(ems) == {"completed": 1})


def test_logs_follow_until_the_run_ends(ems: Ems, gate: Path, project: Path) -> None:
    ems("run", "gated.py", "--on", "here")
    command = [sys.executable, "-m", "ems", "logs", "last", "-f"]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "started\n"
        gate.touch()
        assert following.communicate(timeout=200)[0] == "acc: 0.5\n"
    assert following.returncode == 0


def test_every_listing_is_json_on_demand(ems: Ems, swept: str) -> None:
    for argv in (["status"], ["list"], ["ls"], ["ls", "last/0"], ["show", "last"], ["show", "last/0"], ["harvest"]):
        assert parsed(ems(*argv, "--json"))
    for argv in (["diff", swept, "last"], ["config"], ["report"], ["gather", "last", "*.csv", "x"]):
        assert parsed(ems(*argv, "--json"))
    assert {check["name"] for check in parsed(ems("doctor", "--on", "here", "--json"))} >= {"python", "git", "root"}


def test_what_is_out_of_reach_is_said_and_stops_nothing_else(ems: Ems, swept: str, project: Path) -> None:
    with Store(project / ".ems" / "ems.db") as store:
        old = replace(store.resolve(swept), id="0badc0de", name="old", target="gone", n_runs=1)
        store.add(old, [Run(0, {}, 0, "key")])
    why = "old 0badc0de: there is no target `gone`"
    for command in ("status", "list"):
        looked = ems(command)
        assert why in looked.stdout + looked.stderr
    assert "there is no target `gone`" in ems("status", "old").stdout
    assert f"not read: {why}" in ems("harvest").stderr
    assert f"error: {why}" in ems("harvest", "old", code=1).stderr
    listed = ems("status", "--json")
    assert (json.loads(listed.stdout)[0]["jobs"], why in listed.stderr) == ([], True)
    (project / "ems.yaml").write_text("root: elsewhere")
    assert f"its files are not in {project}/elsewhere/" in ems("harvest", swept, code=1).stderr


def test_looking_where_nothing_is_leaves_no_trace(ems: Ems, project: Path) -> None:
    for argv in (["status"], ["list"], ["report"], ["harvest"], ["show", "last"]):
        assert "there are no experiments" in ems(*argv, code=1).stderr
    ems("config")
    assert sorted(path.name for path in project.iterdir()) == [".git"]


def test_without_git_the_store_is_where_the_user_works(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.py").write_text("print('acc: 1')")

    def run(*argv: str) -> str:
        command = [sys.executable, "-m", "ems", *argv]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120).stdout

    run("run", "folder/train.py", "--on", "here", "--wait")
    assert json.loads(run("status", "--json"))[0]["completed"] == 1
    assert (tmp_path / ".ems" / "ems.db").exists()


def test_a_name_can_stand_in_an_address(ems: Ems, train: Path, project: Path) -> None:
    for name in ("a/b", "a b", "last", ""):
        refused = ems("run", "train.py", "--set", "lr=0.1", "--on", "here", "--name", name, code=2)
        assert f"error: `{name}` cannot be a name" in refused.stderr
    long = ems("run", "train.py", "--set", "lr=0.1", "--on", "here", "--name", "x" * 3000, code=2).stderr
    assert f"{'x' * 100}…` cannot be a name" in long
    parameters = "program: train.py\nmethod: grid\nname: my first / sweep\nparameters: {lr: {value: 0.1}}\n"
    (project / "sweep.yaml").write_text(parameters)
    ems("parrun", "--sweep", "sweep.yaml", "--on", "here", "--wait")
    assert "completed" in ems("ls", "my-first-sweep").stdout


def test_settings_reach_the_run(ems: Ems, project: Path) -> None:
    (project / "env.py").write_text("import os; print(os.environ['WORD'], os.environ['X'])")
    (project / "ems.yaml").write_text("on: here\nsetup: export WORD=hello\npass_as: env\n")
    ems("run", "env.py", "--set", "x=3", "--wait")
    assert ems("logs", "last").stdout == "hello 3\n"
    rows = parsed(ems("config", "--json"))
    assert rows["setup"] == {"value": ["export WORD=hello"], "origin": "ems.yaml"}


def test_a_reader_that_has_seen_enough_is_no_error(ems: Ems, swept: str, project: Path) -> None:
    command = f"{sys.executable} -m ems ls {swept} --json | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=project, capture_output=True, text=True, timeout=200, check=True)
    assert (done.stdout, done.stderr) == ("[\n", "")


def test_help_loads_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ems", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    heavy = {
        "numpy",
        "scipy",
        "pandas",
        "matplotlib",
        "submitit",
        "sqlite_utils",
        "plotext",
        "yaml",
        "sqlite3",
        "pydantic",
    }
    assert not loaded & heavy
