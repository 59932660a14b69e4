"""The cluster as its own controller knows it: from the file on the share, and by the machine's own identity."""

from __future__ import annotations

import contextlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from ems.cluster.definition import node_name
from ems.cluster.fleet import Fleet, Report, quiet
from ems.cluster.keys import Keys
from ems.cluster.provider import connect
from ems.cluster.provider.base import Provider, Resource
from ems.cluster.record import Files, Phase, Record
from ems.errors import ClusterError

_FACTS = ("name", "incarnation", "owner", "created", "definition", "digest", "munge")
_KEY_TYPES = ("ssh-", "ecdsa-", "sk-")


class Paths:
    """Where the service finds and leaves things.

    Parameters
    ----------
    root
        ``/``, but for tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.definition = root / "opt/ems/etc/cluster.json"
        self.floor = root / "opt/ems/etc/floor"
        self.state = root / "opt/ems/state"
        self.spool = root / "var/spool/ems"
        self.homes = root / "home"

    def traces(self, node: str) -> list[Path]:
        """Return the files in which a node's earlier machine may have left a word."""
        return [self.state / folder / f"{node}.json" for folder in ("boot", "notices")]


class FleetHere(Fleet):
    """The fleet of the cluster whose controller this machine is.

    One listing is kept until :meth:`look` takes another one, so that a turn of the service costs one call.
    """

    def __init__(self, paths: Paths, record: Record, report: Report = quiet) -> None:
        super().__init__(Files(record.name), record, report)
        self.paths = paths
        self.ledger_path = paths.state / "ledger.jsonl"
        self.keys = _KeysHere(self.files.dir, paths.homes / self.definition.login_user)
        self._listed: list[Resource] | None = None

    @cached_property
    def provider(self) -> Provider:
        """What makes its machines; asked by this machine's own identity, never by a user's key."""
        return connect(self.definition.provider, lambda text: self.report("image", text), as_instance=True)

    def floor(self) -> list[str]:
        """Return the names of the nodes that stay whatever the queue says; where nothing says so, the least of each."""
        try:
            return [name for name in self.paths.floor.read_text().split() if self.kind(name)]
        except OSError:
            kinds = self.definition.nodes.items()
            return [node_name(self.name, kind, number + 1) for kind, each in kinds for number in range(each.count)]

    def look(self) -> None:
        """Forget the listing: the next question asks the provider."""
        self._listed = None

    def resources(self) -> list[Resource]:
        """Return everything the provider had of this cluster at the last look, images apart."""
        if self._listed is None:
            self._listed = super().resources()
        return list(self._listed)

    @cached_property
    def _address(self) -> str:
        return super().address()

    def address(self) -> str:
        """Return this machine's private address where its name does not lead to it; it stays as long as it runs."""
        return self._address


class _KeysHere(Keys):
    """The keys of the cluster on its controller: who may log in to nodes is who may log in here."""

    def __init__(self, folder: Path, home: Path) -> None:
        super().__init__(folder)
        self._home = home

    def public(self) -> str:
        """Return the public key by which the cluster's owner logs in."""
        with contextlib.suppress(OSError):
            for line in (self._home / ".ssh" / "authorized_keys").read_text().splitlines():
                if line.startswith(_KEY_TYPES):
                    return line
        return super().public()


def fleet_here(paths: Paths | None = None, report: Report = quiet) -> FleetHere:
    """Return the cluster whose controller this machine is.

    Raises
    ------
    ClusterError
        If the file that says so is not there, or is damaged.
    """
    paths = paths or Paths()
    try:
        content: dict[str, Any] = json.loads(paths.definition.read_text())
        facts = {key: content[key] for key in _FACTS}
        record = Record(**facts, phase=Phase.READY)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ClusterError(
            f"{paths.definition} cannot be read: {error}", "`ems cluster setup NAME`, given on a laptop, writes it anew"
        ) from error
    return FleetHere(paths, record, report)
