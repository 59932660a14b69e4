"""The service of an elastic cluster with the cloud of cloud.py: ``python emsd.py ROOT SOCKET RECONCILE_S``."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import signal
import sys
import threading
from pathlib import Path

from ems.cluster.elastic.here import Paths, fleet_here
from ems.cluster.elastic.reconcile import Pace
from ems.cluster.elastic.service import Service


def main() -> None:
    """Run until SIGTERM."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: it does not outlive the test
    root, socket, every = sys.argv[1:]
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
    signal.signal(signal.SIGHUP, lambda *_: service.afresh())
    service.run(stop)


if __name__ == "__main__":
    main()
