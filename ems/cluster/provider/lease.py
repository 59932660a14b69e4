"""A machine that ends itself after its lease, where the cloud does not do it."""

from __future__ import annotations

from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

from ems.cluster.provider.base import MachineRequest

# at each boot: the hour at which it ends is counted from the first
_SCRIPT = """#!/bin/sh
f=/var/lib/ems-lease
[ -s $f ] || echo $(($(date +%s) + {seconds})) >$f
left=$(($(cat $f) - $(date +%s)))
[ $left -gt 0 ] || left=0
exec shutdown -P +$((left / 60))
"""


def leased(request: MachineRequest) -> str:
    """Return a machine's user-data, and with it, where it has a lease, what shuts it down in time."""
    if request.lease_s is None:
        return request.user_data
    both = MIMEMultipart(boundary="ems")
    both.attach(MIMEText(request.user_data, "cloud-config", "us-ascii" if request.user_data.isascii() else "utf-8"))
    both.attach(MIMEText(_SCRIPT.format(seconds=request.lease_s), "x-shellscript-per-boot", "us-ascii"))
    return both.as_string()
