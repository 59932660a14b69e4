"""The worker: real processes in a real root, started by the Python of these tests and by older and newer ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ems import snapshot
from ems.model import Experiment
from ems.node import checkout, feed, install, records

PYTHONS = [
    sys.executable,
    *(str(p) for v in ("3.8", "3.13") for p in Path("/root/.pyenv/versions").glob(f"{v}.*/bin/python")),
]
IS_ROOT = os.geteuid() == 0
LIMIT_S = 120.0


def wait_until(condition: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    return found


class Lab:
    """A project, and an experiment of it that workers can be let loose on."""

    def __init__(self, project: Path, slots: Path) -> None:
        self.project, self.slots = project, slots
        self.root = project / ".ems"
        self.files = records.ExperimentFiles(self.root, "7f3a9c21")
        self.workers: list[subprocess.Popen[str]] = []

    def write(self, **sources: str) -> None:
        for name, text in sources.items():
            path = self.project / name.replace("__", "/").replace("_py", ".py").replace("_txt", ".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def submit(self, n: int = 1, params: Callable[[int], dict[str, Any]] = lambda i: {"i": i}, **changes: Any) -> None:
        self.root.mkdir(exist_ok=True)
        (self.root / ".gitignore").write_text("*\n")
        frozen = snapshot.take(self.project, self.root / "snapshots.git")
        checkout.ensure(self.root, frozen.id)
        self.lib = install.install_lib(self.root)
        chunk = {k: changes.pop(k) for k in ("pack", "indices", "resources", "fresh") if k in changes}
        spec = Experiment(
            **{
                "id": self.files.id, "name": "t", "created_at": records.now(), "script": "train.py",
                "snapshot": frozen.id, "n_runs": n, "python": sys.executable, "pass_as": "none",
            } | changes
        )  # fmt: skip
        Path(self.files.chunks).mkdir(parents=True, exist_ok=True)
        records.write_atomic(self.files.spec, json.dumps(asdict(spec)))
        points = ({"index": i, "params": params(i), "seed": 100 + i, "key": str(i), "loops": [i]} for i in range(n))
        records.write_runs(self.files, points)
        self.chunk(1, n, **chunk)

    def chunk(self, number: int, n: int, **changes: Any) -> None:
        record = {"chunk": number, "start": 0, "stop": n, "indices": None, "pack": None, "tasks": n, "fresh": False}
        records.write_atomic(self.files.chunk(number), records.dump(record | changes))
        records.write_atomic(self.files.chunk(number, "job"), "{}")

    def start(self, *args: str, chunk: int = 1, python: str = sys.executable, **env: str) -> subprocess.Popen[str]:
        worker = Path(self.lib, "ems", "node", "worker.py")
        process = subprocess.Popen(
            [python, "-I", "-S", str(worker), str(self.root), self.files.id, str(chunk), *args],
            env={**os.environ, "EMS_SLOTS": str(self.slots), "PYTHONDONTWRITEBYTECODE": "", **env},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.workers.append(process)
        return process

    def work(self, *args: str, code: int = 0, **options: Any) -> str:
        process = self.start(*(args or ("--here",)), **options)
        out, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == code, out
        return out

    def slurm(self, task: int = 0, restart: int = 0) -> dict[str, str]:
        return {
            "SLURM_JOB_ID": "1843",
            "SLURM_ARRAY_JOB_ID": "1842",
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_RESTART_COUNT": str(restart),
            "PATH": f"{self.project.parent / 'bin'}:{os.environ['PATH']}",
        }

    def scontrol(self, job: str = "JobState=RUNNING PreemptTime=None", requeue: int = 0) -> Path:
        """Stand in for scontrol; returns the file with what it was asked."""
        asked = self.project.parent / "asked"
        tool = self.project.parent / "bin" / "scontrol"
        tool.parent.mkdir(exist_ok=True)
        aside = tool.with_suffix(".aside")  # workers may be asking the one that was there
        aside.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n[ $1 = show ] && echo "{job}" && exit 0\nexit {requeue}\n')
        aside.chmod(0o755)
        aside.rename(tool)
        return asked

    def run(self, index: int, *parts: str) -> Path:
        return Path(self.files.run(index, *parts))

    def out(self, index: int = 0, stream: str = "stdout") -> str:
        path = self.run(index, stream + ".log")
        return path.read_text() if path.exists() else ""

    def last(self, index: int = 0) -> dict[str, Any]:
        return records.last_attempt(self.files, index) or {}

    def states(self, n: int) -> list[str | None]:
        return [self.last(i).get("state") for i in range(n)]

    def says(self, text: str, index: int = 0) -> None:
        wait_until(lambda: text in self.out(index))


@pytest.fixture
def lab(project: Path, tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(project, tmp_path / "slots")
    yield lab
    for worker in lab.workers:
        if worker.poll() is None:
            worker.kill()
        worker.communicate()
    for entry in Path("/proc").iterdir():  # what a killed worker left
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                if f"EMS_ROOT={lab.root}\0".encode() in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue


# ------------------------------------------------------------------------------------------ starting


@pytest.mark.parametrize("python", PYTHONS)
def test_a_script_runs_as_its_user_would_run_it(lab: Lab, python: str) -> None:
    lab.write(
        sub__train_py="""
import json, os, sys, ems, helper
print(json.dumps({
    "argv": sys.argv, "cwd": os.getcwd(), "file": __file__, "real": os.path.realpath(__file__), "main": __name__,
    "path": sys.path[0], "helper": helper.__file__, "read": open("data.txt").read(), "up": open("../top.txt").read(),
    "params": ems.params(), "seed": ems.seed(), "attempt": ems.attempt(), "resumed": ems.is_resumed(),
    "stdin": sys.stdin.read(), "env": {k: v for k, v in os.environ.items() if k.startswith(("EMS_", "SUBMITIT_"))},
}))
open("result.txt", "w").write("mine")
ems.log(step=1, acc=0.5)
(ems.checkpoint() / "model").write_text("weights")
""",
        sub__helper_py="x = 1",
        sub__data_txt="data",
        top_txt="top",
    )
    lab.submit(
        2,
        lambda i: {"lr": 0.1 * i, "name": "ü $(x) '\"\n"},
        script="sub/train.py",
        cwd="sub",
        pass_as="flags",
        python=python,
    )
    lab.work(python=python, SUBMITIT_EXECUTOR="local", EMS_PARAMS="of another run")
    assert lab.states(2) == ["COMPLETED", "COMPLETED"], lab.out(0, "stderr")
    seen = json.loads(lab.out(1))
    view = lab.run(1, "files", "sub")
    assert seen["argv"] == ["train.py", "--lr", "0.1", "--name", "ü $(x) '\"\n"]
    assert seen["params"] == {"lr": 0.1, "name": "ü $(x) '\"\n"}
    assert seen["main"] == "__main__"
    assert seen["cwd"] == seen["path"] == str(view)
    assert seen["real"] == str(view / "train.py") == str(view / seen["file"])
    assert seen["helper"] == str(view / "helper.py")
    assert (seen["read"], seen["up"], seen["stdin"]) == ("data", "top", "")
    assert (seen["seed"], seen["attempt"], seen["resumed"]) == (101, 1, False)
    assert seen["env"]["EMS_INDEX"] == "1"
    assert seen["env"]["EMS_RUN_DIR"] == str(lab.run(1))
    assert not [name for name in seen["env"] if name.startswith("SUBMITIT_")]
    # only what the run wrote is kept
    assert [
        p.relative_to(lab.run(1, "files")).as_posix() for p in lab.run(1, "files").rglob("*") if not p.is_dir()
    ] == ["sub/result.txt"]
    assert lab.run(1, "checkpoint", "model").read_text() == "weights"
    assert json.loads(lab.run(1, "metrics.jsonl").read_text())["acc"] == 0.5
    assert not (lab.project / "sub" / "result.txt").exists()


def test_the_record_says_what_the_run_took(lab: Lab) -> None:
    lab.write(train_py="import time\nx = bytearray(80_000_000)\nwhile time.process_time() < 0.1: pass")
    lab.submit()
    lab.work()
    record = lab.last()
    assert record["state"] == "COMPLETED"
    assert record["exit_code"] == 0
    assert (record["reason"], record["signal"], record["resumed_from"]) == ("", "", None)
    assert 80 < record["max_rss_mb"] < 200
    assert 0.1 <= record["cpu_s"] < 5
    assert record["wall_s"] >= 0.1
    assert record["host"] == os.uname().nodename
    assert record["started_at"] < record["ended_at"]
    assert record["job"].startswith("here-")


def test_swept_loops_run_their_own_combination(lab: Lab) -> None:
    lab.write(train_py="for x in [10, object, 30]:\n    print('x is', x)\n")
    loop = {"line": 1, "column": 0, "names": ["x"], "size": 3}
    lab.submit(3, lambda i: {}, loops=(loop,), source="loops")
    lab.work()
    assert [lab.out(i) for i in range(3)] == ["x is 10\n", "x is <class 'object'>\n", "x is 30\n"]
    assert [lab.last(i)["params"] for i in range(3)] == [{"x": 10}, {"x": "<class 'object'>"}, {"x": 30}]
    assert sorted(p.name for p in lab.run(0, "attempts").iterdir()) == ["1.json"]


def test_params_too_long_for_a_variable_arrive(lab: Lab) -> None:
    lab.write(train_py="import ems\nprint(len(ems.params()['text']))")
    lab.submit(params=lambda i: {"text": "x" * 300_000})
    lab.work()
    assert lab.out() == "300000\n"


def test_setup_lines_come_first_and_get_no_code_from_params(lab: Lab, tmp_path: Path) -> None:
    lab.write(train_py="import os, sys\nprint(os.environ['FROM_SETUP'], sys.argv[1:])")
    bad = f"$(touch {tmp_path}/bad) `touch {tmp_path}/bad`; touch {tmp_path}/bad"
    lab.submit(params=lambda i: {"text": bad}, pass_as="flags", setup=("export FROM_SETUP=yes # and on", "true"))
    lab.work()
    assert lab.out() == f"yes {['--text', bad]}\n"
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("image", ["x.sif", "x.sqsh"])
def test_a_container_that_setup_loads_gets_params_and_working_directory(lab: Lab, image: str) -> None:
    tools = lab.project.parent / "tools"
    tools.mkdir()
    # stand-ins: one hands its environment over, the other what it is told to
    (tools / "apptainer").write_text('#!/bin/sh\nwhile [ "$1" != x.sif ]; do shift; done\nshift; exec "$@"\n')
    (tools / "enroot").write_text(
        '#!/bin/bash\nkeep=(PATH="$PATH")\n'
        'while [ "$1" != x.sqsh ]; do [ "$1" = --env ] && keep+=("$2=${!2}"); shift; done\n'
        'shift; cd /; exec env -i "${keep[@]}" "$@"\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    lab.write(train_py="import ems, os\nprint(ems.params(), os.environ['I'], open('read.txt').read())", read_txt="r")
    lab.submit(container=image, setup=(f"export PATH={tools}:$PATH",), pass_as="env")
    lab.work()
    assert lab.out() == "{'i': 0} 0 r\n", lab.out(0, "stderr")


@pytest.mark.parametrize(
    ("source", "options", "reason", "error"),
    [
        ("def f():\n    raise KeyError('lr')\nf()", {}, "KeyError: 'lr' (train.py:2)", "KeyError"),
        ("import sub.deep", {}, "ValueError: a: b (sub/deep.py:1)", "ValueError"),
        ("x = (", {}, "SyntaxError: '(' was never closed (train.py:1)", "SyntaxError"),
        ("import sys; sys.exit('no data')", {}, "exit code 1: no data", None),
        ("import sys; sys.exit(3)", {}, "exit code 3", None),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", {}, "killed by SIGSEGV", None),
        ("pass", {"python": "python9"}, f"`python9` is not on node {os.uname().nodename}", None),
        ("pass", {"setup": ("false",)}, "exit code 1: ems: setup failed", None),
        ("pass", {"container": "x.sif"}, None, None),
    ],
)  # fmt: skip
def test_a_failure_is_explained(
    lab: Lab, source: str, options: dict[str, Any], reason: str | None, error: str | None
) -> None:
    lab.write(train_py=source, sub__deep_py="raise ValueError('a: b')")
    lab.submit(**options)
    lab.work()
    record = lab.last()
    assert record["state"] == "FAILED"
    if "container" in options:
        assert "to start the container x.sif" in record["reason"]
    else:
        assert record["reason"] == reason
    assert (record.get("error") or {}).get("type") == error


def test_one_that_cannot_start_says_so_in_its_stderr_and_the_next_one_runs(lab: Lab) -> None:
    lab.write(train_py="print('ran')")
    lab.submit(2, lambda i: {"text": "\0" if i == 0 else "x"}, pass_as="flags")
    lab.work()
    assert lab.states(2) == ["FAILED", "COMPLETED"]
    assert "NUL byte" in lab.out(0, "stderr")


# ------------------------------------------------------------------------------------------ where a run works


def test_no_run_changes_the_snapshot_the_project_or_another_run(lab: Lab) -> None:
    lab.write(
        train_py="""
import os
def attempt(name, mode="w"):
    try:
        with open(name, mode) as file:
            file.write("changed")
        print(name, "written")
    except OSError as error:
        print(name, "refused")
for name in ["train.py", "read.txt", "read.csv", "data/set.csv", "data/new.txt", "new.txt", "sub/new.txt"]:
    attempt(name)
try:
    os.unlink("read.txt")
except OSError:
    pass
print(open("data/set.csv").read())
""",
        read_txt="original",
        sub__x_txt="x",
    )
    large = "x" * 100_000 + "\n"  # small files are copied
    (lab.project / "read.csv").write_text(large + "original")
    (lab.project / "data").mkdir()
    (lab.project / "data" / "set.csv").write_text(large + "data")
    (lab.project / "data" / "set.csv").chmod(0o444)
    (lab.project / ".gitignore").write_text("data/\n")
    before = {p: p.read_bytes() for p in lab.project.rglob("*") if p.is_file() and ".git" not in p.parts}
    lab.submit(2, data={"data": str(lab.project / "data")})
    lab.work("--here", "--workers", "2")
    assert lab.states(2) == ["COMPLETED", "COMPLETED"], lab.out(0, "stderr")
    assert {p: p.read_bytes() for p in before} == before
    assert not (lab.project / "new.txt").exists()
    spec = records.read_json(lab.files.spec) or {}
    checkout.verify(lab.root, spec["snapshot"])
    assert lab.run(0, "files", "new.txt").read_text() == "changed"
    assert lab.run(0, "files", "sub", "new.txt").read_text() == "changed"
    assert lab.run(0, "files", "data", "new.txt").read_text() == "changed"
    assert lab.run(0, "files", "train.py").read_text() == "changed"  # its own copy
    assert [line for line in lab.out().splitlines() if "refused" in line] == [
        "read.csv refused",
        "data/set.csv refused",
    ]
    assert lab.out().splitlines()[-1] == "data"


def test_a_tampered_checkout_stops_the_run(lab: Lab) -> None:
    lab.write(train_py="print('ran')", config_txt="lr: 0.1")
    lab.submit()
    spec = records.read_json(lab.files.spec) or {}
    path = lab.root / "code" / spec["snapshot"] / "config.txt"
    path.chmod(0o644)
    path.write_text("lr: 0.2")
    lab.work()
    assert lab.last()["state"] == "FAILED"
    assert "config.txt" in lab.last()["reason"]
    assert lab.out() == ""


def test_compiled_modules_are_kept_for_the_next_run(lab: Lab) -> None:
    lab.write(train_py="import helper, pkg.part", helper_py="x = 1", pkg__part_py="y = 2")
    lab.submit(2)
    lab.work()
    assert lab.states(2) == ["COMPLETED", "COMPLETED"], lab.out(0, "stderr")
    kept = [p.name.split(".")[0] for p in (lab.root / "pycache").rglob("*.pyc")]
    assert sorted(kept) == ["helper", "part"]
    assert not list(lab.run(0, "files").iterdir())
    inodes = {p: p.stat().st_ino for p in (lab.root / "pycache").rglob("*.pyc")}
    lab.chunk(2, 2)
    lab.work(chunk=2)
    assert {p: p.stat().st_ino for p in (lab.root / "pycache").rglob("*.pyc")} == inodes  # found, not compiled again
    assert not list(lab.run(0, "files").iterdir())


def test_a_module_that_a_run_writes_is_its_own(lab: Lab) -> None:
    write = "i = os.environ['EMS_INDEX']\nopen('config.py', 'w').write('I = ' + i)\nos.utime('config.py', (1e9, 1e9))\n"
    lab.write(train_py=f"import os\n{write}import config, helper\nprint(i, config.I)", config_py="I = 9", helper_py="")
    lab.submit(4)
    lab.work("--here", "--workers", "2")
    assert [lab.out(i) for i in range(4)] == [f"{i} {i}\n" for i in range(4)]
    assert [p.name.split(".")[0] for p in (lab.root / "pycache").rglob("*.pyc")] == ["helper"]


# ------------------------------------------------------------------------------------------ exactly once


def test_two_workers_at_once_run_each_run_once(lab: Lab, tmp_path: Path) -> None:
    lab.write(train_py=f"import os\nopen({str(tmp_path / 'ran')!r}, 'a').write(os.environ['EMS_INDEX'] + '\\n')")
    lab.submit(24)
    first, second = (lab.start("--here", "--workers", "2") for _ in range(2))
    for worker in (first, second):
        out, _ = worker.communicate(timeout=LIMIT_S)
        assert worker.returncode == 0, out
    lab.work()  # and submitting it again runs nothing
    assert sorted(map(int, (tmp_path / "ran").read_text().split())) == list(range(24))
    assert lab.states(24) == ["COMPLETED"] * 24
    assert all(lab.last(i)["attempt"] == 1 for i in range(24))


def test_array_tasks_run_their_own_run(lab: Lab) -> None:
    lab.write(train_py="print('ran')")
    lab.submit(6, indices=[5, 3])
    lab.work("--task", "1")
    assert lab.states(6) == [None, None, None, "COMPLETED", None, None]
    lab.work("--task", "7")  # there is none


def test_a_packed_chunk_is_shared_by_its_tasks(lab: Lab) -> None:
    lab.write(train_py="import os\nprint(os.environ.get('CUDA_VISIBLE_DEVICES'))")
    lab.submit(7, pack=2)
    lab.work("--task", "2", CUDA_VISIBLE_DEVICES="4,6")
    assert lab.states(7) == ["COMPLETED"] * 7
    assert {lab.out(i) for i in range(7)} == {"4\n", "6\n"}
    assert lab.last(0)["gpus"] in ("4", "6")


def test_a_rerun_is_the_next_attempt(lab: Lab) -> None:
    lab.write(
        train_py="import ems\nf = ems.checkpoint() / 'n'\nprint(ems.attempt(), ems.is_resumed(), f.exists())\nf.touch()"
    )
    lab.submit(2)
    lab.work()
    lab.chunk(2, 1)
    lab.work(chunk=2)
    lab.work(chunk=1)  # an older chunk does not come back
    lab.chunk(3, 1, fresh=True)
    lab.work(chunk=3)
    assert lab.out(0).splitlines() == ["1 False False", "2 True True", "3 False False"]
    assert [records.read_json(lab.files.attempt(0, n))["resumed_from"] for n in (1, 2, 3)] == [None, 1, None]
    assert lab.last(0)["stdout_from"] == len("1 False False\n2 True True\n")
    assert lab.run(0, "attempts", "2-checkpoint", "n").exists()
    assert lab.last(1)["attempt"] == 1


def test_a_run_that_begins_anew_finds_nothing_of_earlier_attempts(lab: Lab) -> None:
    lab.write(train_py="import os\nprint(os.path.exists('model.pt'))\nopen('model.pt', 'w').close()")
    lab.submit()
    lab.work()
    lab.chunk(2, 1)
    lab.work(chunk=2)
    lab.chunk(3, 1, fresh=True)
    lab.work(chunk=3)
    assert lab.out().split() == ["False", "True", "False"]
    assert lab.run(0, "attempts", "2-files", "model.pt").exists()


def test_a_record_that_a_power_cut_emptied_stops_nobody(lab: Lab) -> None:
    lab.write(train_py="print('ran')")
    lab.submit(2)
    lab.run(0, "attempts").mkdir(parents=True)
    lab.run(0, "attempts", "1.json").touch()
    lab.work()
    assert lab.states(2) == ["COMPLETED"] * 2
    assert lab.last()["attempt"] == 2


def test_what_a_killed_worker_left_running_ends_before_the_next_attempt(lab: Lab) -> None:
    lab.write(train_py="import ems, os, time\nprint(f'pid {os.getpid()}')\nif ems.attempt() == 1: time.sleep(600)")
    lab.submit()
    worker = lab.start("--here")
    lab.says("pid")
    worker.kill()
    worker.wait()
    orphan = int(lab.out().split()[1])
    assert Path(f"/proc/{orphan}").exists()
    lab.work()  # the same chunk does not run it again
    assert lab.last()["attempt"] == 1
    lab.chunk(2, 1)
    lab.work(chunk=2)
    assert lab.states(1) == ["COMPLETED"]
    wait_until(lambda: not Path(f"/proc/{orphan}").exists() or "Z" in Path(f"/proc/{orphan}/stat").read_text())


# ------------------------------------------------------------------------------------------ ending


SLEEPER = "import time\nprint('up', flush=True)\ntime.sleep(600)"
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
print("up")
while True:
    time.sleep(60)
"""


def test_ending_a_pool_cancels_its_runs(lab: Lab) -> None:
    lab.write(train_py=SLEEPER)
    lab.submit(3)
    worker = lab.start(
        "--here",
        "--workers",
        "2",
    )
    lab.says("up", 0)
    lab.says("up", 1)
    worker.terminate()
    assert worker.wait(LIMIT_S) == 0
    assert lab.states(3) == ["CANCELLED", "CANCELLED", None]
    assert lab.last()["signal"] == "SIGTERM"


def scarce(lab: Lab) -> None:
    """Have run 0 go on elsewhere, which leaves nothing of the budget to run 1 until it has ended."""
    lab.write(train_py="print('ran')\n")
    lab.submit(2, budget={"cpuh": 1.0}, resources={"time": "1:00:00"})
    admitted = {"run": 0, "attempt": 1, "at": time.time(), "rates": {"cpuh": 1.0}, "most_h": 1.0}
    Path(lab.files.dir, "budget-0.jsonl").write_text(records.dump(admitted) + "\n")


@pytest.mark.parametrize("refusals", [2, 99])
def test_a_run_that_waits_for_its_budget_does_so_in_the_queue(lab: Lab, refusals: int) -> None:
    scarce(lab)
    asked = lab.scontrol()
    (lab.project.parent / "bin" / "scontrol").write_text(
        f'#!/bin/sh\necho "$@" >>{asked}\n[ "$1" = requeue ] || exit 0\n[ $(grep -c requeue {asked}) -gt {refusals} ]\n'
    )
    lab.work("--task", "1", **lab.slurm(1))
    said = asked.read_text().splitlines()
    assert said[0] == "update JobId=1842 ArrayTaskThrottle=1"
    if refusals == 2:
        assert said[1:] == ["requeue 1842_1"] * 3
        assert lab.last(1) == {}, "SLURM starts it again, and nothing was decided"
    else:
        assert (lab.last(1)["state"], lab.last(1)["reason"]) == ("CANCELLED", "budget")


def test_a_run_that_waits_for_its_budget_is_cancelled_at_once(lab: Lab) -> None:
    scarce(lab)
    records.write_atomic(lab.files.chunk(1), records.dump(records.read_json(lab.files.chunk(1)) | {"start": 1}))
    worker = lab.start("--here")
    wait_until(lambda: Path(lab.files.dir, "budget-0.jsonl.lock").exists())
    records.cancel(lab.files, 1)
    assert worker.wait(LIMIT_S) == 0
    assert (lab.last(1)["state"], lab.last(1)["reason"], lab.out(1)) == ("CANCELLED", "cancelled", "")


def test_one_run_is_cancelled(lab: Lab) -> None:
    lab.write(train_py="import os, time\nprint('up', flush=True)\nif os.environ['EMS_INDEX'] == '0': time.sleep(600)")
    lab.submit(3)
    records.cancel(lab.files, 1)
    worker = lab.start("--here")
    lab.says("up", 0)
    records.cancel(lab.files, 0)
    assert worker.wait(LIMIT_S) == 0
    assert lab.states(3) == ["CANCELLED", "CANCELLED", "COMPLETED"]
    assert lab.out(1) == ""
    lab.chunk(2, 2)  # a rerun is another matter
    lab.write()
    worker = lab.start("--here", chunk=2)
    wait_until(lambda: lab.last(0)["attempt"] == 2 and lab.out(0).count("up") == 2)
    records.cancel(lab.files, 0)
    assert worker.wait(LIMIT_S) == 0
    assert lab.states(2) == ["CANCELLED", "COMPLETED"]


def test_a_cancelled_chunk_that_slurm_brings_back_starts_nothing(lab: Lab) -> None:
    """A slurmctld that was killed knows of its last seconds nothing: neither of jobs that ended, nor of a scancel."""
    lab.write(train_py="print('up')")
    lab.submit(2)
    lab.work("--task", "0", **lab.slurm(0))
    cancelled = {"job": feed.CANCELLED, "was": "1842", "tasks": 2}
    records.write_atomic(lab.files.chunk(1, "job"), records.dump(cancelled))
    for task, restart in ((0, 0), (0, 1), (1, 0), (1, 1)):
        lab.work("--task", str(task), **lab.slurm(task, restart))
    assert lab.states(2) == ["COMPLETED", None]
    assert (lab.out(0), lab.out(1)) == ("up\n", "")


def test_a_run_that_does_not_hear_is_killed_after_the_grace(lab: Lab) -> None:
    lab.write(train_py=STUBBORN)
    lab.submit(grace_s=1)
    worker = lab.start("--here")
    lab.says("up")
    began = time.monotonic()
    worker.terminate()
    assert worker.wait(50) == 0, "long before the minute that it would have if nobody said"
    assert time.monotonic() - began >= 1
    assert "heard" in lab.out()
    assert (lab.last()["state"], lab.last()["signal"]) == ("CANCELLED", "SIGKILL")


def test_the_scripts_own_signal_reaches_it(lab: Lab) -> None:
    lab.write(
        train_py="""
import signal, sys, time
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(0))
print("up")
time.sleep(600)
"""
    )
    lab.submit()
    worker = lab.start("--here")
    lab.says("up")
    worker.send_signal(signal.SIGHUP)  # the terminal has closed: nobody's business
    worker.send_signal(signal.SIGUSR2)
    assert worker.wait(LIMIT_S) == 0
    assert lab.states(1) == ["COMPLETED"]


def test_nothing_that_a_run_started_outlives_it(lab: Lab) -> None:
    lab.write(train_py="import subprocess, sys\nprint(subprocess.Popen(['sleep', '600']).pid)")
    lab.submit()
    lab.work()
    left = int(lab.out())
    wait_until(lambda: not Path(f"/proc/{left}").exists() or "Z" in Path(f"/proc/{left}/stat").read_text())


EPOCHS = """
import ems, time
state = ems.checkpoint() / "epoch"
done = int(state.read_text()) if state.exists() else 0
for epoch in range(done, 3):
    state.write_text(str(epoch + 1))
    print("epoch", epoch, "attempt", ems.attempt(), flush=True)
    if epoch < 2:
        time.sleep(600)
"""


def test_slurm_requeues_at_the_time_limit_and_the_run_goes_on(lab: Lab) -> None:
    asked = lab.scontrol()
    lab.write(train_py=EPOCHS)
    lab.submit()
    for restart in range(2):
        worker = lab.start(**lab.slurm(restart=restart))
        lab.says(f"epoch {restart}")
        worker.send_signal(signal.SIGUSR1)
        assert worker.wait(LIMIT_S) == 0
        record = lab.last()
        assert (record["state"], record["reason"]) == ("PENDING", "time limit")
        assert (record["job"], record["restart"]) == ("1842_0", restart)
        assert asked.read_text().splitlines()[-1] == "requeue 1842_0"
        lab.work("--task", "0", **lab.slurm(task=1, restart=restart))  # not another job's to take
        assert lab.last()["attempt"] == restart + 1
    lab.work("--task", "0", **lab.slurm(restart=2))
    assert lab.out().splitlines() == ["epoch 0 attempt 1", "epoch 1 attempt 2", "epoch 2 attempt 3"]
    assert (lab.last()["state"], lab.last()["resumed_from"]) == ("COMPLETED", 2)


def test_requeues_after_the_time_limit_are_bounded(lab: Lab) -> None:
    asked = lab.scontrol()
    lab.write(train_py=SLEEPER)
    lab.submit(max_requeues=1)
    for restart in range(2):
        worker = lab.start(**lab.slurm(restart=restart))
        wait_until(lambda n=restart + 1: lab.out().count("up") == n)
        worker.send_signal(signal.SIGUSR1)
        worker.wait(LIMIT_S)
    assert (lab.last()["state"], lab.last()["reason"]) == ("FAILED", "time limit")
    assert asked.read_text().count("requeue") == 1


def test_what_a_packed_task_has_no_time_for_goes_on_after_a_requeue(lab: Lab) -> None:
    asked = lab.scontrol()
    lab.write(train_py="print('ran')")
    lab.submit(3, max_requeues=0, pack=1)
    lab.work(**lab.slurm())
    lab.write(train_py=SLEEPER)
    lab.submit(3, max_requeues=0, pack=1)
    lab.chunk(2, 3, pack=1)  # all of them again, which have attempts of the chunk before
    worker = lab.start(chunk=2, **lab.slurm())
    lab.says("up")
    worker.send_signal(signal.SIGUSR1)
    assert worker.wait(LIMIT_S) == 0
    assert [lab.last(i)["state"] for i in range(3)] == ["FAILED", "COMPLETED", "COMPLETED"]
    assert asked.read_text().splitlines()[-1] == "requeue 1842_0"


@pytest.mark.parametrize(("pack", "again"), [(None, [1]), (2, [])])
def test_a_requeue_repeats_nothing_that_is_done(lab: Lab, pack: int | None, again: list[int]) -> None:
    """A job of its own that failed is tried again as SLURM was told to; one that runs share says nothing of each."""
    lab.write(train_py="import os, sys\nprint('ran')\nsys.exit(int(os.environ['EMS_INDEX']))")
    lab.submit(2, pack=pack)
    for restart in range(2):
        for task in (0, 1):
            lab.work("--task", str(task), code=0 if pack else task, **lab.slurm(task if not pack else 0, restart))
    assert lab.states(2) == ["COMPLETED", "FAILED"]
    assert [lab.out(i).count("ran") for i in range(2)] == [1 + (i in again) for i in range(2)]


def test_a_requeue_that_slurm_refuses_is_a_failure(lab: Lab) -> None:
    lab.scontrol(requeue=1)
    lab.write(train_py=SLEEPER)
    lab.submit()
    worker = lab.start(**lab.slurm())
    lab.says("up")
    worker.send_signal(signal.SIGUSR1)
    worker.wait(LIMIT_S)
    assert (lab.last()["state"], lab.last()["reason"]) == ("FAILED", "time limit")


SAVING = """
import ems, signal, time
if ems.attempt() == 2:
    print("went on from", (ems.checkpoint() / "state").read_text())
else:
    def save(*_):
        (ems.checkpoint() / "state").write_text("here")
        print("saved", flush=True)
    signal.signal(signal.SIGTERM, save)
    print("up", flush=True)
    while True:
        time.sleep(600)
"""


def test_a_run_whose_node_is_taken_back_saves_itself_and_goes_on_elsewhere(lab: Lab) -> None:
    asked = lab.scontrol(requeue=1)
    lab.write(train_py=SAVING)
    lab.submit(grace_s=600, max_requeues=0)
    worker = lab.start(**lab.slurm())
    lab.says("up")
    worker.send_signal(signal.SIGPWR)
    lab.says("saved")
    worker.send_signal(signal.SIGPWR)  # no time is left
    wait_until(lambda: asked.exists() and asked.read_text().count("requeue 1842_0") > 1)
    assert worker.poll() is None, "a job that ends well is not started again"
    assert (lab.last()["state"], lab.last()["reason"], lab.last()["signal"]) == ("PENDING", "preempted", "SIGKILL")
    lab.scontrol()
    assert worker.wait(LIMIT_S) == 0
    lab.work("--task", "0", **lab.slurm(restart=1))
    assert lab.out().splitlines()[-1] == "went on from here"
    assert (lab.last()["state"], lab.last()["attempt"]) == ("COMPLETED", 2)


@pytest.mark.parametrize(
    ("job", "state", "reason", "requeued"),
    [
        ("JobState=CANCELLED PreemptTime=None", "CANCELLED", "cancelled", False),
        ("JobState=RUNNING PreemptTime=2026-11-21T10:00:00", "PENDING", "preempted", True),
        ("JobState=COMPLETING PreemptTime=None", "PENDING", "terminated by SLURM", False),
    ],
)
def test_why_slurm_ends_a_job_is_asked(lab: Lab, job: str, state: str, reason: str, requeued: bool) -> None:
    asked = lab.scontrol(job)
    lab.write(train_py=SLEEPER)
    lab.submit()
    worker = lab.start(**lab.slurm())
    lab.says("up")
    worker.terminate()
    worker.wait(LIMIT_S)
    assert (lab.last()["state"], lab.last()["reason"]) == (state, reason)
    assert ("requeue" in asked.read_text()) == requeued


def test_a_run_that_hears_of_the_end_before_its_worker_does_not_fail(lab: Lab) -> None:
    lab.scontrol("JobState=RUNNING PreemptTime=2026-11-21T10:00:00")
    lab.write(train_py="import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    lab.submit()
    code = Path(lab.lib, "ems", "node", "worker.py")  # which waits, however slow the machine is
    assert "_SIGTERM_LAG_S = 1.0" in code.read_text()
    code.write_text(code.read_text().replace("_SIGTERM_LAG_S = 1.0", f"_SIGTERM_LAG_S = {LIMIT_S}"))
    worker = lab.start(**lab.slurm())
    log = Path(lab.files.run(0, "stdout.log"))
    pid = int(wait_until(lambda: log.exists() and log.read_text().strip()))
    os.kill(pid, signal.SIGTERM)  # SLURM signals all processes of a job, in no order
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    worker.terminate()
    worker.wait(LIMIT_S)
    assert (lab.last()["state"], lab.last()["reason"]) == ("PENDING", "preempted")


def test_the_exit_code_of_an_array_task_is_that_of_its_run(lab: Lab) -> None:
    lab.write(train_py="import sys; sys.exit(7)")
    lab.submit()
    lab.work("--task", "0", code=7, **lab.slurm())


def test_a_time_limit_without_slurm_requeues_too(lab: Lab) -> None:
    lab.write(train_py=EPOCHS)
    lab.submit(resources={"time": "0:03"}, grace_s=0.2, max_requeues=99)
    lab.work()
    *earlier, last = [records.read_json(lab.files.attempt(0, n)) for n in lab.files.attempt_numbers(0)]
    assert len(earlier) >= 2, "an epoch each; on a machine that is very busy some do not even start within it"
    assert {(each["state"], each["reason"]) for each in earlier} == {("PENDING", "time limit")}
    assert [each["resumed_from"] for each in (*earlier, last)] == [None, *(each["attempt"] for each in earlier)]
    assert last["state"] == "COMPLETED"
    assert lab.out().splitlines()[-1] == f"epoch 2 attempt {last['attempt']}"


# ------------------------------------------------------------------------------------------ sharing a machine

INTERVAL = """
import os, sys, time
with open(sys.argv[1], "a") as file:
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    began = time.monotonic()
    time.sleep(0.15)
    file.write("%s %f %f\\n" % (gpu or "none", began, time.monotonic()))
"""


def intervals(path: Path) -> list[tuple[str, float, float]]:
    lines = [line.split() for line in path.read_text().splitlines()]
    return [(gpu, float(began), float(ended)) for gpu, began, ended in lines]


def most_at_once(spans: list[tuple[str, float, float]]) -> int:
    return max(sum(a <= began < b for _, a, b in spans) for _, began, _ in spans)


def test_two_pools_never_share_a_gpu(lab: Lab, tmp_path: Path) -> None:
    lab.write(train_py=INTERVAL)
    lab.submit(8, args=(str(tmp_path / "spans"),), resources={"gres": "gpu:1"})
    pools = [lab.start("--here", "--workers", "2", "--gpus", "0,1") for _ in range(2)]
    assert [pool.wait(LIMIT_S) for pool in pools] == [0, 0]
    spans = intervals(tmp_path / "spans")
    assert len(spans) == 8
    assert {gpu for gpu, _, _ in spans} == {"0", "1"}
    for device in "01":
        assert most_at_once([span for span in spans if span[0] == device]) == 1


def test_two_pools_never_use_more_cores_than_there_are(lab: Lab, tmp_path: Path) -> None:
    cores = os.cpu_count() or 1
    lab.write(train_py=INTERVAL)
    lab.submit(4 * cores, args=(str(tmp_path / "spans"),))
    pools = [lab.start("--here", "--workers", str(cores)) for _ in range(2)]
    assert [pool.wait(LIMIT_S) for pool in pools] == [0, 0]
    spans = intervals(tmp_path / "spans")
    assert len(spans) == 4 * cores
    assert most_at_once(spans) <= cores


def test_two_pools_of_an_experiment_keep_to_max_parallel(lab: Lab, tmp_path: Path) -> None:
    lab.write(train_py=INTERVAL)
    lab.submit(6, max_parallel=1, args=(str(tmp_path / "spans"),))
    lab.chunk(1, 3)
    lab.chunk(2, 6, start=3)
    pools = [lab.start("--here", "--workers", "1", chunk=chunk) for chunk in (1, 2)]
    assert [pool.wait(LIMIT_S) for pool in pools] == [0, 0]
    spans = intervals(tmp_path / "spans")
    assert len(spans) == 6
    assert most_at_once(spans) == 1


def test_a_gpu_stays_taken_while_the_run_of_a_killed_worker_lives(lab: Lab) -> None:
    lab.write(train_py="import ems, os, time\nprint(f'up {os.getpid()}')\nif ems.params()['i'] == 0: time.sleep(600)")
    lab.submit(2, resources={"gpus": "1"})
    worker = lab.start("--here", "--gpus", "0")
    lab.says("up")
    worker.kill()
    worker.wait()
    other = lab.start("--here", "--gpus", "0")
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(0.5)
    os.kill(int(lab.out().split()[1]), signal.SIGKILL)
    assert other.wait(LIMIT_S) == 0
    assert lab.last(1)["state"] == "COMPLETED"


# ------------------------------------------------------------------------------------------ trouble


@pytest.mark.skipif(not IS_ROOT, reason="mounting a small tmpfs needs root")
def test_a_full_disk_stops_the_worker_and_is_said(lab: Lab) -> None:
    lab.write(train_py="print('ran')")
    lab.submit(3)
    runs = Path(lab.files.dir, "runs")
    runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", runs], check=True)
    try:
        filler = runs / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        out = lab.work(code=1)
        assert "run 0 cannot be claimed" in out
        assert "No space left" in out
        filler.unlink()
        lab.work()
        assert lab.states(3) == ["COMPLETED"] * 3
    finally:
        subprocess.run(["umount", "-l", runs], check=True)


def test_an_unknown_chunk_is_an_error(lab: Lab) -> None:
    lab.write(train_py="pass")
    lab.submit()
    assert "has no chunk 9" in lab.work(code=1, chunk=9)


@pytest.mark.parametrize("python", PYTHONS)
def test_a_worker_starts_without_slow_modules(lab: Lab, python: str) -> None:
    lab.write(train_py="pass")
    lab.submit()
    code = "import sys; sys.path.insert(0, sys.argv[1]); import ems.node.worker; print(*sys.modules)"
    done = subprocess.run([python, "-I", "-S", "-c", code, lab.lib], capture_output=True, text=True, check=True)
    slow = {"subprocess", "typing", "argparse", "shutil", "tempfile", "uuid", "dataclasses", "ctypes", "pathlib"}
    assert not slow.intersection(done.stdout.split())
