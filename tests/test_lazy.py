"""A read decodes only the GOPs it needs, and a write touches only those it must.

What was decoded is counted by the array itself, in `stats()`; what was held meanwhile, by
`tracemalloc`, which sees numpy's allocations.
"""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from compressarray import DiffFrameArray
from tests.naive import assert_same
from tests.strategies import CODECS, frames, game

GOP = 8
N_TIME = 256
FRAME = (20, 24)
MIB = 1024 * 1024

# Codec -> frames that one GOP may take to decode. `sparse` has the paper's groups of four; where
# frames are coded alone, one frame is one frame.
REACH = {
    "delta": GOP,
    "delta-huffman": GOP,
    "sparse": 4,
    "raw": 1,
    "numcodecs.Zstd": 1,
    "numcodecs.LZ4": 1,
}


def build(codec: str, *between: int, n_time: int = N_TIME, **options: Any) -> DiffFrameArray:
    if codec in ("delta", "delta-huffman"):
        options.setdefault("gop_length", GOP)
    return DiffFrameArray((n_time, *between, *FRAME), codec=CODECS[codec](), **options)


def lanes_of(n_lanes: int, n_time: int = N_TIME) -> np.ndarray[Any, Any]:
    """Games that differ from lane to lane; shape (n_time, n_lanes, *FRAME)."""
    return np.stack([game(n_time, FRAME, seed=lane) for lane in range(n_lanes)], axis=1)


class Work:
    """What an operation cost, by the array's own counters."""

    frames_decoded = 0
    gops_decoded = 0
    gops_encoded = 0


@contextmanager
def counted(array: DiffFrameArray) -> Iterator[Work]:
    before, work = array.stats(), Work()
    yield work
    after = array.stats()
    work.frames_decoded = int(after["frames_decoded"] - before["frames_decoded"])
    work.gops_decoded = int(after["gops_decoded"] - before["gops_decoded"])
    work.gops_encoded = int(after["gops_encoded"] - before["gops_encoded"])


def forget_caches(array: DiffFrameArray) -> DiffFrameArray:
    """The same frames without anything decoded at hand: a pickled copy starts cold."""
    cold: DiffFrameArray = pickle.loads(pickle.dumps(array))
    return cold


# --------------------------------------------------------------------------- the counters count


@pytest.mark.parametrize("codec", REACH)
def test_reading_everything_is_counted(codec: str) -> None:
    """Counters that stand still would make every other test here pass."""
    content = lanes_of(2)
    array = build(codec, 2)
    with counted(array) as written:
        array[...] = content
    with counted(array) as read:
        np.asarray(array)
    n_distinct = sum(len({f.tobytes() for f in content[:, lane]}) for lane in range(2))
    # Frames that equal one of the lane's previous row are stored once, and newest ones may wait
    # uncoded in an open GOP.
    assert read.frames_decoded >= n_distinct // 2
    assert read.frames_decoded <= N_TIME * 2 + 2 * REACH[codec]
    assert read.gops_decoded >= (n_distinct // 2) // GOP
    assert written.gops_encoded >= (n_distinct // 2) // GOP
    if REACH[codec] == GOP:  # time order fills GOPs: one that is cut short costs a keyframe
        assert read.gops_decoded <= 2 * (N_TIME // GOP + 1)
        assert written.gops_encoded <= 2 * (N_TIME // GOP + 1)


# --------------------------------------------------------------------------- reads


@pytest.mark.parametrize("codec", REACH)
@pytest.mark.parametrize("cold", [False, True], ids=["as written", "after a pickle"])
def test_one_frame_decodes_one_gop(codec: str, cold: bool) -> None:
    content = lanes_of(3)
    array = build(codec, 3)
    array[...] = content
    if cold:
        array = forget_caches(array)
    for t, lane in [(0, 0), (7, 1), (8, 2), (100, 0), (101, 1), (150, 2), (255, 1), (-3, 0)]:
        with counted(array) as work:
            frame = array[t, lane]
        assert_same(frame, content[t, lane].copy())
        assert work.frames_decoded <= REACH[codec]
        assert work.gops_decoded <= 1


@pytest.mark.parametrize("codec", REACH)
def test_pixels_within_one_frame_decode_one_gop(codec: str) -> None:
    content = lanes_of(2)
    array = build(codec, 2)
    array[...] = content
    mask = np.zeros(array.shape, bool)
    mask[130, 1, 3:9, 5] = True
    for key in [
        (130, 1, 4, 5),
        (130, 1, slice(2, 5), slice(None, None, -2)),
        (130, 1, Ellipsis, [1, 3, 5]),
        ([130, 130, 130], 1, [0, 5, 9], 7),
        (130, 1, None, slice(0, 1)),
        mask,
        mask.any(axis=(2, 3)),
        (Ellipsis, slice(130, 131), slice(1, 2), slice(None), slice(None)),
    ]:
        with counted(array) as work:
            value = array[key]
        assert_same(value, np.copy(content[key]) if np.ndim(content[key]) else content[key])
        assert work.frames_decoded <= REACH[codec]
        assert work.gops_decoded <= 1


@pytest.mark.parametrize("codec", REACH)
def test_nothing_is_decoded_for_nothing(codec: str) -> None:
    array = build(codec, 2)
    array[...] = lanes_of(2)
    with counted(array) as work:
        array.reshape(-1, *FRAME).reshape(N_TIME // 2, 4, *FRAME)
        array[3:3]
        array[[]]
        array[np.zeros((N_TIME, 2), bool)]
        array[np.zeros(array.shape, bool)]
        array[5:9, :, 7:7]
        array.gather(np.zeros((0, 4), np.int64))
        _ = array.shape, array.nbytes, array.nbytes_stored, array.compression_ratio, len(array)
        with pytest.raises(IndexError):
            array[N_TIME]
        with pytest.raises(IndexError):
            array[[0, 1, N_TIME]]
        with pytest.raises(ValueError, match="broadcast"):
            array[...] = np.zeros((3, 5), np.uint8)
    assert (work.frames_decoded, work.gops_decoded, work.gops_encoded) == (0, 0, 0)


@pytest.mark.parametrize("codec", REACH)
def test_strides_and_batches(codec: str) -> None:
    content = lanes_of(2)
    array = build(codec, 2)
    array[...] = content
    reach = REACH[codec]
    rng = np.random.default_rng(0)
    some = rng.integers(0, N_TIME, 12)
    lanes = rng.integers(0, 2, 12)
    for key, n_frames, n_gops in [
        ((slice(None, None, 64), 0), 4, 4),
        ((slice(200, 20, -45), slice(None)), 8, 8),
        ((some, lanes), 12, 12),
        ((some.reshape(3, 4), 0), 12, 12),
        ((slice(40, 40 + 3 * GOP), 1), 3 * GOP, 4),  # a run of frames lies in few GOPs
        ((slice(40, 40 + 3 * GOP), 1, 0, 0), 3 * GOP, 4),
        ((slice(47, 23, -1), 1), 3 * GOP, 4),
        (([33] * 50, [1] * 50), 1, 1),  # the same frame over and over is one frame
    ]:
        with counted(array) as work:
            value = array[key]
        assert_same(value, np.copy(content[key]))
        if reach == GOP:
            assert work.gops_decoded <= n_gops
            assert work.frames_decoded <= n_gops * GOP
        else:
            assert work.frames_decoded <= n_frames * reach


@given(st.data())
def test_drawn_batches(data: st.DataObject) -> None:
    codec = data.draw(st.sampled_from(sorted(REACH)))
    if codec not in _PREPARED:
        array = build(codec, 2)
        array[...] = lanes_of(2)
        _PREPARED[codec] = array
    array = _PREPARED[codec]
    times = data.draw(st.lists(st.integers(0, N_TIME - 1), max_size=12))
    lane = data.draw(st.integers(0, 1))
    with counted(array) as work:
        array[np.array(times, np.int64), lane]
    # One GOP per stretch of GOP frames, wherever GOPs begin.
    most = min(len(set(times)), 2 * len({t // GOP for t in times}))
    assert work.frames_decoded <= most * REACH[codec]
    if REACH[codec] == GOP:
        assert work.gops_decoded <= most


_PREPARED: dict[str, DiffFrameArray] = {}


# --------------------------------------------------------------------------- rings and stacks


@pytest.mark.parametrize("codec", REACH)
def test_gathering_one_stack_decodes_at_most_two_gops(codec: str) -> None:
    """Four consecutive frames straddle two GOPs at most, whichever lane they are from."""
    array = build(codec, 3, n_time=64)
    content = lanes_of(3, 150)
    for row in content:  # the ring turns twice
        array.append(row)
    rng = np.random.default_rng(1)
    for _ in range(30):
        count, lane = int(rng.integers(150 - 64, 150 - 4)), int(rng.integers(3))
        index = (count + np.arange(4)) * 3 + lane
        with counted(array) as work:
            stack = array.gather(index)
        assert_same(stack, content[count : count + 4, lane].copy())
        assert work.frames_decoded <= min(2, 4) * REACH[codec] * (1 if REACH[codec] == GOP else 4)
        if REACH[codec] == GOP:
            assert work.gops_decoded <= 2


@pytest.mark.parametrize("codec", REACH)
def test_reading_one_row_of_stacks_decodes_at_most_two_gops_a_lane(codec: str) -> None:
    content = lanes_of(2)
    stacks = np.zeros((N_TIME, 2, 4, *FRAME), np.uint8)
    for k in range(4):
        stacks[3 - k :, :, k] = content[: N_TIME - 3 + k]
    array = build(codec, 2, 4)
    for row in stacks:
        array.append(row)
    for t, lane in [(0, 0), (1, 1), (2, 0), (9, 1), (100, 0), (177, 1), (255, 0)]:
        index = np.array(2 * t + lane)
        for read in (lambda: array[t, lane], lambda: array.gather(index)):  # noqa: B023
            with counted(array) as work:
                stack = read()
            assert_same(stack, stacks[t, lane])
            assert work.frames_decoded <= (2 * GOP if REACH[codec] == GOP else 4 * REACH[codec])
            if REACH[codec] == GOP:
                assert work.gops_decoded <= 2


@pytest.mark.parametrize("codec", ["delta", "delta-huffman"])
def test_a_batch_of_stacks_decodes_each_gop_once(codec: str) -> None:
    """`obs` and `next_obs` share GOPs, and a batch that asks twice decodes once."""
    array = build(codec, n_time=128)
    content = lanes_of(1, 128)[:, 0]
    array.append(content)
    starts = np.array([3, 40, 77, 110])
    windows = starts[:, None] + np.arange(5)
    both = np.stack([windows[:, :4], windows[:, 1:]])
    with counted(array) as work:
        batch = array.gather(np.concatenate([both, both], axis=1))
    assert_same(batch[0, :4], content[windows[:, :4]])
    assert_same(batch[1, 4:], content[windows[:, 1:]])
    assert work.gops_decoded <= 2 * len(starts)
    assert work.frames_decoded <= 2 * len(starts) * GOP


# --------------------------------------------------------------------------- writes


@pytest.mark.parametrize("codec", REACH)
def test_appending_decodes_nothing_and_codes_each_gop_once(codec: str) -> None:
    array = build(codec, 2, n_time=64)
    content = frames("noise", 400, (2, *FRAME))
    array.append(content[:64])
    with counted(array) as work:
        for row in content[64:]:
            array.append(row)
    n_appended = 2 * (400 - 64)
    assert work.frames_decoded == 0
    assert work.gops_decoded == 0
    if REACH[codec] == GOP:
        assert n_appended // GOP - 2 <= work.gops_encoded <= n_appended // GOP + 2
    else:
        assert work.gops_encoded <= n_appended


@pytest.mark.parametrize("codec", REACH)
def test_writing_one_frame_touches_its_own_gop(codec: str) -> None:
    content = lanes_of(3)
    array = build(codec, 3)
    array[...] = content
    rng = np.random.default_rng(2)
    for t, lane in [(5, 0), (64, 1), (63, 2), (200, 0), (255, 1), (0, 2)]:
        frame = rng.integers(0, 256, FRAME, np.uint8)
        with counted(array) as work:
            array[t, lane] = frame
        content[t, lane] = frame
        assert work.gops_encoded <= 2
        # Its own GOP, and the one of the lane's previous row, which might hold an equal frame.
        assert work.gops_decoded <= 2
        assert work.frames_decoded <= 2 * max(REACH[codec], 1)
    assert_same(np.asarray(array), content)


@pytest.mark.parametrize("codec", REACH)
def test_writing_pixels_touches_the_gop_of_their_frame(codec: str) -> None:
    content = lanes_of(2)
    array = build(codec, 2)
    array[...] = content
    for t in (0, 31, 130, 255):
        with counted(array) as work:
            array[t, 1, 3, 4:9] = t
        content[t, 1, 3, 4:9] = t
        assert work.gops_encoded <= 2
        assert work.gops_decoded <= 2
        assert work.frames_decoded <= 2 * max(REACH[codec], 1)
    assert_same(np.asarray(array), content)


@pytest.mark.parametrize("codec", REACH)
def test_overwriting_everything_decodes_next_to_nothing(codec: str) -> None:
    """Whole GOPs that are replaced need not be read, whether at once or row by row."""
    first, second = lanes_of(2), lanes_of(2)[::-1].copy()
    array = build(codec, 2)
    array[...] = first
    with counted(array) as work:
        array[...] = second
    assert work.gops_decoded <= 2
    assert work.frames_decoded <= 2 * GOP
    assert_same(np.asarray(array), second)


def test_appending_beside_an_untouched_lane() -> None:
    array = build("delta", 2, n_time=64)
    content = lanes_of(2, 64)
    array.append(content)
    with counted(array) as work:
        for frame in content[:, 0]:
            array.append(frame[None], lanes=[0])
    assert work.gops_decoded == 0
    assert work.gops_encoded <= 64 // GOP + 1


# --------------------------------------------------------------------------- what was never written


@pytest.mark.parametrize("codec", REACH)
def test_what_was_never_written_decodes_nothing(codec: str) -> None:
    array = build(codec, 2, fill_value=3)
    with counted(array) as work:
        everything = np.asarray(array)
    assert (everything == 3).all()
    assert (work.frames_decoded, work.gops_decoded) == (0, 0)
    array[100] = 9
    with counted(array) as work:
        array[:90], array[:96:3, 0, 5, 5], array[120:], array[[0, 7, 255], [1, 0, 1]]
    assert (work.frames_decoded, work.gops_decoded) == (0, 0)


@pytest.mark.parametrize("codec", REACH)
def test_after_clear_nothing_is_left_to_decode(codec: str) -> None:
    array = build(codec, 2)
    array.append(lanes_of(2))
    array.clear()
    with counted(array) as work:
        assert not np.asarray(array).any()
    assert (work.frames_decoded, work.gops_decoded) == (0, 0)


def test_ten_million_rows_cost_nothing_until_written() -> None:
    """In a process of its own, where resident memory can be watched."""
    script = """
        import sys
        import numpy as np
        from compressarray import DiffFrameArray
        from tests.memory import resident_bytes

        def use(codec, n_time, *between):
            array = DiffFrameArray((n_time, *between, 84, 84), codec=codec)
            lead = (0,) * len(between)
            assert array.nbytes == n_time * 7056 * int(np.prod(between, dtype=int))
            assert array.nbytes_stored < 4 * 2**20, array.nbytes_stored
            assert array[(n_time - 1, *lead)].sum() == 0
            assert array[(n_time // 2, *lead)].sum() == 0
            array[(n_time - 1, *lead)] = 7
            array[(n_time // 3, *lead)] = 8
            assert array[(-1, *lead)].sum() == 7 * 7056
            assert array[:: n_time // 3][(1, *lead)].sum() == 8 * 7056
            array.append(np.full((*between, 84, 84), 5, np.uint8))
            assert array[(0, *lead)].sum() == 5 * 7056
            array.reshape(-1, 84, 84)
            repr(array)
            assert array.nbytes_stored < 4 * 2**20, array.nbytes_stored
            return array

        for codec in ("raw", "sparse", "delta", "delta-huffman"):
            use(codec, 64)
            use(codec, 64, 2, 4)
            before = resident_bytes()
            a = use(codec, 10_000_000)
            b = use(codec, 10_000_000, 8)
            c = use(codec, 10_000_000, 2, 4)
            grown = resident_bytes() - before
            assert grown < 16 * 2**20, (codec, grown)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p) or "."},
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------- memory in between


def peak_bytes(operation: Callable[[], Any]) -> tuple[int, Any]:
    """The most that was allocated at one time during an operation, and its result."""
    operation()  # compile, train, warm up
    tracemalloc.start()
    try:
        result = operation()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


LARGE_FRAME = (64, 64)
LARGE = 2048  # frames: 8 MiB dense


@pytest.fixture(scope="module", params=["delta", "delta-huffman"])
def large(request: pytest.FixtureRequest) -> DiffFrameArray:
    array = DiffFrameArray((LARGE, *LARGE_FRAME), codec=request.param, gop_length=16)
    content = game(1024, LARGE_FRAME)
    for first in range(0, LARGE, 1024):
        array[first : first + 1024] = content
    return array


# One GOP, decode caches of a mebibyte, and the small change of plans and interpreters.
BESIDE_RESULT = 16 * 64 * 64 + MIB + 512 * 1024


KEYS: dict[str, Any] = {
    "every 16th frame": slice(None, None, 16),
    "a row of pixels": (slice(LARGE // 2, LARGE // 2 + 100), slice(None), 5),
    "one pixel through all time": (slice(None), 30, 30),
    "corners backwards": (slice(None, None, -1), slice(4), slice(4)),
    "every 7th by number": np.arange(0, LARGE, 7),
    "their row": (np.arange(0, LARGE, 7), 3, slice(None)),
    "a mask": (np.arange(LARGE) % 3 == 0, 1),
}


@pytest.mark.parametrize("name", KEYS)
def test_a_read_holds_little_beside_its_result(large: DiffFrameArray, name: str) -> None:
    peak, result = peak_bytes(lambda: large[KEYS[name]])
    n_cells = result.shape[0]
    assert peak <= result.nbytes + 32 * n_cells + BESIDE_RESULT


def test_copies_pickles_and_iteration_stay_compressed(large: DiffFrameArray) -> None:
    most = 4 * large.nbytes_stored + BESIDE_RESULT
    assert most < large.nbytes / 2
    for operation in (
        large.copy,
        lambda: copy.deepcopy(large),
        lambda: pickle.loads(pickle.dumps(large)),
        lambda: large.reshape(-1, 2, *LARGE_FRAME).copy(),
        lambda: pickle.dumps(large.reshape(2, -1, *LARGE_FRAME)),
        lambda: sum(int(frame[0, 0]) for frame in large),
        lambda: repr(large),
        lambda: str(large),
    ):
        peak, _ = peak_bytes(operation)
        assert peak <= most


def test_assignments_stay_compressed(large: DiffFrameArray) -> None:
    """What needs the old pixels works through them a GOP at a time."""
    twin = large.copy()
    most = 4 * large.nbytes_stored + BESIDE_RESULT
    if large.codec == "delta-huffman":
        most += 2 * MIB  # while it learns codes: it counts 256 symbols in 1032 contexts
    assert most < large.nbytes / 2 + MIB

    def in_place() -> None:
        nonlocal twin
        twin ^= 1

    def one_pixel_each() -> None:
        twin[:, 5, 5] = 77

    def constant() -> None:
        twin[LARGE // 2 :] = 3

    def membership() -> bool:
        return 251 in twin

    for operation in (in_place, one_pixel_each, constant, membership):
        peak, _ = peak_bytes(operation)
        assert peak <= most, operation.__name__
