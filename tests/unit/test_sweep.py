"""Sweep files of Weights & Biases, as people have them on disk."""

from __future__ import annotations

import contextlib
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ems.errors import ConfigError
from ems.model import Axis, Resources
from ems.space import Sweep, build, sweep
from ems.space.distribution import Beta, Choice, IntUniform, LogNormal, LogUniform, Normal, Uniform

FULL = """
# as written for `wandb sweep`
program: train.py
project: digits
entity: us
method: random
name: first try
description: does the rate matter?
metric:
  name: val/loss
  goal: minimize
run_cap: 6
command:
  - ${env}
  - ${interpreter}
  - ${program}
  - --fast
  - ${args_no_boolean_flags}
parameters:
  lr:
    distribution: log_uniform_values
    min: 1e-5
    max: 1e-1
  batch: {values: [16, 32, 64]}
  layers: {min: 1, max: 4}
  dropout: {min: 0, max: 0.5}
  epochs:
    value: 5
  opt:
    parameters:
      name: {values: [adam, sgd], probabilities: [0.9, 0.1]}
      deep:
        parameters:
          beta: {value: 0.9}
resources:
  gres: gpu:1
  time: 2:00:00
  cpus: 4
  mem: 16
"""


def load(tmp_path: Path, text: str) -> Sweep:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return sweep.load(path)


def grid(tmp_path: Path, parameters: str, method: str = "grid") -> Sweep:
    return load(tmp_path, f"method: {method}\nrun_cap: 100\nparameters:\n  {parameters}\n")


def test_a_file_is_read_wholly(tmp_path: Path) -> None:
    read = load(tmp_path, FULL)
    assert read.dimensions == {
        "lr": LogUniform(1e-5, 1e-1),
        "batch": Choice((16, 32, 64)),
        "layers": IntUniform(1, 4),
        "dropout": Uniform(0, 0.5),
        "epochs": Axis(("epochs",), ((5,),)),
        "opt.name": Choice(("adam", "sgd"), (0.9, 0.1)),
        "opt.deep.beta": Axis(("opt.deep.beta",), ((0.9,),)),
    }
    assert (read.program, read.method, read.run_cap) == ("train.py", "random", 6)
    assert (read.name, read.description) == ("first try", "does the rate matter?")
    assert read.metric == {"name": "val/loss", "goal": "minimize"}
    assert read.command == ("${env}", "${interpreter}", "${program}", "--fast", "${args_no_boolean_flags}")
    assert read.resources == Resources(gres="gpu:1", time="2:00:00", cpus=4, mem="16")


def test_its_points_have_nested_params_in_the_order_of_the_file(tmp_path: Path) -> None:
    made = build([], [], None, 0, load(tmp_path, FULL))
    points = [dict(params) for params in made.iterate()]
    assert len(points) == made.count == 6
    for point in points:
        assert list(point) == ["lr", "batch", "layers", "dropout", "epochs", "opt"]
        opt: Any = point["opt"]
        assert opt["name"] in ("adam", "sgd")
        assert opt["deep"] == {"beta": 0.9}


class _Quoting(yaml.SafeDumper):
    """Quotes every string: without, a string like 1e5 is one in YAML 1.1 only."""


_Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))
_scalars = st.one_of(
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8")),
    st.booleans(),
    st.none(),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.from_regex(r"[a-z_][a-z0-9_]{0,6}", fullmatch=True),
        st.lists(_scalars, min_size=1, max_size=3),
        min_size=1,
        max_size=3,
    )
)
def test_a_grid_is_the_product_of_its_values(tmp_path: Path, parameters: dict[str, list[Any]]) -> None:
    content = {"method": "grid", "parameters": {name: {"values": values} for name, values in parameters.items()}}
    text = yaml.dump(content, Dumper=_Quoting, sort_keys=False, allow_unicode=True)
    made = build([], [], None, 0, load(tmp_path, text))
    assert repr([tuple(p.values()) for p in made.iterate()]) == repr(list(product(*parameters.values())))
    assert all(list(p) == list(parameters) for p in made.iterate())


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("{distribution: uniform, min: 0, max: 1}", Uniform(0, 1)),
        ("{min: 0.0, max: 1}", Uniform(0.0, 1)),
        ("{min: 0, max: 9}", IntUniform(0, 9)),
        ("{distribution: int_uniform, min: -3, max: 3}", IntUniform(-3, 3)),
        ("{distribution: q_uniform, min: 0, max: 1, q: 0.1}", Uniform(0, 1, 0.1)),
        ("{distribution: q_uniform, min: 0, max: 10}", Uniform(0, 10, 1)),
        ("{distribution: log_uniform, min: -2, max: 0}", LogUniform(math.exp(-2), 1)),
        ("{distribution: q_log_uniform, min: 0, max: 2, q: 1}", LogUniform(1, math.exp(2), 1)),
        ("{distribution: inv_log_uniform, min: 0, max: 2}", LogUniform(math.exp(-2), 1)),
        ("{distribution: q_log_uniform_values, min: 8, max: 64, q: 8}", LogUniform(8, 64, 8)),
        ("{distribution: inv_log_uniform_values, min: 1e-3, max: 1}", LogUniform(1e-3, 1)),
        ("{distribution: normal}", Normal(0, 1)),
        ("{distribution: normal, mu: 5, sigma: 2}", Normal(5, 2)),
        ("{distribution: q_normal, mu: 5, q: 2}", Normal(5, 1, 2)),
        ("{distribution: log_normal, mu: 1}", LogNormal(1, 1)),
        ("{distribution: q_log_normal, q: 0.5}", LogNormal(0, 1, 0.5)),
        ("{distribution: beta, a: 2}", Beta(2, 1)),
        ("{distribution: q_beta, q: 0.25}", Beta(1, 1, 0.25)),
        ("{distribution: categorical, values: [a]}", Choice(("a",))),
        (
            "{distribution: categorical_w_probabilities, values: [a, b], probabilities: [0.5, 0.5]}",
            Choice(("a", "b"), (0.5, 0.5)),
        ),
        ("{distribution: constant, value: [1, 2]}", Axis(("x",), (([1, 2],),))),
    ],
)
def test_distributions_mean_what_they_mean_to_wandb(tmp_path: Path, spec: str, expected: object) -> None:
    assert grid(tmp_path, f"x: {spec}", "random").dimensions == {"x": expected}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("{min: 1, max: 3}", [1, 2, 3]),
        ("{distribution: q_uniform, min: 0, max: 0.5, q: 0.1}", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        ("{distribution: q_uniform, min: 0, max: 10, q: 5}", [0, 5, 10]),
        ("{value: 3}", [3]),
        ("{values: [1e-3, 1E+2, '1e-3', 2:00:00, on, ~, 007]}", [0.001, 100.0, "1e-3", "2:00:00", "on", None, "007"]),
    ],
)
def test_a_grid_walks_whole_numbers_and_steps(tmp_path: Path, spec: str, expected: list[object]) -> None:
    dimension = grid(tmp_path, f"x: {spec}").dimensions["x"]
    assert isinstance(dimension, Axis)
    assert repr([value for (value,) in dimension.values]) == repr(expected)


def test_merge_keys_and_anchors_are_read(tmp_path: Path) -> None:
    read = grid(tmp_path, "a: &a {values: [1]}\n  b: *a\n  c:\n    <<: *a\n    values: [2]")
    assert list(build([], [], None, 0, read).iterate()) == [{"a": 1, "b": 1, "c": 2}]


def test_bayes_and_early_termination_are_read(tmp_path: Path) -> None:
    read = load(
        tmp_path, "method: bayes\nearly_terminate: {type: hyperband, min_iter: 3}\nparameters: {x: {min: 1, max: 2}}\n"
    )
    assert (read.method, read.early_terminate) == ("bayes", {"type": "hyperband", "min_iter": 3})


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("method: grid\nparamters: {}", "line 2: unknown key `paramters`", "did you mean `parameters`?"),
        ("method: grid\nzzz: 1\nparameters: {}", "line 2: unknown key `zzz`", "known keys: program, method"),
        ("method: gird\nparameters: {x: {value: 1}}", "line 1: `method` cannot be 'gird'", "did you mean `grid`?"),
        ("parameters: {x: {value: 1}}", "has no `method`", "method: grid"),
        ("method: grid", "`parameters` names no parameters", "values"),
        ("method: grid\nparameters:\n  lr:\n    vlaues: [1]", "line 4: unknown key `parameters.lr.vlaues`", "`values`"),
        ("method: grid\nparameters:\n  lr: 0.1", "line 3: `parameters.lr` is no mapping", "lr: {value: 0.1}"),
        ("method: grid\nparameters:\n  lr: {values: []}", "line 3: `lr` has no list of values", ""),
        ("method: grid\nparameters:\n  lr: {value: 1, values: [1]}", "constant has no `values`", "takes `value`"),
        ("method: grid\nparameters:\n  lr: {min: 1}", "int_uniform needs `max`", "takes `min`, `max`"),
        ("method: grid\nparameters:\n  lr: {}", "does not say which values it takes", "distribution"),
        ("method: grid\nparameters:\n  lr: {min: 0.1, max: 1}", "`lr`: a grid cannot walk uniform", "method: random"),
        ("method: grid\nparameters:\n  n: {min: 1, max: 9999999}", "`n` has 9,999,999 values", ""),
        ("method: random\nparameters:\n  lr: {min: 3, max: 1}", "the lower end 3 is not below the upper end 1", ""),
        ("method: random\nparameters:\n  lr: {min: a, max: 1}", "`parameters.lr.min` must be a number, not 'a'", ""),
        (
            "method: random\nparameters:\n  lr: {distribution: uniformly, min: 0, max: 1}",
            "cannot be 'uniformly'",
            "`uniform`",
        ),
        (
            "method: random\nparameters:\n  lr: {distribution: log_uniform, min: 1, max: 2000}",
            "math range",
            "exponents of e",
        ),
        ("method: random\nparameters:\n  lr: {distribution: int_uniform, min: 1, max: 2.5}", "takes whole numbers", ""),
        ("method: random\nparameters:\n  x: {values: [1], probabilities: [2]}", "add up to 1", ""),
        (
            "method: grid\nparameters:\n  x: {parameters: {y: {value: 1}}, value: 2}",
            "both `parameters` and `value`",
            "",
        ),
        ("method: grid\nparameters:\n  a: {parameters: {b: {value: 1}}}\n  a.b: {value: 2}", "`a.b` stands twice", ""),
        ("method: grid\nparameters:\n  --lr: {value: 1}", "`--lr` cannot be the name of a param", ""),
        ("method: grid\nparameters:\n  x: {value: 1}\n  x: {value: 2}", "line 4: the key `x` stands twice", ""),
        ("method: grid\nparameters:\n  1: {value: 1}", "line 3: the key `1` is not text", ""),
        ("method: grid\nparameters:\n  x: {value: !!python/name:os.system }", "line 3: `tag:yaml.org,2002:python", ""),
        ("method: grid\nparameters: [", "line 2: ", ""),
        ("", "is empty", ""),
        ("- a", "is no mapping", ""),
        (
            "method: grid\nrun_cap: 0\nparameters: {x: {value: 1}}",
            "`run_cap` must be a whole number above 0, not 0",
            "",
        ),
        ("method: grid\njob: x\nparameters: {x: {value: 1}}", "`job` needs the service of Weights & Biases", "program"),
        (
            "method: grid\ncommand: python x\nparameters: {x: {value: 1}}",
            "`command` must be a list of words",
            "${args}",
        ),
        (
            "method: grid\ncommand: ['${agrs}']\nparameters: {x: {value: 1}}",
            "`${agrs}`; did you mean `${args}`",
            "${env}",
        ),
        ("method: grid\nmetric: {goal: minimize}\nparameters: {x: {value: 1}}", "`metric` needs a `name`", ""),
        (
            "method: grid\nmetric: {name: a, goal: min}\nparameters: {x: {value: 1}}",
            "`metric.goal` cannot be 'min'",
            "minimize",
        ),
        ("method: grid\nresources: {gpuss: 1}\nparameters: {x: {value: 1}}", "unknown key `resources.gpuss`", "`gpus`"),
        (
            "method: grid\nresources: {cpus: many}\nparameters: {x: {value: 1}}",
            "`resources.cpus` must be a whole number",
            "",
        ),
        ("method: grid\nresources: {mem: [1]}\nparameters: {x: {value: 1}}", "`resources.mem` must be text", ""),
        ("method: grid\nprogram: [a]\nparameters: {x: {value: 1}}", "`program` must be text", ""),
    ],
)
def test_what_cannot_be_meant_names_file_line_and_key(tmp_path: Path, text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.message.startswith(str(tmp_path / "sweep.yaml"))
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no sweep file"):
        sweep.load(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        sweep.load(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=200)
@given(st.text(st.sampled_from("abmethodgridparameters:{}[]&*!<,-\"'#|>? \n0.1e~"), max_size=60))
def test_garbage_is_an_error_of_ours(tmp_path: Path, text: str) -> None:
    for whole in (text, f"method: grid\nparameters:\n  {text}"):
        with contextlib.suppress(ConfigError):
            load(tmp_path, whole)
