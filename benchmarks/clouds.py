"""The figure (l): a thousand machines, made and listed at stand-ins of clouds that answer over HTTP on this machine."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.harness import Figure, timed

NODES = 1000
OPERATION_S = 2.0  # what the stand-in takes to make machines, however many


def thousand(_: object) -> Iterator[Figure]:
    """(l) Calls and time for 1,000 machines in bulk at stand-ins of Google Compute Engine, OpenStack and EC2."""
    yield _machines("gce", "GCE", "n1-standard-4", NODES)
    yield _machines("openstack", "OpenStack", "g1.large", NODES)
    yield _machines("aws", "EC2", "g4dn.xlarge", NODES)


def _machines(kind: str, name: str, size: str, count: int) -> Figure:
    from ems.cluster.provider import base
    from ems.cluster.provider.base import MachineRequest, Resource, Thing

    labels = {base.CLUSTER: "bench", base.INCARNATION: "0" * 32}
    nodes = [
        MachineRequest(f"bench-gpu-{n:03d}", "ubuntu:24.04", "#cloud-config\n" + "x" * 4000, labels, size=size)
        for n in range(1, count)
    ]
    gate = MachineRequest("bench-controller", "ubuntu:24.04", "#cloud-config\n", labels, size=size, is_public=True)
    with served(kind) as (said, ask):
        provider = _connected(kind, said)
        provider.prepare(labels)
        found: list[object] = []
        began, before, moto_s = _cpu_s(), ask("calls"), -ask("moto_s")
        making = timed(lambda: found.extend(provider.create([gate, *nodes])))
        listing = timed(lambda: found.extend(provider.list(labels)))
        client_s, calls, moto_s = _cpu_s() - began, ask("calls") - before, moto_s + ask("moto_s")
    made = [each for each in found if isinstance(each, Resource) and each.thing is Thing.MACHINE]
    if len(made) != 2 * count:
        raise RuntimeError("not all machines were made and listed")
    whole_s = making + listing - moto_s  # moto, which is EC2 here, takes most of the time, and does one thing at a time
    shown = f"{calls:g} calls, {whole_s:.1f} s, {client_s:.1f} s of it the client's processor"
    shown += f"; without moto's own {moto_s:.0f} s" if moto_s else ""
    is_met = calls < 60 and whole_s < 10
    return Figure("l", f"{count:,} machines made and listed at a stand-in of {name}", shown, "60 calls, 10 s", is_met)


def _connected(kind: str, said: dict[str, str]) -> Any:
    """Return a provider for a stand-in; credentials are where people have them."""
    from pydantic import TypeAdapter

    from ems.cluster.definition import ProviderSection
    from ems.cluster.provider import connect

    os.environ |= {"AWS_ACCESS_KEY_ID": "AKIATESTING", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    os.environ |= {"OS_AUTH_URL": said.get("auth_url", ""), "OS_USERNAME": "me", "OS_PASSWORD": "secret"}
    os.environ |= {"OS_PROJECT_NAME": "lab", "OS_USER_DOMAIN_NAME": "Default"}
    return connect(TypeAdapter(ProviderSection).validate_python({"kind": kind, "ssh_from": "192.0.2.7/32", **said}))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextmanager
def served(kind: str) -> Iterator[tuple[dict[str, str], Callable[[str], float]]]:
    """Have a stand-in in a process of its own; yields what its definition says, and what asks it for its counts."""
    with tempfile.TemporaryDirectory(prefix="ems-bench-cloud-") as folder:
        ours, theirs = multiprocessing.Pipe()
        work = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, kind, folder), daemon=True)
        work.start()
        said = ours.recv()

        def ask(what: str) -> float:
            ours.send(what)
            return float(ours.recv())

        try:
            yield said, ask
        finally:
            ours.send("end")
            work.join(timeout=10)


def _serve(pipe: Connection, kind: str, folder: str) -> None:
    with stand_in(kind).serve() as cloud:
        cloud.operation_s = OPERATION_S
        if kind == "gce":
            pipe.send({"endpoint": cloud.url, "credentials": str(cloud.credentials(Path(folder)))})
        else:
            pipe.send({"endpoint" if kind == "aws" else "auth_url": cloud.url})
        while (what := pipe.recv()) != "end":
            pipe.send(len(cloud.calls) if what == "calls" else getattr(cloud, what, 0.0))


def stand_in(kind: str) -> ModuleType:
    """Load a stand-in of the tests."""
    folder = str(Path(__file__).parents[1] / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(f"clouds.{kind}")
