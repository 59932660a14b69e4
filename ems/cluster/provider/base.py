"""The seam between a cluster and what makes its machines: eight verbs, one contract test for all implementations.

Labels are the truth: whatever a provider makes carries them, and ``list`` finds it again by nothing else. Names are
deterministic, and to create what is there already is success, so that any verb may be repeated after any failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol, runtime_checkable

#: The labels that every resource carries; values are lower-case letters, digits, ``-`` and ``_``, at most 63 characters
#: (what all clouds take).
CLUSTER, INCARNATION, ROLE, KIND, NODE = "ems-cluster", "ems-id", "ems-role", "ems-kind", "ems-node"
OWNER, CREATED, DEFINITION = "ems-owner", "ems-created", "ems-definition"
HOST_KEY = "ems-hostkey"  # a machine's public ed25519 host key: its 32 bytes in lower-case base32 without padding
MUNGE = "ems-munge"  # first 32 hex digits of the SHA-256 of the cluster's munge key
IMAGE = "ems-image"  # on images: the hash of what was put on them

#: Cleans a machine that becomes an image.
# What is of one machine only must not be in an image: its keys, its name, its lease, what cloud-init did and was told;
# nor its users, since cloud-init makes no home for one who is there already
CLEAN_SCRIPT = """set -e
cloud-init clean --logs --seed
mkdir -p -m 700 /var/lib/cloud/seed/nocloud
rm -rf /etc/ssh/ssh_host_* /var/lib/dbus/machine-id /var/lib/ems-lease /root/.ssh /root/.ansible /tmp/.[!.]* /tmp/*
: >/etc/machine-id
find /var/log -type f -exec truncate --size 0 {} +
awk -F: '$3 >= 2000 && $3 <= 60000 { print $1 }' /etc/passwd | xargs --no-run-if-empty --max-args=1 userdel --force
"""


class MachineState(StrEnum):
    """What the provider says of a machine; what is not mapped is UNKNOWN, never gone."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Thing(StrEnum):
    """The kinds of resources."""

    MACHINE = "machine"
    NETWORK = "network"
    VOLUME = "volume"
    IMAGE = "image"
    KEY = "key"
    RULE = "rule"
    ADDRESS = "address"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Resource:
    """Something a provider keeps for a cluster.

    Attributes
    ----------
    id
        The provider's own word for it, by which it is deleted.
    state
        Of a machine; UNKNOWN for anything else.
    address
        Of a machine: where other machines of the cluster reach it; empty while it has none.
    ssh_address, ssh_port
        Where the client reaches it; empty where it cannot directly.
    zone, size, spot
        Of a machine or disk, where the provider has such a thing.
    gpus, gpu_type
        Of a machine: those that are attached to it, beside what its size has.
    created_at
        When it was made, with a time zone; None where the provider does not say.
    """

    thing: Thing
    id: str
    name: str
    labels: dict[str, str]
    state: MachineState = MachineState.UNKNOWN
    address: str = ""
    ssh_address: str = ""
    ssh_port: int = 22
    zone: str = ""
    size: str = ""
    spot: bool = False
    gpus: int = 0
    gpu_type: str = ""
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class MachineRequest:
    """A machine that is wanted.

    Attributes
    ----------
    image
        A distribution (``debian:12``), or the id of an image that :meth:`Provider.save_image` made.
    user_data
        What cloud-init executes in it at its first boot, at most 16 KB.
    is_public
        Whether the client has to reach it over SSH from outside.
    size, zone
        The one that this try is for (:mod:`ems.cluster.failover` has the order); None: the provider chooses.
    spot
        Whether the cloud may take it back.
    lease_s
        Seconds after which the cloud itself is to delete it, whoever lives then; None: never.
    is_trusted
        Whether it may change the cluster's machines: it gets the service account or instance profile. Only the
        controller is.
    """

    name: str
    image: str
    user_data: str
    labels: dict[str, str]
    cpus: int | None = None
    mem_gb: float | None = None
    disk_gb: int | None = None
    size: str | None = None
    gpus: int = 0
    gpu_type: str | None = None
    is_public: bool = False
    zone: str | None = None
    spot: bool = False
    disk_type: str | None = None
    lease_s: int | None = None
    is_trusted: bool = False


class RefusalCause(StrEnum):
    """Why a machine was not made; what helps differs."""

    STOCKOUT = "stockout"  # this zone has none of this size now: another zone or size may
    QUOTA = "quota"  # this account may not have more: only its owner can change that
    RATE = "rate"  # too many calls, even after waiting
    PERMISSION = "permission"
    INVALID = "invalid"  # the request itself: asking again never helps
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A machine that was not made, and why in the provider's words.

    Attributes
    ----------
    zone
        Where it was refused; empty where there are no zones.
    """

    name: str
    reason: str
    hint: str = field(default="")
    cause: RefusalCause = RefusalCause.OTHER
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was looked at before anything is made.

    Attributes
    ----------
    subject
        ``credentials``, ``permissions``, ``quota``, ``zone``, ``size``, ``image``...
    """

    subject: str
    said: str
    is_good: bool = True
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Traits:
    """What lifecycle and templates may ask of a provider instead of its name."""

    has_shared_volume: bool  # machines come with /home and /opt/ems mounted from one place; else NFS is set up
    has_images: bool
    stop_keeps_address: bool
    has_names: bool  # machines find each other by name; else by the controller's address, which has to stay
    network: str = ""  # the private address range of the machines, which NFS is exported to; empty: nobody asks for it
    zones: tuple[str, ...] = ()  # in order of preference; empty: there are none
    has_spot: bool = False
    is_free: bool = False  # machines cost nothing, running or stopped
    cleans_images: bool = False  # save_image itself removes what is one machine's alone (CLEAN_SCRIPT)
    makes_alike: bool = False  # nodes of a kind are made by one call: their user-data and labels do not tell them apart
    client: str = ""  # the engine's command, which a controller that is trusted needs; empty: HTTP does
    shows_own_key: bool = False  # sshd may answer by a key of its own until cloud-init has set the one it was given


def controllers_first(machines: Sequence[Resource]) -> list[list[Resource]]:
    """Return controllers, then all others: in this order they are started."""
    first = [each for each in machines if each.labels.get(ROLE) == "controller"]
    return [first, [each for each in machines if each not in first]]


@runtime_checkable
class ImageMaker(Protocol):
    """A provider whose distributions' images are made where the client is, and nowhere else."""

    def make_images(self, images: Sequence[str]) -> None:
        """Have the images of distributions that machines will be made from later, unless they are there.

        Raises
        ------
        ProviderError
            If one cannot be made.
        """
        ...


@runtime_checkable
class Inspector(Protocol):
    """A provider that can say what it looks at, instead of only the first thing that is wrong."""

    def findings(self, requests: Sequence[MachineRequest]) -> list[Finding]:
        """Return everything that :meth:`Provider.check` looks at, what is wrong among it; raise nothing for that."""
        ...


@runtime_checkable
class Delegator(Protocol):
    """A provider whose machines have no identity of their own: a controller acts by what its cluster's user gives it.

    What is given is a resource (:attr:`Thing.KEY`) with the cluster's labels: it is listed, and deleted, as all others.
    """

    def may_delegate(self) -> str:
        """Return what would be given.

        Raises
        ------
        ProviderError
            If whoever asks may give nothing.
        """
        ...

    def delegate(self, labels: dict[str, str]) -> dict[str, str]:
        """Make what a controller acts by, anew; returns the files that it needs, for its root alone: path -> content.

        Raises
        ------
        ProviderError
            If whoever asks may give nothing.
        """
        ...


class Provider(Protocol):
    """Makes, finds and deletes the machines of clusters.

    Safe to call from several threads. Every error is a :class:`ems.errors.ProviderError` in the provider's words.
    """

    @property
    def traits(self) -> Traits:
        """What this provider can and cannot."""
        ...

    def check(self, requests: Sequence[MachineRequest]) -> None:
        """Find out everything that can be wrong before anything is made: access, image, size, address range, disk.

        Raises
        ------
        ProviderError
            If these machines cannot be had, and the hint that mends it.
        """
        ...

    def prepare(self, labels: dict[str, str]) -> None:
        """Make what the machines of a cluster share (network, volumes, rules), unless it is there."""
        ...

    def create(self, requests: Sequence[MachineRequest]) -> list[Resource | Refusal]:
        """Make machines, in one call or side by side; one that has that name already is returned as it is.

        One that fails does not stop the others.
        """
        ...

    def list(self, labels: dict[str, str] | None = None) -> list[Resource]:
        """Return everything that carries ``ems-cluster`` and all of ``labels``, of every kind; images too."""
        ...

    def destroy(self, resources: Sequence[Resource]) -> None:
        """Delete resources, machines first; those that are gone already are no error.

        An image that a machine of another cluster runs from may stay.
        """
        ...

    def start(self, machines: Sequence[Resource]) -> None:
        """Start machines that are stopped; their addresses may be others then."""
        ...

    def stop(self, machines: Sequence[Resource]) -> None:
        """Stop machines in good order; their disks stay."""
        ...

    def save_image(self, machine: Resource, name: str, labels: dict[str, str]) -> Resource:
        """Make an image of a machine's disk; the machine is stopped for it."""
        ...
