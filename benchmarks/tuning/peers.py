"""The peers, each at its defaults, behind one interface over the unit cube; what is not installed is left out.

Two interfaces: :class:`Asker` chooses points of full evaluations, several pending at a time; :class:`Climber` also
chooses how far each is trained. Both minimise.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np


class Asker(Protocol):
    """Chooses points of the unit cube."""

    def ask(self, number: int) -> np.ndarray:
        """Return the point of evaluation ``number``, shape (d,); earlier ones may be pending still."""
        ...

    def tell(self, number: int, value: float) -> None:
        """Learn the value of an evaluation."""
        ...


class Climber(Protocol):
    """Chooses points, and after each epoch or rung whether one goes on."""

    def start(self, number: int) -> np.ndarray:
        """Return the point of trial ``number``, shape (d,)."""
        ...

    def goes_on(self, number: int, epoch: int, value: float) -> bool:
        """Learn the value after an epoch; return whether the trial is to be trained further."""
        ...

    def finish(self, number: int, epoch: int, value: float) -> None:
        """Learn that a trial has reached its last epoch."""
        ...


class Random:
    """Uniform points."""

    def __init__(self, d: int, seed: int) -> None:
        self._d, self._rng = d, np.random.default_rng(seed)

    def ask(self, number: int) -> np.ndarray:  # noqa: ARG002  # the interface's
        return self._rng.random(self._d)

    def tell(self, number: int, value: float) -> None:
        pass


class Sobol(Random):
    """A scrambled Sobol sequence."""

    def __init__(self, d: int, seed: int) -> None:
        from scipy.stats import qmc

        self._engine = qmc.Sobol(d, seed=seed)

    def ask(self, number: int) -> np.ndarray:  # noqa: ARG002  # the interface's
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of points that are no power of two
            return self._engine.random(1)[0]


class Skopt:
    """skopt's Optimizer: EI or gp_hedge, a refit at every tell; pending points are given the smallest value seen."""

    def __init__(self, d: int, seed: int, acquisition: str = "EI") -> None:
        from skopt import Optimizer

        def make() -> Any:
            return Optimizer(
                [(0.0, 1.0)] * d,
                "GP",
                n_initial_points=d + 2,
                acq_func=acquisition,
                random_state=seed,
                model_queue_size=1,
            )

        self._optimizer, self._points = make(), {}

    def ask(self, number: int) -> np.ndarray:
        self._points[number] = self._optimizer.ask()
        return np.array(self._points[number])

    def tell(self, number: int, value: float) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._optimizer.tell(self._points.pop(number), float(value))


class Optuna:
    """Optuna's TPE or GP sampler by ask and tell."""

    def __init__(self, d: int, seed: int, sampler: str = "TPESampler") -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        chosen = getattr(optuna.samplers, sampler)(seed=seed, n_startup_trials=d + 2)
        self._study, self._d, self._trials = optuna.create_study(sampler=chosen), d, {}

    def ask(self, number: int) -> np.ndarray:
        trial = self._trials[number] = self._study.ask()
        return np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(self._d)])

    def tell(self, number: int, value: float) -> None:
        self._study.tell(self._trials.pop(number), float(value))


class Hyperopt:
    """hyperopt's TPE, pending trials marked as running."""

    def __init__(self, d: int, seed: int) -> None:
        import hyperopt

        logging.getLogger("hyperopt").setLevel(logging.ERROR)
        self._hp, self._d = hyperopt, d
        self._rng = np.random.default_rng(seed)
        self._trials = hyperopt.Trials()
        self._domain = hyperopt.base.Domain(
            lambda _: 0.0, {f"x{i}": hyperopt.hp.uniform(f"x{i}", 0, 1) for i in range(d)}
        )

    def ask(self, number: int) -> np.ndarray:
        new = self._hp.tpe.suggest(
            [number], self._domain, self._trials, int(self._rng.integers(2**31)), n_startup_jobs=self._d + 2
        )
        self._trials.insert_trial_docs(new)
        self._trials.refresh()
        values = new[0]["misc"]["vals"]
        return np.array([values[f"x{i}"][0] for i in range(self._d)])

    def tell(self, number: int, value: float) -> None:
        for each in self._trials._dynamic_trials:
            if each["tid"] == number:
                each["state"], each["result"] = self._hp.JOB_STATE_DONE, {"status": "ok", "loss": float(value)}
        self._trials.refresh()


class BoTorch:
    """SingleTaskGP with LogEI, or qLogEI with the pending points."""

    def __init__(self, d: int, seed: int) -> None:
        import torch

        torch.manual_seed(seed)
        torch.set_num_threads(1)
        self._d, self._sobol, self._known, self._pending = d, Sobol(d, seed), {}, {}

    def ask(self, number: int) -> np.ndarray:
        point = self._sobol.ask(number) if len(self._known) < self._d + 2 else self._model()
        self._pending[number] = point
        return point

    def tell(self, number: int, value: float) -> None:
        self._known[number] = (self._pending.pop(number), float(value))

    def _model(self) -> np.ndarray:
        import torch
        from botorch.acquisition import LogExpectedImprovement
        from botorch.acquisition.logei import qLogExpectedImprovement
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import SingleTaskGP
        from botorch.optim import optimize_acqf
        from gpytorch.mlls import ExactMarginalLogLikelihood

        x = torch.tensor(np.array([point for point, _ in self._known.values()]))
        y = -torch.tensor([[value] for _, value in self._known.values()], dtype=torch.double)
        model = SingleTaskGP(x, (y - y.mean()) / y.std())
        best = model.train_targets.max()
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        waiting = torch.tensor(np.array(list(self._pending.values()))) if self._pending else None
        chosen = (
            qLogExpectedImprovement(model, best, X_pending=waiting)
            if waiting is not None
            else LogExpectedImprovement(model, best)
        )
        bounds = torch.tensor([[0.0] * self._d, [1.0] * self._d], dtype=torch.double)
        point, _ = optimize_acqf(chosen, bounds, q=1, num_restarts=4, raw_samples=128)
        return point[0].numpy()


class SyneTune:
    """Syne Tune's ASHA (stopping) or BOHB, driven without its backend."""

    def __init__(self, d: int, seed: int, epochs: int, eta: int = 3, low: int = 1, scheduler: str = "BOHB") -> None:
        logging.getLogger("syne_tune").setLevel(logging.ERROR)
        from syne_tune.config_space import uniform
        from syne_tune.optimizer import baselines

        space: dict[str, Any] = {f"x{i}": uniform(0, 1) for i in range(d)}
        space["epochs"] = epochs
        self._scheduler = getattr(baselines, scheduler)(
            space, metric="loss", time_attr="epoch", max_t=epochs, grace_period=low, reduction_factor=eta,
            random_seed=seed, do_minimize=True,
        )  # fmt: skip
        self._d, self._trials = d, {}

    def start(self, number: int) -> np.ndarray:
        import datetime

        from syne_tune.backend.trial_status import Trial

        config = self._scheduler.suggest().config
        trial = self._trials[number] = Trial(number, config, datetime.datetime(2026, 1, 1))
        self._scheduler.on_trial_add(trial)
        return np.array([config[f"x{i}"] for i in range(self._d)])

    def goes_on(self, number: int, epoch: int, value: float) -> bool:
        from syne_tune.optimizer.scheduler import SchedulerDecision

        said = self._scheduler.on_trial_result(self._trials[number], {"loss": float(value), "epoch": epoch})
        return bool(said == SchedulerDecision.CONTINUE)

    def finish(self, number: int, epoch: int, value: float) -> None:
        self._scheduler.on_trial_complete(self._trials[number], {"loss": float(value), "epoch": epoch})


class OptunaPruned:
    """Optuna's TPE with its Hyperband pruner."""

    def __init__(self, d: int, seed: int, epochs: int, eta: int = 3, low: int = 1) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruner = optuna.pruners.HyperbandPruner(low, epochs, eta)
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner)
        self._d, self._trials, self._state = d, {}, optuna.trial.TrialState

    def start(self, number: int) -> np.ndarray:
        trial = self._trials[number] = self._study.ask()
        return np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(self._d)])

    def goes_on(self, number: int, epoch: int, value: float) -> bool:
        trial = self._trials[number]
        trial.report(float(value), epoch)
        if not trial.should_prune():
            return True
        self._study.tell(trial, state=self._state.PRUNED)
        return False

    def finish(self, number: int, epoch: int, value: float) -> None:  # noqa: ARG002  # the interface's
        self._study.tell(self._trials[number], float(value))


class HpBandSter:
    """hpbandster's generator of configurations (BOHB's KDE), whose scheduler is not used."""

    def __init__(self, d: int, seed: int) -> None:
        import ConfigSpace
        from hpbandster.optimizers.config_generators.bohb import BOHB

        np.random.seed(seed)  # it draws from nothing else
        space = ConfigSpace.ConfigurationSpace(seed=seed)
        space.add_hyperparameters([ConfigSpace.UniformFloatHyperparameter(f"x{i}", 0, 1) for i in range(d)])
        self._generator = BOHB(space)

    def point(self, budget: float) -> dict[str, float]:
        """Return params of a new trial."""
        config, _ = self._generator.get_config(budget)
        return {name: float(config[name]) for name in sorted(config)}

    def learn(self, params: Mapping[str, Any], budget: float, value: float) -> None:
        """Learn the value at a rung."""
        job = SimpleNamespace(
            kwargs={"config": dict(params), "budget": budget}, result={"loss": value}, exception=None, timestamps={}
        )
        self._generator.new_result(job)


ASKERS: Mapping[str, Callable[[int, int], Asker]] = {
    "random": Random,
    "Sobol": Sobol,
    "skopt EI": Skopt,
    "skopt gp_hedge": lambda d, seed: Skopt(d, seed, "gp_hedge"),
    "Optuna TPE": Optuna,
    "Optuna GP": lambda d, seed: Optuna(d, seed, "GPSampler"),
    "hyperopt TPE": Hyperopt,
    "BoTorch LogEI": BoTorch,
}
CLIMBERS: Mapping[str, Callable[..., Climber]] = {
    "Syne Tune ASHA": lambda d, seed, epochs, low=1: SyneTune(d, seed, epochs, low=low, scheduler="ASHA"),
    "Syne Tune BOHB": lambda d, seed, epochs, low=1: SyneTune(d, seed, epochs, low=low, scheduler="BOHB"),
    "Optuna TPE + Hyperband": lambda d, seed, epochs, low=1: OptunaPruned(d, seed, epochs, low=low),
}
_NEEDS = {
    "skopt": "skopt",
    "Optuna": "optuna",
    "hyperopt": "hyperopt",
    "BoTorch": "botorch",
    "Syne": "syne_tune",
    "hpb": "hpbandster",
}
_ALSO = {"Optuna GP": "torch"}


def missing(name: str) -> str:
    """Return the package that a peer lacks here; empty where it can be measured."""
    needed = [module for start, module in _NEEDS.items() if name.startswith(start)] + [_ALSO.get(name, "")]
    for module in filter(None, needed):
        try:
            importlib.import_module(module)
        except ImportError:
            return module
    return ""
