"""What every provider does, whatever its machines are made of; run for each implementation that can be had here."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from ems.cluster import gc
from ems.cluster.definition import ContainerSection, Definition
from ems.cluster.provider import base, connect, enginesocket, namespace
from ems.cluster.provider.base import MachineRequest, MachineState, Provider, Refusal, Resource, Thing
from ems.cluster.provider.driver import label_options
from ems.cluster.provider.images import base_image
from ems.cluster.record import label_value, owner
from ems.errors import ProviderError

# Booting on a busy machine with two cores; a machine usually is there after 3 s
_BOOT_S = 400


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = _BOOT_S) -> Any:
    """Return what a condition returns once that is true."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {limit_s} s: {what}"
        time.sleep(0.1)
    return found


@dataclass
class Workbench:
    """A provider, and a cluster of this test in it."""

    provider: Provider
    labels: dict[str, str]
    key: Path
    host_key: Path

    @staticmethod
    def _public(key: Path) -> str:
        return key.with_suffix(".pub").read_text().strip()

    @property
    def cluster(self) -> str:
        return self.labels[base.CLUSTER]

    def request(self, node: str = "controller", *, role: str = "controller", **changes: Any) -> MachineRequest:
        """Return the wish for a machine that lets the test's key in."""
        name = f"{self.cluster}-{node}"
        config = {
            "disable_root": False,
            "users": [{"name": "root", "ssh_authorized_keys": [self._public(self.key)]}],
            "write_files": [{"path": "/etc/told", "content": f"{name} $(id)\n"}],
            "ssh_keys": {"ed25519_private": self.host_key.read_text(), "ed25519_public": self._public(self.host_key)},
            "runcmd": [["sh", "-c", "echo boot >>/root/first-boots"]],
        }
        wish = MachineRequest(
            name=name,
            image="debian:12",
            user_data="#cloud-config\n" + json.dumps(config),
            labels={**self.labels, base.ROLE: role, base.NODE: name},
            is_public=True,
        )
        return replace(wish, **changes)

    def list(self, *things: Thing) -> list[Resource]:
        """Return what this cluster has of some kinds, or of all."""
        return [each for each in self.provider.list(self.labels) if not things or each.thing in things]

    def create(self, *requests: MachineRequest) -> list[Resource]:
        """Return the machines that were made; none may be refused."""
        made = self.provider.create(requests)
        assert [each for each in made if isinstance(each, Refusal)] == []
        return [each for each in made if isinstance(each, Resource)]

    def ssh(self, machine: Resource, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a machine by SSH, as its user does."""
        known = self.key.with_name("known_hosts")
        known.write_text(f"machine {self._public(self.host_key)}\n")
        options = [
            "StrictHostKeyChecking=yes",
            f"UserKnownHostsFile={known}",
            "HostKeyAlias=machine",
            "ConnectTimeout=5",
        ]
        words = ["ssh", "-i", str(self.key), "-p", str(machine.ssh_port), "-oBatchMode=yes", "-oIdentitiesOnly=yes"]
        words += [word for option in options for word in ("-o", option)]
        return subprocess.run([*words, f"root@{machine.ssh_address}", command], capture_output=True, text=True)

    def say(self, machine: Resource, command: str) -> str:
        """Return what a command prints in a machine, once it succeeds there."""

        def succeeds() -> subprocess.CompletedProcess[str] | None:
            done = self.ssh(machine, command)
            return done if done.returncode == 0 else None

        return str(wait_until(succeeds, f"`{command}` in {machine.name}").stdout)

    def booted(self, machine: Resource) -> str:
        """Wait until cloud-init has done all that it was told."""
        return self.say(machine, "test -e /var/lib/cloud/instance/boot-finished && cat /root/first-boots")

    def clear(self) -> None:
        """Delete everything of this cluster."""
        self.provider.destroy(self.provider.list(self.labels))


def _containers() -> Provider:
    return connect(ContainerSection())


IMPLEMENTATIONS = [pytest.param(_containers, id="container")]


def _new_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture(params=IMPLEMENTATIONS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workbench]:
    name = f"prc{uuid.uuid4().hex[:6]}"
    labels = {base.CLUSTER: name, base.INCARNATION: uuid.uuid4().hex, base.OWNER: "test"}
    bench = Workbench(request.param(), labels, _new_key(tmp_path / "key"), _new_key(tmp_path / "host"))
    try:
        bench.provider.prepare(labels)
        yield bench
    finally:
        bench.clear()
    assert bench.list() == []


def test_a_machine_boots_and_does_what_its_user_data_says(bench: Workbench) -> None:
    bench.provider.check([bench.request()])
    (machine,) = bench.create(bench.request())
    assert bench.booted(machine) == "boot\n"
    assert bench.say(machine, "cat /etc/told; hostname") == f"{machine.name} $(id)\n{machine.name}\n"
    assert bench.say(machine, "systemctl --failed --no-legend") == ""
    seed = "/var/lib/cloud/seed/nocloud"  # where the machine's host key came by
    assert bench.say(machine, f"stat -c %a {seed} {seed}/user-data").split() == ["700", "600"]


def test_machines_reach_each_other_and_the_share_is_one(bench: Workbench) -> None:
    first, second = bench.create(bench.request(), bench.request("gpu-001", role="compute", gpus=2))
    bench.booted(first)
    bench.booted(second)
    traits = bench.provider.traits
    if traits.has_names:
        assert bench.say(first, f"getent hosts {second.name}").split()[0] == second.address
        assert bench.say(second, f"getent hosts {first.name}").split()[0] == first.address
    if traits.has_shared_volume:
        bench.say(first, "echo one >/home/it && echo two >/opt/ems/it")
        assert bench.say(second, "cat /home/it /opt/ems/it") == "one\ntwo\n"
    else:  # NFS is exported to it
        assert {ip_address(each.address) in ip_network(traits.network) for each in (first, second)} == {True}
    assert bench.say(second, "cd /dev && stat -c '%F' nvidia0 nvidia1") == "character special file\n" * 2
    assert bench.ssh(first, "ls /dev/nvidia0").returncode != 0


def test_everything_carries_its_labels_and_only_that_is_listed(bench: Workbench) -> None:
    request = bench.request()
    (machine,) = bench.create(request)
    found = {each.name: each for each in bench.list()}
    assert found[machine.name].labels == request.labels
    assert {Thing.MACHINE, Thing.NETWORK} <= {each.thing for each in found.values()}
    assert all(each.labels.items() >= bench.labels.items() for each in found.values())
    assert bench.provider.list({**bench.labels, base.INCARNATION: "another"}) == []
    assert machine in bench.provider.list()


def test_to_create_again_doubles_nothing_and_changes_nothing(bench: Workbench) -> None:
    (machine,) = bench.create(bench.request())
    bench.booted(machine)
    bench.provider.prepare(bench.labels)
    again = bench.create(bench.request(), bench.request("gpu-001", role="compute"))
    assert again[0] == machine
    assert len(bench.list(Thing.MACHINE)) == 2
    assert bench.booted(machine) == "boot\n"


def test_one_refused_machine_does_not_stop_the_others(bench: Workbench) -> None:
    wanted = [bench.request(), bench.request("gpu-001", image="localhost/nothing:of-the-sort")]
    good, bad = bench.provider.create(wanted)
    assert isinstance(good, Resource)
    assert isinstance(bad, Refusal)
    assert bad.name == f"{bench.cluster}-gpu-001"
    assert "nothing:of-the-sort" in bad.reason
    assert [each.name for each in bench.list(Thing.MACHINE)] == [good.name]


def test_a_name_that_is_taken_by_another_cluster_is_refused(bench: Workbench) -> None:
    bench.create(bench.request())
    others = {**bench.labels, base.INCARNATION: "f" * 32}
    (refused,) = bench.provider.create([bench.request(labels=others)])
    assert isinstance(refused, Refusal)
    assert "not of this cluster" in refused.reason
    with pytest.raises(ProviderError, match="not of this cluster"):
        bench.provider.prepare(others)


def test_stopped_machines_keep_their_disks_and_start_again(bench: Workbench) -> None:
    (machine,) = bench.create(bench.request())
    bench.booted(machine)
    bench.say(machine, "echo kept >/root/kept && echo kept >/home/kept && sync")
    bench.provider.stop([machine])
    (stopped,) = bench.list(Thing.MACHINE)
    assert (stopped.state, stopped.address) == (MachineState.STOPPED, "")
    bench.provider.stop([stopped])
    bench.provider.start([stopped])
    (started,) = bench.list(Thing.MACHINE)
    assert started.state is MachineState.RUNNING
    assert started.address
    assert bench.say(started, "cat /root/kept /home/kept /root/first-boots") == "kept\nkept\nboot\n"


def test_an_image_of_a_machine_has_its_files_and_nothing_that_is_its_alone(bench: Workbench) -> None:
    (machine,) = bench.create(bench.request())
    bench.booted(machine)
    bench.say(machine, "echo installed >/usr/local/it && mkdir -p /home/ems")
    labels = {**bench.labels, base.IMAGE: "0123abcd"}
    image = bench.provider.save_image(machine, f"{bench.cluster}-image", labels)
    assert image in bench.list(Thing.IMAGE)
    assert image.labels == labels
    bench.provider.destroy([machine])
    bench.host_key = _new_key(bench.key.with_name("another-host"))  # strictly the only one that it is to have
    request = bench.request("gpu-001", role="compute", image=image.id)
    bench.provider.check([request])
    (born,) = bench.create(request)
    assert born.labels == request.labels
    assert bench.booted(born) == "boot\nboot\n"  # its own first boot, after that of the machine it was made of
    assert bench.say(born, "cat /usr/local/it; hostname") == f"installed\n{born.name}\n"
    bench.clear()
    assert bench.list() == []


def test_destroying_is_repeatable_and_ends_even_what_runs(bench: Workbench) -> None:
    bench.create(bench.request(), bench.request("gpu-001", role="compute"))
    everything = bench.list()
    bench.provider.destroy(everything)
    assert bench.list() == []
    bench.provider.destroy(everything)


def test_what_cannot_be_had_is_said_before_anything_is_made(bench: Workbench) -> None:
    with pytest.raises(ProviderError, match="fedora:99") as caught:
        bench.provider.check([bench.request(image="fedora:99")])
    assert "debian:12" in caught.value.hint
    with pytest.raises(ProviderError, match="colossal"):
        bench.provider.check([bench.request(size="colossal")])
    with pytest.raises(ProviderError, match="GB free"):
        bench.provider.check([bench.request(disk_gb=10**6)])
    assert bench.list(Thing.MACHINE) == []


def test_an_address_range_that_is_taken_is_named(bench: Workbench) -> None:
    number = int(bench.cluster[-2:], 16)  # another session may test the same
    taken = ContainerSection(subnet=f"10.231.{number}.0/24")
    inside = ContainerSection(subnet=f"10.231.{number}.128/25")
    labels = {**bench.labels, base.CLUSTER: f"{bench.cluster}b"}
    first, second = connect(taken), connect(inside)
    try:
        first.prepare(labels)
        request = bench.request(labels={**bench.labels, base.ROLE: "controller"})
        with pytest.raises(
            ProviderError, match=rf"10\.231\.{number}\.128/25 is taken: network `ems-.*b` has"
        ) as caught:
            second.check([request])
        assert "subnet" in caught.value.hint
        first.check([replace(request, labels=labels)])  # its own range is not in its way
        with pytest.raises(ProviderError, match=r"podman|docker") as refused:
            second.prepare({**labels, base.CLUSTER: f"{bench.cluster}c"})
        assert "subnet" in refused.value.hint
    finally:
        first.destroy(first.list(labels))
        second.destroy(second.list({**labels, base.CLUSTER: f"{bench.cluster}c"}))


def test_a_port_that_is_taken_is_a_refusal_that_leaves_nothing(bench: Workbench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        provider = connect(ContainerSection(options=("--publish", f"127.0.0.1:{port}:80")))
        (refused,) = provider.create([bench.request()])
    assert isinstance(refused, Refusal)
    assert "use" in refused.reason or "allocated" in refused.reason
    assert refused.hint
    assert bench.list(Thing.MACHINE) == []


def test_a_machine_that_was_half_made_is_made_whole(bench: Workbench) -> None:
    request = bench.request()
    (machine,) = bench.create(request)
    bench.provider.destroy([machine])
    driver = bench.provider.driver  # type: ignore[attr-defined]  # of containers: no other can be cut off so
    image = base_image(driver.engine, "debian:12", lambda _text: None)
    driver.engine.call("create", "--name", request.name, *label_options(request.labels), image, "/sbin/init")
    assert bench.list(Thing.MACHINE)[0].state is MachineState.STARTING
    (whole,) = bench.create(request)
    assert bench.booted(whole) == "boot\n"
    assert len(bench.list(Thing.MACHINE)) == 1


def test_nothing_of_this_computer_stays_changed_behind_the_last_machine(bench: Workbench) -> None:
    bench.create(bench.request())
    bench.clear()
    name = bench.provider.driver.engine.name  # type: ignore[attr-defined]

    def is_as_before() -> bool:
        words = [*(namespace.entry() if namespace.is_there() else ()), name, "ps", "-aq"]
        left = subprocess.run(words, capture_output=True, text=True)
        return bool(left.stdout.strip()) or not namespace.is_there()

    wait_until(is_as_before, "no container, but its namespace")  # whoever deletes the last one beside us drops it


def test_what_a_cluster_leaves_behind_is_found_by_label_and_deleted(bench: Workbench) -> None:
    labels = {**bench.labels, base.OWNER: label_value(owner()), base.CREATED: "2026-11-01t00-00-00-000z"}
    other = {**labels, base.CLUSTER: f"{bench.cluster}b", base.INCARNATION: uuid.uuid4().hex}
    definition = Definition.model_validate({"name": bench.cluster, "provider": "container", "nodes": {"gpu": {}}})
    bench.provider.prepare(other)
    try:
        gate, node = (bench.request(name, role=role) for name, role in (("controller", "controller"), ("gpu-001", "")))
        bench.create(
            *(
                replace(each, name=f"{bench.cluster}b-{each.name}", labels={**each.labels, **other})
                for each in (gate, node)
            )
        )

        def left(young: timedelta = timedelta()) -> list[gc.Leftover]:  # those of others are not ours to look at
            found = gc.leftovers(definition, young=young)
            return [each for each in found if each.incarnation == other[base.INCARNATION]]

        assert left() == []  # its controller is there
        bench.provider.stop([each for each in bench.provider.list(other) if each.labels.get(base.ROLE) == "controller"])
        assert left() == []  # and still is: it may be paused
        bench.provider.destroy(
            [each for each in bench.provider.list(other) if each.labels.get(base.ROLE) == "controller"]
        )
        [found] = left()
        assert found.counts() == {"machine": 1, "network": 1, "volume": 2}
        assert left(gc.YOUNG) == []  # its machine was made a moment ago: somebody may be at it
        assert gc.delete(found) == 4
        assert bench.provider.list(other) == []
    finally:
        bench.provider.destroy(bench.provider.list(other))


def test_a_controller_makes_nodes_by_the_engine_around_it(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller's part is done here, by the socket that it sees: its image has no engine's command."""
    (plain,) = bench.create(bench.request("controller"))
    assert bench.ssh(plain, f"ls /{enginesocket.FACTS} {enginesocket.FOLDER}").returncode != 0
    bench.provider.destroy([plain])
    (gate,) = bench.create(bench.request("controller", is_trusted=True))
    told = json.loads(bench.say(gate, f"cat /{enginesocket.FACTS}"))
    assert (
        bench.say(gate, f"stat -c '%a %F' /{enginesocket.FACTS} {told['socket']}") == "600 regular file\n600 socket\n"
    )

    def inner() -> Provider:  # docker's is for everybody who may; podman's is the cluster's own
        here = {**told, "socket": str(service.socket if told["engine"] == "podman" else told["socket"])}
        (tmp_path / "engine.json").write_text(json.dumps(here))
        return connect(ContainerSection(), as_instance=True)

    service = enginesocket.Service(bench.cluster)
    monkeypatch.setattr(enginesocket, "FACTS", str(tmp_path / "engine.json"))
    provider = inner()
    wish = bench.request("gpu-001", role="compute", gpus=1, is_public=False)
    (node,), before = provider.create([wish]), time.time()
    assert isinstance(node, Resource)
    assert provider.create([wish]) == [node]
    assert node.created_at is not None
    assert abs(node.created_at.timestamp() - before) < 600
    assert {each.id: each for each in provider.list(bench.labels)} == {each.id: each for each in bench.list()}
    assert (
        wait_until(lambda: bench.ssh(gate, f"getent hosts {node.name}").stdout, "the node's name").split()[0]
        == node.address
    )
    refused = provider.create([bench.request("gpu-002", image="localhost/nothing:of-the-sort")])
    assert isinstance(refused[0], Refusal)
    provider.destroy([node])
    assert [each.name for each in bench.list(Thing.MACHINE)] == [gate.name]
    provider.destroy([node])

    if told["engine"] == "podman":
        process = service.process()
        bench.provider.start([gate])  # whatever is given again, what is there stays
        assert service.process() == process
        subprocess.run(["kill", "-9", str(process)], check=True)
        bench.provider.start([gate])  # or it has begun again by itself before
        assert service.process() not in {0, process}
        bench.say(gate, f"test -S {told['socket']}")
        bench.provider.stop([gate])
        assert service.process() == 0
    bench.provider.start(bench.list(Thing.MACHINE))
    assert [each.name for each in inner().list(bench.labels) if each.thing is Thing.MACHINE] == [gate.name]
    bench.clear()
    assert service.process() == 0
    assert not service.folder.exists()


@pytest.mark.timeout(1200)  # where no hub can be reached, the image is made by debootstrap, once
@pytest.mark.parametrize("distribution", ["debian:13", "ubuntu:24.04"])
def test_each_distribution_boots(bench: Workbench, distribution: str) -> None:
    (machine,) = bench.create(bench.request(image=distribution))
    assert bench.booted(machine) == "boot\n"
    name, _, version = distribution.partition(":")
    assert bench.say(machine, '. /etc/os-release && echo "$ID:$VERSION_ID"').strip() == f"{name}:{version}"
    assert bench.say(machine, "systemctl --failed --no-legend") == ""
