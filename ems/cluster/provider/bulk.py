"""Machines that one call can make: alike but for their names, which are told by the number of each in its call."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from ems.cluster.provider.base import CLUSTER, INCARNATION, MachineRequest
from ems.errors import ProviderError

#: The label (tag) that holds the names of all machines that one call made; a machine's own is at its number there.
NAMES = "ems-nodes"
_MAX_TEXT = 255  # of a label's value, in EC2 and in OpenStack
_NUMBERED = re.compile(r"(?P<stem>.*-)(?P<number>\d{3})")


def groups(requests: Sequence[MachineRequest], most: int) -> list[list[MachineRequest]]:
    """Return the machines of each call: alike in everything but their names, ``most`` at the most; order is kept."""
    alike: dict[str, list[MachineRequest]] = {}
    for request in requests:
        alike.setdefault(_likeness(request), []).append(request)
    found: list[list[MachineRequest]] = []
    for together in alike.values():
        found += _parts(together, most)
    return found


def _likeness(request: MachineRequest) -> str:
    numbered = _NUMBERED.fullmatch(request.name)
    return json.dumps(asdict(replace(request, name=numbered["stem"] if numbered else request.name)), sort_keys=True)


def _parts(together: Sequence[MachineRequest], most: int) -> list[list[MachineRequest]]:
    """Return parts of at most ``most``, whose names fit into one label."""
    parts = [list(together[start : start + most]) for start in range(0, len(together), most)]
    found: list[list[MachineRequest]] = []
    for part in parts:
        fits = len(part) == 1 or len(encode([each.name for each in part])) <= _MAX_TEXT
        found += [part] if fits else _parts(part, (len(part) + 1) // 2)
    return found


def encode(names: Sequence[str]) -> str:
    """Return names as text: ``demo-gpu- 001-003 007``; one name is itself."""
    if len(names) == 1:
        return names[0]
    found = [_NUMBERED.fullmatch(name) for name in names]
    stems = {each["stem"] for each in found if each}
    if None in found or len(stems) != 1:
        raise ValueError(f"not numbered alike: {names}")
    runs: list[list[int]] = []
    for number in (int(each["number"]) for each in found if each):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join([*stems, *(f"{a:03d}" if a == b else f"{a:03d}-{b:03d}" for a, b in runs)])


def decode(text: str) -> list[str]:
    """Return the names in a text of :func:`encode`."""
    stem, *runs = text.split()
    ends = [(run.split("-")[0], run.split("-")[-1]) for run in runs]
    return [f"{stem}{number:03d}" for a, b in ends for number in range(int(a), int(b) + 1)] or [stem]


def name_at(text: str, place: int) -> str:
    """Return the name of the machine at a place (from 0) of its call; what cannot be told is empty."""
    try:
        return decode(text)[place]
    except (IndexError, ValueError):
        return ""


def check_owner(name: str, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuse to use what another cluster, or another incarnation of this one, has made under a name.

    Raises
    ------
    ProviderError
        If it has.
    """
    if not is_same_owner(found, wanted):
        raise ProviderError(*stranger(name, wanted))


def stranger(name: str, wanted: Mapping[str, str]) -> tuple[str, str]:
    """Return what is said of a thing that has the name of one of ours and is another's, and what helps."""
    return (
        f"there is a `{name}` already that is not of this cluster",
        f"if it is yours: ems cluster status {wanted.get(CLUSTER)} --adopt; else name this cluster differently",
    )


def is_same_owner(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two things are of the same incarnation of the same cluster."""
    return all(one.get(key) == other.get(key) for key in (CLUSTER, INCARNATION))
