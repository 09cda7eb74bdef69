"""Sorting in kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.kernels.compiling import kernel

_DIGIT_BITS, _KEY_BITS = 8, 32


@kernel
def order_of(keys: Any) -> Any:
    """The order in which keys rise: ``np.argsort(keys, kind="stable")``.

    A digit at a time (Knuth, TAOCP 5.2.5). numba's own sort takes seconds to compile.

    Parameters
    ----------
    keys : ndarray, (n,) uint32

    Returns
    -------
    ndarray, (n,) int64
    """
    n = len(keys)
    order = np.arange(n)
    other = np.empty(n, np.int64)
    ends = np.empty((1 << _DIGIT_BITS) + 1, np.int64)
    for shift in range(0, _KEY_BITS, _DIGIT_BITS):
        ends[:] = 0
        for i in range(n):
            ends[((np.int64(keys[i]) >> shift) & ((1 << _DIGIT_BITS) - 1)) + 1] += 1
        for digit in range(1 << _DIGIT_BITS):
            ends[digit + 1] += ends[digit]
        for i in range(n):
            digit = (np.int64(keys[order[i]]) >> shift) & ((1 << _DIGIT_BITS) - 1)
            other[ends[digit]] = order[i]
            ends[digit] += 1
        order, other = other, order
    return order
