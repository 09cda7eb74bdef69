"""A system in a process of its own, as the benchmark sees it."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.peers.base import System
from benchmarks.peers.worker import serve

# What torch, numpy and blosc2 look at when they are loaded.
THREADS = ("BLOSC_NTHREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


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
        with mock.patch.dict(os.environ, dict.fromkeys(THREADS, "1")):
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
