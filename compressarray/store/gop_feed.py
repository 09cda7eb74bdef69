"""What a store of groups tells its replicas, and kernels that take it in.

A replica has an arena and an index of its own: it is told which groups changed and what they hold
now, not where that lies. So a message has, in this order: codebooks, backgrounds, groups, and the
open groups, of which only what was appended is sent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.codecs.codebooks import Codebooks
from compressarray.format.groups import MAP_FLAG
from compressarray.format.messages import Message
from compressarray.kernels.compiling import kernel
from compressarray.kernels.memory import base_of, copy_bytes
from compressarray.store.arena import ArenaState, put_chunks
from compressarray.store.changes import listed
from compressarray.store.gop_journal import (
    begin_write,
    drop_open,
    note_begin,
    note_entry,
    note_tail,
)
from compressarray.store.gop_layout import (
    BACKGROUND,
    CLOSED,
    N_BACKGROUNDS,
    N_LISTED,
    N_OPEN,
    STALE,
    GopState,
    open_records_at,
)
from compressarray.store.gop_view import arena_at, state_at
from compressarray.store.gop_writing import put_chunk

Int64s = npt.NDArray[np.int64]
UInt8s = npt.NDArray[np.uint8]

# Columns of what is said of open groups.
SLOT, GROUP, NEXT, FRAMES, FLAGS, CHOSEN, START, SIZE, N_COLUMNS = range(9)
# Columns of what is remembered of them.
_NUMBER, _SIZE, _FLAGS, _N_REMEMBERED = 0, 3, 4, 5


class GopMark(NamedTuple):
    """What a replica has of a store."""

    n_listed: int
    codebooks: Codebooks | None
    n_backgrounds: int  # that were ever taken
    backgrounds: Int64s  # which ones are held
    # (5, slots): which of all that were ever open it is, or 0; the next row, frames, bytes, flags
    open: Int64s


def mark_of(state: GopState, codebooks: Codebooks | None) -> GopMark:
    """Remember how a store is now."""
    return GopMark(
        int(state.meta[N_LISTED]),
        codebooks,
        int(state.meta[N_BACKGROUNDS]),
        state.background_number.copy(),
        _open_now(state),
    )


def _open_now(state: GopState) -> Int64s:
    now = np.empty((_N_REMEMBERED, state.open_gop.size), np.int64)
    look_at_open(
        state.open_gop, state.open_number, state.open_next, state.open_frames, state.open_size,
        state.open_flags, now,
    )  # fmt: skip
    return now


@kernel
def look_at_open(
    gops: Any, numbers: Any, following: Any, frames: Any, sizes: Any, flags: Any, now: Any
) -> None:
    """Note of each slot what is remembered of it, 0 where nothing is open; see `GopMark.open`."""
    per_lane = gops.shape[1]
    for slot in range(gops.size):
        lane = slot // per_lane
        place = slot - lane * per_lane
        is_open = gops[lane, place] != CLOSED
        now[0, slot] = numbers[lane, place] if is_open else 0
        now[1, slot] = following[lane, place] if is_open else 0
        now[2, slot] = frames[lane, place] if is_open else 0
        now[3, slot] = sizes[lane, place] if is_open else 0
        now[4, slot] = flags[lane, place] if is_open else 0


@kernel
def take_tails(records: Any, slots: Any, starts: Any, ends: Any, out: Any) -> None:
    """Put one behind the other what each slot's records have from a place on."""
    at = base_of(out)
    for i in range(len(slots)):
        n = ends[i] - starts[i]
        if n > 0:
            copy_bytes(at, base_of(records[slots[i]]) + starts[i], n)
            at += n


def put_changes(
    message: Message, mark: GopMark, state: GopState, arena: ArenaState, codebooks: Codebooks | None
) -> bool:
    """Add what has changed since a mark; False, and an unfinished message, if that is lost."""
    groups = listed(state.gop_changes, mark.n_listed, int(state.meta[N_LISTED]))
    if groups is None:
        return False
    if codebooks is not None:
        codebooks.put(message, mark.codebooks)
    _put_backgrounds(message, mark, state)
    put_chunks(message, groups, state.gop_chunk[groups], arena)
    _put_open(message, mark, state)
    return True


def put_everything(
    message: Message, groups: Int64s, state: GopState, arena: ArenaState,
    codebooks: Codebooks | None,
) -> None:  # fmt: skip
    """Add all that there is, ``groups`` being those that are closed; see `put_changes`."""
    n_open = state.open_gop.size
    nothing = GopMark(
        0, None, -1, np.zeros(0, np.int64), np.zeros((_N_REMEMBERED, n_open), np.int64)
    )
    if codebooks is not None:
        codebooks.put(message, None)
    _put_backgrounds(message, nothing, state)
    put_chunks(message, groups, state.gop_chunk[groups], arena)
    _put_open(message, nothing, state)


def _put_backgrounds(message: Message, mark: GopMark, state: GopState) -> None:
    if state.meta[N_BACKGROUNDS] == mark.n_backgrounds:
        message.put_ints([])
        return
    numbers = state.background_number
    before = np.zeros(len(numbers), np.int64)
    before[: len(mark.backgrounds)] = mark.backgrounds[: len(numbers)]
    changed = np.flatnonzero(numbers != before)
    n_bytes = state.backgrounds.shape[1]
    message.put_ints([len(numbers), int(state.meta[BACKGROUND]), *changed.tolist()])
    message.put_bytes(state.backgrounds[changed].reshape(-1) if n_bytes else b"")


def _put_open(message: Message, mark: GopMark, state: GopState) -> None:
    now = _open_now(state)
    slots = np.flatnonzero((now != mark.open).any(axis=0))
    number, _, _, size, flags = now[:, slots]
    before = mark.open[:, slots]
    goes_on = (number != 0) & (number == before[_NUMBER]) & (flags == before[_FLAGS])
    start = np.where(goes_on, before[_SIZE], 0)
    table = np.empty((N_COLUMNS, len(slots)), np.int64)
    table[SLOT], table[START], table[SIZE] = slots, start, size
    for column, values in (
        (GROUP, state.open_gop),
        (NEXT, state.open_next),
        (FRAMES, state.open_frames),
        (FLAGS, state.open_flags),
        (CHOSEN, state.open_background),
    ):
        table[column] = values.ravel()[slots]
    table[:, number == 0] = 0
    table[SLOT], table[GROUP, number == 0] = slots, CLOSED
    message.put_ints(table)
    maps = state.open_map.reshape(state.open_gop.size, -1)[slots[table[FLAGS] & MAP_FLAG != 0]]
    message.put_bytes(maps.view(np.uint8))
    records = np.empty(int(np.maximum(size - start, 0).sum()), np.uint8)
    if len(records):
        take_tails(state.open_bytes, slots, start, size, records)
    message.put_bytes(records)


@kernel
def put_groups(view: Any, groups: Any, chunks: Any, sizes: Any, data: Any) -> Any:
    """Let groups hold chunks, numbered from 1 on, 0 for none; return whether there is room.

    Needs `WORDS_A_GROUP` of log for each.
    """
    state, arena = state_at(view), arena_at(view)
    begin_write(state)
    lanes = state.open_gop.shape[0]
    starts = np.empty(len(sizes), np.int64)
    start = base_of(data)
    for i in range(len(sizes)):
        starts[i] = start
        start += sizes[i]
    for i in range(len(groups)):
        gop = groups[i] // lanes
        lane = groups[i] - gop * lanes
        if chunks[i] == 0:
            note_entry(state, arena, groups[i])
            state.gop_chunk[groups[i]] = 0
        elif not put_chunk(state, arena, lane, gop, starts[chunks[i] - 1], sizes[chunks[i] - 1]):
            return False
        state.head_row[lane] = STALE
    return True


@kernel
def put_open(view: Any, table: Any, maps: Any, records: Any) -> None:
    """Let open groups be as a table says; needs `WORDS_A_GROUP` of log for each, and records."""
    state = state_at(view)
    begin_write(state)
    meta, per_lane = state.meta, state.open_gop.shape[1]
    n_map = state.open_map.shape[2]
    record, taken = base_of(records), 0
    for i in range(table.shape[1]):
        lane = table[SLOT, i] // per_lane
        place = table[SLOT, i] - lane * per_lane
        state.head_row[lane] = STALE
        if table[GROUP, i] == CLOSED:
            drop_open(state, lane, place)
            continue
        start, size = table[START, i], table[SIZE, i]
        if start > 0:
            note_tail(state, lane, place)
        else:
            drop_open(state, lane, place)
            note_begin(state, lane, place)
            state.background_uses[table[CHOSEN, i]] += 1
            meta[N_OPEN] += 1
        if table[FLAGS, i] & MAP_FLAG:
            for j in range(n_map):
                state.open_map[lane, place, j] = maps[taken + j]
            taken += n_map
        copy_bytes(open_records_at(state, lane, place) + start, record, size - start)
        record += size - start
        state.open_gop[lane, place] = table[GROUP, i]
        state.open_next[lane, place] = table[NEXT, i]
        state.open_frames[lane, place] = table[FRAMES, i]
        state.open_size[lane, place] = size
        state.open_flags[lane, place] = table[FLAGS, i]
        state.open_background[lane, place] = table[CHOSEN, i]
