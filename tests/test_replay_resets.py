"""``ReplayBuffer`` beside a diary: resets, ends and clearing as environments and users do them.

Every sampled row is held against what the agent saw, and every step that was played must be there.
"""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from compressarray import ReplayBuffer
from tests.diary import BLACK, N_ACTIONS, SHAPE, Diary, Page, read
from tests.gym_envs import Frames
from tests.replay_worlds import FEEDS, Setting, World, assert_same_content
from wrappers.vector import IndexedFrameStack

STACK, N_ENVS, N_SLOTS, GAMMA = 3, 2, 40, 0.5
SAME_STEP, NEXT_STEP, DISABLED = (
    AutoresetMode.SAME_STEP,
    AutoresetMode.NEXT_STEP,
    AutoresetMode.DISABLED,
)
MODES = [SAME_STEP, NEXT_STEP, DISABLED]
# What a user may do between two steps: nothing, reset all lanes or one, forget, save and load.
MOVES = ("reset", "mask", "clear", "load", "new seed")


class Agent:
    """Plays; feeds three buffers, each in its own way; and writes down what it saw."""

    def __init__(self, envs: VectorEnv, mode: AutoresetMode, padding: str, n_step: int) -> None:
        self.mode, self.padding, self.n_step = mode, padding, n_step
        self.env = Frames(envs)
        self.indexed = IndexedFrameStack(self.env, STACK, 600, padding)
        self.rng = np.random.default_rng(0)
        common: dict[str, Any] = {
            "n_envs": N_ENVS, "autoreset_mode": mode, "n_step": n_step, "gamma": GAMMA, "seed": 0,
        }  # fmt: skip
        of_stacks = Box(0, 255, (STACK, *SHAPE), np.uint8)
        actions = envs.single_action_space
        capacity = N_ENVS * N_SLOTS
        self.buffers = {
            "stacks": ReplayBuffer(capacity, of_stacks, actions, **common),
            "newest": ReplayBuffer(
                capacity, envs.single_observation_space, actions, stack_size=STACK,
                padding_type=padding, **common,
            ),
            "indices": ReplayBuffer(
                capacity, self.indexed.single_observation_space, actions,
                frames=self.indexed.frames, padding_type=padding, **common,
            ),
        }  # fmt: skip
        self.stacks: list[list[Any]] = [[]] * N_ENVS
        self.played: list[list[tuple[Page, Page]]] = [[] for _ in range(N_ENVS)]
        self.obs = self.look(self.indexed.reset(seed=3)[0])

    # ----------------------------------------------------------------- what the agent sees

    def stacked(self, lane: int, frame: np.ndarray) -> list[np.ndarray]:
        """The lane's stack with one more frame; its page says whether it is the first one."""
        if read(frame).step == 0:
            before = frame if self.padding == "reset" else BLACK
            return [before] * (STACK - 1) + [frame]
        return [*self.stacks[lane][1:], frame]

    def look(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """What is shown, in each way of feeding; all of it copied."""
        shown = self.env.shown.copy()
        for lane in range(N_ENVS):
            if not self.stacks[lane] or read(self.stacks[lane][-1]) != read(shown[lane]):
                self.stacks[lane] = self.stacked(lane, shown[lane])
        return {"stacks": np.stack(self.stacks), "newest": shown, "indices": indices}

    def step(self) -> np.ndarray:
        """Play one step and add it everywhere; return where an episode ended."""
        actions = self.rng.integers(N_ACTIONS, size=N_ENVS)
        indices, rewards, terminated, truncated, infos = self.indexed.step(actions)
        ended = terminated | truncated
        before = self.obs
        all_infos = {"indices": infos, "newest": self.env.infos, "stacks": {}}
        for lane in range(N_ENVS):
            frame = self.env.shown[lane]
            if self.mode is SAME_STEP and ended[lane]:
                frame = self.env.infos["final_obs"][lane]
                final = all_infos["stacks"].setdefault("final_obs", np.full(N_ENVS, None, object))
                final[lane] = np.stack(self.stacked(lane, frame))
            old, new = read(before["newest"][lane]), read(frame)
            if new.follows(old):
                self.played[lane].append((old, new))
        if "final_obs" in all_infos["stacks"]:
            all_infos["stacks"]["_final_obs"] = ended
        self.obs = self.look(indices)
        for feed, buffer in self.buffers.items():
            buffer.add(
                before[feed], actions, rewards, terminated, truncated, self.obs[feed],
                all_infos[feed],
            )  # fmt: skip
        return ended

    def reset(self, **kwargs: Any) -> None:
        self.obs = self.look(self.indexed.reset(**kwargs)[0])

    def move(self, move: str) -> None:
        """Do what a user may do, and tell the buffers nothing of it."""
        if move in ("clear", "new seed"):
            for buffer in self.buffers.values():
                buffer.clear()
            self.played = [[] for _ in range(N_ENVS)]
        if move == "reset":
            self.reset()
        elif move == "mask":
            mask = np.arange(N_ENVS) == self.rng.integers(N_ENVS)
            self.reset(options={"reset_mask": mask})
        elif move == "new seed":  # also the numbering of frames starts over
            self.reset(seed=int(self.rng.integers(99)))
        elif move == "load":
            self.buffers = {
                feed: pickle.loads(pickle.dumps(buffer)) for feed, buffer in self.buffers.items()
            }
            self.indexed.frames = self.buffers["indices"].frames

    # ----------------------------------------------------------------- what must be sampled

    def expected(self) -> dict[int, tuple[Page, Page, float, float]]:
        """By name: first and last page, reward and discount of every window."""
        found = {}
        for lane, played in enumerate(self.played):
            for t in range(max(0, len(played) - N_SLOTS), len(played)):
                last = t
                is_over = played[last][1].ends
                while last - t + 1 < self.n_step and not is_over and last + 1 < len(played):
                    if played[last + 1][0][:3] != played[last][1][:3]:
                        is_over = True  # reset from outside
                        break
                    last += 1
                    is_over = played[last][1].ends
                if last - t + 1 < self.n_step and not is_over:
                    continue
                steps = played[t : last + 1]
                reward = sum(GAMMA**k * step[1].reward for k, step in enumerate(steps))
                found[t * N_ENVS + lane] = (
                    steps[0][0], steps[-1][1], reward, GAMMA ** len(steps)
                )  # fmt: skip
        return found

    def assert_stack(self, stack: np.ndarray, newest: Page) -> None:
        assert read(stack[-1]) == newest
        for back in range(1, STACK):
            frame = stack[STACK - 1 - back]
            if back > newest.step and self.padding == "zero":
                assert not frame.any(), "not padded"
                continue
            page = read(frame)
            assert (page.lane, page.episode) == (newest.lane, newest.episode), "crosses a reset"
            assert page.step == max(newest.step - back, 0)

    def check(self) -> None:
        expected = self.expected()
        for feed, buffer in self.buffers.items():
            held = sum(min(len(played), N_SLOTS) for played in self.played)
            assert len(buffer) == held, f"{feed}: {len(buffer)} held, {held} played"
            assert buffer.n_samplable == len(expected), feed
            if not expected:
                continue
            batch = buffer.sample(len(expected), replace=False)
            assert sorted(batch.index.tolist()) == sorted(expected), feed
            for row, name in enumerate(batch.index.tolist()):
                first, last, reward, discount = expected[name]
                self.assert_stack(batch.obs[row], first)
                self.assert_stack(batch.next_obs[row], last)
                lane, t = name % N_ENVS, name // N_ENVS
                assert batch.action[row] == self.played[lane][t][1].action
                assert batch.reward[row] == np.float32(reward)
                assert batch.discount[row] == np.float32(discount)
                assert batch.terminated[row] == last.terminated

    def play(self, n_steps: int, p_move: float) -> set[tuple[str, bool]]:
        """Play with moves at drawn moments; return those made, and whether after an end."""
        made = set()
        ended = np.zeros(N_ENVS, bool)
        for t in range(n_steps):
            if self.rng.random() < p_move:
                move = str(self.rng.choice(MOVES))
                self.move(move)
                made.add((move, bool(ended.any())))
                if move in ("reset", "new seed"):
                    ended[:] = False
            if self.mode is DISABLED and ended.any():
                pages = [read(frame) for frame in self.obs["newest"]]
                if over := [page.lane for page in pages if page.ends]:
                    self.reset(options={"reset_mask": np.isin(np.arange(N_ENVS), over)})
            ended = self.step()
            if t % 10 == 9:
                self.check()
        self.check()
        return made


def makes(p_end: float) -> list[Any]:
    return [partial(Diary, lane, p_end) for lane in range(N_ENVS)]


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("padding", ["reset", "zero"])
@pytest.mark.parametrize("mode", MODES)
def test_samples_are_what_the_agent_saw(mode: AutoresetMode, padding: str, n_step: int) -> None:
    made = set()
    for p_end, p_move, n_steps in ((0.15, 0.0, 60), (0.1, 0.1, 120), (0.6, 0.3, 150)):
        envs = SyncVectorEnv(makes(p_end), autoreset_mode=mode)
        made |= Agent(envs, mode, padding, n_step).play(n_steps, p_move)
    assert made == {(move, after_an_end) for move in MOVES for after_an_end in (False, True)}


@pytest.mark.parametrize("mode", MODES)
def test_environments_in_processes_that_hand_out_one_buffer(mode: AutoresetMode) -> None:
    envs = AsyncVectorEnv(makes(0.3), autoreset_mode=mode, context="spawn", copy=False)
    try:
        agent = Agent(envs, mode, "reset", 2)
        agent.play(120, 0.15)
        # Without copies nothing is added: neither now, nor a thousand steps later.
        agent.reset()
        buffer = agent.buffers["newest"]
        before = len(buffer)
        obs = agent.env.shown
        for _ in range(20):
            actions = np.zeros(N_ENVS, int)
            _, rewards, terminated, truncated, infos = agent.env.step(actions)
            with pytest.raises(ValueError, match=r"obs and next_obs are one memory.*copy=True"):
                buffer.add(obs, actions, rewards, terminated, truncated, agent.env.shown, infos)
            if mode is DISABLED and (terminated | truncated).any():
                agent.env.reset()
        assert len(buffer) == before
    finally:
        envs.close()


@pytest.mark.parametrize("mode", MODES)
def test_one_buffer_for_all_steps(mode: AutoresetMode) -> None:
    envs = SyncVectorEnv(makes(0.3), autoreset_mode=mode, copy=False)
    Agent(envs, mode, "zero", 1).play(60, 0.1)


@pytest.mark.parametrize("feed", FEEDS)
def test_stacks_run_on_through_clear_in_every_feed(feed: str) -> None:
    """Of a Dict, too: an entry that has nothing to compare with does not say that it was reset."""
    for seed in range(5):
        world = World(Setting(feed=feed, n_slots=5, seed=seed, resets=100))
        for n_steps in (1, 4, 2):
            for _ in range(n_steps):
                world.step(0.0, 0.0)
                assert_same_content(world.buffer, world.oracle)
            world.clear()
