"""The store in a real SQLite file: schema, migrations, damage, several commands at once."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ems.errors import NotFoundError, StoreError
from ems.model import Experiment, LoopRef, PassAs, Resources, Run, State
from ems.store import Store, find, journal, migrations


def experiment(
    exp_id: str = "7f3a9c21", name: str = "train", created: str = "2026-11-21T09:00", n: int = 3
) -> Experiment:
    return Experiment(exp_id, name, created, "train.py", "5" * 40, n)


def runs(n: int = 3, **params: Any) -> list[Run]:
    return [Run(i, {"lr": 0.1 * i, **params}, i, f"key{i}") for i in range(n)]


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store(tmp_path / ".ems" / "ems.db") as opened:
        yield opened


SCHEMA = {
    "_sqlite_migrations": ["id", "migration_set", "name", "applied_at"],
    "attempts": [
        *("run_id", "attempt", "chunk", "state", "host", "pid", "job", "slurm_state", "started_at", "ended_at"),
        *("exit_code", "signal", "reason", "gpus", "max_rss_mb", "cpu_s", "wall_s", "resumed_from", "error"),
        *("stdout_from", "stderr_from"),
    ],
    "curves": ["experiment", "run", "metric", "attempt", "step", "value", "text", "at"],
    "experiments": [
        *("id", "name", "created_at", "script", "target", "executor", "snapshot", "n_runs", "message", "spec"),
        "removed_at",
    ],
    "metrics": ["id", "name"],
    "params": ["experiment_id", "name", "path"],
    "points": ["run_id", "metric_id", "attempt", "step", "value", "text", "at"],
    "requests": ["study_id", "name", "wake"],
    "runs": [
        *("id", "experiment_id", "idx", "params", "seed", "key", "loops", "state", "slurm_state", "reason", "chunk"),
        *("attempt", "version", "settled", "gone_since", "chain"),
    ],
    "runs_wide": [
        *("experiment", "name", "run", "state", "slurm_state", "attempt", "seed", "started_at", "wall_s", "max_rss_mb"),
        *("gpus", "host", "reason"),
    ],
    "sources": ["run_id", "path", "offset", "size", "mtime_ns", "fingerprint", "attempt", "state"],
    "summaries": [
        *("run_id", "metric_id", "source", "n", "n_nan", "n_text", "last", "last_text", "last_step"),
        *("min", "max", "sum"),
    ],
    "segments": [
        *("study_id", "number", "rung", "budget", "chunk", "tries", "outcome", "value", "cost", "asked", "told"),
        *("reason", "started_at", "ended_at", "host", "wall_s", "points", "last_step"),
    ],
    "studies": [
        *("id", "spec", "state", "reason", "ending", "wakes", "resumed", "failures", "next_wake", "cache"),
    ],
    "trials": [
        *("study_id", "number", "config", "params", "seed", "grp", "bracket", "origin", "mean", "sd", "acquisition"),
        "asked",
    ],
    "wakes": ["study_id", "wake", "at", "wall_s", "cpu_s", "told", "asked", "free", "calls", "reason"],
}  # fmt: skip


def schema(store: Store) -> dict[str, list[str]]:
    names = [
        name for (name,) in store.query("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name")
    ]
    return {name: [row[1] for row in store.query(f"PRAGMA table_info({name})")] for name in names}


def test_the_schema_from_blank(store: Store) -> None:
    assert schema(store) == SCHEMA
    assert store.query("PRAGMA journal_mode") == [("wal",)]
    assert store.query("PRAGMA foreign_keys") == [(1,)]
    assert migrations.applied(store.db) == [name for name, _ in migrations.MIGRATIONS]
    assert (store.path.parent / ".gitignore").read_text() == "*\n"


def test_only_a_local_store_has_the_journal_that_is_of_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home of me").mkdir()
    mounts = tmp_path / "mounts"
    shared = str(tmp_path / "home of me").replace(" ", "\\040")
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/export/home {shared} nfs4 rw,vers=4.2 0 0\n")
    monkeypatch.setattr(journal.mode, "__defaults__", (mounts,))
    modes = {}
    for folder in (tmp_path, tmp_path / "home of me" / "project"):
        with Store(folder / ".ems" / "ems.db") as opened:
            modes[folder.name] = opened.query("PRAGMA journal_mode")[0][0]
    assert modes == {tmp_path.name: "wal", "project": "delete"}
    assert journal.mode(tmp_path, tmp_path / "nothing") == "WAL"


def test_an_older_store_is_brought_up_to_date_and_a_copy_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ems.db"
    with Store(path) as old:
        old.add(experiment(), runs())
    (tmp_path / "ems.db.backup").unlink()

    def m999_note(db: Any) -> None:
        db.execute("ALTER TABLE experiments ADD COLUMN note TEXT")

    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, ("m999_note", m999_note)))
    for _ in range(2):  # the second time there is nothing to do
        with Store(path) as new:
            assert "note" in schema(new)["experiments"]
            assert new.experiments() == [experiment()]
            assert len(new.states("7f3a9c21")) == 3
    with sqlite3.connect(tmp_path / "ems.db.backup") as copy:
        assert "note" not in [row[1] for row in copy.execute("PRAGMA table_info(experiments)")]
    copy.close()


def test_a_migration_that_fails_leaves_the_store_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ems.db"
    Store(path).close()

    def m999_broken(db: Any) -> None:
        db.execute("CREATE TABLE half (x)")
        db.execute("NONSENSE")

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, ("m999_broken", m999_broken)))
        with pytest.raises(StoreError, match="NONSENSE"):
            Store(path)
    with Store(path) as store:
        assert "half" not in schema(store)


def test_a_store_of_a_newer_version_is_refused_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "ems.db"
    with Store(path) as store, store.write() as db:
        db.execute("INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('ems', 'm900_later', '')")
    with pytest.raises(StoreError, match=r"newer ems.*m900_later") as caught:
        Store(path)
    assert "upgrade" in caught.value.hint


def test_a_file_that_is_no_store_is_said_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "ems.db"
    path.write_bytes(b"garbage, nothing but garbage" * 100)
    with pytest.raises(StoreError, match=r"damaged .*there is no backup of it yet") as caught:
        Store(path)
    assert "ems harvest" in caught.value.hint
    assert path.read_bytes().startswith(b"garbage")  # nothing is thrown away


def _read_all(path: Path) -> None:
    with Store(path) as store:
        list(store.runs("7f3a9c21"))
        store.counts()


def test_a_damaged_store_names_the_copy_that_is_kept_and_the_copy_works(tmp_path: Path) -> None:
    path = tmp_path / "ems.db"
    with Store(path) as store:
        store.add(experiment(), runs(2000))
    backup = tmp_path / "ems.db.backup"
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 2000] = b"\xff" * 2000
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged") as caught:
        _read_all(path)
    assert str(backup) in caught.value.message
    path.write_bytes(backup.read_bytes())
    with Store(path) as again:
        assert len(again.states("7f3a9c21")) == 2000


def test_a_damaged_store_does_not_replace_the_good_copy(tmp_path: Path) -> None:
    path = tmp_path / "ems.db"
    with Store(path) as store:
        store.add(experiment(), runs(2000))
    backup = tmp_path / "ems.db.backup"
    good = backup.read_bytes()
    data = bytearray(path.read_bytes())
    data[-4096:-2096] = b"\xff" * 2000
    path.write_bytes(data)
    with Store(path) as store, pytest.raises(StoreError, match="damaged"):
        store.backup()
    assert backup.read_bytes() == good
    assert not list(tmp_path.glob("*.aside*"))


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used") as caught:
        Store(tmp_path / "file" / ".ems" / "ems.db")
    assert "a folder that you may write" in caught.value.hint


def test_a_full_disk_is_said_and_nothing_is_half_written(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("600k")
    with Store(disk / "ems.db") as store:
        store.add(experiment("aaaaaaaa"), runs())
        with pytest.raises(StoreError, match=r"disk of the store .* is full"):
            store.add(experiment(n=20_000), runs(20_000))
        assert [each.id for each in store.experiments()] == ["aaaaaaaa"]
        assert store.counts() == {"aaaaaaaa": {State.PENDING: 3}}


def test_experiments_come_back_as_they_were(store: Store) -> None:
    full = Experiment(
        *("0a1b2c3d", "näme", "2026-11-21T09:00", "a b.py", "5" * 40, 1),
        args=("-x", "1"),
        command=("${env}",),
        pass_as=PassAs.HYDRA,
        axes=({"names": ["lr"], "size": 4},),
        loops=(LoopRef(3, 0, ("lr", "i"), 4),),
        resources=Resources(gres="gpu:1", mem="4G"),
        tags=("a",),
        env={"A": "1"},
        provenance={"pip": ["x==1"]},
    )
    store.add(full, [])
    (found,) = store.experiments()
    assert found == full
    assert Experiment.load(
        {"id": "x", "name": "y", "created_at": "", "script": "s", "snapshot": "", "n_runs": 0, "new": 1}
    )


def test_adding_twice_changes_nothing(store: Store) -> None:
    store.add(experiment(), runs())
    store.add(experiment(), runs(7))
    assert len(store.states("7f3a9c21")) == 3


def test_params_keep_their_types(store: Store) -> None:
    params = {"i": 2**40, "f": 1e-5, "b": True, "n": None, "s": "0.1", "l": [1, "x"], "nested": {"deep": {"x": 1}}}
    odd = {"inf": math.inf, "minus": -math.inf, "quote\"'": "'\"", "ü": "\n", "tag": "$nan"}
    store.add(experiment(n=2), [Run(0, params, 0, "a"), Run(1, odd | {"nan": math.nan}, 1, "b")])
    first, second = store.runs("7f3a9c21")
    assert first.params == params
    assert isinstance(second.params["nan"], float)
    assert math.isnan(second.params["nan"])
    assert {name: value for name, value in second.params.items() if name != "nan"} == odd


def test_resolve(store: Store) -> None:
    for exp_id, name, created in [("aa11", "x", "1"), ("aa22", "x", "2"), ("bb33", "aa", "3"), ("last0", "z", "0")]:
        store.add(experiment(exp_id, name, created), [])
    assert store.resolve("last").id == "bb33"
    assert store.resolve("aa11").id == "aa11"
    assert store.resolve("x").id == "aa22"  # the newest of that name
    assert store.resolve("aa").id == "bb33"  # a name wins over the beginning of an id
    assert store.resolve("aa1").id == "aa11"
    with pytest.raises(NotFoundError, match="no experiment `q%`"):
        store.resolve("q%")
    store.add(experiment("aa23", "y", "4"), [])
    with pytest.raises(NotFoundError, match=r"begins 2 ids: aa22 \(x\), aa23 \(y\)"):
        store.resolve("aa2")


def test_runs_states_and_keys(store: Store) -> None:
    store.add(experiment(n=5), runs(5))
    with store.write() as db:
        db.execute("UPDATE runs SET state = 'COMPLETED' WHERE idx IN (1, 3)")
    assert [run.index for run in store.runs("7f3a9c21", [3, 1, 99])] == [1, 3]
    assert store.counts() == {"7f3a9c21": {State.COMPLETED: 2, State.PENDING: 3}}
    assert store.counts(["zz"]) == {"zz": {}}
    assert store.completed_keys(f"key{i}" for i in range(5)) == {"key1": "7f3a9c21/1", "key3": "7f3a9c21/3"}
    assert store.attempts("7f3a9c21", 0) == []


def test_removing_keeps_the_record_and_purging_does_not(store: Store) -> None:
    store.add(experiment(), runs())
    store.remove("7f3a9c21")
    assert "7f3a9c21" in store.removed()
    assert store.counts() == {"7f3a9c21": {State.CANCELLED: 3}}
    store.remove("7f3a9c21", purge=True)
    assert store.experiments() == []
    assert store.query("SELECT count(*) FROM runs") == [(0,)]


def test_runs_wide_has_params_as_columns_of_their_type(store: Store) -> None:
    store.add(experiment(), [Run(0, {"lr": 0.1, "opt": {"name": "sgd"}, "state": "x", "a b": 1, "it's": 2}, 0, "k")])
    store.add(experiment("bbbbbbbb"), [Run(0, {"LR": 3, "wide": True}, 0, "k")])
    sql = (
        'SELECT lr, typeof(lr), "opt.name", param_state, "a b", "it\'s", state, wide FROM runs_wide ORDER BY experiment'
    )
    assert store.query(sql)[0] == (0.1, "real", "sgd", "x", 1, 2, "PENDING", None)


def test_thousands_of_params_leave_the_view_usable(store: Store) -> None:
    store.add(experiment(), [Run(0, {f"p{i}": i for i in range(3000)}, 0, "k")])
    assert store.query("SELECT run FROM runs_wide") == [(0,)]


def test_the_store_is_found_upwards_and_made_at_the_top_of_the_project(project: Path) -> None:
    below = project / "a" / "b"
    below.mkdir(parents=True)
    assert find(below) == project.resolve() / ".ems" / "ems.db"
    with Store.open(below):
        pass
    assert (project / ".ems" / "ems.db").is_file()
    (below / ".ems").mkdir()  # a folder of that name without a store is none
    assert find(below) == project.resolve() / ".ems" / "ems.db"


def test_a_store_that_is_not_to_be_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store in") as caught:
        Store.open(tmp_path, make=False)
    assert "ems parrun" in caught.value.hint
    assert not (tmp_path / ".ems").exists()
    Store.open(tmp_path).close()
    Store.open(tmp_path, make=False).close()


def test_many_commands_at_once_make_one_store(tmp_path: Path) -> None:
    code = (
        "import sys; from ems.store import Store; from ems.model import *\n"
        "s = Store(sys.argv[1]); i = sys.argv[2]\n"
        "s.add(Experiment(i * 8, 'n', i, 'x.py', '', 50), (Run(k, {'p' + i: k}, k, 'k') for k in range(50)))\n"
        "s.close()\n"
    )
    path = tmp_path / ".ems" / "ems.db"

    def start(number: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, str(path), str(number)], capture_output=True, text=True)

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(start, range(4)))
    assert [each.stderr for each in done] == [""] * 4
    with Store(path) as store:
        assert len(store.experiments()) == 4
        assert store.query("SELECT count(*) FROM runs") == [(200,)]
        assert store.query("PRAGMA integrity_check") == [("ok",)]
        assert {"p0", "p1", "p2", "p3"} <= set(schema(store)["runs_wide"])


def test_a_store_that_another_command_writes_to_for_long_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ems.store.BUSY_S", 0.05)
    with Store(tmp_path / "ems.db") as one, Store(tmp_path / "ems.db") as two:
        with one.write(), pytest.raises(StoreError, match="is busy"):
            two.add(experiment(), [])
        two.add(experiment(), [])
        assert len(one.experiments()) == 1


def test_opening_a_store_loads_no_heavy_library(tmp_path: Path) -> None:
    Store(tmp_path / "ems.db").close()
    code = "import sys; from ems.store import Store; Store(sys.argv[1]).close(); print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "ems.db")], capture_output=True, text=True, check=True
    )
    assert not {"'pandas'", "'sqlite_utils'", "'numpy'"} & set(done.stdout.strip("[]\n").split(", "))
