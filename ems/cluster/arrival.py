"""What a new cluster is waited for, and tried by: controller, SLURM, a job on each partition."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ems.cluster.fleet import Fleet
from ems.cluster.scheduler import Job
from ems.errors import ClusterError, ConnectionFailedError, HostKeyError

_REACH_S = 180  # from a machine's creation to its first login; clouds take under a minute


def reach(fleet: Fleet) -> None:
    """Wait until the controller lets us in, by the host key that it was given.

    Raises
    ------
    ClusterError
        If it does not, or shows another key.
    """
    name = fleet.record.controller
    fleet.report(name, "boots")
    deadline = time.monotonic() + _REACH_S
    while True:
        host = fleet.host()
        try:
            host.run(["true"], timeout_s=20)
            break
        except HostKeyError as error:
            if not fleet.provider.traits.shows_own_key or time.monotonic() > deadline:
                raise ClusterError(f"{name} shows another host key than the one it was given", error.hint) from error
        except ConnectionFailedError as error:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{name} cannot be logged into after {_REACH_S} s: {error.message}",
                    f"`ems cluster start {fleet.name}` tries again; `ems cluster stop {fleet.name}` deletes it",
                ) from error
        time.sleep(0.25)
    fleet.report(name, "there")


def wait_scheduler(fleet: Fleet) -> None:
    """Wait until SLURM answers.

    Raises
    ------
    ClusterError
        If it does not.
    """
    fleet.report("slurmctld", "starts")
    deadline = time.monotonic() + _REACH_S
    while not fleet.scheduler.is_up():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"slurmctld of {fleet.name} does not answer",
                f"ems cluster logs {fleet.name}; ems cluster setup {fleet.name}",
            )
        time.sleep(0.3)
    fleet.report("slurmctld", "answers")


def try_partitions(fleet: Fleet, ready: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Run a job on each kind of node of each partition, with its gres, all side by side.

    Returns by partition and kind what each wrote, and why the others were not tried: no node is up, or others' jobs
    would have to end first.

    Raises
    ------
    ClusterError
        If one fails.
    """
    pairs = [(partition, kind) for partition, spec in fleet.definition.partitions.items() for kind in spec.nodes]
    jobs, up = fleet.scheduler.jobs(), list(ready)
    reasons = {pair: _why_untried(fleet, *pair, up, jobs) for pair in pairs}
    wanted = [pair for pair in pairs if not reasons[pair]]
    home = f"/home/{fleet.definition.login_user}"
    scheduler = fleet.scheduler

    def run(pair: tuple[str, str]) -> str:
        partition, kind = pair
        spec = fleet.definition.nodes[kind]
        gres = f"gpu:{f'{spec.gpu_type}:' if spec.gpu_type else ''}1" if spec.gpus else ""
        subject = f"test {partition}" if partition == kind else f"test {partition} on {kind}"
        fleet.report(subject, "a job runs")
        said = scheduler.test(partition, constraint=kind, gres=gres, home=home)
        fleet.report(subject, "passed")
        return said

    with ThreadPoolExecutor(max_workers=8) as pool:
        results = list(pool.map(run, wanted))
    untried = {f"{partition}/{kind}": why for (partition, kind), why in reasons.items() if why}
    return {f"{partition}/{kind}": said for (partition, kind), said in zip(wanted, results, strict=True)}, untried


def _why_untried(fleet: Fleet, partition: str, kind: str, ready: Sequence[str], jobs: Sequence[Job]) -> str:
    """Say why a test job would not start at once; empty where it would."""
    there = [node for node in ready if fleet.kind(node) == kind]
    if not there:
        return "their nodes come with jobs" if fleet.definition.is_elastic else "none of their nodes is there"
    if any(job.state == "PENDING" and partition in job.partitions for job in jobs):
        return "jobs wait for them already"
    at_work = {node for job in jobs for node in job.hosts}
    return "jobs run on all their nodes" if at_work.issuperset(there) else ""
