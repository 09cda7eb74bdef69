"""What a replica needs of a device: memory, copies to it, and kernels, all in one order."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

UInt8s = npt.NDArray[np.uint8]


WARPS_A_BLOCK = 4


class Memory(Protocol):
    """Bytes of the device's, given back with the last reference to this."""

    address: int
    nbytes: int


class Staged(Protocol):
    """Bytes of the device's that are written here first, and then sent."""

    @property
    def memory(self) -> Memory:
        """The device's."""

    host: UInt8s


class Flag(Protocol):
    """A number of 64 bits, at first 0, that kernels write to."""

    address: int  # the device's

    @property
    def value(self) -> int:
        """What it is by now; what it became once all is done that was asked for."""


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

    @property
    def name(self) -> str:
        """As torch names it, such as ``cuda:0``."""

    def work(self) -> AbstractContextManager[Any]:
        """Everything below is called inside of this, which no other thread is in meanwhile.

        Whoever is in it asks for no lock of an array or a buffer.
        """

    def allocate(self, n_bytes: int) -> Memory:
        """Zeros, from a multiple of 64 on; DeviceError if there is no room."""

    def stage(self, n_bytes: int, again: Any = None) -> Staged:
        """Room for bytes that are to be sent; as `allocate`, but with any content.

        They are sent before others are staged. They go to ``again``, memory that nothing reads any
        more but what has been asked for, if there is room in it.
        """

    def send(self, staged: Any) -> None:
        """Copy what was written."""

    def host(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """An array here that is copied fast."""

    def copied(self, array: npt.NDArray[Any], kept: Any = None) -> Any:
        """An array of here there; as `frames`."""

    def tensor_of(self, memory: Any) -> Any:
        """What was sent, as bytes that `view` takes."""

    def mark(self) -> Any:
        """What has been asked for until now; also called outside of `work`."""

    def arrive(self, mark: Any, tensors: list[Any]) -> None:
        """Let the caller's work from now on come after a mark; the tensors are his.

        Not called inside of `work`.
        """

    def view(self, data: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Bytes there, from a multiple of 16 on, as a tensor of a shape and dtype."""

    def holds(self, frames: Any) -> bool:
        """Whether something is a tensor there."""

    def dtype_of(self, frames: Any) -> np.dtype[Any]:
        """The dtype of such a tensor."""

    def launch(self, kernel: str, n_warps: int, warp_bytes: int, argument: int) -> None:
        """Run a kernel of so many warps, of so much shared memory each, on an address.

        They run in blocks of up to `WARPS_A_BLOCK`.
        """

    def frames(self, shape: tuple[int, ...], dtype: np.dtype[Any], kept: Any) -> Any:
        """An array or tensor there, C-contiguous: the kept one if it fits, or another."""

    def address_of(self, frames: Any) -> int:
        """Where such frames lie."""

    def flag(self) -> Flag:
        """A flag."""

    def wait(self) -> None:
        """Wait until all is done that was asked for."""
