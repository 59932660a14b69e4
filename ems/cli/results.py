"""``ems harvest``, ``ems gather`` and ``ems reduce``: bring results together."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli import options as o
from ems.cli.app import RESULTS, command

if TYPE_CHECKING:
    from ems.cli.session import Session

_WATCH_S = 5.0


@command(RESULTS, "ems harvest", "ems harvest last --metric-files 'out/*.csv'", "ems harvest --watch")
def harvest(
    experiments: o.Experiments = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until all runs have ended.")] = False,
    metric_files: o.MetricFiles = None,
    as_json: o.AsJson = False,
) -> None:
    """Collect every result that is there into the store.

    Incremental, and safe at any moment: results of running runs are included, nothing is counted twice.
    """
