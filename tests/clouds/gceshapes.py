"""The field names and kinds of Google's Compute API (v1 discovery document), as far as a cluster is made of them.

A request with a field that is not here, or of another kind, is refused by the stand-in as Google refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

LABELS = {"*": str}
_INT = (int, str)  # int64 is text in JSON; Google takes both
_METADATA = {"items": [{"key": str, "value": str}]}
_INITIALIZE = {"sourceImage": str, "diskSizeGb": _INT, "diskType": str, "diskName": str, "labels": LABELS}
_DISK = {"boot": bool, "autoDelete": bool, "initializeParams": _INITIALIZE, "type": str, "mode": str}
_ACCESS = {"name": str, "type": str, "natIP": str, "networkTier": str}
_INTERFACE = {"network": str, "subnetwork": str, "accessConfigs": [_ACCESS], "stackType": str, "nicType": str}
_SCHEDULING = {
    "provisioningModel": ("STANDARD", "SPOT", "FLEX_START"),
    "instanceTerminationAction": ("DELETE", "STOP"),
    "onHostMaintenance": ("MIGRATE", "TERMINATE"),
    "automaticRestart": bool,
    "maxRunDuration": {"seconds": _INT, "nanos": int},
    "terminationTime": str,
    "preemptible": bool,
}
_PROPERTIES = {
    "description": str,
    "machineType": str,
    "labels": LABELS,
    "tags": {"items": [str], "fingerprint": str},
    "disks": [_DISK],
    "networkInterfaces": [_INTERFACE],
    "metadata": _METADATA,
    "scheduling": _SCHEDULING,
    "guestAccelerators": [{"acceleratorType": str, "acceleratorCount": int}],
    "serviceAccounts": [{"email": str, "scopes": [str]}],
    "canIpForward": bool,
    "minCpuPlatform": str,
}
_ALLOWED = {"IPProtocol": str, "ports": [str]}
BODIES: dict[str, Any] = {
    "bulkInsert": {
        "count": _INT,
        "minCount": _INT,
        "namePattern": str,
        "perInstanceProperties": {"*": {"name": str, "hostname": str}},
        "instanceProperties": _PROPERTIES,
        "locationPolicy": {"*": dict},
        "sourceInstanceTemplate": str,
    },
    "networks": {"name": str, "description": str, "autoCreateSubnetworks": bool, "mtu": int, "routingConfig": dict},
    "subnetworks": {
        "name": str,
        "description": str,
        "network": str,
        "ipCidrRange": str,
        "region": str,
        "privateIpGoogleAccess": bool,
    },
    "firewalls": {
        "name": str,
        "description": str,
        "network": str,
        "direction": ("INGRESS", "EGRESS"),
        "priority": int,
        "sourceRanges": [str],
        "sourceTags": [str],
        "targetTags": [str],
        "allowed": [_ALLOWED],
        "denied": [_ALLOWED],
    },
    "images": {"name": str, "description": str, "sourceDisk": str, "labels": LABELS, "family": str},
    "testIamPermissions": {"permissions": [str]},
    "start": {},
    "stop": {},
}
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9_-]{0,63}")


def wrong(kind: str, body: Mapping[str, Any]) -> str:
    """Return what Google would say of a request's body; empty where it is well formed."""
    found = _wrong(BODIES[kind], body, "resource")
    names = [body["name"]] if "name" in body else list(body.get("perInstanceProperties", {}))
    bad = next((name for name in names if not _NAME.fullmatch(name)), "")
    return found or (f"Invalid value for field 'resource.name': '{bad}'." if bad else "") or _rules(body)


def _wrong(shape: Any, value: Any, place: str) -> str:  # noqa: PLR0911 - one for each kind of shape
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"Invalid value for field '{place}': {value!r}."
        for key, inner in value.items():
            if key not in shape and "*" not in shape:
                return f"Invalid JSON payload received. Unknown name \"{key}\" at '{place}': Cannot find field."
            if said := _wrong(shape.get(key, shape.get("*")), inner, f"{place}.{key}"):
                return said
        if shape is LABELS and not all(_LABEL.fullmatch(each) for each in [*value, *value.values()]):
            return f"Invalid value for field '{place}': a label is not well formed."
        return ""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"Invalid value for field '{place}': {value!r}."
        return next((said for each in value if (said := _wrong(shape[0], each, f"{place}[]"))), "")
    if isinstance(shape, tuple) and isinstance(shape[0], str):
        return "" if value in shape else f"Invalid value for field '{place}': '{value}'."
    return "" if isinstance(value, shape) else f"Invalid value for field '{place}': {value!r}."


def _rules(body: Mapping[str, Any]) -> str:  # noqa: PLR0911 - one for each rule
    """Return what does not fit together in a request for machines."""
    properties = body.get("instanceProperties") or {}
    said = properties.get("scheduling") or {}
    is_spot = said.get("provisioningModel") == "SPOT"
    must_end = is_spot or properties.get("guestAccelerators") or properties.get("machineType", "").startswith("a2-")
    if must_end and said.get("onHostMaintenance") != "TERMINATE":
        return "Instances with guest accelerators, and Spot VMs, do not support live migration."
    if is_spot and said.get("automaticRestart"):
        return "Scheduling must have automaticRestart be false when using SPOT provisioning model."
    if "instanceTerminationAction" in said and not is_spot and "maxRunDuration" not in said:
        return "You cannot specify a termination action for a VM that has the standard provisioning model."
    lease_s = int((said.get("maxRunDuration") or {}).get("seconds", 30))
    if not 30 <= lease_s <= 120 * 86400:
        return "maxRunDuration must be between 30 seconds and 120 days."
    count = body.get("count")
    if count is not None and "perInstanceProperties" in body and int(count) != len(body["perInstanceProperties"]):
        return "Count must be equal to the number of per instance properties."
    if any(len(each["value"]) > 256 * 1024 for each in (properties.get("metadata") or {}).get("items", ())):
        return "Value for a metadata key exceeds the limit of 262144 bytes."
    return ""
