"""Whatever interrupts a write, it has happened whole or not at all, and everything goes on."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compressarray import DiffFrameArray
from compressarray.store import gops
from tests.effort import examples
from tests.interrupting import interrupted, lines_of
from tests.naive import assert_same
from tests.strategies import CODECS, frames, game

FRAME = (12, 16)
ROWS, LANES = 40, 2
INTERRUPTS = examples(6)  # of each operation, twice


@pytest.fixture
def learning_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small arrays learn tokens and codes, again and again."""
    monkeypatch.setattr(gops, "MIN_CHANGES", 40)
    monkeypatch.setattr(gops, "PACK_AT_BYTES", 1000)
    monkeypatch.setattr(gops, "LEARN_AFTER_GOPS", 2)
    monkeypatch.setattr(gops, "MAX_LEARN_PAUSE", 1)
    monkeypatch.setattr(gops, "TOKENS_GAIN", -1.0)
    monkeypatch.setattr(gops, "PACKED_TOKENS_GAIN", -1.0)
    monkeypatch.setattr(gops, "CODES_GAIN", -1.0)


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
    store = array._frames.store
    log = store._state.log[0] if isinstance(store, gops.GopStore) else store._log[0, 0]
    assert log == 0
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
    n_lines = lines_of(lambda: operation(counted))
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
        where = interrupted(lambda twin=twin: operation(twin), at)
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
        interrupted(lambda operation=operation, array=array: operation(array), at)
        if twin_before is not None:
            assert twin_before == before
        if array.stream or seen(array) != before:  # it was done before the line came
            array = filled(codec)
    assert seen(array) == before
    assert array.nbytes_stored <= 1.2 * held + 64 * 1024


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
