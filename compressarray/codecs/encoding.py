"""One frame, coded against another: as words, raw, or copies: what is about the smallest."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.codecs.copies import ENCODING_BYTES, ENCODING_BYTES_A_BYTE, encode_copies
from compressarray.codecs.words import encode_words, pixel_bytes_to_encode
from compressarray.format.numbers import put_varint
from compressarray.kernels.compiling import inlined, kernel
from compressarray.kernels.memory import (
    copy_bytes,
    guess_changed_words,
    load64,
    same_bytes,
    store64,
)

# Copies are looked for where changed words take more than a 16th of a frame, and first where more
# than half of them changed. Atari's frames mostly take a 60th. Where looking is in vain, frames are
# let pass, twice as many the next time: in DeepMind Control's worlds it mostly is. Keyframes, which
# are coded against the background, say nothing about the others, and are counted by themselves.
MIN_COPIED_BYTES = 512
_WORTH_A_LOOK, _MANY = 4, 1  # shifts
_MAX_PAUSE = 15
_GAIN, _PACKED_GAIN = 2, 3  # the part that copies have to save, a shift
PATIENCE_WORDS = 4  # how many to let pass and how many it were, and the same of keyframes
_FRAME_ROOM = 24  # behind a frame in scratch


@inlined
def encoding_bytes(n_bytes: Any) -> Any:
    """Bytes of scratch to encode a frame: 17 a word; the frame before, a record, and for copies."""
    room = 17 * ((n_bytes + 7) >> 3) + 64
    if n_bytes >= MIN_COPIED_BYTES:
        room += (2 + ENCODING_BYTES_A_BYTE) * n_bytes + 3 * _FRAME_ROOM + ENCODING_BYTES
    return room


@kernel
def encode(new: Any, previous: Any, background: Any, n_bytes: Any, row_bytes: Any,
           encode_table: Any, scratch: Any, patience: Any, out: Any) -> Any:  # fmt: skip
    """Write the record that turns the frame at ``previous`` into the one at ``new``.

    As `words.encode_words` does, but for ``scratch``, the address of `encoding_bytes`, and
    ``patience``, that of `PATIENCE_WORDS` numbers which say when to try copies again: 0 to begin
    with. Returns the address after the record.
    """
    n_words = (n_bytes + 7) >> 3
    tokens, values = scratch, scratch + n_words
    n_changed = np.int64(0)
    if n_bytes >= MIN_COPIED_BYTES:
        n_changed = guess_changed_words(new, previous, n_bytes)
    worth = n_changed > n_words >> (_WORTH_A_LOOK + 2)
    if worth and same_bytes(previous, background, n_bytes):
        patience += 16
    wait = np.int64(load64(patience))
    if not worth or wait > 0:
        end, price = encode_words(
            new, previous, background, n_bytes, row_bytes, encode_table, tokens, values, out
        )
        if worth and price > n_bytes >> _WORTH_A_LOOK:
            store64(patience, np.uint64(wait - 1))
        return end
    pixel_bytes = pixel_bytes_to_encode(encode_table)
    kept = scratch + 17 * n_words + 64
    aside = kept + n_bytes + _FRAME_ROOM
    search = aside + n_bytes + 2 * _FRAME_ROOM
    begin = put_varint(aside, n_words + 2)
    copy_bytes(kept, previous, n_bytes)  # which becomes the new frame
    after, cost = begin, n_bytes
    many = n_changed > n_words >> _MANY
    if many:
        after, cost = encode_copies(
            new, kept, n_bytes, row_bytes, pixel_bytes, n_bytes, search, begin
        )
        # a changed word takes two bytes at least, and four where all changed: it need not be tried
        most = 4 if pixel_bytes > 0 and n_changed > n_words - (n_words >> 3) else 1
        if after != begin and cost < most * n_changed:
            copy_bytes(out, aside, after - aside)
            copy_bytes(previous, new, n_bytes)
            store64(patience + 8, np.uint64(0))
            return out + (after - aside)
    end, price = encode_words(
        new, previous, background, n_bytes, row_bytes, encode_table, tokens, values, out
    )
    if price <= n_bytes >> _WORTH_A_LOOK:
        return end
    limit = price - (price >> (_PACKED_GAIN if pixel_bytes > 0 else _GAIN))
    if not many:
        after, cost = encode_copies(
            new, kept, n_bytes, row_bytes, pixel_bytes, limit, search, begin
        )
    if after != begin and cost < limit:
        copy_bytes(out, aside, after - aside)
        store64(patience + 8, np.uint64(0))
        return out + (after - aside)
    pause = min(2 * np.int64(load64(patience + 8)) + 1, _MAX_PAUSE)
    store64(patience, np.uint64(pause))
    store64(patience + 8, np.uint64(pause))
    return end
