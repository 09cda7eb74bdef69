"""Kernels that note what a write replaces in a store of groups, to take it back or let go of it.

`GopState.log` holds how many of its words are in use, then notes: their words, and behind them a
word with their number and kind, so that they can be read from either end. What is replaced stays
where it is until the write is done: chunks keep their references, backgrounds their uses, and the
records of an open group that ended are copied before another one takes their place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.format.groups import MAP_FLAG, NO_FRAME, background_number
from compressarray.kernels.compiling import inlined, kernel
from compressarray.kernels.memory import base_of, copy_bytes
from compressarray.store.arena import chunk_start, release
from compressarray.store.changes import list_change
from compressarray.store.gop_layout import (
    CLOSED,
    GOP,
    LAST_CHUNK,
    N_BEGUN,
    N_CHANGES,
    N_EVICTED,
    N_LISTED,
    N_OPEN,
    N_REPLACED,
    STACK,
    STALE,
    WRITE,
)
from compressarray.store.gop_view import arena_at, state_at

# An entry of the index; where an open group ended before; that one began; its records before
# another one's; what it was when it was dropped.
_INDEX, _TAIL, _BEGIN, _RECORDS, _STREAM = range(5)
_KIND_BITS = 3
# Words that one row of one lane takes at most, for each group that it may lie in, and besides;
# records apart.
WORDS_A_GROUP, WORDS_A_ROW = 24, 32


@inlined
def log_room(state: Any) -> Any:
    """Words that are free."""
    return len(state.log) - state.log[0] - 1


@inlined
def begin_write(state: Any) -> None:
    """Number a write, in the first kernel of it."""
    if state.log[0] == 0:
        state.meta[WRITE] += 1


@inlined
def _end_note(state: Any, n: Any, kind: Any) -> None:
    """Write the last word of a note of ``n`` words."""
    log = state.log
    log[log[0] + 1 + n] = (n + 1) << _KIND_BITS | kind
    log[0] += n + 1


@kernel
def _drop_chunk(state: Any, arena: Any, entry: Any) -> None:
    """Take one reference from a closed group's chunk."""
    used = background_number(base_of(arena.memory) + chunk_start(arena, entry))
    if release(arena, entry):
        state.background_uses[used] -= 1


@kernel
def note_entry(state: Any, arena: Any, index: Any) -> None:
    """Note an entry of the index before it changes; what this very write put there can go."""
    entry = np.int64(state.gop_chunk[index])
    if state.gop_noted[index]:
        if entry:
            _drop_chunk(state, arena, entry)
            state.meta[N_EVICTED] += 1
            state.meta[N_CHANGES] += 1
        return
    state.gop_noted[index] = 1
    state.meta[N_REPLACED] += 1
    list_change(state.gop_changes, state.meta[N_LISTED], index)
    state.meta[N_LISTED] += 1
    at = state.log[0] + 1
    state.log[at] = index
    state.log[at + 1] = entry
    _end_note(state, 2, _INDEX)


@inlined
def note_tail(state: Any, lane: Any, place: Any) -> None:
    """Note where an open group ends before it goes on, the first time of a write."""
    log = state.log
    slot = lane * state.open_gop.shape[1] + place
    at = log[0] + 1
    is_noted = state.open_born[lane, place] >= state.meta[WRITE] or (
        log[0] > 0 and log[at - 1] == 5 << _KIND_BITS | _TAIL and log[at - 5] == slot
    )
    if not is_noted:
        log[at] = slot
        log[at + 1] = state.open_next[lane, place]
        log[at + 2] = state.open_frames[lane, place]
        log[at + 3] = state.open_size[lane, place]
        _end_note(state, 4, _TAIL)


@inlined
def words_to_keep(state: Any, lane: Any, place: Any) -> Any:
    """Words that `note_begin` needs for records that it has to keep."""
    if (
        state.open_dropped[lane, place] < state.meta[WRITE]
        or state.open_born[lane, place] >= state.meta[WRITE]
    ):
        return np.int64(0)
    return _map_words(state) + ((state.open_size[lane, place] + 7) >> 3) + 4


@inlined
def _map_words(state: Any) -> Any:
    return (2 * state.open_map.shape[2] + 7) >> 3


@kernel
def note_begin(state: Any, lane: Any, place: Any) -> None:
    """Note that an open group begins, the first time of a write.

    Keeps the records of the one that was there before and that the write has dropped.
    """
    log = state.log
    slot = lane * state.open_gop.shape[1] + place
    n = words_to_keep(state, lane, place)
    if n:
        size, at = state.open_size[lane, place], log[0] + 1
        log[at] = slot
        log[at + 1] = size
        _copy_records(state, slot, base_of(log) + 8 * (at + 2), size, True)
        _end_note(state, 2 + _map_words(state) + ((size + 7) >> 3), _RECORDS)
    state.meta[N_BEGUN] += 1
    state.open_number[lane, place] = state.meta[N_BEGUN]
    if state.open_born[lane, place] < state.meta[WRITE]:
        state.open_born[lane, place] = state.meta[WRITE]
        log[log[0] + 1] = slot
        _end_note(state, 1, _BEGIN)


@kernel
def _copy_records(state: Any, slot: Any, kept: Any, size: Any, out: Any) -> None:
    """Copy an open group's map and records out of the store, or back."""
    map_bytes = 2 * state.open_map.shape[2]
    at_map = base_of(state.open_map) + slot * map_bytes
    records = base_of(state.open_bytes) + slot * state.open_bytes.shape[1]
    behind = kept + 8 * _map_words(state)
    if out:
        copy_bytes(kept, at_map, map_bytes)
        copy_bytes(behind, records, size)
    else:
        copy_bytes(at_map, kept, map_bytes)
        copy_bytes(records, behind, size)


@kernel
def drop_open(state: Any, lane: Any, place: Any) -> None:
    """Forget an open group."""
    meta = state.meta
    if state.open_gop[lane, place] == CLOSED:
        return
    if state.open_born[lane, place] >= meta[WRITE]:
        state.background_uses[state.open_background[lane, place]] -= 1
    else:
        at = state.log[0] + 1
        state.log[at] = lane * state.open_gop.shape[1] + place
        state.log[at + 1] = state.open_gop[lane, place]
        state.log[at + 2] = state.open_next[lane, place]
        state.log[at + 3] = state.open_frames[lane, place]
        state.log[at + 4] = state.open_size[lane, place]
        state.log[at + 5] = state.open_flags[lane, place]
        state.log[at + 6] = state.open_background[lane, place]
        _end_note(state, 7, _STREAM)
        state.open_dropped[lane, place] = meta[WRITE]
        meta[N_REPLACED] += 1
    state.open_gop[lane, place] = CLOSED
    meta[N_OPEN] -= 1


@kernel
def finish(view: Any) -> None:
    """Let go of what a write has replaced; ``view`` is from `view_of`."""
    state, arena = state_at(view), arena_at(view)
    log, meta = state.log, state.meta
    at = log[0]
    while at > 0:
        n, kind = log[at] >> _KIND_BITS, log[at] & ((1 << _KIND_BITS) - 1)
        first = at - n + 1
        if kind == _INDEX:
            state.gop_noted[log[first]] = 0
            if log[first + 1] != 0:
                _drop_chunk(state, arena, log[first + 1])
                meta[N_EVICTED] += 1
                meta[N_CHANGES] += 1
        elif kind == _STREAM:
            state.background_uses[log[first + 6]] -= 1
        at -= n
    log[0] = 0
    meta[N_REPLACED] = 0


@kernel
def _clear_map(state: Any, lane: Any, place: Any) -> None:
    """Let the cells of rows that an open group does not hold name no frame."""
    stack, gop_length = state.meta[STACK], state.meta[GOP]
    first = state.open_gop[lane, place] * gop_length
    for i in range(gop_length * stack):
        if first + i // stack - i % stack >= state.open_next[lane, place]:
            state.open_map[lane, place, i] = NO_FRAME


@kernel
def roll_back(view: Any) -> None:
    """Take back what a write has done, the last of it first; ``view`` is from `view_of`."""
    state, arena = state_at(view), arena_at(view)
    log, meta = state.log, state.meta
    per_lane = state.open_gop.shape[1]
    at = log[0]
    while at > 0:
        n, kind = log[at] >> _KIND_BITS, log[at] & ((1 << _KIND_BITS) - 1)
        first = at - n + 1
        if kind == _INDEX:
            state.gop_noted[log[first]] = 0
            written = np.int64(state.gop_chunk[log[first]])
            state.gop_chunk[log[first]] = np.uint32(log[first + 1])
            if written:
                _drop_chunk(state, arena, written)
        else:
            slot = log[first]
            lane = slot // per_lane
            place = slot - lane * per_lane
            if kind == _TAIL:
                state.open_next[lane, place] = log[first + 1]
                state.open_frames[lane, place] = log[first + 2]
                state.open_size[lane, place] = log[first + 3]
                if state.open_flags[lane, place] & MAP_FLAG:
                    _clear_map(state, lane, place)
            elif kind == _BEGIN:
                if state.open_gop[lane, place] != CLOSED:
                    state.background_uses[state.open_background[lane, place]] -= 1
                    state.open_gop[lane, place] = CLOSED
                    meta[N_OPEN] -= 1
            elif kind == _RECORDS:
                _copy_records(state, slot, base_of(log) + 8 * (first + 2), log[first + 1], False)
            else:
                state.open_gop[lane, place] = log[first + 1]
                state.open_next[lane, place] = log[first + 2]
                state.open_frames[lane, place] = log[first + 3]
                state.open_size[lane, place] = log[first + 4]
                state.open_flags[lane, place] = log[first + 5]
                state.open_background[lane, place] = log[first + 6]
                meta[N_OPEN] += 1
        at -= n
    # The newest frames have moved on: the next write decodes them.
    state.head_row[:] = STALE
    meta[LAST_CHUNK] = 0
    log[0] = 0
    meta[N_REPLACED] = 0


@kernel
def open_records_room(view: Any) -> Any:
    """Words that keeping the records of any one open group takes at most."""
    state = state_at(view)
    return _map_words(state) + (state.open_bytes.shape[1] >> 3) + 8


@inlined
def row_words(state: Any, lane: Any, row: Any) -> Any:
    """Words that appending a row of a lane may need."""
    per_lane, stack, gop_length = state.open_gop.shape[1], state.meta[STACK], state.meta[GOP]
    newest = row + stack - 1
    n = WORDS_A_ROW + WORDS_A_GROUP * per_lane
    if newest % gop_length == 0:
        n += words_to_keep(state, lane, newest // gop_length % per_lane)
    return n


@kernel
def needed_words(view: Any, lane: Any, row: Any) -> Any:
    """`row_words`, for Python."""
    return row_words(state_at(view), lane, row)
