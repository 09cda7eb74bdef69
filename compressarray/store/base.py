"""What every store does: cells in, cells out, one writer or many readers, pinned frames."""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.codecs import Codec
from compressarray.errors import CorruptFrameError
from compressarray.format.messages import Items, Message
from compressarray.kernels.compiling import kernel
from compressarray.kernels.memory import base_of
from compressarray.snapshots import Snapshot, array_of, int_of
from compressarray.store.description import Description
from compressarray.store.geometry import Geometry
from compressarray.store.locks import ReadWriteLock

Int64s = npt.NDArray[np.int64]
UInt8s = npt.NDArray[np.uint8]


def address_of(array: npt.NDArray[np.generic]) -> int:
    """Where an array's memory begins."""
    return int(array.__array_interface__["data"][0])


@kernel
def _address(flat: Any) -> Any:
    # an eighth of the time of `address_of`, but compiled for each type of array
    return base_of(flat)


class Store(ABC):
    """Frames of bytes in cells ``(row * n_lanes + lane) * stack + k``.

    Callers pass valid cells and contiguous memory; everything a user could get wrong has been
    refused before. What writes is a step of a write (see `compressarray.writing`): one at a time,
    and `finish` or `roll_back` ends it.
    """

    def __init__(self, geometry: Geometry, codec: Codec) -> None:
        self._geometry = geometry
        self._n_rows, self._n_lanes, self._stack, self._frame_bytes, *_ = geometry
        self._resolved_codec = codec
        self._items = np.arange(0)  # of one row of all lanes, once there was one
        self._pins = np.zeros((0, geometry.frame_bytes), np.uint8)
        self._lock = ReadWriteLock()
        self._count_lock = threading.Lock()
        self._frames_decoded = 0
        self._gops_decoded = 0
        # Whether this is a replica that nothing was written to but what its writer did. It learns
        # nothing, for it is told what its writer has learnt.
        self.follows = False

    def read(self, cells: Int64s, out: npt.NDArray[Any]) -> None:
        """Decode cells into ``out``, C-contiguous, of ``len(cells)`` frames.

        Negative cells name pinned frames.
        """
        if len(cells):
            self._lock.read(self._read, cells, out.reshape(-1).view(np.uint8))

    def write(self, cells: Int64s, frames: UInt8s) -> None:
        """Store copies of ``frames``, ``(len(cells), frame bytes)``, C-contiguous, in cells.

        Of frames for one cell the last one stays.
        """
        n, stack, n_lanes = len(cells), self._stack, self._n_lanes
        if not n:
            return
        n_stacks, rest = divmod(n, stack)
        first = int(cells[0]) // stack
        row, lane = divmod(first, n_lanes)
        if (
            not rest
            and lane + n_stacks <= n_lanes
            and cells[0] == first * stack
            and cells[-1] == cells[0] + n - 1
            and (cells[1:] > cells[:-1]).all()
        ):
            # neighbouring lanes of one row, as a rollout writes them
            lanes = np.arange(lane, lane + n_stacks)
            self._lock.write(
                self._write_rows, lanes, np.full(n_stacks, row), np.arange(n_stacks),
                address_of(frames),
            )  # fmt: skip
            return
        whole = not rest
        rows = cells
        if whole and stack > 1:
            stacks = cells.reshape(-1, stack)
            whole = bool((stacks - stacks[:, :1] == np.arange(stack)).all())
            whole = whole and bool((stacks[:, 0] % stack == 0).all())
            rows = stacks[:, 0] // stack
        if not whole:
            self._lock.write(self._write_cells, cells, address_of(frames))
            return
        lanes = rows % n_lanes
        rows = rows // n_lanes
        # Lane by lane in time order: the order in which groups are cheapest to build.
        items = np.lexsort((rows, lanes)) if len(rows) > 1 else np.zeros(1, np.int64)
        self._lock.write(
            self._write_rows, lanes[items], rows[items], items, address_of(frames)
        )  # fmt: skip

    def append(self, lanes: Int64s, rows: Int64s, frames: UInt8s) -> None:
        """Store stacks in rows of lanes, in the order given; ``frames`` are their bytes, flat."""
        n = len(rows)
        if n:
            items = self._items
            if n != len(items):
                items = np.arange(n)
                if n == self._n_lanes:
                    self._items = items
            self._lock.write(self._write_rows, lanes, rows, items, _address(frames))

    def forget(self, first: Int64s, end: Int64s, counts: Int64s) -> None:
        """Give back what only old rows of lanes need, of a ring without a stack axis.

        Parameters
        ----------
        first, end, counts : ndarray, (n_lanes,) int64
            Rows ``count % n_rows`` of counts ``first`` to ``end - 1`` are not needed; ``counts``
            were written.
        """
        self._lock.write(self._forget, first, end, counts)

    def may_forget(self, first: Int64s, end: Int64s) -> bool:
        """Whether anything may be held that only these rows need; cheap: every step asks it.

        True where the store cannot tell without a look at its groups.
        """
        return bool((first < end).any())

    # -- a step of a write, see `compressarray.writing` ---------------------------------------

    def finish(self) -> None:
        """Let go of what the write that runs has replaced."""
        if not self._finish_alone():
            self._lock.write(self._finish)

    def roll_back(self) -> None:
        """Take back what the write that runs has done."""
        self._lock.write(self._roll_back)

    def tidy(self) -> None:
        """Learn from what was written, and clean up; once a write is done."""
        if self._is_untidy():
            self._lock.write(self._tidy)

    def pin(self, entry: UInt8s) -> int:
        """Keep a stack, ``(stack * frame bytes,)``, for good; return its number.

        An equal one that is pinned already gives its number. Frame k of stack i is cell
        ``-1 - (i * stack + k)``.
        """
        held = self._pins.reshape(-1, entry.size)
        same = np.flatnonzero((held == entry).all(axis=1))
        if len(same):
            return int(same[0])
        self._pins = np.concatenate([held, entry[None]]).reshape(-1, self._frame_bytes)
        return len(held)

    def forget_pins(self, n_kept: int) -> None:
        """Keep only the first so many of the pinned stacks."""
        self._pins = self._pins[: n_kept * self._stack]

    def take_pins(self, other: Store) -> None:
        """Pin what another store of the same frames has pinned, under the same numbers."""
        self._pins = other._pins

    @property
    @abstractmethod
    def is_mapped(self) -> bool:
        """Whether the frames lie in a file, and nothing may be written."""

    @property
    def n_pins(self) -> int:
        """Number of pinned stacks."""
        return len(self._pins) // self._stack

    @property
    def nbytes_by_part(self) -> dict[str, int]:
        """Bytes held, by what holds them."""
        return {**self._bytes_by_part(), "pins": self._pins.nbytes}

    @property
    def report(self) -> dict[str, int]:
        """Counts since construction."""
        return {
            "frames_decoded": self._frames_decoded,
            "gops_decoded": self._gops_decoded,
            **self._report(),
        }

    # -- replicas ----------------------------------------------------------------------------

    def watch(self) -> None:
        """Keep in mind what changes from now on, so that `put_changes` can tell."""
        self._lock.write(self._watch)

    @abstractmethod
    def mark(self) -> Any:
        """Remember what a replica has that is filled now."""

    @abstractmethod
    def put_changes(self, message: Message, mark: Any) -> bool:
        """Add to a message what has changed since a mark; False if that is not known any more.

        Takes time in proportion to it.
        """

    @abstractmethod
    def put_everything(self, message: Message) -> None:
        """Add all that there is, as if it had changed since a store of these arguments was made."""

    def describe(self) -> Description | None:
        """Say what readers of such messages have to know; None where they cannot decode frames."""
        return None

    def take(self, items: Items) -> None:
        """Take the changes of another store of the same arguments, that this one is a replica of.

        A step of a write. Everything is checked as for `restore`.

        Raises
        ------
        CorruptFrameError
            If they are none of such a store; what was taken is then to be rolled back.
        ValueError
            If something was written here meanwhile.
        """
        if not self.follows:
            raise ValueError(
                "this replica was written to, so that it no longer holds what its writer did; fill "
                "another one"
            )
        self._lock.write(self._take, items)

    def _put_pins(self, message: Message, n_known: int) -> None:
        message.put_ints([n_known])
        message.put_bytes(self._pins[n_known:])

    def _take_pins(self, items: Items) -> None:
        n_known, more = items.number(0, len(self._pins)), items.octets()
        if n_known != len(self._pins) or len(more) % (self._stack * self._frame_bytes):
            raise CorruptFrameError(
                f"{len(more)} bytes behind {n_known} pinned frames are none that follow on "
                f"{len(self._pins)}"
            )
        self._pins = np.concatenate([self._pins, more.reshape(-1, self._frame_bytes)])

    @abstractmethod
    def _watch(self) -> None: ...

    @abstractmethod
    def _take(self, items: Items) -> None: ...

    @abstractmethod
    def _read(self, cells: Int64s, out: UInt8s) -> None: ...

    @abstractmethod
    def _write_rows(self, lanes: Int64s, rows: Int64s, items: Int64s, frames: int) -> None: ...

    @abstractmethod
    def _write_cells(self, cells: Int64s, frames: int) -> None: ...

    @abstractmethod
    def _forget(self, first: Int64s, end: Int64s, counts: Int64s) -> None: ...

    def _finish_alone(self) -> bool:
        """Finish if nothing has to go that a reader may look at; say whether that is done."""
        return False

    @abstractmethod
    def _finish(self) -> None: ...

    @abstractmethod
    def _is_untidy(self) -> bool: ...

    @abstractmethod
    def _roll_back(self) -> None: ...

    @abstractmethod
    def _tidy(self) -> None: ...

    @abstractmethod
    def _fill_frame(self) -> UInt8s: ...

    @abstractmethod
    def _bytes_by_part(self) -> dict[str, int]: ...

    @abstractmethod
    def _report(self) -> dict[str, int]: ...

    # -- copying and pickling ----------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """What a store of the same arguments needs to become this one."""
        return {
            "fill": self._fill_frame().copy(),
            "pins": self._pins.copy(),
            "frames_decoded": self._frames_decoded,
            "gops_decoded": self._gops_decoded,
            **self._lock.read(self._snapshot),
        }

    def restore(self, snapshot: Snapshot, *, is_ours: bool) -> None:
        """Become what a snapshot was taken of; this store is fresh.

        What comes from elsewhere is checked so far that no read or write after that can reach
        outside of the store's memory. Where ``is_ours``, records need no look.

        Raises
        ------
        CorruptFrameError
            If the snapshot is not one of a store of these arguments.
        """
        pins = array_of(snapshot, "pins", np.uint8, (None, self._frame_bytes))
        if len(pins) % self._stack:
            raise CorruptFrameError(f"{len(pins)} pinned frames make no stacks of {self._stack}")
        self._pins = pins
        self._frames_decoded = int_of(snapshot, "frames_decoded", 0)
        self._gops_decoded = int_of(snapshot, "gops_decoded", 0)
        self._restore(snapshot, is_ours)

    @abstractmethod
    def _snapshot(self) -> Snapshot: ...

    @abstractmethod
    def _restore(self, snapshot: Snapshot, is_ours: bool) -> None: ...

    def __deepcopy__(self, memo: dict[int, Any]) -> Store:
        kind: Any = type(self)
        codec = copy.deepcopy(self._resolved_codec, memo)
        twin: Store = kind(self._geometry, self._fill_frame(), codec)
        twin.restore(self.snapshot(), is_ours=True)
        return twin
