"""Kernels of the GOP store: which stream holds a cell, reading, appending, rebuilding.

A lane's cells (row ``t``, stack place ``k``) lie on diagonals ``t + k``. A frame stack repeats
one frame along a diagonal, so a group of pictures (GOP) holds ``G`` diagonals of one lane, each
frame once; without a stack axis a diagonal is a row. Closed GOPs are chunks in the arena:

    flags u8 | background u8 | n_frames u16 | map u16 * (G * S), where flagged | records

Without a map, frame ``i`` belongs to every cell of diagonal ``i``. With one (episodes that begin
inside the group, or cells that are no stacks), ``map[(t + k - first diagonal) * S + k]`` is the
number of the cell's frame, `NO_FRAME` one that was never written. Rows that are written in order
go to an open stream, one frame at a time; the chunk that the group had before serves the rows
that are still to come.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.codecs.memory import (
    copy_bytes,
    load8,
    load16,
    load64,
    same_bytes,
    store8,
    store16,
)
from compressarray.codecs.sparse import apply_sparse, encode_sparse, skip_sparse
from compressarray.codecs.words import apply_record, encode_record
from compressarray.jit import inlined, kernel
from compressarray.store.arena import PAGE_SHIFT, allocate, chunk_start, release, share

HEADER_BYTES = 4
MAP_FLAG = 1
TABLE_SHIFT, TABLE_MASK = 1, 7
PACKED_FLAG = 128  # everything after the header went through an entropy coder
NO_FRAME = 65535
RECORD_ROOM = 32  # a record is at most this much longer than its frame
CLOSED = -1  # in GopState.open_gop
STALE = -2  # in GopState.head_row: the head frames are of no row

DELTA, SPARSE = 0, 1
_HASH_MULTIPLIER = 0x9E3779B1  # odd, near 2**32 over the golden ratio

# Fields of GopState.meta.
(
    N_ROWS,
    N_LANES,
    STACK,
    GOP,
    FRAME_BYTES,
    ROW_BYTES,
    RECORD_KIND,
    OPEN_PER_LANE,
    PACKS,
    BACKGROUND,
    TABLE,
    VOTES,
    CREDIT,
    LAST_CHUNK,
    N_OPEN,
    N_CLOSED,
    N_EVICTED,
    N_ENCODED,
    N_META,
) = range(19)

# What append_row answers when the store has to act first.
DONE, WRITTEN_AND_FULL, REBUILD, REOPEN, SEAL, GROW, NO_MEMORY = range(7)


class GopState(NamedTuple):
    """What kernels see of a `GopStore`."""

    meta: npt.NDArray[np.int64]
    gop_chunk: npt.NDArray[np.uint32]  # (gops * lanes,) entries of the arena, 0: never written
    gop_touched: npt.NDArray[np.uint8]
    open_gop: npt.NDArray[np.int64]  # (lanes, open per lane)
    open_next: npt.NDArray[np.int64]  # the first row that is not in the open stream
    open_frames: npt.NDArray[np.int64]
    open_size: npt.NDArray[np.int64]
    open_flags: npt.NDArray[np.int64]
    open_background: npt.NDArray[np.int64]
    open_map: npt.NDArray[np.uint16]  # (lanes, open per lane, G * S)
    open_bytes: npt.NDArray[np.uint8]  # (lanes * open per lane, room)
    head: npt.NDArray[np.uint8]  # (lanes, S, padded frame): the newest frames, by diagonal
    head_row: npt.NDArray[np.int64]  # (lanes,)
    backgrounds: npt.NDArray[np.uint8]  # (n, padded frame); 0 holds the fill value
    background_uses: npt.NDArray[np.int64]
    candidate: npt.NDArray[np.uint8]  # (2, padded frame): majority votes, and their counts
    decode_tables: npt.NDArray[np.uint64]  # (n, 256, 4)
    encode_table: npt.NDArray[np.uint32]  # (1024,), of the newest table


# -- addresses -------------------------------------------------------------------------------


@inlined
def _background(state: Any, i: Any) -> Any:
    return state.backgrounds.ctypes.data + i * state.backgrounds.shape[1]


@inlined
def _head(state: Any, lane: Any, diagonal: Any) -> Any:
    stack, padded = state.head.shape[1], state.head.shape[2]
    return state.head.ctypes.data + (lane * stack + diagonal % stack) * padded


@inlined
def _open_stream(state: Any, lane: Any, place: Any) -> Any:
    room = state.open_bytes.shape[1]
    return state.open_bytes.ctypes.data + (lane * state.meta[OPEN_PER_LANE] + place) * room


@inlined
def _first_row(state: Any, gop: Any) -> Any:
    return max(0, gop * state.meta[GOP] - state.meta[STACK] + 1)


@inlined
def _last_row(state: Any, gop: Any) -> Any:
    return min(state.meta[N_ROWS] - 1, (gop + 1) * state.meta[GOP] - 1)


# -- records ---------------------------------------------------------------------------------


@kernel
def _encode(state: Any, frame: Any, previous: Any, background: Any, first: Any, out: Any,
            coding: Any) -> Any:  # fmt: skip
    """Write one record, of either kind; ``previous`` becomes ``frame`` in delta records.

    ``coding`` is the address of scratch for tokens and values: 17 bytes a word, and a guard.
    """
    meta = state.meta
    n_bytes, row_bytes = meta[FRAME_BYTES], meta[ROW_BYTES]
    meta[N_ENCODED] += 1
    if meta[RECORD_KIND] == SPARSE:
        return encode_sparse(frame, first, n_bytes, row_bytes, out)
    n_words = (n_bytes + 7) >> 3
    return encode_record(
        frame,
        previous,
        background,
        n_bytes,
        row_bytes,
        state.encode_table.ctypes.data,
        coding,
        coding + n_words,
        out,
    )


@inlined
def _advance(state: Any, record: Any, frame: Any, background: Any, table: Any, first: Any,
             n: Any, offsets: Any) -> Any:  # fmt: skip
    """Walk ``n`` records on; leave the last one's frame at ``frame``."""
    meta = state.meta
    n_bytes, row_bytes = meta[FRAME_BYTES], meta[ROW_BYTES]
    if meta[RECORD_KIND] == SPARSE:
        for _ in range(n - 1):
            record = skip_sparse(record, n_bytes, row_bytes)
        return apply_sparse(record, first, frame, n_bytes, row_bytes)
    tables = state.decode_tables.ctypes.data + table * (256 * 32)
    for _ in range(n):
        record = apply_record(record, frame, background, n_bytes, row_bytes, tables, offsets)
    return record


# -- reading ---------------------------------------------------------------------------------


@kernel
def locate(state: Any, cells: Any, chunk: Any, where: Any, seen: Any) -> Any:
    """Say which stream holds each cell.

    Parameters
    ----------
    cells : ndarray, (n,) int64
        ``(row * lanes + lane) * S + k``; negative ones name pinned frames and are left alone.
    chunk : ndarray, (n,) int64
        Overwritten: the arena's entry; 0 if never written; ``-1 - (lane * open per lane +
        place)`` in an open stream.
    where : ndarray, (n,) int64
        Overwritten: the cell's place in its group's map.
    seen : ndarray, (power of two > 2 n,) int64
        Zeros, for a hash set.

    Returns
    -------
    bool
        Whether sorting would save decoding: a stream is come back to, or walked backwards.
    """
    meta = state.meta
    stack, lanes, gop_length = meta[STACK], meta[N_LANES], meta[GOP]
    per_lane = meta[OPEN_PER_LANE]
    scattered = False
    last = np.int64(0)
    last_where = np.int64(0)
    for i in range(len(cells)):
        cell = cells[i]
        if cell < 0:
            continue
        k = cell % stack
        row = cell // stack
        lane = row % lanes
        row //= lanes
        gop = (row + k) // gop_length
        place = gop % per_lane
        where[i] = (row + k - gop * gop_length) * stack + k
        if state.open_gop[lane, place] == gop and row < state.open_next[lane, place]:
            chunk[i] = -1 - (lane * per_lane + place)
        else:
            chunk[i] = state.gop_chunk[gop * lanes + lane]
        if chunk[i] == last:
            scattered |= where[i] < last_where
        elif chunk[i] != 0:
            key = chunk[i]
            slot = (key * _HASH_MULTIPLIER) & (len(seen) - 1)
            while seen[slot] != 0 and seen[slot] != key:
                slot = (slot + 1) & (len(seen) - 1)
            scattered |= seen[slot] == key
            seen[slot] = key
        last = chunk[i]
        last_where = where[i]
    return scattered


@kernel
def decode(state: Any, arena: Any, cells: Any, chunk: Any, where: Any, unpacked: Any, order: Any,
           pins: Any, out: Any, step: Any, counts: Any) -> None:  # fmt: skip
    """Decode the frames of cells that `locate` has found.

    Parameters
    ----------
    unpacked : ndarray, (n,) int64
        Address of the cell's stream where it had to be unpacked first, else 0.
    order : ndarray, (m,) int64
        Which cells to decode, in which order. Neighbours in one stream, in time order, share
        one walk along it.
    pins : ndarray, (p, >= frame bytes) uint8
        Pinned frames; cell ``-1 - i`` names the i-th.
    out : address
        Frame ``i`` goes to ``out + i * step``.
    counts : ndarray, (2,) int64
        Frames and groups that were decoded are added.
    """
    meta = state.meta
    n_bytes, stack = meta[FRAME_BYTES], meta[STACK]
    per_lane = meta[OPEN_PER_LANE]
    offsets = np.zeros(8, np.int64)
    stream = np.int64(0)  # of the frame at `frame`, whose number is `at`
    at = np.int64(-1)
    frame = np.int64(0)
    record = np.int64(0)
    first = np.int64(0)
    background = np.int64(0)
    table = np.int64(0)
    for j in range(len(order)):
        i = order[j]
        target = out + i * step
        if cells[i] < 0:
            copy_bytes(target, pins.ctypes.data + (-1 - cells[i]) * pins.shape[1], n_bytes)
            continue
        entry = chunk[i]
        if entry == 0:
            copy_bytes(target, _background(state, 0), n_bytes)
            continue
        number = np.int64(0)
        if entry < 0:
            place = -1 - entry
            lane = place // per_lane
            place -= lane * per_lane
            here = _open_stream(state, lane, place)
            flags = state.open_flags[lane, place]
            records = here
            if flags & MAP_FLAG:
                number = np.int64(state.open_map[lane, place, where[i]])
            else:
                number = where[i] // stack
            n_frames = state.open_frames[lane, place]
            chosen = state.open_background[lane, place]
        else:
            here = unpacked[i]
            if here == 0:
                here = arena.memory.ctypes.data + chunk_start(arena, entry)
            flags = np.int64(load8(here))
            chosen = np.int64(load8(here + 1))
            n_frames = np.int64(load16(here + 2))
            records = here + HEADER_BYTES
            if flags & MAP_FLAG:
                number = np.int64(load16(records + 2 * where[i]))
                records += 2 * meta[GOP] * stack
            else:
                number = where[i] // stack
        if number >= n_frames:
            copy_bytes(target, _background(state, 0), n_bytes)
            continue
        if here == stream and number >= at:
            copy_bytes(target, frame, n_bytes)
        else:
            stream = here
            at = np.int64(-1)
            record = records
            first = records
            background = _background(state, chosen)
            table = (flags >> TABLE_SHIFT) & TABLE_MASK
            copy_bytes(target, background, n_bytes)
            counts[1] += 1
        if number > at:
            record = _advance(
                state, record, target, background, table, first, number - at, offsets.ctypes.data
            )
            counts[0] += number - at
            at = number
        frame = target


@kernel
def read_cells(state: Any, arena: Any, cells: Any, pins: Any, out: Any, step: Any) -> Any:
    """Locate and decode, where no stream has to be unpacked; return frames and groups decoded."""
    n = len(cells)
    chunk = np.zeros(n, np.int64)
    where = np.zeros(n, np.int64)
    slots = 4
    while slots < 4 * n:
        slots *= 2
    order = np.arange(n)
    if locate(state, cells, chunk, where, np.zeros(slots, np.int64)):
        order = np.argsort(chunk * (state.meta[GOP] * state.meta[STACK]) + where)
    counts = np.zeros(2, np.int64)
    decode(state, arena, cells, chunk, where, np.zeros(n, np.int64), order, pins, out, step, counts)
    return counts[0], counts[1]


# -- backgrounds -----------------------------------------------------------------------------


@kernel
def _count_changed_words(first: Any, second: Any, n_bytes: Any) -> Any:
    n = 0
    for i in range(n_bytes >> 3):
        n += load64(first + (i << 3)) != load64(second + (i << 3))
    return n


@kernel
def _vote(state: Any, frame: Any) -> None:
    """Let a keyframe vote on the next background, and take it where it pays.

    The candidate is each byte's majority so far (Boyer and Moore's vote). It is bought like
    skis: once what it would have saved on keyframes since the last purchase passes half its
    price, one raw frame.
    """
    meta = state.meta
    n_bytes = meta[FRAME_BYTES]
    votes = state.candidate
    if votes.shape[1] == 0:
        return
    if meta[VOTES]:
        spent = _count_changed_words(frame, _background(state, meta[BACKGROUND]), n_bytes)
        would = _count_changed_words(frame, votes.ctypes.data, n_bytes)
        # A changed word of a keyframe costs about six bytes: a token and most of its values.
        meta[CREDIT] = max(0, meta[CREDIT] + 6 * (spent - would))
    meta[VOTES] += 1
    for i in range(n_bytes):
        byte = load8(frame + i)
        count = votes[1, i]
        if votes[0, i] == byte:
            votes[1, i] = count + (count < 255)
        elif count == 0:
            votes[0, i] = byte
            votes[1, i] = 1
        else:
            votes[1, i] = count - 1
    if meta[CREDIT] > n_bytes // 2:
        for i in range(1, state.backgrounds.shape[0]):
            if state.background_uses[i] == 0 and i != meta[BACKGROUND]:
                copy_bytes(_background(state, i), votes.ctypes.data, n_bytes)
                meta[BACKGROUND] = i
                meta[CREDIT] = 0
                break


# -- appending -------------------------------------------------------------------------------


@kernel
def _begin_gop(state: Any, lane: Any, place: Any, gop: Any, diagonal: Any, frame: Any) -> None:
    meta = state.meta
    if meta[RECORD_KIND] == DELTA:
        _vote(state, frame)
    state.open_gop[lane, place] = gop
    state.open_frames[lane, place] = 0
    state.open_size[lane, place] = 0
    state.open_flags[lane, place] = meta[TABLE] << TABLE_SHIFT
    state.open_background[lane, place] = meta[BACKGROUND]
    state.background_uses[meta[BACKGROUND]] += 1
    meta[N_OPEN] += 1
    copy_bytes(
        _head(state, lane, diagonal), _background(state, meta[BACKGROUND]), meta[FRAME_BYTES]
    )


@kernel
def _restore_head(state: Any, lane: Any, place: Any, head: Any) -> None:
    """Decode the last frame of an open stream, which the next one is coded against."""
    meta = state.meta
    background = _background(state, state.open_background[lane, place])
    copy_bytes(head, background, meta[FRAME_BYTES])
    n_frames = state.open_frames[lane, place]
    if n_frames > 0 and meta[RECORD_KIND] == DELTA:
        stream = _open_stream(state, lane, place)
        table = (state.open_flags[lane, place] >> TABLE_SHIFT) & TABLE_MASK
        offsets = np.zeros(8, np.int64)
        _advance(state, stream, head, background, table, stream, n_frames, offsets.ctypes.data)


@kernel
def _append_frame(state: Any, lane: Any, place: Any, diagonal: Any, frame: Any,
                  coding: Any) -> Any:  # fmt: skip
    """Add one frame to an open stream, coded against the head; return whether it fitted."""
    meta = state.meta
    n_bytes = meta[FRAME_BYTES]
    head = _head(state, lane, diagonal)
    stream = _open_stream(state, lane, place)
    size = state.open_size[lane, place]
    n_frames = state.open_frames[lane, place]
    background = _background(state, state.open_background[lane, place])
    room = state.open_bytes.shape[1] - size
    spare = coding + 17 * ((n_bytes + 7) >> 3) + 64
    roomy = room >= n_bytes + RECORD_ROOM
    out = stream + size if roomy else spare
    first = stream if n_frames > 0 else 0
    length = _encode(state, frame, head, background, first, out, coding) - out
    if not roomy:
        if length + 8 > room:
            # the head has moved on: take it back, the frame comes again
            _restore_head(state, lane, place, head)
            return False
        copy_bytes(stream + size, spare, length)
    if meta[RECORD_KIND] == SPARSE:  # coding a delta record has made the head the frame already
        copy_bytes(head, frame, n_bytes)
    state.open_size[lane, place] = size + length
    state.open_frames[lane, place] = n_frames + 1
    return True


@kernel
def _append_row(state: Any, lane: Any, row: Any, frames: Any, coding: Any) -> Any:
    """Add one row of a lane to its open streams if it follows what they hold."""
    meta = state.meta
    stack, gop_length, n_bytes = meta[STACK], meta[GOP], meta[FRAME_BYTES]
    per_lane = meta[OPEN_PER_LANE]
    newest = row + stack - 1
    last_gop = newest // gop_length
    place = last_gop % per_lane
    begins = newest % gop_length == 0
    follows = state.head_row[lane] == row - 1
    for k in range(stack - 1):
        if not follows or not same_bytes(
            frames + k * n_bytes, _head(state, lane, row + k), n_bytes
        ):
            return REBUILD
    for gop in range(row // gop_length, last_gop + 1):
        here = gop % per_lane
        if state.open_gop[lane, here] == gop:
            if state.open_next[lane, here] != row:
                return REBUILD
        elif not (begins and gop == last_gop):
            return REOPEN if follows else REBUILD
        elif state.open_gop[lane, here] != CLOSED:
            return SEAL
    pos = newest - last_gop * gop_length
    mapped = not begins and state.open_flags[lane, place] & MAP_FLAG != 0
    if mapped:
        before = state.open_map[lane, place, pos * stack - 1]
        if np.int64(before) != state.open_frames[lane, place] - 1:
            return REBUILD
    if begins:
        _begin_gop(state, lane, place, last_gop, newest, frames + (stack - 1) * n_bytes)
    elif stack > 1:
        copy_bytes(_head(state, lane, newest), _head(state, lane, newest - 1), n_bytes)
    elif not follows:
        # another group of the lane was written meanwhile
        _restore_head(state, lane, place, _head(state, lane, newest))
    if not _append_frame(state, lane, place, newest, frames + (stack - 1) * n_bytes, coding):
        if begins:
            state.open_gop[lane, place] = CLOSED
            state.background_uses[state.open_background[lane, place]] -= 1
            meta[N_OPEN] -= 1
        return GROW
    if mapped:
        number = state.open_frames[lane, place] - 1
        state.open_map[lane, place, pos * stack + stack - 1] = number
    state.head_row[lane] = row
    full = False
    for gop in range(row // gop_length, last_gop + 1):
        here = gop % per_lane
        state.open_next[lane, here] = row + 1
        if state.open_flags[lane, here] & MAP_FLAG:
            for k in range(stack - 1):
                pos = row + k - gop * gop_length
                if 0 <= pos < gop_length:
                    before = state.open_map[lane, here, pos * stack + k + 1]
                    state.open_map[lane, here, pos * stack + k] = before
        full |= row == _last_row(state, gop)
    return WRITTEN_AND_FULL if full else DONE


@kernel
def finish_stream(state: Any, lane: Any, place: Any, out: Any) -> Any:
    """Write an open stream as a closed one at ``out``; return its bytes."""
    flags = state.open_flags[lane, place]
    store8(out, np.uint8(flags))
    store8(out + 1, np.uint8(state.open_background[lane, place]))
    store16(out + 2, np.uint16(state.open_frames[lane, place]))
    target = out + HEADER_BYTES
    if flags & MAP_FLAG:
        for i in range(state.meta[GOP] * state.meta[STACK]):
            store16(target, state.open_map[lane, place, i])
            target += 2
    size = state.open_size[lane, place]
    copy_bytes(target, _open_stream(state, lane, place), size)
    return target + size - out


@kernel
def drop_open(state: Any, lane: Any, place: Any) -> None:
    """Forget an open stream."""
    if state.open_gop[lane, place] != CLOSED:
        state.open_gop[lane, place] = CLOSED
        state.background_uses[state.open_background[lane, place]] -= 1
        state.meta[N_OPEN] -= 1


@kernel
def drop_chunk(state: Any, arena: Any, entry: Any) -> None:
    """Take one reference from a closed group's chunk."""
    used = load8(arena.memory.ctypes.data + chunk_start(arena, entry) + 1)
    if release(arena, entry):
        state.background_uses[used] -= 1


@kernel
def put_chunk(state: Any, arena: Any, lane: Any, gop: Any, stream: Any, size: Any) -> Any:
    """Make the closed stream at an address the content of a group; False without memory.

    A stream that equals the last one stored, or that of the group before, is shared: whatever
    does not change costs nothing.
    """
    meta = state.meta
    lanes = meta[N_LANES]
    index = gop * lanes + lane
    last = meta[LAST_CHUNK]
    before = np.int64(state.gop_chunk[index - lanes]) if gop > 0 else 0
    if share(arena, last, stream, size):
        entry = last
    elif share(arena, before, stream, size):
        entry = before
    else:
        entry = allocate(arena, size)
        if entry < 0:
            return False
        copy_bytes(arena.memory.ctypes.data + chunk_start(arena, entry), stream, size)
        state.background_uses[load8(stream + 1)] += 1
    old = np.int64(state.gop_chunk[index])
    state.gop_chunk[index] = entry
    state.gop_touched[index >> PAGE_SHIFT] = 1
    if old:
        drop_chunk(state, arena, old)
        meta[N_EVICTED] += 1
    meta[LAST_CHUNK] = entry
    meta[N_CLOSED] += 1
    return True


@kernel
def append_rows(state: Any, arena: Any, lanes: Any, rows: Any, items: Any, frames: Any,
                start: Any, coding: Any, stream: Any) -> Any:  # fmt: skip
    """Append rows for as long as nothing else has to happen.

    Parameters
    ----------
    lanes, rows, items : ndarray, (n,) int64
        Row ``rows[i]`` of lane ``lanes[i]`` takes the stack at ``frames + items[i] * stack bytes``.
    start : int
        Where to go on.
    coding, stream : address
        Scratch for coding a frame, and for one closed stream.

    Returns
    -------
    tuple
        How many were written, and why it stopped.
    """
    meta = state.meta
    bytes_per_row = meta[STACK] * meta[FRAME_BYTES]
    per_lane = meta[OPEN_PER_LANE]
    for i in range(start, len(rows)):
        lane = lanes[i]
        answer = _append_row(state, lane, rows[i], frames + items[i] * bytes_per_row, coding)
        if answer == WRITTEN_AND_FULL:
            if meta[PACKS]:
                return i + 1, answer
            for place in range(per_lane):
                gop = state.open_gop[lane, place]
                if gop != CLOSED and _last_row(state, gop) == rows[i]:
                    size = finish_stream(state, lane, place, stream)
                    if not put_chunk(state, arena, lane, gop, stream, size):
                        return i + 1, NO_MEMORY
                    drop_open(state, lane, place)
        elif answer != DONE:
            return i, answer
    return len(rows), DONE


# -- rebuilding ------------------------------------------------------------------------------


@kernel
def rebuild(state: Any, lane: Any, gop: Any, chunk: Any, cells: Any, frames: Any, until: Any,
            scratch: Any, stream: Any, numbers: Any, coding: Any) -> Any:  # fmt: skip
    """Encode a group anew from what it holds and what changes.

    Parameters
    ----------
    chunk : address
        The group's closed stream (unpacked), or 0.
    cells, frames : ndarray, (n,) int64
        Places in the group's map, and the addresses of the frames that they take; later ones
        win.
    until : int
        Only rows up to this one are encoded.
    scratch : ndarray, (frames held + 1, padded frame) uint8
        For the frames that the group holds now, open and closed; the last row ends as the last
        frame encoded.
    stream : address
        Takes the closed stream.
    numbers : ndarray, (G * S,) int64
        Overwritten: every cell's frame number, `NO_FRAME` for none.
    coding : address
        Scratch for coding a frame.

    Returns
    -------
    tuple
        Bytes of the stream, frames in it, and its flags.
    """
    meta = state.meta
    stack, gop_length, n_bytes = meta[STACK], meta[GOP], meta[FRAME_BYTES]
    padded = scratch.shape[1]
    base = scratch.ctypes.data
    offsets = np.zeros(8, np.int64)
    place = gop % meta[OPEN_PER_LANE]
    first_diagonal = gop * gop_length
    fill = _background(state, 0)
    source = np.zeros(gop_length * stack, np.int64)
    held = np.int64(0)
    # what the closed stream holds
    if chunk:
        flags = np.int64(load8(chunk))
        background = _background(state, np.int64(load8(chunk + 1)))
        n_frames = np.int64(load16(chunk + 2))
        records = chunk + HEADER_BYTES
        if flags & MAP_FLAG:
            records += 2 * gop_length * stack
        record = records
        for i in range(n_frames):
            before = background if i == 0 else base + (held - 1) * padded
            copy_bytes(base + held * padded, before, n_bytes)
            table = (flags >> TABLE_SHIFT) & TABLE_MASK
            record = _advance(
                state, record, base + held * padded, background, table, records, 1,
                offsets.ctypes.data,
            )  # fmt: skip
            held += 1
        for i in range(gop_length * stack):
            number = i // stack
            if flags & MAP_FLAG:
                number = np.int64(load16(chunk + HEADER_BYTES + 2 * i))
            if number < n_frames:
                source[i] = base + number * padded
    # what the open one holds instead
    if state.open_gop[lane, place] == gop:
        flags = state.open_flags[lane, place]
        table = (flags >> TABLE_SHIFT) & TABLE_MASK
        background = _background(state, state.open_background[lane, place])
        records = _open_stream(state, lane, place)
        record = records
        opened = held
        for i in range(state.open_frames[lane, place]):
            before = background if i == 0 else base + (held - 1) * padded
            copy_bytes(base + held * padded, before, n_bytes)
            record = _advance(
                state, record, base + held * padded, background, table, records, 1,
                offsets.ctypes.data,
            )  # fmt: skip
            held += 1
        for i in range(gop_length * stack):
            k = i % stack
            if first_diagonal + i // stack - k < state.open_next[lane, place]:
                number = i // stack
                if flags & MAP_FLAG:
                    number = np.int64(state.open_map[lane, place, i])
                if number != NO_FRAME:
                    source[i] = base + (opened + number) * padded
                else:
                    source[i] = 0
    for i in range(len(cells)):
        source[cells[i]] = frames[i]
    # number the frames in row-major order: along a diagonal, and within a row, equal ones are one
    n_frames = np.int64(0)
    plain = True
    numbers[:] = NO_FRAME
    table = meta[TABLE]
    background = _background(state, meta[BACKGROUND])
    previous = base + (scratch.shape[0] - 1) * padded
    copy_bytes(previous, background, n_bytes)
    records = stream + HEADER_BYTES + 2 * gop_length * stack
    out = records
    last = min(until, _last_row(state, gop))
    if stack == 1 and until >= meta[N_ROWS]:
        # closed, cells behind the last one written need no frame; those before it do
        while last >= _first_row(state, gop) and source[last - first_diagonal] == 0:
            last -= 1
    for row in range(_first_row(state, gop), last + 1):
        for k in range(stack):
            pos = row + k - first_diagonal
            if pos < 0 or pos >= gop_length:
                continue
            i = pos * stack + k
            frame = source[i]
            if frame == 0:
                if stack > 1:
                    plain = False
                    continue
                frame = fill
            number = np.int64(NO_FRAME)
            if stack > 1:
                if k + 1 < stack and row > 0 and numbers[i + 1] != NO_FRAME:
                    other = source[i + 1]
                    if other == frame or same_bytes(other, frame, n_bytes):
                        number = numbers[i + 1]
                if number == NO_FRAME and k > 0 and pos > 0:
                    j = i - stack - 1
                    if numbers[j] != NO_FRAME:
                        other = source[j]
                        if other == frame or same_bytes(other, frame, n_bytes):
                            number = numbers[j]
            if number == NO_FRAME:
                first = records if n_frames > 0 else 0
                out = _encode(state, frame, previous, background, first, out, coding)
                number = n_frames
                n_frames += 1
            numbers[i] = number
            plain &= number == pos
    flags = table << TABLE_SHIFT
    if plain:
        # records follow the header directly
        size = out - records
        target = stream + HEADER_BYTES
        for i in range(size):  # overlapping: forwards
            store8(target + i, load8(records + i))
        size += HEADER_BYTES
    else:
        flags |= MAP_FLAG
        for i in range(gop_length * stack):
            store16(stream + HEADER_BYTES + 2 * i, np.uint16(numbers[i]))
        size = out - stream
    store8(stream, np.uint8(flags))
    store8(stream + 1, np.uint8(meta[BACKGROUND]))
    store16(stream + 2, np.uint16(n_frames))
    return size, n_frames, flags


@kernel
def open_again(state: Any, lane: Any, gop: Any, until: Any, stream: Any, size: Any, n_frames: Any,
               flags: Any, numbers: Any, last_frame: Any) -> None:  # fmt: skip
    """Take a stream from `rebuild` as the open one of a group, rows up to ``until`` in it."""
    meta = state.meta
    place = gop % meta[OPEN_PER_LANE]
    drop_open(state, lane, place)
    records = stream + HEADER_BYTES
    if flags & MAP_FLAG:
        records += 2 * meta[GOP] * meta[STACK]
        for i in range(meta[GOP] * meta[STACK]):
            state.open_map[lane, place, i] = np.uint16(numbers[i])
    n_bytes = stream + size - records
    copy_bytes(_open_stream(state, lane, place), records, n_bytes)
    state.open_gop[lane, place] = gop
    state.open_next[lane, place] = until + 1
    state.open_frames[lane, place] = n_frames
    state.open_size[lane, place] = n_bytes
    state.open_flags[lane, place] = flags
    state.open_background[lane, place] = meta[BACKGROUND]
    state.background_uses[meta[BACKGROUND]] += 1
    meta[N_OPEN] += 1
    if meta[STACK] == 1:
        copy_bytes(_head(state, lane, until), last_frame, meta[FRAME_BYTES])


@kernel
def set_head(state: Any, lane: Any, row: Any, frames: Any) -> None:
    """Make a row's stack the lane's newest frames."""
    n_bytes = state.meta[FRAME_BYTES]
    for k in range(state.meta[STACK]):
        copy_bytes(_head(state, lane, row + k), frames + k * n_bytes, n_bytes)
    state.head_row[lane] = row
