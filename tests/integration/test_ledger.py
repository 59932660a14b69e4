"""The ledgers of a laptop and of a cluster's share, exchanged by the real shell commands on files here."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ems.cluster import ledger
from ems.cluster.ledger import Event, Ledger
from ems.cluster.record import Phase
from ems.errors import ConnectionFailedError

_ID = "i" * 32


@dataclass
class Far:
    """The controller, whose shell is the one here; ``before`` is called before each command, and may break it."""

    before: list[Callable[[], None]] = field(default_factory=list)
    sent: int = 0
    received: int = 0

    def run(self, command: list[str], *, data: bytes = b"", timeout_s: float) -> Any:
        words = command[1:] if command[0] == "sudo" else command
        broken = next((each for each in self.before[:1]), None)
        self.before = self.before[1:]
        if broken is not None:
            broken()
        done = subprocess.run(words, input=data, capture_output=True, timeout=timeout_s, check=True)
        self.sent += len(data)
        self.received += len(done.stdout)
        return SimpleNamespace(stdout=done.stdout)


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the ledger on the share."""
    path = tmp_path / "share.jsonl"
    for name in ("_SINCE", "_APPEND"):
        monkeypatch.setattr(ledger, name, getattr(ledger, name).replace(ledger.SHARED, str(path)))
    return path


def fleet(far: Far, name: str = "demo") -> Any:
    record = SimpleNamespace(phase=Phase.READY, incarnation=_ID)
    return SimpleNamespace(name=name, record=record, host=lambda: far)


def event(number: int, by: str) -> Event:
    at = f"2026-03-01T{number // 3600:02d}:{number // 60 % 60:02d}:{number % 60:02d}.000+00:00"
    word = ledger.START if number % 2 else ledger.STOP
    return Event(_ID, f"demo-gpu-{number % 7:03d}", "gpu", "n1", "z", False, 2.0, 4, "t4", 8, word, at, by)


def breaks() -> None:
    raise ConnectionFailedError("the connection broke")


@pytest.mark.parametrize("seed", range(3))
def test_both_ledgers_come_to_the_same_whatever_breaks(share: Path, seed: int) -> None:
    """Two laptops and the controller write; exchanges break before each of their commands, and others write between."""
    chance, far = random.Random(seed), Far()
    laptops = {name: Ledger(name) for name in ("demo", "other")}
    controller, written = Ledger("demo", share), set[Event]()

    def writes(book: Ledger, by: str) -> None:
        new = event(len(written), by)
        written.add(new)
        book.add(_ID, lambda _: [new])

    def tears() -> None:
        with share.open("a") as file:
            file.write('{"id": "torn')  # its writer was killed

    for _ in range(40):
        name = chance.choice([*laptops])
        act = chance.choice(["laptop", "controller", "exchange", "exchange", "torn"])
        if act == "laptop":
            writes(laptops[name], name)
        elif act == "controller":
            writes(controller, "emsd")
        elif act == "torn":
            tears()
        else:
            happens = [lambda: None, breaks, lambda: writes(controller, "emsd")]
            far.before = [chance.choice(happens), chance.choice(happens)]
            ledger.share(fleet(far, name))
    far.before = []
    for name in ("demo", "other", "demo"):
        ledger.share(fleet(far, name))
    for book in (*laptops.values(), controller):
        assert {*book.events()} == written
        lines = [line for line in book.path.read_text().splitlines() if line.endswith("}")]
        assert len(lines) < 1.5 * len(written), "a few are there twice, where another one wrote meanwhile"


def test_an_exchange_reads_and_sends_only_what_is_new(share: Path) -> None:
    far, here, there = Far(), Ledger("demo"), Ledger("demo", share)
    for number in range(40):
        (here if number % 3 else there).add(_ID, lambda _, number=number: [event(number, "x")])
    ledger.share(fleet(far))
    assert {*here.events()} == {*there.events()}
    line = len(ledger.dump([event(0, "x")]))
    for _ in range(2):
        far.sent = far.received = 0
        ledger.share(fleet(far))
        assert (far.sent, far.received < line) == (0, True)
    there.add(_ID, lambda _: [event(50, "x")])
    here.add(_ID, lambda _: [event(51, "y")])
    ledger.share(fleet(far))
    assert far.sent < 1.5 * line
    assert far.received < 2 * line
    assert {*here.events()} == {*there.events()}
    assert len(here.events()) == 42
    whole = {*here.events()}
    share.unlink()  # as after a crash of the controller, whose disk had less of it than it said
    ledger.share(fleet(far))
    assert {*there.events()} == whole
    here.path.unlink()
    ledger.share(fleet(far))
    assert {*here.events()} == whole


def test_a_share_that_lost_its_end_and_grew_again_is_read_from_its_beginning(share: Path) -> None:
    far, here, there = Far(), Ledger("demo"), Ledger("demo", share)
    for number in range(20):
        here.add(_ID, lambda _, number=number: [event(number, "laptop")])
    ledger.share(fleet(far))
    ledger.share(fleet(far))
    kept = share.read_text().splitlines(keepends=True)[:-2]
    share.write_text("".join(kept))
    for number in range(20, 24):  # longer lines than those that were lost: none ends where the others did
        there.add(_ID, lambda _, number=number: [event(number, "the service of the controller")])
    for _ in range(2):
        ledger.share(fleet(far))
    assert len(here.events()) == 24
    assert {*here.events()} == {*there.events()}
