"""The paper's record: a frame as the pixels that differ from its group's first, raw frame.

Differentially Encoded Observation Spaces (arXiv 2310.01767), section IV-C: every ``gop_length``-th
frame raw; of the others each changed pixel's row and column (8 bits; 16 or 32 in frames that need
them) and its ``int16`` difference; raw where that would exceed the frame. Here to be compared with.

A record is a tag (0 sparse, 1 raw); raw, the frame's bytes; sparse, ``uint32`` n, then n rows, n
columns and n differences.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.kernels.compiling import inlined
from compressarray.kernels.memory import load8, load16, load32

RAW_TAG = 1
HEADER_BYTES = 5  # of what is not raw


@inlined
def coordinate_bytes(n_bytes: Any, row_bytes: Any) -> Any:
    """Bytes of one row or column number: 1 up to 256 rows and columns, 2 up to 65,536, else 4."""
    longest = max(n_bytes // max(row_bytes, 1), row_bytes)
    return 1 if longest <= 1 << 8 else 2 if longest <= 1 << 16 else 4


@inlined
def load_coordinate(numbers: Any, n: Any, width: Any) -> Any:
    """The ``n``-th row or column number of those at an address, of ``width`` bytes each."""
    if width == 1:
        return np.int64(load8(numbers + n))
    if width == 2:
        return np.int64(load16(numbers + 2 * n))
    return np.int64(load32(numbers + 4 * n))
