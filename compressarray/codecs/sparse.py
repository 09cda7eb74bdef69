"""Coding a frame as the pixels that differ from its group's first one: `format.sparse`."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.format.sparse import HEADER_BYTES, RAW_TAG, coordinate_bytes, load_coordinate
from compressarray.kernels.compiling import inlined, kernel
from compressarray.kernels.memory import (
    copy_bytes,
    load8,
    load16,
    load32,
    store8,
    store16,
    store32,
)


@inlined
def _store_coordinate(numbers: Any, n: Any, width: Any, number: Any) -> None:
    if width == 1:
        store8(numbers + n, np.uint8(number))
    elif width == 2:
        store16(numbers + 2 * n, np.uint16(number))
    else:
        store32(numbers + 4 * n, np.uint32(number))


@kernel
def encode_sparse(new: Any, first: Any, n_bytes: Any, row_bytes: Any, out: Any) -> Any:
    """Write the record of the frame at ``new``; return the address after it.

    Parameters
    ----------
    new : address
        The frame, ``n_bytes`` of ``uint8`` in rows of ``row_bytes``.
    first : address
        The group's first record, which is raw, or 0 to write it.
    out : address
        Room for ``n_bytes + 8`` bytes.
    """
    if first != 0:
        key = first + 1
        changed = 0
        for i in range(n_bytes):
            changed += load8(new + i) != load8(key + i)
        width = coordinate_bytes(n_bytes, row_bytes)
        if changed * (2 * width + 2) <= n_bytes:
            store8(out, np.uint8(0))
            store32(out + 1, np.uint32(changed))
            rows = out + HEADER_BYTES
            columns = rows + changed * width
            values = columns + changed * width
            n = 0
            for i in range(n_bytes):
                difference = np.int64(load8(new + i)) - np.int64(load8(key + i))
                if difference != 0:
                    _store_coordinate(rows, n, width, i // row_bytes)
                    _store_coordinate(columns, n, width, i % row_bytes)
                    store16(values + 2 * n, np.uint16(difference & 0xFFFF))
                    n += 1
            return values + 2 * changed
    store8(out, np.uint8(RAW_TAG))
    copy_bytes(out + 1, new, n_bytes)
    return out + 1 + n_bytes


@kernel
def skip_sparse(record: Any, n_bytes: Any, row_bytes: Any) -> Any:
    """The address after a record."""
    if load8(record) == RAW_TAG:
        return record + 1 + n_bytes
    changed = np.int64(load32(record + 1))
    return record + HEADER_BYTES + changed * (2 * coordinate_bytes(n_bytes, row_bytes) + 2)


@kernel
def apply_sparse(record: Any, first: Any, frame: Any, n_bytes: Any, row_bytes: Any) -> Any:
    """Rebuild at ``frame`` the frame of one record; return the address after the record."""
    if load8(record) == RAW_TAG:
        copy_bytes(frame, record + 1, n_bytes)
        return record + 1 + n_bytes
    copy_bytes(frame, first + 1, n_bytes)
    changed = np.int64(load32(record + 1))
    width = coordinate_bytes(n_bytes, row_bytes)
    rows = record + HEADER_BYTES
    columns = rows + changed * width
    values = columns + changed * width
    for n in range(changed):
        row, column = load_coordinate(rows, n, width), load_coordinate(columns, n, width)
        i = row * row_bytes + column
        pixel = np.int64(load8(frame + i)) + np.int64(load16(values + 2 * n))
        store8(frame + i, np.uint8(pixel & 0xFF))
    return values + 2 * changed
