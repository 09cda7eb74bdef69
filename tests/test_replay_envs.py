"""``ReplayBuffer`` on real games: Gymnasium's stacks, ALE's own, and both wrappers' indices."""

from __future__ import annotations

import pickle
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import FrameStackObservation

import wrappers
from compressarray import ReplayBuffer
from tests.gym_envs import Frames, atari
from tests.naive_replay import NaiveReplay
from tests.replay_worlds import assert_same_content, assert_same_sequences
from wrappers.vector import IndexedFrameStack

STACK = 4
# 0.12.0 takes a mask, and then waits for ever for the lanes that it leaves out.
ALE_RESETS_BY_MASK = version("ale-py") != "0.12.0"
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
    obs, _ = stacked.reset(seed=3)
    indices, _ = indexed.reset(seed=3)
    stacked.action_space.seed(3)
    ends = 0
    for t in range(steps):
        actions = stacked.action_space.sample()
        next_obs, reward, terminated, truncated, info = stacked.step(actions)
        of_stacks.add(obs, actions, reward, terminated, truncated, next_obs, info)
        oracle.add(obs, actions, reward, terminated, truncated, next_obs, info.get("final_obs"))
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


def ale(mode: AutoresetMode, **arguments: Any) -> AtariVectorEnv:
    return AtariVectorEnv(
        "breakout",
        num_envs=3,
        num_threads=1,
        img_height=42,
        img_width=42,
        autoreset_mode=mode,
        **arguments,
    )


class AleAgent:
    """Plays ALE's own stacks and single frames side by side, and feeds a buffer in every way."""

    n_slots = 40

    def __init__(self, mode: AutoresetMode, arguments: dict[str, Any]) -> None:
        self.mode = mode
        self.stacked = ale(mode, stack_num=STACK, **arguments)
        self.frames = Frames(ale(mode, stack_num=1, **arguments))
        capacity = 2 * self.n_slots + STACK + 40  # and for resets from outside
        self.indexed = IndexedFrameStack(self.frames, STACK, capacity, "zero", squeeze=True)
        self.rng = np.random.default_rng(4)
        stacks, indices = self.stacked.single_observation_space, self.indexed
        frame = Box(0, 255, stacks.shape[1:], np.uint8)
        self.buffers = {
            "stacks": self.build(stacks),
            "stacks, told": self.build(stacks),
            "newest": self.build(frame, stack_size=STACK, padding_type="zero"),
            "indices": self.build(
                indices.single_observation_space, frames=indices.frames, padding_type="zero"
            ),
        }
        name = "next_step" if mode is NEXT_STEP else "same_step"
        self.oracle = NaiveReplay(3, self.n_slots, n_step=3, gamma=0.9, autoreset_mode=name)
        self.reset(seed=3)

    def build(self, space: Any, **arguments: Any) -> ReplayBuffer:
        return ReplayBuffer(
            3 * self.n_slots, space, self.stacked.single_action_space, 3, n_step=3, gamma=0.9,
            autoreset_mode=self.mode, seed=0, **arguments,
        )  # fmt: skip

    def reset(self, **arguments: Any) -> None:
        stacks, info = self.stacked.reset(**arguments)
        indices, _ = self.indexed.reset(**arguments)
        self.began = info["frame_number"] - info["episode_frame_number"]
        self.obs = self.seen(stacks, indices)

    def seen(self, stacks: Any, indices: Any) -> dict[str, Any]:
        newest = self.frames.shown[:, 0].copy()
        return {"stacks": stacks, "stacks, told": stacks, "newest": newest, "indices": indices}

    def step(self) -> tuple[int, int]:
        """Play and add one step; return how many lanes ended, and how many were reset."""
        actions = self.rng.integers(4, size=3)
        stacks, *outcome, info = self.stacked.step(actions)
        indices, *_, infos = self.indexed.step(actions)
        began = info["frame_number"] - info["episode_frame_number"]
        was_reset, self.began = began != self.began, began
        newest = dict(self.frames.infos)
        if "final_obs" in newest:
            newest["final_obs"] = newest["final_obs"][:, 0]
        told = {name: info[name] for name in ("final_obs",) if name in info}
        all_infos = {"stacks": info, "stacks, told": told, "newest": newest, "indices": infos}
        before, self.obs = self.obs, self.seen(stacks, indices)
        for feed, buffer in self.buffers.items():
            mask = {"was_reset": was_reset} if feed == "stacks, told" else {}
            buffer.add(before[feed], actions, *outcome, self.obs[feed], all_infos[feed], **mask)
        self.oracle.add(
            before["stacks"], actions, *outcome, stacks, info.get("final_obs"), was_reset
        )
        return int((outcome[1] | outcome[2]).sum()), int(was_reset.sum())

    def move(self, move: str) -> None:
        """Do what a user may do between two steps."""
        if move == "reset":
            self.reset()
        elif move == "mask" and ALE_RESETS_BY_MASK:
            mask = np.arange(3) == self.rng.integers(3)
            self.reset(options={"reset_mask": mask})
        elif move == "clear":
            for each in (*self.buffers.values(), self.oracle):
                each.clear()
        elif move == "load":
            self.buffers = {
                feed: pickle.loads(pickle.dumps(buffer)) for feed, buffer in self.buffers.items()
            }
            self.indexed.frames = self.buffers["indices"].frames

    def check(self) -> None:
        for buffer in self.buffers.values():
            assert_same_content(buffer, self.oracle)


@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
@pytest.mark.parametrize(
    "arguments",
    [
        {"max_num_frames_per_episode": 100},
        {"episodic_life": True},
        {"life_loss_info": True, "max_num_frames_per_episode": 200},
        {"max_num_frames_per_episode": 12, "use_fire_reset": False},  # less than its no-ops
    ],
    ids=str,
)
def test_ale_s_own_stacks_and_every_way_of_feeding(
    mode: AutoresetMode, arguments: dict[str, Any]
) -> None:
    has_lives = "life_loss_info" in arguments
    for p_move in (0.0, 0.1) if has_lives else (0.06,):
        agent = AleAgent(mode, arguments)
        ends = resets = ended = 0
        for t in range(100):
            # Now and then, and mostly just after an end.
            if agent.rng.random() < (5 * p_move if ended else p_move):
                agent.move(str(agent.rng.choice(["reset", "mask", "clear", "load"])))
            ended, n_reset = agent.step()
            ends, resets = ends + ended, resets + n_reset
            if t % 20 == 19:
                agent.check()
        for length in (1, 5):
            for buffer in agent.buffers.values():
                assert_same_sequences(buffer, agent.oracle, length)
        assert ends >= 3
        assert resets >= 2
        if p_move == 0:
            assert ends > resets + 2
        agent.stacked.close()
        agent.indexed.close()


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
