"""How many cells a store has, and what frames lie in them."""

from __future__ import annotations

from typing import NamedTuple


class Geometry(NamedTuple):
    """Cells ``(row * n_lanes + lane) * stack + k``, each with a frame of bytes.

    Attributes
    ----------
    n_rows, n_lanes, stack : int
    frame_bytes, row_bytes, pixel_bytes : int
        Bytes of a frame, of one of its rows, and from a pixel to the next: up to
        `format.records.MAX_PIXEL_BYTES`, 0 where there are none.
    """

    n_rows: int
    n_lanes: int
    stack: int
    frame_bytes: int
    row_bytes: int
    pixel_bytes: int

    @property
    def n_cells(self) -> int:
        """How many."""
        return self.n_rows * self.n_lanes * self.stack
