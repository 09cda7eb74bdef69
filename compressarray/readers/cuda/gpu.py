"""A GPU of NVIDIA's, with PyTorch's memory and streams."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections import deque
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch  # noqa: TID251, TID253 - a leaf: who asks for a GPU has it

from compressarray.errors import DeviceError
from compressarray.readers.cuda.device import WARPS_A_BLOCK, UInt8s
from compressarray.readers.cuda.driver import Driver
from compressarray.readers.cuda.nvrtc import compiled, find_library
from compressarray.readers.cuda.pinned import Pinned
from compressarray.readers.cuda.source import source

_KERNELS = ("decode_cells", "put_pieces")
# The kernels' registers leave room for so many warps on each multiprocessor, of 64 that there are.
_WARPS_A_PROCESSOR = 16
# Lanes of a warp that go different ways come together again from this one (Volta) on.
LEAST_CAPABILITY = 70
_FREE_SHARED_BYTES = 48 * 1024  # of a block, for which nothing has to be asked for


class _Memory:
    """A tensor of bytes; the stream that it is used on has the memory again when it is gone."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.address = tensor.data_ptr()
        self.nbytes = tensor.numel()


class _Staged:
    def __init__(self, memory: _Memory, host: UInt8s, address: int) -> None:
        self.memory = memory
        self.host = host
        self.host_address = address


class _Large(_Staged):
    """More than the ring of pinned memory holds; torch keeps it until it is copied."""

    def __init__(self, memory: _Memory, n_bytes: int) -> None:
        self.pinned = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
        super().__init__(memory, self.pinned.numpy(), self.pinned.data_ptr())


class _Flag:
    """A number in pinned memory, which a GPU writes to where it lies."""

    def __init__(self, driver: Driver) -> None:
        self._tensor = torch.zeros(1, dtype=torch.int64, pin_memory=True)
        self._value = self._tensor.numpy()
        self.address = driver.device_address(self._tensor.data_ptr())

    @property
    def value(self) -> int:
        """What it is by now."""
        return int(self._value[0])


class _Work:
    """See `Device.work`: our stream is the current one, as is the GPU's context."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._depth = 0
        self._lock = threading.RLock()
        self.callers: Any = None
        self._callers_device = 0

    def __enter__(self) -> None:
        gpu = self._gpu
        gpu.check_process()
        self._lock.acquire()
        if not self._depth:
            try:
                self._callers_device = torch.cuda.current_device()
                self.callers = torch.cuda.current_stream(gpu.index)
                gpu.driver.enter(gpu.context)
                torch.cuda.set_stream(gpu.stream)
            except BaseException:
                self._lock.release()
                raise
        self._depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth -= 1
        try:
            if not self._depth:
                torch.cuda.set_stream(self.callers)
                if self._callers_device != self._gpu.index:
                    torch.cuda.set_device(self._callers_device)
        finally:
            self._lock.release()


class Gpu:
    """One GPU, with a stream of our own; see `device.Device`. Use `gpu_of`.

    Parameters
    ----------
    device : torch.device
        With its index.

    Notes
    -----
    Kernels are compiled when the first one is launched: DeviceError if the GPU is too old for them,
    or they cannot be compiled.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.index: int = device.index
        self._pid = os.getpid()
        properties = torch.cuda.get_device_properties(device)
        self.shared_bytes: int = getattr(
            properties, "shared_memory_per_block_optin", _FREE_SHARED_BYTES
        )
        self.most_warps: int = properties.multi_processor_count * _WARPS_A_PROCESSOR
        self._n_processors: int = properties.multi_processor_count
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream_address: int = self.stream.cuda_stream
        self.driver = Driver()
        self.context = self.driver.context_of(self._stream_address)
        self._pinned = Pinned(self.stream)
        self._flags: list[_Flag] = []  # kept: a kernel may be about to write to one
        # What is being copied, until it is.
        self._sending: deque[tuple[torch.Tensor, Any]] = deque()
        self._kernels: dict[str, ctypes.c_void_p] = {}
        self._work = _Work(self)

    def _load(self) -> None:
        """Compile the kernels, in about a second; once, inside of `work`."""
        properties = torch.cuda.get_device_properties(self.device)
        capability = 10 * properties.major + properties.minor
        version: Any = torch.version.cuda
        if version is None:
            raise DeviceError(f"{properties.name} is none of NVIDIA's")
        if capability < LEAST_CAPABILITY:
            raise DeviceError(
                f"{properties.name} has compute capability {capability / 10}, and the decoder "
                f"needs {LEAST_CAPABILITY / 10} or more"
            )
        library = find_library(int(version.partition(".")[0]))
        binary = compiled(library, source(), capability)
        kernels = self.driver.load(binary, _KERNELS)
        if self.shared_bytes > _FREE_SHARED_BYTES:
            self.driver.allow_shared(kernels["decode_cells"], self.shared_bytes)
        self._kernels = kernels

    @property
    def name(self) -> str:
        """As torch names it, such as ``cuda:0``."""
        return str(self.device)

    def check_process(self) -> None:
        """DeviceError in a process that was forked from the one that uses the GPU."""
        if os.getpid() != self._pid:
            raise DeviceError(
                "this process was forked from one that uses the GPU, which CUDA does not allow; "
                "start processes by 'spawn', or set device=None"
            )

    def work(self) -> _Work:
        """See `Device`."""
        return self._work

    def allocate(self, n_bytes: int) -> _Memory:
        """See `Device`."""
        return _Memory(self._bytes(torch.zeros, n_bytes))

    def _bytes(self, make: Any, n_bytes: int) -> torch.Tensor:
        try:
            tensor: torch.Tensor = make(n_bytes, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError as error:
            raise DeviceError(str(error).partition(". ")[0]) from None
        return tensor

    def stage(self, n_bytes: int, again: _Memory | None = None) -> _Staged:
        """See `Device`."""
        memory = again
        if memory is None or memory.nbytes < n_bytes:
            memory = _Memory(self._bytes(torch.empty, n_bytes))
        taken = self._pinned.take(n_bytes)
        return _Large(memory, n_bytes) if taken is None else _Staged(memory, *taken)

    def send(self, staged: _Staged) -> None:
        """See `Device`."""
        if isinstance(staged, _Large):
            to = staged.memory.tensor[: len(staged.host)]
            to.copy_(staged.pinned, non_blocking=True)
        else:
            self.driver.copy(
                staged.memory.address, staged.host_address, len(staged.host), self._stream_address
            )

    def launch(self, kernel: str, n_warps: int, warp_bytes: int, argument: int) -> None:
        """See `Device`: as few warps in a block as all multiprocessors have work with."""
        together = WARPS_A_BLOCK
        while together > 1 and (
            n_warps % together
            or together * warp_bytes > self.shared_bytes
            or n_warps < together * self._n_processors
        ):
            together //= 2
        if not self._kernels:
            self._load()
        self.driver.launch(
            self._kernels[kernel], n_warps // together, together, together * warp_bytes,
            self._stream_address, argument,
        )  # fmt: skip

    def frames(self, shape: tuple[int, ...], dtype: np.dtype[Any], kept: Any) -> torch.Tensor:
        """See `Device`."""
        kind = torch_dtype(dtype)
        if _fits(kept, shape, kind, self.device):
            # whoever has read what is overwritten now did so on the stream that he works on
            self.stream.wait_stream(self._work.callers)
            return kept  # type: ignore[no-any-return]
        return torch.empty(shape, dtype=kind, device=self.device)

    def address_of(self, frames: torch.Tensor) -> int:
        """See `Device`."""
        return frames.data_ptr()

    def host(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """See `Device`."""
        pinned = torch.empty(shape, dtype=torch_dtype(dtype), pin_memory=True)
        return np.asarray(pinned.numpy())  # which keeps the tensor

    def copied(self, array: npt.NDArray[Any], kept: Any = None) -> torch.Tensor:
        """See `Device`."""
        given = torch.from_numpy(array)
        there = self.frames(tuple(given.shape), array.dtype, kept)
        there.copy_(given, non_blocking=given.is_pinned())
        while self._sending and self._sending[0][1].query():
            self._sending.popleft()
        self._sending.append((given, self.mark()))
        return there

    def mark(self) -> Any:
        """See `Device`."""
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return event

    def arrive(self, mark: Any, tensors: list[Any]) -> None:
        """See `Device`."""
        current = torch.cuda.current_stream(self.index)
        current.wait_event(mark)
        for tensor in tensors:
            tensor.record_stream(current)

    def flag(self) -> _Flag:
        """See `Device`."""
        self._flags.append(_Flag(self.driver))
        return self._flags[-1]

    def wait(self) -> None:
        """See `Device`."""
        self.stream.synchronize()

    def tensor_of(self, memory: _Memory) -> torch.Tensor:
        """See `Device`."""
        return memory.tensor

    def view(self, data: torch.Tensor, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """See `Device`."""
        return data.view(torch_dtype(dtype)).reshape(shape)

    def holds(self, frames: Any) -> bool:
        """See `Device`."""
        return isinstance(frames, torch.Tensor) and frames.device == self.device

    def dtype_of(self, frames: torch.Tensor) -> np.dtype[Any]:
        """See `Device`."""
        return torch.empty(0, dtype=frames.dtype).numpy().dtype


def _fits(kept: Any, shape: tuple[int, ...], kind: torch.dtype, device: torch.device) -> bool:
    return (
        isinstance(kept, torch.Tensor)
        and kept.shape == shape
        and kept.dtype == kind
        and kept.device == device
        and kept.is_contiguous()
    )


@functools.cache
def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """The dtype of a tensor; TypeError, as torch's, where there is none."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


_gpus: dict[torch.device, Gpu] = {}
_lock = threading.Lock()


def gpu_of(device: Any) -> Gpu:
    """The one GPU of a name of torch's, such as ``"cuda"``; see `Gpu`."""
    named: Any = torch.device(device)
    if named.type != "cuda":
        raise ValueError("it is no GPU of NVIDIA's")
    torch.cuda.current_device()  # torch's error, where it cannot use any
    if named.index is None:
        named = torch.device("cuda", torch.cuda.current_device())
    with _lock:
        if named not in _gpus:
            _gpus[named] = Gpu(named)
        return _gpus[named]
