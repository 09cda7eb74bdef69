"""Memory that a write needs while it lasts, shared by all arrays of a process."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Scratch(NamedTuple):
    """Bytes of any content, and where they begin."""

    memory: npt.NDArray[np.uint8]
    address: int


# Fresh memory costs a page fault each 4 KiB, more than coding what goes through it.
MAX_KEPT_BYTES = 1 << 20
_kept: list[Scratch] = []


def borrow(n_bytes: int) -> Scratch:
    """At least ``n_bytes``, the caller's alone until it calls `give_back`."""
    try:
        spare = _kept.pop()
    except IndexError:
        spare = None
    if spare is not None and len(spare.memory) >= n_bytes:
        return spare
    memory = np.empty(n_bytes, np.uint8)
    return Scratch(memory, int(memory.__array_interface__["data"][0]))


def give_back(scratch: Scratch) -> None:
    """Leave memory to the next who borrows; forgetting to only costs time."""
    if not _kept and len(scratch.memory) <= MAX_KEPT_BYTES:
        _kept.append(scratch)


def trim() -> None:
    """Let the system have back what was freed: glibc keeps megabytes below the top of its heap."""
    give = getattr(ctypes.pythonapi, "malloc_trim", None)
    if give is not None:
        give(0)
