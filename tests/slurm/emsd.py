"""The service of an elastic cluster with the cloud of cloud.py: ``python emsd.py ROOT SOCKET RECONCILE_S [KILL...]``.

With KILL = n it kills itself (SIGKILL) before the nth thing that it does to the world: a line of its journal, a call of
the cloud's, a request that it forgets. One process after another does so where several are given; exit status 0: all
were killed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from ems.cluster.elastic.here import Paths, fleet_here
from ems.cluster.elastic.reconcile import Pace
from ems.cluster.elastic.service import Service


class _Killer:
    """Counts what is done to the world, by Python's audit hooks (PEP 578)."""

    def __init__(self, last: int) -> None:
        self.left = last

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        """Die in time."""
        if event == "socket.connect" or (event in {"open", "os.remove"} and self._counts(event, *args)):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def _counts(event: str, path: object, _mode: object = None, flags: object = 0) -> bool:
        if event == "os.remove":
            return "/var/spool/ems/" in str(path)
        return str(path).endswith("/journal.jsonl") and isinstance(flags, int) and bool(flags & os.O_RDWR)


def main() -> int:
    """Run until SIGTERM."""
    root, socket, every, *kills = sys.argv[1:]
    _die_with_parent()
    spec = importlib.util.spec_from_file_location("ems_slurm_cloud", Path(__file__).with_name("cloud.py"))
    assert spec is not None
    assert spec.loader is not None
    cloud = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cloud)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    provider = cloud.Provider(socket)
    if not kills:
        serve(Path(root), provider, float(every))
        return 0
    for kill in kills:
        child = os.fork()
        if child == 0:
            _die_with_parent()
            serve(Path(root), provider, float(every), kill=int(kill))
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
            return 1
    return 0


def serve(root: Path, provider: Any, every_s: float, *, kill: int = 0) -> None:
    """Be the service."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    fleet = fleet_here(Paths(root))
    fleet.provider = provider
    pace = Pace(young_s=3.0, again_s=2.0, boot_s=240.0, late_s=6.0)
    service = Service(fleet, reconcile_s=every_s, pace=pace)
    signal.signal(signal.SIGHUP, lambda *_: service.afresh())
    if kill:
        sys.addaudithook(_Killer(kill))
    service.run(stop)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    sys.exit(main())
