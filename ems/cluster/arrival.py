"""What a new cluster is waited for, and tried by: controller, SLURM, a job on each partition."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from ems.cluster.fleet import Fleet
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


def try_partitions(fleet: Fleet, ready: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Run a job on each kind of node of each partition, with its gres, all side by side.

    Returns what each wrote, by partition and kind, and those of which no node is up.

    Raises
    ------
    ClusterError
        If one fails.
    """
    there = {fleet.kind(node) for node in ready}
    pairs = [(partition, kind) for partition, spec in fleet.definition.partitions.items() for kind in spec.nodes]
    wanted = [(partition, kind) for partition, kind in pairs if kind in there]
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
    untried = tuple(f"{partition}/{kind}" for partition, kind in pairs if kind not in there)
    return {f"{partition}/{kind}": said for (partition, kind), said in zip(wanted, results, strict=True)}, untried
