"""The rows of a study into the project's store, from the file that its driver keeps."""

from __future__ import annotations

from ems.store import Store
from ems.target import Target


def bring(store: Store, target: Target, study_id: str) -> bool:
    """Copy what is new of a study into ``store``; return whether anything was. Never waits for the driver.

    Raises
    ------
    StoreError
        If the store cannot be written.
    """
    raise NotImplementedError
