"""Sorting in kernels, by counting: numba's own sort takes seconds to compile."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.kernels.compiling import kernel

_DIGIT_BITS, _KEY_BITS = 8, 32


@kernel
def sort_by(keys: Any, n_keys: Any, order: Any, out: Any) -> None:
    """Sort ``order`` by keys below ``n_keys``, stably, into ``out``; int64 arrays of one length."""
    ends = np.zeros(n_keys + 1, np.int64)
    for i in order:
        ends[keys[i] + 1] += 1
    for key in range(n_keys):
        ends[key + 1] += ends[key]
    for i in order:
        out[ends[keys[i]]] = i
        ends[keys[i]] += 1


@kernel
def order_of(keys: Any) -> Any:
    """The order in which keys rise: ``np.argsort(keys, kind="stable")``.

    A digit at a time (Knuth, TAOCP 5.2.5).

    Parameters
    ----------
    keys : ndarray, (n,) uint32

    Returns
    -------
    ndarray, (n,) int64
    """
    n = len(keys)
    order, other, digits = np.arange(n), np.empty(n, np.int64), np.empty(n, np.int64)
    for shift in range(0, _KEY_BITS, _DIGIT_BITS):
        for i in range(n):
            digits[i] = (np.int64(keys[i]) >> shift) & ((1 << _DIGIT_BITS) - 1)
        sort_by(digits, 1 << _DIGIT_BITS, order, other)
        order, other = other, order
    return order
