"""Stable-Baselines3's ReplayBuffer, and the compressed ones of sb3-extra-buffers."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from benchmarks.peers.base import DENSE_BYTES, OBS_BYTES, STACKS, Drawn, Step, System, numbers


class Dense(System):
    name = "Stable-Baselines3 dense"
    package = "stable-baselines3"
    needs = ("stable_baselines3",)
    bytes_expected = DENSE_BYTES + 100

    def __init__(self, capacity: int, n_actions: int) -> None:
        self.buffer = self.make(capacity, gym.spaces.Discrete(n_actions))

    def make(self, capacity: int, actions: gym.Space) -> Any:
        from stable_baselines3.common.buffers import ReplayBuffer

        return ReplayBuffer(capacity, STACKS, actions, device="cpu")

    def add(self, step: Step) -> None:
        self.buffer.add(
            step.obs[None],
            step.next_obs[None],
            np.array([step.action]),
            np.array([step.reward]),
            np.array([step.terminated or step.truncated]),
            [{"TimeLimit.truncated": step.truncated}],
        )

    def sample(self, batch_size: int) -> Any:
        return self.buffer.sample(batch_size)

    def drawn(self, sample: Any) -> Drawn:
        return Drawn(
            numbers(sample.rewards), sample.observations.numpy(), sample.next_observations.numpy()
        )

    def held(self) -> int:
        return self.buffer.size()

    def own_bytes(self) -> int | None:
        arrays = (value for value in vars(self.buffer).values() if isinstance(value, np.ndarray))
        return sum(array.nbytes for array in arrays)


class OptimizedMemory(Dense):
    name = "Stable-Baselines3, optimize_memory_usage"
    every_game = False
    bytes_expected = OBS_BYTES + 100

    def make(self, capacity: int, actions: gym.Space) -> Any:
        from stable_baselines3.common.buffers import ReplayBuffer

        return ReplayBuffer(
            capacity,
            STACKS,
            actions,
            device="cpu",
            optimize_memory_usage=True,
            handle_timeout_termination=False,  # it refuses both
        )


class Compressed(Dense):
    method: ClassVar[str]
    package = "sb3-extra-buffers[fast]"
    slow = True

    def make(self, capacity: int, actions: gym.Space) -> Any:
        from sb3_extra_buffers.compressed import CompressedReplayBuffer, find_buffer_dtypes

        dtypes = find_buffer_dtypes(STACKS.shape, np.uint8, self.method)
        return CompressedReplayBuffer(
            capacity,
            STACKS,
            actions,
            device="cpu",
            dtypes=dtypes,
            compression_method=self.method,
        )

    def own_bytes(self) -> int | None:
        """Payloads and arrays; objects' headers and slack are not in it."""
        stacks = (self.buffer.observations, self.buffer.next_observations)
        payloads = sum(len(data) for array in stacks for data in array.ravel() if data is not None)
        return super().own_bytes() + payloads


class RunLength(Compressed):
    name = "sb3-extra-buffers rle-jit"
    method = "rle-jit"
    needs = ("sb3_extra_buffers", "numba")


class Zstd(Compressed):
    name = "sb3-extra-buffers zstd-3"
    method = "zstd-3"
    needs = ("sb3_extra_buffers", "zstd")


class Lz4(Compressed):
    name = "sb3-extra-buffers lz4-frame/1"
    method = "lz4-frame/1"
    needs = ("sb3_extra_buffers", "lz4")


class Igzip(Compressed):
    name = "sb3-extra-buffers igzip1"
    method = "igzip1"
    needs = ("sb3_extra_buffers", "isal")
