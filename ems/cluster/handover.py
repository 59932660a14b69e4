"""A cluster in other hands: rebuilt from its labels, or carried to another laptop as one file."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ems.cluster.definition import Definition
from ems.cluster.fleet import Fleet, Report, known, quiet, verified
from ems.cluster.floor import FLOOR_FILE
from ems.cluster.keys import Keys
from ems.cluster.provider import base, connect
from ems.cluster.provider.base import MachineState, Provider, Resource, Thing
from ems.cluster.record import Files, Phase, Record
from ems.errors import ClusterError, ConnectionFailedError, NotFoundError
from ems.ssh import Host

DEFINITION_FILE = "/opt/ems/etc/cluster.json"
MUNGE_FILE = "/opt/ems/etc/secret/munge.key"
_FILES = ("record.json", "journal.jsonl", "key", "key.pub", "known_hosts", "munge.key")
_BOOT_S = 180  # of a machine that was stopped, until it lets us in
_LATE_S = 2.0  # a cloud's listing may lack what was made a moment ago
_MAX_BYTES = 16 * 1024 * 1024

# adds a public key to those that let in, unless it is there
_LET_IN = """umask 077; mkdir -p ~/.ssh; touch ~/.ssh/authorized_keys
grep -qxF -- "$1" ~/.ssh/authorized_keys || printf '%s\\n' "$1" >> ~/.ssh/authorized_keys"""


def found(name: str, definition: Definition) -> list[Resource]:
    """Return everything that carries the label of a cluster, images apart.

    Raises
    ------
    NotFoundError
        If there is nothing.
    ClusterError
        If there are two clusters of that name.
    """
    things = [each for each in connect(definition.provider).list({base.CLUSTER: name}) if each.thing is not Thing.IMAGE]
    if not things:
        raise NotFoundError(f"nothing carries the label of a cluster `{name}`", f"`ems cluster start {name}` makes it")
    incarnations = {each.labels.get(base.INCARNATION, "") for each in things}
    if len(incarnations) > 1:
        raise ClusterError(f"there are {len(incarnations)} clusters named `{name}`", "delete one where it was made")
    return things


def stranger(name: str, definition: Definition) -> Record:
    """Return a record made of labels alone: enough to delete a cluster that this machine does not know."""
    things = found(name, definition)
    labels = things[0].labels
    return Record(
        name,
        labels.get(base.INCARNATION, ""),
        labels.get(base.OWNER, ""),
        labels.get(base.CREATED, ""),
        definition.model_dump(mode="json"),
        definition.digest,
        phase=Phase.STOPPING,
    )


def adopt(name: str, definition: Definition, report: Report = quiet) -> Fleet:
    """Rebuild the record of a cluster from its labels, and from what its controller says.

    Parameters
    ----------
    definition
        One of that name: says which provider to ask. What the cluster was made by is read from its controller.

    Raises
    ------
    NotFoundError
        If there is no such cluster.
    ClusterError
        If its controller is not there, does not let us in, or has another definition or munge key than its labels say.
    """
    things = found(name, definition)
    machines = [each for each in things if each.thing is Thing.MACHINE and base.HOST_KEY in each.labels]
    controller = next((each for each in machines if each.name == f"{name}-controller"), None)
    if controller is None or controller.state not in {MachineState.RUNNING, MachineState.STOPPED}:
        state = "gone" if controller is None else controller.state
        raise ClusterError(f"the controller of {name} is {state}", f"ems cluster stop {name} deletes what is there")
    files = Files(name)
    files.make()
    keys = Keys(files.dir)
    keys.trust({each.name: each.labels[base.HOST_KEY] for each in machines})
    with _awake(controller, connect(definition.provider), report):
        report(controller.name, "asked for its definition and keys")
        host = _way_in(controller, definition, keys)
        try:
            record, munge = _ask(host, controller, keys, machines)
        finally:
            host.close()
    keys.take_munge_key(munge, record.munge)
    fleet = Fleet(files, files.save(record), report)
    fleet.trust()
    if record.phase is Phase.READY:
        fleet.register()
    return fleet


@contextmanager
def _awake(controller: Resource, provider: Provider, report: Report) -> Iterator[None]:
    """Have a controller run that is stopped, as those of paused clusters are; afterwards it is stopped again."""
    if controller.state is not MachineState.STOPPED:
        yield
        return
    before = {each.id for each in _machines(controller, provider)}
    report(controller.name, "starts, to be asked")
    provider.start([controller])
    try:
        yield
    finally:
        report(controller.name, "stops again")
        provider.stop([controller])
        for late_s in (0.0 if provider.traits.is_free else _LATE_S, 0.0):  # its service may have made nodes meanwhile
            provider.destroy([each for each in _machines(controller, provider) if each.id not in before])
            time.sleep(late_s)


def _machines(controller: Resource, provider: Provider) -> list[Resource]:
    """Return all machines of the cluster that a controller is of."""
    labels = {key: controller.labels[key] for key in (base.CLUSTER, base.INCARNATION)}
    return [each for each in provider.list(labels) if each.thing is Thing.MACHINE]


def _way_in(controller: Resource, definition: Definition, keys: Keys) -> Host:
    """Return how to log in: by this machine's key of the cluster, or by one of the user's own.

    Raises
    ------
    ClusterError
        If no key lets us in; of a controller that boots, only after a while.
    """
    identities = [keys.identity, None] if keys.identity.exists() else [None]
    deadline = time.monotonic() + (_BOOT_S if controller.state is MachineState.STOPPED else 0)
    while True:
        here = next(each for each in found(controller.labels[base.CLUSTER], definition) if each.id == controller.id)
        destination = f"{definition.login_user}@{here.ssh_address}"
        for identity in identities:
            options = ("-o", "BatchMode=yes")
            host = Host(destination, here.ssh_port, identity, keys.known_hosts, here.name, options)
            try:
                host.run(["true"], timeout_s=30)
            except ConnectionFailedError as error:
                trouble = error
            else:
                return host
        if time.monotonic() > deadline:
            raise _not_told(here.name, trouble) from trouble
        time.sleep(0.5)


def _not_told(controller: str, error: ConnectionFailedError) -> ClusterError:
    return ClusterError(
        f"{controller} does not hand over its definition: {error.message}",
        "log in there with a key of yours in ~/.ssh, or carry it: ems cluster export, ems cluster import",
    )


def _ask(host: Host, controller: Resource, keys: Keys, machines: Sequence[Resource]) -> tuple[Record, bytes]:
    """Read definition and munge key from the controller, let this machine's key in, and check both by labels."""
    try:
        text = host.run(["cat", DEFINITION_FILE], timeout_s=30).stdout
        stay = host.run(["sh", "-c", f"cat {FLOOR_FILE} 2>/dev/null; exit 0"], timeout_s=30).stdout
        munge = host.run(["sudo", "cat", MUNGE_FILE], timeout_s=30).stdout
        host.run(["sh", "-c", _LET_IN, "sh", keys.public()], timeout_s=30)
    except ConnectionFailedError as error:
        raise _not_told(controller.name, error) from error
    record = _record(controller, text, machines)
    if verified(record).is_elastic:  # the other nodes come and go
        record = replace(record, wanted=tuple(stay.decode(errors="replace").split()))
    return record, munge


def _record(controller: Resource, text: bytes, machines: Sequence[Resource]) -> Record:
    labels = controller.labels
    name = labels[base.CLUSTER]
    try:
        content = json.loads(text)
        definition, created = content["definition"], str(content.get("created") or labels.get(base.CREATED, ""))
        owner = str(content.get("owner") or labels.get(base.OWNER, ""))
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"{DEFINITION_FILE} on {controller.name} cannot be read: {error}") from error
    nodes = [each for each in machines if each.labels.get(base.ROLE) == "compute"]
    # the controller may run because whoever paused, resumed or adopted the cluster was killed
    is_paused = all(each.state is MachineState.STOPPED for each in (nodes or [controller]))
    record = Record(
        name,
        labels[base.INCARNATION],
        owner,
        created,
        definition,
        labels[base.DEFINITION],
        tuple(sorted(each.name for each in nodes)),
        labels[base.MUNGE],
        Phase.PAUSED if is_paused else Phase.READY,
    )
    try:
        verified(record)
    except ClusterError:
        raise ClusterError(
            f"the definition on {controller.name} is not the one that the cluster was made by",
            f"somebody has changed {DEFINITION_FILE} there: put it back, or stop the cluster",
        ) from None
    return record


def export(name: str, path: Path) -> None:
    """Write everything that another machine needs to command a cluster to one file, which nobody else may read.

    Raises
    ------
    ClusterError
        If the file is there already.
    """
    fleet = known(name)
    folder = fleet.files.dir
    members = [folder / each for each in _FILES] + sorted((folder / "hostkeys").glob("*"))
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ClusterError(f"{path} is there already", "give another name, or delete it") from None
    except OSError as error:
        raise ClusterError(f"{path} cannot be written: {error.strerror}") from error
    with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for member in members:
            if member.is_file():
                archive.add(member, f"{name}/{member.relative_to(folder)}", recursive=False)


def take(path: Path) -> Fleet:
    """Know a cluster that another machine has exported; it becomes a target.

    Raises
    ------
    ClusterError
        If the file is none of ours, or this machine knows a cluster of that name already.
    """
    content = _read(path)
    names = {PurePosixPath(member).parts[0] for member in content}
    if len(names) != 1 or f"{(name := names.pop())}/record.json" not in content:
        raise ClusterError(f"{path} is no exported cluster", "`ems cluster export NAME FILE` writes one")
    files = Files(name)
    with files.locked():
        if files.load() is not None:
            raise ClusterError(f"this machine knows a cluster `{name}` already", f"ems cluster status {name}")
        later = f"{name}/record.json"  # last: it is what makes the cluster known
        for member in [*(each for each in content if each != later), later]:
            target = files.dir / PurePosixPath(member).relative_to(name)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(content[member])
        fleet = known(name)
        fleet.keys.check_munge_key(fleet.record.munge)
        if fleet.record.phase is Phase.READY:
            fleet.register()
        return fleet


def _read(path: Path) -> dict[str, bytes]:
    """Return the files of an archive by name; only plain files of the kinds we write, nothing outside one folder."""
    try:
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
            members = archive.getmembers()
            if sum(each.size for each in members) > _MAX_BYTES or not all(_is_ours(each) for each in members):
                raise ClusterError(f"{path} is no exported cluster", "`ems cluster export NAME FILE` writes one")
            return {each.name: file.read() for each in members if (file := archive.extractfile(each))}
    except OSError as error:
        raise ClusterError(f"{path} cannot be read: {error.strerror or error}", "check the path") from error
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ClusterError(f"{path} is no exported cluster", "`ems cluster export NAME FILE` writes one") from error


def _is_ours(member: tarfile.TarInfo) -> bool:
    parts = PurePosixPath(member.name).parts
    is_known = (len(parts) == 2 and parts[1] in _FILES) or (len(parts) == 3 and parts[1] == "hostkeys")
    return member.isfile() and is_known and ".." not in parts and not member.name.startswith("/")
