"""What goes wrong with a cluster, on one real cluster for all: each failure is named, and mended by one command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(1800)  # one waits until another process has baked the images

_MUNGE = "/opt/ems/etc/secret/munge.key"
_VERSION = "import ems.version; print(ems.version.__file__)"


@pytest.fixture(scope="module")
def desk(desks: ModuleType, baked: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Somebody with a cluster of a controller and one node, made from baked images; nothing is left of it."""
    made = desks.Desk(tmp_path_factory.mktemp("desk"))
    try:
        made.cluster("start", "--yes", timeout=800)
        (made.project / "train.py").write_text("import ems\n\nfor seed in [0, 1]:\n    ems.log(acc=seed)\n")
        subprocess.run(["git", "init", "-q"], cwd=made.project, check=True)
        yield made
        made.cluster("stop", "--yes", "--images")
        assert [each for each in made.resources() if each.thing != "image"] == []
    finally:
        made.clear()


@pytest.fixture
def until(desk: Any, desks: ModuleType) -> Iterator[Callable[..., Any]]:
    """Wait for a condition; the test leaves the cluster with one idle node."""
    yield desks.wait_until
    desks.wait_until(lambda: desk.nodes() == {"gpu-001": "idle"}, 300, "one idle node")


def test_a_failure_of_ansible_in_the_middle_is_named_and_continued(desk: Any, until: Callable[..., Any]) -> None:
    desk.there("sudo", "systemctl", "mask", "--now", "slurmctld")
    try:
        said = desk.cluster("setup", code=1).stderr
    finally:
        desk.there("sudo", "systemctl", "unmask", "slurmctld")
    [error] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: setting up {desk.name}-controller failed at `Wait until it answers`: ")
    assert error.endswith("slurmctld.service is masked.")
    assert f"hint: ems cluster setup {desk.name}\n" in said
    assert json.loads(desk.cluster("setup", "--json").stdout)["changed"] == 1


def test_interrupted_in_the_set_up_it_ends_all_of_ansible(desk: Any, until: Callable[..., Any]) -> None:
    words = [sys.executable, "-m", "ems", "cluster", "setup", desk.name]
    running = subprocess.Popen(words, cwd=desk.project, env=desk.env, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    said = ""
    for line in running.stderr:
        said += line
        if "munge:" in line:
            running.send_signal(signal.SIGINT)
            break
    said += running.communicate(timeout=300)[1]
    assert running.returncode == 130
    assert "Traceback" not in said
    assert said.rstrip().endswith("interrupted: the same command goes on from here")
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    assert [line for line in listed.splitlines() if str(desk.state / "ansible-") in line] == []
    assert list(desk.state.glob("ansible-*")) == []
    desk.cluster("setup")


def test_a_tampered_munge_key_on_the_share_lets_no_node_in(desk: Any, until: Callable[..., Any]) -> None:
    desk.there("sudo", "cp", "--preserve", _MUNGE, f"{_MUNGE}.kept")
    try:
        desk.there("sudo", "sh", "-c", f"head -c 128 /dev/urandom > {_MUNGE}")
        said = desk.cluster("resize", "2", code=1).stderr  # a new node
        assert f"{desk.name} is without 1 node: {desk.name}-gpu-002: the munge key on the share is not" in said
        assert f"hint: `ems cluster start {desk.name}` tries them again" in said
        made = [line for line in _journal(desk, "create") if f"{desk.name}-gpu-002" in line["things"]]
        assert len([line for line in made if line["is"] == "done"]) == 2, "a bad node is replaced once"
        assert desk.machines() == ["controller", "gpu-001"]
        desk.ems("parrun", "train.py", "--gres", "gpu:1", "--again", "--wait")  # the rest is usable
        [node] = [each for each in desk.resources() if each.name == f"{desk.name}-gpu-001"]
        desk.provider().stop([node])
        desk.provider().start([node])  # a reboot
        until(lambda: "munge key" in (_boot(desk).get("error") or ""), 300, "the refusal by the rebooted node")
    finally:
        desk.there("sudo", "mv", f"{_MUNGE}.kept", _MUNGE)
    desk.cluster("start", "--nodes", "1", "--yes")


def _journal(desk: Any, step: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (desk.state / "journal.jsonl").read_text().splitlines()]
    return [line for line in lines if line["step"] == step]


def _boot(desk: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(desk.there("cat", f"/opt/ems/state/boot/{desk.name}-gpu-001.json"))
    return found


def test_another_version_there_is_mended_by_upgrade(desk: Any, until: Callable[..., Any]) -> None:
    path = desk.there("/opt/ems/venv/bin/python", "-c", _VERSION).strip()
    desk.there("sudo", "sed", "-i", "s/__version__ = .*/__version__ = '0.0.1'/", path)
    said = desk.ems("parrun", "train.py", "--again", code=1).stderr
    assert "0.0.1" in said
    assert f"hint: ems cluster upgrade {desk.name}" in said
    desk.cluster("upgrade")
    desk.ems("parrun", "train.py", "--gres", "gpu:1", "--again", "--wait")


@pytest.fixture
def other(desks: ModuleType, tmp_path: Path) -> Iterator[Any]:
    """Somebody whose cluster cannot be made; nothing is there afterwards."""
    made = desks.Desk(tmp_path)
    yield made
    try:
        assert made.resources() == []
    finally:
        made.clear()


def _with(desks: ModuleType, old: str, new: str) -> str:
    assert old in desks.DEFINITION
    return str(desks.DEFINITION.replace(old, new))


def test_a_disk_that_is_too_small_is_said_before_anything_is_made(other: Any, desks: ModuleType) -> None:
    other.define(_with(desks, "gpus: 4", "gpus: 4, disk_gb: 1000000"))
    said = other.cluster("start", "--yes", code=1).stderr
    assert "GB free" in said
    assert "hint: free some space" in said


def test_an_address_range_that_is_taken_is_said_and_another_one_does(desk: Any, other: Any, desks: ModuleType) -> None:
    network = next(each for each in desk.resources() if each.thing == "network").name
    address = next(each.address for each in desk.resources() if each.address)
    other.define(_with(desks, "kind: container", f"kind: container, subnet: {address.rpartition('.')[0]}.0/24"))
    said = other.cluster("start", "--yes", code=1).stderr
    assert f"is taken: network `{network}`" in said
    assert "hint: give the provider another `subnet`" in said
    other.define(desks.DEFINITION)  # as the hint says
    assert "its definition has changed" not in other.cluster("start", "--no-setup", "--yes").stderr
    assert other.machines() == ["controller", "gpu-001"]
    other.cluster("stop", "--yes")


def test_a_port_that_is_taken_is_said(other: Any, desks: ModuleType) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        options = f'options: ["--publish=127.0.0.1:{port}:80"]'
        other.define(_with(desks, "kind: container", f"kind: container, {options}"))
        said = other.cluster("start", "--yes", code=1).stderr
        assert f"{other.name}-controller cannot be made: " in said
        assert str(port) in said
        assert "hint: end what listens on that port" in said
    other.cluster("stop", "--yes")


def test_without_an_engine_it_says_which_and_how_to_get_one(other: Any, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for command in ("git", "ssh", "ssh-keygen", "rsync", "ps"):
        found = next(Path(each) / command for each in os.get_exec_path() if (Path(each) / command).exists())
        (tmp_path / "bin" / command).symlink_to(found)
    said = other.cluster("start", "--yes", code=1, PATH=str(tmp_path / "bin")).stderr
    assert "docker is not installed; podman is not installed" in said
    assert "hint: install Docker" in said
    assert "apt install podman" in said
