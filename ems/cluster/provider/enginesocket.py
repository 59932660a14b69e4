"""A container engine from inside one of its containers: by its socket a controller makes and deletes its own nodes.

Docker's daemon has one; podman gets a service of its own for each such cluster, that ends with the cluster. The
controller of an elastic cluster sees the socket, and no other machine does. Through it, root there can do with this
computer what the engine can: it is a user's own cluster on a user's own computer.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ems.cluster.provider.engine import Engine
from ems.cluster.provider.images import DISTRIBUTIONS, image_name
from ems.errors import ProviderError

#: Where the controller sees the socket, and what it is told of the engine (for root only; below `/`).
FOLDER, FACTS = "/run/ems-engine", "etc/ems/engine.json"
_DOCKER = "/var/run/docker.sock"
_ANSWERS_S = 60  # for a service that starts on a busy machine
_ENDS_S = 10
_AGAIN_S = 0.05
_LIVES_S = 5  # one that ends sooner cannot run, and is not begun again
# Has a service until the file is gone, or says anything but its process id, which nsenter keeps
_KEEP = """file=$1 least=$2; shift 2
while began=$(date +%s); do
    "$@" &
    echo $! >"$file"
    wait $!
    [ "$(cat "$file")" = $! ] && [ $(($(date +%s) - began)) -ge "$least" ] || exit
done"""


class SocketEngine(Engine):
    """The engine of the computer that this machine is a container of.

    Parameters
    ----------
    facts
        What :func:`told` said there.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(str(facts["engine"]))
        address = f"unix://{facts['socket']}"
        self.words = ("docker", "-H", address) if self.name == "docker" else ("podman", "--remote", "--url", address)
        self.has_limits = bool(facts["has_limits"])
        self.images: dict[str, str] = dict(facts["images"])
        self._boot = tuple(facts["boot"])

    def _is_inside(self) -> bool:
        return False  # its service is


def here(path: Path | None = None) -> SocketEngine:
    """Return the engine by which the controller that this runs on makes its nodes.

    Parameters
    ----------
    path
        Where it was told; None: as controllers are.

    Raises
    ------
    ProviderError
        If it was given none.
    """
    path = path or Path("/", FACTS)
    try:
        return SocketEngine(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError) as error:
        raise ProviderError(
            f"this machine cannot make containers: {path} does not say how ({error})",
            "only the controller of an elastic cluster can; it is told when it is made",
        ) from None


def options(engine: Engine, cluster: str) -> list[str]:
    """Return the options of ``create`` by which a controller sees the socket."""
    if engine.name == "docker":
        mount = f"{_docker_socket(engine)}:{FOLDER}/docker.sock"
    else:  # the folder: a service that starts again makes the socket anew
        mount = f"{Service(cluster).make_folder()}:{FOLDER}"
    return [f"--volume={mount}", "--security-opt=label=disable"]


def told(engine: Engine, image: str) -> str:
    """Return what a controller is told of the engine, for :data:`FACTS`: JSON."""
    # the runtime is the service's matter: its client has no such option
    boot = [flag for flag in engine.adapt(image) if not _is_runtime(flag)]
    facts = {
        "engine": engine.name,
        "socket": f"{FOLDER}/{engine.name}.sock",
        "boot": boot,
        "has_limits": engine.has_limits,
        "images": {each: image_name(each) for each in DISTRIBUTIONS},  # they depend on this computer
    }
    return json.dumps(facts)


def is_mounted(paths: Sequence[str]) -> bool:
    """Whether a machine at which these paths are mounted sees the socket."""
    return any(each == FOLDER or each.startswith(f"{FOLDER}/") for each in paths)


class Service:
    """What answers on podman's socket for one cluster: a process of this computer, that outlives the command.

    A shell beside it begins it again whenever it ends, unless :meth:`end` did that.

    Parameters
    ----------
    cluster
        The cluster's name.
    """

    def __init__(self, cluster: str) -> None:
        self.folder = _own_folder() / cluster
        self.socket = self.folder / "podman.sock"
        # Beside the folder, not in it: what the controller can write is no word to end a process by
        self.pid_file = _own_folder() / f"{cluster}.pid"
        self.log = _own_folder() / f"{cluster}.log"

    def make_folder(self) -> Path:
        """Have the folder that is mounted into the controller, and return it.

        Raises
        ------
        ProviderError
            If somebody else has made the one around it, who could then take the socket's place.
        """
        around = self.folder.parent
        around.mkdir(mode=0o700, parents=True, exist_ok=True)
        if around.is_symlink() or around.stat().st_uid != os.geteuid():
            raise ProviderError(f"{around} is somebody else's", "set XDG_RUNTIME_DIR to a folder of yours")
        self.folder.mkdir(mode=0o700, exist_ok=True)
        return self.folder

    def have(self, engine: Engine, image: str) -> None:
        """Have the engine answer on the socket; where it does already nothing is done. Docker does by itself.

        Parameters
        ----------
        image
            One that boots here, by which the engine finds out what it needs.

        Raises
        ------
        ProviderError
            If it does not come to answer.
        """
        if engine.name != "podman":
            return
        flags = engine.adapt(image)
        process = self.process()
        if process and engine.is_home_of(process) and self._answers():
            return
        self.end()
        self.make_folder()
        self._begin(engine, [flag for flag in flags if _is_runtime(flag)])
        deadline = time.monotonic() + _ANSWERS_S
        while not self._answers():
            if time.monotonic() > deadline or self._has_failed():
                said = self.log.read_text(errors="replace").strip().splitlines()
                raise ProviderError(f"podman's service does not answer: {said[-1] if said else 'it says nothing'}")
            time.sleep(_AGAIN_S)

    def end(self) -> None:
        """End it, if it is there."""
        process = self.process()
        if process:  # first, else it is begun again; added, so that who comes after a kill here still finds it
            with self.pid_file.open("a") as file:
                file.write("ends\n")
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + _ENDS_S
            while process and self._is_it(process) and time.monotonic() < deadline:
                with suppress(ProcessLookupError):
                    os.kill(process, number)
                time.sleep(_AGAIN_S)
        for each in (self.pid_file, self.log, self.socket):
            each.unlink(missing_ok=True)

    def forget(self) -> None:
        """End it, and delete what a cluster that is no more had of it."""
        if self.folder.exists():
            self.end()
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):  # another cluster has one, too
                self.folder.parent.rmdir()

    def process(self) -> int:
        """Return its process; 0: there is none, whatever has its number now."""
        try:
            process = int(self.pid_file.read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return 0
        return process if self._is_it(process) else 0

    def _is_it(self, process: int) -> bool:
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return False
        return f"unix://{self.socket}" in words

    def _begin(self, engine: Engine, flags: Sequence[str]) -> None:
        words = [*engine.words, *flags, "system", "service", "--time=0", f"unix://{self.socket}"]
        begin = ["setsid", "--fork", "sh", "-c", _KEEP, "sh", str(self.pid_file), str(_LIVES_S)]
        with engine.entered() as entry, self.log.open("wb") as log:
            subprocess.run(
                [*begin, *entry, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True, cwd="/"
            )

    def _has_failed(self) -> bool:
        """Whether it ended again after it had begun."""
        return self.pid_file.exists() and self.pid_file.read_text().endswith("\n") and not self.process()

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_ANSWERS_S)
            return client.connect_ex(str(self.socket)) == 0


def _docker_socket(engine: Engine) -> str:
    """Return where Docker's daemon listens, on its own machine: that of a user alone, or of the system."""
    words = ("context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
    address = os.environ.get("DOCKER_HOST") or engine.call(*words)
    own = re.fullmatch(r"unix://(/run/user/\S+)", address.strip())
    return own[1] if own else _DOCKER


def _is_runtime(flag: str) -> bool:
    return flag.startswith("--runtime")


def _own_folder() -> Path:
    if os.geteuid() == 0:
        return Path(FOLDER)
    own = os.environ.get("XDG_RUNTIME_DIR")
    return Path(own, "ems-engine") if own else Path(tempfile.gettempdir(), f"ems-engine-{os.getuid()}")
