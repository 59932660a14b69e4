"""Count the loops of a script by running what stands above them (``--count-by-running``).

For iterables that do not follow from the text: the script runs in a subprocess, with its own Python and arguments,
up to its loops; these are then walked with their bodies left out, and nothing after them runs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import tokenize
from collections.abc import Sequence
from pathlib import Path

from ems.errors import ScriptError
from ems.model import Point
from ems.node import launch
from ems.node.install import install_lib
from ems.unroll import Unrolled, assemble
from ems.unroll.loops import Nest, find


def count_by_running(script: Path, python: str, args: Sequence[str], cwd: Path) -> Unrolled | None:
    """Run the code above the loops of ``script`` to count them; None if there is no loop to sweep.

    Parameters
    ----------
    script
        The entry point.
    python
        The interpreter that will run it.
    args
        The script's own arguments.
    cwd
        Where it runs; what the code above the loops writes is written there.

    Raises
    ------
    ScriptError
        If the script does not compile, fails above its loops, or ends without reaching them; carries its own words.
    """
    try:
        with tokenize.open(script) as file:
            source = file.read()
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ScriptError(f"{script.name} cannot be read: {error}") from error
    nest = find(source, script.name)
    if nest is None:
        return None
    counted = _run(nest, os.path.relpath(script, cwd), python, args, cwd)
    points = [Point(params, tuple(indices)) for indices, params in counted["points"]]
    return assemble(nest, points, map(set, counted["sizes"]), counted["known"], _dependent(nest, points))


def _run(nest: Nest, script: str, python: str, args: Sequence[str], cwd: Path) -> launch.Counted:
    loops = [{"line": loop.lineno, "column": loop.col_offset, "size": -1} for loop in nest.loops]
    with tempfile.TemporaryDirectory(prefix="ems-count-") as folder:
        out = Path(folder) / "counted.json"
        lib = install_lib(folder)  # the script may import ems, which its Python need not have
        launcher = Path(lib) / "ems" / "node" / "launch.py"
        argv = [python, str(launcher), "--count", json.dumps(loops), str(out), script, *args]
        paths = os.pathsep.join(filter(None, [lib, os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                argv,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise ScriptError(
                f"`{python}` cannot be started: {error.strerror}", "name another with --python"
            ) from error
        if done.returncode == 0 and out.exists():
            counted: launch.Counted = json.loads(out.read_text(encoding="utf-8"))
            return counted
    raise _failure(nest, done)


def _failure(nest: Nest, done: subprocess.CompletedProcess[str]) -> ScriptError:
    line = nest.loops[0].lineno
    said = done.stderr.strip()
    if launch.NOT_REACHED in said:
        return ScriptError(
            f"{nest.filename} ended without reaching its loop on line {line}, so nothing was counted",
            "check the arguments after `--`, or give the values with --set",
        )
    last = said.splitlines()[-1] if said else f"exit status {done.returncode}"
    places = re.findall(rf'^  File ".*{re.escape(nest.filename)}", line (\d+)', said, re.MULTILINE)
    where = f" (line {places[-1]})" if places else ""
    return ScriptError(
        f"{nest.filename} failed above its loop on line {line}: {last}{where}",
        "run it by itself to see why, or give the values with --set",
    )


def _dependent(nest: Nest, points: list[Point]) -> list[bool]:
    """For each loop, whether what it gives differs with the items of the loops outside it."""
    dependent = [False]
    for depth in range(1, len(nest.loops)):
        names = launch.flat_names(launch.target_names(nest.loops[depth].target))
        seen: dict[tuple[int, ...], list[str]] = {}
        for point in points:
            items = seen.setdefault(point.loops[:depth], [])
            item = f"{point.loops[depth]} {json.dumps([point.params[name] for name in names])}"
            if not items or items[-1] != item:
                items.append(item)
        walks = list(seen.values())
        dependent.append(any(walk != walks[0] for walk in walks))
    return dependent
