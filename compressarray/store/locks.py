"""Many readers or one writer."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_N_SLOTS = 4  # readers at once; more wait for one of them, and a writer takes each, 0.1 us


class ReadWriteLock:
    """A lock that readers share and a writer has alone; a waiting writer goes before new readers.

    A reader holds one of several locks, a writer all of them: each is taken, and given back
    whatever happens, by a ``with`` of its own, between which and its block no exception comes.

    A child made by ``fork`` starts with the lock open: the threads that held it are not there.
    """

    def __init__(self) -> None:
        self._open()
        _locks.add(self)

    def _open(self) -> None:
        self._gate = threading.Lock()
        self._slots = tuple(threading.Lock() for _ in range(_N_SLOTS))

    def read(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function beside other readers."""
        with self._gate:  # behind a writer that waits
            slot = self._free_slot()
        with slot:
            return function(*arguments)

    def write(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function alone."""
        first, second, third, fourth = self._slots
        with self._gate, first, second, third, fourth:
            return function(*arguments)

    def _free_slot(self) -> threading.Lock:
        for slot in self._slots:
            if not slot.locked():
                return slot
        return self._slots[threading.get_ident() % _N_SLOTS]


_locks: weakref.WeakSet[ReadWriteLock] = weakref.WeakSet()


def _open_all() -> None:
    for lock in _locks:
        lock._open()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_all)
