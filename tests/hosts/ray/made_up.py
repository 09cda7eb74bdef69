"""Runners whose transitions say which ones they are, so that nobody has to keep them."""

from __future__ import annotations

import os
import random
import time
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete

from compressarray import ReplayBuffer
from compressarray.ray import RayEnvRunner, RayReplay

STACK, SIDE, CAPACITY, EPISODE = 3, 12, 600, 37


def frame(life: int, t: int) -> np.ndarray[Any, Any]:
    pixels = np.full((SIDE, SIDE), life % 251, np.uint8)
    pixels[t % SIDE, :] = t * 31 % 251
    pixels[:, t // 7 % SIDE] += np.uint8(t % 97)
    pixels[0, :8] = *(life >> 8 * i & 255 for i in range(4)), *(t >> 8 * i & 255 for i in range(4))
    return pixels


def stack(life: int, t: int, begin: int) -> np.ndarray[Any, Any]:
    return np.stack([frame(life, max(t - age, begin)) for age in reversed(range(STACK))])


def begin_of(t: int) -> int:
    """Where the episode begins that step ``t`` is of; it leads to frame t + 1."""
    return t // EPISODE * EPISODE


class MadeUp(RayEnvRunner):
    """One lane; a life is told by its number, drawn when the actor begins."""

    def __init__(self, index: int, options: dict[str, Any] | None = None) -> None:
        self.options = options or {}
        self.life = self.options.get("life", int.from_bytes(os.urandom(4), "little"))
        space = Box(0, 255, (STACK, SIDE, SIDE), np.uint8)
        actions = Discrete(251 + (index if self.options.get("mixed") else 0))
        self.buffer = ReplayBuffer(CAPACITY, space, actions, n_envs=None, n_step=2)
        self.t = 0
        self.index = index
        self.calls = 0
        self.weights: Any = None

    def step(self) -> None:
        if self.options.get("delay_s"):
            time.sleep(random.random() * self.options["delay_s"])
        if self.t == self.options.get("raises_at"):
            self.t += 1
            raise FloatingPointError("the environment of this runner broke")
        life, t = self.life, self.t
        begin = begin_of(t)
        ends = t + 1 == begin + EPISODE
        self.buffer.add(
            stack(life, t, begin), t % 251, float(t), ends, False, stack(life, t + 1, begin)
        )
        self.t += 1

    def set_weights(self, weights: Any) -> None:
        self.weights = weights

    def report(self) -> Any:
        weights = None if self.weights is None else float(np.sum(self.weights))
        return {"pid": os.getpid(), "index": self.index, "life": self.life, "weights": weights}

    def collect(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        delivery = super().collect(*arguments, **named)
        if self.calls in self.options.get("damages", ()):
            message = bytearray(delivery.message)
            message[len(message) // 2] ^= 1
            return delivery._replace(message=bytes(message))
        if self.index in self.options.get("old", ()):
            return delivery._replace(version="0.0.1")
        return delivery


def check(replay: RayReplay) -> dict[int, int]:
    """Compare all that is held with what the runners made; return how many each life has had."""
    had = {}
    for buffer in replay.buffers.values():
        n = int(buffer.position[0])
        assert len(buffer) == min(n, CAPACITY)
        if not n:
            continue
        held = buffer.get(buffer.newest(n))
        life = int.from_bytes(held.obs[0, -1, 0, :4].tobytes(), "little")
        for row, t in enumerate(range(n - len(buffer), n)):
            begin = begin_of(t)
            assert np.array_equal(held.obs[row], stack(life, t, begin))
            assert np.array_equal(held.next_obs[row], stack(life, t + 1, begin))
            assert held.action[row] == t % 251
            assert held.reward[row] == t
            assert held.terminated[row] == (t + 1 == begin + EPISODE)
        had[life] = n
    return had


def check_batch(batch: Any) -> None:
    for row in range(len(batch.index)):
        octets = batch.obs[row, -1, 0, :8].tobytes()
        life, t = (int.from_bytes(octets[i : i + 4], "little") for i in (0, 4))
        begin = begin_of(t)
        n_steps = min(2, begin + EPISODE - t)
        assert np.array_equal(batch.obs[row], stack(life, t, begin))
        assert np.array_equal(batch.next_obs[row], stack(life, t + n_steps, begin))
        assert batch.reward[row] == np.float32(sum(0.99**k * (t + k) for k in range(n_steps)))
