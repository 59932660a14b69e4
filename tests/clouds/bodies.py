"""Containers behind the machines of a cloud's stand-in, so that a cluster there has a life.

What a container lacks of a cloud's machine: a kernel that serves NFS. Its place takes a unit that does nothing, and
/home and /opt/ems are volumes that all containers have, where a node finds them mounted already. A public address is
one of loopback, at whose port 22 connections are handed on to the container's sshd; those to where a cloud tells its
machines who they are (169.254.169.254) are handed on to the stand-in, which knows the asking machine by its address.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email import message_from_string

import yaml

from ems.cluster.definition import ContainerSection
from ems.cluster.provider import base, connect
from ems.cluster.provider.base import MachineRequest, Refusal, Resource, Thing
from ems.cluster.provider.pool import side_by_side

_NFS = "[Unit]\nDescription=Stands in for NFS\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
_NFS += "[Install]\nWantedBy=multi-user.target\n"
# an engine mounts its own /etc/hosts over the container's, which then cannot be replaced
_OWN_HOSTS = "cat /etc/hosts >/etc/hosts.own && umount /etc/hosts && mv /etc/hosts.own /etc/hosts || true"
METADATA = "169.254.169.254"
_ITS_NETWORK = ("--cap-add=NET_ADMIN",)
_ASKED = (  # not waited for: cloud-init's own unit has to end before others start
    f"ip address add {METADATA}/32 dev lo; systemd-run --unit=stand-in"
    f" --socket-property=ListenStream={METADATA}:80 /lib/systemd/systemd-socket-proxyd {{there}} &"
)


@dataclass(frozen=True)
class Wish:
    """What a machine is to be.

    Attributes
    ----------
    user_data
        As its request has it, decoded.
    kind
        Its label ``ems-kind``.
    image
        Its distribution's, e.g. ``debian:12``.
    """

    name: str
    user_data: str
    kind: str
    image: str
    gpus: int = 0


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
        Kind -> a container's image with SLURM on it, which the cloud's of the distribution then is.
    metadata
        The stand-in, ``HOST:PORT``, for machines that ask who they are; empty: nobody answers them.
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
        self._n_outside = 0
        self._relays: dict[str, socket.socket] = {}
        self._leads: dict[str, str] = {}  # address -> machine
        self._provider = connect(ContainerSection(subnet=subnet))
        self._provider.prepare(self._labels)

    def public_ip(self, name: str) -> str:
        """Return the loopback address that leads to a machine; it is the same as long as the stand-in lives."""
        if name not in self._public:
            self._public[name] = self.free_ip()
            self.lead(self._public[name], name)
        return self._public[name]

    def free_ip(self) -> str:
        """Return a loopback address that leads nowhere yet."""
        self._n_outside += 1
        return str(self._outside + self._n_outside)

    def lead(self, address: str, name: str) -> None:
        """Have an address of :meth:`free_ip` lead to a machine from now on."""
        self._leads[address] = name
        if address not in self._relays:
            server = self._relays[address] = socket.create_server((address, 22))
            threading.Thread(target=self._relay, args=(server, address), daemon=True).start()

    def make(self, wishes: Sequence[Wish]) -> dict[str, str]:
        """Make containers; returns their private addresses."""
        made = side_by_side(self._make, wishes)
        self._known |= {each.name: each for each in made}
        return {each.name: self._private[each.name] for each in made}

    def _make(self, wish: Wish) -> Resource:
        address = self._private[wish.name] = self._private.get(wish.name) or str(self._addresses.pop(0))
        provider = connect(ContainerSection(subnet=self._subnet, options=(f"--ip={address}", *_ITS_NETWORK)))
        request = MachineRequest(
            wish.name,
            self._images.get(wish.kind) or wish.image,
            self._told(wish.user_data),
            {**self._labels, base.NODE: wish.name},
            2,
            2,
            gpus=wish.gpus,
            is_public=True,
        )
        [found] = provider.create([request])
        assert not isinstance(found, Refusal), found
        return found

    def _told(self, user_data: str) -> str:
        """Return what the container is told: what the machine would be, and what it needs in a machine's place."""
        if user_data.startswith("#cloud-config"):
            return self._configured(user_data)
        parts = message_from_string(user_data)
        [config] = [each for each in parts.walk() if each.get_content_type() == "text/cloud-config"]
        text = config.get_payload(decode=True)
        assert isinstance(text, bytes)
        del config["Content-Transfer-Encoding"]
        config.set_payload(self._configured(text.decode()), "utf-8")
        return parts.as_string()

    def _configured(self, text: str) -> str:
        config = yaml.safe_load(text)
        config["bootcmd"] = [["sh", "-c", _OWN_HOSTS]]
        if self._metadata:
            config["bootcmd"].append(["sh", "-c", _ASKED.format(there=self._metadata)])
        config["write_files"].append({"path": "/etc/systemd/system/nfs-server.service", "content": _NFS})
        return "#cloud-config\n" + yaml.safe_dump(config)

    def who(self, address: str) -> str:
        """Return the name of the machine at a private address; empty: there is none."""
        return next((name for name, each in self._private.items() if each == address and name in self._known), "")

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
        for server in self._relays.values():
            server.shutdown(socket.SHUT_RDWR)  # else who waits there keeps the address
            server.close()
        self._provider.destroy(self._provider.list(self._labels))
        assert self._provider.list(self._labels) == []

    def _relay(self, server: socket.socket, address: str) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=self._hand_on, args=(client, address), daemon=True).start()

    def _hand_on(self, client: socket.socket, address: str) -> None:
        with client, contextlib.suppress(OSError, KeyError):
            found = self._known[self._leads[address]]
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
