"""`ems tune` as a user types it, on this machine: a study from its first line to its last, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Ems = Callable[..., "subprocess.CompletedProcess[str]"]

# a valley at lr = 1e-2; as fast as a script can be, for it trains nothing
VALLEY = """
import math, sys
lr = float(sys.argv[sys.argv.index("--lr") + 1])
print("loss: %.6f" % ((math.log10(lr) + 2) ** 2 / 10 + 0.05))
"""
# the same by epochs: each rung goes on from the last one's checkpoint
RUNGS = """
import argparse, math
from pathlib import Path
import ems
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--epochs", type=int)
args = parser.parse_args()
saved = Path(ems.checkpoint()) / "epoch"
first = int(saved.read_text()) + 1 if saved.exists() else 1
for epoch in range(first, args.epochs + 1):
    ems.log(step=epoch, loss=(math.log10(args.lr) + 2) ** 2 / 10 + 1 / epoch, first=first)
    saved.write_text(str(epoch))
"""
LR = "lr=loguniform(1e-5,1e-1)"
SWEEP = """\
program: rungs.py
method: bayes
metric: {name: loss, goal: minimize}
run_cap: 3
parameters:
  lr: {distribution: log_uniform_values, min: 1e-5, max: 1e-1}
  epochs: {value: 9}
early_terminate: {type: hyperband, min_iter: 1, eta: 3}
"""


@pytest.fixture
def scripts(project: Path) -> Path:
    (project / "valley.py").write_text(VALLEY)
    (project / "rungs.py").write_text(RUNGS)
    (project / "sweep.yaml").write_text(SWEEP)
    return project


def status(ems: Ems, *study: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ems("tune", "status", *study, "--json").stdout)
    return found


def wait_for(condition: Callable[[], bool], limit_s: float = 200) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.2)


def test_a_study_from_its_start_to_its_end(ems: Ems, scripts: Path) -> None:
    common = ["valley.py", "--set", LR, "--metric", "loss", "--on", "here"]
    begun = ems("tune", *common, "--trials", "8", "--parallel", "2", "--name", "lr", "--wait")
    head, started = begun.stdout.splitlines()[:2]
    assert re.match(r"study [0-9a-f]{8}  lr  8 trials, 2 at a time: lowest loss over lr   code ", head)
    assert re.match(r"2 trials started in .*; you may close the terminal", started)
    assert "8 of 8 trials begun: 8 ok" in begun.stderr or "finished" in begun.stdout
    study_id = head.split()[1]

    shown = status(ems, "lr")
    assert (shown["state"], shown["trials"]) == ("FINISHED", {"ok": 8})
    assert shown["budget"] == {"trials": {"of": 8, "spent": 8}}
    (best,) = shown["best"]
    assert 1e-3 < best["params"]["lr"] < 1e-1
    assert best["mean"] == pytest.approx(0.05, abs=0.05)
    assert re.search(rf"{study_id} +lr +here .* 8 of 8 trials, loss 0\.0", ems("status", "lr").stdout)

    # the command of `best` runs that configuration again, as a run of its own
    said = ems("tune", "best", "lr").stdout
    assert "by the model (mean ± sd); observed" in said
    again = ems(*shlex.split(said.splitlines()[-1])[1:], "--wait")
    assert "1 completed (+1)" in again.stdout
    (row,) = json.loads(ems("report", "last", "--json").stdout)
    assert row["loss"] == pytest.approx(best["observed"])

    # it goes on where it is given more, and not where it is finished
    assert ems("tune", "resume", study_id, code=2).stderr.startswith(f"error: lr {study_id} is finished: ")
    assert ems("tune", "extend", study_id, code=2).stderr.startswith("error: extend it by how much?")
    ems("tune", "extend", study_id, "--trials", "2")
    wait_for(lambda: status(ems, study_id)["state"] == "FINISHED")
    assert status(ems, study_id)["trials"] == {"ok": 10}
    assert "has ended already" in ems("tune", "stop", study_id).stderr

    # another study begins with what this one has found
    begun = ("tune", *common, "--trials", "2", "--warm-start", study_id)
    planned, cold = (json.loads(ems(*words, "--dry-run", "--json").stdout) for words in (begun, begun[:-2]))
    assert planned["proposals"] != cold["proposals"]
    warm = ems(*begun, "--wait", "--json")
    assert json.loads(warm.stdout)["trials"] == {"ok": 2}


def test_a_sweep_file_runs_as_it_is_by_rungs_and_is_steered(ems: Ems, scripts: Path) -> None:
    hint = ems("parrun", "--sweep", "sweep.yaml", code=2).stderr.splitlines()[-1]
    words = shlex.split(hint.removeprefix("hint: ").partition(",")[0])
    assert words == ["ems", "tune", "rungs.py", "--space", "sweep.yaml"]
    planned = ems(*words[1:], "--dry-run", "--on", "here", "--parallel", "2")
    assert "sweep.yaml: early_terminate is --scheduler hyperband --fidelity epochs=1..9 --eta 3" in planned.stderr
    assert "hyperband over epochs 1, 3, 9" in planned.stdout
    assert not json.loads(ems("list", "--json").stdout), "a dry run leaves nothing"

    ems("tune", "--space", "sweep.yaml", "--on", "here", "--parallel", "2", "--wait")
    shown = status(ems)
    assert (shown["state"], shown["trials"]) == ("FINISHED", {"ok": 3})
    assert [rung["budget"] for rung in shown["rungs"]] == [1, 3, 9]
    # whatever was promoted went on from its checkpoint: its second segment began where its first had ended
    store = json.loads(ems("report", "last", "--metric", "first", "--json", "--columns", "all").stdout)
    assert {row["first"] for row in store} <= {1, 2, 4}


def gated(scripts: Path) -> Path:
    """Write slow.py, whose runs wait for the file that is returned, as long as a test may take."""
    gate = scripts.parent / "gate"
    wait = f"for _ in range(6000):\n    if os.path.exists({str(gate)!r}):\n        break\n    time.sleep(0.05)"
    (scripts / "slow.py").write_text(VALLEY.replace("import math, sys", f"import math, os, sys, time\n{wait}"))
    return gate


def test_stop_and_resume(ems: Ems, scripts: Path) -> None:
    gate = gated(scripts)
    ems("tune", "slow.py", "--set", LR, "--metric", "loss", "--trials", "5", "--parallel", "1", "--on", "here",
        "--name", "slow")  # fmt: skip
    twice = ems(
        "tune", "slow.py", "--set", "lr=uniform(0,1)", "--metric", "loss", "--trials", "9", "--name", "slow", code=2
    )
    assert re.match(r"error: the study slow \w+ goes on, and searches another space or metric", twice.stderr)
    ems("tune", "stop", "slow", "--now")
    wait_for(lambda: status(ems, "slow")["state"] == "STOPPED")
    other = ems("tune", "resume", "slow", "--set", "lr=uniform(0,1)", code=2)
    assert "cannot go on with another space" in other.stderr
    gate.touch()
    ems("tune", "resume", "slow", "--parallel", "2")
    wait_for(lambda: status(ems, "slow")["state"] == "FINISHED")
    counted = status(ems, "slow")
    assert counted["workers"]["of"] == 2
    assert sum(counted["trials"].values()) >= 5


def test_a_metric_that_never_appears_and_one_that_is_text_end_the_study_and_say_so(ems: Ems, scripts: Path) -> None:
    common = ("--set", LR, "--goal", "min", "--trials", "6", "--parallel", "2", "--on", "here", "--wait")
    wrong = ems("tune", "valley.py", "--metric", "val_loss", *common, code=1)
    assert re.search(r"ended +no run logged val_loss; its runs logged .*\bloss\b", wrong.stdout)
    (scripts / "words.py").write_text("import ems\nems.log(note='fine')\n")
    text = ems("tune", "words.py", "--metric", "note", *common, code=1)
    assert re.search(r"ended +note is a text \('fine'\), and only numbers can be compared", text.stdout)


def test_ctrl_c_ends_the_waiting_not_the_study(ems: Ems, scripts: Path) -> None:
    gate = gated(scripts)
    words = ["tune", "slow.py", "--set", LR, "--metric", "loss", "--trials", "4", "--on", "here", "--wait"]
    waiting = subprocess.Popen([sys.executable, "-m", "ems", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, env=os.environ, start_new_session=True)  # fmt: skip
    assert waiting.stdout is not None
    assert waiting.stdout.readline().startswith("study ")
    assert "started" in waiting.stdout.readline()
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=200)
    assert (waiting.returncode, "goes on without you" in err, "Traceback" in err) == (130, True, False)
    gate.touch()
    wait_for(lambda: status(ems)["state"] == "FINISHED")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["valley.py"], "the space is empty"),
        (["vally.py", "--set", LR, "--metric", "loss", "--trials", "3"], "there is no script vally.py"),
        (["./status", "--set", LR, "--metric", "loss", "--trials", "3"], "there is no script status"),
        (["statsu", "last"], "`statsu` is no command of `ems tune`"),
        (["valley.py", "--set", LR, "--metric", "loss"], "nothing says when the search ends"),
        (["valley.py", "--set", LR, "--metric", "x", "--trials", "3"], "is a low or a high `x` good?"),
        (["broken.py", "--set", LR, "--metric", "loss", "--trials", "3"], "broken.py"),
        (["valley.py", "--set", LR, "--metric", "loss", "--trials", "3", "--", "--lr", "3"], "`lr` stands after `--`"),
        (["valley.py", "--set", LR, "--metric", "loss", "--budget", "1gpuh"], "GPU"),
        (["valley.py", "--set", LR, "--metric", "loss", "--budget", "9usd"], "cost"),
        (["valley.py", "--set", LR, "--metric", "loss", "--fidelity", "epochs=1..81", "--budget", "80epochs"],
         "do not pay for one trial"),
        (["valley.py", "--set", LR, "--metric", "loss", "--trials", "3", "--wake", "nan"], "--wake nan is no time"),
        (["valley.py", "--set", LR, "--metric", "loss", "--trials", "3", "--eta", "4"], "no param says how long"),
        (["valley.py", "--set", LR, "--metric", "loss", "--trials", "3", "--parallel", "1000000"], "can keep busy"),
        (["valley.py", "--space", "never.yaml", "--metric", "loss", "--trials", "3"], "satisfied by none"),
        (["valley.py", "--set", "lr=loguniform(1,0.1)", "--metric", "loss", "--trials", "3"], "is not below"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_sentence_with_a_hint(ems: Ems, scripts: Path, words: list[str], said: str) -> None:
    (scripts / "broken.py").write_text("def f(:\n")
    (scripts / "never.yaml").write_text("lr: uniform(0,1)\nconstraints: ['lr > 2']\n")
    done = ems("tune", *words, code=2)
    error, _, hint = done.stderr.partition("\n\n")
    assert error.startswith("error: ")
    assert said in error
    assert hint.startswith("hint: ")
    assert done.stdout == ""


def test_nothing_to_look_at_is_said(ems: Ems, scripts: Path) -> None:
    assert "there are no experiments in" in ems("tune", "status", code=1).stderr
    ems("run", "valley.py", "--set", "lr=0.1", "--on", "here", "--wait")
    assert "there are no studies in" in ems("tune", "best", code=1).stderr
    assert "is no study" in ems("tune", "status", "last", code=2).stderr
    assert "is no study" in ems("tune", "valley.py", "--set", LR, "--metric", "loss", "--trials", "1", "--warm-start",
                                "last", code=2).stderr  # fmt: skip


PROGRAM = """
import math, sys
import ems
search = ems.study("by-hand", {"lr": "loguniform(1e-5,1e-1)", "opt": ["a", "b"]}, metric="loss", trials=9)
for count, trial in enumerate(search):
    if len(sys.argv) > 1 and count == int(sys.argv[1]):
        sys.exit("gone in the middle of trial %d" % trial.number)
    if trial.number == 3:
        search.tell(trial, failed=True)
    else:
        search.tell(trial, (math.log10(trial.params["lr"]) + 2) ** 2 + (trial.params["opt"] == "b"))
print(search.best.number, search.best.params["opt"], search.is_over, dict(search.standing.counts))
"""


def test_a_program_asks_and_tells_and_goes_on_where_it_was_killed(ems: Ems, scripts: Path) -> None:
    def program(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=200)

    assert "gone in the middle of trial 4" in program("4").stderr
    # the trial that nobody told is waited for; nothing else is asked for with one at a time
    stuck = program()
    assert stuck.returncode == 0, stuck.stderr
    assert "False" in stuck.stdout
    tell = "import ems; ems.study('by-hand').tell(4, 0.5)"
    subprocess.run([sys.executable, "-c", tell], check=True, timeout=200)
    done = program()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(" ", 1)[1] == "a True {'ok': 8, 'crashed': 1}\n"
    shown = status(ems, "by-hand")
    assert (shown["state"], shown["trials"]) == ("FINISHED", {"ok": 8, "crashed": 1})
    rows = json.loads(ems("report", "by-hand", "--metric", "loss", "--json").stdout)
    assert len([row for row in rows if row["loss"] is not None]) == 8
    other = PROGRAM.replace("1e-1", "1")
    refused = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, timeout=200)
    assert "has another space: its trials would mean something else" in refused.stderr
    assert "has no driver: a program asks and tells it" in ems("tune", "stop", "by-hand", code=2).stderr
