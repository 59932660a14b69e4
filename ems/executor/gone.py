"""The executor of a cluster that is no more, or that was forgotten: it runs nothing, and says so.

What was submitted there and what came back of it is still in its mirror, to be read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from ems.errors import TargetError
from ems.executor.base import Check, Limits, Submission
from ems.model import Experiment, JobInfo, Resources
from ems.node import feed
from ems.node.records import ExperimentFiles, Record


class GoneExecutor:
    """Stands where a cluster stood.

    Parameters
    ----------
    target
        The name of the cluster.
    """

    name = "gone"

    def __init__(self, target: str) -> None:
        self.target = target

    def refuse(self) -> NoReturn:
        """Say that there is no such cluster.

        Raises
        ------
        TargetError
            Always.
        """
        raise TargetError(f"the cluster {self.target} is gone", self.hint)

    @property
    def hint(self) -> str:
        """What can still be done."""
        return (
            f"what was harvested is kept: ems report; `ems cluster start {self.target}` makes the cluster anew, empty; "
            f"one that was only forgotten: `ems cluster connect {self.target} user@login`"
        )

    def check(self, resources: Resources) -> None:  # noqa: ARG002  # the Protocol's
        """See :meth:`Executor.check`."""
        self.refuse()

    def limits(self) -> Limits:
        """See :meth:`Executor.limits`."""
        self.refuse()

    def script(self, experiment: Experiment, chunk: Record) -> str:  # noqa: ARG002  # the Protocol's
        """See :meth:`Executor.script`."""
        self.refuse()

    def submit(self, experiment: Experiment, files: ExperimentFiles) -> Submission:  # noqa: ARG002  # the Protocol's
        """See :meth:`Executor.submit`."""
        return self.refuse() if feed.waiting(files) else Submission([])

    def refresh(self, jobs: Iterable[str]) -> dict[str, JobInfo]:
        """See :meth:`Executor.refresh`."""
        return self.refuse() if set(jobs) else {}

    def cancel(self, jobs: Iterable[str]) -> None:  # noqa: ARG002  # the Protocol's
        """See :meth:`Executor.cancel`."""
        self.refuse()

    def hold(self, jobs: Iterable[str], release: bool = False) -> None:  # noqa: ARG002  # the Protocol's
        """See :meth:`Executor.hold`."""
        self.refuse()

    def doctor(self) -> list[Check]:
        """See :meth:`Executor.doctor`."""
        self.refuse()
