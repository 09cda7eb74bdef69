"""compressarray's ReplayBuffer, fed newest frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numba
import numpy as np

from benchmarks.peers.base import FRAMES, STACK, Drawn, Step, System, numbers
from compressarray import DiffFrameArray, ReplayBuffer


class Delta(System):
    name = "compressarray delta"
    codec: ClassVar[str] = "delta"
    threaded: ClassVar[bool] = True
    bytes_expected = 400

    def __init__(self, capacity: int, n_actions: int) -> None:
        self.buffer = ReplayBuffer(
            capacity,
            FRAMES,
            gym.spaces.Discrete(n_actions),
            stack_size=STACK,
            codec=self.codec,
            autoreset_mode="disabled",  # `next_obs` is given as it is, at episodes' ends too
            seed=0,
        )
        self.kept: dict[int, Any] = {}

    def warm_up(self) -> None:
        """Give an array enough to learn from."""
        array = DiffFrameArray((1024, *FRAMES.shape), codec=self.codec)
        frame = np.zeros(FRAMES.shape, np.uint8)
        rng = np.random.default_rng(0)
        for _ in range(2 * len(array)):
            frame[20:40, 20:60] = rng.integers(0, 256, (20, 40))
            array.gather(array.append(frame))

    def add(self, step: Step) -> None:
        self.buffer.add(
            step.obs[-1:],
            [step.action],
            [step.reward],
            [step.terminated],
            [step.truncated],
            step.next_obs[-1:],
        )

    def ways(self) -> dict[str, Callable[[int], Any]]:
        ways = {"": self.sample, "kept output": self.into_kept}
        return {**ways, "2 threads": self.by_threads} if self.threaded else ways

    def sample(self, batch_size: int) -> Any:
        return self.buffer.sample(batch_size)

    def into_kept(self, batch_size: int) -> Any:
        self.kept[batch_size] = self.buffer.sample(batch_size, out=self.kept.get(batch_size))
        return self.kept[batch_size]

    def by_threads(self, batch_size: int) -> Any:
        """Into kept outputs, by as many threads as there are by default on two cores."""
        config: Any = numba.config
        config.NUMBA_NUM_THREADS = 2
        try:
            return self.into_kept(batch_size)
        finally:
            config.NUMBA_NUM_THREADS = 1

    def drawn(self, sample: Any) -> Drawn:
        return Drawn(numbers(sample.reward), sample.obs, sample.next_obs)

    def held(self) -> int:
        return self.buffer.n_samplable

    def own_bytes(self) -> int:
        return self.buffer.nbytes_stored


class DeltaZstd(Delta):
    name = "compressarray delta-huffman"
    codec = "delta-huffman"


class Sparse(Delta):
    name = "compressarray sparse"
    codec = "sparse"
    threaded = False
    bytes_expected = 6_000


class Raw(Delta):
    name = "compressarray raw"
    codec = "raw"
    threaded = False
    bytes_expected = 8_000
