"""The life of a cluster: start, set-up, pause, resume, stop. Each may be killed anywhere and given again.

What is wanted is written down first, what is there is read from labels, and only the difference is made: to start
again after any failure continues, and never doubles a node.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ems import registry
from ems.cluster import arrival, delegation, floor, images, ledger, nodes, provision, usage
from ems.cluster.definition import Definition
from ems.cluster.fleet import Fleet, Report, quiet
from ems.cluster.keys import fingerprint
from ems.cluster.provider import base, connect
from ems.cluster.provider.base import ImageMaker, MachineState, Resource, Thing
from ems.cluster.record import MADE, Files, Phase, choose, new
from ems.cluster.scheduler import Job
from ems.errors import ClusterError, ConnectionFailedError, NotFoundError, UsageError

_EMPTY_S = 300
_LATE_S = 2.0  # a cloud's listing may lack what was made a moment ago
_REQUEUE_S = 60


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a change of a cluster ended.

    Attributes
    ----------
    ready
        The compute nodes that are idle or at work.
    left_out
        Those that are not there, and why.
    changed
        What the set-up changed; None where none ran.
    tests
        Partition and kind -> what the test job there wrote.
    untried
        Partition and kind -> why no job was tried there.
    """

    ready: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    changed: int | None = None
    tests: Mapping[str, str] = field(default_factory=dict)
    untried: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def begin(name: str, definition: Definition, counts: Mapping[str, int], report: Report = quiet) -> Fleet:
    """Return a cluster as it is wanted; nothing is written down or made yet. The caller holds the cluster's lock.

    Parameters
    ----------
    counts
        Kind -> number of nodes; kinds left out keep what they had, or what the definition says.

    Raises
    ------
    ClusterError
        If there is a cluster of that name that this machine did not make, or one that is paused or half deleted.
    UsageError
        If there is no such kind.
    """
    delegation.refuse_helpless(definition)
    files = Files(name)
    record = files.load()
    if record is not None and record.phase is Phase.MAKING and record.digest != definition.digest:
        record = record if Fleet(files, record).resources() else None  # nothing was made by the definition as it was
    if record is None:
        _refuse_strangers(name, definition)
        record = new(name, definition.model_dump(mode="json"), definition.digest)
    _check_phase(record.phase, name)
    fleet = Fleet(files, record, report)
    fleet.record = replace(record, wanted=plan(fleet, counts))
    return fleet


def want(fleet: Fleet, wanted: tuple[str, ...]) -> None:
    """Write down which nodes are wanted; their keys are made before, and believed from then on."""
    if fleet.record.munge:
        fleet.keys.check_munge_key(fleet.record.munge)
    else:
        fleet.update(munge=fingerprint(fleet.keys.munge_key()))
    fleet.update(wanted=wanted, left_out={})
    fleet.trust()


def _check_phase(phase: Phase, name: str) -> None:
    if phase is Phase.PAUSED:
        raise ClusterError(f"the cluster `{name}` is paused", f"ems cluster resume {name}")
    if phase in {Phase.STOPPING, Phase.BAKING}:
        raise ClusterError(f"the cluster `{name}` is half deleted", f"ems cluster stop {name} deletes the rest")


def _refuse_strangers(name: str, definition: Definition) -> None:
    """Refuse a name whose machines another machine, or a record that was lost, has made."""
    found = [each for each in connect(definition.provider).list({base.CLUSTER: name}) if each.thing is not Thing.IMAGE]
    if found:
        owner = found[0].labels.get(base.OWNER, "somebody")
        raise ClusterError(
            f"there is a cluster `{name}` already, which this machine does not know ({owner} made it)",
            f"ems cluster status {name} --adopt takes it over; another name: copy its definition",
        )


def plan(fleet: Fleet, counts: Mapping[str, int], preferred: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names of the compute nodes that are wanted.

    Parameters
    ----------
    preferred
        Nodes that stay where there are too many: those at work.
    """
    kinds = fleet.definition.nodes
    for kind in counts:
        if kind not in kinds:
            raise UsageError(f"{fleet.name} has no kind of node `{kind}`", f"its kinds are {', '.join(kinds)}")
    if fleet.definition.is_elastic:
        floor.check_counts(fleet.definition, counts)
    before = fleet.record.wanted
    order = [*(name for name in before if name in set(preferred)), *before]
    chosen: list[str] = []
    for kind, spec in kinds.items():
        had = sum(fleet.kind(name) == kind for name in before) if before else spec.count
        chosen += choose(fleet.name, dict.fromkeys(order), kind, counts.get(kind, had))
    most = fleet.definition.limits.max_nodes
    if most is not None and len(chosen) > max(most, len(before)):
        raise UsageError(
            f"{len(chosen)} nodes are more than {fleet.name} may have: `limits.max_nodes` is {most}",
            "ask for fewer, or raise the limit in the definition before the cluster is made",
        )
    return tuple(chosen)


@ledger.kept
def start(fleet: Fleet, *, setup: bool = True) -> Outcome:
    """Make what is wanted and not there; then set it up, wait for its nodes, and run a job on every partition.

    Raises
    ------
    ClusterError
        If the controller cannot be made or set up, or a test job fails; machines that are there stay.
    """
    began = time.monotonic()
    want(fleet, fleet.record.wanted)
    make(fleet)
    if not setup:
        with fleet.journal.step(MADE):
            pass
        made = () if fleet.definition.is_elastic else fleet.record.wanted
        return Outcome(made, fleet.record.left_out, seconds=time.monotonic() - began)
    changed = configure(fleet)
    outcome = settle(fleet, changed)
    fleet.register()
    fleet.update(phase=Phase.READY)
    return _timed(outcome, began)


def make(fleet: Fleet) -> None:
    """Make what is wanted and not there: network, controller, nodes; delete nodes that are not wanted.

    The nodes of an elastic cluster are its controller's to make and delete.
    """
    record = fleet.record
    is_elastic = fleet.definition.is_elastic
    requests = nodes.requests(fleet, [record.controller, *(() if is_elastic else record.wanted)])
    interrupted = fleet.journal.unfinished()
    found = nodes.settled_machines(fleet) if interrupted else fleet.machines()
    nodes.destroy(fleet, fleet.doubles())
    missing = [each for each in requests if each.name not in found]
    if missing or any(each.state is MachineState.STOPPED for each in found.values()):
        ledger.check_limit(fleet)
    if missing:
        later = nodes.requests(fleet, floor.samples(fleet)) if is_elastic else []
        delegation.check(fleet.definition, fleet.provider)
        fleet.provider.check([*missing, *later])
        fleet.report("network", "being made")
        with fleet.journal.step("prepare", [f"{record.name}"]):
            fleet.provider.prepare(record.labels())
        if isinstance(fleet.provider, ImageMaker):
            fleet.provider.make_images([each.image for each in later])
        fleet.report("network", "there")
    _wake_controller(fleet, found.get(record.controller))
    surplus = [name for name in found if name != record.controller and name not in record.wanted]
    nodes.remove(fleet, [] if is_elastic else surplus)
    if is_elastic or fleet.provider.traits.has_names:
        nodes.create(fleet, requests, found)
    else:  # the nodes are told the controller's address
        nodes.create(fleet, requests[:1], found)
        nodes.create(fleet, nodes.requests(fleet, record.wanted), found)


def _wake_controller(fleet: Fleet, controller: Resource | None) -> None:
    """Start a controller that was stopped; where SLURM was set up it answers before any node is started."""
    if controller is None or controller.state is not MachineState.STOPPED:
        return
    with fleet.journal.step("wake", [controller.name]):
        fleet.provider.start([controller])
        arrival.reach(fleet)
        if fleet.record.phase in {Phase.READY, Phase.PAUSED}:
            arrival.wait_scheduler(fleet)


def configure(fleet: Fleet) -> int:
    """Run the templates on the controller; returns how much they changed."""
    if fleet.definition.trusts_controller and fleet.provider.traits.client:
        fleet.provider.start([fleet.controller()])  # it runs; but what it makes nodes by, here, may have ended
    arrival.reach(fleet)
    with fleet.journal.step("setup", [fleet.record.controller]):
        changed = provision.configure(fleet).changed
    fleet.report(fleet.record.controller, "set up")
    return changed


def settle(fleet: Fleet, changed: int | None = None) -> Outcome:
    """Wait for the wanted nodes, replace or leave out those that do not come, and try every partition."""
    began = time.monotonic()
    if fleet.definition.is_elastic:
        floor.arm(fleet)
        floor.keep(fleet)
    ready = join(fleet)
    if fleet.record.wanted and not ready and not fleet.definition.is_elastic:  # else emsd goes on trying
        why = "; ".join(f"{node}: {reason}" for node, reason in fleet.record.left_out.items())
        raise ClusterError(f"no node of {fleet.name} came up: {why}", f"ems cluster logs {fleet.name} NODE")
    tests, untried = arrival.try_partitions(fleet, ready)
    return Outcome(tuple(ready), dict(fleet.record.left_out), changed, tests, untried, time.monotonic() - began)


def join(fleet: Fleet) -> list[str]:
    """Wait for the wanted nodes; returns those that SLURM can use."""
    return floor.join(fleet) if fleet.definition.is_elastic else nodes.join(fleet, fleet.record.wanted)


def setup(fleet: Fleet) -> Outcome:
    """Run the templates again on a cluster that is there; where nothing differs nothing changes."""
    began = time.monotonic()
    _check_phase(fleet.record.phase, fleet.name)
    changed = configure(fleet)
    outcome = settle(fleet, changed)
    fleet.register(use=False)
    fleet.update(phase=Phase.READY)
    return _timed(outcome, began)


@ledger.kept
def resize(fleet: Fleet, counts: Mapping[str, int], *, now: bool = False) -> Outcome:
    """Have other numbers of nodes; those that leave finish what they run first.

    Parameters
    ----------
    now
        Do not wait: what runs on nodes that leave goes back into the queue.
    """
    began = time.monotonic()
    _check_phase(fleet.record.phase, fleet.name)
    if fleet.definition.is_elastic:
        want(fleet, plan(fleet, counts))
        floor.arm(fleet)
        floor.keep(fleet)
        return _timed(settle_new(fleet), began)
    jobs = fleet.scheduler.jobs()
    at_work = {node for job in jobs for node in job.hosts}
    change(fleet, plan(fleet, counts, preferred=at_work), now=now)
    return _timed(settle_new(fleet), began)


def change(fleet: Fleet, wanted: tuple[str, ...], *, now: bool = False) -> None:
    """Make and delete nodes until there are those that are wanted."""
    found = fleet.machines()
    if new := set(wanted) - found.keys():
        ledger.check_limit(fleet, wanted)
    want(fleet, wanted)
    requests = nodes.requests(fleet, list(wanted))
    if missing := [each for each in requests if each.name in new]:
        fleet.provider.check(missing)
    nodes.create(fleet, requests, found)
    surplus = [name for name in found if name != fleet.record.controller and name not in wanted]
    nodes.remove(fleet, surplus, now=now)


@ledger.kept
def remove_nodes(fleet: Fleet, names: Iterable[str], *, now: bool = False) -> list[str]:
    """Drain nodes and delete them; they are not wanted any more. Returns their whole names.

    Raises
    ------
    NotFoundError
        If there is no such node.
    """
    _check_phase(fleet.record.phase, fleet.name)
    floor.refuse_removal(fleet)
    known = {*fleet.record.wanted, *fleet.machines()} - {fleet.record.controller}
    gone = []
    for given in names:
        name = next((each for each in (given, f"{fleet.name}-{given}") if each in known), None)
        if name is None:
            listed = ", ".join(sorted(known)) or "none"
            raise NotFoundError(f"{fleet.name} has no compute node `{given}`", f"its nodes are {listed}")
        gone.append(name)
    change(fleet, tuple(name for name in fleet.record.wanted if name not in gone), now=now)
    return gone


def settle_new(fleet: Fleet) -> Outcome:
    """Wait for nodes after a resize; partitions were tried when the cluster was started."""
    return Outcome(tuple(join(fleet)), dict(fleet.record.left_out))


@ledger.kept
def pause(fleet: Fleet) -> None:
    """Stop all machines; disks and accounting stay. What runs goes back into the queue.

    Where machines cost something, nodes are deleted, and only the controller is kept.
    """
    if fleet.record.phase is Phase.STOPPING:
        _check_phase(fleet.record.phase, fleet.name)
    is_elastic = fleet.definition.is_elastic
    is_disarmed = not is_elastic or floor.disarm(fleet)
    machines = fleet.machines()
    computes = {name: each for name, each in machines.items() if name != fleet.record.controller}
    controller = machines.get(fleet.record.controller)
    with fleet.journal.step("pause", machines):
        if controller is not None and controller.state is MachineState.RUNNING:
            _requeue(fleet, list(computes))
        if is_elastic:
            floor.delete_computes(fleet)
        elif fleet.provider.traits.is_free:
            fleet.report("nodes", "stop")
            fleet.provider.stop([each for each in computes.values() if each.state is not MachineState.STOPPED])
        else:  # their disks would cost something, and hold nothing: `resume` makes them anew
            nodes.remove(fleet, list(computes), now=True)
        fleet.report(fleet.record.controller, "stops")
        if controller is not None and controller.state is not MachineState.STOPPED:
            fleet.provider.stop([controller])
        if not is_disarmed:  # it may have made nodes until its machine was stopped
            floor.delete_computes(fleet)
        fleet.update(phase=Phase.PAUSED)
    target = registry.load(fleet.name)
    if target is not None:  # so that who cannot reach it is told why; to register it anew takes this away
        registry.save(replace(target, facts={**target.facts, "paused": True}))


def _requeue(fleet: Fleet, computes: list[str]) -> None:
    """Put what runs back into the queue; a SLURM that does not answer is no reason to let machines run."""
    fleet.report("jobs", "go back into the queue")
    try:
        fleet.scheduler.down(computes, "paused by ems")
        _wait_requeued(fleet)
        if fleet.definition.is_elastic:  # SLURM is to know that they are off when it runs again, those taken back too
            fleet.scheduler.power_down([name for name, each in fleet.scheduler.look()[0].items() if not each.is_off])
        fleet.scheduler.forget_boot(computes)
        fleet.scheduler.host.run(["sudo", "sync"], check=False)
        fleet.scheduler.host.close()
    except ConnectionFailedError as error:
        fleet.report("jobs", f"could not be put back: {error.message}")


def _wait_requeued(fleet: Fleet) -> None:
    """Wait until nothing runs; jobs that wait for nodes which nobody makes any more go on waiting after `resume`."""
    deadline = time.monotonic() + _REQUEUE_S
    while time.monotonic() < deadline and any(_runs(job) for job in fleet.scheduler.jobs()):
        time.sleep(0.3)


def _runs(job: Job) -> bool:
    return bool(job.nodes) and job.state != "CONFIGURING"


@ledger.kept
def resume(fleet: Fleet) -> Outcome:
    """Start all machines of a cluster that was paused, and wait until SLURM has its nodes again."""
    began = time.monotonic()
    if fleet.record.phase is Phase.STOPPING:
        _check_phase(fleet.record.phase, fleet.name)
    if fleet.record.controller not in fleet.machines():
        raise ClusterError(f"{fleet.record.controller} is gone", f"ems cluster stop {fleet.name} deletes the rest")
    make(fleet)
    outcome = settle(fleet)
    fleet.register()
    fleet.update(phase=Phase.READY)
    return _timed(outcome, began)


def stop(fleet: Fleet, *, with_images: bool = False) -> int:
    """Delete everything, look until nothing is left twice, then forget the cluster; returns how much it was.

    Parameters
    ----------
    with_images
        Delete its baked images as well; else they are kept for the next start.

    Raises
    ------
    ClusterError
        If something cannot be deleted; it is named, and nothing is forgotten.
    """
    ledger.observe(fleet)
    usage.keep(fleet)
    fleet.update(phase=Phase.STOPPING)
    if fleet.definition.is_elastic:
        floor.disarm(fleet)  # where it cannot be told it is deleted, and what it made in the meantime is found
    things = fleet.resources()
    controller = next((each for each in things if each.name == fleet.record.controller), None)
    if controller is not None and controller.ssh_address:
        fleet.host(controller).close()
    with fleet.journal.step("stop", [each.name for each in things]):
        _destroy_until_empty(fleet, things)
    ledger.observe(fleet)
    discarded = images.discard(fleet, every=True) if with_images else 0
    registry.forget(fleet.name)
    fleet.files.delete()
    return len(things) + discarded


def _destroy_until_empty(fleet: Fleet, things: list[Resource]) -> None:
    deadline = time.monotonic() + _EMPTY_S
    empty = 0
    while empty < 2:
        if things:
            fleet.report("machines", f"{len(things)} left")
            fleet.provider.destroy(things)
        things = fleet.resources()
        empty = 0 if things else empty + 1
        if things and time.monotonic() > deadline:
            left = ", ".join(f"{each.thing} {each.name}" for each in things)
            raise ClusterError(f"these cannot be deleted: {left}", f"ems cluster stop {fleet.name} tries again")
        time.sleep(_LATE_S if empty == 1 and not fleet.provider.traits.is_free else 0.2)
    fleet.report("machines", "gone")


def _timed(outcome: Outcome, began: float) -> Outcome:
    return replace(outcome, seconds=time.monotonic() - began)


def bake(name: str, definition: Definition, report: Report = quiet) -> list[images.Baked]:
    """Make an image for each kind of machine; a cluster that was not there is gone afterwards, but for them.

    The caller holds the cluster's lock.
    """
    files = Files(name)
    record = files.load()
    if record is not None and record.phase is not Phase.BAKING:
        return images.bake(Fleet(files, record, report))
    if record is None:
        _refuse_strangers(name, definition)
        record = new(name, definition.model_dump(mode="json"), definition.digest)
    fleet = Fleet(files, files.save(replace(record, phase=Phase.BAKING)), report)
    try:
        return images.bake(fleet)
    finally:
        stop(fleet)
