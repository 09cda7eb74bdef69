"""Frames let go before newer ones replace them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressarray import DiffFrameArray, FrameEvictedError
from tests.effort import examples
from tests.naive import assert_same
from tests.strategies import game

CODECS = ("raw", "sparse", "delta", "delta-huffman", "zlib")


@settings(max_examples=examples(40), deadline=None)
@given(data=st.data())
def test_what_is_kept_and_what_is_not(data: st.DataObject) -> None:
    n_slots, n_lanes = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 3))
    codec = data.draw(st.sampled_from(CODECS))
    array = DiffFrameArray((n_slots, n_lanes, 16, 16), codec=codec)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shown = game(64, (16, 16), seed=1)
    held: dict[int, np.ndarray] = {}
    gone: set[int] = set()
    assigned: dict[tuple[int, int], np.ndarray] = {}  # what discarding must leave alone
    for _ in range(data.draw(st.integers(1, 12))):
        step = data.draw(st.sampled_from(["append", "discard", "discard", "assign", "copy"]))
        counts = array.lane_counts
        if step == "append":
            lanes = np.flatnonzero(rng.random(n_lanes) < 0.8)
            rows = shown[rng.integers(0, 64, (int(rng.integers(1, 30)), len(lanes)))]
            for row, indices in zip(rows, array.append(rows, lanes=lanes), strict=True):
                for frame, index in zip(row, indices.tolist(), strict=True):
                    held[index] = frame
                    assigned.pop((index // n_lanes % n_slots, index % n_lanes), None)
                    old = index - n_slots * n_lanes
                    gone.add(old)
                    held.pop(old, None)
        elif step == "discard":
            before = counts - rng.integers(-2, n_slots + 2, n_lanes)
            array.discard(before)
            for index in [i for i in held if i // n_lanes < before[i % n_lanes]]:
                gone.add(index)
                del held[index]
        elif step == "assign" and rng.random() < 0.3:
            slot, lane = int(rng.integers(n_slots)), int(rng.integers(n_lanes))
            array[slot, lane] = assigned[slot, lane] = shown[0]
            for index in [
                i for i in held if i % n_lanes == lane and i // n_lanes % n_slots == slot
            ]:
                gone.add(index)
                del held[index]
        elif step == "copy":
            array = array.copy()
        assert array.stats()["frames_held"] == len(held)
        wanted = np.array(sorted(held), np.int64)
        if len(wanted):
            assert_same(array.gather(wanted), np.stack([held[i] for i in wanted.tolist()]))
        for index in sorted(gone)[-3:]:
            if index >= 0:
                with pytest.raises(FrameEvictedError):
                    array.gather([index])
    for (slot, lane), frame in assigned.items():
        assert_same(array[slot, lane], frame.copy())


@pytest.mark.parametrize("codec", CODECS)
def test_memory_comes_back(codec: str) -> None:
    """A large ring of which little is kept costs what a small one does."""
    shown = np.concatenate([game(500, (32, 32), seed=k) for k in range(4)])
    large, small = (DiffFrameArray((n, 2, 32, 32), codec=codec) for n in (1500, 128))
    for k in range(0, 2000, 2):
        large.append(shown[k : k + 2])
        large.discard(large.lane_counts - 128)
        small.append(shown[k : k + 2])
    kept = np.arange(872 * 2, 2000)
    assert_same(large.gather(kept), shown[kept])
    assert large.stats()["frames_held"] == small.stats()["frames_held"] == 256
    # its index of groups or cells may be larger
    fixed = large.stats()["nbytes_by_part"]["index"]
    assert large.nbytes_stored - fixed < 1.2 * small.nbytes_stored + 16 * 1024


def test_bad_counts() -> None:
    array = DiffFrameArray((8, 2, 4, 4))
    array.append(np.ones((3, 2, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="one count for each lane"):
        array.discard([1])
    with pytest.raises(TypeError, match="must be integers"):
        array.discard([1.0, 2.0])
    with pytest.raises(TypeError, match="a view has no discard"):
        array.reshape(16, 4, 4).discard([1, 1])
    array.discard([100, -5])  # more than there are, and none
    assert array.stats()["frames_held"] == 3
    with pytest.raises(FrameEvictedError, match="was discarded; the oldest kept frame of lane 0"):
        array.gather([0])
