"""Rewards by a byte each, and by four once they are too many, are those that were put in."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings

from compressarray import ReplayBuffer
from compressarray.errors import CorruptFrameError
from compressarray.replay.rewards import N_CODES, Rewards
from tests.effort import examples

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=examples(100), deadline=None)
@given(st.data())
def test_rewards_are_those_put_in(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 400))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    few = np.array([0.0, -0.0, 1.0, *data.draw(st.lists(FINITE, max_size=5))], np.float32)
    pools = [few, rng.standard_normal(N_CODES + 50).astype(np.float32)]
    rewards, dense = Rewards(n), np.zeros(n, np.float32)
    for _ in range(data.draw(st.integers(0, 12))):
        pool = pools[data.draw(st.integers(0, 1))]
        cells = rng.integers(0, n, data.draw(st.integers(0, 120)))
        values = pool[rng.integers(0, len(pool), len(cells))]
        rewards[cells] = values
        dense[cells] = values
        assert rewards[np.arange(n)].tobytes() == dense.tobytes()
        if data.draw(st.booleans()):
            twin = Rewards(n)
            twin.restore(rewards.snapshot())
            rewards = twin
    if len(np.unique(dense.view(np.uint32))) <= 1:
        assert rewards.nbytes < n + 4 * N_CODES + 9


@pytest.mark.parametrize("n_values", [200, 600])
def test_a_buffer_of_many_rewards(n_values: int) -> None:
    """Through plain steps and others, ends and rewriting, before and after there are too many."""
    space = Box(0, 255, (8, 8), np.uint8)
    buffer = ReplayBuffer(1000, space, Discrete(3), stack_size=2, n_envs=None, seed=0)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (1502, 8, 8), np.uint8)
    paid = rng.integers(0, n_values, 1500) / np.float32(7)
    for t in range(1500):
        ends = t % 90 == 89
        after = 255 - frames[t + 1] if ends else frames[t + 1]
        buffer.add(frames[t], 1, paid[t], ends, False, after)
        if t == 700:
            buffer.set_rewards([650, 651], [np.float32(1e9), -3.5])
            paid[[650, 651]] = 1e9, -3.5
    batch = buffer.sample(2000)
    assert batch.reward.tobytes() == paid[batch.index].astype(np.float32).tobytes()
    held = buffer.stats()["nbytes_by_part"]["transitions"]
    assert (held < 3 * 1000 + 2000) == (n_values == 200)


@pytest.mark.parametrize(
    "change",
    [
        {"values": np.array([0, np.nan], np.float32)},
        {"values": np.zeros(1, np.float32)},
        {"values": np.zeros(N_CODES + 1, np.float32)},
        {"codes": np.full(5, 9, np.uint8)},
        {"codes": np.zeros(4, np.uint8)},
        {"codes": np.zeros(0, np.uint8)},
    ],
)
def test_rewards_of_other_cells_are_refused(change: dict[str, Any]) -> None:
    rewards = Rewards(5)
    rewards[np.array([1, 2])] = np.array([3, 4], np.float32)
    with pytest.raises(CorruptFrameError):
        Rewards(5).restore({**rewards.snapshot(), **change})
