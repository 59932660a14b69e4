"""A root with experiments on it, as workers would have left them; and a machine that is reached over SSH."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ems import registry
from ems.model import Experiment, Run
from ems.node.records import ExperimentFiles, dump, write_runs
from ems.registry import RemoteTarget
from ems.ssh import Host

_SSHD = "/usr/sbin/sshd"


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


# ------------------------------------------------------------------------------------------ a target over SSH


class Far:
    """A machine over SSH that is this one: a real sshd on loopback, a root of its own, the executor ``here``.

    Attributes
    ----------
    target
        As the registry has it, under the name ``far``.
    root
        The root there.
    """

    name = "far"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "home" / "ems"
        self._sshd: subprocess.Popen[bytes] | None = None
        self._make_keys()
        self.start()
        self.target = RemoteTarget(
            name=self.name,
            host=self.host(),
            root=str(self.root),
            ems=(sys.executable, "-m", "ems"),
            executor="here",
            python=sys.executable,
        )
        registry.save(self.target)

    def host(self, **changes: Any) -> Host:
        """Return how it is reached."""
        host = Host(
            destination=f"{pwd.getpwuid(os.geteuid()).pw_name}@127.0.0.1",
            port=self.port,
            identity=self.folder / "key",
            known_hosts=self.folder / "known_hosts",
            host_key_alias=self.name,
        )
        return replace(host, **changes)

    def start(self) -> None:
        """Start sshd, on the same port as before; returns when it answers."""
        (self.folder / "sshd_config").write_text(self._configuration())
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with (self.folder / "sshd.log").open("ab") as log:
            command = [_SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            self._sshd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while not _listens(self.port):
            assert self._sshd.poll() is None, (self.folder / "sshd.log").read_text()
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.02)

    def stop(self) -> None:
        """End sshd and every connection: the machine is gone from the network."""
        if self._sshd is None:
            return
        below = _descendants(self._sshd.pid)  # of the sessions, only what sshd itself is: commands end by themselves
        self._sshd.kill()
        self._sshd.wait()
        self._sshd = None
        _kill(pid for pid in below if b"sshd" in _command_line(pid))

    def drop(self) -> None:
        """Break every connection; the next one is let in."""
        assert self._sshd is not None
        _kill(_descendants(self._sshd.pid))

    def end(self) -> None:
        """End everything that was started here or there."""
        self.host().close()
        if self._sshd is not None:
            below = _descendants(self._sshd.pid)
            self.stop()
            _kill(below)
        _kill(pid for pid in _processes() if os.fsencode(self.folder) in _command_line(pid))

    def _make_keys(self) -> None:
        (self.folder / "home").mkdir(parents=True)
        for name in ("key", "host_key"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.folder / name)]
            subprocess.run(keygen, check=True)
        (self.folder / "authorized_keys").write_text((self.folder / "key.pub").read_text())
        (self.folder / "known_hosts").write_text(f"{self.name} {(self.folder / 'host_key.pub').read_text()}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def _configuration(self) -> str:
        # what a login there finds is not the home of who runs the tests
        environment = [f"HOME={self.folder}/home", f"EMS_SLOTS={os.environ['EMS_SLOTS']}", "EMS_HERE_GPUS="]
        return "\n".join(
            [
                f"ListenAddress 127.0.0.1:{self.port}",
                f"HostKey {self.folder}/host_key",
                f"AuthorizedKeysFile {self.folder}/authorized_keys",
                f"PidFile {self.folder}/sshd.pid",
                "StrictModes no",
                "UsePAM no",
                "PermitRootLogin yes",
                "PasswordAuthentication no",
                "KbdInteractiveAuthentication no",
                "MaxStartups 100",
                f"SetEnv {' '.join(environment)}",
                "",
            ]
        )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for each in _processes():
        with suppress(OSError):
            parent = int(Path(f"/proc/{each}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(each)
    found, left = [], [pid]
    while left:
        below = parents.get(left.pop(), [])
        found += below
        left += below
    return found


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        if pid != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    """A target ``far`` over SSH, not the current one: ``ems parrun train.py --on far``."""
    if not Path(_SSHD).exists():
        assert os.environ.get("EMS_REQUIRE") is None, "openssh-server is missing: sh tests/slurm/install.sh"
        pytest.skip("needs sshd; as root on Debian or Ubuntu: apt install openssh-server")
    far = Far(tmp_path / "far")
    yield far
    far.end()
