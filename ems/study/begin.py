"""A study's beginning: its experiment written down whole, its first trials submitted, its driver set going."""

from __future__ import annotations

from ems.plan import Plan
from ems.store import Store
from ems.study.driver import WakeReport
from ems.study.spec import StudySpec
from ems.target import Target


def start(plan: Plan, spec: StudySpec, target: Target, store: Store) -> WakeReport:
    """Make a study real and do its first wake, so that what refuses it is seen at once.

    Parameters
    ----------
    plan
        Of a request with ``trial``; its experiment's id is the study's.

    Raises
    ------
    UsageError
        If the study cannot be meant (no budget ends it, one too small for one trial, an empty space); nothing is
        written then.
    EmsError
        If the target cannot be written or the scheduler refuses; the study stays, and ``ems tune resume`` carries on.
    """
    raise NotImplementedError


def check(spec: StudySpec) -> None:
    """Refuse a study that cannot be meant, without writing anything.

    Raises
    ------
    UsageError
        See :func:`start`.
    """
    raise NotImplementedError
