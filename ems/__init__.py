"""Take a training script to a massive experiment on SLURM and back to a table.

What a script may use inside a run, with nothing installed; outside a run it is harmless::

    import ems

    lr = ems.params().get("lr", 0.1)
    folder = ems.checkpoint()           # survives requeues
    ems.log(step=epoch, loss=loss, acc=acc)

In a notebook, :func:`open_store` gives the results, and :func:`study` searches params that you try yourself.
"""

from __future__ import annotations

from ems.node.api import attempt, checkpoint, is_resumed, log, params, seed
from ems.version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Optional, Union

    from ems.store import Store
    from ems.study.session import Study

__all__ = ["__version__", "attempt", "checkpoint", "is_resumed", "log", "open_store", "params", "seed", "study"]


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


def study(name: str, space: Any = None, **options: Any) -> Study:
    """Begin a study that you ask and tell yourself, or go on with the one of that name.

    For example::

        study = ems.study("lr", {"lr": "loguniform(1e-5,1e-1)"}, metric="loss", trials=20)
        for trial in study:
            study.tell(trial, train(**trial.params))
        print(study.best)

    See :func:`ems.study.session.study` for the options.

    Raises
    ------
    UsageError
        If something of it cannot be meant, or the study of that name has another space, metric or goal.
    ImportError
        Inside a run: it tries what it is given.
    """
    from ems.study import session

    return session.study(name, space, **options)
