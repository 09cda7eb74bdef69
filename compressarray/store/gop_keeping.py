"""Snapshots of a store of groups; what comes from a file is checked before it is decoded."""

from __future__ import annotations

import numpy as np

from compressarray.codecs.codebooks import Codebooks
from compressarray.errors import CorruptFrameError
from compressarray.format.groups import CODEBOOK_SHIFT, MAP_FLAG, codebook_of
from compressarray.kernels.compiling import plain
from compressarray.snapshots import MOST, Snapshot, array_of, int_of, part_of
from compressarray.store import gop_layout as layout
from compressarray.store import gop_reading as reading
from compressarray.store.arena import N_ENTRIES, gather_chunks
from compressarray.store.base import Int64s
from compressarray.store.gop_checking import check_chunks, check_groups, check_open
from compressarray.store.groups import GUARD_BYTES, MAX_BACKGROUNDS, MAX_CODEBOOKS, Groups

# Counts that a copy goes on from.
_COUNTS = [
    layout.VOTES, layout.CREDIT, layout.N_CLOSED, layout.N_EVICTED, layout.N_ENCODED,
    layout.N_CHANGES,
]  # fmt: skip


def snapshot_of(groups: Groups, more: Snapshot) -> Snapshot:
    """What a store of the same arguments needs to become this one; ``more`` is of the store's."""
    state, meta, n_bytes = groups.state, groups.state.meta, groups.frame_bytes
    chunks, numbers = groups.arena.snapshot(groups.table)
    is_open = state.open_gop != layout.CLOSED
    mapped = is_open & (state.open_flags & MAP_FLAG != 0)
    sizes = np.where(is_open, state.open_size, 0)
    records_of_all = [
        records[:size]
        for records, size in zip(state.open_bytes, sizes.ravel().tolist(), strict=False)
    ]
    return {
        "counts": meta[_COUNTS].copy(),
        **more,
        "codebooks": None if groups.codebooks is None else groups.codebooks.snapshot(),
        "open_codebook": plain(codebook_of)(state.open_flags),
        "backgrounds": state.backgrounds[1:, :n_bytes].copy(),
        "background": int(meta[layout.BACKGROUND]),
        "candidate": state.candidate[:, :n_bytes].copy(),
        "chunks": chunks,
        "last_chunk": int(numbers[meta[layout.LAST_CHUNK]]),
        "is_ready": len(state.head) > 0,
        "head_row": state.head_row.copy(),
        "open_gop": state.open_gop.copy(),
        "open_next": state.open_next.copy(),
        "open_frames": state.open_frames.copy(),
        "open_size": sizes,
        "open_background": state.open_background.copy(),
        "open_mapped": mapped.view(np.uint8),
        "open_maps": state.open_map[mapped] if mapped.any() else np.zeros((0, 0), np.uint16),
        "open_bytes": np.concatenate([np.zeros(0, np.uint8), *records_of_all]),
    }


def restore(groups: Groups, snapshot: Snapshot, *, is_ours: bool) -> None:
    """Let fresh groups become what a snapshot was taken of; see `Store.restore`.

    Raises
    ------
    CorruptFrameError
    """
    meta, n_bytes = groups.state.meta, groups.frame_bytes
    meta[_COUNTS] = array_of(snapshot, "counts", np.int64, (len(_COUNTS),), 0, MOST)
    if groups.codebooks is not None:
        groups.attach(
            groups.state,
            Codebooks.from_snapshot(
                part_of(snapshot, "codebooks"),
                MAX_CODEBOOKS,
                groups.codebooks.pixel_bytes,
                packs=groups.packs,
            ),
        )
    state = groups.state
    more = array_of(snapshot, "backgrounds", np.uint8, (None, n_bytes))
    n = 1 + len(more)
    meta[layout.BACKGROUND] = int_of(snapshot, "background", 0, n - 1)
    if n > MAX_BACKGROUNDS:
        raise CorruptFrameError(f"there cannot be {n} backgrounds")
    backgrounds = np.zeros((n, groups.padded), np.uint8)
    backgrounds[0] = state.backgrounds[0]
    backgrounds[1:, :n_bytes] = more
    groups.arena.restore(part_of(snapshot, "chunks"), groups.table)
    n_entries = int(groups.arena.state.meta[N_ENTRIES])
    meta[layout.LAST_CHUNK] = int_of(snapshot, "last_chunk", 0, n_entries - 1)
    # Whoever follows what changes sees all of them as taken just now.
    numbers = meta[layout.N_BACKGROUNDS] + np.arange(n)
    numbers[0] = 0
    meta[layout.N_BACKGROUNDS] += n
    groups.attach(
        state._replace(
            backgrounds=backgrounds,
            background_uses=np.zeros(n, np.int64),
            background_number=numbers,
        )
    )
    head_row = _restore_open(groups, snapshot)
    if groups.arena.is_mapped:  # whose groups are checked when they are read
        slots = np.flatnonzero(groups.state.open_gop != layout.CLOSED)
        check_open(groups.state, slots, groups.n_words)
    else:
        check_groups(groups.state, groups.arena.state, groups.n_words, records_too=not is_ours)
    _restore_heads(groups, head_row)


def _restore_open(groups: Groups, snapshot: Snapshot) -> Int64s:
    """Take the open groups as they come; return which row each lane's head is of."""
    shape = groups.state.open_gop.shape
    head_row = array_of(snapshot, "head_row", np.int64, shape[:1], layout.STALE, groups.n_rows - 1)
    if not part_of(snapshot, "is_ready"):
        return np.full(groups.n_lanes, layout.STALE)
    groups.have_open()
    state = groups.state
    if len(state.candidate[0]):
        candidate = array_of(snapshot, "candidate", np.uint8, (2, groups.frame_bytes))
        state.candidate[:, : groups.frame_bytes] = candidate
    state.open_gop[:] = array_of(snapshot, "open_gop", np.int64, shape)
    state.open_next[:] = array_of(snapshot, "open_next", np.int64, shape)
    state.open_frames[:] = array_of(snapshot, "open_frames", np.int64, shape)
    most = len(state.backgrounds) - 1
    state.open_background[:] = array_of(snapshot, "open_background", np.int64, shape, 0, most)
    sizes = array_of(snapshot, "open_size", np.int64, shape, 0, MOST // state.open_gop.size)
    records_of_all = array_of(snapshot, "open_bytes", np.uint8, (int(sizes.sum()),), copy=False)
    while groups.state.open_bytes.shape[1] < sizes.max() + 8:  # for words at the end
        groups.grow_open()
    state = groups.state
    start = 0
    for row, size in zip(state.open_bytes, sizes.ravel().tolist(), strict=True):
        row[:size] = records_of_all[start : start + size]
        start += size
    state.open_size[:] = sizes
    state.meta[layout.N_BEGUN] = sizes.size
    state.open_number[:] = 1 + np.arange(sizes.size).reshape(shape)
    mapped = array_of(snapshot, "open_mapped", np.uint8, shape, 0, 1).view(np.bool_)
    books = array_of(snapshot, "open_codebook", np.int64, shape, 0, MAX_CODEBOOKS - 1)
    state.open_flags[:] = books << CODEBOOK_SHIFT
    state.open_flags[mapped] |= MAP_FLAG
    if mapped.any():
        wanted = int(mapped.sum()), state.open_map.shape[2]
        if not wanted[1]:
            raise CorruptFrameError("a stored open group has a map and no stacks")
        state.open_map[mapped] = array_of(snapshot, "open_maps", np.uint16, wanted)
    return head_row


def _restore_heads(groups: Groups, head_row: Int64s) -> None:
    """Decode the newest frames of each lane, which the next ones are coded against."""
    lanes = np.flatnonzero(head_row != layout.STALE)
    if not len(lanes):
        return
    n_bytes, stack = groups.frame_bytes, groups.stack
    rows = head_row[lanes][:, None]
    if (rows < 0).any():
        raise CorruptFrameError(f"stored heads are of row {rows.min()}")
    k = np.arange(stack)
    cells = ((rows * groups.n_lanes + lanes[:, None]) * stack + k).ravel()
    frames = np.empty((len(lanes), stack, n_bytes), np.uint8)
    if groups.arena.is_mapped:
        verify(groups, cells)
    no_pins = np.zeros((0, n_bytes), np.uint8)
    reading.read_cells(groups.at.view, cells, no_pins, frames.reshape(-1))
    diagonals = (rows + k) % stack
    groups.state.head[lanes[:, None], diagonals, :n_bytes] = frames
    groups.state.head_row[:] = head_row


def verify(groups: Groups, cells: Int64s) -> None:
    """Check the groups that cells lie in, which are in a file, if nobody has yet.

    Raises
    ------
    CorruptFrameError
    """
    rows, k = np.divmod(cells, groups.stack)
    rows, lanes = np.divmod(rows, groups.n_lanes)
    indices = np.unique((rows + k) // groups.gop_length * groups.n_lanes + lanes)
    new = groups.arena.verify(np.unique(groups.table.data[indices]))
    if not len(new):
        return
    arena = groups.arena.state
    sizes = arena.size[new].astype(np.int64)
    data = np.zeros(int(sizes.sum()) + GUARD_BYTES, np.uint8)
    gather_chunks(arena, new, 1, data)
    check_chunks(groups.state, data, sizes, groups.n_words)
    groups.arena.mark_verified(new)
