"""How groups of pictures lie in memory, and the walk along a group's records.

A lane's cells (row ``t``, stack place ``k``) lie on diagonals ``t + k``. A frame stack repeats
one frame along a diagonal, so a group of pictures (GOP) holds ``G`` diagonals of one lane, each
frame once; without a stack axis a diagonal is a row. Closed GOPs are chunks in the arena:

    flags u8 | background u8 | n_frames u16 | turn u32 | map u16 * (G * S), where flagged | records

Delta records begin with the keyframe, which is the middle one, ``n_frames // 2``: the later
frames follow, each coded against the one before it, and then, ``turn`` bytes after the first
record, the earlier ones backwards, each against the one after it. A read so walks a quarter of
its group in the mean, not half of it, and the group costs no byte more. Sparse records, and the
open streams that frames are appended to, are in time order.

Without a map, frame ``i`` belongs to every cell of diagonal ``i``. With one (episodes that begin
inside the group, or cells that are no stacks), ``map[(t + k - first diagonal) * S + k]`` is the
number of the cell's frame, `NO_FRAME` one that was never written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.codecs.entropy import unpack_record
from compressarray.codecs.records import PATIENCE_WORDS, encode
from compressarray.codecs.sparse import apply_sparse, encode_sparse, skip_sparse
from compressarray.codecs.words import (
    CODEBOOK_WORDS,
    apply_record,
    codebook_number,
    model_of,
    table_of,
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
from compressarray.kernels.memory import base_of, copy_bytes, load8, load16, load32
from compressarray.store.arena import N_ENTRIES, ArenaState, chunk_start

HEADER_BYTES = 8
CODEBOOK_BYTES = 8 * CODEBOOK_WORDS
MAP_FLAG = 1
CODEBOOK_SHIFT, CODEBOOK_MASK = 1, 7
PACKED_FLAG = 128  # the records are packed, and ``turn`` counts bits
NO_FRAME = 65535
CLOSED = -1  # in GopState.open_gop
STALE = -2  # in GopState.head_row: the head frames are of no row

DELTA, SPARSE = 0, 1
PACKED = 2  # delta records that went through an entropy coder

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
    N_REPLACED,  # chunks and open streams that it has replaced
    N_CHANGES,  # of what is closed, ever
    N_LISTED,  # entries that went to the ring of changes, ever
    N_BEGUN,  # open streams, ever
    N_BACKGROUNDS,  # that were taken, ever
    PATIENCE,  # of `records.encode`, the first number
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
    open_next: Int64Table  # the first row that is not in the open stream
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
    codebooks: Int64Table  # (numbers, CODEBOOK_WORDS) addresses
    encode_table: UInt64Row  # of the newest codebook
    open_born: Int64Table  # the write in which a stream began last
    open_dropped: Int64Table  # the write in which one ended last
    open_number: Int64Table  # of all streams that ever began, which one it is
    background_number: Int64Row  # of all backgrounds that were ever taken, which one it is
    log: Int64Row  # what the write that runs has replaced; see gop_journal


# -- addresses -------------------------------------------------------------------------------


@inlined
def background_at(state: Any, i: Any) -> Any:
    """Address of background ``i``."""
    return base_of(state.backgrounds) + i * state.backgrounds.shape[1]


@inlined
def codebook_at(state: Any, flags: Any) -> Any:
    """Where the codebook that a stream's flags name is found."""
    return base_of(state.codebooks) + codebook_of(flags) * CODEBOOK_BYTES


@inlined
def codebook_of(flags: Any) -> Any:
    """Number of the codebook that a stream's flags name."""
    return (flags >> CODEBOOK_SHIFT) & CODEBOOK_MASK


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
def open_stream_at(state: Any, lane: Any, place: Any) -> Any:
    """Address of an open stream's records."""
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


# -- records ---------------------------------------------------------------------------------


@inlined
def record_room(n_bytes: Any) -> Any:
    """Bytes that a record takes at most: `record_bytes`, and some."""
    return n_bytes + (n_bytes >> 2) + 32


@inlined
def keyframe(record_kind: Any, n_frames: Any) -> Any:
    """Number of the frame that a closed stream begins with."""
    return n_frames >> 1 if record_kind == DELTA else 0


@kernel
def encode_frame(state: Any, frame: Any, previous: Any, background: Any, first: Any, out: Any,
                 coding: Any) -> Any:  # fmt: skip
    """Write one record, of either kind; ``previous`` becomes ``frame`` in delta records.

    ``coding`` is the address of `records.coding_bytes` of scratch.
    """
    meta = state.meta
    n_bytes, row_bytes = meta[FRAME_BYTES], meta[ROW_BYTES]
    meta[N_ENCODED] += 1
    if meta[RECORD_KIND] == SPARSE:
        return encode_sparse(frame, first, n_bytes, row_bytes, out)
    patience = base_of(meta) + 8 * PATIENCE
    return encode(
        frame, previous, background, n_bytes, row_bytes, base_of(state.encode_table), coding,
        patience, out,
    )  # fmt: skip


@kernel
def walk(record_kind: Any, record: Any, n: Any, frame: Any, background: Any, first: Any,
         n_bytes: Any, row_bytes: Any, codebook: Any, scratch: Any) -> Any:  # fmt: skip
    """Walk ``n`` records on, at least one; leave the last one's frame at ``frame``.

    Delta records change the frame that is there; sparse ones look at ``first``, their group's
    first record. Packed ones begin at a bit's address, eight times a byte's. All need
    `walking_bytes` of scratch, by address.
    """
    if record_kind == PACKED:
        tables, model = table_of(codebook), model_of(codebook)
        for _ in range(n):
            plain_record = scratch + walking_bytes(n_bytes, False)
            codes = plain_record + record_room(n_bytes)
            record = unpack_record(0, record, n_bytes, tables, model, plain_record, codes)
            apply_record(plain_record, frame, background, n_bytes, row_bytes, codebook, scratch)
        return record
    if record_kind == SPARSE:
        for _ in range(n - 1):
            record = skip_sparse(record, n_bytes, row_bytes)
        return apply_sparse(record, first, frame, n_bytes, row_bytes)
    for _ in range(n):
        record = apply_record(record, frame, background, n_bytes, row_bytes, codebook, scratch)
    return record


@inlined
def walking_bytes(n_bytes: Any, packed: Any) -> Any:
    """Bytes of scratch to walk: a frame; to unpack, a record and the codes of its values, too."""
    return n_bytes + 32 + (2 * record_room(n_bytes) if packed else 0)


@kernel
def unroll(state: Any, records: Any, n_frames: Any, key: Any, turn: Any, background: Any,
           codebook: Any, frames: Any, step: Any) -> Any:  # fmt: skip
    """Decode all frames of a stream, unpacked, to ``frames + number * step``.

    ``key`` is the number of the frame that the stream begins with, ``turn`` where the records
    of earlier ones begin. Returns the address after the records of the later ones.
    """
    meta = state.meta
    kind, n_bytes, row_bytes = meta[RECORD_KIND], meta[FRAME_BYTES], meta[ROW_BYTES]
    scratch = np.empty(walking_bytes(n_bytes, False), np.uint8)
    old = base_of(scratch)
    record = records
    before = background
    for i in range(key, n_frames):
        frame = frames + i * step
        copy_bytes(frame, before, n_bytes)
        record = walk(
            kind, record, 1, frame, background, records, n_bytes, row_bytes, codebook, old
        )  # fmt: skip
        before = frame
    later = record
    record = records + turn
    for i in range(key - 1, -1, -1):
        frame = frames + i * step
        copy_bytes(frame, frame + step, n_bytes)
        record = walk(
            kind, record, 1, frame, background, records, n_bytes, row_bytes, codebook, old
        )  # fmt: skip
    scratch[0] = 0  # used until here: numba may free what only its address is used of
    return later


@inlined
def read_header(stream: Any) -> Any:
    """A closed stream's flags, number of background, number of frames, and turn."""
    return (
        np.int64(load8(stream)),
        np.int64(load8(stream + 1)),
        np.int64(load16(stream + 2)),
        np.int64(load32(stream + 4)),
    )


@kernel
def _mark_codebooks(arena: Any, used: Any) -> None:
    for entry in range(1, arena.meta[N_ENTRIES]):
        if arena.references[entry] > 0:
            flags = np.int64(load8(base_of(arena.memory) + chunk_start(arena, entry)))
            used[codebook_of(flags)] = True


def codebooks_in_use(state: GopState, arena: ArenaState) -> npt.NDArray[np.bool_]:
    """Say of each number of a codebook whether a stream names it, closed or open."""
    used = np.zeros(CODEBOOK_MASK + 1, np.bool_)
    _mark_codebooks(arena, used)
    used[plain(codebook_of)(state.open_flags[state.open_gop != CLOSED])] = True
    return used
