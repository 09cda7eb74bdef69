"""The delta record: one frame as the 64-bit words in which it differs from the frame before.

A record is ``n_tokens`` (LEB128), then that many one-byte tokens, then their values. A token
names, through a table of 255 entries, how many unchanged words to skip, which bytes of the next
word change, and where their new values come from (`KINDS`); token 255 gives the same three in
the values. Tokens apart from values is what makes decoding fast: where the next token lies does
not depend on the one before, so a processor works on several at once.

``n_tokens`` one above the words of a frame marks a raw record: the frame's bytes follow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.codecs.memory import (
    copy_bytes,
    load8,
    load32,
    load64,
    load_tail,
    nonzero_bytes,
    repeat_byte,
    spread_bytes,
    squeeze_bytes,
    store8,
    store64,
    store_tail,
    widen_mask,
)
from compressarray.jit import inlined, kernel

# Where the changed bytes of a word take their new values from.
LITERAL = 0  # the values, one byte each
UNIFORM = 1  # the values, one byte for all
BACKGROUND = 2  # the same place of the background: a sprite moved on
LEFT = 3  # the word before, as decoded: a fill goes on
ABOVE = 4  # one row up, as decoded: a sprite's upright edge
KINDS = (LITERAL, UNIFORM, BACKGROUND, LEFT, ABOVE)

ESCAPE = 255
MAX_SKIP = 4095  # of a token in a table; an escape skips any number
_HASH_SLOTS = 1024  # of the encoder's table: 255 entries, so most look-ups take one probe
_EMPTY = np.uint32(0xFFFFFFFF)
_HASH_MULTIPLIER = 2654435761  # Knuth, TAOCP 6.4: 2**32 over the golden ratio

# ``row_bytes`` below 8 would let ABOVE overlap the word that it predicts.
MIN_ROW_BYTES = 8


@inlined
def _slot(key: Any) -> Any:
    return ((np.int64(key) * _HASH_MULTIPLIER) & 0xFFFFFFFF) >> 22


@inlined
def token_key(skip: Any, mask: Any, kind: Any) -> Any:
    """One integer for a (skip, mask, kind): what a token stands for."""
    return (np.int64(skip) << 11) | (np.int64(mask) << 3) | np.int64(kind)


@inlined
def _count_values(mask: Any, kind: Any) -> Any:
    # bits of the mask, in pairs, fours and eights: a loop over them would mispredict
    bits = np.int64(mask)
    bits -= (bits >> 1) & 0x55
    bits = (bits & 0x33) + ((bits >> 2) & 0x33)
    bits = (bits + (bits >> 4)) & 0xF
    return bits if kind == LITERAL else np.int64(kind == UNIFORM)


@inlined
def _pack_what(skip: Any, mask: Any, kind: Any) -> Any:
    """Skipped bytes (32 bits), bytes of values (8), kind (8), and the sign: a literal."""
    what = (np.int64(skip) << 3) | (_count_values(mask, kind) << 32) | (np.int64(kind) << 40)
    return what | (np.int64(-1) << 63) if kind == LITERAL else what


@inlined
def _factor(kind: Any) -> Any:
    """By what to multiply values: themselves, one byte eight times, or none."""
    if kind == LITERAL:
        return np.uint64(1)
    return repeat_byte(np.uint64(1)) if kind == UNIFORM else np.uint64(0)


@kernel
def build_tables(keys: Any, decode_table: Any, encode_table: Any) -> None:
    """Fill both tables from the `token_key` of up to 255 tokens.

    Parameters
    ----------
    keys : ndarray, (n,) int64
    decode_table : ndarray, (256, 4) uint64
        Overwritten: the mask, a byte for a bit; `_pack_what`; `_factor`; the mask again where
        values are copied from elsewhere in the frame, or 0.
    encode_table : ndarray, (1024,) uint32
        Overwritten: an open-addressing hash of ``key << 8 | token``.
    """
    decode_table[:] = np.uint64(0)
    encode_table[:] = _EMPTY
    for token in range(min(len(keys), ESCAPE)):
        key = keys[token]
        skip, mask, kind = key >> 11, (key >> 3) & 0xFF, key & 7
        wide = widen_mask(np.uint64(mask))
        decode_table[token, 0] = wide
        decode_table[token, 1] = np.uint64(_pack_what(skip, np.uint64(mask), kind))
        decode_table[token, 2] = _factor(kind)
        decode_table[token, 3] = wide if _factor(kind) == 0 else np.uint64(0)
        slot = _slot(key)
        while encode_table[slot] != _EMPTY:
            slot = (slot + 1) & (_HASH_SLOTS - 1)
        encode_table[slot] = np.uint32((key << 8) | token)


def starting_tokens(row_bytes: int) -> npt.NDArray[np.int64]:
    """Keys of the tokens to begin with, before an array has frames to learn them from.

    A changed word mostly follows the one before it, or lies one row below it, and its changed
    bytes mostly form one run: the weights are rounded from ten Atari games, where this table
    names 56 of 100 tokens and a trained one 87.
    """
    down = max(row_bytes // 8 - 1, 1)
    skips = {0: 0.47, down: 0.2, down - 1: 0.09, down + 1: 0.04, 1: 0.03}
    kinds = {LITERAL: 0.5, UNIFORM: 0.1, BACKGROUND: 0.2, LEFT: 0.1, ABOVE: 0.1}
    ranked: list[tuple[float, int]] = []
    for skip, skip_weight in skips.items():
        for first in range(8):
            for last in range(first, 8):
                mask = (0xFF >> (7 - last + first)) << first
                # runs go on from the word before, or into the word behind
                joined = first == 0 if skip == 0 else last == 7
                mask_weight = 0.3 if first == 0 and last == 7 else 0.04 if joined else 0.015
                for kind, kind_weight in kinds.items():
                    if skip >= 0 and not (kind == LITERAL and first == last):
                        weight = skip_weight * mask_weight * kind_weight
                        ranked.append((-weight, (skip << 11) | (mask << 3) | kind))
    ranked.sort()
    return np.array([key for _, key in ranked[:ESCAPE]], np.int64)


@kernel
def read_tokens(
    record: Any, n_records: Any, n_bytes: Any, decode_table: Any, keys: Any, n: Any
) -> Any:
    """Collect the `token_key` of every token of ``n_records`` into ``keys[n:]``.

    Returns
    -------
    int
        How many keys there are now. Tokens whose skip no table takes are left out.
    """
    n_words = (n_bytes + 7) >> 3
    for _ in range(n_records):
        n_tokens, record = _get_varint(record)
        if n_tokens > n_words:
            record += n_bytes
            continue
        v = record + n_tokens
        for i in range(n_tokens):
            token = np.int64(load8(record + i))
            if token != ESCAPE:
                mask = np.int64(nonzero_bytes(decode_table[token, 0]))
                what = np.int64(decode_table[token, 1])
                skip = (what & 0xFFFFFFFF) >> 3
                kind = (what >> 40) & 7
            else:
                kind = np.int64(load8(v))
                mask = np.int64(load8(v + 1))
                skip, v = _get_varint(v + 2)
            v += _count_values(mask, kind)
            if skip <= MAX_SKIP:
                keys[n] = token_key(skip, mask, kind)
                n += 1
        record = v
    return n


@inlined
def _get_varint(address: Any) -> Any:
    value = np.int64(0)
    shift = 0
    more = True
    while more:
        byte = np.int64(load8(address))
        address += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        more = byte >= 0x80
    return value, address


@inlined
def _put_varint(address: Any, value: Any) -> Any:
    while value >= 0x80:
        store8(address, np.uint8((value & 0x7F) | 0x80))
        address += 1
        value >>= 7
    store8(address, np.uint8(value))
    return address + 1


@kernel
def encode_record(
    new: Any,
    state: Any,
    background: Any,
    n_bytes: Any,
    row_bytes: Any,
    encode_table: Any,
    tokens: Any,
    values: Any,
    out: Any,
) -> Any:
    """Write the record that turns the frame at ``state`` into the one at ``new``.

    Parameters
    ----------
    new, state, background : address
        Frames of ``n_bytes``. ``state`` becomes ``new``, word by word as the decoder will.
    row_bytes : int
        Distance to the byte above, 0 if there is none.
    encode_table : address of (1024,) uint32
        From `build_tables`.
    tokens, values : address
        Scratch of one byte, respectively 16 bytes, for each word of a frame.
    out : address
        Room for ``n_bytes + 8`` bytes.

    Returns
    -------
    int
        The address after the record.
    """
    n_words = (n_bytes + 7) >> 3
    whole = n_bytes >> 3
    tail = n_bytes & 7
    n_tokens = 0
    v = values
    last = -1
    w = 0
    while w < n_words:
        p = w << 3
        if w + 8 <= whole:
            change = np.uint64(0)
            for j in range(8):
                change |= load64(new + p + (j << 3)) ^ load64(state + p + (j << 3))
            if change == 0:
                w += 8
                continue
            end = w + 8
        else:
            end = n_words
        while w < end:
            p = w << 3
            if w < whole:
                fresh = load64(new + p)
                old = load64(state + p)
            else:
                fresh = load_tail(new + p, tail)
                old = load_tail(state + p, tail)
            if fresh == old:
                w += 1
                continue
            mask = nonzero_bytes(fresh ^ old)
            wide = widen_mask(mask)
            if w < whole:
                behind = load64(background + p)
            else:
                behind = load_tail(background + p, tail)
            kind = LITERAL
            if (fresh ^ behind) & wide == 0:
                kind = BACKGROUND
            elif w > 0 and (fresh ^ load64(state + p - 8)) & wide == 0:
                kind = LEFT
            elif (
                row_bytes >= MIN_ROW_BYTES
                and p >= row_bytes
                and (fresh ^ load64(state + p - row_bytes)) & wide == 0
            ):
                kind = ABOVE
            else:
                first = squeeze_bytes(fresh, wide)
                if (fresh ^ repeat_byte(first)) & wide == 0:
                    kind = UNIFORM
            skip = w - last - 1
            token = ESCAPE
            if skip <= MAX_SKIP:
                key = token_key(skip, mask, kind)
                slot = _slot(key)
                entry = load32(encode_table + (slot << 2))
                while entry != _EMPTY:
                    if entry >> np.uint32(8) == key:
                        token = np.int64(entry & np.uint32(0xFF))
                        break
                    slot = (slot + 1) & (_HASH_SLOTS - 1)
                    entry = load32(encode_table + (slot << 2))
            store8(tokens + n_tokens, np.uint8(token))
            n_tokens += 1
            if token == ESCAPE:
                store8(v, np.uint8(kind))
                store8(v + 1, np.uint8(mask))
                v = _put_varint(v + 2, skip)
            if kind == LITERAL:
                store64(v, squeeze_bytes(fresh, wide))
            elif kind == UNIFORM:
                store8(v, np.uint8(first & np.uint64(0xFF)))
            v += _count_values(mask, kind)
            if w < whole:
                store64(state + p, fresh)
            else:
                store_tail(state + p, fresh, tail)
            last = w
            w += 1
    n_values = v - values
    if n_tokens + n_values >= n_bytes:
        out = _put_varint(out, n_words + 1)
        copy_bytes(out, new, n_bytes)
        return out + n_bytes
    out = _put_varint(out, n_tokens)
    copy_bytes(out, tokens, n_tokens)
    copy_bytes(out + n_tokens, values, n_values)
    return out + n_tokens + n_values


@kernel
def _apply_tail(p: Any, offset: Any, value: Any, wide: Any, factor: Any, tail: Any) -> None:
    """One token for the last word of a frame that is no whole number of words."""
    fresh = spread_bytes(value, wide) if factor else load_tail(p + offset, tail)
    store_tail(p, (load_tail(p, tail) & ~wide) | (fresh & wide), tail)


@kernel
def apply_record(
    record: Any,
    state: Any,
    background: Any,
    n_bytes: Any,
    row_bytes: Any,
    decode_table: Any,
    offsets: Any,
) -> Any:
    """Turn the frame at ``state`` into the next one; return the address after the record.

    ``decode_table`` is the address of one from `build_tables`, ``offsets`` that of eight int64
    zeros to work with.

    May read, but not use, up to 8 bytes after the record: streams lie in memory with that much
    room behind them. Trusts its input; `check_record` is for bytes from elsewhere.
    """
    n_words = (n_bytes + 7) >> 3
    n_tokens, record = _get_varint(record)
    if n_tokens > n_words:
        copy_bytes(state, record, n_bytes)
        return record + n_bytes
    v = record + n_tokens
    p = state
    end = state + (n_bytes & ~7)
    store64(offsets + (BACKGROUND << 3), np.uint64(background - state))
    store64(offsets + (LEFT << 3), np.uint64(-8))
    store64(offsets + (ABOVE << 3), np.uint64(-row_bytes))
    for i in range(n_tokens):
        token = np.int64(load8(record + i))
        entry = decode_table + (token << 5)
        wide = load64(entry)
        what = np.int64(load64(entry + 8))
        factor = load64(entry + 16)
        copied = load64(entry + 24)
        if token == ESCAPE:
            kind = np.int64(load8(v))
            mask = np.uint64(load8(v + 1))
            skip, v = _get_varint(v + 2)
            wide = widen_mask(mask)
            what = _pack_what(skip, mask, kind)
            factor = _factor(kind)
            copied = wide if factor == 0 else np.uint64(0)
        p += what & 0xFFFFFFFF
        # Without a branch on the kind: kinds follow each other too irregularly for a predictor,
        # and a miss costs more than computing both what is copied and what is not. The plain form
        # is `_apply_tail`.
        offset = np.int64(load64(offsets + (((what >> 40) & 7) << 3)))
        value = (load64(v) & np.uint64((what >> 63) | 0xFF)) * factor
        if p < end:
            fresh = spread_bytes(value, wide) | (load64(p + offset) & copied)
            store64(p, (load64(p) & ~wide) | fresh)
        else:
            _apply_tail(p, offset, value, wide, factor, n_bytes & 7)
        v += (what >> 32) & 0xFF
        p += 8
    return v
