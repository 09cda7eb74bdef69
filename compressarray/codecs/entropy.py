"""Packing delta records in bits: `format.packed`."""

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
from compressarray.format.numbers import get_varint
from compressarray.format.packed import (
    CODE_BITS,
    COPIED,
    COPY_MAP,
    COUNT_CODE,
    ENCODE_ENTRIES,
    ESCAPED,
    IS_ESCAPE,
    KIND_CODE,
    LITERALS_CODE,
    LONG_COUNT,
    MASK_CODE,
    N_SYMBOLS,
    NEXT_MAP,
    NUMBER_CODE,
    RESIDUAL_MAP,
    SKIP_CODE,
    SPAN_CODE,
    START_CODE,
    SYMBOL_SHIFT,
    TABLE_ENTRIES,
    TABLES_AT,
    TOKEN_MAP,
    code_at,
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
)
from compressarray.kernels.compiling import inlined, kernel
from compressarray.kernels.memory import copy_bytes, load8, load16, store64


@kernel
def build_decoding(lengths: Any, model: Any, encode: Any) -> None:
    """Assign canonical codes, lowest bit first, and fill both tables of a model.

    Parameters
    ----------
    lengths : ndarray, (n_codes, 257) uint8
        Bits of each symbol's code and of the escape's, 0 for none; a complete code.
    model : ndarray, uint16
        Its tables are overwritten.
    encode : ndarray, (n_codes, 257) uint16
        Overwritten: ``code | bits << 8``, 0 for none.
    """
    encode[:] = np.uint16(0)
    for c in range(len(lengths)):
        table = TABLES_AT + c * TABLE_ENTRIES
        code = 0
        for bits in range(1, CODE_BITS + 1):
            for symbol in range(N_SYMBOLS + 1):
                if lengths[c, symbol] != bits:
                    continue
                lowest_first = 0
                for i in range(bits):
                    lowest_first |= ((code >> i) & 1) << (bits - 1 - i)
                encode[c, symbol] = np.uint16(lowest_first | (bits << 8))
                entry = bits | (symbol << SYMBOL_SHIFT)
                if symbol == ESCAPED:
                    entry = (bits + 8) | IS_ESCAPE
                for above in range(1 << (CODE_BITS - bits)):
                    model[table + (lowest_first | (above << bits))] = np.uint16(entry)
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
    code = code_at(model, context)
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
        pos = _put_symbol(out, pos, encode, code_at(model, COPY_MAP + before), token)
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
                code = code_at(model, context + j)
                pos = _put_symbol(out, pos, encode, code, np.int64(load8(extras)))
                extras += 1
    following = RESIDUAL_MAP if predictor > 0 else NEXT_MAP
    before = np.int64(0)
    for i in range(n_literals):
        code = code_at(model, following + before)
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
    count_code = code_at(model, COUNT_CODE)
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
    code = code_at(model, START_CODE)
    for i in range(n_tokens):
        token = np.int64(load8(record + i))
        pos = _put_symbol(out, pos, encode, code, token)
        code = code_at(model, TOKEN_MAP + token)
        if token == ESCAPE:
            kind = np.int64(load8(v))
            mask = np.int64(load8(v + 1))
            pos = _put_symbol(out, pos, encode, code_at(model, KIND_CODE), kind)
            pos = _put_symbol(out, pos, encode, code_at(model, MASK_CODE), mask)
            v += 2
            more = True
            while more:
                byte = np.int64(load8(v))
                pos = _put_symbol(out, pos, encode, code_at(model, SKIP_CODE), byte)
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
        code = code_at(model, first_context(token, kind))
        following = RESIDUAL_MAP if kind >= RESIDUAL else NEXT_MAP
        for _ in range(n_values):
            before = np.int64(load8(v))
            pos = _put_symbol(out, pos, encode, code, before)
            code = code_at(model, following + before)
            v += 1
    return v, pos


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
