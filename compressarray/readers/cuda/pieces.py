"""An update of a device's memory: what is put, and what moves, with one copy and one launch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.readers.cuda.device import Device, UInt8s

_COLUMNS = 3  # where to, where from, and how many bytes


class Pieces:
    """Bytes and where they go, in no order: no piece lies where another one is moved from."""

    def __init__(self) -> None:
        self._put: list[tuple[int, UInt8s]] = []
        self._moved: list[tuple[int, int, int]] = []

    def put(self, address: int, values: npt.NDArray[Any]) -> None:
        """Let an address hold what an array does."""
        flat = values.reshape(-1).view(np.uint8)
        if len(flat):
            self._put.append((address, flat))

    def move(self, to: int, source: int, n_bytes: int) -> None:
        """Let an address hold what another one does."""
        if n_bytes:
            self._moved.append((to, source, n_bytes))

    def send(self, device: Device) -> int:
        """Do it all; return how many bytes were copied to the device for it."""
        n = len(self._put) + len(self._moved)
        if not n:
            return 0
        sizes = np.array([len(flat) for _, flat in self._put], np.int64)
        rooms = sizes + 7 & ~7
        head = 8 * (1 + _COLUMNS * n)
        starts = head + np.cumsum(rooms) - rooms
        n_bytes = head + int(rooms.sum())
        staged = device.stage(n_bytes)
        table = np.empty((n, _COLUMNS), np.int64)
        n_put = len(self._put)
        table[:n_put, 0] = [address for address, _ in self._put]
        table[:n_put, 1] = staged.memory.address + starts
        table[:n_put, 2] = sizes
        table[n_put:] = np.array(self._moved, np.int64).reshape(-1, _COLUMNS)
        staged.host[:8].view(np.int64)[0] = n
        staged.host[8:head] = table.reshape(-1).view(np.uint8)
        for start, (_, flat) in zip(starts.tolist(), self._put, strict=True):
            staged.host[start : start + len(flat)] = flat
        device.send(staged)
        device.launch("put_pieces", min(n, device.most_warps), 0, staged.memory.address)
        return n_bytes
