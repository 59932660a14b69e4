"""By what rights a controller makes machines: its own ones, or those that whoever starts the cluster gives it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ems.cluster.definition import Definition
from ems.cluster.provider.base import Delegator, Finding, Provider, Thing
from ems.errors import ClusterError, ProviderError
from ems.node import records

if TYPE_CHECKING:
    from ems.cluster.fleet import Fleet

_KEPT = "delegated.json"  # in the cluster's folder, which is its user's alone


def refuse_helpless(definition: Definition) -> None:
    """Refuse a definition whose controller would not be let do what it is to do.

    Raises
    ------
    ClusterError
        If it names nobody that the controller works as.
    """
    provider = definition.provider
    lacks = {"gce": "service_account", "aws": "instance_profile"}.get(provider.kind, "")
    if not definition.has_service or not lacks or getattr(provider, lacks) is not None:
        return
    kind = next((name for name, each in definition.nodes.items() if each.is_elastic), None)
    if kind is not None:
        does, instead = f"`nodes.{kind}.max` has the controller make nodes", "`count` instead of `max`: nodes then stay"
    else:
        does, instead = "`idle` has the controller end machines", "no `idle`: the cluster then runs until you stop it"
    raise ClusterError(f"{does}, and `provider.{lacks}` does not say as whom", f"say `{lacks}`, or {instead}")


def check(definition: Definition, provider: Provider) -> str:
    """Return by what rights a controller will make or end machines; empty where it does not, or has its own.

    Raises
    ------
    ClusterError
        If the definition names nobody that it works as.
    ProviderError
        If whoever asks may not give it any.
    """
    refuse_helpless(definition)
    return provider.may_delegate() if definition.has_service and isinstance(provider, Delegator) else ""


def findings(definition: Definition, provider: Provider) -> Iterator[Finding]:
    """Yield what :func:`check` finds."""
    try:
        if said := check(definition, provider):
            yield Finding("controller", said)
    except (ClusterError, ProviderError) as error:
        yield Finding("controller", error.message, is_good=False, hint=error.hint)


def files(fleet: Fleet) -> dict[str, str]:
    """Return what a controller needs to make machines, for its root alone: path there -> content.

    It is made once, and anew where the cloud has it no more; empty where machines have rights of their own.

    Raises
    ------
    ProviderError
        If whoever asks may not give any.
    """
    provider = fleet.provider
    if not fleet.definition.has_service or not isinstance(provider, Delegator):
        return {}
    path = fleet.files.dir / _KEPT
    there = {each.id for each in fleet.resources() if each.thing is Thing.KEY}
    try:
        kept = json.loads(path.read_text())
        if kept["id"] in there:
            return {str(name): str(content) for name, content in kept["files"].items()}
    except (OSError, ValueError, KeyError):
        pass
    with fleet.journal.step("delegate", [fleet.record.controller]):
        given = provider.delegate(fleet.record.labels())
        its_id = next((each.id for each in fleet.resources() if each.thing is Thing.KEY), "")
        records.write_atomic(path, json.dumps({"id": its_id, "files": given}))
        path.chmod(0o600)
    return given
