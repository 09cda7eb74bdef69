"""What people who come from other replay buffers reach for."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import hypothesis.strategies as st
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from hypothesis import given, settings

from compressarray import ReplayBuffer
from tests.effort import examples
from tests.naive import assert_same
from tests.naive_replay import NaiveReplay
from tests.replay_worlds import (
    FEEDS,
    FIELDS,
    Setting,
    World,
    assert_same_content,
    assert_same_runs,
    assert_same_steps,
)
from wrappers import IndexedFrameStack

FRAME = Box(0, 255, (5, 6), np.uint8)


class RandomFrames(gym.Env[Any, Any]):
    """Frames of noise, in episodes of seven steps that terminate and truncate by turns."""

    observation_space, action_space = FRAME, Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.episodes = 0, getattr(self, "episodes", 0) + 1
        return self.frame(), {}

    def frame(self) -> np.ndarray:
        return self.np_random.integers(0, 256, FRAME.shape, np.uint8)

    def step(self, action: Any) -> Any:
        self.steps += 1
        ends = self.steps == 7
        is_last = ends and bool(self.episodes % 2)
        return self.frame(), float(action), is_last, ends and not is_last, {}


class Recorder:
    """Stands where a buffer would, and keeps what `add` is given."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, ...]] = []

    def add(self, *arguments: Any, **more: Any) -> None:
        self.steps.append((*arguments, more.get("fields")))

    def cut(self, lanes: Any) -> None:
        raise AssertionError


def stacked(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: stacked([each[key] for each in values]) for key in values[0]}
    return np.stack(values)


def with_final(next_obs: Any, info: Any, ends: np.ndarray) -> Any:
    """What steps led to: of those that ended, what info has."""
    if "final_obs" not in info:
        return next_obs
    if isinstance(next_obs, dict):
        final = {key: np.array(value) for key, value in next_obs.items()}
        for lane in np.flatnonzero(ends):
            for key in final:
                final[key][lane] = info["final_obs"][lane][key]
        return final
    final = np.array(next_obs)
    for lane in np.flatnonzero(ends):
        final[lane] = info["final_obs"][lane]
    return final


def recorded(setting: Setting, n: int) -> tuple[World, list[Any]]:
    """A world whose oracle knows all steps, and what each argument of `add_rollout` shall be."""
    world = World(setting)
    buffer, recorder = world.buffer, Recorder()
    world.buffer = recorder  # type: ignore[assignment]
    for _ in range(n):
        world.step(0.1, 0.1)
    world.buffer = buffer
    rows = []
    for obs, action, reward, terminated, truncated, next_obs, info, fields in recorder.steps:
        led_to = with_final(next_obs, info, terminated | truncated)
        rows.append((obs, action, reward, terminated, truncated, led_to, fields))
    return world, [stacked(list(each)) if each[0] is not None else None
                   for each in zip(*rows, strict=True)]  # fmt: skip


def twice(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: twice(each) for key, each in values.items()}
    return np.repeat(values, 2, 0)


def part(values: Any, which: Any) -> Any:
    if isinstance(values, dict):
        return {key: part(each, which) for key, each in values.items()}
    return None if values is None else values[which]


@pytest.mark.parametrize("mode", ["same_step", "disabled"])
@pytest.mark.parametrize("feed", FEEDS)
@settings(max_examples=examples(8), deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(1, 40), chunk=st.integers(1, 15),
       n_step=st.integers(1, 3), has_fields=st.booleans())  # fmt: skip
def test_rollouts_are_what_single_steps_would_be(
    feed: str, mode: str, seed: int, n: int, chunk: int, n_step: int, has_fields: bool
) -> None:
    setting = Setting(feed, 3, 20, 3, n_step, mode=mode, seed=seed, resets=900,
                      has_fields=has_fields)  # fmt: skip
    world, given_steps = recorded(setting, n)
    for start in range(0, n, chunk):
        *arguments, fields = (part(each, slice(start, start + chunk)) for each in given_steps)
        world.buffer.add_rollout(*arguments, fields=fields)
    if mode == "disabled" and feed == "indices":
        return  # whose oracle was told of resets that these rows do not show
    assert_same_content(world.buffer, world.oracle)
    assert_same_steps(world.buffer, world.oracle)


@pytest.mark.parametrize("feed", ["stacks", "newest", "dict"])
@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
def test_episodes(feed: str, mode: str) -> None:
    """A whole episode at a time, in one lane and then another."""
    setting = Setting(feed, 2, 30, 3, 2, mode=mode)
    world, rng = World(setting), np.random.default_rng(0)
    oracle = NaiveReplay(2, 30, n_step=2, gamma=0.9, autoreset_mode="disabled",
                         stack_size=3 if feed == "newest" else None)  # fmt: skip
    for episode in range(14):
        lane = int(rng.integers(2))
        length = int(rng.integers(1, 9))
        one = world.lanes[lane]
        one.reset()
        observations = [one.observation()]
        for _ in range(length):
            one.step(False)
            observations.append(one.observation())
        obs = stacked(observations)
        action, reward = rng.integers(-1, 4, length), rng.normal(size=length)
        terminated = bool(episode % 3)
        world.buffer.add_episode(obs, action, reward, terminated, lane=lane)
        oracle.cut(lane)
        for t in range(length):
            ends = t == length - 1
            rows = [part(obs, slice(k, k + 1)) for k in (t, t + 1)]
            both = [twice(each) for each in rows]
            oracle.add(both[0], [action[t]] * 2, [reward[t]] * 2, [ends and terminated] * 2,
                       [ends and not terminated] * 2, both[1], lanes=[lane])  # fmt: skip
        assert_same_content(world.buffer, oracle)
        assert_same_runs(world.buffer, oracle, 3, pad=True, burn_in=2)
    assert_same_steps(world.buffer, oracle)


def test_adding_goes_on_after_a_rollout() -> None:
    world, given_steps = recorded(Setting("stacks", 3, 20, 3, 2), 15)
    world.buffer.add_rollout(*given_steps[:-1])
    for _ in range(30):
        world.step(0.1, 0.1)
        assert_same_content(world.buffer, world.oracle)


@pytest.mark.parametrize("is_dict", [False, True])
def test_one_environment_without_a_leading_axis(is_dict: bool) -> None:
    """What a real environment's `step` gives, as it is, beside a buffer of one lane."""
    env = RandomFrames()
    spaces: Any = Dict({"image": FRAME, "speed": Box(-9, 9, (2,))}) if is_dict else FRAME
    one = ReplayBuffer(30, spaces, env.action_space, None, stack_size=2, n_step=2, seed=3,
                       fields=FIELDS)  # fmt: skip
    lane = ReplayBuffer(30, spaces, env.action_space, 1, stack_size=2, n_step=2, seed=3,
                        fields=FIELDS, autoreset_mode="disabled")  # fmt: skip
    assert one.autoreset_mode == "disabled"
    assert one.n_envs == 1

    def seen(obs: Any) -> Any:
        return {"image": obs, "speed": np.full(2, obs[0, 0], np.float32)} if is_dict else obs

    obs, _ = env.reset(seed=0)
    env.action_space.seed(0)
    for t in range(60):
        action = env.action_space.sample()
        next_obs, reward, terminated, truncated, info = env.step(action)
        fields = {"name": t, "pair": [t, -t]}
        one.add(seen(obs), action, reward, terminated, truncated, seen(next_obs), info,
                fields=fields)  # fmt: skip
        row = {key: np.asarray(value)[None] for key, value in fields.items()}
        before, after = ({key: v[None] for key, v in each.items()} if is_dict else each[None]
                         for each in (seen(obs), seen(next_obs)))  # fmt: skip
        lane.add(before, [action], [reward], [terminated], [truncated], after, fields=row)
        obs = next_obs
        if terminated or truncated:
            obs, _ = env.reset()
    one, lane = pickle.loads(pickle.dumps(one)), pickle.loads(pickle.dumps(lane))
    ours, theirs = one.sample(20), lane.sample(20)
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):
        for key in a if isinstance(a, dict) else (slice(None),):
            assert_same(np.array(a[key]), np.array(b[key]))
    assert (ours.fields["name"] == ours.index).all()
    episode: Any = np.zeros((5, 5, 6), np.uint8)
    if is_dict:
        episode = {"image": episode, "speed": np.zeros((5, 2), np.float32)}
    more = {"name": np.arange(60, 64), "pair": np.zeros((4, 2))}
    one.add_episode(episode, [0] * 4, [1.0] * 4, fields=more)
    assert len(one) == 30
    assert one[63].terminated == 1


def test_one_environment_behind_a_frame_stack() -> None:
    """Gymnasium's stacks, and indices instead of them, read by name and drawn."""
    stacks = gym.wrappers.FrameStackObservation(RandomFrames(), 3)
    indices = IndexedFrameStack(RandomFrames(), 3, capacity=200)
    buffers = [
        ReplayBuffer(40, env.observation_space, Discrete(4), None, frames=frames, seed=3)
        for env, frames in ((stacks, None), (indices, indices.frames))
    ]
    seen = []
    for env, buffer in zip((stacks, indices), buffers, strict=True):
        obs, _ = env.reset(seed=0)
        for t in range(100):
            next_obs, reward, terminated, truncated, info = env.step(t % 4)
            buffer.add(obs, t % 4, reward, terminated, truncated, next_obs, info)
            if env is stacks:
                seen.append((obs, next_obs, reward, terminated))
            obs = env.reset()[0] if terminated or truncated else next_obs
    for buffer in buffers:
        assert buffer.newest(100).tolist() == list(range(60, 100))
        for step, expected in zip(buffer, seen[60:], strict=True):
            for got, want in zip((step.obs, step.next_obs), expected[:2], strict=True):
                assert_same(np.array(got), np.array(want))
            assert (step.reward, step.terminated) == expected[2:]
    for a, b in zip(*(buffer.sample(40)[:-1] for buffer in buffers), strict=True):
        assert_same(np.array(a), np.array(b))


def test_accounts_of_a_ring() -> None:
    world = World(Setting("stacks", 2, 6))
    buffer = world.buffer
    assert (buffer.full, buffer.position.tolist()) == (False, [0, 0])
    assert list(buffer) == []
    assert buffer.newest(4).tolist() == []
    for _ in range(5):
        world.step(0, 0)
    assert (buffer.full, len(buffer), buffer.capacity) == (False, 10, 12)
    world.step(0, 0, lanes=[1])
    assert buffer.position.tolist() == [5, 6]
    for _ in range(3):
        world.step(0, 0)
    assert buffer.full
    assert buffer.newest(3).tolist() == [14, 15, 17]
    assert buffer.observation_space == Box(0, 255, (3, 3, 5), np.uint8)
    assert buffer.action_space == Discrete(5, start=-1)


def test_names_of_any_shape() -> None:
    world = World(Setting("dict", 2, 20, has_fields=True))
    for _ in range(15):
        world.step()
    names = np.array([[3, 8, 11], [20, 21, 3]])
    steps = world.buffer.get(names)
    assert steps.obs["image"].shape == (2, 3, 3, 3, 5)
    assert steps.next_obs["vector"].shape == (2, 3, 2)
    assert steps.fields["pair"].shape == (2, 3, 2)
    assert_same(steps.fields["name"], names)
    one = world.buffer[8]
    assert one.reward == steps.reward[0, 1]
    assert_same(one.obs["image"], np.array(steps.obs["image"][0, 1]))


def test_floats_are_rounded_as_stable_baselines3_does() -> None:
    buffer = ReplayBuffer(10, FRAME, Box(-1, 1, (2,), np.float32), None)
    frame = np.zeros((5, 6), np.uint8)
    action = np.array([0.1, -1 / 3])
    buffer.add(frame, action, 0.1, False, False, frame + 1)
    buffer.add(frame + 1, [1, 0], np.float64(2.5), False, False, frame + 2)  # a list, whole numbers
    assert_same(buffer[0].action, action.astype(np.float32))
    assert_same(buffer[1].action, np.array([1, 0], np.float32))
    assert buffer[0].reward == np.float32(0.1)


def test_tensors_lists_and_masks() -> None:
    torch = pytest.importorskip("torch")
    world = World(Setting("stacks", 3, 20))
    for _ in range(10):
        world.step()
    buffer = world.buffer
    names = torch.tensor([3, 4, 5])
    buffer.set_rewards(names, torch.tensor([1.0, 2.0, 3.0], requires_grad=True))
    assert buffer.get(names).reward.tolist() == [1, 2, 3]
    buffer.cut(np.array([True, False, True]))
    buffer.add(
        torch.zeros((2, 3, 3, 5), dtype=torch.uint8), torch.tensor([1, 2]), [0.5, 1],
        torch.tensor([False, True]), [False, False], np.ones((2, 3, 3, 5), np.uint8),
        {"final_obs": [np.zeros((3, 3, 5), np.uint8), np.ones((3, 3, 5), np.uint8)]},
        lanes=np.array([True, False, True]),
    )  # fmt: skip
    assert buffer.newest(2).tolist() == [30, 32]


def test_sequences_are_drawn_ahead() -> None:
    world = World(Setting("newest", 2, 60, 2, seed=4))
    for _ in range(50):
        world.step(0.05, 0.05)
    for how in ({}, {"pad": True, "burn_in": 2}, {"cross_episodes": True}):
        twins = [pickle.loads(pickle.dumps(world.buffer)) for _ in range(3)]
        ahead = [twin.sequences(6, 4, lookahead=2, thread=thread, **how)
                 for twin, thread in zip(twins[:2], (True, False), strict=True)]  # fmt: skip
        for _ in range(4):
            plain = twins[2].sample_sequences(6, 4, **how)
            for batches in ahead:
                for a, b in zip(next(batches)[:-1], plain[:-1], strict=True):
                    assert_same(np.array(a), np.array(b))
        for batches in ahead:
            batches.close()


def test_priorities_of_sequences_are_those_of_their_starts() -> None:
    world = World(Setting("stacks", 1, 200, prioritized=True))
    for _ in range(100):
        world.step(0, 0.02)
    buffer = world.buffer
    starts = sorted(world.oracle.runs(5))
    priorities = np.where(np.array(starts) % 10 == 0, 1000.0, 0.0)
    for known_before in (False, True):
        if known_before:
            buffer.sample_sequences(1, 5, prioritized=True)
        buffer.update_priorities(starts, priorities)
        batch = buffer.sample_sequences(300, 5, prioritized=True)
        assert np.mean(batch.index[:, 0] % 10 == 0) > 0.9
        assert batch.weight.max() == 1
        buffer.update_priorities(starts, np.ones(len(starts)))


# ---------------------------------------------------------------- bad input


def bad(call: Any, error: type[Exception], match: str, buffer: ReplayBuffer) -> None:
    """Assert that a call is refused, and that the buffer is as it was, bit for bit."""
    before = pickle.dumps(buffer)
    with pytest.raises(error, match=match):
        call()
    assert pickle.dumps(buffer) == before


def test_bad_input() -> None:
    world = World(Setting("stacks", 2, 10, has_fields=True, prioritized=True))
    for _ in range(25):
        world.step(0, 0)
    b = world.buffer
    obs, *rest = (world.given(), [0, 0], [0.0, 0.0], [False] * 2, [False] * 2, world.given() + 1)
    fields = {"name": [1, 2], "pair": np.zeros((2, 2))}
    for names, error, match in (
        (100, IndexError, "transition 100 was never added"),
        (-1, IndexError, "transition -1 was never added"),
        ([3, 49], IndexError, "transition 3 has left .* oldest one that lane 1 keeps is 31"),
        (0.5, TypeError, "index holds float64"),
    ):
        bad(lambda n=names: b.get(n), error, match, b)
        bad(lambda n=names: b[n], error, match, b)
    bad(lambda: b.set_rewards([40], [np.inf]), ValueError, "reward inf at position 0", b)
    bad(lambda: b.set_rewards([40], [1e39]), ValueError, "not finite as float32", b)
    bad(lambda: b.set_rewards([40, 41], [1.0]), ValueError, r"shape \(2,\), and rewards have", b)
    bad(lambda: b.set_rewards([400], [1.0]), IndexError, "transition 400 was never added", b)
    bad(lambda: b.newest(0), ValueError, "n=0 must be at least 1", b)
    for lanes, error, match in (
        ([0, 0], ValueError, "names a lane twice"),
        ([2], IndexError, "must be from 0 to 1"),
        ([0.0], TypeError, "a mask of 2 bools"),
        ([0], ValueError, "1 lanes need"),
    ):
        bad(lambda n=lanes: b.add(obs, *rest, fields=fields, lanes=n), error, match, b)
    for given_fields, error, match in (
        (None, TypeError, "must be a mapping with values for name, pair"),
        ({"name": [1, 2]}, ValueError, "each step needs all of them"),
        ({**fields, "more": 1}, ValueError, "built with 'name', 'pair'"),
        ({**fields, "pair": [0, 0]}, ValueError, r"fields\['pair'\] has shape \(2,\); 2 rows need"),
        ({**fields, "name": [0.5, 1]}, TypeError, r"fields\['name'\] has dtype float64"),
    ):
        bad(lambda f=given_fields: b.add(obs, *rest, fields=f), error, match, b)
    many = {"name": np.zeros((3, 2), int), "pair": np.zeros((3, 2, 2))}
    roll = [np.stack([each] * 3) for each in (obs, *rest)]
    cases: list[tuple[int, Any, type[Exception], str]] = [
        (0, roll[0][:2], ValueError, r"shape \(3, 2, 3, 3, 5\); it must begin with \(2, 2\)"),
        (1, roll[1] + 9, ValueError, "outside the action space"),
        (2, np.full((3, 2), np.nan), ValueError, "reward nan of step 0"),
        (3, roll[3].astype(int), TypeError, "terminated has dtype int64"),
        (5, roll[5][:, :1], ValueError, "next_obs has shape"),
        (5, roll[5].astype(np.int16), TypeError, "next_obs has dtype int16"),
    ]
    for place, value, error, match in cases:
        given_steps = [value if k == place else each for k, each in enumerate(roll)]
        bad(lambda g=given_steps: b.add_rollout(*g, fields=many), error, match, b)
    bad(lambda: b.add_episode(obs[:1], [], []), ValueError, "an episode of one step has two", b)
    bad(lambda: b.sample_sequences(2, 2, cross_episodes=True, pad=True), ValueError,
        "leave the others out", b)  # fmt: skip
    bad(lambda: b.sample_sequences(2, 2, burn_in=-1), ValueError, "burn_in=-1", b)
    bad(lambda: b.sequences(2, 11), ValueError, "length=11 is more than the 10", b)


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="with n_envs=None you reset the environment yourself"):
        ReplayBuffer(10, FRAME, Discrete(2), None, autoreset_mode="same_step")
    with pytest.raises(TypeError, match="must be a mapping of names to spaces"):
        ReplayBuffer(10, FRAME, Discrete(2), fields=["log_prob"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"fields\['log_prob'\]=3 must be a space"):
        ReplayBuffer(10, FRAME, Discrete(2), fields={"log_prob": 3})
    one = ReplayBuffer(10, FRAME, Discrete(2), None)
    frame = np.zeros((5, 6), np.uint8)
    with pytest.raises(ValueError, match="has no lanes"):
        one.add(frame, 0, 0.0, False, False, frame + 1, lanes=[0])
    with pytest.raises(ValueError, match="this buffer has no priorities"):
        one.sample_sequences(1, 1, prioritized=True)
    with pytest.raises(ValueError, match="built with none"):
        one.add(frame, 0, 0.0, False, False, frame + 1, fields={"log_prob": 0.0})
    assert len(one) == 0
