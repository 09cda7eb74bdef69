"""How observations are made of frames, read from their space."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[Any]
Feed = Literal["stacks", "newest", "indices"]

# The bounds of a space of frame indices, as `IndexedFrameStack` emits them.
_HIGHEST_INDEX = 2**63 - 2


@dataclass(frozen=True)
class Layout:
    """One entry of an observation: its shape, and where in it the frames are.

    Attributes
    ----------
    key : str or None
        Of a Dict observation, the entry's name.
    feed : str
        What `add` is given: "stacks", the "newest" frame, or frame "indices".
    shape, dtype
        Of one such entry.
    frame_shape : tuple of int
    frame_dtype : dtype
    stack_size : int
        Frames in the stack that is sampled.
    axis : int or None
        Where a sampled stack has its stack axis; None if it is one frame, without such an axis.
    channels : int
        Planes of a frame along that axis.
    is_image : bool
        Stored compressed, otherwise plain.
    """

    key: str | None
    feed: Feed
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    frame_shape: tuple[int, ...]
    frame_dtype: np.dtype[Any]
    stack_size: int
    axis: int | None
    channels: int
    is_image: bool

    def name_in(self, what: str) -> str:
        """How messages call this entry of an observation."""
        return what if self.key is None else f"{what}[{self.key!r}]"

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return prod(self.frame_shape) * self.frame_dtype.itemsize

    def to_frames(self, values: AnyArray) -> AnyArray:
        """Take ``(n_lanes, *shape)`` apart, into ``(n_lanes, stack_size or 1, *frame_shape)``."""
        if self.feed == "newest" or self.axis is None:
            return values[:, None]
        planes = np.moveaxis(values, 1 + self.axis, 1) if self.axis else values
        return planes.reshape(len(values), self.stack_size, *self.frame_shape)

    def newest_of(self, values: AnyArray) -> AnyArray:
        """Return the newest frame of each lane's observation, ``(n_lanes, *frame_shape)``."""
        return values if self.feed == "newest" else self.to_frames(values)[:, -1]

    def as_bytes(self, values: AnyArray) -> npt.NDArray[np.uint8]:
        """Return the frames of ``(n_lanes, *shape)``, in order, as flat bytes for a kernel."""
        # Along the first axis they lie in order as they are.
        frames = self.to_frames(values) if self.axis else values
        flat = for_kernels(frames).reshape(-1)
        return flat if flat.dtype == np.uint8 else flat.view(np.uint8)

    def to_sample(self, stacks: Any, n_lead: int) -> Any:
        """Make observations of ``(*lead, stack_size, *frame_shape)``, without copying.

        Parameters
        ----------
        stacks : ndarray or tensor
        n_lead : int
            Axes before the stack's.
        """
        if self.axis is None:
            return stacks[(slice(None),) * n_lead + (0,)]
        if self.channels > 1:
            stacks = stacks.reshape(
                *stacks.shape[:n_lead], self.stack_size * self.channels, *self.frame_shape[1:]
            )
        if self.axis == 0:
            return stacks
        move = stacks.movedim if hasattr(stacks, "movedim") else None
        source, target = n_lead, n_lead + self.axis
        return move(source, target) if move else np.moveaxis(stacks, source, target)

    def checked(self, values: Any, n_lanes: int, what: str) -> AnyArray:
        """Return one entry for each lane as an array, or raise for a wrong shape or dtype."""
        array = values
        if not isinstance(values, np.ndarray):
            array = as_array(self.name_in(what), values)
        expected = (n_lanes, *self.shape)
        if array.shape != expected:
            raise ValueError(
                f"{self.name_in(what)} has shape {array.shape}; {n_lanes} lanes need {expected}. "
                "The number of lanes is fixed by n_envs, and the rest by observation_space"
            )
        self._check_dtype(array, what)
        return array  # type: ignore[no-any-return]

    def checked_one(self, value: Any, what: str) -> AnyArray:
        """Return the entry of one lane as an array, or raise for a wrong shape or dtype."""
        array = as_array(self.name_in(what), value)
        if array.shape != self.shape:
            raise ValueError(
                f"{self.name_in(what)} has shape {array.shape}; observation_space says {self.shape}"
            )
        self._check_dtype(array, what)
        return array

    def _check_dtype(self, array: AnyArray, what: str) -> None:
        if array.dtype != self.dtype:
            raise TypeError(
                f"{self.name_in(what)} has dtype {array.dtype}, and observation_space says "
                f"{self.dtype}; nothing is cast silently here"
            )


def as_array(name: str, values: Any) -> AnyArray:
    """Return ``np.asarray(values)``, or numpy's error under the name of an argument."""
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} is no array: {error}") from None
    except RuntimeError as error:  # a tensor that needs a gradient
        raise TypeError(f"{name} is no array: {error}") from None


def for_kernels(array: AnyArray) -> AnyArray:
    """Return an array that is C-contiguous and writable, a copy where it is not.

    Others are of another type to numba, which would compile kernels anew.
    """
    contiguous = np.ascontiguousarray(array)
    return contiguous if contiguous.flags.writeable else contiguous.copy()


def read_layouts(
    space: Any,
    *,
    frames: Any,
    stack_size: int | None,
    stack_axis: int | None,
    frame_channels: int,
) -> list[Layout]:
    """Read the layouts of a space: one, or one for each entry of a Dict.

    Parameters
    ----------
    space : Box, Discrete, or Dict of such
        Known by their attributes, so that Gymnasium need not be imported.
    frames : DiffFrameArray or None
        Where an entry of frame indices has its frames.
    stack_size, stack_axis, frame_channels
        As for `ReplayBuffer`.
    """
    inner: Any = getattr(space, "spaces", None)
    entries = dict(inner.items()) if hasattr(inner, "items") else {None: space}
    if not entries:
        raise ValueError(f"observation_space={space} has no entries; give it one or more")
    if not (frames is None or hasattr(frames, "gather")):
        raise TypeError(
            f"frames={type(frames).__name__} must be the DiffFrameArray of an IndexedFrameStack"
        )
    if frames is not None and stack_size is not None:
        raise ValueError(
            f"stack_size={stack_size} and frames were both given: frame indices are stacks "
            "already. Leave stack_size out"
        )
    layouts = []
    if stack_size is not None and (stack_axis, frame_channels) != (0, 1):
        raise ValueError(
            f"stack_axis={stack_axis} and frame_channels={frame_channels} are of observations that "
            f"are stacks, and stack_size={stack_size} says that they are single frames, of which "
            "stacks are made along a new first axis: leave out the one or the other"
        )
    for key, entry in entries.items():
        shape, dtype = _shape_and_dtype(entry, key)
        if frames is not None and _holds_indices(entry, shape, dtype):
            layouts.append(
                Layout(
                    key, "indices", shape, dtype, frames.frame_shape, frames.dtype, shape[0], 0, 1,
                    is_image=True,
                )
            )  # fmt: skip
            continue
        is_image = len(shape) >= 2 or (key is None and stack_size is not None)
        if not is_image:
            layouts.append(
                Layout(key, "stacks", shape, dtype, shape, dtype, 1, None, 1, is_image=False)
            )
        elif stack_size is not None:
            layouts.append(
                Layout(key, "newest", shape, dtype, shape, dtype, stack_size, 0, 1, is_image=True)
            )
        else:
            layouts.append(_stacked(key, shape, dtype, stack_axis, frame_channels))
    if stack_size is not None and not any(layout.feed == "newest" for layout in layouts):
        raise ValueError(
            f"stack_size={stack_size} is of images, and observation_space={space} has none "
            "(entries of two axes or more): leave it out"
        )
    are_stacks = any(layout.feed == "stacks" and len(layout.shape) > 2 for layout in layouts)
    if (stack_axis not in (0, None) or frame_channels != 1) and not are_stacks:
        raise ValueError(
            f"stack_axis={stack_axis} and frame_channels={frame_channels} are of observations that "
            f"are stacks of frames, with three axes or more; observation_space={space} has none: "
            "leave them out"
        )
    n_fed = sum(layout.feed == "indices" for layout in layouts)
    if frames is not None and n_fed != 1:
        raise ValueError(
            f"frames was given, but {n_fed} entries of observation_space={space} hold frame "
            "indices, and one must: pass the observation_space of the IndexedFrameStack (for a "
            "vector environment single_observation_space)"
        )
    return layouts


def _shape_and_dtype(entry: Any, key: str | None) -> tuple[tuple[int, ...], np.dtype[Any]]:
    is_leaf = not hasattr(entry, "spaces")
    if (
        not is_leaf
        or getattr(entry, "shape", None) is None
        or getattr(entry, "dtype", None) is None
    ):
        where = "observation_space" if key is None else f"observation_space[{key!r}]"
        raise TypeError(f"{where}={entry!r} must be a Box, a Discrete, or a Dict of such")
    return tuple(entry.shape), np.dtype(entry.dtype)


def _holds_indices(entry: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    return (
        dtype == np.int64
        and len(shape) == 1
        and shape[0] > 0
        and hasattr(entry, "high")
        and bool((np.asarray(entry.high) == _HIGHEST_INDEX).all())
    )


def _stacked(
    key: str | None,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    stack_axis: int | None,
    channels: int,
) -> Layout:
    if stack_axis is None and channels != 1:
        raise ValueError(
            f"frame_channels={channels} are planes along the stack axis, and stack_axis=None says "
            "that there is none: leave frame_channels out"
        )
    if stack_axis is None or len(shape) < 3:
        return Layout(key, "stacks", shape, dtype, shape, dtype, 1, None, 1, is_image=True)
    if not isinstance(stack_axis, (int, np.integer)):
        raise TypeError(f"stack_axis={stack_axis!r} must be a whole number or None")
    axis = int(stack_axis) + (len(shape) if stack_axis < 0 else 0)
    if not 0 <= axis < len(shape):
        raise ValueError(
            f"stack_axis={stack_axis} must be an axis of observations of shape {shape}, or None "
            "where they are one frame"
        )
    size, rest = shape[axis], shape[:axis] + shape[axis + 1 :]
    if channels < 1 or size % channels or not size:
        raise ValueError(
            f"frame_channels={channels} must divide axis {axis} of observations of shape {shape}"
        )
    frame_shape = rest if channels == 1 else (channels, *rest)
    return Layout(
        key, "stacks", shape, dtype, frame_shape, dtype, size // channels, axis, channels,
        is_image=True,
    )  # fmt: skip
