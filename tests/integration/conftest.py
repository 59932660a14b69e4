"""A root with experiments on it, as workers would have left them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ems.model import Experiment, Run
from ems.node.records import ExperimentFiles, dump, write_runs


class Farm:
    """Writes the files of one experiment below ``root``; what is written is what workers write."""

    def __init__(self, root: Path, n_runs: int = 3, exp_id: str = "7f3a9c21", **spec: Any) -> None:
        self.root = root
        experiment = Experiment(exp_id, "train", "2026-11-21T09:00:00.000Z", "train.py", "5" * 40, n_runs)
        self.experiment = replace(experiment, **spec)
        self.files = ExperimentFiles(root, exp_id)
        Path(self.files.chunks).mkdir(parents=True)
        Path(self.files.spec).write_text(dump(asdict(self.experiment)))
        self.runs = [Run(i, {"lr": 0.1 * (i + 1), "opt": {"name": "sgd"}}, i, f"key{i}") for i in range(n_runs)]
        write_runs(self.files, map(asdict, self.runs))
        self.chunk(1, start=0, stop=n_runs)

    def chunk(self, number: int, job: str | None = None, **record: Any) -> None:
        """Write a chunk and the job that it was handed over as."""
        job = job or ("here-1-1" if self.experiment.executor == "here" else f"184{number}")
        Path(self.files.chunk(number)).write_text(json.dumps({"chunk": number, "indices": None, **record}))
        Path(self.files.chunk(number, "job")).write_text(json.dumps({"job": job}))

    def attempt(self, index: int, number: int = 1, state: str = "COMPLETED", **more: Any) -> None:
        """Write an attempt record."""
        path = Path(self.files.attempt(index, number))
        path.parent.mkdir(parents=True, exist_ok=True)
        started = {"index": index, "attempt": number, "chunk": 1, "state": state, "started_at": f"2026-11-21T0{number}"}
        ended = {} if state == "RUNNING" else {"ended_at": "2026-11-21T10", "exit_code": 0, "wall_s": 1.5}
        aside = path.with_suffix(".aside")
        aside.write_text(dump({"job": f"1841_{index}", **started, **ended, **more}))
        aside.replace(path)

    def write(self, index: int, name: str, content: str | bytes, append: bool = False) -> Path:
        """Write, or append to, a file in the directory of a run."""
        path = Path(self.files.run(index, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        with path.open("ab" if append else "wb") as file:
            file.write(data)
        return path

    def log(self, index: int, step: int, attempt: int = 1, **metrics: float) -> None:
        """Append a line as ``ems.log()`` does."""
        line = {"step": step, **metrics, "_t": 1763716200.0 + step, "_a": attempt}
        self.write(index, "metrics.jsonl", json.dumps(line) + "\n", append=True)


@pytest.fixture
def farm(tmp_path: Path) -> Farm:
    """Three runs of one experiment on ``here``; nothing has started."""
    return Farm(tmp_path / ".ems")


@pytest.fixture
def make_farm(tmp_path: Path) -> Any:
    """Make a farm with other facts."""

    def make(**facts: Any) -> Farm:
        return Farm(tmp_path / ".ems", **facts)

    return make


# Before the given call of some functions either the laptop dies or its connection does, and every one made anew.
_BROKEN_AT = """
import os, pkgutil, signal, sys
from pathlib import Path
from ems.cli import main
how, left, functions = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(",")

def strike():
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text() == "ssh\\n":
            os.kill(int(child), signal.SIGKILL)
    raise BrokenPipeError("broken")  # whatever had come before is lost, however quick the machine is

def striking(function):
    def call(*args, **more):
        global left
        left -= 1
        if left < 0:
            strike()
        return function(*args, **more)
    return call

for each in functions:
    place, _, name = each.rpartition(".")
    holder = pkgutil.resolve_name(f"ems.remote.{place}")
    setattr(holder, name, striking(getattr(holder, name)))
sys.exit(main(sys.argv[4:]))
"""


@pytest.fixture
def broken_at() -> Any:
    """Return the words that run ``ems`` until it is ``"killed"``, or its connection ``"broken"``, at a frame."""

    def words(how: str, frame: int, *args: str, functions: str = "wire.send,wire.receive") -> list[str]:
        return [sys.executable, "-c", _BROKEN_AT, how, str(frame), functions, *args]

    return words


@pytest.fixture
def tick(tmp_path: Path) -> Callable[[], None]:
    """Wait until what is written now gets a later time than all before: file systems count in ticks, some of 10 ms."""
    probe = tmp_path / "tick"

    def wait() -> None:
        probe.touch()
        before = probe.stat().st_ctime_ns
        while probe.stat().st_ctime_ns == before:
            time.sleep(0.001)
            probe.touch()
        probe.unlink()

    return wait


@pytest.fixture
def content() -> Any:
    """Return all that a store holds, whatever its row ids; two stores of the same results are equal."""

    def read(store: Any) -> Mapping[str, list[Any]]:
        run = "r.experiment_id || '/' || r.idx"
        queries = {
            "runs": f"SELECT {run}, r.params, r.state, r.reason, r.attempt, r.settled, r.chain FROM runs r",
            "attempts": f"SELECT {run}, a.* FROM attempts a JOIN runs r ON r.id = a.run_id",
            "points": "SELECT experiment, run, metric, attempt, step, value, text, at FROM curves",
            "summaries": f"SELECT {run}, m.name, s.source, s.n, s.n_nan, s.n_text, s.last, s.last_text, s.last_step,"
            " s.min, s.max, s.sum FROM summaries s JOIN runs r ON r.id = s.run_id JOIN metrics m ON m.id = s.metric_id",
            "sources": f"SELECT {run}, s.path, s.offset, s.state FROM sources s JOIN runs r ON r.id = s.run_id",
            "params": "SELECT * FROM params",
        }
        skip = {"attempts": 1}  # the row id of the run
        found = {}
        for name, sql in queries.items():
            rows = store.query(sql)
            if name in skip:
                rows = [(row[0], *row[2:]) for row in rows]
            found[name] = sorted(rows, key=repr)
        return found

    return read


@pytest.fixture(params=["aws", "gce", "openstack"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A stand-in of each cloud, see clouds/benches.py; imported here, since its libraries take a second."""
    from clouds import benches

    with benches.serve(request.param, tmp_path, monkeypatch) as bench:
        yield bench
