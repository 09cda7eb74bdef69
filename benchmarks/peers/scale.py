"""Whether reading costs more from an array of a million frames than from one of ten thousand."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from benchmarks.frames import SIDE, STACK, PlayThrough
from compressarray import DiffFrameArray

BATCH = 32
BLOCK = 64
TURNS, BATCHES_A_TURN = 40, 10


def cost_against_size(play: PlayThrough, many: int) -> dict[str, Any]:
    """Time `delta` gathering 32 stacks of 4 frames, by turns, from two arrays.

    The large one has the play-through's frames over and over, the small one, a hundredth of it,
    ten parts of them.
    """
    few = many // 100
    played = len(play.frames)
    part = -(-few // 10)
    starts = np.linspace(0, max(played - part, 0), 10, dtype=np.int64)
    content = {many: np.arange(many), few: (starts[:, None] + np.arange(part)).reshape(-1)[:few]}
    arrays = {}
    for n, numbers in content.items():
        arrays[n] = DiffFrameArray((n, SIDE, SIDE))
        for start in range(0, n, BLOCK):
            arrays[n].append(play.frames[numbers[start : start + BLOCK] % played])
    rng = np.random.default_rng(0)
    out = np.empty((BATCH, STACK, SIDE, SIDE), np.uint8)
    times: dict[int, list[float]] = {many: [], few: []}
    for _ in range(TURNS):
        for n, array in arrays.items():
            for _ in range(BATCHES_A_TURN):
                index = rng.integers(STACK - 1, n, BATCH)[:, None] - np.arange(STACK - 1, -1, -1)
                start = time.perf_counter()
                array.gather(index, out)
                times[n].append(1e6 * (time.perf_counter() - start))
    medians = {n: statistics.median(taken) for n, taken in times.items()}
    return {
        "frames": [few, many],
        "us": [medians[few], medians[many]],
        "ratio": medians[many] / medians[few],
        "bytes_stored": [arrays[few].nbytes_stored, arrays[many].nbytes_stored],
    }
