"""``wrappers.IndexedFrameStack`` beside ``gymnasium.wrappers.FrameStackObservation``."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
import re
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Tuple
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FrameStackObservation, RecordEpisodeStatistics, TransformObservation

from compressarray import DiffFrameArray, FrameEvictedError, StaleStreamError
from tests.gym_envs import GRID_WORLDS, Play, Ramp, Replay, atari, ramp_dict
from tests.naive import assert_same
from wrappers import IndexedFrameStack
from wrappers import _indexed as shared

HIGHEST = 2**63 - 2
PADDINGS = ["reset", "zero", "custom"]


def custom_padding(space: gym.Space, padding: str) -> Any:
    """Return a frame that no environment emits, or the name of another padding."""
    if padding != "custom":
        return padding
    space.seed(5)
    return space.sample()


def drive(env: gym.Env, steps: int, reseed_every: int | None = None) -> Iterator[tuple[Any, ...]]:
    """Play at random and reset what ended; yield the answers to every reset and step."""
    rng = np.random.default_rng(3)
    ends = 0
    yield env.reset(seed=3)
    for _ in range(steps):
        answer = env.step(int(rng.integers(env.action_space.n)))
        yield answer
        if answer[2] or answer[3]:
            ends += 1
            reseed = reseed_every is not None and ends % reseed_every == 0
            yield env.reset(seed=ends if reseed else None)


def compare(
    make: Callable[[], gym.Env],
    padding: str,
    *,
    steps: int,
    stack_size: int = 4,
    reseed_every: int | None = None,
    **kwargs: Any,
) -> tuple[IndexedFrameStack, int]:
    """Drive both wrappers alike and compare every stack; return ours and how many resets it saw."""
    env = make()
    padding_type = custom_padding(env.observation_space, padding)
    ours = IndexedFrameStack(env, stack_size, padding_type=padding_type, **kwargs)
    theirs = FrameStackObservation(make(), stack_size, padding_type=padding_type)
    both = (drive(env, steps, reseed_every) for env in (ours, theirs))
    resets = 0
    for (obs, *outcome, _), (expected, *expected_outcome, _) in zip(*both, strict=True):
        assert obs in ours.observation_space
        assert_same(ours.frames.gather(obs), expected)
        assert outcome == expected_outcome
        resets += not outcome
    return ours, resets


STEPS = 1000


@pytest.fixture(scope="module", params=[("Breakout", 23, True, 10), ("Pong", 150, False, 3)])
def game(request: pytest.FixtureRequest) -> tuple[Play, int]:
    """Play one game of many short lives, and one of a few longer episodes."""
    name, time_limit, episodic_life, reseed_every = request.param
    play = Play(atari(name, time_limit=time_limit, episodic_life=episodic_life))
    deque(drive(play, STEPS, reseed_every), maxlen=0)
    return play, reseed_every


@pytest.mark.parametrize("capacity", [20, 250])
@pytest.mark.parametrize("padding", PADDINGS)
def test_real_games(game: tuple[Play, int], padding: str, capacity: int) -> None:
    play, reseed_every = game
    ours, resets = compare(
        partial(Replay, play), padding, steps=STEPS, capacity=capacity, reseed_every=reseed_every
    )
    assert resets >= 2 * reseed_every
    assert ours.frames.stream >= 3
    assert ours.frames.lane_counts[0] > 4 * 20


@pytest.mark.parametrize("codec", ["raw", "sparse", "delta-huffman", {"id": "lz4"}])
def test_every_codec(game: tuple[Play, int], codec: Any) -> None:
    if isinstance(codec, dict):
        pytest.importorskip("numcodecs")
    play, reseed_every = game
    make = partial(Replay, play)
    compare(make, "zero", steps=500, capacity=30, reseed_every=reseed_every, codec=codec)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("stack_size", [1, 2, 5])
def test_vector_observation(padding: str, stack_size: int) -> None:
    make = partial(gym.make, "CartPole-v1", max_episode_steps=30)
    ours, resets = compare(make, padding, steps=200, stack_size=stack_size, capacity=64)
    assert resets >= 5
    assert ours.frames.shape == (64, 4)
    assert ours.frames.dtype == np.float32


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", GRID_WORLDS)
def test_discrete_observation(name: str, padding: str) -> None:
    make = partial(gym.make, name, max_episode_steps=30)
    ours, resets = compare(make, padding, steps=300, capacity=64)
    assert resets >= 8
    assert ours.frames.shape == (64,)


@pytest.mark.parametrize("padding", PADDINGS)
def test_rgb_observation(padding: str) -> None:
    ours, resets = compare(partial(atari, rgb=True, time_limit=7), padding, steps=60, capacity=50)
    assert resets >= 5
    assert ours.frames.shape == (50, 42, 40, 3)
    assert ours.frames.frame_ndim == 3


@pytest.mark.parametrize(
    ("low", "high"), [([1.5, -3.0], [9.0, -2.0]), ([-np.inf, 0.0], [np.inf, 9.0])]
)
def test_zero_padding_is_the_frame_of_the_space_nearest_to_zero(low: Any, high: Any) -> None:
    compare(partial(Ramp, low, high, start=2.0), "zero", steps=20, capacity=20)


@pytest.mark.parametrize("padding", PADDINGS)
def test_observations_are_cast_as_gymnasium_casts_them(padding: str) -> None:
    def make() -> gym.Env:
        space = Box(-9.0, 9.0, (2,), np.float32)
        return TransformObservation(Ramp([0, 0], [9, 9]), lambda obs: obs.astype(float) / 3, space)

    compare(make, padding, steps=20, capacity=20)


def test_observations_that_a_cast_would_change_are_refused() -> None:
    space = Box(0, 9, (2,), np.uint8)
    env = TransformObservation(Ramp([0, 0], [9, 9]), lambda obs: obs, space)
    with pytest.raises(TypeError, match=r"float32.*uint8"):
        FrameStackObservation(env, 2).reset()
    with pytest.raises(TypeError, match=r"float32.*uint8"):
        IndexedFrameStack(env, 2, 10).reset()


@pytest.mark.parametrize("padding_type", ["reset", "zero", [[[3.0], [4.0]]]])
def test_squeeze_leaves_out_axes_of_length_one(padding_type: Any) -> None:
    make = partial(Ramp, [[[0.0], [2.0]]], [[[9.0], [7.0]]])
    plain = IndexedFrameStack(make(), 3, 20, padding_type)
    squeezed = IndexedFrameStack(make(), 3, 20, padding_type, squeeze=True)
    assert plain.frames.shape == (20, 1, 2, 1)
    assert squeezed.frames.shape == (20, 2)
    for (obs, *_), (again, *_) in zip(drive(plain, 9), drive(squeezed, 9), strict=True):
        assert_same(again, obs)
        assert_same(squeezed.frames.gather(again), plain.frames.gather(obs)[:, 0, :, 0])


def test_a_dict_observation_keeps_its_other_entries() -> None:
    env = IndexedFrameStack(ramp_dict(5), 3, capacity=50, key="image")
    plain = ramp_dict(5)
    stacked = FrameStackObservation(ramp_dict(5), 3)

    assert isinstance(env.observation_space, Dict)
    assert list(env.observation_space) == list(plain.observation_space)
    assert env.observation_space["row"] == plain.observation_space["row"]
    answers = (drive(each, 12) for each in (env, plain, stacked))
    for (obs, *_), (expected, *_), (stacks, *_) in zip(*answers, strict=True):
        assert obs in env.observation_space
        assert_same(env.frames.gather(obs["image"]), stacks["image"])
        assert_same(obs["row"], expected["row"])
        assert obs["step"] == 7


def test_reset_padding_repeats_one_index() -> None:
    env = IndexedFrameStack(Ramp([0.0], [9.0]), 4, capacity=20)
    obs, _ = env.reset(seed=0)
    assert_same(obs, np.zeros(4, np.int64))
    obs, *_ = env.step(0)
    assert_same(obs, np.array([0, 0, 0, 1]))


@pytest.mark.parametrize("padding_type", ["zero", [2.5]])
def test_other_padding_is_pinned_inside_the_space_and_never_evicted(padding_type: Any) -> None:
    env = IndexedFrameStack(Ramp([0.0], [99.0], length=90), 4, 8, padding_type)
    first, _ = env.reset(seed=0)
    assert_same(first, np.array([HIGHEST, HIGHEST, HIGHEST, 0]))
    assert first in env.observation_space
    for _ in range(50):
        env.step(0)
    env.reset()
    env.reset(seed=1)
    padding = np.float32(0.0 if padding_type == "zero" else 2.5)
    assert_same(env.frames.gather(first[:3]), np.full((3, 1), padding))


def test_emitted_arrays_are_fresh() -> None:
    env = IndexedFrameStack(gym.make("CartPole-v1"), 3, capacity=50)
    emitted = [env.reset(seed=1)[0]]
    emitted += [env.step(0)[0] for _ in range(5)]
    before = [obs.copy() for obs in emitted]
    for obs in emitted:
        obs += 1000
    after, *_ = env.step(1)
    assert_same(after, np.array([4, 5, 6]))
    assert all(not np.shares_memory(a, b) for i, a in enumerate(emitted) for b in emitted[:i])
    assert_same(np.stack(before)[:, -1], np.arange(6))


def test_a_seed_begins_a_new_stream_and_none_goes_on_counting() -> None:
    env = IndexedFrameStack(gym.make("CartPole-v1"), 2, capacity=50)
    env.reset(seed=1)
    obs, *_ = env.step(0)
    stream = env.frames.stream
    again, _ = env.reset()
    assert_same(again, np.array([2, 2]))
    assert env.frames.stream == stream
    assert env.frames.gather(obs).shape == (2, 4)

    seeded, _ = env.reset(seed=1)
    assert_same(seeded, np.array([0, 0]))
    assert env.frames.stream != stream
    with pytest.raises(StaleStreamError):
        env.frames.gather(seeded, stream=stream)
    with pytest.raises(FrameEvictedError):
        env.frames.gather(obs)


def test_a_failed_reset_keeps_the_frames() -> None:
    env = IndexedFrameStack(gym.make("CartPole-v1"), 2, capacity=50)
    obs, _ = env.reset(seed=1)
    stream = env.frames.stream
    with pytest.raises(gym.error.Error):
        env.reset(seed=-1)
    assert env.frames.stream == stream
    assert env.frames.gather(obs).shape == (2, 4)


def test_step_before_reset() -> None:
    env = IndexedFrameStack(Ramp([0.0], [9.0]), 2, capacity=50)
    with pytest.raises(ResetNeeded):
        env.step(0)


def test_the_smallest_capacity_still_holds_every_emitted_stack() -> None:
    ours, resets = compare(partial(Ramp, [0.0], [9.0]), "reset", steps=40, capacity=4)
    assert resets == 9
    assert ours.frames.shape[0] == ours.stack_size


@pytest.mark.parametrize("length", [1, 2, 7])
def test_capacity_2t_plus_stack_holds_the_last_t_steps(length: int) -> None:
    last_steps, stack_size = 10, 3
    capacity = 2 * last_steps + stack_size
    env = IndexedFrameStack(Ramp([0.0], [9.0], length=length), stack_size, capacity)
    env.reset(seed=0)
    kept: list[np.ndarray] = []
    for _ in range(60):
        obs, _, terminated, *_ = env.step(0)
        kept.append(obs)
        if terminated:
            kept[-1] = np.stack([obs, env.reset()[0]])
        for stacks in kept[-last_steps:]:
            env.frames.gather(stacks)


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.parametrize("padding_type", ["reset", "zero"])
@pytest.mark.parametrize("name", ["CartPole-v1", "FrozenLake-v1", "ALE/Breakout-v5"])
def test_check_env(name: str, padding_type: str) -> None:
    env = IndexedFrameStack(gym.make(name), 4, 100, padding_type)
    check_env(env, skip_render_check=True)
    env.close()


def test_observation_space() -> None:
    env = IndexedFrameStack(gym.make("CartPole-v1"), 3, capacity=50)
    space = env.observation_space
    assert isinstance(space, Box)
    assert space.shape == (3,)
    assert space.dtype == np.int64
    assert (space.low == 0).all()
    assert [int(high) for high in space.high] == [HIGHEST] * 3
    assert space.sample() in space


def test_spec_rebuilds_the_wrapper() -> None:
    padding = np.array([0.5, 0, 0, 0], np.float32)
    env = IndexedFrameStack(gym.make("CartPole-v1"), np.int64(3), 60, padding, codec="raw")
    text = env.spec.to_json()
    assert json.loads(text)["additional_wrappers"][-1]["kwargs"] == {
        "stack_size": 3,
        "capacity": 60,
        "padding_type": [0.5, 0.0, 0.0, 0.0],
        "codec": "raw",
        "gop_length": None,
        "key": None,
        "squeeze": False,
    }
    obs, _ = env.reset(seed=7)
    for spec in (env.spec, EnvSpec.from_json(text)):
        twin = gym.make(spec)
        assert isinstance(twin, IndexedFrameStack)
        assert twin.frames.shape == (60, 4)
        assert twin.frames.codec == "raw"
        again, _ = twin.reset(seed=7)
        assert_same(again, obs)
        assert_same(twin.frames.gather(again), env.frames.gather(obs))
        assert twin.spec == env.spec


def test_wrapper_spec_builds_the_wrapper() -> None:
    spec = copy.deepcopy(gym.spec("CartPole-v1"))
    spec.additional_wrappers = (IndexedFrameStack.wrapper_spec(stack_size=2, capacity=9),)
    env = gym.make(spec)
    assert isinstance(env, IndexedFrameStack)
    assert env.frames.shape == (9, 4)


def test_a_codec_object_is_recorded_as_its_plain_config() -> None:
    numcodecs = pytest.importorskip("numcodecs")
    env = IndexedFrameStack(gym.make("CartPole-v1"), 2, 20, codec=numcodecs.Zlib(level=2))
    assert env.spec.additional_wrappers[-1].kwargs["codec"] == {"id": "zlib", "level": 2}
    twin = gym.make(EnvSpec.from_json(env.spec.to_json()))
    obs, _ = twin.reset(seed=1)
    expected, _ = env.reset(seed=1)
    assert_same(twin.frames.gather(obs), env.frames.gather(expected))


@pytest.mark.parametrize("padding_type", ["reset", "zero"])
def test_pickle_goes_on_as_the_original(padding_type: str) -> None:
    env = IndexedFrameStack(gym.make("CartPole-v1"), 3, 40, padding_type)
    env.reset(seed=2)
    for action in (0, 1, 1):
        env.step(action)
    twin = pickle.loads(pickle.dumps(env))
    for action in (0, 1, 0, 1):
        obs, *_ = env.step(action)
        again, *_ = twin.step(action)
        assert_same(again, obs)
        assert_same(twin.frames.gather(again), env.frames.gather(obs))
    assert twin.frames is not env.frames


def test_frames_are_found_through_outer_wrappers() -> None:
    inner = IndexedFrameStack(gym.make("CartPole-v1"), 3, 40)
    env = RecordEpisodeStatistics(TransformObservation(inner, lambda obs: obs, None))
    assert env.get_wrapper_attr("frames") is inner.frames
    assert isinstance(inner.frames, DiffFrameArray)


class Odd(gym.Env):
    """Has an observation space, and nothing else."""

    action_space = Discrete(2)

    def __init__(self, space: gym.Space) -> None:
        self.observation_space = space


@pytest.mark.parametrize(
    ("space", "key", "error", "message"),
    [
        (
            Tuple([Discrete(2)]),
            None,
            TypeError,
            r"Box and Discrete observations, but the obs.*Tuple",
        ),
        (MultiBinary(3), None, TypeError, r"MultiBinary\(3\)"),
        (Dict(a=Discrete(2)), None, TypeError, r"Dict.*Pass key=.*'a'"),
        (Dict(a=Discrete(2)), "b", ValueError, r"key='b' is not in.*\['a'\]"),
        (Dict(a=MultiBinary(3)), "a", TypeError, r"entry 'a' is MultiBinary"),
        (Discrete(2), "a", ValueError, r"key='a'.*Discrete\(2\)"),
        (Box(0, HIGHEST, (4,), np.int64), None, ValueError, "frame indices already"),
    ],
)
def test_spaces_that_do_not_fit(
    space: gym.Space, key: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        IndexedFrameStack(Odd(space), 4, 10, key=key)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"stack_size": 0}, ValueError, "stack_size=0 must be at least 1"),
        ({"stack_size": 2.0}, TypeError, "stack_size=2.0 must be an integer"),
        ({"stack_size": True}, TypeError, "stack_size=True must be an integer"),
        (
            {"capacity": 3},
            ValueError,
            "capacity=3 .* at least 4: .*stack_size=4.*capacity=4 or more",
        ),
        ({"capacity": -1}, ValueError, "capacity=-1 .* at least 4"),
        ({"capacity": 1e5}, TypeError, "capacity=100000.0 must be an integer"),
        ({"padding_type": "Zero"}, ValueError, "padding_type='Zero' must be 'reset', 'zero' or a"),
        ({"padding_type": None}, ValueError, "padding_type=None must be"),
        ({"padding_type": [1.0]}, ValueError, r"frame in Box"),
        ({"padding_type": [[1.0], [2.0, 3.0]]}, ValueError, r"frame in Box"),
        ({"padding_type": [1e9, 0, 0, 0]}, ValueError, r"frame in Box"),
        ({"padding_type": [np.nan, 0, 0, 0]}, ValueError, r"frame in Box"),
        ({"codec": "no-such-codec"}, ValueError, "no-such-codec"),
    ],
)
def test_arguments_that_do_not_fit(
    kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        IndexedFrameStack(gym.make("CartPole-v1"), **{"capacity": 100, **kwargs})


@pytest.mark.parametrize(
    ("padding_type", "fits"),
    [([1, 255], True), ([1.0, 2.0], False), ([-1, 2], False), ([1, 256], False), (3, False)],
)
def test_plain_padding_of_integer_frames_keeps_its_value(padding_type: Any, fits: bool) -> None:
    frame = partial(shared.padding_frame, padding_type, Box(0, 255, (2,), np.uint8))
    if fits:
        assert_same(frame(), np.array(padding_type, np.uint8))
    else:
        with pytest.raises(ValueError, match=re.escape(f"padding_type={padding_type!r}")):
            frame()


def test_wrapping_twice_is_refused() -> None:
    env = IndexedFrameStack(gym.make("CartPole-v1"), 3, 40)
    with pytest.raises(ValueError, match="frame indices already"):
        IndexedFrameStack(env, 3, 40)


def test_a_vector_environment_is_sent_to_the_twin() -> None:
    envs = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    with pytest.raises(TypeError, match=r"use wrappers\.vector\.IndexedFrameStack"):
        IndexedFrameStack(envs)


def learner_process(results: Any) -> None:
    """Train (here: reset) in a process of its own, then again as a worker of another library."""
    env = IndexedFrameStack(Ramp([0.0], [9.0]), 2, 10)
    obs, _ = env.reset(seed=0)
    results.put(env.frames.gather(obs).shape)
    namespace = {"__name__": "stable_baselines3.common.vec_env.subproc_vec_env"}
    exec("def worker(env): env.reset()", namespace)
    try:
        namespace["worker"](IndexedFrameStack(Ramp([0.0], [9.0]), 2, 10))
    except RuntimeError as error:
        results.put(str(error))


def test_a_learner_in_its_own_process_is_not_taken_for_a_worker() -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=learner_process, args=(results,))
    process.start()
    assert results.get(timeout=300) == (2, 1)
    assert "worker process of a vector environment" in results.get(timeout=300)
    process.join()


def custom_worker(
    index: int, env_fn: Any, pipe: Any, parent_pipe: Any, memory: Any, errors: Any, *_: Any
) -> None:
    """Serve what comes before the first step, as a user's own worker would."""
    env = env_fn()
    while True:
        command, data = pipe.recv()
        if command == "_check_spaces":
            pipe.send(((True, True), True))
        if command == "reset":
            try:
                env.reset(**data)
            except RuntimeError as error:
                errors.put((index, RuntimeError, str(error), "Traceback"))
                pipe.send((None, False))
                return


@pytest.mark.filterwarnings("ignore:.*Worker-0", "ignore:.*Raising the last exception")
@pytest.mark.filterwarnings("ignore:.*Traceback")
@pytest.mark.parametrize("worker", [None, custom_worker])
def test_inside_a_worker_process_it_raises(worker: Callable[..., None] | None) -> None:
    def make() -> gym.Env:
        return IndexedFrameStack(Ramp([0.0], [9.0]), 2, 10)

    envs = gym.vector.AsyncVectorEnv([make], context="spawn", worker=worker)
    try:
        with pytest.raises(RuntimeError, match=r"Apply wrappers\.vector\.IndexedFrameStack"):
            envs.reset(seed=1)
    finally:
        envs.close(terminate=True)
