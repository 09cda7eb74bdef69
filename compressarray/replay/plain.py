"""Observations that are no images, in a plain ring with the face of a `DiffFrameArray`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.errors import StaleStreamError

AnyArray = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]

_FIRST_ROWS = 64
_GROWTH = 1.25


class PlainRing:
    """Vectors by index ``count * n_lanes + lane``, until `discard` drops them.

    It grows where more rows are held than there are, so that it takes as much as is held and not
    what the worst case would.
    """

    def __init__(self, n_lanes: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.n_lanes = n_lanes
        self.shape = shape
        self.dtype = dtype
        self.stream = 0
        self.lane_counts: Int64s = np.zeros(n_lanes, np.int64)
        self._oldest: Int64s = np.zeros(n_lanes, np.int64)
        self._rows: AnyArray = np.zeros((_FIRST_ROWS, n_lanes, *shape), dtype)

    def append(self, vectors: AnyArray, lanes: Int64s | None = None) -> None:
        """Add one vector to each lane, or to some, ``(len(lanes), *shape)``."""
        lanes = np.arange(self.n_lanes) if lanes is None else lanes
        if len(lanes) and int((self.lane_counts - self._oldest)[lanes].max()) >= len(self._rows):
            self._grow()
        self._rows[self.lane_counts[lanes] % len(self._rows), lanes] = vectors
        self.lane_counts[lanes] += 1

    def gather(self, indices: Int64s, out: AnyArray, *, stream: int | None = None) -> None:
        """Fill ``out`` with the vectors of held indices."""
        if stream not in (None, self.stream):
            raise StaleStreamError(f"stream {stream} has ended; this is {self.stream}")
        rows = self._rows  # once: another thread may make it grow
        counts, lanes = np.divmod(indices, self.n_lanes)
        out[...] = rows[counts % len(rows), lanes]

    def discard(self, before: Int64s) -> None:
        """Drop the vectors whose count is below ``before``, ``(n_lanes,)``."""
        np.maximum(self._oldest, before, out=self._oldest)

    def withdraw(self, counts: Int64s) -> None:
        """Take back what was appended after ``counts``, ``(n_lanes,)``, vectors of each lane."""
        np.minimum(self.lane_counts, counts, out=self.lane_counts)

    def clear(self) -> None:
        """Drop all, and begin a new stream."""
        self.lane_counts[:] = 0
        self._oldest[:] = 0
        self._rows = self._rows[:_FIRST_ROWS].copy()
        self.stream += 1

    def _grow(self) -> None:
        n_old = len(self._rows)
        rows = np.zeros((int(n_old * _GROWTH) + 1, *self._rows.shape[1:]), self.dtype)
        for lane in range(self.n_lanes):
            counts = np.arange(self._oldest[lane], self.lane_counts[lane])
            rows[counts % len(rows), lane] = self._rows[counts % n_old, lane]
        self._rows = rows

    @property
    def nbytes_stored(self) -> int:
        """Bytes held."""
        return self._rows.nbytes + self.lane_counts.nbytes + self._oldest.nbytes
