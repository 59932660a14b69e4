"""The door to SLURM on this machine: one command for each question and each order, whatever the number of nodes.

The text of ``scontrol show nodes --oneliner`` is read, not its JSON: that came with 21.08, changed the form of a node's
state twice until 24.05 (data_parser v0.0.38 to v0.0.41), and takes ten times as long to read.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ems.cluster.scheduler import expand
from ems.errors import ClusterError

_ANSWER_S = 60.0  # a command of SLURM's that takes longer has not been answered by slurmctld
_ARGUMENT = 60_000  # characters of names in one command; Linux takes 131,072 in an argument
_REASON = 240  # characters of a cloud's words that people still read
_SEPARATOR = "\x1f"
_FIELD = re.compile(
    r"\b(NodeName|NodeAddr|NodeHostName|AvailableFeatures|Partitions|State|BootTime|SlurmdStartTime|LastBusyTime)=(\S*)"
)
_REASON_OF = re.compile(r" Reason=(.*?) \[([^\]@\s]+)@\d{4}-[^\]\s]+\]")

#: Base states in which a node runs something, or is about to; COMPLETING is a flag of an idle one.
_RUNS = frozenset({"ALLOCATED", "ALLOC", "MIXED"})


@dataclass(frozen=True, slots=True)
class Node:
    """What SLURM says of a node.

    Attributes
    ----------
    base
        SLURM's word for the state itself: ``IDLE``, ``ALLOCATED``, ``MIXED``, ``DOWN``...
    flags
        What it adds to it: ``CLOUD``, ``POWERED_DOWN``, ``POWERING_UP``, ``DRAIN``, ``NOT_RESPONDING``...
    reason, reason_by
        Why it is down or drained, and who said so; empty where nobody did.
    address
        Where slurmctld reaches it; its name until it has registered.
    booted_at, busy_at
        When it last booted, and was last used, by its controller's clock; None: never, as far as SLURM knows.
    """

    name: str
    base: str = "IDLE"
    flags: frozenset[str] = frozenset({"CLOUD"})
    reason: str = ""
    reason_by: str = ""
    address: str = ""
    features: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    booted_at: datetime | None = None
    busy_at: datetime | None = None

    @property
    def state(self) -> str:
        """Base and flags as SLURM writes them: ``IDLE+CLOUD+POWERED_DOWN``."""
        return "+".join([self.base, *sorted(self.flags)])

    @property
    def is_assigned(self) -> bool:
        """Whether a job has it: runs there, or waits until it is up."""
        return self.base in _RUNS

    @property
    def is_busy(self) -> bool:
        """Whether something runs on it, or a job has it."""
        return self.is_assigned or "COMPLETING" in self.flags


@dataclass(frozen=True, slots=True)
class Job:
    """A job, or a task of an array job, in the queue.

    Attributes
    ----------
    state, reason
        SLURM's words: ``PENDING`` and ``Resources``; the reason of a job that runs is ``None``.
    nodes
        Names of the nodes that it has.
    features, gres
        What it asks for: the constraint, the generic resources of each node; empty where nothing.
    """

    id: str
    state: str
    user: str
    name: str
    partition: str
    reason: str = ""
    nodes: tuple[str, ...] = ()
    features: str = ""
    gres: str = ""
    comment: str = ""


class Control:
    """SLURM's commands on the controller, as root.

    Orders return what SLURM said of each thing that it refused, empty where it took all: who gives them looks again
    and decides anew, whatever became of them.

    Parameters
    ----------
    environment
        Of the commands; default: this process's, without what would change the form of their answers.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        source = os.environ if environment is None else environment
        self._env = {key: value for key, value in source.items() if not key.startswith(("SQUEUE_", "SLURM_TIME"))}
        self._env |= {"LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"}

    def nodes(self) -> dict[str, Node]:
        """Return what SLURM says of each node.

        Raises
        ------
        ClusterError
            If it does not answer.
        """
        return parse_nodes(self._ask("scontrol", "--all", "--oneliner", "show", "nodes"))

    def jobs(self) -> list[Job]:
        """Return what is in the queue; each task of an array job by itself.

        Raises
        ------
        ClusterError
            If SLURM does not answer.
        """
        layout = _SEPARATOR.join(("%i", "%T", "%u", "%P", "%r", "%N", "%f", "%b", "%j", "%k"))
        return parse_jobs(self._ask("squeue", "--all", "--noheader", "--array", f"--format={layout}"))

    def down(self, names: Iterable[str], reason: str) -> dict[str, str]:
        """Declare nodes gone, and why: what ran there goes back into the queue at once."""
        return self._update_nodes(names, "state=down", f"reason={said(reason)}")

    def power_down(self, names: Iterable[str], *, force: bool = False) -> dict[str, str]:
        """Have SuspendProgram called for nodes, now if they are down or ``force``, else once nothing runs there."""
        return self._update_nodes(names, f"state=power_down{'_force' if force else ''}")

    def power_up(self, names: Iterable[str]) -> dict[str, str]:
        """Have ResumeProgram called for nodes."""
        return self._update_nodes(names, "state=power_up")

    def release(self, names: Iterable[str]) -> dict[str, str]:
        """Put nodes that are powered down back into the pool: they are neither down nor drained any more.

        Other than ``resume`` (SLURM 22.05), ``idle`` does not leave SLURM waiting for a node that is not there; where
        it is refused, ``resume`` is better than nothing: what SLURM then waits for is seen at the next look.
        """
        refused = self._update_nodes(names, "state=idle")
        return self._update_nodes(refused, "state=resume")

    def forget(self, names: Iterable[str]) -> None:
        """Have SLURM forget nodes that it only knows since they have registered; those of its configuration stay."""
        for name in sorted(set(names)):
            self._call("scontrol", "delete", f"nodename={name}")

    def comment(self, jobs: Iterable[str], text: str) -> dict[str, str]:
        """Tell the owners of jobs something, by ``squeue -o %k`` and sacct's Comment and AdminComment."""
        return self._update("jobid", jobs, f"comment={said(text)}", f"admincomment={said(text)}")

    def move(self, job: str, partition: str) -> dict[str, str]:
        """Have a job that waits go to another partition."""
        return self._update("jobid", [job], f"partition={partition}")

    def _update_nodes(self, names: Iterable[str], *words: str) -> dict[str, str]:
        return self._update("nodename", names, *words)

    def _update(self, what: str, names: Iterable[str], *words: str) -> dict[str, str]:
        """Give one order for all; where SLURM refuses it, one for each, so that one of them cannot spoil it."""
        refused: dict[str, str] = {}
        for part in _parts(sorted(set(names))):
            done = self._call("scontrol", "update", f"{what}={','.join(part)}", *words)
            if done.returncode and len(part) == 1:
                refused[part[0]] = said(done.stderr or done.stdout) or f"exit status {done.returncode}"
            elif done.returncode:
                for name in part:
                    refused |= self._update(what, [name], *words)
        return refused

    def _ask(self, *argv: str) -> str:
        done = self._call(*argv)
        if done.returncode:
            words = said(done.stderr) or f"exit status {done.returncode}"
            raise ClusterError(f"SLURM does not answer {argv[0]}: {words}", "systemctl status slurmctld")
        return done.stdout

    def _call(self, *argv: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                argv, env=self._env, capture_output=True, text=True, errors="replace", timeout=_ANSWER_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"{argv[0]} gave no answer within {_ANSWER_S:g} s", "systemctl status slurmctld"
            ) from None
        except FileNotFoundError:
            raise ClusterError(f"there is no {argv[0]} on this machine", "ems cluster setup") from None


def parse_nodes(text: str) -> dict[str, Node]:
    """Read ``scontrol --oneliner show nodes`` of SLURM 22.05 and newer."""
    found = (_node(line) for line in text.splitlines() if line.startswith("NodeName="))
    return {node.name: node for node in found}


def _node(line: str) -> Node:
    fields: dict[str, str] = {}
    for key, value in _FIELD.findall(line):
        fields.setdefault(key, value)  # the first: what people write of a node comes after what SLURM says of it
    base, *flags = fields.get("State", "UNKNOWN").upper().rstrip("*").split("+")
    reason = _REASON_OF.search(line)
    return Node(
        fields["NodeName"],
        base,
        frozenset(flags),
        reason[1] if reason else "",
        reason[2] if reason else "",
        fields.get("NodeAddr", ""),
        _words(fields.get("AvailableFeatures", "")),
        _words(fields.get("Partitions", "")),
        _moment(fields.get("BootTime", "")),
        _moment(fields.get("LastBusyTime", "")),
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word and word != "(null)")


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:  # None, Unknown, N/A
        return None


def parse_jobs(text: str) -> list[Job]:
    """Read what squeue says in the form that :meth:`Control.jobs` asks for."""
    rows = (line.split(_SEPARATOR) for line in text.splitlines())
    jobs = []
    for row in (each for each in rows if len(each) == 10):
        id_, state, user, partition, reason, nodes, features, gres, name, comment = (
            "" if each in {"(null)", "N/A"} else each for each in row
        )
        jobs.append(Job(id_, state, user, name, partition, reason, tuple(expand(nodes)), features, gres, comment))
    return jobs


def said(text: str) -> str:
    """Return a text as SLURM and one line of a table hold it."""
    line = " ".join(text.split())
    return line if len(line) <= _REASON else line[: _REASON - 1] + "…"


def _parts(names: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    length = 0
    for name in names:
        if length + len(name) > _ARGUMENT:
            yield part
            part, length = [], 0
        part.append(name)
        length += len(name) + 1
    if part:
        yield part
