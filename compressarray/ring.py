"""Frame indices: which slot an index lives in, and whether it still does."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.errors import CorruptFrameError
from compressarray.format.messages import Items, Message
from compressarray.kernels.compiling import kernel
from compressarray.snapshots import MOST, Snapshot, array_of, int_of

Int64s = npt.NDArray[np.int64]

# Pinned frames are numbered downwards from here: the largest index that a Box can hold without
# its ``sample()`` overflowing.
FIRST_PIN = 2**63 - 2


class _Retired:
    """Places whose retirement a write has changed; a step, see `compressarray.writing`."""

    def __init__(self, ring: Ring, places: Int64s) -> None:
        self._ring = ring
        self._places = places
        self._before = ring._retired[places]

    def finish(self) -> None:
        """Do nothing: what was replaced is held here alone."""

    def roll_back(self) -> None:
        """Have the places as before."""
        self._ring._retired[self._places] = self._before
        self._ring.changes += 1


class Ring:
    """The frame indices of ``n_lanes`` lanes of ``n_slots`` slots each.

    Index ``count * n_lanes + lane`` lives in slot ``count % n_slots`` until that is appended to
    or assigned again.

    It is a step of the writes that change it, see `compressarray.writing`: after `save`.
    """

    def __init__(self, n_slots: int, n_lanes: int) -> None:
        self.n_slots = n_slots
        self.n_lanes = n_lanes
        # Counts, and the first one that is kept. Frames that are being written evict already.
        self.both: Int64s = np.zeros((2, n_lanes), np.int64)
        self.counts: Int64s = self.both[0]
        self.oldest: Int64s = self.both[1]
        self.saved = self.both.copy()  # before the write that runs
        self._retired: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)  # slot * n_lanes + lane
        self.changes: Int64s = np.zeros(1, np.int64)  # see `n_changes`

    @property
    def n_changes(self) -> int:
        """How often indices have ended; grows before their frames go.

        Who reads the same number before finding places and after reading them has read what was
        asked for.
        """
        return int(self.changes[0])

    @property
    def has_retired(self) -> bool:
        """Whether any slot may hold what was assigned to it."""
        return self._retired.size > 0

    def save(self) -> None:
        """Remember counts as they are before a write."""
        np.copyto(self.saved, self.both)

    def finish(self) -> None:
        """Do nothing."""

    def roll_back(self) -> None:
        """Have the counts that were saved."""
        np.copyto(self.both, self.saved)
        self.changes += 1

    def __deepcopy__(self, memo: dict[int, Any]) -> Ring:
        twin = Ring(self.n_slots, self.n_lanes)
        twin.both[:] = self.both
        twin._retired = self._retired.copy()
        twin.changes[:] = self.changes
        return twin

    def snapshot(self) -> Snapshot:
        """Copy everything."""
        return {
            "counts": self.counts.copy(),
            "oldest": self.oldest.copy(),
            "retired": self._retired.view(np.uint8).copy(),
            "n_changes": self.n_changes,
        }

    @classmethod
    def from_snapshot(cls, n_slots: int, n_lanes: int, snapshot: Snapshot) -> Ring:
        """Build the ring that a snapshot was taken of."""
        most = (MOST - n_slots) // max(n_lanes, 1)
        counts = array_of(snapshot, "counts", np.int64, (n_lanes,), 0, most)
        oldest = array_of(snapshot, "oldest", np.int64, (n_lanes,), 0, most + n_slots)
        retired = array_of(snapshot, "retired", np.uint8, (None,), 0, 1)
        if (counts - oldest > n_slots).any() or len(retired) not in (0, n_slots * n_lanes):
            raise CorruptFrameError(
                f"stored frame indices are not those of {n_slots} slots in {n_lanes} lanes"
            )
        ring = cls(n_slots, n_lanes)
        ring.counts[:], ring.oldest[:] = counts, oldest
        ring._retired = retired.view(np.bool_)
        ring.changes[:] = int_of(snapshot, "n_changes", 0)
        return ring

    def advance(
        self, lanes: Int64s, n_rows: int, steps: list[Any]
    ) -> tuple[Int64s, Int64s]:  # fmt: skip
        """Number ``n_rows`` new frames in each of some lanes, and evict what they replace.

        They can be found once `publish` says that they are written. Retirements that end are a
        step more of the write, added to ``steps``.

        Returns
        -------
        indices, slots : ndarray, (n_rows, len(lanes)) int64
        """
        if self._retired.size:
            slots = (self.counts[lanes] + np.arange(n_rows)[:, None]) % self.n_slots
            steps.append(_Retired(self, (slots * self.n_lanes + lanes).ravel()))
        both = np.empty((2, n_rows, len(lanes)), np.int64)
        number_rows(self.counts, self.oldest, self.n_slots, self._retired, lanes, both)
        self.changes += 1
        return both[0], both[1]

    def publish(self, lanes: Int64s, n_rows: int) -> None:
        """Let the frames that `advance` numbered be found."""
        count_rows(self.counts, lanes, n_rows)

    def retire(self, slots_and_lanes: Int64s, steps: list[Any]) -> None:
        """Retire the indices that live in places ``slot * n_lanes + lane``; see `advance`."""
        if self.counts.any():
            if not self._retired.size:
                self._retired = np.zeros(self.n_slots * self.n_lanes, np.bool_)
            steps.append(_Retired(self, slots_and_lanes))
            self._retired[slots_and_lanes] = True
            self.changes += 1

    def discard(self, before: Int64s) -> Int64s:
        """End the indices of counts below ``before``; return the counts that were kept first."""
        oldest: Int64s = self.oldest.copy()
        np.maximum(oldest, np.minimum(before, self.counts), out=self.oldest)
        self.changes += 1
        return oldest

    def put(self, message: Message, known: Int64s, retired: npt.NDArray[np.bool_]) -> None:
        """Add to a message what has changed since ``both`` and ``retired`` were so.

        Arrays that are appended to and assigned to take a pass over their slots.
        """
        lanes = np.flatnonzero((self.both != known).any(axis=0))
        message.put_ints(lanes)
        message.put_ints(self.both[:, lanes] - known[:, lanes])
        if len(retired) == len(self._retired):
            changed = np.flatnonzero(self._retired != retired)
        else:  # there were none before
            changed = np.flatnonzero(self._retired)
        message.put_ints(np.diff(changed, prepend=0))

    def take(self, items: Items, steps: list[Any]) -> tuple[Int64s, Int64s]:
        """Evict what a message says, see `put`; return lanes, and counts for `have`.

        Raises
        ------
        CorruptFrameError
            If the message does not go on from these counts.
        """
        lanes = items.ints(None, 0, self.n_lanes - 1)
        counts, oldest = self.both[:, lanes] + items.ints(2 * len(lanes)).reshape(2, -1)
        n_places = self.n_slots * self.n_lanes
        changed = np.cumsum(items.ints(None, 0, n_places))
        most = (MOST - self.n_slots) // max(self.n_lanes, 1)
        if (
            (np.diff(lanes) <= 0).any()
            or (counts < self.counts[lanes]).any()
            or (oldest < self.oldest[lanes]).any()
            or (counts - oldest > self.n_slots).any()
            or counts.max(initial=0) > most
            or oldest.max(initial=0) > most + self.n_slots
            or (len(changed) and changed[-1] >= n_places)
            or (changed[1:] <= changed[:-1]).any()
        ):
            raise CorruptFrameError("a message does not go on from the frame indices that are held")
        if len(changed):
            if not self._retired.size:
                self._retired = np.zeros(n_places, np.bool_)
            steps.append(_Retired(self, changed))
            self._retired[changed] ^= True
        self.oldest[lanes] = oldest
        self.changes += 1
        return lanes, counts

    @property
    def retired(self) -> npt.NDArray[np.bool_]:
        """Which places ``slot * n_lanes + lane`` hold what was assigned, a copy; perhaps none."""
        copied: npt.NDArray[np.bool_] = self._retired.copy()
        return copied

    def have(self, lanes: Int64s, counts: Int64s) -> None:
        """Let the frames of a message be found, once they are there."""
        self.counts[lanes] = counts

    @property
    def was_assigned(self) -> bool:
        """Whether any slot holds what was assigned to it, not what was appended."""
        return bool(self._retired.any())

    def places(self, indices: Int64s, n_pins: int) -> tuple[Int64s, int]:
        """Find where flat indices live.

        Returns
        -------
        places : ndarray, (n,) int64
            ``slot * n_lanes + lane``, or ``-1 - i`` for the i-th pinned.
        bad : int
            The first position of an index that is not held, or -1.
        """
        places = np.empty(len(indices), np.int64)
        bad = find_places(
            indices, self.counts, self.oldest, self.n_slots, self._retired, n_pins, places
        )
        return places, int(bad)

    def have_new(self, places: Int64s, before: Int64s, n_pins: int, most: int) -> bool:
        """Whether any of some `places` holds what is newer than these ``before``.

        Parameters
        ----------
        places : ndarray, (n,) int64
            Of indices that are held: what was appended once is what they name for good.
        before : ndarray, (n_lanes,) int64
            Earlier counts of this ring.
        n_pins : int
            Pinned stacks that there were then.
        most : int
            Also True where a lane has had more frames than that since.
        """
        return bool(find_new(places, self.counts, before, self.n_slots, n_pins, most))

    def explain(self, index: int, n_pins: int) -> str:
        """Say why an index is not held."""
        if index < 0:
            return f"frame {index} is negative; frame indices count from 0"
        if index > FIRST_PIN - (1 << 32):
            return f"frame {index} names no pinned frame; {n_pins} are pinned"
        if not self.n_lanes:
            return f"frame {index} does not exist: the array has no lanes"
        count, lane = divmod(index, self.n_lanes)
        appended = int(self.counts[lane])
        if count >= appended:
            return (
                f"frame {index} was never appended: lane {lane} has had {appended} frames, "
                f"the last one {(appended - 1) * self.n_lanes + lane if appended else 'none'}"
            )
        oldest = int(self.oldest[lane])
        if count < oldest:
            kept = f"the oldest kept frame of lane {lane} is {oldest * self.n_lanes + lane}"
            if count >= appended - self.n_slots:
                return f"frame {index} was discarded; {kept}"
            return (
                f"frame {index} was evicted; {kept}. Use newer ones, or build the array with a "
                f"larger first axis than {self.n_slots}"
            )
        return f"frame {index} was retired: its slot {count % self.n_slots} was assigned to"

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 2 * self.both.nbytes + self._retired.nbytes

    @property
    def n_held(self) -> int:
        """Frame indices that can be gathered, pinned ones apart."""
        held = int((self.counts - self.oldest).sum())
        if self._retired.size:
            slots, lanes = np.divmod(np.flatnonzero(self._retired), max(self.n_lanes, 1))
            newest = self.counts[lanes] - 1
            latest = newest - (newest - slots) % self.n_slots  # the last count in each slot
            held -= int(np.count_nonzero(latest >= self.oldest[lanes]))
        return held


@kernel
def number_rows(counts: Any, oldest: Any, n_slots: Any, retired: Any, lanes: Any,
                both: Any) -> None:  # fmt: skip
    """Fill ``both`` with what `Ring.advance` returns, and evict what was in the slots."""
    n_rows, n_lanes = both.shape[1], len(counts)
    for i in range(len(lanes)):
        lane = lanes[i]
        for row in range(n_rows):
            count = counts[lane] + row
            slot = count % n_slots
            both[0, row, i] = count * n_lanes + lane
            both[1, row, i] = slot
            oldest[lane] = max(oldest[lane], count + 1 - n_slots)
            if len(retired):
                retired[slot * n_lanes + lane] = False


@kernel
def count_rows(counts: Any, lanes: Any, n_rows: Any) -> None:
    """Let each of some lanes have ``n_rows`` more."""
    for lane in lanes:
        counts[lane] += n_rows


@kernel
def find_new(places: Any, counts: Any, before: Any, n_slots: Any, n_pins: Any,
             most: Any) -> Any:  # fmt: skip
    """Do what `Ring.have_new` says."""
    n_lanes = len(counts)
    for lane in range(n_lanes):
        if not 0 <= counts[lane] - before[lane] <= most:
            return True
    for place in places:
        if place < 0:
            if -1 - place >= n_pins:
                return True
            continue
        slot = place // n_lanes
        lane = place - slot * n_lanes
        if (slot - before[lane]) % n_slots < counts[lane] - before[lane]:
            return True
    return False


@kernel
def find_places(indices: Any, counts: Any, oldest: Any, n_slots: Any, retired: Any, n_pins: Any,
                places: Any) -> Any:  # fmt: skip
    """Fill ``places`` as `Ring.places` says; return the first bad position, or -1."""
    n_lanes = len(counts)
    for i in range(len(indices)):
        index = indices[i]
        if index > FIRST_PIN - n_pins:
            if index > FIRST_PIN:
                return i
            places[i] = -1 - (FIRST_PIN - index)
            continue
        if index < 0 or n_lanes == 0:
            return i
        count = index // n_lanes
        lane = index - count * n_lanes
        if count >= counts[lane] or count < oldest[lane]:
            return i
        place = (count % n_slots) * n_lanes + lane
        if len(retired) and retired[place]:
            return i
        places[i] = place
    return -1
