"""How an observation splits into frames of two axes."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[Any]
Shape = tuple[int, ...]

_COLOURS = 3


class Planes(NamedTuple):
    """An observation's shape, and the shape of its frames.

    Wrappers that stack put frames side by side on the channels' axis, so each channel is a frame of
    its own: one that was seen before is found again wherever the stack has moved it. Where the
    channels can be divided by three they are taken for colours, and three of them are one frame,
    one below the other: a colour resembles the same colour of the frame before more than the
    colour beside it, and MsPacman takes a quarter of the bytes (`make report-sb3`). Three gray
    frames that are taken for colours take up to three times as much as they might.
    """

    shape: Shape
    n_frames: int
    frame_shape: tuple[int, int]
    channels_last: bool

    @classmethod
    def of(cls, shape: Shape) -> Planes | None:
        """Return how observations of a shape split, or None where there is no image to split."""
        if len(shape) < 2 or not prod(shape):
            return None
        if len(shape) == 2:
            return cls(shape, 1, (shape[0], shape[1]), False)
        is_last = len(shape) == 3 and shape[2] < shape[0]  # (H, W, C), as Stable-Baselines3 decides
        n, height, width = (shape[2], *shape[:2]) if is_last else (*shape[:2], prod(shape[2:]))
        colours = _COLOURS if len(shape) == 3 and n % _COLOURS == 0 else 1
        return cls(shape, n // colours, (colours * height, width), is_last)

    @property
    def entry_shape(self) -> Shape:
        """``(n_frames, height, width)``."""
        return (self.n_frames, *self.frame_shape)

    def split(self, observations: AnyArray) -> AnyArray:
        """Return ``(..., *shape)`` as ``(..., count, height, width)``; a view where possible."""
        if self.channels_last:
            observations = np.moveaxis(observations, -1, -3)
        lead = observations.shape[: observations.ndim - len(self.shape)]
        return observations.reshape(*lead, *self.entry_shape)

    def join(self, planes: AnyArray) -> AnyArray:
        """Undo `split`; always C-contiguous, as an ndarray's own rows are."""
        lead = planes.shape[:-3]
        if not self.channels_last:
            return planes.reshape(*lead, *self.shape)
        height, width, n_channels = self.shape
        channels = planes.reshape(*lead, n_channels, height, width)
        joined = np.empty((*lead, *self.shape), planes.dtype)
        for i in range(n_channels):  # numpy takes three times as long to move the axis itself
            joined[..., i] = channels[..., i, :, :]
        return joined
