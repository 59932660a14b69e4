"""Files that runs write -> points. Every reader goes on where the last call stopped, and none fails on garbage.

A reader is a function ``(data, state) -> Read``: ``data`` are the bytes from where the last call stopped, ``state``
what it remembers (JSON). It leaves an unfinished last line for the next call; once a run has ended :func:`read_all`
tries that too. A line that cannot be used becomes a problem that names it; the rest is kept.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import csv
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

# (attempt, step, value, text, unix time); NaN is (.., None, "NaN", ..) and a text (.., None, text, ..), as in the store
Point: TypeAlias = "tuple[int, float, float | None, str | None, float | None]"
State: TypeAlias = "dict[str, Any]"
Reader: TypeAlias = "Callable[[bytes, State], Read]"

STEP_NAMES = ("step", "global_step", "_step", "iteration", "iter", "epoch")
_MAX_TEXT = 1000
_MAX_PROBLEMS = 3  # of one file at a time; the rest is counted
_MAX_ROW_LINES = 50
_SNIPPET = 40


@dataclass(slots=True)
class Read:
    """What a reader made of some bytes; ``consumed`` of them need not be read again."""

    consumed: int = 0
    points: dict[str, list[Point]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    n_problems: int = 0

    def complain(self, line: int, what: str) -> None:
        """Note what is wrong with a line (1 is the first)."""
        self.n_problems += 1
        if self.n_problems <= _MAX_PROBLEMS:
            self.problems.append(f"line {line}: {what}")

    def add(self, name: str, point: Point) -> None:
        """Add one point of a metric."""
        if name in self.points:
            self.points[name].append(point)
        else:
            self.points[name] = [point]


def jsonl(data: bytes, state: State) -> Read:
    """Read one JSON object a line, as ``ems.log()`` writes them: ``{"step": 3, "loss": 0.2, "_t": .., "_a": ..}``."""
    read, lines = _whole_lines(data)
    for number, record in _objects(lines, state, read):
        if isinstance(record, dict):
            _add_record(read, record, state, number - 1)
        else:
            read.complain(number, "not a JSON object")
    return read


def _objects(lines: list[bytes], state: State, read: Read) -> Iterator[tuple[int, Any]]:
    """Yield line number and value of each line; all at once where every line is JSON, which is three times as fast."""
    first = state.get("lines", 0) + 1
    state["lines"] = first - 1 + len(lines)
    values: list[Any] = []
    # whole objects only: halves of one on two lines would be joined to one
    if all(line[:1] == b"{" and line[-1:] == b"}" for line in lines):
        with contextlib.suppress(ValueError, RecursionError):
            values = json.loads(b"[" + b",".join(lines) + b"]")
    if len(values) == len(lines) and all(type(value) is dict for value in values):
        yield from enumerate(values, first)
        return
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError):
            read.complain(number, f"not JSON: {_snippet(line)}")


def _add_record(read: Read, record: Mapping[str, Any], state: State, ordinal: int | None) -> None:
    """Add the metrics of one flat or nested object; ``ordinal`` is its step where it has none (None: count each)."""
    attempt, at = record.get("_a", 0), record.get("_t")
    if type(attempt) is not int:
        attempt = 0
    if type(at) is not float and type(at) is not int:
        at = None
    step_name, step = _step_of(record)
    for name, value in record.items():
        if name == step_name or name[:1] == "_":
            continue
        kind = type(value)
        if (kind is float and value == value) or kind is bool:  # noqa: PLR0124  # NaN differs from itself
            read.add(name, (attempt, _or_ordinal(step, ordinal, state, name), float(value), None, at))
        elif kind is dict:
            nested = {f"{name}.{key}": item for key, item in value.items()}
            extra = {"_a": attempt, "_t": at} | ({"step": step} if step is not None else {})
            _add_record(read, nested | extra, state, ordinal)
        elif kind is not list and value is not None:
            number, text = _value(value)
            read.add(name, (attempt, _or_ordinal(step, ordinal, state, name), number, text, at))


def _or_ordinal(step: float | None, ordinal: int | None, state: State, name: str) -> float:
    if step is not None:
        return step
    if ordinal is not None:
        return ordinal
    counts: dict[str, int] = state.setdefault("counts", {})
    counts[name] = counts.get(name, -1) + 1
    return counts[name]


def _step_of(record: Mapping[str, Any]) -> tuple[str, float | None]:
    """Return the name and the value of the step of a record; None where it has none."""
    for name in STEP_NAMES:
        if name in record:
            step = record[name]
            if type(step) is int and -(2**63) <= step < 2**63:
                return name, step
            number = _number(step)
            if number is not None and math.isfinite(number):
                return name, int(number) if number.is_integer() and abs(number) < 2**53 else number
    return "", None


def _number(value: object) -> float | None:
    if isinstance(value, str | int | float):
        try:
            return float(value)
        except (ValueError, OverflowError):
            return None
    return None


def _value(value: object) -> tuple[float | None, str | None]:
    """Return the store's pair of a value: a number, or a text; NaN is the text ``NaN`` without a number."""
    number = {"true": 1.0, "false": 0.0}.get(value.strip().lower()) if isinstance(value, str) else None
    number = _number(value) if number is None else number
    if number is None:
        # a lone surrogate ("\ud800" is valid JSON) cannot be stored
        return None, str(value)[:_MAX_TEXT].encode("utf-8", "replace").decode()
    return (None, "NaN") if math.isnan(number) else (number, None)


def table(data: bytes, state: State) -> Read:
    """Read CSV with a header (or TSV, or with semicolons). A column named like a step is the step, else the row is."""
    read, lines = _whole_lines(data)
    is_last = state.pop("is_last", False)
    rows: list[tuple[int, list[str]]] = []
    place = 0
    while place < len(lines):
        height = _height(lines[place : place + _MAX_ROW_LINES], state, is_last)
        if not height:
            read.consumed -= sum(len(line) + 1 for line in lines[place:])
            break
        text = b"\n".join(lines[place : place + height]).decode("utf-8", "replace")
        text = text.lstrip("\ufeff").replace("\0", "\ufffd")
        number = state.get("lines", 0) + 1
        state["lines"], place = number - 1 + height, place + height
        if text.strip():
            delimiter = state.setdefault("delimiter", max(",;\t", key=text.count))
            cells = _cells(text, delimiter)
            rows.append((number, cells))
            state.setdefault("width", len(cells))
    if rows and "header" not in state:
        number, header = rows.pop(0)
        if all(_number(cell) is not None for cell in header):
            read.complain(number, "numbers where the header should be; the file is left out")
            header = []
        state["header"] = header
    if state.get("header"):
        _add_rows(read, rows, state)
    return read


def _height(lines: Sequence[bytes], state: State, is_last: bool) -> int:
    """Return how many lines the first row has: several where a quoted cell has line breaks; 0: its end is to come.

    An open quote in a garbage line must not swallow what follows: only a row as wide as the header is one.
    """
    n_quotes = lines[0].count(b'"')
    if n_quotes % 2 == 0 or "width" not in state:
        return 1
    for height, line in enumerate(lines[1:], 2):
        n_quotes += line.count(b'"')
        if n_quotes % 2 == 0:
            text = b"\n".join(lines[:height]).decode("utf-8", "replace")
            return height if len(_cells(text, state["delimiter"])) == state["width"] else 1
    return 1 if is_last or len(lines) == _MAX_ROW_LINES else 0


def _cells(text: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([text], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _add_rows(read: Read, rows: Iterable[tuple[int, list[str]]], state: State) -> None:
    header: list[str] = state["header"]
    for number, cells in rows:
        if cells == header:  # written again by a second attempt
            continue
        if len(cells) == len(header) + 1 and not cells[-1]:
            cells.pop()
        if len(cells) != len(header):
            read.complain(number, wrong_width(cells, header))
            continue
        ordinal = state["rows"] = state.get("rows", -1) + 1
        record = {name: cell for name, cell in zip(header, cells, strict=True) if name and cell}
        _count_repeats(read, number, *_step_of(record), state)
        _add_record(read, {name: cell for name, cell in record.items() if name not in ("_a", "_t")}, state, ordinal)


def wrong_width(cells: Sequence[str], header: Sequence[str]) -> str:
    """Say that a row is not as wide as the header."""
    return f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'} where the header has {len(header)}"


def _count_repeats(read: Read, number: int, name: str, step: float | None, state: State) -> None:
    """Complain, once a file, of rows that share a step; one may be of an attempt that resumed there."""
    if step is not None and step == state.get("step"):
        state["repeats"] = state.get("repeats", 0) + 1
        if state["repeats"] == 2:
            read.complain(number, f"several rows of one {name}, of which only the last counts")
    state["step"] = step


def document(data: bytes, state: State) -> Read:
    """Read one JSON document that is written whole: an object, a list of objects, or lists of numbers by name."""
    read = Read()
    try:
        content = json.loads(data.decode("utf-8-sig", "replace"))
    except RecursionError:
        read.complain(1, "nested too deeply")
    except ValueError as error:
        read.complain(getattr(error, "lineno", 1), f"not JSON: {error}")
    else:
        for ordinal, record in enumerate(content if isinstance(content, list) else [content]):
            if isinstance(record, dict):
                _add_record(read, record, state, ordinal)
                _add_series(read, record)
            else:
                read.complain(1, f"entry {ordinal} is not an object")
    read.consumed = len(data)
    return read


def _add_series(read: Read, record: Mapping[str, Any]) -> None:
    for name, values in record.items():
        if isinstance(values, list) and values and all(type(value) in (int, float) for value in values):
            for step, value in enumerate(values):
                number, text = _value(value)
                read.add(name, (0, step, number, text, None))


# -- printed lines

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)"
_PAIR = re.compile(
    r"(?:^|(?<=[\s,;|(\[{>-]))"
    r"(?P<name>(?:(?:train|training|val|valid|validation|test|eval|dev)\s+)?[a-z_][\w./-]*)"
    rf"(?:\s*=\s*|\s*:\s+)(?P<value>{_NUMBER})(?:/\d+)?(?=\s*%|[\s,;|)\]}}]|\.?$)",
    re.IGNORECASE,
)
_STEP = re.compile(
    r"\b(?P<name>global_step|step|iteration|iter|epoch)\b[\s:=#\[(]*(?P<value>\d+)(?:\s*/\s*(?P<total>\d+))?\b",
    re.IGNORECASE,
)
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_MAX_LINE = 10_000
_RAISED = re.compile(r"Error$|Exception$|Warning$").search  # `ValueError: 3` is no metric
OFF = "off"


def printed(patterns: Sequence[str] = (), exclude: Iterable[str] = ()) -> Reader:
    """Return a reader of what a script prints.

    Without ``patterns``: ``acc: 0.93``, ``epoch=3 loss=0.21``, and lines that are a JSON object or a Python dict.

    Parameters
    ----------
    patterns
        Regular expressions to search each line for instead. Each named group is a metric, except a step
        (``step``, ``epoch``, ..) and the pair ``name`` and ``value``. ``off`` alone reads nothing.
    exclude
        Names that are no metrics: the run's own params, which scripts like to print.
    """
    compiled = [re.compile(pattern) for pattern in patterns if pattern != OFF]
    unwanted = frozenset(exclude)

    def read_lines(data: bytes, state: State) -> Read:
        read, lines = _whole_lines(data)
        state["lines"] = state.get("lines", 0) + len(lines)
        for line in lines:
            if not patterns and not (b"=" in line or b":" in line):
                continue
            # of a progress bar only what stands at the end counts
            text = line[:_MAX_LINE].decode("utf-8", "replace").strip().rpartition("\r")[2]
            text = _ESCAPES.sub("", text)
            record = _matches(compiled, text) if patterns else _pairs(text)
            if record:
                wanted = {name: value for name, value in record.items() if name not in unwanted and name[:1] != "_"}
                _add_record(read, wanted, state, None)
        return read

    return read_lines


def _pairs(text: str) -> Mapping[str, Any]:
    if text.startswith("{") and text.endswith("}"):
        try:
            loaded = json.loads(text) if '"' in text else ast.literal_eval(re.sub(r"\b(nan|inf)\b", r"'\1'", text))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return {}
        return loaded if isinstance(loaded, dict) and all(isinstance(key, str) for key in loaded) else {}
    found = {re.sub(r"\s+", "_", match["name"]): match["value"] for match in _PAIR.finditer(text)}
    record = {name: value for name, value in found.items() if name.lower() not in STEP_NAMES and not _RAISED(name)}
    return record | _steps(text) if record else {}


def _steps(text: str) -> dict[str, int]:
    """Return the steps that a line names; ``Epoch [2/5], Step [100/600]`` is step 700 of all."""
    found = {match["name"].lower(): match for match in _STEP.finditer(text)}
    steps = {name: int(match["value"]) for name, match in found.items()}
    finer = next((name for name in STEP_NAMES if name in steps), "epoch")
    if "epoch" in steps and finer != "epoch" and found[finer]["total"]:
        return {finer: steps["epoch"] * int(found[finer]["total"]) + steps[finer]}
    return steps


def _matches(patterns: Sequence[re.Pattern[str]], text: str) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for pattern in patterns:
        for match in pattern.finditer(text):
            groups = {name: value for name, value in match.groupdict().items() if value is not None}
            if "name" in groups and "value" in groups:
                record[groups.pop("name")] = groups.pop("value")
            record.update(groups)
    return record


# -- TensorBoard

_LENGTH = struct.Struct("<Q")
_FRAME = 16  # length (8), its checksum (4), then the data and their checksum (4)
_MAX_RECORD = 64 * 2**20
_FLOATS = (1, 2)  # DT_FLOAT, DT_DOUBLE


def tensorboard(data: bytes, state: State) -> Read:
    """Read the scalars of a TensorBoard event file (TFRecord frames of Event messages).

    Raises
    ------
    ImportError
        If the package ``tensorboard`` is not installed.
    """
    from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415  # half a second, and optional

    read = Read()
    while len(data) - read.consumed >= _FRAME:
        (length,) = _LENGTH.unpack_from(data, read.consumed)
        number = state["records"] = state.get("records", 0) + 1
        if length > _MAX_RECORD:
            read.complain(number, "not a TensorBoard record; the rest of the file is left out")
            read.consumed = len(data)
            break
        start, end = read.consumed + 12, read.consumed + 12 + length
        if end + 4 > len(data):
            state["records"] -= 1
            break
        try:
            _add_event(read, Event.FromString(data[start:end]))
        except Exception as error:  # noqa: BLE001  # protobuf has several, by version
            read.complain(number, f"not a TensorBoard event: {error}")
        read.consumed = end + 4
    return read


def _add_event(read: Read, event: Any) -> None:
    from tensorboard.util.tensor_util import make_ndarray  # noqa: PLC0415  # as above

    for value in event.summary.value:
        kind = value.WhichOneof("value")
        if kind == "simple_value":
            number, text = _value(value.simple_value)
        elif kind == "tensor" and not value.tensor.tensor_shape.dim and value.tensor.dtype in _FLOATS:
            number, text = _value(float(make_ndarray(value.tensor)))
        else:
            continue
        read.add(value.tag, (0, event.step, number, text, event.wall_time))


# -- lines

MAX_BYTES = 16 * 2**20  # of one file at a time


def read_all(reader: Reader, data: bytes, state: State) -> Read:
    """Read the last bytes of a file to which nothing more will be written: the unfinished last line too.

    ``state`` and ``consumed`` stay before that line, so that an attempt that writes on finds it whole.
    """
    read = reader(data, state)
    rest = data[read.consumed :]
    if rest.strip():
        last = reader(rest + b"\n", {**copy.deepcopy(state), "is_last": True})
        for name, points in last.points.items():
            read.points.setdefault(name, []).extend(points)
        read.problems += last.problems
        read.n_problems += last.n_problems
    return read


def _whole_lines(data: bytes) -> tuple[Read, list[bytes]]:
    """Split into lines; a torn last one waits for the next call."""
    end = data.rfind(b"\n") + 1
    if not end and len(data) >= MAX_BYTES:
        # one line longer than any metric: pass over it piece by piece
        read = Read(len(data))
        read.complain(1, f"longer than {MAX_BYTES} bytes")
        return read, []
    return Read(end), data[:end].split(b"\n")[:-1]


def _snippet(line: bytes) -> str:
    text = line[: _SNIPPET + 1].decode("utf-8", "replace")
    return repr(text[:_SNIPPET] + ("…" if len(text) > _SNIPPET else ""))
