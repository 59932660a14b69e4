"""What a definition would make and cost, and whether the cloud would let it: nothing is made for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ems.cluster import delegation, price
from ems.cluster.definition import Definition, node_name
from ems.cluster.provider import base, connect
from ems.cluster.provider.base import Finding, Inspector, MachineRequest
from ems.errors import ProviderError, UsageError


@dataclass(frozen=True, slots=True)
class Line:
    """The machines of one kind.

    Attributes
    ----------
    sizes
        In order of preference; the price is of the first.
    gpus
        Of each machine.
    price_per_hour
        US dollars of each machine; None: unknown.
    """

    kind: str
    count: int
    sizes: tuple[str, ...]
    gpus: int
    gpu_type: str
    spot: bool
    price_per_hour: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """A cluster that is not there.

    Attributes
    ----------
    price_per_hour
        US dollars of all machines; None where one of them is unknown.
    price_per_gpu_hour
        The same for each GPU; None where it is unknown, or there are none.
    prices
        Where the prices come from.
    """

    name: str
    provider: str
    image: str
    lines: tuple[Line, ...]
    price_per_hour: float | None
    price_per_gpu_hour: float | None
    prices: str


def forecast(definition: Definition, counts: Mapping[str, int]) -> Forecast:
    """Return what would be made, and what it would cost; nobody is asked.

    Parameters
    ----------
    counts
        Kind -> number of nodes; kinds left out have what the definition says.

    Raises
    ------
    UsageError
        If there is no such kind.
    """
    if unknown := [kind for kind in counts if kind not in definition.nodes]:
        kinds = ", ".join(definition.nodes)
        raise UsageError(f"{definition.name} has no kind of node `{unknown[0]}`", f"its kinds are {kinds}")
    lines = [_line(definition, "controller", 1)]
    lines += [_line(definition, kind, counts.get(kind, spec.count)) for kind, spec in definition.nodes.items()]
    cost = price.total(None if each.price_per_hour is None else each.price_per_hour * each.count for each in lines)
    gpus = sum(each.gpus * each.count for each in lines)
    return Forecast(
        definition.name,
        definition.provider.kind,
        definition.image,
        tuple(lines),
        cost,
        None if cost is None or not gpus else cost / gpus,
        price.sources(definition),
    )


def inspect(definition: Definition, counts: Mapping[str, int]) -> list[Finding]:
    """Return what the cloud says to it: credentials, permissions, quota, image, sizes, zones. Nothing is made."""
    provider = connect(definition.provider)
    wanted = requests(definition, counts)
    if isinstance(provider, Inspector):
        found = provider.findings(wanted)
        is_let_in = all(each.is_good for each in found if each.subject == "credentials")
        return [*found, *(delegation.findings(definition, provider) if is_let_in else ())]
    try:
        provider.check(wanted)
    except ProviderError as error:
        return [Finding("machines", error.message, is_good=False, hint=error.hint)]
    return [Finding("machines", f"{len(wanted)} can be had")]


def requests(definition: Definition, counts: Mapping[str, int]) -> list[MachineRequest]:
    """Return the machines as a provider is asked for them, but with nothing in them."""
    found = [_request(definition, "controller", 1)]
    for kind, spec in definition.nodes.items():
        found += [_request(definition, kind, number + 1) for number in range(counts.get(kind, spec.count))]
    return found


def _line(definition: Definition, kind: str, count: int) -> Line:
    spec, machine = definition.kind(kind), price.machine_of(definition, kind)
    sizes = spec.size or ((machine.size,) if machine.size else ())
    gpu_type = spec.gpu_type or (machine.gpu_type if machine.gpus else "")
    return Line(kind, count, sizes, spec.gpus, gpu_type, spec.spot, price.of_kind(definition, kind))


def _request(definition: Definition, kind: str, number: int) -> MachineRequest:
    spec, name = definition.kind(kind), node_name(definition.name, kind, number)
    return MachineRequest(
        name,
        spec.image or definition.image,
        "",
        {base.CLUSTER: definition.name, base.KIND: kind, base.NODE: name},
        spec.cpus,
        spec.mem_gb,
        spec.disk_gb,
        next(iter(spec.size), None),
        spec.gpus,
        spec.gpu_type,
        is_public=kind == "controller",
        spot=spec.spot,
        disk_type=spec.disk_type,
        is_trusted=kind == "controller" and definition.trusts_controller,
    )
