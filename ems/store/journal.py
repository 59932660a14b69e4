"""Which journal SQLite may keep where the store lies."""

from __future__ import annotations

from pathlib import Path

_MOUNTS = Path("/proc/self/mounts")
_NETWORKED = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "panfs", "ceph", "cifs", "smb3", "9p", "afs", "orangefs"}
    | {"fuse.sshfs", "fuse.glusterfs"}
)


def mode(folder: Path, mounts: Path = _MOUNTS) -> str:
    """Return WAL; DELETE on a network file system, since the memory that WAL shares is of one machine only.

    Two login nodes at once would damage a store in WAL mode (https://www.sqlite.org/wal.html, section 2).
    """
    return "DELETE" if _kind(folder.resolve(), mounts) in _NETWORKED else "WAL"


def _kind(folder: Path, mounts: Path) -> str:
    """Return the type of the file system that holds ``folder``; empty where nothing tells."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    kinds = {_unescaped(point): kind for _, point, kind, *_ in (line.split(" ") for line in lines)}
    return next((kinds[str(place)] for place in (folder, *folder.parents) if str(place) in kinds), "")


def _unescaped(point: str) -> str:
    return point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
