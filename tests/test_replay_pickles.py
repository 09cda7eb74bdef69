"""Pickles of buffers that somebody has altered, and pickles in memory of others.

A state that was altered is refused, or what comes back of it can be used like any buffer: that is
tried in a process of its own, whose death or hanging would be noticed.
"""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compressarray import CorruptFrameError, FrameEvictedError, ReplayBuffer, StaleStreamError
from tests.effort import examples
from tests.naive import assert_same
from tests.replay_worlds import FEEDS, Setting, World, assert_same_content
from tests.test_fuzz import at, leaves, put, spoilt_state

IMPORT = "from tests.test_replay_pickles import fuzz"
MAY_SAY = (ValueError, IndexError)
PLAYED = Setting(n_slots=9, n_step=2, prioritized=True, seed=4)


def played(setting: Setting, n: int = 30) -> World:
    """A world whose ring has turned, with priorities that differ."""
    world = World(setting)
    for _ in range(n):
        world.step(p_glitch=0.1)
    if setting.prioritized:
        index = world.buffer.sample(6).index
        world.buffer.update_priorities(index, np.arange(6.0))
    return world


def restored(state: Any) -> ReplayBuffer:
    twin = object.__new__(ReplayBuffer)
    twin.__setstate__(copy.deepcopy(state))
    return twin


def use(world: World, buffer: ReplayBuffer) -> None:
    """Sample, add, copy and clear, whatever it holds."""

    def look() -> None:
        # a sum of priorities that is zero, or frames that somebody else let go
        with contextlib.suppress(*MAY_SAY):
            buffer.sample(8)
        with contextlib.suppress(*MAY_SAY):
            buffer.sample_sequences(4, 2)
        stats = buffer.stats()
        assert stats["transitions"] == len(buffer) <= buffer.capacity
        assert 0 <= stats["samplable"] <= len(buffer)

    look()
    world.buffer = buffer
    if world.frames is not None:
        world.frames = buffer.frames
    with contextlib.suppress(*MAY_SAY):  # of indices that are none of these frames
        for _ in range(3 * world.setting.n_slots):
            world.step()
    look()
    buffer.cut()
    twin = buffer.copy()
    twin.stats()
    pickle.loads(pickle.dumps(buffer))
    buffer.clear()
    assert len(buffer) == 0


def fuzz(feed: str, first: int, n: int) -> None:
    """Spoil states, one example a seed; die where an example does."""
    outcomes: Counter[str] = Counter()
    settings = [
        replace(PLAYED, feed=feed),
        replace(PLAYED, feed=feed, n_envs=1, n_step=1, prioritized=False, padding="zero"),
        replace(PLAYED, feed=feed, padding="junk", mode="next_step", full_windows=True),
    ]
    pickled = [pickle.dumps(played(setting)) for setting in settings]
    for seed in range(first, first + n):
        sys.stderr.write(f"{seed} ")
        rng = np.random.default_rng(seed)
        world = pickle.loads(pickled[seed % len(pickled)])
        state = spoilt_state(rng, copy.deepcopy(world.buffer.__getstate__()))
        twin = object.__new__(ReplayBuffer)
        try:
            twin.__setstate__(state)
        except CorruptFrameError:
            outcomes["refused"] += 1
            continue
        outcomes["loaded"] += 1
        use(world, twin)
    assert min(outcomes["loaded"], outcomes["refused"]) >= n // 10, outcomes
    sys.stdout.write(f"done {dict(outcomes)}\n")


@pytest.mark.parametrize("feed", FEEDS)
def test_spoilt_states(feed: str) -> None:
    n = examples(120)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from tests.test_replay_pickles import fuzz; fuzz({feed!r}, 0, {n})",
        ],
        capture_output=True,
        text=True,
        timeout=120 + n,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p) or "."},
        check=False,
    )
    assert done.returncode == 0, f"code {done.returncode}, after seeds {done.stderr[-2000:]}"
    assert done.stdout.startswith("done")


def arrays_of(state: Any) -> list[tuple[Any, ...]]:
    return [path for path in leaves(state) if isinstance(at(state, path), np.ndarray)]


@pytest.mark.parametrize("feed", FEEDS)
def test_arrays_of_other_lengths_and_dtypes_are_refused(feed: str) -> None:
    state = played(replace(PLAYED, feed=feed)).buffer.__getstate__()
    paths = [path for path in arrays_of(state) if path[0] != "arguments"]
    assert len(paths) > 20
    for path in paths:
        array = at(state, path)
        others = [array.astype(np.float16), array.astype(np.int8 if array.itemsize > 1 else ">i4")]
        if path[-1] not in ("others", "rows", "values"):  # of those there may be less
            others.append(array[:-1])
        for other in others:
            with pytest.raises(CorruptFrameError, match=path[-1]):
                restored(put(state, path, other))
    assert len(restored(state)) == 18


@pytest.mark.parametrize("feed", FEEDS)
def test_numbers_altered_by_one_are_refused(feed: str) -> None:
    """Those that say which transitions and frames there are."""
    world = played(replace(PLAYED, feed=feed))
    state = world.buffer.__getstate__()
    everywhere = range(2)
    entry = ("observations", "entries", 0, "stacks")
    newest = np.cumsum(at(state, (*entry, "runs", "counts"))) - 1
    altered = [
        (("transitions", "counts"), everywhere),
        ((*entry, "lanes", "at"), everywhere),
        ((*entry, "lanes", "age"), everywhere),
        ((*entry, "runs", "counts"), everywhere),
        ((*entry, "runs", "newest"), newest),  # which led to where the lane stands
        ((*entry, "runs", "times"), newest),
    ]
    for path, places in altered:
        for place in places:
            for change in (-1, 1):
                array = at(state, path).copy()
                array[place : place + 1] += np.array(change).astype(array.dtype)
                with pytest.raises(CorruptFrameError):
                    restored(put(state, path, array))


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (("priorities", "leaves"), np.nan, "leaves"),
        (("priorities", "leaves"), -1.0, "leaves"),
        (("priorities", "leaves"), 1e9, "leaves"),
        (("priorities", "top"), np.inf, "top"),
        (("priorities", "top"), 0.5, "top"),
        (("transitions", "actions"), 5, "actions .* outside the action space"),
        (("transitions", "rewards", "values"), np.inf, "rewards"),
        (("transitions", "flags"), 16, "flags"),
        (("resets", "phase"), 3, "phase"),
        (("arguments", "capacity"), 2**60, "flags"),
        (("arguments", "n_step"), 0, "n_step"),
        (("arguments", "action_space"), None, "arguments"),
        (("rng",), 3, "rng"),
        (("output",), 3, "output"),
    ],
)
def test_values_that_no_buffer_has_are_refused(path: Any, value: Any, what: str) -> None:
    state = played(PLAYED).buffer.__getstate__()
    if isinstance(at(state, path), np.ndarray):
        array = at(state, path).copy()
        array.reshape(-1)[0] = value
        value = array
    with pytest.raises(CorruptFrameError, match=what):
        restored(put(state, path, value))


@pytest.mark.parametrize("feed", FEEDS)
def test_pickles_in_memory_of_others(feed: str) -> None:
    """As Ray and Dask hand them over: read-only, and not written to."""
    world = played(replace(PLAYED, feed=feed))
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(world.buffer, protocol=5, buffer_callback=buffers.append)
    frozen = [bytes(buffer) for buffer in buffers]
    before = [bytes(bytearray(each)) for each in frozen]
    assert len(frozen) > 10
    twin = pickle.loads(pickled, buffers=frozen)
    index = world.buffer.sample(7).index
    assert_same(twin.sample(7).index, index)
    world.buffer = twin
    if world.frames is not None:
        world.frames = twin.frames
    for _ in range(30):
        world.step()
        twin.update_priorities(twin.sample(4).index, np.ones(4))
    assert_same_content(twin, world.oracle)
    twin.clear()
    assert frozen == before


@pytest.mark.parametrize("feed", ["stacks", "newest", "dict"])
def test_frames_that_hold_less_than_transitions_need_are_refused(feed: str) -> None:
    state = played(replace(PLAYED, feed=feed)).buffer.__getstate__()
    path = ("observations", "entries", 0, "frames")
    fewer, shifted, other = (at(state, path).copy() for _ in range(3))
    fewer.discard(fewer.lane_counts)
    shifted[0] = shifted[1]
    other.clear()
    for frames in (fewer, shifted, other, fewer.reshape(fewer.shape[0], 2, 3, 5).copy(), None):
        with pytest.raises(CorruptFrameError):
            restored(put(state, path, frames))


@pytest.mark.parametrize("feed", FEEDS)
def test_an_empty_buffer_comes_back(feed: str) -> None:
    world = World(replace(PLAYED, feed=feed))
    for _ in range(2):
        world.buffer = pickle.loads(pickle.dumps(world.buffer))
        if world.frames is not None:
            world.frames = world.buffer.frames
        assert len(world.buffer) == 0
        for _ in range(20):
            world.step()
        world.buffer.clear()


@pytest.mark.parametrize(
    ("what", "error"), [("clear", StaleStreamError), ("append", FrameEvictedError)]
)
def test_frames_that_their_wrapper_let_go_are_no_fault_of_the_pickle(
    what: str, error: type[Exception]
) -> None:
    world = played(replace(PLAYED, feed="indices"))
    assert world.frames is not None
    if what == "clear":
        world.frames.clear()
    else:
        world.frames.append(np.zeros((60, 2, 3, 5), np.uint8))
    twin = pickle.loads(pickle.dumps(world.buffer))
    assert len(twin) == 18
    for buffer in (world.buffer, twin):
        with pytest.raises(error):
            buffer.sample(4)
