"""The process that a system lives in: it does what it is told, and is idle until then."""

from __future__ import annotations

import logging
import time
import traceback
import warnings
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.common import resident_bytes
from benchmarks.frames import PlayThrough
from benchmarks.peers.base import System, steps
from benchmarks.peers.checking import check, check_small_ring

BATCHES = (32, 256)
WARM_UP = 512  # transitions of a ring that is built and thrown away before memory is counted


class Worker:
    """One system, in the process's life.

    Parameters
    ----------
    kind : type of System
    play_path : Path
        Of the play-through.
    capacity : int
    """

    def __init__(self, kind: type[System], play_path: Path, capacity: int) -> None:
        self.kind, self.capacity = kind, capacity
        self.play = PlayThrough.load(play_path)
        self.added = 0

    def fill(self) -> dict[str, Any]:
        """Fill the ring and an eighth again, and say what the process has grown by.

        The play-through is mapped from a file, whose pages are not counted.
        """
        self._warm_up()
        before = resident_bytes(files=False)
        self.system = self.kind(self.capacity, self.play.n_actions)
        self._add(self.capacity + self.capacity // 8)
        grown, held = resident_bytes(files=False) - before, self.system.held()
        own_bytes = self.system.own_bytes()
        return {
            "capacity": self.capacity,
            "held": held,
            "bytes": grown / held,
            "own_bytes": None if own_bytes is None else own_bytes / held,
        }

    def check(self, draws: int, small_ring_times: int) -> dict[str, Any]:
        """Compare draws of the ring, and a small one's, with what the agent saw."""
        live = range(self.added - self.capacity, self.added)
        return {
            "ring": asdict(check(self.system, self.play, live, draws)),
            "small_ring": asdict(check_small_ring(self.kind, self.play, small_ring_times)),
        }

    def add(self, n: int) -> float:
        """Return the mean microseconds of adding the next transitions."""
        return 1e6 * self._add(n) / n

    def sample(self, way: str, batch_size: int, repeats: int) -> list[float]:
        """Return the microseconds of each of some batches."""
        draw = self.system.ways()[way]
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            sample = draw(batch_size)  # noqa: F841 - held until the next one is there, as in training
            taken.append(1e6 * (time.perf_counter() - start))
        return taken

    def ways(self) -> list[str]:
        return list(self.system.ways())

    def _add(self, n: int) -> float:
        seconds = 0.0
        for step in steps(self.play, self.added, self.added + n):
            start = time.perf_counter()
            self.system.add(step)
            seconds += time.perf_counter() - start
        self.added += n
        return seconds

    def _warm_up(self) -> None:
        """Import, compile, and touch what is there but once."""
        system = self.kind(WARM_UP, self.play.n_actions)
        system.warm_up()
        for step in steps(self.play, 0, min(WARM_UP + WARM_UP // 4, len(self.play))):
            system.add(step)
        for way in system.ways().values():
            for batch_size in BATCHES:
                system.drawn(way(batch_size))


def serve(connection: Connection, kind: type[System], play_path: Path, capacity: int) -> None:
    """Answer ``(method, arguments)`` with ``(result, error)`` until the other side hangs up."""
    warnings.simplefilter("ignore")  # a peer's remarks on memory, which is what is measured here
    logging.disable(logging.WARNING)
    worker = Worker(kind, play_path, capacity)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = getattr(worker, method)(*arguments), None
        except Exception:
            answer = None, traceback.format_exc()
        connection.send(answer)
