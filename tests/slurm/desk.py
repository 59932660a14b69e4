"""Somebody's laptop: a home, a state directory and a project of its own, from which clusters of containers are made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ems.cluster import catalog
from ems.cluster.provider import base, connect
from ems.cluster.provider.base import Resource, Thing

DEFINITION = """
provider: {kind: container}
controller: {cpus: 2, mem_gb: 2}
nodes:
  gpu: {count: 1, cpus: 4, mem_gb: 2, gpus: 4}
partitions:
  gpu: {nodes: [gpu], default: true, time: 1:00:00}
"""


# Deletes a cluster when the process that holds its standard input is gone without having said that it did so itself
_GUARD = """
import sys, time
name, n_empty = sys.argv[1], 0
if sys.stdin.read():
    sys.exit()
from ems.cluster import definition
from ems.cluster.provider import base, connect
provider = connect(definition.ContainerSection())
while n_empty < 9:  # what was begun before may still come
    found = provider.list({base.CLUSTER: name})
    provider.destroy(found)
    n_empty = 0 if found else n_empty + 1
    time.sleep(1)
"""


class Guard:
    """Sees to it that the machines of a test end with it, however it ends."""

    def __init__(self, cluster: str) -> None:
        words = [sys.executable, "-c", _GUARD, cluster]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True, cwd="/")

    def dismiss(self) -> None:
        """Say that nothing is left of it, or that somebody else cares."""
        if self.process.poll() is None:
            self.process.communicate(b"done")


class Desk:
    """A user's laptop.

    Parameters
    ----------
    folder
        Holds everything of it.
    name
        The cluster that its project defines; default: one that nobody else has.
    """

    def __init__(self, folder: Path, name: str = "", definition: str = DEFINITION) -> None:
        self.name = name or f"t{uuid.uuid4().hex[:6]}"
        self.guard = None if name else Guard(self.name)  # of whoever makes the cluster
        self.home, self.project = folder / "home", folder / "project"
        for each in (self.home, self.project / "cluster"):
            each.mkdir(parents=True)
        self.define(definition)
        self.env = {
            **os.environ,
            "HOME": str(self.home),
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "EMS_SLOTS": str(self.home / "slots"),
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }
        self.said: list[str] = []  # all that every command printed

    def define(self, text: str) -> None:
        """Write the cluster's definition."""
        (self.project / "cluster" / f"{self.name}.yaml").write_text(text)

    @property
    def state(self) -> Path:
        """What this laptop remembers of the cluster."""
        return self.home / "state" / "ems" / "clusters" / self.name

    def ems(
        self, *args: str, code: int | None = 0, timeout: float = 600, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``ems ARGS…`` in the project, errors with their traceback; ``code=None`` accepts any exit status."""
        if "PYTHONPATH" in env and "PYTHONPATH" in self.env:
            env["PYTHONPATH"] += os.pathsep + self.env["PYTHONPATH"]
        done = subprocess.run(
            [sys.executable, "-m", "ems", "--debug", *args],
            cwd=self.project,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        self.said += [done.stdout, done.stderr]
        assert code is None or done.returncode == code, f"ems {args}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def cluster(self, verb: str, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run ``ems cluster VERB NAME ARGS…``."""
        return self.ems("cluster", verb, self.name, *args, **options)

    def there(self, *words: str, code: int | None = 0) -> str:
        """Run a command on the controller; returns what it printed."""
        return self.ems("cluster", "ssh", "--on", self.name, "--", *words, code=code).stdout

    def hang_up(self) -> None:
        """End the SSH connection that commands share, so that the next one asks who is there."""
        code = f"from ems import registry; registry.get({self.name!r}).host.close()"
        subprocess.run([sys.executable, "-c", code], env=self.env, cwd=self.project, check=True)

    def status(self) -> dict[str, Any]:
        """Return ``ems cluster status --json``."""
        found: dict[str, Any] = json.loads(self.cluster("status", "--json").stdout)
        return found

    def nodes(self) -> dict[str, str]:
        """Return each compute node's short name and SLURM's word for it."""
        found = self.status()["nodes"]
        return {each["name"].removeprefix(f"{self.name}-"): each["slurm"] for each in found if each["kind"] == "gpu"}

    def resources(self) -> list[Resource]:
        """Return everything that carries the cluster's label, by the provider alone."""
        return self.provider().list({base.CLUSTER: self.name})

    def provider(self) -> base.Provider:
        """Return what makes the cluster's machines."""
        return connect(catalog.load(self.name, self.project).provider)

    def machines(self) -> list[str]:
        """Return the short names of the machines, by the provider alone; one that is there twice is there twice."""
        found = [each.name for each in self.resources() if each.thing is Thing.MACHINE]
        return sorted(each.removeprefix(f"{self.name}-") for each in found)

    def clear(self) -> None:
        """Delete whatever is left of the cluster, images as well, whatever state it is in."""
        provider = self.provider()
        provider.destroy(provider.list({base.CLUSTER: self.name}))
        self.hand_over()

    def hand_over(self) -> None:
        """Leave what is there to others, also when this process ends."""
        if self.guard is not None:
            self.guard.dismiss()
            self.guard = None


def wait_until(condition: Callable[[], Any], limit_s: float = 300, what: str = "") -> Any:
    """Wait for a condition; returns what it gave."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what or condition} did not come true within {limit_s} s"
        time.sleep(0.2)
    return found


@contextmanager
def ssh_agent(folder: Path) -> Iterator[dict[str, str]]:
    """Run an agent that holds a fresh key, whose public half is in ``folder/.ssh``; gives its environment."""
    keys = folder / ".ssh"
    keys.mkdir(mode=0o700)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / "id_ed25519"], check=True)
    socket = folder / "agent.sock"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        env = {"SSH_AUTH_SOCK": str(socket)}
        ask = lambda: subprocess.run(["ssh-add", "-l"], env={**os.environ, **env}, capture_output=True)  # noqa: E731
        wait_until(lambda: ask().returncode == 1, 60, "the agent")  # it answers, and has no key
        subprocess.run(["ssh-add", "-q", keys / "id_ed25519"], env={**os.environ, **env}, check=True)
        yield env
    finally:
        agent.terminate()
        agent.wait(60)
