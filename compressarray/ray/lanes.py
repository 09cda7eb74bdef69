"""Frames of many episodes in one ring: each episode that grows has a lane to itself."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.array import DiffFrameArray
from compressarray.planes import Planes
from compressarray.replay.resizing import with_rows

AnyArray = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]

_FREE = -1


class Places(NamedTuple):
    """Where the frames of some observations are.

    Attributes
    ----------
    newest : ndarray, (T,) int64
        The frame index of each observation's newest frame.
    back : ndarray, (T, n_frames) uint8 or uint32
        How many frames of its lane each of its frames lies behind that one.
    """

    newest: Int64s
    back: AnyArray


class _Lane:
    """A lane of the ring, as far as it is not the ring's own affair."""

    def __init__(self) -> None:
        self.holder: object = None  # whose observations are added to it
        self.number = _FREE  # of the holder's episode; _FREE once that has ended
        self.used = -1  # when it was added to last
        # Episodes that have frames here, by number, with their first frame's count.
        self.pieces: deque[tuple[int, int]] = deque()
        # The holder's last observation, (n_frames, bytes), and its frames' counts.
        self.last: tuple[AnyArray, Int64s] | None = None


class FrameLanes:
    """The frames of one entry of all episodes' observations.

    A frame that an observation has in common with the one before it in its episode is stored once.

    Parameters
    ----------
    planes : Planes
        How an observation splits into frames.
    dtype : dtype
    n_rows : int
        How many frames a lane has room for at first. Address space, not memory.
    n_lanes : int
        How many episodes may grow at the same time without getting into one another's way: where
        there are more, a lane holds pieces of several in turn, which costs memory and no more.
    codec : str or object
        What `DiffFrameArray` takes.

    Raises
    ------
    ValueError
        If the codec cannot hold such frames.
    """

    def __init__(
        self, planes: Planes, dtype: npt.DTypeLike, n_rows: int, n_lanes: int, codec: Any
    ) -> None:
        self.planes = planes
        self.array = DiffFrameArray(
            (n_rows, n_lanes, *planes.frame_shape), dtype, codec=codec, stack_axis=None
        )
        self.dtype = self.array.dtype
        # A frame's distance from the newest one is below twice the frames of an observation.
        self.back_dtype: Any = np.uint8 if 2 * planes.n_frames <= 255 else np.uint32
        self._lanes = [_Lane() for _ in range(n_lanes)]
        self._clock = 0
        self._shift = 1  # by how many frames the last stack moved

    @property
    def nbytes_stored(self) -> int:
        """Bytes held: the ring, and the last observation of each lane."""
        last = sum(lane.last[0].nbytes for lane in self._lanes if lane.last is not None)
        return self.array.nbytes_stored + last + 64 * sum(len(each.pieces) for each in self._lanes)

    # -- writing -----------------------------------------------------------------------------

    def put(self, holder: object, number: int, observations: AnyArray) -> Places:
        """Store observations that follow what the same holder stored last.

        Parameters
        ----------
        holder : object
            Whose observations they are.
        number : int
            Of the episode; later episodes have higher ones.
        observations : ndarray, (T, *shape), of the dtype

        Returns
        -------
        Places
        """
        count = self.planes.n_frames
        pixels = np.ascontiguousarray(self.planes.split(observations))
        # Compared bit for bit: not a number is like itself, and -0.0 is not 0.0.
        bits = pixels.reshape(len(pixels), count, -1).view(np.uint8)
        i = self._lane_of(holder, number)
        lane = self._lanes[i]
        start = int(self.array.lane_counts[i])
        counts = np.empty((len(pixels), count), np.int64)
        last, known = lane.last or (None, None)
        new: list[tuple[int, int]] = []
        for t in range(len(pixels)):
            self._find(bits[t], last, known, counts[t], start, new, t)
            last, known = bits[t], counts[t]
        if new:
            self._make_room(i, start, len(new))
            self.array.append(pixels[tuple(np.array(new).T)][:, None], lanes=[i])
        if len(pixels):
            lane.last = (bits[-1].copy(), counts[-1].copy())
        newest = counts.max(1, initial=0)
        back = (newest[:, None] - counts).astype(self.back_dtype)
        return Places(newest * self.array.n_lanes + i, back)

    def _find(
        self,
        frames: AnyArray,
        last: AnyArray | None,
        known: Int64s | None,
        counts: Int64s,
        start: int,
        new: list[tuple[int, int]],
        t: int,
    ) -> None:
        """Fill in the counts of an observation's frames, and note those that are to be stored."""
        count, n_before = self.planes.n_frames, len(new)
        places: dict[bytes, int] = {}
        missing = range(count)
        if last is not None and known is not None:
            shift = self._moved(frames, last)
            if shift >= 0:  # nearly always
                self._shift = shift or self._shift
                counts[: count - shift] = known[shift:]
                missing = range(count - shift, count)
            else:
                places = {last[j].tobytes(): int(known[j]) for j in range(count)}
        for j in missing:
            if j and np.array_equal(frames[j], frames[j - 1]):
                counts[j] = counts[j - 1]
                continue
            key = frames[j].tobytes()
            if key not in places:
                places[key] = start + len(new)
                new.append((t, j))
            counts[j] = places[key]
        # A layer that never changes, beside others that do, gets too old to be named: once more.
        if counts.max() - counts.min() > np.iinfo(self.back_dtype).max:
            del new[n_before:]
            counts[:] = np.arange(start + n_before, start + n_before + count)
            new += ((t, j) for j in range(count))

    def _moved(self, frames: AnyArray, last: AnyArray) -> int:
        """By how many frames an observation is ahead of the last one; -1 where it is another."""
        count = self.planes.n_frames
        for shift in sorted({0, *range(1, min(count, 4)), self._shift}, key=self._shift.__ne__):
            if shift < count and np.array_equal(frames[: count - shift], last[shift:]):
                return int(shift)
        return -1

    def _lane_of(self, holder: object, number: int) -> int:
        """Return the lane that the holder has, or give it one: the one that is idle longest."""
        self._clock += 1
        for i, lane in enumerate(self._lanes):
            if lane.holder is holder:
                lane.used = self._clock
                return i
        free = [i for i, lane in enumerate(self._lanes) if lane.number == _FREE]
        i = free[0] if free else min(range(len(self._lanes)), key=lambda i: self._lanes[i].used)
        lane = self._lanes[i]
        lane.last = None
        lane.pieces.append((number, int(self.array.lane_counts[i])))
        lane.holder, lane.number, lane.used = holder, number, self._clock
        return i

    def _first(self, i: int) -> int:
        """The count of a lane's first frame that an episode needs."""
        pieces = self._lanes[i].pieces
        return pieces[0][1] if pieces else int(self.array.lane_counts[i])

    def _make_room(self, i: int, start: int, n_new: int) -> None:
        n_rows = self.array.shape[0]
        needed = start + n_new - self._first(i)
        if needed > n_rows:
            first = np.array([self._first(j) for j in range(len(self._lanes))], np.int64)
            self.array = with_rows(self.array, max(needed, 2 * n_rows), first)

    def release(self, number: int) -> None:
        """Note that an episode has ended: its lanes are anybody's."""
        for lane in self._lanes:
            if lane.number == number:
                lane.holder, lane.number, lane.last = None, _FREE, None

    def let_go(self, first_number: int) -> None:
        """Let go of the frames that only episodes before a number have."""
        before = np.zeros(len(self._lanes), np.int64)
        for i, lane in enumerate(self._lanes):
            if lane.number != _FREE and lane.number < first_number:
                lane.holder, lane.number, lane.last = None, _FREE, None
            while lane.pieces and lane.pieces[0][0] < first_number:
                lane.pieces.popleft()
            before[i] = self._first(i)
        self.array.discard(before)

    # -- reading -----------------------------------------------------------------------------

    def read(self, places: Places) -> AnyArray:
        """Decode observations, ``(..., *shape)``; a frame that was let go raises."""
        back = places.back.astype(np.int64) * self.array.n_lanes
        frames: AnyArray = self.array.gather(np.asarray(places.newest)[..., None] - back)
        return self.planes.join(frames)

    # -- states ------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Return a copy of everything but the holders, of which the numbers are there."""
        return {
            "array": self.array.copy(),
            "numbers": [lane.number for lane in self._lanes],
            "pieces": [list(lane.pieces) for lane in self._lanes],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Be as `get_state` found it. The lanes wait for their holders, see `hold`."""
        self.array = state["array"].copy()
        self._lanes = [_Lane() for _ in range(self.array.n_lanes)]
        for lane, number, pieces in zip(
            self._lanes, state["numbers"], state["pieces"], strict=True
        ):
            lane.number, lane.pieces = number, deque(map(tuple, pieces))

    def hold(self, holder: object, number: int) -> None:
        """Give a holder the lane that it had before the state was taken."""
        for lane in self._lanes:
            if lane.number == number and lane.holder is None:
                lane.holder = holder
                return
