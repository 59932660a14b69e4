"""What OpenStack's services have, as resources with labels, and what fits what is asked for. Pure."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from ems.cluster.definition import IMAGES
from ems.cluster.provider import bulk
from ems.cluster.provider.base import MachineRequest, MachineState, Refusal, RefusalCause, Resource, Thing
from ems.cluster.provider.keystone import Answer
from ems.errors import ProviderError

#: A server's metadata that tells the request that made it.
CALL = "ems-call"
_OWN = {bulk.NAMES, CALL}
_STATES = {
    "BUILD": MachineState.STARTING,
    "REBOOT": MachineState.STARTING,
    "HARD_REBOOT": MachineState.STARTING,
    "ACTIVE": MachineState.RUNNING,
    "SHUTOFF": MachineState.STOPPED,
    "SUSPENDED": MachineState.STOPPED,
    "PAUSED": MachineState.STOPPED,
    "SHELVED": MachineState.STOPPED,
    "SHELVED_OFFLOADED": MachineState.STOPPED,
    "ERROR": MachineState.FAILED,
}
_NAMES = {
    "debian:12": r"debian[ _.-]?(gnu.linux[ _.-]?)?(12|bookworm)",
    "debian:13": r"debian[ _.-]?(gnu.linux[ _.-]?)?(13|trixie)",
    "ubuntu:24.04": r"ubuntu.*(24[ _.-]?04|noble)",
}


def packed(user_data: str) -> str:
    """Return user-data as Nova takes it."""
    return base64.b64encode(user_data.encode()).decode()


def labels_of(thing: Mapping[str, object]) -> dict[str, str]:
    """Return the labels among metadata or an image's properties."""
    return {key: str(value) for key, value in thing.items() if key.startswith("ems-") and key not in _OWN}


def described(labels: Mapping[str, str]) -> str:
    """Return labels as the description of what Neutron keeps (at most 255 characters)."""
    return " ".join(f"{key}={value}" for key, value in labels.items())[:255]


def labels_in(description: str | None) -> dict[str, str]:
    """Return the labels in a description of :func:`described`."""
    pairs = [word.partition("=") for word in (description or "").split()]
    return {key: value for key, equals, value in pairs if equals and key.startswith("ems-")}


def is_gone(server: Answer) -> bool:
    """Whether nothing brings a server back."""
    return server["status"] in {"DELETED", "SOFT_DELETED"} or server.get("OS-EXT-STS:task_state") == "deleting"


def call_of(server: Answer) -> str:
    """Return the mark of the request that made a server."""
    return str(server["metadata"].get(CALL, ""))


def fault_of(server: Answer) -> str:
    """Return why a server failed."""
    return str((server.get("fault") or {}).get("message", ""))


def name_of(server: Answer) -> str:
    """Return a machine's name: Nova numbers the servers of one call from 1."""
    names = server["metadata"].get(bulk.NAMES, "")
    ending = re.search(r"-(\d+)$", server["name"])
    place = int(ending[1]) - 1 if " " in names and ending else 0
    return bulk.name_at(names, place) or str(server["name"])


def machine(server: Answer) -> Resource:
    """Return a server as a machine."""
    listed = [each for part in (server.get("addresses") or {}).values() for each in part if each["version"] == 4]
    fixed = [each["addr"] for each in listed if each.get("OS-EXT-IPS:type", "fixed") == "fixed"]
    floating = [each["addr"] for each in listed if each.get("OS-EXT-IPS:type") == "floating"]
    flavor = server.get("flavor") or {}
    return Resource(
        Thing.MACHINE,
        server["id"],
        name_of(server),
        labels_of(server["metadata"]),
        _STATES.get(server["status"], MachineState.UNKNOWN),
        fixed[0] if fixed else "",
        floating[0] if floating else "",
        zone=server.get("OS-EXT-AZ:availability_zone") or "",
        size=flavor.get("original_name") or flavor.get("id") or "",
        created_at=moment(server.get("created")),
    )


def image(found: Answer) -> Resource:
    """Return an image of Glance's."""
    return Resource(
        Thing.IMAGE, found["id"], found["name"], labels_of(found), created_at=moment(found.get("created_at"))
    )


def snapshots_of(found: Answer) -> list[str]:
    """Return the disks' snapshots that an image of a server with a volume stands for."""
    try:
        mapping = json.loads(found.get("block_device_mapping") or "[]")
    except ValueError:
        return []
    return [str(each["snapshot_id"]) for each in mapping if each.get("snapshot_id")]


def moment(text: str | None) -> datetime | None:
    """Return a time that OpenStack says, which is UTC where it does not say."""
    if not text:
        return None
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def refusal(machine: Resource, reason: str) -> Refusal:
    """Return why a server came to nothing."""
    said = reason or "the server failed, and OpenStack does not say why"
    low = said.lower()
    cause = RefusalCause.STOCKOUT if "no valid host" in low else RefusalCause.OTHER
    cause = RefusalCause.QUOTA if "quota" in low else cause
    return Refusal(machine.name, f"OpenStack (compute) says: {said}", "", cause, machine.zone)


def flavor_for(request: MachineRequest, flavors: Sequence[Answer]) -> Answer:
    """Return the flavor of that name or id, else the smallest that fits.

    Raises
    ------
    ProviderError
        If there is none.
    """
    names = ", ".join(sorted(each["name"] for each in flavors)[:20])
    if request.size:
        found = [each for each in flavors if request.size in {each["name"], each["id"]}]
        if not found:
            raise ProviderError(f"{request.name}: there is no flavor `{request.size}`", f"flavors are {names}")
        return found[0]
    if request.gpus:
        raise ProviderError(
            f"{request.name} is to have GPUs, and which flavors have some only you know", f"say `size`: {names}"
        )
    cpus, mem_mb = request.cpus or 1, (request.mem_gb or 1) * 1024
    fitting = [each for each in flavors if each["vcpus"] >= cpus and each["ram"] >= mem_mb]
    if not fitting:
        wanted = f"{cpus} CPUs and {mem_mb / 1024:g} GB"
        raise ProviderError(f"{request.name}: no flavor has {wanted}", f"flavors are {names}")
    return min(fitting, key=lambda each: (each["vcpus"], each["ram"], each["disk"], each["name"]))


def image_for(wanted: str, own_names: Mapping[str, str], images: Sequence[Answer]) -> Answer:
    """Return the newest image of a distribution, or the one of that name or id.

    Raises
    ------
    ProviderError
        If there is none.
    """
    name = own_names.get(wanted, wanted)
    found = [each for each in images if name in {each["id"], each["name"]}]
    if not found and name in IMAGES:
        found = [each for each in images if re.search(_NAMES[name], each["name"] or "", re.IGNORECASE)]
        found = [each for each in found if not labels_of(each)]
    if not found:
        names = ", ".join(sorted(str(each["name"]) for each in images if not labels_of(each))[:20])
        raise ProviderError(
            f"there is no image `{name}` in this cloud",
            f"its images are {names}; say by `images` in the definition which of them are {', '.join(IMAGES)}",
        )
    return max(found, key=lambda each: str(each.get("created_at")))
