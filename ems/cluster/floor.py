"""Elastic clusters as a client sees them: emsd makes and deletes their nodes, a client says which of them stay.

The nodes that stay whatever the queue says are the floor: all of the kinds that do not come and go, and the first
``min`` of those that do. They are what :attr:`~ems.cluster.record.Record.wanted` names; on the controller they stand
in :data:`FLOOR_FILE` for emsd, and in SLURM's ``SuspendExcNodes``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from ems.cluster import images, nodes
from ems.cluster.definition import Definition, node_name, node_number
from ems.cluster.elastic.standing import STATUS, Shut, Status, parse
from ems.cluster.fleet import Fleet
from ems.cluster.provider.base import MachineState, Resource
from ems.cluster.scheduler import Boot, NodeState
from ems.errors import ClusterError, ConnectionFailedError, UsageError

#: One name a line.
FLOOR_FILE = "/opt/ems/etc/floor"
SERVICE = "emsd"
_STATUS = f"/opt/ems/state/{STATUS}"
_SET = "/opt/ems/templates/roles/elastic/files/ems-floor"
_STANDING = f"systemctl is-active {SERVICE}; cat {_STATUS} 2>/dev/null; exit 0"
_ASK_S = 60
_END_S = 120  # it ends what it has begun at the cloud
_LOOK_S = 0.5
_COME_S = 900  # a node is wanted, made, boots, fails, and is made once more
_INSTALL_S = 2400  # where it installs CUDA meanwhile; SLURM waits for 1,800 s then
_EMPTY_S = 300
_LATE_S = 2.0  # a cloud's listing may lack what emsd made as it ended
_HEAR_S = 5.0
_SOON_S = 90.0  # a kind that opens in so short a time is waited for
_MOMENTS = 3  # the first may be from before it was told to try again, and the next from a turn that went on meanwhile


def most(definition: Definition, kind: str) -> int:
    """Return how many nodes of a kind there may ever be: so many are declared to SLURM."""
    spec = definition.nodes[kind]
    return spec.max or spec.count


def check_counts(definition: Definition, counts: Mapping[str, int]) -> None:
    """See that no more nodes are to stay than are declared.

    Raises
    ------
    UsageError
        If more are asked for.
    """
    for kind, count in counts.items():
        if count > (limit := most(definition, kind)):
            word = "max" if definition.nodes[kind].is_elastic else "count"
            raise UsageError(
                f"{count} nodes are more than {definition.name} may have of `{kind}`: its `{word}` is {limit}",
                "ask for fewer, or say more in the definition before the cluster is made",
            )


def samples(fleet: Fleet) -> list[str]:
    """Return nodes whose making is looked at before anything is made: those that stay, and one of every kind."""
    firsts = (node_name(fleet.name, kind) for kind in fleet.definition.nodes)
    return list(dict.fromkeys([*fleet.record.wanted, *firsts]))


def refuse_removal(fleet: Fleet) -> None:
    """Refuse to take single nodes out of a cluster whose nodes come and go.

    Raises
    ------
    ClusterError
        If it is such a cluster.
    """
    if fleet.definition.is_elastic:
        raise ClusterError(
            f"the nodes of {fleet.name} come and go with its queue: none is removed for good",
            f"ems cluster resize {fleet.name} KIND=N says how many stay; a broken one: ems cluster ssh "
            f"--on {fleet.name} -- sudo scontrol update nodename=NODE state=power_down_force reason=broken",
        )


def disarm(fleet: Fleet) -> bool:
    """Have emsd make and delete nothing any more; returns False where it cannot be told."""
    machine = fleet.machines().get(fleet.record.controller)
    if machine is None or machine.state is not MachineState.RUNNING or not machine.ssh_address:
        return False
    fleet.report(SERVICE, "ends what it does")
    try:
        fleet.host(machine).run(["sudo", "systemctl", "stop", SERVICE], timeout_s=_END_S, check=False)
    except ConnectionFailedError as error:
        fleet.report(SERVICE, f"cannot be told to end: {error.message}")
        return False
    fleet.report(SERVICE, "has ended")
    return True


def arm(fleet: Fleet) -> None:
    """Have emsd at work; where it is already, it looks at once, and opens what it had shut."""
    fleet.host().run(["sudo", "systemctl", "reload-or-restart", SERVICE], timeout_s=_ASK_S)
    fleet.report(SERVICE, "at work")


def standing(fleet: Fleet) -> tuple[Status | None, str]:
    """Return what emsd says of itself, and what keeps it from its work; empty where nothing does.

    Raises
    ------
    ConnectionFailedError
        If the controller cannot be asked.
    """
    said = fleet.host().run(["sh", "-c", _STANDING], timeout_s=_ASK_S).stdout.decode(errors="replace")
    word, _, text = said.partition("\n")
    found = parse(text)
    if word.strip() != "active":
        what = "nodes neither come nor go" if fleet.definition.is_elastic else "it does not go to rest by itself"
        return found, f"{what}: {SERVICE} is {word.strip() or 'not there'}"
    return found, found.trouble if found else ""


def keep(fleet: Fleet) -> None:
    """Have the wanted nodes stay, and no others; those that are off are asked for."""
    lines = "".join(f"{name}\n" for name in fleet.record.wanted)
    fleet.scheduler.host.run(["sudo", _SET], data=lines.encode(), timeout_s=_ASK_S)
    states = fleet.scheduler.look()[0]
    fleet.scheduler.power_up([name for name in fleet.record.wanted if name in states and states[name].is_off])


def join(fleet: Fleet) -> list[str]:
    """Wait until SLURM can use the nodes that stay; returns those that it can.

    It is emsd that replaces those whose boot fails. Those that are not there in the end are left out; those of a kind
    that cannot be had for a while at once, in the cloud's words.
    """
    waiting, ready = list(fleet.record.wanted), list[str]()
    if not waiting:
        return []
    limit_s = _INSTALL_S if images.lacking(fleet) else _COME_S
    asked, deadline = dict.fromkeys(waiting, time.monotonic()), time.monotonic() + limit_s
    service = _Service(fleet)
    while waiting:
        states, boots = fleet.scheduler.look()
        shut = service.shut()
        for name in list(waiting):
            state, boot = states.get(name), boots.get(name, {})
            if state is not None and state.is_usable:
                fleet.report(name, state.state)
                ready.append(name)
                waiting.remove(name)
            elif (state is None or not state.is_coming) and (closed := shut.get(fleet.kind(name))):
                _leave_out(fleet, name, f"not until {closed.until[11:16]} UTC: {closed.why}")
                waiting.remove(name)
            elif time.monotonic() > deadline:
                _leave_out(fleet, name, _why_late(state, boot))
                waiting.remove(name)
            else:
                stage = str(boot.get("stage") or "")
                fleet.report(name, stage if stage and stage != "ready" else "comes")
        _ask_again(fleet, [name for name in waiting if name in states and states[name].is_off], asked)
        time.sleep(_LOOK_S if waiting else 0)
    return sorted(ready)


def _ask_again(fleet: Fleet, off: Sequence[str], asked: dict[str, float]) -> None:
    """Ask for nodes that went off again: one that could not be made is free to be wanted anew."""
    late = [name for name in off if time.monotonic() - asked[name] > 30]
    fleet.scheduler.power_up(late)
    asked.update(dict.fromkeys(late, time.monotonic()))


class _Service:
    """What emsd says while nodes are waited for."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._due = 0.0
        self._moments: dict[str, set[str]] = {}
        self._shut: dict[str, Shut] = {}

    def shut(self) -> Mapping[str, Shut]:
        """Return the kinds of which none is made for a while, as far as it has said so again and again."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _HEAR_S
            self._hear(standing(self._fleet)[0])
        return self._shut

    def _hear(self, status: Status | None) -> None:
        found = status.shut if status is not None else {}
        at = status.at if status is not None else ""
        self._moments = {kind: self._moments.get(kind, set()) | {at} for kind in found}
        said_again = [kind for kind, moments in self._moments.items() if len(moments) >= _MOMENTS]
        self._shut = {kind: found[kind] for kind in said_again if _seconds(at, found[kind].until) > _SOON_S}


def _seconds(begin: str, end: str) -> float:
    """Return how long it is between two moments by the controller's own clock."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def _why_late(state: NodeState | None, boot: Boot) -> str:
    said = boot.get("error") or (state.reason if state else "") or boot.get("stage")
    return str(said or (f"SLURM says {state.state}" if state else "SLURM does not know it"))


def _leave_out(fleet: Fleet, name: str, why: str) -> None:
    fleet.report(name, f"left out: {why}")
    fleet.update(left_out={**fleet.record.left_out, name: why})


def delete_computes(fleet: Fleet) -> None:
    """Delete all compute nodes; emsd has been disarmed, and nobody else makes any.

    Raises
    ------
    ClusterError
        If some do not go.
    """
    deadline, empty = time.monotonic() + _EMPTY_S, 0
    while empty < 2:
        found = computes(fleet, fleet.machines().values())
        nodes.destroy(fleet, found)
        empty = 0 if found else empty + 1
        if found and time.monotonic() > deadline:
            left = ", ".join(each.name for each in found)
            raise ClusterError(f"these cannot be deleted: {left}", f"ems cluster pause {fleet.name} tries again")
        pause_s = 0.5 if fleet.provider.traits.is_free else _LATE_S
        time.sleep(pause_s if empty == 1 else 0)


def computes(fleet: Fleet, machines: Iterable[Resource]) -> list[Resource]:
    """Return the compute nodes among machines."""
    return [each for each in machines if node_number(fleet.name, each.name)]
