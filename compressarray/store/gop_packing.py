"""Kernels that pack closed groups of delta records, and unpack them whole."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.codecs.entropy import count_symbols, pack_record
from compressarray.codecs.unpacking import (
    ANY_ROOM,
    FILLED,
    RUN_BYTES,
    begin_run,
    get,
    unpack_runs,
    unpacking_bytes,
)
from compressarray.format.codebooks import model_of, table_of
from compressarray.format.groups import PACKED_FLAG, write_header
from compressarray.format.records import record_room
from compressarray.kernels.compiling import kernel
from compressarray.kernels.memory import base_of, copy_bytes
from compressarray.store.gop_layout import FRAME_BYTES, closed_group, codebook_at
from compressarray.store.gop_view import state_at


@kernel
def pack_group(view: Any, closed: Any, encode: Any, out: Any) -> Any:
    """Pack a closed group with the codes of its codebook; return how many bytes that takes.

    Parameters
    ----------
    closed, encode : address
    out : address
        Room for twice its bytes and 64 more: escapes may make it longer.
    """
    state = state_at(view)
    n_bytes = state.meta[FRAME_BYTES]
    group = closed_group(state, closed)
    codebook = codebook_at(state, group.flags)
    tables, model = table_of(codebook), model_of(codebook)
    record = group.records
    packed = out + (record - closed)
    copy_bytes(out, closed, record - closed)
    pos = np.int64(0)
    earlier = np.int64(0)
    for i in range(group.n_frames):
        if i == group.n_frames - group.key:
            earlier = pos
        record, pos = pack_record(record, n_bytes, tables, model, encode, packed, pos)
    if group.key == 0:
        earlier = pos
    write_header(out, group.flags | PACKED_FLAG, group.background, group.n_frames, earlier)
    return packed + ((pos + 7) >> 3) - out


@kernel
def unpack_group(view: Any, chunk: Any, out: Any) -> Any:
    """Undo `pack_group`; return how many bytes the group takes.

    Parameters
    ----------
    chunk : address
    out : address
        Room for a group.
    """
    state = state_at(view)
    n_bytes = state.meta[FRAME_BYTES]
    group = closed_group(state, chunk)
    codebook = codebook_at(state, group.flags)
    first = out + (group.records - chunk)
    copy_bytes(out, chunk, group.records - chunk)
    n_later, room = group.n_frames - group.key, group.key * record_room(n_bytes)
    scratch = np.empty(2 * RUN_BYTES + room + unpacking_bytes(n_bytes), np.uint8)
    later = base_of(scratch)
    earlier = later + RUN_BYTES
    aside = earlier + RUN_BYTES
    pos = group.records << 3
    begin_run(later, pos, n_later, n_bytes, codebook, first, first + ANY_ROOM)
    pos += group.earlier
    begin_run(earlier, pos, group.key, n_bytes, codebook, aside, aside + room)
    unpack_runs(later, 2, n_bytes, aside + room)
    middle, n_aside = get(later, FILLED), get(earlier, FILLED) - aside
    copy_bytes(middle, aside, n_aside)
    scratch[0] = 0  # used until here: numba may free what only its address is used of
    write_header(out, group.flags & ~PACKED_FLAG, group.background, group.n_frames, middle - first)
    return middle + n_aside - out


@kernel
def count_group(view: Any, closed: Any, counts: Any) -> None:
    """Count the symbols of a closed group, unpacked, at an address; see `count_symbols`."""
    state = state_at(view)
    group = closed_group(state, closed)
    tables = table_of(codebook_at(state, group.flags))
    count_symbols(group.records, group.n_frames, state.meta[FRAME_BYTES], tables, counts)
