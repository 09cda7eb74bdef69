"""Bad input gets a clear error or the right answer, never wrong pixels, and changes nothing.

A clear error names the value, the limit and the fix. What must appear in the text is matched as
parts, so that wording may improve.
"""

from __future__ import annotations

import importlib.util
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from compressarray import DiffFrameArray, FrameEvictedError, StaleStreamError
from tests.naive import assert_same
from tests.strategies import CODECS, assert_same_kind_of_error, frames, game, outcome, sprites

FRAME = (6, 5)


def says(*parts: str) -> str:
    """A pattern that demands every part, in any order and any case."""
    return "(?is)" + "".join(f"(?=.*(?:{part}))" for part in parts)


def ring(**options: Any) -> DiffFrameArray:
    """10 slots, 2 lanes, appended to 13 times: frames 0 to 5 are evicted, 6 to 25 are held."""
    array = DiffFrameArray((10, 2, *FRAME), **options)
    array.append(ring_content())
    return array


def ring_content() -> np.ndarray[Any, Any]:
    return np.stack([sprites(13, FRAME, seed=lane) for lane in range(2)], axis=1)


@contextmanager
def unchanged(array: DiffFrameArray) -> Iterator[None]:
    """Whatever happens inside leaves pixels, indices, counts and stream as they were."""
    before = np.asarray(array)
    counts, stream = array.lane_counts, array.stream
    newest = [int(count - 1) * array.n_lanes + lane for lane, count in enumerate(counts) if count]
    held = array.gather(newest) if newest else None
    n_held = array.stats()["frames_held"]
    yield
    assert_same(np.asarray(array), before)
    assert_same(array.lane_counts, counts)
    assert array.stream == stream
    assert array.stats()["frames_held"] == n_held
    if held is not None:
        assert_same(array.gather(newest), held)


# --------------------------------------------------------------------------- construction


@pytest.mark.parametrize(
    ("shape", "options", "error", "parts"),
    [
        ((-1, 4, 4), {}, ValueError, ("-1", "negative")),
        ((5, -3, 4, 4), {}, ValueError, ("-3", "negative")),
        ((5, 4, -4), {}, ValueError, ("-4", "negative")),
        ((), {}, ValueError, ("shape|frame_ndim",)),
        ((4,), {}, ValueError, ("frame_ndim", "2")),
        ((4, 4), {}, ValueError, ("frame_ndim", "2")),
        ((5, 4, 4), {"frame_ndim": 3}, ValueError, ("frame_ndim", "3")),
        ((5, 4, 4), {"frame_ndim": -1}, ValueError, ("frame_ndim", "-1")),
        ((5, 4, 4), {"frame_ndim": 1.5}, (TypeError, ValueError), ("frame_ndim",)),
        ((5.0, 4, 4), {}, TypeError, ("shape", "5.0")),
        (("a", 4, 4), {}, TypeError, ("shape", "'a'")),
        ((5, 4, 4), {"gop_length": 0}, ValueError, ("gop_length", "0", "least 1|from 1")),
        ((5, 4, 4), {"gop_length": -7}, ValueError, ("gop_length", "-7", "1")),
        ((5, 4, 4), {"gop_length": 2.5}, (TypeError, ValueError), ("gop_length", "2.5")),
        ((5, 2, 4, 4), {"stack_axis": 0}, ValueError, ("stack_axis", "0")),
        ((5, 2, 4, 4), {"stack_axis": 2}, ValueError, ("stack_axis", "2")),
        ((5, 2, 4, 4), {"stack_axis": 9}, ValueError, ("stack_axis", "9")),
        ((5, 4, 4), {"stack_axis": 1}, ValueError, ("stack_axis", "1")),
        ((5, 2, 4, 4), {"stack_axis": "lanes"}, (TypeError, ValueError), ("stack_axis", "lanes")),
        ((2**40, 2**30, 4, 4), {}, (ValueError, MemoryError), ()),
        ((2**62, 2**62, 4, 4), {}, (ValueError, MemoryError), ()),
        ((10**30, 4, 4), {}, (ValueError, MemoryError, OverflowError), ()),
    ],
)
def test_shapes_that_make_no_array(
    shape: Any, options: dict[str, Any], error: Any, parts: tuple[str, ...]
) -> None:
    with pytest.raises(error, match=says(*parts)):
        DiffFrameArray(shape, **options)


@pytest.mark.parametrize(
    "dtype",
    [object, "O", [("frame", "u1"), ("info", "O")], [("nested", [("x", "O")])], (object, (2,))],
    ids=str,
)
@pytest.mark.parametrize("codec", ["raw", "delta", "zstd"])
def test_objects_are_refused(dtype: Any, codec: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says("object", "dtype")):
        DiffFrameArray((5, 4, 4), dtype, codec=codec)


def test_strings_of_any_length_are_refused() -> None:
    with pytest.raises((TypeError, ValueError), match=says("dtype", "fixed")):
        DiffFrameArray((5, 4, 4), np.dtypes.StringDType())


@pytest.mark.parametrize("dtype", ["S", "U", "V"])
def test_dtypes_without_a_size_are_refused_or_numpys(dtype: str) -> None:
    array, error = outcome(lambda: DiffFrameArray((5, 4, 4), dtype, fill_value=b""))
    if error is None:
        assert array.dtype == np.zeros(1, dtype).dtype
    else:
        assert isinstance(error, (TypeError, ValueError))
        assert "dtype" in str(error)


def test_not_a_dtype() -> None:
    with pytest.raises(TypeError, match="uint9"):
        DiffFrameArray((5, 4, 4), "uint9")


@pytest.mark.parametrize("codec", ["h264", "Delta", "", "raw ", "zstandard"])
def test_unknown_codec_names(codec: str) -> None:
    """The message lists what there is."""
    with pytest.raises(ValueError, match=says("codec", re.escape(repr(codec)), "raw", "delta")):
        DiffFrameArray((5, 4, 4), codec=codec)


@pytest.mark.parametrize("codec", [7, None, object(), b"raw", {"level": 3}, {"id": "nothing"}, []])
def test_things_that_are_no_codec(codec: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="codec"):
        DiffFrameArray((5, 4, 4), codec=codec)


@pytest.mark.parametrize(
    ("shape", "dtype", "frame_ndim", "part"),
    [
        ((5, 4, 4), np.uint16, 2, "uint16"),
        ((5, 4, 4), np.float32, 2, "float32"),
        ((5, 4, 4), np.int8, 2, "int8"),
        ((5, 4, 4), bool, 2, "bool"),
        ((5, 4, 4, 3), np.uint8, 3, "3"),
        ((5, 4), np.uint8, 1, "1"),
        ((5,), np.uint8, 0, "0"),
    ],
)
def test_sparse_takes_uint8_frames_of_two_axes(
    shape: tuple[int, ...], dtype: Any, frame_ndim: int, part: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=says("sparse", part, "uint8|two axes|2")):
        DiffFrameArray(shape, dtype, frame_ndim=frame_ndim, codec="sparse")


@pytest.mark.parametrize(
    ("dtype", "fill_value"),
    [
        (np.uint8, 256),
        (np.uint8, -1),
        (np.int16, 40_000),
        (np.uint8, "seven"),
        (np.uint8, None),
        (np.uint8, [1, 2, 3]),
        (np.uint8, np.nan),
        (np.int32, np.inf),
        (np.float32, "x"),
        (np.uint8, object()),
    ],
)
def test_fill_values_that_do_not_fit(dtype: Any, fill_value: Any) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError), match="fill_value"):
        DiffFrameArray((5, 4, 4), dtype, fill_value=fill_value)


@pytest.mark.parametrize(
    "config",
    [
        {"id": "bitround", "keepbits": 3},
        {"id": "quantize", "digits": 1, "dtype": "<f4"},
        {"id": "fixedscaleoffset", "offset": 0, "scale": 2, "dtype": "<f4", "astype": "u1"},
        {"id": "astype", "encode_dtype": "<f2", "decode_dtype": "<f4"},
        {"id": "delta", "dtype": "<f4"},
    ],
    ids=lambda config: str(config["id"]),
)
def test_codecs_that_lose_bits_never_lose_them_here(config: dict[str, Any]) -> None:
    """Refused when built, refused when written, or stored whole: but never changed."""
    import numcodecs

    content = (np.arange(9 * 30, dtype=np.float32) * np.float32(0.37)).reshape(9, 6, 5)
    content[3] = np.nan
    with np.errstate(all="ignore"):
        codec = numcodecs.get_codec(config)
        array, error = outcome(lambda: DiffFrameArray((9, 6, 5), np.float32, codec=codec))
        if error is None:
            _, error = outcome(lambda: array.__setitem__(Ellipsis, content))
            if error is not None:
                assert_same(np.asarray(array), np.zeros((9, 6, 5), np.float32))
    if error is None:
        assert_same(np.asarray(array), content)
    else:
        assert isinstance(error, (TypeError, ValueError))
        assert str(error)


def test_a_codec_that_breaks_is_not_believed() -> None:
    """A numcodecs codec may be anybody's: what it cannot give back exactly is refused."""
    from numcodecs.abc import Codec

    class Forgetful(Codec):  # type: ignore[misc]
        codec_id = "forgetful"

        def encode(self, buf: Any) -> bytes:
            return bytes(np.asarray(buf).reshape(-1).view(np.uint8)[:8])

        def decode(self, buf: Any, out: Any = None) -> bytes:
            return bytes(buf) + b"\x00" * 22

    content = frames("noise", 9, FRAME)
    array, error = outcome(lambda: DiffFrameArray((9, *FRAME), codec=Forgetful()))
    if error is None:
        _, error = outcome(lambda: array.__setitem__(Ellipsis, content))
    if error is None:
        actual, error = outcome(lambda: np.asarray(array))
    if error is None:
        assert_same(actual, content)
    else:
        assert "forgetful" in str(error).lower()


@pytest.mark.parametrize("lanes", [None, [1], [1, 0]])
@pytest.mark.parametrize("after", [0, 3])
def test_a_codec_that_raises_half_way_changes_nothing(lanes: Any, after: int) -> None:
    """Frames before the one that cannot be coded must not stay, nor their indices be counted."""
    from numcodecs.abc import Codec

    class Fragile(Codec):  # type: ignore[misc]
        codec_id = "fragile"
        encoded = 0
        patience = 10**9

        def encode(self, buf: Any) -> bytes:
            self.encoded += 1
            if self.encoded > self.patience:
                raise RuntimeError("no more today")
            return zlib.compress(np.asarray(buf).tobytes(), 1)

        def decode(self, buf: Any, out: Any = None) -> bytes:
            return zlib.decompress(bytes(buf))

    codec = Fragile()
    array = ring(codec=codec)
    rows = np.stack([frames("noise", 6, FRAME, seed=lane + 50) for lane in range(2)], axis=1)
    chosen = rows if lanes is None else rows[:, lanes]
    view = array.reshape(-1, *FRAME)
    pixels = np.arange(60, dtype=np.uint8).reshape(10, 6, 1)
    operations: list[Callable[[], Any]] = [
        lambda: array.append(chosen, lanes=lanes),
        lambda: array.__setitem__(slice(1, 7), rows),
        lambda: array.__setitem__((slice(None), 1, slice(None), slice(2, 3)), pixels),
        lambda: view.__setitem__(slice(None, None, 3), rows[0, 0] ^ pixels[:7]),
        lambda: array.__iadd__(3),
        lambda: array.append(rows[0] ^ np.uint8(9)),
    ]
    for k, operation in enumerate(operations):
        if k == 5 and after:
            continue  # too few frames to raise later
        with unchanged(array):
            codec.encoded, codec.patience = 0, after
            with pytest.raises(RuntimeError, match="no more today"):
                operation()
            codec.patience = 10**9
    assert array.append(rows[0]).tolist() == [26, 27]
    assert_same(array.gather([24, 25, 26, 27])[2:], rows[0])


# --------------------------------------------------------------------------- zero-length axes


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "shape", [(0, 4, 4), (5, 0, 4), (5, 4, 0), (5, 0, 4, 4), (0, 3, 4, 4), (5, 2, 0, 4, 4)]
)
def test_zero_length_axes(codec: str, shape: tuple[int, ...]) -> None:
    array = DiffFrameArray(shape, codec=CODECS[codec]())
    dense = np.zeros(shape, np.uint8)
    array[...] = 3
    dense[...] = 3
    assert_same(np.asarray(array), dense)
    for key in ((), Ellipsis, slice(None), (slice(None), slice(1, 3)), None, [], 0, -1, 5):
        expected, expected_error = outcome(lambda key=key: dense[key])  # type: ignore[misc]
        actual, error = outcome(lambda key=key: array[key])  # type: ignore[misc]
        assert_same_kind_of_error(error, expected_error)
        if error is None:
            assert_same(actual, np.copy(expected))
    assert array.nbytes == 0
    assert array.nbytes_stored > 0
    assert array.compression_ratio == 0


def test_appending_to_nowhere() -> None:
    array = DiffFrameArray((0, 4, 4))
    with pytest.raises(ValueError, match=says("0", "first axis|capacity|slots|shape")):
        array.append(np.zeros((4, 4), np.uint8))
    assert array.lane_counts.tolist() == [0]


def test_appending_empty_frames_counts() -> None:
    array = DiffFrameArray((3, 2, 0, 4))
    index = array.append(np.zeros((5, 2, 0, 4), np.uint8))
    assert_same(index, np.arange(10).reshape(5, 2))
    assert_same(array.gather(index[2:]), np.zeros((3, 2, 0, 4), np.uint8))
    with pytest.raises(FrameEvictedError, match="3"):
        array.gather(3)


def test_appending_no_rows() -> None:
    array = ring()
    with unchanged(array):
        index = array.append(np.zeros((0, 2, *FRAME), np.uint8))
        assert index.shape == (0, 2)
        assert index.dtype == np.int64


# --------------------------------------------------------------------------- append


@pytest.mark.parametrize(
    "shape",
    [
        (2, 6, 4),
        (6, 5),
        (3, 6, 5),
        (4, 3, 6, 5),
        (2, 5, 6),
        (2, 6, 5, 1),
        (1, 1, 2, 6, 5),
        (),
        (30,),
    ],
)
def test_append_refuses_frames_of_another_shape(shape: tuple[int, ...]) -> None:
    array = ring()
    limit = (re.escape("(2, 6, 5)"), re.escape(str(shape)))
    with unchanged(array), pytest.raises(ValueError, match=says(*limit)):
        array.append(np.ones(shape, np.uint8))


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.float32, bool, "S1", object])
def test_append_refuses_frames_of_another_dtype(dtype: Any) -> None:
    """Even a lossless cast: a buffer fed the wrong dtype is a bug in the caller."""
    array = ring()
    parts = ("uint8", str(np.dtype(dtype)).lstrip("|"))
    with unchanged(array), pytest.raises((TypeError, ValueError), match=says(*parts)):
        array.append(np.ones((2, *FRAME), dtype))


def test_append_refuses_frames_that_are_byte_swapped() -> None:
    array = DiffFrameArray((10, *FRAME), np.int16)
    array.append(np.full(FRAME, 7, np.int16))
    swapped = np.arange(30, dtype=np.int16).reshape(FRAME).astype(">i2")
    with unchanged(array), pytest.raises((TypeError, ValueError), match=says("int16", ">i2")):
        array.append(swapped)
    big = DiffFrameArray((10, *FRAME), ">i2")
    assert_same(big.gather(big.append(swapped)), swapped)


def test_append_refuses_lists_and_strangers() -> None:
    array = ring()
    for stranger in ([[[0] * 5] * 6] * 2, "frames", None, 7, [[1], [2, 3]], {"frames": 1}):
        with unchanged(array), pytest.raises((TypeError, ValueError), match=r"(?s)."):
            array.append(stranger)


@pytest.mark.parametrize(
    ("lanes", "error", "parts"),
    [
        ([2], (ValueError, IndexError), ("2",)),
        ([-1], (ValueError, IndexError), ("-1",)),
        ([0, 2], (ValueError, IndexError), ("2",)),
        ([2**40], (ValueError, IndexError), (str(2**40),)),
        ([1, 1], ValueError, ("1", "twice|once|duplicate|distinct|unique")),
        ([0.0], (TypeError, ValueError, IndexError), ("lanes", "float|integer")),
        (["left"], (TypeError, ValueError, IndexError), ("lanes",)),
        ([[0], [1]], (ValueError, IndexError), ("lanes", "1-D|one|axes|dimension")),
        ([True, False], (TypeError, ValueError, IndexError), ("lanes", "bool|integer")),
        (1, (TypeError, ValueError, IndexError), ("lanes",)),
    ],
    ids=str,
)
def test_append_refuses_lanes(lanes: Any, error: Any, parts: tuple[str, ...]) -> None:
    array = ring()
    n_lanes = max(1, np.size(lanes))
    with unchanged(array), pytest.raises(error, match=says(*parts)):
        array.append(np.ones((n_lanes, *FRAME), np.uint8), lanes=lanes)


def test_append_refuses_frames_that_do_not_match_the_lanes() -> None:
    array = ring()
    for shape, lanes in [((2, 6, 5), [0]), ((1, 6, 5), [0, 1]), ((6, 5), [0]), ((3, 2, 6, 5), [1])]:
        parts = (re.escape(str(shape)), re.escape(str((len(lanes), 6, 5))))
        with unchanged(array), pytest.raises(ValueError, match=says(*parts)):
            array.append(np.ones(shape, np.uint8), lanes=lanes)


def test_append_takes_any_memory_layout() -> None:
    content = game(40, (12, 10)).reshape(20, 2, 12, 10)
    for arranged in (
        np.asfortranarray(content),
        np.repeat(content, 2, axis=-1)[..., ::2],
        np.ascontiguousarray(content[:, :, ::-1])[:, :, ::-1],
        np.ascontiguousarray(content.transpose(3, 1, 0, 2)).transpose(2, 1, 3, 0),
        np.broadcast_to(content[:1], content.shape),
    ):
        frozen = arranged.copy()
        arranged = arranged.view()
        arranged.flags.writeable = False
        at_once = DiffFrameArray(content.shape)
        at_once.append(arranged)
        assert_same(np.asarray(at_once), frozen)
        by_row = DiffFrameArray(content.shape)
        for row in arranged:
            by_row.append(row)
        assert_same(np.asarray(by_row), frozen)
        assigned = DiffFrameArray(content.shape)
        assigned[...] = arranged
        assert_same(np.asarray(assigned), frozen)


def test_unaligned_input() -> None:
    memory = np.zeros(1 + 20 * 30 * 4, np.uint8)
    memory[1:] = np.random.default_rng(0).integers(0, 256, 20 * 30 * 4)
    unaligned = memory[1:].view(np.float32).reshape(20, *FRAME)
    assert not unaligned.flags.aligned
    array = DiffFrameArray((20, *FRAME), np.float32)
    array.append(unaligned)
    assert array[...].tobytes() == memory[1:].tobytes()
    out = np.zeros(1 + 20 * 30 * 4, np.uint8)[1:].view(np.float32).reshape(20, *FRAME)
    _, error = outcome(lambda: array.gather(np.arange(20), out=out))
    if error is None:
        assert out.tobytes() == memory[1:].tobytes()
    else:
        assert isinstance(error, (TypeError, ValueError))


def test_the_caller_may_reuse_the_memory_it_appended() -> None:
    buffer = np.zeros((2, *FRAME), np.uint8)
    array = DiffFrameArray((10, 2, *FRAME))
    for value in range(10):
        buffer[...] = value
        array.append(buffer)
    buffer[...] = 99
    assert array[:, 1, 2, 3].tolist() == list(range(10))
    array[4] = buffer
    buffer[...] = 0
    assert array[4, 0, 0, 0] == 99


# --------------------------------------------------------------------------- assignment


@pytest.mark.parametrize("codec", ["raw", "sparse", "delta", "delta-huffman", "zstd"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        (Ellipsis, np.ones((3, 3), np.uint8)),
        (0, np.ones((3, 6, 5), np.uint8)),
        (slice(2, 5), np.ones((4, 2, 6, 5), np.uint8)),
        ([1, 2], np.ones((3, 2, 6, 5), np.uint8)),
        ((0, 0, 0), np.ones((2, 5), np.uint8)),
        (0, 256),
        (0, -1),
        (slice(None), "seven"),
        (slice(None), None),
        (slice(None), object()),
        (3, float("nan")),
        (3, [[1, 2, 3, 4, 300]]),
        (3, {"a": 1}),
        (3, [[1, 2], [3]]),
        (3, 1j),
        (10, 1),
        (-11, 1),
        ((0, 2), 1),
        ((0, 0, 6), 1),
        ([0, 1, 10], 1),
        (([0, 1], [0, 5]), 1),
        ((slice(None), slice(None), slice(None), [0, 5]), 1),
        ((0, 0, 0, 0, 0), 1),
        (1.0, 1),
        ("frame", 1),
        (np.ones((9, 2), bool), 1),
        (np.ones((10, 3), bool), 1),
        ((0, np.ones((2, 7), bool)), 1),
        (np.ones((10, 2), bool), np.ones((19, 6, 5), np.uint8)),
        ((Ellipsis, Ellipsis), 1),
        ([[0, 1], [2]], 1),
        ([0.5], 1),
    ],
    # without addresses, which are others in each process
    ids=lambda part: re.sub(r" at 0x\w+|\n", "", str(part))[:40],
)
def test_a_failed_assignment_changes_nothing(codec: str, key: Any, value: Any) -> None:
    array = ring(codec=codec)
    dense = np.asarray(array)
    with unchanged(array):
        _, expected_error = outcome(lambda: dense.__setitem__(key, value))
        assert expected_error is not None
        _, error = outcome(lambda: array.__setitem__(key, value))
        assert_same_kind_of_error(error, expected_error)


def test_broadcast_errors_name_both_shapes() -> None:
    array = ring()
    parts = (r"\(3, ?6, ?5\)", r"\(2, ?6, ?5\)", "broadcast")
    with pytest.raises(ValueError, match=says(*parts)):
        array[0] = np.ones((3, 6, 5), np.uint8)


def test_index_errors_name_index_and_length() -> None:
    array = ring()
    with pytest.raises(IndexError, match=says("10", "axis 0", "size 10")):
        array[10]
    with pytest.raises(IndexError, match=says("7", "axis 3", "size 5")):
        array[0, 0, 0, 7]
    with pytest.raises(IndexError, match=says("-3", "axis 1", "size 2")):
        array[:, [0, -3]]


def test_nan_where_integers_are_due() -> None:
    """A Python NaN is refused as numpy refuses it; an array of NaNs is numpy's cast, or refused."""
    array = ring()
    with unchanged(array), pytest.raises(ValueError, match=says("NaN")):
        array[3] = float("nan")
    dense = np.asarray(array)
    bad = np.full(FRAME, np.nan, np.float32)
    with np.errstate(invalid="ignore"):
        _, error = outcome(lambda: array.__setitem__((3, 0), bad))
        dense[3, 0] = bad
    if error is None:
        assert_same(np.asarray(array), dense)
    else:
        assert isinstance(error, (ValueError, TypeError))
    fresh = ring()
    before = np.asarray(fresh)
    _, error = outcome(lambda: fresh.__setitem__((3, 0), bad))
    # Warnings are errors here, and numpy warns of such a cast: before anything is written.
    assert_same(np.asarray(fresh), dense if error is None else before)


def test_a_value_that_raises_half_way_changes_nothing() -> None:
    class Trap:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            raise RuntimeError("no array today")

    array = ring()
    for operation in (
        lambda: array.__setitem__(slice(None), Trap()),
        lambda: array.append(Trap()),
        lambda: array.__setitem__((slice(None), 0, 0), [1, 2, Trap(), 4, 5]),
        lambda: array.pin(Trap()),
    ):
        with unchanged(array), pytest.raises((RuntimeError, TypeError, ValueError)):
            operation()


def test_a_structured_array_refuses_what_numpy_refuses() -> None:
    array = DiffFrameArray((4, 2, 2), [("x", "u1"), ("y", "<f4")])
    dense = np.zeros((4, 2, 2), [("x", "u1"), ("y", "<f4")])
    for value in ((1, 2.5), (1,), (1, 2, 3), "a", np.zeros((2, 2), [("z", "u1")])):
        before = dense.copy()
        _, expected_error = outcome(lambda value=value: dense.__setitem__(1, value))  # type: ignore[misc]
        _, error = outcome(lambda value=value: array.__setitem__(1, value))  # type: ignore[misc]
        assert_same_kind_of_error(error, expected_error)
        if expected_error is not None:
            dense[...] = before
        assert_same(np.asarray(array), dense)


# --------------------------------------------------------------------------- gather


def test_evicted_retired_and_future_frames() -> None:
    array = ring()
    content = ring_content()
    assert_same(array.gather([6, 25]), content[[3, 12], [0, 1]])
    with pytest.raises(FrameEvictedError, match=says("frame 5 ", "evicted", "7|6", "larger")):
        array.gather([6, 5, 25])
    with pytest.raises(FrameEvictedError, match="0"):
        array.gather(0)
    for future in (26, 27, 1000, 2**40):
        with pytest.raises(FrameEvictedError, match=str(future)):
            array.gather(np.array([[10, future]]))
    array[4, 1, 2, 2] = 9  # one pixel of slot 4, lane 1, which held the frame counted 4th: 9
    with pytest.raises(FrameEvictedError, match="9"):
        array.gather(9)
    array[2, 0] = 1  # slot 2, lane 0 held the frame counted 12th: 24
    with pytest.raises(FrameEvictedError, match="24"):
        array.gather(24)
    assert_same(array.gather(25), content[12, 1])
    assert_same(array.gather(22), content[11, 0])


def test_an_unused_array_holds_no_frame() -> None:
    array = DiffFrameArray((10, *FRAME))
    array[...] = 5  # assignment gives no frame indices
    for index in (0, 5, 9, 10, -1):
        with pytest.raises(IndexError, match=str(index)):
            array.gather(index)


@pytest.mark.parametrize("index", [-1, -26, -(2**63), 2**63 - 1, 2**63 - 2, 2**63 - 100, 2**62])
def test_indices_out_of_range(index: int) -> None:
    array = ring()
    with pytest.raises(IndexError, match=str(index)):
        array.gather(index)
    with pytest.raises(IndexError, match=str(index)):
        array.gather(np.array([10, index]))


@pytest.mark.parametrize(
    "indices",
    [
        [10.0],
        10.0,
        np.array([10.0]),
        np.array([np.nan]),
        "10",
        ["10"],
        None,
        [True, False],
        np.array([10], object),
        np.array([10], "m8[s]"),
        np.array([2**63], np.uint64),
        [[10], [11, 12]],
        2**70,
    ],
    ids=str,
)
def test_indices_must_be_integers(indices: Any) -> None:
    array = ring()
    with pytest.raises((IndexError, TypeError, ValueError, OverflowError), match=r"(?s)."):
        array.gather(indices)


def test_indices_of_any_integer_kind_and_layout() -> None:
    array = ring()
    content = ring_content().reshape(26, *FRAME)
    for dtype in ("i1", "u1", "i2", "u4", "i8", "u8", ">i8", ">u2"):
        assert_same(array.gather(np.array([[7, 25, 10]], dtype)), content[[[7, 25, 10]]])
    grid = np.arange(8, 24).reshape(4, 4)
    assert_same(array.gather(grid.T), content[grid.T])
    assert_same(array.gather(grid[::-2, ::3]), content[grid[::-2, ::3]])
    assert_same(array.gather([8, 8, 8]), content[[8, 8, 8]])
    assert_same(array.gather(np.int16(9)), content[9])
    assert_same(array.gather(np.zeros((3, 0), np.int64)), np.zeros((3, 0, *FRAME), np.uint8))


def test_another_stream() -> None:
    array = ring()
    old = array.stream
    assert array.gather([10], stream=old).shape == (1, *FRAME)
    array.clear()
    with pytest.raises(FrameEvictedError):
        array.gather([10], stream=array.stream)
    array.append(ring_content())
    assert array.gather([10], stream=array.stream).shape == (1, *FRAME)
    parts = ("stream", str(old), str(array.stream))
    with pytest.raises(StaleStreamError, match=says(*parts)):
        array.gather([10], stream=old)
    with pytest.raises(StaleStreamError):
        array.gather([10], stream=array.stream + 1)
    with pytest.raises(StaleStreamError):
        array.gather(np.zeros((0,), np.int64), stream=old)


# --------------------------------------------------------------------------- out


def read_only(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    out = np.zeros(shape, np.uint8)
    out.flags.writeable = False
    return out


@pytest.mark.parametrize(
    ("out", "parts"),
    [
        (np.zeros((3, 6, 4), np.uint8), (r"\(3, 6, 4\)", r"\(3, 6, 5\)")),
        (np.zeros((2, 6, 5), np.uint8), (r"\(2, 6, 5\)", r"\(3, 6, 5\)")),
        (np.zeros((1, 3, 6, 5), np.uint8), (r"\(1, 3, 6, 5\)", r"\(3, 6, 5\)")),
        (np.zeros((90,), np.uint8), (r"\(90,\)", r"\(3, 6, 5\)")),
        (np.zeros((3, 6, 5), np.int8), ("int8", "uint8")),
        (np.zeros((3, 6, 5), np.float32), ("float32", "uint8")),
        (np.zeros((3, 6, 5), bool), ("bool", "uint8")),
        (read_only((3, 6, 5)), ("read-only|writ",)),
        ([[[0] * 5] * 6] * 3, ("out",)),
        ("out", ("out",)),
    ],
    ids=lambda part: str(part).replace("\n", "")[:30],
)
def test_outputs_that_do_not_fit(out: Any, parts: tuple[str, ...]) -> None:
    array = ring()
    before = out.copy() if isinstance(out, np.ndarray) else None
    with pytest.raises((ValueError, TypeError), match=says(*parts)):
        array.gather([10, 11, 12], out=out)
    if before is not None:
        assert_same(out.copy(), before)


@pytest.mark.parametrize("codec", ["raw", "sparse", "delta", "delta-huffman", "zstd"])
def test_outputs_of_any_layout_are_filled_or_refused(codec: str) -> None:
    array = ring(codec=codec)
    expected = ring_content().reshape(26, *FRAME)[[10, 11, 12]]
    for out in (
        np.zeros((3, 6, 5), np.uint8, order="F"),
        np.zeros((3, 6, 10), np.uint8)[..., ::2],
        np.zeros((6, 6, 5), np.uint8)[::-2],
        np.zeros((3, 6, 5), np.uint8)[:, ::-1],
        np.zeros((3, 3, 6, 5), np.uint8)[:, 1],
    ):
        result, error = outcome(lambda out=out: array.gather([10, 11, 12], out=out))  # type: ignore[misc]
        if error is None:
            assert_same(out.copy(), expected)
            assert result is out
        else:
            assert isinstance(error, (ValueError, TypeError))
            assert "out" in str(error)
            assert "contiguous" in str(error)
            assert not out.any()


def test_an_output_is_returned_and_filled() -> None:
    array = ring()
    out = np.full((2, 2, *FRAME), 77, np.uint8)
    assert array.gather([[10, 11], [20, 21]], out=out) is out
    assert_same(out, ring_content().reshape(26, *FRAME)[[[10, 11], [20, 21]]])
    empty = np.zeros((0, *FRAME), np.uint8)
    assert array.gather(np.zeros(0, np.int64), out=empty) is empty


MEMORY = ["memoryview", "array"] + (["torch"] if importlib.util.find_spec("torch") else [])


@pytest.mark.parametrize("owner", MEMORY)
def test_outputs_in_memory_of_others(owner: str) -> None:
    array = ring()
    expected = ring_content().reshape(26, *FRAME)[[10, 25]]
    if owner == "torch":
        import torch

        tensor = torch.zeros((2, *FRAME), dtype=torch.uint8)
        array.gather([10, 25], out=tensor.numpy())
        assert_same(tensor.numpy().copy(), expected)
        itself = torch.zeros((2, *FRAME), dtype=torch.uint8)
        array.gather([10, 25], out=itself)
        assert_same(itself.numpy().copy(), expected)
        with pytest.raises((ValueError, TypeError), match=says("int64", "uint8")):
            array.gather([10, 25], out=torch.zeros((2, *FRAME), dtype=torch.int64))
    else:
        raw = bytearray(60)
        memory = np.frombuffer(raw if owner == "array" else memoryview(raw), np.uint8)
        array.gather([10, 25], out=memory.reshape(2, *FRAME))
        assert bytes(raw) == expected.tobytes()


# --------------------------------------------------------------------------- pin, reshape, views


def test_pinned_frames_outlive_everything() -> None:
    array = ring()
    special = frames("extremes", 3, FRAME)
    index = array.pin(special)
    assert_same(index, 2**63 - 2 - np.arange(3))
    assert_same(array.pin(special[::-1].copy()), index[::-1].copy())  # equal frames, equal index
    again = np.asfortranarray(np.stack([special, special]))
    assert_same(array.pin(again), np.stack([index, index]))
    array[...] = 9
    array.append(ring_content())
    array.clear()
    assert_same(array.gather(index), special)
    assert_same(array.gather(index[:1], stream=array.stream), special[:1])
    array.append(ring_content())
    mixed = np.array([[index[0], 10], [25, index[2]]])
    content = ring_content().reshape(26, *FRAME)
    assert_same(array.gather(mixed)[0, 1], content[10].copy())
    assert_same(array.gather(mixed)[1, 1], special[2].copy())
    assert (
        np.asarray(array) == np.concatenate([content[20:], content[6:20]]).reshape(10, 2, *FRAME)
    ).all()  # pins take no slot
    special[...] = 0
    assert_same(array.gather(index), frames("extremes", 3, FRAME))


def test_pin_refuses_what_is_no_frame() -> None:
    array = ring()
    for bad in (
        np.zeros((6, 4), np.uint8),
        np.zeros(FRAME, np.float32),
        np.zeros((), np.uint8),
        None,
    ):
        with unchanged(array), pytest.raises((TypeError, ValueError)):
            array.pin(bad)
    (index,) = array.pin(np.zeros((1, *FRAME), np.uint8)).tolist()
    assert index == 2**63 - 2  # nothing refused was given an index


@pytest.mark.parametrize(
    "shape",
    [(20, 5, 6), (20, 30), (600,), (3, -1, 6, 5), (7, *FRAME), (-1, -1, *FRAME), (), (21, *FRAME),
     (20.0, *FRAME), ("a", *FRAME)],
    ids=str,
)  # fmt: skip
def test_reshape_moves_leading_axes_only(shape: Any) -> None:
    array = ring()
    with unchanged(array), pytest.raises((ValueError, TypeError), match=r"(?s)."):
        array.reshape(shape)


def test_reshape_says_what_it_can_do() -> None:
    array = ring()
    with pytest.raises(ValueError, match=says(r"\(20, 30\)", r"\(6, 5\)", "frame|leading")):
        array.reshape(20, 30)
    with pytest.raises(ValueError, match=says(r"20|600|\(10, 2, 6, 5\)", "7")):
        array.reshape(7, *FRAME)


def test_a_view_has_no_append() -> None:
    array = ring()
    view = array.reshape(-1, *FRAME)
    refusal = pytest.raises((AttributeError, TypeError, ValueError), match=r"view|base")
    with unchanged(array), refusal:
        view.append(np.zeros(FRAME, np.uint8))


# --------------------------------------------------------------------------- more than memory


def test_an_array_larger_than_memory_costs_what_is_written() -> None:
    """700 terabytes of frames: refused with a reason, or usable."""
    array, error = outcome(lambda: DiffFrameArray((10**11, 84, 84)))
    if error is not None:
        assert isinstance(error, (MemoryError, ValueError))
        assert re.search(r"\d{11,}", str(error))  # how much that would be
        return
    array[10**11 - 1, 3, 3] = 5
    assert array[-1].sum() == 5
    assert array[5 * 10**10].sum() == 0
    with pytest.raises((MemoryError, ValueError)):
        np.asarray(array)
    with pytest.raises((MemoryError, ValueError)):
        array[::2]
    assert array[-1].sum() == 5
    assert array.nbytes == 10**11 * 7056


def test_a_result_larger_than_memory_is_refused() -> None:
    array = DiffFrameArray((100, 4096, 4096))
    array.append(np.ones((4096, 4096), np.uint8))
    with pytest.raises((MemoryError, ValueError)):
        array[np.zeros(10**6, np.int64)]  # 16 terabytes
    with pytest.raises((MemoryError, ValueError)):
        array.gather(np.zeros((10**3, 10**3), np.int64))
    assert array[0, 77].sum() == 4096
