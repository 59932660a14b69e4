"""What two sides say to each other, byte by byte."""

from __future__ import annotations

import io
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ems import errors
from ems.remote import wire

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(json_values, st.binary(max_size=100)), max_size=5))
def test_frames_arrive_as_they_were_sent(frames: list[tuple[Any, bytes]]) -> None:
    stream = io.BytesIO()
    for value, data in frames:
        wire.send(stream, {"part": value}, data)
    stream.seek(0)
    for value, data in frames:
        header, received = wire.receive(stream)
        assert header["part"] == value
        assert received == data
    with pytest.raises(wire.BrokenWireError):
        wire.receive(stream)


def test_a_stream_that_ends_anywhere_in_a_frame_is_broken() -> None:
    whole = io.BytesIO()
    wire.send(whole, {"ok": "x" * 20}, b"0123456789")
    for size in range(len(whole.getvalue())):
        with pytest.raises(wire.BrokenWireError):
            wire.receive(io.BytesIO(whole.getvalue()[:size]))


NO_FRAMES = [b"Welcome to far\n", b"[1, 2]\n", b"\xff\xfe\n", b'{"bytes": "x"}\n', b"7\n"]


@pytest.mark.parametrize("line", [*NO_FRAMES, b'{"bytes": -1}\nrest', b'{"bytes": %d}\n' % (wire.MAX_DATA + 1)])
def test_what_is_no_frame_is_broken(line: bytes) -> None:
    with pytest.raises(wire.BrokenWireError):
        wire.receive(io.BytesIO(line))


def test_an_error_is_of_the_same_kind_on_the_other_side() -> None:
    for kind in (errors.EmsError, errors.ExecutorError, errors.UsageError, errors.NotFoundError):
        error = wire.as_error(wire.as_record(kind("what", "how")))
        assert (type(error), error.message, error.hint) == (kind, "what", "how")


@pytest.mark.parametrize("kind", ["annotations", "Exception", "__name__", "NoSuchError", None])
def test_an_error_of_no_kind_that_we_know_is_one_all_the_same(kind: Any) -> None:
    error = wire.as_error({"kind": kind, "message": "what"})
    assert (type(error), error.message, error.hint) == (errors.EmsError, "what", "")


def test_what_grows_beyond_all_measure_or_is_cut_off_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_DATA", 1 << 20)
    assert wire.inflated(zlib.compress(bytes(1 << 19))) == bytes(1 << 19)
    for bad in (zlib.compress(bytes(1 << 21)), zlib.compress(b"x" * 99)[:-1], b"no zlib", b""):
        with pytest.raises(wire.BrokenWireError):
            wire.inflated(bad)


def test_answers_are_parts_and_then_the_rest() -> None:
    stream = io.BytesIO()
    wire.send(stream, {"part": {"n": 1}}, b"one")
    wire.send(stream, {"ok": "done"})
    stream.seek(0)
    parts = wire.answers(stream)
    assert next(parts) == ({"n": 1}, b"one")
    with pytest.raises(StopIteration) as end:
        next(parts)
    assert end.value.value == "done"


def test_the_digest_of_the_code_stays_and_names_it() -> None:
    assert wire.code_digest() == wire.code_digest.__wrapped__()
    assert len(wire.code_digest()) == 16
