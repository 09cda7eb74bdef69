"""Kernels that write the GOP store: appending, closing, encoding a group anew.

Rows that are written in order go to an open group, one frame at a time; the chunk that the group
had before serves the rows that are still to come.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.codecs.encoding import encoding_bytes
from compressarray.codecs.walking import walk_on, walking_bytes
from compressarray.format.groups import (
    DELTA,
    HEADER_BYTES,
    MAP_FLAG,
    NO_FRAME,
    SPARSE,
    background_number,
    frame_of_cell,
    frame_of_record,
    keyframe,
    map_bytes,
    write_header,
)
from compressarray.format.records import record_room
from compressarray.kernels.compiling import kernel
from compressarray.kernels.memory import (
    array_at,
    base_of,
    copy_bytes,
    count_changed_words,
    load16,
    same_bytes,
    store16,
)
from compressarray.store.arena import PAGE_SHIFT, allocate, chunk_start, share
from compressarray.store.gop_journal import (
    begin_write,
    drop_open,
    log_room,
    note_begin,
    note_entry,
    note_tail,
    row_words,
)
from compressarray.store.gop_layout import (
    BACKGROUND,
    CLOSED,
    CREDIT,
    FRAME_BYTES,
    GOP,
    LAST_CHUNK,
    N_BACKGROUNDS,
    N_CHANGES,
    N_CLOSED,
    N_LANES,
    N_OPEN,
    N_ROWS,
    OPEN_PER_LANE,
    PACKS,
    RECORD_KIND,
    STACK,
    STALE,
    VOTES,
    background_at,
    closed_group,
    encode_frame,
    first_row,
    group_in_slot,
    head_at,
    last_row,
    newest_flags,
    open_records_at,
    unroll,
    walk_of,
)
from compressarray.store.gop_view import arena_at, state_at

# What append_rows answers when the store has to act first.
DONE, WRITTEN_AND_FULL, REBUILD, REOPEN, SEAL, GROW, GROW_LOG, NO_MEMORY = range(8)


# -- backgrounds -----------------------------------------------------------------------------


@kernel
def _vote(state: Any, frame: Any) -> None:
    """Let a keyframe vote on the next background, and take it where it pays.

    The candidate is each byte's majority so far (Boyer and Moore's vote). A background costs one
    raw frame. It is taken once what it would have saved, on the keyframes since the last one was
    taken, passes half of that cost: so little is lost if no more keyframes are like it.
    """
    meta = state.meta
    n_bytes = meta[FRAME_BYTES]
    votes = state.candidate
    if votes.shape[1] == 0:
        return
    if meta[VOTES]:
        spent = count_changed_words(frame, background_at(state, meta[BACKGROUND]), n_bytes)
        would = count_changed_words(frame, base_of(votes), n_bytes)
        # A changed word of a keyframe costs about six bytes: a token and most of its values.
        meta[CREDIT] = max(0, meta[CREDIT] + 6 * (spent - would))
    meta[VOTES] += 1
    # Arrays of bytes, and no branch: LLVM makes vectors of these, a twentieth of the time.
    fresh, held, counts = array_at(frame, (n_bytes,), np.uint8), votes[0], votes[1]
    for i in range(n_bytes):
        byte, count = fresh[i], counts[i]
        agrees = (byte == held[i]) | (count == 0)
        more = np.uint8(count + np.uint8(count < 255))
        held[i] = byte if agrees else held[i]
        counts[i] = more if agrees else np.uint8(count - np.uint8(1))
    if meta[CREDIT] > n_bytes // 2:
        for i in range(1, state.backgrounds.shape[0]):
            if state.background_uses[i] == 0 and i != meta[BACKGROUND]:
                copy_bytes(background_at(state, i), base_of(votes), n_bytes)
                meta[N_BACKGROUNDS] += 1
                state.background_number[i] = meta[N_BACKGROUNDS]
                meta[BACKGROUND] = i
                meta[CREDIT] = 0
                break


# -- appending -------------------------------------------------------------------------------


@kernel
def _begin_gop(state: Any, lane: Any, place: Any, gop: Any, diagonal: Any, frame: Any) -> None:
    meta = state.meta
    if meta[RECORD_KIND] == DELTA:
        _vote(state, frame)
    note_begin(state, lane, place)
    state.open_gop[lane, place] = gop
    state.open_frames[lane, place] = 0
    state.open_size[lane, place] = 0
    state.open_flags[lane, place] = newest_flags(state)
    state.open_background[lane, place] = meta[BACKGROUND]
    state.background_uses[meta[BACKGROUND]] += 1
    meta[N_OPEN] += 1
    copy_bytes(
        head_at(state, lane, diagonal), background_at(state, meta[BACKGROUND]), meta[FRAME_BYTES]
    )


@kernel
def _restore_head(state: Any, lane: Any, place: Any, head: Any) -> None:
    """Decode the last frame of an open group, which the next one is coded against."""
    meta = state.meta
    background = background_at(state, state.open_background[lane, place])
    copy_bytes(head, background, meta[FRAME_BYTES])
    n_frames = state.open_frames[lane, place]
    if n_frames > 0 and meta[RECORD_KIND] == DELTA:
        group = group_in_slot(state, lane * meta[OPEN_PER_LANE] + place)
        scratch = np.empty(walking_bytes(meta[FRAME_BYTES], False), np.uint8)
        walk_on(walk_of(state, group, base_of(scratch)), group.records, n_frames, head)
        scratch[0] = 0  # used until here: numba may free what only its address is used of


@kernel
def _append_frame(state: Any, lane: Any, place: Any, diagonal: Any, frame: Any,
                  scratch: Any) -> Any:  # fmt: skip
    """Add one frame to an open group, coded against the head; return whether it fitted."""
    meta = state.meta
    n_bytes = meta[FRAME_BYTES]
    head = head_at(state, lane, diagonal)
    records = open_records_at(state, lane, place)
    size = state.open_size[lane, place]
    n_frames = state.open_frames[lane, place]
    background = background_at(state, state.open_background[lane, place])
    room = state.open_bytes.shape[1] - size
    spare = scratch + encoding_bytes(n_bytes)
    roomy = room >= record_room(n_bytes)
    out = records + size if roomy else spare
    first = records if n_frames > 0 else 0
    length = encode_frame(state, frame, head, background, first, out, scratch) - out
    if not roomy:
        if length + 8 > room:
            # the head has moved on: take it back, the frame comes again
            _restore_head(state, lane, place, head)
            return False
        copy_bytes(records + size, spare, length)
    if meta[RECORD_KIND] == SPARSE:  # encoding a delta record has made the head the frame already
        copy_bytes(head, frame, n_bytes)
    state.open_size[lane, place] = size + length
    state.open_frames[lane, place] = n_frames + 1
    return True


@kernel
def _append_row(state: Any, lane: Any, row: Any, frames: Any, scratch: Any) -> Any:
    """Add one row of a lane to its open groups if it follows what they hold."""
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
            frames + k * n_bytes, head_at(state, lane, row + k), n_bytes
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
    for gop in range(row // gop_length, last_gop + 1):
        here = gop % per_lane
        if state.open_gop[lane, here] == gop:
            note_tail(state, lane, here)
    if begins:
        _begin_gop(state, lane, place, last_gop, newest, frames + (stack - 1) * n_bytes)
    elif stack > 1:
        copy_bytes(head_at(state, lane, newest), head_at(state, lane, newest - 1), n_bytes)
    elif not follows:
        # another group of the lane was written meanwhile
        _restore_head(state, lane, place, head_at(state, lane, newest))
    if not _append_frame(state, lane, place, newest, frames + (stack - 1) * n_bytes, scratch):
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
        full |= row == last_row(state, gop)
    return WRITTEN_AND_FULL if full else DONE


@kernel
def close_group(state: Any, lane: Any, place: Any, out: Any, held: Any, scratch: Any) -> Any:
    """Write an open group as a closed one at ``out``; return its bytes.

    ``held`` is the address of scratch for half the frames of a group and two more.
    """
    meta = state.meta
    slot = lane * meta[OPEN_PER_LANE] + place
    group = group_in_slot(state, slot)
    n_map = map_bytes(group.flags, meta[GOP] * meta[STACK])
    copy_bytes(out + HEADER_BYTES, group.map, n_map)
    records = out + HEADER_BYTES + n_map
    key = keyframe(meta[RECORD_KIND], group.n_frames)
    end = group.records + state.open_size[lane, place]
    earlier = np.int64(0)
    target = records
    if key == 0:
        copy_bytes(target, group.records, end - group.records)
        target += end - group.records
    else:
        background = background_at(state, group.background)
        padded = state.head.shape[2]
        later = unroll(state, group, key + 1, held, padded)
        previous = held + (key + 1) * padded
        copy_bytes(previous, background, meta[FRAME_BYTES])
        target = encode_frame(state, held + key * padded, previous, background, 0, target, scratch)
        copy_bytes(target, later, end - later)
        target += end - later
        earlier = target - records
        for i in range(group.n_frames - key, group.n_frames):
            frame = held + frame_of_record(i, key, group.n_frames) * padded
            target = encode_frame(state, frame, previous, background, 0, target, scratch)
    write_header(out, group.flags, group.background, group.n_frames, earlier)
    return target - out


@kernel
def put_chunk(state: Any, arena: Any, lane: Any, gop: Any, chunk: Any, size: Any) -> Any:
    """Make the closed chunk at an address the content of a group; False without memory.

    What the group held before stays until the write is done. Needs `WORDS_A_GROUP` of log.

    A chunk that equals the last one stored, or that of the group before, is shared: whatever
    does not change costs nothing.
    """
    meta = state.meta
    lanes = meta[N_LANES]
    index = gop * lanes + lane
    last = meta[LAST_CHUNK]
    before = np.int64(state.gop_chunk[index - lanes]) if gop > 0 else 0
    if share(arena, last, chunk, size):
        entry = last
    elif share(arena, before, chunk, size):
        entry = before
    else:
        entry = allocate(arena, size)
        if entry < 0:
            return False
        copy_bytes(base_of(arena.memory) + chunk_start(arena, entry), chunk, size)
        state.background_uses[background_number(chunk)] += 1
    note_entry(state, arena, index)
    state.gop_chunk[index] = entry
    state.gop_touched[index >> PAGE_SHIFT] = 1
    meta[LAST_CHUNK] = entry
    meta[N_CLOSED] += 1
    meta[N_CHANGES] += 1
    return True


@kernel
def put_packed(view: Any, lane: Any, gop: Any, chunk: Any, size: Any, ends_open: Any) -> Any:
    """Make a chunk the content of a group, and of its open group's rows if that ends."""
    state = state_at(view)
    begin_write(state)
    if not put_chunk(state, arena_at(view), lane, gop, chunk, size):
        return False
    place = gop % state.meta[OPEN_PER_LANE]
    if ends_open and state.open_gop[lane, place] == gop:
        drop_open(state, lane, place)
    return True


@kernel
def close_full(view: Any, lane: Any, row: Any, closed: Any, held: Any, scratch: Any) -> Any:
    """Write one open group that ``row`` filled as a closed one at ``closed``.

    Returns its group, or -1 for none, and its bytes.
    """
    state = state_at(view)
    for place in range(state.meta[OPEN_PER_LANE]):
        gop = state.open_gop[lane, place]
        if gop != CLOSED and last_row(state, gop) == row:
            return gop, close_group(state, lane, place, closed, held, scratch)
    return np.int64(-1), np.int64(0)


@kernel
def append_rows(view: Any, lanes: Any, rows: Any, items: Any, frames: Any,
                start: Any, scratch: Any, closed: Any, held: Any) -> Any:  # fmt: skip
    """Append rows for as long as nothing else has to happen.

    Parameters
    ----------
    view : ndarray, int64
        From `view_of`.
    lanes, rows, items : ndarray, (n,) int64
        Row ``rows[i]`` of lane ``lanes[i]`` takes the stack at ``frames + items[i] * stack bytes``.
    start : int
        Where to go on.
    scratch, closed, held : address
        Scratch to encode a frame, for one closed group, and for frames of one.

    Returns
    -------
    tuple
        How many were written, and why it stopped.
    """
    state, arena = state_at(view), arena_at(view)
    begin_write(state)
    meta = state.meta
    bytes_per_row = meta[STACK] * meta[FRAME_BYTES]
    per_lane = meta[OPEN_PER_LANE]
    for i in range(start, len(rows)):
        lane = lanes[i]
        if log_room(state) < row_words(state, lane, rows[i]):
            return i, GROW_LOG
        answer = _append_row(state, lane, rows[i], frames + items[i] * bytes_per_row, scratch)
        if answer == WRITTEN_AND_FULL:
            if meta[PACKS]:
                return i + 1, answer
            for place in range(per_lane):
                gop = state.open_gop[lane, place]
                if gop != CLOSED and last_row(state, gop) == rows[i]:
                    size = close_group(state, lane, place, closed, held, scratch)
                    if not put_chunk(state, arena, lane, gop, closed, size):
                        return i + 1, NO_MEMORY
                    drop_open(state, lane, place)
        elif answer != DONE:
            return i, answer
    return len(rows), DONE


@kernel
def leaves_groups(first: Any, end: Any, n_rows: Any, gop_length: Any) -> Any:
    """Whether counts from ``first`` to ``end`` leave a group behind, in any lane of a ring."""
    for lane in range(len(first)):
        before, after = first[lane], end[lane]
        if (
            after - before >= gop_length
            or before % n_rows // gop_length != after % n_rows // gop_length
        ):
            return True
    return False


@kernel
def forget(view: Any, first: Any, end: Any, counts: Any) -> None:
    """Drop the groups of which all rows are of counts below ``end``; see `Store.forget`.

    Needs `WORDS_A_GROUP` of log for each group and lane.
    """
    state, arena = state_at(view), arena_at(view)
    begin_write(state)
    meta = state.meta
    n_rows, lanes, gop_length = meta[N_ROWS], meta[N_LANES], meta[GOP]
    for lane in range(lanes):
        count = first[lane]
        while count < end[lane]:
            row = count % n_rows
            gop = row // gop_length
            begins = count - row + gop * gop_length
            count = count - row + last_row(state, gop) + 1
            # not where the ring has come round to the group already
            if count <= end[lane] and counts[lane] <= begins + n_rows:
                index = gop * lanes + lane
                if state.gop_chunk[index] != 0:
                    note_entry(state, arena, index)
                    state.gop_chunk[index] = 0
                if state.open_gop[lane, 0] == gop:
                    drop_open(state, lane, 0)
                    state.head_row[lane] = STALE


# -- rebuilding ------------------------------------------------------------------------------


@kernel
def rebuild(view: Any, lane: Any, gop: Any, chunk: Any, cells: Any, frames: Any, until: Any,
            held: Any, closed: Any, scratch: Any) -> Any:  # fmt: skip
    """Encode a group anew from what it holds and what changes.

    Parameters
    ----------
    chunk : address
        The group as it is closed, unpacked, or 0.
    cells, frames : ndarray, (n,) int64
        Cells of the group's map, and the addresses of the frames that they take; later ones
        win.
    until : int
        The last row to encode, for an open group, or ``N_ROWS``, for a closed one.
    held : ndarray, (frames held + 1, padded frame) uint8
        For the frames that the group holds now, open and closed; the last row ends as the last
        frame encoded.
    closed : address
        Takes the group as `format.groups` says, also where it is to be open.
    scratch : address
        To encode a frame.

    Returns
    -------
    int
        Bytes that it takes.
    """
    state = state_at(view)
    meta = state.meta
    stack, gop_length, n_bytes = meta[STACK], meta[GOP], meta[FRAME_BYTES]
    first_diagonal = gop * gop_length
    source = np.zeros(gop_length * stack, np.int64)
    _find_held(state, lane, gop, chunk, held, source)
    for i in range(len(cells)):
        source[cells[i]] = frames[i]
    last = min(until, last_row(state, gop))
    if stack == 1 and until >= meta[N_ROWS]:
        # closed, cells behind the last one written need no frame; those before it do
        while last >= first_row(state, gop) and source[last - first_diagonal] == 0:
            last -= 1
    kept = np.zeros(gop_length * stack, np.int64)
    numbers = np.empty(gop_length * stack, np.int64)
    n_frames, plain = _number_frames(state, gop, last, source, numbers, kept)
    flags = newest_flags(state)
    records = closed + HEADER_BYTES
    if not plain:
        flags |= MAP_FLAG
        for i in range(gop_length * stack):
            store16(records, np.uint16(numbers[i]))
            records += 2
    key = keyframe(meta[RECORD_KIND], n_frames) if until >= meta[N_ROWS] else 0
    background = background_at(state, meta[BACKGROUND])
    previous = base_of(held) + (held.shape[0] - 1) * held.shape[1]
    copy_bytes(previous, background, n_bytes)
    out = records
    first = np.int64(0)
    earlier = np.int64(0)
    for i in range(n_frames):
        if i == n_frames - key:
            earlier = out - records
            copy_bytes(previous, kept[key], n_bytes)
        frame = kept[frame_of_record(i, key, n_frames)]
        out = encode_frame(state, frame, previous, background, first, out, scratch)
        first = records
    if key == 0:
        earlier = out - records
    write_header(closed, flags, meta[BACKGROUND], n_frames, earlier)
    return out - closed


@kernel
def _find_held(state: Any, lane: Any, gop: Any, chunk: Any, frames: Any, source: Any) -> None:
    """Decode what a group holds, and fill ``source`` with the address of each cell's frame."""
    meta = state.meta
    stack, gop_length = meta[STACK], meta[GOP]
    padded = frames.shape[1]
    held = base_of(frames)
    if chunk:
        group = closed_group(state, chunk)
        unroll(state, group, group.n_frames, held, padded)
        for i in range(gop_length * stack):
            number = frame_of_cell(group, i, stack)
            if number < group.n_frames:
                source[i] = held + number * padded
        held += group.n_frames * padded
    place = gop % meta[OPEN_PER_LANE]
    if state.open_gop[lane, place] == gop:
        # rows that are open hide those of the chunk
        group = group_in_slot(state, lane * meta[OPEN_PER_LANE] + place)
        unroll(state, group, group.n_frames, held, padded)
        for i in range(gop_length * stack):
            k = i % stack
            if gop * gop_length + i // stack - k < state.open_next[lane, place]:
                number = frame_of_cell(group, i, stack)
                source[i] = held + number * padded if number != NO_FRAME else 0


@kernel
def _number_frames(state: Any, gop: Any, last: Any, source: Any, numbers: Any, kept: Any) -> Any:
    """Number a group's frames in row-major order.

    Along a diagonal, and within a row, equal ones are one. Fills ``kept`` with the address of
    each numbered frame; returns how many there are, and whether diagonal ``i`` has frame ``i``.
    """
    meta = state.meta
    stack, gop_length, n_bytes = meta[STACK], meta[GOP], meta[FRAME_BYTES]
    first_diagonal = gop * gop_length
    n_frames = np.int64(0)
    plain = True
    numbers[:] = NO_FRAME
    for row in range(first_row(state, gop), last + 1):
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
                frame = background_at(state, 0)
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
                number = n_frames
                kept[number] = frame
                n_frames += 1
            numbers[i] = number
            plain &= number == pos
    return n_frames, plain


@kernel
def open_again(view: Any, lane: Any, gop: Any, until: Any, closed: Any, size: Any,
               last_frame: Any) -> None:  # fmt: skip
    """Take a group from `rebuild`, of so many bytes, as an open one with rows up to ``until``.

    Needs `WORDS_A_GROUP` of log, and `open_records_room`.
    """
    state = state_at(view)
    meta = state.meta
    place = gop % meta[OPEN_PER_LANE]
    begin_write(state)
    drop_open(state, lane, place)
    note_begin(state, lane, place)
    group = closed_group(state, closed)
    for i in range(map_bytes(group.flags, meta[GOP] * meta[STACK]) >> 1):
        state.open_map[lane, place, i] = load16(group.map + 2 * i)
    n_bytes = closed + size - group.records
    copy_bytes(open_records_at(state, lane, place), group.records, n_bytes)
    state.open_gop[lane, place] = gop
    state.open_next[lane, place] = until + 1
    state.open_frames[lane, place] = group.n_frames
    state.open_size[lane, place] = n_bytes
    state.open_flags[lane, place] = group.flags
    state.open_background[lane, place] = group.background
    state.background_uses[group.background] += 1
    meta[N_OPEN] += 1
    if meta[STACK] == 1:
        copy_bytes(head_at(state, lane, until), last_frame, meta[FRAME_BYTES])


@kernel
def set_head(view: Any, lane: Any, row: Any, frames: Any) -> None:
    """Make a row's stack the lane's newest frames."""
    state = state_at(view)
    n_bytes = state.meta[FRAME_BYTES]
    for k in range(state.meta[STACK]):
        copy_bytes(head_at(state, lane, row + k), frames + k * n_bytes, n_bytes)
    state.head_row[lane] = row
