"""Where frames lie: in groups, or alone, in an arena."""

from __future__ import annotations

from compressarray.codecs import Codec
from compressarray.store.base import Int64s, Store, UInt8s
from compressarray.store.frames import FrameStore
from compressarray.store.gops import GopStore

__all__ = ["Int64s", "Store", "UInt8s", "make_store"]


def make_store(
    n_rows: int,
    n_lanes: int,
    stack: int,
    frame_bytes: int,
    row_bytes: int,
    fill: UInt8s,
    codec: Codec,
) -> Store:
    """Build the store that a codec needs.

    Parameters
    ----------
    n_rows, n_lanes, stack : int
        Cells are ``(row * n_lanes + lane) * stack + k``.
    frame_bytes, row_bytes : int
        Bytes of a frame, and of one of its rows.
    fill : ndarray, (frame_bytes,) uint8
        What a cell holds that was never written.
    codec : Codec
        Resolved.
    """
    kind = GopStore if codec.groups else FrameStore
    return kind(n_rows, n_lanes, stack, frame_bytes, row_bytes, fill, codec)
