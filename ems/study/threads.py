"""One thread for the driver: its matrices are small, and the cores are for runs."""

from __future__ import annotations

import importlib
import os

_NAMES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def load_numpy() -> None:
    """Load numpy and scipy such that they compute in one thread; runs do not inherit that."""
    added = [name for name in _NAMES if name not in os.environ]  # what a person set is theirs
    os.environ.update(dict.fromkeys(added, "1"))
    importlib.import_module("scipy.linalg")  # OpenBLAS looks once, when it is loaded
    for name in added:
        del os.environ[name]
