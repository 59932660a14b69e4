"""Params reach a script as they are, whichever way they are passed."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ems.node import argv

NASTY = [
    "",
    " ",
    "-1",
    "--lr",
    "-x y",
    "'",
    '"',
    "a\nb",
    "$(touch /tmp/x)",
    "`id`",
    "${HOME}",
    "é€😀",
    "a,b",
    "0.1",
    "=",
    "*",
]
_texts = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
_scalars = st.one_of(_texts, st.integers(), st.floats(), st.booleans(), st.none())
_values = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
_names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True).map(lambda name: "p" + name.lower())
_params = st.dictionaries(_names, _values, max_size=4)


def words(params: dict[str, Any], pass_as: str, **kwargs: Any) -> list[str]:
    command, env = argv.command("py", "s.py", ["-v"], params, pass_as, **kwargs)
    assert env == {}
    return command


def same(a: Any, b: Any) -> bool:
    return json.dumps(a) == json.dumps(b)  # 1, 1.0 and True differ, nan is itself


def read_back(text: str, value: Any) -> Any:
    """Read a word as a script would that knows the kind of its param."""
    if isinstance(value, str):
        return text
    return float(text) if isinstance(value, float) else json.loads(text)


@given(_params)
def test_argparse_reads_flags_back(params: dict[str, Any]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-v", action="store_true", required=True)
    for name, value in params.items():
        if isinstance(value, bool):
            parser.add_argument("--" + name, action="store_true")
        else:
            parser.add_argument("--" + name)
    command = words(params, "flags")
    assert command[:3] == ["py", "s.py", "-v"]
    read = vars(parser.parse_args(command[2:]))
    for name, value in params.items():
        plain = value is None or isinstance(value, bool)
        assert same(read[name] if plain else read_back(read[name], value), value)


@given(_params)
def test_positional_gives_the_values_in_their_order(params: dict[str, Any]) -> None:
    command = words(params, "positional")
    assert command[:3] == ["py", "s.py", "-v"]
    for text, value in zip(command[3:], params.values(), strict=True):
        assert same(read_back(text, value), value)


@given(_params)
def test_the_environment_gives_the_values_by_name(params: dict[str, Any]) -> None:
    command, env = argv.command("py", "s.py", [], params, "env")
    assert command == ["py", "s.py"]
    assert set(env) == {name.upper() for name, value in params.items() if value is not None}
    for name, value in params.items():
        assert value is None or same(read_back(env[name.upper()], value), value)


@given(_params)
def test_none_passes_nothing_and_json_everything(params: dict[str, Any]) -> None:
    assert words(params, "none") == ["py", "s.py", "-v"]
    command = words(params, "none", template=["${interpreter}", "${program}", "${args_json}"])
    assert same(json.loads(command[-1]), params)


@given(st.dictionaries(_names, _values.filter(lambda v: "nan" not in repr(v)), max_size=3))
def test_hydra_reads_overrides_back(params: dict[str, Any]) -> None:
    parser = pytest.importorskip("hydra.core.override_parser.overrides_parser").OverridesParser.create()
    loader = pytest.importorskip("hydra._internal.config_loader_impl").ConfigLoaderImpl
    omegaconf = pytest.importorskip("omegaconf").OmegaConf
    config = omegaconf.create(dict.fromkeys(params))
    overrides = [parser.parse_override(word) for word in words(params, "hydra")[3:]]
    loader._apply_overrides_to_config(overrides, config)
    assert same(omegaconf.to_container(config, resolve=True), params)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"lr": 0.1, "n": 3}, ["--lr", "0.1", "--n", "3"]),
        ({"lr": -1, "s": "-x"}, ["--lr=-1", "--s=-x"]),
        ({"amp": True, "no": False, "none": None}, ["--amp"]),
        ({"layers": [64, 64]}, ["--layers", "[64, 64]"]),
        (
            {"opt": {"name": "adam", "beta": {"one": 0.9}}, "e": {}},
            ["--opt.name", "adam", "--opt.beta.one", "0.9", "--e", "{}"],
        ),
        ({"x": math.inf, "y": math.nan}, ["--x", "inf", "--y", "nan"]),
    ],
)
def test_flags_look_as_people_type_them(params: dict[str, Any], expected: list[str]) -> None:
    assert words(params, "flags")[3:] == expected


def test_the_launcher_stands_between_interpreter_and_script() -> None:
    command = words({}, "none", launcher=["launch.py", "--loops", "[]"])
    assert command == ["py", "launch.py", "--loops", "[]", "s.py", "-v"]


def test_macros_are_those_of_wandb() -> None:
    params = {"lr": 0.1, "amp": True, "off": False, "opt": {"name": None}}

    def fill(*template: str) -> list[str]:
        return words(params, "flags", template=template)

    assert fill("${env}", "${interpreter}", "${program}", "--x", "${args}") == [
        *("/usr/bin/env", "py", "s.py", "-v", "--x", "--lr=0.1", "--amp=True", "--off=False", "--opt.name=None")
    ]
    assert fill("${program}", "${args_no_boolean_flags}")[2:] == ["--lr=0.1", "--amp", "--opt.name=None"]
    assert fill("${program}", "${args_no_hyphens}")[2:] == ["lr=0.1", "amp=True", "off=False", "opt.name=None"]
    assert fill("${program}", "${args_no_equals}")[2:4] == ["--lr", "0.1"]
    assert fill("torchrun", "${args_json}") == ["torchrun", json.dumps(params), "-v"]


def test_macros_read_the_environment_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "a b")
    assert words({}, "none", template=["${program}", "--d=${envvar:DATA}/x"]) == ["s.py", "-v", "--d=a b/x"]
    monkeypatch.delenv("DATA")
    with pytest.raises(ValueError, match=r"`\$\{envvar:DATA\}`, but DATA is not set"):
        words({}, "none", template=["${envvar:DATA}"])


@pytest.mark.parametrize(
    ("params", "pass_as", "template", "message"),
    [
        ({"a": "x\0y"}, "flags", None, "NUL byte"),
        ({"a": "x\0y"}, "env", None, "NUL byte"),
        ({"lr": 1, "LR": 2}, "env", None, "params `lr` and `LR` are both LR"),
        ({"path": "x"}, "env", None, "param `path` would overwrite PATH"),
        ({"python.path": "x"}, "env", None, "would overwrite PYTHON_PATH"),
        ({"ems_seed": 1}, "env", None, "would overwrite EMS_SEED"),
        ({}, "none", ["${argss}"], r"unknown macro `\$\{argss\}`; did you mean `\$\{args\}`"),
        ({}, "none", ["--x=${args}"], "must be a word of its own"),
    ],
)
def test_what_cannot_be_passed_is_refused_by_name(
    params: dict[str, Any], pass_as: str, template: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        argv.command("py", "s.py", [], params, pass_as, template)
