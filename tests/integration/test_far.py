"""The stand-in for a machine over SSH itself."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from pathlib import Path
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
    (far.folder / "known_hosts").write_text(f"far {(far.folder / 'key.pub').read_text()}")
    with pytest.raises(ConnectionFailedError) as error:
        far.host(persist_s=1).run(["true"])
    assert "shows another host key than the one known: ED25519 SHA256:" in error.value.message
    assert "@@@" not in error.value.message
    assert "somebody may be in between" in error.value.hint


def test_a_host_key_that_nobody_knows_is_not_believed_either(far: Any) -> None:
    (far.folder / "known_hosts").write_text("")
    with pytest.raises(ConnectionFailedError) as error:
        far.host(persist_s=1).run(["true"])
    assert "its host key is not known here: log in once" in error.value.hint


def test_the_hint_logs_in_as_ems_does(far: Any) -> None:
    words = [*shlex.split(far.host().typed()), "echo hi"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "hi\n"
    far.stop()
    with pytest.raises(ConnectionFailedError) as error:
        far.host(persist_s=1).run(["true"])
    assert far.host().typed() in error.value.hint


@pytest.mark.parametrize("name", ["a b", 'it\'s "so"', "50%h", "#x", "back\\slash"])
def test_keys_and_known_hosts_lie_in_folders_of_any_name(far: Any, name: str) -> None:
    folder = far.folder / name
    folder.mkdir()
    for each in ("key", "known_hosts"):
        (folder / each).write_bytes((far.folder / each).read_bytes())
        (folder / each).chmod(0o600)
    host = far.host(identity=folder / "key", known_hosts=folder / "known_hosts")
    assert host.run(["true"]).returncode == 0
    host.close()


def test_no_connection_is_shared_where_others_could_listen(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    far.host().control_path()
    [folder] = [path for path in tmp_path.iterdir() if path.name.endswith("-ssh")]
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(ConnectionFailedError, match="is open to others"):
        far.host().run(["true"])
    folder.chmod(0o700)
