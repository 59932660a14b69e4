"""Put this ``ems`` on a machine over SSH: into a virtual environment below the root, without root rights.

pip there fetches what ``ems`` needs; where it cannot, because login nodes often see no package index, the wheels for
that machine are fetched here and sent.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ems import wheel
from ems.errors import ClusterError
from ems.registry import RemoteTarget
from ems.ssh import Host

Report = Callable[[str], None]

_PIP = ("--disable-pip-version-check", "--no-input")
_INSTALL_S = 1800.0
# A transfer that breaks leaves no file that looks whole: to `cat` a connection that is gone is the end of the file.
_SAVE = """
set -e
mkdir -p -- "$1"
cat >"$1/.part-$2"
test "$(wc -c <"$1/.part-$2")" -eq "$3"
mv -- "$1/.part-$2" "$1/$2"
"""
# Root's, as the set-up of the cluster left it; its own script knows how to bring ems up to date there.
_ON_SHARE = f"""{_SAVE}
[ ! -e "$4/venv/.wheel" ] || echo other >"$4/venv/.wheel"  # whatever it says: what is there is not what it should be
exec sh "$4/templates/roles/ems/files/install-ems" "$1/$2" "$4/venv"
"""


class Installer:
    """Installs this ``ems`` on a machine.

    Parameters
    ----------
    host
        How it is reached.
    found
        What :mod:`ems.cluster.probe` said of it.
    report
        Told what is being done.
    """

    def __init__(self, host: Host, found: Mapping[str, Any], report: Report) -> None:
        self._host, self._found, self._report = host, found, report
        self._venv = f"{found['root']}/venv"
        self._python = f"{self._venv}/bin/python"
        self._wheels = f"{found['root']}/.wheels"
        self._ready = f"{self._venv}/.ready"

    def install(self) -> str:
        """Have this very ``ems`` there; return the Python that runs it. Safe to repeat after it was interrupted.

        Raises
        ------
        ClusterError
            If it cannot be installed, in pip's words.
        ConnectionFailedError
            If the machine cannot be reached.
        """
        self._make_venv()
        self._host.run(["rm", "-f", self._ready])  # until all is there, the next one starts from nothing
        with tempfile.TemporaryDirectory(prefix="ems-wheel-") as aside:
            own = wheel.pack(Path(aside))
            self._report(f"{self._host.destination}: installs ems")
            self._send(own)
            if not self._has_needs(own):
                if b"No space left on device" in self._said.stderr:
                    raise self._host.failure(self._said)
                self._bring_needs(own, Path(aside))
        self._host.run(["rm", "-rf", self._wheels])
        self._host.run(["touch", self._ready])
        return self._python

    def _make_venv(self) -> None:
        """Make the virtual environment, unless a whole one of the same Python is there."""
        code = "import os, sys; print(sys.base_prefix, *sys.version_info[:3], os.path.exists(sys.argv[1]))"
        said = self._run([self._python, "-I", "-c", code, self._ready])
        wanted = [self._found["base"], *map(str, self._found["version"]), "True"]
        told = said.stdout.decode(errors="replace").splitlines()[-1:]  # a login shell may say something before it
        if said.returncode == 0 and " ".join(told).split() == wanted:
            return
        self._report(f"{self._host.destination}: makes a virtual environment")
        make = [self._found["python"], "-m", "venv", "--clear"]
        if self._run([*make, self._venv]).returncode != 0:
            # Debian's python3 without its python3-venv: pip comes from here
            self._host.run([*make, "--without-pip", self._venv])

    def _has_needs(self, own: Path) -> bool:
        """Install ``ems``, then what it needs and is not there yet; return whether pip there was able to."""
        path = f"{self._wheels}/{own.name}"
        pip = [self._python, "-m", "pip", *_PIP, "install", "--quiet"]
        self._said = self._run([*pip, "--no-index", "--no-deps", "--force-reinstall", path])
        if self._said.returncode == 0:
            self._said = self._run([*pip, "--retries", "1", "--timeout", "10", "--prefer-binary", path])
        return self._said.returncode == 0

    def _bring_needs(self, own: Path, aside: Path) -> None:
        """Fetch here what pip could not fetch there, send what is not there yet, and install that.

        Raises
        ------
        ClusterError
            If that does not do either.
        """
        self._report(f"{self._host.destination} has no package index: fetches its packages here")
        found = self._download(own, aside / "wheels")
        there = set(self._host.run(["ls", "-a", self._wheels]).stdout.decode(errors="replace").split())
        missing = [path for path in found if path.name not in there]
        for number, path in enumerate(missing, start=1):
            self._report(f"{self._host.destination}: sends {number}/{len(missing)} {path.name}")
            self._send(path)
        self._report(f"{self._host.destination}: installs {len(found)} packages")
        pip = next(path.name for path in found if path.name.startswith("pip-"))
        words = [self._python, f"{self._wheels}/{pip}/pip", *_PIP, "install", "--quiet", "--no-index"]
        done = self._run([*words, "--find-links", self._wheels, f"{self._wheels}/{own.name}"])
        if done.returncode != 0:
            raise ClusterError(
                f"ems cannot be installed on {self._host.destination}: {_last_words(done.stderr)}",
                f"before that pip said there: {_last_words(self._said.stderr)}",
            )

    def _download(self, own: Path, folder: Path) -> list[Path]:
        """Fetch the wheels that the machine needs, ``ems`` itself left out.

        Raises
        ------
        ClusterError
            If there is no index here either, or no wheel for such a machine.
        """
        version = ".".join(str(part) for part in self._found["version"][:2])
        abi = f"cp{version.replace('.', '')}"
        words = [*_own_pip(), *_PIP, "download", "--quiet", "--only-binary=:all:", "--dest", str(folder)]
        words += ["--python-version", version, "--implementation", "cp"]
        words += [word for each in (f"{abi}{self._found['abi']}", "abi3", "none") for word in ("--abi", each)]
        words += [word for each in platforms(self._found) for word in ("--platform", each)]
        done = subprocess.run([*words, str(own), "pip"], capture_output=True, check=False)
        if done.returncode != 0:
            raise ClusterError(
                f"pip fetches nothing on {self._host.destination}, and not here either: {_last_words(done.stderr)}",
                f"there it said: {_last_words(self._said.stderr)}",
            )
        return sorted(path for path in folder.iterdir() if path.name != own.name)

    def _send(self, path: Path) -> None:
        data = path.read_bytes()
        self._host.run(["sh", "-c", _SAVE, "sh", self._wheels, path.name, str(len(data))], data=data)

    def _run(self, words: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        return self._host.run(words, check=False, timeout_s=_INSTALL_S)


def install_on_share(target: RemoteTarget, report: Report) -> None:
    """Put this ``ems`` on the share of a cluster that ``ems`` made, as its set-up does.

    Raises
    ------
    ConnectionFailedError
        If the controller cannot be reached, or it fails there, in its own words.
    """
    share = str(PurePosixPath(target.ems[0]).parents[2])  # SHARE/venv/bin/python
    host = target.host
    with tempfile.TemporaryDirectory(prefix="ems-wheel-") as aside:
        own = wheel.pack(Path(aside))
        data = own.read_bytes()
        report(f"{target.name}: installs ems")
        is_ours = host.run(["test", "-w", f"{share}/venv"], check=False).returncode == 0
        words = [*([] if is_ours else ["sudo", "-n"]), "sh", "-c", _ON_SHARE, "sh"]
        host.run([*words, f"{share}/dist", own.name, str(len(data)), share], data=data, timeout_s=_INSTALL_S)


def platforms(found: Mapping[str, Any]) -> list[str]:
    """Return the platforms whose wheels a machine takes, best first (PEP 600, PEP 656).

    Parameters
    ----------
    found
        ``machine`` (``x86_64``) and ``libc`` (``["glibc", "2.36"]``), as :mod:`ems.cluster.probe` says them.
    """
    return list(_platforms(found["machine"], *found["libc"]))


def _platforms(machine: str, libc: str, version: str) -> Iterator[str]:
    if libc != "glibc":
        yield from (f"musllinux_1_{minor}_{machine}" for minor in (2, 1))
        return
    newest = int(version.split(".")[1])
    yield from (f"manylinux_2_{minor}_{machine}" for minor in range(newest, 16, -1))
    yield from (f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}")


def _own_pip() -> list[str]:
    """Return the words that run pip here: that of this Python, or, in an environment without one, of another."""
    for words in ([sys.executable, "-m", "pip"], ["python3", "-m", "pip"], ["pip3"], ["pip"]):
        try:
            if subprocess.run([*words, "--version"], capture_output=True, check=False).returncode == 0:
                return words
        except FileNotFoundError:
            continue
    raise ClusterError("there is no pip on this machine", f"{shlex.quote(sys.executable)} -m ensurepip")


def _last_words(said: bytes) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return (errors[-1] if errors else "nothing").removeprefix("ERROR: ")[:300]
