"""Ours beside Stable-Baselines3's own: drawn spaces, histories, samples, files, copies."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common import buffers as host
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from compressarray import sb3
from compressarray.sb3.codecs import choose_codec
from compressarray.sb3.host import check_version
from tests.effort import examples
from tests.sb3.worlds import Dot

pytestmark = pytest.mark.filterwarnings("ignore:.*nothing is gained")

PIXELS = spaces.Box(0, 255, (4, 12, 10), np.uint8)
IMAGES = [
    PIXELS,
    spaces.Box(0, 255, (12, 10, 4), np.uint8),
    spaces.Box(0, 255, (12, 12, 10), np.uint8),
    spaces.Box(0, 255, (12, 10), np.uint8),
    spaces.Box(-np.inf, np.inf, (2, 5, 6), np.float32),
    spaces.Box(-np.inf, np.inf, (6, 5, 2), np.float64),
    spaces.Box(0, 255, (2, 3, 4, 5), np.int16),
    spaces.Box(0, 255, (70, 2, 90), np.uint8),
]
VECTORS = [
    spaces.Box(-10, 10, (3,), np.float32),
    spaces.Discrete(5),
    spaces.MultiBinary(4),
    spaces.MultiDiscrete([3, 4]),
]
ACTIONS = [spaces.Discrete(4), spaces.Box(-1, 1, (2,), np.float64), spaces.MultiBinary(3)]


def assert_equal(got: Any, want: Any) -> None:
    """Values, dtype and shape, bit for bit, of samples or parts of them."""
    if isinstance(want, dict):
        assert got.keys() == want.keys()
        for key in want:
            assert_equal(got[key], want[key])
    elif want is None:
        assert got is None
    else:
        assert got.dtype == want.dtype
        got, want = np.asarray(got), np.asarray(want)
        assert got.shape == want.shape
        assert np.ascontiguousarray(got).tobytes() == np.ascontiguousarray(want).tobytes()


class World:
    """A stream of stacks: frames come and go, repeat, are blank, and episodes end."""

    def __init__(self, space: Any, n_envs: int, seed: int) -> None:
        self.space, self.n_envs, self.rng = space, n_envs, np.random.default_rng(seed)
        self.axis = -1 if len(space.shape or ()) == 3 and space.shape[2] < space.shape[0] else 0
        self.obs = [self.begin() for _ in range(n_envs)]

    def noise(self) -> Any:
        if not isinstance(self.space, spaces.Box):
            return np.asarray(self.space.sample(), self.space.dtype)
        shape, dtype = self.space.shape, self.space.dtype
        if dtype.kind == "f":
            value = self.rng.normal(0, 300, shape).astype(dtype)
            value.flat[0] = self.rng.choice([np.nan, -0.0, np.inf, 0.0])
            return value
        return self.rng.integers(0, 4, shape).astype(dtype) * int(self.rng.integers(0, 2))

    def begin(self) -> Any:
        value = self.noise()
        if value.ndim == 3 and self.rng.random() < 0.7:  # zero padding, as VecFrameStack's
            np.moveaxis(value, self.axis, 0)[:-1] = 0
        return value

    def after(self, obs: Any) -> Any:
        kind = self.rng.integers(0, 6)
        if kind == 0 or obs.ndim < 3:
            return self.noise()
        if kind == 1:
            return obs.copy()
        new = np.roll(obs, -1, self.axis)
        np.moveaxis(new, self.axis, 0)[-1] = np.moveaxis(self.noise(), self.axis, 0)[0]
        return new

    def step(self) -> Any:
        nexts = [self.after(each) for each in self.obs]
        done = self.rng.random(self.n_envs) < 0.2
        before = self.obs
        self.obs = [self.begin() if d else n for d, n in zip(done, nexts, strict=True)]
        if self.rng.random() < 0.1:  # a history that does not go on where it was
            self.obs = [self.begin() for _ in self.obs]
        cut = self.rng.random(self.n_envs) < 0.5
        return np.array(before), np.array(nexts), done, done & cut


def infos_of(cut: Any) -> list[dict[str, Any]]:
    return [{"TimeLimit.truncated": True} if each else {} for each in cut]


def histories() -> Any:
    return st.fixed_dictionaries(
        {
            "space": st.sampled_from(IMAGES + VECTORS),
            "action_space": st.sampled_from(ACTIONS),
            "n_envs": st.integers(1, 3),
            "rows": st.integers(1, 20),
            "steps": st.integers(1, 60),
            "seed": st.integers(0, 2**16),
            "n_steps": st.sampled_from([None, 1, 3, 5]),
            "as_dict": st.booleans(),
            "codec": st.sampled_from(["delta", "delta", "raw"]),
            "turn": st.sampled_from(["none", "pickle", "copy", "reset"]),
            "look": st.sampled_from([0, 0, 0.2]),
        }
    )


def both(parent: Any, ours: Any, *args: Any, codec: Any = "delta", **kwargs: Any) -> Any:
    return parent(*args, device="cpu", **kwargs), ours(*args, device="cpu", codec=codec, **kwargs)


@given(histories())
@settings(max_examples=examples(60), deadline=None)
def test_replay_is_the_hosts(history):
    space, n_envs, rng = history["space"], history["n_envs"], np.random.default_rng(history["seed"])
    whole, kwargs, classes = space, {}, (host.ReplayBuffer, sb3.CompressedReplayBuffer)
    if history["as_dict"]:
        whole = spaces.Dict({"a": space, "b": VECTORS[0], "c": PIXELS})
        classes = (host.DictReplayBuffer, sb3.CompressedDictReplayBuffer)
    elif history["n_steps"]:
        kwargs = {"n_steps": history["n_steps"], "gamma": 0.9}
        classes = (host.NStepReplayBuffer, sb3.CompressedNStepReplayBuffer)
    dense, ours = both(
        *classes, history["rows"] * n_envs + n_envs // 2, whole, history["action_space"],
        n_envs=n_envs, codec=history["codec"], **kwargs,
    )  # fmt: skip
    parts = whole.spaces if history["as_dict"] else {"": whole}
    worlds = {
        key: World(part, n_envs, history["seed"] + i) for i, (key, part) in enumerate(parts.items())
    }
    for step in range(history["steps"]):
        drawn = {key: world.step() for key, world in worlds.items()}
        _, _, done, cut = next(iter(drawn.values()))
        obs: Any = {key: each[0] for key, each in drawn.items()}
        nexts: Any = {key: each[1] for key, each in drawn.items()}
        if not history["as_dict"]:
            obs, nexts = obs[""], nexts[""]
        action = np.array([history["action_space"].sample() for _ in range(n_envs)])
        rest = (action, rng.normal(size=n_envs), done, infos_of(cut))
        for buffer in (dense, ours):
            buffer.add(copy.deepcopy(obs), copy.deepcopy(nexts), *rest)
        if step == history["steps"] // 2:
            if history["turn"] == "pickle":
                ours = pickle.loads(pickle.dumps(ours, pickle.HIGHEST_PROTOCOL))
            elif history["turn"] == "copy":
                ours = copy.deepcopy(ours)
            elif history["turn"] == "reset":
                dense.reset()
                ours.reset()
        assert (ours.pos, ours.full, ours.size()) == (dense.pos, dense.full, dense.size())
        if (dense.size() and step % 7 == 0) or step == history["steps"] - 1:
            if not dense.size():
                continue
            np.random.seed(step)
            want = dense.sample(9)
            np.random.seed(step)
            got = ours.sample(9)
            assert type(got) is type(want)
            for name in want._fields:
                assert_equal(getattr(got, name), getattr(want, name))
    held = dense.full or history["turn"] != "reset"
    for name in ("observations", "next_observations"):
        mine, theirs = getattr(ours, name), getattr(dense, name)
        for key in parts if history["as_dict"] else [None]:
            one, other = (mine, theirs) if key is None else (mine[key], theirs[key])
            rows = slice(None) if held else slice(0, dense.pos)
            assert one.shape == other.shape
            assert_equal(one[rows], other[rows])


@given(histories())
@settings(max_examples=examples(30), deadline=None)
def test_rollouts_are_the_hosts(history):
    space, n_envs, rows = history["space"], history["n_envs"], history["rows"]
    whole, classes = space, (host.RolloutBuffer, sb3.CompressedRolloutBuffer)
    if history["as_dict"]:
        whole = spaces.Dict({"a": space, "b": VECTORS[0]})
        classes = (host.DictRolloutBuffer, sb3.CompressedDictRolloutBuffer)
    dense, ours = both(
        *classes, rows, whole, history["action_space"], n_envs=n_envs, codec=history["codec"],
        gae_lambda=0.9, gamma=0.8,
    )  # fmt: skip
    rng = np.random.default_rng(history["seed"])
    parts = whole.spaces if history["as_dict"] else {"": whole}
    worlds = {
        key: World(part, n_envs, history["seed"] + i) for i, (key, part) in enumerate(parts.items())
    }
    for _ in range(2):
        for _ in range(rows):
            obs: Any = {key: world.step()[0] for key, world in worlds.items()}
            obs = obs if history["as_dict"] else obs[""]
            action = np.array([history["action_space"].sample() for _ in range(n_envs)])
            rest = (rng.normal(size=n_envs), rng.random(n_envs) < 0.2)
            value, log_prob = th.tensor(rng.normal(size=n_envs)), th.tensor(rng.normal(size=n_envs))
            for buffer in (dense, ours):
                buffer.add(copy.deepcopy(obs), action, *rest, value, log_prob)
            if rng.random() < history["look"]:  # rows that are not written yet are zeros
                for key in parts if history["as_dict"] else [None]:
                    one, other = ours.observations, dense.observations
                    if key is not None:
                        one, other = one[key], other[key]
                    row = int(rng.integers(0, rows))
                    assert_equal(one[row], other[row])
                    assert_equal(np.asarray(one), other)
        for buffer in (dense, ours):
            buffer.compute_returns_and_advantage(th.zeros(n_envs), np.zeros(n_envs))
        if history["turn"] == "pickle":
            ours = pickle.loads(pickle.dumps(ours))
        elif history["turn"] == "copy":
            ours = copy.deepcopy(ours)
        for _ in range(2):  # epochs
            np.random.seed(4)
            wanted = list(dense.get(5))
            np.random.seed(4)
            for got, want in zip(ours.get(5), wanted, strict=True):
                for name in want._fields:
                    assert_equal(getattr(got, name), getattr(want, name))
        dense.reset()
        ours.reset()


def test_assigning_to_a_rollouts_observations():
    """What a user writes there is there, whether `add` has come so far or not."""
    dense, ours = both(host.RolloutBuffer, sb3.CompressedRolloutBuffer, 12, PIXELS, ACTIONS[0])
    rng = np.random.default_rng(0)
    for _ in range(3):
        for key in (0, 5, slice(2, 7, 2), (slice(None), 0), np.array([9, 11]), ..., -1):
            shape = np.empty((12, 1, *PIXELS.shape), bool)[key].shape
            pixels = rng.integers(0, 255, shape, np.uint8)
            for buffer in (dense, ours):
                buffer.observations[key] = pixels
            if rng.random() < 0.5:
                assert_equal(np.asarray(ours.observations), dense.observations)
        for buffer in (dense, ours):
            buffer.observations[3] = 7
        assert_equal(np.asarray(ours.observations), dense.observations)
        dense.reset()
        ours.reset()
        assert not np.asarray(copy.deepcopy(ours).observations).any()


@pytest.mark.parametrize("codec", ["delta", "raw"])
def test_rollouts_over_rollouts_do_not_grow(codec):
    ours = sb3.CompressedRolloutBuffer(64, PIXELS, ACTIONS[0], device="cpu", n_envs=2, codec=codec)
    world, held, zeros = World(PIXELS, 2, 3), [], th.zeros(2)
    for _ in range(30):
        for _ in range(64):
            ours.add(world.step()[0], np.zeros(2), np.zeros(2), np.zeros(2), zeros, zeros)
        held.append(ours.nbytes_stored)
        ours.reset()
    assert max(held[15:]) <= 1.2 * max(held[:5])


def filled(kind: Any, steps: int = 50, n_envs: int = 2, size: int = 60, **kwargs: Any) -> Any:
    buffer = kind(size, PIXELS, ACTIONS[0], device="cpu", n_envs=n_envs, **kwargs)
    world = World(PIXELS, n_envs, 1)
    for step in range(steps):
        obs, nexts, done, cut = world.step()
        buffer.add(
            obs, nexts, np.full(n_envs, step % 4), np.full(n_envs, step), done, infos_of(cut)
        )
    return buffer


KEYS = [
    3, -1, slice(None), slice(2, 9, 3), (4, 1), (slice(None), 0), [1, 5],
    np.array([[1, 2], [3, 4]]),
    (np.array([1, 2]), np.array([0, 1])), (np.array([1, 2]), np.array([0, 1]), slice(None)),
    (slice(1, 4), np.array([1, 0])), np.arange(30) % 3 == 0, ..., (..., slice(0, 2)),
    (2, 0, 1), (slice(0, 2), 1, slice(1, 3), 4), np.ones((30, 2), bool),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(KEYS)))
def test_observations_are_indexed_as_the_hosts(number):
    dense, ours = filled(host.ReplayBuffer), filled(sb3.CompressedReplayBuffer)
    assert_equal(ours.observations[KEYS[number]], dense.observations[KEYS[number]])
    assert_equal(ours.next_observations[KEYS[number]], dense.next_observations[KEYS[number]])


def test_observations_refuse_what_they_cannot_do():
    ours = filled(sb3.CompressedReplayBuffer)
    with pytest.raises(TypeError, match=r"written by its add\(\)"):
        ours.observations[0] = 0
    with pytest.raises(IndexError, match="out of bounds"):
        ours.observations[30]
    with pytest.raises(IndexError, match="newaxis"):
        ours.observations[None]
    with pytest.raises(ValueError, match="decoding always copies"):
        np.asarray(ours.observations, copy=False)


def test_frames_are_stored_once_and_old_ones_let_go():
    rng = np.random.default_rng(0)
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    ours = sb3.CompressedReplayBuffer(64, space, ACTIONS[0], device="cpu", codec="raw")
    obs = np.zeros((1, 4, 84, 84), np.uint8)
    held = []
    for _ in range(400):
        nexts = np.concatenate([obs[:, 1:], rng.integers(0, 255, (1, 1, 84, 84), np.uint8)], 1)
        ours.add(obs, nexts, np.array([0]), np.array([0.0]), np.array([False]), [{}])
        obs = nexts
        held.append(ours.nbytes_stored)
    assert held[-1] < 1.3 * 84 * 84 * (64 + 30)  # a frame a row, and groups not yet let go
    assert held[-1] <= 1.05 * max(held[150:250])


def test_a_failed_add_changes_nothing():
    ours, twin = filled(sb3.CompressedReplayBuffer), filled(sb3.CompressedReplayBuffer)
    good = (np.zeros(2, int), np.zeros(2), np.zeros(2), [{}, {}])
    obs = np.ones((2, *PIXELS.shape), np.uint8)
    for bad in (
        (obs[:, :3], obs, *good),
        (obs, obs[:, :, :4], *good),
        (obs, obs, np.zeros(3), *good[1:]),
        (obs, obs, good[0], np.zeros(5), *good[2:]),
        (obs, obs, *good[:2], np.zeros(3), good[3]),
        (obs, obs, *good[:3], [{}, {}, {}]),
    ):
        with pytest.raises(ValueError, match=r"reshape|broadcast|shape"):
            ours.add(*bad)
    assert (ours.pos, ours.full) == (twin.pos, twin.full)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        assert_equal(np.asarray(getattr(ours, name)), np.asarray(getattr(twin, name)))


def test_normalized_as_the_host_does():
    env = VecNormalize(DummyVecEnv([Dot]), norm_obs=False)
    env.ret_rms.var = np.array(4.0)
    dense, ours = filled(host.ReplayBuffer), filled(sb3.CompressedReplayBuffer)
    np.random.seed(1)
    want = dense.sample(20, env=env)
    np.random.seed(1)
    for got, wanted in zip(ours.sample(20, env=env), want, strict=True):
        assert_equal(got, wanted)


def test_a_draw_for_several_updates():
    """SBX draws the batches of all its updates in one call."""
    dense, ours = filled(host.ReplayBuffer), filled(sb3.CompressedReplayBuffer)
    np.random.seed(1)
    want = dense.sample(32 * 40)
    np.random.seed(1)
    assert_equal(ours.sample(32 * 40).next_observations, want.next_observations)


def test_priorities():
    ours = filled(sb3.CompressedPrioritizedReplayBuffer, alpha=1.0, beta=1.0, epsilon=0.0)
    assert ours.full
    cells = np.arange(60)
    errors = np.zeros(60)
    errors[[7, 11]] = 1, -3
    ours.update_priorities(cells, th.tensor(errors))
    np.random.seed(0)
    drawn = ours.sample(4000)
    assert set(drawn.indices) == {7, 11}
    assert abs((drawn.indices == 11).mean() - 0.75) < 0.01
    weights = drawn.weights.numpy()[:, 0]
    assert np.allclose(weights[drawn.indices == 7], 1)
    assert np.allclose(weights[drawn.indices == 11], 1 / 3)
    rows, envs = np.divmod(drawn.indices, 2)
    assert_equal(drawn.observations, th.tensor(ours.observations[rows, envs]))
    assert_equal(drawn.rewards, th.tensor(ours.rewards[rows, envs][:, None]))
    with pytest.raises(ValueError, match="finite"):
        ours.update_priorities([1], [np.nan])
    with pytest.raises(ValueError, match="one for each"):
        ours.update_priorities([1, 2], [1.0])
    with pytest.raises(IndexError, match="0 to 59"):
        ours.update_priorities([60], [1.0])
    again = pickle.loads(pickle.dumps(ours))
    np.random.seed(0)
    assert_equal(again.sample(4000).observations, drawn.observations)


@pytest.mark.parametrize(
    ("method", "codec"),
    [
        ("none", "raw"),
        ("gzip5", {"id": "gzip", "level": 5}),
        ("gzip/5", {"id": "gzip", "level": 5}),
        ("zstd-5", {"id": "zstd", "level": -5}),
        ("zstd3", {"id": "zstd", "level": 3}),
        ("lz4-frame/1", {"id": "lz4", "acceleration": 1}),
        ("lz4-block/-7", {"id": "lz4", "acceleration": 7}),
    ],
)
def test_the_other_packages_methods(method, codec):
    assert choose_codec("delta", method) == codec
    dense = filled(host.ReplayBuffer)
    dtypes = {"elem_type": np.uint8, "runs_type": np.uint16}
    ours = filled(sb3.CompressedReplayBuffer, compression_method=method, dtypes=dtypes)
    ours = pickle.loads(pickle.dumps(ours))
    assert_equal(np.asarray(ours.observations), dense.observations)


def test_igzip_and_rle():
    dense = filled(host.ReplayBuffer)
    ours = pickle.loads(
        pickle.dumps(filled(sb3.CompressedReplayBuffer, compression_method="igzip3"))
    )
    assert_equal(np.asarray(ours.observations), dense.observations)
    for method in ("rle", "rle-jit"):
        with pytest.warns(UserWarning, match='answered by codec="delta"'):
            ours = filled(sb3.CompressedReplayBuffer, compression_method=method)
        assert ours.codec == "delta"
    rollout = sb3.CompressedRolloutBuffer(8, PIXELS, ACTIONS[0], compression_method="zstd-3")
    assert rollout.codec == {"id": "zstd", "level": -3}


def test_bad_arguments():
    make = sb3.CompressedReplayBuffer
    with pytest.raises(ValueError, match="compression_method='zip9' is none of"):
        make(8, PIXELS, ACTIONS[0], compression_method="zip9")
    with pytest.raises(ValueError, match="output_dtype='float'"):
        make(8, PIXELS, ACTIONS[0], output_dtype="float")
    with pytest.raises(TypeError, match="CompressedDictReplayBuffer"):
        make(8, spaces.Dict({"a": PIXELS}), ACTIONS[0])
    with pytest.raises(TypeError, match="CompressedReplayBuffer"):
        sb3.CompressedDictReplayBuffer(8, PIXELS, ACTIONS[0])
    with pytest.raises(ValueError, match="n_steps=0"):
        sb3.CompressedNStepReplayBuffer(8, PIXELS, ACTIONS[0], n_steps=0)
    with pytest.raises(ImportError, match=r"2\.8\.1 is older than 2\.9"):
        check_version("2.8.1")
    check_version("3.0a1")
    with pytest.raises(ValueError, match="optimize_memory_usage"):
        sb3.compressed(
            filled(host.ReplayBuffer, optimize_memory_usage=True, handle_timeout_termination=False)
        )


@pytest.mark.filterwarnings("default")
def test_a_space_without_images_is_told_once():
    for make in (sb3.CompressedReplayBuffer, sb3.CompressedRolloutBuffer):
        with pytest.warns(UserWarning, match="nothing is gained") as told:
            make(8, VECTORS[0], ACTIONS[0], device="cpu")
        assert len(told) == 1


@pytest.mark.parametrize("steps", [0, 20, 47])
def test_taking_over_a_dense_buffer(steps):
    dense = filled(host.NStepReplayBuffer, steps, n_steps=2, gamma=0.5)
    ours = sb3.compressed(dense)
    assert type(ours) is sb3.CompressedNStepReplayBuffer
    assert (ours.pos, ours.full, ours.n_steps) == (dense.pos, dense.full, 2)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        assert_equal(np.asarray(getattr(ours, name)), np.asarray(getattr(dense, name)))
    world = World(PIXELS, 2, 8)
    for _ in range(40):
        obs, nexts, done, cut = world.step()
        for buffer in (dense, ours):
            buffer.add(obs, nexts, np.zeros(2), np.zeros(2), done, infos_of(cut))
    assert_equal(np.asarray(ours.observations), dense.observations)


def test_nothing_dense_is_allocated():
    """Four terabytes of dense observations; the system would refuse them."""
    space = spaces.Box(0, 255, (4, 210, 160), np.uint8)
    ours = sb3.CompressedReplayBuffer(1_000_000, space, ACTIONS[0], device="cpu", n_envs=2)
    assert ours.observations.nbytes > 100e9
    assert ours._parts[""].rows.nbytes_stored < 40e6  # indices; touched as they are written
    sb3.compile_kernels()
