"""A snapshot on its way: ``git push`` over SSH, only what the other side lacks.

Snapshots have no parents, so that git knows of no object that two of them share, and would send each as a whole. What
is pushed beside a snapshot is therefore a link of a chain, ``refs/pushes/LINE``: a commit of the same files whose
parents are the snapshot and the link before. Its walk meets what was pushed last, whose files need not travel again.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from pathlib import Path
from urllib.parse import quote

from ems.errors import ConnectionFailedError, SnapshotError
from ems.node.checkout import clean_environment
from ems.node.records import locked
from ems.registry import RemoteTarget
from ems.ssh import hint_of_break


def push(git_dir: Path, target: RemoteTarget, snapshot: str) -> None:
    """Bring a snapshot into ``ROOT/snapshots.git`` of a target, which is there. Safe to repeat after any break.

    Parameters
    ----------
    git_dir
        The repository on this side.

    Raises
    ------
    SnapshotError
        If this side does not have it either.
    ConnectionFailedError
        If the connection breaks, in git's own words; nothing of a half-sent snapshot counts there.
    """
    line = f"refs/pushes/{_line(git_dir)}"
    with locked(git_dir / "push.lock"):
        link = _link(git_dir, line, snapshot)
        refs = [f"+{link}:{line}", f"+{snapshot}:refs/snapshots/{snapshot}"]
        done = _git(git_dir, "push", "--quiet", "--porcelain", _url(target), *refs, shell=target.host.remote_shell())
        if done.returncode != 0:
            words = " ".join(done.stderr.decode(errors="replace").split())[-500:]
            raise ConnectionFailedError(
                f"the code did not reach {target.name}: {words}", hint_of_break(done.stderr, target.host)
            )
        _git(git_dir, "update-ref", line, link)


def _line(git_dir: Path) -> str:
    """Name the chain of this project on this machine: others push to the same root, too."""
    return hashlib.sha256(os.fsencode(f"{platform.node()}\0{git_dir}")).hexdigest()[:16]


def _link(git_dir: Path, line: str, snapshot: str) -> str:
    """Return a commit of the snapshot's files that follows on what was pushed last."""
    before = _git(git_dir, "rev-parse", "--quiet", "--verify", f"{line}^{{commit}}").stdout.decode().strip()
    parents = ["-p", snapshot, *(["-p", before] if before else [])]
    done = _git(git_dir, "commit-tree", f"{snapshot}^{{tree}}", *parents, "-m", "pushed")
    if done.returncode != 0:
        raise SnapshotError(
            f"the code {snapshot[:8]} is neither here nor there", "submit it anew from the project it came from"
        )
    return done.stdout.decode().strip()


def _url(target: RemoteTarget) -> str:
    return f"ssh://{target.host.destination}{quote(target.root)}/snapshots.git"


def _git(git_dir: Path, *args: str, shell: str = "") -> subprocess.CompletedProcess[bytes]:
    names = {"GIT_AUTHOR_NAME": "ems", "GIT_AUTHOR_EMAIL": "ems@localhost"}
    names |= {key.replace("AUTHOR", "COMMITTER"): value for key, value in names.items()}
    env = {**clean_environment(), **names, "GIT_TERMINAL_PROMPT": "0", "GIT_SSH_VARIANT": "ssh"}
    env |= {"GIT_SSH_COMMAND": shell} if shell else {}
    command = ["git", "--git-dir", str(git_dir), "-c", "core.hooksPath=/dev/null", *args]
    return subprocess.run(command, capture_output=True, check=False, env=env)
