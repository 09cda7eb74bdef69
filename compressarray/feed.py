"""Replicas: what changes in an array or a buffer, told to whoever keeps a copy of it.

The array is the one writer. A `ChangeFeed` says what has changed since it was last asked, in time
and bytes proportional to that: groups of pictures and what they hold now, what was appended to open
ones, backgrounds and codebooks that are new, frame indices that ended; of a buffer transitions and
priorities, too. A `Replica` is filled whole by the first message and kept in step by those that
follow, in another place of this process, in another process, or behind a network. Where its chunks
lie is its own affair.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, TypeVar

from compressarray.array import DiffFrameArray
from compressarray.errors import CorruptFrameError
from compressarray.feeding import CHANGES, HEAD, WHOLE, ChangeFeed
from compressarray.format import container
from compressarray.format.messages import Items
from compressarray.replay import ReplayBuffer

__all__ = ["ChangeFeed", "Replica"]

C = TypeVar("C")


class Replica:
    """A copy of an array or a buffer that messages keep in step.

    Parameters
    ----------
    priorities : mapping, optional
        Given: a buffer's copy has priorities of its own, whatever is said of them elsewhere, with
        these ``alpha``, ``beta`` and ``epsilon`` (see `ReplayBuffer`). Its `update_priorities` may
        be called, and what is new gets the largest priority here. The buffer that it follows is to
        have none.
    """

    def __init__(self, *, priorities: Mapping[str, float] | None = None) -> None:
        self._copy: Any = None
        self._priorities = priorities

    @property
    def array(self) -> DiffFrameArray:
        """The copy of an array; another one after each message that brought everything.

        Whoever writes to it ends its following: `apply` then refuses what is not whole.
        """
        return self._copy_of(DiffFrameArray)

    @property
    def buffer(self) -> ReplayBuffer:
        """The copy of a buffer; as `array`. It draws what the first would have drawn: `seed` it."""
        return self._copy_of(ReplayBuffer)

    def _copy_of(self, kind: type[C]) -> C:
        if not isinstance(self._copy, kind):
            held = "nothing yet" if self._copy is None else f"a {type(self._copy).__name__}"
            raise AttributeError(f"this replica holds {held}, no {kind.__name__}")
        return self._copy

    @property
    def number(self) -> int:
        """Of the last message that was taken, 0 before the first one."""
        return self.position[1]

    @property
    def position(self) -> tuple[bytes, int]:
        """The id of the feed that this follows, and `number`; ``(b"", 0)`` before the first."""
        if self._copy is None:
            return b"", 0
        return self._copy._came_to() or (b"", 0)

    def apply(self, message: bytes | bytearray) -> None:
        """Take a message; all of it or, after an error, nothing. One that was taken is passed over.

        Raises
        ------
        CorruptFrameError
            If it is damaged, or not what a feed says.
        ValueError
            If it is not the one that follows on the last one, or the copy was written to.
        """
        if len(message) < HEAD.size:
            raise CorruptFrameError(f"a message of {len(message)} bytes ends in its head")
        kind, feed_id, number, checksum = HEAD.unpack_from(message)
        rest = memoryview(message)[HEAD.size :]
        if kind not in (WHOLE, CHANGES) or zlib.crc32(rest) != checksum:
            raise CorruptFrameError("a message was damaged on its way; ask for it again")
        known, last = self.position
        if feed_id == known and number <= last:
            return
        if kind == WHOLE:
            copy = _copy_from(rest, self._priorities)
            copy._follow((feed_id, number))
            self._copy = copy
            return
        if self._copy is None or feed_id != known or number != last + 1:
            raise ValueError(
                f"message {number} does not follow on {last}, the last one that this replica has "
                "had of its feed; begin another feed, which sends everything first"
            )
        self._copy._take(Items(rest), (feed_id, number))


def _copy_from(data: memoryview, priorities: Mapping[str, float] | None) -> Any:
    kind = container.kind_of(data)
    if kind == ReplayBuffer._kind and priorities is not None:
        return ReplayBuffer._with_own_priorities(container.loads(data, kind), priorities)
    for each in (DiffFrameArray, ReplayBuffer):
        if each._kind == kind:
            return each._from_tree(container.loads(data, kind))
    raise CorruptFrameError(f"a message holds a {kind}")
