"""The one door to the system's OpenSSH: another machine as something that runs commands and takes files.

Nothing is reimplemented: the user's ``~/.ssh/config``, agents, ProxyJump and two-factor prompts work as they do when
they type ``ssh``. All calls to one host share one connection (ControlMaster), so that a second call costs
milliseconds and a one-time password is asked for once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import stat
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from ems.errors import ConnectionFailedError, HostKeyError

CONNECT_TIMEOUT_S = 15
_OTHER_KEY = "HOST IDENTIFICATION HAS CHANGED"
_REFUSED_KEY = "Host key verification failed"
_ROOM = "make room on its disk: `df -h` and `quota` there say how much there is"
_UNREACHABLE = 255  # ssh's own exit status; what the remote command says is 0 to 254


@dataclass(frozen=True, slots=True)
class Host:
    """How one machine is reached.

    Attributes
    ----------
    destination
        ``user@address``, or an alias of the user's ``~/.ssh/config``.
    port
        None: what the user's configuration says, else 22.
    identity
        The private key's path; no other key is then offered. None: the user's own keys and agent.
    known_hosts
        A file of host keys, beside which none is believed (strict checking). None: the user's own, as `ssh` does.
    host_key_alias
        The name under which the host's key stands in ``known_hosts``: addresses change, the key does not.
    options
        Further options of ssh, e.g. ``("-o", "ProxyJump=gate")``.
    persist_s
        How long the shared connection stays after its last use.
    """

    destination: str
    port: int | None = None
    identity: Path | None = None
    known_hosts: Path | None = None
    host_key_alias: str | None = None
    options: tuple[str, ...] = ()
    persist_s: int = 600

    def options_of_ssh(self) -> list[str]:
        """Return the options by which ssh, git, rsync and Ansible reach this host; no destination among them."""
        words = ["-o", "BatchMode=yes"] if self.identity else []
        words += ["-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}", "-o", "ServerAliveInterval=15"]
        words += ["-o", "ControlMaster=auto", "-o", f"ControlPath={_value(self.control_path())}"]
        words += ["-o", f"ControlPersist={self.persist_s}"]
        if self.port is not None:
            words += ["-p", str(self.port)]
        if self.identity is not None:
            words += ["-o", f"IdentityFile={_value(self.identity)}", "-o", "IdentitiesOnly=yes"]
        if self.known_hosts is not None:
            words += ["-o", f"UserKnownHostsFile={_value(self.known_hosts)}", "-o", "GlobalKnownHostsFile=/dev/null"]
            words += ["-o", "StrictHostKeyChecking=yes", "-o", "UpdateHostKeys=no"]
        if self.host_key_alias is not None:
            words += ["-o", f"HostKeyAlias={self.host_key_alias}"]
        return [*words, *self.options]

    def control_path(self) -> Path:
        """Return the shared connection's socket: one for each way of reaching each host, in a folder of our own.

        Raises
        ------
        ConnectionFailedError
            If somebody else can write that folder, and so could answer in the host's name.
        """
        folder = Path(tempfile.gettempdir()) / f"ems-{os.getuid()}-ssh"  # not in the home: its path may be too long
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ConnectionFailedError(
                f"{folder} is open to others, who could listen to connections there",
                f"look at whose it is; then rm -rf {shlex.quote(str(folder))}, or set TMPDIR to a folder of your own",
            )
        words = (self.destination, self.port, self.identity, self.known_hosts, self.host_key_alias, self.options)
        return folder / hashlib.blake2b(repr(words).encode(), digest_size=8).hexdigest()

    def argv(self, command: Sequence[str] = (), *, tty: bool = False) -> list[str]:
        """Return the words that run ``command`` there (none: a login shell), each word quoted for the shell there."""
        words = ["ssh", *self.options_of_ssh(), *(["-t"] if tty else []), "--", self.destination]
        return [*words, shlex.join(command)] if command else words

    def run(
        self, command: Sequence[str], *, data: bytes = b"", timeout_s: float | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command there and return what it printed.

        Parameters
        ----------
        data
            Its standard input.
        check
            Whether an exit status other than 0 is an error.

        Raises
        ------
        ConnectionFailedError
            If the host cannot be reached or, with ``check``, the command fails; in ssh's or the command's own words.
        """
        try:
            done = subprocess.run(self.argv(command), input=data, capture_output=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            raise ConnectionFailedError(
                f"{self.destination} did not answer within {timeout_s:g} s", f"try `{self.typed()}`"
            ) from None
        except FileNotFoundError:
            raise ConnectionFailedError("there is no ssh on this machine", "install openssh-client") from None
        if done.returncode == _UNREACHABLE or (check and done.returncode):
            raise self.failure(done)
        return done

    def failure(self, done: subprocess.CompletedProcess[bytes]) -> ConnectionFailedError:
        """Return an error in the words of what failed."""
        said = " ".join(done.stderr.decode(errors="replace").split()) or f"exit status {done.returncode}"
        if done.returncode == _UNREACHABLE:
            kind = HostKeyError if _OTHER_KEY in said or _REFUSED_KEY in said else ConnectionFailedError
            return kind(f"{self.destination} cannot be reached: {_in_short(said)}", _hint_of(said, self))
        return ConnectionFailedError(f"on {self.destination}: {said}", _ROOM if _is_full(said) else "")

    def typed(self) -> str:
        """Return what a person types to log in, the options that they gave or a cluster needs among it."""
        words = ["ssh", *(["-p", str(self.port)] if self.port is not None else [])]
        if self.identity is not None:
            words += ["-i", str(self.identity)]
        if self.known_hosts is not None:
            words += ["-o", f"UserKnownHostsFile={_value(self.known_hosts)}"]
        if self.host_key_alias is not None:
            words += ["-o", f"HostKeyAlias={self.host_key_alias}"]
        return shlex.join([*words, *self.options, self.destination])

    def remote_shell(self) -> str:
        """Return what rsync's ``-e`` and git's ``GIT_SSH_COMMAND`` take."""
        return shlex.join(["ssh", *self.options_of_ssh()])

    def send(self, folder: Path, into: str, progress: Callable[[str], None] | None = None) -> None:
        """Make the folder ``into`` there hold what ``folder`` here holds, links followed, by rsync.

        Safe to repeat: what came before a break is not sent again.

        Parameters
        ----------
        progress
            Called with how far it is, in rsync's words: bytes, share, speed, time left.

        Raises
        ------
        ConnectionFailedError
            If there is no rsync on one of the sides, or the connection breaks; in rsync's words.
        """
        words = ["rsync", "-rLtp", "--partial", "--delete", "--protect-args", "--info=progress2", "--no-inc-recursive"]
        words += ["-e", self.remote_shell(), "--", f"{folder.absolute()}/", f"{self.destination}:{into}/"]
        with tempfile.TemporaryFile() as said:
            try:
                process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said)
            except FileNotFoundError:
                raise ConnectionFailedError("there is no rsync on this machine", "install rsync") from None
            with process:
                told = cast("BinaryIO", process.stdout)
                while part := os.read(told.fileno(), 1 << 12):
                    if progress is not None:
                        progress(" ".join(part.decode(errors="replace").rstrip().split("\r")[-1].split()))
            said.seek(0)
            done = subprocess.CompletedProcess(words, process.returncode, b"", said.read())
        if done.returncode:
            lacks = b"rsync: command not found" in done.stderr or b"rsync: not found" in done.stderr
            raise ConnectionFailedError(
                f"{folder} was not sent: {self.failure(done).message}",
                f"install rsync on {self.destination}" if lacks else hint_of_break(done.stderr, self),
            )

    def renew(self) -> None:
        """Let the next call connect anew: the shared connection takes no more calls, and those it has go on."""
        words = ["ssh", *self.options_of_ssh(), "-O", "stop", "--", self.destination]
        subprocess.run(words, capture_output=True, check=False)

    def close(self) -> None:
        """End the shared connection, if there is one."""
        words = ["ssh", *self.options_of_ssh(), "-O", "exit", "--", self.destination]
        subprocess.run(words, capture_output=True, check=False)


def _value(path: Path) -> str:
    """Return a path as the value of an option of ssh, which splits at spaces and replaces what follows a ``%``."""
    text = str(path).replace("%", "%%")
    return text if not re.search(r"[\s\"'\\#]", text) else '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def hint_of_break(said: bytes, host: Host) -> str:
    """Return what mends a transfer by git or rsync that has ended with these words."""
    if b"protocol error: bad line length" in said or b"is your shell clean" in said:
        return (
            f"the login shell on {host.destination} prints something where nobody looks: begin its ~/.bashrc with "
            "`[[ $- == *i* ]] || return`, then type the command again"
        )
    again = "type the command again: it carries on"
    return f"{_ROOM}, then {again}" if _is_full(said.decode(errors="replace")) else again


def _is_full(said: str) -> bool:
    return "No space left on device" in said or "quota exceeded" in said.lower()


def _in_short(said: str) -> str:
    """Leave the wall of warnings out that ssh puts up before it says that a host shows another key."""
    if _OTHER_KEY not in said:
        return said
    shown = re.search(r"(\w+) key sent by the remote host is (SHA256:[\w+/]+)", said)
    return "it shows another host key than the one known" + (f": {shown[1]} {shown[2]}" if shown else "")


def _hint_of(said: str, host: Host) -> str:
    if _OTHER_KEY in said:
        forget = re.search(r"ssh-keygen -f \S+ -R \S+", said)
        mend = f" if it is, {forget[0]} forgets the one known" if forget and host.known_hosts is None else ""
        return f"if that is not expected, somebody may be in between;{mend}".rstrip(";")
    if _REFUSED_KEY in said:
        return f"its host key is not known here: log in once, compare it, and accept it: {host.typed()}"
    if "Bad configuration option" in said or "command-line" in said:
        return "see what follows --ssh-option: `man ssh_config` has the options"
    if "Could not resolve hostname" in said:
        return f"see how it is spelt, and that you are online: {host.typed()}"
    if "Permission denied" in said:
        return f"see that this lets you in: {host.typed()}"
    return f"see that the machine is up: {host.typed()}"


def make_key(path: Path, comment: str = "") -> str:
    """Make an ed25519 key pair without a passphrase at ``path`` and ``path``.pub, unless it is there.

    Returns
    -------
    str
        The public key: ``ssh-ed25519 AAAA…``, without comment.

    Raises
    ------
    ConnectionFailedError
        If ssh-keygen is missing or fails, in its own words.
    """
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".key-") as aside:
            made = Path(aside) / "key"
            _keygen(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(made)])
            with contextlib.suppress(FileExistsError):  # who asked at the same time was first
                path.hardlink_to(made)  # the pair is there once the private key is; the other half follows from it
    public = " ".join(_keygen(["-y", "-f", str(path)]).split()[:2])
    beside = path.with_name(f"{path.name}.pub")
    if not beside.exists():
        beside.write_text(f"{public} {comment}".rstrip() + "\n")
    return public


def _keygen(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(["ssh-keygen", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConnectionFailedError("there is no ssh-keygen on this machine", "install openssh-client") from None
    if done.returncode:
        raise ConnectionFailedError(f"ssh-keygen failed: {' '.join(done.stderr.split())}")
    return done.stdout
