"""Work that needs no GIL, side by side in threads that all arrays of a process share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from numba import config

T = TypeVar("T")

# Frames are copied as much as they are decoded, and a few cores use up the memory's bandwidth.
# Not measured: no more than two cores were at hand.
MAX_THREADS = 8


def n_threads() -> int:
    """How many pieces of work may run at once: NUMBA_NUM_THREADS, by default as there are cores."""
    # not numba.get_num_threads(), which starts numba's own threads
    return min(int(config.NUMBA_NUM_THREADS), MAX_THREADS)  # type: ignore[attr-defined]


@cache
def _pool() -> ThreadPoolExecutor:
    # Two threads that come first together make one each; the one that is not kept ends with its
    # work.
    return ThreadPoolExecutor(max(1, n_threads() - 1), "compressarray-worker")


# A child made by fork has none of its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def run(pieces: Sequence[Callable[[], T]]) -> list[T]:
    """Do all pieces of work, side by side as far as there are idle workers; return their results.

    The caller works too, and waits for nothing but what a worker has begun. None runs any more
    when this returns or raises: after an error, those that have begun end first.
    """
    # Futures of our own: where no thread can be started, `submit` raises, and yet keeps the piece.
    futures: list[Future[T]] = [Future() for _ in pieces]
    results: dict[int, T] = {}
    try:
        for future, piece in zip(futures, pieces[:-1], strict=False):
            try:
                _pool().submit(_do, future, piece)
            except RuntimeError:  # no thread can be started, or the interpreter ends
                _pool.cache_clear()  # with the pieces that it keeps
                break
        # from the end that workers come to last
        for i in reversed(range(len(pieces))):
            if futures[i].cancel():
                results[i] = pieces[i]()
        return [results[i] if i in results else futures[i].result() for i in range(len(pieces))]
    finally:
        _see_out(futures)


def _do(future: Future[T], piece: Callable[[], T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(piece())
        except BaseException as error:
            future.set_exception(error)


def _see_out(futures: Sequence[Future[T]]) -> None:
    """Let no more begin, and wait for those that have, even if interrupted."""
    try:
        for future in futures:
            if not future.cancel():
                future.exception()
    except BaseException:  # a KeyboardInterrupt, while waiting
        _see_out(futures)
        raise
