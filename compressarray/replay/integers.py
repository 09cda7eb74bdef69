"""Uniform integers, bit for bit those of ``numpy.random.Generator.integers``, at less per call."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from compressarray.kernels.compiling import kernel

_UINT32 = np.uint64(2**32 - 1)


class Integers:
    """Draws from a Generator as its `integers` does, which takes 4 us to look at its arguments.

    Parameters
    ----------
    rng : numpy.random.Generator
        Whoever else draws from it sees the same numbers as if `integers` had been called.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        interface: Any = rng.bit_generator.ctypes
        self._state = int(interface.state_address)
        self._next: int = ctypes.cast(interface.next_uint32, ctypes.c_void_p).value or 0

    @property
    def source(self) -> tuple[int, int]:
        """The addresses of the bit generator's function and of its state, for `draw_below`."""
        return self._next, self._state

    @property
    def lock(self) -> Any:
        """To be held while `draw_below` draws."""
        return self.rng.bit_generator.lock

    @staticmethod
    def serves(n: int) -> bool:
        """Whether `draw_below` draws integers below ``n``."""
        return 1 < n < 2**32

    def below(self, n: int, size: int) -> npt.NDArray[np.int64]:
        """Return ``rng.integers(n, size=size)``."""
        if not self.serves(n):
            return self.rng.integers(n, size=size)
        out = np.empty(size, np.int64)
        with self.lock:
            draw_below(self._next, self._state, n, out)
        return out


def _next_uint32(typingctx: Any, function: Any, state: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte_pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.IntType(32), [byte_pointer])
        pointer = builder.inttoptr(args[0], kind.as_pointer())
        return builder.call(pointer, [builder.inttoptr(args[1], byte_pointer)])

    return types.uint32(types.int64, types.int64), codegen


# (function, state): call a bit generator's function, at an address, with its state.
next_uint32: Any = intrinsic(_next_uint32)


@kernel
def draw_below(function: Any, state: Any, n: Any, out: Any) -> Any:
    """Fill ``out`` with integers below ``n``, from 2 to 2**32 - 1.

    By multiplication (Lemire, Fast random integer generation in an interval, 2019), as numpy.
    """
    bound = np.uint64(n)
    threshold = (_UINT32 + np.uint64(1) - bound) % bound
    for i in range(len(out)):
        product = np.uint64(next_uint32(function, state)) * bound
        while (product & _UINT32) < threshold:
            product = np.uint64(next_uint32(function, state)) * bound
        out[i] = np.int64(product >> np.uint64(32))
