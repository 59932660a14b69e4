"""Take a training script to a massive experiment on SLURM and back to a table.

What a script may use inside a run, with nothing installed; outside a run it is harmless::

    import ems

    lr = ems.params().get("lr", 0.1)
    folder = ems.checkpoint()           # survives requeues
    ems.log(step=epoch, loss=loss, acc=acc)

In a notebook, :func:`open_store` gives the results.
"""

from __future__ import annotations

from ems.node.api import attempt, checkpoint, is_resumed, log, params, seed
from ems.version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Optional, Union

    from ems.store import Store

__all__ = ["__version__", "attempt", "checkpoint", "is_resumed", "log", "open_store", "params", "seed"]


def open_store(start: Optional[Union[str, Path]] = None) -> Store:
    """Open the project's store, found upwards from ``start`` (default: the working directory) like ``.git``.

    Raises
    ------
    StoreError
        If there is none, it is damaged, or it is newer than this ``ems``.
    ImportError
        Inside a run: a run records by :func:`log`, the store is for the side that submitted it.
    """
    from pathlib import Path

    from ems.store import Store

    return Store.open(None if start is None else Path(start), make=False)
