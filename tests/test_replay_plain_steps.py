"""Most steps are added by one kernel call, and nothing shows which."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from compressarray import ReplayBuffer
from compressarray.feed import ChangeFeed, Replica
from compressarray.replay.plain_indices import PlainIndices
from compressarray.replay.plain_steps import PlainSteps
from tests.naive import assert_same
from tests.replay_worlds import Setting, World, assert_same_content
from tests.strategies import game

FRAME = (12, 16)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts steps that were added plainly, that were none, and that were begun and taken back."""
    counts: Counter[str] = Counter()
    roll_back = PlainSteps.roll_back

    def counted(add: Any) -> Any:
        def counted_add(self: Any, *arguments: Any) -> bool:
            was_added = bool(add(self, *arguments))
            counts["plain" if was_added else "not"] += 1
            return was_added

        return counted_add

    def counted_roll_back(self: PlainSteps) -> None:
        counts["taken back"] += int(self._progress[0] == 1)
        roll_back(self)

    for kind in (PlainSteps, PlainIndices):
        monkeypatch.setattr(kind, "add", counted(kind.add))
    monkeypatch.setattr(PlainSteps, "roll_back", counted_roll_back)
    return counts


@pytest.mark.usefixtures("learning_early")
@pytest.mark.parametrize("codec", ["delta", "delta-huffman", "sparse"])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("feed", ["stacks", "newest"])
def test_nothing_tells_plain_steps_from_others(
    feed: str, n_envs: int, codec: str, seen: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = FRAME if feed == "newest" else (4, *FRAME)
    arguments: dict[str, Any] = {
        "n_envs": n_envs, "n_step": 3, "prioritized": True, "codec": codec, "seed": 3,
        "stack_size": 4 if feed == "newest" else None, "autoreset_mode": "disabled",
        "gop_length": 8,
    }  # fmt: skip
    space = Box(0, 255, shape, np.uint8)
    plain, other = (ReplayBuffer(80 * n_envs, space, Discrete(5), **arguments) for _ in range(2))
    n_steps = 400
    frames = [game(2 * n_steps, FRAME, 7 + lane) for lane in range(n_envs)]
    at = np.full(n_envs, 4)

    def observation(at: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if feed == "newest":
            return np.stack([each[t] for each, t in zip(frames, at, strict=True)])
        return np.stack([each[t - 3 : t + 1] for each, t in zip(frames, at, strict=True)])

    rng = np.random.default_rng(0)
    for t in range(n_steps - 1):
        ends = rng.random((2, n_envs)) < 0.01
        step = (
            observation(at), rng.integers(0, 5, n_envs), rng.normal(size=n_envs), *ends,
            observation(at + 1),
        )  # fmt: skip
        at += np.where(ends.any(axis=0), 7, 1)  # an episode begins elsewhere
        plain.add(*step)
        with monkeypatch.context() as patch:
            patch.setattr(PlainSteps, "add", lambda *_: False)
            other.add(*step)
        if t % 20 == 7:
            one, two = plain.sample(5), other.sample(5)
            for name in ("obs", "next_obs", "action", "reward", "discount", "index", "weight"):
                assert_same(getattr(one, name), getattr(two, name))
            for each in (plain, other):
                each.update_priorities(one.index, np.arange(5.0))
        if t % 50 == 9:
            one, two = (each.sample_sequences(3, 4) for each in (plain, other))
            assert_same(one.obs, two.obs)
    assert seen["plain"] > 0.6 * n_steps
    assert len(plain) == len(other)
    assert abs(plain.nbytes_stored - other.nbytes_stored) < 0.02 * other.nbytes_stored + 4096


@pytest.mark.parametrize("padding", ["reset", "zero"])
@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_nothing_tells_plain_steps_of_frame_indices_from_others(
    n_envs: int, mode: str, padding: str, seen: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(
        "indices", n_envs=n_envs, n_slots=40, n_step=3, mode=mode, padding=padding,
        prioritized=True, frame=FRAME, seed=4,
    )  # fmt: skip
    plain, other = World(setting), World(setting)
    for t in range(300):
        plain.step(0.01, 0.01)
        with monkeypatch.context() as patch:
            patch.setattr(PlainIndices, "add", lambda *_: False)
            other.step(0.01, 0.01)
        if t % 20 == 7:
            one, two = plain.buffer.sample(5), other.buffer.sample(5)
            for name in ("obs", "next_obs", "action", "reward", "discount", "index", "weight"):
                assert_same(getattr(one, name), getattr(two, name))
            for each in (plain, other):
                each.buffer.update_priorities(one.index, np.arange(5.0))
        if t % 50 == 9:
            one, two = (each.buffer.sample_sequences(3, 4) for each in (plain, other))
            assert_same(one.obs, two.obs)
    assert_same_content(plain.buffer, plain.oracle)
    assert seen["plain"] > 150
    assert plain.frames is not None
    assert other.frames is not None
    assert plain.frames.nbytes_stored == other.frames.nbytes_stored  # as much was let go


def test_indices_that_are_wrong_are_refused_after_plain_steps_too(seen: Counter[str]) -> None:
    world = World(Setting("indices", n_slots=20))
    for _ in range(30):
        world.step(0.0, 0.0)
    before = seen["plain"]
    assert before > 10
    obs = world.indices.copy()
    zeros, no = np.zeros(2), np.zeros(2, bool)
    for successor, match in (
        (obs + 6, "does not follow"),
        (obs[::-1] + 2, "are no stack of its frames"),
        (obs + 2, "adds a transition of frames"),
    ):
        with pytest.raises((ValueError, IndexError), match=match):
            world.buffer.add(obs, np.zeros(2, int), zeros, no, no, successor)
        assert_same_content(world.buffer, world.oracle)
    world.step(0.0, 0.0)
    assert seen["plain"] == before + 1
    assert_same_content(world.buffer, world.oracle)


def test_what_frames_need_from_python_they_get(seen: Counter[str]) -> None:
    """A stream that has no room is taken back, and stored the long way."""
    world = World(Setting(n_slots=60, n_step=2, frame=(20, 20), n_envs=2))
    for t in range(300):
        world.step(0.01, 0.01)
        if t % 30 == 0:
            assert_same_content(world.buffer, world.oracle)
    assert_same_content(world.buffer, world.oracle)
    assert seen["plain"] > 150
    assert seen["taken back"] > 0


def test_replicas_and_copies_hear_of_plain_steps(seen: Counter[str]) -> None:
    world = World(Setting(n_slots=40, prioritized=True))
    feed, replica = ChangeFeed(world.buffer), Replica()
    for t in range(120):
        world.step(0.01, 0.01)
        if t % 3 == 0:
            replica.apply(feed.read())
            assert_same_content(replica.buffer, world.oracle)
    twin = world.buffer.copy()
    before = seen["plain"]
    assert before > 60
    world.buffer, first = twin, world.buffer
    for _ in range(20):
        world.step(0.0, 0.0)
    assert seen["plain"] > before + 10
    assert_same_content(world.buffer, world.oracle)
    assert len(first) == len(replica.buffer)


def test_a_buffer_that_is_cleared_adds_plainly_again(seen: Counter[str]) -> None:
    world = World(Setting(n_slots=40))
    for _ in range(3):
        for _ in range(30):
            world.step(0.0, 0.0)
        assert_same_content(world.buffer, world.oracle)
        world.buffer.clear()
        world.oracle.clear()
    assert seen["plain"] > 60
