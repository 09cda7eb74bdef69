"""numpy's public interface, function by function: as for the dense array, or a clear error.

A function, its arguments and the arrays are drawn. It is called with an ndarray and with a
compressed array in its place; results and what has become of every array must be equal. Where numpy
answers, an error must name the way out; where numpy refuses, so must we.
"""

from __future__ import annotations

import inspect
import operator
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressarray import DiffFrameArray
from tests.effort import examples
from tests.strategies import outcome

pytestmark = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.4.0",
    reason="older numpys crash with some of the arguments that are drawn here",
)

# Names of numpy that are not called, and why.
NOT_CALLED = {
    "array2string": "prints: the class has a text of its own",
    "array_repr": "prints",
    "array_str": "prints",
    "busday_count": "takes days only",
    "busday_offset": "takes days only",
    "copyto": "has cases of its own in test_numpy_writes.py",
    "datetime_as_string": "takes dates only",
    "empty_like": "what it returns is not defined",
    "is_busday": "takes days only",
    "may_share_memory": "memory is what the arrays differ in",
    "save": "writes a file",
    "savetxt": "writes a file",
    "savez": "writes a file",
    "savez_compressed": "writes a file",
    "shares_memory": "memory is what the arrays differ in",
}
METHODS_NOT_CALLED = {
    "dump": "pickles: the class has a format of its own",
    "dumps": "pickles",
    "resize": "refused; numpy's leaves memory behind the end undefined",
    "setflags": "refused",
    "tofile": "writes a file",
    "view": "refused but for its own dtype",
}
# numpy 2.4 crashes where these are given a tuple as axis.
ONE_AXIS = {"accumulate", "cumprod", "cumsum", "cumulative_prod", "cumulative_sum", "reduceat"}
# They add floats up in another order than numpy does.
SUMS = {"sum", "mean", "std", "var", "prod", "add", "multiply", "average", "ptp"}
# What a refusal must name: what cannot be done, or what can be instead.
CLEAR = re.compile(r"np\.asarray|np\.mean\(x|without a copy|cannot resize")

FUNCTIONS = sorted(
    name
    for name in np.__all__
    if (hasattr(getattr(np, name), "_implementation") or isinstance(getattr(np, name), np.ufunc))
    and name not in NOT_CALLED
)
METHODS = sorted(
    name
    for name in dir(np.ndarray)
    if not name.startswith("_")
    and callable(getattr(np.ndarray, name))
    and name not in METHODS_NOT_CALLED
)
_IN_PYTHON = {name.rstrip("_") for name in operator.__all__} - {"index", "setitem", "delitem"}
_IN_PYTHON |= {"divmod", "iter", "len", "bool", "int", "float", "complex"}
OPERATORS = sorted(
    name
    for name in dir(np.ndarray)
    if name.startswith("__") and {name.strip("_"), name.strip("_").removeprefix("r")} & _IN_PYTHON
)

SHAPES = [(5, 3, 2), (4, 4, 4), (1, 1, 1), (7, 2), (6,), (0, 3), (3, 1, 2, 2), (40, 3, 3)]
DTYPES = ["u1", "i4", "f8", "f4", "?", "c16", "m8[s]", "S2", "i8"]


def test_there_is_enough_to_draw_from() -> None:
    assert len(FUNCTIONS) > 250
    assert len(METHODS) > 40
    assert len(OPERATORS) > 50
    assert all(hasattr(DiffFrameArray, name) for name in [*METHODS, *OPERATORS])


class Arrays:
    """The same arrays twice: as ndarrays, and compressed where that is asked for."""

    def __init__(self, draw: st.DrawFn, function: str = "") -> None:
        self._draw = draw
        self.function = function
        self.shape = draw(st.sampled_from(SHAPES))
        self.dtype = np.dtype(draw(st.sampled_from(DTYPES)))
        self.rng = np.random.default_rng(draw(st.integers(0, 99)))
        self.made: list[tuple[np.ndarray[Any, Any], Any]] = []

    def values(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        drawn = self.rng.integers(0, 6, shape)
        if dtype.kind == "f" and self.rng.random() < 0.3:
            return np.where(drawn == 0, np.nan, drawn - 2.5).astype(dtype)
        return drawn.astype(dtype)

    def pair(
        self, shape: tuple[int, ...] | None = None, dtype: Any = None, ours: bool = True
    ) -> tuple[Any, Any]:
        shape = self.shape if shape is None else shape
        dense = self.values(shape, self.dtype if dtype is None else np.dtype(dtype))
        if not shape or not ours:
            twin = dense.copy()
        else:
            frame_ndim = self._draw(st.integers(0, len(shape) - 1))
            twin = DiffFrameArray(shape, dense.dtype, frame_ndim=frame_ndim, codec="raw")
            twin[...] = dense
        self.made.append((dense, twin))
        return dense, twin


def arguments(arrays: Arrays, name: str, draw: st.DrawFn) -> tuple[Any, Any]:
    """A value for a parameter, by its name: for numpy and for us."""
    ndim = len(arrays.shape)
    axis = st.integers(-ndim, ndim - 1)
    several = [] if arrays.function in ONE_AXIS else [st.tuples(axis, axis)]
    plain: dict[str, st.SearchStrategy[Any]] = {
        "axis": st.one_of(st.none(), axis, st.integers(-5, 5), *several),
        "axes": st.one_of(st.none(), st.permutations(range(ndim)).map(tuple)),
        "axis1": axis,
        "axis2": axis,
        "source": axis,
        "destination": axis,
        "start": axis,
        "dtype": st.sampled_from([None, np.float64, np.int64, np.uint8, bool]),
        "ddof": st.integers(0, 2),
        "decimals": st.integers(-1, 2),
        "n": st.integers(1, 2),
        "k": st.integers(-1, 2),
        "N": st.integers(1, 3),
        "offset": st.integers(-1, 1),
        "kth": st.integers(0, 1),
        "q": st.sampled_from([0.5, 50, [0.1, 0.9]]),
        "bins": st.integers(2, 5),
        "indices": st.sampled_from([0, [0, 1], [[0], [-1]], 99]),
        "ind": st.sampled_from([0, [0, 2], [-1]]),
        "obj": st.sampled_from([0, [0, 1], slice(1)]),
        "shift": st.integers(-3, 3),
        "repeats": st.integers(0, 2),
        "reps": st.integers(1, 2),
        "shape": st.sampled_from(
            [(-1,), arrays.shape, (*arrays.shape[:1], -1), (1, *arrays.shape)]
        ),
        "new_shape": st.sampled_from([(4,), (2, 3)]),
        "newshape": st.just((-1,)),
        "order": st.sampled_from(["C", "K", "A", "F"]),
        "mode": st.sampled_from(["raise", "wrap", "clip"]),
        "keepdims": st.booleans(),
        "copy": st.sampled_from([None, True, False]),
        "casting": st.sampled_from(["same_kind", "unsafe", "safe"]),
        "initial": st.integers(0, 3),
        "indices_or_sections": st.sampled_from([1, 2, [1]]),
        "kind": st.sampled_from([None, "stable"]),
        "side": st.sampled_from(["left", "right"]),
        "pad_width": st.integers(0, 2),
        "subscripts": st.just("...->..."),
        "fill_value": st.integers(0, 5),
        "num": st.integers(2, 4),
        "deg": st.integers(1, 2),
        "stop": st.integers(5, 9),
        "stable": st.none(),
        "method": st.just("linear"),
        "equal_nan": st.booleans(),
        "assume_unique": st.just(False),
        "overwrite_input": st.booleans(),
        "dimensions": st.just((9, 9)),
        "window_shape": st.just(1),
        "minlength": st.integers(0, 9),
        "func1d": st.just(np.sum),
        "func": st.just(np.add.reduce),
        "dims": st.just((999, 9)),
        "val": st.integers(0, 5),
        "to": st.just(np.float64),
        "optimize": st.just(False),
        "ord": st.none(),
        "density": st.booleans(),
        "nan": st.just(0.0),
        "posinf": st.none(),
        "neginf": st.none(),
        "tol": st.just(100),
        "unique": st.just(True),
        "sep": st.just(""),
        "inplace": st.booleans(),
        "device": st.just("cpu"),
        "stream": st.none(),
        "max_version": st.none(),
        "correction": st.integers(0, 1),
        "rowvar": st.booleans(),
        "weights": st.none(),
        "increasing": st.booleans(),
        "decreasing": st.just(True),
        "trim": st.just("fb"),
        "bitorder": st.just("little"),
        "count": st.none(),
        "numpy": st.none(),
        "discont": st.none(),
        "period": st.just(6.0),
        "edge_order": st.just(1),
        "return_index": st.booleans(),
        "return_inverse": st.booleans(),
        "return_counts": st.booleans(),
        "format": st.just("%s"),
        "rtol": st.just(1e-5),
        "atol": st.just(1e-8),
        "left": st.none(),
        "right": st.none(),
        "bias": st.just(False),
        "lbl": st.none(),
        "subok": st.just(True),
        "wrap": st.booleans(),
    }
    if name in plain:
        value = draw(plain[name])
        return value, value
    ours = draw(st.booleans())
    if name == "out":
        shapes = [arrays.shape, arrays.shape[1:], arrays.shape[:-1]]
        dtypes = [None, np.float64, np.int64, bool]
        return arrays.pair(draw(st.sampled_from(shapes)), draw(st.sampled_from(dtypes)), ours)
    if name in ("where", "condition", "mask"):
        return arrays.pair(dtype=bool, ours=ours)
    if name in ("arrays", "tup", "xi", "choices", "seq", "arys", "operands", "args"):
        pairs = [arrays.pair(ours=bool(i) or ours) for i in range(2)]
        return [dense for dense, _ in pairs], [twin for _, twin in pairs]
    if name in ("min", "max", "a_min", "a_max"):
        value = draw(st.one_of(st.none(), st.integers(0, 5)))
        return value, value
    if draw(st.integers(0, 2)):
        return arrays.pair(ours=ours)
    scalar = draw(st.sampled_from([2, 0, 1.5, -1, [1, 2], "x", True, np.uint8(3)]))
    return scalar, scalar


_NO_ARRAYS = {"arrays", "tup", "arys", "seq", "choices", "operands", "subscripts", "shape"}


def call_of(arrays: Arrays, signature: inspect.Signature | None, draw: st.DrawFn) -> list[Any]:
    """Positional and keyword arguments, twice, for what a signature names."""
    args: tuple[list[Any], list[Any]] = ([], [])
    kwargs: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for parameter in signature.parameters.values() if signature else ():
        if parameter.kind is parameter.VAR_KEYWORD or parameter.name == "self":
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            for _ in range(draw(st.integers(0, 2))):
                dense, twin = arguments(arrays, "axis1", draw)
                args[0].append(dense), args[1].append(twin)
        elif parameter.default is parameter.empty:
            is_first = not args[0] and not arrays.made and parameter.name not in _NO_ARRAYS
            dense, twin = arrays.pair() if is_first else arguments(arrays, parameter.name, draw)
            args[0].append(dense), args[1].append(twin)
        elif draw(st.integers(0, 3)) == 0:
            if parameter.kind is parameter.POSITIONAL_ONLY:  # all of them, or none
                for one, other in (arguments(arrays, "x", draw) for _ in range(2)):
                    args[0].append(one), args[1].append(other)
                return [(args[0], kwargs[0]), (args[1], kwargs[1])]
            kwargs[0][parameter.name], kwargs[1][parameter.name] = arguments(
                arrays, parameter.name, draw
            )
    return [(args[0], kwargs[0]), (args[1], kwargs[1])]


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    for each in (getattr(function, "_implementation", function), function):
        try:
            return inspect.signature(each)
        except ValueError:  # some that are written in C have none
            continue
    return None


def assert_alike(actual: Any, expected: Any, eps: float) -> None:
    """Equal values, dtypes, shapes and types; an array of ours counts as an ndarray."""
    if isinstance(actual, DiffFrameArray):
        actual = actual[...]
    if isinstance(expected, (tuple, list)):
        assert type(actual) is type(expected)
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_alike(one, other, eps)
        return
    if not isinstance(expected, (np.ndarray, np.generic)):
        if hasattr(expected, "__next__"):
            assert_alike(list(actual), list(expected), eps)
        else:
            assert type(actual) is type(expected), (actual, expected)
            assert actual == expected or (actual != actual and expected != expected)
        return
    assert type(actual) is type(expected), (type(actual), type(expected))
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if eps and expected.dtype.kind in "fc":
        np.testing.assert_allclose(actual, expected, rtol=eps, atol=eps)
    elif expected.dtype.kind in "fc":
        np.testing.assert_array_equal(actual, expected)  # any NaN equals any other
    else:
        assert actual.tobytes() == expected.tobytes()


def check(name: str, function: Any, calls: list[Any], arrays: Arrays) -> None:
    """Call a function twice, and compare what it returns and what has become of the arrays."""
    before = [dense.copy() for dense, _ in arrays.made]
    (dense_args, dense_kwargs), (args, kwargs) = calls
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        expected, expected_error = outcome(lambda: function(*dense_args, **dense_kwargs))
        actual, error = outcome(lambda: function(*args, **kwargs))
    size = max((dense.size for dense, _ in arrays.made), default=1)
    eps = 4 * size * float(np.finfo("f4").eps) if name in SUMS else 0.0
    if expected_error is not None:
        assert error is not None, f"numpy refuses this with {expected_error!r}"
    elif error is not None:
        assert CLEAR.search(str(error)), f"{error!r} where numpy gives {expected!r}"
    else:
        assert_alike(actual, expected, eps)
    for (dense, twin), old in zip(arrays.made, before, strict=True):
        if error is None:
            assert_alike(twin, dense, eps)
        elif isinstance(twin, DiffFrameArray):
            assert_alike(twin, old, 0.0)  # a failed call leaves the array as it was


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=examples(10))
@given(data=st.data())
def test_functions(name: str, data: st.DataObject) -> None:
    arrays = Arrays(data.draw, name)
    function = getattr(np, name)
    if isinstance(function, np.ufunc):
        pairs = [arguments(arrays, "x", data.draw) for _ in range(function.nin)]
        pairs[0] = arrays.pair()
        allowed = [
            [],
            ["out"],
            ["out", "where"],
            ["dtype", "casting"],
        ]  # without out, the rest is undefined
        names = data.draw(st.sampled_from(allowed))
        given_ = {key: arguments(arrays, key, data.draw) for key in names}
        calls = [
            ([pair[i] for pair in pairs], {k: v[i] for k, v in given_.items()}) for i in (0, 1)
        ]
    else:
        calls = call_of(arrays, signature_of(function), data.draw)
    check(name, function, calls, arrays)


@settings(max_examples=examples(300))
@given(data=st.data())
def test_methods_of_ufuncs(data: st.DataObject) -> None:
    arrays = Arrays(data.draw)
    binary = [n for n in FUNCTIONS if getattr(getattr(np, n), "nin", 0) == 2]
    name = data.draw(st.sampled_from(binary))
    method = data.draw(st.sampled_from(["reduce", "accumulate", "outer", "at", "reduceat"]))
    arrays.function = method
    pairs = [arrays.pair()]
    allowed: list[str] = []
    if method in ("reduce", "accumulate", "reduceat"):
        allowed = ["axis", "dtype", "out"]
    if method == "reduce":
        allowed += ["keepdims", "initial", "where"]
    if method == "outer":
        pairs.append(arrays.pair((2,)))
    elif method in ("at", "reduceat"):
        pairs.append(([0, 0], [0, 0]))
    if method == "at":
        pairs.append(arguments(arrays, "x", data.draw))
    names = (
        data.draw(st.lists(st.sampled_from(allowed), max_size=3, unique=True)) if allowed else []
    )
    given_ = {key: arguments(arrays, key, data.draw) for key in names}
    calls = [([pair[i] for pair in pairs], {k: v[i] for k, v in given_.items()}) for i in (0, 1)]
    check(name, getattr(getattr(np, name), method), calls, arrays)


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=examples(15))
@given(data=st.data())
def test_methods(name: str, data: st.DataObject) -> None:
    arrays = Arrays(data.draw, name)
    dense, twin = arrays.pair()
    function = getattr(np, name, None)
    signature = signature_of(getattr(np.ndarray, name)) or (
        signature_of(function) if function else None
    )
    calls = call_of(arrays, signature, data.draw)
    for (args, _), self in zip(calls, (dense, twin), strict=True):
        args.insert(0, self)
    check(name, lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs), calls, arrays)


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=examples(6))
@given(data=st.data())
def test_operators(name: str, data: st.DataObject) -> None:
    arrays = Arrays(data.draw)
    pairs = [arrays.pair()]
    if len(inspect.signature(getattr(np.ndarray, name)).parameters) > 1:
        pairs.append(arguments(arrays, "x", data.draw))
    calls = [([pair[i] for pair in pairs], {}) for i in (0, 1)]
    check(name, lambda self, *args: getattr(self, name)(*args), calls, arrays)


@pytest.mark.parametrize("name", NOT_CALLED)
def test_what_is_not_called_is_numpys(name: str) -> None:
    assert hasattr(np, name)
