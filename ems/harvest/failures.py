"""Failed runs grouped by cause, and the command that reruns just those."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ems.model import Json, Params, Resources

_VOLATILE = (
    (re.compile(r"0x[0-9a-fA-F]+"), "…"),
    (re.compile(r"(?<![\w.])(/[\w.@+-]+)+/"), ""),  # directories: /tmp/x/y.py is y.py
    (re.compile(r"\b[0-9a-f]{8,}\b"), "…"),
    (re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?"), "#"),
)
_WHERE = re.compile(r" \([^()]*:\d+\)$")
_LISTED = 50  # stretches of runs that a command names; beyond that it is all failed ones


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed run: what its record and SLURM say of it."""

    index: int
    params: Params
    reason: str
    slurm_state: str = ""
    error: Mapping[str, Json] | None = None  # type, message, where, traceback


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failed runs of one experiment with the same cause."""

    cause: str  # the commonest wording
    count: int
    example: int  # index of the first
    example_params: Params
    indices: tuple[int, ...]
    rerun_command: str
    advice: str = ""  # what helps where to run again does not


def group(
    failures: Iterable[Failure], exp_id: str, resources: Resources | None = None, n_cancelled: int = 0
) -> list[FailureGroup]:
    """Put together what failed for the same cause, the most frequent first.

    The same cause is the same type of error with the same message, numbers and directories apart, raised at the same
    line of the same functions; without a traceback the same reason. ``n_cancelled`` runs would be rerun by
    ``--failed`` too, so that names the group only where there are none.
    """
    found: dict[tuple[str, ...], list[Failure]] = {}
    for failure in failures:
        found.setdefault(_cause(failure), []).append(failure)
    groups = sorted(found.values(), key=lambda members: (-len(members), members[0].index))
    return [
        _group(members, exp_id, resources or Resources(), is_all=len(groups) == 1 and not n_cancelled)
        for members in groups
    ]


def _group(members: list[Failure], exp_id: str, resources: Resources, is_all: bool) -> FailureGroup:
    first = min(members, key=lambda failure: failure.index)
    indices = tuple(sorted(failure.index for failure in members))
    cause = Counter(_reason(failure) for failure in members).most_common(1)[0][0]
    which = f"{exp_id} --failed" if is_all else _addresses(exp_id, indices)
    more = _more(first, resources)
    rerun = f"ems rerun {which}{more}"
    return FailureGroup(cause, len(members), first.index, first.params, indices, rerun, _advice(first))


def _advice(failure: Failure) -> str:
    """Return what helps where to run again does not: a package that is missing stays missing in that Python."""
    if failure.error and failure.error.get("type") == "ModuleNotFoundError":
        return "submit it with a Python that has it: --python PATH, or --env auto to build the project's environment"
    return ""


def _addresses(exp_id: str, indices: tuple[int, ...]) -> str:
    """Return the addresses of runs as a shell expands them: ``abc/3``, ``abc/{0..4,7}``."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and spans[-1][1] == index - 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    if len(spans) > _LISTED:
        return f"{exp_id} --failed"
    words = [
        f"{first}..{last}" if last > first + 1 else ",".join(map(str, {first: 0, last: 0})) for first, last in spans
    ]
    listed = words[0] if len(indices) == 1 else "{" + ",".join(words) + "}"
    return f"{exp_id}/{listed}"


def _reason(failure: Failure) -> str:
    return failure.reason or failure.slurm_state or "unknown cause"


def normalize(text: str) -> str:
    """Return a message without what differs from run to run: numbers, addresses, directories.

    >>> normalize("cannot open /tmp/a1/x.bin: 3 of 0x7f00 tried")
    'cannot open x.bin: # of … tried'
    """
    for pattern, instead in _VOLATILE:
        text = pattern.sub(instead, text)
    return text.strip()


def _cause(failure: Failure) -> tuple[str, ...]:
    error = failure.error
    if error:
        message = str(error.get("message", "")).partition("\n")[0]
        frames = re.findall(r'^\s+File "([^"]+)", line (\d+)', str(error.get("traceback", "")), re.MULTILINE)
        places = tuple(f"{file.rpartition('/')[2]}:{line}" for file, line in frames[-3:])
        return (str(error.get("type", "")), normalize(message), str(error.get("where", "")), *places)
    where = _WHERE.search(failure.reason)
    return (failure.slurm_state, normalize(_WHERE.sub("", failure.reason)), where.group() if where else "")


def _more(failure: Failure, asked: Resources) -> str:
    """Return the flag that asks for twice as much of what ran out; empty where that is unknown."""
    if failure.slurm_state == "OUT_OF_MEMORY" and asked.mem:
        size = re.fullmatch(r"(\d+)([KMGT]?)", asked.mem, re.IGNORECASE)
        if size and int(size[1]):
            return f" --mem {2 * int(size[1])}{size[2]}"
    if failure.slurm_state == "TIMEOUT" or failure.reason == "time limit":
        minutes = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d\d))?(?::(\d\d))?", asked.time or "")
        if minutes:
            return f" --time {_doubled(asked.time or '')}"
    return ""


def _doubled(limit: str) -> str:
    """Return twice a time limit of SLURM's, in its own form."""
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:
        hours = int(days) * 24 + parts[0]
        seconds = hours * 3600 + sum(part * unit for part, unit in zip(parts[1:], (60, 1), strict=False))
    elif len(parts) == 3:
        seconds = parts[0] * 3600 + parts[1] * 60 + parts[2]
    else:
        seconds = parts[0] * 60 + (parts[1] if len(parts) > 1 else 0)
    seconds *= 2
    if len(parts) == 1 and not days:
        return str(seconds // 60)
    hours, rest = divmod(seconds, 3600)
    start = f"{hours // 24}-{hours % 24:02}" if hours >= 24 else f"{hours:02}"
    return f"{start}:{rest // 60:02}:{rest % 60:02}"
