"""The user-data of a cluster's machines in real machines: accepted by cloud-init, done, and the host key as known."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ems.cluster import keys, userdata
from ems.cluster.definition import ContainerSection, Definition
from ems.cluster.keys import Keys
from ems.cluster.provider import base, connect
from ems.cluster.provider.base import MachineRequest, Resource
from ems.errors import ConnectionFailedError, HostKeyError
from ems.ssh import Host

_BOOT_S = 400  # usually 3 s


class Pair:
    """A controller and a compute node as `ems cluster start` asks for them; nobody has set them up."""

    def __init__(self, folder: Path) -> None:
        self.keys = Keys(folder)
        self.provider = connect(ContainerSection())
        name = f"deu{uuid.uuid4().hex[:6]}"
        nodes = {"gpu": {"gpus": 2, "gpu_type": "t4", "cpus": 1, "mem_gb": 1, "max": 2}}
        self.definition = Definition.model_validate({"name": name, "provider": "container", "nodes": nodes})
        self.incarnation = uuid.uuid4().hex
        self.hosts: list[Host] = []
        self.labels = {base.CLUSTER: name, base.INCARNATION: self.incarnation, base.OWNER: "test"}

    def user_data(self, name: str) -> str:
        host_key, logins = self.keys.host_key(name), [self.keys.public()]
        if name.endswith("-controller"):
            return userdata.controller_user_data(self.definition, host_key, logins)
        facts = {"incarnation": self.incarnation, "munge": keys.fingerprint(self.keys.munge_key())}
        return userdata.compute_user_data(self.definition, name, "gpu", host_key, logins, **facts)

    def start(self) -> None:
        names = [f"{self.definition.name}-controller", f"{self.definition.name}-gpu-001"]
        self.keys.trust({name: self.keys.host_key(name).label for name in names})
        self.provider.prepare(self.labels)
        self.hosts = [self._host(each) for each in self.provider.create([self._request(name) for name in names])]

    def _request(self, name: str) -> MachineRequest:
        role = "controller" if name.endswith("-controller") else "compute"
        labels = {**self.labels, base.ROLE: role, base.NODE: name, base.HOST_KEY: self.keys.host_key(name).label}
        return MachineRequest(name, "debian:12", self.user_data(name), labels, gpus=0, is_public=True)

    def _host(self, machine: object) -> Host:
        assert isinstance(machine, Resource), machine
        where = f"{self.definition.login_user}@{machine.ssh_address}"
        return Host(where, machine.ssh_port, self.keys.identity, self.keys.known_hosts, machine.name, persist_s=1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(tmp_path_factory.mktemp("state"))
    try:
        pair.start()
        yield pair
    finally:
        for host in pair.hosts:
            host.close()
        pair.provider.destroy(pair.provider.list(pair.labels))


def say(host: Host, *command: str, data: bytes = b"") -> str:
    """Return what a command prints in a machine, once it succeeds there."""
    end = time.monotonic() + _BOOT_S
    while True:
        try:
            return host.run(command, data=data, timeout_s=120).stdout.decode()
        except ConnectionFailedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def test_cloud_init_takes_it_and_does_it(pair: Pair) -> None:
    for host in pair.hosts:
        name = str(host.host_key_alias)
        say(host, "test", "-e", "/var/lib/cloud/instance/boot-finished")
        assert say(host, "hostname").strip() == name
        assert say(host, "id", "-u").strip() == "2000"
        assert say(host, "sudo", "-n", "id", "-u").strip() == "0"
        assert "passwordauthentication no" in say(host, "sudo", "/usr/sbin/sshd", "-T")
        check = "cat >/tmp/it && cloud-init schema --config-file /tmp/it; rm /tmp/it"
        assert "Valid" in say(host, "sudo", "sh", "-c", check, data=pair.user_data(name).encode())
        assert say(host, "stat", "-c", "%a %U", "/etc/ssh/ssh_host_ed25519_key").split() == ["600", "root"]
        key = "/etc/ssh/ssh_host_ed25519_key"
        assert say(host, "sh", "-c", "ls /etc/ssh/ssh_host_*").split() == [key, f"{key}.pub"]


def test_the_machine_that_let_us_in_goes_on_doing_so(pair: Pair) -> None:
    """That sshd is restarted late in the boot would break the connection of whoever sets the machine up."""
    controller, _ = pair.hosts
    say(controller, "test", "-e", "/var/lib/cloud/instance/boot-finished")
    started = say(controller, "sudo", "journalctl", "-u", "ssh", "-o", "cat")
    assert started.count("Server listening on 0.0.0.0 port 22") == 1, started


def test_a_compute_node_runs_its_boot_script_which_waits_for_the_controller(pair: Pair) -> None:
    _, node = pair.hosts
    say(node, "test", "-e", "/var/lib/cloud/instance/boot-finished")
    assert say(node, "systemctl", "is-active", userdata.BOOT_UNIT).strip() == "active"
    assert say(node, "stat", "-c", "%a", userdata.BOOT_SCRIPT).strip() == "755"
    assert json.loads(say(node, "cat", userdata.NODE_FILE))["name"] == node.host_key_alias
    assert say(node, "systemctl", "is-active", "ems-node-late.timer").strip() == "active", "it does not wait for ever"


def test_a_machine_that_shows_another_key_is_not_believed(pair: Pair, tmp_path: Path) -> None:
    controller, _ = pair.hosts
    say(controller, "test", "-e", "/var/lib/cloud/instance/boot-finished")
    name = str(controller.host_key_alias)
    others = Keys(tmp_path / "others")
    others.trust({name: others.host_key(name).label})
    with pytest.raises(HostKeyError, match="cannot be reached") as caught:
        replace(controller, known_hosts=others.known_hosts).run(["true"])
    assert "shows another host key" in caught.value.message
