"""What people write of a study, and what of it cannot be meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ems.errors import UsageError
from ems.search.dimension import Categorical, Fixed, Real
from ems.search.problem import Fidelity
from ems.search.space import SearchSpace
from ems.space import sweep
from ems.study import words
from ems.study.asked import Asked, check_args, of_sweep, specify

SPACE = SearchSpace((Real("lr", 1e-5, 1e-1, prior="log"), Categorical("opt", ("adam", "sgd")), Fixed("width", 64)))
EPOCHS = Fidelity("epochs", 1, 81, 3)


def test_a_fidelity_and_its_rungs() -> None:
    assert words.parse_fidelity("epochs=1..81").rungs == (1, 3, 9, 27, 81)
    assert words.parse_fidelity("share=0.125..1", 2).rungs == (0.125, 0.25, 0.5, 1)
    assert words.parse_fidelity("max_epochs=2..32", 4).eta == 4


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("300epochs", {"epochs": 300}),
        ("300 epochs, 40gpuh", {"epochs": 300, "gpuh": 40}),
        ("6h", {"h": 6}),
        ("90min", {"h": 1.5}),
        ("2d,50usd", {"h": 48, "usd": 50}),
        ("$50", {"usd": 50}),
        ("1_000cpuh", {"cpuh": 1000}),
        ("60trials", {"trials": 60}),
        ("3000steps", {"epochs": 3000}),
    ],
)
def test_budgets_as_they_are_written(text: str, budget: dict[str, float]) -> None:
    assert words.parse_budget([text], "steps") == budget


def test_shares_and_goals() -> None:
    assert (words.parse_share("15%"), words.parse_share("0.15"), words.parse_share("0")) == (0.15, 0.15, 0)
    assert (words.check_goal("max"), words.check_goal("minimise")) == ("maximize", "minimize")


def test_groups_are_the_values_of_a_column_each_once(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("\ufeffname,customer\na,north\nb,south\nc,north\nd,\n", encoding="utf-8")
    assert words.read_groups("customer=c.csv", tmp_path) == words.Groups("customer", ("north", "south"))
    for text, said in (
        ("customer", "is not COLUMN=FILE.csv"),
        ("customer=d.csv", "there is no file d.csv"),
        ("custmer=c.csv", "has no column `custmer`"),
        ("x=empty.csv", "is empty"),
    ):
        (tmp_path / "empty.csv").write_text("x\n")
        with pytest.raises(UsageError, match=said):
            words.read_groups(text, tmp_path)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda: words.parse_fidelity("epochs"), "does not say how long"),
        (lambda: words.parse_fidelity("epochs=81..1"), "never gets from 81 to 1"),
        (lambda: words.parse_fidelity("epochs=0..9"), "never gets from 0 to 9"),
        (lambda: words.parse_fidelity("epochs=a..9"), "its ends are no numbers"),
        (lambda: words.parse_fidelity("epochs=1..81", 1), "--eta 1 leaves no trial out"),
        (lambda: words.parse_fidelity("epochs=50..81"), "has a single rung"),
        (lambda: words.parse_budget(["lots"]), "`lots` is no budget"),
        (lambda: words.parse_budget(["300"]), "has no unit"),
        (lambda: words.parse_budget(["300epocs"]), "no unit `epocs`"),
        (lambda: words.parse_budget(["0h"]), "lets nothing run"),
        (lambda: words.parse_budget(["6h,2h"]), "says twice how many h"),
        (lambda: words.parse_share("150%"), "is no share"),
        (lambda: words.parse_share("some"), "is no share"),
        (lambda: words.check_sampler("gpp"), "--sampler cannot be `gpp`"),
        (lambda: words.check_scheduler("ash"), "--scheduler cannot be `ash`"),
        (lambda: words.check_mode("both"), "--mode cannot be `both`"),
        (lambda: words.check_goal("up"), "--goal cannot be `up`"),
    ],
)
def test_what_cannot_be_read_is_named_with_a_hint(read: Callable[[], object], said: str) -> None:
    with pytest.raises(UsageError) as error:
        read()
    assert said in error.value.message
    assert error.value.hint


def test_what_nobody_says_is_filled_in() -> None:
    plain = specify(Asked(metric="val_loss", trials=30), SPACE, "7f3a9c21", seed=4, parallel=3)
    assert (plain.goal, plain.sampler, plain.scheduler, plain.mode, plain.parallel, plain.seed) == (
        "minimize",
        "gp",
        "none",
        "async",
        3,
        4,
    )
    assert plain.budget == {"trials": 30}
    assert plain.problem().space == SPACE
    asha = specify(Asked(metric="acc", fidelity=EPOCHS, budget={"epochs": 300, "h": 6}), SPACE, "1")
    assert (asha.goal, asha.scheduler, asha.problem().trials, asha.problem().epochs) == ("maximize", "asha", None, 300)
    grid = specify(
        Asked(metric="loss", sampler="grid", seeds=2, groups=words.Groups("customer", ("a", "b", "c"))),
        SearchSpace((Categorical("opt", ("adam", "sgd")),)),
        "1",
    )
    assert (grid.budget, grid.group_by) == ({"trials": 12}, "customer")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(trials=3), "nothing says what a good trial is"),
        (Asked(metric="x", trials=3), "is a low or a high `x` good?"),
        (Asked(metric="loss"), "nothing says when the search ends"),
        (Asked(metric="loss", trials=3, scheduler="hyperband"), "no param says how many"),
        (Asked(metric="loss", trials=3, fidelity=Fidelity("width", 1, 9)), "`width` is both in the space and the fid"),
        (Asked(metric="loss", trials=3, groups=words.Groups("lr", ("a",))), "`lr` is both in the space and the column"),
        (Asked(metric="loss", trials=0), "trials 0 is none"),
        (Asked(metric="loss", trials=3, parallel=-1), "parallel -1 is none"),
        (Asked(metric="loss", trials=3, seeds=0), "seeds 0 is none"),
        (Asked(metric="loss", trials=1, groups=words.Groups("c", ("a", "b"))), "too few for 2 groups"),
    ],
)
def test_what_cannot_be_meant_together_is_said_before_anything_starts(asked: Asked, said: str) -> None:
    with pytest.raises(UsageError) as error:
        specify(asked, SPACE, "7f3a9c21")
    assert said in error.value.message
    assert error.value.hint


@pytest.mark.parametrize("seed", [-1, 2**32, 10**20])
def test_a_seed_is_one_that_every_library_takes(seed: int) -> None:
    with pytest.raises(UsageError, match=f"--seed {seed} is no seed"):
        specify(Asked(metric="loss", trials=3), SPACE, "7f3a9c21", seed=seed)
    assert specify(Asked(metric="loss", trials=3), SPACE, "7f3a9c21", seed=2**32 - 1).seed == 2**32 - 1


def test_an_empty_file_of_groups_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("")
    with pytest.raises(UsageError, match="no column `customer`") as error:
        words.read_groups("customer=none.csv", tmp_path)
    assert error.value.hint.startswith("it is empty")


def test_a_param_that_is_given_by_hand_too_is_refused() -> None:
    check_args(EPOCHS, SPACE, ["--data", "lr"])
    for words_ in (["--lr", "0.1"], ["--epochs=3"], ["opt=sgd"]):
        with pytest.raises(UsageError, match="stands after `--`, and the study chooses it"):
            check_args(EPOCHS, SPACE, words_)


SWEEP = """\
program: train.py
method: bayes
metric: {name: val_loss, goal: minimize}
run_cap: 60
parameters:
  lr: {distribution: log_uniform_values, min: 1e-5, max: 1e-1}
  epochs: {value: 81}
early_terminate: {type: hyperband, min_iter: 3, eta: 3}
"""


def test_a_wandb_sweep_file_says_the_same_as_options(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP)
    asked = of_sweep(sweep.load(file))
    assert (asked.metric, asked.goal, asked.trials, asked.scheduler) == ("val_loss", "minimize", 60, "hyperband")
    assert asked.fidelity == Fidelity("epochs", 3, 81, 3)
    assert asked.notes == (
        "method bayes is --sampler gp",
        "metric is --metric val_loss --goal minimize",
        "run_cap is --trials 60",
        "early_terminate is --scheduler hyperband --fidelity epochs=3..81 --eta 3",
    )
    typed = Asked(trials=10, sampler="ts", fidelity=Fidelity("epochs", 1, 9, 3)).over(asked)
    assert (typed.trials, typed.sampler, typed.metric, typed.fidelity) == (
        10,
        "ts",
        "val_loss",
        Fidelity("epochs", 1, 9),
    )


def test_early_terminate_without_a_count_of_epochs_cancels_by_step(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP.replace("  epochs: {value: 81}\n", "").replace("min_iter: 3", "max_iter: 27, s: 2"))
    asked = of_sweep(sweep.load(file))
    assert (asked.scheduler, asked.fidelity) == ("stop", Fidelity("", 3, 27, 3))
    assert asked.notes[-1].endswith("runs that are worse than others at step 3, 9 are cancelled")
    spec = specify(asked, SPACE, "1")
    assert spec.overlay(spec.budget_of(0)) == {}
