"""Unpacking packed records, three at a time: `format.packed`.

Which bits a symbol has, and in which code, is known when the one before it is: some fifteen cycles
for each, in which a processor does next to nothing. So runs of records are unpacked side by side, a
symbol of each by turns and without a branch on what it is; what there is to do between symbols, for
each by itself. With the codes of MsPacman a symbol of random bits takes 5.3 ns in one run, 2.8 in
two and 2.2 in three (AMD EPYC); of real records, one by one and with branches, 3.9 to 6.6.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.format.codebooks import model_of, table_of
from compressarray.format.copies import (
    MORE_LITERALS,
    MORE_SPAN,
    N_NUMBERS,
    SPAN_SHIFT,
    place_bytes,
)
from compressarray.format.numbers import MAX_NUMBER_BYTES, put_varint
from compressarray.format.packed import (
    CODE_MASK,
    COPIED,
    COPY_MAP,
    COUNT_CODE,
    KIND_CODE,
    LITERALS_CODE,
    LONG_COUNT,
    MASK_CODE,
    NEXT_MAP,
    NO_TABLE_AT,
    NUMBER_CODE,
    RESIDUAL_MAP,
    SKIP_CODE,
    SPAN_CODE,
    START_CODE,
    SYMBOL_SHIFT,
    TABLES_AT,
    TAKEN,
    TOKEN_MAP,
    first_context,
    place_context,
    table_at,
)
from compressarray.format.records import (
    ENTRY_BYTES,
    ESCAPE,
    KIND_AT,
    N_VALUES_AT,
    RESIDUAL,
    count_values,
    is_copies,
    record_room,
)
from compressarray.kernels.compiling import inlined, kernel
from compressarray.kernels.memory import (
    copy_bytes,
    load8,
    load16,
    load32,
    load64,
    store8,
    store32,
    store64,
)

# A run of records: the bit at which the first one begins, and how many there are; how many of them
# were unpacked, and the bit after these; the bit behind which none begins; the room for them, how
# much of it one may need, up to where it is filled, which record there is read next, and whether
# others were there before; what they are read with.
(
    FIRST, N_RECORDS, N_DONE, POS, LAST, ROOM, ROOM_END, NEED, FILLED, NEXT_READ, REFILLED, TABLE,
    MODEL,
) = range(13)  # fmt: skip
RUN_BYTES = 104
ANY_ROOM = 1 << 40  # where there is room for whatever comes
# Who reads a run: its address, or 0; what is read; how many symbols of that are left; where their
# bits are, the codes that are given for them, and where they go; the symbol before, and the one
# behind which more than a symbol comes; the model; where the record ends, as far as is known; rooms
# of its own; escapes in the second one.
(
    RUN, JOB, LEFT, AT, GIVEN, TO, BEFORE, STOP, CODES_OF, AFTER, CODES, ESCAPES, N_ESCAPES,
) = range(13)  # fmt: skip
_READER_BYTES = 104
_N_READERS = 3
_MANY_BYTES = 1 << 24  # frames of more have one reader, which takes six times their bytes
_NOTHING, _TOKENS, _VALUES = range(3)
_NEVER = 256  # no symbol
# Of an escape in its room: its values' place (4 bytes), how many bytes its parts are, the parts.
_ESCAPE_BYTES = 16
_PARTS_AT = 5
_FOUR = np.uint64(0x0001000100010001)
# Bytes that one word's share of a packed record takes at most, and of a plain record once
# unpacked: an escape's parts and eight values, each behind an escape of its code.
_PACKED_BYTES_A_WORD, _PLAIN_BYTES_A_WORD = 40, 16


@inlined
def get(row: Any, field: Any) -> Any:
    """A field of a row at an address."""
    return np.int64(load64(row + 8 * field))


@inlined
def put(row: Any, field: Any, value: Any) -> None:
    """Set a field of a row at an address."""
    store64(row + 8 * field, np.uint64(value))


@inlined
def packed_room(n_bytes: Any) -> Any:
    """Bytes that bits are read of at most for a record, whatever they are."""
    return _PACKED_BYTES_A_WORD * ((n_bytes + 7) >> 3) + 128


@inlined
def plain_room(n_bytes: Any) -> Any:
    """Bytes that a record is unpacked to at most, whatever its bits are."""
    return _PLAIN_BYTES_A_WORD * ((n_bytes + 7) >> 3) + 128


@inlined
def _n_readers(n_bytes: Any) -> Any:
    return _N_READERS if n_bytes <= _MANY_BYTES else 1


@inlined
def _codes_room(n_bytes: Any) -> Any:
    return 2 * plain_room(n_bytes)


@inlined
def _reader_room(n_bytes: Any) -> Any:
    return _codes_room(n_bytes) + _ESCAPE_BYTES * ((n_bytes + 7) >> 3) + 64


@inlined
def unpacking_bytes(n_bytes: Any) -> Any:
    """Bytes of scratch to unpack records of a frame."""
    return _n_readers(n_bytes) * (_READER_BYTES + _reader_room(n_bytes))


@kernel
def begin_run(run: Any, first: Any, n: Any, n_bytes: Any, codebook: Any, room: Any,
              end: Any) -> None:  # fmt: skip
    """Describe ``n`` records, none of them unpacked yet; see `unpack_runs`.

    Parameters
    ----------
    run : address
        Of `RUN_BYTES`.
    first : int
        Where the first one begins: the address of a bit, eight times a byte's. Up to 8 bytes behind
        the last one are read.
    n_bytes : int
        Bytes of a frame.
    codebook : address
        Of one, with codes.
    room, end : address
        Where records go: room for `record_room` at least.
    """
    put(run, FIRST, first)
    put(run, N_RECORDS, n)
    put(run, TABLE, table_of(codebook))
    put(run, MODEL, model_of(codebook))
    put(run, ROOM, room)
    put(run, ROOM_END, end)
    put(run, NEED, record_room(n_bytes))
    put(run, LAST, 1 << 62)
    put(run, REFILLED, 1)
    begin_again(run)


@kernel
def begin_again(run: Any) -> None:
    """Let a run's first record be the next one."""
    if get(run, REFILLED) != 0:
        put(run, N_DONE, 0)
        put(run, POS, get(run, FIRST))
        put(run, FILLED, get(run, ROOM))
        put(run, REFILLED, 0)
    put(run, NEXT_READ, get(run, ROOM))


# -- bits ------------------------------------------------------------------------------------


@inlined
def _bits_at(pos: Any) -> Any:
    """At least 57 bits from a bit of the memory on."""
    return load64(pos >> 3) >> np.uint64(pos & 7)


@inlined
def _take(window: Any, given: Any, before: Any, model: Any) -> Any:
    """Read a symbol; return it, the bits behind it, and how many bits it took.

    ``given`` is its code's table, or else the map that has it for the symbol before.
    """
    following = np.int64(load16(model + 2 * (given + before)))
    table = given if given >= TABLES_AT else following
    entry = np.int64(load16(model + 2 * (table + np.int64(window & CODE_MASK))))
    escaped = np.int64(window >> np.uint64((entry - 8) & TAKEN)) & 0xFF & -((entry >> 7) & 1)
    return (entry >> SYMBOL_SHIFT) | escaped, entry & TAKEN


@kernel
def _take_in(pos: Any, model: Any, context: Any) -> Any:
    """Read one symbol in the code of a context; return it and the bit after it."""
    symbol, n_bits = _take(_bits_at(pos), context, 0, model)
    return symbol, pos + n_bits


@kernel
def _take_number(pos: Any, model: Any, context: Any, out: Any, end: Any) -> Any:
    """Unpack the bytes of a LEB128 number; return its value, the address after it, and the bit.

    Not beyond ``end``, whatever there is.
    """
    end = min(end, out + MAX_NUMBER_BYTES)
    value = np.int64(0)
    shift = np.int64(0)
    byte = np.int64(0x80)
    while byte >= 0x80 and out < end:
        byte, pos = _take_in(pos, model, context)
        store8(out, np.uint8(byte))
        out += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return value, out, pos


@kernel
def _take_escape(reader: Any, pos: Any) -> Any:
    """Unpack the parts of an escaped token into the reader's room; return the bit after them."""
    n, model = get(reader, N_ESCAPES), get(reader, CODES_OF)
    parts = get(reader, ESCAPES) + n * _ESCAPE_BYTES + _PARTS_AT
    kind, pos = _take_in(pos, model, KIND_CODE)
    mask, pos = _take_in(pos, model, MASK_CODE)
    store8(parts, np.uint8(kind))
    store8(parts + 1, np.uint8(mask))
    _, end, pos = _take_number(pos, model, SKIP_CODE, parts + 2, parts + 2 + MAX_NUMBER_BYTES)
    store8(parts - 1, np.uint8(end - parts))
    put(reader, N_ESCAPES, n + 1)
    return pos


@kernel
def _read_symbols(a: Any, b: Any, c: Any) -> None:
    """Read as many symbols with each reader as all have left.

    The second and third may be the one before them: they then do the same.
    """
    a_left, b_left, c_left = get(a, LEFT), get(b, LEFT), get(c, LEFT)
    n = min(a_left, min(b_left, c_left))
    a_at, a_given, a_to, a_before = get(a, AT), get(a, GIVEN), get(a, TO), get(a, BEFORE)
    b_at, b_given, b_to, b_before = get(b, AT), get(b, GIVEN), get(b, TO), get(b, BEFORE)
    c_at, c_given, c_to, c_before = get(c, AT), get(c, GIVEN), get(c, TO), get(c, BEFORE)
    a_model, a_stop = get(a, CODES_OF), get(a, STOP)
    b_model, b_stop = get(b, CODES_OF), get(b, STOP)
    c_model, c_stop = get(c, CODES_OF), get(c, STOP)
    for i in range(n):
        a_code = np.int64(load16(a_given + 2 * i))
        b_code = np.int64(load16(b_given + 2 * i))
        c_code = np.int64(load16(c_given + 2 * i))
        a_before, a_n = _take(_bits_at(a_at), a_code, a_before, a_model)
        b_before, b_n = _take(_bits_at(b_at), b_code, b_before, b_model)
        c_before, c_n = _take(_bits_at(c_at), c_code, c_before, c_model)
        a_at += a_n
        b_at += b_n
        c_at += c_n
        store8(a_to + i, np.uint8(a_before))
        store8(b_to + i, np.uint8(b_before))
        store8(c_to + i, np.uint8(c_before))
        if (a_before == a_stop) | (b_before == b_stop) | (c_before == c_stop):
            if a_before == a_stop:
                a_at = _take_escape(a, a_at)
            if b == a:
                b_at = a_at
            elif b_before == b_stop:
                b_at = _take_escape(b, b_at)
            if c == b:
                c_at = b_at
            elif c_before == c_stop:
                c_at = _take_escape(c, c_at)
    _went_on(a, a_left - n, a_at, a_given + 2 * n, a_to + n, a_before)
    _went_on(b, b_left - n, b_at, b_given + 2 * n, b_to + n, b_before)
    _went_on(c, c_left - n, c_at, c_given + 2 * n, c_to + n, c_before)


@inlined
def _went_on(reader: Any, left: Any, at: Any, given: Any, to: Any, before: Any) -> None:
    put(reader, LEFT, left)
    put(reader, AT, at)
    put(reader, GIVEN, given)
    put(reader, TO, to)
    put(reader, BEFORE, before)


# -- between symbols -------------------------------------------------------------------------


@kernel
def _read_on(reader: Any, job: Any, n: Any, to: Any, before: Any, stop: Any) -> None:
    """Have a reader read ``n`` symbols in the codes that its room gives."""
    put(reader, JOB, job)
    put(reader, LEFT, n)
    put(reader, GIVEN, get(reader, CODES))
    put(reader, TO, to)
    put(reader, BEFORE, before)
    put(reader, STOP, stop)


@inlined
def _give(codes: Any, n: Any, given: Any) -> None:
    """Give ``n`` symbols, and up to 3 more, their codes in one way."""
    for i in range(0, n, 4):
        store64(codes + 2 * i, np.uint64(given) * _FOUR)


@kernel
def _begin_copies(reader: Any, pos: Any, n_bytes: Any, model: Any, out: Any) -> None:
    """Unpack a record of copies, behind its mark, up to its literals."""
    room = out + N_NUMBERS * MAX_NUMBER_BYTES
    n_tokens, out, pos = _take_number(pos, model, NUMBER_CODE, out, room)
    n_extras, out, pos = _take_number(pos, model, NUMBER_CODE, out, room)
    n_literals, out, pos = _take_number(pos, model, NUMBER_CODE, out, room)
    predictor, out, pos = _take_number(pos, model, NUMBER_CODE, out, room)
    if n_tokens + n_extras + n_literals > n_bytes:
        n_tokens = n_extras = n_literals = np.int64(0)  # no record, as who checks it will say
    extras = out + n_tokens
    literals = extras + n_extras
    before = np.int64(0)
    for i in range(n_tokens):
        before, pos = _take_in(pos, model, COPY_MAP + before)
        store8(out + i, np.uint8(before))
    for i in range(n_tokens):
        token = np.int64(load8(out + i))
        if token & MORE_LITERALS == MORE_LITERALS:
            _, extras, pos = _take_number(pos, model, LITERALS_CODE, extras, literals)
        if token >> SPAN_SHIFT == MORE_SPAN:
            _, extras, pos = _take_number(pos, model, SPAN_CODE, extras, literals)
        context = place_context(token)
        if context > 0:
            for j in range(min(place_bytes(n_bytes), literals - extras)):
                byte, pos = _take_in(pos, model, context + j)
                store8(extras, np.uint8(byte))
                extras += 1
    _give(get(reader, CODES), n_literals, RESIDUAL_MAP if predictor > 0 else NEXT_MAP)
    _read_on(reader, _VALUES, n_literals, literals, 0, _NEVER)
    put(reader, AT, pos)
    put(reader, AFTER, literals + n_literals)


@kernel
def _begin_record(reader: Any, n_bytes: Any, model: Any, out: Any) -> None:
    """Have a reader read its next record, to ``out``."""
    n_words = (n_bytes + 7) >> 3
    n_tokens, pos = _take_in(get(reader, AT), model, COUNT_CODE)
    put(reader, N_ESCAPES, 0)
    if n_tokens == COPIED:
        _begin_copies(reader, pos, n_bytes, model, put_varint(out, n_words + 2))
        return
    if n_tokens == LONG_COUNT:
        n_tokens = np.int64(_bits_at(pos) & np.uint64(0xFFFFFF))
        pos += 24
        if is_copies(n_tokens, n_bytes):
            n_tokens += 1  # has a symbol of its own: no record
    out = put_varint(out, n_tokens)
    if n_tokens > n_words:
        pos = (pos + 7) & ~7
        copy_bytes(out, pos >> 3, n_bytes)
        pos += n_bytes << 3
        out += n_bytes
        n_tokens = np.int64(0)
    _give(get(reader, CODES), n_tokens, TOKEN_MAP)
    job = _TOKENS if n_tokens > 0 else _VALUES
    _read_on(reader, job, n_tokens, out, START_CODE - TOKEN_MAP, ESCAPE)
    put(reader, AT, pos)
    put(reader, AFTER, out)


@kernel
def _begin_values(reader: Any, model: Any, table: Any) -> None:
    """Give the values of a record whose tokens are read their codes, and have them read."""
    tokens, values = get(reader, AFTER), get(reader, TO)
    codes, escape = get(reader, CODES), get(reader, ESCAPES)
    no_code = np.uint64(table_at(model, NO_TABLE_AT)) * _FOUR
    n = np.int64(0)
    for i in range(values - tokens):
        token = np.int64(load8(tokens + i))
        n_values = np.int64(load8(table + token * ENTRY_BYTES + N_VALUES_AT))
        kind = np.int64(load8(table + token * ENTRY_BYTES + KIND_AT))
        if token == ESCAPE:
            # its parts are there: what is read instead takes no bits and is written over
            kind = np.int64(load8(escape + _PARTS_AT))
            mask = np.int64(load8(escape + _PARTS_AT + 1))
            n_values = count_values(mask, kind)
            store32(escape, np.uint32(n))
            store64(codes + 2 * n, no_code)
            store64(codes + 2 * n + 8, no_code)
            n += np.int64(load8(escape + _PARTS_AT - 1))
            escape += _ESCAPE_BYTES
        # the first value's code, and for those behind it the map, whether there are any or not
        first = np.uint64(table_at(model, first_context(token, kind)))
        following = np.uint64(RESIDUAL_MAP if kind >= RESIDUAL else NEXT_MAP) * _FOUR
        store64(codes + 2 * n, first | (following << np.uint64(16)))
        store64(codes + 2 * n + 8, following)
        n += n_values
    _read_on(reader, _VALUES, n, values, 0, _NEVER)
    put(reader, AFTER, values + n)


@kernel
def _put_escapes(reader: Any) -> None:
    """Put the parts of escaped tokens where they belong between the values."""
    escape = get(reader, ESCAPES)
    values = get(reader, TO) - ((get(reader, GIVEN) - get(reader, CODES)) >> 1)
    for _ in range(get(reader, N_ESCAPES)):
        at = values + np.int64(load32(escape))
        for i in range(np.int64(load8(escape + _PARTS_AT - 1))):
            store8(at + i, np.uint8(load8(escape + _PARTS_AT + i)))
        escape += _ESCAPE_BYTES


@kernel
def _turn(reader: Any, run: Any, last: Any, n_bytes: Any) -> Any:
    """Bring a reader on to symbols, of its record, of the next, or of another run.

    Returns the next run that nobody reads.
    """
    own = get(reader, RUN)
    while True:
        if own == 0:
            if run == last:
                put(reader, RUN, 0)
                return run
            own = run
            run += RUN_BYTES
            put(reader, RUN, own)
            put(reader, JOB, _NOTHING)
            put(reader, LEFT, 0)
            put(reader, AT, get(own, POS))
            put(reader, CODES_OF, get(own, MODEL))
        if get(reader, JOB) == _TOKENS and get(reader, LEFT) == 0:
            _begin_values(reader, get(own, MODEL), get(own, TABLE))
        if get(reader, LEFT) > 0:
            return run
        if get(reader, JOB) == _VALUES:
            _put_escapes(reader)
            put(own, N_DONE, get(own, N_DONE) + 1)
            put(own, POS, get(reader, AT))
            put(own, FILLED, get(reader, AFTER))
        has_room = get(own, ROOM_END) - get(own, FILLED) >= get(own, NEED)
        is_more = get(own, N_DONE) < get(own, N_RECORDS) and get(own, POS) <= get(own, LAST)
        if is_more and has_room:
            _begin_record(reader, n_bytes, get(own, MODEL), get(own, FILLED))
        else:
            own = np.int64(0)


# -- runs ------------------------------------------------------------------------------------


@kernel
def unpack_runs(runs: Any, n: Any, n_bytes: Any, scratch: Any) -> None:
    """Unpack the records of runs, as many of each as there is room for.

    Parameters
    ----------
    runs : address
        Of ``n`` of them, one behind the other: `begin_run`.
    n_bytes : int
        Bytes of a frame.
    scratch : address
        Of `unpacking_bytes`.
    """
    run, last = runs, runs + n * RUN_BYTES
    n_readers = _n_readers(n_bytes)
    room = scratch + n_readers * _READER_BYTES
    for i in range(n_readers):
        reader = scratch + i * _READER_BYTES
        put(reader, CODES, room)
        put(reader, ESCAPES, room + _codes_room(n_bytes))
        room += _reader_room(n_bytes)
        put(reader, RUN, 0)
        put(reader, LEFT, 0)
    while True:
        # those that have nothing to read do what another one does
        a = b = c = np.int64(0)
        for i in range(n_readers):
            reader = scratch + i * _READER_BYTES
            if get(reader, LEFT) == 0:
                run = _turn(reader, run, last, n_bytes)
            if get(reader, RUN) != 0:
                a, b, c = reader, a if a else reader, b if b else reader
        if a == 0:
            return
        _read_symbols(a, b, c)


@kernel
def refill(run: Any, n_bytes: Any, scratch: Any) -> None:
    """Unpack more of a run's records, over those that are in its room."""
    put(run, FILLED, get(run, ROOM))
    put(run, NEXT_READ, get(run, ROOM))
    put(run, REFILLED, get(run, N_DONE))
    unpack_runs(run, 1, n_bytes, scratch)


@kernel
def next_record(run: Any, n_bytes: Any, scratch: Any) -> Any:
    """The address of a run's next record, unpacked. There is one.

    ``scratch`` is the address of `unpacking_bytes`. Where the record ends, `read_until` is to say.
    """
    if get(run, NEXT_READ) == get(run, FILLED):
        refill(run, n_bytes, scratch)
    return get(run, NEXT_READ)


@inlined
def read_until(run: Any, record: Any) -> None:
    """Say where a run's next record is, after one that was read."""
    put(run, NEXT_READ, record)
