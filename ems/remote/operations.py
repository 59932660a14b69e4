"""What the far side does for experiments: look, take in, submit, ask, cancel, hold, remove."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ems.remote.site import Operation, Site


def refresh(site: Site, args: Mapping[str, Any], _: bytes) -> dict[str, Any]:
    """Return what the scheduler says of jobs: job -> fields of ``JobInfo``."""
    return {job: asdict(info) for job, info in site.executor.refresh(args["jobs"]).items()}


TABLE: dict[str, Operation] = {
    "refresh": refresh,
}
