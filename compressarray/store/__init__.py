"""Where frames lie: in groups, or alone, in an arena."""

from __future__ import annotations

import numpy as np

from compressarray.codecs import Codec
from compressarray.snapshots import Snapshot, array_of
from compressarray.store.base import Int64s, Store, UInt8s
from compressarray.store.frames import FrameStore
from compressarray.store.geometry import Geometry
from compressarray.store.gops import GopStore
from compressarray.store.groups import open_per_lane

__all__ = ["MAX_STACK", "Geometry", "Int64s", "Store", "UInt8s", "check_size", "make_store"]

# Of a frame, or of a stack in one group: records take up to a quarter more, and a chunk's size is
# kept in 32 bits.
MAX_FRAME_BYTES = 1 << 31
MAX_ADDRESS = 1 << 47  # of 64-bit processors today
# Frames of a stack: for each open group the frame of each of its cells is kept, up to
# 2 * stack * (stack + gop_length) numbers of two bytes.
MAX_STACK = 256


def check_size(n_cells: int, stack: int, frame_bytes: int, codec: Codec) -> None:
    """Refuse what `make_store` could not hold, before anything of its size is allocated.

    Raises
    ------
    ValueError
        If a frame, or a stack, is larger than the codec can hold.
    MemoryError
        If all cells together are more than the address space.
    """
    together = stack if codec.groups else 1
    if together * frame_bytes > MAX_FRAME_BYTES:
        what = f"a stack of {stack} frames" if together > 1 else "a frame"
        raise ValueError(
            f"{what} of {together * frame_bytes:,} bytes is larger than the {MAX_FRAME_BYTES:,} "
            f"that codec={codec.name!r} can hold; make part of a frame's axes lanes"
        )
    n_bytes = n_cells * frame_bytes
    if n_bytes > MAX_ADDRESS:
        raise MemoryError(
            f"{n_bytes} bytes are more than the {MAX_ADDRESS} that a process can address; make an "
            "axis shorter"
        )


def make_store(
    geometry: Geometry, fill: UInt8s, codec: Codec, snapshot: Snapshot | None = None
) -> Store:
    """Build the store that a codec needs.

    Parameters
    ----------
    geometry : Geometry
    fill : ndarray, (frame_bytes,) uint8
        What a cell holds that was never written.
    codec : Codec
        Resolved.
    snapshot : dict, optional
        What to restore, from elsewhere.

    Raises
    ------
    MemoryError
        If the system refuses the address space.
    CorruptFrameError
        If the snapshot is not one of such a store.
    """
    if snapshot is not None and codec.groups:
        # before as much is allocated
        shape = geometry.n_lanes, open_per_lane(geometry, codec)
        array_of(snapshot, "open_gop", np.int64, shape)
    kind = GopStore if codec.groups else FrameStore
    store = kind(geometry, fill, codec)
    if snapshot is not None:
        store.restore(snapshot, is_ours=False)
    return store
