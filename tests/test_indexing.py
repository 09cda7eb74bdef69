"""Keys and values, one by one and drawn: what numpy makes of them on a dense array."""

from __future__ import annotations

import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from compressarray.indexing import NO_VALUE, Selection, select
from tests.effort import examples
from tests.keys import BAD, GOOD, KEYS, SHAPES, key_of
from tests.naive import assert_same

DTYPES = [
    np.dtype(dtype)
    for dtype in ("u1", "?", "i8", ">i2", "f4", ">c16", "S5", "U3", "M8[D]", "m8[ms]", "V7")
] + [
    np.dtype([("x", "u1"), ("y", ">f4")]),
    np.dtype([("at", "i2", (2,)), ("name", "S3"), ("in", [("a", "u1"), ("b", "f8")])]),
]


class Tagged(np.ndarray):
    """An array by inheritance."""


class FrameList:
    """Frames in a row, indexed through selections, which are held to what they promise.

    Parameters
    ----------
    dense : ndarray
        What it holds.
    frame_ndim : int
        How many of the last axes are a frame.
    max_frames : int
        How many frames a selection may hold at a time.
    """

    def __init__(self, dense: np.ndarray, frame_ndim: int, max_frames: int = 3) -> None:
        n_lead = dense.ndim - frame_ndim
        self.lead_shape, self.frame_shape = dense.shape[:n_lead], dense.shape[n_lead:]
        self.dtype = dense.dtype
        n_frames = int(np.prod(self.lead_shape))
        self.frames = dense.reshape(n_frames, *self.frame_shape).copy()
        self.max_frames = max_frames
        self.n_read: Counter[int] = Counter()
        self.n_written: Counter[int] = Counter()

    def select(self, key: Any, value: Any = NO_VALUE) -> Selection:
        return select(key, self.lead_shape, self.frame_shape, self.dtype, value)

    def __getitem__(self, key: Any) -> Any:
        selection = self.select(key)
        result = selection.read(self._reader(selection), self.max_frames)
        assert selection.is_scalar == (not isinstance(result, np.ndarray))
        assert selection.shape == result.shape
        assert selection.is_scalar or selection.dtype == result.dtype
        return result

    def __setitem__(self, key: Any, value: Any) -> None:
        selection = self.select(key, value)
        n_read = self.n_read.total()
        selection.write(value, self._reader(selection), self._write, self.max_frames)
        assert not selection.whole_frames or self.n_read.total() == n_read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.frames.reshape(self.lead_shape + self.frame_shape).astype(dtype or self.dtype)

    def _reader(self, selection: Selection) -> Callable[[np.ndarray, np.ndarray], None]:
        def read(cells: np.ndarray, out: np.ndarray) -> None:
            self._check(cells, out)
            assert selection.whole_frames or len(cells) <= self.max_frames
            self.n_read.update(cells.tolist())
            # Byte by byte: assigning structured elements leaves the gaps between fields alone.
            frames = np.ascontiguousarray(self.frames[cells])
            out.reshape(-1).view(np.uint8)[:] = frames.reshape(-1).view(np.uint8)

        return read

    def _write(self, cells: np.ndarray, frames: np.ndarray) -> None:
        self._check(cells, frames)
        self.n_written.update(cells.tolist())
        for cell, frame in zip(cells, frames, strict=True):
            self.frames[cell] = frame

    def _check(self, cells: np.ndarray, frames: np.ndarray) -> None:
        assert cells.dtype == np.int64
        assert cells.ndim == 1
        assert len(cells) > 0
        assert cells.flags.c_contiguous
        assert cells.min() >= 0
        assert cells.max() < len(self.frames)
        assert frames.dtype == self.dtype
        assert frames.shape == (len(cells), *self.frame_shape)
        assert frames.flags.c_contiguous


def pixels(shape: tuple[int, ...], dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    """Return elements of any dtype that are likely to differ."""
    dtype = np.dtype(dtype)
    numbers = np.asarray(np.random.default_rng(seed).integers(0, 120, shape))
    if dtype.names is not None:
        out = np.zeros(shape, dtype)
        for i, name in enumerate(dtype.names):
            out[name] = pixels(out[name].shape, dtype[name].base, seed + i)
        return out
    if dtype.kind == "V":
        raw = np.full((*shape, dtype.itemsize), 33, np.uint8)
        raw[..., -1] = numbers
        return raw.view(dtype).reshape(shape)
    if dtype.kind in "M":
        return numbers.astype("i8").astype(dtype)
    return numbers.astype(dtype)


def outcome(action: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return action(), None
    except Exception as error:
        return None, error


def assert_same_error(actual: Exception | None, expected: Exception | None) -> None:
    """Assert that both are None, or errors of one type and one text."""
    if actual is not None and expected is None:
        raise AssertionError("numpy does not refuse this") from actual
    assert type(actual) is type(expected), f"{actual!r}, but numpy raises {expected!r}"
    assert str(actual) == str(expected)


def check_read(container: Any, dense: np.ndarray, key: Any) -> None:
    """Read a key of a container that holds what `dense` holds."""
    expected, expected_error = outcome(lambda: dense[key])
    actual, error = outcome(lambda: container[key])
    assert_same_error(error, expected_error)
    if error is None:
        assert_same(actual, expected.copy() if isinstance(expected, np.ndarray) else expected)
        assert_same(np.asarray(container), dense)


def check_write(container: Any, dense: np.ndarray, key: Any, value: Any) -> None:
    """Assign to a key of both, which must have the same effect, or none and the same error."""
    before = dense.copy()
    _, expected_error = outcome(lambda: dense.__setitem__(key, value))
    _, error = outcome(lambda: container.__setitem__(key, value))
    assert_same_error(error, expected_error)
    assert_same(np.asarray(container), dense if error is None else before)
    dense[...] = np.asarray(container)  # numpy may have written a part before it raised


def values_for(shape: tuple[int, ...]) -> dict[str, Any]:
    """Make values to be assigned to a selection of this shape: right, to be cast, and wrong."""
    exact = pixels(shape, seed=1)
    wide = pixels((*shape, 2), seed=2)
    return {
        "exact": exact,
        "new leading axes": exact[None, None],
        "fewer axes": exact[0] if shape and shape[0] else np.uint8(3),
        "length 1": pixels(tuple(1 for _ in shape), seed=3),
        "length 1 first": pixels((1, *shape[1:]), seed=4) if shape else np.array([9], "u1"),
        "length 1 last": pixels((*shape[:-1], 1), seed=5),
        "fortran": np.asfortranarray(exact),
        "strided": wide[..., 1],
        "reversed": exact[::-1] if shape else exact,
        "read-only": np.broadcast_to(exact, shape),
        "wider": exact.astype(np.int64) + 256,
        "float": exact + 0.75,
        "swapped": exact.astype(">i4"),
        "bool": exact > 60,
        "text": exact.astype("U3"),
        "objects": exact.astype(object),
        "list": exact.tolist(),
        "list in a list": [exact.tolist()],
        "of a subclass": exact.view(Tagged),
        "masked": np.ma.masked_array(exact, exact > 60),
        "zero axes": np.array(8),
        "python int": 250,
        "python float": 7.9,
        "python bool": True,
        "numpy scalar": np.float32(9.5),
        "digits": "17",
        "memory": memoryview(exact) if exact.size else memoryview(b""),
        "too large": 256,
        "negative": -1,
        "too large in a list": [256],
        "nan": float("nan"),
        "nan in an array": np.full(shape, np.nan),
        "infinity in an array": np.full(shape, np.inf, np.float32),
        "complex": exact * 1j,
        "python complex": 1j,
        "word": "frame",
        "words": np.full(shape, "frame"),
        "bad objects": np.full(shape, "frame", object),
        "nothing": None,
        "object": object(),
        "ragged": [[1, 2], [3]],
        "one too many": pixels((*shape[:-1], shape[-1] + 1)) if shape else pixels((2,)),
        "one more axis": pixels((*shape, 2)),
        "two in front": pixels((2, *shape)),
        "empty": pixels((0,)),
        "empty list": [],
        "generator": (i for i in range(3)),
        "dict": {},
    }


def dense_of(name: str, dtype: Any = np.uint8) -> tuple[np.ndarray, int]:
    shape, frame_ndim = SHAPES[name]
    return pixels(shape, dtype), frame_ndim


# ------------------------------------------------------------------------ keys written by hand


def test_there_are_enough_keys():
    assert len(set(KEYS)) == len(KEYS)
    assert len(GOOD) >= 330
    assert len(BAD) >= 150


@pytest.mark.parametrize(("name", "source"), GOOD)
def test_good_keys_are_good(name, source):
    dense, _ = dense_of(name)
    dense[key_of(source)]


@pytest.mark.parametrize(("name", "source"), BAD)
def test_bad_keys_are_bad(name, source):
    dense, _ = dense_of(name)
    key = key_of(source)
    # Before 2.4, numpy only warns of some indices that come to nothing.
    errors = (IndexError, TypeError, ValueError, OverflowError, RuntimeError, DeprecationWarning)
    with pytest.raises(errors):
        dense[key]


def test_wrong_indices_are_refused_where_they_come_to_nothing():
    container = FrameList(np.zeros((7, 3, 4, 5), np.uint8), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key in ((slice(5, 2), [3]), (slice(0, 0), slice(None), [4]), ([7], slice(0, 0))):
            with pytest.raises(IndexError, match="out of bounds"):
                container[key]
            with pytest.raises(IndexError, match="out of bounds"):
                container[key] = 1


@pytest.mark.parametrize(("name", "source"), KEYS)
def test_reading(name, source):
    dense, frame_ndim = dense_of(name)
    for max_frames in (1, 3, 1000):
        check_read(FrameList(dense, frame_ndim, max_frames), dense, key_of(source))


@pytest.mark.parametrize(("name", "source"), KEYS)
def test_assigning(name, source):
    dense, frame_ndim = dense_of(name)
    found, _ = outcome(lambda: dense[key_of(source)])
    for value in values_for(np.shape(found)).values():
        for max_frames in (2, 1000):
            container = FrameList(dense, frame_ndim, max_frames)
            check_write(container, dense.copy(), key_of(source), value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype):
    for name, source in GOOD:
        if name in ("frames", "vectors", "table"):
            dense, frame_ndim = dense_of(name, dtype)
            container = FrameList(dense, frame_ndim)
            key = key_of(source)
            check_read(container, dense, key)
            value = pixels(np.shape(dense[key]), dtype, seed=1)
            for changed in (value, value[None, None], value.copy(order="F")):
                check_write(container, dense, key, changed)
    dense, _ = dense_of("numbers", dtype)
    container = FrameList(dense, 0)
    for source in ("2", "2, ...", "[2]", ":"):
        for value in (pixels((), dtype, 3), pixels((1,), dtype, 4), pixels((1, 1), dtype, 5)):
            check_write(container, dense, key_of(source), value)


# ------------------------------------------------------------------------------- drawn keys


def index_arrays(n: int, shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Draw arrays that broadcast to `shape`, some of them out of range."""
    if n == 0:
        return st.just(np.zeros((0,), int))
    own = st.sampled_from(
        [shape, shape[-1:], tuple(1 for _ in shape), tuple(1 for _ in shape[:-1]) + shape[-1:]]
    )
    low, high = st.sampled_from([(-n, n), (-n, n), (0, n), (0, n), (-n, n + 1)]), st.integers(0, 99)
    return st.builds(
        lambda shape, low, seed: np.random.default_rng(seed).integers(*low, shape), own, low, high
    )


@st.composite
def mixed_keys(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Draw keys of everything at once, with masks of any number of axes."""
    points = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
    key: list[Any] = []
    axis = 0
    has_ellipsis = False
    while axis < len(shape):
        kind = draw(st.sampled_from("iissaaamm.nb!"))
        n = shape[axis]
        if kind == "i" and n:
            key.append(draw(st.integers(-n, n - 1)))
        elif kind == "a":
            key.append(draw(index_arrays(n, points)))
        elif kind == "m":
            some = shape[axis : axis + draw(st.integers(1, len(shape) - axis))]
            seed, density = draw(st.integers(0, 99)), draw(st.sampled_from([0, 0.05, 0.3, 1]))
            key.append(np.random.default_rng(seed).random(some) < density)
            axis += len(some) - 1
        elif kind in "." and not has_ellipsis:
            has_ellipsis = True
            key.append(...)
            axis += draw(st.integers(0, len(shape) - axis)) - 1
        elif kind == "n":
            key.append(None)
            continue
        elif kind == "b":
            key.append(draw(st.booleans()))
            continue
        elif kind == "!":
            break
        else:
            key.append(draw(st.slices(n)))
        axis += 1
    return key[0] if len(key) == 1 and draw(st.booleans()) else tuple(key)


def keys(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    drawn = [
        hnp.basic_indices(shape, allow_newaxis=True),
        mixed_keys(shape),
        mixed_keys(shape),
    ]
    if all(shape):
        drawn.append(hnp.integer_array_indices(shape))
    return st.one_of(drawn)


def arrays() -> st.SearchStrategy[tuple[np.ndarray, int, int]]:
    """Draw an array, its frame_ndim, and max_frames."""
    shapes = hnp.array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=5)
    return shapes.flatmap(
        lambda shape: st.tuples(
            st.sampled_from(DTYPES).map(lambda dtype: pixels(shape, dtype)),
            st.integers(0, len(shape) - 1),
            st.sampled_from([1, 2, 5, 1000]),
        )
    )


@settings(max_examples=examples(400))
@given(st.data())
def test_reading_drawn_keys(data):
    dense, frame_ndim, max_frames = data.draw(arrays())
    key = data.draw(keys(dense.shape))
    check_read(FrameList(dense, frame_ndim, max_frames), dense, key)


@settings(max_examples=examples(400))
@given(st.data())
def test_assigning_to_drawn_keys(data):
    dense, frame_ndim, max_frames = data.draw(arrays())
    container = FrameList(dense, frame_ndim, max_frames)
    for seed in range(2):
        key = data.draw(keys(dense.shape))
        found, error = outcome(lambda key=key: dense[key])
        shape = (3,) if error is not None else found.shape
        shape = tuple(n if data.draw(st.integers(0, 4)) else 1 for n in shape)
        shape = (1,) * data.draw(st.integers(0, 1)) + shape
        shape = shape[data.draw(st.sampled_from([0, 0, 0, 1])) :]
        value = pixels(shape, dense.dtype, seed=seed + 1)
        order = data.draw(st.sampled_from("CCFR"))
        value = value[..., ::-1] if order == "R" and value.ndim else value.copy(order="F")
        check_write(container, dense, key, value)


# ------------------------------------------------------------------------------- fields


FIELDS = np.dtype([("x", "u1"), ("y", ">f4"), ("at", "i2", (2, 3)), ("in", [("a", "u1")])])


@pytest.mark.parametrize("name", ["lanes", "numbers", "no rows", "no pixels"])
@pytest.mark.parametrize("field", ["x", "y", "at", "in"])
def test_a_field(name, field):
    dense, frame_ndim = dense_of(name, FIELDS)
    container = FrameList(dense, frame_ndim)
    check_read(container, dense, field)
    exact = pixels(dense[field].shape, dense.dtype[field].base, seed=3)
    for value in (exact, exact[:1], np.asfortranarray(exact), exact[:0], exact[None, None]):
        check_write(container, dense, field, value)
    if field != "in":
        for value in (7, True, "frame", None, 300, -1, [1, 2, 3, 4, 5, 6, 7], np.ones((2, 2, 9))):
            check_write(container, dense, field, value)


@pytest.mark.parametrize("fields", [["x"], ["y", "x"], ["x", "at", "in"]], ids=str)
def test_several_fields(fields):
    dense, frame_ndim = dense_of("lanes", FIELDS)
    container = FrameList(dense, frame_ndim)
    found = container[fields]
    assert found.dtype == dense[fields].dtype
    assert found.shape == dense[fields].shape
    for field in fields:
        assert_same(found[field].copy(), dense[field].copy())
    for value in (np.zeros((), dense[fields].dtype), pixels(dense.shape, FIELDS, seed=4)[fields]):
        check_write(container, dense, fields, value)


@pytest.mark.parametrize(
    "source",
    ["'z'", "['z']", "['x', 'z']", "['x', 'x']", "'x', 0", "0, 'x'", "['x', 1]", "('x', 'y')"],
)
def test_no_such_field(source):
    dense, frame_ndim = dense_of("lanes", FIELDS)
    check_read(FrameList(dense, frame_ndim), dense, key_of(source))
    check_write(FrameList(dense, frame_ndim), dense, key_of(source), 0)
    assert outcome(lambda: dense[key_of(source)])[1] is not None


def test_what_lies_between_fields_is_not_shown():
    dtype = np.dtype({"names": ["x", "y"], "formats": ["u1", "f8"], "offsets": [1, 16]})
    container = FrameList(pixels((7, 3, 2), dtype), 1)
    for _ in range(20):
        np.full(7 * 3 * 2 * dtype.itemsize, 255, np.uint8)  # what a fresh array may be made from
        bytes_found = container[["x"]].view(np.uint8).reshape(-1, dtype.itemsize)
        assert not np.delete(bytes_found, 1, axis=1).any()


# ------------------------------------------------------------------------------- what it costs


class Endless:
    """Moves no frame, and keeps note of which ones it was to move; any length costs the same."""

    def __init__(self, lead_shape: tuple[int, ...]) -> None:
        self.array = lead_shape, (84, 84), np.dtype(np.uint8)
        self.moved: list[tuple[np.ndarray, np.ndarray]] = []

    def _move(self, cells: np.ndarray, frames: np.ndarray) -> None:
        self.moved.append((cells, frames))

    @property
    def cells(self) -> list[int]:
        return [cell for cells, _ in self.moved for cell in cells.tolist()]

    def read(self, key: Any) -> Any:
        self.moved.clear()
        return select(key, *self.array).read(self._move, 16)

    def write(self, key: Any, value: Any) -> list[int]:
        self.moved.clear()
        select(key, *self.array).write(value, self._move, self._move, 16)
        return self.cells


@pytest.mark.parametrize(
    ("key", "cells"),
    [
        (5, range(15, 18)),
        (-1, range(3 * 10**9 - 3, 3 * 10**9)),
        (slice(3, 5), range(9, 15)),
        (slice(-2, None), range(3 * 10**9 - 6, 3 * 10**9)),
        (slice(None, None, 4 * 10**8), [0, 1, 2, *range(12 * 10**8, 12 * 10**8 + 3),
                                        *range(24 * 10**8, 24 * 10**8 + 3)]),
        ((7, 1), [22]),
        ((7, slice(None, None, -1)), [23, 22, 21]),
        ((slice(7, 9), 2), [23, 26]),
        (np.array([10**9 - 1, 0]), [*range(3 * 10**9 - 3, 3 * 10**9), 0, 1, 2]),
        ([[4]], range(12, 15)),
        (([10**8, -1], [0, 2]), [3 * 10**8, 3 * 10**9 - 1]),
        ((5, 1, 2, 3), [16]),
        ((10**9 - 1, slice(None), slice(2, 4), 1), range(3 * 10**9 - 3, 3 * 10**9)),
        (([3, 4], 0, [[0, 1]], [[2], [3]]), [9, 12]),
    ],
    ids=str,
)  # fmt: skip
def test_a_key_costs_what_it_names(key, cells):
    # A thousand million rows: a byte for each of them would be seen.
    array = Endless((10**9, 3))
    tracemalloc.start()
    try:
        array.read(key)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert array.cells == list(cells)
    assert peak_bytes < 2**20


@pytest.mark.parametrize("key", [10**9, (0, 3), [10**9], (slice(None), [3]), (0, 0, 84), "x", 1.5])
def test_refusing_a_key_costs_nothing(key):
    array = Endless((10**9, 3))
    tracemalloc.start()
    try:
        with pytest.raises(IndexError):
            array.read(key)
        with pytest.raises(IndexError):
            array.write(key, 0)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_refusing_a_value_costs_nothing():
    array = Endless((10**9, 3))
    tracemalloc.start()
    try:
        for key in (5, slice(None), (slice(None), 1), (..., 3), [1, 2], ([1, 2], 0, 5)):
            for value in (np.zeros((2, 5, 7), np.uint8), "frame", 256, None):
                with pytest.raises((ValueError, OverflowError, TypeError)):
                    array.write(key, value)
                assert not array.cells
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "key", [slice(None), ..., slice(None, None, -1), np.arange(10**6) % 7], ids=type
)
def test_cells_of_tiny_frames_come_in_parts(key):
    # Eight bytes for each cell, all at once, would be eight times the result.
    n_moved = []

    def read(cells: np.ndarray, out: np.ndarray) -> None:
        n_moved.append(len(cells))
        out[...] = 0

    tracemalloc.start()
    try:
        select(key, (10**6,), (), np.dtype("u1")).read(read, 16)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(n_moved) == 10**6
    given_bytes = key.nbytes if isinstance(key, np.ndarray) else 0  # it is copied, and multiplied
    assert peak_bytes < 10**6 + 2 * given_bytes + 2 * 2**20


def test_a_mask_over_pixels_takes_no_coordinates():
    mask = np.zeros((500, 40, 50), bool)
    mask[::2] = True
    container = FrameList(pixels((500, 40, 50)), 2)
    tracemalloc.start()
    try:
        container[mask]
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sorted(container.n_read) == list(range(0, 500, 2))
    assert peak_bytes < 2 * mask.size  # mask.nonzero() alone takes twelve times its size


# ------------------------------------------------------------------------------- what it moves


def test_exact_values_are_handed_on_uncopied():
    value = pixels((4, 3, 84, 84))
    seen = []
    for key in (slice(2, 6), [9, 1, 1, 3], slice(9, 5, -1), (slice(0, 4), slice(None))):
        selection = select(key, (10, 3), (84, 84), value.dtype)
        selection.write(value, pytest.fail, lambda *moved: seen.append(moved), 2)
        ((_, frames),) = seen
        assert np.shares_memory(frames, value)
        seen.clear()


def test_broadcast_values_are_laid_out_in_parts():
    for value in (0, pixels((84, 84)), pixels((84,)), pixels((100, 1, 84, 84)), pixels((3, 1, 1))):
        array = Endless((100, 3))
        assert array.write(slice(None), value) == list(range(300))
        assert all(len(frames) <= 16 for _, frames in array.moved)


def test_nothing_is_moved_for_nothing():
    container = FrameList(pixels((7, 3, 4, 5)), 2)
    for key in ([], slice(0, 0), (slice(None), slice(None), slice(0, 0)), (..., []), False):
        assert container[key].size == 0
        container[key] = 3
    container[np.zeros((7, 3, 4, 5), bool)] = 3
    assert not container.n_read
    assert not container.n_written


@pytest.mark.parametrize(
    "source",
    [
        "3, 1, 2",
        "3, 1, 2, 2",
        "3, 1, [0, 1, 0, 3, 2, 1, 0], [0, 1, 2, 3, 4, 0, 0]",
        "3, 1, mask(4, 5)",
        "[3] * 50, [1] * 50, [0, 2] * 25",
        "[[3], [3]], 1, r(4), 1",
        "mask(7, 3, 4, every=84, start=40)",
        "mask(7, 3, 4, 5, every=420, start=200)",
        "mask(7, 3, every=21, start=10), 1",
    ],
)
def test_frames_are_decoded_once_and_no_others(source):
    dense, frame_ndim = dense_of("lanes")
    container = FrameList(dense, frame_ndim)
    check_read(container, dense, key_of(source))
    assert container.n_read == {10: 1}
    check_write(container, dense, key_of(source), 77)
    assert container.n_read == {10: 2}
    assert container.n_written == {10: 1}


def test_picks_of_many_frames_decode_each_of_them_once():
    dense = pixels((40, 5, 6))
    container = FrameList(dense, 2, max_frames=3)
    rng = np.random.default_rng(0)
    key = tuple(rng.integers(0, n, 5000) for n in dense.shape)
    check_read(container, dense, key)
    assert container.n_read == dict.fromkeys(range(40), 1)
    check_write(container, dense, key, pixels((5000,), seed=1))
    assert container.n_written == dict.fromkeys(range(40), 1)


def test_of_repeated_elements_the_last_one_stays():
    dense = pixels((4, 3, 4, 5))
    for key in (
        np.array([0, 2, 0, 0, 2]),
        np.array([[0, 2], [0, 0], [2, 2]]),
        ([0, 2, 0, 0, 2], 1),
        ([0, 2, 0, 0, 2], slice(None), slice(1, 3)),
        ([0, 2, 0, 0, 2], 0, [1, 1, 1, 0, 1], 3),
        (slice(None), [1, 1, 0], [0, 0, 0]),
        (0, 0, [3, 3, 3]),
        (np.array([[0], [0]]), 1, np.array([[2, 2, 1]]), np.array([[0], [0]])),
        (np.array([[0, 0, 1]]), 1, np.array([[2, 1], [1, 2]])[:, :1]),
    ):
        for max_frames in (1, 2, 100):
            changed = dense.copy()
            container = FrameList(changed, 2, max_frames)
            check_write(container, changed, key, pixels(dense[key].shape, seed=9))


def test_repeated_elements_go_by_c_order_whatever_the_layout():
    # numpy walks along memory here, and leaves 1 in a[0].
    index, value = np.array([[0, 1], [2, 0]]).T, np.array([[2, 3], [4, 1]], np.uint8).T
    container = FrameList(np.zeros((3, 2), np.uint8), 1)
    container[index] = value[..., None]
    assert container.frames[:, 0].tolist() == [1, 3, 4]


def test_whole_frames_are_recognised():
    whole = ["0", "2:5", "::-2, 1", "[0, 2]", "mask(7)", "mask(7, 3)", "...", "[0, 1], :, :, None"]
    whole += [":, :, 0:4, :", "2, 1, ..., 0:5", ":, [1, 0], 0:", "True", "None, 2, None"]
    parts = [":, :, 0", "..., 0", ":, :, ::-1", "2, 1, 1:", "..., [0, 1, 2, 3, 4]"]
    for source in whole + parts:
        selection = select(key_of(source), (7, 3), (4, 5), np.dtype("u1"))
        assert selection.whole_frames == (source in whole), source
    squeezed = select(key_of("2, ..., 0"), (7, 3), (4, 5, 1), np.dtype("u1"))
    assert squeezed.whole_frames


def test_index_arrays_cannot_change_after_the_check():
    dense = pixels((7, 3, 4, 5))
    container = FrameList(dense, 2, max_frames=100)
    index = np.array([1, 2])
    for key in (index, (index, 0), (index, 0, [0, 1]), (0, 0, index), (0, ..., index)):
        expected = dense[key]
        selection = container.select(key)
        index[...] = 99
        assert_same(selection.read(container._reader(selection), 100), expected)
        index[...] = 1, 2


def test_index_arrays_are_left_alone():
    container = FrameList(pixels((7, 3, 4, 5)), 2)
    index = np.array([-1, -3])
    for key in (index, (index, 0), (index, index, index, index), (0, 0, index), (..., index)):
        container[key] = container[key]
        assert index.tolist() == [-1, -3]


# ------------------------------------------------------------------------------- the array


SOME_VALUES = ("exact", "length 1 first", "fortran", "wider", "list", "python int", "too large",
               "words", "one too many")  # fmt: skip


def compressed(dense: np.ndarray, frame_ndim: int) -> Any:
    from compressarray import DiffFrameArray

    fill_value = np.zeros((), dense.dtype)[()]
    array = DiffFrameArray(dense.shape, dense.dtype, frame_ndim=frame_ndim, fill_value=fill_value)
    array[...] = dense
    return array


@pytest.mark.parametrize("name", SHAPES)
def test_the_array_reads_as_numpy_does(name):
    dense, frame_ndim = dense_of(name)
    array = compressed(dense, frame_ndim)
    for other, source in KEYS:
        if other == name:
            check_read(array, dense, key_of(source))


@pytest.mark.parametrize("name", SHAPES)
def test_the_array_takes_what_numpy_takes(name):
    dense, frame_ndim = dense_of(name)
    array = compressed(dense, frame_ndim)
    for other, source in KEYS:
        if other == name:
            found, _ = outcome(lambda source=source: dense[key_of(source)])
            values = values_for(np.shape(found))
            for kind in SOME_VALUES:
                check_write(array, dense, key_of(source), values[kind])


@pytest.mark.parametrize("dtype", [*DTYPES, FIELDS], ids=str)
def test_the_array_holds_every_dtype(dtype):
    dense, frame_ndim = dense_of("vectors", dtype)
    array = compressed(dense, frame_ndim)
    for name, source in GOOD:
        if name == "vectors":
            key = key_of(source)
            check_read(array, dense, key)
            check_write(array, dense, key, pixels(dense[key].shape, dtype, seed=1))
    for field in dtype.names or ():
        check_read(array, dense, field)
        check_write(array, dense, field, dense[field][::-1].copy())
