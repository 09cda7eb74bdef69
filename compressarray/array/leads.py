"""Where the leading axes of an array, or of a view of one, lie among its frames."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

__all__ = ["FramesMovedError", "Leads", "strided"]

AnyArray = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]
Shape = tuple[int, ...]


class FramesMovedError(ValueError, AttributeError):
    """A view would change the axes of frames.

    An AttributeError, too, so that ``hasattr(a, "T")`` has an answer.
    """


class Leads(NamedTuple):
    """Leading axes, as strides over the cells of what they are a view of.

    Attributes
    ----------
    shape : tuple of int
        Their lengths.
    strides : tuple of int
        How many cells one step along each of them goes.
    first : int
        The cell at index 0 of all of them.
    beneath : Leads, optional
        The axes whose cells those are, counted in C order; without, they are the frames' own.
    """

    shape: Shape
    strides: Shape
    first: int = 0
    beneath: Leads | None = None

    @classmethod
    def of(cls, shape: Shape, beneath: Leads | None = None) -> Leads:
        """Lay out axes in C order.

        Examples
        --------
        >>> Leads.of((5, 3)).strides
        (3, 1)
        """
        if beneath is not None and beneath.is_plain:
            beneath = beneath.beneath
        return cls(shape, _c_strides(shape), 0, beneath)

    @property
    def is_plain(self) -> bool:
        """Whether C-order cells of these axes are those of what is beneath."""
        lengths = zip(self.shape, self.strides, _c_strides(self.shape), strict=True)
        return not self.first and all(n <= 1 or own == plain for n, own, plain in lengths)

    @property
    def is_native(self) -> bool:
        """Whether C-order cells of these axes are the frames' own."""
        return self.is_plain and self.beneath is None

    def to_base(self, cells: Int64s) -> Int64s:
        """Translate C-order cells of these axes to the frames' own.

        Examples
        --------
        >>> Leads((3, 2), (1, 3)).to_base(np.arange(6)).tolist()
        [0, 3, 1, 4, 2, 5]
        """
        if not self.is_plain:
            rest = cells
            cells = np.full(len(cells), self.first, np.int64)
            for length, stride in zip(self.shape[::-1], self.strides[::-1], strict=True):
                rest, index = np.divmod(rest, length)
                cells += index * stride
        return cells if self.beneath is None else self.beneath.to_base(cells)

    def reshaped(self, shape: Shape, frame_shape: Shape) -> Leads:
        """Give the axes of an array another shape, as `ndarray.reshape` does where it copies.

        Parameters
        ----------
        shape : tuple of int
            Of the whole array; one length may be -1.
        frame_shape : tuple of int
            The axes that must stay the last ones.

        Returns
        -------
        Leads
            In C order, above these.

        Raises
        ------
        ValueError
            If the sizes differ, or the frame's axes would change.
        """
        plain = Leads.of(self.shape, self)
        return plain.seen(frame_shape, lambda dense: dense.reshape(shape))

    def seen(self, frame_shape: Shape, view: Callable[[AnyArray], AnyArray]) -> Leads:
        """Find out what becomes of these axes under a function that makes a view of an array.

        Parameters
        ----------
        frame_shape : tuple of int
            The axes that must stay the last ones.
        view : callable
            Is given an ndarray of the whole shape in the memory of one element, which it must not
            read, and returns a view of it.

        Returns
        -------
        Leads
            The leading axes of that view.

        Raises
        ------
        FramesMovedError
            If the frame's axes would change.
        """
        unit = max(1, prod(max(length, 1) for length in frame_shape))
        frame_strides = _c_strides(frame_shape)
        lead_strides = tuple(stride * unit for stride in self.strides)
        dense = strided(self.shape + frame_shape, lead_strides + frame_strides)
        seen = view(dense)
        n_lead = seen.ndim - len(frame_shape)
        stays = n_lead >= 1 and seen.shape[n_lead:] == frame_shape
        if stays and dense.size:
            places = zip(frame_shape, seen.strides[n_lead:], frame_strides, strict=True)
            leads = zip(seen.shape[:n_lead], seen.strides, strict=False)
            stays = all(n == 1 or now == before for n, now, before in places)
            stays = stays and all(n == 1 or not stride % unit for n, stride in leads)
        if not stays:
            raise FramesMovedError(
                f"shape {self.shape + frame_shape} would become {seen.shape} and change the "
                f"frames: the last axes must stay {frame_shape}, in their order. Take the view of "
                "np.asarray(a), a dense copy, instead"
            )
        offset = _address(seen) - _address(dense) if dense.size else 0
        strides = tuple(stride // unit for stride in seen.strides[:n_lead])
        return Leads(seen.shape[:n_lead], strides, self.first + offset // unit, self.beneath)


def strided(shape: Shape, strides: Shape | None = None, dtype: Any = np.int8) -> AnyArray:
    """Return an array in the memory of one element, for what looks at shape, strides and dtype."""
    item = np.empty((), dtype)
    steps = _c_strides(shape) if strides is None else strides
    return as_strided(item, shape, tuple(step * item.itemsize for step in steps))


def _c_strides(shape: Shape) -> Shape:
    strides: list[int] = []
    step = 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def _address(array: AnyArray) -> int:
    return int(array.__array_interface__["data"][0])
