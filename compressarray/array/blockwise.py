"""Computing with an array of frames a block at a time.

A block is a product of slices of the leading axes, together a few frames. What is computed from
blocks holds one of them beside its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.indexing import Block

__all__ = [
    "Blocked",
    "any_block",
    "as_operand",
    "change",
    "check_broadcast",
    "compute",
    "dense",
    "fill",
    "is_plain",
    "part_of",
    "shape_of",
    "store_changes",
]

AnyArray = npt.NDArray[Any]


class Blocked:
    """What is needed of an array to compute with it a block at a time.

    It is read by ``a[key]`` and written by ``a[key] = value`` alone.
    """

    __slots__ = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of all axes."""
        raise NotImplementedError

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the elements."""
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, key: Any) -> Any:
        raise NotImplementedError

    def __setitem__(self, key: Any, value: Any) -> None:
        raise NotImplementedError

    def _blocks(self) -> Iterator[tuple[int, Block]]:
        """Cover the array in C order: the first element of each block, and its slices."""
        raise NotImplementedError

    def _write_whole(self, write: Callable[..., None], *args: Any) -> None:
        """Call what writes several times: all of it is stored, or nothing."""
        raise NotImplementedError

    def _seen(self, view: Callable[[AnyArray], AnyArray]) -> Any:
        """View the array as a function of ndarrays does that only moves axes."""
        raise NotImplementedError

    def _shares_frames(self, other: Blocked) -> bool:
        """Whether two arrays are views of the same frames."""
        raise NotImplementedError

    def _meets_only_itself(self, other: Blocked) -> bool:
        """Whether a block of one array can be written without touching others of the other one."""
        raise NotImplementedError


_PLAIN = (Blocked, np.generic, bool, int, float, complex, str, bytes)


def dense(value: Any) -> Any:
    """Decode an array of ours; leave anything else as it is."""
    return value[...] if isinstance(value, Blocked) else value


def is_plain(value: Any) -> bool:
    """Whether an operand is numpy's, Python's or ours, so that nobody else has a say in it."""
    return type(value) is np.ndarray or isinstance(value, _PLAIN)


def as_operand(value: Any) -> Any:
    """Make an array of lists and tuples; leave alone what `is_plain` is asked about."""
    return np.asarray(value) if isinstance(value, (list, tuple)) else value


def part_of(operand: Any, block: Block, ndim: int) -> Any:
    """Return what of an operand meets a block of an array of `ndim` axes that it broadcasts to."""
    own = getattr(operand, "ndim", 0)
    if not own:
        return operand
    # axes count from the last one
    mine = zip(block[ndim - own :], operand.shape, strict=False)
    key = tuple(axis if length != 1 else slice(None) for axis, length in mine)
    where: Any = (*key, ...)
    return operand[where]


def compute(op: Callable[..., Any], operands: Sequence[Any]) -> Any:
    """Compute what holds for each element by itself.

    Parameters
    ----------
    op : callable
        Takes ndarrays and scalars; returns an array of their broadcast shape, or a tuple of such.
    operands : sequence
        Arrays, ours among them, and scalars.

    Returns
    -------
    ndarray or tuple of ndarray
        As ``op(*map(dense, operands))``, which holds all operands at once.
    """
    op(*map(_of_no_elements, operands))  # types first, as numpy checks them
    shape = np.broadcast_shapes(*map(shape_of, operands))
    lead = next((x for x in operands if isinstance(x, Blocked) and x.shape == shape), None)
    if lead is None:
        return op(*map(dense, operands))
    parts = [x if not isinstance(x, Blocked) or x.shape == shape else dense(x) for x in operands]
    results: list[AnyArray] = []
    for _, block in lead._blocks():
        found = op(*(part_of(x, block, lead.ndim) for x in parts))
        each = found if isinstance(found, tuple) else (found,)
        if not results:
            expected = tuple(axis.stop - axis.start for axis in block)
            if not all(isinstance(x, np.ndarray) and x.ndim == lead.ndim for x in each) or any(
                x.shape[: len(block)] != expected for x in each
            ):
                break  # no function of single elements after all
            results = [np.empty(shape, x.dtype) for x in each]
            is_tuple = isinstance(found, tuple)
        for result, part in zip(results, each, strict=True):
            result[block] = part
    if not results:
        return op(*map(dense, operands))
    return tuple(results) if is_tuple else results[0]


def change(op: Callable[..., Any], target: Blocked, operands: Sequence[Any]) -> None:
    """Change each element by itself, in place.

    Parameters
    ----------
    op : callable
        ``op(block, *parts)`` changes a dense block of the target.
    target : Blocked
        The array that is changed.
    operands : sequence
        Arrays, ours among them, and scalars, that broadcast to its shape.

    Raises
    ------
    ValueError
        If the operands broadcast to another shape.
    """
    op(*map(_of_no_elements, (target, *operands)))  # types first, as numpy checks them
    check_broadcast(target.shape, operands)
    parts = [
        x
        if not isinstance(x, Blocked) or (x.shape == target.shape and target._meets_only_itself(x))
        else dense(x)
        for x in operands
    ]

    def write() -> None:
        for _, block in target._blocks():
            values = target[block]
            op(values, *(part_of(x, block, target.ndim) for x in parts))
            target[block] = values

    target._write_whole(write)


def fill(op: Callable[..., Any], target: AnyArray, operands: Sequence[Any]) -> bool:
    """Do as `change`, to a dense array; return whether it could be done by blocks.

    That is where an operand is an array of ours of the target's shape, and no other one may share
    memory with the target, since a block that is written could be read later.
    """
    op(*map(_of_no_elements, (target, *operands)))
    check_broadcast(target.shape, operands)
    lead = next((x for x in operands if isinstance(x, Blocked) and x.shape == target.shape), None)
    if lead is None or any(
        isinstance(x, np.ndarray) and np.may_share_memory(x, target) for x in operands
    ):
        return False
    parts = [
        x if not isinstance(x, Blocked) or x.shape == lead.shape else dense(x) for x in operands
    ]
    for _, block in lead._blocks():
        op(target[block], *(part_of(x, block, lead.ndim) for x in parts))
    return True


def check_broadcast(shape: tuple[int, ...], operands: Sequence[Any]) -> None:
    """Raise ValueError unless operands broadcast to a shape, and not beyond it."""
    found = np.broadcast_shapes(shape, *map(shape_of, operands))
    if found != shape:
        raise ValueError(
            f"non-broadcastable output operand with shape {shape} doesn't match the broadcast "
            f"shape {found}"
        )


def any_block(op: Callable[..., Any], lead: Blocked, operands: Sequence[Any]) -> bool:
    """Whether ``op(*parts)`` holds for the parts of any block; the first such one ends it.

    The operands broadcast to the shape of `lead`, whose blocks they are cut into.
    """
    if 0 in lead.shape:
        return bool(op(*map(dense, operands)))
    parts = [
        x if not isinstance(x, Blocked) or x.shape == lead.shape else dense(x) for x in operands
    ]
    return any(op(*(part_of(x, block, lead.ndim) for x in parts)) for _, block in lead._blocks())


def store_changes(target: Blocked, values: AnyArray) -> None:
    """Write the frames in which dense values differ from the array that they were read from."""
    if not values.nbytes:
        return

    def write() -> None:
        for _, block in target._blocks():
            part = values[block]
            lead = part.shape[: len(block)]
            differ = _frames_as_bytes(part, lead) != _frames_as_bytes(target[block], lead)
            changed = np.nonzero(differ.any(axis=1).reshape(lead))
            if len(changed[0]):
                target[tuple(axis.start + i for axis, i in zip(block, changed, strict=True))] = (
                    part[changed]
                )

    target._write_whole(write)


def _frames_as_bytes(part: AnyArray, lead: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    flat: npt.NDArray[np.uint8] = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
    return flat.reshape(prod(lead), -1)


def _of_no_elements(operand: Any) -> Any:
    if not shape_of(operand):
        return operand
    return np.empty((0,) * len(operand.shape), operand.dtype)


def shape_of(operand: Any) -> tuple[int, ...]:
    """Return the shape of an array or a scalar."""
    shape: tuple[int, ...] = getattr(operand, "shape", ())
    return shape
