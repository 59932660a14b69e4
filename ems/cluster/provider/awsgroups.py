"""The security group of a cluster at EC2: SSH from where the definition says, everything from inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ems.cluster.provider import address, bulk
from ems.cluster.provider import awsthings as things
from ems.cluster.provider.base import CLUSTER
from ems.cluster.provider.ec2 import Answer, ApiError
from ems.cluster.provider.waiting import until
from ems.errors import ProviderError

_SEEN_S = 60  # until what was made is listed


def group_name(cluster: str) -> str:
    """Return the name of a cluster's security group."""
    return f"ems-{cluster}"


class Groups:
    """The security groups of clusters in one VPC.

    Parameters
    ----------
    call
        Asks EC2: action, parameters.
    ssh_from
        What the definition says.
    """

    def __init__(self, call: Callable[..., Answer], vpc: str, ssh_from: Sequence[str]) -> None:
        self._call = call
        self._vpc = vpc
        self._ssh_from = ssh_from

    def id(self, labels: Mapping[str, str]) -> str:
        """Return the id of a cluster's group.

        Raises
        ------
        ProviderError
            If there is none, or another's.
        """
        name = group_name(labels[CLUSTER])
        group = self._find(name)
        if group is None:
            raise ProviderError(f"the security group {name} is gone", f"ems cluster start {labels[CLUSTER]}")
        bulk.check_owner(name, things.tags(group), labels)
        return str(group["groupId"])

    def prepare(self, labels: Mapping[str, str], tag_sets: object) -> None:
        """Make a cluster's group and its rules, unless they are there."""
        name = group_name(labels[CLUSTER])
        group = self._find(name) or self._made(name, labels, tag_sets)
        bulk.check_owner(name, things.tags(group), labels)
        its_id, there = group["groupId"], group.get("ipPermissions") or []
        if not any(each["ipProtocol"] == "-1" for each in there):
            self._allow(its_id, {"IpProtocol": "-1", "Groups": [{"GroupId": its_id}]})
        wanted = set(address.sources(self._ssh_from))
        had = {part["cidrIp"] for each in there if each.get("toPort") == "22" for part in each.get("ipRanges") or []}
        if wanted - had:
            self._allow(its_id, _ssh(wanted - had))
        if had - wanted:  # the laptop was somewhere else before
            self._call("RevokeSecurityGroupIngress", GroupId=its_id, IpPermissions=[_ssh(had - wanted)])

    def _allow(self, group: str, rule: dict[str, object]) -> None:
        code, action = "InvalidPermission.Duplicate", "AuthorizeSecurityGroupIngress"
        self._unless(code, action, GroupId=group, IpPermissions=[rule])

    def _made(self, name: str, labels: Mapping[str, str], tag_sets: object) -> Answer:
        wish = {"GroupName": name, "GroupDescription": f"ems cluster {labels[CLUSTER]}", "VpcId": self._vpc}
        self._unless("InvalidGroup.Duplicate", "CreateSecurityGroup", **wish, TagSpecification=tag_sets)
        found = until(lambda: self._find(name), _SEEN_S)
        if found is None:
            raise ProviderError(f"the security group {name} was made and is not there", "give the command again")
        return found

    def _unless(self, code: str, action: str, **parameters: object) -> None:
        """Make something, unless EC2 says by this code that it is there."""
        try:
            self._call(action, **parameters)
        except ApiError as error:
            if error.code != code:
                raise

    def _find(self, name: str) -> Answer | None:
        filters = [{"Name": "group-name", "Value": [name]}, {"Name": "vpc-id", "Value": [self._vpc]}]
        found = self._call("DescribeSecurityGroups", Filter=filters).get("securityGroupInfo") or []
        return found[0] if found else None


def _ssh(ranges: Iterable[str]) -> dict[str, object]:
    return {
        "IpProtocol": "tcp",
        "FromPort": 22,
        "ToPort": 22,
        "IpRanges": [{"CidrIp": each} for each in sorted(ranges)],
    }
