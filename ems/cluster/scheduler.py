"""SLURM of a cluster that ``ems`` made, asked and told over SSH on its controller."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ems.errors import ClusterError
from ems.model import Json
from ems.ssh import Host

Boot: TypeAlias = dict[str, Json]

_ASK_S = 60  # a command of SLURM's that takes longer has not been answered by slurmctld
_MOST_IN_RANGE = 65_536  # nodes in one pair of brackets: MAX_RANGE of SLURM's hostlist.c
_SEPARATOR = "\x1f"
_AWAY = tuple("*~#%!@^$")  # marks behind a state: does not answer, is off, comes, goes, boots, is kept for maintenance
_IN_WORDS = {
    "*": "not responding",
    "~": "powered down",
    "#": "powering up",
    "%": "powering down",
    "!": "to be powered down",
    "@": "to be rebooted",
    "^": "rebooting",
    "$": "reserved",
    "-": "planned",
}
_BAD = ("down", "fail", "drain", "inval", "unknown", "future", "error", "power", "not_responding", "reboot")

# what nodes say of their boot, then what SLURM says of them; a node writes its file anew at each stage
_LOOK = r"""
for file in /opt/ems/state/boot/*.json; do
    [ -f "$file" ] && { printf 'boot\037%s\037' "$(basename "$file" .json)"; tr -d '\n' < "$file"; echo; }
done
sinfo -a -h -N -o "node$(printf '\037')%N$(printf '\037')%T$(printf '\037')%R$(printf '\037')%G$(printf '\037')%E" 2>&1
exit 0
"""

# submits a job, waits for its end and prints what it wrote; 3: it ended badly, 4: it did not end in time
_TEST = r"""
limit=$1 out=$2; shift 2
job=$(printf '#!/bin/sh\necho "ran on $(hostname)"\necho "gpus ${CUDA_VISIBLE_DEVICES:-}"\n' |
      sbatch --parsable --job-name=ems-test --time=5 --open-mode=truncate --output="$out" "$@") || exit 5
job=${job%%;*} waited=0
trap 'rm -f -- "$out"' EXIT
while :; do
    said=$(scontrol -o show job "$job" 2>&1)
    state=$(printf '%s' "$said" | sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p')
    reason=$(printf '%s' "$said" | sed -n 's/.* Reason=\([^ ]*\).*/\1/p')
    case $state in
        COMPLETED) cat -- "$out"; exit 0 ;;
        PENDING|RUNNING|CONFIGURING|COMPLETING|"") ;;
        *) echo "job $job ended as $state ($reason): $(tail -n 3 -- "$out" 2>/dev/null)" >&2; exit 3 ;;
    esac
    [ "$waited" -ge "$limit" ] && { scancel "$job"; echo "job $job is still $state ($reason)" >&2; exit 4; }
    sleep 0.2; waited=$((waited + 1))
done
"""


@dataclass(frozen=True, slots=True)
class NodeState:
    """What SLURM says of a node: its word for the state, its partitions and resources, the reason it is away."""

    state: str
    partitions: tuple[str, ...]
    gres: str
    reason: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether jobs are started on it now."""
        return not any(word in self.state.lower() for word in _BAD) and not self.state.endswith(_AWAY)

    @property
    def words(self) -> str:
        """The state in words; of a node that comes or goes that alone, unless something is wrong with it."""
        base, mark = self.state[:-1], _IN_WORDS.get(self.state[-1:])
        if mark is None:
            return self.state
        return mark if mark.startswith("power") and base in {"idle", "mixed", "allocated"} else f"{base}, {mark}"

    @property
    def is_off(self) -> bool:
        """Whether SLURM knows it to be off, and may have it made."""
        return self.state.endswith("~")

    @property
    def is_coming(self) -> bool:
        """Whether SLURM has asked for it and waits."""
        return self.state.endswith("#")


@dataclass(frozen=True, slots=True)
class Job:
    """A job, or a task of an array job, in the queue."""

    id: str
    state: str
    user: str
    name: str
    nodes: str
    partition: str = ""

    @property
    def partitions(self) -> list[str]:
        """The names of those that it may go to; of the one that it runs on."""
        return self.partition.split(",")

    @property
    def hosts(self) -> list[str]:
        """The names of the nodes that it runs on."""
        return expand(self.nodes)


class Scheduler:
    """The SLURM of one cluster.

    Parameters
    ----------
    host
        Its controller; the login user may use sudo there.
    """

    def __init__(self, host: Host) -> None:
        self.host = host

    def look(self) -> tuple[dict[str, NodeState], dict[str, Boot]]:
        """Return what SLURM says of each node, and what each node last said of its boot."""
        nodes: dict[str, NodeState] = {}
        boots: dict[str, Boot] = {}
        said = self.host.run(["sh", "-s"], data=_LOOK.encode(), timeout_s=_ASK_S).stdout.decode(errors="replace")
        for kind, name, *rest in (line.split(_SEPARATOR) for line in said.splitlines() if _SEPARATOR in line):
            if kind == "node" and len(rest) == 4:
                state, partition, gres, reason = rest
                before = nodes[name].partitions if name in nodes else ()
                gres, reason = ("" if said in {"none", "(null)"} else said for said in (gres, reason))
                nodes[name] = NodeState(state, (*before, partition), gres, reason)
            elif kind == "boot":
                boots[name] = _boot(rest[0])
        return nodes, boots

    def jobs(self) -> list[Job]:
        """Return what is in the queue; each task of an array job by itself."""
        layout = _SEPARATOR.join(("%i", "%T", "%u", "%j", "%N", "%P"))
        lines = self._ask("squeue", "-a", "-h", "-r", "-o", layout).splitlines()
        return [Job(*line.split(_SEPARATOR)) for line in lines if line.count(_SEPARATOR) == 5]

    def is_up(self) -> bool:
        """Whether slurmctld answers."""
        return self.host.run(["scontrol", "ping"], timeout_s=_ASK_S, check=False).returncode == 0

    def drain(self, nodes: Iterable[str], reason: str) -> None:
        """Let nodes finish what they run and start nothing new there."""
        self._set(nodes, "drain", reason)

    def down(self, nodes: Iterable[str], reason: str) -> None:
        """Declare nodes gone: what ran there is put back into the queue at once."""
        self._set(nodes, "down", reason)

    def power_up(self, nodes: Iterable[str]) -> None:
        """Want nodes that are off, whether a job needs them or not."""
        self._power(nodes, "power_up")

    def power_down(self, nodes: Iterable[str]) -> None:
        """Declare nodes off, whatever runs there: they are there to be wanted again."""
        self._power(nodes, "power_down_force")

    def release(self, nodes: Iterable[str]) -> None:
        """Let jobs start again on nodes that were drained or down."""
        for node in nodes:
            self.host.run(
                ["sudo", "scontrol", "update", f"nodename={node}", "state=resume"], timeout_s=_ASK_S, check=False
            )

    def delete(self, nodes: Iterable[str]) -> None:
        """Make SLURM forget nodes; one that it does not know is no error, one that still runs something is.

        Raises
        ------
        ClusterError
            If SLURM keeps one.
        """
        for node in nodes:
            done = self.host.run(["sudo", "scontrol", "delete", f"nodename={node}"], timeout_s=_ASK_S, check=False)
            said = done.stderr.decode(errors="replace").strip()
            if done.returncode and node in self.look()[0]:
                raise ClusterError(f"SLURM does not let go of {node}: {said}")

    def forget_boot(self, nodes: Iterable[str]) -> None:
        """Delete what nodes said of an earlier boot."""
        files = [f"/opt/ems/state/boot/{node}.json" for node in nodes]
        if files:
            self.host.run(["sudo", "rm", "-f", "--", *files], timeout_s=_ASK_S)

    def test(self, partition: str, *, constraint: str, gres: str, home: str, limit_s: float = 60) -> str:
        """Run a job and return what it wrote.

        Raises
        ------
        ClusterError
            If it does not end well, in SLURM's words.
        """
        out = f"{home}/.ems-test-{partition}-{constraint}.out"
        words = [f"--partition={partition}", f"--constraint={constraint}", *([f"--gres={gres}"] if gres else [])]
        command = ["sh", "-s", "--", str(int(limit_s * 5)), out, *words]
        done = self.host.run(command, data=_TEST.encode(), timeout_s=limit_s + _ASK_S, check=False)
        said = done.stdout.decode(errors="replace").strip()
        if done.returncode:
            why = " ".join(done.stderr.decode(errors="replace").split()) or f"exit status {done.returncode}"
            raise ClusterError(f"the test job on partition {partition} failed: {why}")
        if gres and not said.rpartition("gpus")[2].strip():
            raise ClusterError(f"the test job on partition {partition} asked for {gres} and was given no device")
        return said

    def _set(self, nodes: Iterable[str], state: str, reason: str) -> None:
        known = self.look()[0]
        for node in nodes:
            if node in known:
                self._ask("sudo", "scontrol", "update", f"nodename={node}", f"state={state}", f"reason={reason}")

    def _power(self, nodes: Iterable[str], state: str) -> None:
        listed = ",".join(nodes)
        if listed:
            self._ask("sudo", "scontrol", "update", f"nodename={listed}", f"state={state}")

    def _ask(self, *command: str) -> str:
        return self.host.run(command, timeout_s=_ASK_S).stdout.decode(errors="replace")


def _boot(text: str) -> Boot:
    try:
        found = json.loads(text)
    except ValueError:  # torn, or not written by a node
        return {}
    return found if isinstance(found, dict) else {}


def busy(jobs: Sequence[Job], node: str) -> list[Job]:
    """Return the jobs that run on a node."""
    return [job for job in jobs if node in job.hosts]


def expand(hostlist: str) -> list[str]:
    """Return the names in SLURM's short form of a list, e.g. ``a-[001-002,004],b``.

    Raises
    ------
    ValueError
        If it is none, or a range has more numbers than SLURM itself takes.
    """
    names: list[str] = []
    for part in _split(hostlist):
        prefix, bracket, inside = part.partition("[")
        if not bracket:
            names += [part] if part else []
            continue
        for piece in inside.rstrip("]").split(","):
            first, dash, last = piece.partition("-")
            stop = int(last) if dash else int(first)
            if stop - int(first) >= _MOST_IN_RANGE:
                raise ValueError(f"{piece} says more than {_MOST_IN_RANGE} nodes")
            names += [f"{prefix}{number:0{len(first)}d}" for number in range(int(first), stop + 1)]
    return names


def _split(hostlist: str) -> list[str]:
    parts, depth = [""], 0
    for letter in hostlist:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
