"""What readers elsewhere have to know of a store before they take over what it holds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Description(NamedTuple):
    """A store as numbers, and everything that it holds by number or by offset.

    Attributes
    ----------
    kind : int
        `format.groups.DELTA` or `SPARSE`, or `RAW`.
    n_cells : int
        Cells are ``(row * n_lanes + lane) * stack + k``.
    n_places : int
        Groups, or cells where each frame is a chunk: what messages name chunks by.
    gop_length, open_per_lane, map_cells : int
        As in `gop_layout`; 1, 0, 0 without groups.
    packs : bool
        Whether records may be packed.
    most_chunk_bytes : int
        Of one chunk.
    most_books : int
        Numbers of codebooks.
    fill : ndarray, (frame_bytes,) uint8
        Background 0.
    """

    kind: int
    n_cells: int
    n_places: int
    n_lanes: int
    stack: int
    gop_length: int
    open_per_lane: int
    map_cells: int
    frame_bytes: int
    row_bytes: int
    pixel_bytes: int
    packs: bool
    most_chunk_bytes: int
    most_books: int
    fill: npt.NDArray[np.uint8]

    @property
    def n_open(self) -> int:
        """Places for open groups."""
        return self.n_lanes * self.open_per_lane


RAW = 3  # beside the kinds of `format.groups`
