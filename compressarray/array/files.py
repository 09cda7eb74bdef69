"""Arrays in files: what a snapshot holds beside numbers and arrays, as such."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.codecs import Codec, resolve
from compressarray.errors import CorruptFrameError
from compressarray.snapshots import Snapshot, part_of

KIND = "DiffFrameArray"


def tree_of(state: Snapshot) -> Snapshot:
    """What an array pickles, as a tree of numbers and arrays.

    Raises
    ------
    TypeError
        If the codec has no configuration.
    """
    return {
        **state,
        "dtype": np.zeros(0, state["dtype"]),
        "fill_value": np.full((), state["fill_value"], state["dtype"]),
        "codec": _codec_tree(state["codec"]),
    }


def state_from(tree: Any) -> Snapshot:
    """What `tree_of` was called with.

    Raises
    ------
    CorruptFrameError
        If it is the tree of no array.
    ValueError
        If its codec is not installed.
    """
    dtype, fill_value = part_of(tree, "dtype"), part_of(tree, "fill_value")
    if not isinstance(dtype, np.ndarray) or not isinstance(fill_value, np.ndarray):
        raise CorruptFrameError("a stored array has no dtype, or no fill value")
    return {
        **tree,
        "dtype": dtype.dtype,
        "fill_value": fill_value[()],
        "codec": _codec_from(part_of(tree, "codec")),
    }


def _codec_tree(codec: Codec) -> Snapshot:
    config = None
    if codec.foreign is not None:
        try:
            config = dict(codec.foreign.get_config())
            resolve(config, None)
        except (AttributeError, TypeError, ValueError) as error:
            raise TypeError(
                f"codec={codec.foreign!r} has no configuration that numcodecs knows ({error}), so "
                "that no file can name it: register it with numcodecs.registry.register_codec, or "
                "pickle the array"
            ) from None
    return {"name": codec.name, "gop_length": codec.gop_length, "config": config}


def _codec_from(tree: Any) -> Codec:
    config = part_of(tree, "config")
    if config is None:
        return resolve(part_of(tree, "name"), part_of(tree, "gop_length"))
    return resolve(config, None)


def is_mapped(mmap_mode: str | None) -> bool:
    """Whether a file is to be mapped; refuse what nobody offers."""
    if mmap_mode not in (None, "r"):
        raise ValueError(
            f"mmap_mode={mmap_mode!r} must be None or 'r': what is compressed cannot be written to "
            "in place"
        )
    return mmap_mode is not None
