"""Where frames lie: in groups, or alone, in an arena."""

from __future__ import annotations

import numpy as np

from compressarray.codecs import Codec
from compressarray.snapshots import Snapshot, array_of
from compressarray.store.base import Int64s, Store, UInt8s
from compressarray.store.frames import FrameStore
from compressarray.store.gops import GopStore, open_per_lane

__all__ = ["Int64s", "Store", "UInt8s", "make_store"]


def make_store(
    n_rows: int,
    n_lanes: int,
    stack: int,
    frame_bytes: int,
    row_bytes: int,
    pixel_bytes: int,
    fill: UInt8s,
    codec: Codec,
    snapshot: Snapshot | None = None,
) -> Store:
    """Build the store that a codec needs.

    Parameters
    ----------
    n_rows, n_lanes, stack : int
        Cells are ``(row * n_lanes + lane) * stack + k``.
    frame_bytes, row_bytes, pixel_bytes : int
        Bytes of a frame, of one of its rows, and from a pixel to the next: up to
        `words.MAX_PIXEL_BYTES`, 0 where there are none.
    fill : ndarray, (frame_bytes,) uint8
        What a cell holds that was never written.
    codec : Codec
        Resolved.
    snapshot : dict, optional
        What to restore, from elsewhere.

    Raises
    ------
    CorruptFrameError
        If the snapshot is not one of such a store.
    """
    if snapshot is not None and codec.groups:
        # before as much is allocated
        array_of(
            snapshot, "open_gop", np.int64, (n_lanes, open_per_lane(stack, frame_bytes, codec))
        )
    kind = GopStore if codec.groups else FrameStore
    store = kind(n_rows, n_lanes, stack, frame_bytes, row_bytes, pixel_bytes, fill, codec)
    if snapshot is not None:
        store.restore(snapshot, is_ours=False)
    return store
