"""A cluster in hand: what is wanted of it, what is there, and how each machine is reached."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from pydantic import ValidationError

from ems import registry
from ems.cluster.definition import Definition, digest_of, node_number
from ems.cluster.failover import Failover
from ems.cluster.keys import HostKey, Keys
from ems.cluster.provider import base, connect
from ems.cluster.provider.base import MachineState, Provider, Resource, Thing
from ems.cluster.record import Files, Journal, Record
from ems.cluster.scheduler import Scheduler
from ems.errors import ClusterError, NotFoundError
from ems.registry import RemoteTarget
from ems.ssh import Host

#: Is told of whom (a machine, or a part of the work) what is being done now.
Report: TypeAlias = Callable[[str, str], None]

VENV_PYTHON = "/opt/ems/venv/bin/python"
RUNS_PYTHON = "/opt/ems/python/bin/python"
CONTROLLER_ROLE, COMPUTE_ROLE = "controller", "compute"


def quiet(_subject: str, _text: str) -> None:
    """Tell nobody."""


class Fleet:
    """One cluster's record, provider, machines and SLURM.

    Parameters
    ----------
    files
        Where this machine remembers it.
    record
        What it remembers.
    report
        Is told what is being done.

    Raises
    ------
    ClusterError
        If the definition in the record is not the one that the cluster was made by.
    """

    def __init__(self, files: Files, record: Record, report: Report = quiet) -> None:
        self.files = files
        self.record = record
        self.report = report
        self.definition = verified(record)
        self.journal = Journal(files)
        self.keys = Keys(files.dir)
        self.failover = Failover()
        self.ledger_path: Path | None = None  # None: this user's own

    @cached_property
    def provider(self) -> Provider:
        """What makes its machines."""
        return connect(self.definition.provider, lambda text: self.report("image", text))

    @property
    def name(self) -> str:
        """The cluster's name."""
        return self.record.name

    def update(self, **changes: object) -> None:
        """Change the record, on the disk too."""
        self.record = self.files.update(self.record, **changes)

    def resources(self) -> list[Resource]:
        """Return everything the provider has of this cluster, images apart."""
        labels = {base.CLUSTER: self.name, base.INCARNATION: self.record.incarnation}
        return [each for each in self.provider.list(labels) if each.thing is not Thing.IMAGE]

    def machines(self) -> dict[str, Resource]:
        """Return the controller and the compute nodes that are there, by name; of several of a name the oldest."""
        return {each.name: each for each in reversed(self._oldest_first())}

    def doubles(self) -> list[Resource]:
        """Return machines that bear the name of an older one: the cloud has made them twice, and they only cost."""
        found = self._oldest_first()
        first = {each.name: each.id for each in reversed(found)}
        return [each for each in found if each.id != first[each.name]]

    def _oldest_first(self) -> list[Resource]:
        machines = (each for each in self.resources() if each.thing is Thing.MACHINE)
        found = [each for each in machines if each.name == self.record.controller or self.kind(each.name)]
        return sorted(found, key=lambda each: (each.state is MachineState.FAILED, str(each.created_at), each.id))

    def kind(self, node: str) -> str:
        """Return a node's kind; empty for what is no compute node of this cluster."""
        found = node_number(self.name, node)
        return found[0] if found else ""

    def controller(self) -> Resource:
        """Return the controller.

        Raises
        ------
        ClusterError
            If it is not there, or not running.
        """
        found = self.machines().get(self.record.controller)
        if found is None or found.state not in {MachineState.RUNNING, MachineState.STARTING, MachineState.UNKNOWN}:
            state = "is not there" if found is None else f"is {found.state}"
            verb = "resume" if found is not None and found.state is MachineState.STOPPED else "start"
            raise ClusterError(f"{self.record.controller} {state}", f"ems cluster {verb} {self.name}")
        return found

    def address(self) -> str:
        """Return the controller's private address where its name does not lead there; empty where it does.

        It is empty, too, as long as the controller has none.
        """
        if self.provider.traits.has_names:
            return ""
        found = self.machines().get(self.record.controller)
        return found.address if found else ""

    def host(self, controller: Resource | None = None) -> Host:
        """Return how the controller is reached."""
        machine = controller or self.controller()
        return Host(
            f"{self.definition.login_user}@{machine.ssh_address}",
            machine.ssh_port,
            self.keys.identity if self.keys.identity.exists() else None,
            self.keys.known_hosts,
            machine.name,
        )

    def node_host(self, node: str) -> Host:
        """Return how a compute node is reached: through the controller.

        Raises
        ------
        NotFoundError
            If the cluster has no machine of that name; ``gpu-001`` does for ``local-gpu-001``.
        """
        machines = self.machines()
        name = next((each for each in (node, f"{self.name}-{node}") if each in machines), None)
        if name is None:
            raise NotFoundError(f"{self.name} has no node `{node}`", f"its machines are {', '.join(sorted(machines))}")
        if self.definition.is_elastic:
            self.trust()  # it may be new
        gate = self.host(machines.get(self.record.controller))
        if name == self.record.controller:
            return gate
        through = shlex.join(["ssh", *gate.options_of_ssh(), "-W", "\0", "--", gate.destination])
        through = through.replace("%", "%%").replace(shlex.quote("\0"), "%h:%p")
        return Host(
            f"{self.definition.login_user}@{machines[name].address or name}",
            22,
            gate.identity,
            gate.known_hosts,
            name,
            ("-o", f"ProxyCommand={through}"),
            persist_s=60,
        )

    @cached_property
    def scheduler(self) -> Scheduler:
        """Its SLURM."""
        return Scheduler(self.host())

    def host_key(self, machine: str) -> HostKey:
        """Return the host key of a machine; nodes of a kind that are made alike have one between them."""
        kind = self.kind(machine)
        return self.keys.host_key(f"{self.name}-{kind}" if kind and self.provider.traits.makes_alike else machine)

    def trust(self) -> None:
        """Believe the host keys that the wanted machines were, or will be, given; and no others."""
        labels = {name: each.labels.get(base.HOST_KEY, "") for name, each in self.machines().items()}
        own = () if self.definition.is_elastic else self.record.wanted  # the others' keys are made where they are made
        for name in (self.record.controller, *own):
            labels[name] = labels.get(name) or self.host_key(name).label
        self.keys.trust({name: label for name, label in labels.items() if label})

    def register(self, *, use: bool = True) -> None:
        """Write down how experiments reach it; with ``use`` it is also what is meant where nobody says."""
        python = self.definition.python
        has_own = bool(python.lines() or python.version)
        target = RemoteTarget(
            self.name,
            self.host(),
            root=f"/home/{self.definition.login_user}/ems",
            ems=(VENV_PYTHON, "-m", "ems"),
            python=RUNS_PYTHON if has_own else "/usr/bin/python3",
            worker_python="/usr/bin/python3",
            cluster=self.record.incarnation,
            facts={"partitions": list(self.definition.partitions), "idle": self.definition.idle is not None},
        )
        registry.save(target)
        if use:
            registry.use(self.name)


def verified(record: Record) -> Definition:
    """Return the definition in a record.

    Raises
    ------
    ClusterError
        If it was changed since the cluster was made.
    """
    if digest_of(record.definition) != record.digest:
        raise ClusterError(
            f"the definition in the record of {record.name} is not the one that the cluster was made by", _hint(record)
        )
    try:
        return Definition.model_validate(record.definition)
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise ClusterError(
            f"the definition in the record of {record.name} does not hold: {said}", _hint(record)
        ) from None


def _hint(record: Record) -> str:
    return f"`ems cluster status {record.name} --adopt` reads it anew from the cluster"


def known(name: str, report: Report = quiet) -> Fleet:
    """Return a cluster that this machine knows.

    Raises
    ------
    NotFoundError
        If it knows none of that name.
    ClusterError
        If it is one that was connected, whose machines are not for ems to change.
    """
    files = Files(name)
    record = files.load()
    if record is None and registry.load(name) is not None:
        raise ClusterError(
            f"{name} was connected, not made by ems: its machines are those of others",
            f"ems doctor --on {name} looks at it, ems cluster forget {name} forgets it",
        )
    if record is None:
        raise NotFoundError(
            f"this machine knows no cluster `{name}`",
            f"`ems cluster start {name}` makes it; one made on another machine: ems cluster status {name} --adopt",
        )
    return Fleet(files, record, report)
