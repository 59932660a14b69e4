"""What is said of a cluster that was paused, and of a file that carries none."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ems.cluster import handover
from ems.errors import ClusterError, ConnectionFailedError
from ems.registry import RemoteTarget
from ems.remote.client import Agent
from ems.ssh import Host


def test_who_cannot_reach_a_paused_cluster_is_told_to_resume_it(tmp_path: Path) -> None:
    with socket.socket() as held:  # nobody listens at that port, nor ever will while this has it
        held.bind(("127.0.0.1", 0))
        host = Host("ems@127.0.0.1", held.getsockname()[1], None, tmp_path / "known_hosts", "mine-controller")
        agent = Agent(RemoteTarget("mine", host, root="/r", ems=("python3", "-m", "ems"), facts={"paused": True}))
        with pytest.raises(ConnectionFailedError, match="the cluster mine is paused") as caught:
            agent.call("hello")
    assert caught.value.hint == "ems cluster resume mine"


@pytest.mark.parametrize("content", [b"", b"root:x:0:0\n", b"\x1f\x8b\x08\x00torn"])
def test_a_file_that_is_no_exported_cluster_is_refused_in_a_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.file"
    path.write_bytes(content)
    with pytest.raises(ClusterError, match=r"some\.file is no exported cluster$") as caught:
        handover.take(path)
    assert "ems cluster export" in caught.value.hint
