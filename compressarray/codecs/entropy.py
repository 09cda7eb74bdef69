"""Packing delta records in bits, and unpacking them: `format.packed`."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.format.copies import (
    MORE_LITERALS,
    MORE_SPAN,
    N_NUMBERS,
    SPAN_SHIFT,
    place_bytes,
)
from compressarray.format.numbers import MAX_NUMBER_BYTES, get_varint, put_varint
from compressarray.format.packed import (
    CODE_BITS,
    CODE_MASK,
    COPIED,
    COPY_MAP,
    COUNT_CODE,
    ENCODE_ENTRIES,
    ESCAPED,
    IS_ESCAPE,
    KIND_CODE,
    KNOWN,
    LITERALS_CODE,
    LONG_COUNT,
    MASK_CODE,
    N_SYMBOLS,
    NEXT,
    NEXT_MAP,
    NUMBER_CODE,
    RESIDUAL_CODES_AT,
    RESIDUAL_MAP,
    SKIP_CODE,
    SPAN_CODE,
    START_CODE,
    TABLE_BYTES,
    TABLE_SHIFT,
    TABLES_AT,
    TOKEN_MAP,
    count_symbol,
    first_context,
    place_context,
)
from compressarray.format.records import (
    ENTRY_BYTES,
    ESCAPE,
    KIND_AT,
    N_VALUES_AT,
    RESIDUAL,
    count_values,
    is_copies,
)
from compressarray.kernels.compiling import inlined, kernel
from compressarray.kernels.memory import (
    base_of,
    copy_bytes,
    load8,
    load16,
    load32,
    load64,
    store8,
    store32,
    store64,
)

_AT_ONCE = 57 // CODE_BITS  # symbols that one look at the bits shows
_KNOWN_WORD = np.uint64(0xFEFEFEFEFEFEFEFE)


@kernel
def build_decoding(lengths: Any, n_token_codes: Any, model: Any, encode: Any) -> None:
    """Assign canonical codes, lowest bit first, and fill both tables of a model.

    Parameters
    ----------
    lengths : ndarray, (n_codes, 257) uint8
        Bits of each symbol's code and of the escape's, 0 for none; a complete code.
    n_token_codes : int
        The first ones are for tokens, the others for values.
    model : ndarray, uint8
        Its tables are overwritten; the rest says which code each context has.
    encode : ndarray, (n_codes, 257) uint16
        Overwritten: ``code | bits << 8``, 0 for none.
    """
    encode[:] = np.uint16(0)
    for c in range(len(lengths)):
        table = base_of(model) + TABLES_AT + c * TABLE_BYTES
        code = 0
        for bits in range(1, CODE_BITS + 1):
            for symbol in range(N_SYMBOLS + 1):
                if lengths[c, symbol] != bits:
                    continue
                lowest_first = 0
                for i in range(bits):
                    lowest_first |= ((code >> i) & 1) << (bits - 1 - i)
                encode[c, symbol] = np.uint16(lowest_first | (bits << 8))
                entry = (symbol & 0xFF) | (bits << 8)
                if symbol == ESCAPED:
                    entry |= IS_ESCAPE
                else:
                    following = NEXT_MAP
                    if c < n_token_codes:
                        following = TOKEN_MAP
                    elif c >= model[RESIDUAL_CODES_AT]:
                        following = RESIDUAL_MAP
                    entry |= np.int64(model[following + symbol]) << 16
                for above in range(1 << (CODE_BITS - bits)):
                    at = lowest_first | (above << bits)
                    store32(table + 4 * at, np.uint32(entry))
                code += 1
            code <<= 1


# -- packing ---------------------------------------------------------------------------------


@inlined
def _put_bits(out: Any, pos: Any, value: Any, bits: Any) -> Any:
    """Write up to 32 bits at a bit's position; every bit behind it in the next 7 bytes is 0."""
    at = out + (pos >> 3)
    held = np.uint64(load8(at)) & ((np.uint64(1) << np.uint64(pos & 7)) - np.uint64(1))
    store64(at, held | (np.uint64(value) << np.uint64(pos & 7)))
    return pos + bits


@inlined
def _put_symbol(out: Any, pos: Any, encode: Any, code: Any, symbol: Any) -> Any:
    row = encode + code * (2 * ENCODE_ENTRIES)
    entry = np.int64(load16(row + 2 * symbol))
    if entry != 0:
        pos = _put_bits(out, pos, entry & 0xFF, entry >> 8)
    else:
        entry = np.int64(load16(row + 2 * ESCAPED))
        bits = entry >> 8
        pos = _put_bits(out, pos, (entry & 0xFF) | (np.int64(symbol) << bits), bits + 8)
    return pos


@inlined
def _put_number(out: Any, pos: Any, model: Any, encode: Any, context: Any, address: Any) -> Any:
    """Pack the bytes of a LEB128 number at an address; return the address after it, too."""
    code = np.int64(load8(model + context))
    more = True
    while more:
        byte = np.int64(load8(address))
        pos = _put_symbol(out, pos, encode, code, byte)
        address += 1
        more = byte >= 0x80
    return address, pos


@kernel
def _pack_copies(record: Any, n_bytes: Any, model: Any, encode: Any, out: Any,
                 pos: Any) -> Any:  # fmt: skip
    """Do what `pack_record` does for a record of copies, behind its mark."""
    numbers = record
    for _ in range(N_NUMBERS):
        record, pos = _put_number(out, pos, model, encode, NUMBER_CODE, record)
    n_tokens, numbers = get_varint(numbers)
    _, numbers = get_varint(numbers)
    n_literals, numbers = get_varint(numbers)
    predictor, _ = get_varint(numbers)
    extras = record + n_tokens
    before = np.int64(0)
    for i in range(n_tokens):
        token = np.int64(load8(record + i))
        pos = _put_symbol(out, pos, encode, np.int64(load8(model + COPY_MAP + before)), token)
        before = token
    for i in range(n_tokens):
        token = np.int64(load8(record + i))
        if token & MORE_LITERALS == MORE_LITERALS:
            extras, pos = _put_number(out, pos, model, encode, LITERALS_CODE, extras)
        if token >> SPAN_SHIFT == MORE_SPAN:
            extras, pos = _put_number(out, pos, model, encode, SPAN_CODE, extras)
        context = place_context(token)
        if context > 0:
            for j in range(place_bytes(n_bytes)):
                code = np.int64(load8(model + context + j))
                pos = _put_symbol(out, pos, encode, code, np.int64(load8(extras)))
                extras += 1
    following = RESIDUAL_MAP if predictor > 0 else NEXT_MAP
    before = np.int64(0)
    for i in range(n_literals):
        code = np.int64(load8(model + following + before))
        before = np.int64(load8(extras + i))
        pos = _put_symbol(out, pos, encode, code, before)
    return extras + n_literals, pos


@kernel
def pack_record(record: Any, n_bytes: Any, decode_table: Any, model: Any, encode: Any, out: Any,
                pos: Any) -> Any:  # fmt: skip
    """Append a plain record, at an address, to the bits at ``out``.

    Parameters
    ----------
    decode_table, model, encode : address
    out : address
        With 8 bytes of room behind what is written.
    pos : int
        Bits written so far.

    Returns
    -------
    tuple
        The address after the record, and bits written.
    """
    n_words = (n_bytes + 7) >> 3
    n_tokens, record = get_varint(record)
    count_code = np.int64(load8(model + COUNT_CODE))
    symbol = count_symbol(n_tokens, n_bytes)
    pos = _put_symbol(out, pos, encode, count_code, symbol)
    if symbol == COPIED:
        return _pack_copies(record, n_bytes, model, encode, out, pos)
    if symbol == LONG_COUNT:
        pos = _put_bits(out, pos, n_tokens, 24)
    if n_tokens > n_words:
        pos = (pos + 7) & ~7
        copy_bytes(out + (pos >> 3), record, n_bytes)
        pos += n_bytes << 3
        store64(out + (pos >> 3), np.uint64(0))
        return record + n_bytes, pos
    v = record + n_tokens
    code = np.int64(load8(model + START_CODE))
    for i in range(n_tokens):
        token = np.int64(load8(record + i))
        pos = _put_symbol(out, pos, encode, code, token)
        code = np.int64(load8(model + TOKEN_MAP + token))
        if token == ESCAPE:
            kind = np.int64(load8(v))
            mask = np.int64(load8(v + 1))
            pos = _put_symbol(out, pos, encode, np.int64(load8(model + KIND_CODE)), kind)
            pos = _put_symbol(out, pos, encode, np.int64(load8(model + MASK_CODE)), mask)
            v += 2
            more = True
            while more:
                byte = np.int64(load8(v))
                pos = _put_symbol(out, pos, encode, np.int64(load8(model + SKIP_CODE)), byte)
                v += 1
                more = byte >= 0x80
            v += count_values(mask, kind)
        else:
            v += np.int64(load8(decode_table + token * ENTRY_BYTES + N_VALUES_AT))
    v = record + n_tokens
    before = np.int64(0)
    for i in range(n_tokens):
        token = np.int64(load8(record + i))
        if token == ESCAPE:
            kind = np.int64(load8(v))
            mask = np.int64(load8(v + 1))
            v += 2
            while np.int64(load8(v)) >= 0x80:
                v += 1
            v += 1
            n_values = count_values(mask, kind)
        else:
            n_values = np.int64(load8(decode_table + token * ENTRY_BYTES + N_VALUES_AT))
            kind = np.int64(load8(decode_table + token * ENTRY_BYTES + KIND_AT))
        code = np.int64(load8(model + first_context(token, kind)))
        following = RESIDUAL_MAP if kind >= RESIDUAL else NEXT_MAP
        for _ in range(n_values):
            before = np.int64(load8(v))
            pos = _put_symbol(out, pos, encode, code, before)
            code = np.int64(load8(model + following + before))
            v += 1
    return v, pos


# -- unpacking -------------------------------------------------------------------------------


@inlined
def _bits_at(packed: Any, pos: Any) -> Any:
    """At least 57 bits from a position on."""
    return load64(packed + (pos >> 3)) >> np.uint64(pos & 7)


@inlined
def _entry_at(window: Any) -> Any:
    return np.int64((window & CODE_MASK) << np.uint64(2))


@inlined
def _take_symbol(packed: Any, pos: Any, model: Any, context: Any) -> Any:
    """Read one symbol in the code of a context; return it and the bit after it."""
    table = model + TABLES_AT + (np.int64(load8(model + context)) << TABLE_SHIFT)
    entry = np.int64(load32(table + _entry_at(_bits_at(packed, pos))))
    symbol = entry & 0xFF
    pos += (entry >> 8) & 0xF
    if entry & IS_ESCAPE:
        symbol = np.int64(_bits_at(packed, pos) & np.uint64(0xFF))
        pos += 8
    return symbol, pos


@inlined
def _take_number(packed: Any, pos: Any, model: Any, context: Any, out: Any, end: Any) -> Any:
    """Unpack the bytes of a LEB128 number; return its value, the address after it, and the bit.

    Not beyond ``end``, whatever there is.
    """
    value = np.int64(0)
    n = 0
    byte = np.int64(0x80)
    while byte >= 0x80 and n < MAX_NUMBER_BYTES and out < end:
        byte, pos = _take_symbol(packed, pos, model, context)
        store8(out, np.uint8(byte))
        out += 1
        value |= (byte & 0x7F) << (7 * n)
        n += 1
    return value, out, pos


@kernel
def _unpack_copies(packed: Any, pos: Any, n_bytes: Any, model: Any, out: Any) -> Any:
    """Do what `unpack_record` does for a record of copies, behind its mark."""
    room = out + N_NUMBERS * MAX_NUMBER_BYTES
    n_tokens, out, pos = _take_number(packed, pos, model, NUMBER_CODE, out, room)
    n_extras, out, pos = _take_number(packed, pos, model, NUMBER_CODE, out, room)
    n_literals, out, pos = _take_number(packed, pos, model, NUMBER_CODE, out, room)
    predictor, out, pos = _take_number(packed, pos, model, NUMBER_CODE, out, room)
    if n_tokens + n_extras + n_literals > n_bytes:
        return pos  # no record, as who checks it will say
    extras = out + n_tokens
    literals = extras + n_extras
    before = np.int64(0)
    for i in range(n_tokens):
        before, pos = _take_symbol(packed, pos, model, COPY_MAP + before)
        store8(out + i, np.uint8(before))
    for i in range(n_tokens):
        token = np.int64(load8(out + i))
        if token & MORE_LITERALS == MORE_LITERALS:
            _, extras, pos = _take_number(packed, pos, model, LITERALS_CODE, extras, literals)
        if token >> SPAN_SHIFT == MORE_SPAN:
            _, extras, pos = _take_number(packed, pos, model, SPAN_CODE, extras, literals)
        context = place_context(token)
        if context > 0:
            for j in range(min(place_bytes(n_bytes), literals - extras)):
                byte, pos = _take_symbol(packed, pos, model, context + j)
                store8(extras, np.uint8(byte))
                extras += 1
    following = RESIDUAL_MAP if predictor > 0 else NEXT_MAP
    tables = model + TABLES_AT
    table = tables + (np.int64(load8(model + following)) << TABLE_SHIFT)
    for start in range(0, n_literals, _AT_ONCE):
        window = _bits_at(packed, pos)
        for i in range(start, min(start + _AT_ONCE, n_literals)):
            entry = np.int64(load32(table + _entry_at(window)))
            bits = (entry >> 8) & 0xF
            value = entry & 0xFF
            table = tables + ((entry >> 16) << TABLE_SHIFT)
            window >>= np.uint64(bits)
            pos += bits
            if entry & IS_ESCAPE:
                window = _bits_at(packed, pos)
                value = np.int64(window & np.uint64(0xFF))
                table = tables + (np.int64(load8(model + following + value)) << TABLE_SHIFT)
                pos += 8
                window = _bits_at(packed, pos)
            store8(literals + i, np.uint8(value))
    return pos


@kernel
def unpack_record(packed: Any, pos: Any, n_bytes: Any, decode_table: Any, model: Any, out: Any,
                  codes: Any) -> Any:  # fmt: skip
    """Write the plain record that begins at a bit to ``out``; return the bit after it.

    Parameters
    ----------
    packed : address
        Where bit 0 lies; up to 8 bytes behind the record are read.
    out : address
        Room for ``n_bytes`` and 16 more.
    codes : address
        Scratch of as many bytes.
    """
    n_words = (n_bytes + 7) >> 3
    tables = model + TABLES_AT
    n_tokens, pos = _take_symbol(packed, pos, model, COUNT_CODE)
    if n_tokens == COPIED:
        out = put_varint(out, n_words + 2)
        return _unpack_copies(packed, pos, n_bytes, model, out)
    if n_tokens == LONG_COUNT:
        n_tokens = np.int64(_bits_at(packed, pos) & np.uint64(0xFFFFFF))
        pos += 24
        if is_copies(n_tokens, n_bytes):
            n_tokens += 1  # has a symbol of its own: no record
    out = put_varint(out, n_tokens)
    if n_tokens > n_words:
        pos = (pos + 7) & ~7
        copy_bytes(out, packed + (pos >> 3), n_bytes)
        return pos + (n_bytes << 3)
    values = out + n_tokens
    n_values = np.int64(0)
    table = tables + (np.int64(load8(model + START_CODE)) << TABLE_SHIFT)
    for start in range(0, n_tokens, _AT_ONCE):
        window = _bits_at(packed, pos)
        for i in range(start, min(start + _AT_ONCE, n_tokens)):
            entry = np.int64(load32(table + _entry_at(window)))
            bits = (entry >> 8) & 0xF
            token = entry & 0xFF
            table = tables + ((entry >> 16) << TABLE_SHIFT)
            window >>= np.uint64(bits)
            pos += bits
            if entry & IS_ESCAPE:
                window = _bits_at(packed, pos)
                token = np.int64(window & np.uint64(0xFF))
                table = tables + (np.int64(load8(model + TOKEN_MAP + token)) << TABLE_SHIFT)
                pos += 8
                window = _bits_at(packed, pos)
            store8(out + i, np.uint8(token))
            n_more = np.int64(load8(decode_table + token * ENTRY_BYTES + N_VALUES_AT))
            kind = np.int64(load8(decode_table + token * ENTRY_BYTES + KIND_AT))
            if token == ESCAPE:
                kind, pos = _take_symbol(packed, pos, model, KIND_CODE)
                mask, pos = _take_symbol(packed, pos, model, MASK_CODE)
                n_more = count_values(mask, kind)
                store64(codes + n_values, _KNOWN_WORD)
                store8(values + n_values, np.uint8(kind))
                store8(values + n_values + 1, np.uint8(mask))
                n_values += 2
                byte = np.int64(0x80)
                n_bytes_of_skip = 0
                while byte >= 0x80 and n_bytes_of_skip < MAX_NUMBER_BYTES:
                    byte, pos = _take_symbol(packed, pos, model, SKIP_CODE)
                    store8(values + n_values, np.uint8(byte))
                    n_values += 1
                    n_bytes_of_skip += 1
                window = _bits_at(packed, pos)
            # the first value's code, and behind it NEXT, whether there are so many values or none
            first = np.uint64(load8(model + first_context(token, kind)))
            store64(codes + n_values, first | ~np.uint64(0xFF))
            n_values += n_more
    table = tables
    residual_codes = tables + (np.int64(load8(model + RESIDUAL_CODES_AT)) << TABLE_SHIFT)
    for start in range(0, n_values, _AT_ONCE):
        window = _bits_at(packed, pos)
        for i in range(start, min(start + _AT_ONCE, n_values)):
            code = np.int64(load8(codes + i))
            if code == KNOWN:
                continue
            own = table if code == NEXT else tables + (code << TABLE_SHIFT)
            entry = np.int64(load32(own + _entry_at(window)))
            bits = (entry >> 8) & 0xF
            value = entry & 0xFF
            table = tables + ((entry >> 16) << TABLE_SHIFT)
            window >>= np.uint64(bits)
            pos += bits
            if entry & IS_ESCAPE:
                window = _bits_at(packed, pos)
                value = np.int64(window & np.uint64(0xFF))
                following = RESIDUAL_MAP if own >= residual_codes else NEXT_MAP
                table = tables + (np.int64(load8(model + following + value)) << TABLE_SHIFT)
                pos += 8
                window = _bits_at(packed, pos)
            store8(values + i, np.uint8(value))
    return pos


# -- counting --------------------------------------------------------------------------------


@inlined
def _count_number(address: Any, counts: Any, context: Any) -> Any:
    more = True
    while more:
        byte = np.int64(load8(address))
        counts[context, byte] += 1
        address += 1
        more = byte >= 0x80
    return address


@kernel
def _count_copies(record: Any, n_bytes: Any, counts: Any) -> Any:
    numbers = record
    for _ in range(N_NUMBERS):
        record = _count_number(record, counts, NUMBER_CODE)
    n_tokens, numbers = get_varint(numbers)
    _, numbers = get_varint(numbers)
    n_literals, numbers = get_varint(numbers)
    predictor, _ = get_varint(numbers)
    extras = record + n_tokens
    before = np.int64(0)
    for i in range(n_tokens):
        token = np.int64(load8(record + i))
        counts[COPY_MAP + before, token] += 1
        before = token
        if token & MORE_LITERALS == MORE_LITERALS:
            extras = _count_number(extras, counts, LITERALS_CODE)
        if token >> SPAN_SHIFT == MORE_SPAN:
            extras = _count_number(extras, counts, SPAN_CODE)
        context = place_context(token)
        if context > 0:
            for j in range(place_bytes(n_bytes)):
                counts[context + j, np.int64(load8(extras))] += 1
                extras += 1
    following = RESIDUAL_MAP if predictor > 0 else NEXT_MAP
    before = np.int64(0)
    for i in range(n_literals):
        value = np.int64(load8(extras + i))
        counts[following + before, value] += 1
        before = value
    return extras + n_literals


@kernel
def count_symbols(record: Any, n_records: Any, n_bytes: Any, decode_table: Any, counts: Any) -> Any:
    """Count the symbols of plain records by context; return the address after them.

    Parameters
    ----------
    counts : ndarray, (`N_CONTEXTS`, 256) int32
        Added to: by the token before, by the value's token, by the value before, first tokens,
        numbers of tokens, escaped tokens' kinds, masks and skips, residuals by their kind, by the
        residual before, and what records of copies have.
    """
    n_words = (n_bytes + 7) >> 3
    for _ in range(n_records):
        n_tokens, record = get_varint(record)
        symbol = count_symbol(n_tokens, n_bytes)
        counts[COUNT_CODE, symbol] += 1
        if symbol == COPIED:
            record = _count_copies(record, n_bytes, counts)
            continue
        if n_tokens > n_words:
            record += n_bytes
            continue
        v = record + n_tokens
        context = np.int64(START_CODE)
        for i in range(n_tokens):
            token = np.int64(load8(record + i))
            counts[context, token] += 1
            context = TOKEN_MAP + token
            if token == ESCAPE:
                kind = np.int64(load8(v))
                mask = np.int64(load8(v + 1))
                counts[KIND_CODE, kind] += 1
                counts[MASK_CODE, mask] += 1
                v += 2
                more = True
                while more:
                    byte = np.int64(load8(v))
                    counts[SKIP_CODE, byte] += 1
                    v += 1
                    more = byte >= 0x80
                n_values = count_values(mask, kind)
            else:
                n_values = np.int64(load8(decode_table + token * ENTRY_BYTES + N_VALUES_AT))
                kind = np.int64(load8(decode_table + token * ENTRY_BYTES + KIND_AT))
            inner = first_context(token, kind)
            following = RESIDUAL_MAP if kind >= RESIDUAL else NEXT_MAP
            for _ in range(n_values):
                value = np.int64(load8(v))
                counts[inner, value] += 1
                inner = following + value
                v += 1
        record = v
    return record
