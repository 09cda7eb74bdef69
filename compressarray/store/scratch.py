"""Memory that a write needs while it lasts, shared by all arrays of a process."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt8s = npt.NDArray[np.uint8]

# Fresh memory costs a page fault each 4 KiB, more than coding what goes through it.
MAX_KEPT_BYTES = 1 << 20
_kept: list[UInt8s] = []


def borrow(n_bytes: int) -> UInt8s:
    """At least ``n_bytes`` of any content, the caller's alone until it calls `give_back`."""
    try:
        spare = _kept.pop()
    except IndexError:
        return np.empty(n_bytes, np.uint8)
    return spare if len(spare) >= n_bytes else np.empty(n_bytes, np.uint8)


def give_back(scratch: UInt8s) -> None:
    """Leave memory to the next who borrows; forgetting to only costs time."""
    if not _kept and len(scratch) <= MAX_KEPT_BYTES:
        _kept.append(scratch)
