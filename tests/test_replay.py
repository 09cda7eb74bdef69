"""``ReplayBuffer``: feeding, drawing, priorities, sequences, actions, copies and bad input."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings

from compressarray import Batch, DiffFrameArray, FrameEvictedError, ReplayBuffer, StaleStreamError
from compressarray.array.frames import _Frames as Frames
from compressarray.replay import buffer as buffer_module
from compressarray.replay import drawing
from compressarray.replay.footprint import memory_bytes
from compressarray.replay.integers import Integers
from compressarray.replay.plain_steps import PlainSteps
from compressarray.replay.priorities import SumTree
from compressarray.replay.sequences import Kind
from compressarray.replay.windows import FIRST, TERMINATED, Windows
from tests.effort import examples
from tests.naive import assert_same
from tests.replay_worlds import (
    FEEDS,
    FRAME,
    MODES,
    PADDINGS,
    Setting,
    World,
    assert_batch,
    assert_same_content,
    assert_same_sequences,
)

ROOT = Path(__file__).resolve().parents[1]
STACKS = Box(0, 255, (3, *FRAME), np.uint8)
INDICES = Box(0, 2**63 - 2, (3,), np.int64)


def played(n_steps: int = 30, **setting: Any) -> World:
    """Build a world and play it."""
    world = World(Setting(**setting))
    for _ in range(n_steps):
        world.step()
    return world


def step(n: int = 2, **changes: Any) -> dict[str, Any]:
    """Arguments of one step of ``n`` lanes that is as it should be."""
    stacks = np.arange(n * 45, dtype=np.uint8).reshape(n, 3, *FRAME)
    return {
        "obs": stacks,
        "action": np.zeros(n, int),
        "reward": np.zeros(n),
        "terminated": np.zeros(n, bool),
        "truncated": np.zeros(n, bool),
        "next_obs": np.concatenate([stacks[:, 1:], stacks[:, :1]], axis=1),
        **changes,
    }


def buffer_of(capacity: int = 20, n_envs: int = 2, **arguments: Any) -> ReplayBuffer:
    return ReplayBuffer(capacity, STACKS, Discrete(4), n_envs, **arguments)


# -- feeding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("feed", FEEDS)
def test_what_may_be_drawn_is_what_the_oracle_says(feed: str, mode: str, padding: str) -> None:
    for n_step, n_slots, p_end in ((1, 7, 0.05), (3, 5, 0.3), (2, 4, 1.0)):
        world = World(Setting(feed, 2, n_slots, 3, n_step, mode=mode, padding=padding))
        for _ in range(4 * n_slots):
            world.step(p_end / 2, p_end / 2, p_glitch=0.1)
            assert_same_content(world.buffer, world.oracle)
        assert_same_sequences(world.buffer, world.oracle, 2)


@pytest.mark.parametrize("codec", ["raw", "delta", "delta-huffman", "zstd"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDINGS[:2])
def test_all_ways_of_feeding_draw_the_same(codec: str, mode: str, padding: str) -> None:
    batches: list[Batch] = []
    for feed in ("stacks", "newest", "indices"):
        world = played(60, feed=feed, n_slots=11, n_step=2, mode=mode, padding=padding, codec=codec)
        batches.append(world.buffer.sample(16))
    for one, other in pairwise(batches):
        for a, b in zip(one[:-1], other[:-1], strict=True):  # the last are fields: none
            assert_same(np.array(a), np.array(b))


def test_each_frame_is_stored_once() -> None:
    for feed in ("stacks", "newest"):
        world = World(Setting(feed, n_envs=3, n_slots=50))
        for _ in range(40):
            world.step(0, 0)
        assert world.buffer.frames.lane_counts.tolist() == [41] * 3


def test_a_stack_that_does_not_go_on_is_stored_whole() -> None:
    world = World(Setting(n_envs=1, stack_size=4, n_slots=50, padding="junk"))
    world.lanes[0].frames = [np.full(FRAME, k + 1, np.uint8) for k in range(4)]
    counts = []
    for p_glitch in (0, 0, 1, 0, 0):
        world.step(0, 0, p_glitch)
        counts.append(int(world.buffer.frames.lane_counts[0]))
    assert counts[0] == 5
    assert counts[1] == 6
    assert 7 < counts[2] <= 10  # fewer than four where it began with equal or black frames
    assert np.diff(counts[2:]).tolist() == [1, 1]
    assert_same_content(world.buffer, world.oracle)


def test_padding_takes_no_frames() -> None:
    for padding in ("zero", "reset"):
        world = World(Setting(n_envs=1, stack_size=4, n_slots=50, padding=padding))
        world.lanes[0].frames[-1][0, 0] = 1
        world.step(0, 0)
        assert world.buffer.frames.lane_counts[0] == 2


def test_the_last_observation_of_a_truncated_episode_is_kept() -> None:
    buffer = buffer_of(n_envs=1, seed=0)
    first, last, reset = (step(1)["obs"] + k for k in (0, 100, 200))
    info = {"final_obs": np.array([None], object), "_final_obs": np.array([True])}
    info["final_obs"][0] = last[0]
    buffer.add(first, [1], [1.5], [False], [True], reset, info)
    batch = buffer.sample(1)
    assert_same(np.array(batch.next_obs), last)
    assert batch.terminated == 0
    assert batch.discount == np.float32(0.99)
    buffer.add(
        reset, [2], [0], [True], [False], first, {"final_obs": last}
    )  # dense, as ALE gives it
    batch = buffer.sample(2, replace=False)
    assert sorted(batch.terminated.tolist()) == [0, 1]
    assert_same(np.array(batch.next_obs), np.concatenate([last, last]))


def test_n_steps_stop_at_ends_and_say_how_far_they_went() -> None:
    buffer = buffer_of(n_envs=1, n_step=3, gamma=0.5, autoreset_mode="disabled", seed=0)
    rewards = [1, 2, 4, 8, 16]
    stacks = [step(1)["obs"] + k for k in range(6)]
    for t, reward in enumerate(rewards):
        obs = stacks[t] if t != 4 else stacks[0]  # a reset
        buffer.add(obs, [t % 4], [reward], [t == 3], [False], stacks[t + 1])
    batch = buffer.sample(4, replace=False)
    rows = {name: row for row, name in enumerate(batch.index.tolist())}
    assert sorted(rows) == [0, 1, 2, 3]  # the fifth's episode goes on
    expected = {0: (1 + 1 + 1, 3, 0), 1: (2 + 2 + 2, 3, 1), 2: (4 + 4, 2, 1), 3: (8, 1, 1)}
    for name, (reward, n_steps, terminated) in expected.items():
        row = rows[name]
        assert batch.reward[row] == reward
        assert batch.discount[row] == 0.5**n_steps
        assert batch.terminated[row] == terminated
        assert_same(np.array(batch.next_obs[row]), stacks[min(name + 3, 4)][0])


def test_the_row_after_an_end_is_no_transition_under_next_step() -> None:
    buffer = buffer_of(n_envs=1, autoreset_mode=AutoresetMode.NEXT_STEP)
    stacks = [step(1)["obs"] + k for k in range(4)]
    buffer.add(stacks[0], [0], [1], [True], [False], stacks[1])
    buffer.add(stacks[1], [0], [np.nan], [False], [False], stacks[2])  # the reset
    buffer.add(stacks[2], [0], [2], [False], [False], stacks[3])
    batch = buffer.sample(2, replace=False)
    assert len(buffer) == 2
    assert sorted(batch.reward.tolist()) == [1, 2]


def test_a_reset_that_nobody_announced_is_noticed() -> None:
    buffer = buffer_of(n_envs=1, n_step=2)
    stacks = [step(1)["obs"] + k for k in range(4)]
    buffer.add(stacks[0], [0], [1], [False], [False], stacks[1])
    assert buffer.n_samplable == 0
    buffer.add(stacks[2], [0], [2], [False], [False], stacks[3])
    assert buffer.n_samplable == 1
    batch = buffer.sample(1)
    assert (batch.reward[0], batch.discount[0]) == (1, np.float32(0.99))
    assert_same(np.array(batch.next_obs), stacks[1])
    with pytest.raises(ValueError, match="no sequence of length=2"):
        buffer.sample_sequences(1, 2)


def test_cut_ends_episodes_whose_reset_looks_like_their_next_step() -> None:
    buffer = buffer_of(n_envs=2, autoreset_mode="next_step")
    ends = step(2, terminated=np.array([True, False]))
    black = {"obs": np.zeros_like(ends["obs"]), "next_obs": np.zeros_like(ends["obs"])}
    buffer.add(**{**ends, **black})
    buffer.cut()
    buffer.add(**{**step(2), **black})
    assert len(buffer) == 4
    with pytest.raises(ValueError, match="no sequence"):
        buffer.sample_sequences(1, 2)
    buffer.add(**{**step(2), **black})
    buffer.cut([1])
    buffer.add(**{**step(2), **black})
    batch = buffer.sample_sequences(3, 2, replace=False)
    assert sorted(batch.index.tolist()) == [[2, 4], [3, 5], [4, 6]]


# -- layouts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "arguments", "frame_shape", "stack_size"),
    [
        ((4, 7, 6), {}, (7, 6), 4),
        ((7, 6, 4), {"stack_axis": -1}, (7, 6), 4),
        ((4, 7, 6, 3), {}, (7, 6, 3), 4),
        ((7, 4, 6, 3), {"stack_axis": 1}, (7, 6, 3), 4),
        ((9, 7, 6), {"frame_channels": 3}, (3, 7, 6), 3),
        ((7, 6, 9), {"frame_channels": 3, "stack_axis": 2}, (3, 7, 6), 3),
        ((7, 6, 3), {"stack_axis": None}, (7, 6, 3), 1),
        ((7, 6), {}, (7, 6), 1),
        ((1, 7, 6), {}, (7, 6), 1),
    ],
)
@pytest.mark.parametrize("n_step", [1, 2])
def test_stacks_lie_along_any_axis(
    shape: tuple[int, ...],
    arguments: dict[str, Any],
    frame_shape: tuple[int, ...],
    stack_size: int,
    n_step: int,
) -> None:
    rng = np.random.default_rng(0)
    space = Box(0, 255, shape, np.uint8)
    buffer = ReplayBuffer(50, space, Discrete(2), 2, n_step=n_step, **arguments, seed=0)
    assert buffer.frames.frame_shape == frame_shape
    axis = arguments.get("stack_axis", 0)
    channels = arguments.get("frame_channels", 1)
    observations = [rng.integers(0, 256, (2, *shape), np.uint8)]
    for _ in range(30):
        after = rng.integers(0, 256, (2, *shape), np.uint8)
        if axis is not None and len(shape) > 2:
            old, new = (
                np.moveaxis(each, axis + (axis >= 0), 1) for each in (observations[-1], after)
            )
            new[:, :-channels] = old[:, channels:]
        observations.append(after)
    no = np.zeros(2, bool)
    for before, after in pairwise(observations):
        buffer.add(before, no.astype(int), no, no, no, after)
    # a stack of which each frame is new costs all its frames, once
    assert buffer.frames.lane_counts.tolist() == [stack_size + 30] * 2
    batch = buffer.sample(20)
    assert batch.obs.shape == batch.next_obs.shape == (20, *shape)
    for row, name in enumerate(batch.index.tolist()):
        t, lane = divmod(name, 2)
        assert_same(np.array(batch.obs[row]), observations[t][lane])
        assert_same(np.array(batch.next_obs[row]), observations[t + n_step][lane])
    sequences = buffer.sample_sequences(3, 4)
    for row, name in enumerate(sequences.index[:, 0].tolist()):
        t, lane = divmod(name, 2)
        for k in range(4):
            assert_same(np.array(sequences.obs[row, k]), observations[t + k][lane])
            assert_same(np.array(sequences.next_obs[row, k]), observations[t + k + 1][lane])


@pytest.mark.parametrize(
    "space", [Box(-1, 1, (3,), np.float32), Box(-1, 1, (), np.float64), Discrete(9)]
)
def test_observations_that_are_no_images(space: Any) -> None:
    buffer = ReplayBuffer(300, space, Discrete(2), 2, n_step=2, seed=1)
    rng = np.random.default_rng(0)
    values = (rng.random((700, 2, *space.shape)) * 9).astype(space.dtype)
    values.reshape(-1)[:6] = [0, 1, 2, 3, 4, 5]
    if values.dtype.kind == "f":
        values[5], values[6] = np.nan, -0.0
    no = np.zeros(2, bool)
    for t in range(699):
        buffer.add(values[t], [0, 1], no, no, no, values[t + 1])
    assert len(buffer) == 300
    batch = buffer.sample(64)
    for row, name in enumerate(batch.index.tolist()):
        t, lane = divmod(name, 2)
        assert t >= 549
        assert_same(np.array(batch.obs[row]), np.array(values[t, lane]))
        assert_same(np.array(batch.next_obs[row]), np.array(values[t + 2, lane]))
    assert buffer.frames == {}
    assert buffer.stats()["nbytes_by_part"]["vectors"] < 2.5 * 150 * 2 * values[0, 0].nbytes + 9000


def test_several_images_and_vectors_in_a_dict() -> None:
    space = Dict(
        {
            "left": Box(0, 255, (2, 4, 4), np.uint8),
            "right": Box(-1, 1, (2, 3, 5), np.float32),
            "state": Box(-1, 1, (3,), np.float64),
            "mode": Discrete(3),
        }
    )
    space.seed(0)
    buffer = ReplayBuffer(10, space, Discrete(2), 1, seed=0, autoreset_mode="disabled")
    observations = [space.sample() for _ in range(9)]
    batched = [{key: np.array([value]) for key, value in each.items()} for each in observations]

    def add_all() -> None:
        for before, after in pairwise(batched):
            buffer.add(before, [0], [0.0], [False], [False], after)

    with pytest.warns(UserWarning, match="do not go on from one to the next") as warned:
        add_all()
    assert len(warned) == 2  # one for each image
    assert sorted(buffer.frames) == ["left", "right"]
    batch = buffer.sample(8, replace=False)
    for row, t in enumerate(batch.index.tolist()):
        for key, value in observations[t].items():
            assert_same(np.array(batch.obs[key][row]), np.array(value))
            assert_same(np.array(batch.next_obs[key][row]), np.array(observations[t + 1][key]))
    again = buffer.sample(8, out=batch)
    assert np.shares_memory(again.obs["left"], batch.obs["left"])


# -- memory of batches -----------------------------------------------------------------------


def test_both_observations_are_views_of_one_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    world = played(40, n_slots=40, stack_size=4)
    shapes = []
    real = Frames.gather

    def counted(self: Frames, store: Any, places: Any, out: Any) -> Any:
        shapes.append(out.shape[: -len(FRAME)])
        return real(self, store, places, out)

    monkeypatch.setattr(Frames, "gather", counted)
    batch = world.buffer.sample(8)
    assert batch.obs.base is batch.next_obs.base
    assert batch.obs.base.shape == (8, 5, *FRAME)
    assert np.shares_memory(batch.obs[:, 1:], batch.next_obs[:, :-1])
    sequences = world.buffer.sample_sequences(2, 3)
    assert sequences.obs.shape == (2, 3, 4, *FRAME)
    assert np.shares_memory(sequences.obs, sequences.next_obs)
    batch = played(40, n_slots=40, n_step=2).buffer.sample(8)
    assert batch.obs.base is batch.next_obs.base
    assert batch.obs.flags.c_contiguous
    assert shapes == [(8, 5), (2, 7), (2, 8, 3)]


@pytest.mark.parametrize("n_step", [1, 2])
def test_kept_memory_is_used_again(n_step: int) -> None:
    world = played(60, n_slots=40, n_step=n_step)
    fresh = played(60, n_slots=40, n_step=n_step)
    batch = world.buffer.sample(8)
    fresh.buffer.sample(8)
    for _ in range(5):
        again = world.buffer.sample(8, out=batch)
        assert again.obs.base is batch.obs.base
        assert_same(np.array(again.obs), np.array(fresh.buffer.sample(8).obs))
        assert_batch(again, world.oracle.samplable())
    with pytest.raises(ValueError, match="out holds 8 transitions and batch_size=9"):
        world.buffer.sample(9, out=batch)
    with pytest.raises(ValueError, match="out must be a batch"):
        world.buffer.sample(8, out=batch._replace(obs=[1, 2]))


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("n_step", [1, 2])
def test_memory_of_batches_that_are_gone_is_used_again(n_step: int, device: str | None) -> None:
    buffer = played(60, n_slots=40, n_step=n_step).buffer
    buffer.device = device

    def place(obs: Any) -> int:
        address: int = (obs.numpy() if device else obs).ctypes.data
        return address

    places = set()
    batch = None
    for _ in range(20):
        batch = buffer.sample(8)  # the last one is held until this one is there
        places.add(place(batch.obs))
    assert len(places) == 2
    spare = buffer._output._recycler._spare
    assert len(spare) == 1
    assert batch is not None
    view = batch.next_obs[3:, 1:]
    del batch
    expected = np.array(view.numpy() if device else view)
    places = {place(buffer.sample(8).obs) for _ in range(20)}
    assert len(places) == len(spare) == 1
    assert_same(np.array(view.numpy() if device else view), expected)


@pytest.mark.parametrize("feed", ["stacks", "newest", "indices"])
def test_memory_of_any_kind_may_be_added(feed: str) -> None:
    world = World(Setting(feed, n_slots=40))
    real = world.buffer.add

    def add(*given: Any) -> None:
        *arrays, info = given
        spread = [np.stack([array, array], axis=-1)[..., 0] for array in arrays]
        for array in spread:
            array.setflags(write=False)
        real(*spread, info)

    world.buffer.add = add  # type: ignore[method-assign]
    for _ in range(60):
        world.step()
    assert_same_content(world.buffer, world.oracle)


# -- drawing ---------------------------------------------------------------------------------


def assert_distributed(counts: np.ndarray, expected: np.ndarray) -> None:
    """Chi-square, against the 99.9 % point by Wilson and Hilferty's approximation."""
    statistic = float(((counts - expected) ** 2 / expected).sum())
    df = len(counts) - 1
    limit = df * (1 - 2 / (9 * df) + 3.09 * np.sqrt(2 / (9 * df))) ** 3
    assert statistic < limit, f"chi-square {statistic:.1f} is over {limit:.1f}"


@pytest.mark.parametrize(
    "bits", [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox]
)
def test_drawing_is_as_the_generator_draws(bits: Any) -> None:
    ours, numpys = np.random.Generator(bits(3)), np.random.Generator(bits(3))
    integers, choice = Integers(ours), np.random.default_rng(1)
    for _ in range(300):
        n, size = int(2 ** choice.uniform(0, 33)), int(choice.integers(1, 40))
        assert_same(integers.below(n, size), numpys.integers(n, size=size))
        if choice.random() < 0.3:
            assert ours.random() == numpys.random()
    for n in (1, 2, 3, 2**31 + 1, 2**32 - 1, 2**32, 2**32 + 1):
        assert_same(integers.below(n, 50), numpys.integers(n, size=50))


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("full_windows", [True, False])
def test_drawing_is_uniform(replace: bool, full_windows: bool) -> None:
    world = played(60, n_slots=23, n_envs=2, n_step=3, full_windows=full_windows, seed=5)
    names = sorted(world.oracle.samplable())
    counts = np.zeros(1 + max(names), int)
    for _ in range(800):
        np.add.at(counts, world.buffer.sample(10, replace=replace).index, 1)
    assert counts.sum() == counts[names].sum() == 8000
    assert_distributed(counts[names], np.full(len(names), 8000 / len(names)))


def test_drawing_sequences_is_uniform() -> None:
    world = played(60, n_slots=23, n_envs=2, seed=6)
    names = sorted(world.oracle.sequences(3))
    counts = np.zeros(1 + max(names), int)
    for _ in range(400):
        np.add.at(counts, world.buffer.sample_sequences(10, 3).index[:, 0], 1)
    assert_distributed(counts[names], np.full(len(names), 4000 / len(names)))


def test_drawing_follows_priorities() -> None:
    world = played(60, n_slots=20, n_envs=2, prioritized=True, n_step=2, seed=7)
    buffer = world.buffer
    names = np.array(sorted(world.oracle.samplable()))
    priorities = np.random.default_rng(0).uniform(0, 3, len(names))
    priorities[4] = 0
    buffer.update_priorities(names, priorities)
    scaled = (priorities + buffer.epsilon) ** buffer.alpha
    probability = scaled / scaled.sum()
    counts = np.zeros(1 + names.max(), int)
    for _ in range(1000):
        batch = buffer.sample(8)
        np.add.at(counts, batch.index, 1)
        drawn = probability[np.searchsorted(names, batch.index)]
        weight = (len(names) * drawn) ** -buffer.beta
        np.testing.assert_allclose(batch.weight, weight / weight.max(), rtol=1e-6)
    likely = probability > 1e-3
    assert_distributed(counts[names][likely], 8000 * probability[likely])
    assert_batch(batch, world.oracle.samplable())
    # the first of a batch without replacement is drawn in proportion too
    counts[:] = 0
    for _ in range(1500):
        batch = buffer.sample(3, replace=False)
        assert len(set(batch.index.tolist())) == 3
        counts[batch.index[0]] += 1
    assert_distributed(counts[names][likely], 1500 * probability[likely])
    everything = buffer.sample(len(names), replace=False)
    assert sorted(everything.index.tolist()) == names.tolist()


def test_new_transitions_get_the_largest_priority() -> None:
    world = played(20, n_slots=50, n_envs=1, prioritized=True)
    buffer = world.buffer
    buffer.epsilon = 0.0
    names = np.array(sorted(world.oracle.samplable()))
    buffer.update_priorities(names, np.where(names == names[3], 5.0, 0.0))
    assert set(buffer.sample(20).index.tolist()) == {names[3]}
    world.step()
    assert {*buffer.sample(200).index.tolist()} == {names[3], names[-1] + 1}
    beta_1, beta_0 = buffer.sample(50, beta=1.0), buffer.sample(50, beta=0.0)
    assert set(beta_1.weight.tolist()) == set(beta_0.weight.tolist()) == {1.0}
    with pytest.raises(ValueError, match="only 2 have a priority above zero"):
        buffer.sample(3, replace=False)
    assert sorted(buffer.sample(2, replace=False).index.tolist()) == [names[3], names[-1] + 1]


def test_priorities_of_what_has_left_are_passed_over() -> None:
    world = played(30, n_slots=10, n_envs=1, prioritized=True)
    world.buffer.epsilon = 0.0
    old = np.arange(5)
    world.buffer.update_priorities(old, np.full(5, 1e9))
    names = np.array(sorted(world.oracle.samplable()))
    world.buffer.update_priorities(np.append(names, [0, names[2]]), [0.0] * len(names) + [9.0, 2.0])
    assert set(world.buffer.sample(20).index.tolist()) == {names[2]}  # the last one stays


def test_an_episode_that_is_cut_keeps_its_priorities() -> None:
    world = World(Setting(n_envs=1, n_slots=9, n_step=2, prioritized=True))
    for _ in range(4):
        world.step(0, 0)
    names = np.arange(3)
    world.buffer.update_priorities(names, [1.0, 2.0, 3.0])
    before = world.buffer._tree.leaves[:9].copy()
    world.cut([0])
    after = world.buffer._tree.leaves[:9].copy()
    assert_same(before[:3], after[:3])
    assert before[3] == 0
    assert after[3] == world.buffer._tree.top  # its one step is all there will be


@settings(max_examples=examples(50))
@given(
    n=st.integers(1, 70),
    edits=st.lists(
        st.tuples(st.integers(0, 69), st.floats(1e-200, 1e9) | st.sampled_from((0.0, 1e-200, 1.0))),
        max_size=40,
    ),
    randoms=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8),
    replace=st.booleans(),
)
def test_sum_tree(
    n: int, edits: list[tuple[int, float]], randoms: list[float], replace: bool
) -> None:
    tree = SumTree(n)
    dense = np.zeros(n)
    for cell, value in edits:
        dense[cell % n] = value
        try:
            tree.update(np.array([cell % n]), np.array([value]))
        except ValueError:
            assert dense.sum() == 0
    tree_holds = tree.leaves[:n].copy()
    positive = np.flatnonzero(tree_holds)
    assert tree.total == pytest.approx(tree_holds.sum(), rel=1e-12)
    cells, probabilities = tree.draw(np.array(randoms), replace)
    assert len(cells) == (len(randoms) if replace and len(positive) else
                          min(len(randoms), len(positive)))  # fmt: skip
    assert set(cells.tolist()) <= set(positive.tolist()), "a cell without priority was drawn"
    assert replace or len(set(cells.tolist())) == len(cells)
    np.testing.assert_allclose(probabilities, tree_holds[cells] / (tree.total or 1.0))
    assert_same(tree.leaves[:n].copy(), tree_holds)


@settings(max_examples=examples(50))
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    n_slots=st.integers(1, 80),
    length=st.integers(1, 6),
    full=st.booleans(),
)
def test_starts_that_are_kept_track_of_are_those_found_by_looking(
    lengths: list[int], n_slots: int, length: int, full: bool
) -> None:
    length = min(length, n_slots)
    flags = np.zeros((1, n_slots), np.uint8)
    kept = Windows(n_slots, length, full)
    lane, counts, runs = np.array([0]), np.array([0]), np.array([0])
    for episode, n in enumerate(lengths):
        for t in range(n):
            ends = t == n - 1 and episode < len(lengths) - 1
            flags[0, counts[0] % n_slots] = TERMINATED * ends + FIRST * (t == 0)
            counts += 1
            runs[0] = min(t + 1, n_slots)
            kept.advance(lane, True, counts, runs, flags)
    looked = Windows(n_slots, length, full)
    looked.rebuild(np.maximum(counts - n_slots, 0), counts, flags)
    assert len(kept) == len(looked)
    assert_same(kept.words, looked.words)
    cells = kept.select(np.arange(len(kept)))
    assert len(set(cells.tolist())) == len(kept)
    assert kept.holds(cells).all()
    assert np.count_nonzero(kept.holds(np.arange(n_slots))) == len(kept)


def test_only_the_lengths_used_last_are_kept_track_of() -> None:
    world = played(30, n_slots=20)
    for length in (1, 2, 3, 4, 5, 6, 2, 3):
        assert_same_sequences(world.buffer, world.oracle, length)
        world.step()
    assert [kind.length for kind in world.buffer._sequences] == [6, 2, 3]


def test_the_same_seed_draws_the_same() -> None:
    one, other = (played(30, n_slots=20, seed=4).buffer for _ in range(2))
    assert_same(one.sample(9).index, other.sample(9).index)
    generator = np.random.default_rng(4)
    shared = buffer_of(seed=generator)
    shared.add(**step())
    shared.sample(4)
    assert generator.bit_generator.state != np.random.default_rng(4).bit_generator.state


def test_the_only_priority_above_zero_leaves() -> None:
    buffer = buffer_of(3, 1, n_step=2, full_windows=True, prioritized=True, epsilon=0.0)
    shown = [np.full((1, 3, *FRAME), value, np.uint8) for value in range(6)]
    no, yes = np.zeros(1, bool), np.ones(1, bool)
    for t in range(3):
        buffer.add(shown[t], [1], [0.0], yes if t == 2 else no, no, shown[t + 1],
                   {"final_obs": shown[t + 1]})  # fmt: skip
    buffer.update_priorities([0, 1], [1.0, 0.0])
    assert buffer.sample(1).index.tolist() == [0]
    buffer.add(shown[4], [1], [0.0], no, no, shown[5])
    with pytest.raises(ValueError, match="all priorities are zero; use epsilon > 0"):
        buffer.sample(1)


def test_a_second_image_beside_frame_indices_is_compressed() -> None:
    frames = DiffFrameArray((24, 1, *FRAME), stack_axis=None)
    space = Dict({"front": INDICES, "wrist": STACKS})
    buffer = ReplayBuffer(10, space, Discrete(2), 1, frames=frames)
    image = np.zeros((1, 3, *FRAME), np.uint8)
    index = frames.append(np.zeros((1, *FRAME), np.uint8))
    front, wrist = np.repeat(index[None], 3, axis=1), image
    for t in range(1, 15):
        index = frames.append(np.full((1, *FRAME), t, np.uint8))
        after = {"front": np.append(front[:, 1:], index[None], axis=1)}
        after["wrist"] = np.append(wrist[:, 1:], image[:, :1] + np.uint8(100 + t), axis=1)
        obs = {"front": front, "wrist": wrist}
        buffer.add(obs, [1], [float(t)], [False], [False], after)
        front, wrist = after["front"], after["wrist"]
    assert [each.layout.key for each in buffer._observations.images] == ["front", "wrist"]
    assert buffer.stats()["nbytes_by_part"]["vectors"] == 0
    batch = buffer.sample(10, replace=False)
    assert_same(batch.next_obs["front"][:, -1, 0, 0], batch.reward.astype(np.uint8))
    assert_same(batch.next_obs["wrist"][:, -1, 0, 0], (batch.reward + 100).astype(np.uint8))


def test_a_row_that_ends_is_no_resets_row() -> None:
    """Where nothing tells of a lost life, at least no end can come with a reset's row."""
    buffer = buffer_of(20, 1, autoreset_mode="next_step")
    shown = [np.full((1, 3, *FRAME), value, np.uint8) for value in range(1, 9)]
    no, yes = np.zeros(1, bool), np.ones(1, bool)
    buffer.add(shown[0], [1], [0.0], yes, no, shown[1])
    buffer.add(shown[1], [1], [0.0], yes, no, shown[2])  # ends: it was played
    buffer.add(shown[2], [1], [0.0], no, no, shown[3])  # the reset
    buffer.add(shown[3], [1], [0.0], yes, no, shown[4])
    batch = buffer.sample(3, replace=False)
    assert sorted(batch.obs[:, 0, 0, 0].tolist()) == [1, 2, 4]
    assert sorted(batch.next_obs[:, 0, 0, 0].tolist()) == [2, 3, 5]


@pytest.mark.parametrize(
    "space",
    [Box(-9, 9, (2,), np.float32), MultiDiscrete([9, 70_000]), Box(0, 70_000, (2,), np.uint64)],
)
def test_actions_in_memory_of_any_order(space: Any) -> None:
    """A step that is refused leaves nothing behind, and these are none."""
    values = np.arange(8).reshape(2, 4).astype(space.dtype)
    stacks = [np.full((4, 3, *FRAME), value, np.uint8) for value in range(9)]
    no = np.zeros(4, bool)
    buffer = ReplayBuffer(12, STACKS, space, 4, stack_axis=None)
    for t in range(8):  # the ring of three transitions a lane turns
        actions = values.T if t % 2 else np.broadcast_to(values[:, t % 4], (4, 2))
        buffer.add(stacks[t], actions, np.full(4, t), no, no, stacks[t + 1])
        batch = buffer.sample(len(buffer), replace=False)
        newest = batch.reward == t
        assert_same(batch.action[newest][np.argsort(batch.index[newest])], np.array(actions))
        assert (batch.obs[:, 0, 0, 0] == batch.reward).all()


# -- drawing ahead ---------------------------------------------------------------------------


@pytest.mark.parametrize("feed", ["stacks", "indices", "dict of newest"])
@pytest.mark.parametrize("lookahead", [0, 1, 5])
def test_a_thread_changes_no_batch(feed: str, lookahead: int) -> None:
    results: list[list[Batch]] = []
    for thread in (True, False):
        world = World(Setting(feed, n_slots=6, stack_size=2, prioritized=True, seed=8))
        for _ in range(6):
            world.step()
        batches = world.buffer.batches(4, lookahead=lookahead, thread=thread)
        taken = []
        with batches:
            for _ in range(30):
                taken.append(next(batches))
                world.buffer.update_priorities(taken[-1].index, np.arange(4.0))
                for _ in range(3):
                    world.step()  # half a turn of the ring for each batch
        results.append(taken)
    for a, b in zip(*results, strict=True):
        assert_same(a.index, b.index)
        for one, other in ((a.obs, b.obs), (a.next_obs, b.next_obs)):
            if isinstance(one, dict):
                one, other = one["image"], other["image"]
            assert_same(np.array(one), np.array(other))


def test_what_was_drawn_is_delivered_after_the_ring_has_turned() -> None:
    world = played(10, n_slots=5)
    snapshot = world.oracle.samplable()
    for thread in (True, False):
        batches = world.buffer.batches(6, lookahead=3, thread=thread)
        next(batches)
        promised = [snapshot] * 3
        for _ in range(30):
            world.step()
        for expected in promised:
            assert_batch(next(batches), expected)
        snapshot = world.oracle.samplable()
        batches.close()
        batches.close()


def test_frames_outlive_the_step_after_they_were_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a ring of frames no larger than it must be, episodes of one step, and a late thread."""
    monkeypatch.setattr(drawing.ThreadPoolExecutor, "submit", lambda *_: None)
    world = World(Setting("indices", n_slots=4, stack_size=2, resets=0, seed=3))
    for _ in range(12):
        world.step(1.0, 0.0)
    batches = world.buffer.batches(16, lookahead=1)
    promised: list[Any] = [world.oracle.samplable()]
    for _ in range(12):
        promised.append(world.oracle.samplable())
        assert_batch(next(batches), promised.pop(0))
        world.step(1.0, 0.0)


def test_errors_of_drawing_ahead_reach_the_caller() -> None:
    with pytest.raises(ValueError, match="nothing can be drawn"):
        next(buffer_of().batches(4))
    with pytest.raises(ValueError, match="lookahead=-1"):
        buffer_of().batches(4, lookahead=-1)


def test_an_iterator_that_is_dropped_leaves_no_thread() -> None:
    world = played(10)
    batches = world.buffer.batches(4, lookahead=2)
    next(batches)
    del batches
    for thread in threading.enumerate():
        if thread.name.startswith("compressarray-replay"):
            thread.join(timeout=10)
            assert not thread.is_alive()


@pytest.mark.parametrize("feed", ["stacks", "newest", "dict"])
def test_adding_and_drawing_in_two_threads(feed: str) -> None:
    """Frames hold their transition's number, so that every row can be checked by itself."""
    space: Any = Box(0, 255, (3, 8, 8), np.uint8)
    arguments: dict[str, Any] = {}
    if feed == "newest":
        space, arguments = Box(0, 255, (8, 8), np.uint8), {"stack_size": 3}
    if feed == "dict":
        space = Dict({"image": space, "number": Box(0, 1e9, (1,), np.float32)})
    buffer = ReplayBuffer(12, space, Discrete(2), 1, seed=0, **arguments)

    def observation(t: int) -> Any:
        stack = np.stack([np.full((8, 8), max(t - k, 0) % 256, np.uint8) for k in (2, 1, 0)])[None]
        image = stack[:, -1] if feed == "newest" else stack
        return (
            image if feed != "dict" else {"image": image, "number": np.full((1, 1), t, np.float32)}
        )

    def add(first: int, last: int) -> None:
        for t in range(first, last):
            buffer.add(observation(t), [0], [t], [False], [False], observation(t + 1))

    add(0, 10)
    writer = threading.Thread(target=add, args=(10, 1500), daemon=True)
    writer.start()
    n_batches = 0
    while writer.is_alive() or not n_batches:
        for batch in (buffer.sample(8), buffer.sample_sequences(2, 4)):
            numbers = batch.reward.astype(int) % 256
            images = [
                each if feed != "dict" else each["image"] for each in (batch.obs, batch.next_obs)
            ]
            for image, newest in zip(images, (numbers, (numbers + 1) % 256), strict=True):
                assert (image[..., -1, :, :] == newest[..., None, None]).all()
            if feed == "dict":
                assert (batch.obs["number"][..., 0] == batch.reward).all()
        n_batches += 1
    writer.join()


# -- actions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "stored"),
    [
        (Discrete(6), "uint8"),
        (Discrete(256), "uint8"),
        (Discrete(257), "uint16"),
        (Discrete(70000, start=-5), "uint32"),
        (Discrete(3, start=2**40), "uint8"),
        (MultiDiscrete([3, 300]), "uint16"),
        (MultiDiscrete([[2, 3], [4, 5]]), "uint8"),
        (MultiDiscrete([5, 5], start=[-2, 7]), "uint8"),
        (MultiBinary(9), "uint8"),
        (MultiBinary([2, 3]), "uint8"),
        (Box(-1, 1, (3,), np.float32), "float32"),
        (Box(-1, 1, (2, 2), np.float64), "float64"),
        (Box(-3, 9, (2,), np.int64), "uint8"),
        (Box(-(2**63), 2**63 - 1, (2,), np.int64), "uint64"),
        (Box(0, 255, (2,), np.uint8), "uint8"),
    ],
)
def test_actions_of_every_space(space: Any, stored: str) -> None:
    space.seed(0)
    buffer = ReplayBuffer(40, STACKS, space, 2, seed=0)
    assert buffer._transitions.actions.dtype == stored
    given = []
    arguments = step()
    for _ in range(20):
        given.append(np.stack([np.asarray(space.sample()) for _ in range(2)]))
        buffer.add(**{**arguments, "action": given[-1]})
        arguments["obs"], arguments["next_obs"] = arguments["next_obs"], arguments["obs"]
    for each in (buffer, pickle.loads(pickle.dumps(buffer))):
        batch = each.sample(30)
        expected = np.stack([given[name // 2][name % 2] for name in batch.index.tolist()])
        assert_same(batch.action, expected.astype(space.dtype))
    assert buffer.sample_sequences(3, 2).action.shape == (3, 2, *space.shape)


@pytest.mark.parametrize(
    ("space", "action", "error", "match"),
    [
        (Discrete(4), [0, 4], ValueError, "action 4 of lane 1 is outside the action space, 0 to 3"),
        (Discrete(4, start=2), [1, 2], ValueError, "action 1 of lane 0"),
        (Discrete(4), [0.0, 1.0], TypeError, "float64; this space takes integers"),
        (Discrete(4), [[0], [1]], ValueError, r"shape \(2, 1\)"),
        (Discrete(4), [0, 1, 2], ValueError, r"shape \(3,\); 2 lanes"),
        (MultiDiscrete([2, 9]), [[1, 8], [2, 0]], ValueError, "action 2 of lane 1"),
        (MultiBinary(2), [[0, 1], [0, 2]], ValueError, "action 2 of lane 1"),
        (Box(-1, 1, (1,), np.float32), [["0"], ["1"]], TypeError, "action.astype"),
        (Box(-1, 1, (1,), np.float32), [[2**24 + 1], [0]], TypeError, "action.astype"),
        (Box(-1, 1, (1,), np.float32), [[0.0], [1.1]], ValueError, "of lane 1 is outside"),
        (
            Box(-1, 1, (1,), np.float32),
            np.array([[0], [np.nan]], np.float32),
            ValueError,
            "lane 1 holds NaN",
        ),
        (Box(0, 9, (1,), np.int32), [[3], [10]], ValueError, "action 10 of lane 1"),
    ],
)
def test_actions_that_are_refused(space: Any, action: Any, error: Any, match: str) -> None:
    buffer = ReplayBuffer(40, STACKS, space, 2)
    with pytest.raises(error, match=match):
        buffer.add(**step(action=action))
    assert len(buffer) == 0


# -- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"obs": np.zeros((3, 3, *FRAME), np.uint8)}, ValueError, "number of lanes is fixed"),
        ({"obs": np.zeros((2, 2, *FRAME), np.uint8)}, ValueError, r"obs has shape \(2, 2"),
        ({"next_obs": np.zeros((2, 3, *FRAME))}, TypeError, "next_obs has dtype float64"),
        ({"reward": [0.0, np.nan]}, ValueError, "reward nan of lane 1 is not finite"),
        ({"reward": [1e39, 0.0]}, ValueError, "of lane 0 is not finite as float32"),
        ({"reward": [0.0]}, ValueError, r"reward has shape \(1,\)"),
        ({"reward": ["a", "b"]}, TypeError, "reward has dtype"),
        ({"terminated": [0, 1]}, TypeError, "terminated has dtype int64; it must be bool"),
        ({"truncated": np.zeros((2, 1), bool)}, ValueError, "truncated has shape"),
        ({"terminated": np.array([False, True])}, ValueError, "lane 1 ended, and info has no"),
        (
            {
                "terminated": np.array([True, True]),
                "info": {"final_obs": np.zeros(2), "_final_obs": np.array([True, False])},
            },
            ValueError,
            "lane 1 ended, and info has no final_obs",
        ),
        (
            {
                "terminated": np.array([True, True]),
                "info": {"final_obs": np.zeros((2, 3, *FRAME))},
            },
            TypeError,
            "final_obs of lane 0 has dtype float64",
        ),
    ],
)
def test_steps_that_are_refused(changes: Any, error: Any, match: str) -> None:
    buffer = buffer_of(seed=0)
    buffer.add(**step())
    before = pickle.dumps(buffer)
    with pytest.raises(error, match=match):
        buffer.add(**step(**changes))
    assert pickle.dumps(buffer) == before, "something was written"
    buffer.add(**step(obs=step()["next_obs"]))
    assert len(buffer) == 4


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"capacity": 1}, ValueError, "capacity=1 must be at least 2"),
        ({"capacity": 7.5}, TypeError, "capacity=7.5 must be a whole number"),
        ({"n_envs": 0}, ValueError, "n_envs=0"),
        ({"n_step": 0}, ValueError, "n_step=0"),
        ({"n_step": 11}, ValueError, "n_step=11 is more than the 10 transitions"),
        ({"gamma": 1.1}, ValueError, "gamma=1.1 must be at least 0 and at most 1"),
        ({"gamma": np.nan}, ValueError, "gamma=nan"),
        ({"alpha": -1}, ValueError, "alpha=-1"),
        ({"epsilon": np.inf}, ValueError, "epsilon=inf"),
        ({"stack_size": 0}, ValueError, "stack_size=0"),
        ({"stack_axis": 3}, ValueError, "stack_axis=3 must be an axis"),
        ({"frame_channels": 2}, ValueError, "frame_channels=2 must divide"),
        ({"autoreset_mode": "later"}, ValueError, "autoreset_mode='later' must be one of"),
        ({"codec": "zip9"}, ValueError, "zip9"),
        ({"action_space": Text(3)}, TypeError, "action_space=.* must be a Discrete"),
        ({"observation_space": Tuple([STACKS])}, TypeError, "observation_space=.* must be a Box"),
        ({"stack_size": 2, "padding_type": "none"}, ValueError, "padding_type='none' must be"),
        ({"frames": np.zeros(3)}, TypeError, "frames=ndarray must be the DiffFrameArray"),
    ],
)
def test_buffers_that_are_refused(arguments: Any, error: Any, match: str) -> None:
    given = {"capacity": 20, "observation_space": STACKS, "action_space": Discrete(4), "n_envs": 2}
    with pytest.raises(error, match=match):
        ReplayBuffer(**{**given, **arguments})


def test_drawing_that_is_refused() -> None:
    buffer = buffer_of(n_step=2)
    with pytest.raises(ValueError, match="nothing can be drawn: the buffer holds 0 transitions"):
        buffer.sample(1)
    buffer.add(**step())
    with pytest.raises(ValueError, match="holds 2 transitions, and none has all of its n_step=2"):
        buffer.sample(1)
    buffer.add(**step(obs=step()["next_obs"]))
    with pytest.raises(ValueError, match="batch_size=3 is more than the 2"):
        buffer.sample(3, replace=False)
    with pytest.raises(ValueError, match="batch_size=0"):
        buffer.sample(0)
    with pytest.raises(TypeError, match=r"batch_size=1\.5"):
        buffer.batches(1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="length=11 is more than the 10"):
        buffer.sample_sequences(1, 11)
    with pytest.raises(IndexError, match="must be from 0 to 1"):
        buffer.cut([2])


@pytest.mark.parametrize(
    ("index", "priorities", "error", "match"),
    [
        ([0, 1], [1.0, -0.5], ValueError, "priority -0.5 at position 1"),
        ([0, 1], [np.nan, 1.0], ValueError, "priority nan at position 0"),
        ([0, 1], [np.inf, 1.0], ValueError, "priority inf"),
        ([0, 1, 2, 3], [0.0] * 4, ValueError, "sum of all to 0.0"),
        ([0, 1], [1.0], ValueError, r"index has shape \(2,\)"),
        ([0.0, 1.0], [1.0, 1.0], TypeError, "index holds float64"),
        ([0, 4], [1.0, 1.0], IndexError, "transition 4 was never added"),
        ([-1, 0], [1.0, 1.0], IndexError, "transition -1"),
        ([0, 1], ["a", "b"], TypeError, "real numbers"),
    ],
)
def test_priorities_that_are_refused(index: Any, priorities: Any, error: Any, match: str) -> None:
    buffer = buffer_of(prioritized=True, epsilon=0.0, seed=0)
    buffer.add(**step())
    buffer.add(**step(obs=step()["next_obs"]))
    buffer.update_priorities([0, 1, 2, 3, 3], [1.0, 2.0, 3.0, 9.0, 4.0])
    before = pickle.dumps(buffer)
    with pytest.raises(error, match=match):
        buffer.update_priorities(index, priorities)
    assert pickle.dumps(buffer) == before, "something was written"
    plain = buffer_of()
    plain.add(**step())
    with pytest.raises(ValueError, match="prioritized=True"):
        plain.update_priorities([0], [1.0])


# -- frames that are given -------------------------------------------------------------------


def shared(rows: int = 43, lanes: int = 2) -> DiffFrameArray:
    return DiffFrameArray((rows, lanes, *FRAME), stack_axis=None)


def test_frames_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="frames has 1 lanes and n_envs=2"):
        ReplayBuffer(40, INDICES, Discrete(2), 2, frames=shared(lanes=1))
    with pytest.raises(ValueError, match=r"keeps 42 frames a lane, and 20 .* capacity=43"):
        ReplayBuffer(40, INDICES, Discrete(2), 2, frames=shared(42))
    with pytest.raises(ValueError, match="0 entries of observation_space"):
        ReplayBuffer(40, STACKS, Discrete(2), 2, frames=shared())
    with pytest.raises(ValueError, match="stack_size=3 and frames"):
        ReplayBuffer(40, INDICES, Discrete(2), 2, frames=shared(), stack_size=3)


def test_a_frames_array_belongs_to_one_buffer() -> None:
    frames = shared()
    buffer = ReplayBuffer(40, INDICES, Discrete(2), 2, frames=frames)
    with pytest.raises(ValueError, match="belong to another ReplayBuffer"):
        ReplayBuffer(40, INDICES, Discrete(2), 2, frames=frames)
    del buffer
    again = ReplayBuffer(40, INDICES, Discrete(2), 2, frames=frames)
    twin = pickle.loads(pickle.dumps(again))
    assert twin.frames is not frames
    with pytest.raises(ValueError, match="belong to another"):
        ReplayBuffer(40, INDICES, Discrete(2), 2, frames=twin.frames)


@pytest.mark.parametrize(
    ("obs", "next_obs", "error", "match"),
    [
        ([[0, 2, 4], [1, 3, 5]], [[2, 4, 6], [5, 7, 9]], ValueError, "lane 1 does not follow"),
        ([[0, 2, 4], [1, 3, 5]], [[2, 4, 8], [3, 5, 7]], ValueError, "lane 0 are no stack"),
        ([[0, 2, 5], [1, 3, 5]], [[2, 4, 6], [3, 5, 7]], ValueError, "lane 0 are no stack"),
        ([[1, 3, 5], [0, 2, 4]], [[3, 5, 7], [2, 4, 6]], ValueError, "lane 0 are no stack"),
        ([[0, 2, 4], [1, 5, 5]], [[2, 4, 6], [5, 5, 7]], ValueError, "does not follow|no stack"),
        ([[76, 78, 80], [77, 79, 81]], [[78, 80, 82], [79, 81, 83]], FrameEvictedError, "oldest"),
        ([[94, 96, 98], [95, 97, 99]], [[96, 98, 100], [97, 99, 101]], FrameEvictedError, "lane 0"),
        ([[-2, 0, 2], [1, 3, 5]], [[0, 2, 4], [3, 5, 7]], ValueError, "no stack"),
    ],
)
def test_indices_that_are_refused(obs: Any, next_obs: Any, error: Any, match: str) -> None:
    frames = shared()
    buffer = ReplayBuffer(40, INDICES, Discrete(2), 2, frames=frames)
    n = 50 if error is FrameEvictedError and max(obs[0]) > 90 else 90
    if error is ValueError:
        n = 6
    frames.append(np.zeros((n, 2, *FRAME), np.uint8))
    arguments = step(obs=np.array(obs), next_obs=np.array(next_obs))
    with pytest.raises(error, match=match):
        buffer.add(**arguments)
    assert len(buffer) == 0


def test_a_new_stream_needs_an_empty_buffer() -> None:
    world = played(5, feed="indices", n_slots=10)
    assert world.frames is not None
    world.frames.clear()
    world.reset_from_outside([0, 1])
    with pytest.raises(StaleStreamError, match="call clear"):
        world.step()
    with pytest.raises(StaleStreamError):
        world.buffer.sample(4)
    late = world.buffer._draw(4, True, None, None)
    world.buffer.clear()
    with pytest.raises(StaleStreamError):
        late.result()
    world.oracle = world.new_oracle()
    for _ in range(5):
        world.step()
        assert_same_content(world.buffer, world.oracle)


@pytest.mark.parametrize("begins_anew", [False, True])
def test_frames_that_were_let_go_stay_so_after_clear(begins_anew: bool) -> None:
    frames = DiffFrameArray((60, 1, *FRAME), stack_axis=None)
    frames.append(np.zeros((60, 1, *FRAME), np.uint8))
    buffer = ReplayBuffer(10, INDICES, Discrete(2), 1, frames=frames)

    def add(t: int) -> None:
        stack = np.arange(t, t + 3)[None]
        buffer.add(stack, [0], [0.0], [False], [False], stack + 1)

    for t in range(50):
        add(t)
    buffer.clear()
    if begins_anew:
        frames.clear()
        frames.append(np.zeros((20, 1, *FRAME), np.uint8))
    else:
        with pytest.raises(FrameEvictedError, match="its oldest kept frame is"):
            add(3)
        assert len(buffer) == 0
    for t in range(4 if begins_anew else 50, 12 if begins_anew else 56):
        add(t)
        assert buffer.sample(5).obs.shape == (5, 3, *FRAME)


def test_an_evicted_frame_is_never_replaced_by_another() -> None:
    world = played(5, feed="indices", n_slots=5)
    assert world.frames is not None
    world.frames.append(np.zeros((20, 2, *FRAME), np.uint8))
    with pytest.raises(FrameEvictedError):
        world.buffer.sample(4)


# -- failures, copies ------------------------------------------------------------------------


@pytest.mark.parametrize("feed", ["stacks", "newest", "dict of newest"])
def test_a_failure_while_frames_are_stored_loses_nothing(
    feed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = played(9, feed=feed, n_slots=12, mode="disabled")
    real = Frames.append_within

    def fails(self: Frames, lanes: Any, n_rows: int, entries: Any) -> Any:
        real(self, np.array([1]), 1, np.zeros((1, *FRAME), np.uint8))  # half of it was written
        raise MemoryError("no memory")

    # What adds most steps does so in one kernel call, in which nothing can fail half-way.
    monkeypatch.setattr(PlainSteps, "add", lambda *_: False)
    for _ in range(3):
        before = world.observe(), world.given()
        arguments = step()
        arguments["obs"] = before[1]
        for lane in world.lanes:
            lane.step(glitch=False)
        arguments["next_obs"] = world.given()
        monkeypatch.setattr(Frames, "append_within", fails)
        with pytest.raises(MemoryError):
            world.buffer.add(**arguments)
        monkeypatch.setattr(Frames, "append_within", real)
        assert_same_content(world.buffer, world.oracle)
        world.buffer.add(**arguments)
        world.oracle.add(before[0], *list(arguments.values())[1:5], world.observe())
        assert_same_content(world.buffer, world.oracle)
        world.step()
        assert_same_content(world.buffer, world.oracle)


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("how", ["copy", "pickle"])
def test_copies_go_on_by_themselves(feed: str, how: str) -> None:
    world = played(20, feed=feed, n_slots=8, n_step=2, prioritized=True)
    buffer = world.buffer
    expected = world.oracle.samplable()
    twin = buffer.copy() if how == "copy" else pickle.loads(pickle.dumps(buffer))
    for _ in range(20):
        world.step()
    assert_same_content(buffer, world.oracle)
    assert twin.n_samplable == len(expected)
    assert_batch(twin.sample(len(expected), replace=False), expected)


# -- accounts --------------------------------------------------------------------------------


@pytest.mark.parametrize("feed", ["stacks", "newest", "indices"])
@pytest.mark.parametrize("prioritized", [False, True])
def test_what_is_not_pixels_is_small(feed: str, prioritized: bool) -> None:
    n_slots = 20_000
    world = World(Setting(feed, 2, n_slots, 4, 3, prioritized=prioritized))
    parts = world.buffer.stats()["nbytes_by_part"]
    beside = sum(parts.values()) - parts["frames"] - parts["priorities"]
    assert beside <= 16 * 2 * n_slots
    assert parts["priorities"] <= 16 * 2 * n_slots
    assert (parts["priorities"] > 0) == prioritized
    for length in range(2, 9):  # and with sequences of many lengths
        world.buffer._sequences_of(Kind(length, is_padded=False, is_prioritized=False))
        parts = world.buffer.stats()["nbytes_by_part"]
        assert sum(parts.values()) - parts["frames"] - parts["priorities"] <= 16 * 2 * n_slots


def test_accounts() -> None:
    world = played(100, n_slots=20, n_envs=3)
    buffer = world.buffer
    stats = buffer.stats()
    assert buffer.capacity == len(buffer) == stats["transitions"] == 60
    assert buffer.nbytes == 60 * (2 * 3 * 15 + 8 + 6)
    assert buffer.compression_ratio == buffer.nbytes / buffer.nbytes_stored
    assert stats["nbytes_by_part"]["frames"] == buffer.frames.nbytes_stored
    assert "60 of 60 transitions" in repr(buffer)


@pytest.mark.parametrize("feed", FEEDS)
def test_frames_that_no_transition_needs_are_let_go(
    feed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[np.ndarray] = []

    def discard(_: DiffFrameArray, before: np.ndarray) -> None:
        told.append(before.copy())

    monkeypatch.setattr(DiffFrameArray, "discard", discard, raising=False)
    world = World(Setting(feed, n_slots=9, stack_size=4))
    entry = world.buffer._observations.entries[0]
    assert entry.layout.is_image
    n_told = 0
    for _ in range(120):
        world.step(0.1, 0.1, 0.1)
        if len(told) == n_told or len(world.buffer) < world.buffer.capacity:
            continue
        n_told = len(told)
        cells = np.arange(2 * 9)
        indices = np.zeros((2, 18, 4), np.int64)
        entry.stack_indices(cells, False, indices[0])
        entry.stack_indices(cells, True, indices[1])
        indices[indices >= 2**62] = 2**62
        needed = indices.reshape(2, 2, -1).min(axis=(0, 2)) // 2
        assert_same(told[-1], needed)
    assert n_told > 3
    assert (np.diff(told, axis=0).max(axis=1) >= 16).all()  # not at every step


def test_frames_that_were_let_go_take_no_memory() -> None:
    for feed in FEEDS:
        world = World(Setting(feed, n_slots=40))
        for _ in range(300):
            world.step(0.01, 0.01)
        assert_same_content(world.buffer, world.oracle)
        assert world.buffer.stats()["frames"] <= 2 * (40 + 3 + 16 + world.oracle.n_episodes())


def test_a_warning_where_the_dense_equivalent_would_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = Box(0, 255, (4, 84, 84), np.uint8)
    monkeypatch.setattr(buffer_module, "memory_bytes", lambda: 16 * 10**9)
    message = (
        r"a dense buffer of 1,000,000 transitions would take 56.5 GB, and there are 16.0 GB of "
        r"memory; this one is expected to take 0.12 GB"
    )
    with pytest.warns(UserWarning, match=message) as warned:
        ReplayBuffer(1_000_000, space, Discrete(6))
    assert warned[0].filename == __file__
    ReplayBuffer(100_000, space, Discrete(6))
    monkeypatch.setattr(buffer_module, "memory_bytes", lambda: None)
    ReplayBuffer(1_000_000, space, Discrete(6))


def test_memory_is_what_the_control_group_allows(tmp_path: Path) -> None:
    limit, none = tmp_path / "limit", tmp_path / "none"
    limit.write_text("12345678\n")
    none.write_text("max\n")
    physical = memory_bytes([])
    assert physical is None or physical > 10**8
    assert memory_bytes([none, tmp_path / "missing"]) == physical
    assert memory_bytes([limit, none]) == 12345678


# -- torch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("feed", ["stacks", "dict"])
@pytest.mark.parametrize("n_step", [1, 2])
def test_samples_as_tensors(feed: str, n_step: int) -> None:
    torch = pytest.importorskip("torch")
    world = played(30, feed=feed, n_slots=20, n_step=n_step, prioritized=True)
    arrays, tensors = world.build(), world.build(device="cpu")
    for buffer in (arrays, tensors):
        for name in ("_observations", "_transitions", "_windows", "_tree"):
            setattr(buffer, name, getattr(world.buffer, name))
    for _ in range(3):
        dense, batch = arrays.sample(5), tensors.sample(5)
        for name, value in dense._asdict().items():
            tensor = getattr(batch, name)
            if name == "index":
                assert isinstance(tensor, np.ndarray)
                continue
            pairs = [(tensor, value)]
            if isinstance(value, dict):
                pairs = [(tensor[key], value[key]) for key in value]
            for one, other in pairs:
                assert isinstance(one, torch.Tensor)
                assert_same(np.array(one.numpy()), np.array(other))
        target = batch.reward + batch.discount * (1 - batch.terminated)
        assert target.dtype == torch.float32
        again = tensors.sample(5, out=batch)
        image = again.obs["image"] if feed == "dict" else again.obs
        before = batch.obs["image"] if feed == "dict" else batch.obs
        assert image.data_ptr() == before.data_ptr()
        arrays.sample(5)
        tensors.update_priorities(batch.index, target.abs())
        dense, sequences = arrays.sample_sequences(4, 3), tensors.sample_sequences(4, 3)
        one, other = (
            each.next_obs["image"] if feed == "dict" else each.next_obs
            for each in (sequences, dense)
        )
        assert_same(np.array(one.numpy()), np.array(other))
    twin = pickle.loads(pickle.dumps(tensors))
    assert isinstance(twin.sample(2).reward, torch.Tensor)


def test_numpy_needs_no_torch() -> None:
    code = """
        import sys
        import numpy as np
        from types import SimpleNamespace as Space
        from compressarray import ReplayBuffer

        observations = Space(shape=(3, 4, 4), dtype=np.dtype(np.uint8), low=0, high=255)
        actions = Space(shape=(), dtype=np.dtype(np.int64), n=4, start=0)
        buffer = ReplayBuffer(8, observations, actions)
        zeros = np.zeros((1, 3, 4, 4), np.uint8)
        buffer.add(zeros, [0], [0.0], [False], [False], zeros + 1)
        assert buffer.sample(2).obs.shape == (2, 3, 4, 4)
        assert not {"torch", "gymnasium"} & set(sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
