"""NVIDIA's compiler for CUDA that PyTorch brings along, NVRTC, called through its C interface.

`torch.cuda._compile_kernel` does the same, but is private, and asks for a CUDA toolkit's folders.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compressarray.errors import DeviceError


def _names(major: int) -> list[str]:
    if sys.platform == "win32":
        return [f"nvrtc64_{major}0_0.dll"]
    return [f"libnvrtc.so.{major}"]


def _folders() -> Iterator[Path]:
    """Where wheels put the library: PyTorch's own, and NVIDIA's of each version of CUDA."""
    for package, inner in (("torch", "lib"), ("nvidia", "*/lib"), ("nvidia", "*/bin")):
        found = importlib.util.find_spec(package)
        for folder in [] if found is None else found.submodule_search_locations or []:
            yield from sorted(Path(folder).glob(inner))


def find_library(major: int) -> Any:
    """Load NVRTC of a version of CUDA.

    Raises
    ------
    DeviceError
        If it is nowhere.
    """
    names = _names(major)
    places = [*names, *(str(folder / name) for folder in _folders() for name in names)]
    for place in places:
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    raise DeviceError(
        f"NVRTC of CUDA {major} ({names[0]}), which compiles the decoder, is not there; install "
        f"nvidia-cuda-nvrtc{'-cu12' if major == 12 else ''}"
    )


def compiled(library: Any, source: str, capability: int) -> bytes:
    """Compile CUDA C++ for GPUs of a compute capability, 90 for 9.0; return what a driver loads.

    Raises
    ------
    DeviceError
        With the compiler's first words.
    """
    program = ctypes.c_void_p()
    _check(
        library,
        library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"compressarray.cu", 0, None, None
        ),
    )
    try:
        options = [f"--gpu-architecture=sm_{capability}".encode(), b"--std=c++17"]
        given = (ctypes.c_char_p * len(options))(*options)
        failed = library.nvrtcCompileProgram(program, len(options), given)
        if failed:
            log = _bytes_of(library.nvrtcGetProgramLog, library.nvrtcGetProgramLogSize, program)
            words = log.rstrip(b"\0").decode(errors="replace").strip() or _words(library, failed)
            raise DeviceError(
                f"the decoder cannot be compiled for compute capability {capability / 10}: "
                f"{words.partition(chr(10))[0]}"
            )
        return _bytes_of(library.nvrtcGetCUBIN, library.nvrtcGetCUBINSize, program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes_of(get: Any, get_size: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    get_size(program, ctypes.byref(size))
    data = ctypes.create_string_buffer(max(size.value, 1))
    get(program, data)
    return data.raw[: size.value]


def _words(library: Any, result: int) -> str:
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return str(library.nvrtcGetErrorString(result).decode())


def _check(library: Any, result: int) -> None:
    if result:
        raise DeviceError(f"NVRTC: {_words(library, result)}")
