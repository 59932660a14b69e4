"""The figure (l): a thousand machines, made and listed at stand-ins of clouds that answer over HTTP on this machine."""

from __future__ import annotations

import importlib.util
import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

from benchmarks.harness import Figure, timed

NODES = 1000
OPERATION_S = 2.0  # what the stand-in takes to make machines, however many


def thousand(_: object) -> Iterator[Figure]:
    """(l) Calls and time for 1,000 machines in bulk at a stand-in of Google Compute Engine."""
    from ems.cluster.definition import GceSection
    from ems.cluster.provider import base, connect
    from ems.cluster.provider.base import MachineRequest, Resource

    labels = {base.CLUSTER: "bench", base.INCARNATION: "0" * 32}
    wanted = [
        MachineRequest(
            f"bench-gpu-{n:04d}", "ubuntu:24.04", "#cloud-config\n" + "x" * 4000, labels, size="n1-standard-4"
        )
        for n in range(NODES)
    ]
    with served() as (url, credentials, ask):
        provider = connect(GceSection(endpoint=url, credentials=credentials, ssh_from=("192.0.2.7/32",)))
        found: list[object] = []
        began = _cpu_s()
        making = timed(lambda: found.extend(provider.create(wanted)))
        listing = timed(lambda: found.extend(provider.list(labels)))
        client_s, calls = _cpu_s() - began, ask("calls")
        if len([each for each in found if isinstance(each, Resource)]) != 2 * NODES:
            raise RuntimeError("not all machines were made and listed")
    shown = f"{calls} calls, {making + listing:.1f} s, {client_s:.1f} s of it the client's processor"
    is_met = calls < 60 and making + listing < 10
    yield Figure("l", f"{NODES:,} machines made and listed at a stand-in of GCE", shown, "60 calls, 10 s", is_met)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextmanager
def served() -> Iterator[tuple[str, str, Callable[[str], int]]]:
    """Have the stand-in in a process of its own; yields its address, a key file, and what asks it for its counts."""
    with tempfile.TemporaryDirectory(prefix="ems-bench-cloud-") as folder:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, folder), daemon=True)
        process.start()
        url, credentials = ours.recv()

        def ask(what: str) -> int:
            ours.send(what)
            return int(ours.recv())

        try:
            yield url, credentials, ask
        finally:
            ours.send("end")
            process.join(timeout=10)


def _serve(pipe: Connection, folder: str) -> None:
    with stand_in().serve() as cloud:
        cloud.operation_s = OPERATION_S
        pipe.send((cloud.url, str(cloud.credentials(Path(folder)))))
        while pipe.recv() == "calls":
            pipe.send(len(cloud.calls))


def stand_in() -> ModuleType:
    """Load the stand-in of the tests, which is no package."""
    path = Path(__file__).parents[1] / "tests" / "clouds" / "gce.py"
    spec = importlib.util.spec_from_file_location("gce_stand_in", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
