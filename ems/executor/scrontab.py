"""A job in the user's scrontab, which SLURM itself repeats where the site lets it (``ScronParameters=enable``).

Format: https://slurm.schedmd.com/scrontab.html. What stands there besides is left as it is.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence

from ems.errors import ExecutorError
from ems.executor.slurm import ask, call
from ems.node import feed

_TIMES = "*/15 * * * *"


def is_available() -> bool:
    """Whether this SLURM has a scrontab for its users."""
    if shutil.which("scrontab") is None:
        return False
    return bool(re.search(r"^ScronParameters\s*=.*\benable\b", ask(["scontrol", "show", "config"]), re.MULTILINE))


def add(name: str, options: Sequence[str], command: Sequence[str]) -> bool:
    """Have SLURM run a command every quarter of an hour; return whether it took that.

    Parameters
    ----------
    name
        One word, by which :func:`remove` finds the entry; another of that name is replaced.
    options
        Of sbatch, e.g. ``--partition=cpu``.

    Raises
    ------
    ExecutorError
        If what stands there cannot be read; nothing is written then.
    """
    lines = [_begin(name), *(f"#SCRON {each}" for each in options), f"{_TIMES} {shlex.join(command)}", _end(name)]
    return _write([*_others(name), *lines])


def remove(name: str) -> None:
    """Take the entry out, if it is there.

    Raises
    ------
    ExecutorError
        As :func:`add` does.
    """
    known, others = _read(), _others(name)
    if len(others) < len(known):
        _write(others)


def _begin(name: str) -> str:
    return f"# begin of {name}, by ems"


def _end(name: str) -> str:
    return f"# end of {name}"


def _read() -> list[str]:
    done = call(["scrontab", "-l"])
    if done.returncode != 0 and "no crontab" not in done.stderr + done.stdout:  # else what is there would be lost
        raise ExecutorError(f"the scrontab cannot be read: {feed.words(done.stderr)}", "scrontab -l")
    return done.stdout.splitlines() if done.returncode == 0 else []


def _others(name: str) -> list[str]:
    """Return the lines that are not of ``name``."""
    kept, is_ours = [], False
    for line in _read():
        is_ours = is_ours or line == _begin(name)
        if not is_ours:
            kept.append(line)
        is_ours = is_ours and line != _end(name)
    return kept


def _write(lines: Sequence[str]) -> bool:
    with tempfile.NamedTemporaryFile("w", prefix="ems-scrontab-") as file:
        file.write("\n".join([*lines, ""]))
        file.flush()
        return call(["scrontab", file.name]).returncode == 0
