"""Files of a folder -> one commit in a bare repository, through one ``git fast-import``.

Contents are read from disk and streamed as they are: no filter, hook, index or line-ending rule takes part, and a
first snapshot of many files is one pack instead of a file each.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TypeAlias, cast

from ems.errors import SnapshotError
from ems.node import checkout as node_checkout

_PIECE = 1 << 20  # bytes read at a time
_AUTHOR = b"ems <ems@localhost> 0 +0000"  # the same for everybody, so that content alone names the commit
_NULL = b"0" * 40

Stamp: TypeAlias = list[int | str]  # [size, mtime_ns, ctime_ns, inode, mode, blob]


def write_commit(
    project: Path, git_dir: Path, found: Mapping[str, os.stat_result], known: Mapping[str, Stamp]
) -> tuple[str, dict[str, Stamp]]:
    """Write one commit of all files, reading only those not in ``known``.

    The same content gives the same commit. No ref keeps it: that is the caller's to make.

    Parameters
    ----------
    project
        The folder the paths are relative to.
    git_dir
        The bare repository.
    found
        Path -> lstat of each file; one that has gone meanwhile is left out.
    known
        Stamps of the files whose blobs the repository has.

    Returns
    -------
    tuple of str and dict
        The commit's id, and the stamp of each file in it as it was when it was read.

    Raises
    ------
    SnapshotError
        If a file cannot be read, git lacks a blob in ``known``, or the disk is full.
    """
    stamps: dict[str, Stamp] = {}
    branch = b"refs/wip/" + os.urandom(8).hex().encode()
    with _fast_import(git_dir) as (send, answers):
        for path in found:
            stamp = known.get(path) or _send_file(send, project, path)
            if stamp is not None:
                stamps[path] = stamp
        send.write(b"commit %s\nmark :1\ncommitter %s\ndata 9\nsnapshot\n" % (branch, _AUTHOR))
        for path, stamp in stamps.items():
            send.write(b"M %o %s %s\n" % (int(stamp[4]), str(stamp[5]).encode(), _quote(path)))
        # nothing but the commit itself is wanted: ask for its name, and drop the branch before it is written
        send.write(b"\nget-mark :1\nreset %s\nfrom %s\n\ndone\n" % (branch, _NULL))
        send.flush()
        commit = answers.readline().decode("ascii").strip()
    return commit, stamps


@contextlib.contextmanager
def _fast_import(git_dir: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Give the two ends of a ``git fast-import``; its refusal is a SnapshotError in its own words."""
    command = ["git", "--git-dir", str(git_dir), "fast-import", "--done", "--quiet", "--date-format=raw"]
    pipe, environment = subprocess.PIPE, node_checkout.clean_environment()
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        send, answers, errors = cast("list[IO[bytes]]", [process.stdin, process.stdout, process.stderr])
        try:
            yield send, answers
            send.close()
        except BrokenPipeError:
            pass  # it has died; its own words follow
        except BaseException:
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                send.close()
            raise
        words = errors.read().decode("utf-8", "replace").strip()
    if process.returncode != 0:
        for leftover in (*git_dir.glob("fast_import_crash_*"), *(git_dir / "objects" / "pack").glob("tmp_pack_*")):
            leftover.unlink(missing_ok=True)
        full = any(word in words for word in ("No space left", "Out of diskspace", "Disk quota exceeded"))
        first = words.splitlines()[0].removeprefix("fatal: ") if words else f"exit {process.returncode}"
        reason = "no space left on device" if full else first
        raise SnapshotError(f"git cannot write {git_dir}: {reason}", "is there space left, and may you write there?")


def _send_file(send: IO[bytes], project: Path, path: str) -> Stamp | None:
    """Send the content of a file as it is now; None if it has gone meanwhile."""
    place = project / path
    try:
        facts = os.lstat(place)
        if stat.S_ISLNK(facts.st_mode):
            return [*stamp_of(facts), _send(send, _link_target(project, place))]
        with place.open("rb") as file:
            facts = os.fstat(file.fileno())
            if facts.st_size <= 16 * _PIECE:
                return [*stamp_of(facts), _send(send, file.read())]
            return [*stamp_of(facts), _send_large(send, file, facts.st_size, path)]
    except FileNotFoundError:
        return None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SnapshotError(
            f"{path} cannot be read: {error.strerror}", "mend its permissions, or list it in .emsignore"
        ) from error


def _send(send: IO[bytes], content: bytes) -> str:
    send.write(b"blob\ndata %d\n%s\n" % (len(content), content))
    return node_checkout.blob_id(content)


def _send_large(send: IO[bytes], file: IO[bytes], size: int, path: str) -> str:
    digest = hashlib.sha1(b"blob %d\0" % size)  # noqa: S324 - git's own naming
    send.write(b"blob\ndata %d\n" % size)
    left = size
    while left:
        piece = file.read(min(_PIECE, left))
        if not piece:
            raise SnapshotError(f"{path} became shorter while it was read", "try again when nothing writes to it")
        digest.update(piece)
        send.write(piece)
        left -= len(piece)
    send.write(b"\n")
    return digest.hexdigest()


def _link_target(project: Path, place: Path) -> bytes:
    """Return what a symlink says; made absolute if it is relative and leads out of the project."""
    target = os.readlink(place)  # noqa: PTH115 - Path would tidy it up
    resolved = os.path.normpath(place.parent / target)
    if Path(target).is_absolute() or Path(resolved).is_relative_to(project):
        return os.fsencode(target)
    return os.fsencode(resolved)


def stamp_of(facts: os.stat_result) -> Stamp:
    """Return what is remembered of a file, but for its blob: if this is unchanged, so is the content."""
    link, executable = stat.S_ISLNK(facts.st_mode), facts.st_mode & stat.S_IXUSR
    mode = 0o120000 if link else 0o100755 if executable else 0o100644
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, mode]


def _quote(path: str) -> bytes:
    """Quote a path as git does in C style (git-fast-import(1), <path>)."""
    raw = os.fsencode(path)
    return b'"%s"' % raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
