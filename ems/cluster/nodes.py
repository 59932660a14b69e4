"""Compute nodes one by one: made, waited for, replaced where they do not come, drained and deleted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ems.cluster import images, keys, ledger, placing, userdata
from ems.cluster.definition import Definition
from ems.cluster.fleet import COMPUTE_ROLE, CONTROLLER_ROLE, Fleet
from ems.cluster.provider import base
from ems.cluster.provider.base import MachineRequest, MachineState, Refusal, RefusalCause, Resource
from ems.cluster.scheduler import Boot, NodeState, Scheduler, busy
from ems.errors import ClusterError, ConnectionFailedError

#: After so many hours the cloud itself deletes a node of an elastic cluster, should everything else fail; where it is
#: still needed its service makes another.
LEASE_H = 168.0
#: Seconds after which a node that says nothing new of its boot is one too late.
SILENT_S = 240
_STAGE_S = 1800  # but where it installs something: CUDA takes many minutes
_LONG = ("installs", "runs")  # with what the names of such stages begin
_LOOK_S = 0.3
_LIST_S = 5.0
_FINAL = (RefusalCause.STOCKOUT, RefusalCause.QUOTA, RefusalCause.PERMISSION, RefusalCause.INVALID)
_LOST = (MachineState.STOPPED, MachineState.STOPPING, MachineState.FAILED)


def requests(fleet: Fleet, names: Sequence[str]) -> list[MachineRequest]:
    """Return what the provider is asked for: the machines of these names."""
    baked, address = images.available(fleet), fleet.address()
    alike: dict[str, MachineRequest] = {}  # one of each kind whose nodes differ by nothing but their names
    found = []
    for name in names:
        kind = fleet.kind(name) if fleet.provider.traits.makes_alike else ""
        request = alike.get(kind) or _request(fleet, name, baked, address)
        if kind:
            alike[kind] = request
        found.append(replace(request, name=name))
    return found


def _request(fleet: Fleet, name: str, baked: Mapping[str, str], address: str) -> MachineRequest:
    is_controller = name == fleet.record.controller
    kind = "controller" if is_controller else fleet.kind(name)
    spec = fleet.definition.kind(kind)
    more = {
        base.ROLE: CONTROLLER_ROLE if is_controller else COMPUTE_ROLE,
        base.KIND: kind,
        base.HOST_KEY: fleet.host_key(name).label,
        base.MUNGE: fleet.record.munge,
    }
    if is_controller or not fleet.provider.traits.makes_alike:
        more[base.NODE] = name
    return MachineRequest(
        name,
        baked.get(kind) or spec.image or fleet.definition.image,
        _user_data(fleet, name, kind, address),
        fleet.record.labels(**more),
        spec.cpus,
        spec.mem_gb,
        spec.disk_gb,
        spec.size[0] if spec.size else None,
        spec.gpus,
        spec.gpu_type,
        is_public=is_controller,
        spot=spec.spot,
        disk_type=spec.disk_type,
        lease_s=_lease_s(fleet.definition, is_controller=is_controller),
        is_trusted=is_controller and fleet.definition.trusts_controller,
    )


def _lease_s(definition: Definition, *, is_controller: bool) -> int | None:
    hours = definition.limits.max_hours
    if hours is None and definition.is_elastic and not is_controller:
        hours = LEASE_H
    return None if hours is None else round(hours * 3600)


def _user_data(fleet: Fleet, name: str, kind: str, address: str) -> str:
    """Return what a machine does at its first boot; our key and the user's own ones let in."""
    host_key, logins = fleet.host_key(name), [fleet.keys.public(), *keys.own_public_keys()]
    if kind == "controller":
        return userdata.controller_user_data(fleet.definition, host_key, logins)
    return userdata.compute_user_data(
        fleet.definition,
        "" if fleet.provider.traits.makes_alike else name,
        kind,
        host_key,
        logins,
        incarnation=fleet.record.incarnation,
        munge=fleet.record.munge,
        controller=address,
        is_share_mounted=fleet.provider.traits.has_shared_volume,
    )


def settled_machines(fleet: Fleet) -> dict[str, Resource]:
    """Return the machines once two looks in a row agree: what a killed command asked for may still be coming."""
    before = fleet.machines()
    while True:
        time.sleep(0.5)
        found = fleet.machines()
        if found.keys() == before.keys():
            return found
        before = found


def create(fleet: Fleet, wanted: Sequence[MachineRequest], found: Mapping[str, Resource]) -> None:
    """Make the machines that are not there; nodes that are stopped are started, machines that failed are made anew.

    Raises
    ------
    ClusterError
        If the controller cannot be made. A node that cannot is left out, after a second try where that may help.
    """
    ruined = [found[each.name] for each in wanted if each.name in found and _is_ruined(found[each.name])]
    destroy(fleet, ruined)
    gone = {each.name for each in ruined}
    nodes = [found[each.name] for each in wanted if each.name in found and fleet.kind(each.name)]
    _wake(fleet, [each for each in nodes if each.state is MachineState.STOPPED])
    missing = [each for each in wanted if each.name not in found or each.name in gone]
    refused = _create(fleet, missing)
    again = [name for name, refusal in refused.items() if refusal.cause not in _FINAL]
    if again:
        refused = {name: each for name, each in refused.items() if name not in again}
        refused |= _create(fleet, [each for each in missing if each.name in again])
    for name, refusal in refused.items():
        if name == fleet.record.controller:
            raise ClusterError(
                f"{name} cannot be made: {refusal.reason}",
                refusal.hint or f"ems cluster start {fleet.name} tries again",
            )
        leave_out(fleet, name, refusal.reason)


def _wake(fleet: Fleet, machines: Sequence[Resource]) -> None:
    """Start nodes that were stopped; SLURM would go on calling them at the addresses that they had."""
    if not machines:
        return
    names = [each.name for each in machines]
    with fleet.journal.step("wake", names):
        _clear_traces(fleet, names, "its machine was stopped")
        fleet.provider.start(machines)


def _is_ruined(machine: Resource) -> bool:
    return machine.state is MachineState.FAILED


def _create(fleet: Fleet, missing: Sequence[MachineRequest]) -> dict[str, Refusal]:
    if not missing:
        return {}
    names = [each.name for each in missing]
    _clear_traces(fleet, names, "its machine is gone")
    for name in names:
        fleet.report(name, "being made")
    results = placing.place(fleet, missing)
    fleet.trust()
    for each in results:
        fleet.report(each.name, f"refused: {each.reason}" if isinstance(each, Refusal) else "boots")
    return {each.name: each for each in results if isinstance(each, Refusal)}


def _clear_traces(fleet: Fleet, names: Iterable[str], why: str) -> None:
    """Make SLURM forget nodes that do not run: what they ran is requeued, and what they said of their boot is old."""
    lost = [name for name in names if name != fleet.record.controller]
    scheduler = _scheduler_if_up(fleet)
    if scheduler is None or not lost:
        return
    scheduler.down(lost, why)
    _forget(scheduler, lost)


def _scheduler_if_up(fleet: Fleet) -> Scheduler | None:
    """Return the cluster's SLURM, or None where there is none (yet)."""
    machine = fleet.machines().get(fleet.record.controller)
    if machine is None or machine.state is not MachineState.RUNNING:
        return None
    try:
        scheduler = Scheduler(fleet.host(machine))
        return scheduler if scheduler.is_up() else None
    except ConnectionFailedError:
        return None


def join(fleet: Fleet, names: Sequence[str]) -> list[str]:
    """Wait until SLURM can use these nodes; returns those that it can.

    One whose boot fails, or that says nothing for too long, is replaced once and then left out.
    """
    waiting = {name: _Wait(name) for name in names if name not in fleet.record.left_out}
    ready: list[str] = []
    scheduler = fleet.scheduler
    machines, listed_at = fleet.machines(), time.monotonic()
    while waiting:
        states, boots = scheduler.look()
        if time.monotonic() - listed_at > _LIST_S:
            machines, listed_at = fleet.machines(), time.monotonic()
        for wait in list(waiting.values()):
            state, boot = states.get(wait.name), boots.get(wait.name, {})
            # SLURM takes a minute to see that a node which booted again, and did not come, is not there any more
            if state is not None and state.is_usable and not boot.get("error"):
                fleet.report(wait.name, state.state)
                ready.append(waiting.pop(wait.name).name)
            elif trouble := wait.trouble(boot, state, machines.get(wait.name)):
                if wait.is_second:
                    leave_out(fleet, waiting.pop(wait.name).name, trouble)
                else:
                    replace_node(fleet, wait.name, trouble)
                    waiting[wait.name] = _Wait(wait.name, is_second=True)
                    listed_at = 0.0
            else:
                fleet.report(wait.name, wait.stage or "boots")
        time.sleep(_LOOK_S if waiting else 0)
    return sorted(ready)


class _Wait:
    """How long one node has been waited for, and what it said last."""

    def __init__(self, name: str, *, is_second: bool = False) -> None:
        self.name = name
        self.is_second = is_second
        self.stage = ""
        self.since = time.monotonic()

    def trouble(self, boot: Boot, state: NodeState | None, machine: Resource | None) -> str:
        """Return why this node will not come; empty while it may."""
        stage = str(boot.get("stage") or "")
        if stage != self.stage:
            self.stage, self.since = stage, time.monotonic()
        if boot.get("error"):
            return str(boot["error"])
        if machine is not None and machine.state in _LOST:
            return f"its machine is {machine.state}"
        passed_s = time.monotonic() - self.since
        if machine is None and passed_s > _LIST_S * 2:
            return "its machine is gone"
        if passed_s < (_STAGE_S if stage.startswith(_LONG) else SILENT_S):
            return ""
        last = f"since then it is at `{stage}`" if stage else "it has said nothing of its boot"
        slurm = f"; SLURM says {state.state}" + (f" ({state.reason})" if state.reason else "") if state else ""
        return f"not ready after {passed_s:.0f} s: {last}{slurm}"


def replace_node(fleet: Fleet, name: str, why: str) -> None:
    """Delete a node that does not come, and make it anew."""
    fleet.report(name, f"replaced: {why}")
    _let_go(fleet, [name])
    create(fleet, requests(fleet, [name]), {})


def leave_out(fleet: Fleet, name: str, why: str) -> None:
    """Go on without a node; its machine is deleted, since nothing would use it."""
    fleet.report(name, f"left out: {why}")
    fleet.update(left_out={**fleet.record.left_out, name: why})
    _let_go(fleet, [name])


def _let_go(fleet: Fleet, names: Sequence[str]) -> None:
    scheduler = _scheduler_if_up(fleet)
    if scheduler is not None:
        scheduler.down(names, "removed by ems")
    machines = fleet.machines()
    destroy(fleet, [machines[name] for name in names if name in machines])
    if scheduler is not None:
        _forget(scheduler, names)


def destroy(fleet: Fleet, machines: Sequence[Resource]) -> None:
    """Delete machines, if there are any; the journal tells it."""
    if machines:
        with fleet.journal.step("destroy", [each.name for each in machines]):
            fleet.provider.destroy(machines)
        ledger.ended(fleet, machines)


def remove(fleet: Fleet, names: Sequence[str], *, now: bool = False) -> None:
    """Delete nodes: they take nothing new, finish what they run, and go.

    Parameters
    ----------
    now
        Do not wait: what they run goes back into the queue.
    """
    if not names:
        return
    scheduler = _scheduler_if_up(fleet)
    if scheduler is not None and not now:
        scheduler.drain(names, "removed by ems")
        _wait_idle(fleet, scheduler, names)
    _let_go(fleet, names)
    for name in names:
        fleet.report(name, "gone")


def _wait_idle(fleet: Fleet, scheduler: Scheduler, names: Sequence[str]) -> None:
    left = list(names)
    while left:
        jobs = scheduler.jobs()
        for name in list(left):
            running = busy(jobs, name)
            if running:
                fleet.report(name, f"waits for {len(running)} jobs, {running[0].id} first")
            else:
                left.remove(name)
        time.sleep(1.0 if left else 0)


def _forget(scheduler: Scheduler, names: Sequence[str]) -> None:
    """Make SLURM forget nodes, as soon as the last job has left them; one it keeps is only down, and does no harm."""
    known = scheduler.look()[0]
    for name in (each for each in names if each in known):
        for _ in range(20):
            try:
                scheduler.delete([name])
                break
            except ClusterError:
                time.sleep(0.5)
    scheduler.forget_boot(names)
