"""Gymnasium's spaces in files."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.errors import CorruptFrameError
from compressarray.snapshots import Snapshot, part_of


def tree_of(space: Any) -> Snapshot:
    """Describe a space by numbers and arrays."""
    if hasattr(space, "spaces"):
        return {"dict": [[key, tree_of(each)] for key, each in space.spaces.items()]}
    if hasattr(space, "nvec"):
        start = np.asarray(getattr(space, "start", np.zeros_like(space.nvec)))
        return {"nvec": np.asarray(space.nvec), "start": start}
    if hasattr(space, "n") and getattr(space, "shape", ()) != ():
        shape = [int(length) for length in space.shape]
        return {"binary": shape}
    if hasattr(space, "n"):
        dtype = np.zeros(0, getattr(space, "dtype", None) or np.int64)
        return {"n": int(space.n), "start": int(getattr(space, "start", 0)), "dtype": dtype}
    return {
        "low": np.asarray(space.low),
        "high": np.asarray(space.high),
        "dtype": np.zeros(0, space.dtype),
        "shape": [int(length) for length in space.shape],
    }


def space_from(tree: Any) -> Any:
    """The space that a tree was made of, one of Gymnasium's.

    Raises
    ------
    CorruptFrameError
        If it is the tree of none.
    """
    from gymnasium import spaces  # noqa: TID251 - files name spaces; who loads one has Gymnasium

    try:
        if "dict" in tree:
            # pairs, for the keys of a dict would be sorted
            return spaces.Dict([(key, space_from(each)) for key, each in tree["dict"]])
        if "nvec" in tree:
            nvec = tree["nvec"]
            return spaces.MultiDiscrete(nvec, dtype=nvec.dtype, start=tree["start"])
        if "binary" in tree:
            shape = tree["binary"]
            return spaces.MultiBinary(shape if len(shape) > 1 else shape[0])
        if "n" in tree:
            dtype = part_of(tree, "dtype").dtype
            # Gymnasium's older versions have no other one than the default
            options = {} if dtype == np.int64 else {"dtype": dtype.type}
            return spaces.Discrete(tree["n"], start=tree["start"], **options)
        return spaces.Box(
            part_of(tree, "low"),
            part_of(tree, "high"),
            tuple(part_of(tree, "shape")),
            part_of(tree, "dtype").dtype.type,
        )
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CorruptFrameError(f"a stored space is none of Gymnasium's: {error}") from None
