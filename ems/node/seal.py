"""Make paths unwritable for this process and its children, even for root: a private mount namespace.

The modes of the checkout stop everyone but root; root is common in containers. Needs Linux and CAP_SYS_ADMIN; without
them the modes have to do.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable

# <sched.h> and <sys/mount.h>
_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = 1, 32, 4096, 16384, 1 << 19


def seal(paths: Iterable[str]) -> bool:
    """Remount ``paths`` read-only for this process and what it starts from now on; others see no change.

    Returns
    -------
    bool
        Whether all of them are sealed. False without privileges, or where the kernel does not let it.
    """
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return False
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: bytes, target: bytes, flags: int) -> bool:
        return bool(libc.mount(source, target, None, ctypes.c_ulong(flags), None) == 0)

    # a slave of the host's mounts: what is mounted there later appears here, nothing done here appears there
    if libc.unshare(_CLONE_NEWNS) != 0 or not mount(b"none", b"/", _MS_REC | _MS_SLAVE):
        return False
    sealed = True
    for path in map(os.fsencode, paths):
        bound = mount(path, path, _MS_BIND | _MS_REC)
        sealed = bound and mount(b"none", path, _MS_REMOUNT | _MS_BIND | _MS_RDONLY) and sealed
    return sealed
