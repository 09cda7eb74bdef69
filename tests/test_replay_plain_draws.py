"""Most batches are drawn by one kernel call, and nothing shows which."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from compressarray.replay.buffer import ReplayBuffer
from compressarray.replay.plain_draws import PlainDraws
from tests.naive import assert_same
from tests.replay_worlds import Setting, World

N_STEPS = 250


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts draws whose frames were found, that were finished otherwise, and that were refused."""
    counts: Counter[str] = Counter()
    draw = PlainDraws.draw

    def counted(self: PlainDraws, *arguments: Any) -> Any:
        found = draw(self, *arguments)
        counts["refused" if found is None else "found" if found.reader else "otherwise"] += 1
        return found

    monkeypatch.setattr(PlainDraws, "draw", counted)
    return counts


def assert_same_batches(one: Any, two: Any) -> None:
    for name in one._fields:
        left, right = getattr(one, name), getattr(two, name)
        if not isinstance(left, dict):
            assert_same(left, right)


def in_order(buffer: ReplayBuffer) -> None:
    """Draw as if there were no plain draws."""
    buffer._draws_plainly = False


@pytest.mark.parametrize("n_lanes", [1, 3])
@pytest.mark.parametrize("feed", ["stacks", "newest", "indices"])
def test_nothing_tells_plain_draws_from_others(feed: str, n_lanes: int, seen: Counter[str]) -> None:
    setting = Setting(feed=feed, n_envs=n_lanes, n_slots=30)
    plain, other = World(setting), World(setting)
    in_order(other.buffer)
    ahead = plain.buffer.batches(5, lookahead=2), other.buffer.batches(5, lookahead=2)
    for t in range(N_STEPS):
        for world in (plain, other):
            world.step()
        if t == 120:
            for world in (plain, other):
                world.buffer.clear()
        elif len(plain.buffer) > 1 and t % 3 == 0:
            assert_same_batches(plain.buffer.sample(7), other.buffer.sample(7))
            if t % 9 == 0 and t < 120:
                assert_same_batches(next(ahead[0]), next(ahead[1]))
    assert seen["found"] > 60
    plain.buffer.seed(5)
    other.buffer.seed(5)
    assert_same_batches(plain.buffer.sample(7), other.buffer.sample(7))


def test_stacks_that_do_not_go_on_are_drawn_all_the_same(seen: Counter[str]) -> None:
    space = Box(0, 255, (3, 6, 5), np.uint8)
    plain, other = (ReplayBuffer(20, space, Discrete(2), n_envs=None, seed=1) for _ in range(2))
    in_order(other)
    rng = np.random.default_rng(0)
    obs = rng.integers(0, 256, space.shape, np.uint8)
    for t in range(80):
        goes_on = np.concatenate([obs[1:], rng.integers(0, 256, (1, 6, 5), np.uint8)])
        after = rng.integers(0, 256, space.shape, np.uint8) if t % 30 > 25 else goes_on
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that stacks do not go on
            for buffer in (plain, other):
                buffer.add(obs, t % 2, t, False, False, after)
        obs = after
        if t > 2:
            assert_same_batches(plain.sample(7), other.sample(7))
    assert seen["otherwise"] > 0
    assert seen["found"] > 0
