"""Tests, the oracle they compare with, and what they share."""

from __future__ import annotations

import os

# Set before numpy, numba and torch are imported, which read these once. Two threads are what a
# small machine has, and nothing here is timed.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1" if os.environ.get(_name) == "1" else "2"
os.environ["MPLBACKEND"] = "Agg"
