"""The stand-in for a machine over SSH itself."""

from __future__ import annotations

from typing import Any

import pytest

from ems import registry
from ems.errors import ConnectionFailedError


def test_it_runs_commands_takes_input_and_survives_a_broken_connection(far: Any) -> None:
    host = far.host()
    words = ["printf", "%s\n", "a b", "$(touch pwned)", "it's", "-n", "two\nlines"]
    assert host.run(words).stdout.decode() == "a b\n$(touch pwned)\nit's\n-n\ntwo\nlines\n"
    assert host.run(["cat"], data=b"\0\xff").stdout == b"\0\xff"
    far.drop()
    assert host.run(["true"]).returncode == 0
    far.stop()
    with pytest.raises(ConnectionFailedError, match="cannot be reached"):
        host.run(["true"])
    far.start()
    assert host.run(["true"]).returncode == 0


def test_it_is_registered_as_it_is_reached(far: Any) -> None:
    assert registry.load("far") == far.target
    assert registry.current() is None


def test_another_host_key_is_not_believed(far: Any) -> None:
    (far.folder / "known_hosts").write_text((far.folder / "known_hosts").read_text().replace("AAAAI", "AAAAJ", 1))
    with pytest.raises(ConnectionFailedError) as error:
        far.host(persist_s=1).run(["true"])
    assert "somebody may be in between" in error.value.hint
