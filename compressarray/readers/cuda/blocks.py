"""Where chunks lie in a device's memory: in blocks, which are filled one after the other.

The device knows nothing of it but addresses. Blocks that hold no chunk any more are filled again or
given back; where too much garbage lies among chunks, those of the emptiest blocks move to others.
So memory grows a block at a time, without a copy of what is there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from compressarray.readers.cuda.device import Memory
from compressarray.readers.cuda.source import GUARD_BYTES

Int64s = npt.NDArray[np.int64]

LEAST_BLOCK_BYTES = 1 << 20
SIZE_BYTES = 8  # before a chunk
MAX_BYTES = 1 << 35  # that an index of 32 bits names, eight bytes at a time
# Garbage that is left alone: a part of what lives, and so many blocks.
GARBAGE_SHIFT, GARBAGE_BLOCKS = 3, 2
SPARE_BLOCKS = 1


def room_of(size: int) -> int:
    """Bytes that a chunk takes."""
    return SIZE_BYTES + (size + 7 & ~7)


class Blocks:
    """The blocks of one replica.

    Parameters
    ----------
    allocate : callable
        Gives a block of so many bytes, or raises.
    most_bytes : int
        Of a chunk.

    Attributes
    ----------
    memories : list of Memory or None
        By number.
    changed : bool
        Whether there are others than when this was set to False.
    """

    def __init__(self, allocate: Callable[[int], Memory], most_bytes: int) -> None:
        least = room_of(most_bytes) + GUARD_BYTES
        self.shift = max(LEAST_BLOCK_BYTES, least - 1).bit_length()
        if 1 << (self.shift - 1) >= max(LEAST_BLOCK_BYTES, least):
            self.shift -= 1
        self._allocate = allocate
        self.memories: list[Memory | None] = []
        self.changed = True
        self._live: list[int] = []
        self._used: list[int] = []
        self._free: list[int] = []
        self._head = -1

    @property
    def block_bytes(self) -> int:
        """Bytes of each."""
        return 1 << self.shift

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(memory.nbytes for memory in self.memories if memory is not None)

    @property
    def live_bytes(self) -> int:
        """Bytes that chunks take."""
        return sum(self._live)

    def address(self, at: int) -> int:
        """The device's address of a place."""
        memory = self.memories[at >> self.shift]
        assert memory is not None
        return memory.address + (at & (self.block_bytes - 1))

    def take(self, size: int) -> int:
        """Find a place for a chunk of ``size`` bytes; a multiple of 8."""
        n_bytes = room_of(size)
        if self._head < 0 or self._used[self._head] + n_bytes > self.block_bytes - GUARD_BYTES:
            self._next_block()
        head = self._head
        at = (head << self.shift) + self._used[head]
        self._used[head] += n_bytes
        self._live[head] += n_bytes
        return at

    def _next_block(self) -> None:
        if not self._free:
            number = next(
                (i for i, memory in enumerate(self.memories) if memory is None), len(self.memories)
            )
            if (number + 1) << self.shift > MAX_BYTES:
                raise MemoryError(f"a replica holds at most {MAX_BYTES:,} bytes of chunks")
            memory = self._allocate(self.block_bytes)
            if number == len(self.memories):
                self.memories.append(None)
                self._live.append(0)
                self._used.append(0)
            self.memories[number] = memory
            self._free.append(number)
            self.changed = True
        before, self._head = self._head, self._free.pop()
        self._used[self._head] = self._live[self._head] = 0
        self._free_if_empty(before)

    def let_go(self, at: int, size: int) -> None:
        """Let a chunk's place go."""
        block = at >> self.shift
        self._live[block] -= room_of(size)
        self._free_if_empty(block)

    def _free_if_empty(self, block: int) -> None:
        if block >= 0 and block != self._head and self._live[block] == 0:
            self._used[block] = 0
            if block not in self._free:
                self._free.append(block)

    def give_back(self) -> None:
        """Give free blocks back, but for a spare one: nothing that is to come reads them."""
        while len(self._free) > SPARE_BLOCKS:
            self.memories[self._free.pop()] = None
            self.changed = True

    def to_clean(self) -> list[int]:
        """The blocks whose chunks should move, so that little garbage is left."""
        held = [i for i in range(len(self.memories)) if self._used[i] and i != self._head]
        garbage = sum(self._used[i] - self._live[i] for i in held)
        bound = (self.live_bytes >> GARBAGE_SHIFT) + (GARBAGE_BLOCKS << self.shift)
        victims = []
        for block in sorted(held, key=lambda i: self._live[i] - self._used[i]):
            if garbage <= bound:
                break
            garbage -= self._used[block] - self._live[block]
            victims.append(block)
        return victims

    def table(self) -> Int64s:
        """The addresses of all, 0 where there is none."""
        return np.array(
            [0 if memory is None else memory.address for memory in self.memories] or [0], np.int64
        )
