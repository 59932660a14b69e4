"""A cluster's keys: real OpenSSH makes and takes them; nobody else reads them; a changed one is refused."""

from __future__ import annotations

import stat
import subprocess
import threading
from pathlib import Path

import pytest

from ems.cluster import keys
from ems.cluster.keys import Keys
from ems.errors import ClusterError


@pytest.fixture
def made(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "state" / "clusters" / "demo")


def test_a_key_is_made_once(made: Keys) -> None:
    assert made.public() == made.public()
    assert made.host_key("demo-controller") == made.host_key("demo-controller")
    assert made.host_key("demo-controller").public != made.host_key("demo-gpu-001").public
    assert made.munge_key() == made.munge_key()
    assert len(made.munge_key()) == 128


def test_secrets_are_for_nobody_else(made: Keys) -> None:
    folder = made.identity.parent
    folder.mkdir(parents=True, mode=0o755)
    made.public()
    made.munge_key()
    made.host_key("demo-controller")
    made.trust({"demo-controller": made.host_key("demo-controller").label})
    for path in (folder, folder / "hostkeys"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    secrets = [made.identity, made.munge, made.known_hosts, folder / "hostkeys/demo-controller"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert {path.name for path in folder.iterdir()} == {"key", "key.pub", "munge.key", "known_hosts", "hostkeys"}


def test_a_label_is_the_whole_public_key(made: Keys) -> None:
    key = made.host_key("demo-gpu-001")
    assert len(key.label) == 52
    assert key.label == key.label.lower()
    assert keys.public_of(key.label) == key.public
    for wrong in ("", "abc", "1" * 52, key.label[:-2], "$(id)"):
        with pytest.raises(ClusterError, match="no label of a host key"):
            keys.public_of(wrong)
    with pytest.raises(ClusterError, match="no ed25519 key"):
        keys.label_of("ssh-rsa AAAAB3NzaC1yc2E=")


def test_openssh_finds_machines_by_name_in_known_hosts(made: Keys) -> None:
    names = ["demo-controller", "demo-gpu-001"]
    made.trust({name: made.host_key(name).label for name in names})
    for name in names:
        found = subprocess.run(["ssh-keygen", "-F", name, "-f", made.known_hosts], capture_output=True, text=True)
        assert made.host_key(name).public in found.stdout
    with pytest.raises(ClusterError, match="no name of a machine"):
        made.trust({"*": made.host_key("demo-gpu-001").label})


def test_a_machine_that_is_no_more_leaves_no_key(made: Keys) -> None:
    before = made.host_key("demo-gpu-001")
    made.forget_host("demo-gpu-001")
    made.forget_host("demo-gpu-001")
    assert list((made.identity.parent / "hostkeys").iterdir()) == []
    assert made.host_key("demo-gpu-001") != before


def test_a_changed_munge_key_is_refused(made: Keys, tmp_path: Path) -> None:
    expected = keys.fingerprint(made.munge_key())
    made.check_munge_key(expected)
    made.munge.write_bytes(b"x" * 128)
    with pytest.raises(ClusterError, match="not the munge key that this cluster was made with"):
        made.check_munge_key(expected)
    other = Keys(tmp_path / "other")
    with pytest.raises(ClusterError, match="not the one that this cluster was made with"):
        other.take_munge_key(b"x" * 128, expected)
    assert not other.munge.exists()


def test_another_laptop_takes_the_munge_key_that_the_label_speaks_of(made: Keys, tmp_path: Path) -> None:
    other = Keys(tmp_path / "other")
    other.take_munge_key(made.munge_key(), keys.fingerprint(made.munge_key()))
    assert other.munge_key() == made.munge_key()


def test_two_who_ask_at_once_get_the_same_keys(made: Keys) -> None:
    found: list[object] = []

    def ask() -> None:
        found.append((made.munge_key(), made.public(), made.host_key("demo-gpu-001")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_the_users_own_public_keys_are_found(tmp_path: Path) -> None:
    folder = Path.home() / ".ssh"
    folder.mkdir(parents=True)
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGo8MdIJu6boYTZ815RebDu9lxkSau8Upi9UX1SYC9O/"
    (folder / "id_ed25519.pub").write_text(f"{key} me@laptop\n")
    (folder / "copy.pub").write_text(f"{key}\n")
    (folder / "hostile.pub").write_text('command="touch pwned" ssh-ed25519 AAAA\n')
    (folder / "binary.pub").write_bytes(b"\xff\xfe")
    (folder / "id_ed25519").write_text("not read")
    assert keys.own_public_keys() == [key]
