"""An update of a device's memory: what is put, and what moves, with one copy and one launch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.readers.cuda.device import Device, UInt8s

Int64s = npt.NDArray[np.int64]

_COLUMNS = 3  # where to, where from, and how many bytes


class Pieces:
    """Bytes and where they go, in no order: no piece lies where another one is moved from."""

    def __init__(self) -> None:
        self._put: list[tuple[Int64s, Int64s, UInt8s]] = []
        self._moved: list[tuple[int, int, int]] = []

    def put(self, address: int, values: npt.NDArray[Any]) -> None:
        """Let an address hold what an array does."""
        if values.nbytes:
            self.put_each(np.array([address]), np.array([values.nbytes]), values)

    def put_each(self, addresses: Int64s, sizes: Int64s, values: npt.NDArray[Any]) -> None:
        """Let each address hold so many bytes, that come one behind the other in an array.

        None of the sizes is 0.
        """
        if len(addresses):
            self._put.append((addresses, sizes, values.reshape(-1).view(np.uint8)))

    def move(self, to: int, source: int, n_bytes: int) -> None:
        """Let an address hold what another one does."""
        if n_bytes:
            self._moved.append((to, source, n_bytes))

    def send(self, device: Device) -> int:
        """Do it all; return how many bytes were copied to the device for it."""
        counts = [len(sizes) for _, sizes, _ in self._put]
        n_put = sum(counts)
        n = n_put + len(self._moved)
        if not n:
            return 0
        rooms = [len(flat) + 7 & ~7 for *_, flat in self._put]
        head = 8 * (1 + _COLUMNS * n)
        n_bytes = head + sum(rooms)
        staged = device.stage(n_bytes)
        table = np.empty((n, _COLUMNS), np.int64)
        row, start = 0, head
        for count, room, (addresses, sizes, flat) in zip(counts, rooms, self._put, strict=True):
            end = row + count
            table[row:end, 0] = addresses
            table[row:end, 1] = np.cumsum(sizes) - sizes + (staged.memory.address + start)
            table[row:end, 2] = sizes
            staged.host[start : start + len(flat)] = flat
            row, start = end, start + room
        table[n_put:] = np.array(self._moved, np.int64).reshape(-1, _COLUMNS)
        staged.host[:8].view(np.int64)[0] = n
        staged.host[8:head] = table.reshape(-1).view(np.uint8)
        device.send(staged)
        device.launch("put_pieces", min(n, device.most_warps), 0, staged.memory.address)
        return n_bytes
