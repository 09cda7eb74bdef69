"""Whole numbers of as many bytes as they need: LEB128, seven bits a byte, the lowest ones first."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.kernels.compiling import inlined
from compressarray.kernels.memory import load8, store8

MAX_NUMBER_BYTES = 5  # of any that there is


@inlined
def get_varint(address: Any) -> Any:
    """Read a LEB128 number; return it and the address after it."""
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
def put_varint(address: Any, value: Any) -> Any:
    """Write a LEB128 number; return the address after it."""
    while value >= 0x80:
        store8(address, np.uint8((value & 0x7F) | 0x80))
        address += 1
        value >>= 7
    store8(address, np.uint8(value))
    return address + 1


@inlined
def checked_varint(address: Any, end: Any) -> Any:
    """Read a number as `get_varint` does, or -1 where none ends soon enough."""
    most = min(end - address, MAX_NUMBER_BYTES)
    length = 0
    while length < most and np.int64(load8(address + length)) >= 0x80:
        length += 1
    value = np.int64(-1)
    if length < most:
        value, address = get_varint(address)
    return value, address
