"""From what was typed to an experiment that is worked out: its points counted, its code frozen, nothing submitted."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ems import counting, environment, provenance, root, snapshot, space, submission, unroll
from ems.errors import ScriptError, UsageError
from ems.executor.base import Limits, Submission
from ems.model import Axis, Experiment, LoopRef, Params, PassAs, Point, Resources, Run
from ems.node import argv, records
from ems.space import sweep
from ems.store import Store
from ems.target import Target
from ems.unroll import loops

if TYPE_CHECKING:
    from ems.registry import RemoteTarget
    from ems.remote.executor import RemoteExecutor

_LONGEST_NAME = 100  # it stands in tables, and in names of folders


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that ``ems parrun`` or ``ems run`` was asked, after flags, config files and defaults were joined.

    Exactly one of four sources gives the points: ``trial``, an example of the params of a study, whose runs are chosen
    later; ``single``; ``sets``/``sweep_file``, which may also name the script; else the script's own loops.
    """

    script: Path | None
    target: Target
    args: tuple[str, ...] = ()
    cwd: Path = field(default_factory=Path.cwd)
    single: bool = False
    trial: Params | None = None
    sets: tuple[str, ...] = ()
    zips: tuple[str, ...] = ()
    samples: int | None = None
    sample_seed: int = 0
    sweep_file: Path | None = None
    count_by_running: bool = False
    pass_as: PassAs | None = None  # None: flags, or none where the script's loops are swept
    name: str | None = None
    message: str | None = None
    tags: tuple[str, ...] = ()
    again: bool = False
    resources: Resources = field(default_factory=Resources)
    python: str | None = None
    setup: tuple[str, ...] = ()
    env: str | None = None  # "auto": an environment built once per content of the project's lock file
    container: str | None = None
    data: tuple[str, ...] | None = None  # None: the git-ignored top-level folders
    log_patterns: tuple[str, ...] = ()
    metric_files: tuple[str, ...] = ()
    max_file_mb: float = 50.0
    pack: int | None = None
    workers: int | None = None
    max_parallel: int | None = None
    grace_s: int = 60
    max_requeues: int = 3
    seed: int = 0
    worker_python: str | None = None
    command_line: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Points:
    """Where the runs come from, whichever of the four sources it is."""

    source: str  # loops | set | sweep | single | study
    count: int
    axes: tuple[Axis, ...]
    grid: space.Points | None = None  # set, sweep: streams
    listed: tuple[Point, ...] = ()  # loops, single
    loops: tuple[LoopRef, ...] = ()
    warnings: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Point]:
        if self.grid is None:
            yield from self.listed
        else:
            yield from (Point(params) for params in self.grid.iterate())


@dataclass(frozen=True, slots=True)
class Plan:
    """An experiment that has been worked out but not submitted; its code is frozen already."""

    experiment: Experiment
    target: Target
    snapshot: snapshot.Snapshot
    chunks: tuple[records.Record, ...]
    skipped: Mapping[int, str]  # number of the point -> "EXP/INDEX" that completed with the same key
    warnings: tuple[str, ...]
    project: Path
    code_key: str  # of script, modules and configuration files: in the keys of its runs
    _points: _Points

    @property
    def n_points(self) -> int:
        """Points of the sweep, those left out because they completed before included."""
        return self._points.count

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The dimensions of the sweep."""
        return self._points.axes

    @property
    def gpu_hours(self) -> float | None:
        """GPU-hours at most; None where no time limit is asked, so that nothing bounds them."""
        resources = self.experiment.resources
        if resources.gpus_per_run == 0:
            return 0.0
        minutes = resources.time_min
        return None if minutes is None else self.experiment.n_runs * resources.gpus_per_run * minutes / 60

    def runs(self) -> Iterator[Run]:
        """Yield the runs in order of index; streams, since a sweep may have a million points."""
        every = _number(self._points, self.code_key, self.experiment)
        wanted = (run for run in every if run.index not in self.skipped)
        yield from (replace(run, index=index) for index, run in enumerate(wanted))

    def script(self) -> str:
        """Return the exact sbatch script of the first chunk, or what ``here`` would start."""
        return self.target.executor.script(self.experiment, self.chunks[0]) if self.chunks else ""


def plan(request: Request, store: Store) -> Plan:
    """Work out an experiment: count the points, freeze the code, leave out what completed before. Submits nothing.

    Raises
    ------
    UsageError
        If the request cannot be meant: no such script, no points, more than a million.
    ScriptError
        If the script does not compile or its loops cannot be counted.
    SnapshotError, ExecutorError, TargetError
        If the code cannot be frozen, or the target cannot give what is asked.
    """
    swept = sweep.load(request.sweep_file) if request.sweep_file else None
    script = _find_script(request, swept)
    source = _read_script(script)
    project = snapshot.project_root(script)
    resources = _merge_resources(request.resources, swept)
    request.target.executor.check(resources)
    root.check(request.target.root)
    with ThreadPoolExecutor(max_workers=1) as asking:  # the scheduler takes its time: count and freeze meanwhile
        limits = asking.submit(request.target.executor.limits)
        return _work_out(request, store, swept, script, source, project, resources, limits.result)


def _work_out(
    request: Request,
    store: Store,
    swept: sweep.Sweep | None,
    script: Path,
    source: str,
    project: Path,
    resources: Resources,
    limits: Callable[[], Limits],
) -> Plan:
    points = _find_points(request, swept, script, source)
    repository = request.target.repository
    frozen = snapshot.take(project, repository, max_file_mb=request.max_file_mb)
    python = _choose_python(request, project, frozen.id)
    code_key = snapshot.code_key(repository, frozen.id, _relative(script, project))
    experiment = _describe(request, swept, script, project, resources, python, points, frozen.id)
    _check_passing(experiment, request.trial if request.trial is not None else next(iter(points)).params)
    skipped = {} if request.again else _completed_before(store, points, code_key, experiment)
    study_id = experiment.id if points.source == "study" else None
    experiment = replace(experiment, n_runs=points.count - len(skipped), study_id=study_id)
    return Plan(
        experiment=experiment,
        target=request.target,
        snapshot=frozen,
        chunks=tuple(submission.plan_chunks(experiment, range(experiment.n_runs), limits())),
        skipped=skipped,
        warnings=(*points.warnings, *_say_unseen(request, project, experiment)),
        project=project,
        code_key=code_key,
        _points=points,
    )


def submit(plan: Plan, store: Store) -> Submission:
    """Write the experiment down, then hand its first chunks to the executor.

    Raises
    ------
    TargetError
        If the root cannot be written.
    ExecutorError
        If the scheduler refuses; the experiment stays and ``ems rerun EXP --missing`` carries on.
    """
    python = plan.experiment.python
    origin = provenance.collect(plan.project, plan.experiment.command_line, python, aside=plan.target.root / "diffs")
    if plan.target.remote is not None:
        origin |= plan.target.remote.surroundings(python)
    experiment = replace(plan.experiment, provenance=origin)
    return submission.start(experiment, plan.runs, plan.chunks, plan.target, store)


def run_seed(experiment_seed: int, params: Params) -> int:
    """Return EMS_SEED of a run: its own ``seed`` param where it has one, else 31 bits drawn from all its params.

    The same params under the same experiment seed get the same seed in every experiment, whatever their index.
    """
    own = params.get("seed")
    if isinstance(own, int) and not isinstance(own, bool):
        return own
    return int.from_bytes(_digest([experiment_seed, params])[:4], "big") >> 1


def _number(points: Iterable[Point], code_key: str, experiment: Experiment) -> Iterator[Run]:
    """Yield a run a point, numbered as the sweep has them; its key says what would make it the same run again."""
    shared = hashlib.sha256(_canonical([code_key, experiment.args, experiment.command, experiment.pass_as]))
    for index, point in enumerate(points):
        seed, key = run_seed(experiment.seed, point.params), shared.copy()
        key.update(_canonical([point.params, point.loops, seed]))
        yield Run(index, point.params, seed, key.hexdigest()[:32], point.loops)


def _completed_before(store: Store, points: _Points, code_key: str, experiment: Experiment) -> dict[int, str]:
    """Return number of point -> address for those that completed earlier."""
    found: dict[int, str] = {}
    runs = _number(points, code_key, experiment)
    while batch := list(islice(runs, 10_000)):
        done = store.completed_keys([run.key for run in batch])
        found.update((run.index, done[run.key]) for run in batch if run.key in done)
    return found


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _digest(value: object) -> bytes:
    return hashlib.sha256(_canonical(value)).digest()


def _find_script(request: Request, swept: sweep.Sweep | None) -> Path:
    script = request.script
    if script is None and swept is not None and swept.program:
        # W&B resolves `program` against the working directory; a file beside the sweep file is what users mean else.
        choices = [request.cwd / swept.program, (request.cwd / request.sweep_file).parent / swept.program]  # type: ignore[operator] # swept was read from sweep_file
        script = next((path for path in choices if path.exists()), choices[0])
    if script is None:
        raise UsageError("no script is named", "ems parrun train.py, or `program: train.py` in the sweep file")
    return script_at(script, request.cwd)


def script_at(name: Path, cwd: Path) -> Path:
    """Return the path of the script that is called ``name`` in ``cwd``.

    Raises
    ------
    UsageError
        If there is none.
    """
    script = cwd / name
    if script.is_dir():
        raise UsageError(f"{name} is a folder", "name the script in it: ems parrun FOLDER/train.py")
    if not script.is_file():
        near = sorted(path.name for path in script.parent.glob("*.py"))[:5] if script.parent.is_dir() else []
        raise UsageError(
            f"there is no script {os.path.relpath(script, cwd)}",
            f"scripts in that folder: {', '.join(near)}" if near else "check the path: it is relative to where you are",
        )
    # The folder's symlinks are resolved, as project_root does; the script's own is the user's choice of name.
    return Path(os.path.realpath(script.parent)) / script.name


def _read_script(script: Path) -> str:
    """Return the source, having seen that it compiles: a syntax error is found now, not in a queue."""
    if script.suffix == ".ipynb":
        raise ScriptError(
            f"{script.name} is a notebook",
            f"make it a script: jupyter nbconvert --to script {shlex.quote(script.name)}",
        )
    try:
        with tokenize.open(script) as file:
            source = file.read()
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ScriptError(f"{script.name} is no Python text: {error}", "name a Python script") from error
    loops.parse(source, script.name)
    return source


def _find_points(request: Request, swept: sweep.Sweep | None, script: Path, source: str) -> _Points:
    if request.trial is not None:
        return _Points("study", 0, ())
    if request.sets or swept is not None or request.samples is not None:
        grid = space.build(request.sets, request.zips, request.samples, request.sample_seed, swept)
        if request.single and grid.count != 1:
            raise UsageError(f"these settings make {grid.count} runs, and `ems run` makes one", "use `ems parrun`")
        return _Points("sweep" if swept else "set", grid.count, tuple(grid.axes), grid=grid)
    if request.single:
        return _Points("single", 1, (), listed=(Point({}),))
    unrolled = (
        counting.count_by_running(script, _counting_python(request, script), request.args, request.cwd)
        if request.count_by_running
        else unroll.unroll(source, script.name)
    )
    if unrolled is None:
        raise ScriptError(
            f"{script.name} has no `for` loop at module level to sweep, and no sweep was given",
            "add --set NAME=VALUES, mark a loop with `# ems: sweep`, or use `ems run` for one run",
        )
    return _Points(
        "loops",
        len(unrolled.points),
        unrolled.axes,
        listed=unrolled.points,
        loops=unrolled.loops,
        warnings=unrolled.warnings,
    )


def _check_passing(experiment: Experiment, params: Params) -> None:
    """See now, not on a node, whether the params can reach the script in the way that was chosen."""
    words = (experiment.python, experiment.script, experiment.args, params, experiment.pass_as)
    try:
        argv.command(*words, experiment.command)
    except ValueError as error:
        raise UsageError(str(error), "rename the param, or choose another --pass-as") from error


def _describe(
    request: Request,
    swept: sweep.Sweep | None,
    script: Path,
    project: Path,
    resources: Resources,
    python: str,
    points: _Points,
    snapshot_id: str,
) -> Experiment:
    by_loops = points.source == "loops"
    cwd = Path(os.path.realpath(request.cwd))
    datasets = request.target.datasets()
    return Experiment(
        id=submission.new_id(request.target.root),
        name=_name(request.name, (swept.name if swept else None) or script.stem),
        created_at=records.now(),
        script=_relative(script, project),
        snapshot=snapshot_id,
        n_runs=points.count,
        cwd=_relative(cwd, project) if cwd.is_relative_to(project) else ".",
        args=request.args,
        command=swept.command if swept else None,
        pass_as=request.pass_as or (PassAs.NONE if by_loops else PassAs.FLAGS),
        source=points.source,
        axes=tuple({"names": list(axis.names), "size": len(axis)} for axis in points.axes),
        loops=points.loops,
        resources=resources,
        executor=request.target.executor.name,
        target=request.target.name,
        python=python,
        setup=request.setup,
        container=request.container,
        data=_find_data(request, project, datasets),
        datasets=datasets,
        pack=request.pack,
        workers=request.workers,
        max_parallel=request.max_parallel,
        grace_s=request.grace_s,
        max_requeues=request.max_requeues,
        seed=request.seed,
        tags=request.tags,
        message=request.message or (swept.description if swept else None),
        command_line=request.command_line,
        log_patterns=request.log_patterns,
        metric_files=request.metric_files,
    )


def _find_data(request: Request, project: Path, datasets: Mapping[str, str]) -> dict[str, str]:
    if request.target.remote is not None:
        return _find_remote_data(request, project, datasets, request.target.remote.agent.target)
    paths = request.data if request.data is not None else tuple(snapshot.ignored_top_level(project))
    missing = [path for path in paths if not (project / path).exists()]
    if missing and request.data is not None:
        raise UsageError(
            f"`data:` names {missing[0]}, which is not there", f"make {project / missing[0]}, or mend ems.yaml"
        )
    return {path.rstrip("/"): str((project / path).resolve()) for path in paths}


def _find_remote_data(
    request: Request, project: Path, datasets: Mapping[str, str], there: RemoteTarget
) -> dict[str, str]:
    """Return where the folders are that git ignores and runs need: data sets of the same name on the other machine.

    Raises
    ------
    UsageError
        If one that is named is not there.
    """
    folders = request.data if request.data is not None else tuple(snapshot.ignored_top_level(project))
    names = {folder.rstrip("/"): PurePosixPath(folder).name for folder in folders}
    missing = next((folder for folder, name in names.items() if name not in datasets), None)
    if missing is not None and request.data is not None:
        raise UsageError(
            f"`data:` names {missing}, which {there.name} does not see",
            f"bring it there: ems data push {shlex.quote(missing)} {shlex.quote(names[missing])} --on {there.name}",
        )
    place = PurePosixPath(there.root, "data")
    return {folder: str(place / datasets[name]) for folder, name in names.items() if name in datasets}


def _say_unseen(request: Request, project: Path, experiment: Experiment) -> tuple[str, ...]:
    """Say which folders of data stay behind: a script that reads one would find nothing there."""
    if request.target.remote is None or request.data is not None:
        return ()
    left = [folder.rstrip("/") for folder in snapshot.ignored_top_level(project) if not folder.startswith(".")]
    left = [folder for folder in left if folder not in experiment.data]
    there = request.target.name
    return tuple(
        f"git ignores {folder}, so that {there} does not see it; where runs read it: "
        f"ems data push {shlex.quote(folder)} {shlex.quote(PurePosixPath(folder).name)} --on {there}"
        for folder in left
    )


def _counting_python(request: Request, script: Path) -> str:
    """Return the Python that walks the loops: that of the runs, but one of this machine."""
    if request.target.remote is not None:
        return environment.default_python()
    return _choose_python(request, snapshot.project_root(script), "")


def _choose_python(request: Request, project: Path, code: str) -> str:
    remote = request.target.remote
    if remote is not None:
        return _choose_remote_python(request, project, code, remote)
    if request.env == "auto":
        return environment.resolve(project, request.target.root, python=request.python)
    if request.container:
        if request.target.executor.name == "here" and not request.setup:
            environment.check_container(request.container)
        return request.python or "python3"  # the image's own
    return request.python or environment.default_python()


def _choose_remote_python(request: Request, project: Path, code: str, remote: RemoteExecutor) -> str:
    """Return a path on the other machine; where set-up commands come first, they may be what makes it."""
    if request.env == "auto":
        environment.read_recipe(project)  # what is wrong with it is said before anything travels
        return remote.build_environment(code, request.python)
    if request.container and not request.setup:
        remote.check_container(request.container)
    if request.container or (request.setup and request.python):
        return request.python or "python3"
    return remote.find_python(request.python)


def _merge_resources(asked: Resources, swept: sweep.Sweep | None) -> Resources:
    """Take the sweep file's ``resources:`` where the command line and the config say nothing."""
    if swept is None or swept.resources is None:
        return asked
    given = {name: value for name, value in asdict(asked).items() if value is not None}
    return replace(swept.resources, **given)


def _name(typed: str | None, proposed: str) -> str:
    """Return the name of an experiment, by which addresses can mean it.

    Raises
    ------
    UsageError
        If what was typed cannot stand in an address.
    """
    if typed is None:
        return re.sub(r"[/\s]+", "-", proposed)[:_LONGEST_NAME]
    if typed == "last" or not re.fullmatch(rf"[^/\s]{{1,{_LONGEST_NAME}}}", typed):
        raise UsageError(
            f"`{typed if len(typed) <= _LONGEST_NAME else typed[:_LONGEST_NAME] + '…'}` cannot be a name",
            f"a name is one word of up to {_LONGEST_NAME} letters without `/`, and not `last`",
        )
    return typed


def _relative(path: Path, project: Path) -> str:
    return PurePosixPath(path.relative_to(project)).as_posix()
