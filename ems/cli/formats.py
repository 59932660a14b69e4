"""A report's table as text for people, CSV, JSON, Markdown or LaTeX."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence

from ems.cli import render
from ems.model import Json, State
from ems.report.statistics import Estimate
from ems.report.table import Column, Table

BEST = "best"


def write(table: Table, form: str) -> str:
    """Return the whole table as text (``table``, ``csv``, ``json``, ``md`` or ``latex``), with a newline at its end."""
    writers: dict[str, Callable[[Table], str]] = {
        "csv": _csv,
        "json": _json,
        "md": _markdown,
        "latex": _latex,
        "table": lambda t: "\n".join([*lines(t, None)[0], "", *notes(t, 100), ""]),
    }
    return writers[form](table)


# -- for people -------------------------------------------------------------------------------------------------


def lines(table: Table, max_width: int | None) -> tuple[list[str], tuple[str, ...]]:
    """Return heading and rows, aligned, and the titles of the columns that did not fit."""
    columns = [
        render.Column(
            _heading(c), right=_is_right(c), cut=not _is_right(c), keep=i == 0 or c.kind == "count" or c.name == "state"
        )
        for i, c in enumerate(table.columns)
    ]
    cells = [_marked(column, texts(column, table)) for column in table.columns]
    drawn = render.layout(columns, list(zip(*cells, strict=True)), max_width)
    return drawn.lines, tuple(name.strip() for name in drawn.left_out)


def notes(table: Table, max_width: int) -> list[str]:
    """Return the table's notes, wrapped."""
    return [line for note in table.notes for line in textwrap.wrap(note, max_width, subsequent_indent="  ")]


def _heading(column: Column) -> str:
    """Heading that ends where the numbers end, not above the word ``best``."""
    return title(column) + (" " * (len(BEST) + 1) if column.best else "")


def title(column: Column) -> str:
    """Heading of a column."""
    return column.title or column.name


def _is_right(column: Column) -> bool:
    return column.kind != "value" or all(
        c is None or (isinstance(c, int | float) and not isinstance(c, bool)) for c in column.cells
    )


def _marked(column: Column, cells: Sequence[str]) -> list[str]:
    """Say ``best`` beside the best; the others are as wide, so that numbers stay aligned."""
    if not column.best:
        return list(cells)
    padding = " " * (len(BEST) + 1)
    return [
        render.Styled(f"{text} {BEST}", "bold green") if i in column.best else text + padding
        for i, text in enumerate(cells)
    ]


def texts(column: Column, table: Table) -> list[str]:
    """Show every cell of a column, without any mark."""
    if any(isinstance(cell, Estimate) for cell in column.cells):
        shown = _estimates([c for c in column.cells if isinstance(c, Estimate)], _counts(column, table))
    elif column.kind == "p":
        shown = [_p_value(cell) for cell in column.cells]
    elif column.kind == "metric":
        values = [cell if isinstance(cell, int | float) else None for cell in column.cells]
        words = {i: render.clean(cell) for i, cell in enumerate(column.cells) if isinstance(cell, str)}
        shown = [words.get(i, text) for i, text in enumerate(render.numbers(values))]
    else:
        shown = _values(column)
    return shown if column.texts is None else [own or text for own, text in zip(column.texts, shown, strict=True)]


def _values(column: Column) -> list[str]:
    """Show params and facts; numbers in six digits unless two of them would look the same."""
    if column.name == "state":
        words = {state: render.state_cell(state) for state in State}
        return [words[State(str(cell))] for cell in column.cells]
    cells: list[Json] = [cell for cell in column.cells if not isinstance(cell, Estimate)]
    shown = ["" if cell == "" else render.value_text(cell) if cell is not None else render.ABSENT for cell in cells]
    if len(set(shown)) < len({repr(cell) for cell in cells if isinstance(cell, float)}):
        shown = [repr(c) if isinstance(c, float) else text for c, text in zip(cells, shown, strict=True)]
    return shown


def _p_value(cell: object) -> str:
    if not isinstance(cell, float):
        return render.ABSENT
    return "< 0.0001" if cell < 1e-4 else f"{cell:.2g}" if cell < 0.1 else f"{cell:.2f}"


def _counts(column: Column, table: Table) -> Sequence[object]:
    """Return how many runs each row counts; a cell whose own number differs says so."""
    counted = next((each.cells for each in table.columns if each.kind == "count"), ())
    return () if column.title else counted  # differences count pairs, which a note says


def _estimates(cells: Sequence[Estimate], counts: Sequence[object]) -> list[str]:
    decimals = _decimals(cells)
    means = [_fixed(cell.mean, decimals) for cell in cells]
    spreads = [_spread(cell, decimals) for cell in cells]
    own = [
        f" (n={c.n})" if counts and c.n and c.n != n else ""
        for c, n in zip(cells, counts or [0] * len(cells), strict=True)
    ]
    widths = [max(map(len, column), default=0) for column in (means, spreads, own)]
    return [
        f"{mean.rjust(widths[0])}{spread.ljust(widths[1])}{n.ljust(widths[2])}"
        for mean, spread, n in zip(means, spreads, own, strict=True)
    ]


def _fixed(value: float | None, decimals: int | None) -> str:
    if value is None:
        return render.ABSENT
    return f"{value:.3g}" if decimals is None else f"{value:.{decimals}f}"


def _spread(cell: Estimate, decimals: int | None) -> str:
    if cell.mean is None or cell.low is None or cell.high is None or cell.half_width is None:
        return ""
    if abs((cell.high - cell.mean) - (cell.mean - cell.low)) <= 1e-9 * abs(cell.high - cell.low):
        return f" ± {_fixed(cell.half_width, decimals)}"
    return f" [{_fixed(cell.low, decimals)}, {_fixed(cell.high, decimals)}]"


def _decimals(cells: Sequence[Estimate]) -> int | None:
    """Decimals that show one digit of the narrowest interval (two where it begins with 1), six at most.

    None where numbers are too large or small for fixed point.
    """
    of_means = render.decimals_of([cell.mean for cell in cells])
    widths = [cell.half_width for cell in cells if cell.half_width and math.isfinite(cell.half_width)]
    if of_means is None or not widths:
        return of_means
    narrowest = min(widths)
    exponent = math.floor(math.log10(narrowest))
    digits = -exponent + (1 if f"{narrowest:e}".startswith("1") else 0)
    return max(0, min(digits, max(of_means, 3) + 1, 6))


# -- for programs -----------------------------------------------------------------------------------------------


def _json(table: Table) -> str:
    """One flat object a line; NaN and Infinity as Python's json writes them."""
    objects = ",\n".join(json.dumps(record, ensure_ascii=False, default=str) for record in table.records())
    return f"[\n{objects}\n]\n" if objects else "[]\n"


def _csv(table: Table) -> str:
    """RFC 4180 but for the newline, which is Unix's; nothing stands for what is missing, ``""`` for an empty text."""
    records = list(table.records())
    head = list(records[0]) if records else [column.name for column in table.columns]
    rows = [head, *(record.values() for record in records)]
    return "".join(",".join(map(_csv_cell, row)) + "\n" for row in rows)


def _csv_cell(value: Json) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else repr(value) if isinstance(value, float) else json.dumps(value)
    # the csv module leaves a lone carriage return bare, which its own reader then takes for the end of the row
    return '"' + text.replace('"', '""') + '"' if text == "" or any(c in text for c in ',"\r\n') else text


# -- for papers -------------------------------------------------------------------------------------------------


def _grid(table: Table, bold: Callable[[str], str], escape: Callable[[str], str]) -> Iterable[list[str]]:
    columns = []
    for column in table.columns:
        cells = [escape(text.strip()) for text in texts(column, table)]
        columns.append([bold(text) if i in column.best else text for i, text in enumerate(cells)])
    return map(list, zip(*columns, strict=True))


def _markdown(table: Table) -> str:
    def escape(text: str) -> str:
        return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")

    heads = [escape(title(column)) for column in table.columns]
    rules = ["---:" if _is_right(column) else "---" for column in table.columns]
    rows = [heads, rules, *_grid(table, "**{}**".format, escape)]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", *(f"{escape(n)}  " for n in table.notes), ""])


_LATEX = str.maketrans(
    {
        **{char: f"\\{char}" for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"$<$",
        ">": r"$>$",
        "±": r"$\pm$",
    }
)


def _latex(table: Table) -> str:
    """Tabular for booktabs; the notes as comments, for the caption."""

    def escape(text: str) -> str:
        return text.translate(_LATEX)

    spec = "".join("r" if _is_right(column) else "l" for column in table.columns)
    heads = " & ".join(escape(title(column)) for column in table.columns)
    body = [" & ".join(row) + r" \\" for row in _grid(table, r"\textbf{{{}}}".format, escape)]
    begin = [r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{{spec}}}", r"\toprule", rf"{heads} \\", r"\midrule"]
    return "\n".join([*(f"% {n}" for n in table.notes), *begin, *body, r"\bottomrule", r"\end{tabular}", ""])
