"""An existing cluster becomes a target: look at it over SSH, install ``ems`` there, ask its SLURM, write it down.

Nothing there needs root rights, and nothing is left there but one folder, the root.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ems import registry
from ems.cluster import catalog, probe, record
from ems.cluster.install import Installer, install_on_share
from ems.errors import ClusterError, UsageError
from ems.executor.base import Check
from ems.model import Json
from ems.registry import RemoteTarget
from ems.remote.client import Agent
from ems.ssh import Host

OLDEST = (3, 11)
DEFAULT_ROOT = "~/ems"
Report = Callable[[str], None]

_LOOK_S = 180.0  # a login shell of a large site may take its time

_MARK = "ems-python"
# `command -v` finds it, and sys.executable is what it is behind shims and modules
_FIND = f"""
for each in "$@"; do
    case $each in "~/"*) each=$HOME/${{each#"~/"}} ;; esac
    path=$(command -v -- "$each" 2>/dev/null) || continue
    "$path" -c 'import sys; print("{_MARK}", "%d.%d.%d" % tuple(sys.version_info[:3]), sys.executable)' \\
        </dev/null 2>/dev/null
done
exit 0
"""
_PYTHONS = (
    *("python3", "python3.14", "python3.13", "python3.12", "python3.11"),
    *("~/.local/bin/python3", "~/miniforge3/bin/python3", "~/miniconda3/bin/python3", "~/anaconda3/bin/python3"),
)


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition, as SLURM has it.

    Attributes
    ----------
    nodes
        How many.
    cpus, mem_mb
        Of its largest node.
    gres
        What its nodes have, e.g. ``gpu:a100:4``.
    default_time, time
        SLURM's words for the time limit of who asks for none, and for the longest one.
    """

    name: str
    is_default: bool
    is_up: bool
    nodes: int
    cpus: int
    mem_mb: int
    gres: tuple[str, ...]
    default_time: str
    time: str


@dataclass(frozen=True, slots=True)
class Connected:
    """A cluster that was connected: the target as it was written down, its partitions, and what doctor says there."""

    target: RemoteTarget
    partitions: tuple[Partition, ...]
    checks: tuple[Check, ...]


def host_of(destination: str, options: tuple[str, ...] = ()) -> Host:
    """Return how a login node is reached.

    Parameters
    ----------
    destination
        As ``ssh`` takes it: ``user@login``, or a name of the user's ``~/.ssh/config``.
    options
        What follows ``ssh -o`` (``ProxyJump=gate``), or other options as one types them (``-p 2222``).

    Raises
    ------
    UsageError
        If it cannot be a destination, or an option cannot be read.
    """
    if destination.startswith("-") or destination.split() != [destination] or {"/", ":"}.intersection(destination):
        raise UsageError(
            f"`{destination}` is no login node",
            "name it as you do for ssh: user@login.example.org, or by its name in ~/.ssh/config, where an IPv6 address "
            "has to stand; a port is `--ssh-option Port=2222`",
        )
    words: list[str] = []
    for option in options:
        try:
            words += shlex.split(option) if option.startswith("-") else ["-o", option]
        except ValueError as error:
            raise UsageError(f"the ssh option `{option}` cannot be read: {error}", "e.g. ProxyJump=gate") from None
    return Host(destination, options=tuple(words))


def connect(name: str, host: Host, report: Report, *, root: str = DEFAULT_ROOT, python: str | None = None) -> Connected:
    """Make a target of a machine that one can log in to. Safe to repeat, and at any moment after it was interrupted.

    Parameters
    ----------
    root
        The folder there that everything goes to; nodes have to see it. ``~`` and ``$NAME`` mean what they mean there.
    python
        Its Python; default: one is looked for.

    Raises
    ------
    ClusterError
        If there is no Python that will do, the root cannot be written, SLURM does not answer, or ``ems`` cannot be
        installed.
    ConnectionFailedError
        If the machine cannot be reached.
    UsageError
        If the name is taken by a cluster that ``ems`` made, or could make.
    """
    _check_name(name)
    report(f"{host.destination}: looks for Python")
    found = _look(host, root, _find_python(name, host, python))
    installer = Installer(host, found, report)
    target = _target(name, host, found, installer.install())
    report(f"{host.destination}: ems doctor")
    agent = Agent(target)
    try:
        limits = agent.call("limits")
        target = replace(target, facts={**target.facts, "limits": limits})
        checks = tuple(Check(**each) for each in agent.call("doctor"))
    finally:
        agent.close()
    registry.save(target)
    return Connected(target, partitions_of(target), checks)


def upgrade(name: str, report: Report) -> RemoteTarget:
    """Bring this ``ems`` to a target, so that both sides are of one version. Safe to repeat.

    Raises
    ------
    TargetError
        If there is no such target.
    ClusterError
        If ``ems`` cannot be installed there.
    ConnectionFailedError
        If the machine cannot be reached.
    """
    target = registry.get(name)
    if target.cluster is None:
        python = target.facts.get("python")
        found = _look(target.host, target.root, _find_python(name, target.host, str(python) if python else None))
        fresh = _target(name, target.host, found, Installer(target.host, found, report).install())
        target = replace(target, ems=fresh.ems, facts={**target.facts, **fresh.facts})
    else:
        install_on_share(target, report)
    _greet(target)
    if target.cluster is None:
        registry.save(target)
    return target


def forget(name: str) -> RemoteTarget:
    """Forget a connected cluster; nothing is deleted there.

    Raises
    ------
    TargetError
        If there is no such target.
    UsageError
        If ``ems`` made it.
    """
    target = registry.get(name)
    if target.cluster is not None:
        raise UsageError(
            f"{name} was made by ems, and would go on running", f"ems cluster stop {name} deletes it, and forgets it"
        )
    target.host.close()
    registry.forget(name)
    return target


def partitions_of(target: RemoteTarget) -> tuple[Partition, ...]:
    """Return what the target's SLURM said of its partitions when it was connected."""
    slurm = target.facts.get("slurm")
    listed = slurm.get("partitions") if isinstance(slurm, dict) else None
    records = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return tuple(Partition(**{**each, "gres": tuple(each["gres"])}) for each in records)


def parse_partitions(text: str) -> list[Partition]:
    """Read what ``sinfo`` says, a line for each kind of node in each partition, as :mod:`ems.cluster.probe` asks it."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        words = line.split("|")
        if len(words) != 9:
            continue
        name, marked, up, nodes, cpus, mem, gres, default_time, time = words
        one = Partition(
            name=name,
            is_default=marked.endswith("*"),
            is_up=up == "up",
            nodes=_number(nodes),
            cpus=_number(cpus),
            mem_mb=_number(mem),
            gres=_gres(gres),
            default_time=default_time,
            time=time,
        )
        found[name] = _join(found[name], one) if name in found else one
    return list(found.values())


def _join(one: Partition, other: Partition) -> Partition:
    return replace(
        one,
        nodes=one.nodes + other.nodes,
        cpus=max(one.cpus, other.cpus),
        mem_mb=max(one.mem_mb, other.mem_mb),
        gres=tuple(dict.fromkeys([*one.gres, *other.gres])),
    )


def _number(word: str) -> int:
    """Read ``8`` or, of nodes that differ, ``8+``."""
    digits = word.rstrip("+").strip()
    return int(digits) if digits.isdecimal() else 0


def _gres(text: str) -> tuple[str, ...]:
    """Read ``gpu:a100:4(S:0-1),shard:8``; where there is none SLURM says ``(null)``."""
    words = re.sub(r"\([^)]*\)", "", text).split(",")
    return tuple(word for word in words if word)


def _check_name(name: str) -> None:
    taken = registry.load(registry.check_name(name))
    if (taken is not None and taken.cluster is not None) or name in record.names():
        raise UsageError(
            f"{name} is a cluster that ems made", f"connect this one by another name, or ems cluster stop {name}"
        )
    defined = next((each.path for each in catalog.entries(Path.cwd()) if each.name == name), None)
    if defined is not None:
        raise UsageError(f"`{name}` is what {defined} defines", "connect this cluster by another name")


def _find_python(name: str, host: Host, named: str | None) -> str:
    """Return the absolute path of a Python there that can run ``ems``.

    Raises
    ------
    ClusterError
        If there is none.
    """
    asked = (named,) if named else _PYTHONS
    said = host.run(["sh", "-s", "--", *asked], data=_FIND.encode()).stdout.decode(errors="replace")
    found = [line.split(" ", 2)[1:] for line in said.splitlines() if line.startswith(f"{_MARK} ")]
    for version, path in found:
        if tuple(int(part) for part in version.split(".")[:2]) >= OLDEST:
            return path
    wanted = ".".join(str(part) for part in OLDEST)
    seen = ", ".join(dict.fromkeys(f"{path} is {version}" for version, path in found))
    what = f"`{named}` is no Python {wanted} or newer" if named else f"there is no Python {wanted} or newer"
    raise ClusterError(
        f"on {host.destination} {what}" + (f": {seen}" if seen else ""),
        f"name one: ems cluster connect {name} {shlex.quote(host.destination)} --python PATH "
        "(there, `module avail python`, conda or uv may have one)",
    )


def _look(host: Host, root: str, python: str) -> dict[str, Any]:
    """Run :mod:`ems.cluster.probe` there.

    Raises
    ------
    ClusterError
        If it does not answer, the root cannot be written, or SLURM does not answer.
    """
    source = Path(probe.__file__).read_bytes()
    done = host.run([python, "-I", "-", root], data=source, timeout_s=_LOOK_S)
    try:
        found: dict[str, Any] = json.loads(done.stdout.decode(errors="replace").rpartition(probe.MARK)[2])
    except ValueError:
        raise ClusterError(f"{python} on {host.destination} says nothing", f"try `{host.typed()}`") from None
    if found["trouble"]:
        raise ClusterError(
            f"on {host.destination} {found['root']} cannot be written: {found['trouble']}",
            "name a folder that is yours and that all nodes see: --root FOLDER",
        )
    slurm = found["slurm"]
    if slurm and slurm["trouble"]:
        raise ClusterError(
            f"SLURM on {host.destination} does not answer: {' '.join(slurm['trouble'].split())}",
            f"see what `sinfo` says there, then repeat the command: {host.typed()} sinfo",
        )
    return found


def _target(name: str, host: Host, found: Mapping[str, Any], python: str) -> RemoteTarget:
    """Put what was learnt into a record; ``python`` is the one that ``ems`` was installed for."""
    slurm = found["slurm"]
    partitions = parse_partitions(slurm["sinfo"]) if slurm else []
    first = next((each.name for each in partitions if each.is_default), None)
    resources: dict[str, Json] = {"partition": first} if first else {}
    words = [f"{key}={value}" for key, value in found["environment"].items()]
    facts: dict[str, Json] = {"host": found["host"], "python": found["python"]}
    if slurm:
        facts["partitions"] = [each.name for each in partitions]
        facts["slurm"] = {"version": slurm["version"], "partitions": [asdict(each) for each in partitions]}
    return RemoteTarget(
        name=name,
        host=host,
        root=found["root"],
        ems=(*(["env", *words] if words else ()), python, "-m", "ems"),
        executor="slurm" if slurm else "here",
        resources=resources,
        facts=facts,
    )


def _greet(target: RemoteTarget) -> None:
    """Have both sides compare what they are.

    Raises
    ------
    TargetError
        If they still differ.
    """
    agent = Agent(target)
    try:
        agent.call("hello", root=target.root, executor=target.executor, worker_python=target.worker_python)
    finally:
        agent.close()
