"""A child made by fork can use every array and buffer, whatever the threads of its parent did."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from compressarray import DiffFrameArray, ReplayBuffer
from tests.effort import examples

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system"),
    # of Python 3.12 and later: that is what is tested
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]

FRAME = (10, 12)
N_FORKS = examples(30)
PATIENCE_S = 60


def picture(number: int) -> np.ndarray:
    """A frame that says which one it is, and that is like the one before it but for a row."""
    frame = np.zeros(FRAME, np.uint8)
    frame[0, :4] = np.frombuffer(np.uint32(number).tobytes(), np.uint8)
    frame[1 + number % 9] = number % 251
    return frame


def number_of(frame: np.ndarray) -> int:
    number = int(frame[0, :4].copy().view(np.uint32)[0])
    assert np.array_equal(frame, picture(number)), "no frame that was ever written"
    return number


@contextmanager
def going_on(step: Callable[[], None]) -> Iterator[threading.Event]:
    """Another thread does something again and again."""
    stop, errors = threading.Event(), []

    def work() -> None:
        try:
            while not stop.is_set():
                step()
        except BaseException as error:
            errors.append(error)
            raise

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()
    assert not errors


def in_child(check: Callable[[], None]) -> int:
    """Fork, check in the child, and return its exit status; -1 if it hangs."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            check()
            status = 0
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
        finally:
            os._exit(status)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


@pytest.mark.parametrize("codec", ["raw", "delta", "delta-huffman", "zlib"])
@pytest.mark.parametrize("lanes", [1, 3])
def test_forks_beside_a_writer(codec: str, lanes: int) -> None:
    array = DiffFrameArray((60, lanes, *FRAME), codec=codec)
    written = 0

    def write() -> None:
        nonlocal written
        array.append(np.stack([picture(written * lanes + lane) for lane in range(lanes)]))
        written += 1
        first = (written + 20) % 60
        if written % 7 == 0 and first <= 55:  # frames that were there for a while
            rows = [picture(k) for k in range(5 * lanes)]
            array[first : first + 5] = np.stack(rows).reshape(5, lanes, *FRAME)

    def check(array: DiffFrameArray) -> None:
        for frame in np.asarray(array).reshape(-1, *FRAME):
            number_of(frame)
        counts = array.lane_counts
        assert len(set(counts.tolist())) == 1, "a row is appended to all lanes or to none"
        last = array.gather((counts - 1) * lanes + np.arange(lanes))
        assert [number_of(frame) for frame in last] == [
            (int(counts[0]) - 1) * lanes + lane for lane in range(lanes)
        ]
        for k in range(5):
            array.append(np.stack([picture(9000 + k)] * lanes))
        assert number_of(array.gather(int(array.lane_counts[0]) * lanes - lanes)) == 9004

    for _ in range(70):
        write()
    check(array.copy())  # compiles: a child that has to waits for numba's lock, perhaps for ever
    with going_on(write):
        assert [in_child(lambda: check(array)) for _ in range(N_FORKS)] == [0] * N_FORKS


@pytest.mark.parametrize("prioritized", [False, True])
def test_forks_beside_adding_and_sampling(prioritized: bool) -> None:
    buffer = ReplayBuffer(
        50, Box(0, 255, (3, *FRAME), np.uint8), Discrete(100_000), seed=0,
        prioritized=prioritized, autoreset_mode="disabled",
    )  # fmt: skip
    no = np.zeros(1, bool)
    step = 0

    def stack(number: int) -> np.ndarray:
        return np.stack([picture(number + k) for k in range(3)])[None]

    def add() -> None:
        nonlocal step
        buffer.add(stack(step), [step], [step], no, no, stack(step + 1))
        step += 1

    def draw(buffer: ReplayBuffer = buffer) -> None:
        batch = buffer.sample(4)
        if prioritized:
            buffer.update_priorities(batch.index, batch.reward + 1.0)

    def check(buffer: ReplayBuffer) -> None:
        batch = buffer.sample(buffer.n_samplable, replace=False)
        for obs, action, next_obs in zip(batch.obs, batch.action, batch.next_obs, strict=True):
            assert np.array_equal(obs, stack(int(action))[0])
            assert np.array_equal(next_obs, stack(int(action) + 1)[0])
        assert sorted(batch.action.tolist()) == list(
            range(int(batch.action.max()) - len(batch.action) + 1, int(batch.action.max()) + 1)
        )
        newest = int(batch.action.max()) + 1
        for k in range(newest, newest + 3):
            buffer.add(stack(k), [k], [k], no, no, stack(k + 1))
        draw(buffer)

    for _ in range(60):
        add()
        draw()
    check(buffer.copy())  # compiles
    ahead = buffer.batches(4, lookahead=2)
    next(ahead)
    with going_on(add), going_on(draw):
        assert [in_child(lambda: check(buffer)) for _ in range(N_FORKS)] == [0] * N_FORKS
    ahead.close()
