"""Slots of observation and next observation, as indices into a ring of frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.array import DiffFrameArray
from compressarray.planes import Planes
from compressarray.sb3.steps import Undo

AnyArray = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]

# How many adds lie between two clearings of old frames. A group of pictures is freed as a whole,
# so asking at every add would free no more.
CLEAR_EVERY = 8


class FrameRows:
    """Pairs of observations by slot and environment; every frame is stored once.

    A row holds no pixels: of each of its frames it knows the place in the ring of its environment,
    as the count of its oldest frame and a small offset from that. Frames are looked for in the row
    before; so an oldest frame is never older than that of the row before, and what lies before the
    oldest row's can be let go.

    Parameters
    ----------
    n_rows : int
    n_envs : int
    planes : Planes
    dtype : dtype
    codec : str or object
        What `DiffFrameArray` takes.
    """

    def __init__(
        self, n_rows: int, n_envs: int, planes: Planes, dtype: npt.DTypeLike, codec: Any
    ) -> None:
        self.n_rows, self.n_envs, self.planes = n_rows, n_envs, planes
        width = 2 * planes.n_frames
        small = 2 * width < np.iinfo(np.uint8).max
        self._offset_dtype: Any = np.uint8 if small else np.uint32
        # How far the newest frame of a row may be from its oldest; an older one is stored again.
        self._span = int(np.iinfo(self._offset_dtype).max) - 1
        # Address space, not memory: the most that rows without any repetition would need.
        slots = (n_rows + CLEAR_EVERY + 1) * width
        self.frames = DiffFrameArray(
            (slots, n_envs, *planes.frame_shape), dtype, codec=codec, stack_axis=None
        )
        self.dtype = self.frames.dtype
        # What a stack begins with: `VecFrameStack` pads with zeros.
        self._blank = int(self.frames.pin(np.zeros(planes.frame_shape, self.dtype)))
        self._lanes = np.arange(n_envs)
        self._forget()

    def _forget(self) -> None:
        width = 2 * self.planes.n_frames
        frame_bytes = self.frames[:0].dtype.itemsize * int(np.prod(self.planes.frame_shape))
        self._oldest = np.zeros((self.n_rows, self.n_envs), np.int64)
        # One more than the distance from the oldest; 0 is a frame of zeros.
        self._offsets = np.zeros((self.n_rows, self.n_envs, width), self._offset_dtype)
        # The newest row in full: what the next one is compared with.
        self._last = np.zeros((self.n_envs, width, frame_bytes), np.uint8)
        self._spare = np.zeros_like(self._last)
        self._last_counts = np.full((self.n_envs, width), -1, np.int64)
        self._shift = 1  # by how many frames the last stack moved

    @property
    def nbytes_stored(self) -> int:
        """Bytes held: frames, indices, and the newest row."""
        small = (self._oldest, self._offsets, self._last, self._spare, self._last_counts)
        return self.frames.nbytes_stored + sum(each.nbytes for each in small)

    def clear(self, undo: Undo) -> None:
        """Forget everything, as a part of the write that runs."""
        undo.keep_attributes(
            self, "_oldest", "_offsets", "_last", "_spare", "_last_counts", "_shift"
        )
        self.frames.clear()
        self._forget()

    def put(self, slot: int, obs: AnyArray, next_obs: AnyArray, undo: Undo) -> None:
        """Write one row, as a part of the write that runs.

        Parameters
        ----------
        slot : int
            The row; slots come in order, and begin again at 0.
        obs, next_obs : ndarray, (n_envs, count, height, width), the frames' dtype
        undo : Undo
            A step of that write.
        """
        undo.keep_attributes(self, "_last", "_spare", "_last_counts", "_shift")
        undo.keep(slot, self._offsets, self._oldest)
        count = self.planes.n_frames
        fresh = self._spare
        pixels = fresh.view(self.dtype).reshape(self.n_envs, 2 * count, *self.planes.frame_shape)
        pixels[:, :count] = obs
        pixels[:, count:] = next_obs
        starts = self.frames.lane_counts
        counts = np.empty((self.n_envs, 2 * count), np.int64)
        lanes = range(self.n_envs)
        new = [self._find(i, fresh[i], int(starts[i]), counts[i]) for i in lanes]
        self._append(pixels, new)
        stored = counts >= 0
        ends = (starts + [len(each) for each in new])[:, None]
        oldest = np.where(stored, counts, ends).min(1)
        self._offsets[slot] = np.where(stored, counts - oldest[:, None] + 1, 0)
        self._oldest[slot] = oldest
        self._last, self._spare, self._last_counts = fresh, self._last, counts

    def let_go(self, slot: int) -> None:
        """Let go of the frames before those of the oldest row, ``slot``."""
        self.frames.discard(self._oldest[slot])

    def _find(self, lane: int, fresh: AnyArray, start: int, counts: Int64s) -> list[int]:
        """Fill in where a row's frames are (-1: zeros), and return those that are to be stored."""
        count = self.planes.n_frames
        last, known = self._last[lane], self._last_counts[lane]
        furthest = start + 2 * count - self._span
        shift = self._shift
        new: list[int] = []
        # Nearly every row: it begins where the last one ended, and its stack moves as that one did.
        if (
            shift <= count
            and not (known[count:] < furthest).any()
            and np.array_equal(fresh[:count], last[count:])
            and np.array_equal(fresh[count : 2 * count - shift], fresh[shift:count])
        ):
            counts[:count] = known[count:]
            counts[count : 2 * count - shift] = counts[shift:count]
            rest, places = range(2 * count - shift, 2 * count), {}
        else:
            rest = range(2 * count)
            places = {
                last[i].tobytes(): int(known[i])
                for i in range(2 * count)
                if known[i] >= max(furthest, 0)
            }
        for i in rest:
            if not fresh[i].any():
                counts[i] = -1
                continue
            key = fresh[i].tobytes()
            if key not in places:
                places[key] = start + len(new)
                new.append(i)
            counts[i] = places[key]
        if len(rest) == 2 * count:
            self._shift = self._moved(fresh)
        return new

    def _moved(self, fresh: AnyArray) -> int:
        """By how many frames next_obs is ahead of obs: 1 for grey stacks, 3 for colours."""
        count = self.planes.n_frames
        for shift in range(1, min(count, 4) + 1):
            if np.array_equal(fresh[count : 2 * count - shift], fresh[shift:count]):
                return shift
        return 1

    def _append(self, pixels: AnyArray, new: list[list[int]]) -> None:
        """Store the frames that are new, each environment's in order."""
        lengths = {len(each) for each in new}
        if len(lengths) == 1:
            if lengths != {0}:
                self.frames.append(pixels[self._lanes, np.array(new).T])
            return
        for lane, each in enumerate(new):
            if each:
                self.frames.append(pixels[lane, each][:, None], lanes=[lane])

    def read(self, half: slice, key: Any) -> AnyArray:
        """Decode observations (the first half), next observations, or both at once.

        Parameters
        ----------
        half : slice
            Of the row's ``2 * count`` frames.
        key : tuple
            An index of the axes (row, environment), of any kind.

        Returns
        -------
        ndarray, (*shape of the index, frames, height, width)
        """
        self.frames._frames.writer.settle()
        offsets = self._offsets[key][..., half].astype(np.int64)
        lanes = np.broadcast_to(self._lanes, self._oldest.shape)[key]
        counts = np.asarray(self._oldest[key])[..., None] + offsets - 1
        indices = counts * self.n_envs + np.asarray(lanes)[..., None]
        result: AnyArray = self.frames.gather(np.where(offsets > 0, indices, self._blank))
        return result

    def half(self, number: int) -> slice:
        """Return which frames of a row are the observation's (0) and the next one's (1)."""
        return slice(number * self.planes.n_frames, (number + 1) * self.planes.n_frames)

    def read_pair(self, rows: AnyArray, envs: AnyArray) -> tuple[AnyArray, AnyArray]:
        """Decode observations and next observations in one go: they share most groups."""
        both = self.read(slice(None), (rows, envs))
        return (
            self.planes.join(both[..., self.half(0), :, :]),
            self.planes.join(both[..., self.half(1), :, :]),
        )
