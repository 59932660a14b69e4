"""What does not fit together in a definition whose every value is of the right kind."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ems.cluster.definition import IMAGES, Definition, Machine
from ems.cluster.slurmwords import PARAMETERS, PARTITION_WORDS
from ems.cluster.userdata import LOGIN_UID
from ems.document import Location, did_you_mean
from ems.model import Json

#: Lines of slurm.conf that hold a cluster together; a definition may say any other. Lower case, as SLURM has no case.
_OWN_LINES = frozenset({
    "clustername", "slurmctldhost", "controlmachine", "controladdr", "slurmuser", "authtype", "authinfo", "nodename",
    "nodeset", "partitionname", "maxnodecount", "grestypes", "statesavelocation", "slurmdspooldir", "include",
    "slurmctldparameters", "selecttype", "treewidth", "accountingstoragetype", "accountingstoragehost",
    "accountingstorageport", "accountingstorageuser", "accountingstoragepass",
    "resumeprogram", "suspendprogram", "resumefailprogram", "suspendexcnodes",
})  # fmt: skip
_TEMPLATE = re.compile(r"\{[{%#]")
_PASSWORD = re.compile(r"://[^\s/@:]*:[^\s/@]+@")
_OWN_WORDS = {"partitionname": "", "nodes": "nodes", "default": "default", "maxtime": "time"}  # -> the key that says it
_SYSTEM_USERS = ("root", "daemon", "nobody", "slurm", "munge", "mysql", "sshd", "www-data", "messagebus")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a definition whose every value is of the right kind.

    Attributes
    ----------
    location
        The key that it is about.
    """

    location: Location
    message: str
    hint: str = ""


def problems(definition: Definition) -> Iterator[Problem]:
    """Yield what does not fit together in a definition."""
    yield from _wrong_machines(definition)
    yield from _wrong_elastic(definition)
    yield from _wrong_partitions(definition)
    yield from _wrong_users(definition)
    for location, text in _texts(definition.model_dump(mode="json")):
        if _PASSWORD.search(text):
            message = f"`{location[0]}` holds a password, and everybody on the cluster may read a definition"
            yield Problem(location, message, "leave it out; pip and git on the nodes read ~/.netrc")
        if _TEMPLATE.search(text):
            yield Problem(
                location, f"`{location[0]}` holds `{{{{` or `{{%`, which Ansible would execute", "leave it out"
            )
    for key in definition.slurm:
        if key.lower() in _OWN_LINES:
            yield Problem(("slurm", key), f"`slurm.{key}` is for ems to say", "leave the line out")
        elif hint := _meant(key, PARAMETERS):
            yield Problem(("slurm", key), f"SLURM has no parameter `{key}`", hint)
    for number, mount in enumerate(definition.mounts):
        if re.match(r"/(home|opt/ems|etc|usr|var|proc|sys|dev|run)(/|$)", mount.path):
            message = f"`mounts` cannot put {mount.source} at {mount.path}, which is the machine's own"
            yield Problem(("mounts", number, "path"), message, "choose another path, e.g. /data")


def _wrong_machines(definition: Definition) -> Iterator[Problem]:
    machines: list[tuple[Location, Machine]] = [((), Machine(image=definition.image))]
    machines += [(("controller",), definition.controller)]
    machines += [(("nodes", name), kind) for name, kind in definition.nodes.items()]
    for location, machine in machines:
        is_own = re.search(r"/|^ami-", machine.image or "") or definition.provider.kind == "openstack"  # of any name
        if machine.image and not is_own and machine.image not in IMAGES:
            hint = did_you_mean(machine.image, IMAGES, "there are")
            yield Problem((*location, "image"), f"there is no image `{machine.image}`", hint)
        if machine.size and definition.provider.kind == "container":
            message = f"there is no size `{machine.size[0]}`: containers have none"
            yield Problem((*location, "size"), message, "say `cpus` and `mem_gb` instead")
    for name, kind in definition.nodes.items():
        if name in {"controller", "login", "all", "default"}:
            yield Problem(("nodes", name), f"`{name}` cannot be the name of a kind of nodes", "choose another name")
        if kind.gpu_type and not kind.gpus:
            yield Problem(("nodes", name, "gpu_type"), f"`nodes.{name}` has a gpu_type but no gpus", "add `gpus: 1`")


def _wrong_elastic(definition: Definition) -> Iterator[Problem]:
    """Yield what is wrong with nodes that come and go, when they go, and where their runs move to."""
    for name, kind in definition.nodes.items():
        location = ("nodes", name)
        if kind.min is not None and kind.max is None:
            yield Problem((*location, "min"), f"`nodes.{name}` has a min without a max above it", "say `max` as well")
        elif kind.min is not None and kind.max is not None and kind.min > kind.max:
            message = f"`nodes.{name}` has a min of {kind.min}, above its max of {kind.max}"
            yield Problem((*location, "min"), message, "`min` says how many stay, `max` how many there may be")
        elif kind.is_elastic and kind.count != (kind.min or 0):
            message = f"`nodes.{name}` has a count, which is for nodes that stay, and a max, for those that come and go"
            yield Problem((*location, "count"), message, "say `count`, or `min` and `max`")
        elif definition.is_elastic and (kind.cpus is None or kind.mem_gb is None):
            message = f"`nodes.{name}` has to say `cpus` and `mem_gb`"
            hint = "where nodes come and go, SLURM is told what they will be: say what its (smallest) size has"
            yield Problem(location, message, hint)
        elif definition.is_elastic and not (kind.max or kind.count):
            message = f"`nodes.{name}` can never have a node: where nodes come and go, all that may be are declared"
            yield Problem((*location, "count"), message, "say `min: 0` and `max`, or leave the kind out")
    for key, value in definition.slurm.items() if definition.is_elastic else ():
        if key.lower() == "privatedata" and "cloud" not in value.lower().split(","):
            message = f"`slurm.{key}` without `cloud` hides nodes that are powered down from what makes them"
            yield Problem(("slurm", key), message, f"{key}: {value},cloud")
    for name, partition in definition.partitions.items():
        others = sorted(set(definition.partitions) - {name})
        if partition.fallback is not None and partition.fallback not in others:
            message = f"`partitions.{name}.fallback` names no other partition: `{partition.fallback}`"
            hint = did_you_mean(partition.fallback, others, "others are") if others else "define that partition as well"
            yield Problem(("partitions", name, "fallback"), message, hint)
    for key, value in definition.slurm.items():
        if key.lower() == "suspendtime" and not re.fullmatch(r"-1|[0-9]+|INFINITE", str(value), re.IGNORECASE):
            message = f"`slurm.{key}` has to be a number of seconds, got `{value}`"
            yield Problem(("slurm", key), message, f"e.g. `{key}: 300`")


def _wrong_partitions(definition: Definition) -> Iterator[Problem]:
    kinds = list(definition.nodes)
    default = [name for name, partition in definition.partitions.items() if partition.default]
    if len(default) > 1:
        message = f"`partitions.{default[0]}` and `partitions.{default[1]}` cannot both be the default"
        yield Problem(("partitions", default[1], "default"), message, "leave one `default: true` out")
    for name, partition in definition.partitions.items():
        if name.lower() == "default":
            yield Problem(("partitions", name), f"`{name}` cannot be the name of a partition", "choose another name")
        for word in partition.options:
            if (key := _OWN_WORDS.get(word.lower())) is not None:
                hint = f"say `{key}:` in the partition instead" if key else "leave it out"
                yield Problem(
                    ("partitions", name, "options", word), f"`partitions.{name}.options.{word}` is for ems to say", hint
                )
            elif hint := _meant(word, PARTITION_WORDS):
                yield Problem(("partitions", name, "options", word), f"SLURM's partitions have no word `{word}`", hint)
        for kind in partition.nodes:
            if kind not in kinds:
                message = f"`partitions.{name}` speaks of nodes of the kind `{kind}`, which are not there"
                yield Problem(("partitions", name, "nodes"), message, did_you_mean(kind, kinds, "kinds are"))


def _meant(word: str, known: Collection[str]) -> str:
    """Return what helps somebody who wrote a word that slurm.conf does not have; empty where it has."""
    spelled = {each.lower(): each for each in known}
    if word.lower() in spelled:
        return ""
    close = difflib.get_close_matches(word.lower(), spelled, 1, 0.6)
    return f"did you mean `{spelled[close[0]]}`?" if close else "`man slurm.conf` lists what there is"


def _wrong_users(definition: Definition) -> Iterator[Problem]:
    if definition.login_user in _SYSTEM_USERS:
        yield Problem(("login_user",), f"`{definition.login_user}` cannot be the login user", "choose another name")
    seen = {LOGIN_UID: definition.login_user}
    for name, user in definition.users.items():
        if name in {*_SYSTEM_USERS, definition.login_user}:
            yield Problem(("users", name), f"the user `{name}` is there without you", "choose another name")
        if user.uid in seen:
            yield Problem(("users", name, "uid"), f"`{name}` and `{seen[user.uid]}` have the uid {user.uid} both")
        seen[user.uid or 0] = name


def _texts(value: Json, location: Location = ()) -> Iterator[tuple[Location, str]]:
    """Yield every text of a definition with its place."""
    if isinstance(value, str):
        yield location, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, (*location, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _texts(inner, (*location, number))
