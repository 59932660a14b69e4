"""Why a run failed, in one line, from what it wrote to stderr."""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterable, List, Optional, Tuple

_TAIL_BYTES = 64 * 1024
_TRACEBACK = "Traceback (most recent call last):"
_KEEP = 4000  # characters of a traceback that a record holds
_MESSAGE = 300  # characters of a message in a one-line reason
_FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line (?P<line>\d+)', re.MULTILINE)

_RAISED = re.compile(r"[A-Za-z_][\w.]*(:|\s*$)")


def tail(path: str, start: int = 0) -> str:
    """Return the last 64 KiB of what ``path`` holds from byte ``start``; empty where it cannot be read."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def last_error(text: str, project: Iterable[str] = ()) -> Optional[Dict[str, str]]:
    """Return the last Python traceback in ``text``, or None.

    Parameters
    ----------
    text
        The end of a run's stderr.
    project
        Absolute directories that are the project: frames below them are the user's own, and named relative to them.

    Returns
    -------
    dict or None
        ``type``, ``message``, ``where`` (``train.py:41``; the innermost frame of the user's code, else of any) and
        ``traceback`` (its last 4,000 characters).
    """
    start = text.rfind(_TRACEBACK)
    if start < 0:
        return _syntax_error(text, project)
    lines = text[start:].split("\n")
    # the exception is the first line after the frames that is not indented; a message may go on below it
    end = next((i for i in range(1, len(lines)) if lines[i][:1].strip()), None)
    if end is None or not _RAISED.match(lines[end]):
        return None
    return _error(lines[: end + 1], lines[end : end + 20], project)


def _syntax_error(text: str, project: Iterable[str]) -> Optional[Dict[str, str]]:
    """Read the error of a script that does not compile: it has no traceback line of its own."""
    lines = text.split("\n")
    ends = [i for i, line in enumerate(lines) if re.match(r"(Syntax|Indentation|Tab)Error: ", line)]
    start = next((i for i in range(ends[-1], -1, -1) if _FRAME.match(lines[i])), None) if ends else None
    return None if start is None else _error(lines[start : ends[-1] + 1], lines[ends[-1] :], project)


def _error(frames: List[str], raised: List[str], project: Iterable[str]) -> Dict[str, str]:
    kind, _, message = raised[0].partition(":")
    return {
        "type": kind.strip().rpartition(".")[2],
        "message": message.strip()[:_MESSAGE],
        "where": _where(_FRAME.findall("\n".join(frames)), project),
        "traceback": "\n".join(frames)[-_KEEP:],
    }


def _where(frames: List[Tuple[str, str]], project: Iterable[str]) -> str:
    for file, line in reversed(frames):
        for base in project:
            if file.startswith(base + "/"):
                return "%s:%s" % (file[len(base) + 1 :], line)
        if not os.path.isabs(file) and not file.startswith("<"):
            return "%s:%s" % (file, line)
    return "%s:%s" % (os.path.basename(frames[-1][0]), frames[-1][1]) if frames else ""


def reason(exit_code: Optional[int], signal_name: str, error: Optional[Dict[str, str]], text: str) -> str:
    """Say in one line why a run is not COMPLETED.

    Parameters
    ----------
    exit_code, signal_name
        How the process ended; ``signal_name`` is empty unless a signal ended it.
    error
        From :func:`last_error`.
    text
        The end of its stderr.
    """
    if signal_name:
        return "killed by %s" % signal_name
    if error is not None:
        where = " (%s)" % error["where"] if error["where"] else ""
        if "CUDA out of memory" in error["message"]:
            return "CUDA out of memory" + where
        message = ": " + error["message"] if error["message"] else ""
        return error["type"] + message + where
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "exit code %s" % exit_code + (": " + lines[-1][:_MESSAGE] if lines else "")
