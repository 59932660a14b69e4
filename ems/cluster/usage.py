"""Who used a cluster's nodes, as its SLURM's accounting knows it; kept on this machine when the cluster is gone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ems.cluster.fleet import Fleet
from ems.cluster.provider.base import MachineState
from ems.cluster.record import Phase
from ems.cluster.scheduler import expand
from ems.errors import EmsError
from ems.model import Json
from ems.node.records import write_atomic
from ems.registry import check_name, state_dir

_ASK_S = 120
#: What asks a controller: its own CPUs, those of the nodes, every allocation there was. Whatever fails, status 0.
SCRIPT = r"""
echo "cpus|$(hostname -s)|$(nproc)"
sinfo -a -h -N -o 'cpus|%N|%c' 2>/dev/null
export SLURM_TIME_FORMAT=%s
words=JobID,JobName,User,Start,End,NodeList,AllocTRES,ReqTRES
if said=$(sacct -a -D -X -n -P -S 2000-01-01 -o "$words" 2>/dev/null); then
    printf '%s\n' "$said" | sed 's/^/job|/'
    echo asked
fi
exit 0
"""
_EXPERIMENT = re.compile(r"ems-([0-9a-f]{8})(?![0-9a-f])")
#: The experiment of jobs that ``ems`` did not submit.
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Use:
    """A job, or array task, on its nodes, in one attempt.

    Attributes
    ----------
    cpus, gpus
        Of all its nodes together.
    end
        None while it runs.
    """

    job: str
    name: str
    user: str
    nodes: tuple[str, ...]
    cpus: int
    gpus: int
    begin: datetime
    end: datetime | None = None

    @property
    def experiment(self) -> str:
        """The id of the experiment that it is of."""
        found = _EXPERIMENT.match(self.name)
        return found[1] if found else OTHER


@dataclass(frozen=True, slots=True)
class Usage:
    """What a cluster's SLURM said of its nodes.

    Attributes
    ----------
    cpus
        Of each machine.
    asked
        When it said it; None: it was never asked, or has no accounting.
    """

    uses: tuple[Use, ...] = ()
    cpus: Mapping[str, int] = field(default_factory=dict)
    asked: datetime | None = None


def parse(text: str, now: datetime) -> Usage:
    """Read what :data:`SCRIPT` wrote; jobs that never began, or that cannot be read, are left out."""
    cpus: dict[str, int] = {}
    uses: list[Use] = []
    asked = None
    for line in text.splitlines():
        kind, _, rest = line.partition("|")
        words = rest.split("|")
        if kind == "cpus" and len(words) == 2 and words[1].isdigit():
            cpus[words[0]] = int(words[1])
        elif kind == "job" and (use := _use(words)) is not None:
            uses.append(use)
        elif kind == "asked":
            asked = now
    return Usage(tuple(uses), cpus, asked)


def _use(words: Sequence[str]) -> Use | None:
    if len(words) < 8 or not words[-5].isdigit() or not int(words[-5]):
        return None
    job, name, user = words[0], "|".join(words[1:-6]), words[-6]  # a job's name may have any letter
    begin, end, hosts, got, asked = words[-5:]
    nodes = tuple(expand(hosts)) if hosts not in {"", "None assigned"} else ()
    # SLURM 22.05 writes down no GPUs of some jobs that have them (nor `node=`): then they have what they asked for
    found = {**_amounts(asked if got else ""), **_amounts(got)}
    ended = datetime.fromtimestamp(int(end), UTC) if end.isdigit() and int(end) else None
    return Use(
        job,
        name,
        user,
        nodes,
        _count(found.get("cpu", "")),
        _count(found.get("gres/gpu", "")),
        datetime.fromtimestamp(int(begin), UTC),
        ended,
    )


def _amounts(tres: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in tres.split(",") if "=" in part)


def _count(word: str) -> int:
    return int(word) if word.isdigit() else 0


def merged(before: Usage, new: Usage) -> Usage:
    """Return everything that either says; of a job that both know what the newer one says counts."""
    uses = {(each.job, each.begin): each for each in (*before.uses, *new.uses)}
    return Usage(tuple(uses.values()), {**before.cpus, **new.cpus}, new.asked or before.asked)


def load(name: str, incarnation: str) -> Usage:
    """Return what is kept of an incarnation of a cluster."""
    found = _kept(name).get(incarnation)
    if not isinstance(found, dict):
        return Usage()
    try:
        uses = tuple(_thaw(each) for each in found["uses"])
        return Usage(uses, found["cpus"], datetime.fromisoformat(found["asked"]) if found["asked"] else None)
    except (KeyError, TypeError, ValueError):  # written by another version
        return Usage()


def keep(fleet: Fleet) -> Usage:
    """Ask a cluster that runs, and keep what it says; returns everything that is kept of it."""
    before = load(fleet.name, fleet.record.incarnation)
    if fleet.record.phase is not Phase.READY:
        return before
    new = Usage()
    with suppress(EmsError):
        controller = fleet.controller()
        if controller.state is MachineState.RUNNING:
            said = fleet.host(controller).run(["sh", "-s"], data=SCRIPT.encode(), timeout_s=_ASK_S).stdout
            new = parse(said.decode(errors="replace"), datetime.now(UTC))
    if not new.cpus:
        return before
    usage = merged(before, replace(new, cpus={_whole(fleet, name): count for name, count in new.cpus.items()}))
    _save(fleet.name, fleet.record.incarnation, usage)
    return usage


def _whole(fleet: Fleet, host: str) -> str:
    """Return a machine's name; a controller may call itself otherwise."""
    return host if fleet.kind(host) else fleet.record.controller


def _path(name: str) -> Path:
    return state_dir() / "ledgers" / f"{check_name(name)}.usage.json"


def _kept(name: str) -> dict[str, Any]:
    try:
        found = json.loads(_path(name).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _save(name: str, incarnation: str, usage: Usage) -> None:
    path = _path(name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    frozen: dict[str, Json] = {
        "uses": [_freeze(each) for each in usage.uses],
        "cpus": dict(usage.cpus),
        "asked": usage.asked.isoformat() if usage.asked else None,
    }
    write_atomic(path, json.dumps({**_kept(name), incarnation: frozen}) + "\n")


def _freeze(use: Use) -> Json:
    times: dict[str, Json] = {"begin": use.begin.isoformat(), "end": use.end.isoformat() if use.end else None}
    return {**asdict(use), "nodes": list(use.nodes), **times}


def _thaw(found: Mapping[str, Any]) -> Use:
    end = datetime.fromisoformat(found["end"]) if found["end"] else None
    begin, nodes = datetime.fromisoformat(found["begin"]), tuple(found["nodes"])
    return Use(**{**found, "nodes": nodes, "begin": begin, "end": end})
