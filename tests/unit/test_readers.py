"""Readers of metric files: what they find, what they report, and that cutting a file anywhere changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ems.harvest import readers
from ems.harvest.readers import Read, Reader


def values(read: Read, name: str) -> list[tuple[float, float | str | None]]:
    """Steps and values of a metric; NaN as the text."""
    return [(step, text if value is None else value) for _, step, value, text, _ in read.points.get(name, [])]


def in_pieces(reader: Reader, data: bytes, cuts: list[int]) -> tuple[dict[str, list[readers.Point]], list[str]]:
    """Read ``data`` as it grows to each of ``cuts``, then to its end."""
    state: readers.State = {}
    points: dict[str, list[readers.Point]] = {}
    problems: list[str] = []
    offset = 0
    for end in [*sorted(cuts), len(data)]:
        state = json.loads(json.dumps(state))  # as the store keeps it
        read = reader(data[offset:end], state)
        offset += read.consumed
        problems += read.problems
        for name, found in read.points.items():
            points.setdefault(name, []).extend(found)
    return points, problems


# -- JSON lines


def test_a_line_of_the_facade_gives_a_point_a_metric() -> None:
    read = readers.jsonl(b'{"step":3,"loss":0.5,"acc":1,"_t":12.5,"_a":2}\n', {})
    assert read.points == {"loss": [(2, 3, 0.5, None, 12.5)], "acc": [(2, 3, 1.0, None, 12.5)]}
    assert read.consumed == len(b'{"step":3,"loss":0.5,"acc":1,"_t":12.5,"_a":2}\n')


def test_nan_and_infinity_survive() -> None:
    read = readers.jsonl(b'{"step":0,"a":NaN,"b":Infinity,"c":-Infinity,"d":"nan"}\n', {})
    assert [values(read, name) for name in "abcd"] == [[(0, "NaN")], [(0, math.inf)], [(0, -math.inf)], [(0, "NaN")]]


def test_other_values_are_kept_as_what_they_are() -> None:
    line = {"step": 1, "ok": True, "phase": "warm", "nested": {"x": 2, "deep": {"y": 3}}, "list": [1], "none": None}
    read = readers.jsonl(json.dumps(line).encode() + b"\n", {})
    assert {name: values(read, name) for name in read.points} == {
        "ok": [(1, 1.0)],
        "phase": [(1, "warm")],
        "nested.x": [(1, 2.0)],
        "nested.deep.y": [(1, 3.0)],
    }


def test_integers_beyond_any_float_are_text() -> None:
    read = readers.jsonl(b'{"step":1,"big":' + b"9" * 400 + b"}\n", {})
    assert values(read, "big") == [(1, "9" * 400)]


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ('{"global_step":7,"epoch":2,"loss":1}', 7),
        ('{"epoch":2,"loss":1}', 2),
        ('{"step":2.5,"loss":1}', 2.5),
        ('{"step":"12","loss":1}', 12),
        ('{"step":NaN,"loss":1}', 0),
        ('{"step":99999999999999999999,"loss":1}', 1e20),
        ('{"loss":1}', 0),
    ],
)
def test_the_step_is_found_or_else_the_line_counts(line: str, step: float) -> None:
    assert values(readers.jsonl(line.encode() + b"\n", {}), "loss") == [(step, 1.0)]


def test_a_malformed_line_is_named_and_the_rest_is_kept() -> None:
    read = readers.jsonl(b'{"step":0,"a":1}\nnot json\n[1]\n\n{"step":4,"a":2}\n', {})
    assert values(read, "a") == [(0, 1.0), (4, 2.0)]
    assert read.problems == ["line 2: not JSON: 'not json'", "line 3: not a JSON object"]


def test_many_malformed_lines_are_counted_not_listed() -> None:
    read = readers.jsonl(b"x\n" * 1000, {})
    assert len(read.problems) == 3
    assert read.n_problems == 1000


def test_a_torn_last_line_waits_and_is_tried_when_nothing_more_comes() -> None:
    data = b'{"step":0,"a":1}\n{"step":1,"a":2}'
    assert readers.jsonl(data, {}).consumed == len(b'{"step":0,"a":1}\n')
    state: readers.State = {}
    read = readers.read_all(readers.jsonl, data, state)
    assert values(read, "a") == [(0, 1.0), (1, 2.0)]
    assert state["lines"] == 1  # the torn line is not done with


def test_a_line_longer_than_memory_is_passed_over() -> None:
    read = readers.jsonl(b"x" * readers.MAX_BYTES, {})
    assert read.consumed == readers.MAX_BYTES
    assert read.n_problems == 1


LINES = st.one_of(
    st.builds(
        lambda step, value: json.dumps({"step": step, "a": value, "_a": 1}).encode(),
        st.integers(-(2**70), 2**70),
        st.one_of(st.floats(), st.integers(), st.text(), st.booleans(), st.none(), st.just({"b": 1.5})),
    ),
    st.binary(max_size=40).map(lambda data: data.replace(b"\n", b" ")),
    st.sampled_from(
        [b"", b"{", b"}", b"[]", b"{}", b"null", b'{"a":1},{"a":2}', b"\0" * 9, b'{"step":1,"a":"\\ud800"}']
    ),
)


@given(st.lists(LINES, max_size=12), st.lists(st.integers(0, 600), max_size=5))
def test_where_a_file_of_garbage_is_cut_changes_nothing(lines: list[bytes], cuts: list[int]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    for reader in (readers.jsonl, readers.table, readers.printed()):
        whole = in_pieces(reader, data, [])
        pieces = in_pieces(reader, data, [min(cut, len(data)) for cut in cuts])
        assert pieces[0] == whole[0]


@given(st.lists(LINES, max_size=12))
def test_each_json_object_is_found_and_no_other_line(lines: list[bytes]) -> None:
    def is_object(line: bytes) -> bool:
        try:
            return isinstance(json.loads(line), dict)
        except ValueError:
            return False

    read = readers.jsonl(b"".join(line + b"\n" for line in lines), {})
    assert read.n_problems == sum(not is_object(line) for line in lines if line.strip())
    with_a = [line for line in lines if is_object(line) and type(json.loads(line).get("a")) in (int, float, bool, str)]
    assert len(read.points.get("a", [])) == len(with_a)


@given(st.binary(max_size=200))
def test_no_reader_fails_on_garbage(data: bytes) -> None:
    for reader in (readers.jsonl, readers.table, readers.document, readers.printed(), readers.printed(["(?P<a>.)"])):
        readers.read_all(reader, data, {})


# -- CSV


def test_csv_with_a_step_column() -> None:
    read = readers.table(b"epoch,loss,note\n1,0.5,a\n2,nan,\n3,inf,b\n", {})
    assert values(read, "loss") == [(1, 0.5), (2, "NaN"), (3, math.inf)]
    assert values(read, "note") == [(1, "a"), (3, "b")]
    assert "epoch" not in read.points


@pytest.mark.parametrize(
    "data", [b"loss;acc\n0.5;1\n0.25;2\n", b"loss\tacc\n0.5\t1\n0.25\t2\n", b"loss,acc\r\n0.5,1\r\n0.25,2\r\n"]
)
def test_csv_of_any_delimiter_counts_its_rows(data: bytes) -> None:
    assert values(readers.table(data, {}), "loss") == [(0, 0.5), (1, 0.25)]


def test_a_malformed_row_is_named_and_the_rest_is_kept() -> None:
    read = readers.read_all(readers.table, b'epoch,loss\n1,0.5\n2\n"3,0.1\n4,0.2\n', {})
    assert values(read, "loss") == [(1, 0.5), (4, 0.2)]
    assert read.problems == ["line 3: 1 cell where the header has 2", "line 4: 1 cell where the header has 2"]


NOTES = b'epoch,acc,note\n0,0.5,"a\nb, c\n"\n1,0.6,plain\n2,0.7,"d ""e""\nf"\n'


@pytest.mark.parametrize("cut", range(len(NOTES) + 1))
def test_a_cell_may_have_line_breaks_wherever_the_file_is_cut(cut: int) -> None:
    state: dict[str, object] = {}
    first = readers.table(NOTES[:cut], state)
    rest = readers.read_all(readers.table, NOTES[first.consumed :], state)
    points = {name: first.points.get(name, []) + rest.points.get(name, []) for name in ("acc", "note")}
    assert [(step, value) for _, step, value, *_ in points["acc"]] == [(0, 0.5), (1, 0.6), (2, 0.7)]
    assert [text for *_, text, _ in points["note"]] == ["a\nb, c", "plain", 'd "e"\nf']
    assert not first.problems
    assert not rest.problems


@pytest.mark.parametrize("garbage", [b'1,"x', b'1,"x\n1,2,"y'])
def test_an_open_quote_swallows_no_row(garbage: bytes) -> None:
    read = readers.read_all(readers.table, b"epoch,acc\n0,0.5\n" + garbage + b"\n2,0.7\n3,0.8", {})
    assert [step for _, step, *_ in read.points["acc"] if step != 1] == [0, 2, 3]


def test_rows_that_share_a_step_are_said_once() -> None:
    state: dict[str, object] = {}
    long = b"".join(b"%d,train,0.1\n%d,test,0.2\n" % (epoch, epoch) for epoch in range(5))
    problems = readers.table(b"epoch,split,acc\n" + long, state).problems + readers.table(long, state).problems
    assert problems == ["line 5: several rows of one epoch, of which only the last counts"]
    assert not readers.table(b"epoch,acc\n0,1\n1,2\n1,3\n2,4\n", {}).problems


def test_csv_of_pandas_and_a_header_written_twice() -> None:
    read = readers.table(b"\xef\xbb\xbf,loss\n0,0.5\n,loss\n1,0.25\n", {})
    assert {name: values(read, name) for name in read.points} == {"loss": [(0, 0.5), (1, 0.25)]}


def test_csv_without_header_is_left_out_by_name() -> None:
    read = readers.table(b"1,2\n3,4\n", {})
    assert not read.points
    assert "line 1: numbers where the header should be" in read.problems[0]


# -- JSON documents


def test_a_document_gives_values_lists_and_rows() -> None:
    read = readers.document(b'{"test": {"acc": 0.9}, "loss": [3, 2, NaN]}', {})
    assert {name: values(read, name) for name in read.points} == {
        "test.acc": [(0, 0.9)],
        "loss": [(0, 3.0), (1, 2.0), (2, "NaN")],
    }
    rows = readers.document(b'[{"epoch": 1, "acc": 0.5}, {"epoch": 2, "acc": 0.6}]', {})
    assert values(rows, "acc") == [(1, 0.5), (2, 0.6)]


def test_a_broken_document_is_named_with_its_line() -> None:
    read = readers.document(b'{"a": 1,\n "b": }', {})
    assert read.problems[0].startswith("line 2: not JSON")


# -- printed lines


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("acc: 0.93", {"acc": (0, 0.93)}),
        ("epoch=3 loss=0.21", {"loss": (3, 0.21)}),
        ("Epoch 3/10 - loss: 0.21 - acc: 9.3e-1", {"loss": (3, 0.21), "acc": (3, 0.93)}),
        ("Epoch [2/5], Step [100/600], Loss: 0.2", {"Loss": (1300, 0.2)}),
        ("step 4: val loss = nan, f1=-inf.", {"val_loss": (4, "NaN"), "f1": (4, -math.inf)}),
        ("Test accuracy: 93.1 %", {"Test_accuracy": (0, 93.1)}),
        ('{"step": 4, "a": 1, "b": {"c": 2}}', {"a": (4, 1.0), "b.c": (4, 2.0)}),
        ("{'loss': nan, 'lr': 5e-05, 'epoch': 1.0}", {"loss": (1, "NaN")}),
        ("10%|#   | loss=0.9\r100%|####| loss=0.5", {"loss": (0, 0.5)}),
        ("\x1b[32macc\x1b[0m: \x1b[1m0.5\x1b[0m", {"acc": (0, 0.5)}),
        ("lr=0.1 loss=1", {"loss": (0, 1.0)}),
        ("2026-11-21 09:41:03 INFO http://localhost:8080 ready", {}),
        ("ValueError: 3", {}),
        ("name: nancy, info: infer", {}),
        ("nothing here", {}),
        ("{'broken': ", {}),
    ],
)
def test_usual_lines(line: str, found: dict[str, tuple[float, float | str]]) -> None:
    read = readers.printed(exclude=["lr"])(line.encode() + b"\n", {})
    assert {name: values(read, name) for name in read.points} == {name: [value] for name, value in found.items()}


def test_lines_without_step_are_counted_a_metric() -> None:
    read = readers.printed()(b"acc: 1\nloss: 5\nacc: 2\n", {})
    assert values(read, "acc") == [(0, 1.0), (1, 2.0)]
    assert values(read, "loss") == [(0, 5.0)]


def test_patterns_of_the_user_replace_the_usual_ones() -> None:
    reader = readers.printed([r"@(?P<step>\d+) (?P<name>\w+) is (?P<value>\S+)", r"wer (?P<wer>[\d.]+)"])
    read = reader(b"@3 bleu is 27.5\nwer 12.5\nacc: 0.9\n", {})
    assert {name: values(read, name) for name in read.points} == {"bleu": [(3, 27.5)], "wer": [(0, 12.5)]}
    assert not readers.printed(["off"])(b"acc: 0.9\n", {}).points


# -- TensorBoard


def test_tensorboard_scalars_and_a_torn_record(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    path = tmp_path / "events.out.tfevents.1"
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for step, value in enumerate([0.5, math.nan, math.inf]):
            summary = Summary(value=[Summary.Value(tag="train/loss", simple_value=value)])
            writer.write(Event(wall_time=1.5, step=step, summary=summary).SerializeToString())
    data = path.read_bytes()
    read = readers.tensorboard(data, {})
    assert values(read, "train/loss") == [(0, 0.5), (1, "NaN"), (2, math.inf)]
    assert read.consumed == len(data)
    assert in_pieces(readers.tensorboard, data, [3, 40, len(data) - 1])[0] == read.points
