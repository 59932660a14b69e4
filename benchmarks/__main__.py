"""``python -m benchmarks [LETTERS]``: measure, print, and write RESULTS.md with the machine it was measured on."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table

from benchmarks.figures import FIGURES
from benchmarks.harness import Figure, machine

HERE = Path(__file__).parent


def main() -> int:
    """Measure the figures asked for; write RESULTS.md when all of them were."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("letters", nargs="?", default="".join(FIGURES), help="which figures, e.g. acf; default all")
    letters = parser.parse_args().letters
    console = Console(stderr=True)
    figures: list[Figure] = []
    with ExitStack() as stack:
        slurm: dict[str, str] = dict(os.environ)
        if any(FIGURES[letter][1] for letter in letters):
            console.print("starting a SLURM cluster on this machine")
            cluster = stack.enter_context(testbed().Cluster(options={"MaxArraySize": 20_001, "MaxJobCount": 100_000}))
            slurm = cluster.environment()
        for letter in letters:
            measure, _ = FIGURES[letter]
            console.print(f"({letter}) {(measure.__doc__ or '').split(')', 1)[-1].strip().splitlines()[0]}")
            for figure in measure(slurm):
                figures.append(figure)
                console.print(f"    {figure.what}: {figure.value}{verdict(figure)}", highlight=False)
    Console().print(as_table(figures))
    if set(letters) == set(FIGURES):
        (HERE / "RESULTS.md").write_text(as_markdown(figures))
    return 0


def testbed() -> ModuleType:
    """Load the SLURM cluster of the tests, which is no package."""
    path = HERE.parent / "tests" / "slurm" / "testbed.py"
    spec = importlib.util.spec_from_file_location("testbed", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["testbed"] = module
    spec.loader.exec_module(module)
    return module


def verdict(figure: Figure) -> str:
    """Return how the figure stands to its target, in words."""
    if figure.met is None:
        return ""
    return f"  (target: {figure.target}; {'met' if figure.met else 'MISSED'})"


def as_table(figures: list[Figure]) -> Table:
    """Return the figures for the terminal."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "figure", "measured", "target", ""):
        table.add_column(heading)
    for each in figures:
        table.add_row(
            each.letter, each.what, each.value, each.target, {None: "", True: "met", False: "missed"}[each.met]
        )
    return table


def as_markdown(figures: list[Figure]) -> str:
    """Return RESULTS.md."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [
        "# Results",
        "",
        f"Measured in one run of `make bench` on {today}: {machine()}.",
        "SLURM is the one of the test suite, its daemons on the same cores as the runs.",
        "",
        "| | figure | measured | target | |",
        "|---|---|---|---|---|",
    ]
    for each in figures:
        met = {None: "", True: "met", False: "**missed**"}[each.met]
        lines.append(f"| {each.letter} | {each.what} | {each.value} | {each.target} | {met} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
