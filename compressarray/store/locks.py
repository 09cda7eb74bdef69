"""Many readers or one writer."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager


class ReadWriteLock:
    """A lock that readers share and a writer has alone; a waiting writer goes before new readers.

    A child made by ``fork`` starts with the lock open: the threads that held it are not there.
    """

    def __init__(self) -> None:
        self._open()
        _locks.add(self)

    def _open(self) -> None:
        self._gate = threading.Lock()
        self._mutex = threading.Lock()
        self._busy = threading.Lock()
        self._readers = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the lock beside other readers."""
        with self._gate, self._mutex:
            self._readers += 1
            if self._readers == 1:
                self._busy.acquire()
        try:
            yield
        finally:
            with self._mutex:
                self._readers -= 1
                if self._readers == 0:
                    self._busy.release()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock alone."""
        with self._gate, self._busy:
            yield


_locks: weakref.WeakSet[ReadWriteLock] = weakref.WeakSet()


def _open_all() -> None:
    for lock in _locks:
        lock._open()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_all)
