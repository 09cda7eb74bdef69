"""Where groups of pictures lie in memory: the arrays of a store, and the groups in them.

A lane's cells (row ``t``, ``k``-th of the stack) lie on diagonals ``t + k``. A frame stack repeats
one frame along a diagonal, so a group of pictures (GOP) holds ``G`` diagonals of one lane, each
frame once; without a stack axis a diagonal is a row. Cell ``(t + k - first diagonal) * S + k`` of a
group is the ``k``-th of row ``t``.

Closed groups are chunks in the arena, written as `format.groups` says. Open ones, which frames are
appended to, have their parts in arrays: of the few that a lane may have, group ``gop`` has place
``gop % open per lane``, and among those of all lanes slot ``lane * open per lane + place``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.codecs.encoding import PATIENCE_WORDS, encode
from compressarray.codecs.sparse import encode_sparse
from compressarray.codecs.walking import Walk, decode_all, walking_bytes
from compressarray.codecs.words import codebook_number
from compressarray.format.codebooks import codebook_at as row_of_codebook
from compressarray.format.groups import (
    CODEBOOK_MASK,
    CODEBOOK_SHIFT,
    PACKED,
    PACKED_FLAG,
    SPARSE,
    Group,
    codebook_of,
    flags_at,
    open_group,
)
from compressarray.kernels.attaching import (
    Int64Row,
    Int64Table,
    UInt8Block,
    UInt8Row,
    UInt8Table,
    UInt16Block,
    UInt32Row,
    UInt64Row,
)
from compressarray.kernels.compiling import inlined, kernel, plain
from compressarray.kernels.memory import base_of, load64
from compressarray.store.arena import N_ENTRIES, ArenaState, chunk_start

CLOSED = -1  # in GopState.open_gop
STALE = -2  # in GopState.head_row: the head frames are of no row

# Fields of GopState.meta: all of one number but the last.
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
    VOTES,
    CREDIT,
    LAST_CHUNK,
    N_OPEN,
    N_CLOSED,
    N_EVICTED,
    N_ENCODED,
    WRITE,  # number of the write that runs, from 1
    N_REPLACED,  # chunks and open groups that it has replaced
    N_CHANGES,  # of what is closed, ever
    N_LISTED,  # entries that went to the ring of changes, ever
    N_BEGUN,  # open groups, ever
    N_BACKGROUNDS,  # that were taken, ever
    PATIENCE,  # of `encoding.encode`, the first number
) = range(24)
N_META = PATIENCE + PATIENCE_WORDS


class GopState(NamedTuple):
    """What kernels see of a `GopStore`."""

    meta: Int64Row
    gop_chunk: UInt32Row  # (gops * lanes,) entries of the arena, 0: never written
    gop_touched: UInt8Row
    gop_noted: UInt8Row  # whether the write that runs has changed an entry
    gop_changes: UInt32Row  # (a power of two,) a ring of the entries that changed; none: not kept
    open_gop: Int64Table  # (lanes, open per lane)
    open_next: Int64Table  # the first row that is not in the open group
    open_frames: Int64Table
    open_size: Int64Table
    open_flags: Int64Table
    open_background: Int64Table
    open_map: UInt16Block  # (lanes, open per lane, G * S)
    open_bytes: UInt8Table  # (lanes * open per lane, room)
    head: UInt8Block  # (lanes, S, padded frame): the newest frames, by diagonal
    head_row: Int64Row  # (lanes,)
    backgrounds: UInt8Table  # (n, padded frame); 0 holds the fill value
    background_uses: Int64Row
    candidate: UInt8Table  # (2, padded frame): majority votes, and their counts
    codebooks: UInt8Row  # as `format.codebooks` says
    encode_table: UInt64Row  # of the newest codebook
    open_born: Int64Table  # the write in which a group began last
    open_dropped: Int64Table  # the write in which one ended last
    open_number: Int64Table  # of all groups that ever began, which one it is
    background_number: Int64Row  # of all backgrounds that were ever taken, which one it is
    log: Int64Row  # what the write that runs has replaced; see gop_journal


# -- addresses -------------------------------------------------------------------------------


@inlined
def background_at(state: Any, i: Any) -> Any:
    """Address of background ``i``."""
    return base_of(state.backgrounds) + i * state.backgrounds.shape[1]


@inlined
def codebook_at(state: Any, flags: Any) -> Any:
    """Address of the codebook that a group's flags name."""
    return row_of_codebook(base_of(state.codebooks), codebook_of(flags))


@inlined
def newest_flags(state: Any) -> Any:
    """The flags of what is encoded now: the newest codebook's number."""
    return codebook_number(base_of(state.encode_table)) << CODEBOOK_SHIFT


@inlined
def head_at(state: Any, lane: Any, diagonal: Any) -> Any:
    """Address of a lane's newest frame on a diagonal."""
    stack, padded = state.head.shape[1], state.head.shape[2]
    return base_of(state.head) + (lane * stack + diagonal % stack) * padded


@inlined
def open_records_at(state: Any, lane: Any, place: Any) -> Any:
    """Address of an open group's records."""
    room = state.open_bytes.shape[1]
    return base_of(state.open_bytes) + (lane * state.meta[OPEN_PER_LANE] + place) * room


@inlined
def first_row(state: Any, gop: Any) -> Any:
    """The first row with a cell in a group."""
    return max(0, gop * state.meta[GOP] - state.meta[STACK] + 1)


@inlined
def last_row(state: Any, gop: Any) -> Any:
    """The last row with a cell in a group."""
    return min(state.meta[N_ROWS] - 1, (gop + 1) * state.meta[GOP] - 1)


# -- groups ----------------------------------------------------------------------------------


@inlined
def closed_group(state: Any, chunk: Any) -> Any:
    """The parts of a closed group at an address; see `format.groups.Group`."""
    meta = state.meta
    return open_group(meta[RECORD_KIND], meta[GOP] * meta[STACK], chunk)


@inlined
def group_in_slot(state: Any, slot: Any) -> Any:
    """The parts of the open group in a slot."""
    map_cells = state.meta[GOP] * state.meta[STACK]
    return Group(
        _int_at(state.open_flags, slot),
        _int_at(state.open_background, slot),
        _int_at(state.open_frames, slot),
        np.int64(0),
        np.int64(0),
        base_of(state.open_map) + slot * 2 * map_cells,
        base_of(state.open_bytes) + slot * state.open_bytes.shape[1],
    )


@inlined
def _int_at(array: Any, i: Any) -> Any:
    return np.int64(load64(base_of(array) + (i << 3)))


@inlined
def walk_of(state: Any, group: Any, scratch: Any) -> Any:
    """What it takes to walk along a group; ``scratch`` is the address of `walking_bytes`."""
    meta = state.meta
    return Walk(
        np.int64(PACKED) if group.flags & PACKED_FLAG else meta[RECORD_KIND],
        meta[FRAME_BYTES],
        meta[ROW_BYTES],
        group.records,
        background_at(state, group.background),
        codebook_at(state, group.flags),
        scratch,
    )


@kernel
def unroll(state: Any, group: Any, n_frames: Any, frames: Any, step: Any) -> Any:
    """Decode the first ``n_frames`` of a group, or all of it, to ``frames + number * step``.

    Returns the address after their records. The group is not packed.
    """
    scratch = np.empty(walking_bytes(state.meta[FRAME_BYTES], False), np.uint8)
    end = decode_all(walk_of(state, group, base_of(scratch)), group.key, n_frames, frames, step)
    scratch[0] = 0  # used until here: numba may free what only its address is used of
    return end


@kernel
def encode_frame(state: Any, frame: Any, previous: Any, background: Any, first: Any, out: Any,
                 scratch: Any) -> Any:  # fmt: skip
    """Write one record, of either kind; ``previous`` becomes ``frame`` in delta records.

    ``first`` is where the group's first record lies, 0 for that one itself; ``scratch`` the
    address of `encoding.encoding_bytes`.
    """
    meta = state.meta
    n_bytes, row_bytes = meta[FRAME_BYTES], meta[ROW_BYTES]
    meta[N_ENCODED] += 1
    if meta[RECORD_KIND] == SPARSE:
        return encode_sparse(frame, first, n_bytes, row_bytes, out)
    patience = base_of(meta) + 8 * PATIENCE
    return encode(
        frame, previous, background, n_bytes, row_bytes, base_of(state.encode_table), scratch,
        patience, out,
    )  # fmt: skip


@kernel
def _mark_codebooks(arena: Any, used: Any) -> None:
    for entry in range(1, arena.meta[N_ENTRIES]):
        if arena.references[entry] > 0:
            chunk = base_of(arena.memory) + chunk_start(arena, entry)
            used[codebook_of(flags_at(chunk))] = True


def codebooks_in_use(state: GopState, arena: ArenaState) -> npt.NDArray[np.bool_]:
    """Say of each number of a codebook whether a group names it, closed or open."""
    used = np.zeros(CODEBOOK_MASK + 1, np.bool_)
    _mark_codebooks(arena, used)
    used[plain(codebook_of)(state.open_flags[state.open_gop != CLOSED])] = True
    return used
