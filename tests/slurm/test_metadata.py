"""Who on the controller of a cluster in a cloud can have the rights that the cloud gives it: root alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_ROLE = Path(__file__).parents[2] / "templates/roles/elastic"
_RULES = _ROLE / "files/ems-metadata.nft"

# In a network of its own: what answers at the cloud's addresses, and who gets through to it
_LOOK = """
import contextlib, os, socket, subprocess, sys
subprocess.run("ip link set lo up && ip addr add 169.254.169.254/32 dev lo && ip addr add 169.254.169.123/32 dev lo"
               " && ip -6 addr add fd00:ec2::254/128 dev lo nodad", shell=True, check=True)
PLACES = [("169.254.169.254", 80), ("169.254.169.254", 443), ("169.254.169.254", 53), ("169.254.169.123", 80),
          ("fd00:ec2::254", 80)]
servers = [socket.create_server(each, family=socket.AF_INET6 if ":" in each[0] else socket.AF_INET) for each in PLACES]

"".encode("idna")  # loaded while it may be read

def reached(uid):
    with contextlib.ExitStack() as stack:
        os.seteuid(uid)
        stack.callback(os.seteuid, 0)
        found = []
        for place in PLACES:
            with contextlib.suppress(ConnectionRefusedError, ConnectionResetError):
                socket.create_connection(place, timeout=60).close()
                found.append(place)
        return found

assert reached(1234) == PLACES, "nobody is kept out without the rules"
for _ in range(2):  # as at each set-up
    subprocess.run(["nft", "-f", sys.argv[1]], check=True)
assert reached(0) == PLACES
assert reached(1234) == PLACES[2:4], reached(1234)
listed = subprocess.run(["nft", "list", "table", "inet", "ems_metadata"], capture_output=True, text=True, check=True)
assert listed.stdout.count("reject") == 2, listed.stdout
"""


def test_only_root_reaches_the_metadata_server() -> None:
    lacking = [each for each in ("nft", "ip", "unshare") if shutil.which(each) is None]
    if os.geteuid() or lacking:
        why = f"there is no {', '.join(lacking)}" if lacking else "only root makes networks"
        (pytest.fail if "slurm" in os.environ.get("EMS_REQUIRE", "") else pytest.skip)(why)
    subprocess.run(["unshare", "--net", sys.executable, "-c", _LOOK, str(_RULES)], check=True, timeout=300)
