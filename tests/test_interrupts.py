"""Whatever interrupts a write, it has happened whole or not at all, and everything goes on."""

from __future__ import annotations

import copy
import pickle
import signal
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from compressarray import DiffFrameArray, ReplayBuffer
from tests.effort import examples
from tests.interrupting import interrupted, lines_of
from tests.naive import assert_same
from tests.replay_worlds import FEEDS, MODES, Setting, World
from tests.strategies import CODECS, frames, game

FRAME = (12, 16)
ROWS, LANES = 40, 2
INTERRUPTS = examples(6)  # of each operation, twice


def content(n: int, seed: int) -> np.ndarray[Any, Any]:
    rows = np.stack([game(n, FRAME, seed), frames("noise", n, FRAME, np.uint8, seed)], axis=1)
    rows[::3, 1] = rows[0, 1]
    return rows


ROW, MANY, BLOCK = content(1, 1)[0], content(3 * ROWS, 2), content(17, 3)
CELLS = np.array([3, 3, 39, 7, 20, 21, 0]), np.array([0, 0, 1, 1, 0, 0, 1])


def assign_block(array: Any) -> None:
    array[11:28] = BLOCK


def assign_cells(array: Any) -> None:
    array[CELLS] = MANY[:7, 0]


def assign_pixels(array: Any) -> None:
    array[5:30, :, 3] += np.uint8(7)


def add(array: Any) -> None:
    array += np.uint8(3)


# What changes the frames alone, so that a dense array can tell how they look afterwards.
ASSIGNMENTS: dict[str, Callable[[Any], None]] = {
    "a row": lambda array: array.__setitem__(9, ROW),
    "a block": assign_block,
    "all": lambda array: array.__setitem__(..., MANY[:ROWS]),
    "cells, some twice": assign_cells,
    "pixels": assign_pixels,
    "in place": add,
}
RING: dict[str, Callable[[DiffFrameArray], object]] = {
    "append a row": lambda array: array.append(ROW),
    "append a row to one lane": lambda array: array.append(ROW[1:], lanes=[1]),
    "append rows": lambda array: array.append(BLOCK),
    "turn the ring three times": lambda array: array.append(MANY),
    "discard": lambda array: array.discard([70, 50]),
    "pin": lambda array: array.pin(ROW),
    "clear": lambda array: array.clear(),
}


def filled(codec: str) -> DiffFrameArray:
    array = DiffFrameArray((ROWS, LANES, *FRAME), codec=CODECS[codec]())
    for row in content(ROWS + 33, 0):
        array.append(row)
    return array


def seen(array: DiffFrameArray) -> tuple[Any, ...]:
    """Everything that can be asked of an array, but for counts of what it has done."""
    counts = array.lane_counts
    index = (np.arange(int(counts.max(initial=0)))[:, None] * LANES + np.arange(LANES)).ravel()
    held = []
    for each in index.tolist():
        try:
            held.append((each, array.gather(each).tobytes()))
        except IndexError:
            held.append((each, b""))
    return np.asarray(array).tobytes(), counts.tolist(), array.stream, held


def check_whole(array: DiffFrameArray) -> None:
    """Nothing is left of a write, and a copy, which checks every record, is the same."""
    assert not array._frames.writer.steps
    assert_same(np.asarray(pickle.loads(pickle.dumps(array))), np.asarray(array))


@pytest.mark.usefixtures("learning_early")
@pytest.mark.parametrize("codec", ["raw", "sparse", "delta", "delta-huffman", "zstd by name"])
@pytest.mark.parametrize("what", [*ASSIGNMENTS, *RING])
def test_any_line_of_a_write(what: str, codec: str) -> None:
    operation = {**ASSIGNMENTS, **RING}[what]
    array = filled(codec)
    before = seen(array)
    finished = array.copy()
    operation(finished)
    after = seen(finished)
    assert before != after or what == "pin"
    counted = array.copy()
    n_lines = lines_of(operation, counted)
    # the first half of the lines as often as those of learning, which come once all is written
    rng = np.random.default_rng(n_lines)
    places = np.unique(
        np.append(
            rng.integers(0, min(n_lines, 60), INTERRUPTS), rng.integers(0, n_lines, INTERRUPTS)
        )
    )
    outcomes = set()
    for at in places.tolist():
        twin = array.copy()
        where = interrupted(at, operation, twin)
        now = seen(twin)
        assert now in (before, after), where
        outcomes.add(now == before)
        check_whole(twin)
        if now == before:
            operation(twin)
        assert seen(twin) == after, where
        check_whole(twin)
    assert True in outcomes


@pytest.mark.usefixtures("learning_early")
@pytest.mark.parametrize("codec", ["raw", "delta", "delta-huffman"])
def test_many_writes_that_fail_in_a_row(codec: str) -> None:
    """They take no memory, no frames and no place in the ring."""
    array = filled(codec)
    before, held = seen(array), array.nbytes_stored
    operations = [*ASSIGNMENTS.values(), *RING.values()]
    rng = np.random.default_rng(0)
    for k in range(examples(300)):
        operation = operations[k % len(operations)]
        if operation is RING["pin"]:
            continue
        twin_before = seen(array) if k % 50 == 0 else None
        at = int(rng.integers(4, 40))
        interrupted(at, operation, array)
        if twin_before is not None:
            assert twin_before == before
        if array.stream or seen(array) != before:  # it was done before the line came
            array = filled(codec)
    assert seen(array) == before
    assert array.nbytes_stored <= 1.2 * held + 64 * 1024


@pytest.mark.parametrize("codec", ["raw", "sparse", "delta", "delta-huffman"])
def test_stacks_that_are_taken_back_name_no_frames(codec: str) -> None:
    """Rows written in whole as a part of something larger that fails: copies are checked."""
    rng = np.random.default_rng(0)
    stacks = rng.integers(0, 3, (LANES, 4, 1, 1), np.uint8) * np.ones(FRAME, np.uint8)
    history = []
    for row in range(24):
        stacks = np.roll(stacks, -1, 1)
        stacks[:, -1] = rng.integers(0, 9, (LANES, *FRAME), np.uint8)
        if row % 7 == 3:  # another game, with equal frames: not one for each row from here on
            stacks[row % LANES] = rng.integers(0, 9, FRAME, np.uint8)
        history.append(stacks)
    for n_rows in range(23):
        array = DiffFrameArray((24, LANES, 4, *FRAME), codec=CODECS[codec]())
        for row in range(n_rows):
            array[row] = history[row]
        before = np.asarray(array)

        def fails(array: Any = array, n_rows: int = n_rows) -> None:
            array[n_rows] = history[n_rows]
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            array._frames.writer.run(fails)
        assert_same(np.asarray(pickle.loads(pickle.dumps(array))), before)


@pytest.mark.parametrize("codec", ["raw", "sparse", "delta", "delta-huffman", "zstd by name"])
def test_an_operation_that_fails_half_way_changes_nothing(codec: str) -> None:
    """NumPy raises in the middle; an ndarray would keep the rows before."""
    array = DiffFrameArray((64, 2, 2), codec=CODECS[codec]())
    array[...] = 7
    divisor = np.full((64, 2, 2), 2, np.uint8)
    divisor[40] = 0
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        array //= divisor
    assert (np.asarray(array) == 7).all()
    array //= np.uint8(7)
    assert (np.asarray(array) == 1).all()


@pytest.mark.parametrize("codec", ["raw", "delta", "delta-huffman"])
def test_floats_that_overflow_half_way_change_nothing(codec: str) -> None:
    array = DiffFrameArray((64, 2, 2), np.float32, codec=codec)
    array[...] = 1
    array[40] = 3e38
    before = np.asarray(array)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        array *= 2
    assert_same(np.asarray(array), before)


# --------------------------------------------------------------------------- buffers


def build_world(feed: str, mode: str, **settings: Any) -> World:
    world = World(Setting(feed=feed, mode=mode, n_slots=6, resets=300, **settings))
    for _ in range(25):
        world.step(0.1, 0.1, 0.05)
    return world


def samples(buffer: ReplayBuffer) -> dict[int, tuple[bytes, ...]]:
    """All that may be drawn, by name, and the priority of each where there are priorities."""
    n = buffer.n_samplable
    if not n:
        return {}
    buffer = buffer.copy()  # whose random state is its own
    batch = buffer.sample(n, replace=False, beta=1.0)
    fields = [batch.action, batch.reward, batch.terminated, batch.discount]
    for observations in (batch.obs, batch.next_obs):
        entries = observations.values() if isinstance(observations, dict) else [observations]
        fields.extend(entries)
    rows = {
        name: tuple(np.asarray(field[row]).tobytes() for field in fields)
        for row, name in enumerate(batch.index.tolist())
    }
    order = np.argsort(batch.index)
    return {**rows, -1: (np.round(batch.weight[order], 5).tobytes(), str(len(buffer)).encode())}


class Recorded:
    """The arguments of one call of `add`, to be made on copies of a buffer."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.before = copy.deepcopy(world)
        real = world.buffer
        world.buffer = self  # type: ignore[assignment]
        world.step(0.3, 0.2, 0.1)
        world.buffer = real

    def add(self, *arguments: Any) -> None:
        self.arguments = copy.deepcopy(arguments)

    def cut(self, lanes: Any) -> None:
        """Outside of `add`."""

    def __call__(self, buffer: ReplayBuffer) -> None:
        # memory that the environment writes to once the call is over, however it ended
        arguments = copy.deepcopy(self.arguments)
        try:
            buffer.add(*arguments)
        finally:
            for array in arguments[:6]:
                for entry in array.values() if isinstance(array, dict) else [array]:
                    np.asarray(entry).view(np.uint8)[...] = 0x55


@pytest.mark.filterwarnings("ignore:lane .* ended, and its next obs:UserWarning")
@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("mode", MODES)
def test_any_line_of_adding(feed: str, mode: str) -> None:
    """Several steps in a row, each of them cut off again and again before it is done."""
    world = build_world(feed, mode, prioritized=True)
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(3):
        with_oracle = copy.deepcopy(world)
        world = with_oracle
        buffer = world.buffer
        step = Recorded(world)
        if world.frames is not None:
            buffer = world.buffer
        finished = buffer.copy()
        step(finished)
        before, after = samples(buffer), samples(finished)
        counted = buffer.copy()
        n_lines = lines_of(step, counted)
        for at in rng.integers(0, n_lines, INTERRUPTS).tolist():
            twin = buffer.copy()
            where = interrupted(at, step, twin)
            now = samples(twin)
            assert now in (before, after), where
            outcomes.add(now == before)
            if now == before:
                step(twin)
            assert samples(twin) == after, where
            assert twin.frames is not buffer.frames
        world.buffer = finished
        if world.frames is not None:
            world.frames = finished.frames
    assert outcomes == {True, False}


OPERATIONS: dict[str, Callable[[ReplayBuffer], object]] = {
    "cut": lambda buffer: buffer.cut([0]),
    "clear": lambda buffer: buffer.clear(),
    "update_priorities": lambda buffer: buffer.update_priorities(
        *(lambda index: (index, index % 7 + 0.5))(np.sort(buffer.sample(9).index))
    ),
    "sample": lambda buffer: buffer.sample(5),
    "sample_sequences": lambda buffer: buffer.sample_sequences(2, 2),
}


@pytest.mark.filterwarnings("ignore:lane .* ended, and its next obs:UserWarning")
@pytest.mark.parametrize("feed", ["stacks", "newest", "dict"])
@pytest.mark.parametrize("what", OPERATIONS)
def test_any_line_of_other_calls(what: str, feed: str) -> None:
    operation = OPERATIONS[what]
    world = build_world(feed, "same_step", prioritized=True)
    buffer = world.buffer
    finished = buffer.copy()
    operation(finished)
    step = Recorded(world)
    stepped, stepped_after = buffer.copy(), finished.copy()
    step(stepped)
    step(stepped_after)
    before, after = samples(buffer), samples(finished)
    counted = buffer.copy()
    n_lines = lines_of(operation, counted)
    for at in np.random.default_rng(1).integers(0, n_lines, INTERRUPTS).tolist():
        twin = buffer.copy()
        where = interrupted(at, operation, twin)
        now = samples(twin)
        assert now in (before, after), where
        step(twin)
        assert samples(twin) in (samples(stepped), samples(stepped_after)), where


def test_adding_that_fails_again_and_again() -> None:
    """Steps that are cut off leave the frames, the memory and the samples as they were."""
    world = build_world("newest", "same_step")
    buffer = world.buffer
    before, held = samples(buffer), buffer.nbytes_stored
    counts = buffer.frames.lane_counts
    step = Recorded(world)
    counted = buffer.copy()
    lines = lines_of(step, counted)
    rng = np.random.default_rng(0)
    for _ in range(examples(100)):
        interrupted(int(rng.integers(10, lines // 2)), step, buffer)
        assert np.array_equal(buffer.frames.lane_counts, counts) or samples(buffer) != before
        if samples(buffer) != before:
            break
    assert buffer.nbytes_stored <= held + 4096


# --------------------------------------------------------------------------- signals


@pytest.mark.skipif(sys.platform == "win32", reason="signals are raised by timers")
@pytest.mark.filterwarnings("ignore")
def test_ctrl_c_while_training() -> None:
    """Real interrupts in a loop of add and sample, and the buffer goes on after each."""
    shape = (12, 12)

    def frame(t: int) -> np.ndarray:
        picture = np.zeros(shape, np.uint8)
        picture[0, :2] = t % 256, t // 256
        picture[1 + t % 11] = t % 251
        return picture

    pictures = [frame(t) for t in range(30_000)]

    def stack(t: int) -> np.ndarray:
        return np.stack(pictures[t : t + 3])[None]

    no = np.zeros(1, bool)
    space = Box(0, 255, (3, *shape), np.uint8)
    buffer = ReplayBuffer(
        50, space, Discrete(30_000), autoreset_mode="disabled", seed=0, prioritized=True
    )
    rng = np.random.default_rng(0)
    t = 0
    while t < 60:
        buffer.add(stack(t), [t], [0.0], no, no, stack(t + 1))
        t += 1
        batch = buffer.sample(8)
        buffer.update_priorities(batch.index, batch.reward + 1.0)
    pickle.loads(pickle.dumps(buffer)).sample(4, replace=False)
    n_interrupts = 0
    for _ in range(examples(60)):
        previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
        # Python swallows the one or other, where it cleans up after objects that are gone
        last = t + 400
        try:
            signal.setitimer(signal.ITIMER_REAL, float(rng.uniform(0.0003, 0.004)))
            while t < last:
                buffer.add(stack(t), [t], [0.0], no, no, stack(t + 1))
                t += 1
                if t % 4 == 0:
                    batch = buffer.sample(8)
                    buffer.update_priorities(batch.index, batch.reward + 1.0)
        except KeyboardInterrupt:
            n_interrupts += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        twin = pickle.loads(pickle.dumps(buffer))
        for each in (buffer, twin):
            batch = each.sample(each.n_samplable, replace=False)
            for obs, action, after in zip(batch.obs, batch.action, batch.next_obs, strict=True):
                assert_same(obs, stack(int(action))[0])
                assert_same(after, stack(int(action) + 1)[0])
            assert len(batch.action) == 50
        # whether the step that was cut off is in it
        t = int(batch.action.max()) + 1
        if t > 29_000:
            buffer.clear()
            t = 0
            while t < 60:
                buffer.add(stack(t), [t], [0.0], no, no, stack(t + 1))
                t += 1
    assert n_interrupts > examples(60) // 2
