"""Kernels that pack closed groups of delta records, and unpack them whole."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.codecs.entropy import count_symbols, pack_record, unpack_record
from compressarray.codecs.words import model_of, skip_record, table_of
from compressarray.kernels.compiling import inlined, kernel
from compressarray.kernels.memory import copy_bytes, store8, store32
from compressarray.store.gop_layout import (
    DELTA,
    FRAME_BYTES,
    GOP,
    HEADER_BYTES,
    MAP_FLAG,
    PACKED_FLAG,
    STACK,
    codebook_at,
    keyframe,
    read_header,
)
from compressarray.store.gop_view import state_at


@inlined
def _records_of(state: Any, stream: Any, flags: Any) -> Any:
    map_bytes = 2 * state.meta[GOP] * state.meta[STACK] if flags & MAP_FLAG else 0
    return stream + HEADER_BYTES + map_bytes


@kernel
def pack_stream(view: Any, stream: Any, encode: Any, out: Any) -> Any:
    """Pack a closed stream with the codes of its codebook; return its bytes.

    Parameters
    ----------
    stream, encode : address
    out : address
        Room for twice the stream and 64 bytes: escapes may make it longer.
    """
    state = state_at(view)
    flags, _, n_frames, _ = read_header(stream)
    n_bytes = state.meta[FRAME_BYTES]
    codebook = codebook_at(state, flags)
    tables, model = table_of(codebook), model_of(codebook)
    record = _records_of(state, stream, flags)
    packed = out + (record - stream)
    copy_bytes(out, stream, record - stream)
    key = keyframe(DELTA, n_frames)
    pos = np.int64(0)
    turn = np.int64(0)
    for i in range(n_frames):
        if i == n_frames - key:
            turn = pos
        record, pos = pack_record(record, n_bytes, tables, model, encode, packed, pos)
    if key == 0:
        turn = pos
    store8(out, np.uint8(flags | PACKED_FLAG))
    store32(out + 4, np.uint32(turn))
    return packed + ((pos + 7) >> 3) - out


@kernel
def unpack_stream(view: Any, chunk: Any, out: Any, codes: Any) -> Any:
    """Undo `pack_stream`; return the stream's bytes.

    Parameters
    ----------
    chunk : address
    out : address
        Room for a stream.
    codes : address
        Scratch of a frame's bytes and a few more.
    """
    state = state_at(view)
    flags, _, n_frames, _ = read_header(chunk)
    flags &= 255 - PACKED_FLAG
    n_bytes = state.meta[FRAME_BYTES]
    codebook = codebook_at(state, flags)
    tables, model = table_of(codebook), model_of(codebook)
    packed = _records_of(state, chunk, flags)
    record = out + (packed - chunk)
    copy_bytes(out, chunk, packed - chunk)
    key = keyframe(DELTA, n_frames)
    pos = np.int64(0)
    first = record
    turn = np.int64(0)
    for i in range(n_frames):
        if i == n_frames - key:
            turn = record - first
        pos = unpack_record(packed, pos, n_bytes, tables, model, record, codes)
        record = skip_record(record, n_bytes, tables)
    if key == 0:
        turn = record - first
    store8(out, np.uint8(flags))
    store32(out + 4, np.uint32(turn))
    return record - out


@kernel
def count_stream(view: Any, stream: Any, counts: Any) -> None:
    """Count the symbols of a closed stream, unpacked, at an address; see `count_symbols`."""
    state = state_at(view)
    flags, _, n_frames, _ = read_header(stream)
    record = _records_of(state, stream, flags)
    tables = table_of(codebook_at(state, flags))
    count_symbols(record, n_frames, state.meta[FRAME_BYTES], tables, counts)
