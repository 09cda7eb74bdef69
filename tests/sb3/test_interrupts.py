"""Whatever interrupts an add, the buffer has all of the step or none of it, and goes on."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates

from compressarray import sb3
from compressarray.sb3 import contrib
from tests.effort import examples
from tests.interrupting import interrupted, lines_of
from tests.sb3.test_buffers import PIXELS, VECTORS, World, infos_of
from tests.sb3.test_her import Fed, goal_space, host_env

N_ENVS, ROWS = 2, 24
ACTION = spaces.Discrete(4)
DICT = spaces.Dict({"a": PIXELS, "b": VECTORS[0], "c": PIXELS})
INTERRUPTS = examples(14)


class Steps:
    """Arguments of `add`, one step after another."""

    def __init__(self, space: Any, seed: int = 0) -> None:
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        self.worlds = {
            k: World(part, N_ENVS, seed + i) for i, (k, part) in enumerate(parts.items())
        }
        self.rng = np.random.default_rng(seed)

    def observed(self) -> Any:
        drawn = {key: world.step() for key, world in self.worlds.items()}
        _, _, done, cut = next(iter(drawn.values()))
        obs, nexts = ({key: each[i] for key, each in drawn.items()} for i in (0, 1))
        return (obs[""], nexts[""], done, cut) if "" in obs else (obs, nexts, done, cut)

    def replay(self) -> tuple[Any, ...]:
        obs, nexts, done, cut = self.observed()
        action = self.rng.integers(0, 4, N_ENVS)
        return obs, nexts, action, self.rng.normal(size=N_ENVS), done, infos_of(cut)

    def rollout(self) -> tuple[Any, ...]:
        obs, _, done, _ = self.observed()
        action = self.rng.integers(0, 4, N_ENVS)
        value, log_prob = (th.tensor(self.rng.normal(size=N_ENVS)) for _ in range(2))
        return obs, action, self.rng.normal(size=N_ENVS), done, value, log_prob


def replay(kind: Any, space: Any = PIXELS, **kwargs: Any) -> Callable[[], Any]:
    def make() -> Any:
        buffer = kind(ROWS * N_ENVS, space, ACTION, device="cpu", n_envs=N_ENVS, **kwargs)
        steps = Steps(space)
        for _ in range(2 * ROWS + 8):  # the next row is one at which old frames are let go
            buffer.add(*steps.replay())
        args = steps.replay()
        return buffer, lambda buffer: buffer.add(*copy.deepcopy(args))

    return make


def her() -> Any:
    space = goal_space(PIXELS)
    buffer = sb3.CompressedHerReplayBuffer(
        ROWS * N_ENVS, space, spaces.Box(-1, 1, (2,)), device="cpu", n_envs=N_ENVS,
        env=host_env(), copy_info_dict=True,
    )  # fmt: skip
    fed = Fed(space, N_ENVS, 1)
    while True:  # until an episode ends in a step that overwrites another one
        args = fed.step()
        ends = args[4].any()
        if buffer.full and ends and (buffer.ep_length[buffer.pos] > 0).any():
            return buffer, partial(_add, args)
        buffer.add(*args)


def _add(args: Any, buffer: Any) -> None:
    buffer.add(*copy.deepcopy(args))


def her_cut_off() -> Any:
    buffer, _ = her()
    assert (buffer._current_ep_start != buffer.pos).any()
    return buffer, lambda buffer: buffer.truncate_last_trajectory()


def rollout(kind: Any, space: Any = PIXELS, beside: Any = dict, **kwargs: Any) -> Callable[[], Any]:
    def make() -> Any:
        buffer = kind(ROWS, space, ACTION, device="cpu", n_envs=N_ENVS, **kwargs)
        steps = Steps(space)
        for number in range(2 * ROWS - 1):  # the next row is the last one
            if number == ROWS:
                buffer.reset()
            buffer.add(*steps.rollout(), **beside())
        args, more = steps.rollout(), beside()
        return buffer, lambda buffer: buffer.add(*copy.deepcopy(args), **more)

    return make


def masks() -> dict[str, Any]:
    return {"action_masks": np.arange(N_ENVS * 4) % 3 > 0}


def states() -> dict[str, Any]:
    drawn = [th.randn(1, N_ENVS, 3) for _ in range(4)]
    return {"lstm_states": RNNStates((drawn[0], drawn[1]), (drawn[2], drawn[3]))}


def reset(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: (make()[0], lambda buffer: buffer.reset())


SHAPE = {"hidden_state_shape": (ROWS, 1, N_ENVS, 3)}
WRITES: dict[str, Callable[[], Any]] = {
    "replay": replay(sb3.CompressedReplayBuffer),
    "replay, raw": replay(sb3.CompressedReplayBuffer, codec="raw"),
    "dict": replay(sb3.CompressedDictReplayBuffer, DICT),
    "n-step": replay(sb3.CompressedNStepReplayBuffer),
    "prioritized": replay(sb3.CompressedPrioritizedReplayBuffer),
    "her": her,
    "her, cut off": her_cut_off,
    "reset": reset(replay(sb3.CompressedDictReplayBuffer, DICT)),
    "reset, prioritized": reset(replay(sb3.CompressedPrioritizedReplayBuffer)),
    "reset, her": reset(her),
    "rollout": rollout(sb3.CompressedRolloutBuffer),
    "rollout, dict": rollout(sb3.CompressedDictRolloutBuffer, DICT),
    "masked": rollout(contrib.CompressedMaskableRolloutBuffer, beside=masks),
    "recurrent": rollout(contrib.CompressedRecurrentRolloutBuffer, beside=states, **SHAPE),
}


def seen(buffer: Any) -> Any:
    """All that can be seen of what a buffer holds: rows that were not written yet are not."""
    rows = slice(0, buffer.size())
    found: list[Any] = [buffer.pos, buffer.full]
    names = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
    more = ("episode_starts", "values", "log_probs", "action_masks", *contrib.STATES)
    for name in (*names, *more, "ep_start", "ep_length"):
        held = getattr(buffer, name, None)
        parts = held.values() if isinstance(held, dict) else [held]
        found += [None if each is None else np.asarray(each[rows]).tobytes() for each in parts]
    if hasattr(buffer, "ep_start"):
        found += [buffer._current_ep_start.tolist(), buffer.infos[rows].tolist()]
    if hasattr(buffer, "_tree"):
        found += [buffer._tree.leaves.tobytes(), buffer._tree.sums.tobytes()]
    return found


@pytest.mark.filterwarnings("ignore:The last trajectory")
@pytest.mark.parametrize("what", WRITES)
def test_any_line_of_a_write(what: str) -> None:
    th.manual_seed(0)
    buffer, write = WRITES[what]()
    before = seen(buffer)
    finished, counted = copy.deepcopy(buffer), copy.deepcopy(buffer)
    write(finished)
    after = seen(finished)
    assert before != after
    n_lines = lines_of(write, counted)
    rng = np.random.default_rng(n_lines)
    places = {0, n_lines - 1, *rng.integers(0, n_lines, INTERRUPTS).tolist()}
    outcomes = set()
    for at in sorted(places):
        twin = copy.deepcopy(buffer)
        where = interrupted(at, write, twin)
        assert where
        # what is asked for first must not matter
        now = seen(pickle.loads(pickle.dumps(twin)) if at % 2 else twin)
        assert now in (before, after), where
        outcomes.add(now == before)
        if now == before:
            write(twin)
        assert seen(twin) == after, where
        assert seen(pickle.loads(pickle.dumps(twin))) == after, where
    assert True in outcomes


@pytest.mark.parametrize("kind", ["replay", "her", "rollout"])
def test_many_that_are_cut_off_take_nothing(kind: str) -> None:
    buffer, write = WRITES[kind]()
    before, held = seen(buffer), buffer.nbytes_stored
    n_lines = lines_of(write, copy.deepcopy(buffer))
    n_undone = 0
    for number in range(300):
        assert interrupted(4 + number * 7 % (n_lines // 3), write, buffer)
        n_undone += buffer.pos == before[0]
        if buffer.pos != before[0]:  # it was done before the line came
            buffer, write = WRITES[kind]()
    assert n_undone > 200
    assert seen(buffer) == before
    assert buffer.nbytes_stored <= 1.2 * held + 64 * 1024
    write(buffer)


def test_a_draw_of_n_steps_that_is_cut_off() -> None:
    """The parent marks a row while it looks; the mark does not stay."""
    buffer, _ = WRITES["n-step"]()
    buffer.dones[buffer.pos - 1] = 0
    before = seen(buffer)

    def draw(buffer: Any) -> None:
        buffer.sample(8)

    for at in range(0, lines_of(draw, buffer), 5):
        assert interrupted(at, draw, buffer)
        assert seen(buffer) == before


@pytest.mark.parametrize("what", ["rollout", "rollout, dict", "masked", "recurrent"])
def test_a_preparation_that_is_cut_off(what: str) -> None:
    """The host flattens columns before the first batch; half of them flat would be of no use."""
    buffer, write = WRITES[what]()
    write(buffer)

    def batches(buffer: Any, at: int | None = None) -> Any:
        np.random.seed(1)
        if at is not None:
            return interrupted(at, lambda buffer: next(buffer.get(7)), buffer)
        return [_bytes_of(each) for each in buffer.get(7)]

    want = batches(copy.deepcopy(buffer))
    n_lines = lines_of(lambda buffer: next(buffer.get(7)), copy.deepcopy(buffer))
    for at in np.linspace(0, n_lines - 1, 4 * INTERRUPTS).astype(int).tolist():
        twin = copy.deepcopy(buffer)
        assert batches(twin, at)
        assert batches(twin) == want


def _bytes_of(samples: Any) -> Any:
    if isinstance(samples, dict):
        samples = tuple(samples.values())
    if isinstance(samples, tuple):
        return [_bytes_of(each) for each in samples]
    return samples.numpy().tobytes()


def test_a_fork_while_another_thread_adds() -> None:
    """The child sees whole transitions only, and can go on with its copy."""
    space = spaces.Box(0, 255, (2, 8, 8), np.uint8)
    buffer = sb3.CompressedReplayBuffer(40, space, ACTION, device="cpu")
    stop = threading.Event()

    def add(number: int) -> None:
        pixels = np.full((1, 2, 8, 8), number % 256, np.uint8)
        cell = np.array([number % 4])
        buffer.add(pixels, pixels, cell, np.array([number % 256]), np.array([0]), [{}])

    def adding() -> None:
        number = 0
        while not stop.is_set():
            add(number)
            number += 1

    add(0)
    thread = threading.Thread(target=adding)
    thread.start()
    context = multiprocessing.get_context("fork")
    try:
        for _ in range(6):
            child = context.Process(target=_look, args=(buffer,))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a process with threads forks
                child.start()
            child.join(60)
            assert child.exitcode == 0
    finally:
        stop.set()
        thread.join()


def _look(buffer: Any) -> None:
    def check() -> None:
        rows = buffer.size()
        for values in (buffer.observations[:rows], buffer.next_observations[:rows]):
            assert (values == buffer.rewards[:rows, :, None, None, None]).all()

    check()
    pixels = np.full((1, 2, 8, 8), 7, np.uint8)
    for _ in range(50):
        buffer.add(pixels, pixels, np.array([1]), np.array([7]), np.array([0]), [{}])
        check()
    assert (buffer.rewards == 7).all()
