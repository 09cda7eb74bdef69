"""Other processes read beside a writer: right pixels, whoever is killed, and nothing is left."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from compressarray import DiffFrameArray, ReplayBuffer, attach, attached
from compressarray.sharing import SharedHandle
from tests.effort import examples
from tests.naive import assert_same
from tests.replay_worlds import FEEDS, Setting, World

STACK, SIDE, N_LANES = 4, 12, 2
SPACE = Box(0, 255, (STACK, SIDE, SIDE), np.uint8)


def frame(lane: int, t: int) -> np.ndarray[Any, Any]:
    """A frame that says which one it is, and has pixels that follow from that."""
    pixels = np.full((SIDE, SIDE), 17 * lane, np.uint8)
    pixels[t % SIDE, :] = t * 31 % 251
    pixels[:, t // 7 % SIDE] += np.uint8(t % 97)
    pixels[0, :5] = lane, t & 255, t >> 8 & 255, t >> 16 & 255, t >> 24
    return pixels


def name_of(pixels: np.ndarray[Any, Any]) -> tuple[int, int]:
    lane, *octets = pixels[0, :5].tolist()
    return lane, int.from_bytes(bytes(octets), "little")


def stacks(t: int) -> np.ndarray[Any, Any]:
    """The observations of all lanes at step ``t`` of an episode that began with step 0."""
    steps = [max(t - age, 0) for age in reversed(range(STACK))]
    return np.array([[frame(lane, step) for step in steps] for lane in range(N_LANES)])


def assert_right(batch: Any) -> None:
    for obs, next_obs, action, reward in zip(
        batch.obs, batch.next_obs, batch.action, batch.reward, strict=True
    ):
        lane, t = name_of(obs[-1])
        np.testing.assert_array_equal(obs, stacks(t)[lane])
        np.testing.assert_array_equal(next_obs, stacks(t + 1)[lane])
        assert (action, reward) == (t % 5, t)


def made(**arguments: Any) -> ReplayBuffer:
    return ReplayBuffer(600, SPACE, Discrete(5), n_envs=N_LANES, seed=0, **arguments)


def add(buffer: ReplayBuffer, t: int) -> None:
    never = np.zeros(N_LANES, bool)
    buffer.add(stacks(t), [t % 5] * N_LANES, [float(t)] * N_LANES, never, never, stacks(t + 1))


def forked(target: Callable[[], None]) -> int:
    """Run a function in a child of this process, which has compiled all that it needs."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        target()
        code = 0
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        os._exit(code)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def names_of_sockets(pid: int) -> list[str]:
    return [line for line in Path("/proc/net/unix").read_text().split() if f"-{pid}-" in line]


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("feed", FEEDS)
def test_a_reader_draws_what_a_copy_of_the_buffer_would(feed: str, prioritized: bool) -> None:
    setting = Setting(feed=feed, prioritized=prioritized, n_slots=40, n_step=2, resets=900)
    one = World(setting)
    with attach(pickle.loads(pickle.dumps(one.buffer.share())), seed=5) as reader:
        twin = np.random.default_rng(5)
        for _ in range(8):
            for _ in range(15):
                one.step(0.1, 0.1)
            if one.buffer.n_samplable:
                one.buffer.sample(3)  # which its readers don't notice
            reader.update()
            assert len(reader.buffer) == len(one.buffer)
            if not one.buffer.n_samplable:
                continue
            copy = one.buffer.copy()
            copy.seed(twin)
            drawn, expected = reader.buffer.sample(7), copy.sample(7)
            for name in ("obs", "next_obs"):
                ours, theirs = getattr(drawn, name), getattr(expected, name)
                if isinstance(ours, dict):
                    ours, theirs = list(ours.values()), list(theirs.values())
                    for mine, its in zip(ours, theirs, strict=True):
                        assert_same(mine, its)
                else:
                    assert_same(ours, theirs)
            assert_same(drawn.reward, expected.reward)
            assert_same(drawn.index, expected.index)


def test_an_array_is_read_beside_its_writer() -> None:
    array = DiffFrameArray((50, 2, SIDE, SIDE))
    handle = array.share()
    assert array.share() is handle
    with attach(handle) as reader:
        for t in range(120):
            index = array.append(np.array([frame(lane, t) for lane in range(2)]))
            if t % 7 == 0:
                reader.update()
                assert_same(reader.array.gather(index), array.gather(index))
        reader.update()
        assert_same(np.asarray(reader.array), np.asarray(array))
        array[3] = 9
        assert not (reader.array[3] == 9).all()
        reader.update()
        assert (reader.array[3] == 9).all()


def test_readers_of_other_seeds_draw_apart_and_go_on_when_they_are_filled_anew() -> None:
    buffer = made()
    for t in range(40):
        add(buffer, t)
    readers = [attach(buffer.share(), seed=seed) for seed in (1, 1, 2)]
    first = [reader.buffer.sample(16).index.tolist() for reader in readers]
    assert first[0] == first[1] != first[2]
    buffer.clear()  # all readers get everything
    for t in range(40):
        add(buffer, t)
    for reader in readers:
        reader.update()
    second = [reader.buffer.sample(16).index.tolist() for reader in readers]
    assert second[0] == second[1] != second[2]
    assert second[0] != first[0]
    for reader in readers:
        reader.close()


def _write(pipe: int, seconds: float, pause_s: float) -> None:
    buffer = made()
    handle = buffer.share()
    for t in range(20):
        add(buffer, t)
    os.write(pipe, pickle.dumps(handle))
    os.close(pipe)
    end = time.monotonic() + seconds
    t = 20
    while time.monotonic() < end:
        add(buffer, t)
        t += 1
        time.sleep(pause_s)


def _read(handle: SharedHandle, seed: int, pipe: int) -> None:
    """Draw for as long as there is a writer, a byte for each batch; all have to be right."""
    with attach(handle, seed=seed) as reader:
        while True:
            assert_right(reader.buffer.sample(8))
            try:
                reader.update()
            except ConnectionError:
                break
            os.write(pipe, b".")
        assert_right(reader.buffer.sample(8))  # what was read stays


class Reader:
    """A child that draws, and says so."""

    def __init__(self, handle: SharedHandle, seed: int) -> None:
        self.pipe, theirs = os.pipe()
        os.set_blocking(theirs, False)
        self.child = forked(lambda: _read(handle, seed, theirs))
        os.close(theirs)

    def wait_for(self, n_batches: int) -> None:
        while n_batches > 0:
            came = len(os.read(self.pipe, n_batches))
            assert came, "the reader has ended"
            n_batches -= came

    def killed(self) -> int:
        os.kill(self.child, signal.SIGKILL)
        return self.ended()

    def ended(self) -> int:
        os.close(self.pipe)
        return ended(self.child)


def started_writer(seconds: float, pause_s: float = 0.0) -> tuple[int, SharedHandle]:
    ours, theirs = os.pipe()
    writer = forked(lambda: _write(theirs, seconds, pause_s))
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        handle = pickle.load(pipe)
    return writer, handle


def test_four_processes_draw_beside_a_writer_that_is_killed_and_so_are_some_of_them() -> None:
    warm = made()
    for t in range(30):
        add(warm, t)
    with attach(warm.share(), seed=0) as reader:  # compiles what the children need
        add(warm, 30)
        reader.update()
        assert_right(reader.buffer.sample(8))
    draw = random.Random(3)
    seconds = 60.0 if examples(1) > 1 else 5.0
    before = set(os.listdir("/tmp")) | set(os.listdir("/dev/shm"))
    writer, handle = started_writer(600.0)
    readers = [Reader(handle, seed) for seed in range(4)]
    end, seed = time.monotonic() + seconds, 4
    while time.monotonic() < end:
        time.sleep(draw.uniform(0.2, 1.0))
        victim = draw.randrange(4)
        assert readers[victim].killed() == -signal.SIGKILL
        readers[victim] = Reader(handle, seed)
        seed += 1
    for reader in readers:
        reader.wait_for(10)
    assert names_of_sockets(writer) or sys.platform != "linux"
    os.kill(writer, signal.SIGKILL)
    assert ended(writer) == -signal.SIGKILL
    assert [reader.ended() for reader in readers] == [0] * 4
    assert not names_of_sockets(writer)
    left = (set(os.listdir("/tmp")) | set(os.listdir("/dev/shm"))) - before
    assert not [name for name in left if "compressarray" in name]
    with pytest.raises(ConnectionError, match=f"process {writer} shares this ReplayBuffer no more"):
        attach(handle)


def test_a_writer_that_is_stopped_is_waited_for_so_long_and_no_longer() -> None:
    writer, handle = started_writer(60.0, 0.01)
    try:
        with attach(handle, timeout=0.5) as reader:
            os.kill(writer, signal.SIGSTOP)
            time.sleep(0.1)
            with pytest.raises(TimeoutError, match=r"has not answered for 0.5 s; is it stopped"):
                reader.update()
            assert_right(reader.buffer.sample(8))
            os.kill(writer, signal.SIGCONT)
        with attach(handle) as reader:
            assert_right(reader.buffer.sample(8))
    finally:
        os.kill(writer, signal.SIGKILL)
        ended(writer)


def test_children_of_a_writer_do_not_keep_what_it_shared_alive() -> None:
    ours, theirs = os.pipe()

    def write_and_fork() -> None:
        buffer = made()
        for t in range(20):
            add(buffer, t)
        handle = buffer.share()
        with attach(handle):
            pass
        child = forked(lambda: time.sleep(30))
        os.write(theirs, pickle.dumps((handle, child)))
        os.close(theirs)
        time.sleep(30)

    writer = forked(write_and_fork)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        handle, child = pickle.load(pipe)
    try:
        with attach(handle) as reader:
            assert_right(reader.buffer.sample(8))
            os.kill(writer, signal.SIGKILL)
            ended(writer)
            with pytest.raises(ConnectionError, match="no more"):
                reader.update()
        with pytest.raises(ConnectionError, match="no more"):
            attach(handle)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_of_a_reader_asks_by_itself() -> None:
    buffer = made()
    for t in range(30):
        add(buffer, t)
    with attach(buffer.share(), seed=1) as reader:

        def read() -> None:
            for _ in range(20):
                reader.update()
                assert_right(reader.buffer.sample(4))

        children = [forked(read) for _ in range(2)]
        for t in range(30, 60):
            add(buffer, t)
            reader.update()
            assert_right(reader.buffer.sample(4))
        assert [ended(child) for child in children] == [0, 0]


def test_a_child_of_a_writer_shares_its_own_copy() -> None:
    buffer = made()
    for t in range(10):
        add(buffer, t)
    handle = buffer.share()

    def share_again() -> None:
        add(buffer, 10)
        own = buffer.share()
        assert own != handle
        with attach(own) as reader:
            assert len(reader.buffer) == 11 * N_LANES

    assert ended(forked(share_again)) == 0
    with attach(handle) as reader:
        assert len(reader.buffer) == 10 * N_LANES


def test_another_program_attaches() -> None:
    array = DiffFrameArray((20, SIDE, SIDE))
    index = array.append(frame(0, 77)[None])
    program = (
        "import pickle, sys, compressarray\n"
        "handle, index = pickle.load(sys.stdin.buffer)\n"
        "reader = compressarray.attach(handle)\n"
        "sys.stdout.buffer.write(reader.array.gather(index).tobytes())\n"
    )
    came = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps((array.share(), index)),
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert came.stdout == frame(0, 77).tobytes()


def test_what_is_gone_is_shared_no_more() -> None:
    array = DiffFrameArray((20, SIDE, SIDE))
    handle = array.share()
    attach(handle).close()
    del array
    for _ in range(100):
        try:
            attach(handle).close()
        except ConnectionError:
            break
        time.sleep(0.05)
    with pytest.raises(ConnectionError, match="it has ended, or has deleted it"):
        attach(handle)
    other = DiffFrameArray((20, SIDE, SIDE))  # perhaps where the first one was
    with attach(other.share()) as reader:
        assert reader.array.shape == other.shape


def test_bad_input_is_told() -> None:
    array = DiffFrameArray((6, 4, SIDE, SIDE))
    with pytest.raises(TypeError, match="a view has no change feed"):
        array.reshape(24, SIDE, SIDE).share()
    with pytest.raises(TypeError, match="attach takes what share\\(\\) returned"):
        attach(array)  # type: ignore[arg-type]
    handle = array.share()
    with pytest.raises(ConnectionError):
        attach(dataclasses.replace(handle, token=bytes(16)))
    gone = dataclasses.replace(handle, address="\0nowhere", machine="elsewhere")
    with pytest.raises(ConnectionError, match="is shared on elsewhere, and this is"):
        attach(gone)
    with pytest.raises(TypeError, match="seed"):
        attach(handle, seed="one")
    assert "token" not in repr(handle)
    with attach(handle) as reader:
        with pytest.raises(AttributeError, match="holds a DiffFrameArray, no ReplayBuffer"):
            _ = reader.buffer
        with pytest.raises(TypeError, match="send its handle"):
            pickle.dumps(reader)


def test_a_reader_that_writes_is_told_and_can_begin_anew() -> None:
    array = DiffFrameArray((6, SIDE, SIDE))
    with attach(array.share()) as reader:
        reader.array[0] = 1
        array[1] = 2
        with pytest.raises(ValueError, match="written to"):
            reader.update()
        reader.update()
        assert_same(np.asarray(reader.array), np.asarray(array))


def test_a_writer_that_fails_tells_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    array = DiffFrameArray((6, SIDE, SIDE))
    with attach(array.share()) as reader:

        def fail(*_: Any) -> bool:
            raise MemoryError("no room for a message")

        array[1] = 2
        with monkeypatch.context() as patch:
            patch.setattr(DiffFrameArray, "_put_changes", fail)
            with pytest.raises(RuntimeError, match="MemoryError: no room for a message"):
                reader.update()
        reader.update()
        assert_same(np.asarray(reader.array), np.asarray(array))


def test_an_interrupted_update_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    array = DiffFrameArray((6, SIDE, SIDE))
    with attach(array.share()) as reader:
        before = np.asarray(reader.array)
        array[1] = 2

        def interrupt(*_: Any) -> Any:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(attached, "receive", interrupt)
            with pytest.raises(KeyboardInterrupt):
                reader.update()
        assert_same(np.asarray(reader.array), before)
        reader.update()
        assert_same(np.asarray(reader.array), np.asarray(array))
