"""The command line: typer commands, rendering by rich, and the one boundary where errors are caught.

Only this package knows typer and rich, and only :func:`main` turns an error into words and an exit status.
Commands import what they need inside their bodies, so that ``ems --help`` stays as quick as a bare typer program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ems.errors import EmsError

OK, ERROR, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one ``ems`` command; return its exit status.

    Parameters
    ----------
    argv
        What follows ``ems`` on the command line; default: that of this process.

    Returns
    -------
    int
        0 ok, 1 error, 2 usage, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    own, rest = words[:cut], words[cut + 1 :]
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us, as some schedulers of commands do
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - no pathlib yet; open until the end
    debug = "--debug" in own or bool(os.environ.get("EMS_DEBUG"))
    try:
        from ems.cli.app import invoke  # inside: who interrupts it while it loads gets no traceback either

        return invoke([word for word in own if word != "--debug"], rest, words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has seen enough; the interpreter must not complain at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
    except Exception as error:  # noqa: BLE001  # the one boundary
        if debug:
            import traceback

            traceback.print_exc()
        return _report(error, own)


def _report(error: Exception, typed: Sequence[str]) -> int:
    """Print ``error: …``, an empty line and ``hint: …``; return the exit status."""
    from ems.cli import render

    said = _explain(error, typed)
    render.print_error(said)
    return said.exit_code


def _explain(error: Exception, typed: Sequence[str]) -> EmsError:
    """Turn any exception into one sentence and a hint."""
    from ems.cli.app import explain_usage

    if isinstance(error, EmsError):
        return error
    usage = explain_usage(error, typed)
    if usage is not None:
        return usage
    if isinstance(error, FileNotFoundError) and not error.filename:  # os.getcwd() names none
        return EmsError("the folder that you are in is not there any more", "go to one that is: cd ~")
    if isinstance(error, OSError) and error.strerror:
        what = f": {os.fsdecode(error.filename)}" if error.filename else ""
        return EmsError(f"{error.strerror[:1].lower()}{error.strerror[1:]}{what}", _os_hint(error))
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return EmsError(f"unexpected {words}", "this should not happen; add --debug to see where")


def _os_hint(error: OSError) -> str:
    import errno

    return {
        errno.ENOSPC: "free some space (`ems rm EXP` deletes an experiment's files), then run the command again",
        errno.EDQUOT: "your quota is used up: free some space (`ems rm EXP`), then run the command again",
        errno.EACCES: "check who may read and write it",
        errno.EROFS: "it is mounted read-only: set another `root` in ems.yaml",
    }.get(error.errno or 0, "add --debug to see where")
