"""Going on where something was left: frames and buffers that were saved, and workers' seeds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from torch.utils.data import DataLoader, IterableDataset

import wrappers
import wrappers.vector
from compressarray import DiffFrameArray, ReplayBuffer
from tests.naive import assert_same

FRAME = (6, 8)
N = 3


class Numbered(gym.Env[Any, Any]):
    """Frames that differ, of episodes of nine steps."""

    observation_space = Box(0, 255, FRAME, np.uint8)
    action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.frame(), {}

    def frame(self) -> Any:
        return self.np_random.integers(0, 256, FRAME, np.uint8)

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.frame(), float(self.t), self.t == 9, False, {}


def made(padding_type: str = "zero") -> wrappers.vector.IndexedFrameStack:
    envs = gym.vector.SyncVectorEnv([Numbered] * N, autoreset_mode=AutoresetMode.SAME_STEP)
    return wrappers.vector.IndexedFrameStack(
        envs, 4, capacity=2 * 60 + 4, padding_type=padding_type
    )


def play(envs: Any, buffer: ReplayBuffer, n: int, seed: int, seen: list[Any]) -> None:
    obs, _ = envs.reset(seed=seed)
    for _ in range(n):
        action = np.zeros(N, np.int64)
        after, reward, ends, cuts, info = envs.step(action)
        seen += list(envs.frames.gather(obs))
        buffer.add(obs, action, reward, ends, cuts, after, info)
        obs = after


def assert_right(buffer: ReplayBuffer, seen: list[Any]) -> None:
    batch = buffer.sample(200)
    for obs, name in zip(batch.obs, batch.index.tolist(), strict=True):
        assert_same(obs.copy(), seen[name])


def saved(tmp_path: Path, n: int, padding_type: str = "zero") -> tuple[ReplayBuffer, list[Any]]:
    envs, seen = made(padding_type), []  # type: ignore[var-annotated]
    buffer = ReplayBuffer(
        60 * N, envs.single_observation_space, envs.single_action_space, N, frames=envs.frames,
        seed=0,
    )  # fmt: skip
    play(envs, buffer, n, 1, seen)
    buffer.save(tmp_path / "buffer")
    return ReplayBuffer.load(tmp_path / "buffer"), seen


@pytest.mark.parametrize("padding_type", ["zero", "reset"])
@pytest.mark.parametrize(("before", "after"), [(70, 50), (70, 3), (20, 90)])
def test_a_wrapper_goes_on_from_saved_frames(
    before: int, after: int, padding_type: str, tmp_path: Path
) -> None:
    buffer, seen = saved(tmp_path, before, padding_type)
    envs = made(padding_type)
    envs.reset(seed=0)  # of no importance
    envs.go_on_from(buffer.frames)
    play(envs, buffer, after, 2, seen)
    assert len(buffer) == N * min(60, before + after)
    assert_right(buffer, seen)


@pytest.mark.parametrize(("before", "after"), [(70, 50), (70, 3), (20, 90)])
def test_indices_of_other_frames_are_refused(before: int, after: int, tmp_path: Path) -> None:
    buffer, seen = saved(tmp_path, before)
    envs = made()
    with pytest.raises(ValueError, match="go_on_from"):
        play(envs, buffer, after, 2, [])
    assert_right(buffer, seen)
    envs.go_on_from(buffer.frames)
    play(envs, buffer, after, 2, seen)
    assert_right(buffer, seen)


def test_a_single_environment_goes_on_from_saved_frames() -> None:
    first = wrappers.IndexedFrameStack(Numbered(), 3, capacity=50)
    obs, _ = first.reset(seed=0)
    for _ in range(9):
        obs, *_ = first.step(0)
    twin = first.frames.copy()
    second = wrappers.IndexedFrameStack(Numbered(), 3, capacity=50)
    second.go_on_from(twin)
    fresh, _ = second.reset(seed=7)
    assert fresh.tolist() == [10, 10, 10]
    assert_same(second.frames.gather(obs), first.frames.gather(obs))
    fresh, _ = second.reset(seed=7)  # a seeded reset after that begins anew, as ever
    assert fresh.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("frames", "error", "match"),
    [
        (np.zeros((60, N, *FRAME), np.uint8), TypeError, "frames is a ndarray"),
        (DiffFrameArray((60, N, *FRAME), np.int16, stack_axis=None), TypeError, "holds int16"),
        (DiffFrameArray((60, N + 1, *FRAME), stack_axis=None), ValueError, "as many environments"),
        (DiffFrameArray((60, N, 8, 8), stack_axis=None), ValueError, r"frames has shape \(60"),
        (DiffFrameArray((4, N, *FRAME), stack_axis=None), ValueError, "needs 5"),
    ],
)
def test_frames_that_do_not_fit_are_refused(frames: Any, error: Any, match: str) -> None:
    envs = made()
    own = envs.frames
    with pytest.raises(error, match=match):
        envs.go_on_from(frames)
    assert envs.frames is own


# -- seeds -------------------------------------------------------------------------------------


def filled(seed: int | None) -> ReplayBuffer:
    buffer = ReplayBuffer(
        2000, Box(0, 255, FRAME, np.uint8), Discrete(3), stack_size=2, seed=seed,
        autoreset_mode="disabled",
    )  # fmt: skip
    rows = np.random.default_rng(0).integers(0, 256, (301, *FRAME), np.uint8)
    for i in range(300):
        buffer.add(rows[i][None], [0], [float(i)], [False], [False], rows[i + 1][None])
    return buffer


def test_a_seed_is_that_of_the_constructor() -> None:
    one, other = filled(5), filled(6)
    other.sample(3)
    other.seed(5)
    assert one.sample(50).index.tolist() == other.sample(50).index.tolist()
    other.seed(np.random.default_rng(5))
    one.seed(5)
    assert one.sample_sequences(9, 3).index.tolist() == other.sample_sequences(9, 3).index.tolist()
    for wrong in ("x", -1, 1.5):
        with pytest.raises((TypeError, ValueError)):
            one.seed(wrong)  # type: ignore[arg-type]


class Draws(IterableDataset[Any]):
    def __init__(self, buffer: ReplayBuffer) -> None:
        self.buffer = buffer

    def __iter__(self) -> Iterator[Any]:
        return (self.buffer.sample(5).reward for _ in range(2))


def drawn(buffer: ReplayBuffer, how: str) -> list[tuple[float, ...]]:
    """What two workers draw in two epochs."""
    torch.manual_seed(3)
    batches = []
    for _ in range(2):
        loader = DataLoader(
            Draws(buffer), batch_size=None, num_workers=2, multiprocessing_context=how
        )
        batches += [tuple(batch.tolist()) for batch in loader]
    return batches


def test_workers_draw_batches_of_their_own() -> None:
    assert len(set(drawn(filled(None), "fork"))) == 8
    buffer = filled(4)
    first = drawn(buffer, "fork")
    assert len(set(first)) == 8
    assert drawn(buffer, "fork") == first, "the same seeds"
    assert drawn(filled(5), "fork") != first
    assert drawn(buffer, "spawn") == first, "whatever way workers come to be"
