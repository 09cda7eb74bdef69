"""Small arrays in few bytes: what replicas are told of a change.

A message is a row of items, each an array of whole numbers or of bytes, that reader and writer know
the order of. Numbers take as few bytes each as the largest of an item needs, so that what one step
changes takes a hundred-odd bytes and not a header of as many. Items:

    kind u8 | length, a varint (LEB128) | values

where ``kind`` is the dtype of the values: `BYTES`, or one of whole numbers, little-endian.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.errors import CorruptFrameError

Int64s = npt.NDArray[np.int64]
UInt8s = npt.NDArray[np.uint8]

BYTES = 0
_DTYPES = [np.dtype(code) for code in ("u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<i8")]
_LIMITS = [(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for dtype in _DTYPES]


class Message:
    """Items that are put together, one behind the other."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def put_ints(self, values: npt.ArrayLike) -> None:
        """Add whole numbers that int64 holds, of any shape: the shape is not kept."""
        array = np.asarray(values, np.int64)
        kind = 1
        if array.size:
            least, most = int(array.min()), int(array.max())
            kind += next(
                i for i, (low, high) in enumerate(_LIMITS) if low <= least and most <= high
            )
        self._parts.append(bytes((kind,)) + _varint(array.size))
        self._parts.append(array.astype(_DTYPES[kind - 1]).tobytes())

    def put_bytes(self, values: npt.NDArray[Any] | bytes) -> None:
        """Add bytes, or those of an array."""
        data = values if isinstance(values, bytes) else values.tobytes()
        self._parts.append(bytes((BYTES,)) + _varint(len(data)))
        self._parts.append(data)

    def finished(self) -> bytes:
        """All items."""
        return b"".join(self._parts)


class Items:
    """Items of a message, in their order.

    Raises
    ------
    CorruptFrameError
        From any method, if the item is none of the kind, length or values that are asked for.
    """

    def __init__(self, message: bytes | memoryview | UInt8s) -> None:
        self._data = memoryview(message).cast("B")  # type: ignore[arg-type]
        self._at = 0

    def ints(
        self, n: int | None = None, least: int | None = None, most: int | None = None
    ) -> Int64s:
        """Take whole numbers, ``(n,)``, from ``least`` to ``most``."""
        kind, length = self._head()
        if not 1 <= kind <= len(_DTYPES):
            raise CorruptFrameError(f"a message has an item of kind {kind} where numbers should be")
        dtype = _DTYPES[kind - 1]
        values: Int64s = np.frombuffer(self._take(length * dtype.itemsize), dtype).astype(np.int64)
        if n is not None and length != n:
            raise CorruptFrameError(f"a message has {length} numbers where {n} should be")
        if length and least is not None and values.min() < least:
            raise CorruptFrameError(f"a message says {values.min()}, less than {least}")
        if length and most is not None and values.max() > most:
            raise CorruptFrameError(f"a message says {values.max()}, more than {most}")
        return values

    def number(self, least: int, most: int) -> int:
        """Take one whole number from ``least`` to ``most``."""
        return int(self.ints(1, least, most)[0])

    def octets(self, n: int | None = None) -> UInt8s:
        """Take bytes, ``(n,)``; a view of the message."""
        kind, length = self._head()
        if kind != BYTES:
            raise CorruptFrameError(f"a message has an item of kind {kind} where bytes should be")
        if n is not None and length != n:
            raise CorruptFrameError(f"a message has {length} bytes where {n} should be")
        return np.frombuffer(self._take(length), np.uint8)

    def end(self) -> None:
        """Refuse more items."""
        if self._at != len(self._data):
            raise CorruptFrameError(f"{len(self._data) - self._at} bytes follow a message")

    def _head(self) -> tuple[Any, Any]:
        kind = self._take(1)[0]
        length = shift = 0
        while True:
            byte = self._take(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return kind, length
            if shift > 56:
                raise CorruptFrameError("a message has an item of more than 2**56 values")

    def _take(self, n: Any) -> memoryview:
        if n > len(self._data) - self._at:
            raise CorruptFrameError("a message ends too early")
        self._at += n
        return self._data[self._at - n : self._at]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
