"""``DiffFrameArray.withdraw``: frames taken back, as if they had never been appended."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from compressarray import DiffFrameArray, FrameEvictedError
from tests.effort import examples
from tests.naive import assert_same

FRAME = (4, 6)

# What is done, and to which lane.
EDITS = st.lists(
    st.tuples(st.sampled_from(("append", "append", "append", "row", "withdraw", "discard")),
              st.integers(0, 2), st.integers(0, 5)),
    max_size=60,
)  # fmt: skip


@settings(max_examples=examples(60))
@given(
    codec=st.sampled_from(("raw", "sparse", "delta", "delta-huffman", "zstd")),
    n_rows=st.sampled_from((3, 9, 40)),
    edits=EDITS,
    seed=st.integers(0, 99),
)
def test_frames_are_those_of_lists(codec: str, n_rows: int, edits: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = DiffFrameArray((n_rows, 3, *FRAME), stack_axis=None, codec=codec)
    lanes: list[list[np.ndarray]] = [[], [], []]
    kept = [0, 0, 0]  # the first frame that is held
    for what, lane, number in edits:
        if what in ("append", "row"):
            named = [lane] if what == "append" else [0, 1, 2]
            new = rng.integers(0, 3, (len(named), *FRAME), np.uint8)
            indices = array.append(new, lanes=named)
            assert indices.tolist() == [3 * len(lanes[k]) + k for k in named]
            for k, frame in zip(named, new, strict=True):
                lanes[k].append(frame)
                kept[k] = max(kept[k], len(lanes[k]) - n_rows)
        elif what == "withdraw":
            counts = [len(frames) for frames in lanes]
            counts[lane] = max(counts[lane] - number, 0)
            lanes[lane] = lanes[lane][: counts[lane]]
            kept[lane] = min(kept[lane], counts[lane])
            counts[(lane + 1) % 3] += 4  # of which there are none
            array.withdraw(counts)
        else:
            kept[lane] = max(kept[lane], min(kept[lane] + number, len(lanes[lane])))
            array.discard(kept)
        assert array.lane_counts.tolist() == [len(frames) for frames in lanes]
        for k, frames in enumerate(lanes):
            held = np.arange(kept[k], len(frames))
            shown = np.array(frames[kept[k] :], np.uint8).reshape(-1, *FRAME)
            assert_same(array.gather(3 * held + k), shown)
            for gone in (kept[k] - 1, len(frames)):
                if gone >= 0:
                    with pytest.raises(FrameEvictedError):
                        array.gather(3 * gone + k)


def test_what_cannot_be_taken_back_is_refused() -> None:
    array = DiffFrameArray((5, 2, *FRAME), stack_axis=None)
    array.append(np.ones((2, *FRAME), np.uint8))
    with pytest.raises(ValueError, match=r"counts has shape \(1,\)"):
        array.withdraw([0])
    with pytest.raises(ValueError, match=r"counts=\[-1, 0\] must not be negative"):
        array.withdraw([-1, 0])
    with pytest.raises(TypeError, match="counts holds float64"):
        array.withdraw([0.0, 0.0])
    with pytest.raises(TypeError, match="a view has no withdraw"):
        array.reshape(-1, *FRAME).withdraw([0, 0])
    assert array.lane_counts.tolist() == [1, 1]
