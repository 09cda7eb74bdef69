"""Many readers at once and a writer beside them: every frame is wholly old or wholly new."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from compressarray import DiffFrameArray, FrameEvictedError, StaleStreamError
from tests.effort import examples
from tests.naive import assert_same
from tests.strategies import frames, game

N_READERS = 4
N_ROUNDS = examples(250)  # of the writer
FRAME = (32, 32)
OWN = ["raw", "sparse", "delta", "delta-huffman", "zstd"]


@pytest.fixture(autouse=True)
def _threads_take_turns_often() -> Iterator[None]:
    """Hand over every 50 microseconds instead of every 5 milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


@contextmanager
def readers(*reads: Callable[[], None]) -> Iterator[None]:
    """Run each read over and over in a thread of its own while the body writes."""
    stop = threading.Event()
    counts = [0] * len(reads)
    errors: list[BaseException] = []

    def loop(k: int, read: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                read()
                counts[k] += 1
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=loop, args=(k, read), daemon=True) for k, read in enumerate(reads)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=60)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a reader hangs"
    assert all(counts), f"a reader never read: {counts}"


@pytest.mark.parametrize("codec", OWN)
def test_many_threads_read_the_same(codec: str) -> None:
    content = np.stack([game(200, FRAME, seed=k) for k in range(2)], axis=1)
    array = DiffFrameArray(content.shape, codec=codec)
    index = array.append(content)
    flat = array.reshape(-1, *FRAME)
    dense = content.reshape(-1, *FRAME)

    def read(seed: int) -> int:
        rng = np.random.default_rng(seed)
        out = np.zeros((4, 4, *FRAME), np.uint8)
        for _ in range(60):
            some = rng.integers(0, 200, 6)
            assert_same(array[some, 1], content[some, 1])
            cells = rng.integers(0, 400, (4, 4))
            assert array.gather(index.reshape(-1)[cells], out=out) is out
            assert_same(out, dense[cells])
            t = int(rng.integers(200))
            assert_same(array[t, 0, 3:9], content[t, 0, 3:9].copy())
            assert_same(flat[t : t + 9 : 2], np.ascontiguousarray(dense[t : t + 9 : 2]))
        return seed

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(read, range(16))) == list(range(16))


@pytest.mark.parametrize("codec", OWN)
def test_reading_beside_assignments(codec: str) -> None:
    """Slots hold one of the frames ever written to them, never a mixture."""
    n_slots, n_lanes = 48, 2
    bank = np.concatenate(
        [game(60, FRAME, seed=1), frames("noise", 60, FRAME), frames("constant", 1, FRAME)]
    )
    whole = {frame.tobytes() for frame in bank}
    array = DiffFrameArray((n_slots, n_lanes, *FRAME), codec=codec, gop_length=None)
    array[...] = bank[:n_slots, None]
    view = array.reshape(-1, *FRAME)
    rngs = [np.random.default_rng(k) for k in range(5)]

    def check(batch: np.ndarray[Any, Any]) -> None:
        for frame in batch.reshape(-1, *FRAME):
            assert frame.tobytes() in whole, "a frame that is neither old nor new"

    def one() -> None:
        check(array[int(rngs[0].integers(n_slots)), int(rngs[0].integers(n_lanes))])

    def batch() -> None:
        check(array[rngs[1].integers(0, n_slots, 9), rngs[1].integers(0, n_lanes, 9)])

    def run() -> None:
        first = int(rngs[2].integers(0, n_slots - 10))
        check(array[first : first + 10 : 3])

    def through_a_view() -> None:
        check(view[rngs[3].integers(0, len(view), 7)])

    def everything() -> None:
        check(np.asarray(array))

    rng = np.random.default_rng(99)
    with readers(one, batch, run, through_a_view, everything):
        for _ in range(N_ROUNDS):
            how = rng.integers(4)
            some = bank[rng.integers(0, len(bank), 12)]
            if how == 0:
                array[int(rng.integers(n_slots)), int(rng.integers(n_lanes))] = some[0]
            elif how == 1:
                first = int(rng.integers(0, n_slots - 12))
                array[first : first + 12, int(rng.integers(n_lanes))] = some
            elif how == 2:
                view[rng.choice(len(view), 12, replace=False)] = some
            else:
                first = int(rng.integers(0, n_slots - 6))
                array[first : first + 6] = some.reshape(6, 2, *FRAME)


@pytest.mark.parametrize("codec", OWN)
def test_gathering_beside_appends(codec: str) -> None:
    """An index names one frame for ever: that frame comes, or an error, never its successor."""
    n_slots, n_lanes = 64, 2
    pool = np.stack(
        [np.concatenate([game(97, FRAME, seed=k), frames("noise", 30, FRAME)]) for k in range(2)],
        axis=1,
    )
    array = DiffFrameArray((n_slots, n_lanes, *FRAME), codec=codec)
    array.append(pool[:n_slots])
    written = [n_slots]
    outcomes = {"frames": 0, "evicted": 0}

    def reader(seed: int) -> Callable[[], None]:
        rng = np.random.default_rng(seed)

        def read() -> None:
            head = written[0]
            # From the newest to some that are gone or about to go.
            counts = head - 1 - rng.integers(0, n_slots + 4, 3)
            counts = np.maximum(counts, 0)
            lanes = rng.integers(0, n_lanes, 3)
            try:
                batch = array.gather(counts * n_lanes + lanes)
            except FrameEvictedError:
                outcomes["evicted"] += 1
                return
            outcomes["frames"] += 1
            assert_same(batch, pool[counts % len(pool), lanes])

        return read

    with readers(*(reader(seed) for seed in range(N_READERS))):
        rng = np.random.default_rng(7)
        while written[0] < 12 * N_ROUNDS:
            start = written[0] % len(pool)
            stop = min(start + int(rng.integers(1, 20)), len(pool))
            array.append(pool[start:stop])
            written[0] += stop - start
    assert outcomes["frames"] > 0


@pytest.mark.parametrize("codec", ["raw", "delta", "delta-huffman"])
def test_gathering_beside_clear(codec: str) -> None:
    """Numbers begin again with each stream: a frame of another one is never given for them."""
    pool = game(211, FRAME, seed=4)
    pool[:, 0, :2] = np.arange(211)[:, None]  # no two alike
    array = DiffFrameArray((40, *FRAME), codec=codec)
    array.append(pool[:30])
    gathered = [0]

    def content(stream: int, counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return pool[(31 * stream + counts) % 211]

    def reader(seed: int) -> Callable[[], None]:
        rng = np.random.default_rng(seed)

        def read() -> None:
            stream = array.stream
            counts = rng.integers(0, 30, 3)
            try:
                batch = array.gather(counts, stream=stream)
            except (FrameEvictedError, StaleStreamError):
                return
            gathered[0] += 1
            assert_same(batch, content(stream, counts))

        return read

    with readers(*(reader(seed) for seed in range(N_READERS))):
        for _ in range(N_ROUNDS):
            array.clear()
            array.append(content(array.stream, np.arange(30)))
    assert gathered[0] > 0


@pytest.mark.parametrize("codec", ["delta", "delta-huffman"])
def test_reading_while_the_codec_learns(codec: str) -> None:
    """What is coded anew with other tables and dictionaries is read as if nothing happened."""
    quiet = game(500, FRAME, seed=3)
    busy = quiet.copy()
    rng = np.random.default_rng(0)
    for frame in busy:
        frame.reshape(-1)[rng.integers(0, 1024, 200)] = rng.integers(0, 256, 200)
    pool = np.concatenate([busy, quiet, frames("noise", 400, FRAME)])
    array = DiffFrameArray((500, 2, *FRAME), codec=codec)
    fixed = busy[:100]
    array[:100, 1] = fixed
    rngs = [np.random.default_rng(k) for k in range(N_READERS)]

    def reader(k: int) -> Callable[[], None]:
        def read() -> None:
            times = rngs[k].integers(0, 100, 5)
            assert_same(array[times, 1], fixed[times])

        return read

    with readers(*(reader(k) for k in range(N_READERS))):
        for first in (*range(0, 1300, 100), *range(1300, 0, -100)):
            block = pool[first : first + 100]
            for _ in range(4):
                array.append(block[:, None], lanes=[0])
            array[200 : 200 + len(block), 1] = block


@pytest.mark.parametrize("codec", ["raw", "delta", "delta-huffman"])
def test_copies_and_pickles_beside_a_writer(codec: str) -> None:
    """What a copy holds were all frames of the array, and the copy can be read on its own."""
    bank = np.concatenate([game(60, FRAME, seed=1), frames("noise", 40, FRAME)])
    whole = {frame.tobytes() for frame in bank}
    array = DiffFrameArray((32, *FRAME), codec=codec)
    array[...] = bank[:32]

    def check(twin: DiffFrameArray) -> None:
        assert {frame.tobytes() for frame in np.asarray(twin)} <= whole

    with readers(
        lambda: check(array.copy()),
        lambda: check(pickle.loads(pickle.dumps(array))),
        lambda: check(array.reshape(8, 4, *FRAME).copy().reshape(32, *FRAME)),
    ):
        rng = np.random.default_rng(3)
        for _ in range(N_ROUNDS // 2):
            array.append(bank[rng.integers(0, len(bank), 5)])
            array[rng.integers(0, 32, 3)] = bank[rng.integers(0, len(bank), 3)]


def test_accounts_beside_a_writer() -> None:
    array = DiffFrameArray((64, *FRAME))
    content = frames("noise", 300, FRAME)
    array.append(content[:64])

    def accounts() -> None:
        assert array.nbytes_stored > 0
        assert array.stats()["frames_decoded"] >= 0
        assert 64 <= array.lane_counts[0] <= 300
        assert "DiffFrameArray" in repr(array)

    with readers(accounts, accounts):
        for frame in content[64:]:
            array.append(frame)
    assert array.lane_counts.tolist() == [300]


FORK = """
    import os, signal, sys, threading
    import numpy as np
    from compressarray import DiffFrameArray
    from tests.strategies import game

    content = game(200, (32, 32))
    array = DiffFrameArray((120, 32, 32), codec=sys.argv[1])
    array.append(content[:150])

    def use(array, first, last):
        kept = np.arange(first, last)
        assert (array.gather(kept) == content[kept]).all()
        for t in range(last, last + 20):
            array.append(content[t % 200])
        kept = np.arange(last, last + 20)
        assert (array.gather(kept) == content[kept % 200]).all()
        array[3] = 7
        assert (array[3] == 7).all()
        np.asarray(array)

    threads = [threading.Thread(target=lambda: np.asarray(array)) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()

    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            try:
                use(array, 31, 150)
                inner = [threading.Thread(target=use, args=(array.copy(), 124, 170))]
                inner[0].start(); inner[0].join()
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        children.append(child)
    use(array, 31, 150)  # the parent goes on meanwhile
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0, 0], codes
    assert (array.gather(np.arange(60, 120)) == content[60:120]).all()
    print("done")
"""


@pytest.mark.parametrize("codec", ["raw", "delta", "delta-huffman", "zstd"])
def test_a_fork_may_read_and_write_on(codec: str) -> None:
    """What parent and child do after the fork stays their own business."""
    run_script(FORK, codec)


FORK_BUSY = """
    import os, signal, sys, threading
    import numpy as np
    from compressarray import DiffFrameArray
    from tests.strategies import game

    sys.setswitchinterval(5e-5)
    content = game(60, (32, 32))
    array = DiffFrameArray((60, 32, 32), codec=sys.argv[1])
    array.append(content)
    array[7:20], array.gather([3, 40])
    array[5] = content[5]  # compiled by now: numba's own lock is not ours to open
    array.append(content)
    stop = threading.Event()

    def read():
        while not stop.is_set():
            assert (array.gather([63, 100]) == content[[3, 40]]).all()
            array.stats()

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads: thread.start()
    hung = 0
    for _ in range(60):
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            ok = (array[7:20] == content[7:20]).all()
            array[5] = 1
            os._exit(0 if ok and (array[5] == 1).all() else 1)
        hung += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
        if hung: break
    stop.set()
    for thread in threads: thread.join()
    assert not hung, "a child hangs, or read wrong pixels"
    print("done")
"""


@pytest.mark.parametrize("codec", ["raw", "delta", "delta-huffman"])
def test_a_fork_while_other_threads_read(codec: str) -> None:
    """The child has none of the threads that held a lock, so none may stay locked there."""
    run_script(FORK_BUSY, codec)


POOL = """
    import multiprocessing, sys
    import numpy as np
    from compressarray import DiffFrameArray
    from tests.strategies import game

    content = game(100, (32, 32))
    array = DiffFrameArray(content.shape, codec=sys.argv[1])
    array[...] = content

    def total(t):
        return int(array[t].sum())

    def total_of(pair):
        sent, t = pair
        return int(sent[t].sum())

    if __name__ == "__main__":
        expected = content.reshape(100, -1).sum(axis=1).tolist()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(total, range(100), chunksize=25) == expected
            sent = [(array, t) for t in range(4)]
            assert pool.map(total_of, sent) == expected[:4]
        print("done")
"""


@pytest.mark.parametrize("codec", ["delta", "delta-huffman"])
def test_worker_processes_read(codec: str) -> None:
    run_script(POOL, codec)


ENVIRONMENTS = """
    import sys
    from functools import partial
    import gymnasium as gym
    import numpy as np
    from compressarray import DiffFrameArray
    from tests.strategies import game
    from wrappers.vector import IndexedFrameStack

    content = game(200, (32, 32))
    array = DiffFrameArray(content.shape, codec=sys.argv[1])
    array[...] = content

    class Replay(gym.Env):
        # reads an array that its process was born with, and stores frames in one of its own
        observation_space = gym.spaces.Box(0, 255, (32, 32), np.uint8)
        action_space = gym.spaces.Discrete(2)

        def __init__(self, start):
            self.start, self.own = start, DiffFrameArray((8, 32, 32), codec=sys.argv[1])

        def observe(self):
            index = self.own.append(array[self.start + self.t])
            return self.own.gather(index), {}

        def reset(self, *, seed=None, options=None):
            self.t = 0
            return self.observe()

        def step(self, action):
            self.t += 1
            observation, info = self.observe()
            return observation, 0.0, False, False, info

    if __name__ == "__main__":
        starts = 0, 70
        envs = gym.vector.AsyncVectorEnv([partial(Replay, s) for s in starts], context="fork")
        envs = IndexedFrameStack(envs, 4, 64, codec=sys.argv[1])
        obs, _ = envs.reset(seed=1)
        for t in range(1, 100):
            obs, *_ = envs.step(np.zeros(2, np.int64))
            kept = np.maximum(np.arange(t - 3, t + 1), 0)
            assert (envs.frames.gather(obs) == content[np.add.outer(starts, kept)]).all()
        envs.close()
        print("done")
"""


@pytest.mark.parametrize("codec", ["delta", "delta-huffman"])
def test_environments_in_processes(codec: str) -> None:
    """Workers that are forked after use read what they inherit, and the learner goes on."""
    run_script(ENVIRONMENTS, codec)


LOADER = """
    import sys
    import numpy as np
    import torch
    from compressarray import DiffFrameArray
    from tests.strategies import game

    content = game(90, (32, 32))
    array = DiffFrameArray(content.shape, codec=sys.argv[1])
    array[...] = content
    array[5]

    if __name__ == "__main__":
        loader = torch.utils.data.DataLoader(
            array, batch_size=8, num_workers=2, multiprocessing_context="fork"
        )
        for _ in range(2):
            assert (torch.cat(list(loader)).numpy() == content).all()
            array[7] = content[7] = 5  # between two epochs, whose workers are new
        print("done")
"""


@pytest.mark.parametrize("codec", ["delta", "delta-huffman"])
def test_a_data_loader_reads(codec: str) -> None:
    pytest.importorskip("torch")
    run_script(LOADER, codec)


def run_script(script: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p) or "."},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")
    assert not done.stderr, done.stderr
