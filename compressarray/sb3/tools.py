"""Compiling before a fork; taking over a dense buffer."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import (
    BaseBuffer,
    DictReplayBuffer,
    DictRolloutBuffer,
    NStepReplayBuffer,
    ReplayBuffer,
    RolloutBuffer,
)
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from compressarray.sb3.her import CompressedHerReplayBuffer
from compressarray.sb3.replay import (
    CompressedDictReplayBuffer,
    CompressedNStepReplayBuffer,
    CompressedReplayBuffer,
)
from compressarray.sb3.rollout import CompressedDictRolloutBuffer, CompressedRolloutBuffer

# Whose place they take.
KINDS: dict[type, Any] = {
    ReplayBuffer: CompressedReplayBuffer,
    DictReplayBuffer: CompressedDictReplayBuffer,
    NStepReplayBuffer: CompressedNStepReplayBuffer,
    HerReplayBuffer: CompressedHerReplayBuffer,
    RolloutBuffer: CompressedRolloutBuffer,
    DictRolloutBuffer: CompressedDictRolloutBuffer,
}


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


def compressed(buffer: BaseBuffer, codec: Any = "delta") -> Any:
    """Return a compressed buffer in place of one of Stable-Baselines3's or sb3-contrib's own.

    `load_replay_buffer` takes a file of either kind and keeps its kind. After loading one that
    was saved dense: ``model.replay_buffer = compressed(model.replay_buffer)``. `RecurrentPPO`
    makes its own rollout buffer: ``model.rollout_buffer = compressed(model.rollout_buffer)``.

    Parameters
    ----------
    buffer : ReplayBuffer or RolloutBuffer
        Of one of the classes that a class here takes the place of. Not changed. One that is
        compressed already is returned as it is.
    codec : str or object, default "delta"

    Returns
    -------
    CompressedReplayBuffer or CompressedRolloutBuffer
        A replay buffer with all of its transitions, a rollout buffer without any: algorithms
        empty theirs before they fill it.

    Raises
    ------
    TypeError
        If the class is another one.
    ValueError
        If it was filled with ``optimize_memory_usage=True``: that has lost the observations which
        end episodes.
    """
    if isinstance(buffer, (CompressedReplayBuffer, CompressedRolloutBuffer)):
        return buffer
    kinds = dict(KINDS)
    if type(buffer).__module__.partition(".")[0] == "sb3_contrib":
        # imported here: only who has sb3-contrib has one of its buffers
        from compressarray.sb3 import contrib

        kinds.update(contrib.KINDS)
    if type(buffer) not in kinds:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"a {type(buffer).__name__} is none of {names}, which can be compressed")
    common: dict[str, Any] = {"device": buffer.device, "n_envs": buffer.n_envs, "codec": codec}
    spaces_of = (buffer.observation_space, buffer.action_space)
    if isinstance(buffer, RolloutBuffer):
        for name in ("gae_lambda", "gamma", "hidden_state_shape"):
            if hasattr(buffer, name):
                common[name] = getattr(buffer, name)
        return kinds[type(buffer)](buffer.buffer_size, *spaces_of, **common)
    assert isinstance(buffer, ReplayBuffer)
    if buffer.optimize_memory_usage:
        raise ValueError(
            "this buffer was filled with optimize_memory_usage=True and has lost the observations "
            "that end episodes; fill a compressed one anew"
        )
    for name in (
        *("handle_timeout_termination", "n_steps", "gamma"),
        *("env", "n_sampled_goal", "goal_selection_strategy", "copy_info_dict"),
    ):
        if hasattr(buffer, name):
            common[name] = getattr(buffer, name)
    made: CompressedReplayBuffer = kinds[type(buffer)](
        buffer.buffer_size * buffer.n_envs, *spaces_of, **common
    )
    _fill(made, buffer)
    return made


def _fill(made: CompressedReplayBuffer, buffer: ReplayBuffer) -> None:
    """Give an empty buffer the transitions of another one."""
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
        # Not a subclass's: what it works out of a step is taken over as it is.
        CompressedReplayBuffer.add(
            made,
            obs,
            next_obs,
            buffer.actions[slot],
            buffer.rewards[slot],
            buffer.dones[slot],
            [{}] * buffer.n_envs,
        )
    made.pos, made.full = buffer.pos, buffer.full
    made.timeouts = copy.copy(buffer.timeouts)
    if isinstance(buffer, HerReplayBuffer):
        for name in ("ep_start", "ep_length", "_current_ep_start"):
            setattr(made, name, copy.copy(getattr(buffer, name)))
        if buffer.copy_info_dict:
            vars(made)["infos"] = copy.copy(buffer.infos)
