"""A system in a process of its own, as the benchmark sees it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers.base import System
from benchmarks.peers.worker import serve

# What torch, numpy and blosc2 look at when they are loaded.
THREADS = (
    "BLOSC_NTHREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let processes that are started meanwhile compute with one thread.

    This one has loaded its libraries, and keeps to what it has.
    """
    kept = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class PeerError(Exception):
    """What a system's process ran into; its traceback is the text."""


class Process:
    """Starts idle, and works only while `ask` waits for it."""

    def __init__(self, kind: type[System], play_path: Path, capacity: int) -> None:
        self.kind = kind
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, kind, play_path, capacity), daemon=True
        )
        self.process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        try:
            self.connection.send((method, arguments))
            result, error = self.connection.recv()
        except (BrokenPipeError, ConnectionResetError, EOFError):
            self.process.join()
            raise PeerError(f"the process ended with {self.process.exitcode}") from None
        if error is not None:
            raise PeerError(error)
        return result

    def stop(self) -> None:
        self.connection.close()
        self.process.join()
