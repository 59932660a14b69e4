"""The service on a controller: nodes come and go, or the cluster rests: ``python -m ems.cluster.elastic [ROOT]``.

SIGTERM ends it after the turn that it is in; SIGHUP opens kinds that are shut, and has it look at once. ROOT is ``/``,
but for tests.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path

from ems.cluster.elastic import idle
from ems.cluster.elastic.here import Paths, fleet_here
from ems.cluster.elastic.service import Service
from ems.errors import EmsError


def main(arguments: list[str]) -> int:
    """Run until told to stop; what is done goes to the journal of systemd by standard error."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    try:
        fleet = fleet_here(Paths(Path(*arguments[:1] or ["/"])))
        if not fleet.definition.is_elastic:
            idle.keep(fleet, stop)
            return 0
        service = Service(fleet)
    except EmsError as error:
        sys.stderr.write(f"error: {error.message}\n\nhint: {error.hint}\n")
        return 1
    signal.signal(signal.SIGHUP, lambda *_: service.afresh())
    service.run(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
