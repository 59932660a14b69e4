"""Tuning against its peers: one process, same seeds, same initial design, peers at their defaults."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy: a core for each process
    os.environ.setdefault(_name, "1")
