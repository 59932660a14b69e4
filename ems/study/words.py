"""What people write of a study: ``epochs=1..81``, ``300epochs,6h``, ``15%``, ``customer=FILE.csv``."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ems.errors import UsageError
from ems.node.budget import CPU_HOURS, GPU_HOURS, USD
from ems.search.problem import MODES, SAMPLERS, SCHEDULERS, Fidelity
from ems.space import suggest

GOALS = ("minimize", "maximize")
TRIALS, EPOCHS, HOURS = "trials", "epochs", "h"
UNITS = (TRIALS, EPOCHS, GPU_HOURS, CPU_HOURS, HOURS, USD)

_UNITS: Mapping[str, tuple[str, float]] = {  # as written -> unit, how many of it
    **dict.fromkeys(("trial", "trials"), (TRIALS, 1.0)),
    **dict.fromkeys(("epoch", "epochs"), (EPOCHS, 1.0)),
    **dict.fromkeys(("gpuh", "gpu-h", "gpuhours", "gpu-hours"), (GPU_HOURS, 1.0)),
    **dict.fromkeys(("cpuh", "cpu-h", "cpuhours", "cpu-hours"), (CPU_HOURS, 1.0)),
    **dict.fromkeys(("h", "hour", "hours"), (HOURS, 1.0)),
    **dict.fromkeys(("m", "min", "minutes"), (HOURS, 1 / 60)),
    **dict.fromkeys(("d", "day", "days"), (HOURS, 24.0)),
    **dict.fromkeys(("usd", "$"), (USD, 1.0)),
}
_AMOUNT = re.compile(r"\$?\s*(?P<number>\d[\d_]*(?:\.\d+)?|\.\d+)\s*(?P<unit>[A-Za-z$][\w-]*|\$)?")
_RANGE = re.compile(r"(?P<name>[^\s=]+)=(?P<low>[^.\s]+(?:\.\d+)?)\.\.(?P<high>\S+)")
_BUDGET_HINT = "e.g. --budget 300epochs, 40gpuh, 100cpuh, 6h, 50usd; several are joined by commas"


def parse_fidelity(text: str, eta: float | None = None, *, is_named: bool = True) -> Fidelity:
    """Read ``epochs=1..81``.

    Parameters
    ----------
    is_named
        Whether what stands before ``=`` is a param; else it only names what is counted, and the fidelity has no name.

    Raises
    ------
    UsageError
        If it is not of that form, or its ends or ``eta`` cannot be.
    """
    found, hint = _RANGE.fullmatch(text.strip()), "e.g. --fidelity epochs=1..81"
    if found is None:
        raise UsageError(f"`{text}` does not say how long trials train", hint)
    try:
        low, high = float(found["low"]), float(found["high"])
    except ValueError:
        raise UsageError(f"--fidelity {text}: its ends are no numbers", hint) from None
    if not 0 < low < high:
        raise UsageError(f"--fidelity {text} never gets from {found['low']} to {found['high']}", hint)
    eta = 3.0 if eta is None else eta
    if not 1 < eta < float("inf"):
        raise UsageError(
            f"--eta {eta:g} leaves no trial out", "one of so many trials goes on to the next rung: --eta 3"
        )
    if low * eta > high:
        raise UsageError(
            f"--fidelity {text} has a single rung: {high:g} is less than {eta:g} times {low:g}",
            "widen it, take a smaller --eta, or leave it out and give the param a value by --set",
        )
    return Fidelity(found["name"] if is_named else "", low, high, eta)


def parse_budget(texts: Iterable[str], fidelity: str | None = None, *, hint: str = _BUDGET_HINT) -> dict[str, float]:
    """Read ``300epochs,6h``: amounts by unit, one of :data:`UNITS`.

    Parameters
    ----------
    fidelity
        Name of the fidelity param, which may stand for ``epochs``: ``3000steps``.
    hint
        What a budget may look like.

    Raises
    ------
    UsageError
        If an amount is none, not above 0, of a unit that is not known, or there twice.
    """
    budget: dict[str, float] = {}
    for text in (part.strip() for whole in texts for part in whole.split(",")):
        found = _AMOUNT.fullmatch(text)
        if found is None:
            raise UsageError(f"`{text}` is no budget", hint)
        unit, factor = _unit(text, found["unit"] or ("usd" if text.startswith("$") else ""), fidelity, hint)
        amount = float(found["number"]) * factor
        if amount <= 0:
            raise UsageError(f"a budget of {text} lets nothing run", hint)
        if unit in budget:
            raise UsageError(f"the budget says twice how many {unit}", "keep one of them")
        budget[unit] = amount
    return budget


def _unit(text: str, written: str, fidelity: str | None, hint: str) -> tuple[str, float]:
    if not written:
        raise UsageError(f"a budget of `{text}` has no unit", hint)
    if fidelity is not None and written in (fidelity, f"{fidelity}s"):
        return EPOCHS, 1.0
    if written.lower() not in _UNITS:
        near = suggest(written.lower(), list(_UNITS))
        raise UsageError(f"there is no unit `{written}` of a budget", near or hint)
    return _UNITS[written.lower()]


def parse_share(text: str) -> float:
    """Read ``15%`` or ``0.15``: a share of the trials, from 0 to below 1.

    Raises
    ------
    UsageError
        If it is none.
    """
    number, percent, _ = text.strip().partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UsageError(f"--confirm {text} is no share of the trials", "e.g. --confirm 15%")
    return share


@dataclass(frozen=True, slots=True)
class Groups:
    """Values of a column, a search each: one model per customer. The column is a param of every trial."""

    column: str
    values: tuple[str, ...]


def read_groups(text: str, folder: Path) -> Groups:
    """Read ``column=FILE.csv``: the values of that column, each once, as they stand first.

    Raises
    ------
    UsageError
        If there is no such file or column, or no value in it.
    """
    column, equals, name = (part.strip() for part in text.partition("="))
    if not (column and equals and name):
        raise UsageError(f"`{text}` is not COLUMN=FILE.csv", "e.g. --group-by customer=customers.csv")
    try:
        with (folder / name).open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            known = list(rows.fieldnames or ())
            found = dict.fromkeys((row.get(column) or "").strip() for row in rows) if column in known else {}
    except FileNotFoundError:
        raise UsageError(f"there is no file {name}", "check the path: it is relative to where you are") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{name} cannot be read as CSV: {error}", "its first line names the columns") from None
    if column not in known:
        raise UsageError(f"{name} has no column `{column}`", suggest(column, known) or _has(known))
    values = tuple(value for value in found if value)
    if not values:
        raise UsageError(f"the column `{column}` of {name} is empty", "a study has a group for each of its values")
    return Groups(column, values)


def _has(columns: Sequence[str]) -> str:
    return f"it has {', '.join(columns)}" if columns else "it is empty: its first line has to name the columns"


def one_of(option: str, text: str, choices: Sequence[str]) -> str:
    """Return ``text``, which is one of ``choices``.

    Raises
    ------
    UsageError
        If it is not.
    """
    if text not in choices:
        hint = suggest(text, choices) or f"choose one of {', '.join(choices)}"
        raise UsageError(f"--{option} cannot be `{text}`", hint)
    return text


def check_sampler(text: str) -> str:
    """Return the name of a sampler, or raise :class:`UsageError`."""
    return one_of("sampler", text, SAMPLERS)


def check_scheduler(text: str) -> str:
    """Return the name of a scheduler, or raise :class:`UsageError`."""
    return one_of("scheduler", text, SCHEDULERS)


def check_mode(text: str) -> str:
    """Return ``async`` or ``sync``, or raise :class:`UsageError`."""
    return one_of("mode", text, MODES)


def check_goal(text: str) -> str:
    """Return ``minimize`` or ``maximize`` (``min`` and ``max`` will do), or raise :class:`UsageError`."""
    short = {"min": "minimize", "max": "maximize", "minimise": "minimize", "maximise": "maximize"}
    return one_of("goal", short.get(text, text), GOALS)
