"""What the machines of a cluster wrote of themselves."""

from __future__ import annotations

from ems.cluster.fleet import Fleet

_UNITS = {
    "controller": ("slurmctld", "emsd", "slurmdbd", "mariadb", "munge"),
    "compute": ("slurmd", "ems-node-boot", "ems-watch", "munge"),
}
_FILES = {
    "controller": ("/var/log/slurm/slurmctld.log", "/var/log/slurm/slurmdbd.log"),
    "compute": ("/var/log/slurm/slurmd.log", "/var/log/ems-setup.log"),
}
_CLOUD_INIT = "/var/log/cloud-init-output.log"
_TAIL = r"""
lines=$1; shift
for thing in "$@"; do
    case $thing in
        /*) [ -s "$thing" ] && { printf '\037%s\n' "$thing"; sudo tail -n "$lines" -- "$thing"; } ;;
        *) said=$(sudo journalctl --no-pager -q -n "$lines" -u "$thing" 2>/dev/null)
           [ -n "$said" ] && printf '\037%s\n%s\n' "$thing" "$said" ;;
    esac
done
exit 0
"""


def tails(fleet: Fleet, node: str | None, lines: int) -> list[tuple[str, str]]:
    """Return the ends of a machine's logs: (unit or file, text).

    Parameters
    ----------
    node
        None: the controller.
    lines
        Of each.
    """
    name = node or fleet.record.controller
    role = "controller" if name == fleet.record.controller else "compute"
    things = [*_UNITS[role], *_FILES[role], _CLOUD_INIT]
    host = fleet.node_host(name)
    said = host.run(["sh", "-s", "--", str(lines), *things], data=_TAIL.encode(), timeout_s=60).stdout
    parts = said.decode(errors="replace").split("\x1f")[1:]
    return [(title, text) for title, _, text in (part.partition("\n") for part in parts)]
