"""Writes that happen whole or not at all, whatever interrupts them.

A write changes things step by step, and everything that it replaces can be taken back until one
attribute is set, `Writer.committed`. An exception may come between any two steps, from a key that
a user presses, a codec, or a lack of memory. Nothing catches it: what it leaves behind is taken
back, or finished if it was committed already, by whoever comes next. A step that kernels do is
one: no exception comes while they run.

Forks wait until no thread writes: what a child sees of memory that another thread is writing is in
no order, whatever order it was written in.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")

# What a fork waits for the writes of other threads, in seconds; the child then does without what
# they had begun.
FORK_WAIT_S = 60


class Step(Protocol):
    """Something that a write changes. Both methods may be called again after an interrupt."""

    def finish(self) -> None:
        """Let go of what the write has replaced."""

    def roll_back(self) -> None:
        """Be as before the write."""


class Untidy(Protocol):
    """Something with work that a write left for afterwards."""

    def tidy(self) -> None:
        """Do it; nothing that anybody can read changes by it."""


class Writer:
    """One write at a time of what belongs together: an array, or a buffer and its arrays.

    Parameters
    ----------
    rank : int
        Who writes with one of these may begin a write with another one of higher rank, not lower.

    Attributes
    ----------
    lock : threading.RLock
        Held by whoever writes, and for reads that no write may come between.
    steps : list of Step
        Of the write that runs or was cut off, oldest first. Added to before anything is changed.
    untidy : list of Untidy
        Looked after once the write is done.
    committed : bool
        Whether the write is done, and only the finishing of its steps is left.
    """

    # No context managers of our own: an exception may come between the taking of a lock in
    # ``__enter__`` and the block that would release it. The ``with`` of a lock is one step.

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.lock = threading.RLock()
        self.steps: list[Step] = []
        self.untidy: list[Untidy] = []
        self.committed = False
        self._busy = threading.Lock()
        _writers.add(self)

    def run(self, write: Callable[..., T], *arguments: object) -> T:
        """Do all of a write or nothing; inside of another one, become part of that."""
        with self.lock:
            if self._busy.locked():
                return write(*arguments)
            if self.steps or self.committed:
                with self._busy:
                    self._settle()
            while self.untidy:  # of writes that were cut off: however many, they take nothing
                self.untidy.pop().tidy()
            with self._busy:
                result = write(*arguments)
                self.committed = True
                self._settle()
            while self.untidy:
                self.untidy.pop().tidy()
            return result

    def settle(self) -> None:
        """Take back, or finish, what a write that was cut off has left. Before every read."""
        if (self.steps or self.committed) and not self._busy.locked():
            with self.lock:
                if not self._busy.locked():
                    with self._busy:
                        self._settle()

    def _settle(self) -> None:
        steps = self.steps
        if self.committed:
            while steps:
                steps[-1].finish()
                steps.pop()
            self.committed = False
        else:
            while steps:
                steps[-1].roll_back()
                steps.pop()


_writers: weakref.WeakSet[Writer] = weakref.WeakSet()
_held_at_fork: list[Writer] = []


def _all_writers() -> list[Writer]:
    while True:
        try:
            return sorted(_writers, key=lambda writer: writer.rank)
        except RuntimeError:  # another thread made one meanwhile
            continue


def _is_owned(lock: threading.RLock) -> bool:
    return bool(lock._is_owned())  # type: ignore[attr-defined] # as threading.Condition asks


def _before_fork() -> None:
    for writer in _all_writers():
        if not _is_owned(writer.lock):
            _held_at_fork.append(writer)
            writer.lock.acquire(timeout=FORK_WAIT_S)


def _after_fork_in_parent() -> None:
    while _held_at_fork:
        writer = _held_at_fork.pop()
        if _is_owned(writer.lock):
            writer.lock.release()


def _after_fork_in_child() -> None:
    # Locks that this thread did not get are held by threads that are not there.
    while _held_at_fork:
        writer = _held_at_fork.pop()
        writer.lock = threading.RLock()
        writer._busy = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
