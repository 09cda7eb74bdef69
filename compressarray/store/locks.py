"""Many readers or one writer."""

from __future__ import annotations

import os
import threading
import weakref


class ReadWriteLock:
    """A lock that readers share and a writer has alone; a waiting writer goes before new readers.

    ``with lock.reading:`` holds it beside other readers, ``with lock.writing:`` alone.

    A child made by ``fork`` starts with the lock open: the threads that held it are not there.
    """

    def __init__(self) -> None:
        self._open()
        _locks.add(self)

    def _open(self) -> None:
        gate, busy = threading.Lock(), threading.Lock()
        self.reading = _Reading(gate, busy)
        self.writing = _Writing(gate, busy)


# Classes, because generators would take a microsecond of the eight of a small read.


class _Reading:
    def __init__(self, gate: threading.Lock, busy: threading.Lock) -> None:
        self._gate = gate
        self._busy = busy
        self._mutex = threading.Lock()
        self._n_readers = 0

    def __enter__(self) -> None:
        with self._gate, self._mutex:
            self._n_readers += 1
            if self._n_readers == 1:
                self._busy.acquire()

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            self._n_readers -= 1
            if self._n_readers == 0:
                self._busy.release()


class _Writing:
    def __init__(self, gate: threading.Lock, busy: threading.Lock) -> None:
        self._gate = gate
        self._busy = busy

    def __enter__(self) -> None:
        self._gate.acquire()
        self._busy.acquire()

    def __exit__(self, *_: object) -> None:
        self._busy.release()
        self._gate.release()


_locks: weakref.WeakSet[ReadWriteLock] = weakref.WeakSet()


def _open_all() -> None:
    for lock in _locks:
        lock._open()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_all)
