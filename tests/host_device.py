"""A device that is none: the kernels compiled for this machine, each look at memory checked."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
import threading
import weakref
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from compressarray.readers.cuda.device import DeviceError
from compressarray.readers.cuda.source import source


@functools.cache
def library(*, descending=False):
    """The kernels. Lanes go up or down: what a phase gives must not depend on it."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    assert compiler, "a C++ compiler is needed: install g++, or set CXX"
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "kernels.so"
        options = ["-DDESCENDING"] if descending else []
        subprocess.run(
            [*compiler.split(), "-x", "c++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror",
             "-shared", "-fPIC", *options, "-o", str(made), "-"],
            input=source(), text=True, check=True,
        )  # fmt: skip
        loaded = ctypes.CDLL(str(made))
    loaded.decode_cells.restype = loaded.put_pieces.restype = ctypes.c_int64
    return loaded


class HostMemory:
    def __init__(self, data):
        self.data = data
        self.address = data.ctypes.data
        self.nbytes = data.nbytes


class HostStaged:
    def __init__(self, memory):
        self.memory = memory
        self.host = np.full(memory.nbytes, 0xAA, np.uint8)


class HostDevice:
    """Memory that numpy holds, with nothing else beside it that a kernel may look at."""

    def __init__(self, *, shared_bytes=1 << 20, most_warps=7, most_bytes=None, descending=False):
        self.shared_bytes = shared_bytes
        self.most_warps = most_warps
        self.most_bytes = most_bytes
        self.n_launches = 0
        self._kernels = library(descending=descending)
        self._ranges = weakref.WeakValueDictionary()
        self._lock = threading.RLock()

    @contextmanager
    def work(self):
        with self._lock:
            yield

    @property
    def nbytes(self):
        return sum(memory.nbytes for memory in self._ranges.values())

    def _new(self, n_bytes, value):
        if self.most_bytes is not None and self.nbytes + n_bytes > self.most_bytes:
            raise DeviceError(f"no room for {n_bytes} bytes")
        data = np.full(n_bytes + 64, value, np.uint8)
        start = -data.ctypes.data % 64
        memory = HostMemory(data[start : start + n_bytes])
        self._ranges[memory.address] = memory
        return memory

    def allocate(self, n_bytes):
        return self._new(n_bytes, 0)

    def stage(self, n_bytes):
        return HostStaged(self._new(n_bytes, 0xAA))

    def send(self, staged):
        staged.memory.data[:] = staged.host
        staged.host = None

    def launch(self, kernel, n_warps, warp_bytes, argument):
        self.n_launches += 1
        ranges = [(each.address, each.address + each.nbytes) for each in self._ranges.values()]
        ranges = np.array(ranges, np.uint64)
        shared = np.full(warp_bytes // 8 + 1, 0x5555, np.uint64)
        arguments = [ctypes.c_void_p(argument), ctypes.c_int64(n_warps)]
        if kernel == "decode_cells":
            arguments += [ctypes.c_void_p(shared.ctypes.data), ctypes.c_int64(warp_bytes)]
        arguments += [ctypes.c_void_p(ranges.ctypes.data), ctypes.c_int64(len(ranges))]
        n_wrong = getattr(self._kernels, kernel)(*arguments)
        assert n_wrong == 0, f"{kernel} looked {n_wrong} times where nothing is"

    def frames(self, shape, dtype, kept):
        if kept is not None and kept.shape == shape and kept.dtype == dtype:
            return kept
        memory = self._new(int(np.prod(shape)) * dtype.itemsize, 0xAA)
        frames = memory.data.view(dtype).reshape(shape)
        self._ranges[memory.address] = memory
        # the range is known for as long as the frames are there
        weakref.finalize(frames, lambda: memory)
        self._kept = memory
        return frames

    def address_of(self, frames):
        return frames.ctypes.data

    def read_later(self, memory):
        said = self.read(memory)
        return lambda: said

    def read(self, memory):
        return int(memory.data[:8].view(np.int64)[0])
