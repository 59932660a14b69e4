"""A mirror of another root: after any history, and however often a pull was killed, it ends in the same content."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ems import harvest
from ems.errors import ConnectionFailedError
from ems.model import State
from ems.node.records import UNTOUCHED_AT
from ems.remote import mirror as mirrors
from ems.remote import pull, stream
from ems.remote.mirror import Mirror
from ems.remote.pull import METRICS, STATES, Scope
from ems.store import Store

EXP = "7f3a9c21"
N_RUNS = 2


class KilledError(BaseException):
    """Stands for SIGKILL: nothing in between may catch it."""


class Past:
    """Gives files times long ago, each later than the one before: what was changed is told by its time."""

    def __init__(self) -> None:
        self._seconds = itertools.count(1_600_000_000)

    def stamp(self, *paths: Path) -> None:
        at = next(self._seconds)
        for path in paths:
            os.utime(path, (at, at))


def call_of(root: Path, scope: Scope) -> Any:
    """Answer as the other machine does, without a wire."""

    def call(request: Any) -> Any:
        request = json.loads(json.dumps(request))
        return stream.packed(pull.frames(root, request["experiments"], scope))

    return call


def pulled(root: Path, mirror: Path, scope: Scope = METRICS, runs: Collection[int] = range(N_RUNS)) -> Any:
    return Mirror(mirror).pull(call_of(root, scope), {EXP: runs}, scope)


def content(root: Path) -> dict[str, bytes]:
    """Return all that a pull is to bring, by path."""
    base = root / "experiments" / EXP
    found = [path for folder in ("runs", "chunks") for path in (base / folder).rglob("*") if path.is_file()]
    return {
        path.relative_to(base).as_posix(): path.read_bytes()
        for path in found
        if path.name.endswith((".json", ".job", ".log", ".csv", ".jsonl")) and "-files" not in str(path)
    }


# -- histories

NAMES = ("stdout.log", "metrics.jsonl", "files/a.csv", "files/results.json", "files/out/b.csv", "files/a.csv/deep.csv")
actions = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, N_RUNS - 1), st.sampled_from(NAMES), st.binary(max_size=40)),
        st.tuples(st.just("replace"), st.integers(0, N_RUNS - 1), st.sampled_from(NAMES), st.binary(max_size=60)),
        st.tuples(st.just("truncate"), st.integers(0, N_RUNS - 1), st.sampled_from(NAMES), st.integers(0, 40)),
        st.tuples(st.just("delete"), st.integers(0, N_RUNS - 1), st.sampled_from(NAMES), st.none()),
        st.tuples(st.just("begin"), st.integers(0, N_RUNS - 1), st.booleans(), st.none()),
        st.tuples(st.just("end"), st.integers(0, N_RUNS - 1), st.none(), st.none()),
        st.tuples(st.just("pull"), st.integers(0, 40), st.integers(0, 50), st.booleans()),
        st.tuples(st.just("states"), st.integers(0, 40), st.integers(0, 50), st.booleans()),
    ),
    min_size=1,
    max_size=25,
)


class World:
    """A root that changes, and its mirror."""

    def __init__(self, farm: Any) -> None:
        self.farm, self.root, self.past = farm, farm.root, Past()
        self.mirror = farm.root.parent / "mirror"
        self.n_attempts = dict.fromkeys(range(N_RUNS), 0)
        self.past.stamp(*Path(farm.files.chunks).iterdir())

    def act(self, what: str, a: Any, b: Any, c: Any) -> None:
        getattr(self, what)(a, b, c)

    def append(self, run: int, name: str, data: bytes) -> None:
        self._put(run, name, data, append=True)

    def replace(self, run: int, name: str, data: bytes) -> None:
        if name not in ("stdout.log", "metrics.jsonl"):  # those are only ever appended to
            self._put(run, name, data, append=False)

    def truncate(self, run: int, name: str, size: int) -> None:
        path = self._path(run, name)
        if path.is_file() and name not in ("stdout.log", "metrics.jsonl"):
            os.truncate(path, min(size, path.stat().st_size))
            self.past.stamp(path)

    def delete(self, run: int, name: str, _: None) -> None:
        path = self._path(run, name)
        if path.is_file() and name.startswith("files/"):
            path.unlink()

    def begin(self, run: int, is_fresh: bool, _: None) -> None:
        number = self.n_attempts[run] = self.n_attempts[run] + 1
        log = self._path(run, "stdout.log")
        start = log.stat().st_size if log.exists() else 0
        self.farm.attempt(run, number, "RUNNING", stdout_from=start, resumed_from=None)
        self.past.stamp(Path(self.farm.files.attempt(run, number)))
        if is_fresh and self._path(run, "files").exists():
            self._path(run, "files").rename(self._path(run, f"attempts/{number - 1}-files"))

    def end(self, run: int, *_: None) -> None:
        number = self.n_attempts[run]
        if number:
            path = Path(self.farm.files.attempt(run, number))
            begun = json.loads(path.read_text())
            self.farm.attempt(run, number, "COMPLETED", stdout_from=begun["stdout_from"], resumed_from=None)
            self.past.stamp(path)

    def pull(self, frame: int, byte: int, is_late: bool, scope: Scope = METRICS) -> None:
        """Pull, and be killed in a frame at a byte, or as the file is put in place."""
        count = itertools.count()
        take, finish = mirrors._Work._take, mirrors._Work._finish

        def dies(work: Any, header: Any, data: bytes) -> None:
            number = next(count)
            self.check(work)
            if number == frame and not is_late:
                cut = {key: value for key, value in header.items() if key != "mtime"}
                if "file" in header or "on" in header:
                    take(work, cut, data[:byte])
                raise KilledError
            take(work, header, data)

        def dies_late(work: Any, mtime: int) -> None:
            if is_late and next(count) >= frame:
                raise KilledError
            finish(work, mtime)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mirrors._Work, "_take", dies)
            patch.setattr(mirrors._Work, "_finish", dies_late)
            with suppress(KilledError):
                pulled(self.root, self.mirror, scope)

    def states(self, frame: int, byte: int, is_late: bool) -> None:
        self.pull(frame, byte, is_late, STATES)

    def check(self, _: Any) -> None:
        """See that the mirror might be an earlier state of the root: no print stands where it is another attempt's."""
        for run in range(N_RUNS):
            folder = self.mirror / "experiments" / EXP / "runs" / str(run)
            log, attempts = (
                folder / "stdout.log",
                sorted(int(each.stem) for each in (folder / "attempts").glob("*.json")),
            )
            following = Path(self.farm.files.attempt(run, attempts[-1] + 1)) if attempts else None
            if log.exists() and following is not None and following.exists():
                assert log.stat().st_size <= json.loads(following.read_text())["stdout_from"]

    def _path(self, run: int, name: str) -> Path:
        return Path(self.farm.files.run(run, name))

    def _put(self, run: int, name: str, data: bytes, append: bool) -> None:
        path = self._path(run, name)
        if path.is_dir() or any(each.is_file() for each in path.parents):
            return
        self.farm.write(run, name, data, append=append)
        self.past.stamp(path)


@given(actions)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_happened_a_whole_pull_ends_in_the_same_content(farm: Any, history: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(type(farm)(Path(folder) / "root", n_runs=N_RUNS))
        for action in history:
            world.act(*action)
        pulled(world.root, world.mirror)
        assert content(world.mirror) == content(world.root)
        again = pulled(world.root, world.mirror)
        assert again.n_bytes == 0
        ended = {run: bool(n) and _has_ended(world, run, n) for run, n in world.n_attempts.items()}
        assert again.complete == {EXP: ended}


def _has_ended(world: World, run: int, number: int) -> bool:
    return json.loads(Path(world.farm.files.attempt(run, number)).read_text())["state"] == "COMPLETED"


# -- single properties


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return tmp_path / "mirror"


def here(mirror: Path, name: str, run: int = 0) -> Path:
    return mirror / "experiments" / EXP / "runs" / str(run) / name


def test_a_file_that_grows_is_sent_from_where_it_was(farm: Any, mirror: Path) -> None:
    past = Past()
    for size in (1, 200_000, 300_000, 5_000_000):
        past.stamp(farm.write(0, "stdout.log", os.urandom(size), append=True))
        farm.attempt(0, state="RUNNING")
        came = pulled(farm.root, mirror).n_bytes
        assert size <= came < size + 1000
        assert here(mirror, "stdout.log").read_bytes() == Path(farm.files.run(0, "stdout.log")).read_bytes()


@pytest.mark.parametrize("place", [0, 100_000, 2_000_000])
def test_one_that_was_written_anew_is_sent_as_a_whole(farm: Any, mirror: Path, place: int) -> None:
    old = os.urandom(2_000_001)
    past, path = Past(), farm.write(0, "files/x.csv", old)
    past.stamp(path)
    pulled(farm.root, mirror)
    new = bytearray(old + b"more")
    new[place] ^= 1
    path.write_bytes(new)
    past.stamp(path)
    pulled(farm.root, mirror)
    assert here(mirror, "files/x.csv").read_bytes() == bytes(new)


def test_in_a_large_file_that_is_written_in_place_a_change_in_the_middle_is_seen(farm: Any, mirror: Path) -> None:
    values = [0.25] * 400_000
    past, path = Past(), farm.write(0, "files/results.json", json.dumps(values))
    past.stamp(path)
    pulled(farm.root, mirror)
    values[200_000] = 0.75
    path.write_text(json.dumps(values))
    past.stamp(path)
    pulled(farm.root, mirror)
    assert json.loads(here(mirror, "files/results.json").read_text()) == values


def test_what_changes_again_within_the_same_tick_is_seen(
    farm: Any, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "_RACY_NS", 3600 * 10**9)  # however slow the machine is
    path = farm.write(0, "files/results.json", '{"a": 1}')
    facts = path.stat()
    pulled(farm.root, mirror)
    path.write_text('{"a": 2}')
    os.utime(path, ns=(facts.st_mtime_ns, facts.st_mtime_ns))
    pulled(farm.root, mirror)
    assert here(mirror, "files/results.json").read_text() == '{"a": 2}'


def test_the_projects_own_files_and_large_tables_stay_there(
    farm: Any, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ems.outputs.MAX_CSV_BYTES", 10)
    os.utime(farm.write(0, "files/seen.csv", "a,b\n1,2\n"), (UNTOUCHED_AT, UNTOUCHED_AT))
    farm.write(0, "files/model.bin", "weights")
    farm.write(0, "files/large.csv", "a,b\n" + "1,2\n" * 9)
    farm.write(0, "checkpoint/last.csv", "x")
    brought = pulled(farm.root, mirror)
    assert brought.left_out == [f"{EXP}/0/large.csv"]
    assert not here(mirror, "files").exists()
    named = Scope(metrics=True, globs=("large.csv",))
    assert not pulled(farm.root, mirror, named).left_out
    assert here(mirror, "files/large.csv").exists()


def test_a_run_is_fetched_by_pattern_and_path_without_its_attempts(farm: Any, mirror: Path) -> None:
    for name in ("files/out/a.png", "checkpoint/b.png", "stdout.log"):
        farm.write(0, name, name)
    farm.attempt(0)
    pulled(farm.root, mirror, Scope(pattern="*.png", attempts=False))
    assert sorted(path.name for path in mirror.rglob("*") if path.is_file() and "runs" in path.parts) == [
        "a.png",
        "b.png",
    ]
    pulled(farm.root, mirror, Scope(paths=("stdout.log", "../1/stdout.log", "/etc/passwd", "."), attempts=False))
    assert here(mirror, "stdout.log").read_text() == "stdout.log"


@pytest.mark.parametrize(
    "name",
    [
        "../../../x",
        "/tmp/x",
        "runs/0/../../../x",
        "runs/7/x",
        "spec.json",
        "runs/0/",
        "runs/0/a\0b",
        "chunks/../spec.json",
        "runs/²/x",
    ],
)
def test_the_other_machine_cannot_write_where_it_was_not_asked_to(mirror: Path, name: str) -> None:
    def call(_: Any) -> Any:
        return stream.packed(
            [({"experiment": EXP}, b""), ({"file": name, "whole": True, "mtime": 1}, b"evil"), ({"gone": name}, b"")]
        )

    with pytest.raises(ConnectionFailedError, match="was not asked for"):
        Mirror(mirror).pull(call, {EXP: [0]}, METRICS)
    assert [path.name for path in mirror.rglob("*") if path.is_file()] == ["pull.lock"]


def test_a_connection_that_breaks_again_and_again_brings_all_in_the_end(farm: Any, mirror: Path) -> None:
    past = Past()
    for run in range(2):
        for number in range(6):
            past.stamp(farm.write(run, f"files/{number}.csv", os.urandom(200_000)))
    answer = call_of(farm.root, METRICS)
    breaks = iter([2, 4, 1])

    def call(request: Any) -> Iterator[Any]:
        left = next(breaks, 1000)
        for pack in answer(request):
            left -= 1
            if left < 0:
                raise ConnectionFailedError("the connection broke")
            yield pack

    Mirror(mirror).pull(call, {EXP: range(2)}, METRICS)
    assert content(mirror) == content(farm.root)

    def dead(_: Any) -> Iterator[Any]:
        raise ConnectionFailedError("no route")
        yield

    with pytest.raises(ConnectionFailedError, match="no route"):
        Mirror(mirror).pull(dead, {EXP: range(2)}, METRICS)


def test_of_a_mirror_only_what_came_whole_is_settled(farm: Any, mirror: Path, tmp_path: Path) -> None:
    """Another command may bring the end of a run into the mirror between the pull and the reading of this one."""
    for path in (farm.files.spec, farm.files.runs, farm.files.offsets):
        place = mirror / Path(path).relative_to(farm.root)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(Path(path).read_bytes())
    for index in range(3):
        farm.attempt(index, state="RUNNING")
        farm.log(index, 0, loss=1.0)
    with Store(tmp_path / "ems.db") as store:
        harvest.adopt(store, mirror)
        first = pulled(farm.root, mirror, runs=range(3))
        for index in range(3):
            farm.log(index, 1, loss=0.5)
            farm.attempt(index)
        pulled(farm.root, mirror, STATES, runs=range(3))  # of the other command
        harvest.harvest(store, mirror, {}, complete=first.complete)
        assert {state for _, state in store.states(EXP)} == {State.COMPLETED}
        assert store.unsettled_runs(EXP) == [0, 1, 2]
        harvest.harvest(store, mirror, {}, complete={})  # the machine is away
        assert store.unsettled_runs(EXP) == [0, 1, 2]
        whole = pulled(farm.root, mirror, runs=range(3))
        harvest.harvest(store, mirror, {}, complete=whole.complete)
        assert store.unsettled_runs(EXP) == []
        assert len(list(store.curves([EXP], "loss"))) == 6
