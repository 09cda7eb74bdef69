"""Kernels that read the GOP store: which group holds a cell, and decoding what is asked for."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.codecs.unpacking import RUN_BYTES
from compressarray.codecs.walking import unpacking_at, walk_from, walk_on, walking_bytes
from compressarray.format.groups import PACKED, frame_of_cell
from compressarray.kernels.compiling import inlined, kernel
from compressarray.kernels.memory import (
    base_of,
    copy_bytes,
    count_on,
    load32,
    load64,
    order_streams,
    prefetch,
    stream_bytes,
)
from compressarray.kernels.sorting import sort_by
from compressarray.store.arena import GRANULE_SHIFT
from compressarray.store.gop_ahead import ahead_bytes, unpack_ahead
from compressarray.store.gop_layout import (
    FRAME_BYTES,
    GOP,
    N_LANES,
    OPEN_PER_LANE,
    PACKS,
    STACK,
    closed_group,
    group_in_slot,
    walk_of,
)
from compressarray.store.gop_view import arena_at, state_at
from compressarray.store.workers import n_threads, run

# Of the next group's chunk, while one is decoded. 32 and 256 stacks from a ring of 131,072 frames
# of MsPacman took 76 and 529 microseconds without, 74 and 518 with 8 lines, 68 and 498 with 16, 70
# and 506 with 32 (means of three runs that differ by a tenth); a ring in the cache gains nothing.
PREFETCHED_LINES = 16
# What is decoded into two or more times as many bytes is decoded by several threads. Of 256 stacks
# of Pong, MsPacman and Enduro two threads take 1.06, 0.81 and 0.65 of the time of one (557, 805 and
# 1,569 microseconds) with delta, 0.83, 0.68 and 0.64 with delta-huffman: of less they would gain
# nothing.
BYTES_A_THREAD = 1 << 21
# Each takes the next part when it is done with one, for a thread that slept may begin late. When
# 16 bytes were streamed at once, two took 0.85 to 0.98, 0.73 to 0.80 and 0.64 with delta so, and
# 1.03, 0.81 to 0.89 and 0.72 with one part for each.
_PARTS_A_THREAD = 8
# What is decoded into so many bytes or more goes past the caches, which could not hold two such
# batches that take turns. 64, 96, 128, 192 and 256 stacks of MsPacman take 277, 400, 402, 600 and
# 808 microseconds so, and 265, 403, 499, 846 and 1,360 without; with a conversion to float32 behind
# it 795, 1,330, 1,687, 2,340 and 3,351, and 839, 1,607, 2,001, 2,846 and 3,980.
STREAMED_BYTES = 1 << 22
_HASH_MULTIPLIER = 0x9E3779B1  # odd, near 2**32 over the golden ratio


@inlined
def _int_at(base: Any, i: Any) -> Any:
    return np.int64(load64(base + (i << 3)))


@kernel
def locate(view: Any, cells: Any, chunk: Any, map_cells: Any, order: Any) -> None:
    """Say which group holds each cell, and in which order to decode them.

    Parameters
    ----------
    view : ndarray, int64
        From `view_of`.
    cells : ndarray, (n,) int64
        ``(row * lanes + lane) * S + k``; negative ones name pinned frames.
    chunk : ndarray, (n,) int64
        Overwritten: the arena's entry; 0 if never written or pinned; ``-1 - slot`` in an open
        group.
    map_cells : ndarray, (n,) int64
        Overwritten: which cell of its group's map it is.
    order : ndarray, (n,) int64
        Overwritten: the cells of each group together, in time order, so that one walk each way
        serves all.
    """
    state = state_at(view)
    meta = state.meta
    stack, lanes, gop_length, per_lane = meta[STACK], meta[N_LANES], meta[GOP], meta[OPEN_PER_LANE]
    gop_chunk, chunk_offset = base_of(state.gop_chunk), base_of(arena_at(view).offset)
    open_gop, open_next = base_of(state.open_gop), base_of(state.open_next)
    n = len(cells)
    n_buckets = 4
    while n_buckets < 2 * n:
        n_buckets *= 2
    # a hash set of groups, each numbered when it is first met
    seen = np.zeros(n_buckets, np.int64)
    numbers = np.empty(n_buckets, np.int64)
    group = np.empty(n, np.int64)
    n_groups = np.int64(0)
    scattered = False
    last = np.int64(0)
    last_map_cell = np.int64(0)
    number = np.int64(0)
    for i in range(n):
        order[i] = i
        cell = cells[i]
        entry = np.int64(0)
        map_cell = np.int64(0)
        if cell >= 0:
            row = cell // stack
            k = cell - row * stack
            lane = row
            row //= lanes
            lane -= row * lanes
            gop = (row + k) // gop_length
            slot = lane * per_lane
            if per_lane > 1:
                slot += gop % per_lane
            map_cell = (row + k - gop * gop_length) * stack + k
            if _int_at(open_gop, slot) == gop and row < _int_at(open_next, slot):
                entry = -1 - slot
            else:
                entry = np.int64(load32(gop_chunk + ((gop * lanes + lane) << 2)))
                prefetch(chunk_offset + (entry << 2))
        chunk[i] = entry
        map_cells[i] = map_cell
        if i > 0 and entry == last:
            scattered |= map_cell < last_map_cell
        else:
            # zero marks a free bucket
            key = entry if entry < 0 else entry + 1
            bucket = (key * _HASH_MULTIPLIER) & (n_buckets - 1)
            while seen[bucket] != 0 and seen[bucket] != key:
                bucket = (bucket + 1) & (n_buckets - 1)
            if seen[bucket] == 0:
                seen[bucket] = key
                numbers[bucket] = n_groups
                n_groups += 1
            else:
                scattered = True
            number = numbers[bucket]
        group[i] = number
        last = entry
        last_map_cell = map_cell
    if scattered:
        by_time = np.empty(n, np.int64)
        sort_by(map_cells, gop_length * stack, order, by_time)
        sort_by(group, n_groups, by_time, order)


@inlined
def decoding_bytes(n_bytes: Any, packed: Any) -> Any:
    """Bytes of scratch to decode: to walk, a frame, and to unpack ahead."""
    return walking_bytes(n_bytes, packed) + n_bytes + 32 + (ahead_bytes(n_bytes) if packed else 0)


@kernel
def decode(view: Any, cells: Any, chunk: Any, map_cells: Any, order: Any, pins: Any, out: Any,
           scratch: Any, counts: Any) -> None:  # fmt: skip
    """Decode the frames of cells that `locate` has found.

    Parameters
    ----------
    order : ndarray, (m,) int64
        Which cells to decode, in which order. Neighbours in one group, in time order, share
        one walk along it in each direction.
    pins : ndarray, (p, >= frame bytes) uint8
        Pinned frames; cell ``-1 - i`` names the i-th.
    out : ndarray, (n * frame bytes,) uint8
        Overwritten: frame ``i`` follows frame ``i - 1``.
    scratch : ndarray, uint8
        `decoding_bytes`.
    counts : ndarray, (2,) int64
        Frames and groups that were decoded are added.
    """
    state, arena = state_at(view), arena_at(view)
    meta = state.meta
    stack, n_bytes = meta[STACK], meta[FRAME_BYTES]
    memory, chunk_offset = base_of(arena.memory), base_of(arena.offset)
    granule_shift = arena.meta[GRANULE_SHIFT]
    fill, base = base_of(state.backgrounds), base_of(out)
    n = len(order)
    # Frames are decoded where they go, each from the one before it, or, where that is past the
    # caches, aside and copied out.
    packed = meta[PACKS] != 0
    aside = base_of(scratch) + walking_bytes(n_bytes, packed)
    runs = aside + n_bytes + 32
    is_large = len(out) >= STREAMED_BYTES
    start = 0
    unpacked = 0  # until there
    run = runs
    while start < n:
        if packed and start == unpacked:
            spare = unpacking_at(base_of(scratch), n_bytes)
            unpacked = unpack_ahead(state, arena, chunk, map_cells, order, start, runs, spare)
            run = runs
        i = order[start]
        entry = chunk[i]
        if entry == 0:
            source = fill
            if cells[i] < 0:
                source = base_of(pins) + (-1 - cells[i]) * pins.shape[1]
            copy_bytes(base + i * n_bytes, source, n_bytes)
            start += 1
            continue
        end = start + 1
        while end < n and chunk[order[end]] == entry:
            end += 1
        if entry < 0:
            group = group_in_slot(state, -1 - entry)
        else:
            offset = np.int64(load32(chunk_offset + (entry << 2)))
            group = closed_group(state, memory + (offset << granule_shift))
        walk = walk_of(state, group, base_of(scratch))
        key, records, earlier = group.key, group.records, group.records + group.earlier
        if walk.kind == PACKED:
            records, earlier = run, run + RUN_BYTES
            run += 2 * RUN_BYTES
        counts[1] += 1
        if end < n and chunk[order[end]] > 0:
            offset = np.int64(load32(chunk_offset + (chunk[order[end]] << 2)))
            ahead = memory + (offset << granule_shift)
            for line in range(PREFETCHED_LINES):
                prefetch(ahead + 64 * line)
        # forwards from the keyframe; `frame` holds number `at`
        at = key - 1
        frame = walk.background
        record = records
        key_frame = np.int64(0)
        n_earlier = 0
        for j in range(start, end):
            i = order[j]
            target = base + i * n_bytes
            number = frame_of_cell(group, map_cells[i], stack)
            if number >= group.n_frames:
                copy_bytes(target, fill, n_bytes)
                continue
            if number < key:
                n_earlier += 1
                continue
            if number < at:
                at = key - 1
                frame = walk.background
                record = walk_from(walk, records)
            here = aside if is_large else target
            if here != frame:
                copy_bytes(here, frame, n_bytes)
            if number > at:
                record = walk_on(walk, record, number - at, here)
                counts[0] += number - at
                at = number
            frame = here
            if is_large:
                stream_bytes(target, here, n_bytes)
            if number == key:
                key_frame = target
        # and backwards
        at = np.int64(-1)
        for j in range(end - 1, start - 1, -1):
            if n_earlier == 0:
                break
            i = order[j]
            target = base + i * n_bytes
            number = frame_of_cell(group, map_cells[i], stack)
            if number >= key:
                continue
            n_earlier -= 1
            here = aside if is_large else target
            if number > at:
                if key_frame:
                    copy_bytes(here, key_frame, n_bytes)
                else:
                    copy_bytes(here, walk.background, n_bytes)
                    walk_on(walk, walk_from(walk, records), 1, here)
                    counts[0] += 1
                at = key
                record = walk_from(walk, earlier)
            elif here != frame:
                copy_bytes(here, frame, n_bytes)
            if number < at:
                record = walk_on(walk, record, at - number, here)
                counts[0] += at - number
                at = number
            frame = here
            if is_large:
                stream_bytes(target, here, n_bytes)
        start = end
    if is_large:
        order_streams()


@kernel
def _decode_parts(view: Any, cells: Any, chunk: Any, map_cells: Any, order: Any, pins: Any,
                  out: Any, cuts: Any, n_taken: Any) -> Any:  # fmt: skip
    """Decode parts that no other thread has taken, until none is left.

    Parameters
    ----------
    cuts : ndarray, (parts + 1,) int64
        From `_cut`.
    n_taken : ndarray, (1,) int64
        How many parts are taken, or more; all threads count there.

    Returns
    -------
    frames, groups : int
        Decoded by this thread.
    """
    meta = state_at(view).meta
    counts = np.zeros(2, np.int64)
    scratch = np.empty(decoding_bytes(meta[FRAME_BYTES], meta[PACKS] != 0), np.uint8)
    part = count_on(base_of(n_taken))
    while part < len(cuts) - 1:
        some = order[cuts[part] : cuts[part + 1]]
        decode(view, cells, chunk, map_cells, some, pins, out, scratch, counts)
        part = count_on(base_of(n_taken))
    return counts[0], counts[1]


@kernel
def read_cells(view: Any, cells: Any, pins: Any, out: Any) -> Any:
    """Locate and decode; return frames and groups decoded."""
    n = len(cells)
    chunk = np.empty(n, np.int64)
    map_cells = np.empty(n, np.int64)
    order = np.empty(n, np.int64)
    locate(view, cells, chunk, map_cells, order)
    whole = np.array([0, n])
    return _decode_parts(
        view, cells, chunk, map_cells, order, pins, out, whole, np.zeros(1, np.int64)
    )


@kernel
def _cut(chunk: Any, order: Any, cuts: Any) -> None:
    """Cut ``order`` into parts of about as many cells, and no group in two.

    Parameters
    ----------
    chunk, order : ndarray, (n,) int64
        From `locate`.
    cuts : ndarray, (parts + 1,) int64
        Overwritten: where parts begin and the last one ends. Some may be empty.
    """
    n, n_parts = len(order), len(cuts) - 1
    for part in range(n_parts + 1):
        cut = n * part // n_parts
        while 0 < cut < n and chunk[order[cut]] == chunk[order[cut - 1]]:
            cut += 1
        cuts[part] = cut


def read_large(
    view: npt.NDArray[np.int64],
    cells: npt.NDArray[np.int64],
    pins: npt.NDArray[np.uint8],
    out: npt.NDArray[np.uint8],
) -> tuple[int, int]:
    """Do what `read_cells` does, in several threads where that is worth it.

    The caller's lock on the store holds for all of them: none runs on after this.
    """
    n = min(len(out) // BYTES_A_THREAD, n_threads())
    if n < 2:
        return read_cells(view, cells, pins, out)  # type: ignore[no-any-return]
    chunk, map_cells, order = np.empty((3, len(cells)), np.int64)
    locate(view, cells, chunk, map_cells, order)
    cuts, n_taken = np.empty(n * _PARTS_A_THREAD + 1, np.int64), np.zeros(1, np.int64)
    _cut(chunk, order, cuts)
    located = cells, chunk, map_cells, order
    counts = run([partial(_decode_parts, view, *located, pins, out, cuts, n_taken)] * n)
    return sum(n_frames for n_frames, _ in counts), sum(n_gops for _, n_gops in counts)
