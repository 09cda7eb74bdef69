"""Coding a frame as spans of the frame before and of itself: `format.copies`."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.format.copies import (
    AGAIN,
    HEADER_BYTES,
    HERE,
    MIN_SPAN,
    MORE_LITERALS,
    MORE_SPAN,
    MOVED,
    SOURCE_SHIFT,
    SPAN_SHIFT,
    UNMOVED,
    place_bytes,
    source_of,
)
from compressarray.format.numbers import checked_varint, get_varint, put_varint
from compressarray.format.reasons import NO_SOURCE, OUTSIDE, SHORT
from compressarray.kernels.compiling import inlined, kernel
from compressarray.kernels.memory import (
    copy_bytes,
    count_bits,
    load8,
    load16,
    load32,
    load64,
    store8,
    store16,
    store32,
    store64,
)

_LONG_REPEAT = 256  # bytes; longer ones are copied in parts that double
_OVERSHOOT = 32  # bytes that a short span is copied with

# The encoder's search. A span is found through five of its bytes in a table of the newest place
# for each hash, and from there through older ones. With at most 1, 4 and 16 looks 200 frames of
# Crafter take 916, 545 and 514 bytes each, of CarRacing 1,274, 1,193 and 1,160.
_HASHED_BYTES = 5
_MAX_LOOKS = 8
_MIN_HASH_BITS, _MAX_HASH_BITS = 8, 15
_LONG_SPAN = 48  # bytes with which a search is content
_HASH_MULTIPLIER = np.uint64(0x9E3779B185EBCA87)
_SKIP_SHIFT = 5  # after 32 literals every second place is looked at, after 64 every third, ...
# The search for how far everything has moved: places that are compared, and rows and pixels.
_SAMPLES, _MOST_ROWS, _MOST_PIXELS = 192, 4, 6
LITERAL_BITS = 6  # that a packed literal takes, about
# Scratch to encode: hash and guards; of each byte of a frame two links, a token, an extra, a
# literal.
ENCODING_BYTES, ENCODING_BYTES_A_BYTE = (4 << _MAX_HASH_BITS) + 256, 11


@inlined
def _hash_bits(n_bytes: Any) -> Any:
    bits = _MIN_HASH_BITS
    while bits < _MAX_HASH_BITS and 1 << bits < n_bytes:
        bits += 1
    return bits


@inlined
def _take_place(extras: Any, wide: Any) -> Any:
    return np.int64(load32(extras)) if wide == 4 else np.int64(load16(extras))


@inlined
def _at(s: Any, new: Any, old: Any, n_bytes: Any) -> Any:
    """The address of a place in both frames in one row."""
    return old + s if s < n_bytes else new + s - n_bytes


# -- decoding ----------------------------------------------------------------------------------


@inlined
def _copy_32(target: Any, source: Any) -> None:
    for i in range(0, _OVERSHOOT, 8):
        store64(target + i, load64(source + i))


@inlined
def _copy_span(target: Any, source: Any, n: Any, end: Any) -> None:
    """Copy bytes from before or from elsewhere: what is copied may go on into what it makes."""
    distance = target - source
    apart = (distance <= 0) | (distance >= _OVERSHOOT)
    if (n <= _OVERSHOOT) & (target + _OVERSHOOT <= end) & apart:
        _copy_32(target, source)
    elif not 0 < distance < n:
        copy_bytes(target, source, n)
    elif n <= _LONG_REPEAT and target + n + 8 <= end:
        # a word at a time, of as many whole repeats as go into one
        word, step = load64(source), np.int64(8)
        if distance < 8:
            word &= ~np.uint64(0) >> np.uint64(64 - 8 * distance)
            shift = distance << 3
            while shift < 64:
                word |= word << np.uint64(shift)
                shift <<= 1
            step -= 8 % distance
        for i in range(0, n, step):
            store64(target + i, word if distance < 8 else load64(source + i))
    else:
        done = np.int64(0)
        while done < n:
            # all from the source on repeats after the distance
            step = min(distance + done, n - done)
            copy_bytes(target + done, source, step)
            done += step


@inlined
def predict(new: Any, old: Any, p: Any, n_bytes: Any, row_bytes: Any, pixel_bytes: Any,
            shift: Any) -> Any:  # fmt: skip
    """The median of the byte to the left, the one above, and one of the frame before."""
    q = p + shift
    q = q if 0 <= q < n_bytes else p
    before = np.int64(load8(old + q))
    left = np.int64(load8(new + p - pixel_bytes)) if p >= pixel_bytes else before
    above = np.int64(load8(new + p - row_bytes)) if p >= row_bytes else left
    return max(min(left, above), min(max(left, above), before))


@inlined
def shift_of(predictor: Any) -> Any:
    """How far ahead a predictor looks in the frame before: 1 is 0, 2 is -1, 3 is 1, ..."""
    return -(predictor >> 1) if predictor & 1 == 0 else predictor >> 1


@inlined
def _predictor_of(shift: Any) -> Any:
    return -2 * shift if shift < 0 else 2 * shift + 1


@kernel
def apply_copies(record: Any, frame: Any, old: Any, n_bytes: Any, row_bytes: Any,
                 pixel_bytes: Any) -> Any:  # fmt: skip
    """Turn the frame at ``frame`` into the next one; return the address after the record.

    ``old`` is the address of scratch for a frame and 32 bytes more: the frame before goes there.
    Trusts its input, as `words.apply_record` does.
    """
    n_tokens, record = get_varint(record)
    n_extras, record = get_varint(record)
    n_literals, record = get_varint(record)
    predictor, tokens = get_varint(record)
    extras = tokens + n_tokens
    literals = extras + n_extras
    after = literals + n_literals
    copy_bytes(old, frame, n_bytes)
    wide = place_bytes(n_bytes)
    rows = row_bytes if row_bytes > 0 else n_bytes
    shift = shift_of(predictor)
    mask = (1 << (8 * wide)) - 1
    end = frame + n_bytes
    p = frame
    back = n_bytes  # from a place to its source, in both frames in one row
    for i in range(n_tokens + 1):
        token = np.int64(0)
        n = after - literals
        if i < n_tokens:
            token = np.int64(load8(tokens + i))
            n = token & 3
            if n == MORE_LITERALS:
                more, extras = get_varint(extras)
                n += more
        if predictor == 0:
            inside = (p + _OVERSHOOT <= end) & (literals + _OVERSHOOT <= after)
            if (n <= _OVERSHOOT) & inside:
                _copy_32(p, literals)
            else:
                copy_bytes(p, literals, n)
        else:
            at = p - frame
            for j in range(at, at + n):
                value = predict(frame, old, j, n_bytes, rows, pixel_bytes, shift)
                value += np.int64(load8(literals + j - at))
                store8(frame + j, np.uint8(value & 0xFF))
        p += n
        literals += n
        if i == n_tokens:
            break
        n = token >> SPAN_SHIFT
        if n == MORE_SPAN:
            more, extras = get_varint(extras)
            n += more
        n += MIN_SPAN
        # without a branch on the source, which no processor foresees
        source = source_of(token)
        here = n_bytes + p - frame
        place = _take_place(extras, wide)
        extras += wide if source >= MOVED else 0
        moved = here - ((here - n_bytes - place) & mask)
        place = moved if source == MOVED else place
        place = n_bytes if source == UNMOVED else place
        back = back if source == AGAIN else place
        begin = here - back
        # what has not moved lies there, but for what a short copy has written too much
        n_copied = n if back != n_bytes else min(n, _OVERSHOOT)
        _copy_span(p, _at(begin, frame, old, n_bytes), n_copied, end)
        p += n
    return after


# -- checking ----------------------------------------------------------------------------------


@kernel
def check_copies(record: Any, end: Any, n_bytes: Any, pixel_bytes: Any) -> Any:
    """The address after a record, or which of `REASONS` there is against it."""
    n_tokens, record = checked_varint(record, end)
    if n_tokens < 0:
        return SHORT
    n_extras, record = checked_varint(record, end)
    if n_extras < 0:
        return SHORT
    n_literals, record = checked_varint(record, end)
    if n_literals < 0:
        return SHORT
    predictor, tokens = checked_varint(record, end)
    if predictor < 0 or n_tokens + n_extras + n_literals > end - tokens:
        return SHORT
    if n_tokens + n_extras + n_literals > n_bytes:
        return OUTSIDE
    if predictor > 0 and (pixel_bytes == 0 or predictor > 2 * n_bytes):
        return NO_SOURCE
    extras = tokens + n_tokens
    last = extras + n_extras
    wide = place_bytes(n_bytes)
    mask = (1 << (8 * wide)) - 1
    p = np.int64(0)
    left = n_literals
    back = n_bytes  # from a place to its source, in both frames in one row
    for i in range(n_tokens):
        token = np.int64(load8(tokens + i))
        n = token & 3
        if n == MORE_LITERALS:
            more, extras = checked_varint(extras, last)
            if more < 0:
                return SHORT
            n += more
        left -= n
        p += n
        n = token >> SPAN_SHIFT
        if n == MORE_SPAN:
            more, extras = checked_varint(extras, last)
            if more < 0:
                return SHORT
            n += more
        n += MIN_SPAN
        source = source_of(token)
        if source == UNMOVED:
            back = n_bytes
        elif source != AGAIN:
            if last - extras < wide:
                return SHORT
            place = _take_place(extras, wide)
            extras += wide
            back = place if source == HERE else n_bytes + p - ((p - place) & mask)
        if left < 0 or p + n > n_bytes:
            return OUTSIDE
        # in both frames in one row, and not from the one over into the other
        begin = n_bytes + p - back
        if back < 1 or begin < 0 or (begin < n_bytes and begin + n > n_bytes):
            return NO_SOURCE
        p += n
    if p + left != n_bytes or extras != last:
        return OUTSIDE
    return last + n_literals


# -- encoding ----------------------------------------------------------------------------------


@inlined
def _slot(address: Any, bits: Any) -> Any:
    word = load64(address) << np.uint64(64 - 8 * _HASHED_BYTES)
    return np.int64((word * _HASH_MULTIPLIER) >> np.uint64(64 - bits)) << 2


@inlined
def _same_length(first: Any, second: Any, most: Any) -> Any:
    """How many bytes at two addresses are equal."""
    n = np.int64(0)
    while n + 8 <= most:
        change = load64(first + n) ^ load64(second + n)
        if change:
            # the bits below the lowest one that differs
            return n + (count_bits((change & (~change + np.uint64(1))) - np.uint64(1)) >> 3)
        n += 8
    while n < most and load8(first + n) == load8(second + n):
        n += 1
    return n


@inlined
def _span_at(s: Any, p: Any, new: Any, old: Any, n_bytes: Any) -> Any:
    """How long a span at a place of both frames in one row is found again at ``p`` of the new."""
    most = n_bytes - p
    if s < n_bytes:
        most = min(most, n_bytes - s)
    return _same_length(_at(s, new, old, n_bytes), new + p, most)


@inlined
def _insert(s: Any, address: Any, table: Any, links: Any, bits: Any) -> None:
    slot = table + _slot(address, bits)
    store32(links + (s << 2), load32(slot))
    store32(slot, np.uint32(s + 1))


@kernel
def _find_span(p: Any, back: Any, new: Any, old: Any, n_bytes: Any, table: Any, links: Any,
               bits: Any) -> Any:  # fmt: skip
    """The best span for ``p``: bits that it saves, its length, how far back, and its source."""
    saved, length, best, source = np.int64(0), np.int64(0), np.int64(0), np.int64(AGAIN)
    here = n_bytes + p
    if back <= here:
        n = _span_at(here - back, p, new, old, n_bytes)
        if n >= MIN_SPAN:
            saved, length, best = 8 * n - 8, n, back
    if back != n_bytes:
        n = _span_at(p, p, new, old, n_bytes)
        if n >= MIN_SPAN and 8 * n - 8 > saved:
            saved, length, best, source = 8 * n - 8, n, n_bytes, np.int64(UNMOVED)
    if length < _LONG_SPAN and p + 8 <= n_bytes:
        price = 8 + 8 * place_bytes(n_bytes)
        found = np.int64(load32(table + _slot(new + p, bits)))
        looks = 0
        while found > 0 and looks < _MAX_LOOKS:
            s = found - 1
            address = _at(s, new, old, n_bytes)
            # one that is longer than the best so far has to have this byte
            if load8(address + length) == load8(new + p + length):
                n = _span_at(s, p, new, old, n_bytes)
                if 8 * n - price > saved:
                    saved, length, best = 8 * n - price, n, here - s
                    source = np.int64(MOVED if s < n_bytes else HERE)
                    if n >= _LONG_SPAN:
                        break
            found = np.int64(load32(links + (s << 2)))
            looks += 1
    return saved, length, best, source


@kernel
def encode_copies(new: Any, old: Any, n_bytes: Any, row_bytes: Any, pixel_bytes: Any, limit: Any,
                  scratch: Any, out: Any) -> Any:  # fmt: skip
    """Write the record that turns one frame into another.

    Parameters
    ----------
    new, old : address
        Frames of ``n_bytes``, with 8 bytes that can be read behind them.
    pixel_bytes : int
        Distance to the pixel to the left, where records are to be packed; or 0.
    limit : int
        What the record may cost, or it is not written.
    scratch : address
        `encoding_bytes`.
    out : address
        Room for a frame and `HEADER_BYTES`.

    Returns
    -------
    tuple
        The address after the record, ``out`` for none, and about what it costs: bytes, where a
        packed literal's cost is a byte's.
    """
    bits = _hash_bits(n_bytes)
    table = scratch
    links = table + (4 << bits)
    tokens = links + 8 * n_bytes
    extras = tokens + n_bytes + 64
    literals = extras + n_bytes + 64
    most = n_bytes - HEADER_BYTES
    n_tokens, n_extras, n_literals = np.int64(0), np.int64(0), np.int64(0)
    for i in range(0, 4 << bits, 8):
        store64(table + i, np.uint64(0))
    for s in range(n_bytes - 7):
        _insert(s, old + s, table, links, bits)
    wide = place_bytes(n_bytes)
    mask = (1 << (8 * wide)) - 1
    back = n_bytes
    p, begin, known = np.int64(0), np.int64(0), np.int64(0)
    known_saved = np.int64(-1)
    length, best, source = np.int64(0), np.int64(0), np.int64(0)
    while p < n_bytes:
        if known_saved < 0:
            saved, length, best, source = _find_span(p, back, new, old, n_bytes, table, links, bits)
        else:
            saved = known_saved
        known_saved = np.int64(-1)
        until = min(p + 1, n_bytes - 7)
        while known < until:
            _insert(n_bytes + known, new + known, table, links, bits)
            known += 1
        if saved <= 0:
            p += 1 + ((p - begin) >> _SKIP_SHIFT)
            if n_tokens + n_extras + n_literals + p - begin > limit and pixel_bytes == 0:
                return out, limit
            continue
        if length < _LONG_SPAN and p + 1 < n_bytes:
            later = _find_span(p + 1, back, new, old, n_bytes, table, links, bits)
            if later[0] > saved + 8:
                known_saved, length, best, source = later
                p += 1
                continue
        n = p - begin
        if n_tokens + n_extras + n_literals + n + 16 > most:
            break
        copy_bytes(literals + n_literals, new + begin, n)
        n_literals += n
        token = (
            min(n, MORE_LITERALS)
            | source << SOURCE_SHIFT
            | min(length - MIN_SPAN, MORE_SPAN) << SPAN_SHIFT
        )
        store8(tokens + n_tokens, np.uint8(token))
        n_tokens += 1
        e = extras + n_extras
        if n >= MORE_LITERALS:
            e = put_varint(e, n - MORE_LITERALS)
        if length - MIN_SPAN >= MORE_SPAN:
            e = put_varint(e, length - MIN_SPAN - MORE_SPAN)
        if source >= MOVED:
            place = best if source == HERE else (best - n_bytes) & mask
            if wide == 4:
                store32(e, np.uint32(place))
            else:
                store16(e, np.uint16(place))
            e += wide
        n_extras = e - extras
        back = best
        p += length
        begin = p
        # of long spans the beginning and the end: what is copied lies in the table already
        if length > 64 and known < p - 16:
            known = p - 16
    n = n_bytes - begin
    if n_tokens + n_extras + n_literals + n > most and pixel_bytes == 0:
        return out, limit
    if n_tokens + n_extras + n_literals + n > most:
        n_tokens, n_extras, n_literals, begin, n = 0, 0, 0, 0, n_bytes
    copy_bytes(literals + n_literals, new + begin, n)
    n_literals += n
    cost = n_tokens + n_extras + n_literals
    predictor = np.int64(0)
    if pixel_bytes > 0 and n_literals > n_bytes >> 3:
        shift = np.int64(0)
        if n_literals > n_bytes >> 1:
            shift = _find_shift(new, old, n_bytes, row_bytes, pixel_bytes)
            if n_literals > n_bytes - (n_bytes >> 3):
                # spans found in noise cost more than they save
                n_tokens, n_extras, n_literals = 0, 0, n_bytes
                copy_bytes(literals, new, n_bytes)
        n_bits = _leave_residuals(
            new, old, n_bytes, row_bytes, pixel_bytes, shift, tokens, n_tokens, extras, n_literals,
            literals, table,
        )  # fmt: skip
        if n_bits < LITERAL_BITS * n_literals:
            predictor = _predictor_of(shift)
            cost = n_tokens + n_extras + n_bits // LITERAL_BITS
            copy_bytes(literals, table, n_literals)
    if cost >= limit:
        return out, limit
    out = put_varint(out, n_tokens)
    out = put_varint(out, n_extras)
    out = put_varint(out, n_literals)
    out = put_varint(out, predictor)
    copy_bytes(out, tokens, n_tokens)
    copy_bytes(out + n_tokens, extras, n_extras)
    copy_bytes(out + n_tokens + n_extras, literals, n_literals)
    return out + n_tokens + n_extras + n_literals, cost


@kernel
def _find_shift(new: Any, old: Any, n_bytes: Any, row_bytes: Any, pixel_bytes: Any) -> Any:
    """By how many bytes most of a frame has moved since the one before."""
    rows = _MOST_ROWS if row_bytes > 0 else 0
    margin = rows * row_bytes + _MOST_PIXELS * pixel_bytes
    best = np.int64(0)
    least = np.int64(-1)
    room = n_bytes - 2 * margin
    if room < _SAMPLES:
        return best
    # a prime number of bytes apart or so: not always the same columns
    step = (room // _SAMPLES) | 1
    for i in range(2 * rows + 1):
        # from none on, so that of equal ones the smaller counts
        row = (i + 1) // 2 * (1 if i & 1 else -1)
        for j in range(2 * _MOST_PIXELS + 1):
            shift = row * row_bytes + (j + 1) // 2 * (1 if j & 1 else -1) * pixel_bytes
            total = np.int64(0)
            p = margin
            while p < n_bytes - margin:
                total += abs(np.int64(load8(new + p)) - np.int64(load8(old + p + shift)))
                p += step
            if least < 0 or total < least:
                best, least = np.int64(shift), total
    return best


@kernel
def _leave_residuals(new: Any, old: Any, n_bytes: Any, row_bytes: Any, pixel_bytes: Any,
                     shift: Any, tokens: Any, n_tokens: Any, extras: Any, n_literals: Any,
                     literals: Any, out: Any) -> Any:  # fmt: skip
    """Write what the median leaves of each literal; return about how many bits that takes."""
    wide = place_bytes(n_bytes)
    rows = row_bytes if row_bytes > 0 else n_bytes
    n_bits = np.int64(0)
    p = np.int64(0)
    done = np.int64(0)
    for i in range(n_tokens + 1):
        token = np.int64(0)
        n = n_literals - done
        if i < n_tokens:
            token = np.int64(load8(tokens + i))
            n = token & 3
            if n == MORE_LITERALS:
                more, extras = get_varint(extras)
                n += more
        for j in range(n):
            value = np.int64(load8(literals + done + j))
            value -= predict(new, old, p + j, n_bytes, rows, pixel_bytes, shift)
            value &= 0xFF
            store8(out + done + j, np.uint8(value))
            size = value if value < 128 else 256 - value
            n_bits += 1
            while size > 0:
                n_bits += 1
                size >>= 1
        done += n
        p += n
        if i < n_tokens:
            n = token >> SPAN_SHIFT
            if n == MORE_SPAN:
                more, extras = get_varint(extras)
                n += more
            p += n + MIN_SPAN
            if source_of(token) >= MOVED:
                extras += wide
    return n_bits
