"""The array in numpy's hands: conversion, functions, operators, iteration, copies, pickles."""

from __future__ import annotations

import copy
import io
import operator
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compressarray import DiffFrameArray, FrameEvictedError
from tests.naive import assert_same
from tests.strategies import assert_holds, assert_same_kind_of_error, frames, game, outcome

OWN = ["raw", "sparse", "delta", "delta-huffman", "zstd"]


def pair(
    dtype: Any = np.uint8, codec: str = "delta", n: int = 24
) -> tuple[DiffFrameArray, np.ndarray[Any, Any]]:
    """An array of two lanes and the dense array it equals."""
    dense = np.stack([frames("sprites", n, (6, 7), dtype, seed) for seed in range(2)], axis=1)
    if np.dtype(dtype).kind in "fc":
        dense = np.random.default_rng(0).integers(-50, 50, dense.shape).astype(dtype)
    array = DiffFrameArray(dense.shape, dtype, codec=codec)
    array[...] = dense
    return array, dense


# --------------------------------------------------------------------------- conversion


@pytest.mark.parametrize("codec", OWN)
def test_asarray(codec: str) -> None:
    array, dense = pair(codec=codec)
    for converted in (
        np.asarray(array),
        np.array(array),
        np.array(array, copy=True),
        np.asarray(array, copy=None),
        np.asarray(array, copy=True),
        np.ascontiguousarray(array),
        array.__array__(),
        array[...],
        array[()],
        array[:],
    ):
        assert_same(converted, dense)


def test_asarray_casts() -> None:
    array, dense = pair()
    for dtype in (np.uint8, np.float32, np.int64, ">u2", bool):
        assert_same(np.asarray(array, dtype=dtype), dense.astype(dtype))
        assert_same(np.array(array, dtype), dense.astype(dtype))
        assert_same(array.__array__(np.dtype(dtype)), dense.astype(dtype))
    assert_same(np.array(array, order="F").copy(order="C"), dense)
    assert np.array(array, ndmin=6).shape == (1, 1, *dense.shape)


def test_asarray_without_a_copy_is_refused() -> None:
    """Decoding always copies, so a promise not to copy cannot be kept."""
    array, _ = pair()
    with pytest.raises(ValueError, match=r"(?i)cop"):
        np.asarray(array, copy=False)
    with pytest.raises(ValueError, match=r"(?i)cop"):
        np.array(array, copy=False)
    with pytest.raises(ValueError, match=r"(?i)cop"):
        np.asarray(array.reshape(-1, 6, 7), copy=False)
    with pytest.raises(ValueError, match=r"(?i)cop"):
        array.__array__(copy=False)


def test_reads_are_fresh_writable_arrays() -> None:
    array, dense = pair()
    out = np.asarray(array)
    for read in (
        lambda: np.asarray(array),
        lambda: array[3],
        lambda: array[3, 1],
        lambda: array[2:9, :, 1],
        lambda: array[[3, 4, 3]],
        lambda: array[...],
        lambda: array.reshape(-1, 6, 7)[5],
        lambda: next(iter(array)),
    ):
        once, twice = read(), read()
        for result in (once, twice):
            assert type(result) is np.ndarray
            assert result.flags.writeable
            assert result.flags.aligned
        assert not np.shares_memory(once, twice)
        assert not np.shares_memory(once, out)
        once[...] = 99
        twice += 1
        assert_holds(array, dense)
    array[0][1] = 99  # writes into what was read, as promised
    assert_holds(array, dense)


def test_a_read_keeps_its_value_when_the_array_is_written() -> None:
    array, dense = pair()
    frame, batch = array[5, 0], array.gather(array.append(dense[:2]))
    array[...] = 1
    assert_same(frame, dense[5, 0].copy())
    assert_same(batch, dense[:2])


def test_scalars_come_back_as_numpys() -> None:
    array, dense = pair(np.float32)
    assert type(array[1, 1, 1, 1]) is np.float32
    assert_same(array[1, 1, 1, 1], dense[1, 1, 1, 1])
    assert_same(array[1, 1, 1, 1, ...], dense[1, 1, 1, 1, ...].copy())
    record = DiffFrameArray((3, 2, 2), [("x", "u1"), ("y", "<f4")])
    record[1, 0, 0] = (3, 2.5)
    assert type(record[1, 0, 0]) is np.void
    assert record[1, 0, 0].tolist() == (3, 2.5)
    scalars = DiffFrameArray((5, 3), np.int32, frame_ndim=0)
    scalars[2] = [1, 2, 3]
    assert_same(scalars[2, 1], np.int32(2))
    assert_same(scalars[2], np.array([1, 2, 3], np.int32))


# --------------------------------------------------------------------------- description


def test_attributes_are_an_ndarrays() -> None:
    array = DiffFrameArray([128, 8, 4, 84, 84], "uint8")
    assert array.shape == (128, 8, 4, 84, 84)
    assert all(type(n) is int for n in array.shape)
    assert array.dtype == np.uint8
    assert isinstance(array.dtype, np.dtype)
    assert (array.ndim, array.size, array.itemsize) == (5, 28_901_376, 1)
    assert array.nbytes == 28_901_376
    assert (array.frame_ndim, array.frame_shape) == (2, (84, 84))
    assert (array.stack_axis, array.lane_shape, array.n_lanes) == (2, (8,), 8)
    assert array.fill_value == 0
    assert array.codec == "delta"
    assert array.stream == 0 or isinstance(array.stream, (int, np.integer))
    assert np.shape(array) == array.shape
    assert np.ndim(array) == 5
    assert np.size(array) == array.size
    assert len(array) == 128
    for name in ("shape", "dtype", "nbytes", "nbytes_stored", "compression_ratio"):
        with pytest.raises(AttributeError):
            setattr(array, name, 3)


def test_lane_counts_are_a_copy() -> None:
    array, dense = pair()
    array.append(dense[:3])
    counts = array.lane_counts
    assert_same(counts, np.array([3, 3], np.int64))
    counts[...] = 77
    assert_same(array.lane_counts, np.array([3, 3], np.int64))
    assert array.append(dense[0]).tolist() == [6, 7]


def test_codec_names() -> None:
    import numcodecs

    for codec, name in [
        ("raw", "raw"),
        ("sparse", "sparse"),
        ("delta", "delta"),
        ("delta-huffman", "delta-huffman"),
        ("zstd", "zstd"),
        ({"id": "lz4"}, "lz4"),
        (numcodecs.Blosc(), "blosc"),
    ]:
        assert DiffFrameArray((3, 4, 4), codec=codec).codec == name


def test_repr_is_short_and_decodes_little() -> None:
    content = game(3000, (40, 40))
    array = DiffFrameArray(content.shape)
    array[...] = content
    for text in (repr, str, format):
        before = array.stats()["frames_decoded"]
        said = text(array)
        assert len(said) < 2000
        assert array.stats()["frames_decoded"] - before <= 200
    said = repr(array)
    for part in ("DiffFrameArray", "3000, 40, 40", "uint8", "delta"):
        assert part in said
    assert "DiffFrameArray" in repr(DiffFrameArray((0, 4, 4)))
    assert "DiffFrameArray" in repr(array.reshape(3, 1000, 40, 40))


# --------------------------------------------------------------------------- functions


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "mean": np.mean,
    "mean of axes": lambda a: np.mean(a, axis=(2, 3)),
    "sum": np.sum,
    "std": np.std,
    "min": lambda a: np.min(a, axis=0),
    "argmax": np.argmax,
    "stack": lambda a: np.stack([a, a]),
    "stack of rows": lambda a: np.stack([a[0], a[5], a[-1]]),
    "concatenate": lambda a: np.concatenate([a, a[:2], a]),
    "vstack": lambda a: np.vstack([a, a]),
    "where": lambda a: np.where(np.asarray(a) > 3, a, 0),
    "clip": lambda a: np.clip(a, 10, 100),
    "transpose": lambda a: np.asarray(np.transpose(a, (1, 0, 2, 3))).copy(),
    "moveaxis": lambda a: np.asarray(np.moveaxis(a, 0, 1)).copy(),
    "take": lambda a: np.take(a, [3, 1], axis=0),
    "unique": np.unique,
    "flip": lambda a: np.flip(a, 0).copy(),
    "add": lambda a: np.add(a, 1),
    "sqrt": np.sqrt,
    "multiply into": lambda a: np.multiply(a, 2, out=np.zeros(a.shape, np.int64)),
    "maximum.reduce": np.maximum.reduce,
    "add.accumulate": lambda a: np.add.accumulate(a, axis=0),
    "array_equal": lambda a: np.array_equal(a, a),
    "allclose": lambda a: np.allclose(a, np.asarray(a)),
    "count_nonzero": np.count_nonzero,
    "any": np.any,
    "ravel": lambda a: np.ravel(a).copy(),
    "zeros_like": lambda a: np.zeros_like(np.asarray(a)),
    "isin": lambda a: np.isin(a, [1, 2, 3]),
    "tensordot": lambda a: np.tensordot(a, np.ones(7), axes=([3], [0])),
    "astype": lambda a: np.asarray(a).astype(np.float64) / 255,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    array, dense = pair()
    expected, actual = FUNCTIONS[name](dense), FUNCTIONS[name](array)
    if isinstance(expected, (bool, int)):
        assert actual == expected
    else:
        assert_same(actual, expected)
    flat = array.reshape(-1, 6, 7)
    dense_flat = dense.reshape(-1, 6, 7)
    if name in ("mean", "sum", "add", "concatenate", "stack"):
        assert_same(FUNCTIONS[name](flat), FUNCTIONS[name](dense_flat))
    assert_holds(array, dense)


def test_a_dense_array_takes_from_the_array() -> None:
    array, dense = pair()
    target = np.zeros_like(dense)
    target[...] = array
    assert_same(target, dense)
    np.copyto(target, array.reshape(dense.shape))
    assert_same(target, dense)
    target[2:4] = array[:2]
    assert_same(target[2:4].copy(), dense[:2])
    saved = io.BytesIO()
    np.save(saved, array)
    saved.seek(0)
    assert_same(np.load(saved), dense)


def test_the_array_takes_from_arrays() -> None:
    array, dense = pair()
    other, other_dense = pair(n=24)
    other[...] = 255 - other_dense
    array[...] = other
    assert_holds(array, 255 - other_dense)
    array[1:] = array[:-1]  # overlapping: the right side is read first
    dense = 255 - other_dense
    dense[1:] = dense[:-1].copy()
    assert_holds(array, dense)
    array[:] = array[::-1]
    assert_holds(array, np.ascontiguousarray(dense[::-1]))
    array[...] = array
    assert_holds(array, np.ascontiguousarray(dense[::-1]))
    view = array.reshape(2, 24, 6, 7)
    array[:] = view.reshape(24, 2, 6, 7)
    assert_holds(array, np.ascontiguousarray(dense[::-1]))


# --------------------------------------------------------------------------- operators


BINARY = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod,
    operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift,
    operator.lt, operator.le, operator.eq, operator.ne, operator.gt, operator.ge,
    operator.pow, divmod,
]  # fmt: skip


@pytest.mark.parametrize("op", BINARY, ids=lambda op: op.__name__)
def test_binary_operators(op: Callable[[Any, Any], Any]) -> None:
    array, dense = pair()
    row = np.arange(1, 8, dtype=np.uint8)
    with np.errstate(all="ignore"):
        for other in (3, np.uint8(5), row, np.asarray(array[0]), np.full(dense.shape, 2, np.int32)):
            for actual, expected in (
                (op(array, other), op(dense, other)),
                (op(other, array), op(other, dense)),
            ):
                if isinstance(expected, tuple):
                    assert_same(actual[0], expected[0])
                    assert_same(actual[1], expected[1])
                else:
                    assert_same(actual, expected)
        if op is not divmod:
            assert_same(op(array, array), op(dense, dense))
            assert_same(op(array, array.reshape(array.shape)), op(dense, dense))
    assert_holds(array, dense)


def test_unary_operators() -> None:
    array, dense = pair(np.int16)
    for op in (operator.neg, operator.pos, operator.abs, operator.invert):
        assert_same(op(array), op(dense))
    array, dense = pair(np.float64)
    assert_same(array @ np.eye(7), dense @ np.eye(7))
    assert_same(np.eye(6) @ array, np.eye(6) @ dense)
    assert_same(abs(array), abs(dense))


IN_PLACE = [
    operator.iadd, operator.isub, operator.imul, operator.ifloordiv, operator.imod, operator.iand,
    operator.ior, operator.ixor, operator.ilshift, operator.irshift, operator.itruediv,
    operator.ipow,
]  # fmt: skip


@pytest.mark.parametrize("op", IN_PLACE, ids=lambda op: op.__name__)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32], ids=lambda t: t.__name__)
def test_in_place_operators_write_through(op: Callable[[Any, Any], Any], dtype: Any) -> None:
    with np.errstate(all="ignore"):
        for other in (3, np.arange(1, 8, dtype=np.uint8), 2.5, np.ones((9, 9)), 300, "x"):
            array, dense = pair(dtype)
            view = array.reshape(-1, 6, 7)
            before = dense.copy()
            _, expected_error = outcome(lambda: op(dense, other))  # noqa: B023
            result, error = outcome(lambda: op(array, other))  # noqa: B023
            if expected_error is None:
                assert_same_kind_of_error(error, None)
                assert result is array
            else:
                assert_same_kind_of_error(error, expected_error)
                dense = before
            assert_holds(array, dense)
            assert_same(np.asarray(view), dense.reshape(-1, 6, 7))


def test_in_place_operators_on_items_and_views() -> None:
    array, dense = pair()
    array[3] += 1
    dense[3] += 1
    array[2:9, 1] ^= 255
    dense[2:9, 1] ^= 255
    array[[5, 5, 6]] += 1  # as in numpy, once for each place
    dense[[5, 5, 6]] += 1
    array[:, :, 2, 3] //= 2
    dense[:, :, 2, 3] //= 2
    array[dense > 100] = 1
    dense[dense > 100] = 1
    assert_holds(array, dense)
    view = array.reshape(-1, 6, 7)
    view += 1
    dense += 1
    view[7] |= 64
    dense.reshape(-1, 6, 7)[7] |= 64
    assert_holds(array, dense)
    assert_holds(view, dense.reshape(-1, 6, 7))


def test_in_place_operators_retire_the_frames_they_change() -> None:
    array, dense = pair()
    index = array.append(dense)
    array += 1
    with pytest.raises(FrameEvictedError):
        array.gather(index[3, 0])


def test_a_ufunc_may_write_into_the_array_or_says_that_it_cannot() -> None:
    array, dense = pair()
    result, error = outcome(lambda: np.add(dense, 1, out=array))
    if error is None:
        assert result is array
        assert_holds(array, dense + 1)
    else:
        assert isinstance(error, TypeError)
        assert_holds(array, dense)


def test_equality_and_hash_are_an_ndarrays() -> None:
    array, dense = pair()
    assert_same(array == dense, dense == dense)
    assert_same(dense == array, dense == dense)
    assert_same(array != dense[0], dense != dense[0])
    assert_same(array == "x", dense == "x")
    assert_same(array == None, dense == None)  # noqa: E711
    with pytest.raises(TypeError, match="unhashable"):
        hash(array)
    with pytest.raises(ValueError, match=r"broadcast|shape"):
        array < np.ones((3, 3))  # noqa: B015
    nan = DiffFrameArray((2, 2, 2), np.float32, fill_value=np.nan)
    assert not (nan == nan).any()


def test_truth() -> None:
    array, _ = pair()
    with pytest.raises(ValueError, match="ambiguous"):
        bool(array)
    single = DiffFrameArray((1, 1, 1))
    assert not single
    single[0, 0, 0] = 7
    assert single
    with pytest.raises((ValueError, DeprecationWarning), match="empty"):
        bool(DiffFrameArray((0, 4, 4)))


def test_membership() -> None:
    array, dense = pair()
    array[7, 1, 3, 3] = dense[7, 1, 3, 3] = 123
    assert 123 in array
    absent = next(v for v in range(256) if v not in dense)
    assert absent not in array
    assert dense[4] in array
    assert (dense[4, 0, 0] in array) is (dense[4, 0, 0] in dense)
    counting = DiffFrameArray((5, 2, 2))
    counting[...] = np.arange(5, dtype=np.uint8)[:, None, None]
    # numpy compares where elements meet, and each of these meets none like itself
    for shifted in (np.asarray(counting) + 1, (np.arange(5)[:, None, None] + 2) % 5):
        assert shifted not in np.asarray(counting)
        assert shifted not in counting


# --------------------------------------------------------------------------- sequences


def test_iteration() -> None:
    array, dense = pair()
    rows = list(array)
    assert len(rows) == 24
    for row, expected in zip(rows, dense, strict=True):
        assert_same(row, expected.copy())
    assert [row.shape for row in reversed(array)] == [(2, 6, 7)] * 24
    assert_same(next(reversed(array)), dense[-1].copy())
    first, *_, last = array
    assert_same(first, dense[0].copy())
    assert_same(last, dense[-1].copy())
    assert list(DiffFrameArray((0, 4, 4))) == []
    scalars = DiffFrameArray((3,), np.int16, frame_ndim=0, fill_value=4)
    assert [type(value) for value in scalars] == [np.int16] * 3
    assert list(enumerate(array))[5][1].tolist() == dense[5].tolist()


def test_iteration_sees_writes_as_numpys_does() -> None:
    array, dense = pair()
    for t, row in enumerate(array):
        if t + 1 < len(array):
            array[t + 1] = 7
        if t:
            assert (row == 7).all()
    assert_same(np.asarray(array)[0], dense[0].copy())


# --------------------------------------------------------------------------- copies, pickles


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy method": lambda a: a.copy(),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda a: pickle.loads(pickle.dumps(a)),
    "pickle, protocol 2": lambda a: pickle.loads(pickle.dumps(a, 2)),
    "pickle, protocol 5": lambda a: pickle.loads(pickle.dumps(a, 5)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("codec", OWN)
def test_copies_are_whole_and_apart(how: str, codec: str) -> None:
    """Pixels, options, indices, pins, counts and stream; and nothing shared."""
    content = np.stack([game(40, (12, 10), seed=k) for k in range(2)], axis=1)
    array = DiffFrameArray((24, 2, 12, 10), codec=codec, fill_value=3)
    array.append(content[:9])
    array.clear()
    index = array.append(content[:33])
    padding = array.pin(np.full((12, 10), 200, np.uint8))
    array[5, 1] = 1
    dense = np.asarray(array)

    twin = COPIES[how](array)
    assert type(twin) is DiffFrameArray
    assert_holds(twin, dense)
    for name in ("codec", "frame_ndim", "fill_value", "stack_axis", "stream", "n_lanes"):
        assert getattr(twin, name) == getattr(array, name), name
    assert_same(twin.lane_counts, array.lane_counts)
    assert_same(twin.gather(index[10:, 0]), content[10:33, 0].copy())
    assert_same(twin.gather(padding), np.full((12, 10), 200, np.uint8))
    with pytest.raises(FrameEvictedError):
        twin.gather(index[29, 1])
    with pytest.raises(FrameEvictedError):
        twin.gather(0)

    assert_same(twin.append(content[33]), array.append(content[33]))
    twin[...] = 9
    twin.clear()
    dense[33 % 24] = content[33]
    assert_holds(array, dense)
    assert_same(array.gather(index[11:, 0]), content[11:33, 0].copy())
    array[...] = 4
    assert (np.asarray(twin) == 3).all()


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("codec", ["raw", "delta", "delta-huffman"])
def test_copies_of_views_are_arrays_of_their_own(how: str, codec: str) -> None:
    content = np.stack([game(24, (12, 10), seed=k) for k in range(2)], axis=1)
    array = DiffFrameArray(content.shape, codec=codec)
    array[...] = content
    view = array.reshape(-1, 12, 10)
    flat = content.reshape(-1, 12, 10)
    twin = COPIES[how](view)
    assert type(twin) is DiffFrameArray
    assert_holds(twin, flat)
    twin[3] = 77
    assert_holds(array, content)
    array[9] = 5
    assert_same(twin[18], flat[18].copy())
    twin[...] = 0
    index = twin.append(flat[:5])  # a copy is no view: it is a ring itself
    assert_same(twin.gather(index), flat[:5].copy())


def test_an_array_and_its_view_pickled_together() -> None:
    """A view pickles as a copy: wherever it goes, it does not drag writes along."""
    array, dense = pair()
    again, view = pickle.loads(pickle.dumps((array, array.reshape(-1, 6, 7))))
    assert_holds(again, dense)
    assert_holds(view, dense.reshape(-1, 6, 7))
    view[0] = 1
    assert_holds(again, dense)


def test_a_pickle_is_small() -> None:
    array = DiffFrameArray((2000, 84, 84))
    array.append(game(2000))
    assert len(pickle.dumps(array)) <= 1.1 * array.nbytes_stored + 4096
    assert array.nbytes_stored < array.nbytes / 20
    empty = DiffFrameArray((1_000_000, 84, 84))
    assert len(pickle.dumps(empty)) < 1_000_000


def test_a_copy_is_no_larger() -> None:
    array = DiffFrameArray((2000, 84, 84))
    array.append(game(2000))
    assert array.copy().nbytes_stored <= 1.1 * array.nbytes_stored + 65536
    twin = pickle.loads(pickle.dumps(array))
    assert twin.nbytes_stored <= 1.1 * array.nbytes_stored + 65536


# --------------------------------------------------------------------------- views


def test_reshape_takes_what_ndarrays_reshape_takes() -> None:
    array, dense = pair()
    for shape in ((48, 6, 7), (-1, 6, 7), (4, -1, 2, 6, 7), (2, 24, 6, 7), (1, 48, 1, 6, 7)):
        for view in (array.reshape(shape), array.reshape(*shape), array.reshape(list(shape))):
            assert type(view) is DiffFrameArray
            assert view.frame_ndim == 2
            assert_holds(view, dense.reshape(shape))
    view = array.reshape(48, 6, 7).reshape(6, 8, 6, 7).reshape(-1, 6, 7)
    view[17] = 3
    dense.reshape(-1, 6, 7)[17] = 3
    assert_holds(array, dense)
    array[0, 0, 0, 0] = 99
    assert view[0, 0, 0] == 99


def test_a_view_reports_the_bytes_of_its_base() -> None:
    array, _ = pair()
    view = array.reshape(-1, 6, 7)
    assert view.nbytes == array.nbytes
    assert view.nbytes_stored == array.nbytes_stored
    assert view.compression_ratio == array.compression_ratio
    array[...] = frames("noise", 48, (6, 7)).reshape(24, 2, 6, 7)
    assert view.nbytes_stored == array.nbytes_stored


def test_a_view_keeps_its_base_alive() -> None:
    array, dense = pair()
    view = array.reshape(-1, 6, 7)
    del array
    view[0] = 1
    dense[0, 0] = 1
    assert_holds(view, dense.reshape(-1, 6, 7))
