"""The secrets of a cluster, each a file of mode 600 in the cluster's own folder, mode 700.

::

    key, key.pub       by which this machine logs in
    hostkeys/MACHINE   the key that a machine shows, made here and put in by user-data: known before the first login
    known_hosts        what each machine's host key is; nothing else is believed
    munge.key          by which the nodes of the cluster know one another

What is public of them are labels of machines, so that another laptop can check as strictly as this one.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ems import ssh
from ems.errors import ClusterError

_ED25519 = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"  # what stands before the 32 bytes (RFC 8709, section 4)
_PUBLIC = re.compile(r"(?:ssh-(?:ed25519|rsa)|ecdsa-sha2-\S+|sk-\S+) [A-Za-z0-9+/]+=*")
_MUNGE_BYTES = 128  # munge takes 32 to 1024; its own tool makes 128
_MACHINE = re.compile(r"[a-z][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class HostKey:
    """The key that a machine shows to who logs in.

    Attributes
    ----------
    private
        As in ``/etc/ssh/ssh_host_ed25519_key``; never printed.
    public
        ``ssh-ed25519 AAAA…``.
    """

    private: str
    public: str

    def __repr__(self) -> str:
        """Show what is public."""
        return f"HostKey({self.public!r})"

    @property
    def label(self) -> str:
        """The value of the label ``ems-hostkey``."""
        return label_of(self.public)


def label_of(public: str) -> str:
    """Return a public ed25519 key as a label: its 32 bytes in lower-case base32 without padding.

    Raises
    ------
    ClusterError
        If it is none.
    """
    blob = base64.b64decode(public.split()[1])
    if not blob.startswith(_ED25519) or len(blob) != len(_ED25519) + 32:
        raise ClusterError(f"`{public[:40]}` is no ed25519 key")
    return base64.b32encode(blob[len(_ED25519) :]).decode().rstrip("=").lower()


def public_of(label: str) -> str:
    """Return the public key that a label means.

    Raises
    ------
    ClusterError
        If it is no such label.
    """
    try:
        raw = base64.b32decode(label.upper() + "=" * (-len(label) % 8))
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise ClusterError(f"`{label[:64]}` is no label of a host key")
    return f"ssh-ed25519 {base64.b64encode(_ED25519 + raw).decode()}"


def fingerprint(secret: bytes) -> str:
    """Return what is public of a munge key: the first 32 hex digits of its SHA-256."""
    return hashlib.sha256(secret).hexdigest()[:32]


def own_public_keys() -> list[str]:
    """Return the user's public keys in ``~/.ssh``, so that other machines of theirs get in as well."""
    found = []
    for path in sorted((Path.home() / ".ssh").glob("*.pub")):
        try:
            match = _PUBLIC.match(path.read_text())
        except (OSError, UnicodeDecodeError):
            continue
        if match:
            found.append(match[0])
    return list(dict.fromkeys(found))


class Keys:
    """The keys of one cluster; each is made where it is first asked for, and is the same from then on.

    Parameters
    ----------
    folder
        The cluster's folder under the state directory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.identity = folder / "key"
        self.known_hosts = folder / "known_hosts"
        self.munge = folder / "munge.key"
        self._made: dict[Path, str] = {}  # the public halves of those that were asked for: a program tells each

    def public(self) -> str:
        """Return the public key by which this machine logs in."""
        return self._public(self.identity, "ems")

    def host_key(self, machine: str) -> HostKey:
        """Return the key that a machine shows."""
        path = self._host_path(machine)
        public = self._public(path)
        return HostKey(path.read_text(), public)

    def _public(self, path: Path, comment: str = "") -> str:
        if path not in self._made or not path.exists():
            self._made[path] = ssh.make_key(self._in(path), comment)
        return self._made[path]

    def forget_host(self, machine: str) -> None:
        """Delete the key of a machine that is no more."""
        path = self._host_path(machine)
        for each in (path.with_name(f"{path.name}.known"), path.with_name(f"{path.name}.pub"), path):
            each.unlink(missing_ok=True)

    def munge_key(self) -> bytes:
        """Return the secret that the nodes share."""
        path = self._in(self.munge)
        if not path.exists():
            _write(path, secrets.token_bytes(_MUNGE_BYTES), exclusive=True)
        return path.read_bytes()

    def take_munge_key(self, secret: bytes, expected: str) -> None:
        """Keep the munge key that a cluster has already.

        Raises
        ------
        ClusterError
            If it is not the one that the cluster's label speaks of.
        """
        if fingerprint(secret) != expected:
            raise ClusterError(
                "the munge key on the controller is not the one that this cluster was made with",
                "somebody has changed it: stop the cluster, or put the right /etc/munge/munge.key back",
            )
        _write(self._in(self.munge), secret)

    def check_munge_key(self, expected: str) -> None:
        """Refuse a munge key that is not the one the cluster was made with.

        Raises
        ------
        ClusterError
            If the file here is another one.
        """
        if fingerprint(self.munge_key()) != expected:
            raise ClusterError(
                f"{self.munge} is not the munge key that this cluster was made with",
                "put the right file back, or delete it and run `ems cluster status NAME --adopt`",
            )

    def trust(self, labels: Mapping[str, str]) -> None:
        """Write ``known_hosts`` anew.

        Parameters
        ----------
        labels
            Machine's name (the alias by which it is looked up) -> its label ``ems-hostkey``.
        """
        lines = [f"{_checked(name)} {public_of(label)}\n" for name, label in sorted(labels.items())]
        _write(self._in(self.known_hosts), "".join(lines).encode())

    def _host_path(self, machine: str) -> Path:
        return self._folder / "hostkeys" / _checked(machine)

    def _in(self, path: Path) -> Path:
        """Make the folder of a file that nobody else may read."""
        for folder in (self._folder, path.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chmod(folder, 0o700)  # noqa: PTH101 - one that was there before may be open to others
        return path


def _checked(machine: str) -> str:
    if not _MACHINE.fullmatch(machine):
        raise ClusterError(f"`{machine}` is no name of a machine")
    return machine


def _write(path: Path, content: bytes, *, exclusive: bool = False) -> None:
    """Write aside, flush, rename (with ``exclusive``: unless it is there); nobody else may read it at any moment."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:  # mode 600
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside = Path(file.name)
    if not exclusive:
        aside.replace(path)
        return
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(aside)
    aside.unlink()
