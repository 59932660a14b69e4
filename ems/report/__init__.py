"""Runs of the store as tables and curves. Pure: what is typed comes as a :class:`Query`, what is shown goes as a table.

:mod:`.frame` gives runs columns, :mod:`.where` picks runs, :mod:`.groups` puts them together, :mod:`.statistics` and
:mod:`.baseline` compare them, :mod:`.tables` makes a table of it all, :mod:`.curve` a plot. Only :mod:`.query`, which
the command line needs for its ``--help``, is imported at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ems.report.query import Goal, Method, Query, Stat

if TYPE_CHECKING:
    from ems.report.table import Table
    from ems.store import RunRow

__all__ = ["Goal", "Method", "Query", "Stat", "tabulate"]


def tabulate(rows: Iterable[RunRow], query: Query) -> Table:
    """Make the table that was asked for.

    Raises
    ------
    UsageError
        If something asked for is not there, or cannot be meant; the hint names what there is.
    """
    from ems.report import tables  # noqa: PLC0415 - see above

    return tables.make(rows, query)
