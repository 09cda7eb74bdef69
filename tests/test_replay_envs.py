"""``ReplayBuffer`` on real games: Gymnasium's stacks, ALE's own, and both wrappers' indices."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import FrameStackObservation

import wrappers
from compressarray import ReplayBuffer
from tests.gym_envs import atari
from tests.naive_replay import NaiveReplay
from tests.replay_worlds import assert_same_content, assert_same_sequences
from wrappers.vector import IndexedFrameStack

STACK = 4
NEXT_STEP, SAME_STEP = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP


def game(**arguments: Any) -> gym.Env:
    return atari("Breakout", time_limit=17, **arguments)


def drive(
    stacked: VectorEnv, indexed: IndexedFrameStack, mode: AutoresetMode, n_slots: int, steps: int
) -> NaiveReplay:
    """Play both; compare what their buffers hold with the oracle, which is given plain stacks."""
    n = stacked.num_envs
    common: dict[str, Any] = {"n_step": 3, "autoreset_mode": mode, "gamma": 0.9, "seed": 0}
    capacity = n_slots * n
    of_stacks = ReplayBuffer(
        capacity, stacked.single_observation_space, stacked.single_action_space, n, **common
    )
    of_indices = ReplayBuffer(
        capacity,
        indexed.single_observation_space,
        indexed.single_action_space,
        n,
        frames=indexed.frames,
        **common,
    )
    name = "next_step" if mode is NEXT_STEP else "same_step"
    oracle = NaiveReplay(n, n_slots, n_step=3, gamma=0.9, autoreset_mode=name)
    obs, info = stacked.reset(seed=3)
    began = info.get("frame_number", 0) - info.get("episode_frame_number", 0)
    indices, _ = indexed.reset(seed=3)
    stacked.action_space.seed(3)
    ends = 0
    for t in range(steps):
        actions = stacked.action_space.sample()
        next_obs, reward, terminated, truncated, info = stacked.step(actions)
        was_reset = None
        if isinstance(stacked, AtariVectorEnv):
            was_reset = info["frame_number"] - info["episode_frame_number"] != began
            began = info["frame_number"] - info["episode_frame_number"]
        of_stacks.add(obs, actions, reward, terminated, truncated, next_obs, info)
        oracle.add(
            obs, actions, reward, terminated, truncated, next_obs, info.get("final_obs"), was_reset
        )
        next_indices, *outcome, info = indexed.step(actions)
        of_indices.add(indices, actions, *outcome, next_indices, info)
        obs, indices = next_obs, next_indices
        ends += int((terminated | truncated).sum())
        if t % 10 == 9:
            assert_same_content(of_stacks, oracle)
            assert_same_content(of_indices, oracle)
    for length in (1, 5):
        assert_same_sequences(of_stacks, oracle, length)
        assert_same_sequences(of_indices, oracle, length)
    assert ends >= n, "no episode ended"
    stacked.close()
    indexed.close()
    return oracle


@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
@pytest.mark.parametrize("padding", ["reset", "zero"])
def test_gymnasium_s_stacks_and_our_indices(mode: AutoresetMode, padding: str) -> None:
    n_slots = 25
    stacked = SyncVectorEnv(
        [lambda: FrameStackObservation(game(), STACK, padding_type=padding)] * 2,
        autoreset_mode=mode,
    )
    indexed = IndexedFrameStack(
        SyncVectorEnv([game] * 2, autoreset_mode=mode), STACK, 2 * n_slots + STACK, padding
    )
    drive(stacked, indexed, mode, n_slots, 60)


@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
@pytest.mark.parametrize(
    "arguments", [{"max_num_frames_per_episode": 100}, {"life_loss_info": True}], ids=str
)
def test_ale_s_own_stacks_and_our_indices(mode: AutoresetMode, arguments: dict[str, Any]) -> None:
    n_slots = 60
    build = partial(
        AtariVectorEnv,
        "breakout",
        num_envs=3,
        num_threads=1,
        img_height=42,
        img_width=42,
        autoreset_mode=mode,
        **arguments,
    )
    indexed = IndexedFrameStack(
        build(stack_num=1), STACK, 2 * n_slots + STACK, "zero", squeeze=True
    )
    drive(build(stack_num=STACK), indexed, mode, n_slots, 150)


def test_a_single_environment_that_one_resets_oneself() -> None:
    n_slots = 40
    env = wrappers.IndexedFrameStack(game(), STACK, 2 * n_slots + STACK, "zero")
    plain = FrameStackObservation(game(), STACK, padding_type="zero")
    buffer = ReplayBuffer(
        n_slots,
        env.observation_space,
        env.action_space,
        frames=env.get_wrapper_attr("frames"),
        autoreset_mode="disabled",
    )
    newest = ReplayBuffer(
        n_slots,
        game().observation_space,
        env.action_space,
        stack_size=STACK,
        padding_type="zero",
        autoreset_mode="disabled",
    )
    oracle = NaiveReplay(1, n_slots, autoreset_mode="disabled")
    obs, _ = env.reset(seed=1)
    dense, _ = plain.reset(seed=1)
    env.action_space.seed(1)
    for t in range(100):
        action = env.action_space.sample()
        next_obs, reward, terminated, truncated, _ = env.step(action)
        outcome = [np.array([each]) for each in (action, reward, terminated, truncated)]
        next_dense = plain.step(action)[0]
        buffer.add(obs[None], *outcome, next_obs[None])
        newest.add(dense[None, -1], *outcome, next_dense[None, -1])
        oracle.add(dense[None], *outcome, next_dense[None])
        obs, dense = next_obs, next_dense
        if terminated or truncated:
            obs, dense = env.reset()[0], plain.reset()[0]
        if t % 10 == 9:
            assert_same_content(buffer, oracle)
            assert_same_content(newest, oracle)
    assert buffer.stats()["episodes"] > 2
