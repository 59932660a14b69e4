"""libcloud's table of prices, as far as it can be believed: what is 0 there is not known."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from libcloud import pricing

# AWS has lowered these prices since: https://aws.amazon.com/about-aws/whats-new/2025/06/ (P4, P5)
_STALE = re.compile(r"p[45][a-z]*\.")
_GB_OF_CPU = {
    ("n1", "standard"): 3.75,
    ("n1", "highmem"): 6.5,
    ("n1", "highcpu"): 0.9,
    ("e2", "standard"): 4.0,
    ("e2", "highmem"): 8.0,
    ("e2", "highcpu"): 1.0,
    ("n2", "standard"): 4.0,
    ("n2", "highmem"): 8.0,
    ("n2", "highcpu"): 1.0,
    ("n2d", "standard"): 4.0,
    ("n2d", "highmem"): 8.0,
    ("n2d", "highcpu"): 1.0,
    ("c2", "standard"): 4.0,
}
_PREDEFINED = re.compile(r"(?P<family>[a-z0-9]+)-(?P<shape>[a-z]+)-(?P<cpus>\d+)")
_CUSTOM = re.compile(r"((?P<family>[a-z0-9]+)-)?custom-(?P<cpus>\d+)-(?P<mb>\d+)")


def as_of() -> str:
    """Return of which day the table is, e.g. ``2025-03-02``."""
    return datetime.fromtimestamp(_table()["updated"], UTC).date().isoformat()


def listed(provider: str, region: str, size: str, *, spot: bool) -> float | None:
    """Return US dollars an hour of a size, without GPUs that are attached to it; None: not known.

    Parameters
    ----------
    provider
        ``gce`` or ``aws``.
    """
    if provider == "gce":
        return _google(region, size, "preemptible" if spot else "on_demand")
    if provider == "aws" and not spot and not _STALE.match(size):
        found = _table()["compute"].get("ec2_linux", {}).get(size)
        return _known(found.get(region) if isinstance(found, dict) else None)
    return None


def _google(region: str, size: str, model: str) -> float | None:
    if found := _CUSTOM.fullmatch(size):
        family, memory_gb = f"{found['family'] or 'n1'}_custom", int(found["mb"]) / 1024
    elif found := _PREDEFINED.fullmatch(size):
        family = found["family"]
        gb = _GB_OF_CPU.get((family, found["shape"]))
        if gb is None:
            return None
        memory_gb = gb * int(found["cpus"])
    else:
        return None
    parts = _table()["compute"].get("gce_instances", {}).get(family, {})
    cpu, ram = (_known(parts.get(word, {}).get(model, {}).get(region, {}).get("price")) for word in ("cpu", "ram"))
    return None if cpu is None or ram is None else cpu * int(found["cpus"]) + ram * memory_gb


def _known(price: object) -> float | None:
    return float(price) if isinstance(price, int | float) and price > 0 else None


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(pricing.get_pricing_file_path()).read_text())
    return found
