"""What the two sides say to each other: frames over the standard streams of ``python -m ems.remote.agent``.

A frame is a line of JSON, and after it as many bytes as its ``"bytes"`` says (none where it does not)::

    -> {"do": "refresh", "args": {"jobs": ["1842"]}}
    <- {"ok": {"1842_0": {...}}}
    <- {"error": {"kind": "ExecutorError", "message": "...", "hint": "..."}}

Each request is answered by frames of data, if it has some (``{"part": {...}, "bytes": n}``), and then by one ``ok``
or ``error``. What a user typed travels in frames only, never on a command line.
"""

from __future__ import annotations

import functools
import hashlib
import json
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from ems import errors

PROTOCOL = 1
#: The agent's first words. What a login shell prints before them (a message of the day in ``.bashrc``) is passed over.
GREETING = b"\x01ems agent\n"
MAX_HEADER = 64 << 20  # bytes; a million runs' params travel as data, not in a header
MAX_DATA = 1 << 30  # bytes; no side can make the other one hold more than that

Frame: TypeAlias = "dict[str, Any]"


class BrokenWireError(Exception):
    """The other side hung up, or said something that is no frame."""


def send(stream: BinaryIO, header: Frame, data: bytes = b"") -> None:
    """Write one frame; the caller flushes."""
    if data:
        header = {**header, "bytes": len(data)}
    stream.write(json.dumps(header, separators=(",", ":")).encode() + b"\n")
    if data:
        stream.write(data)


def receive(stream: BinaryIO) -> tuple[Frame, bytes]:
    """Read one frame.

    Raises
    ------
    BrokenWireError
        If the stream ends in it, or what comes is no frame; EOFError-like with an empty message at a clean end.
    """
    line = stream.readline(MAX_HEADER)
    if not line.endswith(b"\n"):
        raise BrokenWireError(line.decode(errors="replace"))
    try:
        header = json.loads(line)
        size = int(header.get("bytes", 0))
    except (ValueError, AttributeError):
        raise BrokenWireError(line.decode(errors="replace").strip()) from None
    if not 0 <= size <= MAX_DATA:
        raise BrokenWireError(f"{size} bytes in one frame")
    data = stream.read(size) if size else b""
    if len(data) != size:
        raise BrokenWireError("")
    return header, data


def inflated(data: bytes) -> bytes:
    """Return what was compressed by zlib.

    Raises
    ------
    BrokenWireError
        If it is damaged, or larger than any frame may be.
    """
    inflating = zlib.decompressobj()
    try:
        content = inflating.decompress(data, MAX_DATA)
    except zlib.error as error:
        raise BrokenWireError(str(error)) from None
    if not inflating.eof:
        raise BrokenWireError("compressed data that is cut off, or too large")
    return content


def answers(stream: BinaryIO) -> Generator[tuple[Frame, bytes], None, Any]:
    """Yield the parts of an answer; the value of the generator (``yield from``) is what ``ok`` says.

    Raises
    ------
    EmsError
        What the other side raised, of the same class.
    BrokenWireError
        If it hung up.
    """
    while True:
        header, data = receive(stream)
        if "part" in header:
            yield header["part"], data
        elif "error" in header:
            raise as_error(header["error"])
        else:
            return header.get("ok")


def as_record(error: errors.EmsError) -> Frame:
    """Return an error as it travels."""
    return {"kind": type(error).__name__, "message": error.message, "hint": error.hint}


def as_error(record: Frame) -> errors.EmsError:
    """Return the error that a record means."""
    kind = getattr(errors, str(record.get("kind")), errors.EmsError)
    if not (isinstance(kind, type) and issubclass(kind, errors.EmsError)):
        kind = errors.EmsError
    return kind(str(record.get("message")), str(record.get("hint") or ""))


@functools.cache
def code_digest() -> str:
    """Return a hash of what this ``ems`` does on the far side: two sides of the same digest understand each other.

    Versions alone would not tell a checkout from the release that it goes by.
    """
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if not name.startswith(_THIS_SIDE_ONLY):
            content = path.read_bytes()
            digest.update(b"%s\0%d\0%s" % (name.encode(), len(content), content))
    return digest.hexdigest()[:16]


# what the far side never runs, and what a wheel has beside the modules
_THIS_SIDE_ONLY = ("cli/", "cluster/", "report/", "study/", "templates/", "cluster_definitions/")
