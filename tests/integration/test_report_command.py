"""``ems report`` as a user runs it: in a pipe, on a terminal, over many runs."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import select
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ems import cli
from ems.cli import report
from ems.cluster.ledger import Event, Ledger
from ems.model import Experiment, State
from ems.node.records import ExperimentFiles, dump, write_runs

Ems = Callable[..., subprocess.CompletedProcess[str]]
EXP = "7f3a9c21"
LONG_AGO = "2026-11-21T09:30:00.000Z"


def record(project: Path, lrs: list[float], n_seeds: int, steps: int = 3) -> ExperimentFiles:
    """Write an experiment's files as workers do: lr x seed, all completed, with accuracy and loss."""
    files = ExperimentFiles(project / ".ems", EXP)
    points = [{"lr": lr, "seed": seed, "epochs": steps} for lr in lrs for seed in range(n_seeds)]
    Path(files.dir).mkdir(parents=True)
    spec = Experiment(EXP, "train", LONG_AGO, "train.py", "5" * 40, len(points))
    Path(files.spec).write_text(dump(dataclasses.asdict(spec)))
    write_runs(
        files, ({"index": i, "params": p, "seed": i, "key": f"key{i}", "loops": []} for i, p in enumerate(points))
    )
    for i, params in enumerate(points):
        end(files, i, [0.9 - params["lr"] + params["seed"] / 1000 + step / 100 for step in range(steps)])
    return files


def end(files: ExperimentFiles, index: int, accuracies: list[float], state: State = State.COMPLETED) -> None:
    """Write down that a run has ended, and what it logged."""
    folder = Path(files.run(index))
    (folder / "attempts").mkdir(parents=True, exist_ok=True)
    lines = [{"step": i, "acc": acc, "loss": 1 - acc, "_t": 1.0, "_a": 1} for i, acc in enumerate(accuracies)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    attempt = {
        "v": 1,
        "index": index,
        "attempt": 1,
        "chunk": 0,
        "state": state,
        "host": "n1",
        "pid": 1,
        "job": "here-1",
    }
    attempt |= {"started_at": LONG_AGO, "ended_at": LONG_AGO, "exit_code": 0, "wall_s": 1.0}
    (folder / "attempts" / "1.json").write_text(json.dumps(attempt))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two learning rates, two seeds, harvested once for all tests."""
    folder = tmp_path_factory.mktemp("template")
    record(folder, [0.1, 0.01], 2)
    (folder / ".git").mkdir()  # the store belongs here, not to a project above
    subprocess.run([sys.executable, "-m", "ems", "harvest"], cwd=folder, check=True, capture_output=True)
    return folder / ".ems"


@pytest.fixture
def harvested(template: Path, project: Path) -> Path:
    """The project with the experiment of ``template``."""
    return Path(shutil.copytree(template, project / ".ems"))


class Terminal:
    """``ems`` on a terminal of 80 columns by 24 rows, and what it showed."""

    def __init__(self, project: Path, *args: str, **env: str) -> None:
        controller, end_of_it = pty.openpty()
        import fcntl
        import struct
        import termios

        fcntl.ioctl(end_of_it, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        process = subprocess.Popen(
            [sys.executable, "-m", "ems", *args],
            cwd=project,
            env={**kept, "TERM": "xterm", **env},
            stdin=end_of_it,
            stdout=end_of_it,
            stderr=end_of_it,
            start_new_session=True,
        )
        os.close(end_of_it)
        self.text = self._read(controller, process)
        self.code = process.wait(120)

    @staticmethod
    def _read(controller: int, process: subprocess.Popen[bytes]) -> str:
        shown, deadline = b"", time.monotonic() + 200
        try:
            while time.monotonic() < deadline:
                ready, _, _ = select.select([controller], [], [], 0.2)
                if ready:  # whoever has ended may still have said something
                    shown += os.read(controller, 65536)
        except OSError:  # the other end is closed: all has been said
            pass
        finally:
            if process.poll() is None and time.monotonic() >= deadline:
                process.kill()
            os.close(controller)
        return shown.decode().replace("\r\n", "\n")

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


def test_a_report_in_a_pipe_is_plain_aligned_text(harvested: Path, ems: Ems) -> None:
    assert ems("report").stdout.splitlines() == [
        "run    lr  seed     acc         loss",
        "  0   0.1     0  0.8200       0.1800",
        "  1   0.1     1  0.8210       0.1790",
        "  2  0.01     0  0.9100       0.0900",
        "  3  0.01     1  0.9110 best  0.0890 best",
        "",
        "train 7f3a9c21: 4 completed",
        "best: highest acc, lowest loss",
    ]


def test_groups_show_mean_and_interval(harvested: Path, ems: Ems) -> None:
    lines = ems("report", "--by", "lr", "--metric", "acc").stdout.splitlines()
    assert lines[:3] == [
        "  lr  n            acc       failed",
        "0.01  2  0.911 ± 0.006 best       0",
        " 0.1  2  0.821 ± 0.006            0",
    ]


def test_data_goes_to_stdout_and_talk_to_stderr(harvested: Path, ems: Ems) -> None:
    result = ems("report", "--json", "--stat", "max", "--where", "seed = 1")
    assert [(r["run"], r["lr"], r["epochs"], r["state"]) for r in json.loads(result.stdout)] == [
        (1, 0.1, 3, "COMPLETED"),
        (3, 0.01, 3, "COMPLETED"),
    ]
    assert "2 of 4 runs: seed = 1" in result.stderr


def test_a_file_is_written_in_the_format_that_its_name_says(harvested: Path, ems: Ems, project: Path) -> None:
    assert ems("report", "--by", "lr", "-o", "table.tex").stdout == ""
    assert r"\toprule" in (project / "table.tex").read_text()
    ems("report", "-o", "table.csv")
    assert (project / "table.csv").read_text().startswith("experiment,run,lr,seed,epochs,acc,loss,state\n")
    failed = ems("report", "-o", "no/such/folder/t.csv", code=2)
    assert failed.stderr.startswith(
        "error: no/such/folder/t.csv cannot be written: No such file or directory\n\nhint: "
    )


def test_a_curve_in_a_pipe_and_as_an_image(harvested: Path, ems: Ems, project: Path) -> None:
    pytest.importorskip("matplotlib")
    result = ems("report", "--curve", "acc", "--by", "lr", "--png", "acc.png", COLUMNS="80")
    assert "● lr=0.1   ○ lr=0.01" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert (project / "acc.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["--metric", "ac"], "no run has a metric `ac`", "did you mean `acc`?"),
        (["--where", "lrr < 1"], "--where `lrr < 1`: there is no column `lrr`", "did you mean `lr`?"),
        (["--png", "a.png"], "--png draws a curve, but no metric was named", "add --curve METRIC"),
        (["--top", "0"], "--top 0 leaves nothing to show", "--top 10"),
        (["--json", "--format", "csv"], "--json and --format csv contradict each other", "give one of them"),
    ],
)
def test_bad_input_gets_one_sentence_and_a_hint(
    harvested: Path, ems: Ems, args: list[str], message: str, hint: str
) -> None:
    result = ems("report", *args, code=2)
    assert result.stdout == ""
    assert result.stderr == f"error: {message}\n\nhint: {hint}\n"


def test_runs_that_ended_since_the_last_harvest_are_announced(project: Path, ems: Ems) -> None:
    files = record(project, [0.1], 3)
    Path(files.attempt(2, 1)).unlink()
    ems("harvest")
    assert "since the last harvest" not in ems("report").stderr
    end(files, 2, [0.99])
    said = ems("report").stderr
    assert f"1 run ended since the last harvest: ems harvest {EXP}" in said
    ems("harvest")
    assert "since the last harvest" not in ems("report").stderr


def test_a_machine_that_is_slow_announces_them_too(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = record(project, [0.1], 3)
    Path(files.attempt(2, 1)).unlink()
    assert cli.main(["harvest"]) == 0
    end(files, 2, [0.99])
    monkeypatch.setattr(report, "_LOOK_S", -1.0)  # all the time that it has for it went to importing
    assert cli.main(["report"]) == 0
    assert f"1 run ended since the last harvest: ems harvest {EXP}" in capsys.readouterr().err


def test_a_terminal_shows_colour_and_cuts_nothing_off_at_80_columns(harvested: Path, project: Path) -> None:
    shown = Terminal(project, "report", "--columns", "all")
    assert shown.code == 0
    assert "\x1b[" in shown.text
    plain = Terminal(project, "report", "--columns", "all", NO_COLOR="1")
    assert all(len(line) <= 80 or line.startswith("not shown") for line in plain.lines)
    assert "\x1b[3" not in plain.text
    assert "not shown for want of width: " in plain.text


def test_many_runs_go_through_a_pager_on_a_terminal(project: Path, ems: Ems, tmp_path: Path) -> None:
    record(project, [0.1 / n for n in range(1, 61)], 1, steps=1)
    ems("harvest")
    pager = tmp_path / "pager"
    pager.write_text(f"#!/bin/sh\ncat > {tmp_path}/paged\necho paged\n")
    pager.chmod(0o755)
    shown = Terminal(project, "report", NO_COLOR="1", PAGER=str(pager))
    assert shown.lines == ["paged"]
    assert len((tmp_path / "paged").read_text().splitlines()) > 60
    without = Terminal(project, "report", NO_COLOR="1", PAGER="/no/such/pager")
    assert len(without.lines) < 24
    assert "more lines" in without.text


def test_a_reader_that_leaves_early_is_no_error(harvested: Path, project: Path) -> None:
    command = f"{sys.executable} -m ems report --json | head -n 1"
    result = subprocess.run(["bash", "-c", command], cwd=project, capture_output=True, text=True, check=False)
    assert result.stdout == "[\n"
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr


# -- what runs have cost ----------------------------------------------------------------------------------------


def test_runs_cost_their_part_of_the_nodes_that_ems_made(ems: Ems, harvested: Path, tmp_path: Path) -> None:
    """The store's runs took a second each on n1: here no price is known, on a cluster that ems made it is."""
    assert "not known" in ems("report", "--cost", code=1).stderr
    with sqlite3.connect(harvested / "ems.db") as store:
        [(spec,)] = store.execute("SELECT spec FROM experiments").fetchall()
        changed = json.dumps({**json.loads(spec), "target": "demo", "resources": {"gres": "gpu:2"}})
        store.execute("UPDATE experiments SET target = 'demo', spec = ?", [changed])
    hours = json.loads(ems("report", "--cost", "--json").stdout)
    assert [each["gpu_hours"] for each in hours] == pytest.approx([2 / 3600] * 4)
    start = Event("i", "n1", "gpu", "", "", False, 36.0, 4, "", 8, "start", LONG_AGO, "eve")
    Ledger("demo").add(start.id, lambda _: [start])
    dollars = json.loads(ems("report", "--cost", "--metric", "acc", "--json").stdout)
    assert [each["cost_usd"] for each in dollars] == pytest.approx([36 / 3600 * 2 / 4] * 4)
    by = json.loads(ems("report", "--cost", "--by", "lr", "--json").stdout)
    assert [each["cost_usd"] for each in by] == pytest.approx([0.005] * 2)
    assert "leave one" in ems("report", "--cost", "--curve", "acc", code=2).stderr
