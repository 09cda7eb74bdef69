"""A GPU of NVIDIA's, with PyTorch's memory and streams."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch  # noqa: TID251, TID253 - a leaf: who asks for a GPU has it

from compressarray.errors import DeviceError
from compressarray.readers.cuda.device import WARPS_A_BLOCK, UInt8s
from compressarray.readers.cuda.nvrtc import compiled, find_library
from compressarray.readers.cuda.source import source

_KERNELS = ("decode_cells", "put_pieces")
_WARP = 32
# The kernels' registers leave room for so many warps on each multiprocessor, of 64 that there are.
_WARPS_A_PROCESSOR = 16
# Lanes of a warp that go different ways come together again from this one (Volta) on.
LEAST_CAPABILITY = 70
_FREE_SHARED_BYTES = 48 * 1024  # of a block, for which nothing has to be asked for
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # a CUfunction_attribute


class _Driver:
    """What of CUDA's driver is called: it is there where torch can use a GPU."""

    def __init__(self) -> None:
        name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
        self._library: Any = ctypes.CDLL(name)

    def load(self, binary: bytes, names: tuple[str, ...]) -> dict[str, ctypes.c_void_p]:
        """Load kernels into the current device."""
        module = ctypes.c_void_p()
        self._check(self._library.cuModuleLoadData(ctypes.byref(module), binary))
        found = {}
        for name in names:
            found[name] = ctypes.c_void_p()
            self._check(
                self._library.cuModuleGetFunction(ctypes.byref(found[name]), module, name.encode())
            )
        return found

    def allow_shared(self, kernel: ctypes.c_void_p, n_bytes: int) -> None:
        """Let a kernel's blocks have so much shared memory."""
        attribute = _MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._check(self._library.cuFuncSetAttribute(kernel, attribute, n_bytes))

    def launch(
        self, kernel: ctypes.c_void_p, n_blocks: int, n_warps: int, shared: int, stream: int,
        argument: int,
    ) -> None:  # fmt: skip
        """Launch a kernel of one argument, of 64 bits."""
        held = ctypes.c_uint64(argument)
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(held))
        self._check(
            self._library.cuLaunchKernel(
                kernel, n_blocks, 1, 1, _WARP * n_warps, 1, 1, shared, ctypes.c_void_p(stream),
                arguments, None,
            )
        )  # fmt: skip

    def _check(self, result: int) -> None:
        if result:
            words = ctypes.c_char_p()
            self._library.cuGetErrorString(result, ctypes.byref(words))
            said = b"error %d" % result if words.value is None else words.value
            raise DeviceError(f"CUDA: {said.decode()}")


class _Memory:
    """A tensor of bytes; the stream that it is used on has the memory again when it is gone."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.address = tensor.data_ptr()
        self.nbytes = tensor.numel()


class _Staged:
    def __init__(self, memory: _Memory, pinned: torch.Tensor) -> None:
        self.memory = memory
        self.pinned = pinned
        self.host: UInt8s = pinned.numpy()


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
        self._pid = os.getpid()
        properties = torch.cuda.get_device_properties(device)
        self.shared_bytes: int = getattr(
            properties, "shared_memory_per_block_optin", _FREE_SHARED_BYTES
        )
        self.most_warps: int = properties.multi_processor_count * _WARPS_A_PROCESSOR
        self._n_processors: int = properties.multi_processor_count
        self._callers: Any = None
        # What is being copied, until it is.
        self._sending: deque[tuple[torch.Tensor, Any]] = deque()
        self._lock = threading.RLock()
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._driver: _Driver | None = None
        self._kernels: dict[str, ctypes.c_void_p] = {}

    def _load(self) -> _Driver:
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
        driver = _Driver()
        self._kernels = driver.load(binary, _KERNELS)
        if self.shared_bytes > _FREE_SHARED_BYTES:
            driver.allow_shared(self._kernels["decode_cells"], self.shared_bytes)
        self._driver = driver
        return driver

    @property
    def name(self) -> str:
        """As torch names it, such as ``cuda:0``."""
        return str(self.device)

    @contextmanager
    def work(self) -> Iterator[None]:
        """See `Device`."""
        if os.getpid() != self._pid:
            raise DeviceError(
                "this process was forked from one that uses the GPU, which CUDA does not allow; "
                "start processes by 'spawn', or set device=None"
            )
        with self._lock, torch.cuda.device(self.device):
            callers = torch.cuda.current_stream(self.device)
            if callers == self._stream:  # inside of another one
                yield
                return
            with torch.cuda.stream(self._stream):
                self._callers = callers
                yield

    def allocate(self, n_bytes: int) -> _Memory:
        """See `Device`."""
        return _Memory(self._bytes(torch.zeros, n_bytes))

    def _bytes(self, make: Any, n_bytes: int) -> torch.Tensor:
        try:
            tensor: torch.Tensor = make(n_bytes, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError as error:
            raise DeviceError(str(error).partition(". ")[0]) from None
        return tensor

    def stage(self, n_bytes: int) -> _Staged:
        """See `Device`."""
        memory = _Memory(self._bytes(torch.empty, n_bytes))
        return _Staged(memory, torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True))

    def send(self, staged: _Staged) -> None:
        """See `Device`. Torch keeps its own pinned memory until the copies from it are done."""
        staged.memory.tensor.copy_(staged.pinned, non_blocking=True)

    def launch(self, kernel: str, n_warps: int, warp_bytes: int, argument: int) -> None:
        """See `Device`: as few warps in a block as all multiprocessors have work with."""
        together = WARPS_A_BLOCK
        while together > 1 and (
            n_warps % together
            or together * warp_bytes > self.shared_bytes
            or n_warps < together * self._n_processors
        ):
            together //= 2
        driver = self._driver or self._load()
        driver.launch(
            self._kernels[kernel], n_warps // together, together, together * warp_bytes,
            self._stream.cuda_stream, argument,
        )  # fmt: skip

    def frames(self, shape: tuple[int, ...], dtype: np.dtype[Any], kept: Any) -> torch.Tensor:
        """See `Device`."""
        kind = torch_dtype(dtype)
        if _fits(kept, shape, kind, self.device):
            # whoever has read what is overwritten now did so on the stream that he works on
            self._stream.wait_stream(self._callers)
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
        event.record(self._stream)
        return event

    def arrive(self, mark: Any, tensors: list[Any]) -> None:
        """See `Device`."""
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream(self.device)
            current.wait_event(mark)
            for tensor in tensors:
                tensor.record_stream(current)

    def read_later(self, memory: _Memory) -> Callable[[], int | None]:
        """See `Device`."""
        pinned = torch.empty(8, dtype=torch.uint8, pin_memory=True)
        pinned.copy_(memory.tensor[:8], non_blocking=True)
        done = self.mark()
        return lambda: int(pinned.view(torch.int64)[0]) if done.query() else None

    def read(self, memory: _Memory) -> int:
        """See `Device`."""
        return int(memory.tensor[:8].cpu().view(torch.int64)[0])

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
