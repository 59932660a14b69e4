"""Who may use what: the cores and GPUs of this machine, or those of one SLURM job.

On a machine without SLURM each core and each GPU is a file below ``/tmp/ems-UID/slots``, which whoever uses it holds
locked by flock(2): two experiments at once never share a GPU, nor use more cores than there are. Runs inherit the
lock of their GPU, so it stays taken while they live, even if their worker is killed.
"""

from __future__ import annotations

import fcntl
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Optional, Sequence, Tuple

    from ems.node.records import Record


class Share:
    """What one run may use.

    ``gpus`` are values for CUDA_VISIBLE_DEVICES (None: leave it as it is), ``locks`` the names of the machine's locks,
    ``inherit`` the descriptors that the run is to hold.
    """

    def __init__(
        self, gpus: Optional[Sequence[str]] = None, locks: Sequence[str] = (), inherit: Sequence[int] = ()
    ) -> None:
        self.gpus = None if gpus is None else tuple(gpus)
        self.locks = tuple(locks)
        self.inherit = tuple(inherit)


class Allotment:
    """The GPUs of one SLURM job, dealt out to the runs that share it.

    With at least one GPU a run each gets its own ones; with fewer they share them evenly.
    """

    def __init__(self, gpus: Sequence[str], workers: int) -> None:
        n = len(gpus)
        deal = [gpus[i * n // workers : (i + 1) * n // workers] or [gpus[i % n]] for i in range(workers if n else 0)]
        self._free = [Share(part) for part in deal] if workers > 1 and n else [Share() for _ in range(workers)]

    def take(self) -> Optional[Share]:
        """Take what one run gets; None while others have it all."""
        return self._free.pop(0) if self._free else None

    def give_back(self, share: Share) -> None:
        """Let the next run have it."""
        self._free.append(share)


class Machine:
    """The cores and GPUs of this machine, shared with every other pool of this user.

    Parameters
    ----------
    gpus
        The GPUs that this pool may use; empty: none is asked for.
    gpus_per_run, cores_per_run
        What one run takes.
    workers
        Runs at a time; the user may ask for more than there are cores.
    folder
        Where the locks are; made if missing. None: no locks, this pool's own bound has to do.
    seats
        An experiment of which that many runs may be at work, in whichever pool.
    """

    def __init__(
        self,
        gpus: Sequence[str],
        gpus_per_run: int,
        cores_per_run: int,
        workers: int,
        folder: Optional[str],
        seats: Optional[Tuple[str, int]] = None,
    ) -> None:
        n_cores = os.cpu_count() or 1
        cores = range(max(n_cores, workers))
        # (kind, names, how many of them a run takes)
        self._needs = [("cpu", [str(n) for n in cores], min(max(cores_per_run, 1), n_cores))]
        if gpus:
            self._needs.append(("gpu", list(gpus), max(gpus_per_run, 1)))
        if seats is not None:
            self._needs.append((seats[0], [str(n) for n in range(seats[1])], 1))
        self._folder = folder
        self._open: Dict[str, int] = {}
        self._held: Dict[str, int] = {}

    def take(self) -> Optional[Share]:
        """Take what one run needs; None while others have it."""
        taken: List[Tuple[str, str]] = []  # (kind, name)
        for kind, names, n in self._needs:
            for name in names:
                if sum(k == kind for k, _ in taken) < n and self._lock("%s-%s" % (kind, name)):
                    taken.append((kind, name))
        locks = ["%s-%s" % pair for pair in taken]
        gpus = [name for kind, name in taken if kind == "gpu"]
        share = Share(gpus or None, locks, [self._held[k] for k in locks if k.startswith("gpu-") and self._folder])
        if len(taken) == sum(n for _, _, n in self._needs):
            return share
        self.give_back(share)
        return None

    def give_back(self, share: Share) -> None:
        """Unlock, even if a process that the run left behind still has the descriptors."""
        for lock in share.locks:
            handle = self._held.pop(lock)
            if handle >= 0:
                fcntl.flock(handle, fcntl.LOCK_UN)

    def _lock(self, name: str) -> bool:
        if name in self._held:
            return False
        handle = self._handle(name)
        try:
            if handle >= 0:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        self._held[name] = handle
        return True

    def _handle(self, name: str) -> int:
        if name not in self._open:
            path = None if self._folder is None else os.path.join(self._folder, name)
            self._open[name] = -1 if path is None else os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._open[name]


def gpus_per_run(resources: Record) -> int:
    """Count the GPUs that ``gpus`` or ``gres`` ask for, as ems.model.Resources does."""
    asked = [item.split(":") for item in (resources.get("gpus") or "").split(",") if item]
    gres = [item.split(":") for item in (resources.get("gres") or "").replace("gres:", "").split(",")]
    asked += [words for words in gres if words[0] == "gpu"]
    return sum(int(words[-1]) if words[-1].isdigit() else 1 for words in asked)


def lock_folder() -> Optional[str]:
    """Return the folder of this machine's locks, or None where it is not safely this user's own.

    EMS_SLOTS names another one, e.g. for tests that should not wait for each other.
    """
    path = os.environ.get("EMS_SLOTS") or "/tmp/ems-%d/slots" % os.getuid()  # noqa: S108 - ownership is checked
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        for folder in (os.path.dirname(path), path):
            found = os.lstat(folder)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                return None
    except OSError:
        return None
    return path
