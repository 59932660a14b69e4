"""What a cluster is to be: the checked content of ``cluster/NAME.yaml``.

A definition is plain data that travels: it is kept in the cluster's record, on its share, and handed to another
laptop by ``ems cluster export``; :attr:`Definition.digest`, a label of every machine, tells whether it is still the
one that the cluster was made of. :mod:`ems.cluster.catalog` finds and reads the files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from ems.cluster.forms import (
    AbsolutePath,
    Count,
    Endpoint,
    Form,
    KindName,
    Labels,
    OneLine,
    OneOrMore,
    OrScalar,
    Package,
    Parameter,
    PartitionName,
    PublicKey,
    PythonVersion,
    Requirement,
    Sources,
    Texts,
    Time,
    UserName,
    Word,
    as_list,
    private_range,
)
from ems.document import did_you_mean
from ems.errors import UsageError

MAX_NODES = 999  # of a kind: their numbers have three digits

#: What slurm.conf says where the definition does not.
SLURM_DEFAULTS = {"MaxArraySize": "20001", "MaxJobCount": "100000"}


#: The distributions that the templates know.
IMAGES = ("debian:12", "debian:13", "ubuntu:24.04")


def _as_provider(value: object) -> object:
    if isinstance(value, dict):
        return {"kind": "container", **value}
    return {"kind": value} if isinstance(value, str) else value


class Section(BaseModel):
    """A mapping of a definition: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, frozen=True, use_attribute_docstrings=True)


class ContainerSection(Section):
    """Machines are containers that boot systemd, on this computer."""

    kind: Literal["container"] = "container"
    engine: Literal["docker", "podman"] | None = None
    """The command that makes containers; default: whichever works."""
    subnet: Annotated[str, BeforeValidator(private_range)] | None = None
    """The private address range of the nodes; default: one that the engine chooses."""
    real_gpus: bool = False
    """Give this computer's GPUs to every node that has some, instead of device files without a GPU behind them."""
    options: tuple[OneLine, ...] = ()
    """Further options of `docker create`, e.g. `[--volume, "/data:/data:ro"]`."""


class GceSection(Section):
    """Machines are virtual ones of Google Compute Engine."""

    kind: Literal["gce"] = "gce"
    project: Word | None = None
    """The project's id; default: that of the credentials, of $GOOGLE_CLOUD_PROJECT or of gcloud."""
    region: Word = "us-central1"
    zones: Annotated[tuple[Word, ...], BeforeValidator(as_list, json_schema_input_type=OneOrMore)] = ()
    """Zones of that region in order of preference, the first is the controller's; default: all that it has."""
    credentials: Word | None = None
    """A service account's key file; default: the application default credentials."""
    network: Word | None = None
    """The name of a VPC network that is there; default: one of its own."""
    subnet: Word | None = None
    """The name of a subnetwork of `network`; default: the one that the region has there."""
    range: Annotated[str, BeforeValidator(private_range)] = "10.89.0.0/16"
    """The private address range of a network of its own."""
    ssh_from: Sources = ()
    """From where SSH gets in, e.g. `192.0.2.7/32`, or `anywhere`; default: from this computer's public address."""
    service_account: Word | None = None
    """The service account that the controller works as, `default` for the project's own; default: none, the controller
    cannot change anything. To make nodes that come and go it needs the role Compute Admin (roles/compute.admin)."""
    labels: Labels = {}
    """Labels of your own for everything that is made."""
    endpoint: Endpoint | None = None
    """Where the API answers, for private clouds; default: Google's."""


class AwsSection(Section):
    """Machines are virtual ones of Amazon EC2."""

    kind: Literal["aws"] = "aws"
    region: Word | None = None
    """Default: that of $AWS_REGION or of the profile."""
    zones: Annotated[tuple[Word, ...], BeforeValidator(as_list, json_schema_input_type=OneOrMore)] = ()
    """Availability zones in order of preference, the first is the controller's; default: all that have a subnet."""
    profile: Word | None = None
    """The profile of ~/.aws; default: $AWS_PROFILE, the environment's keys, or `default`."""
    vpc: Word | None = None
    """The id of a VPC that is there; default: the region's default VPC."""
    subnet: Annotated[tuple[Word, ...], BeforeValidator(as_list, json_schema_input_type=OneOrMore)] = ()
    """The ids of the VPC's subnets to use, one a zone; default: each zone's default, or its first."""
    instance_profile: Word | None = None
    """The instance profile that the controller works as; default: none, the controller cannot change anything. To make
    nodes that come and go its role has to allow ec2:Describe*, RunInstances, TerminateInstances, StopInstances and
    CreateTags."""
    ssh_from: Sources = ()
    """From where SSH gets in, e.g. `192.0.2.7/32`, or `anywhere`; default: from this computer's public address."""
    tags: dict[Annotated[str, Form(r"(?!ems-|aws:)[A-Za-z0-9_.:=+@-]{1,127}", "a tag's name")], OneLine] = {}
    """Tags of your own for everything that is made."""
    endpoint: Endpoint | None = None
    """Where the API answers, for private clouds; default: $AWS_ENDPOINT_URL_EC2, or Amazon's."""


class OpenstackSection(Section):
    """Machines are servers of an OpenStack cloud."""

    kind: Literal["openstack"] = "openstack"
    cloud: Word | None = None
    """Its name in clouds.yaml; default: $OS_CLOUD, the variables OS_*, or the only one there is."""
    network: Word | None = None
    """Name or id of a network that is there, with a router; default: one of its own."""
    external_network: Word | None = None
    """Name or id of the network that floating addresses come from; default: the only one there is."""
    range: Annotated[str, BeforeValidator(private_range)] = "10.89.0.0/16"
    """The private address range of a network of its own."""
    nameservers: tuple[Word, ...] = ()
    """The name servers of a network of its own; default: the cloud's."""
    zones: Annotated[tuple[Word, ...], BeforeValidator(as_list, json_schema_input_type=OneOrMore)] = ()
    """Availability zones in order of preference; default: the cloud chooses."""
    ssh_from: Sources = ()
    """From where SSH gets in, e.g. `192.0.2.7/32`, or `anywhere`; default: from this computer's public address."""
    images: dict[Word, OneLine] = {}
    """How this cloud calls its images, e.g. `{"debian:12": Debian 12 (Bookworm)}`; default: found by their names."""
    labels: Labels = {}
    """Labels of your own for every server."""
    auth_url: Endpoint | None = None
    """Where Keystone answers; default: what clouds.yaml or $OS_AUTH_URL says."""


#: One class for each provider, told apart by ``kind``.
ProviderSection: TypeAlias = Annotated[
    ContainerSection | GceSection | AwsSection | OpenstackSection, Field(discriminator="kind")
]
#: The providers that may be given by their name alone.
ProviderName: TypeAlias = Literal["container", "gce", "aws", "openstack"]


class Machine(Section):
    """What any machine of the cluster is made of."""

    size: Annotated[tuple[Word, ...], BeforeValidator(as_list, json_schema_input_type=OneOrMore)] = ()
    """The provider's own name for a size, or several in order of preference; it decides about cpus and memory."""
    cpus: Count | None = None
    mem_gb: Annotated[float, Field(gt=0)] | None = None
    disk_gb: Count | None = None
    disk_type: Word | None = None
    """The provider's own name for a kind of boot disk, e.g. `pd-ssd`, `gp3`."""
    image: Word | None = None
    """A distribution or image of its own; default: the cluster's."""


class NodeKind(Machine):
    """A kind of compute node."""

    count: Annotated[int, Field(ge=0, le=MAX_NODES)] = 1
    """How many `ems cluster start` makes where `--nodes` does not say; not with `max`."""
    gpus: Annotated[int, Field(ge=0, le=16)] = 0
    gpu_type: Annotated[str, Form(r"[a-z][a-z0-9_.-]{0,30}", "lower case, e.g. `a100`")] | None = None
    """The type in `--gres gpu:TYPE:1`, e.g. `a100`."""
    spot: bool = False
    """Cheaper machines that the cloud may take back at any time; their runs go back into the queue."""
    min: Annotated[int, Field(ge=0, le=MAX_NODES)] | None = None
    """How many stay where nothing is queued, with `max`; default: none."""
    max: Annotated[int, Field(ge=1, le=MAX_NODES)] | None = None
    """How many may be there as the queue needs them: they come with jobs, and go when they are idle."""

    @model_validator(mode="before")
    @classmethod
    def _count_the_least(cls, content: Any) -> Any:
        """Have `count` say how many are made at first: the least where they come and go with the queue."""
        if not isinstance(content, dict) or content.get("max") is None:
            return content
        least = content.get("min")
        stays = least if isinstance(least, int) and least > 0 else 0  # what cannot be is told of `min`, not of this
        return {"count": stays, **content}

    @property
    def is_elastic(self) -> bool:
        """Whether its nodes come and go with the queue."""
        return self.max is not None


class Idle(Section):
    """What a cluster does by itself when nothing has run or waited on it for a while."""

    after_min: Annotated[float, Field(ge=0.1)] = 30
    """Minutes without a job in the queue, and without anybody logged in."""
    do: Literal["pause", "stop"] = "pause"
    """`pause`: nodes are deleted, the controller is stopped, its disk stays. `stop`: all machines are deleted."""
    harvest_before_stop: Annotated[
        str,
        Form(
            r"no|laptop|(s3|gs)://[a-z0-9][a-z0-9._-]{1,62}(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?",
            "`laptop`, `s3://BUCKET/PATH`, `gs://BUCKET/PATH`, or `no`",
        ),
    ] = "laptop"
    """Where results have to be before the controller is deleted: `laptop` (`ems harvest` has fetched them), or a
    bucket, `s3://NAME/PATH`, `gs://NAME/PATH`, that they are copied to. While they are not, it is paused instead. With
    `no` nobody looks: what was not harvested is lost."""

    @property
    def has_bucket(self) -> bool:
        """Whether results go to a bucket before the cluster stops."""
        return self.do == "stop" and "://" in self.harvest_before_stop


class Limits(Section):
    """What no command and no queue makes a cluster exceed."""

    max_nodes: Count | None = None
    max_cost: Annotated[float, Field(gt=0)] | None = None
    """US dollars since the cluster was made: machines are made only if what was spent, and what all would cost until
    `max_hours` (else for an hour), is less."""
    max_hours: Annotated[float, Field(gt=0)] | None = None
    """Every machine is deleted by the cloud itself that long after it was made, where the cloud can."""


class Energy(Section):
    """What the energy of a cluster is reckoned by, where you know better than the shipped table."""

    pue: Annotated[float, Field(ge=1)] | None = None
    """Power usage effectiveness: what the data centre draws for each watt of its machines."""
    g_co2e_per_kwh: Annotated[float, Field(ge=0)] | None = None
    """Grams of CO2 equivalent for each kWh of the grid there."""
    watts_per_cpu: Annotated[float, Field(ge=0)] | None = None
    """Of each CPU as SLURM counts them."""
    watts: dict[Word, Annotated[float, Field(ge=0)]] = {}
    """Of each GPU of a type, e.g. `{a100: 400}`."""


class Partition(Section):
    """A queue."""

    nodes: Annotated[
        tuple[KindName, ...], BeforeValidator(as_list, json_schema_input_type=OneOrMore), Field(min_length=1)
    ]
    """The kinds of its nodes."""
    default: bool = False
    """Whether jobs that name no partition go there; where none says so, the first is."""
    time: Annotated[Time, OrScalar] | None = None
    """The longest that a job may run, in SLURM's words: `2-00:00:00`; default: for ever."""
    fallback: PartitionName | None = None
    """The partition, of nodes that nobody takes back, that a run moves to once it was preempted too often."""
    max_preemptions: Annotated[int, Field(ge=0)] = 3
    """How often a run may be preempted here before it moves to `fallback`."""
    options: dict[Parameter, Annotated[Word, OrScalar]] = {}
    """Further words of its line in slurm.conf, e.g. `{PriorityTier: 2}`."""


class PythonSection(Section):
    """The Python that runs use: a virtual environment on the share. Without any, runs use the nodes' own."""

    version: Annotated[PythonVersion, OrScalar] | None = None
    """E.g. `"3.12"`; default: the distribution's."""
    packages: Annotated[tuple[Requirement, ...], BeforeValidator(as_list, json_schema_input_type=OneOrMore)] = ()
    """What pip installs, e.g. `[torch, "numpy>=2"]`."""
    requirements: str | None = None
    """A requirements file, relative to this one, or the text of one."""

    def lines(self) -> list[str]:
        """Return the lines of one requirements file for all of it."""
        return [*self.packages, *(self.requirements or "").splitlines()]


class Mount(Section):
    """A file system that every machine mounts."""

    source: Word
    """E.g. `nas.example.org:/data`."""
    path: AbsolutePath
    type: Annotated[str, Form(r"[a-z0-9.]+", "a type of file system, e.g. `nfs`")] = "nfs"
    options: Annotated[str, Form(r"[A-Za-z0-9_=.,:/@+-]+", "options of mount with commas between")] = "defaults"


class Hooks(Section):
    """Playbooks of your own, relative to this file."""

    before: Texts = ()
    after: Texts = ()


class User(Section):
    """Somebody who may log in besides the login user."""

    uid: Annotated[int, Field(ge=1000, le=60000)] | None = None
    """Default: 2001 for the first, and so on."""
    keys: Annotated[tuple[PublicKey, ...], BeforeValidator(as_list, json_schema_input_type=OneOrMore)] = ()
    """Public SSH keys, as in authorized_keys."""
    groups: tuple[UserName, ...] = ()
    sudo: bool = False


def digest_of(content: Mapping[str, Any]) -> str:
    """Return the digest of a resolved definition as it was written down, by whatever version of ems."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Definition(Section):
    """A cluster."""

    name: str
    description: OneLine = ""
    provider: Annotated[
        ProviderSection, BeforeValidator(_as_provider, json_schema_input_type=ProviderName | ProviderSection)
    ]
    image: Word = "debian:12"
    """The distribution of all machines: `debian:12`, `debian:13` or `ubuntu:24.04`."""
    login_user: UserName = "ems"
    controller: Machine = Machine()
    nodes: Annotated[dict[KindName, NodeKind], Field(min_length=1)]
    """The kinds of compute nodes; `--nodes 2` means the first."""
    partitions: dict[PartitionName, Partition] = {}
    """Default: one for each kind, of its name."""
    slurm: dict[Parameter, Annotated[OneLine, OrScalar]] = {}
    """Lines of slurm.conf, e.g. `{SchedulerParameters: bf_continue}`."""
    accounting: bool = True
    """Whether sacct works by MariaDB and slurmdbd; else finished jobs are written to a file."""
    cuda: Annotated[str, Form(r"distribution|\d+-\d+", "`distribution` or a version such as `12-6`")] | None = None
    """The CUDA toolkit that nodes with GPUs get: `distribution`, or a version of NVIDIA's, e.g. `12-6`."""
    packages: tuple[Package, ...] = ()
    """Packages of the distribution, on every machine."""
    python: PythonSection = PythonSection()
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks = Hooks()
    users: dict[UserName, User] = {}
    prices: dict[Word, Annotated[float, Field(ge=0)]] = {}
    """US dollars an hour of a size, where the shipped table does not know it or you pay otherwise."""
    limits: Limits = Limits()
    idle: Idle | None = None
    energy: Energy = Energy()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, content: Any) -> Any:
        """Say what the file leaves open, so that the resolved definition holds everything."""
        if not isinstance(content, dict):
            return content
        filled = dict(content)
        slurm, nodes, users = content.get("slurm", {}), content.get("nodes"), content.get("users")
        if isinstance(slurm, dict):
            said = {str(key).lower() for key in slurm}
            filled["slurm"] = {key: value for key, value in SLURM_DEFAULTS.items() if key.lower() not in said} | slurm
        if not content.get("partitions") and isinstance(nodes, dict):
            filled["partitions"] = {kind: {"nodes": [kind]} for kind in nodes}
        if isinstance(users, dict):
            filled["users"] = {
                name: {"uid": 2001 + place} | user if isinstance(user, dict) else {"uid": 2001 + place}
                for place, (name, user) in enumerate(users.items())
            }
        return filled

    @property
    def is_elastic(self) -> bool:
        """Whether nodes of any kind come and go: then all are declared to SLURM before they are there."""
        return any(each.is_elastic for each in self.nodes.values())

    @property
    def has_service(self) -> bool:
        """Whether a service on the controller makes nodes come and go, or has the cluster rest when it is idle."""
        return self.is_elastic or self.idle is not None

    @property
    def trusts_controller(self) -> bool:
        """Whether the controller may change machines: where it has to, or where the account that may is named."""
        section = self.provider
        named = getattr(section, "service_account", None) or getattr(section, "instance_profile", None)
        return self.has_service or named is not None

    @property
    def default_partition(self) -> str:
        """The partition of jobs that name none."""
        return next((name for name, each in self.partitions.items() if each.default), next(iter(self.partitions)))

    @property
    def digest(self) -> str:
        """The first 32 hex digits of the SHA-256 of the resolved definition."""
        return digest_of(self.model_dump(mode="json"))

    def kind(self, name: str) -> NodeKind:
        """Return a kind of node; ``controller`` is one too.

        Raises
        ------
        UsageError
            If there is none of that name.
        """
        if name == "controller":
            return NodeKind(count=1, **self.controller.model_dump())
        if name not in self.nodes:
            raise UsageError(
                f"{self.name} has no nodes of the kind `{name}`", did_you_mean(name, list(self.nodes), "kinds are")
            )
        return self.nodes[name]


_NODE = re.compile(r"-(?P<kind>[a-z][a-z0-9]*)-(?P<number>\d{3})")


def node_name(cluster: str, kind: str, number: int = 1) -> str:
    """Return a machine's name: ``demo-controller``, ``demo-gpu-001``."""
    return f"{cluster}-controller" if kind == "controller" else f"{cluster}-{kind}-{number:03d}"


def node_number(cluster: str, name: str) -> tuple[str, int] | None:
    """Return kind and number of a compute node's name; None: it is no node of that cluster."""
    found = _NODE.fullmatch(name.removeprefix(cluster)) if name.startswith(cluster) else None
    return (found["kind"], int(found["number"])) if found else None
