"""The docker or podman command: whichever works here, with the flags that this machine needs.

Everything in which the two differ is in :class:`Dialect`; podman on machines that lack capabilities is in
:meth:`Engine.adapt` and :mod:`~ems.cluster.provider.namespace`. The dialect of docker follows its documentation and
what kind and minikube do to boot systemd in it.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

from ems.cluster.provider import namespace
from ems.errors import ProviderError

TIMEOUT_S = 600
_LOOKS, _BETWEEN_LOOKS_S = 10, 0.5
_SOME_LIMITS = ("--memory=256m", "--cpus=0.5")
# A refusal of the runtime, which other flags may cure; not of the image, the disk or the network
_LACKING = re.compile(r"OCI|crun|runc|cgroup|rlimit", re.IGNORECASE)
_GONE = re.compile(r"no such|not found|does not exist|no container with|unable to find|not known", re.IGNORECASE)
_HINTS = (
    (r"no space left|disk quota", "free some space, e.g. by the engine's own `image prune`"),
    (r"address already in use|port is already allocated", "end what listens on that port, then try again"),
    (r"already used on the host|pool overlaps|subnet .* (is )?already|overlaps with", "give `subnet` another range"),
    (r"permission denied.*docker", "add yourself to the group docker and log in again: sudo usermod -aG docker $USER"),
    (r"cannot connect to the docker daemon", "start it: `sudo systemctl start docker`, or Docker Desktop"),
    (r"all predefined address pools|could not find free subnet", "give `subnet` a free range, or delete networks"),
)
INSTALL = "install Docker (https://docs.docker.com/get-docker) or Podman, e.g. sudo apt install podman crun netavark"


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one engine calls differently.

    Attributes
    ----------
    boot
        Options of ``create`` with which systemd boots.
    remove
        The words that end and delete a container at once.
    gpus
        Option that gives the first GPUs of this computer.
    cpus, store
        Where ``info`` says how many processors it has, and where it keeps what it has: a virtual machine's, where
        the engine runs in one.
    """

    boot: tuple[str, ...]
    remove: tuple[str, ...]
    gpus: Callable[[int], list[str]]
    cpus: str
    store: str


DIALECTS = {
    # A writable cgroup tree of its own is all that systemd lacks, and --privileged the only way all versions have
    "docker": Dialect(
        boot=("--privileged", "--cgroupns=private", "--tmpfs=/run:exec", "--tmpfs=/run/lock", "--pids-limit=-1"),
        remove=("rm", "--force", "--volumes"),
        gpus=lambda count: [f'--gpus="device={",".join(map(str, range(count)))}"'],
        cpus="{{.NCPU}}",
        store="{{.DockerRootDir}}",
    ),
    "podman": Dialect(
        boot=("--systemd=always", "--pids-limit=-1"),
        remove=("rm", "--force", "--time=0", "--volumes"),
        gpus=lambda count: [f"--device=nvidia.com/gpu={index}" for index in range(count)],
        cpus="{{.Host.CPUs}}",
        store="{{.Store.GraphRoot}}",
    ),
}


class Engine:
    """One container engine that answers.

    Attributes
    ----------
    name
        ``docker`` or ``podman``.
    has_limits
        Whether processors and memory of a container can be limited here; known after :meth:`adapt`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.words: tuple[str, ...] = (name,)  # what every command of it begins with
        self.dialect = DIALECTS[name]
        self.has_limits = True
        self._needs_namespace = False
        self._boot: tuple[str, ...] | None = None
        self._probing = threading.Lock()

    def call(self, *words: str, data: bytes | None = None, timeout_s: float = TIMEOUT_S) -> str:
        """Run the engine's command and return what it printed.

        Raises
        ------
        ProviderError
            If it fails, in its own words.
        """
        done = self._run(words, data, timeout_s)
        if done.returncode:
            raise _error(self.name, done.stderr.decode(errors="replace"))
        return done.stdout.decode(errors="replace")

    def ids(self, *words: str) -> list[str]:
        """Run a command that prints ids: again where the engine fails as what it was about to list has just gone.

        Raises
        ------
        ProviderError
            If it fails for another reason, or each time.
        """
        left = _LOOKS
        while True:
            left -= 1
            try:
                return self.call(*words).split()
            except ProviderError as error:
                if not left or not _GONE.search(error.message):
                    raise
            sleep(_BETWEEN_LOOKS_S)

    def ask(self, *words: str) -> Any:
        """Run a command that prints JSON; what is not there (any more) is left out, or an empty list."""
        done = self._run(words, None, TIMEOUT_S)
        said = done.stderr.decode(errors="replace")
        if done.returncode and not _GONE.search(said):
            raise _error(self.name, said)
        return json.loads(done.stdout or b"[]") or []

    def forget(self, *words: str, unless: re.Pattern[str] = _GONE) -> bool:
        """Run a command that deletes something; that it is gone already is no error.

        Parameters
        ----------
        unless
            What else the engine may say without its being an error.

        Returns
        -------
        bool
            Whether it was deleted by this.
        """
        done = self._run(words, None, TIMEOUT_S)
        said = done.stderr.decode(errors="replace")
        if done.returncode and not _GONE.search(said) and not unless.search(said):
            raise _error(self.name, said)
        return not done.returncode

    def adapt(self, image: str) -> tuple[str, ...]:
        """Return the options with which a container that boots systemd starts on this machine.

        What the machine lacks is found out by starting ``image``, first as everywhere, then with what sandboxes need.
        """
        with self._probing:
            if self._boot is None:
                self._boot = self._probe(image)
            return self._boot

    def _probe(self, image: str) -> tuple[str, ...]:
        plain, own_limits = self.dialect.boot, (*self.dialect.boot, *_own_limits())
        if not self._is_inside():
            # a user's own podman may have been delegated no processors and memory to share out
            for flags, has_limits in ((plain, True), (plain, False), (own_limits, True), (own_limits, False)):
                refused = self._try(image, (*_SOME_LIMITS, *flags) if has_limits else flags)
                if not refused:
                    self.has_limits = has_limits
                    return flags
            if self.name != "podman" or not _LACKING.search(refused):
                raise _error(self.name, refused)
            if os.geteuid() != 0:
                raise ProviderError(_error(self.name, refused).message, "try it as root: sudo -E ems …")
            namespace.make()
        self._needs_namespace = True
        self.has_limits = False
        # without cgroups of its own a container may not be limited, and systemd must be let mount its own
        flags = ("--systemd=always", "--runtime=crun", "--cgroups=disabled", "--cap-add=SYS_ADMIN", *_own_limits())
        refused = self._try(image, flags)
        if refused:
            raise _error(self.name, refused)
        return flags

    def _try(self, image: str, flags: Sequence[str]) -> str:
        done = self._run(("run", "--rm", "--network=none", *flags, image, "/bin/true"), None, 120)
        return done.stderr.decode(errors="replace") or "exit status other than 0" if done.returncode else ""

    def most_cpus(self) -> int:
        """Return how many processors a container can have."""
        return int(self.call("info", "--format", self.dialect.cpus))

    def store(self) -> Path:
        """Return the folder of images and containers; it need not be on this file system."""
        return Path(self.call("info", "--format", self.dialect.store).strip())

    def release(self) -> None:
        """Give back what only running containers need, where none is left."""
        if self._is_inside():
            self._needs_namespace, self._boot = False, None
            namespace.drop(self.name)

    def _is_inside(self) -> bool:
        return self._needs_namespace or (self.name == "podman" and namespace.is_there())

    def is_home_of(self, process: int) -> bool:
        """Whether a process sees the containers that this engine sees: it is where podman is run."""
        return not self._is_inside() or namespace.is_home_of(process)

    @contextmanager
    def entered(self) -> Iterator[tuple[str, ...]]:
        """Yield the words that put a command where podman works; until the end of the block it stays there."""
        while self._is_inside():
            with namespace.in_use():
                if namespace.is_there():
                    yield namespace.entry()
                    return
            namespace.make()  # it was dropped in the meantime by a process that deleted the last container
        yield ()

    def _run(self, words: Sequence[str], data: bytes | None, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        with self.entered() as entry:
            return self._execute((*entry, *self.words, *words), data, timeout_s)

    def _execute(self, argv: Sequence[str], data: bytes | None, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(argv, input=data or b"", capture_output=True, timeout=timeout_s, check=False, cwd="/")
        except subprocess.TimeoutExpired:
            raise ProviderError(f"{self.name} did not answer within {timeout_s:g} s: {' '.join(argv[:6])} …") from None
        except FileNotFoundError as error:
            raise ProviderError(f"there is no {error.filename} on this machine", INSTALL) from None


def find(wanted: str | None = None) -> Engine:
    """Return the engine that works here, docker before podman.

    Raises
    ------
    ProviderError
        If none does; says what each said, and how to get one.
    """
    said = []
    for name in [wanted] if wanted else ["docker", "podman"]:
        if shutil.which(name) is None:
            said.append(f"{name} is not installed")
            continue
        # the package podman-docker calls podman `docker`
        if name == "docker" and "podman" in _version(name):
            name = "podman"  # noqa: PLW2901  # the one it is
        engine = Engine(name)
        try:
            engine.call("info", timeout_s=120)  # podman answers nobody while it writes an image
        except ProviderError as error:
            said.append(f"{error.message} ({error.hint})" if error.hint else error.message)
        else:
            return engine
    raise ProviderError(f"there is no container engine that works here: {'; '.join(said)}", INSTALL)


def _version(name: str) -> str:
    done = subprocess.run([name, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.lower()


def _own_limits() -> tuple[str, ...]:
    """Return options that ask for no more than this process has, nor than podman leaves where it may not raise it."""
    kinds = (("nofile", resource.RLIMIT_NOFILE, 16384), ("nproc", resource.RLIMIT_NPROC, 32768))
    limits = []
    for name, kind, most in kinds:
        own = resource.getrlimit(kind)[1]
        limits.append((name, most if own == resource.RLIM_INFINITY else min(own, most)))
    return tuple(f"--ulimit={name}={limit}:{limit}" for name, limit in limits)


def _error(engine: str, said: str) -> ProviderError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    # warnings may stand before and after it
    errors = [line for line in lines if re.match(r"error\b", line, re.IGNORECASE)] or lines
    words = (errors[-1] if errors else "failed without a word").removeprefix("Error: ")
    words = words.removeprefix("Error response from daemon: ")
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, said, re.IGNORECASE | re.DOTALL)), "")
    return ProviderError(f"{engine}: {words}", hint)
