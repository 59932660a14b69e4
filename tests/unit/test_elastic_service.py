"""The parts of the service that need no cloud: spool, heartbeat and status, guards, and what the controller knows."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ems.cluster import ledger
from ems.cluster.definition import Definition
from ems.cluster.elastic import guard
from ems.cluster.elastic.breaker import Shut
from ems.cluster.elastic.here import FleetHere, Paths, fleet_here
from ems.cluster.elastic.shutters import Shutters
from ems.cluster.elastic.spool import Spool, Verb, gather
from ems.cluster.elastic.standing import TURN_S, Board, Heart, parse
from ems.cluster.provider.base import Refusal, RefusalCause
from ems.cluster.record import Files, Journal, new
from ems.errors import ClusterError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the fleet of a controller whose definition has these limits."""

    def make(**limits: Any) -> FleetHere:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "var/lib/ems"))
        kinds = {"cpu": {"max": 9, "size": "big"}, "gpu": {"min": 1, "max": 2}, "plain": {"count": 2}}
        content = {"name": "demo", "provider": "gce", "nodes": kinds, "limits": limits, "controller": {"size": "small"}}
        content["prices"] = {"small": 1.0, "big": 2.0}
        definition = Definition.model_validate(content)
        record = new("demo", definition.model_dump(mode="json"), definition.digest)
        facts = {key: getattr(record, key) for key in ("name", "incarnation", "owner", "created", "definition")}
        paths = Paths(tmp_path)
        paths.definition.parent.mkdir(parents=True, exist_ok=True)
        paths.state.mkdir(parents=True, exist_ok=True)
        paths.definition.write_text(json.dumps(facts | {"digest": record.digest, "munge": "", "more": 1}))
        return fleet_here(paths)

    return make


def drop(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


# -- the spool --------------------------------------------------------------------------------------------------------


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    folder = tmp_path / "spool"
    folder.mkdir()
    return Spool(folder, lambda name: name.startswith("demo-"))


def test_requests_are_read_oldest_first_with_their_jobs_by_the_words_of_any_version(spool: Spool) -> None:
    old = {"nodes": "demo-cpu-[001-002]", "jobs": [{"job_id": 7, "nodes": "demo-cpu-[001-002]"}]}
    new_ = {"all_nodes_resume": "demo-cpu-003", "jobs": [{"job_id": 9, "nodes_resume": "demo-cpu-003", "extra": None}]}
    drop(spool.folder, "20-7.resume", "demo-cpu-003\n" + json.dumps(new_))
    drop(spool.folder, "9-8.resume", "demo-cpu-[001-002]\n" + json.dumps(old))
    drop(spool.folder, "30-9.suspend", "demo-gpu-001,other-1\n")
    requests = spool.read()
    assert [(each.verb, each.nodes, each.at_ns) for each in requests] == [
        (Verb.RESUME, ("demo-cpu-001", "demo-cpu-002"), 9),
        (Verb.RESUME, ("demo-cpu-003",), 20),
        (Verb.SUSPEND, ("demo-gpu-001",), 30),
    ]
    wish = gather(requests)
    assert wish.jobs == {"demo-cpu-001": ("7",), "demo-cpu-002": ("7",), "demo-cpu-003": ("9",)}
    spool.done(requests[:2])
    assert spool.names() == ["30-9.suspend"], "the others wait until they are done"
    assert Spool(spool.folder / "none", lambda _: True).read() == []


def test_what_is_no_request_is_deleted_and_harms_nobody(spool: Spool, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("demo-cpu-001\n")
    (spool.folder / "1-1.resume").symlink_to(secret)
    os.mkfifo(spool.folder / "2-1.resume")
    drop(spool.folder, "3-1.resume", "demo-cpu-[001-\n")
    drop(spool.folder, "4-1.resume", "controller\n")
    drop(spool.folder, "5-1.resume", "demo-cpu-001\n{torn")
    drop(spool.folder, "6-1.resume", "demo-cpu-[1-99999999999]\n")  # more than there is memory
    (spool.folder / "7-1.resume").mkdir()
    drop(spool.folder, ".XYZ", "written aside")
    drop(spool.folder, ".old", "by a writer that was killed")
    os.utime(spool.folder / ".old", (1, 1))
    [only] = spool.read()
    assert (only.nodes, dict(only.jobs)) == (("demo-cpu-001",), {})
    assert sorted(os.listdir(spool.folder)) == [".XYZ", "5-1.resume", "7-1.resume"]
    assert spool.names() == ["5-1.resume"], "a folder stays, and nobody waits for it"
    assert secret.exists()


def test_the_last_word_about_a_node_counts(spool: Spool) -> None:
    drop(spool.folder, "1-1.resume", "demo-a,demo-b,demo-c")
    drop(spool.folder, "2-1.suspend", "demo-a")
    drop(spool.folder, "3-1.fail", "demo-b")
    drop(spool.folder, "4-1.resume", "demo-b")
    wish = gather(spool.read())
    assert wish.resume == {"demo-c": 1, "demo-b": 4}
    assert wish.suspend == ("demo-a", "demo-b"), "what is left of a node that is wanted anew goes before"


# -- what is seen of the service --------------------------------------------------------------------------------------


def test_the_heartbeat_changes_every_ten_seconds(tmp_path: Path) -> None:
    now = [0.0]
    heart = Heart(tmp_path, lambda: now[0])
    seen = []
    for second in range(25):
        now[0] = float(second)
        heart.beat()
        seen.append((tmp_path / "heartbeat").read_text())
    assert len(set(seen)) == 3
    assert seen[0] == seen[9] != seen[10]


def test_the_heart_beats_while_a_cloud_takes_its_time_but_not_for_ever(tmp_path: Path) -> None:
    now = [0.0]
    heart, path = Heart(tmp_path, lambda: now[0]), tmp_path / "heartbeat"
    asked = threading.Event()  # nobody sets it: a wait between looks

    def comes(condition: Callable[[], bool]) -> bool:
        return any(condition() or asked.wait(0.01) for _ in range(12_000))

    def beats(second: float) -> bool:
        before, now[0] = path.read_text(), second
        return comes(lambda: path.read_text() != before)

    def lives() -> bool:
        return "heart" in [each.name for each in threading.enumerate()]

    heart.beat()
    with heart.beating(every_s=0.001):
        assert beats(700.0)
        assert beats(1400.0)
        assert lives()
        now[0] = TURN_S + 1
        assert comes(lambda: not lives()), "who could beat no more is gone"
    with heart.beating(every_s=0.001):
        assert lives()
    assert not lives()


def test_the_status_is_written_when_it_changes_and_every_half_minute(tmp_path: Path) -> None:
    now = [0.0]
    board, path = Board(tmp_path, lambda: now[0]), tmp_path / "elastic.json"
    board.note("made demo-cpu-001")
    board.count({"cpu": 1})
    board.show({"gpu": Shut("no quota", 0.0)})
    status = parse(path.read_text())
    assert status is not None
    assert (status.phase, status.machines, status.notes[0][1]) == ("works", {"cpu": 1}, "made demo-cpu-001")
    assert (status.shut["gpu"].why, status.shut["gpu"].until[:10]) == ("no quota", "1970-01-01")
    path.unlink()
    board.show({"gpu": Shut("no quota", 0.0)})
    assert not path.exists(), "nothing is another"
    now[0] = 31.0
    board.show({"gpu": Shut("no quota", 0.0)})
    assert path.exists()
    board.trouble = "503"
    board.show({})
    status = parse(path.read_text())
    assert status is not None
    assert (status.phase, status.trouble, status.shut) == ("trouble", "503", {})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"at": 1, "shut": []}', "nonsense"])
def test_what_is_no_status_is_none(text: str) -> None:
    assert parse(text) is None


# -- what the controller knows ----------------------------------------------------------------------------------------


def test_the_fleet_on_the_controller_is_that_of_its_file(here: Any) -> None:
    fleet = here()
    assert (fleet.name, fleet.definition.nodes["cpu"].max) == ("demo", 9)
    assert fleet.floor() == ["demo-gpu-001", "demo-plain-001", "demo-plain-002"]
    fleet.paths.floor.write_text("demo-cpu-001\nstranger\n")
    assert fleet.floor() == ["demo-cpu-001"]
    home = fleet.paths.homes / "ems/.ssh"
    home.mkdir(parents=True)
    (home / "authorized_keys").write_text("# mine\nssh-ed25519 AAAA somebody\nssh-rsa BBBB\n")
    assert fleet.keys.public() == "ssh-ed25519 AAAA somebody", "who made the cluster gets into its nodes"
    fleet.paths.definition.write_text("{}")
    with pytest.raises(ClusterError, match="cannot be read"):
        fleet_here(fleet.paths)


def test_limits_let_as_many_nodes_be_made_as_they_leave_room_for(here: Any) -> None:
    wanted = [f"demo-cpu-{number:03d}" for number in range(3, 8)]
    there = ["demo-cpu-001", "demo-cpu-002"]
    assert guard.admit(here(), there, wanted) == (wanted, "")
    allowed, why = guard.admit(here(max_nodes=4), there, wanted)
    assert allowed == wanted[:2]
    assert guard.MAX_NODES in why
    assert guard.admit(here(max_nodes=1), there, wanted)[0] == []
    allowed, why = guard.admit(here(max_cost=12.0), there, wanted)  # 1 + 2 x 2 + 3 x 2 dollars in an hour
    assert allowed == wanted[:3]
    assert "$12.00" in why
    fleet = here(max_cost=12.0)
    spent = {"event": "start", "at": "2026-01-01T00:00:00Z", "by": "x", "node": "demo-cpu-009", "usd_per_hour": 8.0}
    more = {"id": fleet.record.incarnation, "kind": "cpu", "size": "", "zone": "", "spot": False, "gpus": 0}
    lines = [spent, {**spent, "event": "stop", "at": "2026-01-01T01:00:00Z"}]
    assert fleet.ledger_path is not None
    fleet.ledger_path.write_text(
        "".join(json.dumps({**each, **more, "gpu_type": "", "cpus": 2}) + "\n" for each in lines)
    )
    assert guard.admit(fleet, [], wanted)[0] == wanted[:1], "what the ledger on the share says is spent"


def test_kinds_that_are_shut_stay_so_over_a_restart_and_open_again(here: Any) -> None:
    fleet = here()
    shutters = Shutters(fleet)
    shutters.refused({"demo-cpu-001": Refusal("demo-cpu-001", "no quota", cause=RefusalCause.QUOTA)})
    again = Shutters(fleet)
    allowed, refused = again.admit(["demo-cpu-002", "demo-gpu-001"])
    assert allowed == ["demo-gpu-001"]
    assert refused["demo-cpu-002"].reason == "no quota"
    again.reopen("another reason")
    assert again.shut()
    again.reopen("quota")
    assert again.admit(["demo-cpu-002"])[0] == ["demo-cpu-002"]
    for number in range(10):  # what the cloud may give at the next try is a boot that failed
        again.refused({"demo-cpu-001": Refusal("demo-cpu-001", f"error {number}")})
    assert list(Shutters(fleet).shut()) == ["cpu"]
    again.open()
    assert Shutters(fleet).shut() == {}


def test_a_ledger_on_the_share_is_locked_as_the_shell_does(here: Any) -> None:
    fleet = here()
    ledger.Ledger("demo", fleet.ledger_path).add(fleet.record.incarnation, lambda events: events)
    assert fleet.ledger_path.with_name("ledger.jsonl.lock").exists()


def test_a_journal_forgets_what_was_done_long_ago(here: Any) -> None:
    here()
    journal = Journal(Files("demo"))
    with pytest.raises(RuntimeError), journal.step("create here-a", ["demo-cpu-001"]):
        raise RuntimeError("killed")
    for number in range(60):
        with journal.step("destroy", [f"demo-cpu-{number:03d}"]):
            pass
    path = Files("demo").dir / "journal.jsonl"
    whole = path.read_text()
    journal.compact(len(whole))
    assert path.read_text() == whole
    journal.compact(len(whole) - 1)
    lines = journal.lines()
    assert journal.begun() == {"create here-a": ["demo-cpu-001"]}
    assert lines[-1]["things"] == ["demo-cpu-059"]
    assert len(whole) / 4 < path.stat().st_size < len(whole) * 0.6
    assert path.stat().st_mode & 0o777 == 0o600
