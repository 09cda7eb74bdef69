"""Coding a frame as the words in which it differs from another one: `format.records`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.codecs.copies import apply_copies
from compressarray.format.codebooks import dictionary_of, table_of
from compressarray.format.numbers import get_varint, put_varint
from compressarray.format.records import (
    ABOVE,
    ABOVE_RESIDUAL,
    BACKGROUND,
    ENTRY_BYTES,
    ESCAPE,
    FAR_WORD,
    KIND_AT,
    KIND_MASK,
    LEFT,
    LEFT_RESIDUAL,
    LITERAL,
    MASK_SHIFT,
    MAX_SKIP,
    MIN_ROW_BYTES,
    N_NEAR,
    N_VALUES_AT,
    NEAR_WORD,
    OLD_RESIDUAL,
    RESIDUAL,
    SKIP_SHIFT,
    UNIFORM,
    count_values,
    is_copies,
    pixel_bytes_of,
    record_bytes,
    token_key,
)
from compressarray.kernels.compiling import inlined, kernel
from compressarray.kernels.memory import (
    STACK_WORDS,
    add_bytes,
    base_of,
    changed_bytes,
    copy_bytes,
    count_bits,
    load8,
    load16,
    load32,
    load64,
    load_tail,
    nonzero_bytes,
    repeat_byte,
    spread_bytes,
    squeeze_bytes,
    stack_words,
    store8,
    store16,
    store32,
    store64,
    store_tail,
    subtract_bytes,
    sum_bytes,
    widen_mask,
)

Words = npt.NDArray[np.uint64]

# Bits that the code for a literal byte takes, and at least those of eight residuals. With 6 and 7
# 2,500 frames of walker and quadruped walk take 3,154 and 4,977 bytes each in RGB; with 5 and 6
# 3,237 and 5,147, with 7 and 8 3,082 and 4,895, but MsPacman 2 % more.
LITERAL_BITS, RESIDUAL_BITS = 6, 7
_SPECIAL = 15  # the escape's, which so takes the branch of residuals, that others never take
ESCAPED_BYTES = 4  # the escape, kind, mask, and mostly one byte of skip
_HASH_SLOTS = 1024  # of the encoder's table: 255 entries, so most look-ups take one probe
_EMPTY = 0xFFFFFFFF
_HASH_MULTIPLIER = 2654435761  # Knuth, TAOCP 6.4: 2**32 over the golden ratio
_WORD_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # and 2**64 over it
# An encoder's table, in words: the tokens' hash; where the dictionary lies, from the table's first
# byte on, which of its words is the first near one, and log2 of the slots of its hash; bytes of a
# pixel, 0 for no residuals; the codebook's number; that hash.
TOKEN_HASH_WORDS = _HASH_SLOTS // 2
_WORDS_AT = 8 * TOKEN_HASH_WORDS
_PIXEL_AT = _WORDS_AT + 24
_NUMBER_AT = _WORDS_AT + 32
_SLOTS_AT = _WORDS_AT + 40

_SOURCE_BYTES = 24


@inlined
def _slot(key: Any) -> Any:
    return ((np.int64(key) * _HASH_MULTIPLIER) & 0xFFFFFFFF) >> 22


@inlined
def _pack_step(skip: Any, mask: Any, kind: Any) -> Any:
    """By how much to move on in bytes (32 bits), bytes of values (8), and the kind (8)."""
    step = (np.int64(skip) << 3) + 8
    return step | (count_values(mask, kind) << 32) | (np.int64(kind) << 40)


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


@kernel
def build_tables(keys: Any, words: Any, near: Any, pixel_bytes: Any, number: Any,
                 decode_table: Any, encode_table: Any) -> None:  # fmt: skip
    """Fill both tables from the `token_key` of up to 255 tokens, and a dictionary.

    Parameters
    ----------
    keys : ndarray, (n,) int64
    words : ndarray, (m,) uint64
        The dictionary, at most `MAX_WORDS`.
    near : int
        The first of the `N_NEAR` words that one byte names.
    pixel_bytes : int
        Distance to the pixel to the left, up to `MAX_PIXEL_BYTES`; 0 for no residuals.
    number : int
        Of the codebook, for whoever encodes with it.
    decode_table : ndarray, (256, 4) uint64
        Overwritten: the mask, a byte for a bit; `_pack_step`; `_value_mask`; `_factor`.
        Row 255, the escape's, holds ``pixel_bytes`` and ``near``.
    encode_table : ndarray, (`encode_table_words`,) uint64
        Overwritten: an open-addressing hash of ``key << 8 | token``, 32 bits each; where the
        dictionary lies, ``near``, log2 of the slots that follow, ``pixel_bytes``, ``number``; 16
        bits each of an open-addressing hash of the dictionary.
    """
    decode_table[:] = np.uint64(0)
    decode_table[ESCAPE, 1] = np.uint64((pixel_bytes << 48) | (_SPECIAL << 40))
    decode_table[ESCAPE, 2] = np.uint64(near)
    encode_table[:TOKEN_HASH_WORDS] = ~np.uint64(0)
    encode_table[TOKEN_HASH_WORDS:] = np.uint64(0)
    hashes = base_of(encode_table)
    for token in range(min(len(keys), ESCAPE)):
        key = keys[token]
        skip, mask, kind = key >> SKIP_SHIFT, (key >> MASK_SHIFT) & 0xFF, key & KIND_MASK
        if kind >= RESIDUAL:
            mask = 0xFF
        wide = widen_mask(np.uint64(mask))
        decode_table[token, 0] = wide
        decode_table[token, 1] = np.uint64(_pack_step(skip, np.uint64(mask), kind))
        decode_table[token, 2] = _value_mask(kind)
        decode_table[token, 3] = _factor(kind)
        slot = _slot(key)
        while load32(hashes + (slot << 2)) != _EMPTY:
            slot = (slot + 1) & (_HASH_SLOTS - 1)
        store32(hashes + (slot << 2), np.uint32((key << 8) | token))
    bits = _slot_bits(len(words))
    encode_table[TOKEN_HASH_WORDS] = np.uint64(base_of(words) - hashes)
    encode_table[TOKEN_HASH_WORDS + 1] = np.uint64(near)
    encode_table[TOKEN_HASH_WORDS + 2] = np.uint64(bits)
    encode_table[TOKEN_HASH_WORDS + 3] = np.uint64(pixel_bytes)
    encode_table[TOKEN_HASH_WORDS + 4] = np.uint64(number)
    slots = hashes + _SLOTS_AT
    # near ones first: of equal words the encoder is to find those
    for i in range(len(words)):
        i_word = (near + i) % len(words)
        slot = _word_slot(words[i_word], bits)
        while load16(slots + (slot << 1)) != 0:
            slot = (slot + 1) & ((1 << bits) - 1)
        store16(slots + (slot << 1), np.uint16(i_word + 1))


@kernel
def _slot_bits(n_words: Any) -> Any:
    """Log2 of the slots for a dictionary: at most two in three are taken, 0 for no words."""
    bits = 0
    while n_words > 0 and 3 * n_words > 2 << bits:
        bits += 1
    return bits


@inlined
def _word_slot(word: Any, bits: Any) -> Any:
    return np.int64((word * _WORD_MULTIPLIER) >> np.uint64(64 - bits))


def encode_table_words(n_words: int) -> int:
    """Words of an encoder's table for a dictionary of ``n_words``."""
    slots = 1 << _slot_bits(n_words) if n_words else 0
    return TOKEN_HASH_WORDS + 5 + -(-slots // 4)


def set_dictionary(encode_table: Words, offset: int) -> None:
    """Let an encoder's table find its dictionary ``offset`` bytes behind its own first one."""
    encode_table[TOKEN_HASH_WORDS : TOKEN_HASH_WORDS + 1].view(np.int64)[0] = offset


@inlined
def codebook_number(encode_table: Any) -> Any:
    """Number of the codebook that an encoder's table, at an address, belongs to."""
    return np.int64(load64(encode_table + _NUMBER_AT))


@inlined
def pixel_bytes_to_encode(encode_table: Any) -> Any:
    """Distance to the pixel to the left, in an encoder's table at an address."""
    return np.int64(load64(encode_table + _PIXEL_AT))


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
def _find_word(encode_table: Any, word: Any) -> Any:
    """The index of a word in the dictionary, or -1."""
    bits = np.int64(load64(encode_table + _WORDS_AT + 16))
    index = np.int64(-1)
    if bits > 0:
        words = encode_table + np.int64(load64(encode_table + _WORDS_AT))
        slots = encode_table + _SLOTS_AT
        slot = _word_slot(word, bits)
        entry = np.int64(load16(slots + (slot << 1)))
        while entry != 0:
            if load64(words + ((entry - 1) << 3)) == word:
                index = entry - 1
                break
            slot = (slot + 1) & ((1 << bits) - 1)
            entry = np.int64(load16(slots + (slot << 1)))
    return index


@inlined
def classify(
    fresh: Any, wide: Any, behind: Any, new: Any, p: Any, row_bytes: Any, spare: Any
) -> Any:
    """Where the changed bytes of a word come from, the dictionary apart; and that whole word.

    Parameters
    ----------
    fresh, wide, behind : uint64
        The word at byte ``p`` of the frame at ``new``, which of its bytes changed, and the
        background there.
    spare : address
        Of eight bytes, any: they are read where there is no byte to the left or above.
    """
    # All kinds are looked at, for which one it is no processor can predict. What was decoded
    # before this word is the new frame.
    is_below = p >= row_bytes >= MIN_ROW_BYTES
    left = load64(new + p - 8 if p > 0 else spare)
    above = load64(new + p - row_bytes if is_below else spare)
    source = repeat_byte(squeeze_bytes(fresh, wide))
    kind = UNIFORM if (fresh ^ source) & wide == 0 else LITERAL
    fits = is_below & ((fresh ^ above) & wide == 0)
    kind = ABOVE if fits else kind
    source = above if fits else source
    fits = (p > 0) & ((fresh ^ left) & wide == 0)
    kind = LEFT if fits else kind
    source = left if fits else source
    fits = (fresh ^ behind) & wide == 0
    kind = BACKGROUND if fits else kind
    source = behind if fits else source
    return kind, source


@inlined
def choose_residual(fresh: Any, old: Any, new: Any, p: Any, row_bytes: Any, pixel_bytes: Any,
                    mask: Any) -> Any:  # fmt: skip
    """The kind that writes a whole word in the fewest bits: residual or literal.

    Returns it, and of residuals these and about how many bits they take once packed.

    Parameters
    ----------
    fresh, old : uint64
        The word at byte ``p`` of the frame at ``new``, and of the frame before.
    pixel_bytes : int
        At least 1.
    mask : uint64
        Which of its bytes changed, a bit for a byte.
    """
    kind, values = np.int64(LITERAL), np.uint64(0)
    least = LITERAL_BITS * count_bits(mask)
    residual = subtract_bytes(fresh, old)
    bits = _residual_bits(residual)
    if bits < least:
        kind, values, least = np.int64(OLD_RESIDUAL), residual, bits
    if p >= row_bytes >= MIN_ROW_BYTES:
        residual = subtract_bytes(fresh, load64(new + p - row_bytes))
        bits = _residual_bits(residual)
        if bits < least:
            kind, values, least = np.int64(ABOVE_RESIDUAL), residual, bits
    if p > 0:
        residual = subtract_bytes(fresh, load64(new + p - pixel_bytes))
        bits = _residual_bits(residual)
        if bits < least:
            kind, values, least = np.int64(LEFT_RESIDUAL), residual, bits
    return kind, values, least


@inlined
def _residual_bits(residual: Any) -> Any:
    """About as many bits as a code takes for eight residuals: their lengths and one each."""
    negative = (residual >> np.uint64(7)) & repeat_byte(np.uint64(1))
    size = residual ^ (negative * np.uint64(0xFF))
    size |= (size >> np.uint64(1)) & repeat_byte(np.uint64(0x3F))
    size |= (size >> np.uint64(2)) & repeat_byte(np.uint64(0x1F))
    size |= (size >> np.uint64(4)) & repeat_byte(np.uint64(0x07))
    return RESIDUAL_BITS + count_bits(size) + count_bits(nonzero_bytes(residual))


@inlined
def _hull(mask: Any) -> Any:
    """The bits of a mask and those between them."""
    above = mask | (mask >> np.uint64(1))
    above |= above >> np.uint64(2)
    above |= above >> np.uint64(4)
    return above & (~mask + np.uint64(1) | mask) & np.uint64(0xFF)


@inlined
def _list_changes(new: Any, previous: Any, n_bytes: Any, out: Any) -> Any:
    """List the words that differ at ``out``, ``word << 8 | mask`` each; return how many do."""
    n = np.int64(0)
    whole = n_bytes >> 3
    blocked = whole & ~7
    for w in range(0, blocked, 8):
        masks = changed_bytes(new + (w << 3), previous + (w << 3))
        if masks:
            # every word is listed, and those that are equal are overwritten: no branch to miss
            for j in range(8):
                mask = (masks >> np.uint64(j << 3)) & np.uint64(0xFF)
                store64(out + (n << 3), np.uint64((w + j) << 8) | mask)
                n += mask != 0
    for w in range(blocked, (n_bytes + 7) >> 3):
        p = w << 3
        if w < whole:
            change = load64(new + p) ^ load64(previous + p)
        else:
            change = load_tail(new + p, n_bytes & 7) ^ load_tail(previous + p, n_bytes & 7)
        store64(out + (n << 3), np.uint64(w << 8) | nonzero_bytes(change))
        n += change != 0
    return n


@kernel
def encode_words(
    new: Any,
    previous: Any,
    background: Any,
    n_bytes: Any,
    row_bytes: Any,
    encode_table: Any,
    tokens: Any,
    values: Any,
    out: Any,
) -> Any:
    """Write the record that turns the frame at ``previous`` into the one at ``new``.

    Parameters
    ----------
    new, previous, background : address
        Frames of ``n_bytes``. ``previous`` becomes ``new``, word by word as the decoder will.
    row_bytes : int
        Distance to the byte above, 0 if there is none.
    encode_table : address
        Of a table from `build_tables`.
    tokens, values : address
        Scratch of one byte, respectively 16 bytes, for each word of a frame.
    out : address
        Room for a frame, or `record_bytes`, and 8 more; the list of changed words waits there
        meanwhile.

    Returns
    -------
    tuple
        The address after the record, and about what it costs: bytes, less what packing saves on
        residuals.
    """
    n_words = (n_bytes + 7) >> 3
    whole = n_bytes >> 3
    tail = n_bytes & 7
    n_changes = _list_changes(new, previous, n_bytes, out)
    pixel_bytes = pixel_bytes_to_encode(encode_table)
    n_tokens = 0
    n_bits_saved = np.int64(0)  # by packing residuals, about
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
            old = load64(previous + p)
            store64(previous + p, fresh)
        else:
            fresh = load_tail(new + p, tail)
            behind = load_tail(background + p, tail)
            old = fresh
            store_tail(previous + p, fresh, tail)
        wide = widen_mask(mask)
        kind, source = classify(fresh, wide, behind, new, p, row_bytes, values)
        packed = squeeze_bytes(fresh, wide)
        changed = mask
        if kind == LITERAL and w < whole and count_bits(mask) > 1:
            found = _find_word(encode_table, fresh)
            near = np.int64(load64(encode_table + _WORDS_AT + 8))
            if found >= near and found < near + N_NEAR:
                kind = NEAR_WORD
                packed = np.uint64(found - near)
                source = fresh
            elif found >= 0 and count_bits(mask) > 2:
                kind = FAR_WORD
                packed = np.uint64(found)
                source = fresh
        if kind == LITERAL and w < whole and pixel_bytes > 0:
            predicted, residual, n_bits = choose_residual(
                fresh, old, new, p, row_bytes, pixel_bytes, mask
            )
            if predicted != LITERAL:
                n_bits_saved += 64 - n_bits
                kind = predicted
                packed = residual
                source = fresh
        # bytes that stay the same may be written too: the fewer masks, the better a table names
        # them
        mask = np.uint64(0xFF) if (kind != LITERAL) & (fresh == source) & (w < whole) else mask
        skip = w - last - 1
        last = w
        token, before = _find_tokens(encode_table, skip, mask, kind)
        if token == ESCAPE and w < whole and kind < RESIDUAL:
            # as values of these or more bytes, if that is no longer than the escape
            n_escaped = ESCAPED_BYTES + count_values(mask, kind)
            wider = changed
            for attempt in range(3):
                token, before = _find_tokens(encode_table, skip, wider, LITERAL)
                n_wider = 1 + (before != ESCAPE) + count_bits(wider)
                if token != ESCAPE and n_wider <= n_escaped:
                    kind = LITERAL
                    mask = wider
                    packed = squeeze_bytes(fresh, widen_mask(mask))
                    break
                token = ESCAPE
                before = ESCAPE
                wider = _hull(changed) if attempt == 0 else np.uint64(0xFF)
        store8(tokens + n_tokens, np.uint8(before))
        n_tokens += before != ESCAPE
        store8(tokens + n_tokens, np.uint8(token))
        n_tokens += 1
        if token == ESCAPE:
            store8(v, np.uint8(kind))
            store8(v + 1, np.uint8(mask))
            v = put_varint(v + 2, skip)
        store64(v, packed)  # of which as many bytes count as the kind has values
        v += count_values(mask, kind)
    n_values = v - values
    n_packed = n_tokens + n_values - (n_bits_saved >> 3)
    if n_packed >= n_bytes or n_tokens + n_values >= record_bytes(n_bytes, pixel_bytes > 0):
        out = put_varint(out, n_words + 1)
        copy_bytes(out, new, n_bytes)
        return out + n_bytes, n_bytes
    out = put_varint(out, n_tokens)
    copy_bytes(out, tokens, n_tokens)
    copy_bytes(out + n_tokens, values, n_values)
    return out + n_tokens + n_values, n_packed


@inlined
def _take_token(token: Any, p: Any, v: Any, row_bytes: Any, decode_table: Any) -> Any:
    """Look one token up.

    Returns the address of its word, the mask, the values under it, the kind that says what to
    copy under it, the eight bytes at the values, and the address after these.
    """
    entry = decode_table + token * ENTRY_BYTES
    wide = load64(entry)
    p += np.int64(load32(entry + 8))
    n_values = np.int64(load8(entry + N_VALUES_AT))
    kind = np.int64(load8(entry + KIND_AT))
    # Without a branch on the other kinds: they follow each other too irregularly for a predictor,
    # and a miss costs more than computing both what is copied and what is not.
    given = load64(v)
    values = spread_bytes((given & load64(entry + 16)) * load64(entry + 24), wide)
    if kind >= RESIDUAL:
        pixel_bytes = pixel_bytes_of(decode_table)
        if token == ESCAPE:
            kind = np.int64(load8(v))
            mask = np.uint64(load8(v + 1))
            skip, v = get_varint(v + 2)
            given = load64(v)
            wide = widen_mask(mask)
            p += (skip << 3) + 8
            n_values = count_values(mask, kind)
            values = spread_bytes((given & _value_mask(kind)) * _factor(kind), wide)
        if kind >= RESIDUAL:
            values = _add_residual(given, kind, p, row_bytes, pixel_bytes)
            wide = ~np.uint64(0)
            kind = np.int64(LITERAL)
    return p, wide, values, kind, given, v + n_values


@inlined
def _add_residual(residual: Any, kind: Any, p: Any, row_bytes: Any, pixel_bytes: Any) -> Any:
    """The word at ``p``, of which the frame before is there."""
    if kind == LEFT_RESIDUAL:
        # the first bytes count from decoded ones, the others from bytes of this very word
        begin = load64(p - pixel_bytes) & (~np.uint64(0) >> np.uint64(64 - 8 * pixel_bytes))
        word = sum_bytes(add_bytes(residual, begin), pixel_bytes)
    else:
        word = add_bytes(residual, load64(p if kind == OLD_RESIDUAL else p - row_bytes))
    return word


@inlined
def _put_source(sources: Any, kind: Any, base: Any, moves: Any, counted: Any) -> None:
    """Say where a kind copies from.

    From ``base``, plus the word's address if it ``moves`` along, plus eight times what is
    ``counted`` of the values.
    """
    entry = sources + kind * _SOURCE_BYTES
    store64(entry, np.uint64(base))
    store64(entry + 8, np.uint64(moves))
    store64(entry + 16, np.uint64(counted))


@inlined
def _source(sources: Any, kind: Any, p: Any, given: Any) -> Any:
    entry = sources + kind * _SOURCE_BYTES
    base, moves = np.int64(load64(entry)), np.int64(load64(entry + 8))
    return base + (p & moves) + (np.int64(given & load64(entry + 16)) << 3)


@kernel
def apply_record(
    record: Any,
    frame: Any,
    background: Any,
    n_bytes: Any,
    row_bytes: Any,
    codebook: Any,
    scratch: Any,
) -> Any:
    """Turn the frame at ``frame`` into the next one; return the address after the record.

    ``codebook`` is the address of one (`format.codebooks`), ``scratch`` that of room for a
    frame and 32 bytes.

    May read, but not use, up to 8 bytes after the record: streams lie in memory with that much
    room behind them. Trusts its input: only for what `encode_words` wrote.
    """
    n_words = (n_bytes + 7) >> 3
    n_tokens, record = get_varint(record)
    if n_tokens > n_words:
        if is_copies(n_tokens, n_bytes):
            pixel_bytes = pixel_bytes_of(table_of(codebook))
            return apply_copies(record, frame, scratch, n_bytes, row_bytes, pixel_bytes)
        copy_bytes(frame, record, n_bytes)
        return record + n_bytes
    sources = stack_words()
    decode_table = table_of(codebook)
    dictionary = dictionary_of(codebook)
    near = np.int64(load64(decode_table + ESCAPE * ENTRY_BYTES + 16))
    zero = sources + 8 * (STACK_WORDS - 1)
    store64(zero, np.uint64(0))
    _put_source(sources, LITERAL, zero, 0, 0)
    _put_source(sources, UNIFORM, zero, 0, 0)
    _put_source(sources, BACKGROUND, background - frame, -1, 0)
    _put_source(sources, LEFT, -8, -1, 0)
    _put_source(sources, ABOVE, -row_bytes, -1, 0)
    _put_source(sources, NEAR_WORD, dictionary + (near << 3), 0, 0xFF)
    _put_source(sources, FAR_WORD, dictionary, 0, 0xFFFF)
    v = record + n_tokens
    p = frame - 8
    tail = n_bytes & 7
    # A last word that is none can only be the last token's.
    n_whole = n_tokens - 1 if tail and n_tokens else n_tokens
    for i in range(n_whole):
        token = np.int64(load8(record + i))
        p, wide, values, kind, given, v = _take_token(token, p, v, row_bytes, decode_table)
        source = _source(sources, kind, p, given)
        store64(p, (load64(p) & ~wide) | values | (load64(source) & wide))
    if n_whole < n_tokens:
        token = np.int64(load8(record + n_whole))
        p, wide, values, kind, given, v = _take_token(token, p, v, row_bytes, decode_table)
        source = _source(sources, kind, p, given)
        if p - frame < n_bytes - tail:
            store64(p, (load64(p) & ~wide) | values | (load64(source) & wide))
        else:
            elsewhere = load_tail(source, tail) & wide
            store_tail(p, (load_tail(p, tail) & ~wide) | values | elsewhere, tail)
    return v
