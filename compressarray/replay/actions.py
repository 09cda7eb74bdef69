"""Actions of any of Gymnasium's spaces in the smallest dtype that holds them exactly."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.errors import CorruptFrameError
from compressarray.kernels.compiling import kernel
from compressarray.replay.layout import as_array, for_kernels

AnyArray = npt.NDArray[Any]


class Actions:
    """How the actions of a space are checked, stored and given back.

    Parameters
    ----------
    space : Discrete, MultiDiscrete, MultiBinary or Box
        Known by their attributes, so that Gymnasium need not be imported.

    Attributes
    ----------
    shape : tuple of int
        Of one action.
    dtype : dtype
        Of actions given back: the space's own.
    stored_dtype : dtype
        Of what is kept. Integers are kept as their distance from the lowest one allowed.
    """

    def __init__(self, space: Any) -> None:
        self.dtype = np.dtype(space.dtype) if getattr(space, "dtype", None) else np.dtype(np.int64)
        self._low: Any = None  # of integers
        self._high: Any = None
        self._box: tuple[Any, Any] | None = None  # bounds of floats
        if hasattr(space, "nvec"):
            self._low = np.asarray(getattr(space, "start", 0))
            self._high = self._low + np.asarray(space.nvec) - 1
        elif hasattr(space, "n"):
            is_binary = getattr(space, "shape", ()) != ()
            self._low = np.asarray(int(getattr(space, "start", 0)))
            self._high = np.asarray(1) if is_binary else self._low + int(space.n) - 1
        elif not hasattr(space, "low"):
            raise TypeError(
                f"action_space={space!r} must be a Discrete, Box, MultiDiscrete or MultiBinary; "
                "flatten other spaces first"
            )
        elif self.dtype.kind in "iu":
            self._low, self._high = np.asarray(space.low), np.asarray(space.high)
        else:
            self._box = np.asarray(space.low), np.asarray(space.high)
        self.shape: tuple[int, ...] = tuple(space.shape or ())
        self.stored_dtype = self.dtype
        if self._low is not None:
            # Python's integers: the span of a wide Box overflows int64
            self._offset = min(self._low.ravel().tolist(), default=0)
            span = max(self._high.ravel().tolist(), default=0) - self._offset
            self.stored_dtype = np.min_scalar_type(span)
            # Bounds of each element, for a kernel that counts in int64; few spaces are wider.
            self._bounds: npt.NDArray[np.int64] | None = None
            if self._offset >= -(2**63) and self._offset + span < 2**63:
                each = (np.broadcast_to(bound, self.shape) for bound in (self._low, self._high))
                self._bounds = np.array([bound.ravel() for bound in each], np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of one action in the space's dtype."""
        return prod(self.shape) * self.dtype.itemsize

    def stored(self, action: Any, n_lanes: int) -> AnyArray:
        """Check one action for each lane and return them as they are stored, C-contiguous.

        Raises
        ------
        TypeError
            If the dtype holds values that could not be given back exactly.
        ValueError
            If the shape is wrong, or a value is NaN or outside the space.
        """
        values = as_array("action", action)
        expected = (n_lanes, *self.shape)
        if values.shape != expected:
            raise ValueError(
                f"action has shape {values.shape}; {n_lanes} lanes need {expected}, one action of "
                f"shape {self.shape} each"
            )
        if self._low is None:
            return self._checked_floats(values)
        if self._bounds is not None and values.dtype.kind in "iu" and values.dtype != np.uint64:
            stored: AnyArray = np.empty(expected, self.stored_dtype)
            rows = for_kernels(values.astype(np.int64, copy=False)).reshape(n_lanes, -1)
            if store_integers(rows, self._bounds, self._offset, stored.reshape(n_lanes, -1)):
                return stored
        return self._checked_integers(values)

    def _checked_integers(self, values: AnyArray) -> AnyArray:
        if values.dtype.kind not in "iu" and not (values.dtype == self.dtype):
            raise TypeError(f"action has dtype {values.dtype}; this space takes integers")
        wrong = (values < self._low) | (values > self._high)
        if wrong.any():
            place = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
            low = np.broadcast_to(self._low, values.shape)[place]
            high = np.broadcast_to(self._high, values.shape)[place]
            raise ValueError(
                f"action {values[place]} of lane {place[0]} is outside the action space, {low} to "
                f"{high}"
            )
        stored: AnyArray = (_modulo(values) - _modulo(self._offset)).astype(self.stored_dtype, "C")
        return stored

    def _checked_floats(self, values: AnyArray) -> AnyArray:
        # Floats are rounded to the space's, as Stable-Baselines3 does; whole numbers must be there.
        rounded = values.astype(self.dtype, "C") if values.dtype.kind in "fiu" else values
        if values.dtype.kind not in "fiu" or (
            values.dtype.kind != "f" and not (rounded == values).all()
        ):
            raise TypeError(
                f"action has dtype {values.dtype}, which {self.dtype}, the action space's, does "
                f"not hold; convert it first, with action.astype(np.{self.dtype})"
            )
        values = rounded
        assert self._box is not None
        low, high = self._box
        inside = (values >= low) & (values <= high)
        if not inside.all():
            place = np.unravel_index(int(np.argmin(inside)), inside.shape)
            lane = place[0]
            if np.isnan(values[place]):
                raise ValueError(
                    f"action of lane {lane} holds NaN: {values[lane]}; check the policy"
                )
            low, high = (np.broadcast_to(bound, values.shape)[place] for bound in (low, high))
            raise ValueError(
                f"action {values[place]} of lane {lane} is outside the action space, {low} to "
                f"{high}; clip it, and give the environment what was clipped"
            )
        return values

    def refuse_foreign(self, stored: AnyArray) -> None:
        """Raise `CorruptFrameError` where stored actions from elsewhere are not of the space."""
        if not stored.size:
            return
        try:
            self.stored(self.given_back(stored), len(stored))
        except ValueError as error:
            raise CorruptFrameError(f"stored actions are not of their space: {error}") from None

    def given_back(self, stored: AnyArray) -> AnyArray:
        """Return stored actions in the space's dtype, a fresh array."""
        actions: AnyArray
        if self._low is None:
            actions = stored.astype(self.dtype)
        elif self._bounds is not None:
            actions = stored.astype(np.int64)
            if self._offset:
                actions += self._offset
            actions = actions.astype(self.dtype, copy=False)
        else:
            actions = (_modulo(stored) + _modulo(self._offset)).astype(self.dtype)
        return actions


def _modulo(values: Any) -> npt.NDArray[np.uint64]:
    """Integers modulo 2**64, where distances that no int64 holds are right all the same."""
    array = np.asarray(values)
    wide = array.astype(np.uint64 if array.dtype.kind == "u" else np.int64)
    return wide.view(np.uint64)


@kernel
def store_integers(values: Any, bounds: Any, offset: Any, stored: Any) -> Any:
    """Fill ``stored`` with distances from ``offset``; return whether all values are in bounds."""
    for i in range(len(values)):
        for j in range(values.shape[1]):
            value = values[i, j]
            if value < bounds[0, j] or value > bounds[1, j]:
                return False
            stored[i, j] = value - offset
    return True
