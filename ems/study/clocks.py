"""Which clock a study has: that of what runs its trials."""

from __future__ import annotations

from pathlib import Path

from ems.study.clock import Clock, HereClock


def of(executor: str, root: Path, study_id: str, worker_python: str | None) -> Clock:
    """Return the clock of a study on this machine, whose runs go to the executor ``here`` or ``slurm``."""
    if executor == "here":
        return HereClock(root, study_id, worker_python)
    from ems.study.slurm_clock import SlurmClock  # noqa: PLC0415  # submitit takes a while to import

    return SlurmClock(root, study_id, worker_python)
