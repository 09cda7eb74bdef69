"""The delta record: one frame as the 64-bit words in which it differs from the frame before.

A record is ``n_tokens`` (LEB128), then that many one-byte tokens, then their values. A token
names, through a table of 255 entries, how many unchanged words to skip, which bytes of the next
word change, and where their new values come from (`KINDS`); a change that the table does not
name may take two, one that skips and one that changes, and token 255 gives the same three in the
values. Words that come again and again lie in a dictionary, and their values are a place in it.
Where records are to be packed, values may also be residuals: what is left of all bytes of a word
when those of a neighbour are taken away, small numbers that a code of few bits names.
Tokens apart from values is what makes decoding fast: where the next token lies does not depend
on the one before, so a processor works on several at once.

``n_tokens`` one above the words of a frame marks a raw record: the frame's bytes follow. Two
above them mark a record of copies (`copies.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.format.copies import copies_end
from compressarray.format.numbers import get_varint
from compressarray.kernels.compiling import inlined, kernel
from compressarray.kernels.memory import count_bits, load8, load16

# Where the changed bytes of a word take their new values from.
LITERAL = 0  # the values, one byte each
UNIFORM = 1  # the values, one byte for all
BACKGROUND = 2  # the same place of the background: a sprite moved on
LEFT = 3  # the word before, as decoded: a fill goes on
ABOVE = 4  # one row up, as decoded: a sprite's upright edge
NEAR_WORD = 5  # the dictionary: one byte counts from a place that the table names
FAR_WORD = 6  # the dictionary: two bytes count from its beginning
# And of whole words, the values added byte by byte, modulo 256, to
LEFT_RESIDUAL = 7  # the pixel to the left, as decoded
ABOVE_RESIDUAL = 8  # the bytes one row up, as decoded
OLD_RESIDUAL = 9  # the bytes of the frame before
KINDS = (LITERAL, UNIFORM, BACKGROUND, LEFT, ABOVE, NEAR_WORD, FAR_WORD)
RESIDUALS = (LEFT_RESIDUAL, ABOVE_RESIDUAL, OLD_RESIDUAL)
RESIDUAL = LEFT_RESIDUAL  # the first of them
N_VALUES = 0x08_02_01_00_00_00_01_00  # bytes of values of each kind, of LITERAL a byte each
MAX_PIXEL_BYTES = 8  # that the pixel to the left may have
# ``row_bytes`` below 8 would let ABOVE overlap the word that it predicts.
MIN_ROW_BYTES = 8
N_NEAR = 256
MAX_WORDS = 65535  # of a dictionary: two bytes name one

ESCAPE = 255
ENTRY_BYTES = 32  # of a decoding table
N_VALUES_AT, KIND_AT = 12, 13  # in an entry
MAX_SKIP = 4095  # of a token in a table; an escape skips any number
MAX_CHANGE = 0xFFF  # of a `token_key` that skips nothing
SKIP_SHIFT, MASK_SHIFT, KIND_MASK = 12, 4, 0xF  # in a `token_key`


@inlined
def token_key(skip: Any, mask: Any, kind: Any) -> Any:
    """One integer for a (skip, mask, kind): what a token stands for."""
    return (np.int64(skip) << SKIP_SHIFT) | (np.int64(mask) << MASK_SHIFT) | np.int64(kind)


@inlined
def count_values(mask: Any, kind: Any) -> Any:
    """Bytes of values that a change of a kind takes."""
    n = (N_VALUES >> (np.int64(min(kind, RESIDUAL)) << 3)) & 0xFF
    return count_bits(np.uint64(mask)) if kind == LITERAL else n


@inlined
def record_bytes(n_bytes: Any, has_residuals: Any) -> Any:
    """Bytes of tokens and values from which on a record is a raw one.

    Those of residuals may be more than a frame's, for they are to be packed.
    """
    return n_bytes + (n_bytes >> 2 if has_residuals else 0)


@inlined
def record_room(n_bytes: Any) -> Any:
    """Bytes that a record takes at most, with its number of tokens, and some."""
    return n_bytes + (n_bytes >> 2) + 32


@inlined
def pixel_bytes_of(decode_table: Any) -> Any:
    """Distance to the pixel to the left, in a table at an address."""
    return np.int64(load16(decode_table + ESCAPE * ENTRY_BYTES + 14))


@inlined
def is_copies(n_tokens: Any, n_bytes: Any) -> Any:
    """Whether a record that says so many tokens is one of copies."""
    return n_tokens == ((n_bytes + 7) >> 3) + 2


@kernel
def skip_record(record: Any, n_bytes: Any, decode_table: Any) -> Any:
    """The address after a record."""
    n_tokens, record = get_varint(record)
    if n_tokens > (n_bytes + 7) >> 3:
        return copies_end(record) if is_copies(n_tokens, n_bytes) else record + n_bytes
    v = record + n_tokens
    for i in range(n_tokens):
        token = np.int64(load8(record + i))
        if token == ESCAPE:
            kind, mask = np.int64(load8(v)), np.int64(load8(v + 1))
            _, v = get_varint(v + 2)
            v += count_values(mask, kind)
        else:
            v += np.int64(load8(decode_table + token * ENTRY_BYTES + N_VALUES_AT))
    return v
