"""Containers behind the machines of the stand-in of Google Compute Engine, so that a cluster there has a life.

What a container lacks of a machine of Google's: a kernel that serves NFS. Its place takes a unit that does nothing, and
/home and /opt/ems are volumes that all containers have, where a node finds them mounted already. A public address is
one of loopback, at whose port 22 connections are handed on to the container's sshd.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import uuid
from collections.abc import Mapping
from typing import Any

import yaml

from ems.cluster.definition import ContainerSection
from ems.cluster.provider import base, connect
from ems.cluster.provider.base import MachineRequest, Refusal, Resource, Thing
from ems.cluster.provider.pool import side_by_side

_NFS = "[Unit]\nDescription=Stands in for NFS\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
_NFS += "[Install]\nWantedBy=multi-user.target\n"
# an engine mounts its own /etc/hosts over the container's, which then cannot be replaced
_OWN_HOSTS = "cat /etc/hosts >/etc/hosts.own && umount /etc/hosts && mv /etc/hosts.own /etc/hosts || true"
_FAMILIES = {"debian-12": "debian:12", "debian-13": "debian:13", "ubuntu-2404-lts-amd64": "ubuntu:24.04"}


class Bodies:
    """Makes and ends the containers.

    Parameters
    ----------
    cluster
        The label of the containers, by which they are found whoever lives then.
    subnet
        The private address range, which nobody else has.
    outside
        The first of the loopback addresses, e.g. ``127.77.3.0``.
    images
        Kind -> a container's image with SLURM on it, which Google's of the distribution then is.
    metadata
        Where a controller is told who it is, ``HOST:PORT``: at Google's own address nobody is here.
    """

    def __init__(
        self, cluster: str, subnet: str, outside: str, images: Mapping[str, str] | None = None, metadata: str = ""
    ) -> None:
        self._images = images or {}
        self._metadata = metadata
        self._labels = {base.CLUSTER: cluster, base.INCARNATION: uuid.uuid4().hex}
        self._subnet = subnet
        self._addresses = list(ipaddress.IPv4Network(subnet).hosts())[9:]
        self._outside = ipaddress.IPv4Address(outside)
        self._known: dict[str, Resource] = {}
        self._private: dict[str, str] = {}
        self._public: dict[str, str] = {}
        self._relays: list[socket.socket] = []
        self._provider = connect(ContainerSection(subnet=subnet))
        self._provider.prepare(self._labels)

    def public_ip(self, name: str) -> str:
        """Return the loopback address that leads to a machine; it is the same as long as the stand-in lives."""
        if name not in self._public:
            self._public[name] = str(self._outside + len(self._public) + 1)
            server = socket.create_server((self._public[name], 22))
            self._relays.append(server)
            threading.Thread(target=self._relay, args=(server, name), daemon=True).start()
        return self._public[name]

    def make(self, names: list[str], properties: dict[str, Any]) -> dict[str, str]:
        """Make containers; returns their private addresses."""
        made = side_by_side(lambda name: self._make(name, properties), names)
        self._known |= {each.name: each for each in made}
        return {each.name: self._private[each.name] for each in made}

    def _make(self, name: str, properties: dict[str, Any]) -> Resource:
        self._private[name] = self._private.get(name) or str(self._addresses.pop(0))
        provider = connect(ContainerSection(subnet=self._subnet, options=(f"--ip={self._private[name]}",)))
        items = {each["key"]: each["value"] for each in properties["metadata"]["items"]}
        config = yaml.safe_load(items["user-data"])
        config["bootcmd"] = [["sh", "-c", _OWN_HOSTS]]
        config["write_files"].append({"path": "/etc/systemd/system/nfs-server.service", "content": _NFS})
        if "serviceAccounts" in properties and self._metadata:
            told = f"[Service]\nEnvironment=GCE_METADATA_HOST={self._metadata}\n"
            config["write_files"].append({"path": "/etc/systemd/system/emsd.service.d/host.conf", "content": told})
        image = properties["disks"][0]["initializeParams"]["sourceImage"].rsplit("/", 1)[1]
        gpus = sum(each["acceleratorCount"] for each in properties.get("guestAccelerators", ()))
        wish = MachineRequest(
            name,
            self._images.get(properties["labels"].get(base.KIND, "")) or _FAMILIES[image],
            "#cloud-config\n" + yaml.safe_dump(config),
            {**self._labels, base.NODE: name},
            2,
            2,
            gpus=gpus,
            is_public=True,
        )
        [found] = provider.create([wish])
        assert not isinstance(found, Refusal), found
        return found

    def switch(self, name: str, verb: str) -> None:
        """Start or stop a container."""
        change = self._provider.start if verb == "start" else self._provider.stop
        change([self._known[name]])
        found = self._provider.list({**self._labels, base.NODE: name})
        self._known[name] = next(each for each in found if each.thing is Thing.MACHINE)  # its port is another

    def end(self, name: str) -> None:
        """Delete a container."""
        self._provider.destroy([self._known.pop(name)])

    def clear(self) -> None:
        """Delete everything."""
        for server in self._relays:
            server.close()
        self._provider.destroy(self._provider.list(self._labels))
        assert self._provider.list(self._labels) == []

    def _relay(self, server: socket.socket, name: str) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=self._hand_on, args=(client, name), daemon=True).start()

    def _hand_on(self, client: socket.socket, name: str) -> None:
        with client, contextlib.suppress(OSError, KeyError):
            found = self._known[name]
            with socket.create_connection((found.ssh_address, found.ssh_port), timeout=10) as far:
                far.settimeout(None)
                back = threading.Thread(target=_copy, args=(far, client), daemon=True)
                back.start()
                _copy(client, far)
                back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
