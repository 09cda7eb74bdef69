"""Replicas: what changes in an array or a buffer, told to whoever keeps a copy of it.

The array is the one writer. A `ChangeFeed` says what has changed since it was last asked, in time
and bytes proportional to that: groups of pictures and what they hold now, what was appended to open
ones, backgrounds and codebooks that are new, frame indices that ended; of a buffer transitions and
priorities, too. A `Replica` is filled whole by the first message and kept in step by those that
follow, in another place of this process, in another process, or behind a network. Where its chunks
lie is its own affair.

    kind u8 (0 whole, 1 changes) | id of the feed, 8 bytes | number u64 | CRC-32 of the rest u32 |
    rest

Whole messages hold the file that `save` writes, those of changes the items of
`compressarray.format.messages`.
"""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from typing import Any, TypeVar

from compressarray.array import DiffFrameArray
from compressarray.errors import CorruptFrameError
from compressarray.format import container
from compressarray.format.messages import Items, Message
from compressarray.replay import ReplayBuffer

C = TypeVar("C")

_HEAD = struct.Struct("<B8sQL")
_WHOLE, _CHANGES = range(2)


class ChangeFeed:
    """What changes, in messages for one `Replica`, or several that get all of them.

    Parameters
    ----------
    source : DiffFrameArray or ReplayBuffer
        No view. From now on the numbers of the groups of pictures that change are kept, four
        bytes each for a quarter of all: who asks more rarely is sent everything.

    Examples
    --------
    >>> import numpy as np
    >>> from compressarray import DiffFrameArray
    >>> from compressarray.feed import ChangeFeed, Replica
    >>> array = DiffFrameArray((1000, 84, 84))
    >>> feed, replica = ChangeFeed(array), Replica()
    >>> replica.apply(feed.read())
    >>> index = array.append(np.full((1, 84, 84), 7, np.uint8))
    >>> replica.apply(feed.read())
    >>> int(replica.array.gather(index)[0, 0, 0])
    7
    """

    def __init__(self, source: DiffFrameArray | ReplayBuffer) -> None:
        if isinstance(source, DiffFrameArray):
            source._refuse_view("change feed")
        self._source: Any = source
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._id = secrets.token_bytes(8)
        # The number of the last message, and what whoever got it has: replaced together. A message
        # that an interrupt lost is missed by its number.
        self._told: tuple[int, Any] = 0, None

    def read(self) -> bytes:
        """What has changed since the last call; at first, and where that was too long ago, all.

        Writes of other threads wait meanwhile.
        """
        source = self._source
        with source._held():
            if self._pid != os.getpid():  # a forked child's array goes its own way
                self._begin()
            number, mark = self._told
            message = Message()
            if mark is not None and source._put_changes(message, mark):
                kind, rest = _CHANGES, message.finished()
            else:
                kind, rest = _WHOLE, container.dumps(source._kind, source._file_tree())
            self._told = number + 1, source._mark()
        return _HEAD.pack(kind, self._id, number + 1, zlib.crc32(rest)) + rest


class Replica:
    """A copy of an array or a buffer that messages keep in step."""

    def __init__(self) -> None:
        self._copy: Any = None

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
        return self._position[1]

    @property
    def _position(self) -> tuple[bytes, int]:
        """Of which feed, and up to which message, this is."""
        if self._copy is None:
            return b"", 0
        return self._copy._came_to() or (b"", 0)

    def apply(self, message: bytes) -> None:
        """Take a message; all of it or, after an error, nothing. One that was taken is passed over.

        Raises
        ------
        CorruptFrameError
            If it is damaged, or not what a feed says.
        ValueError
            If it is not the one that follows on the last one, or the copy was written to.
        """
        if len(message) < _HEAD.size:
            raise CorruptFrameError(f"a message of {len(message)} bytes ends in its head")
        kind, feed_id, number, checksum = _HEAD.unpack_from(message)
        rest = memoryview(message)[_HEAD.size :]
        if kind not in (_WHOLE, _CHANGES) or zlib.crc32(rest) != checksum:
            raise CorruptFrameError("a message was damaged on its way; ask for it again")
        known, last = self._position
        if feed_id == known and number <= last:
            return
        if kind == _WHOLE:
            copy = _copy_from(rest)
            copy._follow((feed_id, number))
            self._copy = copy
            return
        if self._copy is None or feed_id != known or number != last + 1:
            raise ValueError(
                f"message {number} does not follow on {last}, the last one that this replica has "
                "had of its feed; begin another feed, which sends everything first"
            )
        self._copy._take(Items(rest), (feed_id, number))


def _copy_from(data: memoryview) -> Any:
    kind = container.kind_of(data)
    for each in (DiffFrameArray, ReplayBuffer):
        if each._kind == kind:
            return each._from_tree(container.loads(data, kind))
    raise CorruptFrameError(f"a message holds a {kind}")
