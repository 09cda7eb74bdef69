"""Every bit comes back: any shape, dtype, `frame_ndim` and codec, under any key and value."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from compressarray import DiffFrameArray
from tests.effort import examples
from tests.naive import assert_same
from tests.strategies import (
    ALL_DTYPES,
    CHAINED_CODECS,
    CODECS,
    KINDS,
    OWN_CODECS,
    Layout,
    assert_holds,
    assert_same_kind_of_error,
    basic_keys,
    filled,
    frame_runs,
    frames,
    game,
    keys,
    layouts,
    noise,
    outcome,
    sparse_allowed,
    values,
)

# --------------------------------------------------------------------------- drawn


@given(st.data())
def test_every_key_reads_what_numpy_reads(data: st.DataObject) -> None:
    layout = data.draw(layouts())
    dense = data.draw(filled(layout))
    array = layout.build()
    array[...] = dense
    assert_holds(array, dense)
    for _ in range(6):
        key = data.draw(keys(dense.shape))
        expected, expected_error = outcome(lambda key=key: dense[key])  # type: ignore[misc]
        actual, error = outcome(lambda key=key: array[key])  # type: ignore[misc]
        assert_same_kind_of_error(error, expected_error)
        if expected_error is None:
            assert_same(actual, expected)
            if isinstance(actual, np.ndarray):
                assert actual.flags.writeable
    assert_holds(array, dense)


@given(st.data())
def test_sequences_of_assignments(data: st.DataObject) -> None:
    layout = data.draw(layouts())
    dense, array = layout.dense(), layout.build()
    if data.draw(st.booleans()):
        dense[...] = data.draw(filled(layout))
        array[...] = dense
    for _ in range(data.draw(st.integers(1, 6))):
        key = data.draw(keys(dense.shape))
        selected, key_error = outcome(lambda key=key: dense[key])  # type: ignore[misc]
        shape = (3,) if key_error else np.shape(selected)
        value = data.draw(values(shape, layout.dtype))
        assign_to_both(array, dense, key, value)
    assert_holds(array, dense)


def assign_to_both(array: Any, dense: np.ndarray[Any, Any], key: Any, value: Any) -> None:
    """Assign on both sides; where numpy refuses, refuse alike and change nothing."""
    before = dense.copy()
    _, expected_error = outcome(lambda: dense.__setitem__(key, value))
    _, error = outcome(lambda: array.__setitem__(key, value))
    assert_same_kind_of_error(error, expected_error)
    if expected_error is not None:
        dense[...] = before  # numpy may have written a part of it; we may not
        assert_same(np.asarray(array), before)


@given(st.data())
def test_frames_written_in_any_order_and_overwritten(data: st.DataObject) -> None:
    layout = data.draw(layouts(empty=False))
    dense, array = layout.dense(), layout.build()
    n_time = layout.shape[0]
    for _ in range(data.draw(st.integers(1, 3))):
        content = data.draw(filled(layout))
        times = data.draw(st.permutations(range(n_time)))
        how = data.draw(st.sampled_from(("one by one", "as an index array", "every lane apart")))
        if how == "as an index array":
            some = np.array(times[: 1 + n_time // 2])
            array[some] = content[some]
            dense[some] = content[some]
            continue
        for t in times:
            if how == "one by one" or dense.ndim - layout.frame_ndim < 2:
                array[t] = content[t]
                dense[t] = content[t]
            else:
                for lane in range(dense.shape[1]):
                    array[t, lane] = content[t, lane]
                    dense[t, lane] = content[t, lane]
    assert_holds(array, dense)


@given(st.data())
def test_every_index_gathers_the_frame_it_was_given_for(data: st.DataObject) -> None:
    layout = data.draw(layouts(empty=False))
    array, dense = layout.build(), layout.dense()
    n_rows = data.draw(st.integers(0, 2 * layout.shape[0] + 3))
    rows = data.draw(rows_of(layout, n_rows))
    indices = [array.append(rows[t, ...]) for t in range(n_rows)]  # never a scalar
    for t, row in enumerate(rows):
        dense[t % layout.shape[0]] = row
    assert_holds(array, dense)
    expected_index = np.arange(n_rows * layout.n_lanes).reshape(n_rows, *layout.lane_shape)
    for t in range(n_rows):
        assert_same(indices[t], np.array(expected_index[t]))
    kept = expected_index[max(0, n_rows - layout.shape[0]) :]
    assert_same(array.gather(kept), lane_major(rows[n_rows - len(kept) :], layout))


def lane_major(rows: np.ndarray[Any, Any], layout: Layout) -> np.ndarray[Any, Any]:
    """Move the stack axis of rows behind the lanes, where `gather` puts it."""
    if layout.stack_axis_index is None:
        return np.ascontiguousarray(rows)
    return np.ascontiguousarray(
        np.moveaxis(rows, layout.stack_axis_index, len(layout.lane_shape) + 1)
    )


@st.composite
def rows_of(draw: st.DrawFn, layout: Layout, n_rows: int) -> np.ndarray[Any, Any]:
    """`n_rows` rows in time order, a run of frames for each place between."""
    n_between = int(np.prod(layout.lead_shape[1:], dtype=int))
    runs = [draw(frame_runs(n_rows, layout.frame_shape, layout.dtype)) for _ in range(n_between)]
    stacked = np.stack(runs, axis=1, dtype=layout.dtype)  # else it makes native byte order
    return stacked.reshape(n_rows, *layout.shape[1:])


@given(st.data())
def test_views_of_leading_axes_are_the_same_frames(data: st.DataObject) -> None:
    layout = data.draw(layouts(empty=False))
    dense = data.draw(filled(layout))
    array = layout.build()
    array[...] = dense
    n_cells = int(np.prod(layout.lead_shape))
    divisors = [n for n in range(1, n_cells + 1) if n_cells % n == 0]
    first = data.draw(st.sampled_from(divisors))
    lead = data.draw(
        st.sampled_from(((n_cells,), (-1,), (first, n_cells // first), (first, -1), (1, -1, first)))
    )
    view = array.reshape(*lead, *layout.frame_shape)
    dense_view = dense.reshape(*lead, *layout.frame_shape) if -1 not in lead or dense.size else None
    if dense_view is None:  # numpy cannot infer -1 where frames are empty
        return
    assert_holds(view, dense_view)
    for _ in range(3):
        key = data.draw(keys(dense_view.shape))
        selected, key_error = outcome(lambda key=key: dense_view[key])  # type: ignore[misc]
        value = data.draw(values((3,) if key_error else np.shape(selected), layout.dtype))
        assign_to_both(view, dense_view, key, value)
    assert_holds(view, dense_view)
    assert_holds(array, dense)


# --------------------------------------------------------------------------- fill_value


@pytest.mark.parametrize("codec", CODECS)
def test_what_was_never_written_reads_as_the_fill_value(codec: str) -> None:
    layout = Layout((20, 3, 6, 5), np.dtype(np.uint8), 2, codec, fill=5)
    array, dense = layout.build(), layout.dense()
    assert array.fill_value == layout.fill_value
    assert_holds(array, dense)
    array[7, 1, 2:4, 3] = 9  # the rest of a frame written in part stays fill_value
    dense[7, 1, 2:4, 3] = 9
    assert_holds(array, dense)
    array[::5] = 1
    dense[::5] = 1
    assert_holds(array, dense)


@pytest.mark.parametrize("bits", [0x7FC0_1234, 0xFF80_0001, 0x8000_0000])
def test_a_fill_value_keeps_its_bits(bits: int) -> None:
    fill = np.array([bits], np.uint32).view(np.float32)[0]
    array = DiffFrameArray((4, 3, 3), np.float32, fill_value=fill)
    expected = np.full((4, 3, 3), bits, np.uint32).view(np.float32)
    assert_same(np.asarray(array), expected)
    array[1, 1, 1] = fill
    assert_same(np.asarray(array), expected)


# --------------------------------------------------------------------------- each codec, each kind


def supported(codec: str, dtype: np.dtype[Any], frame_ndim: int) -> bool:
    return codec != "sparse" or sparse_allowed(dtype, frame_ndim)


SHAPES = [(84, 84), (7, 9), (1, 1), (3, 5), (300, 4), (4, 300), (0, 5), (1, 2100)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("codec", CODECS)
def test_kinds_of_frames(codec: str, kind: str) -> None:
    for seed, frame_shape in enumerate(SHAPES):
        layout = Layout((37, *frame_shape), np.dtype(np.uint8), 2, codec)
        content = frames(kind, 37, frame_shape, np.uint8, seed)
        array = layout.build()
        array[...] = content
        assert_holds(array, content)
        ring = layout.build()
        rows = np.concatenate([content, content[::-1], content[5:20]])
        index = ring.append(rows)
        assert_same(ring.gather(index[-37:]), rows[-37:])


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("codec", [name for name in CODECS if name != "sparse"])
def test_dtypes_bit_for_bit(codec: str, dtype: np.dtype[Any]) -> None:
    for frame_ndim, kind in ((0, "noise"), (1, "special values"), (2, "flickering"), (3, "noise")):
        frame_shape = (5, 3, 2)[3 - frame_ndim :]
        layout = Layout((21, 2, *frame_shape), dtype, frame_ndim, codec)
        content = np.stack(
            [frames(kind, 21, frame_shape, dtype, seed) for seed in (0, 1)], axis=1, dtype=dtype
        )
        array = layout.build()
        array[3:] = content[3:]
        array[2::-1] = content[2::-1]
        assert_holds(array, content)
        assert_same(array[4:9, 1], np.ascontiguousarray(content[4:9, 1]))


def test_color_frames_of_a_whole_screen() -> None:
    content = game(40, (210, 160 * 3)).reshape(40, 210, 160, 3)
    for codec in ("raw", "delta", "delta-huffman"):
        array = DiffFrameArray((40, 210, 160, 3), frame_ndim=3, codec=codec)
        for t in range(40):
            array[t] = content[t]
        assert_holds(array, content)


def edge_frames() -> dict[str, np.ndarray[Any, Any]]:
    """Sequences that reach the corners of coding by 64-bit words, and of sparse indices."""
    rng = np.random.default_rng(0)
    one_word = np.zeros((530, 1, 530 * 8), np.uint8)
    for t in range(530):  # skips of 0 to 529 unchanged words, around 127 and 255 too
        one_word[t, 0, 8 * t + t % 8] = 1 + t % 255
    runs = np.zeros((301, 1, 2408), np.uint8)
    for t in range(301):  # t equal words, then silence
        runs[t, 0, : 8 * t] = 1 + t % 255
    tails = np.zeros((200, 1, 23), np.uint8)
    for t in range(200):  # frames whose last bytes make no whole word
        tails[t, 0, 16 + t % 7 :] = t
    bits = np.zeros((512, 2, 8), np.uint8)
    for t in range(512):  # every mask of changed bytes within one word
        bits[t, t // 256, [b for b in range(8) if t >> b & 1]] = rng.integers(1, 256)
    corner = np.zeros((300, 257, 258), np.uint8)
    for t in range(300):  # row and column beyond 8 bits; values that differ by +-255
        corner[t, 256 - t % 3, 257 - t % 5] = 255 * (t % 2)
        corner[t, 0, 0] = 255 * ((t + 1) % 2)
    quarter = np.zeros((64, 40, 40), np.uint8)
    for t in range(64):  # around 4 * n == H * W changed pixels, where sparse turns raw
        quarter[t].reshape(-1)[: 395 + t % 10] = rng.integers(1, 256, 395 + t % 10)
    return {
        "skips": one_word,
        "fills": runs,
        "tails": tails,
        "masks": bits,
        "corners": corner,
        "quarter": quarter,
    }


@pytest.mark.parametrize("name", edge_frames())
@pytest.mark.parametrize("codec", ["sparse", "delta", "delta-huffman"])
def test_the_corners_of_the_codings(codec: str, name: str) -> None:
    content = edge_frames()[name]
    array = DiffFrameArray(content.shape, codec=codec)
    array[...] = content
    assert_holds(array, content)
    picked = np.random.default_rng(1).integers(0, len(content), 60)
    assert_same(array[picked], content[picked])
    backwards = DiffFrameArray(content.shape, codec=codec)
    backwards.append(np.ascontiguousarray(content[::-1]))
    assert_holds(backwards, np.ascontiguousarray(content[::-1]))


@pytest.mark.parametrize("codec", ["raw", "sparse", "delta", "delta-huffman"])
def test_overwriting_a_reference_leaves_its_dependents_right(codec: str) -> None:
    """The trap of the scheme that `sparse` follows: differences outlive what they refer to."""
    content = game(64, (24, 20), seed=3)
    array = DiffFrameArray(content.shape, codec=codec)
    array[...] = content
    rng = np.random.default_rng(4)
    for t in [*range(0, 64, 4), *range(0, 64, 16), *range(63, -1, -3)]:
        content[t] = rng.integers(0, 256, content[t].shape, dtype=np.uint8)
        array[t] = content[t]
        assert_same(np.asarray(array), content)
    assert_holds(array, content)


@pytest.mark.parametrize(
    "config",
    [
        {"id": "zlib", "level": 1},
        {"id": "bz2", "level": 1},
        {"id": "lzma", "preset": 0},
        {"id": "shuffle", "elementsize": 4},
        {"id": "blosc", "cname": "zstd", "clevel": 1, "shuffle": 2},
        {"id": "crc32"},
        {"id": "adler32"},
    ],
    ids=lambda config: str(config["id"]),
)
def test_any_lossless_numcodecs_codec(config: dict[str, Any]) -> None:
    import numcodecs

    for dtype in (np.dtype(np.uint8), np.dtype(">f4"), np.dtype([("a", "u1"), ("b", "<f8")])):
        content = np.concatenate(
            [frames("special values", 9, (6, 8), dtype), frames("noise", 9, (6, 8), dtype)],
            dtype=dtype,
        )
        array = DiffFrameArray(content.shape, dtype, codec=numcodecs.get_codec(config))
        array[...] = content
        assert_holds(array, content)
        assert_same(array[::-2], np.ascontiguousarray(content[::-2]))


# --------------------------------------------------------------------------- what codecs learn


def regime(k: int, n: int) -> np.ndarray[Any, Any]:
    """`n` frames of 32 x 32 whose statistics have little to do with those of other `k`."""
    rng = np.random.default_rng(k)
    if k % 5 == 4:
        return frames("noise", n, (32, 32), np.uint8, k)
    if k % 5 == 3:
        return frames("scrolling", n, (32, 32), np.uint8, k)
    out = game(n, (32, 32), seed=k)
    step = 1 + k % 7  # pixels that change in strides of their own, to values of their own
    for frame in out:
        spots = rng.integers(0, 1024 // step, 20 + 9 * (k % 4)) * step
        frame.reshape(-1)[spots] = rng.integers(0, 1 + 37 * (k % 6), spots.size)
    return out


@pytest.mark.parametrize("gop_length", [None, 2])
@pytest.mark.parametrize("codec", ["delta", "delta-huffman"])
def test_frames_survive_what_the_codec_learns_meanwhile(codec: str, gop_length: int | None) -> None:
    """Tables and dictionaries change many times; frames coded with older ones stay readable."""
    layout = Layout((1500, 32, 32), np.dtype(np.uint8), 2, codec, gop_length=gop_length)
    array, dense, rng = layout.build(), layout.dense(), np.random.default_rng(0)
    appended = 0
    for k in range(14):
        content = regime(k, 700)
        for block in np.array_split(content, 3):
            array.append(block)
            dense[(appended + np.arange(len(block))) % 1500] = block
            appended += len(block)
        cells = rng.choice(1500, 40, replace=False)
        array[cells] = dense[cells] = content[rng.integers(0, 700, 40)]
        array[cells[0], 3:5] = dense[cells[0], 3:5] = k
        assert_same(np.asarray(array), dense)
        if k % 3 == 2:
            before = array
            array = pickle.loads(pickle.dumps(array)) if k % 2 else array.copy()
            before[...] = 0
            assert_same(np.asarray(array), dense)
    view = array.reshape(30, 50, 32, 32)
    assert_same(view.copy()[7:9], dense.reshape(view.shape)[7:9].copy())


# --------------------------------------------------------------------------- stacks


def stacked(
    n_time: int, n_lanes: int, stack: int, frame_shape: tuple[int, int], padding: str, seed: int
) -> np.ndarray[Any, Any]:
    """What a vector environment's frame stack emits; lanes end episodes at their own times."""
    rng = np.random.default_rng(seed)
    out = np.zeros((n_time, n_lanes, stack, *frame_shape), np.uint8)
    for lane in range(n_lanes):
        content = game(n_time, frame_shape, seed=seed * 10 + lane)
        window = np.zeros((stack, *frame_shape), np.uint8)
        for t in range(n_time):
            if t == 0 or rng.random() < 0.08:
                window[...] = content[t] if padding == "reset" else 0
            window[:-1] = window[1:]
            window[-1] = content[t]
            out[t, lane] = window
    return out


def fill_by_rows(array: Any, stacks: np.ndarray[Any, Any]) -> None:
    for t, row in enumerate(stacks):
        array[t] = row


def fill_by_lanes(array: Any, stacks: np.ndarray[Any, Any]) -> None:
    for t in range(len(stacks)):
        for lane in range(stacks.shape[1]):
            array[t, lane] = stacks[t, lane]


def fill_by_append(array: Any, stacks: np.ndarray[Any, Any]) -> None:
    for row in stacks:
        array.append(row)


def fill_by_appended_block(array: Any, stacks: np.ndarray[Any, Any]) -> None:
    array.append(stacks)


def fill_at_once(array: Any, stacks: np.ndarray[Any, Any]) -> None:
    array[...] = stacks


@pytest.mark.parametrize("padding", ["zero", "reset"])
@pytest.mark.parametrize(
    "fill", [fill_by_rows, fill_by_lanes, fill_by_append, fill_by_appended_block, fill_at_once]
)
@pytest.mark.parametrize("codec", ["raw", "sparse", "delta", "delta-huffman", "numcodecs.Zstd"])
def test_rollouts_of_frame_stacks(
    codec: str, fill: Callable[[Any, np.ndarray[Any, Any]], None], padding: str
) -> None:
    seed = zlib.crc32(f"{codec} {padding}".encode()) % 1000
    array = DiffFrameArray((48, 3, 4, 20, 18), codec=CODECS[codec]())
    assert array.stack_axis == 2
    assert array.lane_shape == (3,)
    for rollout in range(3):  # a PPO buffer is filled again and again
        stacks = stacked(48, 3, 4, (20, 18), padding, seed + rollout)
        fill(array, stacks)
        assert_holds(array, stacks)
        flat = array.reshape((-1, 4, 20, 18))
        dense = stacks.reshape(-1, 4, 20, 18)
        order = np.random.default_rng(seed).permutation(len(dense))
        for minibatch in np.split(order, 4):
            assert_same(flat[minibatch], dense[minibatch])


@pytest.mark.parametrize("codec", OWN_CODECS)
def test_stacks_of_few_values_under_a_few_assignments(codec: str) -> None:
    """Frames that are often equal, to others of their group and to those that they replace.

    Plain random draws: mistakes of sharing show up in one of some hundred of them, and each costs
    far less than an example of Hypothesis.
    """
    rng = np.random.default_rng(zlib.crc32(codec.encode()))
    for _ in range(examples(600)):
        n_time, stack = int(rng.integers(1, 14)), int(rng.integers(2, 5))
        gop_length = int(rng.integers(1, 6)) if codec in CHAINED_CODECS else None
        shape = (n_time, 1, stack, 2, 2)
        layout = Layout(shape, np.dtype(np.uint8), 2, codec, gop_length=gop_length)
        array, dense, done = layout.build(), layout.dense(), []
        for _ in range(int(rng.integers(2, 7))):
            t, k = int(rng.integers(n_time)), int(rng.integers(stack))
            step = int(rng.integers(1, 4))
            keys_: list[Any] = [
                t,
                (t, 0, k),
                slice(t, None, step),
                (slice(None), 0, k),
                (slice(None, None, -step), 0, slice(k, None)),
                (slice(t, t + 4), 0, slice(None), 0, 0),
            ]
            key, value = keys_[rng.integers(len(keys_))], int(rng.integers(4))
            done.append((key, value))
            array[key] = value
            dense[key] = value
            np.testing.assert_array_equal(np.asarray(array), dense, f"{layout}: {done}")


@pytest.mark.parametrize("codec", OWN_CODECS)
def test_a_tail_of_equal_stacks_is_replaced(codec: str) -> None:
    array, dense = DiffFrameArray((12, 1, 2, 2, 2), codec=codec), np.zeros((12, 1, 2, 2, 2), "u1")
    for written in (array, dense):
        written[::-1, 0, 0:] = 3
        written[4:] = 0
    assert_same(np.asarray(array), dense)


def test_stacks_come_back_by_index_until_their_slot_is_overwritten() -> None:
    stacks = stacked(60, 2, 4, (12, 10), "zero", 5)
    array = DiffFrameArray((16, 2, 4, 12, 10), gop_length=4)
    for t, row in enumerate(stacks):
        index = array.append(row)
        assert_same(index, np.array([2 * t, 2 * t + 1]))
        oldest = max(0, t - 15)
        kept = np.arange(2 * oldest, 2 * (t + 1))
        assert_same(array.gather(kept.reshape(-1, 2)), np.ascontiguousarray(stacks[oldest : t + 1]))


def test_the_stack_axis_may_be_named() -> None:
    stacks = np.ascontiguousarray(np.moveaxis(stacked(30, 3, 4, (9, 8), "reset", 6), 2, 1))
    array = DiffFrameArray((30, 4, 3, 9, 8), stack_axis=1)
    assert array.stack_axis == 1
    assert array.lane_shape == (3,)
    assert array.n_lanes == 3
    index = array.append(stacks)
    assert_same(index, np.arange(90).reshape(30, 3))
    assert_holds(array, stacks)
    assert_same(array.gather(index), np.ascontiguousarray(np.moveaxis(stacks, 1, 2)))

    single = DiffFrameArray((30, 4, 9, 8), stack_axis=1)  # one lane of stacks
    assert single.lane_shape == ()
    assert single.n_lanes == 1
    one = np.ascontiguousarray(stacks[:, :, 0])
    assert_same(np.asarray(single.append(one[0])), np.array(0))
    assert_same(single.append(one[1:]), np.arange(1, 30))
    assert_holds(single, one)
    assert_same(single.gather(7), one[7])


def test_no_stack_axis_makes_every_axis_between_a_lane() -> None:
    array = DiffFrameArray((10, 3, 4, 6, 5), stack_axis=None)
    assert array.stack_axis is None
    assert array.lane_shape == (3, 4)
    assert array.n_lanes == 12
    rows = noise(np.random.default_rng(0), (10, 3, 4, 6, 5), np.dtype(np.uint8))
    index = array.append(rows)
    assert_same(index, np.arange(120).reshape(10, 3, 4))
    assert_same(array.gather(index[:, 1, 2]), np.ascontiguousarray(rows[:, 1, 2]))


# --------------------------------------------------------------------------- lanes


@given(st.data())
def test_lanes_may_differ_in_length(data: st.DataObject) -> None:
    n_lanes = data.draw(st.integers(1, 4))
    capacity = data.draw(st.integers(1, 12))
    codec = data.draw(st.sampled_from(list(CODECS)))
    array = DiffFrameArray((capacity, n_lanes, 4, 6), codec=CODECS[codec]())
    dense = np.zeros((capacity, n_lanes, 4, 6), np.uint8)
    counts = [0] * n_lanes
    truth: dict[int, np.ndarray[Any, Any]] = {}
    for _ in range(data.draw(st.integers(1, 12))):
        order = data.draw(st.permutations(range(n_lanes)))
        lanes = order[: data.draw(st.integers(1, n_lanes))]
        n_rows = data.draw(st.sampled_from((1, 1, 2, capacity + 2)))
        content = np.stack(
            [data.draw(frame_runs(n_rows, (4, 6), np.dtype(np.uint8))) for _ in lanes], axis=1
        )
        if n_rows == 1 and data.draw(st.booleans()):
            index = array.append(content[0], lanes=lanes)[None]
        else:
            index = array.append(content, lanes=np.array(lanes))
        for row in range(n_rows):
            for k, lane in enumerate(lanes):
                assert index[row, k] == counts[lane] * n_lanes + lane
                dense[counts[lane] % capacity, lane] = content[row, k]
                truth[int(index[row, k])] = content[row, k]
                counts[lane] += 1
        assert index.shape == (n_rows, len(lanes))
        assert index.dtype == np.int64
    assert_same(array.lane_counts, np.array(counts, np.int64))
    assert_holds(array, dense)
    for index_, frame in truth.items():
        count, lane = divmod(index_, n_lanes)
        if count >= counts[lane] - capacity:
            assert_same(array.gather(index_), frame)
        else:
            with pytest.raises(IndexError, match=str(index_)):
                array.gather(index_)


@given(st.data())
def test_basic_keys_into_frames_of_a_full_ring(data: st.DataObject) -> None:
    """Slots hold what fell on them last, wherever the write head stands."""
    turns = data.draw(st.integers(0, 40))
    content = frames("sprites", 23 + turns, (9, 10), seed=turns)
    array = DiffFrameArray((23, 9, 10), gop_length=data.draw(st.sampled_from((1, 3, 8, 16))))
    dense = np.zeros((23, 9, 10), np.uint8)
    for t, frame in enumerate(content):
        array.append(frame)
        dense[t % 23] = frame
    for _ in range(8):
        key = data.draw(basic_keys(dense.shape))
        assert_same(array[key], np.copy(dense[key]) if np.ndim(dense[key]) else dense[key])
