"""What this machine remembers of a cluster: record, journal, lock, names of nodes."""

from __future__ import annotations

import json
import stat

import pytest

from ems.cluster.record import Files, Journal, Phase, choose, label_value, names, new
from ems.cluster.scheduler import Job, NodeState, expand
from ems.errors import ClusterError, UsageError


@pytest.fixture
def files() -> Files:
    return Files("demo")


def test_a_record_comes_back_as_it_was_saved(files: Files) -> None:
    record = files.save(new("demo", {"name": "demo"}, "d" * 32))
    assert files.load() == record
    changed = files.update(record, wanted=("demo-gpu-001",), phase=Phase.READY)
    assert files.load() == changed
    assert names() == ["demo"]


def test_nobody_else_reads_it(files: Files) -> None:
    files.save(new("demo", {}, "d"))
    assert stat.S_IMODE(files.dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((files.dir / "record.json").stat().st_mode) == 0o600


def test_no_record_is_none(files: Files) -> None:
    assert files.load() is None
    assert names() == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1, "name": "demo"}', "\udcff"])
def test_a_damaged_record_is_said(files: Files, text: str) -> None:
    files.make()
    (files.dir / "record.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ClusterError, match=r"record\.json") as caught:
        files.load()
    assert "--adopt" in caught.value.hint


def test_a_record_of_another_cluster_is_refused(files: Files) -> None:
    Files("other").save(new("other", {}, "d"))
    files.make()
    (files.dir / "record.json").write_text((Files("other").dir / "record.json").read_text())
    with pytest.raises(ClusterError, match="other"):
        files.load()


@pytest.mark.parametrize("name", ["here", "Up", "-x", "a/b", "", "a" * 40, "$(id)"])
def test_names_that_no_cluster_may_have(name: str) -> None:
    with pytest.raises(UsageError):
        Files(name)


def test_two_commands_do_not_change_a_cluster_at_once(files: Files) -> None:
    with files.locked():
        files.save(new("demo", {}, "d"))
        with pytest.raises(ClusterError, match="another command"), Files("demo").locked():
            pass
    with files.locked():
        pass
    assert files.load() is not None


def test_a_lock_alone_leaves_nothing_behind(files: Files) -> None:
    with files.locked():
        assert files.dir.is_dir()
    assert not files.dir.exists()


def test_everything_is_forgotten_and_the_lock_can_be_had_again(files: Files) -> None:
    with files.locked():
        files.save(new("demo", {}, "d"))
        (files.dir / "hostkeys").mkdir()
        (files.dir / "hostkeys" / "x").write_text("")
        files.delete()
        assert not files.dir.exists()
    with files.locked():
        pass
    assert not files.dir.exists()


def test_the_journal_tells_what_was_begun_and_not_ended(files: Files) -> None:
    journal = Journal(files)
    with journal.step("prepare", ["net"]):
        assert journal.unfinished() == ["prepare"]
    assert journal.unfinished() == []
    with pytest.raises(ValueError, match="refused"), journal.step("create", ["a", "b"]):
        raise ValueError("refused")
    assert [(line["step"], line["is"]) for line in journal.lines()] == [
        ("prepare", "begin"),
        ("prepare", "done"),
        ("create", "begin"),
        ("create", "failed"),
    ]
    assert journal.lines()[-1]["said"] == "refused"
    assert journal.begun() == {"create": ["a", "b"]}, "what failed may have been begun by the cloud"
    assert not journal.is_at("create")
    with journal.step("create", ["a", "b"]):
        assert not journal.is_at("create")
    assert journal.is_at("create")
    assert journal.unfinished() == []


def test_a_torn_last_line_of_the_journal_is_none(files: Files) -> None:
    journal = Journal(files)
    with journal.step("prepare"):
        pass
    path = files.dir / "journal.jsonl"
    with path.open("a") as file:
        file.write('{"at": "2026", "st')
    assert len(journal.lines()) == 2
    with journal.step("create"):
        pass
    assert [line["step"] for line in journal.lines()] == ["prepare", "prepare", "create", "create"]
    assert json.loads(path.read_text().splitlines()[-1])["is"] == "done"


def test_names_are_chosen_from_the_lowest_free_number() -> None:
    assert choose("c", [], "gpu", 2) == ["c-gpu-001", "c-gpu-002"]
    assert choose("c", ["c-gpu-003"], "gpu", 2) == ["c-gpu-001", "c-gpu-003"]
    assert choose("c", ["c-cpu-001"], "gpu", 1) == ["c-gpu-001"]
    assert choose("c", ["c-gpu-001", "c-gpu-002"], "gpu", 0) == []


def test_those_preferred_stay() -> None:
    assert choose("c", ["c-gpu-003", "c-gpu-001", "c-gpu-002"], "gpu", 2) == ["c-gpu-001", "c-gpu-003"]


def test_labels_hold_what_every_cloud_takes() -> None:
    assert label_value("Ada Lovelace@Ex.org") == "ada-lovelace-ex-org"
    assert len(label_value("x" * 100)) == 63


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("c-gpu-[001-003,007],d", ["c-gpu-001", "c-gpu-002", "c-gpu-003", "c-gpu-007", "d"]),
        ("c-gpu-[009-010]", ["c-gpu-009", "c-gpu-010"]),
    ],
)
def test_lists_of_nodes_in_the_short_form(text: str, expected: list[str]) -> None:
    assert expand(text) == expected
    assert Job("1", "RUNNING", "u", "n", text).hosts == expected


@pytest.mark.parametrize("state", ["idle", "allocated", "mixed", "completing"])
def test_states_in_which_a_node_is_used(state: str) -> None:
    assert NodeState(state, ("gpu",), "").is_usable
    assert not NodeState(f"{state}*", ("gpu",), "").is_usable


@pytest.mark.parametrize("state", ["down", "drained", "draining", "inval", "unknown", "down*", "future", "maint drain"])
def test_states_in_which_it_is_not(state: str) -> None:
    assert not NodeState(state, ("gpu",), "").is_usable
