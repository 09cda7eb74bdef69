"""Pinned memory that is written, copied from, and written again when the copies are done."""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID251, TID253 - a leaf: who asks for a GPU has it

from compressarray.readers.cuda.device import UInt8s

SEGMENT_BYTES, N_SEGMENTS = 1 << 18, 4
_ALIGNMENT = 64


class Pinned:
    """A ring of segments, each of which is used again once what was asked for meanwhile is done.

    Parameters
    ----------
    stream : torch.cuda.Stream
        That everything is copied on.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._tensor = torch.empty(SEGMENT_BYTES * N_SEGMENTS, dtype=torch.uint8, pin_memory=True)
        self._host: UInt8s = self._tensor.numpy()
        self._address = self._tensor.data_ptr()
        self._left: list[Any] = [torch.cuda.Event() for _ in range(N_SEGMENTS)]  # type: ignore[no-untyped-call]
        self._segment = self._used = 0

    def take(self, n_bytes: int) -> tuple[UInt8s, int] | None:
        """Bytes to write, and where they lie; None if there are more than a segment has.

        They are asked to be copied before the next ones are taken.
        """
        if n_bytes > SEGMENT_BYTES:
            return None
        if self._used + n_bytes > SEGMENT_BYTES:
            self._left[self._segment].record(self._stream)
            self._segment = (self._segment + 1) % N_SEGMENTS
            self._left[self._segment].synchronize()  # at once where none was recorded
            self._used = 0
        begin = self._segment * SEGMENT_BYTES + self._used
        self._used += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
        return self._host[begin : begin + n_bytes], self._address + begin
