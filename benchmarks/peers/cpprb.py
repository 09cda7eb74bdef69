"""cpprb's ReplayBuffer, which stores a stack's newest frame where it can."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.base import SIDE, STACK, Drawn, Step, System, numbers


class Cpprb(System):
    name = "cpprb, stack_compress and next_of"
    package = "cpprb"
    needs = ("cpprb",)
    bytes_expected = 15_000

    def __init__(self, capacity: int, n_actions: int) -> None:  # noqa: ARG002
        from cpprb import ReplayBuffer

        self.buffer = ReplayBuffer(
            capacity,
            {
                "obs": {"shape": (SIDE, SIDE, STACK), "dtype": np.uint8},
                "act": {"dtype": np.uint8},
                "rew": {},
                "done": {"dtype": np.bool_},
            },
            next_of="obs",
            stack_compress="obs",
        )

    def add(self, step: Step) -> None:
        # it wants the stack's axis last
        self.buffer.add(
            obs=step.obs.transpose(1, 2, 0),
            next_obs=step.next_obs.transpose(1, 2, 0),
            act=step.action,
            rew=step.reward,
            done=step.terminated,
        )
        if step.terminated or step.truncated:
            self.buffer.on_episode_end()

    def sample(self, batch_size: int) -> Any:
        return self.buffer.sample(batch_size)

    def drawn(self, sample: Any) -> Drawn:
        obs, next_obs = (sample[name].transpose(0, 3, 1, 2) for name in ("obs", "next_obs"))
        return Drawn(numbers(sample["rew"]), obs, next_obs)

    def held(self) -> int:
        return self.buffer.get_stored_size()
