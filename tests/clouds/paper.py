"""A SLURM on paper, for services that make nodes at stand-ins of clouds: nodes, jobs and power saving, and no daemon.

What it does is what slurmctld 22.05 was seen to do (tests/slurm has the real one): it writes what ems-power would write
into the spool. All of it is one file, so that a service in a process of its own may be killed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ems.cluster.elastic.control import Control, Job, Node

OFF = ["CLOUD", "POWERED_DOWN"]


class Paper(Control):
    """The door to a SLURM that is a file.

    Parameters
    ----------
    nodes
        The names of all that are declared, in order of preference.
    """

    def __init__(self, folder: Path, nodes: Iterable[str]) -> None:
        super().__init__({})
        self._path, self._spool = folder / "slurm.json", folder / "var/spool/ems"
        self._spool.mkdir(parents=True)
        fresh = {name: {"base": "IDLE", "flags": OFF, "reason": "", "job": ""} for name in nodes}
        self._path.write_text(json.dumps({"nodes": fresh, "jobs": {}}))

    @contextmanager
    def _state(self) -> Iterator[Any]:
        state = json.loads(self._path.read_text())
        yield state
        aside = self._path.with_suffix(".aside")
        aside.write_text(json.dumps(state))
        aside.replace(self._path)

    def _call_power(self, verb: str, names: Collection[str]) -> None:
        if names:
            aside = self._spool / "aside"
            aside.write_text(",".join(names) + "\n")
            aside.rename(self._spool / f"{time.time_ns()}-1.{verb}")

    # -- what users and time do ---------------------------------------------------------------------------------------

    def submit(self, count: int) -> None:
        """Queue jobs of one node each."""
        with self._state() as state:
            for _ in range(count):
                state["jobs"][str(len(state["jobs"]) + 1)] = {"node": "", "comment": ""}
        self.schedule()

    def schedule(self) -> None:
        """Give jobs that wait to nodes that are powered down."""
        woken = []
        with self._state() as state:
            waiting = [job for job, each in state["jobs"].items() if not each["node"]]
            free = [name for name, each in state["nodes"].items() if each["base"] == "IDLE" and each["flags"] == OFF]
            for job, name in zip(waiting, free, strict=False):
                state["jobs"][job]["node"] = name
                state["nodes"][name] |= {"base": "ALLOCATED", "flags": ["CLOUD", "POWERING_UP"], "job": job}
                woken.append(name)
        self._call_power("resume", woken)

    def register(self, there: Collection[str]) -> None:
        """Have the nodes boot whose machines are there, and those power down that were about to; schedule again."""
        with self._state() as state:
            for name, each in state["nodes"].items():
                if "POWERING_UP" in each["flags"] and name in there:
                    each["flags"] = ["CLOUD"]
                elif "POWERING_DOWN" in each["flags"]:
                    each |= {"base": "IDLE", "flags": OFF, "reason": ""}
        self.schedule()

    def finish(self) -> None:
        """End all jobs; their nodes have been idle for long."""
        with self._state() as state:
            idle = [name for name, each in state["nodes"].items() if each["flags"] == ["CLOUD"]]
            for name in idle:
                state["jobs"].pop(state["nodes"][name]["job"], None)
                state["nodes"][name] |= {"base": "IDLE", "flags": ["CLOUD", "POWERING_DOWN"], "job": ""}
        self._call_power("suspend", idle)

    def give_up(self) -> None:
        """Let nodes be given up that boot for too long, as after ResumeTimeout; their jobs are requeued."""
        with self._state() as state:
            late = [name for name, each in state["nodes"].items() if "POWERING_UP" in each["flags"]]
            for name in late:
                state["jobs"][state["nodes"][name]["job"]]["node"] = ""
                state["nodes"][name] |= {"base": "DOWN", "flags": OFF, "reason": "ResumeTimeout reached", "job": ""}
        self._call_power("fail", late)

    def comments(self) -> set[str]:
        """Return what jobs were told."""
        with self._state() as state:
            return {each["comment"] for each in state["jobs"].values()} - {""}

    def at_work(self) -> list[str]:
        """Return the nodes on which jobs run."""
        with self._state() as state:
            return [
                n for n, each in state["nodes"].items() if each["base"] == "ALLOCATED" and each["flags"] == ["CLOUD"]
            ]

    # -- what the service asks and orders -----------------------------------------------------------------------------

    def nodes(self) -> dict[str, Node]:
        with self._state() as state:
            return {
                name: Node(name, each["base"], frozenset(each["flags"]), each["reason"])
                for name, each in state["nodes"].items()
            }

    def jobs(self) -> list[Job]:
        with self._state() as state:
            return [
                Job(job, "CONFIGURING" if each["node"] else "PENDING", "eve", "train", "gpu", nodes=(each["node"],))
                for job, each in state["jobs"].items()
            ]

    def down(self, names: Iterable[str], reason: str) -> dict[str, str]:
        with self._state() as state:
            for name in names:
                each = state["nodes"][name]
                if each["job"]:  # goes back into the queue
                    state["jobs"][each["job"]]["node"] = ""
                flags = [flag for flag in each["flags"] if flag != "POWERING_UP"]
                each |= {"base": "DOWN", "flags": flags, "reason": reason, "job": ""}
        return {}

    def power_down(self, names: Iterable[str], *, force: bool = False) -> dict[str, str]:
        going = list(names)
        with self._state() as state:
            for name in going:
                state["nodes"][name]["flags"] = ["CLOUD", "POWERING_DOWN"]
        self._call_power("suspend", going)
        return {}

    def power_up(self, names: Iterable[str]) -> dict[str, str]:
        coming = list(names)
        with self._state() as state:
            for name in coming:
                state["nodes"][name]["flags"] = ["CLOUD", "POWERING_UP"]
        self._call_power("resume", coming)
        return {}

    def release(self, names: Iterable[str]) -> dict[str, str]:
        with self._state() as state:
            for name in names:
                state["nodes"][name] |= {"base": "IDLE", "reason": ""}
        return {}

    def comment(self, jobs: Iterable[str], text: str) -> dict[str, str]:
        with self._state() as state:
            for job in jobs:
                state["jobs"][job]["comment"] = text
        return {}
