"""What changes in an array or a buffer, in messages for whoever keeps a copy of it.

    kind u8 (0 whole, 1 changes) | id of the feed, 8 bytes | number u64 | CRC-32 of the rest u32 |
    rest

Whole messages hold the file that `save` writes, those of changes the items of
`compressarray.format.messages`. `compressarray.feed` has who takes them.
"""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from contextlib import AbstractContextManager
from typing import Any, Protocol

from compressarray.format import container
from compressarray.format.messages import Message

HEAD = struct.Struct("<B8sQL")
WHOLE, CHANGES = range(2)


class Source(Protocol):
    """What changes, and can say so: an array or a buffer."""

    _kind: str

    def _begin_feed(self) -> None:
        """Refuse, if this is a view of what changes."""

    def _held(self) -> AbstractContextManager[Any]:
        """Hold all writes off."""

    def _file_tree(self) -> Any:
        """What a file of it holds; for who holds writes off."""

    def _mark(self) -> Any:
        """Remember what a replica has that is filled now."""

    def _put_changes(self, message: Message, mark: Any) -> bool:
        """Add what has changed since a mark; False if a replica has to be filled anew."""


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

    def __init__(self, source: Source) -> None:
        source._begin_feed()
        self._source = source
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
                kind, rest = CHANGES, message.finished()
            else:
                kind, rest = WHOLE, container.dumps(source._kind, source._file_tree())
            self._told = number + 1, source._mark()
        return HEAD.pack(kind, self._id, number + 1, zlib.crc32(rest)) + rest
