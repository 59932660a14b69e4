"""A machine that is reached over SSH, on this one: a real sshd on loopback, as a process that ends with its test."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ems import registry
from ems.errors import EmsError
from ems.registry import RemoteTarget
from ems.remote import wire
from ems.ssh import Host

SSHD = "/usr/sbin/sshd"
_LIMIT_S = 120.0


def why_not() -> str:
    """Say what this machine lacks for it; empty where it lacks nothing."""
    return "" if Path(SSHD).exists() else "needs sshd; as root on Debian or Ubuntu: sh tests/slurm/install.sh"


class Far:
    """A machine over SSH that is this one: a real sshd on loopback, a home and a root of its own.

    Parameters
    ----------
    folder
        Where everything of it lies.
    executor
        What runs its jobs.
    environment
        What a login there finds besides.

    Attributes
    ----------
    target
        As the registry has it, under the name ``far``.
    root
        The root there.
    """

    name = "far"

    def __init__(self, folder: Path, executor: str = "here", environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        # what a login there finds is not the home of who runs the tests
        self.environment = {"HOME": f"{folder}/home", "EMS_SLOTS": os.environ["EMS_SLOTS"], "EMS_HERE_GPUS": ""}
        if "PYTHONPATH" in os.environ:  # a checkout that is tested, but not installed
            self.environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
        self.environment |= environment or {}
        self.root = folder / "home" / "ems"
        self._sshd: subprocess.Popen[bytes] | None = None
        wire.code_digest.cache_clear()  # a module may have been edited since the tests began
        self._make_keys()
        self.start()
        self.target = RemoteTarget(
            name=self.name,
            host=self.host(),
            root=str(self.root),
            ems=(sys.executable, "-m", "ems"),
            executor=executor,
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
            command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            self._sshd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _LIMIT_S
        while not _listens(self.port):
            assert self._sshd.poll() is None, (self.folder / "sshd.log").read_text()
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.02)

    def stop(self) -> None:
        """End sshd and every connection: the machine is gone from the network."""
        if self._sshd is None:
            return
        os.kill(self._sshd.pid, signal.SIGSTOP)  # it lets nobody in whom the next line would not see
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
        with suppress(EmsError):  # whatever else a test has broken, sshd ends
            self.host().close()
        if self._sshd is not None:
            below = _descendants(self._sshd.pid)
            self.stop()
            _kill(below)
        _kill(pid for pid in _processes() if os.fsencode(self.folder) in _command_line(pid))
        self._held.close()

    def _make_keys(self) -> None:
        (self.folder / "home").mkdir(parents=True)
        for name in ("key", "host_key"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.folder / name)]
            subprocess.run(keygen, check=True)
        (self.folder / "authorized_keys").write_text((self.folder / "key.pub").read_text())
        (self.folder / "known_hosts").write_text(f"{self.name} {(self.folder / 'host_key.pub').read_text()}")
        # Bound as long as this lives, and never listening: nobody else gets the port, not even while sshd is stopped;
        # sshd does, for both say SO_REUSEADDR
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self.port = int(self._held.getsockname()[1])

    def _configuration(self) -> str:
        environment = " ".join(f"{name}={value}" for name, value in self.environment.items())
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
                f"SetEnv {environment}",
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
    """End processes; what they had open is closed when this returns."""
    ending = [pid for pid in pids if pid != os.getpid()]
    for pid in ending:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _LIMIT_S
    while any(map(_lives, ending)) and time.monotonic() < deadline:
        time.sleep(0.005)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
