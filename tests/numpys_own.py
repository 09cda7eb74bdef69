"""numpy's own tests, of the installed numpy, with compressed arrays in the place of ndarrays.

A module of numpy's tests is executed once more with another ``np``: what makes arrays there makes a
`DiffFrameArray` wherever one can hold the elements. Assertions see dense copies.
"""

from __future__ import annotations

import functools
import importlib.util
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compressarray import DiffFrameArray

MAKERS = (
    "arange", "array", "asanyarray", "asarray", "empty", "eye", "full", "identity", "linspace",
    "ones", "zeros",
)  # fmt: skip


def compressed(value: Any) -> Any:
    """The same array, compressed; what no compressed array can hold, as it is."""
    if type(value) is not np.ndarray or not value.ndim or value.dtype.hasobject:
        return value
    array = DiffFrameArray(value.shape, value.dtype, frame_ndim=0, codec="raw")
    array[...] = value
    return array


def dense(value: Any) -> Any:
    """The same value with ndarrays, inside lists and tuples too."""
    if isinstance(value, DiffFrameArray):
        return value[...]
    if type(value) in (list, tuple):
        return type(value)(map(dense, value))
    return value


def _making(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def function(*args: Any, **kwargs: Any) -> Any:
        return compressed(make(*args, **kwargs))

    return function


def _seeing_dense(check: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(check)
    def function(*args: Any, **kwargs: Any) -> Any:
        return check(*map(dense, args), **kwargs)

    return function


class _Numpy(types.ModuleType):
    """numpy, but for what makes arrays."""

    def __init__(self) -> None:
        super().__init__("numpy")
        for name in MAKERS:
            setattr(self, name, _making(getattr(np, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def tests_of(name: str) -> dict[str, Any]:
    """What a module of numpy's tests defines.

    Parameters
    ----------
    name : str
        Of the module in ``numpy._core.tests``.
    """
    spec = importlib.util.find_spec(f"numpy._core.tests.{name}")
    assert spec is not None, f"this numpy comes without {name}"
    assert spec.origin is not None
    namespace: dict[str, Any] = {"__name__": f"numpys_own.{name}", "__file__": spec.origin}
    code = compile(Path(spec.origin).read_text(encoding="utf-8"), spec.origin, "exec")
    exec(code, namespace)
    for key, value in list(namespace.items()):
        if key.startswith("assert_") and getattr(value, "__module__", "").startswith("numpy"):
            namespace[key] = _seeing_dense(value)
    namespace["np"] = _Numpy()
    return namespace
