"""The far side: ``python -m ems.remote.agent``, started over SSH for one command of the user.

It answers requests until its standard input ends, and then ends itself; a request that has begun is finished, whether
anybody still listens or not. What its operations print, and what children of theirs do, cannot get into the answers.
"""

from __future__ import annotations

import importlib
import os
import platform
import select
import sys
import traceback
from pathlib import Path
from typing import Any, BinaryIO

from ems.errors import EmsError, TargetError
from ems.remote import data, files, operations, wire
from ems.remote.site import Operation, Site
from ems.version import __version__

#: Everything that the other side may ask for; whoever adds operations adds a table of them here.
OPERATIONS: dict[str, Operation] = {**operations.TABLE, **files.TABLE, **data.TABLE}
#: Those of layers above this one, ``module:function``: loaded when they are asked for.
ABOVE = {"study": "ems.study.far:attend"}

_IDLE_S = 1800.0  # every command asks again within seconds


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer requests until ``source`` ends or nobody takes the answers.

    The first request is ``hello``: it says which root is meant, and learns which ``ems`` this is.
    """
    site: Site | None = None
    try:
        sink.write(wire.GREETING)
        sink.flush()
        while _comes_within(source, _IDLE_S):
            header, data = wire.receive(source)
            name, args = str(header.get("do")), header.get("args") or {}
            if name == "hello":
                site = Site(Path(args["root"]), args["executor"], args.get("worker_python"), sink)
                answer: dict[str, Any] = {"ok": _hello()}
            else:
                answer = _answer(site, name, args, data)
            wire.send(sink, answer)
            sink.flush()
    except (wire.BrokenWireError, BrokenPipeError):
        return


def _comes_within(source: BinaryIO, limit_s: float) -> bool:
    """Wait for the next request; a connection that nobody told us is gone must not keep a process here for good."""
    return bool(select.select([source], [], [], limit_s)[0])  # nothing is buffered: one request, one answer


def _hello() -> wire.Frame:
    return {"protocol": wire.PROTOCOL, "version": __version__, "code": wire.code_digest()}


def _answer(site: Site | None, name: str, args: wire.Frame, data: bytes) -> wire.Frame:
    """Do what is asked; what goes wrong is an answer, too."""
    try:
        return {"ok": _operation(name)(_said_hello(site), args, data)}
    except EmsError as error:
        return {"error": wire.as_record(error)}
    except BrokenPipeError:
        raise
    except OSError as error:
        return {"error": wire.as_record(_of_system(error))}
    except Exception as error:  # noqa: BLE001  # the boundary of this process: the other side shows it
        traceback.print_exc()
        words = " ".join(f"{type(error).__name__}: {error}".split())
        return {"error": {"kind": "EmsError", "message": f"unexpected {words}", "hint": ""}}


def _of_system(error: OSError) -> TargetError:
    """Say in a sentence what the system has refused; a bare name that is not found is a program's."""
    name = str(error.filename or "")
    if isinstance(error, FileNotFoundError) and name and "/" not in name:
        return TargetError(
            f"there is no {name} on {platform.node()}",
            f"install {name} there, or put it on the PATH of commands over SSH (`module load {name}` in ~/.bashrc)",
        )
    place = f"{name}: " if name else ""
    return TargetError(f"{place}{error.strerror or error}", "see that there is room, and that it is yours: ems doctor")


def _operation(name: str) -> Operation:
    if name in ABOVE:
        module, _, function = ABOVE[name].partition(":")
        above: Operation = getattr(importlib.import_module(module), function)
        return above
    try:
        return OPERATIONS[name]
    except KeyError:
        raise TargetError(f"this ems cannot do `{name}`") from None


def _said_hello(site: Site | None) -> Site:
    if site is None:
        raise TargetError("an agent is greeted before it is asked")
    return site


def main() -> None:
    """Serve standard input and output, having kept both from every child."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123  # a descriptor is wanted
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    serve(source, sink)
    sys.stderr.flush()
    os._exit(0)  # an answer that nobody takes is no reason to complain at exit


if __name__ == "__main__":
    main()
