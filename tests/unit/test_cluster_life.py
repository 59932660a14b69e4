"""What `ems cluster start` says of a cluster that was made, and of what was not tried."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ems.cli import cluster_gc, cluster_life
from ems.cluster import lifecycle
from ems.cluster.definition import Definition
from ems.cluster.fleet import Fleet
from ems.cluster.lifecycle import Outcome
from ems.cluster.record import Files, new


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """A cluster that is wanted, and made in a moment."""
    content: dict[str, Any] = {"name": "demo", "provider": "container", "nodes": {"cpu": {}, "gpu": {"gpus": 1}}}
    definition = Definition.model_validate(content)
    fleet = Fleet(Files("demo"), new("demo", definition.model_dump(mode="json"), definition.digest))
    monkeypatch.setattr(cluster_life, "definition_of", lambda _name: definition)
    monkeypatch.setattr(cluster_gc, "remind", lambda _definition: None)
    monkeypatch.setattr(lifecycle, "begin", lambda *_: fleet)
    return fleet


def test_machines_alone_are_told_of_in_json_too(
    made: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lifecycle, "start", lambda *_, **__: Outcome(("demo-cpu-001",), seconds=2.0))
    cluster_life.start("demo", no_setup=True, yes=True, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert (said["cluster"], said["ready"], said["tests"]) == ("demo", ["demo-cpu-001"], {})
    cluster_life.start("demo", no_setup=True, yes=True)
    assert capsys.readouterr().out == "demo: 2 machines made in 2 s\n"


def test_what_was_not_tried_is_said_with_the_reason(
    made: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    untried = {
        "a/cpu": "jobs wait for them already",
        "b/gpu": "their nodes come with jobs",
        "b/cpu": "jobs wait for them already",
    }
    monkeypatch.setattr(
        lifecycle, "start", lambda *_, **__: Outcome(("demo-cpu-001",), tests={"c/cpu": "x"}, untried=untried)
    )
    cluster_life.start("demo", yes=True)
    said = capsys.readouterr()
    assert said.out.startswith("demo is ready: 1 node, 1 test job passed")
    assert "not tried, jobs wait for them already: a/cpu, b/cpu\n" in said.err
    assert "not tried, their nodes come with jobs: b/gpu\n" in said.err
