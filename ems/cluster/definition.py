"""What a cluster is to be: the checked content of ``cluster/NAME.yaml``.

A definition is plain data that travels: it is kept in the cluster's record, on its share, and handed to another
laptop by ``ems cluster export``; :attr:`Definition.digest`, a label of every machine, tells whether it is still the
one that the cluster was made of. :mod:`ems.cluster.catalog` finds and reads the files.
"""

from __future__ import annotations

import hashlib
import json
import re
from ipaddress import IPv4Network
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_NODES = 999  # of a kind: their numbers have three digits

#: What slurm.conf says where the definition does not.
SLURM_DEFAULTS: dict[str, str | int] = {"MaxArraySize": 20001, "MaxJobCount": 100_000}


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_provider(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


def _subnet(value: object) -> object:
    try:
        network = IPv4Network(str(value))
    except ValueError as error:
        raise ValueError(f"should be an address range such as 10.89.77.0/24: {error}") from None
    if not 16 <= network.prefixlen <= 28 or not network.is_private:
        raise ValueError("should be a private address range between /16 and /28, such as 10.89.77.0/24")
    return str(network)


Texts: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Scalar: TypeAlias = bool | int | float | str
UserName: TypeAlias = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,30}$")]
KindName: TypeAlias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{0,15}$")]
PartitionName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,30}$")]
OneLine: TypeAlias = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
Absolute: TypeAlias = Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f]+$")]


class Section(BaseModel):
    """A mapping of a definition: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, frozen=True, use_attribute_docstrings=True)


class ContainerSection(Section):
    """Machines are containers that boot systemd, on this computer."""

    kind: Literal["container"] = "container"
    engine: Literal["docker", "podman"] | None = None
    """The command that makes containers; default: whichever works."""
    subnet: Annotated[str, BeforeValidator(_subnet)] | None = None
    """The private address range of the nodes; default: one that the engine chooses."""
    real_gpus: bool = False
    """Give this computer's GPUs to every node that has some, instead of device files without a GPU behind them."""
    options: tuple[OneLine, ...] = ()
    """Further options of `docker create`, e.g. `[--volume, "/data:/data:ro"]`."""


#: One class for each provider, told apart by ``kind``.
ProviderSection: TypeAlias = ContainerSection


class Machine(Section):
    """What any machine of the cluster is made of."""

    size: OneLine | None = None
    """The provider's own name for a size; it then decides about cpus and memory."""
    cpus: Count | None = None
    mem_gb: Annotated[float, Field(gt=0)] | None = None
    disk_gb: Count | None = None
    image: OneLine | None = None
    """A distribution or image of its own; default: the cluster's."""


class NodeKind(Machine):
    """A kind of compute node."""

    count: Annotated[int, Field(ge=0, le=MAX_NODES)] = 1
    """How many `ems cluster start` makes where `--nodes` does not say."""
    gpus: Annotated[int, Field(ge=0, le=16)] = 0
    gpu_type: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]{0,30}$")] | None = None
    """The type in `--gres gpu:TYPE:1`, e.g. `a100`."""


class Partition(Section):
    """A queue."""

    nodes: Annotated[tuple[KindName, ...], BeforeValidator(_as_list), Field(min_length=1)]
    """The kinds of its nodes."""
    default: bool = False
    """Whether jobs that name no partition go there; where none says so, the first is."""
    time: OneLine | None = None
    """The longest that a job may run, in SLURM's words: `2-00:00:00`; default: for ever."""
    options: dict[Annotated[str, Field(pattern=r"^[A-Za-z]+$")], OneLine] = {}
    """Further words of its line in slurm.conf, e.g. `{PriorityTier: 2}`."""


class PythonSection(Section):
    """The Python that runs use: a virtual environment on the share. Without any, runs use the nodes' own."""

    version: Annotated[str, Field(pattern=r"^3\.\d+$")] | None = None
    """E.g. `3.12`; default: the distribution's."""
    packages: Texts = ()
    """What pip installs, e.g. `[torch, "numpy>=2"]`."""
    requirements: str | None = None
    """A requirements file, relative to this one (in a resolved definition: its text)."""

    def lines(self) -> list[str]:
        """Return the lines of one requirements file for all of it."""
        return [*self.packages, *(self.requirements or "").splitlines()]


class Mount(Section):
    """A file system that every machine mounts."""

    source: OneLine
    """E.g. `nas.example.org:/data`."""
    path: Absolute
    type: Annotated[str, Field(pattern=r"^[a-z0-9.]+$")] = "nfs"
    options: Annotated[str, Field(pattern=r"^[A-Za-z0-9_=.,:/-]+$")] = "defaults"


class Hooks(Section):
    """Playbooks of your own, relative to this file."""

    before: Texts = ()
    after: Texts = ()


class User(Section):
    """Somebody who may log in besides the login user."""

    uid: Annotated[int, Field(ge=1000, le=60000)] | None = None
    """Default: 2001 for the first, and so on."""
    keys: Texts = ()
    """Public SSH keys, as in authorized_keys."""
    groups: tuple[UserName, ...] = ()
    sudo: bool = False


class Definition(Section):
    """A cluster."""

    name: str
    description: OneLine = ""
    provider: Annotated[ProviderSection, BeforeValidator(_as_provider)]
    image: OneLine = "debian:12"
    """The distribution of all machines: `debian:12`, `debian:13` or `ubuntu:24.04`."""
    login_user: UserName = "ems"
    controller: Machine = Machine()
    nodes: Annotated[dict[KindName, NodeKind], Field(min_length=1)]
    """The kinds of compute nodes; `--nodes 2` means the first."""
    partitions: dict[PartitionName, Partition] = {}
    """Default: one for each kind, of its name."""
    slurm: dict[Annotated[str, Field(pattern=r"^[A-Za-z]+$")], Scalar] = {}
    """Lines of slurm.conf, e.g. `{SchedulerParameters: bf_continue}`."""
    accounting: bool = True
    """Whether sacct works by MariaDB and slurmdbd; else finished jobs are written to a file."""
    cuda: Annotated[str, Field(pattern=r"^(distribution|\d+[.-]\d+)$")] | None = None
    """The CUDA toolkit that nodes with GPUs get: `distribution`, or a version of NVIDIA's, e.g. `12-6`."""
    packages: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")], ...] = ()
    """Packages of the distribution, on every machine."""
    python: PythonSection = PythonSection()
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks = Hooks()
    users: dict[UserName, User] = {}

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, content: Any) -> Any:
        """Say what the file leaves open, so that the resolved definition holds everything."""
        if not isinstance(content, dict):
            return content
        filled = dict(content)
        slurm, nodes = content.get("slurm", {}), content.get("nodes")
        if isinstance(slurm, dict):
            filled["slurm"] = SLURM_DEFAULTS | slurm
        if not content.get("partitions") and isinstance(nodes, dict):
            filled["partitions"] = {kind: {"nodes": [kind]} for kind in nodes}
        return filled

    @model_validator(mode="after")
    def _check(self) -> Self:
        defaults = [name for name, partition in self.partitions.items() if partition.default]
        if len(defaults) > 1:
            raise ValueError(f"two partitions are the default: {' and '.join(defaults[:2])}")
        return self

    @property
    def default_partition(self) -> str:
        """The partition of jobs that name none."""
        return next((name for name, each in self.partitions.items() if each.default), next(iter(self.partitions)))

    @property
    def digest(self) -> str:
        """The first 32 hex digits of the SHA-256 of the resolved definition."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def kind(self, name: str) -> NodeKind:
        """Return a kind of node; ``controller`` is one too."""
        if name == "controller":
            return NodeKind(count=1, **self.controller.model_dump())
        return self.nodes[name]


_NODE = re.compile(r"-(?P<kind>[a-z][a-z0-9]*)-(?P<number>\d{3})")


def node_name(cluster: str, kind: str, number: int = 1) -> str:
    """Return a machine's name: ``demo-controller``, ``demo-gpu-001``."""
    return f"{cluster}-controller" if kind == "controller" else f"{cluster}-{kind}-{number:03d}"


def node_number(cluster: str, name: str) -> tuple[str, int] | None:
    """Return kind and number of a compute node's name; None: it is no node of that cluster."""
    found = _NODE.fullmatch(name.removeprefix(cluster)) if name.startswith(cluster) else None
    return (found["kind"], int(found["number"])) if found else None
