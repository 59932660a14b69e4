"""A whole life at Google Compute Engine: the API is the stand-in, its machines are containers, SLURM is real."""

from __future__ import annotations

import os
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
provider: {{kind: gce, credentials: {credentials}, endpoint: "{url}", ssh_from: 192.0.2.7/32, range: {subnet}}}
image: debian:12
accounting: false
controller: {{size: e2-standard-2}}
nodes:
  gpu: {{count: 1, size: n1-standard-4, gpus: 2, gpu_type: t4, spot: true}}
partitions:
  gpu: {{nodes: [gpu], default: true, time: 1:00:00}}
"""


@pytest.fixture
def life(desks: ModuleType, baked: None, shared: Path, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """The stand-in with containers behind it, and a laptop that makes a cluster there."""
    if os.geteuid():
        assert os.environ.get("EMS_REQUIRE") is None, "port 22 of a loopback address needs root"
        pytest.skip("port 22 of a loopback address needs root")
    number = os.getpid() % 200
    subnet = f"10.233.{number}.0/24"
    desk = desks.Desk(tmp_path)  # its guard ends the containers, which have its cluster's label
    with gce.serve() as cloud:
        images = _images((shared / "baked").read_text())
        bodies = Bodies(desk.name, subnet, f"127.77.{number}.0", images)
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


@pytest.mark.timeout(600)
def test_start_run_resize_pause_resume_adopt_and_stop(life: tuple[Any, Any], desks: ModuleType, tmp_path: Path) -> None:
    desk, cloud = life
    started = desk.cluster("start", "--yes", timeout=900)
    assert "1 test job passed" in started.stdout
    assert desk.nodes() == {"gpu-001": "idle"}
    assert desk.there("srun", "--gres=gpu:t4:1", "hostname").strip() == f"{desk.name}-gpu-001"

    cloud.faults["exhausted:us-central1-a"] = 1
    desk.cluster("resize", "2", timeout=600)
    assert set(desk.nodes()) == {"gpu-001", "gpu-002"}
    zones = {each["name"][-3:]: path.split("/")[2] for path, each in cloud.machines().items()}
    assert (zones["001"], zones["002"]) == ("us-central1-a", "us-central1-b")
    far = desk.ems("cluster", "ssh", "gpu-002", "--on", desk.name, "--", "hostname").stdout
    assert far.strip() == f"{desk.name}-gpu-002"
    desk.cluster("resize", "1", timeout=300)

    desk.cluster("pause", "--yes", timeout=300)
    assert [each["status"] for each in cloud.machines().values()] == ["TERMINATED"]
    desk.cluster("resume", timeout=900)
    assert [state for state in desk.nodes().values() if state == "idle"] == ["idle"]
    assert desk.there("srun", "hostname").strip() == f"{desk.name}-gpu-001"

    other = desks.Desk(tmp_path / "other", desk.name, (desk.project / "cluster" / f"{desk.name}.yaml").read_text())
    other.env.update(desk.agent)
    other.cluster("status", "--adopt")
    assert set(other.nodes()) == {"gpu-001"}
    other.cluster("stop", "--yes", "--no-harvest")
    assert cloud.left() == []
