"""What every command prints with: plain aligned tables, numbers with the digits they deserve, notes, progress, a pager.

stdout is data, stderr is talk. Nothing here draws boxes; colour only repeats what the text says and is off in a pipe
or under ``NO_COLOR`` (rich decides). On a terminal tables fit its width; in a pipe nothing is cut unless ``COLUMNS``
is set, so that ``| grep`` and ``| less -S`` see everything.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.style import Style

from ems.errors import EmsError
from ems.model import Json, State

STATE_STYLES: Mapping[str, str] = {
    State.COMPLETED: "green",
    State.FAILED: "red",
    State.CANCELLED: "yellow",
    State.RUNNING: "cyan",
    State.UNKNOWN: "magenta",
}
ABSENT = "-"
_GAP = "  "
_MIN_CUT = 8  # a text column is not cut below this many cells; whole columns leave instead
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LOOKS = ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "LINES")
_ASCII = str.maketrans(
    {"±": "+/-", "…": "...", "·": "-", "≥": ">=", "≤": "<="}
    | dict(zip("│─└┘┌┐├┤┬┴┼", "|-+++++++++", strict=True))  # axes of a curve
    | dict(zip("●○▲△■□◆◇", "ox^v#%*&", strict=True))  # and its markers
)


# -- consoles ---------------------------------------------------------------------------------------------------


def out() -> Console:
    """Return the console of stdout: data, never markup, never wrapped."""
    return _console("stdout", id(sys.stdout), *map(os.environ.get, _LOOKS))


def err() -> Console:
    """Return the console of stderr: notes, progress, errors."""
    return _console("stderr", id(sys.stderr), *map(os.environ.get, _LOOKS))


@functools.lru_cache(maxsize=8)
def _console(name: str, *_key: object) -> Console:
    # made anew when the stream, or a variable that decides on colour, changes; rich looks the stream up at each write
    return Console(stderr=name == "stderr", markup=False, emoji=False, highlight=False, soft_wrap=True)


def width() -> int | None:
    """Cells that a line of stdout may take; None in a pipe, where nothing is cut (``COLUMNS`` overrides)."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns) > 0:
        return int(columns)
    return out().width if sys.stdout.isatty() else None


def say(*lines: str, style: str = "") -> None:
    """Print lines to stdout as they are."""
    _write(sys.stdout, out(), lines, style)


def note(*lines: str, style: str = "") -> None:
    """Print lines to stderr: what is said beside the data."""
    _write(sys.stderr, err(), lines, style)


def _write(stream: object, console: Console, lines: Iterable[str], style: str) -> None:
    text = "".join(f"{paint(line, style, console)}\n" for line in lines)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    file = console.file
    file.write(text)
    file.flush()


def paint(text: str, style: str, console: Console | None = None) -> str:
    """Wrap ``text`` in the escape codes of a rich style, where stdout (or ``console``) shows colour."""
    return _style(style).render(text) if style and has_colour(console) else text


def has_colour(console: Console | None = None) -> bool:
    """Whether stdout (or ``console``) shows colour."""
    console = console or out()
    return console.color_system is not None and not console.no_color


@functools.cache
def _style(name: str) -> Style:
    return Style.parse(name)


def print_json(data: object) -> None:
    """Print ``data`` as JSON to stdout; NaN and Infinity as Python's json writes them."""
    say(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def print_error(error: EmsError) -> None:
    """Print ``error: …``, an empty line and ``hint: …`` to stderr."""
    note(f"{paint('error:', 'bold red', err())} {error.message}")
    if error.hint:
        note("", f"{paint('hint:', 'bold', err())} {error.hint}")


# -- words and numbers ------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Make ``text`` one harmless line: control characters (newlines, escape codes) as Python writes them."""
    return text if text.isprintable() else _CONTROL.sub(lambda m: repr(m[0])[1:-1], text)


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """``1 run``, ``1,240 runs``."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def value_text(value: Json) -> str:
    """Show a param or a single number: ``0.1``, ``1e-05``, ``adam``, ``true``, ``null``, ``[1,2]``."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return number(value, 6)
    return clean(json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str))


def number(value: float | None, significant: int = 4) -> str:
    """Show one number with so many significant digits and no empty ones: ``0.9817``, ``12``, ``1e-05``, ``nan``."""
    if value is None:
        return ABSENT
    if isinstance(value, int) or (value == int(value) if math.isfinite(value) and abs(value) < 1e15 else False):
        return str(int(value))
    return f"{value:.{significant}g}"


def numbers(values: Sequence[float | None], significant: int = 4) -> list[str]:
    """Show a column of numbers with the same decimals, so that they can be compared down the column.

    The largest gets ``significant`` digits; one too small to keep two digits so is shown by itself (``0.0012``
    among ``12.50``); integers have no decimals; columns of very large or small numbers are scientific.
    """
    decimals = decimals_of(values, significant)
    if decimals is None:
        return [ABSENT if v is None else f"{v:.{significant - 1}e}" if math.isfinite(v) else str(v) for v in values]
    return [_fixed(v, decimals) for v in values]


def _fixed(value: float | None, decimals: int) -> str:
    if value is None:
        return ABSENT
    if value and math.isfinite(value) and abs(value) < 10 ** (1 - decimals):
        return f"{value:.2g}"
    return f"{value:.{decimals}f}"


def decimals_of(values: Iterable[float | None], significant: int = 4) -> int | None:
    """Decimals that give the largest number ``significant`` digits; None where fixed point does not suit."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if all(v == int(v) for v in finite) and all(abs(v) < 1e15 for v in finite):
        return 0
    exponent = math.floor(math.log10(max(abs(v) for v in finite)))
    return None if exponent > 6 or exponent < -4 else max(0, significant - 1 - exponent)


def duration(seconds: float | None) -> str:
    """``0.4 s``, ``59 s``, ``12:41``, ``1:02:03``, ``2d 03:04``."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def size(n_bytes: float) -> str:
    """``512 B``, ``1.5 kB``, ``20 MB``: powers of 1,000, as disks and file managers count."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while n_bytes >= 999.5 and len(units) > 1:
        n_bytes /= 1000
        del units[0]
    return f"{n_bytes:.1f} {units[0]}" if n_bytes < 9.95 and units[0] != "B" else f"{n_bytes:.0f} {units[0]}"


def parse_time(iso: str) -> datetime | None:
    """Read a UTC ISO-8601 string of the store; None where there is none or it is not one."""
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def ago(iso: str, now: datetime | None = None) -> str:
    """``12 s ago``, ``5 min ago``, ``3 h ago``, ``2 days ago``; ``-`` where the time is unknown."""
    moment = parse_time(iso)
    if moment is None:
        return ABSENT
    seconds = max(0.0, ((now or datetime.now(UTC)) - moment).total_seconds())
    for unit, divisor, limit in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 86400)):
        if seconds < limit:
            return f"{seconds // divisor:.0f} {unit} ago"
    return f"{plural(int(seconds // 86400), 'day')} ago"


def clock(iso: str) -> str:
    """Local time of day of a UTC time of the store, with the date where it is not today."""
    moment = parse_time(iso)
    if moment is None:
        return ABSENT
    local = moment.astimezone()
    same_day = local.date() == datetime.now().astimezone().date()
    return local.strftime("%H:%M" if same_day else "%Y-%m-%d %H:%M")


def state_words(counts: Mapping[State, int]) -> str:
    """``5 completed, 1 failed``: the states that occur, in the order of a run's life; ``no runs``."""
    words = [f"{counts[state]:,} {state.lower()}" for state in State if counts.get(state)]
    return ", ".join(words) or "no runs"


# -- tables -----------------------------------------------------------------------------------------------------


class Styled(str):
    """A cell with a rich style: text like any other, coloured where colour is shown."""

    __slots__ = ("style",)
    style: str

    def __new__(cls, text: str, style: str = "") -> Styled:
        """Make the cell."""
        cell = super().__new__(cls, text)
        cell.style = style
        return cell


def state_cell(state: State) -> Styled:
    """Return the state as a cell, coloured."""
    return Styled(str(state).lower(), STATE_STYLES.get(state, ""))


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Parameters
    ----------
    title
        Heading.
    right
        Align right: numbers.
    cut
        Text that may be cut with ``…`` where the terminal is narrow.
    keep
        Never left out for want of width.
    """

    title: str
    right: bool = False
    cut: bool = False
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """A table as lines, the first of which is the heading, and the titles that did not fit."""

    lines: list[str]
    left_out: tuple[str, ...] = ()


def layout(columns: Sequence[Column], rows: Sequence[Sequence[str]], max_width: int | None = None) -> Layout:
    """Align ``rows`` under their headings, two spaces apart, within ``max_width`` cells (None: as wide as it takes).

    Where it is too wide, text columns that may be cut are cut, then columns leave from the right.
    """
    cells = [_clean_all([column.title, *(row[i] for row in rows)]) for i, column in enumerate(columns)]
    widths = [max(map(len if is_plain else _cells, column)) for column, is_plain in cells]
    shown = list(range(len(columns)))
    if max_width is not None:
        widths = _cut(columns, widths, max_width)
        shown = _drop(columns, widths, max_width)
    last = shown[-1] if shown else -1
    aligned = [_align(*cells[i], widths[i], columns[i].right, pad=i != last) for i in shown]
    lines = [_GAP.join(parts).rstrip() for parts in zip(*aligned, strict=True)]
    return Layout(lines, tuple(column.title for i, column in enumerate(columns) if i not in shown))


def _clean_all(texts: list[str]) -> tuple[list[str], bool]:
    """Clean a column; say whether each character of it takes one cell (one look at all instead of 10,000)."""
    joined = "".join(texts)
    return (texts if joined.isprintable() else list(map(clean, texts))), joined.isascii()


def _cells(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def _cut(columns: Sequence[Column], widths: list[int], max_width: int) -> list[int]:
    widths = list(widths)
    excess = _total(widths) - max_width
    while excess > 0:
        able = [i for i, column in enumerate(columns) if column.cut and widths[i] > max(_MIN_CUT, len(column.title))]
        if not able:
            break
        widest = max(able, key=widths.__getitem__)
        widths[widest] -= 1
        excess -= 1
    return widths


def _drop(columns: Sequence[Column], widths: list[int], max_width: int) -> list[int]:
    shown = list(range(len(columns)))
    for i in reversed(range(1, len(columns))):
        if _total([widths[j] for j in shown]) <= max_width:
            break
        if not columns[i].keep:
            shown.remove(i)
    return shown


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _align(texts: list[str], is_plain: bool, cells: int, right: bool, pad: bool) -> list[str]:
    if is_plain and max(map(len, texts)) <= cells and not any(type(text) is Styled for text in texts):
        return [text.rjust(cells) if right else text.ljust(cells) for text in texts]
    aligned, console = [], out()
    for text in texts:
        wide = _cells(text)
        shown: str = text
        if wide > cells:
            shown, wide = set_cell_size(text, cells - 1) + "…", cells
        space = " " * (cells - wide)
        if isinstance(text, Styled):
            shown = paint(str(shown), text.style, console)
        aligned.append(space + shown if right else shown + space if pad else shown)
    return aligned


def print_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, footer: Sequence[str] = (), paged: bool = True
) -> tuple[str, ...]:
    """Print a table that fits the terminal, through a pager where it is longer than the screen.

    Returns
    -------
    tuple of str
        Titles of columns that were left out for want of width.
    """
    table = layout(columns, rows, width())
    heading = paint(table.lines[0], "bold")
    page([heading, *table.lines[1:], *footer], n_header=1, paged=paged)
    return table.left_out


# -- pager ------------------------------------------------------------------------------------------------------


def page(lines: Sequence[str], n_header: int = 0, paged: bool = True) -> None:
    """Print ``lines``; on a terminal that they do not fit, through ``$EMS_PAGER``, ``$PAGER`` or ``less``.

    Without any pager the first screen is shown with a line that says how much more there is.
    """
    if not (paged and sys.stdout.isatty() and sys.stdin.isatty()) or len(lines) < out().height:
        say(*lines)
        return
    command = _pager(n_header)
    if command is None:
        shown = out().height - 3
        say(*lines[:shown], f"… {len(lines) - shown:,} more lines: pipe them, or write them with -o FILE")
        return
    text = "\n".join([*lines, ""]).encode("utf-8", "replace")
    with suppress(BrokenPipeError):  # the reader left before the end
        subprocess.run(command, input=text, env={"LESS": "FRSX", "LV": "-c", **os.environ}, check=False)


def _pager(n_header: int) -> list[str] | None:
    typed = os.environ.get("EMS_PAGER") or os.environ.get("PAGER") or "less"
    command = shlex.split(typed)
    if not command or shutil.which(command[0]) is None:
        return None
    # the heading stays in sight while scrolling, where less can (from version 600 on)
    if n_header and command == ["less"] and "LESS" not in os.environ and _less_version() >= 600:
        command += [f"--header={n_header}"]
    return command


def _less_version() -> int:
    text = subprocess.run(["less", "--version"], capture_output=True, text=True, check=False).stdout
    match = re.match(r"less (\d+)", text)
    return int(match[1]) if match else 0


# -- what moves -------------------------------------------------------------------------------------------------


@contextmanager
def progress(every_s: float = 0.0) -> Iterator[Callable[[str], None]]:
    """Give a function that shows one line of progress on stderr in place; in a pipe it prints each new line once.

    Parameters
    ----------
    every_s
        In a pipe at most a line in so many seconds, where the lines count up to something.
    """
    stream, is_terminal, last, told_at = sys.stderr, sys.stderr.isatty(), "", time.monotonic()

    def show(line: str) -> None:
        nonlocal last, told_at
        now = time.monotonic()
        if line == last or (not is_terminal and now - told_at < every_s):
            return
        last, told_at = line, now
        stream.write(f"\r\x1b[2K{set_cell_size(line, err().width - 1).rstrip()}" if is_terminal else f"{line}\n")
        stream.flush()

    try:
        yield show
    finally:
        if is_terminal and last:
            stream.write("\r\x1b[2K")
            stream.flush()


@contextmanager
def screen() -> Iterator[Callable[[Sequence[str]], None]]:
    """Give a function that redraws lines in place (``--watch``); in a pipe it prints them when they have changed."""
    height, last = 0, list[str]()

    def show(lines: Sequence[str]) -> None:
        nonlocal height, last
        if list(lines) == last:
            return
        last = list(lines)
        if sys.stdout.isatty():
            lines = list(lines)[: max(1, out().height - 1)]  # what scrolled away could not be redrawn
            sys.stdout.write(f"\x1b[{height}F\x1b[J" if height else "")
            height = len(lines)
        say(*lines)

    yield show
