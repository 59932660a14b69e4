"""Runs once more: from the same snapshot, as the next attempt (rerun) or as a new experiment (reproduce)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ems.executor.base import Submission
from ems.model import Experiment, Resources
from ems.store import Store
from ems.target import Target


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of a reproduced run beside the original's; equal where ``largest`` is 0."""

    metric: str
    original: float | None
    reproduced: float | None
    n_points: int
    largest: float  # largest absolute difference over the steps; inf where one side lacks a step


def rerun(
    store: Store,
    target: Target,
    experiment: Experiment,
    which: str | Collection[int],
    *,
    resources: Resources | None = None,
    fresh: bool | None = None,
) -> Submission:
    """Queue runs again as their next attempts.

    Parameters
    ----------
    which
        ``"failed"`` (failed or cancelled), ``"missing"`` (never started and in no queue), ``"all"``, or indices.
    resources
        What to ask for instead; None fields keep the experiment's.
    fresh
        True: start from nothing; False: keep the checkpoint. Default: fresh only for runs that completed.

    Raises
    ------
    UsageError
        If a run is still pending or running, or nothing matches.
    """
    raise NotImplementedError


def reproduce(store: Store, target: Target, experiment: Experiment, index: int) -> tuple[Experiment, Submission]:
    """Submit one run as a new experiment with the same code, params and seed."""
    raise NotImplementedError


def compare(store: Store, original: tuple[str, int], reproduced: tuple[str, int]) -> list[Difference]:
    """Compare the metrics of two runs ``(experiment id, index)``, point by point."""
    raise NotImplementedError
