"""Memory of outputs, used again once nobody holds it."""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

# That wait to be used again: two batches of 256 pairs of RGB stacks of 3, twice 33 MB, nearly do.
MAX_SPARE_BYTES = 1 << 26


class Recycler:
    """Hands out uninitialized arrays in memory of earlier ones that are gone, views and all.

    Fresh memory may cost a page fault each 4 KiB: with 260 of them a batch of 32 transitions of
    Atari took 660 microseconds instead of 160.
    """

    def __init__(self) -> None:
        # Changed by single calls only: arrays may go in any thread, and within any call here.
        self._spare: deque[ctypes.Array[ctypes.c_uint8]] = deque()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an array like `numpy.empty`, C-contiguous and writable."""
        memory = self._take(prod(shape) * dtype.itemsize)
        # Views of an array that does not own its memory have that array as their base, unless its
        # own base is an array: so this one lives as long as any of them, and a ctypes array is it.
        array: npt.NDArray[Any] = np.ndarray(shape, dtype, memory)  # type: ignore[arg-type]
        weakref.finalize(array, self._give_back, memory).atexit = False
        return array

    def _take(self, n_bytes: int) -> ctypes.Array[ctypes.c_uint8]:
        for _ in range(len(self._spare)):
            try:
                memory = self._spare.pop()  # what went last is in the caches still
            except IndexError:
                break
            if len(memory) == n_bytes:
                return memory
            self._spare.appendleft(memory)
        fresh: Any = np.empty(n_bytes, np.uint8)
        return (ctypes.c_uint8 * n_bytes).from_buffer(fresh)

    def _give_back(self, memory: ctypes.Array[ctypes.c_uint8]) -> None:
        self._spare.append(memory)
        while sum(map(len, self._spare.copy())) > MAX_SPARE_BYTES:
            try:
                self._spare.popleft()
            except IndexError:
                break
