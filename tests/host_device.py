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
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from compressarray.errors import DeviceError
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


class HostFlag:
    def __init__(self, memory):
        self._memory = memory
        self.address = memory.address
        self.data = memory.data

    @property
    def value(self):
        return int(self.data.view(np.int64)[0])


class HostStaged:
    def __init__(self, memory, n_bytes):
        self.memory = memory
        self.host = np.full(n_bytes, 0xAA, np.uint8)


class There(np.ndarray):
    """What stands for a device's tensor."""

    device = "host"
    memory = None  # that it is a view of

    def __array_finalize__(self, other):
        self.memory = getattr(other, "memory", None)

    @property
    def _base(self):
        return self.base

    def is_contiguous(self):
        return self.flags.c_contiguous

    def unfold(self, axis, size, step):
        assert step == 1
        runs = np.lib.stride_tricks.sliding_window_view(self, size, axis=axis, writeable=True)
        return runs.view(There)

    def movedim(self, source, to):
        return np.moveaxis(self, source, to)


class HostDevice:
    """Memory that numpy holds, with nothing else beside it that a kernel may look at.

    As on a device, what is asked for is not done yet, but when somebody waits for it: until then
    frames hold anything, and what is sent has to stay as it is. With ``lazy=False`` it is done at
    once.
    """

    name = "host"

    def __init__(
        self, *, shared_bytes=1 << 20, most_warps=8, most_bytes=None, descending=False, lazy=True
    ):
        self.shared_bytes = shared_bytes
        self.most_warps = most_warps
        self.most_bytes = most_bytes
        self.n_launches = 0
        self.lazy = lazy
        self._asked = deque()
        self._n_done = 0
        self._kernels = library(descending=descending)
        self._ranges = weakref.WeakValueDictionary()
        self._lock = threading.RLock()
        self._n_inside = 0

    @contextmanager
    def work(self):
        with self._lock:
            self._n_inside += 1
            try:
                yield
            finally:
                self._n_inside -= 1

    @property
    def nbytes(self):
        return sum(memory.nbytes for memory in self._ranges.values())

    def _ask(self, what):
        assert self._n_inside, "outside of work()"
        self._asked.append(what)
        if not self.lazy:
            self._do(self.mark())

    def _do(self, mark):
        while self._n_done < mark:
            self._asked.popleft()()
            self._n_done += 1

    def _new(self, n_bytes, value):
        assert self._n_inside, "outside of work()"
        if self.most_bytes is not None and self.nbytes + n_bytes > self.most_bytes:
            raise DeviceError(f"no room for {n_bytes} bytes")
        data = np.full(n_bytes + 64, value, np.uint8)
        start = -data.ctypes.data % 64
        memory = HostMemory(data[start : start + n_bytes])
        self._ranges[memory.address] = memory
        return memory

    def allocate(self, n_bytes):
        return self._new(n_bytes, 0)

    def stage(self, n_bytes, again=None):
        if again is None or again.nbytes < n_bytes:
            again = self._new(n_bytes, 0xAA)
        return HostStaged(again, n_bytes)

    def send(self, staged):
        host, memory = staged.host, staged.memory
        staged.host = None

        def copy():
            memory.data[: len(host)] = host

        self._ask(copy)

    def launch(self, kernel, n_warps, warp_bytes, argument):
        self.n_launches += 1
        # who lets memory go has it until what was asked for is done
        held = list(self._ranges.values())

        def run():
            ranges = np.array([(each.address, each.address + each.nbytes) for each in held])
            ranges = ranges.astype(np.uint64)
            shared = np.full(warp_bytes // 8 + 1, 0x5555, np.uint64)
            arguments = [ctypes.c_void_p(argument), ctypes.c_int64(n_warps)]
            if kernel == "decode_cells":
                arguments += [ctypes.c_void_p(shared.ctypes.data), ctypes.c_int64(warp_bytes)]
            arguments += [ctypes.c_void_p(ranges.ctypes.data), ctypes.c_int64(len(ranges))]
            n_wrong = getattr(self._kernels, kernel)(*arguments)
            assert n_wrong == 0, f"{kernel} looked {n_wrong} times where nothing is"

        self._ask(run)

    def frames(self, shape, dtype, kept):
        if (
            isinstance(kept, There)
            and kept.shape == shape
            and kept.dtype == dtype
            and kept.flags.c_contiguous
        ):
            return kept
        memory = self._new(int(np.prod(shape)) * dtype.itemsize, 0xAA)
        frames = memory.data.view(dtype).reshape(shape).view(There)
        frames.memory = memory
        return frames

    def address_of(self, frames):
        return frames.ctypes.data

    def host(self, shape, dtype):
        return np.frombuffer(
            bytearray(b"\xaa" * (int(np.prod(shape)) * dtype.itemsize)), dtype
        ).reshape(shape)

    def copied(self, array, kept=None):
        there = self.frames(array.shape, array.dtype, kept)

        def copy():
            there[...] = array

        self._ask(copy)
        return there

    def mark(self):
        return self._n_done + len(self._asked)

    def arrive(self, mark, tensors):
        with self._lock:
            self._do(mark)
        for tensor in tensors:
            assert isinstance(tensor, There)

    def flag(self):
        return HostFlag(self._new(8, 0))

    def wait(self):
        self._do(self.mark())

    def tensor_of(self, memory):
        frames = memory.data.view(There)
        frames.memory = memory
        return frames

    def view(self, data, shape, dtype):
        return data.view(dtype).reshape(shape)

    def holds(self, frames):
        return isinstance(frames, There)

    def dtype_of(self, frames):
        return frames.dtype
