"""Compiling before a fork; taking over a dense buffer."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer

from compressarray.sb3.replay import (
    CompressedDictReplayBuffer,
    CompressedNStepReplayBuffer,
    CompressedReplayBuffer,
)


def compile_kernels(codec: Any = "delta") -> None:
    """Compile what the buffers run, or load it from numba's cache: seconds, the first time.

    Call it before `SubprocVecEnv` or anything else forks, so that no child compiles by itself.
    """
    pixels = spaces.Box(0, 255, (2, 8, 8), np.uint8)
    buffer = CompressedReplayBuffer(64, pixels, spaces.Discrete(2), device="cpu", codec=codec)
    for step in range(80):  # once around, so that old frames are let go too
        obs, next_obs = (np.full((1, 2, 8, 8), step + i, np.uint8) for i in (0, 1))
        buffer.add(obs, next_obs, np.array([0]), np.array([0.0]), np.array([False]), [{}])
    buffer._samples_at(np.arange(4), np.zeros(4, np.int64), None)


def compressed(buffer: ReplayBuffer, codec: Any = "delta") -> CompressedReplayBuffer:
    """Return a compressed buffer with the transitions of one of Stable-Baselines3's own.

    `load_replay_buffer` takes a file of either kind and keeps its kind. After loading one that
    was saved dense: ``model.replay_buffer = compressed(model.replay_buffer)``.

    Parameters
    ----------
    buffer : ReplayBuffer, DictReplayBuffer or NStepReplayBuffer
        Not changed. One that is compressed already is returned as it is.
    codec : str or object, default "delta"

    Raises
    ------
    TypeError
        If the class is another one.
    ValueError
        If it was filled with ``optimize_memory_usage=True``: that has lost the observations which
        end episodes.
    """
    if isinstance(buffer, CompressedReplayBuffer):
        return buffer
    kinds: dict[type, Any] = {
        ReplayBuffer: CompressedReplayBuffer,
        DictReplayBuffer: CompressedDictReplayBuffer,
        NStepReplayBuffer: CompressedNStepReplayBuffer,
    }
    if type(buffer) not in kinds:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"a {type(buffer).__name__} is none of {names}, which can be compressed")
    if buffer.optimize_memory_usage:
        raise ValueError(
            "this buffer was filled with optimize_memory_usage=True and has lost the observations "
            "that end episodes; fill a compressed one anew"
        )
    extra = {}
    if isinstance(buffer, NStepReplayBuffer):
        extra = {"n_steps": buffer.n_steps, "gamma": buffer.gamma}
    made: CompressedReplayBuffer = kinds[type(buffer)](
        buffer.buffer_size * buffer.n_envs,
        buffer.observation_space,
        buffer.action_space,
        device=buffer.device,
        n_envs=buffer.n_envs,
        handle_timeout_termination=buffer.handle_timeout_termination,
        codec=codec,
        **extra,
    )
    n_rows = buffer.size()
    # Oldest first, so that frames come in the order in which they were made.
    order = (np.arange(n_rows) + (buffer.pos if buffer.full else 0)) % buffer.buffer_size
    made.pos = int(order[0]) if n_rows else 0
    held: Any = (buffer.observations, buffer.next_observations)
    for number, slot in enumerate(order):
        obs, next_obs = (
            {key: each[slot] for key, each in one.items()} if isinstance(one, dict) else one[slot]
            for one in held
        )
        # Full is said from the last on: until then there is no oldest row to let go of.
        made.full = buffer.full and number + 1 == n_rows
        made.add(
            obs,
            next_obs,
            buffer.actions[slot],
            buffer.rewards[slot],
            buffer.dones[slot],
            [{}] * buffer.n_envs,
        )
    made.pos, made.full = buffer.pos, buffer.full
    made.timeouts = copy.copy(buffer.timeouts)
    return made
