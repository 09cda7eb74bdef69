"""Reductions, comparisons and conversions that go a few frames at a time."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compressarray import DiffFrameArray
from tests.strategies import outcome

NAMES = ["sum", "prod", "min", "max", "any", "all", "mean", "std", "var", "argmin", "argmax"]
AXES = [None, 0, 1, 2, 3, -1, (0, 1), (0, 3), (1, 2), (2, 3), (0, 1, 2, 3), ()]
# 40 rows of 3 lanes: several blocks, of which the last one is short
SHAPE = (40, 3, 5, 4)


def pair(dtype: Any, shape: tuple[int, ...] = SHAPE, frame_ndim: int = 2, seed: int = 0) -> Any:
    dtype = np.dtype(dtype)
    dense = np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)
    if dtype.kind in "fc":
        dense[dense == 3] = np.nan if seed else 2.5
    array = DiffFrameArray(shape, dtype, frame_ndim=frame_ndim)
    array[...] = dense
    return array, dense


def assert_alike(actual: Any, expected: Any, dense: np.ndarray[Any, Any]) -> None:
    assert type(actual) is type(expected)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if expected.dtype.kind in "fc":
        eps = dense.size * float(np.finfo(expected.dtype).eps)
        np.testing.assert_allclose(actual, expected, rtol=eps, atol=eps)
    else:
        assert actual.tobytes() == expected.tobytes()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["u1", "i8", "?", "f2", "f4", "f8", "c16", "m8[s]"])
def test_a_reduction_is_numpys(name: str, dtype: str) -> None:
    for seed in (0, 1):  # with seed 1 there are NaNs
        array, dense = pair(dtype, seed=seed)
        for axis in AXES:
            for keepdims in (False, True):
                expected, refused = outcome(
                    lambda: getattr(dense, name)(axis=axis, keepdims=keepdims)  # noqa: B023
                )
                actual, error = outcome(
                    lambda: getattr(array, name)(axis=axis, keepdims=keepdims)  # noqa: B023
                )
                assert (error is None) == (refused is None), (axis, error, refused)
                if refused is None:
                    assert_alike(actual, expected, dense)


@pytest.mark.parametrize("frame_ndim", [0, 1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_frames_of_any_number_of_axes(name: str, frame_ndim: int) -> None:
    array, dense = pair("i4", frame_ndim=frame_ndim)
    turned, plain = array, dense
    if frame_ndim < 3:
        turned, plain = array.swapaxes(0, 1), dense.swapaxes(0, 1)
    for axis in (None, 0, 1, 3):
        assert_alike(getattr(array, name)(axis=axis), getattr(dense, name)(axis=axis), dense)
        assert_alike(getattr(turned, name)(axis=axis), getattr(plain, name)(axis=axis), dense)


def test_ties_and_nans_are_found_first() -> None:
    array = DiffFrameArray((100, 8, 8), np.float32)
    array[70:90, 3, 3] = 5
    assert array.argmax() == 70 * 64 + 3 * 8 + 3
    assert array.argmax(axis=0)[3, 3] == 70
    array[80, 1, 1] = array[95, 0, 0] = np.nan
    assert array.argmax() == array.argmin() == 80 * 64 + 8 + 1
    assert np.isnan(array.max())
    assert np.isnan(np.asarray(array)).argmax() == array.argmax()


@pytest.mark.parametrize("ours", [False, True], ids=["dense mask", "compressed mask"])
@pytest.mark.parametrize("name", ["sum", "prod", "any", "all", "mean", "std", "var"])
def test_where(name: str, ours: bool) -> None:
    array, dense = pair("i4")
    mask = dense > 0
    given: Any = mask
    if ours:
        given = DiffFrameArray(SHAPE, bool)
        given[...] = mask
    for axis in (None, 0, (0, 1), -1):
        with np.errstate(all="ignore"):
            expected, failed = outcome(lambda: getattr(dense, name)(axis=axis, where=mask))  # noqa: B023
            actual, error = outcome(lambda: getattr(array, name)(axis=axis, where=given))  # noqa: B023
        assert type(error) is type(failed)  # a warning that is an error here
        if failed is None:
            assert_alike(actual, expected, dense)
    assert_alike(getattr(dense, name)(where=given), getattr(dense, name)(where=mask), dense)
    row = mask[0, :, :1]
    assert_alike(getattr(array, name)(where=row), getattr(dense, name)(where=row), dense)


@pytest.mark.parametrize("shape", [(41, 1, 1, 1), (2, *SHAPE), (5,), (39, 3, 5, 4)])
@pytest.mark.parametrize("name", ["sum", "mean", "var", "any"])
def test_masks_of_another_shape(name: str, shape: tuple[int, ...]) -> None:
    array, _ = pair("i4")
    with pytest.raises(ValueError, match=r"broadcast|shape"):
        getattr(array, name)(where=np.ones(shape, bool))
    if name == "var":
        with pytest.raises(ValueError, match=r"broadcast|shape"):
            array.var(mean=np.ones(shape))


def test_a_mean_that_is_known() -> None:
    array, dense = pair("i4")
    for axis in (None, 0, (1, 3)):
        for mean in (1, dense.mean(axis=axis, keepdims=True)):
            given: dict[str, Any] = {"axis": axis, "mean": mean}
            assert_alike(np.var(array, **given), np.var(dense, **given), dense)
            assert_alike(array.std(**given), dense.std(**given), dense)


def test_initial_counts_once() -> None:
    array, dense = pair("i4")
    mask = dense > 0
    for axis in (None, 0, (1, 3)):
        for name, initial in (("sum", 7), ("prod", 2), ("max", 2), ("min", -9), ("max", 99)):
            options = {"axis": axis, "initial": initial}
            assert_alike(getattr(array, name)(**options), getattr(dense, name)(**options), dense)
            options["where"] = mask
            assert_alike(getattr(array, name)(**options), getattr(dense, name)(**options), dense)
    with pytest.raises(ValueError, match="identity"):
        array.max(where=mask)


def test_outputs_and_dtypes() -> None:
    array, dense = pair("u1")
    for axis in (0, (0, 1), -1):
        for dtype in ("i8", "f4", "u1"):
            expected = dense.sum(axis=axis, out=np.empty(dense.sum(axis=axis).shape, dtype))
            room = np.empty(expected.shape, dtype)
            assert array.sum(axis=axis, out=room) is room
            assert_alike(room, expected, dense)
            assert_alike(
                array.sum(axis=axis, dtype=dtype), dense.sum(axis=axis, dtype=dtype), dense
            )
    ours = DiffFrameArray((3, 5, 4), np.float64)
    assert np.mean(array, axis=0, out=ours) is ours
    assert_alike(ours[...], dense.mean(axis=0), dense)
    found = np.empty((3, 5, 4), np.intp)
    assert array.argmax(axis=0, out=found) is found
    assert np.array_equal(found, dense.argmax(axis=0))
    with pytest.raises(ValueError, match=r"\(2,\)"):
        array.sum(axis=0, out=np.empty(2, np.int64))


@pytest.mark.parametrize("axis", [4, -5, (0, 0), (0, 9), "x", 1.5])
@pytest.mark.parametrize("name", NAMES)
def test_axes_that_numpy_refuses(name: str, axis: Any) -> None:
    array, dense = pair("u1")
    _, refused = outcome(lambda: getattr(dense, name)(axis=axis))
    _, error = outcome(lambda: getattr(array, name)(axis=axis))
    assert refused is not None
    assert isinstance(error, (ValueError, TypeError))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_reduce(name: str, shape: tuple[int, ...]) -> None:
    array, dense = DiffFrameArray(shape, np.float64), np.zeros(shape)
    for axis in (None, 0, 1, 2):
        expected, refused = outcome(lambda: getattr(dense, name)(axis=axis))  # noqa: B023
        actual, error = outcome(lambda: getattr(array, name)(axis=axis))  # noqa: B023
        assert type(error) is type(refused)
        if refused is None:
            assert_alike(actual, expected, dense)


def test_other_functions_of_parts() -> None:
    array, dense = pair("i4")
    for axis in (None, 0, 1, -1, (0, 2)):
        assert_alike(np.asarray(np.ptp(array, axis)), np.asarray(np.ptp(dense, axis)), dense)
        counted = np.count_nonzero(array, axis=axis)
        assert np.array_equal(counted, np.count_nonzero(dense, axis=axis))
    for ours, plain in zip(array.nonzero(), dense.nonzero(), strict=True):
        assert np.array_equal(ours, plain)
    assert np.array_equal(np.where(array)[2], np.where(dense)[2])
    assert array.tobytes() == bytes(array) == dense.tobytes()
    for ufunc in (np.maximum, np.bitwise_or, np.logical_xor, np.subtract):
        assert ufunc.reduce(array).tobytes() == ufunc.reduce(dense).tobytes()


def test_equal_arrays_and_others() -> None:
    array, dense = pair("f4", seed=1)
    other = array.copy()
    assert not np.array_equal(array, other)  # NaN equals nothing
    assert np.array_equal(array, other, equal_nan=True)
    assert np.array_equal(dense, other, equal_nan=True)
    assert np.allclose(array, dense, equal_nan=True)
    assert not np.allclose(array, 1.0)
    other[37, 2, 4, 3] = 77
    assert not np.array_equal(array, other, equal_nan=True)
    assert not np.array_equal(array, dense[:-1])
    assert not np.array_equal(array, "x")
    assert np.array_equal(array == other, dense == np.asarray(other))


def test_the_first_difference_ends_a_comparison() -> None:
    array, other = DiffFrameArray((500, 84, 84)), DiffFrameArray((500, 84, 84))
    other[3, 0, 0] = 1
    decoded = array.stats()["frames_decoded"]
    assert not np.array_equal(array, other)
    assert other.any()
    assert 1 in other
    assert array.stats()["frames_decoded"] - decoded < 60


# ---------------------------------------------------------------------------- memory

ROWS = 20_000
LIMIT = ROWS * 84 * 84 // 100

LARGE: dict[str, Callable[[Any], Any]] = {
    **{name: lambda a, name=name: getattr(a, name)() for name in NAMES if name != "std"},
    "mean of time": lambda a: a.mean(axis=0),
    "max of time": lambda a: np.max(a, axis=0),
    "min, turned": lambda a: a.reshape(100, -1, 84, 84).swapaxes(0, 1).min(axis=(0, 1)),
    "argmax of time": lambda a: np.argmax(a, axis=0),
    "mean of frames": lambda a: np.mean(a, axis=(1, 2)),
    "ptp": np.ptp,
    "count_nonzero": np.count_nonzero,
    "array_equal": lambda a: np.array_equal(a, a.reshape(a.shape)),
    "allclose": lambda a: np.allclose(a, 0, atol=255),
    "any, where": lambda a: np.any(a, where=np.ones(84, bool)),
    "in": lambda a: 99 in a,
    "copyto": lambda a: np.copyto(a, 3, where=np.ones((84, 1), bool)),
    "fill": lambda a: a.fill(1),
    "result_type": lambda a: np.result_type(a, np.float32),
    "repr": repr,
}


@pytest.fixture(scope="module")
def large() -> DiffFrameArray:
    array = DiffFrameArray((ROWS, 84, 84))
    array[ROWS // 2] = np.random.default_rng(0).integers(0, 90, (84, 84))
    return array


@pytest.mark.parametrize("name", LARGE)
def test_no_dense_copy_is_held(large: DiffFrameArray, name: str) -> None:
    """What Python and numpy allocate stays under a hundredth of the dense array."""
    array = large.copy() if name in ("fill", "copyto") else large
    LARGE[name](DiffFrameArray((100, 84, 84)))  # compiles what it needs
    tracemalloc.start()
    LARGE[name](array)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < LIMIT, f"{peak:,} of {array.nbytes:,} bytes"


def test_what_the_memory_test_sees() -> None:
    """It would notice a dense copy."""
    array = DiffFrameArray((200, 84, 84))
    tracemalloc.start()
    array.sort()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak > array.nbytes


@pytest.mark.parametrize(("name", "times"), [("sum", 1), ("max", 1), ("argmax", 1), ("var", 2)])
def test_each_frame_is_decoded_once(name: str, times: int) -> None:
    array = DiffFrameArray((500, 12, 12), codec="raw")
    array[...] = np.random.default_rng(0).integers(0, 9, (500, 12, 12))
    before = array.stats()["frames_decoded"]
    getattr(array, name)(axis=0)
    assert array.stats()["frames_decoded"] - before <= 500 * times + 2
