"""Learning beside the writes: the same bytes however long it takes, and little at a time."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import time
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numba import config

from compressarray import DiffFrameArray
from compressarray.store import gop_schedule as schedule
from tests.interrupting import interrupted, lines_of
from tests.strategies import game
from tests.test_threads import run_script

FRAME = (32, 32)
N = 900


@pytest.fixture
def learning_soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Arrays of a few hundred frames learn several times, in a thread."""
    for name, value in {"MIN_CHANGES": 200, "PACK_AT_BYTES": 1000}.items():
        monkeypatch.setattr(f"compressarray.store.gop_learning.{name}", value)
    monkeypatch.setattr(config, "NUMBA_NUM_THREADS", 2)
    yield
    schedule._learner.cache_clear()


def written(codec: str) -> DiffFrameArray:
    array = DiffFrameArray((400, *FRAME), codec=codec, gop_length=4)
    for frame in game(N, FRAME, 0):
        array.append(frame)
    return array


def content(array: DiffFrameArray) -> bytes:
    return pickle.dumps(array)


@pytest.mark.usefixtures("learning_soon")
@pytest.mark.parametrize("codec", ["delta", "delta-huffman"])
def test_the_same_bytes_however_long_it_takes(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learn, asked = schedule.better_codebooks, []

    def slowly(sample: Any) -> Any:
        asked.append(sample)
        time.sleep(0.02)
        return learn(sample)

    def failing_beside(sample: Any) -> Any:
        asked.append(sample)
        if len(asked) % 2:
            raise MemoryError
        return learn(sample)

    array = written(codec)
    first = content(array)  # reads are counted in it
    assert_right(array)
    for other in (slowly, failing_beside):
        asked.clear()
        monkeypatch.setattr(schedule, "better_codebooks", other)
        assert content(written(codec)) == first
        assert len(asked) > 2
    monkeypatch.setattr(schedule, "better_codebooks", learn)
    monkeypatch.setattr(config, "NUMBA_NUM_THREADS", 1)  # no thread but this
    assert content(written(codec)) == first


def assert_right(array: DiffFrameArray) -> None:
    dense = game(N, FRAME, 0)
    n = len(array)
    assert np.array_equal(array.gather(np.arange(N - n, N)), dense[N - n :])


@pytest.mark.usefixtures("learning_soon")
@pytest.mark.parametrize("codec", ["delta", "delta-huffman"])
def test_few_groups_change_over_at_a_time(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write, changed, most = schedule._write_anew, [0], [0]

    def counted(*arguments: Any) -> bool:
        changed[0] += write(*arguments)
        return True

    monkeypatch.setattr(schedule, "_write_anew", counted)
    array = DiffFrameArray((400, *FRAME), codec=codec, gop_length=4)
    total = 0
    for frame in game(N, FRAME, 0):
        changed[0] = 0
        array.append(frame)
        total += changed[0]
        most[0] = max(most[0], changed[0])
    assert 0 < most[0] <= schedule.CHANGED_AT_ONCE
    assert total > 20
    assert_right(array)


@pytest.mark.usefixtures("learning_soon")
def test_what_is_written_in_one_piece_is_learnt_from_at_once() -> None:
    dense = game(N, FRAME, 0)
    array = DiffFrameArray(dense.shape, codec="delta-huffman", gop_length=4)
    array[:] = dense
    assert "packer" in array.stats()["nbytes_by_part"]
    books = array._frames.store._groups.codebooks
    assert sum(book is not None for book in books.books) == 1
    assert np.array_equal(array[:], dense)


@pytest.mark.usefixtures("learning_soon")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_sample_is_let_go_once_something_was_learnt_from_it(
    n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small array it is all that there is; what is found may be taken much later."""
    monkeypatch.setattr(config, "NUMBA_NUM_THREADS", n_threads)
    take, held = schedule.sample_of, []

    def noted(groups: Any) -> Any:
        sample = take(groups)
        assert sample is not None
        held.append(weakref.ref(sample.chunks[0].base))
        return sample

    monkeypatch.setattr(schedule, "sample_of", noted)
    array = DiffFrameArray((400, *FRAME), codec="delta", gop_length=4)
    frames = iter(game(N, FRAME, 0))
    while array._frames.store._learning._look is None:
        array.append(next(frames))
    schedule.wait_until_idle()
    assert array._frames.store._learning._look is not None
    assert [memory() for memory in held] == [None]


@pytest.mark.usefixtures("learning_soon")
def test_a_copy_made_in_the_midst_of_a_change_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has groups of older codebooks, which other codes alone do not suit."""
    dense = game(N, FRAME, 0)
    array = DiffFrameArray((N, *FRAME), codec="delta-huffman", gop_length=4)
    n_copies = 0
    for t in range(400):
        array.append(dense[t])
        if len(array._frames.store._learning._left) > 20 and t % 4 == 0 and n_copies < 3:
            n_copies += 1
            twin = pickle.loads(pickle.dumps(array))
            with monkeypatch.context() as patch:
                for name, gain in {"TOKENS": 2.0, "PACKED_TOKENS": 2.0, "CODES": -9.0}.items():
                    patch.setattr(f"compressarray.store.gop_learning.{name}_GAIN", gain)
                for frame in dense[t + 1 : t + 260]:
                    twin.append(frame)
            n = int(twin.lane_counts[0])
            assert np.array_equal(twin.gather(np.arange(n)), dense[:n])
    assert n_copies == 3


@pytest.mark.usefixtures("learning_soon")
@pytest.mark.parametrize("codec", ["delta", "delta-huffman"])
def test_an_interrupt_while_open_groups_change_over(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two lanes, so that one has an open group when the other one closes its own."""
    monkeypatch.setattr(config, "NUMBA_NUM_THREADS", 1)
    dense = np.stack([game(N, FRAME, 0), game(N, FRAME, 1)], axis=1)

    def step(array: DiffFrameArray) -> None:
        first, second = array.lane_counts.tolist()
        lane, t = (0, first) if second - first >= 2 else (1, second)
        array.append(dense[t, lane][None], lanes=[lane])

    array = DiffFrameArray((600, 2, *FRAME), codec=codec, gop_length=4)
    n_cut = 0
    while n_cut == 0:
        before, books = copy.deepcopy(array), array._frames.store._groups.codebooks
        step(array)
        if array._frames.store._groups.codebooks is books:
            continue
        n_lines = lines_of(step, copy.deepcopy(before))
        for at in range(0, n_lines, max(1, n_lines // 120)):
            twin = copy.deepcopy(before)
            n_cut += "gop_schedule" in (interrupted(at, step, twin) or "")
            for _ in range(14):
                step(twin)
            for lane, n in enumerate(twin.lane_counts.tolist()):
                assert np.array_equal(twin.gather(np.arange(n) * 2 + lane), dense[:n, lane])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_learns_what_its_parent_had_begun_to() -> None:
    """Forked while a thread learns, of which the child has none."""
    run_script(
        """
        from tests.test_learning_beside import fork_while_learning

        fork_while_learning()
        print("done")
        """
    )


def fork_while_learning() -> None:
    logging.disable()  # that kernels are compiled
    warnings.simplefilter("ignore")  # that there are threads
    config.NUMBA_NUM_THREADS = 2
    learn = schedule.better_codebooks

    def slowly(sample: Any) -> Any:
        time.sleep(0.3)
        return learn(sample)

    dense = game(N, FRAME, 0)
    expected = written("delta")  # compiles, too
    array = DiffFrameArray((400, *FRAME), codec="delta", gop_length=4)
    schedule.better_codebooks = slowly
    rest = iter(dense)
    while array._frames.store._learning._look is None:
        array.append(next(rest))
    child = os.fork()
    for frame in rest:
        array.append(frame)
    is_right = content(array) == content(expected)
    if child == 0:
        os._exit(0 if is_right else 1)
    assert is_right
    assert os.waitpid(child, 0)[1] == 0
