"""The provider `aws`: a cluster's machines are virtual ones of Amazon EC2.

Machines that are alike are made by one RunInstances. Its instances share their tags, so the names of all are in one of
them (:mod:`.bulk`) and each one's own is told by its launch index. Instances that are going are gone: nothing brings
them back, and they cost nothing.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from threading import Lock
from typing import Any

from ems.cluster.definition import AwsSection
from ems.cluster.provider import address, awskeys, bulk
from ems.cluster.provider import awsthings as things
from ems.cluster.provider.awsgroups import Groups, group_name
from ems.cluster.provider.awsimages import DISTRIBUTIONS, find_image
from ems.cluster.provider.awssizes import check_gpus, size_of
from ems.cluster.provider.backoff import Backoff
from ems.cluster.provider.base import (
    CLUSTER,
    ROLE,
    Finding,
    MachineRequest,
    Refusal,
    RefusalCause,
    Resource,
    Thing,
    Traits,
    controllers_first,
)
from ems.cluster.provider.cloud import CloudProvider
from ems.cluster.provider.ec2 import Answer, ApiError, Ec2
from ems.cluster.provider.lease import leased
from ems.cluster.provider.pool import Drivers, side_by_side
from ems.cluster.provider.waiting import until
from ems.errors import ProviderError

_MOST = 500  # instances of one call: RunInstances' own bucket holds 1,000
_IDS = 500  # of one call that takes ids
_DISK_GB = 30  # the images' own have 8, which is not enough for CUDA, or anybody's /home
_SEEN_S = 60  # until what was made is listed
_STATE_S = 300
_FREE_S = 20
_IMAGE_S = 1800
_LISTED_S = 15  # until what an earlier command asked for is listed
_GENERATIONS = 1000  # of machines of one name, in the day or so for which EC2 knows a token
_TERMINATED, _MISMATCH = "IdempotentInstanceTerminated", "IdempotentParameterMismatch"
_KEPT = {"controller", "bake"}  # roles whose machines survive their own shutdown


class AwsProvider(CloudProvider[AwsSection]):
    """Virtual machines of Amazon EC2; see :class:`~.base.Provider`."""

    def __init__(
        self,
        section: AwsSection,
        notify: Callable[[str], None] = lambda _text: None,
        backoff: Backoff | None = None,
        *,
        as_instance: bool = False,
    ) -> None:
        super().__init__(section, notify, backoff, as_instance=as_instance)
        self._keys: awskeys.Keys | None = None
        self._keys_lock = Lock()
        self._apis: Drivers[Ec2] = Drivers(self._connect)
        self._used: dict[str, int] = {}  # first token of a group -> how many of its tokens are of machines long gone

    # -- what is there to choose from

    @cached_property
    def traits(self) -> Traits:
        """What EC2 can; the VPC is asked for its address range and zones."""
        return Traits(
            has_shared_volume=False,
            has_images=True,
            stop_keeps_address=True,
            has_names=False,
            network=self._network,
            zones=tuple(self._subnets),
            has_spot=True,
            makes_alike=True,
        )

    @cached_property
    def _vpc(self) -> Answer:
        chosen = self.section.vpc
        wanted = {"VpcId": [chosen]} if chosen else {"Filter": [{"Name": "is-default", "Value": ["true"]}]}
        found = self._call("DescribeVpcs", **wanted).get("vpcSet") or []
        if not found:
            raise ProviderError(
                f"{self._region} has no default VPC", "`aws ec2 create-default-vpc` makes one, or name a `vpc`"
            )
        return found[0]

    @cached_property
    def _network(self) -> str:
        return str(self._vpc["cidrBlock"])

    @cached_property
    def _groups(self) -> Groups:
        return Groups(self._call, self._vpc["vpcId"], self.section.ssh_from)

    @cached_property
    def _subnets(self) -> dict[str, str]:
        """Zone -> subnet, in order of preference."""
        said = self.section.subnet
        wanted = {"SubnetId": said} if said else {"Filter": [{"Name": "vpc-id", "Value": [self._vpc["vpcId"]]}]}
        found: dict[str, str] = {}
        listed = sorted(self._pages("DescribeSubnets", "subnetSet", **wanted), key=things.subnet_order)
        for each in listed:
            found.setdefault(each["availabilityZone"], each["subnetId"])
        zones = self.section.zones or tuple(found)
        missing = [zone for zone in zones if zone not in found]
        if missing or not zones:
            raise ProviderError(
                f"the VPC {self._vpc['vpcId']} has no subnet in {', '.join(missing) or self._region}",
                f"it has some in {', '.join(found) or 'no zone'}: change `zones` or `subnet`",
            )
        return {zone: found[zone] for zone in zones}

    @cached_property
    def _region(self) -> str:
        said = self.section.region
        found = said or (awskeys.own_region() if self._as_instance else awskeys.region(self.section.profile))
        if not found:
            raise ProviderError("no AWS region is said", "give the provider a `region`, or set AWS_REGION")
        return found

    def _connect(self) -> Ec2:
        with self._keys_lock:
            keys = self._keys or (awskeys.own_keys() if self._as_instance else awskeys.keys(self.section.profile))
            self._keys = keys
        endpoint = self.section.endpoint or os.environ.get("AWS_ENDPOINT_URL_EC2")
        return Ec2(keys, self._region, endpoint, self._backoff)

    def _fresh(self) -> Drivers[Ec2]:
        """Return connections whose keys are good yet: those of a login last an hour, and a start may take longer."""
        with self._keys_lock:
            if self._keys is not None and not self._keys.is_fresh():
                self._keys, self._apis = None, Drivers(self._connect)
            return self._apis

    def _call(self, action: str, **parameters: object) -> Answer:
        with self._fresh().one() as api:
            return api.call(action, **parameters)

    def _pages(self, action: str, key: str, **parameters: object) -> list[Any]:
        with self._fresh().one() as api:
            return api.pages(action, key, **parameters)

    # -- the eight verbs

    def _looks(self, requests: Sequence[MachineRequest]) -> Iterator[Finding]:
        looks: list[tuple[str, Callable[[], str]]] = [
            ("credentials", self._enter),
            ("zone", lambda: self._check_zones(requests)),
            ("size", lambda: self._check_sizes(requests)),
            ("image", lambda: ", ".join(sorted({self._image(each)["imageId"] for each in requests}))),
            ("ssh", lambda: ", ".join(address.sources(self.section.ssh_from))),
            ("permissions", lambda: self._may_run(requests)),
        ]
        yield from self._each(looks, frozenset({"credentials", "zone", "size", "image"}))

    def _enter(self) -> str:
        return f"they are good for {self._region}, VPC {self._vpc['vpcId']}"

    def _check_zones(self, requests: Sequence[MachineRequest]) -> str:
        zones = {request.zone for request in requests if request.zone}
        if unknown := zones - set(self._subnets):
            raise ProviderError(f"there is no zone `{min(unknown)}`", f"zones are {', '.join(self._subnets)}")
        return ", ".join(sorted(zones) or self._subnets)

    def _check_sizes(self, requests: Sequence[MachineRequest]) -> str:
        types = self._types(sorted({size_of(request) for request in requests}))
        for request in requests:
            check_gpus(request, types[size_of(request)])
        return ", ".join(types)

    def _types(self, names: Sequence[str]) -> dict[str, Answer]:
        """Return what EC2 says of sizes, all of which some zone has."""
        try:
            found = self._pages("DescribeInstanceTypes", "instanceTypeSet", InstanceType=names) if names else []
        except ApiError as error:
            if error.code != "InvalidInstanceType":
                raise
            raise ProviderError(error.message, f"sizes of {self._region}: aws ec2 describe-instance-types") from None
        types = {each["instanceType"]: each for each in found}
        if missing := [name for name in names if name not in types]:
            raise ProviderError(f"EC2 has no size `{missing[0]}` in {self._region}", "change `size` in the definition")
        return types

    def _may_run(self, requests: Sequence[MachineRequest]) -> str:
        """Ask EC2 whether it would make these, without making them."""
        for group in bulk.groups(requests, _MOST):
            try:
                self._call("RunInstances", DryRun=True, **self._run_parameters(group, self._image(group[0]), None))
            except ApiError as error:
                if error.code != "DryRunOperation":
                    raise
        return "EC2 would make all of it"

    def prepare(self, labels: dict[str, str]) -> None:
        """Make the cluster's security group: SSH from outside, everything from inside."""
        self._groups.prepare(labels, self._tag_sets({**labels, "Name": group_name(labels[CLUSTER])}, "security-group"))

    def create(self, requests: Sequence[MachineRequest]) -> list[Resource | Refusal]:
        """Make machines, those that are alike in one call; see :meth:`.base.Provider.create`."""
        if not requests:
            return []
        there, gone = self._there({request.labels[CLUSTER] for request in requests})
        results: dict[str, Resource | Refusal] = {}
        missing = []
        for request in requests:
            if request.name not in there:
                missing.append(request)
                continue
            try:
                bulk.check_owner(request.name, there[request.name].labels, request.labels)
                results[request.name] = there[request.name]
            except ProviderError as error:
                results[request.name] = Refusal(request.name, error.message, error.hint, RefusalCause.INVALID)
        made = side_by_side(lambda group: self._run(group, gone), bulk.groups(missing, _MOST))
        ids = [each for part in made for each in part.values() if isinstance(each, str)]
        seen = self._seen(ids, {request.name for request in missing if request.is_public})
        labels = {request.name: request.labels for request in requests}
        for name, each in (pair for part in made for pair in part.items()):
            results[name] = (
                each if isinstance(each, Refusal) else seen.get(each, things.unseen(each, name, labels[name]))
            )
        return [results[request.name] for request in requests]

    def _run(self, group: Sequence[MachineRequest], gone: dict[str, int]) -> dict[str, str | Refusal]:
        """Make machines that are alike; returns name -> id, or why not."""
        left, made = list(group), dict[str, str | Refusal]()
        zone = group[0].zone or next(iter(self._subnets))
        try:
            image = self._image(group[0])
            while left:  # EC2 makes as many as it can, at least one; to ask for the rest tells why there are no more
                found = self._run_once(left, image, sum(gone.get(each.name, 0) for each in left))
                made |= found
                left = [each for each in left if each.name not in made]
        except ProviderError as error:
            cause = error.cause if isinstance(error, ApiError) else RefusalCause.OTHER
            made |= {each.name: Refusal(each.name, error.message, error.hint, cause, zone) for each in left}
        return made

    def _run_once(self, group: Sequence[MachineRequest], image: Answer, generation: int) -> dict[str, str]:
        """Return the instances (name -> id) of a RunInstances that is done once, be it now or by an earlier command.

        Parameters
        ----------
        generation
            How many of these names are gone, as far as EC2 lists them. It lists them for an hour, and knows the tokens
            of requests for longer: a token of what is gone is passed over.
        """
        wait_s, first = _LISTED_S, things.token(group, 0)
        generation = max(generation, self._used.get(first, 0))
        for number in range(generation, generation + _GENERATIONS):
            parameters = self._run_parameters(group, image, things.token(group, number))
            try:
                made = self._call("RunInstances", **parameters)["instancesSet"]
            except ApiError as error:
                if error.code not in {_TERMINATED, _MISMATCH}:
                    raise
                if error.code == _MISMATCH:  # asked for before, with other user-data: it is there, or gone for long
                    if there := until(lambda: self._those(group), wait_s):
                        return there
                    wait_s = 0
                self._used[first] = number + 1
                continue
            if made:
                return {group[int(each["amiLaunchIndex"])].name: each["instanceId"] for each in made}
            break
        raise ProviderError(f"EC2 says that it has made {group[0].name}, and not which it is", "give the command again")

    def _those(self, group: Sequence[MachineRequest]) -> dict[str, str] | None:
        """Return the ids of those that are there, of this incarnation; None: none is."""
        there, labels = self._there({group[0].labels[CLUSTER]})[0], group[0].labels
        mine = {name: each.id for name, each in there.items() if bulk.is_same_owner(each.labels, labels)}
        return {each.name: mine[each.name] for each in group if each.name in mine} or None

    def _run_parameters(self, group: Sequence[MachineRequest], image: Answer, token: str | None) -> dict[str, object]:
        request = group[0]
        interface: dict[str, object] = {
            "DeviceIndex": 0,
            "SubnetId": self._subnets[request.zone or next(iter(self._subnets))],
            "DeleteOnTermination": True,
        }
        if request.is_public:
            interface["AssociatePublicIpAddress"] = True
        if token is not None:  # else it is asked before there is a group
            interface["SecurityGroupId"] = [self._groups.id(request.labels)]
        size_gb = request.disk_gb or _DISK_GB
        disk = {"VolumeSize": size_gb, "VolumeType": request.disk_type or "gp3", "DeleteOnTermination": True}
        parameters: dict[str, object] = {
            "ImageId": image["imageId"],
            "InstanceType": size_of(request),
            "MinCount": 1,
            "MaxCount": len(group),
            "UserData": base64.b64encode(leased(request).encode()).decode(),
            "NetworkInterface": [interface],
            "BlockDeviceMapping": [{"DeviceName": image["rootDeviceName"], "Ebs": disk}],
            "MetadataOptions": {"HttpTokens": "required", "InstanceMetadataTags": "enabled"},
            "InstanceInitiatedShutdownBehavior": "stop" if _survives(request) else "terminate",
            "TagSpecification": self._tag_sets(things.machine_tags(group), "instance", "volume"),
            "ClientToken": token,
        }
        if request.spot:
            parameters["InstanceMarketOptions"] = {"MarketType": "spot"}  # one-time, and terminated where taken back
        if request.is_trusted and self.section.instance_profile:
            parameters["IamInstanceProfile"] = {"Name": self.section.instance_profile}
        return parameters

    def _there(self, clusters: Iterable[str]) -> tuple[dict[str, Resource], dict[str, int]]:
        """Return the machines of clusters by name, and how many of each name are gone but still listed."""
        there, gone = dict[str, Resource](), dict[str, int]()
        for instance in things.instances(self._pages, {}, sorted(clusters)):
            machine = things.machine(instance)
            if instance["instanceState"]["name"] in things.GONE:
                gone[machine.name] = gone.get(machine.name, 0) + 1
            else:
                there[machine.name] = machine
        return there, gone

    def _seen(self, ids: Sequence[str], public: set[str]) -> dict[str, Resource]:
        """Return machines that were just made, by id, once they are listed and the public ones have an address."""

        def look() -> dict[str, Resource] | None:
            found = {each.id: each for each in map(things.machine, things.by_id(self._pages, ids))}
            waiting = [each for each in found.values() if each.name in public and not each.ssh_address]
            return found if len(found) == len(ids) and not waiting else None

        if not ids:
            return {}
        return until(look, _SEEN_S) or {each.id: each for each in map(things.machine, things.by_id(self._pages, ids))}

    def list(self, labels: dict[str, str] | None = None) -> list[Resource]:
        """Return what carries labels: instances, disks, security groups, addresses, images and their snapshots."""
        return things.everything(self._pages, labels or {})

    def destroy(self, resources: Sequence[Resource]) -> None:
        """Delete resources, machines first; security groups as soon as no machine is in them any more."""
        machines = [each.id for each in resources if each.thing is Thing.MACHINE]
        for part in _parts(machines, _IDS):
            self._without_missing("TerminateInstances", part)
        others = [each for each in resources if each.thing is not Thing.MACHINE]
        side_by_side(self._delete, others)

    def _without_missing(self, action: str, ids: Sequence[str]) -> None:
        """Do something to instances; those that are gone are no error."""
        left = list(ids)
        while left:
            try:
                self._call(action, InstanceId=left)
                left = []
            except ApiError as error:
                named = [each for each in left if each in error.message]
                if not error.is_missing or not named:
                    raise
                left = [each for each in left if each not in named]

    def _delete(self, resource: Resource) -> None:
        if resource.thing is Thing.RULE:
            self._forget("DeleteSecurityGroup", GroupId=resource.id)
        elif resource.thing is Thing.ADDRESS:
            self._forget("ReleaseAddress", AllocationId=resource.id)
        elif resource.thing is Thing.IMAGE:
            found = self._pages("DescribeImages", "imagesSet", Filter=[{"Name": "image-id", "Value": [resource.id]}])
            self._forget("DeregisterImage", ImageId=resource.id)
            for disk in (disk for each in found for disk in each.get("blockDeviceMapping") or []):
                if snapshot := (disk.get("ebs") or {}).get("snapshotId"):
                    self._forget("DeleteSnapshot", SnapshotId=snapshot)
        elif resource.thing is Thing.DISK and resource.id.startswith("snap-"):
            self._forget("DeleteSnapshot", SnapshotId=resource.id)
        elif resource.thing is Thing.DISK:
            self._forget("DeleteVolume", VolumeId=resource.id)

    def _forget(self, action: str, **parameters: object) -> None:
        """Delete something; that it is gone is no error.

        What something uses yet is tried for a while, and then stays listed: a machine may be there that is not listed.
        """

        def gone() -> bool | None:
            try:
                self._call(action, **parameters)
            except ApiError as error:
                if error.code in {"DependencyViolation", "InvalidGroup.InUse", "InvalidSnapshot.InUse", "VolumeInUse"}:
                    return None
                if not error.is_missing:
                    raise
            return True

        until(gone, _FREE_S)

    def start(self, machines: Sequence[Resource]) -> None:
        """Start instances that are stopped, controllers first; returns when they run."""
        for part in controllers_first(machines):
            self._change("StartInstances", [each.id for each in part], "running")

    def stop(self, machines: Sequence[Resource]) -> None:
        """Shut instances down; returns when they have stopped."""
        self._change("StopInstances", [each.id for each in machines], "stopped")

    def _change(self, action: str, ids: Sequence[str], state: str) -> None:
        for part in _parts(ids, _IDS):
            self._without_missing(action, part)

        def done() -> bool | None:
            left = {each["instanceState"]["name"] for each in things.by_id(self._pages, ids)} - {state, *things.GONE}
            return None if left else True

        if ids and not until(done, _STATE_S):
            raise ProviderError(f"EC2 has not brought {', '.join(ids)} to `{state}` in {_STATE_S} s", "try again")

    def save_image(self, machine: Resource, name: str, labels: dict[str, str]) -> Resource:
        """Make an AMI of an instance's disk; the instance is stopped for it."""
        self.stop([machine])
        tags = self._tag_sets({**labels, "Name": name}, "image", "snapshot")
        try:
            answer = self._call("CreateImage", InstanceId=machine.id, Name=name, TagSpecification=tags)
            image = str(answer["imageId"])
        except ApiError as error:
            if error.code != "InvalidAMIName.Duplicate":
                raise
            found = [each for each in things.images(self._pages, labels) if each.name == name]
            if not found:
                raise
            bulk.check_owner(name, found[0].labels, labels)
            image = found[0].id

        def ready() -> bool | None:
            filters = [{"Name": "image-id", "Value": [image]}]
            found = self._pages("DescribeImages", "imagesSet", Filter=filters, Owner=["self"])
            states = {each["imageState"] for each in found}
            if "failed" in states:
                raise ProviderError(f"EC2 could not make the image {name} of {machine.name}", "give the command again")
            return states == {"available"} or None

        if not until(ready, _IMAGE_S):
            raise ProviderError(f"EC2 has not made the image {name} in {_IMAGE_S} s", "give the command again")
        return Resource(Thing.IMAGE, image, name, dict(labels))

    # -- what a request becomes

    def _image(self, request: MachineRequest) -> Answer:
        types = self._types([size_of(request)])
        architectures = types[size_of(request)]["processorInfo"]["supportedArchitectures"]
        image = find_image(self._pages, request.image, architectures)
        if image is None:
            raise ProviderError(
                f"{self._region} has no image `{request.image}` for {size_of(request)}",
                f"distributions are {', '.join(DISTRIBUTIONS)}; one of your own is named by its id, ami-…",
            )
        return image

    def _tag_sets(self, tags: dict[str, str], *kinds: str) -> Sequence[dict[str, object]]:
        listed = [{"Key": key, "Value": value} for key, value in {**self.section.tags, **tags}.items()]
        return [{"ResourceType": kind, "Tag": listed} for kind in kinds]


def _survives(request: MachineRequest) -> bool:
    return request.labels.get(ROLE) in _KEPT and request.lease_s is None


def _parts(ids: Sequence[str], most: int) -> list[list[str]]:
    return [list(ids[start : start + most]) for start in range(0, len(ids), most)]
