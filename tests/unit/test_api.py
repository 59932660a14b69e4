"""What a script sees of its run; outside a run it is harmless."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ems
from ems.node import api


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in api._RANKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EMS_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(api, "_sinks", {})
    return tmp_path


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_outside_a_run_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "_sinks", {})
    ems.log(step=1, loss=0.1, whatever=object())
    assert (ems.params(), ems.seed(), ems.seed(default=3), ems.attempt(), ems.is_resumed()) == ({}, 0, 3, 1, False)
    assert list(tmp_path.iterdir()) == []
    assert ems.checkpoint() == Path("checkpoint")
    assert (tmp_path / "checkpoint").is_dir()


def test_params_keep_their_types(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMS_PARAMS", '{"lr": 0.1, "n": 3, "flag": true, "none": null, "model": {"depth": 2}}')
    assert ems.params() == {"lr": 0.1, "n": 3, "flag": True, "none": None, "model": {"depth": 2}}
    ems.params()["lr"] = 1
    assert ems.params()["lr"] == 0.1
    (tmp_path / "params.json").write_text('{"long": "x"}')
    monkeypatch.setenv("EMS_PARAMS_FILE", str(tmp_path / "params.json"))
    assert ems.params() == {"long": "x"}


def test_numpy_scalars_are_numbers(run: Path) -> None:
    ems.log(step=np.int64(3), a=np.float32(0.5), b=np.float64(0.25), c=np.bool_(True), d=np.array([[7]]))
    (line,) = logged(run)
    assert {k: line[k] for k in ("step", "a", "b", "c", "d")} == {"step": 3, "a": 0.5, "b": 0.25, "c": True, "d": 7}


@pytest.mark.parametrize(
    ("value", "what"), [(np.zeros(3), r"`bad` is an array of shape \(3,\)"), ({1}, "`bad` is of type set")]
)
def test_what_is_no_number_is_named(run: Path, value: Any, what: str) -> None:
    with pytest.raises(TypeError, match=what):
        ems.log(step=0, good=1, bad=value)
    assert logged(run) == []


def test_steps_count_themselves(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ems.log(a=1)
    ems.log(a=2)
    ems.log(step=10, a=3)
    ems.log(final=4)
    assert [line["step"] for line in logged(run)] == [0, 1, 10, 11]
    monkeypatch.setattr(api, "_sinks", {})
    monkeypatch.setenv("EMS_RESUME", "1")
    monkeypatch.setenv("EMS_ATTEMPT", "2")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "a"')  # torn
    ems.log(a=5)
    *_, torn, line = (run / "metrics.jsonl").read_text().splitlines()
    assert torn == '{"step": 12, "a"'
    assert {k: json.loads(line)[k] for k in ("step", "a", "_a")} == {"step": 12, "a": 5, "_a": 2}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.text(min_size=1).filter(lambda name: name not in ("step", "all_ranks") and not name.startswith("_")),
        st.one_of(st.floats(), st.integers(), st.booleans(), st.text(), st.none()),
    )
)
def test_what_is_logged_comes_back(run: Path, metrics: dict[str, Any]) -> None:
    (run / "metrics.jsonl").unlink(missing_ok=True)
    api._sinks.clear()
    api.log(step=1, **metrics)
    (text,) = (run / "metrics.jsonl").read_bytes().decode("utf-8", "surrogatepass").split("\n")[:-1]
    line = json.loads(text)
    found = {name: value for name, value in line.items() if name not in ("step", "_t", "_a")}
    assert repr(found) == repr(metrics)  # NaN too
