"""`ems cluster list`, `show` and `schema` as people use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ems import registry
from ems.cluster import catalog, record
from ems.ssh import Host

MINE = "provider: container\ndescription: of the lab\nnodes: {gpu: {gpus: 2}}\n"


@pytest.fixture
def mine(project: Path) -> Path:
    (project / "cluster").mkdir()
    path = project / "cluster/mine.yaml"
    path.write_text(MINE)
    return path


def test_list_shows_definitions_and_what_is_there(ems: Any, project: Path, mine: Path) -> None:
    definition = catalog.load("mine", project)
    files = record.Files("mine")
    made = record.new("mine", definition.model_dump(mode="json"), definition.digest)
    files.save(made)
    files.update(made, wanted=("mine-gpu-001", "mine-gpu-002"), phase=record.Phase.READY)
    registry.save(registry.RemoteTarget("uni", Host("me@login"), "/scratch/ems", ("python3",)))
    registry.use("uni")
    rows = {row["name"]: row for row in json.loads(ems("cluster", "list", "--json").stdout)}
    assert {row["origin"] for name, row in rows.items() if name not in {"mine", "uni"}} == {"ems"}
    rows = {name: rows[name] for name in ("local", "mine", "uni")}
    assert {name: (row["origin"], row["state"], row["is_current"]) for name, row in rows.items()} == {
        "local": ("ems", None, False),
        "mine": ("project", "ready", False),
        "uni": (None, "connected", True),
    }
    assert rows["mine"]["nodes"] == {"gpu": 2}
    shown = ems("cluster", "list").stdout
    assert "connected, current" in shown
    assert "of the lab" in shown


def test_list_names_what_is_wrong_with_a_definition_and_shows_the_others(ems: Any, mine: Path) -> None:
    (mine.parent / "broken.yaml").write_text("provider: container\nnode: {}\n")
    (mine.parent / "damaged.yaml").write_text(MINE)
    files = record.Files("damaged")
    files.make()
    (files.dir / "record.json").write_text("{")
    rows = {row["name"]: row for row in json.loads(ems("cluster", "list", "--json").stdout)}
    assert "broken.yaml line 2: unknown key `node`" in rows["broken"]["error"]
    assert "record.json cannot be read" in rows["damaged"]["error"]
    assert rows["mine"]["error"] is None


def test_a_definition_is_found_from_a_folder_inside_the_project(ems: Any, project: Path, mine: Path) -> None:
    (project / "deep").mkdir()
    (project / "deep/here.py").write_text("")
    shown = ems("cluster", "show", "mine").stdout
    assert yaml.safe_load(shown)["nodes"]["gpu"]["gpus"] == 2


def test_what_show_prints_is_a_definition_that_means_the_same(ems: Any, project: Path, mine: Path) -> None:
    (project / "cluster/needs.txt").write_text("torch\n")
    (project / "cluster/own.yml").write_text("[]\n")
    mine.write_text(
        MINE
        + "python: {requirements: needs.txt}\nhooks: {after: own.yml}\nusers: {eve: {groups: lab}}\n".replace(
            "lab}", "[lab]}"
        )
    )
    (project / "cluster/copy.yaml").write_text(ems("cluster", "show", "mine").stdout)
    first, second = (catalog.load(name, project).model_dump(exclude={"name"}) for name in ("mine", "copy"))
    assert first == second
    assert first["python"]["requirements"] == "torch\n"


def test_show_says_that_a_cluster_was_made_by_another_version(ems: Any, project: Path, mine: Path) -> None:
    definition = catalog.load("mine", project)
    record.Files("mine").save(record.new("mine", definition.model_dump(mode="json"), definition.digest))
    assert "another version" not in ems("cluster", "show", "mine").stderr
    mine.write_text(MINE + "accounting: false\n")
    assert "made by another version" in ems("cluster", "show", "mine").stderr
    mine.unlink()
    found = json.loads(ems("cluster", "show", "mine", "--json").stdout)
    assert found["digest"] == definition.digest
    assert found["from"] == "the record of the cluster"


def test_a_wrong_definition_is_an_error_of_one_line_and_a_hint(ems: Any, mine: Path) -> None:
    mine.write_text("provider: container\nnodes:\n  gpu: {cout: 3}\n")
    done = ems("cluster", "show", "mine", code=2)
    assert done.stdout == ""
    assert (
        done.stderr == "error: cluster/mine.yaml line 3: unknown key `nodes.gpu.cout`\n\nhint: did you mean `count`?\n"
    )


def test_the_schema_is_written_for_editors(ems: Any, project: Path) -> None:
    printed = ems("cluster", "schema").stdout
    ems("cluster", "schema", "--write")
    assert (project / "cluster/schema.json").read_text() == printed
    described = json.loads(printed)
    assert described["additionalProperties"] is False
    assert set(described["required"]) == {"provider", "nodes"}
    assert "local" in {row["name"] for row in json.loads(ems("cluster", "list", "--json").stdout)}
