"""Batches that are drawn first and decoded later, perhaps by a thread."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
B = TypeVar("B")


class Drawn(Generic[B]):
    """A batch whose transitions are chosen and whose pixels may not be decoded yet.

    Parameters
    ----------
    names : ndarray of int64
        The transitions whose frames, and later ones, `decode` will read.
    decode : callable
        Called once, by whoever comes first; takes no lock of the buffer's.
    arrive : callable
        Called by whoever takes the batch, each time.

    Attributes
    ----------
    is_gone : bool
        Whether the transitions have been forgotten since.
    """

    def __init__(self, names: Int64s, decode: Callable[[], B], arrive: Callable[[], None]) -> None:
        self._names = names
        self._decode: Callable[[], B] | None = decode
        self._arrive = arrive
        self._batch: B | None = None
        self._kept: Any = None
        self._lock = threading.Lock()
        self.is_gone = False
        _all_drawn.add(self)

    def decode(self) -> None:
        """Decode now what was not."""
        with self._lock:
            if self._decode is not None:
                self._batch = self._decode()
                self._decode = self._kept = None

    def result(self) -> B:
        """Return the batch, decoded now if it was not, to whoever uses it."""
        self.decode()
        assert self._batch is not None
        self._arrive()
        return self._batch

    def keep(self, others: Any) -> Drawn[B]:
        """Keep something alive until this is decoded; returns this."""
        if self._decode is not None:
            self._kept = others
        return self

    def reads_before(self, oldest: Int64s) -> bool:
        """Say whether frames of transitions older than ``oldest``, by lane, are still needed."""
        if self._decode is None:
            return False
        counts, lanes = np.divmod(self._names, len(oldest))
        return bool((counts < oldest[lanes]).any())


_all_drawn: weakref.WeakSet[Drawn[Any]] = weakref.WeakSet()


def _open_all() -> None:
    # A thread that was decoding is not there in a child made by fork: who asks decodes again.
    for drawn in _all_drawn:
        drawn._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_all)


class Batches(Iterator[B]):
    """An endless iterator of batches, drawn ``lookahead`` batches before they are delivered.

    What is drawn, and when, does not depend on the thread, so that the same seed gives the same
    batches with and without it.

    Parameters
    ----------
    draw : callable
        Draws a batch.
    lookahead : int
    thread : bool
        Decode in a thread what is drawn; otherwise it is decoded where it is drawn.
    """

    def __init__(self, draw: Callable[[], Drawn[B]], lookahead: int, thread: bool) -> None:
        self._draw = draw
        self._lookahead = lookahead
        self._queue: deque[Drawn[B]] = deque()
        self._pool = ThreadPoolExecutor(1, "compressarray-replay") if thread else None

    def __next__(self) -> B:
        # Names of forgotten transitions name others by now.
        while self._queue and self._queue[0].is_gone:
            self._queue.popleft()
        try:
            self._draw_ahead()
        except Exception:
            # What was drawn before is right all the same; the error comes when it is used up.
            if not self._queue:
                raise
        return self._queue.popleft().result()

    def _draw_ahead(self) -> None:
        while len(self._queue) <= self._lookahead:
            drawn = self._draw()
            self._queue.append(drawn)
            if self._pool is None:
                drawn.decode()
            else:
                self._pool.submit(drawn.decode)

    def close(self) -> None:
        """Drop what was drawn and end the thread. An iterator that is dropped closes itself."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._queue.clear()

    def __enter__(self) -> Batches[B]:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
