"""A study that a Python program asks and tells itself; see :func:`study`. Its state is in the project, not in it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ems import config, harvest, root, submission
from ems import store as stores
from ems.errors import NotFoundError, UsageError
from ems.model import Experiment, Json, Params
from ems.node import records
from ems.node.records import ExperimentFiles
from ems.search.trial import Outcome, Promote, Start
from ems.store import Store, studies
from ems.store.studies import FINISHED, SegmentRow, StudyRow, TrialRow, WakeRow
from ems.study import asked, handover, ledger, standing, words
from ems.study.outcomes import fidelity_cost
from ems.study.spec import StudySpec
from ems.study.standing import Best, Standing

if TYPE_CHECKING:
    from ems.search.space import SearchSpace

SpaceLike: TypeAlias = "SearchSpace | Mapping[str, Json] | Sequence[Any]"


@dataclass(frozen=True, slots=True)
class Trial:
    """What to try.

    Attributes
    ----------
    params
        As a run of a script would get them; the fidelity param is one of them.
    budget
        Value of the fidelity param: train up to there, from where it was left off; None without one.
    """

    number: int
    params: Params
    seed: int
    group: str | None = None
    budget: float | None = None
    rung: int = 0


def study(
    name: str,
    space: SpaceLike | None = None,
    *,
    metric: str = "value",
    goal: str = "minimize",
    trials: int | None = None,
    budget: str = "",
    sampler: str | None = None,
    scheduler: str | None = None,
    fidelity: str = "",
    eta: float | None = None,
    seeds: int = 1,
    confirm: str | float = 0.0,
    parallel: int = 1,
    seed: int = 0,
    project: str | Path | None = None,
) -> Study:
    """Begin a study, or go on with the one of that name.

    Parameters
    ----------
    space
        Param -> where to look, as ``--set`` or a space file says it: ``{"lr": "loguniform(1e-5,1e-1)", "opt": ["adam",
        "sgd"]}``; or a list of ``--set`` words, scikit-optimize's dimensions, or a :class:`SearchSpace`. None: that of
        the study that is there.
    trials, budget
        When it ends: after so many trials, or ``300epochs``. Nothing: when nobody asks any more. One that goes on can
        be given more trials.
    fidelity, eta, scheduler, sampler, seeds, confirm, seed
        As the options of ``ems tune``.
    parallel
        How many trials are asked for before the first of them is told.
    project
        Whose store keeps it; default: as ``ems`` finds it from the working directory.

    Raises
    ------
    UsageError
        If something of it cannot be meant, or the study of that name has another space, metric or goal.
    NotFoundError
        If there is no study of that name, and no space.
    """
    path = Path(project) / stores.FOLDER / "ems.db" if project else stores.find(Path.cwd())
    with Store(path) as store:
        there = next((e for e in reversed(store.experiments()) if e.name == name and e.study_id is not None), None)
        found = None if space is None else _space(space)
        if there is None and found is None:
            raise NotFoundError(f"there is no study `{name}` in {path.parent.parent}", "give it a space")
        if there is None and found is not None:
            rungs = words.parse_fidelity(fidelity, eta) if fidelity else None
            wanted = asked.Asked(
                metric=metric,
                goal=words.check_goal(goal),
                sampler=words.check_sampler(sampler) if sampler else None,
                scheduler=words.check_scheduler(scheduler) if scheduler else None,
                fidelity=rungs,
                trials=trials,
                budget=words.parse_budget([budget], rungs.name if rungs else None) if budget else {},
                seeds=seeds,
                confirm=words.parse_share(str(confirm)),
                parallel=parallel,
            )
            there = _begin(store, name, wanted, found, seed)
        elif there is not None:
            if found is not None:
                _check_same(store, there, found, metric, goal)
            if trials is not None:
                _extend(store, there, trials)
    assert there is not None  # noqa: S101  # for mypy: it was there, or is now
    return Study(path, there)


class Study:
    """A study that is asked and told; made by :func:`study`. Any number of processes may use it at a time."""

    def __init__(self, path: Path, experiment: Experiment) -> None:
        self._path, self._experiment = path, experiment
        self._files = ExperimentFiles(_root(path), experiment.id)

    @property
    def id(self) -> str:
        """Of its experiment: ``ems report ID``, ``ems plot ID slice``."""
        return self._experiment.id

    @property
    def best(self) -> Best | None:
        """The best configuration so far, with the model's belief of it; None before the first value. Without groups."""
        found = self.standing.best
        return found[0] if found else None

    @property
    def standing(self) -> Standing:
        """All that is known of it."""
        with Store(self._path) as store:
            return standing.load(store, store.resolve(self.id))

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be asked for."""
        return self.standing.row.is_finished

    def __iter__(self) -> Iterator[Trial]:
        """Ask until the study is over, or nothing can be asked for before something is told."""
        while (trial := self.ask()) is not None:
            yield trial

    def ask(self) -> Trial | None:
        """Return what to try next; None where it is over, or nothing can be asked for before something is told.

        Raises
        ------
        UsageError
            If it was begun by ``ems tune``: its driver asks.
        """
        from ems.search.decide import decide  # noqa: PLC0415  # numpy and scipy

        with self._writing() as (store, row, spec):
            rows, parts = studies.trial_rows(store, self.id), studies.segments(store, self.id)
            number = 1 + max((each.number for each in rows), default=-1)
            if row.is_finished:
                return None
            decided = decide(spec.problem(), studies.build(rows, parts, spec.sign), 1, number)
            action = next((each for each in decided.actions if isinstance(each, Start | Promote)), None)
            if action is None:
                if decided.finished:
                    self._commit(store, replace(row, state=FINISHED, reason=decided.finished), spec)
                return None
            new = [ledger.trial(spec, number, action, row.wakes + 1)] if isinstance(action, Start) else []
            numbered = number if isinstance(action, Start) else action.number
            segment = ledger.segment(spec, numbered, action.rung, row.wakes + 1)
            segment = replace(segment, started_at=records.now(), host=os.uname().nodename)
            self._commit(store, row, spec, new, [segment], asked=1)
            handover.write(store, spec, self._experiment, self._files)
            return _trial(spec, new[0] if new else next(each for each in rows if each.number == numbered), segment)

    def tell(self, trial: Trial | int, value: float | None = None, *, failed: bool = False) -> None:
        """Say what a trial gave; NaN, infinity, and ``failed`` for one that crashed, are learnt as such.

        Raises
        ------
        UsageError
            If the trial was not asked for, or its value is no number.
        """
        number = trial if isinstance(trial, int) else trial.number
        if not failed and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UsageError(f"trial {number} gave {value!r}, which is no number", "study.tell(trial, loss)")
        with self._writing() as (store, row, spec):
            parts = [each for each in studies.segments(store, self.id) if each.number == number]
            pending = [each for each in parts if each.is_pending]
            if not pending:
                raise UsageError(f"trial {number} of {self._experiment.name} waits for nothing", "ask() for a trial")
            told = _told(pending[0], value, failed=failed, wake=row.wakes + 1)
            cost = fidelity_cost(spec, told, is_first=len(parts) == 1)
            told = told if cost is None else replace(told, cost=cost)
            self._record(spec, told)
            self._commit(store, row, spec, segments=[told], n_told=1)
            harvest.harvest(store, Path(self._files.root), lambda _: {}, [self.id])

    @contextmanager
    def _writing(self) -> Iterator[tuple[Store, StudyRow, StudySpec]]:
        """Hold the lock of who decides; yield the store, and how the study stands."""
        if Path(self._files.study).exists():
            raise UsageError(
                f"the study {self._experiment.name} {self.id} was begun by `ems tune`, whose driver asks and tells",
                "look at it by .best and .standing, or begin one of another name",
            )
        with records.locked(Path(self._files.dir, "driver.lock")), Store(self._path) as store:
            row = studies.study(store, self.id)
            if row is None:
                raise NotFoundError(f"the study {self.id} is gone", "begin it anew, by another name")
            yield store, row, StudySpec.load(row.spec)

    def _commit(
        self,
        store: Store,
        row: StudyRow,
        spec: StudySpec,
        trials: Sequence[TrialRow] = (),
        segments: Sequence[SegmentRow] = (),
        *,
        n_told: int = 0,
        asked: int = 0,
    ) -> None:
        wake = WakeRow(row.wakes + 1, records.now(), 0.0, 0.0, n_told, asked, asked, 0, "")
        ledger.commit(store, row, spec, trials=trials, segments=segments, wake=wake, wishes=())

    def _record(self, spec: StudySpec, told: SegmentRow) -> None:
        """Leave of a trial what a run would have left: its metric, and how it ended."""
        attempt = told.rung + 1
        path = Path(self._files.attempt(told.number, attempt))
        path.parent.mkdir(parents=True, exist_ok=True)
        if told.value is not None:
            step = told.budget if told.budget is not None else 0
            line = {"step": int(step) if step == int(step) else step, spec.metric: told.value, "_a": attempt}
            with Path(self._files.run(told.number, "metrics.jsonl")).open("a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "_t": _seconds(told.ended_at)}) + "\n")
        ok = told.outcome == Outcome.OK
        facts = {"started_at": told.started_at, "ended_at": told.ended_at, "wall_s": told.wall_s, "host": told.host}
        record = {"index": told.number, "attempt": attempt, "chunk": 0, "state": "COMPLETED" if ok else "FAILED"}
        records.write_atomic(path, records.dump({**record, **facts, "reason": told.reason, "exit_code": int(not ok)}))


def _begin(store: Store, name: str, wanted: asked.Asked, space: SearchSpace, seed: int) -> Experiment:
    if name == "last" or not re.fullmatch(r"[^/\s]{1,100}", name):
        raise UsageError(f"`{name}` cannot be a name", "a name is one word without `/`, and not `last`")
    place = _root(store.path)
    exp_id = submission.new_id(place)
    endless = wanted if wanted.trials or wanted.budget else replace(wanted, budget={words.TRIALS: 1_000_000.0})
    spec = asked.specify(endless, space, exp_id, seed=seed)
    experiment = Experiment(
        id=exp_id,
        name=name,
        created_at=records.now(),
        script="",
        snapshot="",
        n_runs=0,
        source="study",
        study_id=exp_id,
    )
    root.write(place, experiment, (), ())
    store.add(experiment, ())
    with store.write() as db:
        db.execute("INSERT OR IGNORE INTO studies (id, spec) VALUES (?, ?)", [exp_id, records.dump(spec.dump())])
    return experiment


def _extend(store: Store, experiment: Experiment, trials: int) -> None:
    """Let a study go on up to so many trials; one that has more stays as it is."""
    row = studies.study(store, experiment.id)
    if row is None or trials <= row.spec["budget"].get(words.TRIALS, math.inf):
        return
    spec = {**row.spec, "budget": {**row.spec["budget"], words.TRIALS: float(trials)}}
    with store.write() as db:
        said = "UPDATE studies SET spec = ?, state = 'RUNNING', reason = '' WHERE id = ?"
        db.execute(said, [records.dump(spec), experiment.id])


def _check_same(store: Store, experiment: Experiment, space: SearchSpace, metric: str, goal: str) -> None:
    """Refuse to go on with a study that searches for something else.

    Raises
    ------
    UsageError
        If it does.
    """
    row = studies.study(store, experiment.id)
    if row is None:
        return
    before = StudySpec.load(row.spec)
    now = {"space": space.dump(), "metric": metric, "goal": words.check_goal(goal)}
    other = next((key for key, value in now.items() if getattr(before, key) != value), None)
    if other is not None:
        raise UsageError(
            f"the study {experiment.name} {experiment.id} has another {other}: its trials would mean something else",
            "begin one of another name, or leave the space out to go on",
        )


def _space(given: SpaceLike) -> SearchSpace:
    """Return a space, in whatever form it is given."""
    from ems.search import space_file  # noqa: PLC0415  # numpy and scipy
    from ems.search.space import SearchSpace  # noqa: PLC0415  # likewise

    if isinstance(given, SearchSpace):
        return given
    if isinstance(given, Mapping):
        return space_file.of_mapping(given)
    if isinstance(given, Sequence) and all(isinstance(each, str) for each in given):
        return space_file.parse(list(given))
    return SearchSpace.from_skopt(given)


def _root(path: Path) -> Path:
    """Return where experiments of this machine leave their files, for a project's store."""
    project = path.parent.parent
    return config.load(project).root or project / stores.FOLDER


def _trial(spec: StudySpec, row: TrialRow, segment: SegmentRow) -> Trial:
    params = {**spec.run_params(row.params, row.grp, row.seed), **spec.overlay(segment.budget)}
    return Trial(row.number, params, row.seed, row.grp, segment.budget, segment.rung)


def _told(segment: SegmentRow, value: float | None, *, failed: bool, wake: int) -> SegmentRow:
    """Return a segment with its outcome."""
    now = records.now()
    is_finite = value is not None and math.isfinite(value)
    outcome = Outcome.CRASHED if failed else Outcome.OK if is_finite else Outcome.DIVERGED
    spent = _seconds(now) - _seconds(segment.started_at)
    return replace(
        segment,
        outcome=outcome.value,
        value=None if value is None or failed or not is_finite else float(value),
        cost=spent,
        told=wake,
        reason="" if outcome is Outcome.OK else "told to have failed" if failed else f"it gave {value}",
        ended_at=now,
        wall_s=spent,
        points=1,
        last_step=segment.budget,
    )


def _seconds(iso: str) -> float:
    """Return seconds since the epoch of a time of the store."""
    from datetime import datetime  # noqa: PLC0415  # used here only

    return datetime.fromisoformat(iso).timestamp()
