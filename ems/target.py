"""Where an experiment runs: ``here``, or a cluster."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ems import dataset, harvested, registry
from ems.config import Settings
from ems.errors import ConfigError, TargetError
from ems.executor.base import Executor, writing_to
from ems.executor.gone import GoneExecutor
from ems.model import Experiment, JobInfo, Json, State
from ems.node.records import ExperimentFiles
from ems.outputs import RunFiles, RunFolder

if TYPE_CHECKING:
    from ems.remote.executor import RemoteExecutor
    from ems.remote.mirror import Pulled
    from ems.remote.pull import Scope

_CONFIGURATIONS = ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf", "/etc/slurm-llnl/slurm.conf")


@dataclass(frozen=True, slots=True)
class Target:
    """A name, the root of everything that runs leave there, and what runs them.

    Attributes
    ----------
    root
        Of a target on another machine its mirror on this one: what was submitted there, and what was pulled so far.
    remote
        The executor again where it is on another machine, else None.
    """

    name: str
    root: Path
    executor: Executor
    remote: RemoteExecutor | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def repository(self) -> Path:
        """The snapshots that were taken for it."""
        return self.root / "snapshots.git"

    @property
    def is_gone(self) -> bool:
        """Whether it was a cluster that is no more: then only the mirror is left of it."""
        return isinstance(self.executor, GoneExecutor)

    def files(self, experiment_id: str) -> ExperimentFiles:
        """Return the paths of an experiment."""
        return ExperimentFiles(self.root, experiment_id)

    def cancel(self, experiment_id: str, indices: Collection[int] | None = None) -> None:
        """End an experiment, or some of its runs; see :func:`ems.executor.control.cancel`."""
        from ems.executor import control  # noqa: PLC0415

        if self.remote is not None:
            self.remote.cancel_runs(self.files(experiment_id), indices)
        else:
            control.cancel(self.executor, self.files(experiment_id), indices)

    def hold(self, experiment_id: str, indices: Collection[int] | None = None, *, release: bool = False) -> None:
        """Let nothing more start, or again; see :func:`ems.executor.control.hold`."""
        from ems.executor import control  # noqa: PLC0415

        if self.remote is not None:
            self.remote.hold_runs(self.files(experiment_id), indices, release)
        else:
            control.hold(self.executor, self.files(experiment_id), indices, release)

    def note_harvested(self, experiment_id: str, runs: Mapping[int, int]) -> None:
        """Tell the other machine which runs were harvested, by their last attempts: it may delete itself some day.

        Raises
        ------
        ConnectionFailedError
            If it cannot be reached.
        """
        files = self.files(experiment_id)
        known = harvested.of(files)  # as the mirror says that the other side was told
        new = {index: attempt for index, attempt in runs.items() if attempt > known.get(index, 0)}
        if self.remote is not None and new:
            self.remote.agent.call("harvested", id=experiment_id, runs=sorted(new.items()))
            harvested.note(files, new)

    def remove(self, experiment_id: str) -> int:
        """Cancel an experiment and delete its files; return how many bytes that freed."""
        from ems import root  # noqa: PLC0415

        files = self.files(experiment_id)
        if self.is_gone:
            return root.delete(files)
        return root.remove(self.executor, files) if self.remote is None else self.remote.remove(files)

    def surroundings(self, command_line: Sequence[str], python: str) -> dict[str, Json]:
        """Record what is around the code of a run: Python and packages of the target, and who typed what where."""
        from ems import provenance  # noqa: PLC0415

        found = provenance.surroundings(command_line, python)
        return found if self.remote is None else found | self.remote.surroundings(python)

    def asking(self, runs: Mapping[str, Collection[int]]) -> Callable[[Iterable[str]], dict[str, JobInfo]]:
        """Return what asks the scheduler for jobs, as :meth:`Executor.refresh` does.

        On another machine a run may end between the pull of its record and the scheduler's answer, which knows no more
        of it: the records of ``runs`` are then brought once more, so that none is taken for lost.
        """
        if self.remote is None:
            return self.executor.refresh

        from ems.remote.pull import STATES  # noqa: PLC0415  # as in the other methods

        def ask(jobs: Iterable[str]) -> dict[str, JobInfo]:
            asked = set(jobs)
            found = self.executor.refresh(asked)
            going = {job for job, info in found.items() if info.state in (State.PENDING, State.RUNNING)}
            if found.keys() - going or asked - going - {job.partition("_")[0] for job in going}:
                self.pull(runs, STATES)
            return found

        return ask

    def pull(
        self, runs: Mapping[str, Collection[int]], scope: Scope, progress: Callable[[int], None] | None = None
    ) -> Pulled | None:
        """Bring what is new of some runs, by experiment, from the other machine; None where there is none.

        ``progress`` is called with the number of bytes that have come.

        Raises
        ------
        ConnectionFailedError
            If it cannot be reached, or the connection broke; what came before stays.
        """
        return self._pull_into(self.root, runs, scope, progress)

    @contextmanager
    def fetched(self, experiment: Experiment, indices: Collection[int], scope: Scope) -> Iterator[Path]:
        """Yield a root below which lie files of some runs: this target's own, or one whose files were fetched for this.

        Of the latter they may be moved away. Where fetching is broken off, what came is kept, and the next one goes on.

        Raises
        ------
        ConnectionFailedError
            If the other machine cannot be reached.
        """
        if self.remote is None:
            yield self.root
            return
        aside = self.root / "fetched" / experiment.id
        self._pull_into(aside, {experiment.id: indices}, scope)
        yield aside
        shutil.rmtree(aside, ignore_errors=True)

    def _pull_into(
        self,
        folder: Path,
        runs: Mapping[str, Collection[int]],
        scope: Scope,
        progress: Callable[[int], None] | None = None,
    ) -> Pulled | None:
        if self.remote is None:
            return None
        from ems.remote.files import pull_by  # noqa: PLC0415  # what is local imports nothing of this
        from ems.remote.mirror import Mirror  # noqa: PLC0415

        return Mirror(folder).pull(pull_by(self.remote.agent), runs, scope, progress)

    def run_files(self, experiment: Experiment, index: int) -> RunFiles:
        """Return the files of a run, wherever they lie."""
        if self.remote is None:
            return RunFolder(Path(self.files(experiment.id).run(index)))
        from ems.remote.files import RemoteRun  # noqa: PLC0415  # as above

        return RemoteRun(self.remote.agent, experiment.id, index, self.root / "fetched" / f"{experiment.id}-{index}")

    def datasets(self) -> dict[str, str]:
        """Return the data sets that runs find in ``$EMS_DATA``: name -> hash."""
        if self.remote is None:
            return dataset.names(self.root)
        from ems.remote import data  # noqa: PLC0415  # as above

        return data.names(self.remote.agent)

    def push_data(self, folder: Path, content: str, name: str, progress: Callable[[str], None]) -> bool:
        """Have runs find a folder, of which ``content`` is the hash, as ``$EMS_DATA/NAME``.

        Returns
        -------
        bool
            Whether it had to be copied.

        Raises
        ------
        ConnectionFailedError
            If the other machine cannot be reached, or the connection broke; the next push goes on from there.
        TargetError
            If the folder changed meanwhile, or the root cannot be written.
        """
        if self.remote is not None:
            from ems.remote import data  # noqa: PLC0415  # as above

            return data.push(self.remote.agent, folder, content, name, progress)
        with writing_to(self.root):
            is_new = not dataset.place(self.root, content).exists()
            if is_new:
                dataset.copy(folder, dataset.arrival(self.root, content))
            dataset.settle(self.root, content, name)
        return is_new

    def close(self) -> None:
        """Hang up, where there is a connection."""
        if self.remote is not None:
            self.remote.agent.close()


def resolve(name: str | None, settings: Settings, project: Path) -> Target:
    """Return the target that is meant.

    Parameters
    ----------
    name
        What ``--on`` says; None: what the configuration says, the current cluster included, else the cluster that this
        machine belongs to, else ``here``.
    settings
        The joined configuration; its ``root`` moves everything out of the project, but for what is on other machines.
    project
        The project's root, whose ``.ems`` is the default root.

    Raises
    ------
    TargetError
        If there is no target of that name.
    ConfigError
        If a settings file wants another root on a machine that was connected with one.
    """
    name = name or settings.on or ("slurm" if in_cluster() else "here")
    root = (settings.root or project / ".ems").absolute()
    known = registry.load(name)
    if known is not None:
        return _remote(known, settings, project)
    # submitit takes a while to import: only what runs something pays for it
    if name == "here":
        from ems.executor.here import HereExecutor  # noqa: PLC0415

        return Target(name, root, HereExecutor(root, settings.worker_python))
    if name == "slurm" or name in settings.targets:
        from ems.executor.slurm import SlurmExecutor  # noqa: PLC0415

        return Target(name, root, SlurmExecutor(root, settings.worker_python))
    if any(place.name == name for place in (project / ".ems" / "remote").glob("*")):
        return Target(name, (project / ".ems" / "remote" / name).absolute(), GoneExecutor(name))
    every = ", ".join(dict.fromkeys(["here", "slurm", *registry.names(), *settings.targets]))
    raise TargetError(
        f"there is no target `{name}`",
        f"targets are {every}; ems cluster start {name}, ems cluster connect {name} user@login, or add one under "
        "`targets:` in ems.yaml",
    )


def _remote(known: registry.RemoteTarget, settings: Settings, project: Path) -> Target:
    """Return the target on another machine, to which nothing has been said yet."""
    from ems.remote.client import Agent  # noqa: PLC0415
    from ems.remote.executor import RemoteExecutor  # noqa: PLC0415

    if f"targets.{known.name}" in settings.origins["root"]:
        raise ConfigError(
            f"{settings.origins['root']}: `root` cannot be set here; experiments on {known.name} lie in {known.root}",
            f"ems cluster connect {known.name} … --root FOLDER",
        )
    mirror = mirror_of(project, known.name)
    if settings.worker_python is not None:
        known = replace(known, worker_python=settings.worker_python)
    executor = RemoteExecutor(Agent(known), mirror)
    return Target(known.name, mirror, executor, executor)


def mirror_of(project: Path, name: str) -> Path:
    """Return the root on this machine of a project's experiments on a target elsewhere."""
    return (project / ".ems" / "remote" / name).absolute()


def in_cluster() -> bool:
    """Whether this machine belongs to a SLURM cluster: sbatch is there and knows where its controller is."""
    if shutil.which("sbatch") is None:
        return False
    said = any(os.environ.get(key) for key in ("SLURM_CONF", "SLURM_CONF_SERVER"))
    return said or any(Path(path).exists() for path in _CONFIGURATIONS)
