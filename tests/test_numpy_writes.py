"""Whoever writes into the array by numpy's means writes, or is told that he cannot."""

from __future__ import annotations

import copy
import io
import random
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from compressarray import DiffFrameArray, FrameEvictedError
from tests.naive import assert_same
from tests.strategies import assert_holds, assert_same_kind_of_error, frames, outcome

Write = Callable[[Any], Any]

SHAPE = (20, 8, 9)
CONTENT = np.random.default_rng(0).integers(1, 256, SHAPE, np.uint8)
MASK = CONTENT > 99


def arrays(dtype: Any = np.uint8) -> tuple[DiffFrameArray, np.ndarray[Any, Any]]:
    dense = frames("sprites", SHAPE[0], SHAPE[1:], dtype, seed=3)
    array = DiffFrameArray(SHAPE, dtype)
    array[...] = dense
    return array, dense


def gymnasium_concatenate(a: Any) -> Any:
    from gymnasium.spaces import Box
    from gymnasium.vector.utils import concatenate

    return concatenate(Box(0, 255, SHAPE[1:], np.uint8), list(CONTENT), a)


def shuffle(generator: Any) -> Write:
    # numpy warns that it swaps items as Python would
    def write(a: Any) -> None:
        with (
            pytest.warns(UserWarning, match="Sequence")
            if isinstance(a, DiffFrameArray)
            else nothing()
        ):
            generator().shuffle(a)

    return write


class nothing:  # noqa: N801 # as contextlib's
    def __enter__(self) -> None: ...
    def __exit__(self, *_: Any) -> None: ...


def keep_best(a: Any) -> None:
    np.maximum(a, CONTENT, out=a, where=MASK)


WRITES: dict[str, Write] = {
    "copyto": lambda a: np.copyto(a, CONTENT),
    "copyto, a row": lambda a: np.copyto(a, CONTENT[0]),
    "copyto, where": lambda a: np.copyto(a, 7, where=MASK),
    "copyto, casting": lambda a: np.copyto(a, CONTENT * 1.0, casting="unsafe"),
    "copyto from itself": lambda a: np.copyto(a, a[::-1]),
    "stack": lambda a: np.stack(list(CONTENT), out=a),
    "concatenate": lambda a: np.concatenate([CONTENT[:9], CONTENT[9:]], out=a),
    "take": lambda a: np.take(CONTENT, range(20), axis=0, out=a),
    "clip": lambda a: np.clip(CONTENT, 0, 9, out=a),
    "clip in place": lambda a: np.clip(a, 3, 90, out=a),
    "clip method in place": lambda a: a.clip(3, 90, out=a),
    "put": lambda a: np.put(a, [0, -1, 0], [1, 2, 3]),
    "put method": lambda a: a.put([[4, 5], [6, 999]], 7, mode="clip"),
    "place": lambda a: np.place(a, MASK, [1, 2, 3]),
    "putmask": lambda a: np.putmask(a, MASK, [7, 8]),
    "put_along_axis": lambda a: np.put_along_axis(a, np.zeros((20, 1, 9), int), 9, axis=1),
    "max": lambda a: np.max(CONTENT[None], axis=0, out=a),
    "mean": lambda a: np.mean(CONTENT[None], axis=0, out=a, dtype=np.uint8),
    "sum of its own": lambda a: np.sum(a[None], axis=0, out=a),
    "cumsum": lambda a: np.cumsum(CONTENT, axis=0, out=a),
    "einsum": lambda a: np.einsum("ij,ijk->ijk", CONTENT[..., 0], CONTENT, out=a),
    "round": lambda a: np.round(CONTENT, out=a),
    "nan_to_num": lambda a: np.nan_to_num(a, copy=False),
    "compress": lambda a: np.compress([True] * 20, CONTENT, axis=0, out=a),
    "choose": lambda a: np.choose(MASK.astype(int), [CONTENT, 3], out=a),
    "ufunc": lambda a: np.add(CONTENT, 1, out=a),
    "ufunc of its own": lambda a: np.add(a, a, out=a),
    "ufunc of its turned self": lambda a: np.add(a, a[::-1], out=a),
    "ufunc, where": keep_best,
    "ufunc of two outputs": lambda a: np.divmod(CONTENT, 7, out=(a, None))[1],
    "ufunc of two outputs, the other": lambda a: np.divmod(CONTENT, 7, out=(None, a))[0],
    "ufunc, one output in a tuple": lambda a: np.add(CONTENT, 1, out=(a,)),
    "at": lambda a: np.add.at(a, [0, 0, 3], 1),
    "at one element": lambda a: np.add.at(a, (0, 1, 2), 1),
    "at, unary": lambda a: np.invert.at(a, [0, 5]),
    "accumulate": lambda a: np.add.accumulate(CONTENT, axis=0, out=a),
    "matmul": lambda a: np.matmul(CONTENT, np.eye(9, dtype=np.uint8), out=a),
    "imatmul": lambda a: a.__imatmul__(np.eye(9, dtype=np.uint8) * 2),
    "sort": lambda a: a.sort(axis=0),
    "partition": lambda a: a.partition(4, axis=1),
    "fill": lambda a: a.fill(200),
    "byteswap": lambda a: a.byteswap(inplace=True),
    "setfield": lambda a: a.setfield(5, np.uint8),
    "flat": lambda a: a.flat.__setitem__(slice(3, 900, 7), [1, 2, 3]),
    "flat, all": lambda a: setattr(a, "flat", [1, 2, 3]),
    "flat, one": lambda a: a.flat.__setitem__(-1, 9),
    "real": lambda a: setattr(a, "real", CONTENT),
    "random.shuffle": lambda a: random.Random(3).shuffle(a),
    "Generator.shuffle": shuffle(lambda: np.random.default_rng(3)),
    "RandomState.shuffle": shuffle(lambda: np.random.RandomState(3)),
    "gymnasium's concatenate": gymnasium_concatenate,
    "overwrite_input": lambda a: np.median(a, overwrite_input=True),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITES)
def test_a_write_is_numpys(name: str) -> None:
    array, dense = arrays()
    write = WRITES[name]
    if name == "overwrite_input":  # what it leaves behind is not defined, but for what it holds
        write(array)
        assert sorted(np.asarray(array).ravel()) == sorted(dense.ravel())
        return
    if name == "random.shuffle":  # of an ndarray it would swap views
        rows = list(dense)
        random.Random(3).shuffle(rows)
        write(array)
        assert_holds(array, np.stack(rows))
        return
    expected, actual = write(dense), write(array)
    assert_holds(array, dense)
    if expected is dense:
        assert actual is array
    elif isinstance(expected, np.ndarray):
        assert np.array_equal(actual, expected)


REFUSED: dict[str, tuple[Write, type[Exception]]] = {
    "ndarray.mean": (lambda a: CONTENT[None].mean(axis=0, out=a), TypeError),
    "ndarray.sum": (lambda a: CONTENT[None].sum(axis=0, out=a), TypeError),
    "ndarray.take": (lambda a: CONTENT.take(range(20), axis=0, out=a), TypeError),
    "ndarray.dot": (lambda a: CONTENT.dot(np.eye(9, dtype=np.uint8), out=a), TypeError),
    "random": (lambda a: np.random.default_rng(0).random(out=a), ValueError),
    "normal": (lambda a: np.random.default_rng(0).standard_normal(out=a), ValueError),
    "permuted": (lambda a: np.random.default_rng(0).permuted(CONTENT, out=a), TypeError),
    "buffer": (lambda a: memoryview(a), (TypeError, BufferError)),
    "readinto": (lambda a: io.BytesIO(bytes(2000)).readinto(a), (TypeError, BufferError)),
    "frombuffer": (lambda a: np.frombuffer(a, np.uint8), (TypeError, BufferError)),
    "no copy": (lambda a: np.asarray(a, copy=False), ValueError),
    "casting": (lambda a: np.copyto(a, CONTENT * 1.0), TypeError),
    "shape": (lambda a: np.copyto(a, np.ones((3, 3), np.uint8)), ValueError),
    "ufunc, shape": (lambda a: np.add(np.ones((2, *SHAPE), np.uint8), 1, out=a), ValueError),
    "ufunc, casting": (lambda a: np.add(CONTENT, 1.5, out=a), TypeError),
    "delete": (lambda a: a.__delitem__(0), ValueError),
    "resize": (lambda a: a.resize(3), ValueError),
    "setflags": (lambda a: a.setflags(write=False), TypeError),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_refused(name: str) -> None:
    array, dense = arrays(np.float64 if name in ("random", "normal") else np.uint8)
    write, error = REFUSED[name]
    with pytest.raises(error):
        write(array)
    assert_holds(array, dense)


def test_random_numbers_are_never_written_beside_the_array() -> None:
    """They take any object's memory for an ndarray's, so what lies in it decides."""
    for _ in range(200):
        array = DiffFrameArray((4, 2, 3), np.float64)
        with pytest.raises(ValueError, match="output"):
            np.random.default_rng(0).random(out=array)
        view = array.reshape(-1, 2, 3)
        with pytest.raises(ValueError, match="output"):
            np.random.default_rng(0).standard_normal(out=view)


def test_a_view_of_a_copy_cannot_be_written() -> None:
    """What numpy would write through to the array is read-only where it cannot be."""
    array, dense = arrays()
    for view in (
        np.split(array, 4)[0],
        np.ravel(array),
        array.ravel(),
        np.flip(array, 0),
        np.broadcast_to(array, (2, *SHAPE)),
        np.diagonal(array),
    ):
        assert isinstance(view, np.ndarray)
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
    assert_holds(array, dense)
    assert np.nan_to_num(array).flags.writeable  # a result of its own is the caller's


def test_writing_through_numpy_retires_what_it_changes() -> None:
    array = DiffFrameArray((6, 4, 4))
    index = array.append(np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((4, 4), np.uint8))
    np.put(array, [0], [99])
    with pytest.raises(FrameEvictedError):
        array.gather(index[0])
    np.add.at(array, 3, 1)
    with pytest.raises(FrameEvictedError):
        array.gather(index[3])
    assert array.gather(index[1]).max() == 1  # the others keep their indices
    np.copyto(array, 5)
    assert outcome(lambda: array.gather(index[1]))[1] is not None


def test_results_of_other_shapes() -> None:
    array, dense = arrays()
    cube = DiffFrameArray((5, 5, 5))
    plain = np.zeros((5, 5, 5), np.uint8)
    for a in (cube, plain):
        np.fill_diagonal(a, [1, 2, 3])
    assert_holds(cube, plain)
    table, total = DiffFrameArray((20, 8), np.int64, frame_ndim=1), np.zeros((20, 8), np.int64)
    assert np.add.reduce(array, axis=2, out=table) is table
    np.add.reduce(dense, axis=2, out=total)
    assert_holds(table, total)
    row = DiffFrameArray((8, 9), frame_ndim=1)
    assert np.multiply.outer(dense[0, :, 0], dense[0, 0], out=row) is row
    assert_holds(row, np.multiply.outer(dense[0, :, 0], dense[0, 0]))


def test_writing_through_numpy_into_views() -> None:
    array = DiffFrameArray((6, 4, 5, 5))
    dense = np.zeros(array.shape, np.uint8)
    new = np.random.default_rng(1).integers(0, 9, (4, 6, 5, 5), np.uint8)
    np.copyto(array.swapaxes(0, 1), new)
    np.copyto(dense.swapaxes(0, 1), new)
    np.add(array.reshape(-1, 5, 5), 3, out=array.reshape(-1, 5, 5))
    dense += 3
    turned = array.reshape(24, 5, 5)
    np.put(turned, [7, 90], [1, 2])
    np.put(dense, [7, 90], [1, 2])
    assert_holds(array, dense)
    square, plain = DiffFrameArray((4, 4, 3)), np.zeros((4, 4, 3), np.uint8)
    square[...] = plain[...] = np.random.default_rng(2).integers(0, 9, (4, 4, 3))
    square = DiffFrameArray((4, 4, 3), frame_ndim=1)
    square[...] = plain
    square += square.swapaxes(0, 1)  # the same frames in another order
    plain += plain.swapaxes(0, 1)
    assert_holds(square, plain)


def test_into_dense_arrays_by_blocks() -> None:
    array, dense = arrays()
    room, plain = np.zeros(SHAPE, np.int64), np.zeros(SHAPE, np.int64)
    before = array.stats()["frames_decoded"]
    assert np.multiply(array, 3, out=room) is room
    np.copyto(room, array, where=MASK)
    assert array.stats()["frames_decoded"] - before == 2 * SHAPE[0]
    np.multiply(dense, 3, out=plain)
    np.copyto(plain, dense, where=MASK)
    assert np.array_equal(room, plain)
    # a block that was written must not be read as an operand afterwards
    long, same = np.arange(1440 + 72).reshape(21, 8, 9), np.arange(1440 + 72).reshape(21, 8, 9)
    np.add(array, long[:-1], out=long[1:])
    np.add(dense, same[:-1], out=same[1:])
    assert np.array_equal(long, same)
    with pytest.raises(ValueError, match="broadcast"):
        np.copyto(np.zeros((3, 3), np.uint8), array)
    read_only = np.zeros(SHAPE, np.uint8)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        np.copyto(read_only, array)


def test_a_function_that_fails_changes_nothing() -> None:
    array, dense = arrays()

    def scribble(values: Any) -> Any:
        values[...] = 77
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        np.apply_along_axis(scribble, 0, array)
    with pytest.raises(IndexError):
        np.put(array, [0, 99999], [1, 2])
    with pytest.raises(IndexError):
        np.add.at(array, [0, 99], 1)
    assert_holds(array, dense)


def test_a_function_is_given_what_is_written_into_once() -> None:
    """The same array twice among the arguments is the same copy twice."""
    array, dense = arrays()
    np.add(array, array, out=array)
    dense += dense.copy()
    np.matmul(array, np.eye(9, dtype=np.uint8), out=array)
    assert_holds(array, dense)
    twin = copy.deepcopy(array)
    assert np.array_equal(twin, array)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i8", "f2", "?", "S2", "M8[s]"])
@pytest.mark.parametrize(
    "value",
    [
        np.uint8(200), np.int64(-1), np.float64(300.5), np.float32("nan"), np.uint64(2**63),
        np.complex64(3), np.datetime64(5, "s"), np.str_("3"), np.array(200, np.uint8),
    ],
    ids=repr,
)  # fmt: skip
def test_scalars_of_numpys_are_cast_or_refused_as_numpy_does(dtype: str, value: Any) -> None:
    for key in (..., 0, slice(0, 1), (0, 0), np.array([1, 0])):
        dense = np.zeros((2, 3), dtype)
        array = DiffFrameArray((2, 3), dtype, frame_ndim=1, codec="raw", fill_value=dense[0, 0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, expected = outcome(partial(dense.__setitem__, key, value))
            _, error = outcome(partial(array.__setitem__, key, value))
        assert_same_kind_of_error(error, expected)
        assert_same(np.asarray(array), dense)
