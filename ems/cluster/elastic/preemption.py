"""What the cloud takes back, and the runs that it hits too often: they move to nodes that nobody takes back.

A job is hit where the watch of its node was told (it leaves a notice on the share), or where a spot machine vanishes
under it. Of a partition with a ``fallback``, a job that was hit ``max_preemptions`` times moves there while it waits
to be started again. The counts outlive the service.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ems.cluster.definition import Definition, node_number
from ems.cluster.elastic.control import Control, Job
from ems.cluster.elastic.reconcile import Act
from ems.cluster.elastic.table import Verb, Vm
from ems.node import records

_AGAIN_S = 2.0
_JOB = re.compile(r"\d{1,10}(_\d{1,10})?")


class Preemptions:
    """Counts what was taken back, and moves jobs.

    Parameters
    ----------
    definition
        The cluster's.
    folder
        /opt/ems/state: ``notices/NODE.json`` are read and deleted, ``preemptions.json`` is kept.
    control
        Its SLURM.
    clock
        Seconds that only ever grow.
    """

    def __init__(
        self, definition: Definition, folder: Path, control: Control, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._definition, self._control, self._clock = definition, control, clock
        self._notices, self._path = folder / "notices", folder / "preemptions.json"
        self._rules = {
            name: (each.fallback, max(1, each.max_preemptions))
            for name, each in definition.partitions.items()
            if each.fallback
        }
        self.counts, self._told = self._load()
        self._waiting = set(self.counts)  # jobs that may have to be moved
        self._next_try = 0.0
        self._saved = self._text()

    def is_due(self) -> bool:
        """Whether there is something to do now; costs a look into a folder."""
        return bool(self._files()) or bool(self._waiting and self._clock() >= self._next_try)

    def turn(self) -> list[str]:
        """Take in the notices, and move jobs that wait and were hit too often.

        Returns
        -------
        list of str
            What was done, a sentence each.

        Raises
        ------
        ClusterError
            If SLURM does not answer; the next turn goes on from there.
        """
        if not self.is_due():
            return []
        files = self._files()
        said = [f"{path.stem} is taken back by the cloud" for path in files]
        for path in files:
            self._hit(path.stem, _jobs_of(path))
        self._save()
        for path in files:
            path.unlink(missing_ok=True)
        self._next_try = self._clock() + _AGAIN_S
        return said + (self._move() if self._waiting else [])

    def lost(self, acts: Iterable[Act]) -> None:
        """Count the jobs of spot machines that vanish: to be called before their nodes are declared down.

        Raises
        ------
        ClusterError
            If SLURM does not answer.
        """
        nodes = {act.node for act in acts if act.verb is Verb.DOWN and self._is_vanished(act)} if self._rules else set()
        if not nodes:
            return
        jobs = self._control.jobs()
        for node in sorted(nodes):
            self._hit(node, [job.id for job in jobs if node in job.nodes and job.state != "PENDING"])
        self._save()

    def renewed(self, nodes: Iterable[str]) -> None:
        """Know that nodes are about to have other machines: what happens to those is counted for itself."""
        for node in nodes:
            self._told.pop(node, None)
        self._save()

    def _is_vanished(self, act: Act) -> bool:
        found = node_number(self._definition.name, act.node)
        is_spot = found is not None and found[0] in self._definition.nodes and self._definition.nodes[found[0]].spot
        return is_spot and act.vm in {Vm.ABSENT, Vm.STOPPING, Vm.STOPPED, Vm.FAILED}

    def _hit(self, node: str, jobs: Iterable[str]) -> None:
        """Count each job once for each machine that it loses."""
        if not self._rules:
            return
        before = self._told.get(node, [])
        fresh = [job for job in jobs if job not in before]
        for job in fresh:
            self.counts[job] = self.counts.get(job, 0) + 1
        self._waiting.update(fresh)
        self._told[node] = [*before, *fresh]  # node -> jobs that its present machine was, or will be, taken from

    def _move(self) -> list[str]:
        queue = {job.id: job for job in self._control.jobs()}
        self.counts = {job: count for job, count in self.counts.items() if job in queue}
        over = {job: target for job in self._waiting & {*self.counts} if (target := self._target(queue[job]))}
        self._waiting = set(over)
        said = []
        for job, target in sorted(over.items()):
            if queue[job].state == "PENDING":
                refused = self._control.move(job, target)
                count = self.counts.pop(job)  # counted anew, wherever it is now
                self._waiting.discard(job)
                why = f", but cannot move to {target}: {refused[job]}" if refused else f", moves to {target}"
                said.append(f"job {job} was preempted {count}x{why}")
        self._save()
        return said

    def _target(self, job: Job) -> str | None:
        """Return where a job is to go, if it has been hit too often; it may wait for several partitions."""
        for partition in job.partition.split(","):
            fallback, most = self._rules.get(partition, (None, 0))
            if fallback and self.counts[job.id] >= most:
                return fallback
        return None

    # -- files --------------------------------------------------------------------------------------------------------

    def _files(self) -> list[Path]:
        try:
            found = sorted(self._notices.iterdir())
        except FileNotFoundError:
            return []
        return [path for path in found if path.suffix == ".json" and node_number(self._definition.name, path.stem)]

    def _load(self) -> tuple[dict[str, int], dict[str, list[str]]]:
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            content: dict[str, Any] = json.loads(self._path.read_text())
            counts = {str(job): int(count) for job, count in content["counts"].items()}
            told = {str(node): [str(job) for job in jobs] for node, jobs in content["told"].items()}
            return counts, told
        return {}, {}

    def _text(self) -> str:
        return json.dumps({"counts": self.counts, "told": self._told}) + "\n"

    def _save(self) -> None:
        text = self._text()
        if text != self._saved:
            records.write_atomic(self._path, text)
            self._saved = text


def _jobs_of(path: Path) -> Iterator[str]:
    """Yield the jobs that a notice names."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        yield from (job for job in map(str, json.loads(path.read_text())["jobs"]) if _JOB.fullmatch(job))
