"""What a replica needs of a device: memory, copies to it, and kernels, all in one order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

UInt8s = npt.NDArray[np.uint8]


class DeviceError(RuntimeError):
    """A device that cannot do what it is asked for; what is on the CPU is as it was."""


class Memory(Protocol):
    """Bytes of the device's, given back with the last reference to this."""

    address: int
    nbytes: int


class Staged(Protocol):
    """Bytes of the device's that are written here first, and then sent."""

    memory: Memory
    host: UInt8s


class Device(Protocol):
    """A device, or what stands for one.

    All that is asked for goes on one after the other, beside what the caller does.

    Attributes
    ----------
    shared_bytes : int
        Most bytes of shared memory that a block of warps may have.
    most_warps : int
        That run at the same time; more than that gain nothing.
    """

    shared_bytes: int
    most_warps: int

    def work(self) -> AbstractContextManager[Any]:
        """Everything below is called inside of this."""

    def allocate(self, n_bytes: int) -> Memory:
        """Zeros, from a multiple of 64 on; DeviceError if there is no room."""

    def stage(self, n_bytes: int) -> Staged:
        """Room for bytes that are to be sent; as `allocate`, but with any content."""

    def send(self, staged: Staged) -> None:
        """Copy what was written."""

    def launch(self, kernel: str, n_warps: int, warp_bytes: int, argument: int) -> None:
        """Run a kernel of so many warps, of so much shared memory each, on an address."""

    def frames(self, shape: tuple[int, ...], dtype: np.dtype[Any], kept: Any) -> Any:
        """An array or tensor there, C-contiguous: the kept one if it fits, or another."""

    def address_of(self, frames: Any) -> int:
        """Where such frames lie."""

    def read_later(self, memory: Memory) -> Callable[[], int | None]:
        """Begin to read a number of 64 bits; the answer is None until it is here."""

    def read(self, memory: Memory) -> int:
        """Wait for everything, and read a number of 64 bits."""
