"""What commands need before they can start: the store, the settings, the target of an experiment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ems.errors import (
    ConnectionFailedError,
    EmsError,
    ExecutorError,
    NotFoundError,
    StoreError,
    TargetError,
    UsageError,
)
from ems.model import Address, State

if TYPE_CHECKING:
    from ems.config import Settings
    from ems.harvest import HarvestReport
    from ems.model import Experiment, JobInfo
    from ems.node.records import ExperimentFiles
    from ems.outputs import RunFiles
    from ems.remote.mirror import Pulled
    from ems.remote.pull import Scope
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

    def use(self, target: Target) -> Target:
        """Have a target that was resolved already be the one of its name, so that there is one connection to it."""
        return self._targets.setdefault(target.name, target)

    def adopt(self) -> None:
        """Take in experiments that are on disk but not in the store: their submission was killed in between."""
        for root in (self.settings.root or self.project / ".ems", *(self.project / ".ems" / "remote").glob("*")):
            try:
                names = {entry.name for entry in (root / "experiments").iterdir() if not entry.name.startswith(".")}
            except OSError:
                continue
            if not names.issubset(self.store.ids()):
                from ems import harvest

                harvest.adopt(self.store, root)

    def close(self) -> None:
        """Hang up wherever there is a connection."""
        for target in self._targets.values():
            target.close()

    def files(self, experiment: Experiment) -> ExperimentFiles:
        """Return the paths of an experiment on its target."""
        from ems.node.records import ExperimentFiles

        return ExperimentFiles(self.target(experiment.target).root, experiment.id)

    def run_files(self, experiment: Experiment, index: int) -> RunFiles:
        """Return the files of a run where they are; where that is out of reach, those that were pulled before.

        Raises
        ------
        ConnectionFailedError, TargetError
            If it is, and nothing of the run was pulled.
        """
        from ems.outputs import RunFolder

        try:
            target = self.target(experiment.target)
            files = target.run_files(experiment, index)
            if target.is_gone and files.exists():
                _say_kept(f"the cluster {target.name} is gone")
            files.exists()  # or it is out of reach
        except (ConnectionFailedError, TargetError) as error:
            here = RunFolder(Path(self._kept(experiment, error).run(index)))
            if not here.written():
                raise
            _say_kept(error.message)
            return here
        return files

    @contextmanager
    def fetched(self, experiment: Experiment, scope: Scope) -> Iterator[tuple[Path, bool]]:
        """Yield a root with files of all runs of an experiment, and whether they were fetched for this alone.

        Where their machine is out of reach, it is what was pulled before.

        Raises
        ------
        ConnectionFailedError, TargetError
            If it is, and nothing was pulled.
        """
        with ExitStack() as stack:
            try:
                target = self.target(experiment.target)
                root = stack.enter_context(target.fetched(experiment, range(experiment.n_runs), scope))
                is_fetched = target.remote is not None
                if target.is_gone:
                    _say_kept(f"the cluster {target.name} is gone")
            except (ConnectionFailedError, TargetError) as error:
                root, is_fetched = Path(self._kept(experiment, error).root), False
                _say_kept(error.message)
            yield root, is_fetched

    def _kept(self, experiment: Experiment, error: EmsError) -> ExperimentFiles:
        """Return the paths of what was pulled of an experiment; raise ``error`` where nothing was."""
        from ems.node.records import ExperimentFiles
        from ems.target import mirror_of

        files = ExperimentFiles(mirror_of(self.project, experiment.target), experiment.id)
        if not Path(files.dir).exists():
            raise error
        return files

    def out_of_reach(self, experiment: Experiment) -> str:
        """Say why nothing new can be learnt of an experiment; empty where it can, or its files were removed."""
        try:
            target = self.target(experiment.target)
        except TargetError as error:
            return error.message
        if target.is_gone:
            return f"the cluster {target.name} is gone"
        files = target.files(experiment.id)
        is_there = Path(files.spec).exists() or experiment.id in self.store.removed()
        return "" if is_there else f"its files are not in {files.dir}"

    def _how_to_reach(self, experiment: Experiment) -> str:
        """Return what mends that nothing new can be learnt of an experiment."""
        from ems.executor.gone import GoneExecutor

        try:
            executor = self.target(experiment.target).executor
        except TargetError as error:
            return error.hint
        if isinstance(executor, GoneExecutor):
            return executor.hint
        return "set its target (and `root`) in ems.yaml as they were when it was submitted"

    def check_kept(self, experiment: Experiment) -> None:
        """Refuse an experiment whose files were removed.

        Raises
        ------
        NotFoundError
            If `ems rm` has deleted them.
        """
        if experiment.id in self.store.removed():
            raise NotFoundError(
                f"the files of {experiment.name} {experiment.id} were removed",
                f"`ems reproduce {experiment.id}/0` starts a run of it anew, as a new experiment",
            )

    def state(self, experiment: Experiment, index: int) -> State:
        """Return the state of a run as of the last refresh."""
        return self.store.state(experiment.id, index)

    def counts(self, experiments: Iterable[Experiment]) -> Mapping[State, int]:
        """Count the runs of some experiments by state."""
        return sum(map(Counter, self.store.counts([each.id for each in experiments]).values()), Counter())

    def unfinished(self) -> list[Experiment]:
        """Return the experiments of which a run may still change, or that may get more."""
        from ems.store import studies

        counts, searched = self.store.counts(), studies.unfinished(self.store)
        going = {exp_id for exp_id, states in counts.items() if any(not state.is_finished for state in states)}
        return [each for each in self.store.experiments() if each.id in going | searched]

    def refresh(self, experiments: Sequence[Experiment]) -> None:
        """Hand over chunks that wait for room, then bring the states of runs up to date; no results are read.

        What can be reached is brought up to date before any of these is raised.

        Raises
        ------
        ExecutorError
            If the scheduler cannot be reached.
        ConnectionFailedError
            If the machine cannot be reached that has it.
        TargetError
            If there is no target of an experiment's, or its files are not there.
        """
        from ems import harvest

        if not experiments:
            return
        within, trouble = self._within_reach(experiments)
        reached = self._catch_up(within)
        trouble = next((each.trouble for each in reached if each.trouble), trouble)
        for root, ask in self._by_root(reached).items():
            try:
                harvest.refresh_states(self.store, root, ask, [each.id for each in within])
            except StoreError:
                raise
            except EmsError as error:
                trouble = error
        if trouble is not None:
            raise trouble

    def harvest(
        self,
        experiments: Sequence[Experiment] | None = None,
        metric_globs: Sequence[str] = (),
        progress: Callable[[int, int], None] | None = None,
        fetching: Callable[[int], None] | None = None,
    ) -> list[HarvestReport]:
        """Bring states and results of some experiments (None: of all, unknown ones included) into the store.

        A report for each root that experiments lie under. Of all, one whose target or files are gone is a problem in
        the last report. ``progress`` is called with the number of runs done and of all, ``fetching`` with the number of
        bytes that came from another machine.

        Raises
        ------
        TargetError
            If one of ``experiments`` has no target any more, or its files are not there.
        """
        from ems import harvest
        from ems.outputs import TOO_LARGE

        within, trouble = self._within_reach(self._to_harvest(metric_globs) if experiments is None else experiments)
        if experiments is not None and trouble is not None:
            raise trouble
        reached = self._catch_up(within, metric_globs, with_metrics=True, progress=fetching)
        roots = self._by_root(reached)
        if experiments is None:
            roots.setdefault(self.target("here").root, {})
        exp_ids = None if experiments is None else [each.id for each in experiments]
        brought = {each.target.root: each.pulled for each in reached if each.target.remote is not None}
        reports = [
            harvest.harvest(self.store, root, ask, exp_ids, metric_globs, progress, _complete(root, brought))
            for root, ask in roots.items()
        ]
        for each in reached:
            self._tell_harvested(each)
        away = {each.target.root: each.trouble for each in reached if each.is_away}
        reports = [
            replace(report, trouble=report.trouble or away.get(root))
            for report, root in zip(reports, roots, strict=True)
        ]
        left_out = [f"{path}: {TOO_LARGE}" for pulled in brought.values() if pulled for path in pulled.left_out]
        lost = [line for each in reached for line in _lost(each)]
        problems = (*left_out, *lost, *((trouble.message,) if trouble is not None else ()))
        return [*reports, harvest.HarvestReport((), 0.0, problems)] if problems else reports

    def _tell_harvested(self, reached: _Reached) -> None:
        """Tell another machine what was brought from it for good; if it went away meanwhile the next harvest does."""
        settled = "SELECT idx, attempt FROM runs WHERE experiment_id = ? AND settled AND attempt > 0"
        for exp_id in reached.runs if reached.pulled is not None else ():
            with suppress(EmsError):
                reached.target.note_harvested(exp_id, dict(self.store.query(settled, [exp_id])))

    def _to_harvest(self, metric_globs: Sequence[str]) -> list[Experiment]:
        """Return the experiments that may have something new; with further files to look for it is all of them."""
        unsettled = self.store.unsettled()
        return [each for each in self.store.experiments() if metric_globs or each.id in unsettled]

    def _within_reach(self, experiments: Sequence[Experiment]) -> tuple[list[Experiment], EmsError | None]:
        """Return the experiments of which something can be learnt, and what stands against the others."""
        why = {each.id: self.out_of_reach(each) for each in experiments}
        beyond = [f"{each.name} {each.id}: {why[each.id]}" for each in experiments if why[each.id]]
        hint = next((self._how_to_reach(each) for each in experiments if why[each.id]), "")
        trouble = TargetError("; ".join(beyond), hint) if beyond else None
        return [each for each in experiments if not why[each.id]], trouble

    def _catch_up(
        self,
        experiments: Iterable[Experiment],
        globs: Sequence[str] = (),
        with_metrics: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> list[_Reached]:
        """Hand over what could not be before, and bring what is new from other machines; one pull for each."""
        from ems.remote.pull import Scope

        by_target: dict[str, list[Experiment]] = {}
        for experiment in experiments:
            by_target.setdefault(experiment.target, []).append(experiment)
        found = []
        for name, group in by_target.items():
            reached = _Reached(self.target(name))
            found.append(reached)
            try:
                reached.trouble = self._feed(reached.target, group)
                runs = {each.id: self._to_pull(each, again=bool(globs)) for each in group}
                reached.runs = {exp_id: indices for exp_id, indices in runs.items() if indices}
                reached.pulled = reached.target.pull(
                    reached.runs, Scope(metrics=with_metrics, globs=tuple(globs)), progress
                )
            except (ConnectionFailedError, TargetError) as error:
                reached.trouble, reached.is_away = error, True
        return found

    def _feed(self, target: Target, experiments: Iterable[Experiment]) -> EmsError | None:
        """Hand over what could not be handed over before; return what the scheduler has against it."""
        trouble: EmsError | None = None
        for experiment in experiments:
            try:
                target.executor.submit(experiment, target.files(experiment.id))
                if experiment.study_id is not None:
                    _look_after(self.store, target, experiment)
            except ExecutorError as error:
                trouble = error
        return trouble

    def _to_pull(self, experiment: Experiment, again: bool) -> Collection[int]:
        """Return the runs of which something may be new where they are; with ``again`` all are looked at once more."""
        if experiment.id in self.store.removed():
            return ()
        return range(experiment.n_runs) if again else self.store.unsettled_runs(experiment.id)

    def _by_root(self, reached: Iterable[_Reached]) -> dict[Path, Mapping[str, Refresh]]:
        """Map each root to the ways of asking for the jobs below it, by the executor's name."""
        found: dict[Path, dict[str, Refresh]] = {}
        for each in reached:
            asking = each.target.asking(each.runs)
            ask = self._remembering(asking) if not each.is_away else _failing(each.trouble)
            found.setdefault(each.target.root, {})[each.target.executor.name] = ask
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


def _look_after(store: Store, target: Target, experiment: Experiment) -> None:
    from ems.cli import render
    from ems.study import begin

    if begin.look_after(target, experiment.id, store):
        render.note(f"the driver of {experiment.name} {experiment.id} had ended; it goes on now")


@dataclass(slots=True)
class _Reached:
    """What came of turning to a target."""

    target: Target
    runs: Mapping[str, Collection[int]] = field(default_factory=dict)
    pulled: Pulled | None = None
    trouble: EmsError | None = None
    is_away: bool = False  # the machine, not its scheduler


def _lost(reached: _Reached) -> Iterator[str]:
    """Name the experiments that a machine has had and has no more, as when a site clears its scratch folders."""
    from ems.executor import control

    for exp_id in reached.pulled.missing if reached.pulled is not None else ():
        if control.jobs(reached.target.files(exp_id)):
            yield f"{exp_id}: {reached.target} no longer has its files; what was harvested of it is kept"


def _say_kept(why: str) -> None:
    from ems.cli import render

    render.note(f"{why}; this is what was harvested before")


def _failing(trouble: EmsError | None) -> Refresh:
    """Return what says again that a machine is away, without waiting for it again."""

    def ask(_: Iterable[str]) -> dict[str, JobInfo]:
        raise trouble or ConnectionFailedError("the other machine cannot be reached")

    return ask


def _complete(root: Path, brought: Mapping[Path, Pulled | None]) -> Mapping[str, Mapping[int, bool]] | None:
    """Return of which runs every file is below a root: of all (None), but for what a mirror lacks."""
    if root not in brought:
        return None
    pulled = brought[root]
    return {} if pulled is None else pulled.complete


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
        try:
            session.adopt()
            yield session
        finally:
            session.close()
