"""Gather and reduce over real files, and rows for notebooks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ems import collect
from ems.errors import NotFoundError, UsageError
from ems.harvest import harvest
from ems.store import Store


def reduce(farm: Any, name: str) -> collect.Reduced:
    return collect.reduce(farm.root, farm.experiment, farm.runs, name)


# -- gather


def test_files_of_all_runs_under_distinct_names(make_farm: Any, tmp_path: Path) -> None:
    farm = make_farm(n_runs=11)
    farm.write(0, "files/out/model.pt", "zero")
    farm.write(10, "files/out/model.pt", "ten")
    farm.write(10, "files/model.pt", "top")
    done = collect.gather(farm.root, farm.experiment, "model.pt", tmp_path / "all" / "models")
    assert {path.name: path.read_text() for _, _, path in done.files} == {
        "00-out-model.pt": "zero",
        "10-model.pt": "top",
        "10-out-model.pt": "ten",
    }
    assert done.missing == tuple(range(1, 10))
    assert sorted(path.name for path in (tmp_path / "all" / "models").iterdir()) == sorted(
        p.name for *_, p in done.files
    )


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("out/*.txt", ["out/a.txt"]),
        ("sub/b.txt", ["deep/sub/b.txt"]),
        ("deep/sub/b.txt", ["deep/sub/b.txt"]),
        ("checkpoint/*", ["checkpoint/last.pt"]),
        ("stdout.log", ["stdout.log"]),
        ("*.txt", ["deep/sub/b.txt", "out/a.txt"]),
        ("[", []),
    ],
)
def test_patterns_are_paths_as_the_script_sees_them(
    make_farm: Any, tmp_path: Path, pattern: str, found: list[str]
) -> None:
    farm = make_farm(n_runs=1, cwd="deep")
    for name in ("files/out/a.txt", "files/deep/sub/b.txt", "checkpoint/last.pt", "stdout.log", "attempts/1.json"):
        farm.write(0, name, "x")
    (tmp_path / "data.txt").write_text("the project's own")
    Path(farm.files.run(0, "files", "data.txt")).symlink_to(tmp_path / "data.txt")
    done = collect.gather(farm.root, farm.experiment, pattern, tmp_path / "into")
    assert sorted(path for _, path, _ in done.files) == found


def test_names_that_would_be_the_same_stay_distinct(farm: Any, tmp_path: Path) -> None:
    for name in ("a/b.txt", "a-b.txt"):
        farm.write(0, f"files/{name}", name)
    done = collect.gather(farm.root, farm.experiment, "*b.txt", tmp_path / "into")
    assert sorted(path.name for *_, path in done.files) == ["0-a-b.2.txt", "0-a-b.txt"]


def test_gathering_into_a_file_is_refused(farm: Any, tmp_path: Path) -> None:
    (tmp_path / "into").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        collect.gather(farm.root, farm.experiment, "*", tmp_path / "into")


# -- reduce


def test_csv_of_all_runs_with_their_params(farm: Any, tmp_path: Path) -> None:
    farm.write(0, "files/out.csv", '\ufeffepoch,acc,lr\n1,0.5,x\n2,"0,6",y\n')
    farm.write(2, "files/out.csv", "epoch,loss\n1,3\nbroken\n")
    reduced = reduce(farm, "out.csv")
    assert reduced.missing == (1,)
    assert reduced.problems == ("7f3a9c21/2/out.csv line 3: 1 cell where the header has 2",)
    collect.write(reduced, tmp_path / "all.csv")
    assert (tmp_path / "all.csv").read_text().splitlines() == [
        "run,param.lr,opt.name,epoch,acc,lr,loss",
        "0,0.1,sgd,1,0.5,x,",
        '0,0.1,sgd,2,"0,6",y,',
        f"2,,sgd,1,,{0.1 * 3},3",
    ]


def test_json_and_json_lines(farm: Any, tmp_path: Path) -> None:
    farm.write(0, "files/r.json", '{"acc": 0.5, "per_class": [1, 2]}')
    farm.write(1, "files/r.json", '[{"acc": 1}, {"acc": 2}, 3]')
    farm.write(2, "files/r.json", "{")
    reduced = reduce(farm, "r.json")
    assert [(row["run"], row["acc"]) for row in reduced.rows] == [(0, 0.5), (1, 1), (1, 2)]
    assert len(reduced.problems) == 2
    collect.write(reduced, tmp_path / "r.jsonl")
    first = json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])
    assert first == {"run": 0, "lr": 0.1, "opt.name": "sgd", "acc": 0.5, "per_class": [1, 2]}
    farm.write(0, "files/r.jsonl", '{"a": NaN}\nx\n{"a": 2}\n')
    lines = reduce(farm, "r.jsonl")
    assert [row["a"] for row in lines.rows][1] == 2
    assert "7f3a9c21/0/r.jsonl line 2: not JSON" in lines.problems[0]
    assert lines.missing == (1, 2)


def test_arrays_that_are_columns_become_one_table(farm: Any, tmp_path: Path) -> None:
    for index in range(2):
        path = farm.write(index, "files/out/r.npz", "")
        np.savez(path, x=np.arange(2 + index), y=np.ones((2 + index, 3)))
    farm.write(2, "files/out/r.npz", "broken")
    reduced = reduce(farm, "out/r.npz")
    assert len(reduced.problems) == 1
    collect.write(reduced, tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz") as joined:
        assert joined["run"].tolist() == [0, 0, 1, 1, 1]
        assert joined["lr"].tolist() == [0.1, 0.1, 0.2, 0.2, 0.2]
        assert joined["opt.name"].tolist() == ["sgd"] * 5
        assert joined["x"].tolist() == [0, 1, 0, 1, 2]
        assert joined["y"].shape == (5, 3)


def test_arrays_of_other_lengths_say_whose_their_rows_are(farm: Any) -> None:
    for index in (0, 2):
        np.savez(farm.write(index, "files/r.npz", ""), loss=np.zeros(3 + index), acc=0.5 + index)
    reduced = reduce(farm, "r.npz")
    assert reduced.arrays["run"].tolist() == [0, 2]
    assert reduced.arrays["acc"].tolist() == [0.5, 2.5]
    assert reduced.arrays["loss.run"].tolist() == [0] * 3 + [2] * 5
    assert reduced.missing == (1,)


def test_arrays_that_do_not_fit_are_refused_by_name(farm: Any) -> None:
    np.savez(farm.write(0, "files/r.npz", ""), x=np.ones((2, 3)))
    np.savez(farm.write(1, "files/r.npz", ""), x=np.ones((2, 4)))
    with pytest.raises(UsageError, match=r"`x` of run 1 has rows of shape \(4,\)"):
        reduce(farm, "r.npz")


def test_a_pickle_in_an_array_file_is_not_run(farm: Any) -> None:
    np.savez(farm.write(0, "files/r.npz", ""), x=np.array([{"a": 1}], dtype=object))
    assert "7f3a9c21/0/r.npz" in reduce(farm, "r.npz").problems[0]


def test_a_format_that_is_not_known(farm: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="format is not known") as caught:
        reduce(farm, "model.pt")
    assert ".npz" in caught.value.hint
    with pytest.raises(UsageError, match="does not fit"):
        collect.write(reduce(farm, "x.csv"), tmp_path / "x.npz")


# -- notebooks


def test_rows_and_points_for_a_notebook(farm: Any) -> None:
    farm.attempt(0)
    farm.log(0, 0, loss=2)
    farm.log(0, 1, loss=1, lr=9)
    with Store(farm.root / "ems.db") as store:
        harvest(store, farm.root, lambda jobs: {})
        first, *others = store.rows("last")
        assert (first["experiment"], first["run"], first["lr"], first["opt.name"]) == ("7f3a9c21", 0, 0.1, "sgd")
        assert (first["loss"], first["metric.lr"], first["state"]) == (1.0, 9.0, "COMPLETED")
        assert len(others) == 2
        assert store.points("loss") == [
            {"experiment": "7f3a9c21", "run": 0, "step": 0, "loss": 2.0},
            {"experiment": "7f3a9c21", "run": 0, "step": 1, "loss": 1.0},
        ]
        with pytest.raises(NotFoundError):
            store.rows("nothing")


def test_a_frame_for_pandas(farm: Any) -> None:
    pandas = pytest.importorskip("pandas")
    farm.attempt(0)
    farm.log(0, 0, loss=2)
    with Store(farm.root / "ems.db") as store:
        harvest(store, farm.root, lambda jobs: {})
        frame = store.frame("train")
        assert isinstance(frame, pandas.DataFrame)
        assert frame.loc[0, "loss"] == 2.0
        assert frame["lr"].dtype == float
