"""Tianshou's ReplayBuffer in the setting of its Atari examples: frames once, stacked on demand."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.base import STACK, Drawn, Step, System, numbers


class Tianshou(System):
    name = "Tianshou, stack_num and ignore_obs_next"
    package = "tianshou"
    needs = ("tianshou",)
    every_game = False

    def __init__(self, capacity: int, n_actions: int) -> None:  # noqa: ARG002
        from tianshou.data import Batch, ReplayBuffer

        self.batch = Batch
        self.buffer = ReplayBuffer(
            capacity, stack_num=STACK, ignore_obs_next=True, save_only_last_obs=True
        )

    def add(self, step: Step) -> None:
        self.buffer.add(
            self.batch(
                obs=step.obs,
                act=step.action,
                rew=step.reward,
                terminated=step.terminated,
                truncated=step.truncated,
                obs_next=step.next_obs,
            )
        )

    def sample(self, batch_size: int) -> Any:
        batch, _ = self.buffer.sample(batch_size)
        return batch

    def drawn(self, sample: Any) -> Drawn:
        return Drawn(numbers(sample.rew), sample.obs, sample.obs_next)

    def held(self) -> int:
        return len(self.buffer)

    def own_bytes(self) -> int | None:
        meta = self.buffer._meta
        arrays = (meta[key] for key in meta.get_keys())
        return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
