"""Where an experiment runs: ``here``, or a cluster."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ems.config import Settings
from ems.errors import TargetError
from ems.executor.base import Executor

_CONFIGURATIONS = ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf", "/etc/slurm-llnl/slurm.conf")


@dataclass(frozen=True, slots=True)
class Target:
    """A name, the root of everything that runs leave there, and what runs them."""

    name: str
    root: Path
    executor: Executor

    def __str__(self) -> str:
        return self.name


def resolve(name: str | None, settings: Settings, project: Path) -> Target:
    """Return the target that is meant.

    Parameters
    ----------
    name
        What ``--on`` says; None: the config's ``on``, else the cluster that this machine belongs to, else ``here``.
    settings
        The joined configuration; its ``root`` moves everything out of the project.
    project
        The project's root, whose ``.ems`` is the default root.

    Raises
    ------
    TargetError
        If there is no target of that name.
    """
    name = name or settings.on or ("slurm" if in_cluster() else "here")
    root = (settings.root or project / ".ems").absolute()
    # submitit takes a while to import: only what runs something pays for it
    if name == "here":
        from ems.executor.here import HereExecutor  # noqa: PLC0415

        return Target(name, root, HereExecutor(root, settings.worker_python))
    if name == "slurm" or name in settings.targets:
        from ems.executor.slurm import SlurmExecutor  # noqa: PLC0415

        return Target(name, root, SlurmExecutor(root, settings.worker_python))
    known = ", ".join(dict.fromkeys(["here", "slurm", *settings.targets]))
    raise TargetError(f"there is no target `{name}`", f"targets are {known}; add one under `targets:` in ems.yaml")


def in_cluster() -> bool:
    """Whether this machine belongs to a SLURM cluster: sbatch is there and knows where its controller is."""
    if shutil.which("sbatch") is None:
        return False
    said = any(os.environ.get(key) for key in ("SLURM_CONF", "SLURM_CONF_SERVER"))
    return said or any(Path(path).exists() for path in _CONFIGURATIONS)
