"""Frames of 64 KiB to 4 MiB: what small frames never reach.

An array of n cells holds n cells, whatever they are and however often they were overwritten, at
its own size plus 16 bytes a frame and the arena's bound; every array can be copied and pickled.
"""

from __future__ import annotations

import pickle
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings

from compressarray import DiffFrameArray, ReplayBuffer
from compressarray.store import MAX_FRAME_BYTES, MAX_STACK
from compressarray.store.arena import MAX_CHUNK_BYTES, Arena
from compressarray.store.arena import allocate as allocate_chunk
from compressarray.store.gop_reading import STREAMED_BYTES
from tests.effort import examples
from tests.naive import assert_same
from tests.strategies import (
    CODECS,
    LARGE_FRAMES,
    OWN_CODECS,
    Layout,
    camera,
    frames,
    large_layouts,
    sparse_allowed,
)

KIB, MIB = 1024, 1024 * 1024


def content(kind: str, n: int, layout: Layout, seed: int) -> np.ndarray[Any, Any]:
    if kind == "camera":
        return camera(n, layout.frame_shape, layout.dtype, seed)
    return frames(kind, n, layout.frame_shape, layout.dtype, seed)


# --------------------------------------------------------------------------- copies and pickles


@pytest.mark.parametrize(
    ("frame", "dtype", "codec"),
    [
        (frame, dtype, codec)
        for frame, dtype in LARGE_FRAMES
        for codec in OWN_CODECS
        if codec != "sparse" or sparse_allowed(np.dtype(dtype), len(frame))
    ],
)
def test_copies_and_pickles(frame: tuple[int, ...], dtype: str, codec: str) -> None:
    array = DiffFrameArray((4, *frame), dtype, frame_ndim=len(frame), codec=codec)
    for written in (0, 1, 4):  # a group that is open, and one that is closed
        for t in range(written):
            array[t] = camera(1, frame, dtype, t)[0]
        dense = np.asarray(array)
        assert_same(np.asarray(array.copy()), dense)
        assert_same(np.asarray(pickle.loads(pickle.dumps(array))), dense)


@pytest.mark.parametrize("shape", [(3, 224, 224), (3, 210, 160), (224, 224), (1, 70_000)])
def test_replay_buffers_of_large_frames_come_back(shape: tuple[int, ...]) -> None:
    space = Box(0, 255, shape, np.uint8)
    buffer = ReplayBuffer(6, space, Discrete(3), stack_size=2, seed=0)
    no = np.zeros(1, bool)
    pictures = camera(10, shape)
    for t in range(9):
        buffer.add(pictures[t : t + 1], [t % 3], [t], no, no, pictures[t + 1 : t + 2])
    twin = pickle.loads(pickle.dumps(buffer))
    batch, again = buffer.sample(8), twin.sample(8)
    assert_same(again.obs, batch.obs)
    for row, reward in enumerate(batch.reward.astype(int).tolist()):
        assert_same(batch.obs[row, -1], pictures[reward])
        assert_same(batch.next_obs[row, -1], pictures[reward + 1])


# --------------------------------------------------------------------------- n cells hold n cells


@settings(max_examples=examples(20), deadline=None)
@given(
    layout=large_layouts(),
    kind=st.sampled_from(("noise", "camera", "one element changed", "extremes")),
    seed=st.integers(0, 999),
)
def test_small_rings_overwritten_for_long(layout: Layout, kind: str, seed: int) -> None:
    """By appends, rows, single cells and blocks: nothing is refused, nothing piles up."""
    rng = np.random.default_rng(seed)
    array, dense = layout.build(), layout.dense()
    n_cells = int(np.prod(layout.lead_shape))
    flat = array.reshape(n_cells, *layout.frame_shape)
    dense_flat = dense.reshape(n_cells, *layout.frame_shape)
    pool = content(kind, n_cells + 5, layout, seed)
    at = 0
    for _ in range(12 * n_cells + 40 if array.nbytes < 2 * MIB else 2 * n_cells + 9):
        how = rng.integers(4)
        if how == 0:
            cells = rng.integers(0, n_cells, 1)
            flat[int(cells[0])] = dense_flat[cells] = pool[rng.integers(len(pool), size=1)]
        elif how == 1:
            start = int(rng.integers(0, 5))
            flat[...] = dense_flat[...] = pool[start : start + n_cells]
        else:
            row = pool[rng.integers(len(pool), size=n_cells // layout.shape[0])]
            row = row.reshape(layout.shape[1:])
            slot = at % layout.shape[0]
            if how == 2:
                array.append(row)
                at += 1
            else:
                array[slot] = row
            dense[slot] = row
    assert_same(np.asarray(array), dense)
    assert_same(np.asarray(pickle.loads(pickle.dumps(array))), dense)
    fresh = layout.build()
    for t in range(layout.shape[0]):
        fresh[t] = dense[t]
    # open groups beside: at most what a fresh array of the same content has while it is written
    open_bytes = 2 * array.nbytes // layout.shape[0] * min(layout.shape[0], 24)
    slack = 64 * KIB + 3 * dense_flat[0].nbytes + (1 << 20 if array.nbytes > 256 * MIB else 0)
    assert array.nbytes_stored <= 1.06 * fresh.nbytes_stored + open_bytes + slack


@pytest.mark.parametrize("how", ["append", "rows", "cells"])
@pytest.mark.parametrize("codec", OWN_CODECS)
def test_noise_stays_within_the_bound(codec: str, how: str) -> None:
    """Full rings: own size, 16 bytes a frame, 6 per cent and a segment."""
    frame = (256, 256)
    n = 48
    array = DiffFrameArray((n, *frame), codec=codec, gop_length=6 if "delta" in codec else None)
    empty = array.nbytes_stored
    pool = frames("noise", 67, frame)
    rng = np.random.default_rng(0)
    dense = np.zeros(array.shape, np.uint8)
    for turn in range(4):
        for t in range(n):
            picture = pool[rng.integers(67)]
            slot = int(rng.integers(n)) if how == "cells" and turn else t
            dense[slot] = picture
            if how == "append":
                array.append(picture)
            else:
                array[slot] = picture
    assert_same(np.asarray(array), dense)
    # The newest frame and backgrounds; after random writes, room for a group that is open.
    beside = 4 * dense[0].nbytes + 16 * KIB
    if how == "cells" and "delta" in codec:
        beside += 8 * dense[0].nbytes
    assert array.nbytes_stored <= empty + 1.06 * (dense.nbytes + 16 * n) + 4 * KIB + beside


# --------------------------------------------------------------------------- limits


@pytest.mark.parametrize("shape", [(1, 65_536), (1, 65_537), (65_537, 1), (4, 70_000), (257, 300)])
def test_sparse_names_every_pixel(shape: tuple[int, int]) -> None:
    pictures = np.zeros((3, *shape), np.uint8)
    pictures[1, -1, -1] = 5
    pictures[2, -1, 0] = pictures[2, 0, -1] = 7
    array = DiffFrameArray(pictures.shape, codec="sparse")
    array[...] = pictures
    assert_same(np.asarray(array), pictures)
    assert_same(np.asarray(pickle.loads(pickle.dumps(array))), pictures)
    assert array.nbytes_stored < 2 * pictures[0].nbytes + 64 * KIB  # not raw frames


def test_sizes_are_checked_where_they_are_kept() -> None:
    arena = Arena(1 << 20, 16, 1 << 20)
    for n_bytes in (MAX_CHUNK_BYTES + 1, (1 << 32) + 8, 1 << 40):
        assert allocate_chunk(arena.state, n_bytes) < 0
    entry = int(allocate_chunk(arena.state, 1000))
    assert int(arena.state.size[entry]) == 1000


@pytest.mark.parametrize("codec", CODECS)
def test_too_large_frames_are_refused_at_construction(codec: str) -> None:
    with pytest.raises(ValueError, match=rf"{MAX_FRAME_BYTES + 2:,} bytes .* {MAX_FRAME_BYTES:,}"):
        DiffFrameArray((9, MAX_FRAME_BYTES // 2 + 1, 2), codec=CODECS[codec]())


@pytest.mark.parametrize("codec", OWN_CODECS)
@pytest.mark.parametrize("shape", [(2**45, 84, 84), (2**31, 2**31, 2**31, 2, 2), (3, 2**50, 1, 1)])
def test_more_than_there_are_addresses(shape: tuple[int, ...], codec: str) -> None:
    with pytest.raises(MemoryError, match=r"\d+ bytes .* make an axis shorter"):
        DiffFrameArray(shape, codec=codec)


def test_long_axes_are_no_stacks() -> None:
    """A stack axis costs the square of its length: "auto" takes only what may be stacks."""
    array = DiffFrameArray((2, 1, MAX_STACK + 1, 2, 2))
    assert array.stack_axis is None
    pictures = frames("noise", 2, array.shape[1:])
    array[...] = pictures
    assert_same(np.asarray(array), pictures)
    assert DiffFrameArray((2, 1, MAX_STACK, 2, 2)).stack_axis == 2
    with pytest.raises(ValueError, match=f"stack_axis=2 has {MAX_STACK + 1} frames.*stack_axis=No"):
        DiffFrameArray((2, 1, MAX_STACK + 1, 2, 2), stack_axis=2)


def test_more_transitions_than_can_be_counted() -> None:
    with pytest.raises(MemoryError, match=f"capacity={2**31 + 8} .* {2**31 - 1} that can be"):
        ReplayBuffer(2**31 + 8, Box(-1, 1, (1,)), Discrete(2))


# --------------------------------------------------------------------------- nothing, and gaps


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 4, 5), (0, 2, 0, 4, 5)])
def test_arrays_without_cells_hold_what_is_pinned(shape: tuple[int, ...], codec: str) -> None:
    layout = Layout(shape, np.dtype("u1"), 2, codec)
    array = layout.build() if codec != "sparse" else DiffFrameArray(shape, codec="sparse")
    if array.stack_axis is not None:  # a stack of no frames
        assert array.gather(array.pin(np.zeros((0, 4, 5), np.uint8))).shape == (0, 4, 5)
        return
    pinned = frames("noise", 2, (4, 5))
    index = array.pin(pinned)
    for each in (array, array.copy(), pickle.loads(pickle.dumps(array))):
        assert_same(each.gather(index), pinned)
    array.clear()
    assert_same(array.gather(index), pinned)


ALIGNED = np.dtype([("x", "u1"), ("y", "<f8"), ("z", "<u2")], align=True)


@pytest.mark.parametrize("codec", ["raw", "delta", "delta-huffman"])
def test_gaps_of_aligned_dtypes_are_kept_and_never_invented(codec: str) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (6, 3, 4, ALIGNED.itemsize), np.uint8)
    dense = raw.view(ALIGNED)[..., 0]
    array = DiffFrameArray(dense.shape, ALIGNED, codec=codec)
    nothing = np.asarray(array)
    assert nothing.tobytes() == bytes(array.nbytes)  # never written: zeros, gaps included
    array[...] = dense
    assert np.asarray(array).tobytes() == dense.tobytes()
    array["y"] = 2.5
    dense["y"] = 2.5
    assert np.asarray(array).tobytes() == dense.tobytes()
    array[2] = (1, 2.0, 3)
    row = np.zeros((3, 4), ALIGNED)
    row["x"], row["y"], row["z"] = 1, 2.0, 3
    assert array[2].tobytes() == row.tobytes()
    for name in ALIGNED.names or ():
        assert_same(array[name][3:], dense[name][3:])


@pytest.mark.parametrize("codec", ["raw", "delta"])
def test_strings_of_no_characters(codec: str) -> None:
    dtype = np.dtype([("name", "S0"), ("title", "U0"), ("n", "u1")])
    dense = np.zeros((3, 2, 2), dtype)
    dense["n"] = 7
    array = DiffFrameArray(dense.shape, dtype, codec=codec)
    array[...] = dense
    for key in ("name", "title", "n"):
        assert array[key].dtype == dense[key].dtype
        assert array[key].shape == dense[key].shape
        assert (array[key] == dense[key]).all()
    texts = DiffFrameArray((3, 2, 2), "S5", codec=codec)
    texts[...] = b"abc"
    texts[0] = dense["name"][0]
    assert (texts[0] == b"").all()
    assert (texts[1] == b"abc").all()


@pytest.mark.parametrize("codec", ["sparse", "delta", "delta-huffman"])
@pytest.mark.parametrize("offset", [0, 1, 15])
@pytest.mark.parametrize("frame", [(37, 23), (84, 84), (3, 3)])
def test_large_reads_go_past_the_caches(codec: str, offset: int, frame: tuple[int, ...]) -> None:
    """Wherever the memory begins and frames end, in any order, earlier and later ones alike."""
    dense = frames("sprites", 200, frame, np.dtype(np.uint8), seed=3)
    array = DiffFrameArray((200, *frame), codec=codec)
    array.append(dense)
    n = STREAMED_BYTES // dense[0].nbytes + 2
    rows = np.random.default_rng(offset).integers(0, 200, n)
    memory = np.full(n * dense[0].nbytes + 32, 7, np.uint8)
    out = memory[offset:][: n * dense[0].nbytes].reshape(n, *frame)
    assert array.gather(rows, out=out) is out
    assert np.array_equal(out, dense[rows])
    assert (memory[:offset] == 7).all()
    assert (memory[offset + out.size :] == 7).all()
