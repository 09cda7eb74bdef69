"""The delta record: one frame as the 64-bit words in which it differs from the frame before.

A record is ``n_tokens`` (LEB128), then that many one-byte tokens, then their values. A token
names, through a table of 255 entries, how many unchanged words to skip, which bytes of the next
word change, and where their new values come from (`KINDS`); a change that the table does not
name may take two, one that skips and one that changes, and token 255 gives the same three in the
values. Tokens apart from values is what makes decoding fast: where the next token lies does
not depend on the one before, so a processor works on several at once.

``n_tokens`` one above the words of a frame marks a raw record: the frame's bytes follow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.codecs.memory import (
    changed_bytes,
    copy_bytes,
    count_bits,
    load8,
    load32,
    load64,
    load_tail,
    nonzero_bytes,
    repeat_byte,
    spread_bytes,
    squeeze_bytes,
    stack_words,
    store8,
    store64,
    store_tail,
    widen_mask,
)
from compressarray.jit import inlined, kernel

Int64s = npt.NDArray[np.int64]

# Where the changed bytes of a word take their new values from.
LITERAL = 0  # the values, one byte each
UNIFORM = 1  # the values, one byte for all
BACKGROUND = 2  # the same place of the background: a sprite moved on
LEFT = 3  # the word before, as decoded: a fill goes on
ABOVE = 4  # one row up, as decoded: a sprite's upright edge
KINDS = (LITERAL, UNIFORM, BACKGROUND, LEFT, ABOVE)

ESCAPE = 255
ENTRY_BYTES = 40  # of a decoding table
ESCAPED_BYTES = 4  # the escape, kind, mask, and mostly one byte of skip
MAX_CHOICES = 4096  # changes that a table is chosen for; rarer ones would not get a token
MAX_SKIP = 4095  # of a token in a table; an escape skips any number
MAX_CHANGE = 0x7FF  # of a `token_key` that skips nothing
_HASH_SLOTS = 1024  # of the encoder's table: 255 entries, so most look-ups take one probe
_EMPTY = 0xFFFFFFFF
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
    return count_bits(np.uint64(mask)) if kind == LITERAL else np.int64(kind == UNIFORM)


@inlined
def _pack_step(skip: Any, mask: Any, kind: Any) -> Any:
    """By how much to move on in bytes (32 bits), bytes of values (8), and the kind (8)."""
    step = (np.int64(skip) << 3) + 8
    return step | (_count_values(mask, kind) << 32) | (np.int64(kind) << 40)


@inlined
def _value_mask(kind: Any) -> Any:
    """Which bytes to take from the values: all, or one."""
    return ~np.uint64(0) if kind == LITERAL else np.uint64(0xFF)


@inlined
def _factor(kind: Any) -> Any:
    """By what to multiply values: themselves, one byte eight times, or none."""
    if kind == LITERAL:
        return np.uint64(1)
    return repeat_byte(np.uint64(1)) if kind == UNIFORM else np.uint64(0)


@inlined
def _copied(wide: Any, kind: Any) -> Any:
    """Which bytes to copy from elsewhere in the frame, or of the background."""
    return np.uint64(0) if kind in (LITERAL, UNIFORM) else wide


@kernel
def build_tables(keys: Any, decode_table: Any, encode_table: Any) -> None:
    """Fill both tables from the `token_key` of up to 255 tokens.

    Parameters
    ----------
    keys : ndarray, (n,) int64
    decode_table : ndarray, (256, 5) uint64
        Overwritten: the mask, a byte for a bit; `_pack_step`; `_value_mask`; `_factor`; `_copied`.
    encode_table : ndarray, (1024,) uint32
        Overwritten: an open-addressing hash of ``key << 8 | token``.
    """
    decode_table[:] = np.uint64(0)
    encode_table[:] = np.uint32(_EMPTY)
    for token in range(min(len(keys), ESCAPE)):
        key = keys[token]
        skip, mask, kind = key >> 11, (key >> 3) & 0xFF, key & 7
        wide = widen_mask(np.uint64(mask))
        decode_table[token, 0] = wide
        decode_table[token, 1] = np.uint64(_pack_step(skip, np.uint64(mask), kind))
        decode_table[token, 2] = _value_mask(kind)
        decode_table[token, 3] = _factor(kind)
        decode_table[token, 4] = _copied(wide, kind)
        slot = _slot(key)
        while encode_table[slot] != _EMPTY:
            slot = (slot + 1) & (_HASH_SLOTS - 1)
        encode_table[slot] = np.uint32((key << 8) | token)


def starting_tokens(row_bytes: int) -> Int64s:
    """Keys of the tokens to begin with, before an array has frames to learn them from.

    A changed word mostly follows the one before it, or lies one row below it, and its changed
    bytes mostly form one run: the weights are rounded from ten Atari games.
    """
    down = max(row_bytes // 8 - 1, 1)
    skips = {0: 0.47, down: 0.2, down - 1: 0.09, down + 1: 0.04, 1: 0.03}
    kinds = {LITERAL: 0.5, UNIFORM: 0.1, BACKGROUND: 0.2, LEFT: 0.1, ABOVE: 0.1}
    weights: dict[int, float] = {}
    for skip, skip_weight in skips.items():
        for first in range(8):
            for last in range(first, 8):
                mask = (0xFF >> (7 - last + first)) << first
                # runs go on from the word before, or into the word behind
                joined = first == 0 if skip == 0 else last == 7
                mask_weight = 0.3 if first == 0 and last == 7 else 0.04 if joined else 0.015
                for kind, kind_weight in kinds.items():
                    if skip >= 0 and not (kind == LITERAL and first == last):
                        key = (skip << 11) | (mask << 3) | kind
                        weights[key] = skip_weight * mask_weight * kind_weight
    # three in four whole, then the parts of all others: skips up to five rows
    whole = sorted(weights, key=lambda key: -weights[key])[:192]
    skip_only = [(skip << 11) | LITERAL for skip in range(min(5 * down, ESCAPE - len(whole)))]
    return np.array([*whole, *skip_only], np.int64)


def choose_tokens(keys: Int64s, counts: Int64s) -> Int64s:
    """Choose the tokens that write these changes in the fewest bytes.

    A change takes one token where the table names it whole, two where it names its skip and the
    change apart, and an escape otherwise. How many of the 255 go to whole ones is tried out, the
    most frequent first on either side.

    Parameters
    ----------
    keys, counts : ndarray, (n,) int64
        Different `token_key`, and how often each was seen.
    """
    order = np.argsort(-counts, kind="stable")[:MAX_CHOICES]
    keys, counts = keys[order], counts[order]
    best, least = keys[:ESCAPE], np.inf
    for n_whole in range(ESCAPE - 192, ESCAPE + 1, 64):
        whole, rest, weights = keys[:n_whole], keys[n_whole:], counts[n_whole:]
        parts = np.concatenate([_change_only(rest), _skip_only(rest[rest > MAX_CHANGE])])
        part_weights = np.concatenate([weights, weights[rest > MAX_CHANGE]])
        fresh = ~_found(parts, np.sort(whole))
        parts, places = np.unique(parts[fresh], return_inverse=True)
        ranked = np.argsort(-np.bincount(places, part_weights[fresh]), kind="stable")
        tokens = np.concatenate([whole, parts[ranked[: ESCAPE - n_whole]]])
        size = token_bytes(tokens, keys, counts)
        if size < least:
            best, least = tokens, size
    return best


def token_bytes(tokens: Int64s, keys: Int64s, counts: Int64s) -> int:
    """Bytes that changes take with a table of tokens, their values apart."""
    ranked = np.sort(tokens)
    whole = _found(keys, ranked)
    apart = _found(_change_only(keys), ranked) & _found(_skip_only(keys), ranked)
    return int((counts * np.where(whole, 1, np.where(apart, 2, ESCAPED_BYTES))).sum())


def _found(keys: Int64s, ranked: Int64s) -> npt.NDArray[np.bool_]:
    places = np.minimum(np.searchsorted(ranked, keys), len(ranked) - 1)
    found: npt.NDArray[np.bool_] = ranked[places] == keys
    return found


def _change_only(keys: Int64s) -> Int64s:
    return keys & MAX_CHANGE


def _skip_only(keys: Int64s) -> Int64s:
    """What moves on by the skip of each key; of those that skip nothing, no key."""
    return (((keys >> 11) - 1) << 11) | LITERAL


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
        skipped = np.int64(0)
        for i in range(n_tokens):
            token = np.int64(load8(record + i))
            if token != ESCAPE:
                mask = np.int64(nonzero_bytes(decode_table[token, 0]))
                step = np.int64(decode_table[token, 1])
                skip = ((step & 0xFFFFFFFF) >> 3) - 1
                kind = step >> 40
            else:
                kind = np.int64(load8(v))
                mask = np.int64(load8(v + 1))
                skip, v = _get_varint(v + 2)
            v += _count_values(mask, kind)
            skip += skipped
            skipped = np.int64(0)
            if mask == 0:
                skipped = skip + 1
            elif skip <= MAX_SKIP:
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


@inlined
def _find_token(encode_table: Any, skip: Any, mask: Any, kind: Any) -> Any:
    """The token in a table, at an address, for these three, or `ESCAPE`."""
    token = np.int64(ESCAPE)
    if skip <= MAX_SKIP:
        key = token_key(skip, mask, kind)
        slot = _slot(key)
        entry = np.int64(load32(encode_table + (slot << 2)))
        while entry != _EMPTY:
            # signed: numba compares signed and unsigned integers as floats
            if entry >> 8 == key:
                token = entry & 0xFF
                break
            slot = (slot + 1) & (_HASH_SLOTS - 1)
            entry = np.int64(load32(encode_table + (slot << 2)))
    return token


@inlined
def _find_tokens(encode_table: Any, skip: Any, mask: Any, kind: Any) -> Any:
    """The token for a change, and one to skip with before it: `ESCAPE` for none."""
    token = _find_token(encode_table, skip, mask, kind)
    before = ESCAPE
    if token == ESCAPE and skip > 0:
        token = _find_token(encode_table, 0, mask, kind)
        if token != ESCAPE:
            before = _find_token(encode_table, skip - 1, np.uint64(0), LITERAL)
            if before == ESCAPE:
                token = ESCAPE
    return token, before


@inlined
def _hull(mask: Any) -> Any:
    """The bits of a mask and those between them."""
    above = mask | (mask >> np.uint64(1))
    above |= above >> np.uint64(2)
    above |= above >> np.uint64(4)
    return above & (~mask + np.uint64(1) | mask) & np.uint64(0xFF)


@inlined
def _list_changes(new: Any, state: Any, n_bytes: Any, out: Any) -> Any:
    """List the words that differ at ``out``, ``word << 8 | mask`` each; return how many do."""
    n = np.int64(0)
    whole = n_bytes >> 3
    blocked = whole & ~7
    for w in range(0, blocked, 8):
        masks = changed_bytes(new + (w << 3), state + (w << 3))
        if masks:
            # every word is listed, and those that are equal are overwritten: no branch to miss
            for j in range(8):
                mask = (masks >> np.uint64(j << 3)) & np.uint64(0xFF)
                store64(out + (n << 3), np.uint64((w + j) << 8) | mask)
                n += mask != 0
    for w in range(blocked, (n_bytes + 7) >> 3):
        p = w << 3
        if w < whole:
            change = load64(new + p) ^ load64(state + p)
        else:
            change = load_tail(new + p, n_bytes & 7) ^ load_tail(state + p, n_bytes & 7)
        store64(out + (n << 3), np.uint64(w << 8) | nonzero_bytes(change))
        n += change != 0
    return n


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
        Room for ``n_bytes + 8`` bytes, where the list of changed words waits meanwhile.

    Returns
    -------
    int
        The address after the record.
    """
    n_words = (n_bytes + 7) >> 3
    whole = n_bytes >> 3
    tail = n_bytes & 7
    n_changes = _list_changes(new, state, n_bytes, out)
    n_tokens = 0
    v = values
    last = np.int64(-1)
    for i in range(n_changes):
        change = load64(out + (i << 3))
        mask = change & np.uint64(0xFF)
        w = np.int64(change >> np.uint64(8))
        p = w << 3
        if w < whole:
            fresh = load64(new + p)
            behind = load64(background + p)
            store64(state + p, fresh)
        else:
            fresh = load_tail(new + p, tail)
            behind = load_tail(background + p, tail)
            store_tail(state + p, fresh, tail)
        # All kinds are looked at, for which one it is no processor can predict. What was decoded
        # before this word is the new frame; where there is none, the scratch is as good.
        is_below = p >= row_bytes >= MIN_ROW_BYTES
        left = load64(new + p - 8 if w > 0 else values)
        above = load64(new + p - row_bytes if is_below else values)
        wide = widen_mask(mask)
        packed = squeeze_bytes(fresh, wide)
        source = repeat_byte(packed)
        kind = UNIFORM if (fresh ^ source) & wide == 0 else LITERAL
        fits = is_below & ((fresh ^ above) & wide == 0)
        kind = ABOVE if fits else kind
        source = above if fits else source
        fits = (w > 0) & ((fresh ^ left) & wide == 0)
        kind = LEFT if fits else kind
        source = left if fits else source
        fits = (fresh ^ behind) & wide == 0
        kind = BACKGROUND if fits else kind
        source = behind if fits else source
        # bytes that stay the same may be written too: the fewer masks, the better a table names
        # them
        mask = np.uint64(0xFF) if (fresh == source) & (w < whole) else mask
        skip = w - last - 1
        last = w
        token, before = _find_tokens(encode_table, skip, mask, kind)
        if token == ESCAPE and w < whole:
            # as values of more bytes than change, if that is no longer than the escape
            n_escaped = ESCAPED_BYTES + _count_values(mask, kind)
            wider = _hull(mask)
            for _ in range(2):
                token, before = _find_tokens(encode_table, skip, wider, LITERAL)
                n_wider = 1 + (before != ESCAPE) + _count_values(wider, LITERAL)
                if token != ESCAPE and n_wider <= n_escaped:
                    kind = LITERAL
                    mask = wider
                    packed = squeeze_bytes(fresh, widen_mask(mask))
                    break
                token = ESCAPE
                before = ESCAPE
                wider = np.uint64(0xFF)
        store8(tokens + n_tokens, np.uint8(before))
        n_tokens += before != ESCAPE
        store8(tokens + n_tokens, np.uint8(token))
        n_tokens += 1
        if token == ESCAPE:
            store8(v, np.uint8(kind))
            store8(v + 1, np.uint8(mask))
            v = _put_varint(v + 2, skip)
        store64(v, packed)
        v += _count_values(mask, kind)
    n_values = v - values
    if n_tokens + n_values >= n_bytes:
        out = _put_varint(out, n_words + 1)
        copy_bytes(out, new, n_bytes)
        return out + n_bytes
    out = _put_varint(out, n_tokens)
    copy_bytes(out, tokens, n_tokens)
    copy_bytes(out + n_tokens, values, n_values)
    return out + n_tokens + n_values


@inlined
def _take_token(token: Any, v: Any, decode_table: Any, offsets: Any) -> Any:
    """Look one token up.

    Returns the step to its word, the mask, the values under it, which bytes to copy and from
    where, and the address after its values.
    """
    entry = decode_table + token * ENTRY_BYTES
    wide = load64(entry)
    step = np.int64(load32(entry + 8))
    n_values = np.int64(load8(entry + 12))
    kind = np.int64(load8(entry + 13))
    value_mask = load64(entry + 16)
    factor = load64(entry + 24)
    copied = load64(entry + 32)
    if token == ESCAPE:
        kind = np.int64(load8(v))
        mask = np.uint64(load8(v + 1))
        skip, v = _get_varint(v + 2)
        wide = widen_mask(mask)
        step = (skip << 3) + 8
        n_values = _count_values(mask, kind)
        value_mask = _value_mask(kind)
        factor = _factor(kind)
        copied = _copied(wide, kind)
    # Without a branch on the kind: kinds follow each other too irregularly for a predictor,
    # and a miss costs more than computing both what is copied and what is not.
    values = spread_bytes((load64(v) & value_mask) * factor, wide)
    return step, wide, values, copied, np.int64(load64(offsets + (kind << 3))), v + n_values


@kernel
def apply_record(
    record: Any,
    state: Any,
    background: Any,
    n_bytes: Any,
    row_bytes: Any,
    decode_table: Any,
) -> Any:
    """Turn the frame at ``state`` into the next one; return the address after the record.

    ``decode_table`` is the address of one from `build_tables`.

    May read, but not use, up to 8 bytes after the record: streams lie in memory with that much
    room behind them. Trusts its input: only for what `encode_record` wrote.
    """
    n_words = (n_bytes + 7) >> 3
    n_tokens, record = _get_varint(record)
    if n_tokens > n_words:
        copy_bytes(state, record, n_bytes)
        return record + n_bytes
    offsets = stack_words()
    store64(offsets + (LITERAL << 3), np.uint64(0))
    store64(offsets + (UNIFORM << 3), np.uint64(0))
    store64(offsets + (BACKGROUND << 3), np.uint64(background - state))
    store64(offsets + (LEFT << 3), np.uint64(-8))
    store64(offsets + (ABOVE << 3), np.uint64(-row_bytes))
    v = record + n_tokens
    p = state - 8
    tail = n_bytes & 7
    # A last word that is none can only be the last token's.
    n_whole = n_tokens - 1 if tail and n_tokens else n_tokens
    for i in range(n_whole):
        token = np.int64(load8(record + i))
        step, wide, values, copied, offset, v = _take_token(token, v, decode_table, offsets)
        p += step
        store64(p, (load64(p) & ~wide) | values | (load64(p + offset) & copied))
    if n_whole < n_tokens:
        token = np.int64(load8(record + n_whole))
        step, wide, values, copied, offset, v = _take_token(token, v, decode_table, offsets)
        p += step
        if p - state < n_bytes - tail:
            store64(p, (load64(p) & ~wide) | values | (load64(p + offset) & copied))
        else:
            elsewhere = load_tail(p + offset, tail) & copied
            store_tail(p, (load_tail(p, tail) & ~wide) | values | elsewhere, tail)
    return v
