"""What is decoded by several threads is what one thread decodes, and nothing runs on unseen."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numba import config

from compressarray import DiffFrameArray, FrameEvictedError
from compressarray.store import gop_learning, gop_reading, workers
from tests.effort import examples
from tests.naive import assert_same
from tests.strategies import filled, frames, game, layouts
from tests.test_lossless import lane_major
from tests.test_threads import readers, run_script

SHARING = ("sparse", "delta", "delta-huffman")  # codecs whose frames share streams
FRAME = (32, 32)


@contextmanager
def threads(n: int, bytes_a_thread: int = 1) -> Iterator[list[int]]:
    """Decode in up to ``n`` threads; yields a list that grows by how many each read asks for."""
    counts: list[int] = []

    def counted(pieces: list[Any]) -> Any:
        counts.append(len(pieces))
        return workers.run(pieces)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "NUMBA_NUM_THREADS", n)
        patch.setattr(gop_reading, "BYTES_A_THREAD", bytes_a_thread)
        patch.setattr(gop_reading, "run", counted)
        workers._pool.cache_clear()
        yield counts
    workers._pool.cache_clear()


@pytest.fixture
def three_threads() -> Iterator[list[int]]:
    with threads(3) as counts:
        yield counts


def read_counted(array: DiffFrameArray, read: Callable[[], Any]) -> tuple[Any, int, int]:
    """A result, and the frames and groups that were decoded for it."""
    before = array.stats()
    result = read()
    after = array.stats()
    return result, *(after[n] - before[n] for n in ("frames_decoded", "gops_decoded"))


def check_reads(array: DiffFrameArray, read: Callable[[], Any], expected: Any) -> list[int]:
    """Read by one thread and by several; return how many."""
    alone = read_counted(array, read)
    assert_same(alone[0], expected)
    numbers = []
    for n in (2, 3, 8):
        with threads(n) as counts:
            shared = read_counted(array, read)
        assert_same(shared[0], expected)
        assert shared[1:] == alone[1:]
        assert all(1 <= count <= n for count in counts)
        numbers += counts
    return numbers


# ------------------------------------------------------------------- the same bits and counts


@settings(max_examples=examples(60))
@given(st.data())
def test_any_layout(data: st.DataObject) -> None:
    layout = data.draw(layouts(codecs=SHARING, empty=False))
    array, dense = layout.build(), layout.dense()
    n_time = layout.shape[0]
    n_rows = data.draw(st.integers(0, n_time))  # the others are never written
    dense[:n_rows] = data.draw(filled(layout))[:n_rows]
    index = array.append(dense[:n_rows]).reshape(-1)
    times = data.draw(st.lists(st.integers(0, n_time - 1), min_size=1, max_size=40))
    check_reads(array, lambda: array[times], dense[times])
    check_reads(array, lambda: array[...], dense)

    entries = lane_major(dense, layout)
    entries = entries.reshape(-1, *entries.shape[1 + len(layout.lane_shape) :])
    pinned = array.pin(entries[-1:])
    expected = entries[: len(index) + 1].copy()
    expected[-1] = entries[-1]
    index = np.append(index, pinned)
    chosen = data.draw(st.lists(st.integers(0, len(index) - 1), min_size=1, max_size=40))
    check_reads(array, lambda: array.gather(index[chosen]), expected[chosen])


@pytest.mark.parametrize("codec", SHARING)
def test_stacks_of_a_ring(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a replay buffer reads: stacks at random places, some padded, from two lanes."""
    monkeypatch.setattr(gop_learning, "MIN_CHANGES", 500)
    monkeypatch.setattr(gop_learning, "PACK_AT_BYTES", 1000)
    content = np.stack([game(400, FRAME, seed=k) for k in range(2)], axis=1)
    array = DiffFrameArray((300, 2, *FRAME), codec=codec)
    index = array.append(content)
    assert ("packer" in array.stats()["nbytes_by_part"]) == (codec == "delta-huffman")
    padding = np.full(FRAME, 9, np.uint8)
    pad = array.pin(padding)
    rng = np.random.default_rng(0)
    t = rng.integers(103, 400, 64)[:, None] - np.arange(4)
    lanes = rng.integers(0, 2, 64)[:, None]
    stacks, pixels = index[t, lanes], content[t, lanes]
    stacks[::5, 2:], pixels[::5, 2:] = pad, padding
    assert check_reads(array, lambda: array.gather(stacks), pixels) == [2, 3, 8]


def test_parts_are_of_about_as_many_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    cut = gop_reading._cut

    def seen(chunk: Any, order: Any, cuts: Any) -> None:
        cut(chunk, order, cuts)
        sizes.extend(np.diff(cuts))

    monkeypatch.setattr(gop_reading, "_cut", seen)
    array = DiffFrameArray((160, *FRAME), gop_length=4)
    array.append(game(160, FRAME))
    with threads(3):
        assert_same(array[::-1], game(160, FRAME)[::-1].copy())
        assert sum(sizes) == 160
        assert len(sizes) == 24
        assert min(sizes) >= 4
        assert max(sizes) <= 8
        sizes.clear()
        array[[5] * 99]  # one group: nothing to share
        assert sorted(sizes) == 23 * [0] + [99]


def test_a_late_thread_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would have decoded the others do, all but the part that it has taken."""
    content = game(160, FRAME)
    array = DiffFrameArray(content.shape, gop_length=4)
    array.append(content)
    frames_decoded = []

    def late_first(pieces: list[Any]) -> Any:
        # as if the workers began when the caller is done
        answers = [piece() for piece in reversed(pieces)]
        frames_decoded.extend(answer[0] for answer in answers)
        return answers

    with threads(3):
        monkeypatch.setattr(gop_reading, "run", late_first)
        assert_same(array[...], content)
    assert frames_decoded[1:] == [0, 0]
    assert frames_decoded[0] > 0


# --------------------------------------------------------------------------- when, and how many


def test_small_reads_are_the_callers_alone() -> None:
    array = DiffFrameArray((100, *FRAME))
    array.append(game(100, FRAME))
    with threads(3, bytes_a_thread=1024 * 10) as counts:
        array[:19], array.gather(np.arange(19))
        assert counts == []
        array[:20], array.gather(np.arange(29)), array[:30]
        assert counts == [2, 2, 3]
    with threads(1) as counts:
        array[:50]
        assert counts == []
        assert workers._pool.cache_info().currsize == 0


VARIABLE = """
    import sys, threading
    import numpy as np
    from compressarray import DiffFrameArray

    array = DiffFrameArray((700, 84, 84))  # 4.7 MiB
    array[...] = np.arange(700, dtype=np.uint8)[:, None, None]
    assert (np.asarray(array)[:, 7, 7] == np.arange(700) % 256).all()
    started = threading.enumerate()[1:]
    assert all(thread.name.startswith("compressarray-worker") for thread in started), started
    assert bool(started) == (sys.argv[1] != "1"), started
    print("done")
"""


@pytest.mark.parametrize("n", ["1", "3"])
def test_the_environment_variable(n: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", n)
    run_script(VARIABLE, n)


def test_no_more_threads_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    for n, expected in [(1, 1), (2, 2), (8, 8), (64, 8)]:
        monkeypatch.setattr(config, "NUMBA_NUM_THREADS", n)
        assert workers.n_threads() == expected


# ------------------------------------------------------------------------------ running pieces


@pytest.mark.parametrize("n", range(6))
def test_results_come_in_order(n: int, three_threads: list[int]) -> None:
    def piece(i: int) -> Callable[[], int]:
        return lambda: (time.sleep(0.002 * (n - i)), i)[1]

    assert workers.run([piece(i) for i in range(n)]) == list(range(n))


def test_pieces_run_side_by_side(three_threads: list[int]) -> None:
    together = threading.Barrier(3)
    names = workers.run([lambda: (together.wait(20), threading.current_thread().name)[1]] * 3)
    assert len(set(names)) == 3
    assert names[2] == threading.current_thread().name


@pytest.mark.parametrize("raising", [0, 2])  # a worker's piece, the caller's own
def test_an_error_comes_after_the_others_have_ended(raising: int, three_threads: list[int]) -> None:
    together = threading.Barrier(3)
    ended: list[int] = []

    def piece(i: int) -> None:
        together.wait(20)
        if i == raising:
            raise MemoryError(f"piece {i}")
        time.sleep(0.05)
        ended.append(i)

    with pytest.raises(MemoryError, match=f"piece {raising}"):
        workers.run([lambda i=i: piece(i) for i in range(3)])  # type: ignore[misc]
    assert sorted(ended) == sorted({0, 1, 2} - {raising})


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals of POSIX")
def test_an_interrupt_comes_after_the_others_have_ended(three_threads: list[int]) -> None:
    """Else the lock would be given back while a worker still reads."""
    main = threading.get_ident()
    ended: list[int] = []
    together = threading.Barrier(3)

    def piece(i: int) -> None:
        together.wait(20)
        if i < 2:
            time.sleep(0.05 * (i + 1))
            signal.pthread_kill(main, signal.SIGINT)  # while it waits, and while it waits again
            time.sleep(0.1)
            ended.append(i)

    with pytest.raises(KeyboardInterrupt):
        workers.run([lambda i=i: piece(i) for i in range(3)])  # type: ignore[misc]
    assert sorted(ended) == [0, 1]


@contextmanager
def busy_workers() -> Iterator[None]:
    """All workers wait for something; it must not have been over when the body ends."""
    over = threading.Event()
    busy = threading.Barrier(workers.n_threads())

    def wait() -> None:
        busy.wait(20)
        assert over.wait(20)

    waiting = [workers._pool().submit(wait) for _ in range(workers.n_threads() - 1)]
    busy.wait(20)
    try:
        yield
        assert not any(each.done() for each in waiting)
    finally:
        over.set()
    for each in waiting:
        each.result(20)


def test_nobody_waits_for_busy_workers(three_threads: list[int]) -> None:
    content = game(100, FRAME)
    array = DiffFrameArray(content.shape)
    array.append(content)
    with busy_workers():
        names = workers.run([lambda: threading.current_thread().name] * 5)
        assert names == 5 * [threading.current_thread().name]
        assert_same(np.asarray(array), content)
        assert three_threads == [3]


def test_after_an_error_nothing_begins(three_threads: list[int]) -> None:
    begun: list[int] = []
    with busy_workers(), pytest.raises(ZeroDivisionError):
        workers.run([lambda: begun.append(0), lambda: begun.append(1), lambda: 1 // 0])
    workers.run([lambda: None] * 3)  # behind those that were given up
    assert begun == []


def test_no_thread_can_be_started(
    three_threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    begun: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        workers.run([lambda i=i: begun.append(i) for i in range(3)])  # type: ignore[misc]
        assert sorted(begun) == [0, 1, 2]
    together = threading.Barrier(3)
    workers.run([lambda: together.wait(20)] * 3)  # there may be threads again
    assert sorted(begun) == [0, 1, 2], "a piece ran twice"


def test_a_pool_that_was_shut_down(three_threads: list[int]) -> None:
    workers._pool().shutdown()
    assert workers.run([lambda: 1, lambda: 2]) == [1, 2]


AT_EXIT = """
    import atexit
    import numpy as np
    from compressarray import DiffFrameArray

    content = np.zeros((700, 84, 84), np.uint8)
    content += np.arange(700, dtype=np.uint8)[:, None, None]
    array = DiffFrameArray(content.shape)
    array[...] = content

    def read():
        assert (np.asarray(array) == content).all()
        print("done")

    atexit.register(read)
"""


def test_reading_while_the_interpreter_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    run_script(AT_EXIT)


# -------------------------------------------------------------------------- forks and other threads


FORK = """
    import os, signal, sys, threading, warnings
    import numpy as np
    from numba import config
    from compressarray import DiffFrameArray
    from compressarray.store import gop_reading, workers
    from tests.strategies import game

    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks beside threads
    config.NUMBA_NUM_THREADS, gop_reading.BYTES_A_THREAD = 3, 1
    content = game(200, (32, 32))
    array = DiffFrameArray(content.shape, codec=sys.argv[1])
    array.append(content)
    some = np.random.default_rng(0).integers(0, 200, (64, 4))

    def read():
        together = threading.Barrier(3)  # all three threads are there, and work
        workers.run([lambda: together.wait(20)] * 3)
        return (array.gather(some) == content[some]).all()

    assert read()
    stop = threading.Event()

    def read_on():
        while not stop.is_set():
            assert (array.gather(some) == content[some]).all()

    beside = [threading.Thread(target=read_on) for _ in range(2)]
    for thread in beside: thread.start()
    codes = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            try:
                ok = read() and read()
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                ok = False
            os._exit(not ok)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        if codes[-1]: break
    stop.set()
    for thread in beside: thread.join()
    assert not any(codes), codes
    assert read()
    print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks of POSIX")
@pytest.mark.parametrize("codec", ["delta", "delta-huffman"])
def test_a_fork_has_workers_of_its_own(codec: str) -> None:
    run_script(FORK, codec)


@pytest.mark.parametrize("codec", SHARING)
def test_large_reads_beside_a_writer(codec: str, three_threads: list[int]) -> None:
    """Readers share the workers, and a writer waits until all parts of a read have ended."""
    content = np.concatenate([game(150, FRAME, seed=1), frames("noise", 50, FRAME)])
    array = DiffFrameArray((100, *FRAME), codec=codec)
    array.append(content[:100])
    written = [100]
    gathered = [0]

    def reader(seed: int) -> Callable[[], None]:
        rng = np.random.default_rng(seed)

        def read() -> None:
            some = written[0] - 1 - rng.integers(0, 80, (16, 4))
            try:
                batch = array.gather(some)
            except FrameEvictedError:
                return
            gathered[0] += 1
            assert_same(batch, content[some % 200])

        return read

    with readers(*(reader(k) for k in range(3))):
        for _ in range(examples(100)):
            first = written[0] % 200
            array.append(content[first : first + 10])
            written[0] += 10
    assert gathered[0] > 0
    assert max(three_threads) == 3
