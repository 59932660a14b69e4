"""What machines cost: the definition's own prices, then the shipped table, then libcloud's.

What none of them knows is unknown, never 0. Without disks, addresses, traffic and taxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ems.cluster.definition import Definition
from ems.cluster.provider import needed
from ems.cluster.provider.base import CLUSTER, KIND, MachineRequest, Resource
from ems.cluster.record import Files
from ems.model import Resources


@dataclass(frozen=True, slots=True)
class Machine:
    """What the price of a machine depends on.

    Attributes
    ----------
    size
        The provider's name for it; empty where it has none.
    gpus
        Those that are attached to it, which cost extra; 0 where the size has its own.
    """

    size: str
    spot: bool = False
    gpus: int = 0
    gpu_type: str = ""


def total(prices: Iterable[float | None]) -> float | None:
    """Return the sum; None as soon as one of them is unknown."""
    known: list[float] = []
    for each in prices:
        if each is None:
            return None
        known.append(each)
    return sum(known)


def of_kind(definition: Definition, kind: str) -> float | None:
    """Return US dollars an hour of one machine of a kind (``controller`` is one), by its first size; None: unknown."""
    return per_hour(definition, machine_of(definition, kind))


def of_machines(definition: Definition, machines: Sequence[Resource]) -> float | None:
    """Return US dollars an hour of machines that are there, by what they really are; None where one is unknown."""
    return total(per_hour(definition, _as_it_is(definition, each)) for each in machines)


def of_run(cluster: str, resources: Resources) -> float | None:
    """Return US dollars an hour of one run: its share of a node's GPUs or, where it has none, of its CPUs.

    Of a cluster that ems has made; where its partition has several kinds of nodes, on the dearest one. None: unknown.
    """
    kept = Files(cluster).load()
    if kept is None:
        return None
    definition = Definition.model_validate(kept.definition)
    partition = definition.partitions.get(resources.partition or definition.default_partition)
    kinds = partition.nodes if partition is not None else tuple(definition.nodes)[:1]
    prices = [_share(definition, kind, resources) for kind in kinds]
    known = [each for each in prices if each is not None]
    return max(known) * (resources.nodes or 1) if known and len(known) == len(prices) else None


def _share(definition: Definition, kind: str, resources: Resources) -> float | None:
    node, whole = definition.kind(kind), of_kind(definition, kind)
    if whole is None:
        return None
    gpus, cpus = resources.gpus_per_run, resources.cpus or 1
    return whole * (gpus / max(node.gpus, gpus) if gpus else cpus / max(node.cpus or 1, cpus))


def per_hour(definition: Definition, machine: Machine) -> float | None:
    """Return US dollars an hour of a machine; None: unknown.

    A size in the definition's ``prices`` is meant as it is used there: of spot machines where the kind is spot. A
    type of GPU may be named as well, for GPUs that are attached.
    """
    if definition.provider.kind == "container":
        return 0.0
    bare = definition.prices.get(machine.size)
    if bare is None:
        bare = _listed(definition, machine)
    if not machine.gpus:
        return bare
    each = definition.prices.get(machine.gpu_type)
    if each is None:
        each = _pair(_shipped(definition).get("gpus", {}).get(machine.gpu_type), spot=machine.spot)
    return total([bare, None if each is None else each * machine.gpus])


def sources(definition: Definition) -> str:
    """Return where prices come from, and of when they are."""
    if definition.provider.kind == "container":
        return ""
    with needed():
        from ems.cluster.provider import pricing  # noqa: PLC0415 - libcloud

    own = "the definition's own, " if definition.prices else ""
    return f"{own}ems's table of {_table()['as_of']}, libcloud's of {pricing.as_of()}"


def machine_of(definition: Definition, kind: str) -> Machine:
    """Return what a machine of a kind is asked for as: its first size, or the one that the provider chooses."""
    spec = definition.kind(kind)
    request = MachineRequest(
        kind,
        "",
        "",
        {},
        spec.cpus,
        spec.mem_gb,
        size=next(iter(spec.size), None),
        gpus=spec.gpus,
        gpu_type=spec.gpu_type,
    )
    if definition.provider.kind == "gce":
        from ems.cluster.provider import gcewords  # noqa: PLC0415

        is_attached = bool(gcewords.accelerator_of(request))
        return Machine(gcewords.size_of(request), spec.spot, spec.gpus if is_attached else 0, spec.gpu_type or "t4")
    if definition.provider.kind == "aws":
        from ems.cluster.provider import awssizes  # noqa: PLC0415

        return Machine(awssizes.size_of(request), spec.spot)
    return Machine(request.size or "", spec.spot)


def _as_it_is(definition: Definition, resource: Resource) -> Machine:
    """Return a machine that is there; where the provider does not say its size, its kind tells it."""
    kind = resource.labels.get(KIND, "")
    if resource.size:
        return Machine(resource.size, resource.spot, resource.gpus, resource.gpu_type)
    is_known = resource.labels.get(CLUSTER) == definition.name and (kind == "controller" or kind in definition.nodes)
    return replace(machine_of(definition, kind), spot=resource.spot) if is_known else Machine("")


def _listed(definition: Definition, machine: Machine) -> float | None:
    provider = definition.provider
    found = _pair(_shipped(definition).get("sizes", {}).get(machine.size), spot=machine.spot)
    region = getattr(provider, "region", None)
    if found is not None or not region:
        return found
    with needed():
        from ems.cluster.provider import pricing  # noqa: PLC0415 - libcloud

    return pricing.listed(provider.kind, region, machine.size, spot=machine.spot)


def _shipped(definition: Definition) -> Mapping[str, Any]:
    """Return the shipped prices of a definition's region; empty where there are none."""
    found: Mapping[str, Any] = _table().get(definition.provider.kind, {})
    return found if getattr(definition.provider, "region", None) in found.get("regions", ()) else {}


def _pair(prices: Sequence[float | None] | None, *, spot: bool) -> float | None:
    return prices[1 if spot else 0] if prices else None


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("prices.yaml").read_text())
    return found
