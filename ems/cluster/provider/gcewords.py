"""What Google's Compute API is told and says, as this program's own words. Pure.

Field names are those of https://cloud.google.com/compute/docs/reference/rest/v1 (instances.bulkInsert, networks,
subnetworks, firewalls, images). Networks, subnetworks and firewalls have no labels: their description holds them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from ems.cluster.provider.base import CLUSTER, NODE, MachineRequest, MachineState, Resource, Thing

#: Distribution -> the project and the family of its images.
FAMILIES = {
    "debian:12": ("debian-cloud", "debian-12"),
    "debian:13": ("debian-cloud", "debian-13"),
    "ubuntu:24.04": ("ubuntu-os-cloud", "ubuntu-2404-lts-amd64"),
}
#: What stands for the project's own service account (``projects.get`` has its address).
DEFAULT_ACCOUNT = "default"
_STATES = {
    "PROVISIONING": MachineState.STARTING,
    "STAGING": MachineState.STARTING,
    "REPAIRING": MachineState.STARTING,
    "RUNNING": MachineState.RUNNING,
    "STOPPING": MachineState.STOPPING,
    "PENDING_STOP": MachineState.STOPPING,
    "SUSPENDING": MachineState.STOPPING,
    "DEPROVISIONING": MachineState.STOPPING,
    "STOPPED": MachineState.STOPPED,
    "TERMINATED": MachineState.STOPPED,
    "SUSPENDED": MachineState.STOPPED,
}
#: `gpu_type` -> the name of the accelerator, where it is not the same.
_ACCELERATORS = {
    "t4": "nvidia-tesla-t4",
    "p4": "nvidia-tesla-p4",
    "v100": "nvidia-tesla-v100",
    "p100": "nvidia-tesla-p100",
    "a100": "nvidia-tesla-a100",
    "l4": "nvidia-l4",
}
_BUILT_IN = re.compile(r"(a2|a3|a4|a4x|g2|g4)-")  # sizes that have their GPUs
_DEFAULT_DISK_GB = 50
# Google's Debian images have no cloud-init: it is put there at the first boot, and then does what it would have done
_BOOTSTRAP = """#!/bin/sh
command -v cloud-init >/dev/null && exit 0
export DEBIAN_FRONTEND=noninteractive
until apt-get -qq update && apt-get -qq install -y --no-install-recommends cloud-init; do sleep 2; done
cloud-init init --local && cloud-init init && cloud-init modules --mode=config && cloud-init modules --mode=final
systemctl restart ssh
"""


def size_of(request: MachineRequest) -> str:
    """Return the machine type: the one that is named, or a custom one of so many processors and so much memory."""
    if request.size:
        return request.size
    if request.cpus is None and request.mem_gb is None:
        return "n1-standard-4" if request.gpus else "e2-standard-2"
    cpus = request.cpus or 2
    cpus += cpus % 2 if cpus > 1 or not request.gpus else 0  # custom ones have one processor, or an even number
    memory_mb = round((request.mem_gb or 4 * cpus) * 4) * 256
    return f"custom-{cpus}-{memory_mb}" if request.gpus else f"e2-custom-{cpus}-{memory_mb}"


def accelerator_of(request: MachineRequest) -> str:
    """Return the name of the GPUs that are attached; empty where there are none, or the size has them."""
    if not request.gpus or _BUILT_IN.match(size_of(request)):
        return ""
    kind = request.gpu_type or "t4"
    return _ACCELERATORS.get(kind, kind)


def network_tag(cluster: str) -> str:
    """Return the tag by which firewalls know a cluster's machines, and its network's name."""
    return f"ems-{cluster}"


def gate_tag(cluster: str) -> str:
    """Return the tag of machines that SSH reaches from outside."""
    return f"ems-{cluster}-ssh"


def instance(
    request: MachineRequest, *, image: str, subnetwork: str, service_account: str | None, own: Mapping[str, str]
) -> dict[str, Any]:
    """Return ``instanceProperties`` of machines that are alike.

    Parameters
    ----------
    subnetwork
        ``projects/P/regions/R/subnetworks/S``.
    own
        The user's own labels.
    """
    labels = {**own, **request.labels}
    cluster = request.labels[CLUSTER]
    disk = {
        "sourceImage": image,
        "diskSizeGb": str(request.disk_gb or _DEFAULT_DISK_GB),
        "diskType": request.disk_type or "pd-balanced",
        "labels": labels,
    }
    interface = {
        "subnetwork": subnetwork,
        "accessConfigs": [{"name": "External NAT", "type": "ONE_TO_ONE_NAT"}],  # by which packages are fetched
    }
    properties: dict[str, Any] = {
        "machineType": size_of(request),
        "labels": labels,
        "tags": {"items": [network_tag(cluster), *([gate_tag(cluster)] if request.is_public else [])]},
        "disks": [{"boot": True, "autoDelete": True, "initializeParams": disk}],
        "networkInterfaces": [interface],
        "metadata": {"items": _metadata(request)},
        "scheduling": _scheduling(request),
    }
    if accelerator := accelerator_of(request):
        count = {"acceleratorType": accelerator, "acceleratorCount": request.gpus}
        properties["guestAccelerators"] = [count]
    if request.is_trusted and service_account:
        scopes = ["https://www.googleapis.com/auth/cloud-platform"]
        properties["serviceAccounts"] = [{"email": service_account, "scopes": scopes}]
    return properties


def _metadata(request: MachineRequest) -> list[dict[str, str]]:
    items = {
        "user-data": request.user_data,
        "enable-oslogin": "FALSE",
        "block-project-ssh-keys": "TRUE",
    }
    if not request.image.startswith("ubuntu"):
        items["startup-script"] = _BOOTSTRAP
    return [{"key": key, "value": value} for key, value in items.items()]


def _scheduling(request: MachineRequest) -> dict[str, Any]:
    has_gpus = bool(request.gpus)
    said: dict[str, Any] = {
        "provisioningModel": "SPOT" if request.spot else "STANDARD",
        "automaticRestart": not request.spot,
        "onHostMaintenance": "TERMINATE" if has_gpus or request.spot else "MIGRATE",
    }
    if request.lease_s is not None:
        said["maxRunDuration"] = {"seconds": str(request.lease_s)}
    if request.spot or request.lease_s is not None:
        said["instanceTerminationAction"] = "DELETE"
    return said


def bulk(requests: Sequence[MachineRequest], properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of ``bulkInsert``: as many of them as there are, be it one."""
    return {
        "count": str(len(requests)),
        "minCount": "1",
        "perInstanceProperties": {each.name: {"name": each.name} for each in requests},
        "instanceProperties": dict(properties),
    }


def alike(requests: Sequence[MachineRequest]) -> list[list[MachineRequest]]:
    """Return the machines of each call: alike in everything but their names, 1,000 at most."""
    found: dict[str, list[MachineRequest]] = {}
    for each in requests:
        found.setdefault(repr(replace(each, name="")), []).append(each)
    return [group[start : start + 1000] for group in found.values() for start in range(0, len(group), 1000)]


def is_complete(ended: Mapping[str, Any], count: int) -> bool:
    """Whether a ``bulkInsert`` that has ended has made all machines."""
    places = (ended.get("instancesBulkInsertOperationMetadata") or {}).get("perLocationStatus") or {}
    return "error" not in ended and sum(int(each.get("createdVmCount", 0)) for each in places.values()) >= count


def inserts(ended: Mapping[str, Any]) -> str:
    """Return the filter that finds what a ``bulkInsert`` did for each machine."""
    return f"(operationGroupId = {ended.get('operationGroupId', '')}) AND (operationType = insert)"


def machine_of(said: Mapping[str, Any]) -> Resource:
    """Return an instance; where its labels do not say which node it is, its name does."""
    interface = (said.get("networkInterfaces") or [{}])[0]
    access = (interface.get("accessConfigs") or [{}])[0]
    name, scheduling = str(said["name"]), said.get("scheduling") or {}
    zone = last(said["zone"])
    size, cards = last(said["machineType"]), (said.get("guestAccelerators") or [{}])[0]
    gpus = 0 if _BUILT_IN.match(size) else int(cards.get("acceleratorCount", 0))
    card = last(cards.get("acceleratorType"))
    is_up = said["status"] not in {"TERMINATED", "STOPPED", "SUSPENDED"}
    return Resource(
        Thing.MACHINE,
        f"/zones/{zone}/instances/{name}",
        name,
        {NODE: name, **_labels(said)},
        _STATES.get(said["status"], MachineState.UNKNOWN),
        str(interface.get("networkIP", "")) if is_up else "",
        str(access.get("natIP", "")),
        zone=zone,
        size=size,
        spot=scheduling.get("provisioningModel") == "SPOT" or bool(scheduling.get("preemptible")),
        gpus=gpus,
        gpu_type=next((kind for kind, name in _ACCELERATORS.items() if name == card), card) if gpus else "",
        created_at=_when(said),
    )


def labelled(thing: Thing, said: Mapping[str, Any]) -> Resource:
    """Return a disk or image, which have labels."""
    zone = last(said["zone"]) if "zone" in said else ""
    return Resource(thing, path_of(said), str(said["name"]), _labels(said), zone=zone, created_at=_when(said))


def described(thing: Thing, said: Mapping[str, Any]) -> Resource | None:
    """Return a network, subnetwork or firewall by the labels in its description; None: it is none of ours."""
    labels = labels_in(said)
    return Resource(thing, path_of(said), str(said["name"]), labels, created_at=_when(said)) if labels else None


def description(labels: Mapping[str, str]) -> str:
    """Return labels as a description."""
    return json.dumps(dict(labels), sort_keys=True)


def labels_in(said: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels in a description; none where somebody else wrote it."""
    try:
        found = json.loads(said.get("description") or "")
    except ValueError:
        return {}
    is_ours = isinstance(found, dict) and CLUSTER in found
    return {str(key): str(value) for key, value in found.items()} if is_ours else {}


def wanted(labels: Mapping[str, str]) -> str:
    """Return the filter that finds what carries labels."""
    every = {key: value for key, value in labels.items() if key != NODE}  # those that are made alike lack it
    terms = [f"(labels.{key} = {value})" for key, value in every.items()]
    return " AND ".join(terms if CLUSTER in every else [f"(labels.{CLUSTER}:*)", *terms])


def path_of(said: Mapping[str, Any]) -> str:
    """Return the path of a resource inside its project, by its selfLink."""
    return "/" + str(said["selfLink"]).split("/projects/", 1)[1].split("/", 1)[1]


def last(url: object) -> str:
    """Return the last word of a URL: a name."""
    return str(url or "").rsplit("/", 1)[-1]


def _labels(said: Mapping[str, Any]) -> dict[str, str]:
    return dict(said.get("labels") or {})


def _when(said: Mapping[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(str(said.get("creationTimestamp")))
    except ValueError:
        return None
