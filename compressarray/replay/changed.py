"""Which cells have changed beside those that are new: kept in mind for replicas."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compressarray.store.changes import NOT_KEPT, listed, ring_of_changes

Int64s = npt.NDArray[np.int64]


class ChangedCells:
    """A ring of numbers of cells; nothing before `mark` is called the first time.

    Parameters
    ----------
    n_cells : int
    """

    def __init__(self, n_cells: int) -> None:
        self._n_cells = n_cells
        self._ring: npt.NDArray[np.uint32] = NOT_KEPT
        self._n = 0

    def mark(self) -> int:
        """Keep in mind from now on what changes, and say how much has."""
        if self._n_cells and not len(self._ring):
            self._ring = ring_of_changes(self._n_cells)
        return self._n

    def add(self, cells: Int64s) -> None:
        """Note cells that are about to change: what is told once too often does no harm."""
        if not len(self._ring):
            return
        kept = cells[-len(self._ring) :]
        first = self._n + len(cells) - len(kept)
        self._ring[(first + np.arange(len(kept))) % len(self._ring)] = kept
        self._n += len(cells)

    def since(self, mark: int) -> Int64s | None:
        """The cells that changed, sorted, once each; None if that is not known any more."""
        return listed(self._ring, mark, self._n)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._ring.nbytes
