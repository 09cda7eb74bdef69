"""An array's frames in the memory of devices, decoded there."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from compressarray.errors import DeviceError
from compressarray.store import Int64s, Store

if TYPE_CHECKING:
    from compressarray.readers.cuda.device import Device
    from compressarray.readers.cuda.replica import Replica


class Elsewhere:
    """The replicas of one array's frames, by the name of the device.

    Of an array that is cleared, or becomes another one, they are made anew.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[Store, Replica]] = {}
        self._lock = threading.Lock()

    def in_step(self, device: Device, store: Store) -> Replica | None:
        """The replica on a device, of what the store holds now; for who holds off its writes.

        None where frames cannot be decoded there: of numcodecs' codecs, where they lie in a file,
        and if they are very large.

        Raises
        ------
        DeviceError
            If the device has too little memory for it. What it had for it is given back.
        """
        from compressarray.readers.cuda.replica import Replica, can_be_decoded

        with self._lock:
            known = self._held.get(device.name)
            if known is not None and known[0] is store:
                replica = known[1]
            elif store.is_mapped or not can_be_decoded(store.describe()):
                return None
            else:
                self._held.pop(device.name, None)
                replica = Replica(device, store)
                self._held[device.name] = store, replica
            try:
                replica.follow()
            except DeviceError:
                self._held.pop(device.name, None)
                raise
            return replica

    def leave(self, device: Device) -> None:
        """Give back what a device holds."""
        self._held.pop(device.name, None)

    def nbytes(self, device: Device) -> int:
        """Bytes of a device's memory that are held."""
        known = self._held.get(device.name)
        return 0 if known is None else known[1].nbytes

    def check(self) -> None:
        """Wait for what was asked for; CorruptFrameError if what was read is corrupt."""
        for _, replica in list(self._held.values()):
            replica.check()


class Located:
    """Frames that indices name, found in an array's replica; to be decoded once, later.

    Attributes
    ----------
    holder : Elsewhere
        Where the replica is from.
    """

    def __init__(self, holder: Elsewhere, replica: Replica, cells: Int64s) -> None:
        self.holder = holder
        self._replica = replica
        self._cells = cells

    def part(self, i: int, n_parts: int) -> Located:
        """One of several equal parts, one behind the other."""
        return Located(self.holder, self._replica, np.split(self._cells, n_parts)[i])

    def decode(self, frames: Any) -> None:
        """Decode into what the device has given for it; see `Replica.decode`."""
        self._replica.decode(self._cells, frames)
