"""How many of the nodes that SLURM asks for the definition's limits let be made."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ems.cluster import ledger
from ems.cluster.elastic.here import FleetHere
from ems.errors import ClusterError

#: What the reason of a refusal says where it ends as soon as a node goes.
MAX_NODES = "`limits.max_nodes`"


def admit(fleet: FleetHere, there: Collection[str], wanted: Sequence[str]) -> tuple[list[str], str]:
    """Return the first of the nodes that ``limits.max_nodes`` and ``limits.max_cost`` leave room for.

    Parameters
    ----------
    there
        The compute nodes that are there.

    Returns
    -------
    list of str, str
        Them, and why the others may not be made; empty where all may.
    """
    limits = fleet.definition.limits
    allowed, why = list(wanted), ""
    if limits.max_nodes is not None and len(there) + len(allowed) > limits.max_nodes:
        allowed = allowed[: max(0, limits.max_nodes - len(there))]
        why = f"{fleet.name} may have no more than {limits.max_nodes} nodes by {MAX_NODES}"
    if limits.max_cost is None:
        return allowed, why
    low, high = 0, len(allowed)
    while low < high:
        middle = (low + high + 1) // 2
        said = _too_much(fleet, [*there, *allowed[:middle]])
        low, high, why = (low, middle - 1, said) if said else (middle, high, why)
    return allowed[:low], why


def _too_much(fleet: FleetHere, nodes: Sequence[str]) -> str:
    try:
        ledger.check_limit(fleet, nodes)
    except ClusterError as error:
        return error.message
    return ""
