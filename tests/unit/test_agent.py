"""The agent's answers, without a wire between."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from ems.errors import EmsError, TargetError
from ems.registry import RemoteTarget
from ems.remote import agent, client, wire
from ems.ssh import Host


def ask(*requests: tuple[str, dict[str, Any]]) -> list[Any]:
    """Return what an agent answers to requests: what ``ok`` says, or the error."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as file:
        for name, args in requests:
            wire.send(file, {"do": name, "args": args})
    sink = io.BytesIO()
    with os.fdopen(reading, "rb", buffering=0) as source:
        agent.serve(io.BufferedReader(_Unbuffered(source)), sink)
    sink.seek(0)
    assert sink.readline() == wire.GREETING
    return [_read(sink) for _ in requests]


class _Unbuffered(io.RawIOBase):
    """Reads byte by byte, so that nothing of the next request is taken early."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def fileno(self) -> int:
        return int(self._source.fileno())

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(1)
        buffer[: len(data)] = data
        return len(data)


def _read(sink: io.BytesIO) -> Any:
    try:
        next(wire.answers(sink))
    except StopIteration as end:
        return end.value
    except EmsError as error:
        return error


def hello(root: Path) -> tuple[str, dict[str, Any]]:
    return "hello", {"root": str(root), "executor": "here", "worker_python": None}


def test_it_says_which_ems_it_is(tmp_path: Path) -> None:
    [said] = ask(hello(tmp_path))
    assert said == {"protocol": wire.PROTOCOL, "version": said["version"], "code": wire.code_digest()}


def test_without_a_greeting_it_does_nothing() -> None:
    [error] = ask(("refresh", {"jobs": []}))
    assert isinstance(error, TargetError)
    assert "greeted" in error.message


def test_what_goes_wrong_is_an_answer_and_the_next_is_answered(tmp_path: Path) -> None:
    (tmp_path / "experiments").touch()
    _, full, unknown, found = ask(
        hello(tmp_path),
        ("check", {"resources": {}}),
        ("fly", {}),
        ("refresh", {"jobs": ["cancelled"]}),
    )
    assert isinstance(full, TargetError)
    assert "cannot be written" in full.message
    assert "cannot do `fly`" in unknown.message
    assert found["cancelled"]["state"] == "CANCELLED"


@pytest.mark.parametrize(
    ("ems", "started"),
    [
        (("/opt/ems/venv/bin/python", "-m", "ems"), ["/opt/ems/venv/bin/python"]),
        (("env", "A=b", "python3", "-I", "-m", "ems"), ["env", "A=b", "python3", "-I"]),
    ],
)
def test_the_agent_is_started_by_the_python_that_has_ems(ems: tuple[str, ...], started: list[str]) -> None:
    target = RemoteTarget("far", Host("me@far"), "/root", ems)
    assert client.command(target) == [*started, "-P", "-m", "ems.remote.agent"]
