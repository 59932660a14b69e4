"""Files and results of runs on another machine, seen from this one: the real command, a real sshd, real runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, cast

import pytest

from ems import registry
from ems.errors import ConnectionFailedError
from ems.remote.client import Agent
from ems.remote.files import RemoteRun
from ems.store import Store

Ems = Callable[..., CompletedProcess[str]]

TRAIN = """\
import argparse, json, os, sys
import ems

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
lr = parser.parse_args().lr
for _ in range(3000):
    print(os.urandom(60).hex())  # more than travels at a time
for step in range(5):
    ems.log(step=step, loss=lr * step)
    print(f"step {step} acc: {lr + step}")
with open("results.json", "w") as file:
    json.dump({"final": lr}, file)
with open("curve.csv", "w") as file:
    file.write("step,val\\n" + "".join(f"{n},{n * lr}\\n" for n in range(4)))
os.makedirs("out")
with open("out/$(touch pwned) it's\\n-x.bin", "wb") as file:
    file.write(bytes(range(256)))
with open("model.bin", "wb") as file:
    file.write(os.urandom(3_000_000))
print("that's all", file=sys.stderr)
"""


@pytest.fixture
def train(project: Path) -> Path:
    (project / "train.py").write_text(TRAIN)
    return project


@pytest.fixture
def swept(far: Any, train: Path, ems: Ems) -> str:
    """A sweep of three runs that has ended there, of which nothing was harvested here."""
    done = ems("parrun", "train.py", "--set", "lr=0.1,0.2,0.3", "--on", "far", "--json")
    exp_id = str(json.loads(done.stdout)["experiment"])
    wait_until(lambda: ended(far, exp_id) == 3)
    return exp_id


def ended(far: Any, exp_id: str) -> int:
    paths = (far.root / "experiments" / exp_id / "runs").glob("*/attempts/1.json")
    return sum(bool(json.loads(path.read_text()).get("ended_at")) for path in paths)


def wait_until(condition: Callable[[], object], limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def results(project: Path, exp_id: str) -> Any:
    """Return all that was measured in an experiment, whatever its id."""
    with Store(project / ".ems" / "ems.db") as store:
        points = store.query(
            "SELECT r.idx, m.name, p.attempt, p.step, p.value, p.text FROM points p JOIN runs r ON r.id = p.run_id"
            " JOIN metrics m ON m.id = p.metric_id WHERE r.experiment_id = ? ORDER BY 1, 2, 3, 4",
            [exp_id],
        )
        runs = store.query("SELECT idx, state, settled FROM runs WHERE experiment_id = ? ORDER BY 1", [exp_id])
        return runs, points


def test_what_is_harvested_is_the_same_as_here(far: Any, train: Path, ems: Ems, swept: str) -> None:
    assert f"train {swept}: 3 completed (+3)" in ems("harvest").stdout
    here = json.loads(ems("parrun", "train.py", "--set", "lr=0.1,0.2,0.3", "--on", "here", "--again", "--json").stdout)
    wait_until(lambda: "3 completed" in ems("harvest", here["experiment"]).stdout)
    there_is, here_is = results(train, swept), results(train, here["experiment"])
    assert there_is == here_is
    assert [state for _, state, settled in there_is[0] if settled] == ["COMPLETED"] * 3
    assert {name for _, name, *_ in there_is[1]} >= {"loss", "acc", "final", "val"}
    assert ems("harvest").stdout.startswith("nothing new")


def test_files_are_listed_printed_copied_and_joined(far: Any, train: Path, ems: Ems, swept: str) -> None:
    listed = {each["path"]: each["bytes"] for each in json.loads(ems("ls", f"{swept}/1", "--json").stdout)}
    assert listed["model.bin"] == 3_000_000
    odd = "out/$(touch pwned) it's\n-x.bin"
    assert listed[odd] == 256
    run = far.root / "experiments" / swept / "runs" / "1"
    assert ems("cat", f"{swept}/1/results.json").stdout == (run / "files" / "results.json").read_text()
    assert "def" not in ems("cat", f"{swept}/1/nothing", code=1).stdout
    assert ems("logs", f"{swept}/1").stdout == (run / "stdout.log").read_text()
    assert ems("logs", f"{swept}/1", "-n", "1").stdout == "step 4 acc: 4.2\n"
    assert ems("logs", f"{swept}/1", "--attempt", "1", "--err").stdout == "that's all\n"
    ems("get", f"{swept}/1/model.bin", "m.bin")
    assert Path("m.bin").read_bytes() == (run / "files" / "model.bin").read_bytes()
    ems("get", f"{swept}/1/{odd}", "odd.bin")
    assert Path("odd.bin").read_bytes() == bytes(range(256))
    ems("get", f"{swept}/1", "all")
    assert (Path("all") / odd).read_bytes() == bytes(range(256))
    assert ems("get", f"{swept}/1", "all", code=2).stderr.startswith("error: ")
    ems("gather", swept, "model.bin", "models")
    assert sorted(path.name for path in Path("models").iterdir()) == ["0-model.bin", "1-model.bin", "2-model.bin"]
    rows = ems("reduce", swept, "curve.csv").stdout.splitlines()
    assert rows[0] == "run,lr,step,val"
    assert len(rows) == 1 + 3 * 4
    assert not list(train.rglob("pwned"))
    assert not list(far.folder.rglob("pwned"))
    assert not any((train / ".ems" / "remote" / "far" / "fetched").iterdir())


class Liar:
    """An agent on a machine that somebody else has taken over."""

    def __init__(self, path: str) -> None:
        self._path = path

    def call(self, do: str, **_: Any) -> Any:
        return {"listing": [[self._path, 1, 0.0]], "find": [self._path]}[do]


@pytest.mark.parametrize("path", ["/etc/passwd", "../../x", "files/../../../x", "a\0b"])
def test_a_machine_cannot_name_files_outside_of_a_run(path: str, tmp_path: Path) -> None:
    run = RemoteRun(cast("Agent", Liar(path)), "7f3a9c21", 0, tmp_path)
    with pytest.raises(ConnectionFailedError, match="no file of a run"):
        run.written()
    with pytest.raises(ConnectionFailedError, match="no file of a run"):
        run.find(["x"])


def test_a_target_that_is_away_still_reports_what_was_harvested(far: Any, train: Path, ems: Ems, swept: str) -> None:
    far.stop()
    done = ems("harvest", code=1)
    assert "cannot be reached" in done.stderr
    assert results(train, swept)[1] == []
    for words in (("logs",), ("get",), ("cat",)):
        what = f"{swept}/1/stdout.log" if words == ("cat",) else f"{swept}/1"
        assert ems(*words, what, code=1).stderr.startswith("error: "), "not that there is nothing"
    far.start()
    ems("harvest")
    harvested = results(train, swept)
    far.stop()
    report = ems("report", "--json").stdout
    assert json.loads(report)
    assert "this is what was harvested before" in (shown := ems("logs", f"{swept}/1")).stderr
    assert "step 4 acc: 4.2" in shown.stdout
    assert len(ems("reduce", swept, "curve.csv").stdout.splitlines()) == 13
    assert "3" in ems("status").stdout
    ems("harvest")
    assert results(train, swept) == harvested


@pytest.mark.parametrize("how", ["killed", "broken"])
def test_a_harvest_that_is_broken_off_anywhere_is_gone_on_with(
    how: str, far: Any, train: Path, ems: Ems, swept: str, broken_at: Any
) -> None:
    n_broken, is_over = 0, False
    while not is_over:
        frame = 1 + n_broken * (5 if how == "killed" else 1)
        words = broken_at(how, frame, "harvest", functions="wire.receive,mirror._Work._take")
        is_over = subprocess.run(words, cwd=train, capture_output=True, timeout=200).returncode == 0
        n_broken += not is_over
    assert n_broken > 2
    ems("harvest")
    harvested = results(train, swept)
    assert [row[1:] for row in harvested[0]] == [("COMPLETED", 1)] * 3
    here = json.loads(ems("parrun", "train.py", "--set", "lr=0.1,0.2,0.3", "--on", "here", "--again", "--json").stdout)
    wait_until(lambda: "3 completed" in ems("harvest", here["experiment"]).stdout)
    assert harvested == results(train, here["experiment"])


@contextmanager
def following(project: Path, run: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "ems", "logs", run, "-f"]
    with subprocess.Popen(
        command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=dict(os.environ)
    ) as process:
        yield process
        process.kill()


def test_a_log_is_followed_through_a_broken_connection(far: Any, train: Path, ems: Ems, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    (train / "train.py").write_text(
        "import os, sys, time\n"
        f"for n in range(3):\n    print('line', n)\n    while not os.path.exists({str(gate)!r} + f'/{{n}}'):\n"
        "        time.sleep(0.02)\n"
    )
    ems("run", "train.py", "--on", "far")
    with following(train, "last/0") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "line 0\n"
        far.drop()
        (gate / "0").touch()
        assert process.stdout.readline() == "line 1\n"
        far.stop()
        (gate / "1").touch()
        far.start()
        assert process.stdout.readline() == "line 2\n"
        (gate / "2").touch()
        assert process.wait(120) == 0


def test_a_log_is_followed_from_what_was_pulled_once_its_machine_is_back(far: Any, train: Path, ems: Ems) -> None:
    gate = far.root / "gate"
    (train / "train.py").write_text(
        f"import os, time\nprint('line 0')\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.02)\n"
        "print('line 1')\n"
    )
    exp_id = json.loads(ems("run", "train.py", "--on", "far", "--json").stdout)["experiment"]
    log = Path("experiments", exp_id, "runs", "0", "stdout.log")
    wait_until(lambda: (far.root / log).exists() and (far.root / log).read_text())
    ems("harvest")
    far.stop()
    with following(train, "last/0") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "line 0\n"
        far.start()
        gate.touch()
        assert process.stdout.readline() == "line 1\n"
        assert process.wait(120) == 0


def test_files_that_are_gone_there_are_said_and_what_came_before_is_kept(far: Any, train: Path, ems: Ems) -> None:
    (train / "train.py").write_text(
        "import os, time\nprint('loss: 1')\ntime.sleep(600 * (os.environ['EMS_INDEX'] == '1'))\n"
    )
    done = ems("parrun", "train.py", "--set", "lr=0.1,0.2", "--pass-as", "none", "--on", "far", "--json")
    exp_id = json.loads(done.stdout)["experiment"]
    wait_until(lambda: ended(far, exp_id) == 1)
    ems("harvest")
    harvested = results(train, exp_id)[1]
    shutil.rmtree(far.root / "experiments" / exp_id)  # as a site does with scratch folders
    done = ems("harvest", code=None)
    assert f"{exp_id}: far no longer has its files" in done.stdout + done.stderr
    assert results(train, exp_id)[1] == harvested


def test_a_cluster_that_is_no_more_leaves_what_was_harvested(far: Any, train: Path, ems: Ems, swept: str) -> None:
    ems("harvest")
    harvested = results(train, swept)
    registry.forget("far")
    assert "the cluster far is gone; this is what was harvested before" in (shown := ems("logs", f"{swept}/2")).stderr
    assert "step 4 acc: 4.3" in shown.stdout
    assert json.loads(ems("cat", f"{swept}/2/results.json").stdout) == {"final": 0.3}
    assert "stdout.log" in ems("ls", f"{swept}/2").stdout
    assert len(ems("reduce", swept, "curve.csv").stdout.splitlines()) == 13
    assert json.loads(ems("report", "--json").stdout)
    assert swept in ems("status", swept).stdout
    ems("harvest")
    assert results(train, swept) == harvested
