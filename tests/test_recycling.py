"""Memory of outputs is used again, and never while anybody can see it."""

from __future__ import annotations

import threading
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from compressarray.replay import recycling
from compressarray.replay.recycling import Recycler
from tests.effort import examples

BYTE = np.dtype(np.uint8)
SHAPES = ((4, 3), (12,), (2, 5, 3), (0, 3), (7,))
VIEWS = (
    lambda array: array,
    lambda array: array[1:],
    lambda array: array.reshape(-1)[::2],
    lambda array: array.view(np.int8),
    lambda array: array.T,
    memoryview,
    lambda array: np.lib.stride_tricks.sliding_window_view(array, 2, axis=-1),
)


@settings(max_examples=examples(100), deadline=None)
@given(data=st.data())
def test_what_is_seen_is_never_overwritten(data: st.DataObject) -> None:
    recycler = Recycler()
    held: list[tuple[Any, np.ndarray]] = []
    for value in range(data.draw(st.integers(1, 40))):
        array = recycler.empty(data.draw(st.sampled_from(SHAPES)), BYTE)
        array[...] = value
        for keep in VIEWS:
            if data.draw(st.booleans()) and (array.size or keep is not memoryview):
                view = keep(array)
                held.append((view, np.array(view)))
        del array
        while held and data.draw(st.booleans()):
            held.pop(data.draw(st.integers(0, len(held) - 1)))
        for view, expected in held:
            assert np.array_equal(np.asarray(view), expected)


def test_what_nobody_sees_is_used_again() -> None:
    recycler = Recycler()
    first, second = (recycler.empty((6, 4), BYTE) for _ in range(2))
    places = {first.ctypes.data, second.ctypes.data}
    assert len(places) == 2
    row = first[2]
    del first, second
    assert recycler.empty((24,), BYTE).ctypes.data in places - {row.ctypes.data - 8}
    assert len(recycler._spare) == 1
    del row
    assert len(recycler._spare) == 2
    again = [recycler.empty((2, 3), np.dtype(np.int32)) for _ in range(2)]
    assert {array.ctypes.data for array in again} == places
    assert all(array.flags.c_contiguous and array.flags.writeable for array in again)


def test_tensors_and_their_views_count() -> None:
    torch = pytest.importorskip("torch")
    recycler = Recycler()
    tensor = torch.from_numpy(recycler.empty((6, 4), BYTE))[2:]
    place = tensor.data_ptr()
    assert recycler.empty((6, 4), BYTE).ctypes.data != place - 8
    array = tensor.numpy()
    del tensor
    assert recycler.empty((6, 4), BYTE).ctypes.data != place - 8
    del array
    # two are spare now, and one of them is it
    arrays = [recycler.empty((6, 4), BYTE) for _ in range(2)]
    assert place - 8 in {array.ctypes.data for array in arrays}


def test_any_dtype() -> None:
    recycler = Recycler()
    dtype = np.dtype([("x", "<i2"), ("y", ">f8", (2,))])
    for shape in ((3,), (), (2, 0)):
        array = recycler.empty(shape, dtype)
        assert (array.shape, array.dtype) == (shape, dtype)


def test_little_is_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycling, "MAX_SPARE_BYTES", 100)
    recycler = Recycler()
    arrays = [recycler.empty((size,), BYTE) for size in (40, 50, 30, 20, 101)]
    for spare in ([40], [40, 50], [50, 30], [50, 30, 20], []):
        del arrays[0]
        assert list(map(len, recycler._spare)) == spare


def test_memory_outlives_who_gave_it() -> None:
    recycler = Recycler()
    array = recycler.empty((5,), BYTE)
    array[:] = 9
    del recycler
    assert (array == 9).all()
    del array


def test_threads_share_no_memory() -> None:
    recycler = Recycler()
    wrong = []

    def work(value: int) -> None:
        for _ in range(2000):
            array = recycler.empty((64,), BYTE)
            array[:] = value
            view = array[8:]
            del array
            if (view != value).any():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(recycler._spare) < 100  # threads that meet may miss what is spare
