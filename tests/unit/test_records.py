"""The record of a run: files that are whole or not there."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ems.node import records


def test_only_the_first_creates(tmp_path: Path) -> None:
    path = tmp_path / "1.json"
    assert records.create_exclusive(path, "first")
    assert not records.create_exclusive(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_whose_answer_got_lost_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_twice(source: str, target: str) -> None:  # as NFS does
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    assert records.create_exclusive(tmp_path / "1.json", "ours")
    assert not records.create_exclusive(tmp_path / "1.json", "second")


def test_a_failed_write_leaves_the_old_content_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    records.write_atomic(path, "old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"folder|missing"):
        records.write_atomic(tmp_path / "folder", "cannot replace a folder")
    with pytest.raises(OSError, match=r"folder|missing"):
        records.write_atomic(tmp_path / "missing" / "spec.json", "new")
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "spec.json"]


def test_a_run_is_read_by_its_index_alone(tmp_path: Path) -> None:
    files = records.ExperimentFiles(tmp_path, "7f3a9c21")
    Path(files.dir).mkdir(parents=True)
    lines = [{"index": i, "params": {"text": "ü\n" * i, "x": i / 3}} for i in range(100)]
    assert records.write_runs(files, iter(lines)) == 100
    assert [records.read_run(files, i) for i in (0, 57, 99)] == [lines[0], lines[57], lines[99]]
    assert list(records.iterate_runs(files)) == lines


@given(st.lists(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.floats() | st.text())))
def test_params_keep_value_and_type(tmp_path_factory: pytest.TempPathFactory, params: list[dict[str, object]]) -> None:
    files = records.ExperimentFiles(tmp_path_factory.mktemp("root"), "0a")
    Path(files.dir).mkdir(parents=True)
    records.write_runs(files, ({"params": each} for each in params))
    for index, each in enumerate(params):
        assert json.dumps(records.read_run(files, index)["params"]) == json.dumps(each)


def test_nan_and_infinity_survive() -> None:
    loss = json.loads(records.dump({"loss": math.nan, "peak": math.inf}))
    assert math.isnan(loss["loss"])
    assert loss["peak"] == math.inf


def test_chunk_and_attempt_numbers_ignore_what_is_being_written(tmp_path: Path) -> None:
    files = records.ExperimentFiles(tmp_path, "0a")
    assert files.chunk_numbers() == []
    Path(files.chunks).mkdir(parents=True)
    for name in ("2.json", "10.json", "1.json", "3.json.ab12.aside", "1.sh", "1.intent", "x.json"):
        (Path(files.chunks) / name).write_text("{}")
    assert files.chunk_numbers() == [1, 2, 10]


def test_chunk_indices() -> None:
    assert list(records.chunk_indices({"start": 3, "stop": 6})) == [3, 4, 5]
    assert list(records.chunk_indices({"start": None, "stop": None, "indices": [7, 2]})) == [7, 2]


def test_runs_are_appended_once_and_what_was_cut_off_is_not_there(tmp_path: Path) -> None:
    files = records.ExperimentFiles(tmp_path, "7f3a9c21")
    Path(files.dir).mkdir(parents=True)
    assert records.count_runs(files) == 0
    lines = [{"index": i, "params": {"text": "ü\n" * i}} for i in range(9)]
    records.write_runs(files, lines[:2])
    assert records.append_runs(files, lines[:5]) == 5, "those that are there are passed over"
    with Path(files.runs).open("ab") as runs, Path(files.offsets).open("ab") as offsets:
        runs.write(b'{"index": 5, "par')  # killed in the middle of a line, and of an offset
        offsets.write(b"\7\0\0")
    assert records.count_runs(files) == 5
    assert list(records.iterate_runs(files)) == lines[:5]
    assert records.append_runs(files, lines[3:]) == 9
    assert records.append_runs(files, lines) == 9
    assert list(records.iterate_runs(files)) == lines
    assert list(records.iterate_runs(files, 7)) == lines[7:]
    assert list(records.iterate_runs(files, 9)) == []
    assert records.read_run(files, 5) == lines[5]
    with pytest.raises(ValueError, match="run 11 follows run 8"):
        records.append_runs(files, [{"index": 11}])
    assert list(records.iterate_runs(files)) == lines
