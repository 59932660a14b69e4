"""From what was asked to a study: defaults, and what cannot be meant. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ems.errors import UsageError
from ems.model import Axis, Json
from ems.report.frame import guess_goal
from ems.search.problem import Fidelity
from ems.search.space import SearchSpace
from ems.space import Sweep
from ems.space.distribution import IntUniform
from ems.study import words
from ems.study.spec import StudySpec
from ems.study.words import Groups

_COUNTERS = ("epochs", "epoch", "n_epochs", "num_epochs", "max_epochs", "num_train_epochs", "max_iter", "iterations",
             "n_iterations", "num_iterations", "max_steps", "steps", "n_steps", "num_steps", "n_iter")  # fmt: skip
_SEEDS = 2**32  # as numpy's, and SQLite keeps them
_WITH_RUNGS = ("asha", "hyperband", "bohb", "stop")


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of a study, in words that were read; None where nobody said.

    Attributes
    ----------
    nested
        As in :class:`ems.space.Sweep`.
    notes
        What was taken from where, to be said: how the words of a sweep file were understood.
    """

    metric: str | None = None
    goal: str | None = None
    sampler: str | None = None
    scheduler: str | None = None
    mode: str | None = None
    fidelity: Fidelity | None = None
    trials: int | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    parallel: int | None = None
    seeds: int | None = None
    confirm: float | None = None
    groups: Groups | None = None
    nested: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def over(self, other: Asked) -> Asked:
        """Return both; what this one says counts where both say something."""
        said = {name: value for name in _NAMES if (value := getattr(self, name)) not in (None, {})}
        return replace(other, **said, notes=(*other.notes, *self.notes))


_NAMES = ("metric", "goal", "sampler", "scheduler", "mode", "fidelity", "trials", "budget", "parallel", "seeds",
          "confirm", "groups", "nested")  # fmt: skip


def of_sweep(sweep: Sweep, eta: float | None = None, fidelity: Fidelity | None = None) -> Asked:
    """Read what a Weights & Biases sweep file says beside its parameters, and say how it was understood.

    ``early_terminate: hyperband`` has its brackets at ``min_iter`` times powers of ``eta``, or from ``max_iter``
    downwards ``s`` times (https://docs.wandb.ai/models/sweeps/sweep-config-keys). Where a parameter says how long a
    trial trains, trials go from bracket to bracket by it; else runs are cancelled that log worse than others there.

    Parameters
    ----------
    eta, fidelity
        As typed; they win over the file.
    """
    metric = sweep.metric or {}
    sampler = {"bayes": None, "random": "random", "grid": "grid"}[sweep.method]
    notes = [f"method {sweep.method} is --sampler {sampler or 'gp'}"]
    goal = str(metric.get("goal", "minimize")) if metric else None  # W&B's default
    if metric:
        notes.append(f"metric is --metric {metric['name']} --goal {goal}")
    if sweep.run_cap is not None:
        notes.append(f"run_cap is --trials {sweep.run_cap}")
    scheduler = None
    if sweep.early_terminate:
        fidelity = fidelity or _brackets(sweep, sweep.early_terminate, eta)
        scheduler = "hyperband" if fidelity.name else "stop"
        notes.append(_say_brackets(fidelity, scheduler))
    return Asked(
        metric=str(metric["name"]) if metric else None,
        goal=goal,
        sampler=sampler,
        scheduler=scheduler,
        fidelity=fidelity,
        trials=sweep.run_cap,
        nested=sweep.nested,
        notes=tuple(notes),
    )


def _brackets(sweep: Sweep, early: Mapping[str, Json], eta: float | None) -> Fidelity:
    """Return the brackets as rungs of the param that counts epochs; without a name where there is none."""
    said = {key: float(str(value)) for key, value in early.items() if key in ("min_iter", "max_iter", "s", "eta")}
    eta = eta or said.get("eta", 3.0)
    name, high = _counter(sweep) or ("", said.get("max_iter", said.get("min_iter", 1.0) * eta**4))
    low = said["min_iter"] if "min_iter" in said else said.get("max_iter", high) / eta ** said.get("s", 1.0)
    return words.parse_fidelity(f"{name or 'step'}={max(1.0, low):g}..{high:g}", eta, is_named=bool(name))


def _say_brackets(fidelity: Fidelity, scheduler: str) -> str:
    if fidelity.name:
        rungs = f"--fidelity {fidelity.name}={fidelity.low:g}..{fidelity.high:g} --eta {fidelity.eta:g}"
        return f"early_terminate is --scheduler {scheduler} {rungs}"
    steps = ", ".join(f"{rung:g}" for rung in fidelity.rungs[:-1])
    return f"early_terminate is --scheduler {scheduler}: runs that are worse than others at step {steps} are cancelled"


def _counter(sweep: Sweep) -> tuple[str, float] | None:
    """Return the param that counts epochs, and its largest value."""
    for name in (each for each in _COUNTERS if each in sweep.dimensions):
        dimension = sweep.dimensions[name]
        if isinstance(dimension, Axis) and isinstance(value := dimension.values[-1][0], int | float):
            return name, float(value)
        if isinstance(dimension, IntUniform):
            return name, float(dimension.high)
    return None


def specify(
    asked: Asked,
    space: SearchSpace,
    exp_id: str,
    *,
    seed: int = 0,
    parallel: int = 1,
    seed_as: str = "",
    usd_per_h: float | None = None,
    warm_start: Sequence[str] = (),
) -> StudySpec:
    """Return the study that is asked for, everything that nobody said filled in.

    Parameters
    ----------
    parallel
        How many trials run at a time where nobody said.

    Raises
    ------
    UsageError
        If something of it is missing, or cannot be meant together with something else.
    """
    if not asked.metric:
        raise UsageError("nothing says what a good trial is", "add --metric val_loss --goal minimize")
    goal = asked.goal or guess_goal(asked.metric)
    if goal is None:
        raise UsageError(f"is a low or a high `{asked.metric}` good?", "add --goal minimize, or --goal maximize")
    scheduler = asked.scheduler or ("asha" if asked.fidelity else "none")
    sampler = asked.sampler or ("tpe" if scheduler == "bohb" else "gp")
    _check_names(asked, space, scheduler)
    for name in ("trials", "parallel", "seeds"):
        count = getattr(asked, name)
        if count is not None and count < 1:
            raise UsageError(f"{name} {count} is none", "give a whole number above 0")
    if not 0 <= seed < _SEEDS:
        raise UsageError(f"--seed {seed} is no seed that every library takes", f"one from 0 to {_SEEDS - 1}")
    groups = asked.groups.values if asked.groups else ()
    budget = {**asked.budget}
    trials = _trials(asked, space, sampler)
    if trials is not None:
        budget[words.TRIALS] = float(trials)
    if trials is not None and trials < len(groups):
        raise UsageError(
            f"{trials} trials are too few for {len(groups)} groups", f"give at least --trials {len(groups)}"
        )
    return StudySpec(
        id=exp_id,
        space=space.dump(),
        metric=asked.metric,
        goal=str(goal),
        sampler=sampler,
        scheduler=scheduler,
        mode=asked.mode or "async",
        fidelity=asked.fidelity,
        parallel=asked.parallel or parallel,
        seeds=asked.seeds or 1,
        confirm=asked.confirm or 0.0,
        groups=groups,
        group_by=asked.groups.column if asked.groups else "",
        seed_as=seed_as,
        seed=seed,
        budget=budget,
        usd_per_h=usd_per_h,
        warm_start=tuple(warm_start),
        nested=asked.nested,
    )


def _check_names(asked: Asked, space: SearchSpace, scheduler: str) -> None:
    fidelity, known = asked.fidelity, [dimension.name for dimension in space.dimensions]
    if scheduler in _WITH_RUNGS and fidelity is None:
        raise UsageError(
            f"--scheduler {scheduler} gives trials more and more epochs, and no param says how many",
            "add e.g. --fidelity epochs=1..81",
        )
    if fidelity is not None and fidelity.name in known:
        raise UsageError(f"`{fidelity.name}` is both in the space and the fidelity", "leave it out of the space")
    if asked.groups is not None and asked.groups.column in known:
        raise UsageError(
            f"`{asked.groups.column}` is both in the space and the column of --group-by", "keep one of them"
        )


def _trials(asked: Asked, space: SearchSpace, sampler: str) -> int | None:
    """Return after how many trials the search ends: the smaller of both ways of saying it; None: by budget alone."""
    said = [int(n) for n in (asked.trials, asked.budget.get(words.TRIALS)) if n is not None]
    if said:
        return min(said)
    if asked.budget:
        return None
    if sampler == "grid" and space.size is not None:
        return space.size * (asked.seeds or 1) * max(1, len(asked.groups.values) if asked.groups else 1)
    raise UsageError("nothing says when the search ends", "add --trials 60, or --budget 6h")


def check_args(fidelity: Fidelity | None, space: SearchSpace, args: Sequence[str]) -> None:
    """Refuse a param that is also given to the script by hand: it would stand there twice.

    Raises
    ------
    UsageError
        If one is.
    """
    names = [dimension.name for dimension in space.dimensions] + ([fidelity.name] if fidelity else [])
    for name in filter(None, names):
        if any(word == f"--{name}" or word.startswith((f"--{name}=", f"{name}=")) for word in args):
            raise UsageError(f"`{name}` stands after `--`, and the study chooses it", "leave it out after `--`")
