"""Whether bytes are records that the decoder may be given, for it checks nothing itself.

What `check_record` passes changes words of its frame only and reads nothing but the frame, the
background, the dictionary and the record, whatever the frame before holds. Packed records are
unpacked first, into room for the longest that their bits can give, and then looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.codecs.copies import check_copies
from compressarray.format.numbers import checked_varint
from compressarray.format.reasons import (
    NO_COUNT,
    NO_KIND,
    NO_SOURCE,
    NO_TOKEN,
    NO_WORD,
    OUTSIDE,
    SHORT,
    TOO_LONG,
)
from compressarray.format.records import (
    ABOVE,
    ABOVE_RESIDUAL,
    ENTRY_BYTES,
    ESCAPE,
    FAR_WORD,
    KIND_AT,
    LEFT,
    LEFT_RESIDUAL,
    MIN_ROW_BYTES,
    N_VALUES_AT,
    NEAR_WORD,
    OLD_RESIDUAL,
    RESIDUAL,
    count_values,
    is_copies,
    pixel_bytes_of,
    record_bytes,
)
from compressarray.format.sparse import HEADER_BYTES, RAW_TAG, coordinate_bytes, load_coordinate
from compressarray.kernels.compiling import kernel
from compressarray.kernels.memory import load8, load16, load32, load64


@kernel
def check_record(record: Any, end: Any, n_bytes: Any, row_bytes: Any, decode_table: Any,
                 n_dictionary: Any) -> Any:  # fmt: skip
    """The address after a delta record, or which of `REASONS` there is against it.

    Parameters
    ----------
    record, end : address
        The record lies between them, if it is one.
    decode_table : address
        One from `build_tables`.
    n_dictionary : int
        Words in the dictionary.
    """
    n_words = (n_bytes + 7) >> 3
    n_tokens, tokens = checked_varint(record, end)
    if n_tokens < 0:
        return SHORT
    if is_copies(n_tokens, n_bytes):
        return check_copies(tokens, end, n_bytes, pixel_bytes_of(decode_table))
    if n_tokens > n_words:
        if n_tokens > n_words + 1:
            return NO_COUNT
        return tokens + n_bytes if n_bytes <= end - tokens else SHORT
    if n_tokens > end - tokens:
        return SHORT
    first_near = np.int64(load64(decode_table + ESCAPE * ENTRY_BYTES + 16))
    pixel_bytes = pixel_bytes_of(decode_table)
    v = tokens + n_tokens
    word = np.int64(-1)
    for i in range(n_tokens):
        token = np.int64(load8(tokens + i))
        if token == ESCAPE:
            if end - v < 2:
                return SHORT
            kind, mask = np.int64(load8(v)), np.int64(load8(v + 1))
            if kind > OLD_RESIDUAL:
                return NO_KIND
            skip, v = checked_varint(v + 2, end)
            if skip < 0:
                return SHORT
            step = skip + 1
            n_values = np.int64(count_values(mask, kind))
        else:
            entry = decode_table + token * ENTRY_BYTES
            step = np.int64(load32(entry + 8)) >> 3
            if step == 0:
                return NO_TOKEN
            n_values = np.int64(load8(entry + N_VALUES_AT))
            kind = np.int64(load8(entry + KIND_AT))
        word += step
        if word >= n_words:
            return OUTSIDE
        if n_values > end - v:
            return SHORT
        if kind >= RESIDUAL and pixel_bytes == 0:
            return NO_KIND
        if kind >= RESIDUAL and word >= n_bytes >> 3:
            return NO_SOURCE
        if kind in (LEFT, LEFT_RESIDUAL) and word == 0:
            return NO_SOURCE
        if kind in (ABOVE, ABOVE_RESIDUAL) and (row_bytes < MIN_ROW_BYTES or word << 3 < row_bytes):
            return NO_SOURCE
        if kind == NEAR_WORD and first_near + np.int64(load8(v)) >= n_dictionary:
            return NO_WORD
        if kind == FAR_WORD and np.int64(load16(v)) >= n_dictionary:
            return NO_WORD
        v += n_values
    return v if n_tokens == 0 or v - tokens < record_bytes(n_bytes, pixel_bytes > 0) else TOO_LONG


@kernel
def check_sparse(record: Any, end: Any, is_first: Any, n_bytes: Any, row_bytes: Any) -> Any:
    """The address after a sparse record, or which of `REASONS` there is against it."""
    if end - record < 1:
        return SHORT
    tag = np.int64(load8(record))
    if tag == RAW_TAG:
        return record + 1 + n_bytes if n_bytes < end - record else SHORT
    if tag != 0:
        return NO_KIND
    if is_first:
        return NO_SOURCE
    if end - record < HEADER_BYTES:
        return SHORT
    changed = np.int64(load32(record + 1))
    width = coordinate_bytes(n_bytes, row_bytes)
    if changed * (2 * width + 2) > n_bytes:
        return TOO_LONG
    rows = record + HEADER_BYTES
    columns = rows + changed * width
    after = columns + changed * (width + 2)
    if after > end:
        return SHORT
    for n in range(changed):
        row, column = load_coordinate(rows, n, width), load_coordinate(columns, n, width)
        if row * row_bytes + column >= n_bytes:
            return OUTSIDE
    return after
