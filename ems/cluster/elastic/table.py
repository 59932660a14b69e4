"""What is done where the cloud and SLURM do not agree on a node: for each state of its machine and each standing.

Pure data, and what it takes to find the cell. The rows in which a node serves (``idle``, ``busy``, ``kept``) hold no
``destroy``: a machine goes only after SLURM has let go of its node.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ems.cluster.elastic.control import Node


class Vm(StrEnum):
    """What the provider says of a node's machine."""

    ABSENT = "absent"  # two listings in a row did not have it
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Standing(StrEnum):
    """How SLURM stands to a node."""

    STRANGER = "stranger"  # it has no such node
    RESTING = "resting"  # powered down, comes when a job needs it
    WANTED = "wanted"  # powered down, but one of those that stay
    CLOSED = "closed"  # powered down, and its kind cannot be had now
    HELD = "held"  # the same, and SLURM was told
    DOWNED = "downed"  # down, or drained by SLURM itself, and powered down
    PARKED = "parked"  # drained by a person, and powered down
    MUTE = "mute"  # powered down, but SLURM waits for its answer: it may never be used again
    COMING = "coming"  # powering up
    STALE = "stale"  # powering up, but its machine is one from before, which never registers anew
    GOING = "going"  # powering down
    CLOSING = "closing"  # the same, and its kind cannot be had now: SLURM would have it back at once
    IDLE = "idle"
    BUSY = "busy"
    DOWN = "down"
    AILING = "ailing"  # drained by SLURM itself; nothing runs there
    KEPT = "kept"  # drained by a person; nothing runs there


class Verb(StrEnum):
    """What can be done, in the order in which it is done."""

    DESTROY = "destroy"  # delete the machine
    DOWN = "down"  # declare the node gone: its jobs are requeued
    POWER_DOWN = "power_down"
    FORCE = "force"  # power_down_force
    RELEASE = "release"  # back into the pool
    POWER_UP = "power_up"
    CREATE = "create"  # make the machine that SLURM waits for


class When(StrEnum):
    """How long a node has to have stood so; two looks in a row have to ask for it in any case."""

    NOW = "now"
    SETTLED = "settled"  # for as long as a machine counts as young
    LATE = "late"  # longer than it ever should


@dataclass(frozen=True, slots=True)
class Cell:
    """What is done, and when."""

    verbs: tuple[Verb, ...] = ()
    when: When = When.NOW


# lose: what ran there is requeued, and the node comes back as one that is powered down
_SHORT = {"-": (), "lose": (Verb.DOWN, Verb.POWER_DOWN)}

_GRID = """
          absent          starting    running     stopping    stopped     failed      unknown
stranger  -               destroy     destroy     destroy@l   destroy     destroy     destroy@l
resting   -               destroy     destroy     destroy@l   destroy     destroy     destroy@l
wanted    power_up        destroy     destroy     destroy@l   destroy     destroy     destroy@l
closed    down            destroy     destroy     destroy@l   destroy     destroy     destroy@l
held      -               destroy     destroy     destroy@l   destroy     destroy     destroy@l
downed    release         destroy     destroy     destroy@l   destroy     destroy     destroy@l
parked    -               destroy     destroy     destroy@l   destroy     destroy     destroy@l
mute      force           destroy     destroy     destroy@l   destroy     destroy     destroy@l
stale     -               destroy     destroy     destroy@l   destroy     destroy     destroy@l
going     -               destroy     destroy     destroy@l   destroy     destroy     destroy@l
closing   down            destroy     destroy     down        destroy     destroy     destroy@l
coming    create@s        lose@l      lose@l      lose@l      destroy     destroy     lose@l
idle      lose            -           -           lose        lose        lose        -
busy      lose            -           -           -           lose        -           -
ailing    lose            power_down@l power_down@l lose      lose        lose        power_down@l
kept      lose            -           -           -           lose        -           -
down      power_down      power_down@l power_down@l power_down@l power_down power_down power_down@l
"""


def _read(grid: str) -> dict[tuple[Vm, Standing], Cell]:
    head, *rows = (line.split() for line in grid.strip().splitlines())
    return {
        (Vm(column), Standing(row[0])): _cell(word) for row in rows for column, word in zip(head, row[1:], strict=True)
    }


def _cell(word: str) -> Cell:
    verb, _, short = word.partition("@")
    when = {"": When.NOW, "s": When.SETTLED, "l": When.LATE}[short]
    return Cell(_SHORT[verb] if verb in _SHORT else (Verb(verb),), when)


#: The whole of it: every state of a machine with every standing of a node.
TABLE = _read(_GRID)

#: What the reasons begin with that ems gives SLURM for a node.
OURS = "ems: "

#: The standings of nodes that run, or should.
SERVING = frozenset({Standing.IDLE, Standing.BUSY, Standing.DOWN, Standing.AILING, Standing.KEPT})
#: The standings of nodes that SLURM has let go of.
OFF = frozenset(Standing) - SERVING - {Standing.COMING, Standing.STALE, Standing.GOING, Standing.CLOSING}

# what SLURM drains a node for by itself (slurmctld's sources, 22.05 to 24.11); it goes with the machine
_OWN_REASONS = (
    OURS,
    "Not responding",
    "ResumeTimeout reached",
    "Node unexpectedly rebooted",
    "Kill task failed",
    "batch job complete failure",
    "Prolog error",
    "Epilog error",
    "Duplicate jobid",
    "Low ",
    "gres/",
    "NHC",
)


def standing(node: Node | None, *, is_floor: bool = False, closed: str = "") -> Standing:
    """Return how SLURM stands to a node.

    Parameters
    ----------
    node
        None: SLURM has none of that name.
    is_floor
        Whether it is one of those that stay.
    closed
        Why its kind cannot be had now; empty: it can.
    """
    if node is None:
        return Standing.STRANGER
    is_held = node.base in _GONE and node.reason.startswith(OURS)
    if "POWERING_DOWN" in node.flags:
        return Standing.CLOSING if closed and not is_held else Standing.GOING
    if node.flags & {"POWERING_UP", "POWER_UP"} or ("POWERED_DOWN" in node.flags and node.is_assigned):
        return Standing.COMING
    if "POWERED_DOWN" in node.flags:
        if closed:
            return Standing.HELD if is_held else Standing.CLOSED
        return _off(node, is_floor=is_floor)
    return _on(node)


def _off(node: Node, *, is_floor: bool) -> Standing:
    if node.flags & _DRAINED and not node.reason.startswith(_OWN_REASONS):
        return Standing.PARKED
    if "NOT_RESPONDING" in node.flags:
        return Standing.MUTE
    if node.base in _GONE or node.flags & _DRAINED:
        return Standing.DOWNED
    return Standing.WANTED if is_floor else Standing.RESTING


def _on(node: Node) -> Standing:
    if node.base in _GONE:
        return Standing.DOWN
    if node.is_busy or node.base != "IDLE":  # what nobody knows is left alone
        return Standing.BUSY
    if node.flags & _DRAINED:
        return Standing.AILING if node.reason.startswith(_OWN_REASONS) else Standing.KEPT
    return Standing.IDLE


_GONE = frozenset({"DOWN", "ERROR"})
_DRAINED = frozenset({"DRAIN", "FAIL"})
