"""`ems report STUDY` and `ems plot STUDY` as a user types them, of studies that ran here."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

Ems = Callable[..., "subprocess.CompletedProcess[str]"]

# goes on from its checkpoint, as a script with rungs has to; it trains nothing, to be fast
SCRIPT = """
import argparse, math
from pathlib import Path
import ems
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--opt")
parser.add_argument("--epochs", type=int)
args = parser.parse_args()
saved = Path(ems.checkpoint()) / "epoch"
first = int(saved.read_text()) + 1 if saved.exists() else 1
for epoch in range(first, args.epochs + 1):
    ems.log(step=epoch, acc=1 - (math.log10(args.lr) + 2) ** 2 / 10 - 0.3 / epoch - 0.05 * (args.opt == "sgd"))
    saved.write_text(str(epoch))
"""


def test_a_study_is_reported_and_drawn(ems: Ems, project: Path) -> None:
    (project / "climb.py").write_text(SCRIPT)
    words = ["--set", "lr=loguniform(1e-5,1e-1)", "--set", "opt=adam,sgd", "--metric", "acc", "--goal", "maximize"]
    ems("tune", "climb.py", *words, "--fidelity", "epochs=1..3", "--budget", "15epochs", "--on", "here", "--wait")

    said = ems("report", "last").stdout
    for part in ("best configurations by the model's mean, at epochs 3", "importance at epochs", "rungs   values of"):
        assert part in said
    found = json.loads(ems("report", "last", "--json", "--top", "2").stdout)
    assert [len(found["best"]), found["goal"]] == [2, "maximize"]
    assert found["best"][0]["observed"] > 0.5
    assert {each["name"] for each in found["importance"]} == {"lr", "opt"}
    assert "permutation" in found["importance_method"]
    asked = [rung["asked"] for rung in found["rungs"]]
    assert asked[0] > asked[1] > 0
    done = json.loads(ems("tune", "status", "--json").stdout)["rungs"]
    assert [rung["completed"] for rung in found["rungs"]] == [rung["completed"] for rung in done]

    # its runs are still a table, where one is asked for
    assert re.match(r"experiment +run +state", ems("report", "last", "--columns", "all").stdout)

    drawn = ems("plot", "last", "convergence", "importance", "slice").stdout
    assert ("▪ epochs 1" in drawn, "by itself" in drawn, "· 95 % band" in drawn) == (True, True, True)
    ems("plot", "last", "contour", "--png", "contour.png")
    assert (project / "contour.png").read_bytes()[:4] == b"\x89PNG"
    ems("plot", "last", "--html", "study.html")
    assert (project / "study.html").read_text().count("<svg") == 7
    (timeline,) = json.loads(ems("plot", "last", "timeline", "--json").stdout)
    assert re.search(r"idle \d+\.\d%", timeline["title"])

    # the command that is shown runs the configuration with what it reached
    command = found["best"][0]["command"]
    again = ems(*shlex.split(command)[1:], "--wait")
    assert "1 completed" in again.stdout
    assert "is no study" in ems("plot", "last", "slice", code=2).stderr


def test_what_cannot_be_drawn_is_said(ems: Ems, project: Path) -> None:
    (project / "one.py").write_text("print('loss: 1.0')\n")
    ems("tune", "one.py", "--set", "x=uniform(0,1)", "--metric", "loss", "--trials", "1", "--on", "here", "--wait")
    assert "no model yet" in ems("report", "last").stdout
    for words, message in [
        (["slice"], "too few values of loss yet"),
        (["rungs"], "has no rungs: it was begun without --fidelity"),
        (["parallel"], "too fine for a terminal"),
        (["convergence", "timeline", "--png", "a.png"], "--png writes one picture, and 2 were named"),
        (["timeline", "--html", "no/a.html"], "no/a.html cannot be written"),
    ]:
        done = ems("plot", "last", *words, code=2)
        assert message in done.stderr
        assert "hint: " in done.stderr
    assert "trials ended" in ems("plot", "last").stdout
