"""What EC2 has, as resources with labels."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeAlias

from ems.cluster.provider import bulk
from ems.cluster.provider.base import CLUSTER, INCARNATION, MachineRequest, MachineState, Resource, Thing
from ems.cluster.provider.ec2 import Answer
from ems.cluster.provider.pool import side_by_side

#: Asks EC2: an action, the key of its answer's list, parameters; all pages.
Pages: TypeAlias = Callable[..., list[Answer]]

_PAGE = 1000
_FILTER = 200  # values at the most
#: The states of instances that nothing brings back.
GONE = ("shutting-down", "terminated")
_STATES = {
    "pending": MachineState.STARTING,
    "running": MachineState.RUNNING,
    "stopping": MachineState.STOPPING,
    "stopped": MachineState.STOPPED,
}
_OWN_TAGS = {"Name", bulk.NAMES}


def tags(thing: Answer) -> dict[str, str]:
    """Return the labels of a thing."""
    found = {each["key"]: each["value"] for each in thing.get("tagSet") or []}
    return {key: value for key, value in found.items() if key.startswith("ems-") and key not in _OWN_TAGS}


def flattened(reservations: Sequence[Answer]) -> list[Answer]:
    """Return the instances of reservations."""
    return [each for part in reservations for each in part.get("instancesSet") or []]


def machine(instance: Answer) -> Resource:
    """Return an instance as a machine; its name is told by its place among those of its call."""
    said = {each["key"]: each["value"] for each in instance.get("tagSet") or []}
    name = bulk.name_at(said.get(bulk.NAMES, ""), int(instance["amiLaunchIndex"])) or instance["instanceId"]
    return Resource(
        Thing.MACHINE,
        instance["instanceId"],
        name,
        tags(instance),
        _STATES.get(instance["instanceState"]["name"], MachineState.UNKNOWN),
        instance.get("privateIpAddress") or "",
        instance.get("ipAddress") or "",
        zone=instance["placement"]["availabilityZone"],
        size=instance["instanceType"],
        spot=instance.get("instanceLifecycle") == "spot",
        created_at=moment(instance["launchTime"]),
    )


def unseen(machine: str, name: str, labels: dict[str, str]) -> Resource:
    """Return a machine that was made and is not listed yet."""
    return Resource(Thing.MACHINE, machine, name, dict(labels), MachineState.STARTING)


def disk(found: Answer, its_id: str, made: str | None, image: str = "") -> Resource:
    """Return a volume or a snapshot; the image that a snapshot is of stands where a volume has its zone."""
    zone = image or found.get("availabilityZone") or ""
    return Resource(Thing.DISK, its_id, its_id, tags(found), zone=zone, created_at=moment(made) if made else None)


def image_of(snapshot: Answer) -> str:
    """Return the image that EC2 says a snapshot was made for."""
    words = str(snapshot.get("description") or "").split()
    return next((word for word in words if word.startswith("ami-")), "")


def moment(text: str) -> datetime:
    """Return a time that EC2 says."""
    return datetime.fromisoformat(text)


def filters(labels: dict[str, str], clusters: Sequence[str] = ()) -> list[dict[str, object]]:
    """Return the filters by which EC2 finds what carries labels, and is of one of some clusters."""
    found: list[dict[str, object]] = [{"Name": f"tag:{key}", "Value": [value]} for key, value in labels.items()]
    if clusters:
        found.append({"Name": f"tag:{CLUSTER}", "Value": list(clusters)})
    return found or [{"Name": "tag-key", "Value": [CLUSTER]}]


def everything(pages: Pages, wanted: dict[str, str]) -> list[Resource]:
    """Return what carries labels, of every kind, by one call a kind."""
    looks = (_machines, _rules, _disks, _snapshots, images, _addresses)
    found = [each for part in side_by_side(lambda look: look(pages, wanted), looks) for each in part]
    there = {each.id for each in found if each.thing is Thing.IMAGE}
    # an image's snapshot goes with the image
    found = [each for each in found if not (each.thing is Thing.DISK and each.zone in there)]
    return [each for each in found if CLUSTER in each.labels and wanted.items() <= each.labels.items()]


def instances(pages: Pages, wanted: dict[str, str], clusters: Sequence[str] = ()) -> list[Answer]:
    """Return the instances that carry labels, also those that are going."""
    return flattened(pages("DescribeInstances", "reservationSet", Filter=filters(wanted, clusters), MaxResults=_PAGE))


def by_id(pages: Pages, ids: Sequence[str]) -> list[Answer]:
    """Return the instances of these ids that are listed; to ask by a filter, ids that are unknown are no error."""
    found: list[Answer] = []
    for start in range(0, len(ids), _FILTER):
        wanted = [{"Name": "instance-id", "Value": ids[start : start + _FILTER]}]
        found += flattened(pages("DescribeInstances", "reservationSet", Filter=wanted, MaxResults=_PAGE))
    return found


def images(pages: Pages, wanted: dict[str, str]) -> list[Resource]:
    """Return the images that carry labels."""
    found = pages("DescribeImages", "imagesSet", Filter=filters(wanted), Owner=["self"], MaxResults=_PAGE)
    return [
        Resource(Thing.IMAGE, each["imageId"], each["name"], tags(each), created_at=moment(each["creationDate"]))
        for each in found
    ]


def _machines(pages: Pages, wanted: dict[str, str]) -> list[Resource]:
    return [machine(each) for each in instances(pages, wanted) if each["instanceState"]["name"] not in GONE]


def _rules(pages: Pages, wanted: dict[str, str]) -> list[Resource]:
    found = pages("DescribeSecurityGroups", "securityGroupInfo", Filter=filters(wanted), MaxResults=_PAGE)
    return [Resource(Thing.RULE, each["groupId"], each["groupName"], tags(each)) for each in found]


def _disks(pages: Pages, wanted: dict[str, str]) -> list[Resource]:
    """Return the disks that belong to no machine (any more)."""
    chosen = [*filters(wanted), {"Name": "status", "Value": ["available", "error"]}]
    found = pages("DescribeVolumes", "volumeSet", Filter=chosen, MaxResults=500)
    return [disk(each, each["volumeId"], each.get("createTime")) for each in found]


def _snapshots(pages: Pages, wanted: dict[str, str]) -> list[Resource]:
    found = pages("DescribeSnapshots", "snapshotSet", Filter=filters(wanted), Owner=["self"], MaxResults=_PAGE)
    return [disk(each, each["snapshotId"], each.get("startTime"), image_of(each)) for each in found]


def _addresses(pages: Pages, wanted: dict[str, str]) -> list[Resource]:
    found = pages("DescribeAddresses", "addressesSet", Filter=filters(wanted))
    return [Resource(Thing.ADDRESS, each["allocationId"], each["publicIp"], tags(each)) for each in found]


def subnet_order(subnet: Answer) -> tuple[bool, str, str]:
    """Return by what subnets are sorted: the default one of each zone first."""
    return (subnet.get("defaultForAz") != "true", subnet["availabilityZone"], subnet["subnetId"])


def token(group: Sequence[MachineRequest], generation: int) -> str:
    """Return what makes EC2 do a request once, whoever repeats it: the same machines, after as many as are gone."""
    first = group[0]
    names = bulk.encode([each.name for each in group])
    said = f"{names} {first.zone} {first.size} {first.spot} {generation}"
    return str(uuid.uuid5(uuid.UUID(hex=first.labels[INCARNATION]), said))


def machine_tags(group: Sequence[MachineRequest]) -> dict[str, str]:
    """Return the tags of machines that one call makes."""
    names = bulk.encode([each.name for each in group])
    return {**group[0].labels, bulk.NAMES: names, "Name": names}
