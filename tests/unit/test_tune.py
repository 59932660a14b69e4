"""What `ems tune` says: numbers with the digits they deserve, commands that read back, prices of trials."""

from __future__ import annotations

import shlex
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ems import space
from ems.cli import budget, tune_status
from ems.cluster import catalog, price
from ems.cluster.record import Files, new
from ems.model import Experiment, Json, PassAs, Resources, State
from ems.search.dimension import Real
from ems.search.problem import Fidelity
from ems.search.space import SearchSpace
from ems.search.trial import Origin, Outcome, Trial
from ems.store.studies import StudyRow
from ems.study.spec import StudySpec
from ems.study.standing import Best, Standing

EXPERIMENT = Experiment(
    "7f3a9c21", "train", "2026-11-21T09:00:00.000Z", "dir/train.py", "5" * 40, 4, study_id="7f3a9c21"
)
SPEC = StudySpec("7f3a9c21", SearchSpace((Real("x", 0.0, 1.0),)).dump(), "acc", "maximize", budget={"trials": 4})


def standing(experiment: Experiment = EXPERIMENT, spec: StudySpec = SPEC, values: tuple[float, ...] = ()) -> Standing:
    trials = [
        Trial(number, {"x": number / 8}, config=number, outcome=Outcome.OK, values=(-value,))
        for number, value in enumerate(values)
    ]
    return Standing(experiment, StudyRow(spec.id, spec.dump()), spec, trials, (), {})


@pytest.mark.parametrize(
    ("mean", "sd", "shown"),
    [
        (0.91234, 0.0123, "0.912 ± 0.012"),
        (0.0123, 2e-6, "0.0123000 ± 0.0000020"),
        (123456.0, 789.0, "1.23e+05 ± 7.9e+02"),
        (0.5, float("nan"), "0.5"),
        (0.5, 0.0, "0.5"),
    ],
)
def test_a_number_has_the_decimals_that_its_deviation_deserves(mean: float, sd: float, shown: str) -> None:
    assert tune_status.spread(mean, sd) == shown


def test_the_command_of_a_configuration_reads_back_as_its_params() -> None:
    params: dict[str, Json] = {"lr": 1e-05, "opt": "adam", "code": "007", "n": "12", "text": "a, b", "flag": True,
                               "layers": [64, 64], "none": None, "quote": "it's"}  # fmt: skip
    experiment = replace(
        EXPERIMENT,
        args=("--data", "my data"),
        pass_as=PassAs.HYDRA,
        resources=Resources(gres="gpu:1", alloc="--a=b -c d"),
    )
    spec = replace(SPEC, fidelity=Fidelity("epochs", 1, 9), scheduler="asha")
    best = Best(None, 3, params, 5, 0.9, 0.01, 0.9, 1, 9.0, None, float("nan"))
    words = shlex.split(tune_status.run_command(standing(experiment, spec), best))
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    read = {name: cast("Any", axis).values for name, axis in map(space.parse_assignment, sets)}
    assert read == {name: ((value,),) for name, value in {**params, "epochs": 9}.items()}
    assert words[:3] == ["ems", "run", "dir/train.py"]
    rest = words[words.index("--seed") :]
    assert rest == ["--seed", "5", "--pass-as", "hydra", "--on", "here", "--gres", "gpu:1", "--alloc", "--a=b -c d",
                    "--", "--data", "my data"]  # fmt: skip


def test_the_best_is_what_the_model_believes_and_before_there_is_one_what_was_seen() -> None:
    few = standing(values=(0.5, 0.7)).best[0]
    assert (few.number, few.mean, few.observed, few.sd != few.sd) == (1, 0.7, 0.7, True)
    many = standing(values=(0.1, 0.5, 0.9, 0.5, 0.1)).best[0]
    assert (many.number, many.observed) == (2, 0.9)
    assert 0 < many.sd < 0.5
    assert not standing().best


def test_a_best_that_another_study_gave_is_no_run_of_this_one() -> None:
    own = standing(values=(0.1, 0.9))
    given = replace(own.trials[1], number=-1, config=-1, origin=Origin.GIVEN)
    warm = replace(own, trials=[own.trials[0], given])
    said = [*tune_status.lines(warm), *tune_status._best_lines(warm, warm.best[0])]
    assert warm.best[0].number == -1
    assert sum("known from --warm-start" in line for line in said) == 2
    assert not any("-1" in line for line in said)


def test_what_is_said_next_is_what_can_be_done() -> None:
    crashed = replace(standing(), trials=[Trial(2, {"x": 0.5}, config=2, outcome=Outcome.CRASHED)])
    assert tune_status._next(crashed).startswith("next: ems logs 7f3a9c21/2 · ")
    assert tune_status._next(standing(values=(0.5,))).startswith("next: ems tune best 7f3a9c21 · ")


def test_a_trial_costs_its_share_of_a_node() -> None:
    definition = catalog.load("gce", None)
    files = Files("gce")
    files.save(new("gce", definition.model_dump(mode="json"), definition.digest))
    whole = price.of_kind(definition, "gpu")
    assert whole

    def cost(name: str, resources: Resources, remote: object = object()) -> float | None:
        target = SimpleNamespace(name=name, remote=remote)
        return budget.price(
            cast("Any", SimpleNamespace(target=target, experiment=replace(EXPERIMENT, resources=resources)))
        )

    assert cost("gce", Resources(gres="gpu:1")) == pytest.approx(whole)
    assert cost("gce", Resources(gres="gpu:1", nodes=2)) == pytest.approx(2 * whole)
    assert cost("other", Resources(gres="gpu:1")) is None
    assert cost("here", Resources(), remote=None) is None


def test_more_than_were_asked_for_are_explained() -> None:
    begun = standing()
    trials = [Trial(number, {"x": number / 8}, config=number) for number in range(3)]
    busy = replace(begun, trials=trials, states=dict.fromkeys(range(3), State.RUNNING))
    says = {
        n: next(line for line in tune_status.lines(replace(busy, spec=replace(SPEC, parallel=n))) if "busy" in line)
        for n in (2, 3)
    }
    assert says[2].endswith("3 of 2 busy: those queued ahead found room, too")
    assert says[3].endswith("3 of 3 busy")
