"""An array's frames in the memory of devices, decoded there."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compressarray.errors import DeviceError
from compressarray.ring import Ring
from compressarray.store import Int64s, Store

if TYPE_CHECKING:
    from compressarray.readers.cuda.device import Device
    from compressarray.readers.cuda.replica import Replica


# Frames of a lane that a replica may be behind by, while none of them is asked for: to follow a few
# steps at once takes hardly more than to follow one.
MOST_BEHIND = 64


class Held(NamedTuple):
    """A replica, and what it was in step with."""

    replica: Replica
    store: Store
    ring: Ring
    counts: Int64s  # of the ring
    n_pins: int

    def has(self, store: Store, ring: Ring, places: Int64s) -> bool:
        """Whether it holds what lives in some places now."""
        return (
            self.store is store
            and self.ring is ring
            and not ring.have_new(places, self.counts, self.n_pins, MOST_BEHIND)
        )


class Elsewhere:
    """The replicas of one array's frames, by the name of the device.

    Of an array that is cleared, or becomes another one, they are made anew.
    """

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()

    def in_step(self, device: Device, store: Store, ring: Ring, places: Int64s) -> Replica | None:
        """The replica on a device, with what lives in places of a ring now.

        For who holds off writes of the store.

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
            if known is not None and known.has(store, ring, places):
                return known.replica
            if known is not None and known.store is store:
                replica = known.replica
            elif store.is_mapped or not can_be_decoded(store.describe()):
                return None
            else:
                self._held.pop(device.name, None)
                replica = Replica(device, store)
            try:
                replica.follow()
            except DeviceError:
                self._held.pop(device.name, None)
                raise
            counts = ring.counts.copy()
            self._held[device.name] = Held(replica, store, ring, counts, store.n_pins)
            return replica

    def leave(self, device: Device) -> None:
        """Give back what a device holds."""
        self._held.pop(device.name, None)

    def nbytes(self, device: Device) -> int:
        """Bytes of a device's memory that are held."""
        known = self._held.get(device.name)
        return 0 if known is None else known.replica.nbytes

    def check(self) -> None:
        """Wait for what was asked for; CorruptFrameError if what was read is corrupt."""
        for held in list(self._held.values()):
            held.replica.check()


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
