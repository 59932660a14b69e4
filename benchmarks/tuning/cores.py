"""How many processes measure at a time: as many as there are cores for this one (``taskset`` makes that fewer)."""

from __future__ import annotations

import os

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
