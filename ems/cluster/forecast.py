"""What a definition would make and cost, and whether the cloud would let it: nothing is made for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ems.cluster import delegation, floor, price
from ems.cluster.definition import Definition, node_name
from ems.cluster.provider import base, connect
from ems.cluster.provider.base import Finding, Inspector, MachineRequest
from ems.errors import ProviderError, UsageError

#: The subject of what the definition's own limits say.
LIMITS = "limits"


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
    most
        How many there may be, where they come and go with the queue; else as many as ``count``.
    """

    kind: str
    count: int
    sizes: tuple[str, ...]
    gpus: int
    gpu_type: str
    spot: bool
    price_per_hour: float | None
    most: int

    def cost(self, count: int) -> float | None:
        """Return US dollars an hour of so many of them; None: unknown."""
        return None if self.price_per_hour is None else self.price_per_hour * count


@dataclass(frozen=True, slots=True)
class Forecast:
    """A cluster that is not there.

    Attributes
    ----------
    price_per_hour
        US dollars of all machines; None where one of them is unknown.
    most_per_hour
        The same when all are there that may be; equal where none comes and goes.
    price_per_gpu_hour
        US dollars of that for each GPU; None where it is unknown, or there are none.
    prices
        Where the prices come from.
    """

    name: str
    provider: str
    image: str
    lines: tuple[Line, ...]
    price_per_hour: float | None
    most_per_hour: float | None
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
    if definition.is_elastic:
        floor.check_counts(definition, counts)
    lines = [_line(definition, "controller", 1)]
    lines += [_line(definition, kind, counts.get(kind, spec.count)) for kind, spec in definition.nodes.items()]
    least = price.total(each.cost(each.count) for each in lines)
    most = price.total(each.cost(each.most) for each in lines)
    gpus = sum(each.gpus * each.most for each in lines)
    return Forecast(
        definition.name,
        definition.provider.kind,
        definition.image,
        tuple(lines),
        least,
        most,
        None if most is None or not gpus else most / gpus,
        price.sources(definition),
    )


def inspect(definition: Definition, counts: Mapping[str, int]) -> list[Finding]:
    """Return what the cloud says to it: credentials, permissions, quota, image, sizes, zones. Nothing is made.

    What the definition's own limits say comes last.
    """
    return [*_of_cloud(definition, counts), *_of_limits(definition, counts)]


def _of_cloud(definition: Definition, counts: Mapping[str, int]) -> list[Finding]:
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
    return [Finding("machines", f"{', '.join(each.name for each in wanted)} can be had")]


def _of_limits(definition: Definition, counts: Mapping[str, int]) -> list[Finding]:
    """Compare the numbers of nodes with ``limits.max_nodes``; that more may be than may be at once is no error."""
    limit = definition.limits.max_nodes
    lines = [_line(definition, kind, counts.get(kind, spec.count)) for kind, spec in definition.nodes.items()]
    stay, most = sum(each.count for each in lines), sum(each.most for each in lines)
    if limit is None or most <= limit:
        return []
    if stay > limit:
        said = f"{stay} nodes are to stay, and `limits.max_nodes` is {limit}"
        return [Finding(LIMITS, said, is_good=False, hint="ask for fewer, or raise `limits.max_nodes`")]
    said = f"the kinds may have {most} nodes, and `limits.max_nodes` is {limit}: no more than {limit} are there at once"
    return [Finding(LIMITS, said)]


def requests(definition: Definition, counts: Mapping[str, int]) -> list[MachineRequest]:
    """Return the machines as a provider is asked for them, but with nothing in them.

    Of kinds that come and go there is one at least, so that their size and image are looked at.
    """
    found = [_request(definition, "controller", 1)]
    for kind, spec in definition.nodes.items():
        count = counts.get(kind, spec.count)
        found += [_request(definition, kind, number + 1) for number in range(max(count, 1 if spec.is_elastic else 0))]
    return found


def _line(definition: Definition, kind: str, count: int) -> Line:
    spec, machine = definition.kind(kind), price.machine_of(definition, kind)
    sizes = spec.size or ((machine.size,) if machine.size else ())
    gpu_type = spec.gpu_type or (machine.gpu_type if machine.gpus else "")
    most = max(count, floor.most(definition, kind)) if definition.is_elastic and kind in definition.nodes else count
    return Line(kind, count, sizes, spec.gpus, gpu_type, spec.spot, price.of_kind(definition, kind), most)


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
