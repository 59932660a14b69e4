"""The service of an elastic cluster with the cloud of cloud.py: ``python emsd.py ROOT SOCKET RECONCILE_S [KILL]``.

With KILL = n it kills itself (SIGKILL) before the nth thing that it does to the world: a line of its journal, a call of
the cloud's, a request that it forgets.
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


def main() -> None:
    """Run until SIGTERM."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: it does not outlive the test
    root, socket, every, *kill = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("ems_slurm_cloud", Path(__file__).with_name("cloud.py"))
    assert spec is not None
    assert spec.loader is not None
    cloud = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cloud)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    fleet = fleet_here(Paths(Path(root)))
    fleet.provider = cloud.Provider(socket)
    pace = Pace(young_s=3.0, again_s=2.0, boot_s=60.0, late_s=6.0)
    service = Service(fleet, reconcile_s=float(every), pace=pace)
    if kill:
        sys.addaudithook(_Killer(int(kill[0])))
    signal.signal(signal.SIGHUP, lambda *_: service.afresh())
    service.run(stop)


if __name__ == "__main__":
    main()
