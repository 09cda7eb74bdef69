"""What stands where Stable-Baselines3 has an ndarray of images."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from compressarray.array import DiffFrameArray
from compressarray.planes import Planes
from compressarray.sb3.rows import FrameRows

AnyArray = npt.NDArray[Any]


class _Column:
    """Shape, dtype, length and conversion of an array of observations."""

    planes: Planes
    dtype: np.dtype[Any]
    lead: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """As the dense array's."""
        return (*self.lead, *self.planes.shape)

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements there are."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense equivalent."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.lead[0]

    def __iter__(self) -> Iterator[AnyArray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> AnyArray:
        lead, rest = _split_key(key, len(self.lead), self.ndim)
        observations = self.planes.join(self._read(lead))
        if _is_whole(rest):
            return observations
        n_lead = observations.ndim - len(self.planes.shape)
        chosen: AnyArray = observations[(slice(None),) * n_lead + rest]
        return chosen

    def _read(self, key: Any) -> AnyArray:
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> AnyArray:
        if copy is False:
            raise ValueError("copy=False cannot be had: decoding always copies. Leave copy out")
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)


class StoredObservations(_Column):
    """One half of `FrameRows`: ``buffer.observations`` or ``buffer.next_observations``.

    Reads like the ndarray of shape ``(rows, n_envs, *obs_shape)``, always into fresh memory.
    Writes go through the buffer's ``add``, which alone knows which frames there are already.
    """

    def __init__(self, rows: FrameRows, number: int) -> None:
        self.rows, self.number = rows, number
        self.planes, self.dtype = rows.planes, rows.dtype
        self.lead = (rows.n_rows, rows.n_envs)

    def _read(self, key: Any) -> AnyArray:
        return self.rows.read(self.rows.half(self.number), key)

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError(
            "the observations of a compressed replay buffer are written by its add() alone, since "
            "frames are shared between them; for other writes use a DiffFrameArray"
        )


class RolloutObservations(_Column):
    """A rollout's observations, in a `DiffFrameArray` or a view of one.

    Parameters
    ----------
    array : DiffFrameArray, (..., count, height, width)
    planes : Planes
    is_fresh : bool, default True
        Whether the rows hold what they are to hold. Else every row reads as zeros until it is
        written: what the array still has is the rollout before, over which this one is written.
        That takes a third of the time that beginning anew would take, for what was learnt of the
        frames stays.

    Attributes
    ----------
    blank : ndarray of bool, (rows,)
        Which rows are zeros, whatever the array has there.
    """

    def __init__(self, array: DiffFrameArray, planes: Planes, is_fresh: bool = True) -> None:
        self.array, self.planes = array, planes
        self.dtype = array.dtype
        self.lead = array.shape[:-3]
        self.blank = np.full(self.lead[0], not is_fresh)

    def _fill_blank(self) -> None:
        """Write zeros where there are to be zeros."""
        if self.blank.any():
            self.array[self.blank] = 0
            self.blank[:] = False

    def _read(self, key: Any) -> AnyArray:
        self.array._frames.writer.settle()
        self._fill_blank()
        read: AnyArray = self.array[key]
        return read

    def __setitem__(self, key: Any, value: Any) -> None:
        lead, rest = _split_key(key, len(self.lead), self.ndim)
        if not _is_whole(rest):
            raise IndexError(f"key {key!r} reaches into observations; assign whole ones")
        is_row = len(lead) == 1 and isinstance(lead[0], (int, np.integer))
        if is_row:
            shape = self.lead[1:] + self.planes.shape
        else:
            self._fill_blank()
            shape = np.empty(self.lead, np.bool_)[lead].shape + self.planes.shape
        values = np.asarray(value).astype(self.dtype, copy=False)
        if values.shape != shape:
            values = np.broadcast_to(values, shape)
        self.array[lead] = self.planes.split(values)
        if is_row:
            self.blank[lead[0]] = False

    def swapaxes(self, axis1: SupportsIndex, axis2: SupportsIndex) -> RolloutObservations:
        """Swap two leading axes; a view."""
        self._fill_blank()
        return RolloutObservations(self.array.swapaxes(axis1, axis2), self.planes)

    def reshape(self, *shape: int) -> RolloutObservations:
        """Reshape the leading axes; a view. The last ones must stay an observation's."""
        n_lead = len(shape) - len(self.planes.shape)
        if shape[n_lead:] != self.planes.shape:
            raise ValueError(
                f"shape {shape} does not end with an observation's, {self.planes.shape}, "
                "whose axes cannot be moved"
            )
        self._fill_blank()
        view = self.array.reshape(*shape[:n_lead], *self.planes.entry_shape)
        return RolloutObservations(view, self.planes)


def _is_whole(rest: tuple[Any, ...]) -> bool:
    """Whether the part of a key that goes into observations leaves them whole."""
    return all(isinstance(each, slice) and each == slice(None) for each in rest)


def _split_key(key: Any, n_lead: int, ndim: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Split a key into that of the leading axes and that of an observation's own."""
    parts = key if isinstance(key, tuple) else (key,)
    if any(each is None for each in parts):
        raise IndexError(
            "np.newaxis is not taken here; index first, and add the axis to the result"
        )
    if sum(each is Ellipsis for each in parts):
        at = next(i for i, each in enumerate(parts) if each is Ellipsis)
        missing = ndim - len(parts) + 1
        parts = parts[:at] + (slice(None),) * missing + parts[at + 1 :]
    if len(parts) > ndim:
        raise IndexError(f"too many indices: {len(parts)} for {ndim} axes")
    lead, taken = [], 0
    for each in parts:
        if taken >= n_lead:
            break
        is_mask = isinstance(each, np.ndarray) and each.dtype == np.bool_
        lead.append(each)
        taken += each.ndim if is_mask else 1
    rest = parts[len(lead) :]
    if not all(isinstance(each, (slice, int, np.integer)) for each in rest):
        raise IndexError(
            "arrays index rows and environments only; index the result for an observation's axes"
        )
    return tuple(lead), rest
