"""Where the arrays of a store of groups lie: what its kernels are called with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.kernels.compiling import inlined
from compressarray.kernels.memory import array_at
from compressarray.store.arena import ArenaState
from compressarray.store.gop_layout import GopState


def view_of(state: GopState, arena: ArenaState) -> npt.NDArray[np.int64]:
    """Say where everything lies, an array a row; true until an array of `state` is replaced.

    For a kernel unpacks each array that it is called with, 0.2 microseconds each.
    """
    arrays: list[npt.NDArray[Any]] = [*state, *arena]
    view = np.zeros((len(arrays), 4), np.int64)
    for row, array in zip(view, arrays, strict=True):
        row[0] = array.__array_interface__["data"][0]
        row[1 : 1 + array.ndim] = array.shape
    return view


@inlined
def _row_at(view: Any, i: Any, dtype: Any) -> Any:
    return array_at(view[i, 0], (view[i, 1],), dtype)


@inlined
def _table_at(view: Any, i: Any, dtype: Any) -> Any:
    return array_at(view[i, 0], (view[i, 1], view[i, 2]), dtype)


@inlined
def _block_at(view: Any, i: Any, dtype: Any) -> Any:
    return array_at(view[i, 0], (view[i, 1], view[i, 2], view[i, 3]), dtype)


@inlined
def state_at(view: Any) -> Any:
    """The arrays of a store, in kernels."""
    return GopState(
        _row_at(view, 0, np.int64),
        _row_at(view, 1, np.uint32),
        _row_at(view, 2, np.uint8),
        _row_at(view, 3, np.uint8),
        _table_at(view, 4, np.int64),
        _table_at(view, 5, np.int64),
        _table_at(view, 6, np.int64),
        _table_at(view, 7, np.int64),
        _table_at(view, 8, np.int64),
        _table_at(view, 9, np.int64),
        _block_at(view, 10, np.uint16),
        _table_at(view, 11, np.uint8),
        _block_at(view, 12, np.uint8),
        _row_at(view, 13, np.int64),
        _table_at(view, 14, np.uint8),
        _row_at(view, 15, np.int64),
        _table_at(view, 16, np.uint8),
        _table_at(view, 17, np.int64),
        _row_at(view, 18, np.uint64),
        _table_at(view, 19, np.int64),
        _table_at(view, 20, np.int64),
        _row_at(view, 21, np.int64),
    )


@inlined
def arena_at(view: Any) -> Any:
    """The arrays of its arena, in kernels."""
    return ArenaState(
        _row_at(view, 22, np.int64),
        _row_at(view, 23, np.uint8),
        _row_at(view, 24, np.uint32),
        _row_at(view, 25, np.uint8),
        _row_at(view, 26, np.uint32),
        _row_at(view, 27, np.uint32),
        _row_at(view, 28, np.uint16),
    )
