"""A whole life at Google Compute Engine: the API is the stand-in, its machines are containers, SLURM is real.

Its nodes come and go: they are made by the service on the controller's container, as the service account it was given.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from clouds import gce
from clouds.bodies import Bodies

from ems.cluster.definition import ContainerSection
from ems.cluster.provider import base, connect
from ems.cluster.provider.base import Thing

DEFINITION = """
provider: {{kind: gce, credentials: {credentials}, endpoint: "{url}", ssh_from: 192.0.2.7/32, range: {subnet},
           service_account: default}}
image: debian:12
accounting: false
controller: {{size: e2-standard-2}}
nodes:
  gpu: {{min: 1, max: 3, size: n1-standard-4, cpus: 2, mem_gb: 2, gpus: 2, gpu_type: t4, spot: true}}
partitions:
  gpu: {{nodes: [gpu], default: true, time: 1:00:00}}
slurm: {{SuspendTime: 20, SuspendTimeout: 10}}
"""


def _own_address() -> str:
    """Return an address of this computer that its containers reach, too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("192.0.2.1", 9))  # nothing is sent
        return str(sock.getsockname()[0])


@pytest.fixture
def life(desks: ModuleType, baked: None, shared: Path, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """The stand-in with containers behind it, and a laptop that makes a cluster there."""
    if os.geteuid():
        assert os.environ.get("EMS_REQUIRE") is None, "port 22 of a loopback address needs root"
        pytest.skip("port 22 of a loopback address needs root")
    number = os.getpid() % 200
    subnet = f"10.233.{number}.0/24"
    desk = desks.Desk(tmp_path)  # its guard ends the containers, which have its cluster's label
    with gce.serve(_own_address()) as cloud:
        images = _images((shared / "baked").read_text())
        bodies = Bodies(desk.name, subnet, f"127.77.{number}.0", images, cloud.url.removeprefix("http://"))
        cloud.bodies, cloud.public_ip = bodies, bodies.public_ip
        desk.define(DEFINITION.format(credentials=cloud.credentials(tmp_path), url=cloud.url, subnet=subnet))
        try:
            with desks.ssh_agent(desk.home) as desk.agent:
                desk.env.update(desk.agent)
                yield desk, cloud
        finally:
            bodies.clear()
            desk.hand_over()


def _images(cluster: str) -> dict[str, str]:
    """Return the images that were baked for the session, by kind."""
    found = connect(ContainerSection()).list({base.CLUSTER: cluster})
    return {each.labels[base.KIND]: each.id for each in found if each.thing is Thing.IMAGE}


@pytest.mark.timeout(1800)
def test_start_run_resize_pause_resume_adopt_and_stop(life: tuple[Any, Any], desks: ModuleType, tmp_path: Path) -> None:
    desk, cloud = life
    started = desk.cluster("start", "--yes", timeout=900)
    assert "1 test job passed" in started.stdout
    assert desk.nodes()["gpu-001"] == "idle"
    assert _names(cloud) == ["controller", "gpu-001"]
    assert cloud.callers["machine"], "its controller has made the node"
    assert desk.there("srun", "--gres=gpu:t4:1", "hostname").strip() == f"{desk.name}-gpu-001"

    cloud.faults["exhausted:us-central1-a"] = 1
    said = desk.there("srun", "--nodes=2", "--gres=gpu:t4:1", "hostname").split()
    assert sorted(said) == [f"{desk.name}-gpu-001", f"{desk.name}-gpu-002"]
    zones = {each["name"][-3:]: path.split("/")[2] for path, each in cloud.machines().items()}
    assert (zones["001"], zones["002"]) == ("us-central1-a", "us-central1-b")
    far = desk.ems("cluster", "ssh", "gpu-002", "--on", desk.name, "--", "hostname").stdout
    assert far.strip() == f"{desk.name}-gpu-002"
    desk.cluster("resize", "2", timeout=600)  # it stays now, be it idle
    assert desk.nodes()["gpu-002"] == "idle"
    desk.cluster("resize", "1", timeout=300)
    desks.wait_until(lambda: _names(cloud) == ["controller", "gpu-001"], 180, "one that stays no more goes")

    desk.cluster("pause", "--yes", timeout=300)
    assert [each["status"] for each in cloud.machines().values()] == ["TERMINATED"]
    desk.cluster("resume", timeout=900)
    assert desk.nodes()["gpu-001"] == "idle"
    assert desk.there("srun", "hostname").strip() == f"{desk.name}-gpu-001"
    assert all(count == 1 for count in cloud.born.values())

    other = desks.Desk(tmp_path / "other", desk.name, (desk.project / "cluster" / f"{desk.name}.yaml").read_text())
    other.env.update(desk.agent)
    other.cluster("status", "--adopt")
    assert other.nodes()["gpu-001"] == "idle"
    other.cluster("stop", "--yes", "--no-harvest")
    assert cloud.left() == []


def _names(cloud: Any) -> list[str]:
    """Return the short names of the machines, by the stand-in's own count."""
    return sorted(each["name"].partition("-")[2] for each in cloud.machines().values())
