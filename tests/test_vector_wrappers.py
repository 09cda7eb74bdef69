"""``wrappers.vector.IndexedFrameStack`` beside ``FrameStackObservation`` and ALE's own stacking."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Dict, MultiBinary
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers import FrameStackObservation
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from compressarray import DiffFrameArray, FrameEvictedError
from tests.gym_envs import GRID_WORLDS, Play, Ramp, Replay, atari, ramp_dict
from tests.naive import assert_same
from tests.test_wrappers import HIGHEST, PADDINGS, Odd, custom_padding
from wrappers import IndexedFrameStack as SingleIndexedFrameStack
from wrappers.vector import IndexedFrameStack

EnvFn = Callable[[], gym.Env]
MODES = list(AutoresetMode)
SAME_STEP = AutoresetMode.SAME_STEP


def stacked(make: EnvFn, stack_size: int, padding_type: Any) -> gym.Env:
    return FrameStackObservation(make(), stack_size, padding_type=padding_type)


def both(
    makes: Sequence[EnvFn], mode: AutoresetMode, padding: str, stack_size: int = 4, **kwargs: Any
) -> tuple[IndexedFrameStack, SyncVectorEnv]:
    """Build our wrapper outside a vector environment, and Gymnasium's inside an equal one."""
    env = SyncVectorEnv(makes, autoreset_mode=mode)
    padding_type = custom_padding(env.single_observation_space, padding)
    ours = IndexedFrameStack(env, stack_size, padding_type=padding_type, **kwargs)
    inside = [partial(stacked, make, stack_size, padding_type) for make in makes]
    return ours, SyncVectorEnv(inside, autoreset_mode=mode)


def drive(
    envs: VectorEnv, mode: AutoresetMode, steps: int, reset_running: bool = False
) -> Iterator[tuple[Any, ...]]:
    """Play at random; yield the answers to every reset and step.

    Under DISABLED the lanes that ended are reset by mask, and with `reset_running`, in any mode, a
    lane that still runs is now and then reset too.
    """
    rng = np.random.default_rng(1)
    lanes = np.arange(envs.num_envs)
    yield envs.reset(seed=3)
    for step in range(steps):
        answer = envs.step(rng.integers(envs.single_action_space.n, size=envs.num_envs))
        yield answer
        mask = answer[2] | answer[3] if mode is AutoresetMode.DISABLED else lanes < 0
        if reset_running and step % 20 == 13:
            mask = mask | (lanes == step % envs.num_envs)
        if mask.any():
            yield envs.reset(options={"reset_mask": mask})


def compare(
    ours: IndexedFrameStack, theirs: VectorEnv, *, steps: int, reset_running: bool = False
) -> np.ndarray:
    """Drive both alike and compare everything; return how many episodes each lane ended."""
    ends = np.zeros(ours.num_envs, int)
    both = (drive(envs, ours.autoreset_mode, steps, reset_running) for envs in (ours, theirs))
    for (obs, *outcome, infos), (expected, *expected_outcome, expected_infos) in zip(
        *both, strict=True
    ):
        assert obs in ours.observation_space
        assert_same(ours.frames.gather(obs), expected)
        for got, wanted in zip(outcome, expected_outcome, strict=True):
            assert_same(got, wanted)
        ended = outcome[1] | outcome[2] if outcome else np.zeros_like(ends)
        ends += ended
        assert infos.keys() == expected_infos.keys()
        assert ("final_obs" in infos) == (ours.autoreset_mode is SAME_STEP and ended.any())
        if "final_obs" in infos:
            compare_final(ours, infos, expected_infos, ended)
    return ends


def compare_final(
    ours: IndexedFrameStack, infos: dict, expected_infos: dict, ended: np.ndarray
) -> None:
    """Compare ``final_obs`` in the form of Gymnasium: objects under a mask."""
    assert infos["final_obs"].dtype == object
    assert_same(infos["_final_obs"], expected_infos["_final_obs"])
    assert_same(infos["_final_obs"], ended)
    rows = zip(infos["final_obs"], expected_infos["final_obs"], ended, strict=True)
    for indices, expected, present in rows:
        if present:
            assert indices in ours.single_observation_space
            assert_same(ours.frames.gather(indices), expected)
        else:
            assert indices is None


@pytest.fixture(scope="module", params=MODES)
def game(request: pytest.FixtureRequest) -> tuple[AutoresetMode, list[Play]]:
    """Play 400 steps in three lanes whose episodes end early, at a lost life, and at either."""
    plays = [
        Play(atari(time_limit=11)),
        Play(atari(episodic_life=True)),
        Play(atari(time_limit=37, episodic_life=True)),
    ]
    envs = SyncVectorEnv([lambda play=play: play for play in plays], autoreset_mode=request.param)
    deque(drive(envs, request.param, 400, reset_running=True), maxlen=0)
    return request.param, plays


@pytest.mark.parametrize("padding", PADDINGS)
def test_real_games(game: tuple[AutoresetMode, list[Play]], padding: str) -> None:
    mode, plays = game
    ours, theirs = both([partial(Replay, play) for play in plays], mode, padding, capacity=60)
    ends = compare(ours, theirs, steps=400, reset_running=True)
    assert ends[0] >= 30
    assert ends.min() >= 5
    assert ours.frames.lane_counts.min() > 6 * 60


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_vector_observation(mode: AutoresetMode, padding: str) -> None:
    makes = [partial(gym.make, "CartPole-v1", max_episode_steps=limit) for limit in (9, 19, 500)]
    ours, theirs = both(makes, mode, padding, stack_size=3, capacity=40)
    assert compare(ours, theirs, steps=120, reset_running=True).min() >= 3
    assert ours.frames.shape == (40, 3, 4)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", GRID_WORLDS)
def test_discrete_observation(name: str, mode: AutoresetMode, padding: str) -> None:
    makes = [partial(gym.make, name, max_episode_steps=limit) for limit in (1, 4, 9)]
    ours, theirs = both(makes, mode, padding, stack_size=3, capacity=40)
    assert compare(ours, theirs, steps=60).min() >= 5
    assert ours.frames.shape == (40, 3)


def test_rgb_observation() -> None:
    makes = [partial(atari, rgb=True, time_limit=limit) for limit in (5, 8)]
    ours, theirs = both(makes, SAME_STEP, "reset", capacity=30)
    assert compare(ours, theirs, steps=30).min() >= 3
    assert ours.frames.shape == (30, 2, 42, 40, 3)


@pytest.mark.parametrize("mode", MODES)
def test_episodes_of_one_step(mode: AutoresetMode) -> None:
    makes = [partial(Ramp, [0.0], [9.0], length=length) for length in (1, 2)]
    ours, theirs = both(makes, mode, "reset", stack_size=3, capacity=30)
    assert compare(ours, theirs, steps=20).min() >= 6


def test_zero_padding_follows_each_lane_s_own_bounds() -> None:
    makes = [partial(Ramp, [low], [9.0], start=3.0) for low in (1.0, 2.0, -1.0)]
    inside = [partial(stacked, make, 3, "zero") for make in makes]
    ours = IndexedFrameStack(SyncVectorEnv(makes, observation_mode="different"), 3, 30, "zero")
    compare(ours, SyncVectorEnv(inside, observation_mode="different"), steps=12)


def test_gymnasium_s_own_vector_environment() -> None:
    envs = gym.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point")
    plain = gym.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point")
    ours = IndexedFrameStack(envs, 3, 200)
    obs, _ = ours.reset(seed=5)
    newest, _ = plain.reset(seed=5)
    expected = np.repeat(newest[:, None], 3, axis=1)
    ended = np.zeros(4, bool)
    ends = 0
    for step in range(150):
        assert_same(ours.frames.gather(obs), expected)
        actions = np.random.default_rng(step).integers(2, size=4)
        obs, *_ = ours.step(actions)
        newest, _, terminated, truncated, _ = plain.step(actions)
        expected = np.concatenate([expected[:, 1:], newest[:, None]], axis=1)
        expected[ended] = newest[ended, None]
        ended = terminated | truncated
        ends += ended.sum()
    assert ends >= 12


@pytest.mark.parametrize("mode", MODES)
def test_outside_of_processes(mode: AutoresetMode) -> None:
    makes = [partial(gym.make, "CartPole-v1", max_episode_steps=limit) for limit in (6, 9)]
    env = AsyncVectorEnv(makes, autoreset_mode=mode, context="spawn", copy=False)
    ours = IndexedFrameStack(env, 3, 60)
    inside = [partial(stacked, make, 3, "reset") for make in makes]
    try:
        ends = compare(ours, SyncVectorEnv(inside, autoreset_mode=mode), steps=40)
    finally:
        ours.close()
    assert ends.min() >= 4


def ale(game: str, mode: AutoresetMode, stack_num: int, **kwargs: Any) -> AtariVectorEnv:
    return AtariVectorEnv(
        game,
        num_envs=3,
        num_threads=1,
        img_height=42,
        img_width=42,
        stack_num=stack_num,
        autoreset_mode=mode,
        **kwargs,
    )


# 0.12.0 takes a mask, and then waits for ever for the lanes that it leaves out.
ALE_RESETS_BY_MASK = version("ale-py") != "0.12.0"

# What to build, and for how many steps of each lane.
ALE_SETTINGS: dict[str, tuple[dict[str, Any], int]] = {
    "sticky actions": (
        {"repeat_action_probability": 0.25, "max_num_frames_per_episode": 200},
        150,
    ),
    "episodic life": ({"episodic_life": True}, 120),
    "life loss": ({"life_loss_info": True, "max_num_frames_per_episode": 700}, 250),
    "life loss, short": ({"life_loss_info": True, "max_num_frames_per_episode": 150}, 120),
    "shorter than no-ops": ({"max_num_frames_per_episode": 12, "use_fire_reset": False}, 30),
}


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, SAME_STEP])
@pytest.mark.parametrize("setting", ALE_SETTINGS)
def test_ale_s_own_stacking(setting: str, mode: AutoresetMode) -> None:
    kwargs, steps = ALE_SETTINGS[setting]
    theirs = ale("breakout", mode, 4, **kwargs)
    ours = IndexedFrameStack(ale("breakout", mode, 1, **kwargs), 4, 200, "zero", squeeze=True)
    assert ours.frames.shape == (200, 3, 42, 42)
    rng = np.random.default_rng(4)

    def check(obs: np.ndarray, expected: np.ndarray) -> None:
        assert_same(ours.frames.gather(obs), expected)

    obs, infos = ours.reset(seed=11)
    expected, _ = theirs.reset(seed=11)
    check(obs, expected)
    ends = restarts = unseen = 0
    began = infos["frame_number"] - infos["episode_frame_number"]
    for step in range(steps):
        number = infos["episode_frame_number"]
        actions = rng.integers(theirs.single_action_space.n, size=3)
        obs, *outcome, infos = ours.step(actions)
        expected, *expected_outcome, expected_infos = theirs.step(actions)
        check(obs, expected)
        for got, wanted in zip(outcome, expected_outcome, strict=True):
            assert_same(got, wanted)
        ended = outcome[1] | outcome[2]
        restarted = infos["frame_number"] - infos["episode_frame_number"] != began
        began = infos["frame_number"] - infos["episode_frame_number"]
        ends += ended.sum()
        restarts += restarted.sum()
        unseen += (restarted & (infos["episode_frame_number"] >= number)).sum()
        if mode is SAME_STEP and ended.any():
            final_obs = infos["final_obs"]
            assert final_obs in ours.observation_space
            rows = ours.frames.gather(final_obs)
            assert_same(rows[restarted], expected_infos["final_obs"][restarted])
            assert_same(final_obs[~restarted], obs[~restarted])
        else:
            assert "final_obs" not in infos
        if step % 30 == 20 and ALE_RESETS_BY_MASK:
            mask = np.array([True, step == 20, False])
            obs, infos = ours.reset(options={"reset_mask": mask.copy()})
            expected, _ = theirs.reset(options={"reset_mask": mask.copy()})
            check(obs, expected)
            began = infos["frame_number"] - infos["episode_frame_number"]
    assert restarts >= 2
    assert (ends > restarts + 4) == ("life loss" in setting)
    assert (unseen > 0) == (setting == "shorter than no-ops")


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_squeeze_leaves_out_axes_of_length_one(mode: AutoresetMode, padding: str) -> None:
    makes = [partial(Ramp, [[[0.0], [2.0]]], [[[9.0], [7.0]]], 2.0, length) for length in (2, 3)]
    plain, _ = both(makes, mode, padding, capacity=20)
    squeezed, _ = both(makes, mode, padding, capacity=20, squeeze=True)
    assert plain.frames.shape == (20, 2, 1, 2, 1)
    assert squeezed.frames.shape == (20, 2, 2)
    answers = (drive(envs, mode, 10, reset_running=True) for envs in (plain, squeezed))
    for (obs, *_, infos), (again, *_, again_infos) in zip(*answers, strict=True):
        assert_same(again, obs)
        assert_same(squeezed.frames.gather(again), plain.frames.gather(obs)[:, :, 0, :, 0])
        for lane in np.flatnonzero(infos.get("_final_obs", ())):
            final = squeezed.frames.gather(again_infos["final_obs"][lane])
            assert_same(final, plain.frames.gather(infos["final_obs"][lane])[:, 0, :, 0])


def test_ale_s_mode_is_its_own_not_that_of_the_shared_metadata() -> None:
    env = ale("pong", SAME_STEP, 1)
    ale("pong", AutoresetMode.NEXT_STEP, 1)
    assert IndexedFrameStack(env, 4, 10).autoreset_mode is SAME_STEP


def test_a_part_of_ale_s_lanes_at_a_time_is_refused() -> None:
    env = ale("pong", AutoresetMode.NEXT_STEP, 1, batch_size=2)
    with pytest.raises(ValueError, match=r"each of the 3 lanes.*batch_size < num_envs"):
        IndexedFrameStack(env, 4, 10)


@pytest.mark.parametrize("mode", MODES)
def test_a_dict_observation_keeps_its_other_entries(mode: AutoresetMode) -> None:
    makes = [partial(ramp_dict, length) for length in (4, 6)]
    inside = [partial(stacked, make, 3, "reset") for make in makes]
    env = IndexedFrameStack(SyncVectorEnv(makes, autoreset_mode=mode), 3, 50, key="image")
    plain = SyncVectorEnv(makes, autoreset_mode=mode)
    stacks = SyncVectorEnv(inside, autoreset_mode=mode)
    assert isinstance(env.observation_space, Dict)
    assert list(env.observation_space) == list(plain.observation_space)
    assert env.observation_space["row"] == plain.observation_space["row"]

    finals = 0
    answers = (drive(each, mode, 20) for each in (env, plain, stacks))
    for (obs, *_, infos), (expected, *_, plain_infos), (stack, *_, stack_infos) in zip(
        *answers, strict=True
    ):
        assert obs in env.observation_space
        assert_same(env.frames.gather(obs["image"]), stack["image"])
        assert_same(obs["row"], expected["row"])
        assert_same(obs["step"], np.full(2, 7))
        for lane in np.flatnonzero(infos.get("_final_obs", ())):
            final = infos["final_obs"][lane]
            assert final in env.single_observation_space
            assert_same(env.frames.gather(final["image"]), stack_infos["final_obs"][lane]["image"])
            assert_same(final["row"], plain_infos["final_obs"][lane]["row"])
            finals += 1
    assert finals == (8 if mode is SAME_STEP else 0)


def test_the_infos_of_the_environment_are_left_alone() -> None:
    class Keep(VectorWrapper):
        def step(self, actions: Any) -> Any:
            self.result = self.env.step(actions)
            return self.result

    keep = Keep(SyncVectorEnv([partial(Ramp, [0.0], [9.0], length=1)], autoreset_mode=SAME_STEP))
    env = IndexedFrameStack(keep, 3, 20)
    env.reset(seed=0)
    *_, infos = env.step(np.zeros(1, int))
    assert_same(infos["final_obs"][0], np.array([0, 0, 1]))
    assert_same(keep.result[-1]["final_obs"][0], np.full(1, 0.5, np.float32))


def ramps(mode: AutoresetMode = AutoresetMode.NEXT_STEP, *lengths: int) -> SyncVectorEnv:
    lengths = lengths or (5, 5)
    makes = [partial(Ramp, [0.0], [99.0], length=length) for length in lengths]
    return SyncVectorEnv(makes, autoreset_mode=mode)


ACTIONS = np.zeros(2, int)


def test_emitted_arrays_are_fresh() -> None:
    env = IndexedFrameStack(ramps(SAME_STEP, 3, 4), 3, 50)
    obs, _ = env.reset(seed=1)
    emitted = [obs]
    for _ in range(6):
        obs, *_, infos = env.step(ACTIONS)
        emitted += [final for final in infos.get("final_obs", ()) if final is not None]
        emitted.append(obs)
    assert len(emitted) == 1 + 6 + 3
    for i, array in enumerate(emitted):
        assert not any(np.shares_memory(array, other) for other in emitted[:i])
    before = obs.copy()
    for array in emitted:
        array += 1000
    after, *_ = env.step(ACTIONS)
    assert_same(after[:, :2], before[:, 1:])


def test_a_seed_begins_a_new_stream_and_none_goes_on_counting() -> None:
    env = IndexedFrameStack(ramps(), 2, 50)
    obs, _ = env.reset(seed=1)
    assert_same(obs, np.array([[0, 0], [1, 1]]))
    stream = env.frames.stream
    assert_same(env.reset()[0], np.array([[2, 2], [3, 3]]))
    assert_same(env.reset(seed=[None, None])[0], np.array([[4, 4], [5, 5]]))
    assert env.frames.stream == stream
    env.frames.gather(obs)

    assert_same(env.reset(seed=[None, 3])[0], np.array([[0, 0], [1, 1]]))
    assert env.frames.stream != stream
    stream = env.frames.stream
    assert_same(env.reset(seed=1)[0], np.array([[0, 0], [1, 1]]))
    assert env.frames.stream != stream


def test_an_array_of_seeds_begins_a_new_stream() -> None:
    env = IndexedFrameStack(ale("pong", AutoresetMode.NEXT_STEP, 1), 2, 50)
    env.reset(seed=1)
    stream = env.frames.stream
    env.reset(seed=np.arange(3))
    assert env.frames.stream != stream


@pytest.mark.parametrize("seed", [None, 4])
def test_a_reset_by_mask_goes_on_counting_in_the_lanes_of_the_mask(seed: int | None) -> None:
    env = IndexedFrameStack(ramps(), 2, 50)
    first, _ = env.reset(seed=1)
    second, *_ = env.step(ACTIONS)
    assert_same(second, np.array([[0, 2], [1, 3]]))
    stream = env.frames.stream
    mask = np.array([False, True])
    obs, _ = env.reset(seed=seed, options={"reset_mask": mask})
    assert_same(obs, np.array([[0, 2], [5, 5]]))
    assert_same(env.frames.lane_counts, np.array([2, 3]))
    assert env.frames.stream == stream
    env.frames.gather(np.stack([first, second]))
    obs, *_ = env.step(ACTIONS)
    assert_same(obs, np.array([[2, 4], [5, 7]]))


def test_the_first_reset_must_reset_every_lane() -> None:
    class Tolerant(VectorEnv):
        """Answers any reset with zeros."""

        num_envs = 2

        def __init__(self) -> None:
            self.single_observation_space = Box(0, 1, (1,), np.float32)
            self.observation_space = Box(0, 1, (2, 1), np.float32)
            self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}

        def reset(self, **kwargs: Any) -> Any:
            return np.zeros((2, 1), np.float32), {}

    env = IndexedFrameStack(Tolerant(), 2, 50)
    with pytest.raises(ResetNeeded, match="first reset must reset every lane"):
        env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ResetNeeded):
        env.step(ACTIONS)
    env.reset(options={"reset_mask": np.array([True, True])})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stack_size", [1, 3])
def test_the_smallest_capacity_still_holds_what_a_step_emits(
    mode: AutoresetMode, stack_size: int
) -> None:
    least = stack_size + (mode is SAME_STEP)
    makes = [partial(Ramp, [0.0], [9.0], length=length) for length in (1, 6)]
    ours, theirs = both(makes, mode, "reset", stack_size=stack_size, capacity=least)
    assert compare(ours, theirs, steps=40).min() >= 5
    message = rf"capacity={least - 1} .*at least {least}: .*stack_size={stack_size}.*or more"
    with pytest.raises(ValueError, match=message):
        both(makes, mode, "reset", stack_size=stack_size, capacity=least - 1)


@pytest.mark.parametrize("lengths", [(1, 1), (1, 4), (7, 2)])
def test_capacity_2t_plus_stack_holds_the_last_t_steps(lengths: tuple[int, int]) -> None:
    last_steps, stack_size = 10, 3
    capacity = 2 * last_steps + stack_size
    env = IndexedFrameStack(ramps(SAME_STEP, *lengths), stack_size, capacity)
    kept = [[env.reset(seed=0)[0]]]
    for _ in range(60):
        obs, *_, infos = env.step(ACTIONS)
        finals = [final for final in infos.get("final_obs", ()) if final is not None]
        kept = [*kept, [obs, *finals]][-last_steps:]
        for stacks in kept:
            for stack in stacks:
                env.frames.gather(stack)
    if lengths == (1, 1):  # and no smaller capacity would do for episodes of one step
        oldest = env.frames.lane_counts[0] - capacity
        with pytest.raises(FrameEvictedError):
            env.frames.gather(np.array([2 * (oldest - 1)]))


def test_observation_spaces() -> None:
    env = IndexedFrameStack(ramps(), 3, 50)
    assert env.single_observation_space == Box(0, HIGHEST, (3,), np.int64)
    assert env.observation_space == Box(0, HIGHEST, (2, 3), np.int64)
    assert env.observation_space.sample() in env.observation_space


def test_it_is_a_vector_wrapper_with_recorded_arguments() -> None:
    env = IndexedFrameStack(ramps(), np.int64(3), 50, np.array([2.5], np.float32), codec="raw")
    assert isinstance(env, VectorWrapper)
    assert isinstance(env.frames, DiffFrameArray)
    assert env._saved_kwargs == {
        "stack_size": 3,
        "capacity": 50,
        "padding_type": [2.5],
        "codec": "raw",
        "gop_length": None,
        "key": None,
        "squeeze": False,
    }
    twin = IndexedFrameStack(ramps(), **env._saved_kwargs)
    obs, expected = twin.reset(seed=1)[0], env.reset(seed=1)[0]
    assert_same(obs, expected)
    assert_same(twin.frames.gather(obs), env.frames.gather(expected))
    assert_same(env.frames.gather(obs)[0, 0], np.array([2.5], np.float32))


@pytest.mark.parametrize("outer", [RecordEpisodeStatistics, DictInfoToList])
def test_outer_wrappers_work(outer: type[VectorWrapper]) -> None:
    env = outer(IndexedFrameStack(ramps(SAME_STEP, 2, 3), 3, 50))
    env.reset(seed=1)
    env.step(ACTIONS)
    obs, *_, infos = env.step(ACTIONS)
    assert obs in env.observation_space
    final_obs = infos[0]["final_obs"] if outer is DictInfoToList else infos["final_obs"][0]
    assert_same(final_obs, np.array([0, 2, 4]))


def test_pickle_goes_on_as_the_original() -> None:
    env = IndexedFrameStack(ramps(AutoresetMode.NEXT_STEP, 3, 4), 3, 50, "zero")
    env.reset(seed=1)
    for _ in range(3):
        env.step(ACTIONS)
    twin = pickle.loads(pickle.dumps(env))
    for _ in range(6):
        obs, *_ = env.step(ACTIONS)
        again, *_ = twin.step(ACTIONS)
        assert_same(again, obs)
        assert_same(twin.frames.gather(again), env.frames.gather(obs))


class Silent(VectorWrapper):
    """Hides how the environment resets."""

    unwrapped = None
    metadata = MappingProxyType({})


def test_an_environment_that_does_not_say_its_mode_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="does not say its autoreset mode"):
        env = IndexedFrameStack(Silent(ramps()), 3, 50)
    assert env.autoreset_mode is AutoresetMode.NEXT_STEP


def test_the_single_wrapper_inside_is_refused() -> None:
    makes = [lambda: SingleIndexedFrameStack(Ramp([0.0], [9.0]), 3, 20)]
    with pytest.raises(ValueError, match="frame indices already"):
        IndexedFrameStack(SyncVectorEnv(makes), 3, 50)


def test_a_single_environment_is_sent_to_the_single_wrapper() -> None:
    with pytest.raises(TypeError, match=r"use wrappers\.IndexedFrameStack"):
        IndexedFrameStack(Ramp([0.0], [9.0]))


@pytest.mark.parametrize(
    ("make", "kwargs", "error", "message"),
    [
        (partial(Odd, MultiBinary(3)), {}, TypeError, r"MultiBinary\(3\)"),
        (partial(ramp_dict, 3), {}, TypeError, "Pass key=.*'image'"),
        (partial(ramp_dict, 3), {"key": "picture"}, ValueError, "key='picture'"),
        (partial(Ramp, [0], [9]), {"key": "image"}, ValueError, "key='image'.*Leave key out"),
        (partial(Ramp, [0], [9]), {"stack_size": 0}, ValueError, "stack_size=0"),
        (partial(Ramp, [0], [9]), {"capacity": 2.0}, TypeError, "capacity=2.0"),
        (partial(Ramp, [0], [9]), {"padding_type": [10.0]}, ValueError, r"frame in Box"),
        (partial(Ramp, [0], [9]), {"padding_type": "zeros"}, ValueError, "padding_type='zeros'"),
    ],
)
def test_what_does_not_fit_is_refused(
    make: EnvFn, kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        IndexedFrameStack(SyncVectorEnv([make]), **{"capacity": 50, **kwargs})
