"""A whole life at each cloud: the API is the stand-in, its machines are containers, SLURM is real.

Nodes come and go: they are made by the service on the controller's container, by the rights that it was given.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from clouds import benches
from clouds.benches import Bench
from clouds.bodies import Bodies

from ems.cluster import catalog, provision
from ems.cluster.definition import Definition
from ems.cluster.provider import base, connect
from ems.cluster.provider.base import Thing

# Where a cloud lets one choose, the private addresses are those that the containers get
_PROVIDERS: dict[str, dict[str, Any]] = {
    "gce": {"range": "{subnet}", "service_account": "default"},
    "openstack": {"range": "{subnet}"},
    "aws": {"instance_profile": "ems-controller"},
}
_JOB = '[ -n "$SLURM_RESTART_COUNT" ] || sleep 600'  # it ends as soon as it has been queued again


def _is_spot(bench: Bench) -> bool:
    return bench.kind != "openstack"


def _definition(bench: Bench, subnet: str) -> str:
    """Return a cluster of spot machines with a GPU, of which one is always there."""
    more = {key: value.format(subnet=subnet) for key, value in _PROVIDERS[bench.kind].items()}
    gpu = {"min": 1, "max": 3, "size": bench.sizes[1], "cpus": 2, "mem_gb": 2, **bench.node}
    content = {
        "provider": {**bench.said, "zones": list(bench.zones), **more},
        "image": "debian:12",
        "accounting": False,
        "controller": {"size": bench.sizes[0]},
        "nodes": {"gpu": {**gpu, "spot": _is_spot(bench)}},
        "partitions": {"gpu": {"nodes": ["gpu"], "default": True, "time": "1:00:00"}},
        "slurm": {"SuspendTime": 20, "SuspendTimeout": 10},
    }
    return json.dumps(content)


def _own_address() -> str:
    """Return an address of this computer that its containers reach, too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("192.0.2.1", 9))  # nothing is sent
        return str(sock.getsockname()[0])


@pytest.fixture(params=_PROVIDERS)
def life(
    request: pytest.FixtureRequest,
    desks: ModuleType,
    baked: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Any, Bench]]:
    """A cloud's stand-in with containers behind it, and a laptop that makes a cluster there."""
    if os.geteuid():
        assert os.environ.get("EMS_REQUIRE") is None, "port 22 of a loopback address needs root"
        pytest.skip("port 22 of a loopback address needs root")
    number = os.getpid() % 200
    subnet = f"10.233.{number}.0/24"
    with benches.serve(request.param, tmp_path, monkeypatch, _own_address()) as bench:
        cloud = bench.cloud
        desk = desks.Desk(tmp_path)  # its guard ends the containers, which have its cluster's label
        images = _images(catalog.load(desk.name, desk.project))  # of containers, as those that were baked
        bodies = Bodies(desk.name, subnet, f"127.77.{number}.0", images, cloud.url.removeprefix("http://"))
        cloud.bodies, cloud.public_ip = bodies, bodies.public_ip
        desk.define(_definition(bench, subnet))
        try:
            with desks.ssh_agent(desk.home) as desk.agent:
                desk.env.update(desk.agent)
                yield desk, bench
        finally:
            bodies.clear()
            desk.hand_over()


def _images(definition: Definition) -> dict[str, str]:
    """Return the images that were baked for a definition, by whichever cluster, by kind."""
    kinds = {provision.image_key(definition, kind): kind for kind in ("controller", *definition.nodes)}
    found = [each for each in connect(definition.provider).list() if each.thing is Thing.IMAGE]
    images = {kinds[key]: each.id for each in found if (key := each.labels.get(base.IMAGE)) in kinds}
    assert images.keys() == set(kinds.values())
    return images


def _goes_on_where_nobody_takes_it_back(desk: Any, bench: Bench, node: str, *words: str) -> None:
    """Have the cloud take back the machine that a job is on: it is told so, its job waits again, and it is gone."""
    cloud = bench.cloud
    words = ("--parsable", "--requeue", "--gres=gpu:1", "--output=/dev/null", *words, "--wrap", _JOB)
    job = desk.there("sbatch", *words).strip()
    _await(desk, job, f"JobState=RUNNING.*BatchHost={node}")
    told_at = datetime.now(UTC).replace(microsecond=0)
    cloud.preempt(node)
    _await(desk, job, "Restarts=1")
    with cloud.lock:
        if node in cloud.noticed:  # else the service has deleted it already
            cloud.lose(node)
    # SLURM lets half a minute pass, which may be over by now
    desk.there("scontrol", "update", f"jobid={job}", "starttime=now", code=None)
    [host] = re.findall(r"BatchHost=(\S+)", _await(desk, job, "JobState=COMPLETED"))
    [made_at] = [each.created_at for each in bench.provider().list() if each.name == host]
    assert made_at >= told_at
    bench.is_sound()


def _await(desk: Any, job: str, pattern: str) -> str:
    """Wait until SLURM says something of a job; returns all that it says."""
    look = 'until scontrol -o show job "$1" | grep -E "$2"; do sleep 0.5; done'
    return str(desk.there("timeout", "200", "bash", "-c", look, "-", job, pattern))


@pytest.mark.timeout(1800)
def test_start_run_resize_pause_resume_adopt_and_stop(
    life: tuple[Any, Bench], desks: ModuleType, tmp_path: Path
) -> None:
    desk, bench = life
    cloud = bench.cloud
    first, second = (f"{desk.name}-gpu-{number:03d}" for number in (1, 2))
    gate = f"{desk.name}-controller"
    started = desk.cluster("start", "--yes", timeout=900)
    assert "1 test job passed" in started.stdout
    _await_idle(desk, desks, "gpu-001")
    assert bench.names() == [gate, first]
    assert cloud.callers["machine"], "its controller has made the node"
    assert desk.there("srun", "--gres=gpu:1", "hostname").strip() == first

    cloud.faults[f"exhausted:{bench.zones[0]}"] = 1
    said = desk.there("srun", "--nodes=2", "--gres=gpu:1", "hostname").split()
    assert sorted(said) == [first, second]
    assert [bench.place(name) for name in (first, second)] == list(bench.zones)
    far = desk.ems("cluster", "ssh", "gpu-002", "--on", desk.name, "--", "hostname").stdout
    assert far.strip() == second
    desk.cluster("resize", "2", timeout=600)  # it stays now, be it idle
    _await_idle(desk, desks, "gpu-002")
    if _is_spot(bench):
        _goes_on_where_nobody_takes_it_back(desk, bench, second, "--exclude", first)
    desk.cluster("resize", "1", timeout=300)
    desks.wait_until(lambda: bench.names() == [gate, first], 180, "one that stays no more goes")

    desk.cluster("pause", "--yes", timeout=300)
    assert bench.names() == [gate]
    assert desk.status()["phase"] == "paused"
    desk.cluster("resume", timeout=900)
    _await_idle(desk, desks, "gpu-001")
    states = dict(line.split() for line in desk.there("sinfo", "-h", "-N", "--format=%N %t").splitlines())
    on = [name for name, state in states.items() if not state.endswith(("~", "%"))]
    assert on == [first], "what was taken back before is off, too, and may be wanted again"
    assert desk.there("srun", "hostname").strip() == first
    bench.is_sound()

    other = desks.Desk(tmp_path / "other", desk.name, (desk.project / "cluster" / f"{desk.name}.yaml").read_text())
    other.env.update(desk.agent)
    other.cluster("status", "--adopt")
    _await_idle(other, desks, "gpu-001")
    other.cluster("stop", "--yes", "--no-harvest")
    assert cloud.left() == []


def _await_idle(desk: Any, desks: ModuleType, node: str) -> None:
    """Wait until a node is idle: a job that has just ended on it is being cleaned up for a moment."""
    desks.wait_until(lambda: desk.nodes().get(node) == "idle", 120, f"{node} is idle")
