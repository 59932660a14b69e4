"""What the operations of the agent act on: a root, what runs its jobs, and the wire back."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from ems.errors import UsageError
from ems.executor.base import Executor
from ems.node.records import ExperimentFiles
from ems.remote import wire

_ID = re.compile(r"[0-9a-f]{8}")


class Site:
    """The far side of the wire, for as long as one agent lives.

    Parameters
    ----------
    root
        The root here.
    kind
        What runs its jobs: ``slurm`` or ``here``.
    worker_python
        What starts the worker on a node; None: the executor's own choice.
    sink
        Where answers go.
    """

    def __init__(self, root: Path, kind: str, worker_python: str | None, sink: BinaryIO) -> None:
        self.root = root
        self.kind = kind
        self.worker_python = worker_python
        self._sink = sink

    @cached_property
    def executor(self) -> Executor:
        """The executor; submitit takes a while to import, so that only who needs it waits for it."""
        if self.kind == "here":
            from ems.executor.here import HereExecutor  # noqa: PLC0415

            return HereExecutor(self.root, self.worker_python)
        from ems.executor.slurm import SlurmExecutor  # noqa: PLC0415

        return SlurmExecutor(self.root, self.worker_python)

    def files(self, experiment_id: str) -> ExperimentFiles:
        """Return the paths of an experiment here; what is no id could lead out of the root.

        Raises
        ------
        UsageError
            If it is none.
        """
        if not _ID.fullmatch(experiment_id):
            raise UsageError(f"`{experiment_id}` is not the id of an experiment")
        return ExperimentFiles(self.root, experiment_id)

    def send(self, part: wire.Frame, data: bytes = b"") -> None:
        """Send a part of an answer, before the operation returns the rest."""
        wire.send(self._sink, {"part": part}, data)


#: What the other side may ask for: ``(site, args, data) -> what "ok" says``. Each may be asked again after a connection
#: has broken, so each is idempotent.
Operation: TypeAlias = Callable[[Site, "dict[str, Any]", bytes], Any]
