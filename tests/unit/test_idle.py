"""A cluster that nobody needs: since when, who is connected, in which order it goes, whether its results are safe."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ems import harvested
from ems.cluster import ledger
from ems.cluster.definition import Definition
from ems.cluster.elastic import idle, safety
from ems.cluster.elastic.control import Control, Job, Node
from ems.cluster.elastic.here import FleetHere, Paths, fleet_here
from ems.cluster.elastic.idle import Idleness, Keeper
from ems.cluster.elastic.standing import Board, parse
from ems.cluster.provider import base
from ems.cluster.provider.base import MachineState, Provider, Resource, Thing, Traits
from ems.cluster.record import new
from ems.errors import ClusterError, ProviderError
from ems.node import records
from ems.node.records import ExperimentFiles

JOB = Job("7", "PENDING", "ada", "train", "main")


@given(st.lists(st.tuples(st.booleans(), st.floats(0.1, 900)), min_size=1, max_size=40), st.floats(1, 60))
def test_idle_is_what_nobody_has_interrupted(looks: list[tuple[bool, float]], after_min: float) -> None:
    state, now = Idleness(), 1000.0
    quiet: list[float] = []  # looks since anybody last needed it
    for is_needed, pause_s in looks:
        now += pause_s
        state = state.look(is_needed=is_needed, now=now)
        quiet = [] if is_needed else [*quiet, now]
        assert state.since == (quiet[0] if quiet else None)
        assert state.is_over(after_min, now) == bool(quiet and now - quiet[0] >= after_min * 60)


def test_who_is_connected_is_what_sshd_serves(tmp_path: Path) -> None:
    for number, title in enumerate(
        [
            b"sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups\0",
            b"sshd: ems [priv]\0\0",
            b"sshd: ems@pts/0\0\0",
            b"sshd-session: ada@notty\0",
            b"vim\0sshd: ems@pts/1\0",
            b"",
        ]
    ):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "cmdline").write_bytes(title)
    (tmp_path / "self").mkdir()
    assert idle.people(tmp_path) == 2


# -- how it goes ------------------------------------------------------------------------------------------------------


class World:
    """A provider, a SLURM and people, and everything that was done, in order."""

    def __init__(self, *, is_free: bool) -> None:
        self.traits = Traits(
            has_shared_volume=True, has_images=True, stop_keeps_address=True, has_names=True, is_free=is_free
        )
        self.machines: dict[str, Resource] = {}
        self.did: list[tuple[str, list[str]]] = []
        self.queue: list[Job] = []
        self.people = 0
        self.refuses: set[str] = set()
        self.after: Callable[[str], None] = lambda _: None

    def _do(self, verb: str, names: Iterable[str]) -> list[str]:
        listed = sorted(names)
        if verb in self.refuses:
            raise ProviderError(f"you may not {verb}")
        self.did.append((verb, listed))
        self.after(verb)
        return listed

    # the provider
    def list(self, _labels: dict[str, str]) -> list[Resource]:
        return [*self.machines.values()]

    def destroy(self, things: Sequence[Resource]) -> None:
        for name in self._do("destroy", (each.name for each in things)):
            del self.machines[name]

    def stop(self, things: Sequence[Resource]) -> None:
        for name in self._do("stop", (each.name for each in things)):
            self.machines[name] = replace(self.machines[name], state=MachineState.STOPPED)

    # SLURM
    def jobs(self) -> list[Job]:
        return self.queue

    def nodes(self) -> dict[str, Node]:
        """Return those of machines, one whose machine was taken back, and one that is off."""
        found = [Node(name) for name in self.machines if name in COMPUTES]
        found += [Node(LOST, "DOWN"), Node("demo-cpu-004", flags=frozenset({"CLOUD", "POWERED_DOWN"}))]
        return {each.name: each for each in found}

    def down(self, names: Iterable[str], _reason: str) -> None:
        self._do("down", names)

    def forget(self, names: Iterable[str]) -> None:
        self._do("forget", names)

    def power_down(self, names: Iterable[str], *, force: bool) -> None:
        self._do("force" if force else "power_down", names)


class Cluster:
    """A controller's file system, its world and its keeper."""

    def __init__(self, root: Path, world: World, **changes: Any) -> None:
        kinds = changes.pop("nodes", {"cpu": {"count": 2}})
        spec = {"name": "demo", "provider": "container", "nodes": kinds, "idle": {"do": "pause", **changes}}
        definition = Definition.model_validate(spec)
        record = new("demo", definition.model_dump(mode="json"), definition.digest)
        keys = ("name", "incarnation", "owner", "created", "definition", "digest", "munge")
        self.paths, self.world, self.now = Paths(root), world, 0.0
        self.paths.definition.parent.mkdir(parents=True)
        (self.paths.state / "boot").mkdir(parents=True)
        self.paths.definition.write_text(json.dumps({key: getattr(record, key) for key in keys}))
        for name in ("demo-controller", "demo-cpu-001", "demo-cpu-002"):
            labels = record.labels(**{base.ROLE: "x", base.KIND: "controller" if "ctl" in name else "cpu"})
            world.machines[name] = Resource(Thing.MACHINE, name, name, labels, MachineState.RUNNING)
        self.fleet: FleetHere = fleet_here(self.paths)
        self.fleet.provider = cast("Provider", world)

    def keeper(self) -> Keeper:
        control, board = cast("Control", self.world), Board(self.paths.state)
        return Keeper(self.fleet, control, board, people=lambda: self.world.people, clock=lambda: self.now)

    def status(self) -> Any:
        return parse((self.paths.state / "elastic.json").read_text())


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cluster]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(idle, "_END_S", 0.0)
    monkeypatch.setattr(idle, "_GONE_S", 2.0)
    monkeypatch.setattr(idle, "_LATE_S", 0.0)
    return lambda *, is_free=False, **changes: Cluster(tmp_path / "root", World(is_free=is_free), **changes)


def rest(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="still there"):  # this machine is not the controller, and lives on
        cluster.keeper().rest()


COMPUTES = ["demo-cpu-001", "demo-cpu-002"]
LOST = "demo-cpu-003"


def test_a_look_is_what_counts_and_a_restart_forgets_nothing(make: Callable[..., Cluster]) -> None:
    cluster = make(after_min=10)
    keeper = cluster.keeper()
    assert not keeper.look()
    for cluster.now in (29, 300, 599):
        assert not keeper.look()
    cluster.world.queue = [JOB]
    cluster.now = 640
    assert not keeper.look()
    cluster.world.queue, cluster.world.people = [], 1
    cluster.now = 2000
    assert not keeper.look()
    assert keeper.board.idle_since is None
    cluster.world.people = 0
    cluster.now = 2100
    assert not keeper.look()
    assert keeper.board.idle_since is not None
    cluster.now = 2500
    again = cluster.keeper()  # the service was restarted
    assert not again.look()
    cluster.now = 2700
    assert again.look()


def test_a_paused_cluster_has_no_nodes_that_cost_something(make: Callable[..., Cluster]) -> None:
    cluster = make()
    (cluster.paths.state / "boot" / "demo-cpu-001.json").write_text("{}")
    rest(cluster)
    assert cluster.world.did == [
        ("down", COMPUTES),
        ("destroy", COMPUTES),
        ("forget", COMPUTES),
        ("stop", ["demo-controller"]),
    ]
    assert not list((cluster.paths.state / "boot").iterdir())
    ends = ledger.spans(ledger.parse((cluster.paths.state / "ledger.jsonl").read_text()))
    assert all(each.end is not None for each in ends)
    assert {each.start.node for each in ends} == {"demo-controller", *COMPUTES}


def test_where_they_cost_nothing_nodes_are_kept(make: Callable[..., Cluster]) -> None:
    cluster = make(is_free=True)
    rest(cluster)
    assert cluster.world.did == [("down", COMPUTES), ("stop", COMPUTES), ("stop", ["demo-controller"])]


def test_elastic_nodes_are_powered_down_by_slurm(make: Callable[..., Cluster]) -> None:
    cluster = make(is_free=True, nodes={"cpu": {"min": 2, "max": 4, "cpus": 1, "mem_gb": 1}})
    rest(cluster)
    assert cluster.world.did == [("force", [*COMPUTES, LOST]), ("destroy", COMPUTES), ("stop", ["demo-controller"])]


def test_stop_ends_with_the_controller(make: Callable[..., Cluster]) -> None:
    cluster = make(do="stop")
    rest(cluster)
    assert [verb for verb, _ in cluster.world.did] == ["down", "destroy", "forget", "destroy"]
    assert cluster.world.machines == {}


def test_who_comes_at_the_last_moment_is_served(make: Callable[..., Cluster]) -> None:
    cluster = make(do="stop", harvest_before_stop="laptop")
    keeper = cluster.keeper()
    cluster.world.queue = [JOB]
    keeper.rest()
    assert cluster.world.did == []
    assert keeper.idleness == Idleness()


@pytest.mark.parametrize("is_elastic", [False, True])
def test_who_comes_while_nodes_are_deleted_loses_no_job(make: Callable[..., Cluster], is_elastic: bool) -> None:
    more = {"nodes": {"cpu": {"min": 2, "max": 4, "cpus": 1, "mem_gb": 1}}} if is_elastic else {}
    cluster = make(do="stop", harvest_before_stop="no", **more)
    keeper = cluster.keeper()
    cluster.world.after = lambda verb: cluster.world.queue.append(JOB) if verb == "destroy" else None
    if is_elastic:
        keeper.rest()
        assert cluster.world.machines["demo-controller"].state is MachineState.RUNNING
        assert keeper.idleness == Idleness()
    else:
        with pytest.raises(ClusterError, match="still there"):
            keeper.rest()
        assert cluster.world.machines["demo-controller"].state is MachineState.STOPPED


def test_what_the_cloud_refuses_is_said_and_tried_again(make: Callable[..., Cluster]) -> None:
    cluster = make(after_min=1)
    cluster.world.refuses = {"stop"}
    keeper = cluster.keeper()
    cluster.now = 60
    assert keeper.look()
    with pytest.raises(ProviderError, match="you may not stop"):
        keeper.rest()
    cluster.now = 300
    assert not keeper.look(), "not at once again"
    cluster.now = 700
    assert keeper.look()
    assert cluster.fleet.journal.unfinished() == ["pause"]


# -- whether results are safe -----------------------------------------------------------------------------------------


def experiment(root: Path, n_runs: int, attempts: dict[int, int]) -> ExperimentFiles:
    files = ExperimentFiles(root, "7f3a9c21")
    Path(files.chunks).mkdir(parents=True)
    Path(files.spec).write_text("{}")
    records.write_runs(files, ({"index": index} for index in range(n_runs)))
    for index, last in attempts.items():
        for number in range(1, last + 1):
            path = Path(files.attempt(index, number))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    return files


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30),
    st.dictionaries(st.integers(0, 29), st.integers(1, 3), max_size=30),
)
def test_marks_of_harvests_add_up(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int]], later: dict[int, int]
) -> None:
    files = experiment(tmp_path_factory.mktemp("root"), len(runs), {i: has for i, (has, _) in enumerate(runs) if has})
    first = {index: marked for index, (_, marked) in enumerate(runs) if marked}
    later = {index: attempt for index, attempt in later.items() if index < len(runs)}
    harvested.note(files, first)
    harvested.note(files, later)
    known = {index: max(first.get(index, 0), later.get(index, 0)) for index in first.keys() | later.keys()}
    assert harvested.of(files) == known
    assert harvested.left(files) == [index for index, (has, _) in enumerate(runs) if has > known.get(index, 0)]


def test_a_cluster_is_paused_while_the_laptop_lacks_results(make: Callable[..., Cluster]) -> None:
    cluster = make(do="stop")  # nobody said where results are to be
    root = cluster.paths.homes / "ems" / "ems"
    files = experiment(root, 5, {0: 1, 1: 2})
    harvested.note(files, {0: 1, 1: 1})
    rest(cluster)
    assert cluster.world.did[-1] == ("stop", ["demo-controller"])
    notes = [said for _, said in cluster.status().notes]
    assert "paused instead of stopped: 7f3a9c21/1 were not harvested: ems harvest 7f3a9c21" in notes
    Board(cluster.paths.state).show({})  # the service of a cluster that was resumed
    assert [said for _, said in cluster.status().notes] == notes
    cluster.world.did.clear()
    harvested.note(files, {1: 2})
    assert safety.lacks(cluster.fleet) == ""
    Path(files.dir, "harvested.json").write_text("{")  # damaged: nothing is known to be safe
    assert "7f3a9c21/0 and 1 more runs" in safety.lacks(cluster.fleet)


def test_what_nobody_can_read_is_not_safe_and_holds_nobody_up(make: Callable[..., Cluster]) -> None:
    cluster = make(do="stop", harvest_before_stop="laptop")
    files = experiment(cluster.paths.homes / "ems/ems", 1, {0: 1})
    os.mkfifo(Path(files.dir, "harvested.json"))
    assert "7f3a9c21/0 were not harvested" in safety.lacks(cluster.fleet)
    attempts = Path(files.attempt(0, 1)).parent
    shutil.rmtree(attempts)
    attempts.write_text("no folder")
    assert "7f3a9c21 cannot be read" in safety.lacks(cluster.fleet)


def test_results_are_given_up_only_where_somebody_said_so(make: Callable[..., Cluster]) -> None:
    cluster = make(do="stop", harvest_before_stop="no")
    experiment(cluster.paths.homes / "ems" / "ems", 2, {0: 1})
    rest(cluster)
    assert cluster.world.machines == {}


def test_roots_are_those_of_targets_and_projects(tmp_path: Path) -> None:
    roots = ["ada/.ems", "ada/a/b/c/.ems", "ada/project/.ems", "ems/ems"]
    others = ["ada/.cache/x/.ems", "ada/.venv/lib/site-packages/ems", "bob", "ems/ems/experiments/7f3a9c21/code/.ems"]
    for root in (*roots, *others):
        (tmp_path / root / "experiments").mkdir(parents=True)
    (tmp_path / "bob" / "linked").symlink_to(tmp_path / "ada")
    assert [str(path.relative_to(tmp_path)) for path in safety.roots(tmp_path)] == roots


def test_buckets_as_rclone_calls_them() -> None:
    place, environment = safety.remote("s3://lab/runs/", "eu-central-1")
    assert (place, environment["RCLONE_S3_REGION"], environment["RCLONE_S3_ENV_AUTH"]) == (
        ":s3:lab/runs/",
        "eu-central-1",
        "true",
    )
    place, environment = safety.remote("gs://lab", "us-central1")
    assert (place, environment["RCLONE_GCS_ENV_AUTH"]) == (":gcs:lab", "true")


@pytest.mark.parametrize(
    "where", ["elsewhere", "s3://", "s3://lab/../x", "s3://lab/$(x)", "ftp://lab", "laptops", "none"]
)
def test_places_that_are_none_are_refused(where: str) -> None:
    spec = {"name": "demo", "provider": "container", "nodes": {"cpu": {}}}
    with pytest.raises(ValueError, match="harvest_before_stop"):
        Definition.model_validate({**spec, "idle": {"do": "stop", "harvest_before_stop": where}})
