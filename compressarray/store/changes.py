"""Which entries of a table have changed: a ring of their numbers, for whoever tells replicas."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.kernels.compiling import inlined

_LEAST = 64

NOT_KEPT = np.zeros(0, np.uint32)


def ring_of_changes(n: int) -> npt.NDArray[np.uint32]:
    """A ring for a table of ``n`` entries.

    Whoever has missed more than a quarter of all is as well filled anew.
    """
    return np.zeros(1 << (max(_LEAST, n // 4) - 1).bit_length(), np.uint32)


@inlined
def list_change(ring: Any, n_listed: Any, entry: Any) -> None:
    """Keep in mind, in kernels, that an entry changes, the ``n_listed``-th that ever did."""
    if len(ring):
        ring[n_listed & (len(ring) - 1)] = np.uint32(entry)


def listed(ring: npt.NDArray[np.uint32], first: int, end: int) -> npt.NDArray[np.int64] | None:
    """The entries that changed from the ``first``-th to before the ``end``-th change, once each.

    None if that is not known any more.
    """
    if end - first > len(ring):
        return None
    return np.unique(ring[np.arange(first, end) & (len(ring) - 1)]).astype(np.int64)
