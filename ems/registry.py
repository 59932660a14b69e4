"""The targets that this user has: clusters made by ``ems`` and machines that were connected, one file each.

``$XDG_STATE_HOME/ems/targets/NAME.json`` says how a target is reached and what its runs ask for where nobody says;
``$XDG_STATE_HOME/ems/current`` names the one that is meant where neither ``--on`` nor a settings file says.
Only this module reads or writes them.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ems.errors import TargetError, UsageError
from ems.model import Json
from ems.node.records import write_atomic
from ems.ssh import Host

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_RESERVED = ("here", "slurm", "last")


@dataclass(frozen=True, slots=True)
class RemoteTarget:
    """A target on another machine.

    Attributes
    ----------
    host
        How the controller or login node is reached.
    root
        The root there, an absolute path on the file system that its nodes share.
    ems
        The command that runs ``ems`` there, e.g. ``("/opt/ems/venv/bin/python", "-m", "ems")``.
    executor
        What runs its jobs: ``slurm`` or ``here``.
    python
        The Python that runs use where nobody says; worker_python the one that starts them.
    resources
        What runs ask for where nobody says: field of ``Resources`` -> value.
    cluster
        The incarnation of the cluster that ``ems cluster start`` made; None for a connected one.
    facts
        What was learnt of it: partitions, gres, limits, SLURM's version.
    """

    name: str
    host: Host
    root: str
    ems: tuple[str, ...]
    executor: str = "slurm"
    python: str | None = None
    worker_python: str | None = None
    resources: dict[str, Json] = field(default_factory=dict)
    cluster: str | None = None
    facts: dict[str, Json] = field(default_factory=dict)


def state_dir() -> Path:
    """Return the folder of everything that ``ems`` remembers of this user's machines (XDG base directories)."""
    base = os.environ.get("XDG_STATE_HOME") or ""
    folder = Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state"
    return folder / "ems"


def check_name(name: str) -> str:
    """Return a name that a cluster or target may have.

    Raises
    ------
    UsageError
        If it may not.
    """
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise UsageError(
            f"`{name}` cannot be the name of a cluster",
            "use up to 31 lower-case letters, digits and dashes, a letter first; not `here`, `slurm` or `last`",
        )
    return name


def save(target: RemoteTarget) -> None:
    """Write a target down, over what was known of one of that name."""
    record = asdict(target)
    path = _path(check_name(target.name))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, json.dumps(record, indent=1, default=str) + "\n")


def load(name: str) -> RemoteTarget | None:
    """Return the target of that name, or None.

    Raises
    ------
    TargetError
        If its file cannot be read.
    """
    if not _NAME.fullmatch(name):
        return None
    path = _path(name)
    try:
        record = json.loads(path.read_text())
        host = dict(record.pop("host"))
        for key in ("identity", "known_hosts"):
            host[key] = Path(host[key]) if host.get(key) else None
        host["options"] = tuple(host["options"])
        record["ems"] = tuple(record["ems"])
        return RemoteTarget(host=Host(**host), **record)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TargetError(
            f"{path} cannot be read: {error}", f"connect it again: ems cluster connect {name} …"
        ) from error


def get(name: str) -> RemoteTarget:
    """Return the target of that name.

    Raises
    ------
    TargetError
        If there is none, or its file cannot be read.
    """
    found = load(name)
    if found is None:
        known = ", ".join(names()) or "none yet"
        raise TargetError(f"there is no cluster `{name}`", f"clusters are: {known}; `ems cluster list` shows them")
    return found


def names() -> list[str]:
    """Return the names of all targets, sorted."""
    return sorted(path.stem for path in (state_dir() / "targets").glob("*.json"))


def forget(name: str) -> None:
    """Delete a target's file; where it was the current one there is then none."""
    if current() == name:  # while its file is there: one that is no more is never the current one
        use(None)
    _path(name).unlink(missing_ok=True)


def current() -> str | None:
    """Return the name of the current target; None: none was chosen, or it is no more."""
    try:
        name = (state_dir() / "current").read_text().strip()
    except OSError:
        return None
    return name if name and _path(name).exists() else None


def use(name: str | None) -> None:
    """Make a target the one that is meant where nobody says; None: none.

    Raises
    ------
    TargetError
        If there is none of that name.
    """
    path = state_dir() / "current"
    if name is None:
        path.unlink(missing_ok=True)
        return
    get(name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, name + "\n")


def update(name: str, **changes: object) -> None:
    """Change fields of a target that is known."""
    found = load(name)
    if found is not None:
        save(replace(found, **changes))  # type: ignore[arg-type]  # the dataclass checks names, callers types


def _path(name: str) -> Path:
    return state_dir() / "targets" / f"{name}.json"
