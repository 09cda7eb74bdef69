"""Kernels that check groups which came from elsewhere, before anything decodes them.

A group that passes can be read, unpacked, rebuilt and learnt from without a read or a write
outside of the store's memory and of the scratch that is meant for it.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.codecs.checking import check_record, check_sparse
from compressarray.codecs.unpacking import (
    FILLED,
    LAST,
    N_DONE,
    N_RECORDS,
    NEED,
    POS,
    ROOM,
    RUN_BYTES,
    TABLE,
    begin_run,
    get,
    packed_room,
    plain_room,
    put,
    refill,
    unpack_runs,
    unpacking_bytes,
)
from compressarray.errors import CorruptFrameError
from compressarray.format.codebooks import model_of, table_of
from compressarray.format.groups import (
    ALL_FLAGS,
    DELTA,
    HEADER_BYTES,
    MAP_FLAG,
    NO_FRAME,
    PACKED_FLAG,
    SPARSE,
    codebook_of,
)
from compressarray.format.reasons import REASONS as REASONS_OF_RECORDS
from compressarray.format.reasons import SHORT
from compressarray.kernels.attaching import describe
from compressarray.kernels.compiling import inlined, kernel
from compressarray.kernels.memory import base_of, copy_bytes
from compressarray.store.arena import N_ENTRIES, ArenaState, chunk_start
from compressarray.store.gop_layout import (
    CLOSED,
    FRAME_BYTES,
    GOP,
    N_LANES,
    N_OPEN,
    OPEN_PER_LANE,
    PACKS,
    RECORD_KIND,
    ROW_BYTES,
    STACK,
    GopState,
    closed_group,
    codebook_at,
    first_row,
    group_in_slot,
    last_row,
)
from compressarray.store.gop_view import arena_at, state_at, view_of
from compressarray.store.workers import n_threads, run

PART_BYTES = 1 << 22  # of chunks that are worth a thread of their own
FINE = 0
(
    NO_HEADER,
    NO_FLAGS,
    NO_BACKGROUND,
    NO_CODEBOOK,
    MANY_FRAMES,
    NO_EARLIER,
    LOOSE_END,
    NOT_OPEN,
    NO_NUMBER,
) = range(-17, -8)
REASONS = REASONS_OF_RECORDS | {
    NO_HEADER: "it has no room for its header",
    NO_FLAGS: "it has flags that do not exist",
    NO_BACKGROUND: "it names a background that does not exist",
    NO_CODEBOOK: "it names a codebook, or codes, that do not exist",
    MANY_FRAMES: "it has other frames than belong to its cells",
    NO_EARLIER: "its earlier frames do not begin where it says",
    LOOSE_END: "bytes follow its last record",
    NOT_OPEN: "an open group cannot have that number and those rows",
    NO_NUMBER: "a cell names a frame that the group does not have",
}


def check_groups(
    state: GopState, arena: ArenaState, n_words: npt.NDArray[np.int64], *, records_too: bool
) -> npt.NDArray[np.bool_]:
    """Check every group of a restored store, and count the backgrounds that they use.

    Parameters
    ----------
    state : GopState
        Its ``background_uses`` and its number of open groups are zero before.
    arena : ArenaState
    n_words : ndarray, (numbers,) int64
        Words in each codebook's dictionary, -1 where there is no codebook.
    records_too : bool
        Or only headers, of what this process has encoded.

    Returns
    -------
    ndarray, (numbers,) bool
        Which codebooks are in use.

    Raises
    ------
    CorruptFrameError
    """
    n_entries = int(arena.meta[N_ENTRIES])
    n_parts = 1
    if records_too:
        held = int(arena.size[1:n_entries].sum(dtype=np.int64))
        n_parts = max(1, min(held // PART_BYTES, n_threads()))
    # Each part counts for itself: threads that add to one number lose what others have added.
    parts = [_apart(state) for _ in range(n_parts)]
    uses = np.zeros((n_parts, len(n_words)), np.bool_)
    cuts = [1 + (n_entries - 1) * part // n_parts for part in range(n_parts + 1)]
    answers = run(
        [
            partial(_check_chunks, view_of(part, arena), first, end, n_words, records_too, used)
            for part, (first, end), used in zip(parts, pairwise(cuts), uses, strict=True)
        ]
    )
    for entry, reason in answers:
        if reason != FINE:
            raise CorruptFrameError(f"stored chunk {entry} is corrupt: {REASONS[reason]}")
    for part in parts:
        state.background_uses[:] += part.background_uses
    used: npt.NDArray[np.bool_] = np.logical_or.reduce(uses)
    view = view_of(state, arena)
    for lane, place in np.argwhere(state.open_gop != CLOSED).tolist():
        reason = _check_open(view, lane, place, n_words, records_too)
        if reason != FINE:
            raise CorruptFrameError(
                f"the stored open group of lane {lane} is corrupt: {REASONS[reason]}"
            )
    return used


def check_chunks(
    state: GopState,
    data: npt.NDArray[np.uint8],
    sizes: npt.NDArray[np.int64],
    n_words: npt.NDArray[np.int64],
) -> None:
    """Check closed groups that lie one behind the other; some bytes behind the last one are read.

    Raises
    ------
    CorruptFrameError
    """
    used = np.zeros(len(n_words), np.bool_)
    aside = _apart(state)
    i, reason = _check_given(describe(aside), data, sizes, n_words, used)
    if reason != FINE:
        raise CorruptFrameError(f"chunk {i} of a message is corrupt: {REASONS[reason]}")


def check_open(
    state: GopState, slots: npt.NDArray[np.int64], n_words: npt.NDArray[np.int64]
) -> None:
    """Check open groups, by their slots.

    Raises
    ------
    CorruptFrameError
    """
    aside = _apart(state)
    view = describe(aside)
    for slot in slots.tolist():
        lane, place = divmod(slot, state.open_gop.shape[1])
        reason = _check_open(view, lane, place, n_words, True)
        if reason != FINE:
            raise CorruptFrameError(
                f"the open group of lane {lane} in a message is corrupt: {REASONS[reason]}"
            )


def _apart(state: GopState) -> GopState:
    """The same groups, with counts of their own."""
    return state._replace(meta=state.meta.copy(), background_uses=state.background_uses.copy())


@kernel
def _check_given(view: Any, data: Any, sizes: Any, n_words: Any, used: Any) -> Any:
    """Check chunk after chunk; return the last one checked, and what there is against it."""
    state = state_at(view)
    longest = np.int64(0)
    for size in sizes:
        longest = max(longest, size)
    scratch = _scratch_to_unpack(state, longest)
    chunk = base_of(data)
    for i in range(len(sizes)):
        reason = _check_chunk(state, chunk, sizes[i], n_words, True, used, scratch, longest)
        if reason != FINE:
            return i, reason
        chunk += sizes[i]
    return np.int64(0), np.int64(FINE)


@kernel
def _scratch_to_unpack(state: Any, longest: Any) -> Any:
    """Room to unpack chunks of up to so many bytes, whatever they hold."""
    n_bytes = state.meta[FRAME_BYTES]
    room = longest + packed_room(n_bytes) + 2 * (RUN_BYTES + _checking_room(n_bytes))
    return np.empty(room + unpacking_bytes(n_bytes) if state.meta[PACKS] else 0, np.uint8)


@kernel
def _check_chunks(view: Any, first: Any, last: Any, n_words: Any, records_too: Any,
                  used: Any) -> Any:  # fmt: skip
    """Check chunks; return the last one checked, and what there is against it."""
    state, arena = state_at(view), arena_at(view)
    longest = np.int64(0)
    for entry in range(first, last):
        longest = max(longest, np.int64(arena.size[entry]))
    scratch = _scratch_to_unpack(state, longest)
    for entry in range(first, last):
        chunk = base_of(arena.memory) + chunk_start(arena, entry)
        size = np.int64(arena.size[entry])
        reason = _check_chunk(state, chunk, size, n_words, records_too, used, scratch, longest)
        if reason != FINE:
            return entry, reason
    return np.int64(0), np.int64(FINE)


@kernel
def _check_chunk(state: Any, chunk: Any, size: Any, n_words: Any, records_too: Any, used: Any,
                 scratch: Any, longest: Any) -> Any:  # fmt: skip
    meta = state.meta
    kind, n_cells = meta[RECORD_KIND], meta[GOP] * meta[STACK]
    if size < HEADER_BYTES:
        return NO_HEADER
    group = closed_group(state, chunk)
    if group.flags & ~ALL_FLAGS:
        return NO_FLAGS
    if group.background >= state.backgrounds.shape[0]:
        return NO_BACKGROUND
    number = codebook_of(group.flags)
    n_dictionary = np.int64(0)
    packed = group.flags & PACKED_FLAG != 0
    if kind == DELTA:
        if number >= len(n_words) or n_words[number] < 0:
            return NO_CODEBOOK
        n_dictionary = n_words[number]
        used[number] = True
        if packed and (not state.meta[PACKS] or model_of(codebook_at(state, group.flags)) == 0):
            return NO_CODEBOOK
    elif number > 0 or packed:
        return NO_CODEBOOK
    if group.n_frames > n_cells:
        return MANY_FRAMES
    end = chunk + size
    if group.records > end:
        return NO_HEADER
    state.background_uses[group.background] += 1
    if not records_too:
        return FINE
    if packed:
        return _check_packed(state, group, end, n_dictionary, base_of(scratch), longest)
    return _check_records(state, group, end, n_dictionary)


@kernel
def _check_records(state: Any, group: Any, end: Any, n_dictionary: Any) -> Any:
    """Check the records of a group, which end at an address."""
    meta = state.meta
    n_bytes, row_bytes = meta[FRAME_BYTES], meta[ROW_BYTES]
    is_sparse = meta[RECORD_KIND] == SPARSE
    tables = np.int64(0) if is_sparse else table_of(codebook_at(state, group.flags))
    record = group.records
    for i in range(group.n_frames):
        if i == group.n_frames - group.key and record - group.records != group.earlier:
            return NO_EARLIER
        if is_sparse:
            record = check_sparse(record, end, i == 0, n_bytes, row_bytes)
        else:
            record = check_record(record, end, n_bytes, row_bytes, tables, n_dictionary)
        if record < 0:
            return record
    return FINE if record == end else LOOSE_END


@kernel
def _check_packed(state: Any, group: Any, end: Any, n_dictionary: Any, scratch: Any,
                  longest: Any) -> Any:  # fmt: skip
    """Unpack with so much room around everything that no bits can lead out of it, and check."""
    n_bytes = state.meta[FRAME_BYTES]
    size = end - group.records
    codebook = codebook_at(state, group.flags)
    if group.earlier > size << 3:
        return NO_EARLIER
    copy_bytes(scratch, group.records, size)
    first, last = scratch << 3, (scratch + size) << 3
    later = scratch + longest + packed_room(n_bytes)
    earlier = later + RUN_BYTES
    room = earlier + RUN_BYTES
    middle = room + _checking_room(n_bytes)
    unpacking = middle + _checking_room(n_bytes)
    n_later = group.n_frames - group.key
    begin_run(later, first, n_later, n_bytes, codebook, room, middle)
    first += group.earlier
    begin_run(earlier, first, group.key, n_bytes, codebook, middle, unpacking)
    for each in (later, earlier):
        put(each, NEED, plain_room(n_bytes))
        put(each, LAST, last)
    unpack_runs(later, 2, n_bytes, unpacking)
    for each in (later, earlier):
        checked = _check_run(each, n_bytes, state.meta[ROW_BYTES], n_dictionary, unpacking)
        if checked < 0:
            return checked
        if get(each, POS) > last:
            return SHORT
        if each == later and group.key > 0 and get(each, POS) != first:
            return NO_EARLIER
    pos = get(earlier if group.key > 0 else later, POS)
    return FINE if (pos + 7) >> 3 == scratch + size else LOOSE_END


@inlined
def _checking_room(n_bytes: Any) -> Any:
    """Room for what is unpacked of a run at a time: one record of whatever bits, and some more."""
    return plain_room(n_bytes) + 4 * n_bytes


@kernel
def _check_run(run: Any, n_bytes: Any, row_bytes: Any, n_dictionary: Any, scratch: Any) -> Any:
    """Check the records of a run; return a number below 0 for what there is against one."""
    while True:
        record, filled = get(run, ROOM), get(run, FILLED)
        while record < filled:
            record = check_record(record, filled, n_bytes, row_bytes, get(run, TABLE), n_dictionary)
            if record < 0:
                return record
        if get(run, N_DONE) == get(run, N_RECORDS) or get(run, POS) > get(run, LAST):
            return np.int64(FINE)
        refill(run, n_bytes, scratch)


@kernel
def _check_open(view: Any, lane: Any, place: Any, n_words: Any, records_too: Any) -> Any:
    state = state_at(view)
    meta = state.meta
    stack, gop_length = meta[STACK], meta[GOP]
    gop, until = state.open_gop[lane, place], state.open_next[lane, place]
    n_frames, flags = state.open_frames[lane, place], state.open_flags[lane, place]
    n_gops = len(state.gop_chunk) // meta[N_LANES]
    if gop < 0 or gop >= n_gops or gop % meta[OPEN_PER_LANE] != place:
        return NOT_OPEN
    if until <= first_row(state, gop) or until > last_row(state, gop) + 1:
        return NOT_OPEN
    first = gop * gop_length
    if flags & MAP_FLAG:
        # at most a frame a cell
        n_cells = np.int64(0)
        for k in range(stack):
            n_cells += max(0, min(until + k, first + gop_length) - max(k, first))
        if n_frames < 0 or n_frames > n_cells:
            return MANY_FRAMES
        for i in range(gop_length * stack):
            number = np.int64(state.open_map[lane, place, i])
            if number >= n_frames and number != NO_FRAME:
                return NO_NUMBER
    elif n_frames != min(until + stack - 1 - first, gop_length):
        return MANY_FRAMES
    n_dictionary = np.int64(0)
    if meta[RECORD_KIND] == DELTA:
        n_dictionary = n_words[codebook_of(flags)]
        if n_dictionary < 0:
            return NO_CODEBOOK
    meta[N_OPEN] += 1
    state.background_uses[state.open_background[lane, place]] += 1
    if not records_too:
        return FINE
    group = group_in_slot(state, lane * meta[OPEN_PER_LANE] + place)
    return _check_records(state, group, group.records + state.open_size[lane, place], n_dictionary)
