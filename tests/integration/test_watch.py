"""The watch of a compute node: real processes and stand-ins for SLURM, clouds' metadata and what switches off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ems.cluster import shipped

SCRIPT = shipped.templates() / "roles" / "slurm_compute" / "files" / "ems-watch"
# As a worker: waits for the signal, and ends at the second one
WORKER = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPWR})
signal.signal(signal.SIGPWR, print)
print("up", flush=True)
for word in ("first", "second"):
    signal.sigwait({signal.SIGPWR})
    print(word, flush=True)
"""
# Catches the signal, too, for a purpose of its own
OTHER = """
import signal, sys
signal.signal(signal.SIGPWR, lambda *_: sys.exit("told"))
print("up", flush=True)
signal.pause()
"""


# Its clock goes on while nothing that it has asked is still to answer, unless that hangs: no pause of the machine is
# silence, and nobody waits for silence.
CLOCK = """
import runpy, subprocess, sys, time
from pathlib import Path
sleep, now = time.sleep, [time.monotonic()]

def is_busy(pid):
    try:
        words = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
        return words[0] != "Z" and Path("/proc", pid, "comm").read_text() != "sleep\\n"
    except OSError:
        return False

def tick(seconds):
    sleep(seconds if seconds > 60 else 0.02)
    while any(map(is_busy, Path("/proc/thread-self/children").read_text().split())):
        sleep(0.01)
    now[0] += seconds

time.sleep, time.monotonic = tick, lambda: now[0]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def wait_until(condition: Callable[[], Any], limit_s: float = 120) -> Any:
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    return found


class Node:
    """A node as its watch sees it; what could touch this machine is replaced by scripts that only say so."""

    def __init__(self, folder: Path) -> None:
        self.name = f"n{uuid.uuid4().hex[:8]}"  # processes are found by it
        self.folder, self.share = folder, folder / "share"
        self.heartbeat = self.share / "state" / "heartbeat"
        self.heartbeat.parent.mkdir(parents=True)
        self.asked, self.notice = folder / "asked", folder / "notice"
        self.asked.touch()
        self.processes: list[subprocess.Popen[str]] = []
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("scontrol", "shutdown", "umount", "systemctl"):
            self.tool(name, f'echo "{name} $*" >>{self.asked}')
        who = f"uid={os.getuid()}; [ $4 != 51 ] || uid=$((uid + 1))"  # job 51 is another user's
        answer = 'echo "JobId=$4 JobName=x UserId=ada($uid) GroupId=lab(7) Priority=1"'
        self.tool("scontrol", f'echo "scontrol $*" >>{self.asked}\n[ "$1" != -o ] || {{ {who}; {answer}; }}')

    def tool(self, name: str, text: str) -> None:
        path = self.bin / name
        aside = path.with_suffix(".aside")
        aside.write_text(f"#!/bin/sh\n{text}\n")
        aside.chmod(0o755)
        aside.rename(path)

    def watch(self, *python: str, **rules: Any) -> subprocess.Popen[str]:
        """Start the watch; ``python`` stands before its script: by a clock of its own?"""
        path = self.folder / "watch.json"
        base = {"name": self.name, "provider": "container", "share": str(self.share), "notice": str(self.notice)}
        path.write_text(json.dumps(base | {"silent_s": 3600} | rules))
        return self.start(*python, SCRIPT, path)

    def start(self, *words: str | Path, **env: str) -> subprocess.Popen[str]:
        assert (self.bin / "shutdown").exists()
        process = subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", **env},
            text=True,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def task(self, source: str, job: str, array: str = "", node: str = "") -> subprocess.Popen[str]:
        """Start the one process of a batch step, as slurmstepd does; it has said that it is up."""
        words = {"SLURM_JOB_ID": job, "SLURMD_NODENAME": node or self.name}
        if array:
            words |= dict(zip(("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"), array.split("_"), strict=True))
        code = "import os, sys; os.environ['SLURM_TASK_PID'] = str(os.getpid()); os.execv(sys.executable, sys.argv[1:])"
        path = self.folder / "lib" / ("ems/node/worker.py" if source is WORKER else "job.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        process = self.start("-c", code, sys.executable, str(path), **words)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    def words(self) -> list[str]:
        return self.asked.read_text().splitlines()

    def states(self) -> list[str]:
        return [line.split(" reason")[0] for line in self.words() if line.startswith("scontrol update")]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    for process in node.processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def stat_of(process: subprocess.Popen[str]) -> str:
    """Return the state of a process, as ps shows it."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_what_runs_is_saved_then_the_node_is_gone(node: Node) -> None:
    worker, other = node.task(WORKER, "43", "42_1"), node.task(OTHER, "50")
    elsewhere = node.task(OTHER, "60", node=f"{node.name}0")
    forged = [node.task(OTHER, job) for job in ("51", "50,60")]  # as a user may say in an environment
    said = (node.bin / "scontrol").read_text().partition("\n")[2]
    # until a task is there that SLURM had started before it heard, however long that takes
    node.tool("scontrol", f'{said}\ncase "$*" in *state=drain*) kill -STOP $PPID;; esac')
    watch = node.watch()
    node.notice.write_text("6\n")
    assert read_line(worker) == "first"
    wait_until(lambda: node.states() and stat_of(watch) == "T")
    late = node.task(WORKER, "44", "42_2")
    watch.send_signal(signal.SIGCONT)
    assert [read_line(each) for each in (late, late, worker)] == ["first", "second", "second"]
    notice = node.share / "state" / "notices" / f"{node.name}.json"
    word = json.loads(notice.read_text())
    assert (word["node"], word["jobs"]) == (node.name, ["42_1", "50", "50,60", "51"])
    wait_until(lambda: len(node.states()) == 2)
    assert node.states() == [f"scontrol update nodename={node.name} state={word}" for word in ("drain", "down")]
    assert all(" reason=ems: preempted" in line for line in node.words() if "update" in line)
    assert [line for line in node.words() if "requeue" in line] == ["scontrol requeue 50"]
    assert [each.poll() for each in (other, *forged)] == [None] * 3
    assert elsewhere.poll() is None


class Metadata(BaseHTTPRequestHandler):
    """What Compute Engine and EC2 tell a machine; only that of the right header."""

    answers: dict[str, tuple[int, str]] = {}  # noqa: RUF012 - of the one test that sets it

    def _answer(self) -> None:
        is_asked_well = (
            self.headers.get("Metadata-Flavor") == "Google"
            or (self.command == "PUT" and self.headers.get("X-aws-ec2-metadata-token-ttl-seconds"))
            or self.headers.get("X-aws-ec2-metadata-token") == "token"
        )
        status, text = self.answers.get(f"{self.command} {self.path}", (404, "")) if is_asked_well else (401, "")
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_PUT = _answer  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Metadata, "answers", {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("provider", ["gce", "aws"])
def test_clouds_are_asked_for_their_notice(node: Node, metadata: str, provider: str) -> None:
    gce = "GET /computeMetadata/v1/instance/preempted"
    Metadata.answers |= {gce: (200, "FALSE"), "PUT /latest/api/token": (200, "token")}
    watch = node.watch(provider=provider, spot=True, metadata=metadata)
    # the power button is pressed at the same time: the unit is told to end, and looks once more
    at = datetime.now(UTC) + timedelta(seconds=40)
    said = json.dumps({"action": "terminate", "time": f"{at:%Y-%m-%dT%H:%M:%SZ}"})
    wait_until(lambda: Path(f"/proc/{watch.pid}/oom_score_adj").exists() and caught(watch, signal.SIGTERM))
    Metadata.answers |= {gce: (200, "TRUE"), "GET /latest/meta-data/spot/instance-action": (200, said)}
    watch.terminate()
    assert "taken back in" in read_line(watch)
    assert watch.wait(120) == 0
    assert node.states()[-1] == f"scontrol update nodename={node.name} state=down"


def test_a_node_that_no_cloud_takes_back_ends_at_once(node: Node, metadata: str) -> None:
    Metadata.answers["GET /computeMetadata/v1/instance/preempted"] = 200, "TRUE"
    watch = node.watch(provider="gce", spot=False, metadata=metadata)
    wait_until(lambda: caught(watch, signal.SIGTERM))
    watch.terminate()
    assert watch.wait(120) == 0
    assert node.words() == []


def caught(process: subprocess.Popen[str], number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def beating(node: Node) -> Path:
    """Have each look at the heartbeat find another one; returns the file that gets a line for each."""
    looks = node.folder / "looks"
    node.heartbeat.write_text("begins")
    node.tool("cat", f'echo >>{looks}; wc -l <{looks} >{node.heartbeat}; exec /bin/cat "$@"')
    return looks


def off(node: Node) -> list[str]:
    return [line for line in node.words() if line.startswith("shutdown")]


@pytest.mark.parametrize("how", ["stops", "hangs"])
def test_a_node_whose_controller_falls_silent_is_switched_off(node: Node, how: str) -> None:
    looks = beating(node)
    watch = node.watch("-c", CLOCK, silent_s=4)
    wait_until(lambda: looks.exists() and len(looks.read_text()) > 9)  # one each second, longer than it bears
    assert off(node) == []
    assert watch.poll() is None
    # a file server that is dead holds whoever asks it
    node.tool("cat", "exec sleep 600" if how == "hangs" else 'exec /bin/cat "$@"')
    assert "has stopped" in wait_until(lambda: off(node))[0]
    os.killpg(watch.pid, signal.SIGTERM)  # as systemd does, and nothing that hangs outlives it
    assert watch.wait(60) == -signal.SIGTERM, "systemd need not wait for it"


def test_a_node_that_slurm_has_let_go_of_is_switched_off(node: Node) -> None:
    answer = "echo NodeName=n Arch=x86_64 State=MIXED+CLOUD+{} ThreadsPerCore=1"
    asked = node.folder / "asked-slurm"
    node.tool("scontrol", f"echo >>{asked}; " + answer.format("DRAIN+POWER_DOWN"))  # its jobs may end
    beating(node)
    node.watch("-c", CLOCK, silent_s=4)
    wait_until(lambda: asked.exists() and len(asked.read_text()) > 7)  # one each second, longer than it bears
    assert off(node) == []
    node.tool("scontrol", answer.format("POWERED_DOWN*"))
    assert "has let go" in wait_until(lambda: off(node))[0]


@pytest.mark.parametrize("is_first", [True, False])
def test_without_a_heartbeat_nothing_is_switched_off(node: Node, is_first: bool) -> None:
    asked = node.folder / "asked-sh"
    taken = f"rm -f {node.heartbeat}"  # after the first look, as somebody may: the share answers all the same
    node.tool("sh", f'/bin/sh "$@"; status=$?; {taken}; echo $status >>{asked}; exit $status')
    if is_first:
        node.heartbeat.write_text("1\n")
    watch = node.watch("-c", CLOCK, silent_s=1)
    # one each second, longer than it bears
    wait_until(lambda: asked.exists() and asked.read_text().count("3") > 4)
    assert ("0" in asked.read_text()) is is_first
    assert watch.poll() is None
    assert off(node) == []
