"""What commands need before they can start: the store, the settings, the target of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ems.errors import ExecutorError, NotFoundError, UsageError
from ems.model import Address, State

if TYPE_CHECKING:
    from ems.config import Settings
    from ems.harvest import HarvestReport
    from ems.model import Experiment, JobInfo
    from ems.node.records import ExperimentFiles
    from ems.store import Store
    from ems.target import Target

    Refresh: TypeAlias = Callable[[Iterable[str]], dict[str, JobInfo]]


class Session:
    """One command's view of a project: opened lazily, closed once.

    Parameters
    ----------
    project
        The project's root; holds ``.ems`` and, if any, ``ems.yaml``.
    store
        Its store, open.
    """

    def __init__(self, project: Path, store: Store) -> None:
        self.project = project
        self.store = store
        self.jobs: dict[str, JobInfo] = {}  # what schedulers said at the last refresh
        self._targets: dict[str, Target] = {}

    @cached_property
    def settings(self) -> Settings:
        """The project's and the user's settings, no flag among them."""
        from ems import config

        return config.load(self.project)

    def target(self, name: str) -> Target:
        """Return the target of that name; each is resolved once."""
        from ems import config, target

        if name not in self._targets:
            self._targets[name] = target.resolve(name, config.load(self.project, on=name), self.project)
        return self._targets[name]

    def adopt(self) -> None:
        """Take in experiments that are on disk but not in the store: their submission was killed in between."""
        root = self.settings.root or self.project / ".ems"
        try:
            names = {entry.name for entry in (root / "experiments").iterdir() if not entry.name.startswith(".")}
        except OSError:
            return
        if not names.issubset(self.store.ids()):
            from ems import harvest

            harvest.adopt(self.store, root)

    def files(self, experiment: Experiment) -> ExperimentFiles:
        """Return the paths of an experiment on its target."""
        from ems.node.records import ExperimentFiles

        return ExperimentFiles(self.target(experiment.target).root, experiment.id)

    def state(self, experiment: Experiment, index: int) -> State:
        """Return the state of a run as of the last refresh."""
        return dict(self.store.states(experiment.id)).get(index, State.UNKNOWN)

    def unfinished(self) -> list[Experiment]:
        """Return the experiments of which a run may still change."""
        counts = self.store.counts()
        return [
            each for each in self.store.experiments() if any(not state.is_finished for state in counts.get(each.id, {}))
        ]

    def refresh(self, experiments: Sequence[Experiment]) -> None:
        """Hand over chunks that wait for room, then bring the states of runs up to date; no results are read.

        Raises
        ------
        ExecutorError
            If the scheduler cannot be reached.
        """
        from ems import harvest

        if not experiments:
            return
        trouble = self._feed(experiments)
        for root, ask in self._by_root(experiments).items():
            harvest.refresh_states(self.store, root, ask, [each.id for each in experiments])
        if trouble is not None:
            raise trouble

    def harvest(
        self,
        experiments: Sequence[Experiment] | None = None,
        metric_globs: Sequence[str] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> list[HarvestReport]:
        """Bring states and results of some experiments (None: of all, unknown ones included) into the store.

        A report for each root that experiments lie under.
        """
        from ems import harvest

        self._feed(self.unfinished() if experiments is None else experiments)
        known = self.store.experiments() if experiments is None else experiments
        roots: dict[Path, Mapping[str, Refresh]] = self._by_root(known)
        if experiments is None:
            roots.setdefault(self.target("here").root, {})
        exp_ids = None if experiments is None else [each.id for each in experiments]
        return [harvest.harvest(self.store, root, ask, exp_ids, metric_globs, progress) for root, ask in roots.items()]

    def _feed(self, experiments: Iterable[Experiment]) -> ExecutorError | None:
        """Hand over what could not be handed over before; return what stood against it."""
        trouble = None
        for experiment in experiments:
            try:
                self.target(experiment.target).executor.submit(experiment, self.files(experiment))
            except ExecutorError as error:
                trouble = error
        return trouble

    def _by_root(self, experiments: Iterable[Experiment]) -> dict[Path, Mapping[str, Refresh]]:
        """Map each root to the ways of asking for the jobs below it, by the executor's name."""
        found: dict[Path, dict[str, Refresh]] = {}
        for name in dict.fromkeys(each.target for each in experiments):
            target = self.target(name)
            found.setdefault(target.root, {})[target.executor.name] = self._remembering(target.executor.refresh)
        return dict(found)

    def _remembering(self, refresh: Refresh) -> Refresh:
        def ask(jobs: Iterable[str]) -> dict[str, JobInfo]:
            found = refresh(jobs)
            self.jobs.update(found)
            return found

        return ask

    def experiment(self, reference: str) -> Experiment:
        """Find an experiment by id prefix, name or ``last``.

        Raises
        ------
        NotFoundError
            If there is none, or more than one.
        """
        return self.store.resolve(reference)

    def address(self, text: str) -> tuple[Experiment, Address]:
        """Find ``EXP[/INDEX[/FILE]]``; the run is known to exist.

        Raises
        ------
        UsageError
            If it is no address.
        NotFoundError
            If there is no such experiment or run.
        """
        address = Address.parse(text)
        experiment = self.experiment(address.experiment)
        if address.index is not None and address.index >= experiment.n_runs:
            raise NotFoundError(
                f"{experiment.name} {experiment.id} has no run {address.index}",
                f"its runs are 0 to {experiment.n_runs - 1}: ems ls {experiment.id}",
            )
        return experiment, address

    def run(self, text: str) -> tuple[Experiment, int, str | None]:
        """Find ``EXP/INDEX[/FILE]``; an experiment of one run needs no index.

        Raises
        ------
        UsageError
            If the address names no run.
        """
        experiment, address = self.address(text)
        if address.index is None and experiment.n_runs != 1:
            raise UsageError(
                f"`{text}` names an experiment of {experiment.n_runs:,} runs, not a run",
                f"add the run's index: {text}/0 to {text}/{experiment.n_runs - 1}",
            )
        return experiment, address.index or 0, address.file


@contextmanager
def open_session(project: Path | None = None) -> Iterator[Session]:
    """Open a project's store, and close it whatever happens.

    Parameters
    ----------
    project
        The project's root, whose store is made if need be. Default: the store that is found from the working
        directory upwards; then nothing is made, so that looking somewhere leaves no trace there.

    Raises
    ------
    NotFoundError
        If no store is found.
    """
    from ems import store

    path = project / store.FOLDER / "ems.db" if project else store.find(Path.cwd())
    if project is None and not path.parent.is_dir():
        raise NotFoundError(
            f"there are no experiments in {Path.cwd()} or above",
            "start one with `ems parrun SCRIPT`, or go to its project",
        )
    with store.Store(path) as opened:
        session = Session(path.parent.parent, opened)
        session.adopt()
        yield session
