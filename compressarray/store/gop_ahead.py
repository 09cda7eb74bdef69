"""What a read of packed groups unpacks before it walks along them."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.codecs.unpacking import RUN_BYTES, begin_run, unpack_runs
from compressarray.format.groups import PACKED_FLAG, frame_of_cell
from compressarray.format.records import record_room
from compressarray.kernels.compiling import inlined, kernel
from compressarray.kernels.memory import base_of, load32, prefetch
from compressarray.store.arena import GRANULE_SHIFT
from compressarray.store.gop_layout import FRAME_BYTES, STACK, closed_group, codebook_at

# So many groups at a time, if the rooms for their records are not too large.
_MAX_GROUPS, _MAX_ROOM = 16, 1 << 22
# Records of each run that there is room for at once, were they half as long as a frame.
_RECORDS = 8
_PREFETCHED_LINES = 8  # of each run
# Apart by more than a power of two, that they do not share sets of the caches.
_STAGGER = 832


@inlined
def _run_room(n_bytes: Any) -> Any:
    return record_room(n_bytes) + min(_RECORDS * (n_bytes >> 1), _MAX_ROOM) + _STAGGER


@inlined
def _groups_at_once(n_bytes: Any) -> Any:
    return max(1, min(_MAX_GROUPS, _MAX_ROOM // (2 * _run_room(n_bytes))))


@inlined
def ahead_bytes(n_bytes: Any) -> Any:
    """Bytes of scratch for `unpack_ahead`."""
    return 2 * _groups_at_once(n_bytes) * (RUN_BYTES + _run_room(n_bytes))


@kernel
def unpack_ahead(state: Any, arena: Any, chunk: Any, map_cells: Any, order: Any, start: Any,
                 scratch: Any, unpacking: Any) -> Any:  # fmt: skip
    """Unpack what is read of the next groups, as many packed ones as there are rooms for.

    Parameters
    ----------
    chunk, map_cells, order : ndarray, int64
        As `gop_reading.decode` has them.
    start : int
        Where in ``order`` the next group begins.
    scratch : address
        Of `ahead_bytes`. It begins with two runs for each packed group: from the keyframe on, and
        from the frame before it backwards.
    unpacking : address
        Of `unpacking_bytes`, free again afterwards.

    Returns
    -------
    int
        Where in ``order`` those groups end.
    """
    n_bytes, stack = state.meta[FRAME_BYTES], state.meta[STACK]
    memory, chunk_offset = base_of(arena.memory), base_of(arena.offset)
    n_runs, room = 2 * _groups_at_once(n_bytes), _run_room(n_bytes)
    run, room_at = scratch, scratch + n_runs * RUN_BYTES
    last = room_at
    n = len(order)
    while start < n and run < last:
        entry = chunk[order[start]]
        if entry <= 0:
            start += 1
            continue
        offset = np.int64(load32(chunk_offset + (entry << 2)))
        group = closed_group(state, memory + (offset << arena.meta[GRANULE_SHIFT]))
        if group.flags & PACKED_FLAG == 0:
            start += 1
            continue
        key = group.key
        low, high = key, key - 1
        while start < n and chunk[order[start]] == entry:
            number = frame_of_cell(group, map_cells[order[start]], stack)
            if number < group.n_frames:
                # all begin from the keyframe
                low, high = min(low, number), max(high, number, key)
            start += 1
        codebook = codebook_at(state, group.flags)
        first = group.records << 3
        begin_run(run, first, high - key + 1, n_bytes, codebook, room_at, room_at + room)
        first += group.earlier
        run += RUN_BYTES
        room_at += room
        begin_run(run, first, key - low, n_bytes, codebook, room_at, room_at + room)
        run += RUN_BYTES
        room_at += room
        for line in range(_PREFETCHED_LINES):
            prefetch(group.records + 64 * line)
            prefetch((first >> 3) + 64 * line)
    unpack_runs(scratch, (run - scratch) // RUN_BYTES, n_bytes, unpacking)
    return start
