"""The oracle itself, against results worked out by hand: all else is compared with it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from tests.naive import (
    FIRST_PINNED,
    NaiveEvictedError,
    NaiveFrameArray,
    NaiveStaleStreamError,
    assert_same,
)


def frame(value: int) -> np.ndarray:
    return np.full((2, 3), value, np.uint8)


def row(*values: int) -> np.ndarray:
    return np.stack([frame(value) for value in values])


def test_a_ring_of_one_lane_keeps_its_newest_frames():
    ring = NaiveFrameArray((3, 2, 3))
    indices = [int(ring.append(frame(value))) for value in range(5)]
    assert indices == [0, 1, 2, 3, 4]
    assert_same(ring[:, 0, 0], np.array([3, 4, 2], np.uint8))
    assert_same(ring.gather([[4, 2]]), np.stack([frame(4), frame(2)])[np.newaxis])
    for gone in (0, 1, 5, -1, FIRST_PINNED):
        with pytest.raises(NaiveEvictedError):
            ring.gather([4, gone])


def test_lanes_count_apart():
    ring = NaiveFrameArray((2, 3, 2, 3))
    assert ring.append(row(10, 11, 12)).tolist() == [0, 1, 2]
    assert ring.append(row(21), lanes=[1]).tolist() == [4]
    assert ring.append(row(31, 30), lanes=[1, 0]).tolist() == [7, 3]
    assert ring.lane_counts.tolist() == [2, 3, 1]
    assert ring[:, :, 0, 0].tolist() == [[10, 31, 12], [30, 21, 0]]
    assert ring.gather([0, 2, 3, 4, 7])[:, 0, 0].tolist() == [10, 12, 30, 21, 31]
    with pytest.raises(NaiveEvictedError):
        ring.gather(1)  # lane 1 went round
    with pytest.raises(NaiveEvictedError):
        ring.gather(5)  # lane 2 has no second frame yet


def test_several_rows_in_time_order():
    ring = NaiveFrameArray((2, 2, 2, 3))
    indices = ring.append(np.stack([row(1, 2), row(3, 4), row(5, 6)]))
    assert indices.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert ring.append(np.empty((0, 2, 2, 3), np.uint8)).shape == (0, 2)
    assert ring[:, :, 0, 0].tolist() == [[5, 6], [3, 4]]


@pytest.mark.parametrize("stack_axis", ["auto", 1])
def test_a_lane_of_stacks_gets_a_stack(stack_axis):
    # 4 steps of 2 lanes, with stacks of 3 behind or before the lanes
    shape = (4, 2, 3, 2, 3) if stack_axis == "auto" else (4, 3, 2, 2, 3)
    ring = NaiveFrameArray(shape, stack_axis=stack_axis)
    assert (ring.n_lanes, ring.lane_shape, ring.entry_shape) == (2, (2,), (3, 2, 3))
    stacks = np.arange(36, dtype=np.uint8).reshape(2, 3, 2, 3)
    rows = stacks if stack_axis == "auto" else stacks.swapaxes(0, 1)
    assert ring.append(rows).tolist() == [0, 1]
    assert ring.append(stacks[1:], lanes=[0]).tolist() == [2]
    assert_same(ring.gather([1, 0, 2]), stacks[[1, 0, 1]])


def test_assignment_retires_the_lanes_it_writes_to():
    ring = NaiveFrameArray((2, 2, 2, 3))
    ring.append(np.stack([row(1, 2), row(3, 4)]))
    ring[0, 1, 1, 2] = 9  # one pixel
    ring[1, :0] = 9  # nothing
    assert ring.gather([0, 2, 3])[:, 0, 0].tolist() == [1, 3, 4]
    with pytest.raises(NaiveEvictedError):
        ring.gather(1)
    ring.append(row(5, 6))
    assert ring.gather([4, 5])[:, 0, 0].tolist() == [5, 6]


def test_a_failed_assignment_changes_nothing():
    ring = NaiveFrameArray((2, 2, 3))
    ring.append(frame(7))
    with pytest.raises(ValueError, match="broadcast"):
        ring[0] = np.zeros((2, 2))
    with pytest.raises(IndexError):
        ring[2] = 0
    assert_same(ring.gather(0), frame(7))


def test_a_view_writes_through_and_retires():
    ring = NaiveFrameArray((2, 2, 2, 3))
    ring.append(np.stack([row(1, 2), row(3, 4)]))
    flat = ring.reshape(4, 2, 3)
    flat[2] = 8
    assert ring[1, 0, 0, 0] == 8
    with pytest.raises(NaiveEvictedError):
        ring.gather(2)
    assert flat.gather(3)[0, 0] == 4
    with pytest.raises(TypeError):
        flat.append(frame(0))
    with pytest.raises(ValueError, match="frame"):
        ring.reshape(8, 3)
    twin = pickle.loads(pickle.dumps(flat))
    twin[0] = 99
    assert flat[0, 0, 0] == 1


def test_pins_survive_clear_and_streams_do_not():
    ring = NaiveFrameArray((2, 2, 3), fill_value=5)
    zero, one = ring.pin(np.stack([frame(0), frame(1)])).tolist()
    assert [zero, one] == [FIRST_PINNED, FIRST_PINNED - 1]
    assert int(ring.pin(frame(0))) == zero
    ring.append(frame(3))
    ring.clear()
    assert_same(ring[0], frame(5))
    assert_same(ring.gather([one, zero]), np.stack([frame(1), frame(0)]))
    with pytest.raises(NaiveEvictedError):
        ring.gather(0)
    with pytest.raises(NaiveStaleStreamError):
        ring.gather(one, stream=0)
    assert ring.append(frame(4)).tolist() == 0
    assert_same(ring.gather(0, stream=1), frame(4))


def test_copies_and_pickles_go_their_own_way():
    ring = NaiveFrameArray((2, 2, 3))
    ring.append(frame(1))
    ring.pin(frame(2))
    for twin in (ring.copy(), pickle.loads(pickle.dumps(ring))):
        twin.append(frame(3))
        twin[0] = 9
        assert twin.gather(1)[0, 0] == 3
        assert twin.gather(FIRST_PINNED)[0, 0] == 2
    assert ring.lane_counts.tolist() == [1]
    assert ring.gather(0)[0, 0] == 1


def test_it_behaves_as_an_array():
    ring = NaiveFrameArray((2, 2, 3))
    ring[...] = np.arange(12).reshape(2, 2, 3)
    dense = np.asarray(ring)
    assert_same(ring + 1, dense + 1)
    assert_same(ring == dense, np.ones((2, 2, 3), bool))
    assert_same(np.stack([ring, ring]), np.stack([dense, dense]))
    assert len(list(ring)) == 2
    ring += 1
    assert_same(ring[...], dense + 1)
    ring[0][0] = 77  # a read is a fresh array
    assert_same(ring[0], dense[0] + 1)
    with pytest.raises(ValueError, match="copies"):
        np.asarray(ring, copy=False)


@pytest.mark.parametrize(
    ("frames", "lanes", "error"),
    [
        (np.zeros((2, 2, 3), np.int16), None, TypeError),
        (np.zeros((3, 2, 3), np.uint8), None, ValueError),
        (np.zeros((2, 2, 2), np.uint8), None, ValueError),
        (np.zeros((2, 2, 3), np.uint8), [0, 0], ValueError),
        (np.zeros((1, 2, 3), np.uint8), [2], IndexError),
        (np.zeros((1, 2, 3), np.uint8), [0.0], TypeError),
    ],
)
def test_append_refuses(frames, lanes, error):
    ring = NaiveFrameArray((4, 2, 2, 3))
    with pytest.raises(error):
        ring.append(frames, lanes)
    assert ring.lane_counts.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("actual", "dense"),
    [
        (np.zeros(2, np.uint8), np.zeros(2, np.int8)),
        (np.zeros(2), np.zeros((2, 1))),
        (np.zeros(2), np.array([0.0, -0.0])),
        (
            np.array([0x7FC00001], np.uint32).view("f4"),
            np.array([0x7FC00002], np.uint32).view("f4"),
        ),
        (np.zeros((), np.uint8), np.uint8(0)),
        (np.ma.zeros(2), np.zeros(2)),
        ([0, 0], np.zeros(2)),
    ],
)
def test_assert_same_sees_the_difference(actual, dense):
    assert_same(dense.copy(), dense)
    with pytest.raises(AssertionError):
        assert_same(actual, dense)
