"""Many small frames in few large ones, compressed: how the files of thousands of runs cross a slow line.

Also what both sides must compute alike: by what the beginning of a file is known to be the same.
"""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Iterable, Iterator

from ems.remote import wire
from ems.remote.wire import Frame

BLOCK = 1 << 18  # bytes of a file in one frame, and of frames that travel together
_EDGE = 1 << 17
_LEVEL = 1  # text shrinks to a tenth already; more costs more time than it saves on any line above 10 MB/s
_RAW_FOR = 15  # packs sent as they are after one that did not shrink: a model's weights are not tried again and again


def packed(frames: Iterable[tuple[Frame, bytes]]) -> Iterator[tuple[Frame, bytes]]:
    """Put frames together to packs of about ``BLOCK`` bytes; each stands for itself."""
    raw_left = 0
    buffer = io.BytesIO()
    for header, data in frames:
        wire.send(buffer, header, data)
        if buffer.tell() >= BLOCK:
            pack, raw_left = _pack(buffer.getvalue(), raw_left)
            yield pack
            buffer = io.BytesIO()
    if buffer.tell():
        yield _pack(buffer.getvalue(), 0)[0]


def _pack(content: bytes, raw_left: int) -> tuple[tuple[Frame, bytes], int]:
    if raw_left:
        return ({"raw": True}, content), raw_left - 1
    smaller = zlib.compress(content, _LEVEL)
    if len(smaller) > 0.9 * len(content):
        return ({"raw": True}, content), _RAW_FOR
    return ({}, smaller), 0


def unpacked(packs: Iterable[tuple[Frame, bytes]]) -> Iterator[tuple[Frame, bytes]]:
    """Yield the frames that :func:`packed` put together.

    Raises
    ------
    BrokenWireError
        If a pack is damaged.
    """
    for header, data in packs:
        content = data if header.get("raw") else wire.inflated(data)
        stream = io.BytesIO(content)
        while stream.tell() < len(content):
            yield wire.receive(stream)


def fingerprint(handle: int, size: int, *, is_appended: bool) -> str:
    """Return by what the first ``size`` bytes of an open file are known again.

    All of them; but of a long beginning of a file that ``is_appended`` to its first and last 128 KiB, so that looking
    at a log of gigabytes that grows by a line costs no more than that line is worth.
    """
    seen = hashlib.blake2b(b"%d " % size, digest_size=16)
    at = 0
    while at < size:
        if is_appended and at == _EDGE:
            at = max(at, size - _EDGE)
        block = os.pread(handle, min(_EDGE, size - at), at)
        seen.update(block)
        at += len(block) or size  # cut off meanwhile: then it is another
    return seen.hexdigest()
