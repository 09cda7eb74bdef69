"""What of CUDA's driver is called: it is there where PyTorch can use a GPU."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from compressarray.errors import DeviceError

WARP = 32
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # a CUfunction_attribute
_int, _uint, _size, _pointer = ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p
_CALLS: dict[str, tuple[Any, ...]] = {
    "cuStreamGetCtx": (_pointer, _pointer),
    "cuCtxSetCurrent": (_pointer,),
    "cuModuleLoadData": (_pointer, ctypes.c_char_p),
    "cuModuleGetFunction": (_pointer, _pointer, ctypes.c_char_p),
    "cuFuncSetAttribute": (_pointer, _int, _int),
    "cuMemHostGetDevicePointer_v2": (_pointer, _pointer, _uint),
    "cuMemcpyHtoDAsync_v2": (_pointer, _pointer, _size, _pointer),
    "cuLaunchKernel": (_pointer, *6 * (_uint,), _uint, _pointer, _pointer, _pointer),
    "cuGetErrorString": (_int, _pointer),
}


class Driver:
    """The calls, each of which raises DeviceError with the driver's words.

    All but `context_of` are about the context that is current in this thread.
    """

    def __init__(self) -> None:
        name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
        library: Any = ctypes.CDLL(name)
        for call, arguments in _CALLS.items():
            getattr(library, call).argtypes = arguments
        self._library = library

    def context_of(self, stream: int) -> ctypes.c_void_p:
        """The context of a stream."""
        context = ctypes.c_void_p()
        self._check(self._library.cuStreamGetCtx(stream, ctypes.byref(context)))
        return context

    def enter(self, context: ctypes.c_void_p) -> None:
        """Make a context the current one."""
        self._check(self._library.cuCtxSetCurrent(context))

    def load(self, binary: bytes, names: tuple[str, ...]) -> dict[str, ctypes.c_void_p]:
        """Load kernels."""
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

    def device_address(self, host: int) -> int:
        """Where the device finds pinned memory of the host."""
        found = ctypes.c_void_p()
        self._check(self._library.cuMemHostGetDevicePointer_v2(ctypes.byref(found), host, 0))
        return int(found.value or 0)

    def copy(self, to: int, source: int, n_bytes: int, stream: int) -> None:
        """Copy pinned memory of the host to the device; returns before that is done."""
        self._check(self._library.cuMemcpyHtoDAsync_v2(to, source, n_bytes, stream))

    def launch(
        self, kernel: ctypes.c_void_p, n_blocks: int, n_warps: int, shared: int, stream: int,
        argument: int,
    ) -> None:  # fmt: skip
        """Launch a kernel of one argument, of 64 bits."""
        held = ctypes.c_uint64(argument)
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(held))
        self._check(
            self._library.cuLaunchKernel(
                kernel, n_blocks, 1, 1, WARP * n_warps, 1, 1, shared, stream, arguments, None
            )
        )

    def _check(self, result: int) -> None:
        if result:
            words = ctypes.c_char_p()
            self._library.cuGetErrorString(result, ctypes.byref(words))
            said = b"error %d" % result if words.value is None else words.value
            raise DeviceError(f"CUDA: {said.decode()}")
