"""Baked images: a machine on which everything is installed already, one for each kind, keyed by what was put on it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ems.cluster import keys, placing, provision, userdata
from ems.cluster.fleet import Fleet
from ems.cluster.provider import base
from ems.cluster.provider.base import MachineRequest, Refusal, Resource, Thing
from ems.errors import ClusterError, ConnectionFailedError
from ems.ssh import Host

BAKE_ROLE = "bake"
#: After which a machine that becomes an image ends itself: whoever made it was killed.
LEASE_S = 2 * 3600
_REACH_S = 180


@dataclass(frozen=True, slots=True)
class Baked:
    """An image of a kind of node.

    Attributes
    ----------
    was_there
        Whether an earlier bake made it.
    """

    kind: str
    image: str
    key: str
    was_there: bool
    seconds: float


def kinds(fleet: Fleet) -> list[str]:
    """Return the kinds of machines that a cluster is made of; the controller is one."""
    return ["controller", *fleet.definition.nodes]


def available(fleet: Fleet) -> dict[str, str]:
    """Return the baked image of each kind that has one which is what would be installed now: kind -> the image's id."""
    wanted = {kind: provision.image_key(fleet.definition, kind) for kind in kinds(fleet)}
    found = {each.labels.get(base.IMAGE): each.id for each in _images(fleet)}
    return {kind: found[key] for kind, key in wanted.items() if key in found}


def lacking(fleet: Fleet) -> list[str]:
    """Return the kinds of nodes that have no such image: they install what they need when they boot."""
    return sorted(fleet.definition.nodes.keys() - available(fleet).keys())


def _images(fleet: Fleet) -> list[Resource]:
    return [each for each in fleet.provider.list() if each.thing is Thing.IMAGE and base.IMAGE in each.labels]


def bake(fleet: Fleet) -> list[Baked]:
    """Make an image for each kind of machine that has none; side by side.

    Raises
    ------
    ClusterError
        If one cannot be made; the others are kept.
    """
    there = available(fleet)
    wanted: dict[str, list[str]] = {}
    for kind in kinds(fleet):
        wanted.setdefault(provision.image_key(fleet.definition, kind), []).append(kind)
    todo = [(key, names[0]) for key, names in wanted.items() if names[0] not in there]
    done = [Baked(kind, image, provision.image_key(fleet.definition, kind), True, 0.0) for kind, image in there.items()]
    if not todo:
        return done
    requests = {kind: _request(fleet, kind) for _, kind in todo}
    fleet.provider.check(list(requests.values()))
    with fleet.journal.step("prepare", [fleet.name]):
        fleet.provider.prepare(fleet.record.labels())
    with ThreadPoolExecutor(max_workers=4) as pool:
        baked = list(pool.map(lambda each: _bake(fleet, each[1], each[0], requests[each[1]]), todo))
    return [*done, *baked]


def discard(fleet: Fleet, *, every: bool = False) -> int:
    """Delete this cluster's images that are out of date, or all of them; returns how many."""
    keep = set() if every else set(available(fleet).values())
    old = [each for each in _images(fleet) if each.labels.get(base.CLUSTER) == fleet.name and each.id not in keep]
    if old:
        with fleet.journal.step("discard", [each.name for each in old]):
            fleet.provider.destroy(old)
    return len(old)


def _request(fleet: Fleet, kind: str) -> MachineRequest:
    spec = fleet.definition.kind(kind)
    name = f"{fleet.name}-bake-{kind}"
    host_key = fleet.keys.host_key(name)
    labels = fleet.record.labels(
        **{base.ROLE: BAKE_ROLE, base.KIND: kind, base.NODE: name, base.HOST_KEY: host_key.label}
    )
    logins = [fleet.keys.public(), *keys.own_public_keys()]
    user_data = userdata.controller_user_data(fleet.definition, host_key, logins, name=name)
    image = spec.image or fleet.definition.image
    return MachineRequest(
        name,
        image,
        user_data,
        labels,
        spec.cpus,
        spec.mem_gb,
        spec.disk_gb,
        spec.size[0] if spec.size else None,
        is_public=True,
        disk_type=spec.disk_type,
        lease_s=LEASE_S,
    )


def _bake(fleet: Fleet, kind: str, key: str, request: MachineRequest) -> Baked:
    began = time.monotonic()
    fleet.report(f"image {kind}", "a machine is made")
    with fleet.journal.step(f"bake {kind}", [request.name]):
        [made] = placing.place(fleet, [request])
        if isinstance(made, Refusal):
            raise ClusterError(f"{request.name} cannot be made: {made.reason}", made.hint)
        try:
            host = _reach(fleet, made)
            provision.bake(fleet, kind, host)
            if not fleet.provider.traits.cleans_images:
                host.run(["sudo", "sh", "-c", base.CLEAN_SCRIPT])  # half clean, it would be an image of private keys
            host.close()
            fleet.report(f"image {kind}", "being saved")
            labels = fleet.record.labels(**{base.KIND: kind, base.IMAGE: key})
            image = fleet.provider.save_image(made, f"{fleet.name}-{kind}-{key[:12]}", labels)
        finally:
            fleet.provider.destroy([made])
            fleet.keys.forget_host(request.name)
    fleet.report(f"image {kind}", "there")
    return Baked(kind, image.id, key, False, time.monotonic() - began)


def _reach(fleet: Fleet, machine: Resource) -> Host:
    """Wait until a machine that is baked lets us in."""
    name = machine.name
    known_hosts = fleet.files.dir / "hostkeys" / f"{name}.known"
    known_hosts.write_text(f"{name} {keys.public_of(machine.labels[base.HOST_KEY])}\n")
    deadline = time.monotonic() + _REACH_S
    while True:
        there = (each for each in fleet.resources() if each.thing is Thing.MACHINE and each.name == name)
        here = next(there, machine)  # it may not be listed yet
        user = fleet.definition.login_user
        host = Host(f"{user}@{here.ssh_address}", here.ssh_port, fleet.keys.identity, known_hosts, name, persist_s=60)
        try:
            host.run(["true"], timeout_s=20)
        except ConnectionFailedError as error:
            if time.monotonic() > deadline:
                raise ClusterError(f"{name} cannot be logged into: {error.message}", error.hint) from error
            time.sleep(0.3)
        else:
            return host
