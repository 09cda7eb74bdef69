"""Which transitions a window of steps may start from, and the choice of the k-th of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.kernels.attaching import (
    Float64Row,
    Int32Row,
    Int64Row,
    UInt32Row,
    attacher,
    describe,
)
from compressarray.kernels.compiling import kernel
from compressarray.replay.priorities import SumTree, set_leaf

Int64s = npt.NDArray[np.int64]

# What is known of a transition.
TERMINATED, TRUNCATED, CUT, FIRST = 1, 2, 4, 8
# Its episode goes no further: bootstrap or stop, but look at no later step.
END = TERMINATED | TRUNCATED | CUT

MAX_CELLS = (1 << 31) - 1  # starts are counted in 32 bits
_WORD_SHIFT = 5  # 32 cells a word, so that all arithmetic stays in int64


class WindowArrays(NamedTuple):
    """What kernels see of windows.

    Attributes
    ----------
    size : ndarray, (2,) int64
        Their length, and whether only full ones count.
    words, counts
        As in `Windows`.
    leaves, sums
        As in `SumTree`; the largest priority so far, ``sums[0]``, is what new starts get.
    """

    size: Int64Row
    words: UInt32Row
    counts: Int32Row
    leaves: Float64Row
    sums: Float64Row


# (view): the arrays of windows, in kernels.
windows_at: Any = attacher(WindowArrays)


class Windows:
    """The set of cells that a window of ``length`` steps may start from.

    A bit for each cell, and above the words a tree of counts: setting a bit and finding the k-th
    set one take a step for each level, 15 of them for a million transitions. Held are three bits
    for each cell, and up to six where their number is no power of two.

    Parameters
    ----------
    n_cells : int
        Cell ``lane * n_slots + slot`` holds a transition.
    length : int
        Steps of a window, from 1.
    full : bool
        Whether only windows of `length` steps count, or also those that an episode's end cuts
        short.
    tree : SumTree, optional
        Given a priority wherever a start is added, and zero where one goes.
    """

    def __init__(self, n_cells: int, length: int, full: bool, tree: SumTree | None = None) -> None:
        if n_cells > MAX_CELLS:
            raise OverflowError(f"{n_cells} are more than the {MAX_CELLS} that can be counted")
        # A power of two, so that the leaves of the tree of counts lie in the order of their cells.
        n_words = 1 << (max(n_cells - 1, 0) >> _WORD_SHIFT).bit_length()
        self.n_cells = n_cells
        self.length = length
        self.full = full
        self.words = np.zeros(n_words, np.uint32)
        # Node i has children 2i and 2i + 1; the last n_words nodes belong to the words.
        self.counts: npt.NDArray[np.int32] = np.zeros(2 * n_words, np.int32)
        self.tree = SumTree(0) if tree is None else tree
        # None of them is ever replaced.
        self._arrays = WindowArrays(
            np.array([length, full]), self.words, self.counts, self.tree.leaves, self.tree.sums
        )
        self.view = describe(self._arrays)  # where kernels find them

    def __len__(self) -> int:
        return int(self.counts[1])

    def select(self, ranks: Int64s) -> Int64s:
        """Return the cells of some ranks, each below ``len(self)``; a bijection between edits."""
        if len(self) == self.n_cells:
            return ranks
        cells = np.empty(len(ranks), np.int64)
        select(self.words, self.counts, ranks, cells)
        return cells

    def holds(self, cells: Int64s) -> npt.NDArray[np.bool_]:
        """Say of each cell whether it is in the set."""
        bits = self.words[cells >> _WORD_SHIFT] >> (cells & 31).astype(np.uint32)
        held: npt.NDArray[np.bool_] = (bits & 1).astype(np.bool_)
        return held

    def remove(self, cells: Int64s) -> None:
        """Take cells out, until what they hold is replaced; nothing happens where they are not."""
        remove(cells, self.view)

    def advance(
        self,
        lanes: Int64s,
        is_new: bool,
        counts: Int64s,
        runs: Int64s,
        flags: npt.NDArray[np.uint8],
    ) -> None:
        """Put in what the newest transition of some lanes lets start.

        Parameters
        ----------
        lanes : ndarray of int64
        is_new : bool
            Whether it was added just now, and what it replaced has to be taken out; or its flags
            have changed.
        counts, runs : ndarray, (n_lanes,) int64
            Transitions that each lane has had, and those of its newest episode that are held.
        flags : ndarray, (n_lanes, n_slots) uint8
        """
        advance(lanes, is_new, counts, runs, flags, self.view)

    def catch_up(
        self,
        lanes: Int64s,
        n_new: Int64s,
        was_cut: npt.NDArray[np.bool_],
        counts: Int64s,
        runs: Int64s,
        flags: npt.NDArray[np.uint8],
    ) -> None:
        """Do what `advance` does, for several transitions of some lanes whose flags are there.

        Parameters
        ----------
        lanes, n_new : ndarray, (n,) int64
            Which, and how many transitions each of them has got, fewer than it keeps.
        was_cut : ndarray, (n,) bool
            Whether the episode of the newest one before those was cut meanwhile.
        counts, runs : ndarray, (n_lanes,) int64
            As they were before.
        flags : ndarray, (n_lanes, n_slots) uint8
            As they are now.
        """
        catch_up(lanes, n_new, was_cut, counts, runs, flags, self.view)

    def rebuild(self, oldest: Int64s, counts: Int64s, flags: npt.NDArray[np.uint8]) -> None:
        """Fill an empty set from all transitions that are held; takes a pass over the flags."""
        rebuild(oldest, counts, flags, self.view)

    @property
    def nbytes(self) -> int:
        """Bytes held, priorities apart."""
        return self.words.nbytes + self.counts.nbytes


@kernel
def put(cell: Any, present: Any, windows: Any) -> Any:
    """Put a cell in, or take it out; nothing happens where it is so already."""
    words, counts = windows.words, windows.counts
    word = cell >> _WORD_SHIFT
    bit = 1 << (cell & 31)
    held = np.int64(words[word])
    if ((held & bit) != 0) == present:
        return
    words[word] = held ^ bit
    node = word + len(words)
    change = 1 if present else -1
    while node >= 1:
        counts[node] += change
        node >>= 1
    if len(windows.leaves):
        set_leaf(windows.leaves, windows.sums, cell, windows.sums[0] if present else 0.0)


@kernel
def remove(cells: Any, view: Any) -> Any:
    """See `Windows.remove`."""
    windows = windows_at(view)
    for cell in cells:
        put(cell, False, windows)


@kernel
def select(words: Any, counts: Any, ranks: Any, cells: Any) -> Any:
    """Fill ``cells`` as `Windows.select` says."""
    n_words = len(words)
    for i in range(len(ranks)):
        rank = ranks[i]
        node = 1
        while node < n_words:
            node *= 2
            if rank >= counts[node]:
                rank -= counts[node]
                node += 1
        word = np.int64(words[node - n_words])
        bit = 0
        while True:
            if (word >> bit) & 1:
                if rank == 0:
                    break
                rank -= 1
            bit += 1
        cells[i] = ((node - n_words) << _WORD_SHIFT) + bit


@kernel
def admit(lane: Any, newest: Any, run: Any, flags: Any, windows: Any) -> Any:
    """Put in the starts of windows that end with one transition, the newest of ``run`` steps."""
    n_slots, length = flags.shape[1], windows.size[0]
    # Window [newest - back, newest] is whole where back == length - 1; a shorter one will never
    # grow once its episode has ended.
    first_back = length - 1
    if flags[lane, newest % n_slots] & END and not windows.size[1]:
        first_back = 0
    for back in range(first_back, min(length, run)):
        put(lane * n_slots + (newest - back) % n_slots, True, windows)


@kernel
def advance(lanes: Any, is_new: Any, lane_counts: Any, runs: Any, flags: Any, view: Any) -> Any:
    """See `Windows.advance`."""
    advance_of(lanes, is_new, lane_counts, runs, flags, windows_at(view))


@kernel
def advance_of(lanes: Any, is_new: Any, lane_counts: Any, runs: Any, flags: Any,
               windows: Any) -> Any:  # fmt: skip
    """Do what `advance` does."""
    n_slots = flags.shape[1]
    for lane in lanes:
        newest = lane_counts[lane] - 1
        if is_new:
            put(lane * n_slots + newest % n_slots, False, windows)
        admit(lane, newest, runs[lane], flags, windows)


@kernel
def catch_up(lanes: Any, n_new: Any, was_cut: Any, lane_counts: Any, runs: Any, flags: Any,
             view: Any) -> Any:  # fmt: skip
    """See `Windows.catch_up`."""
    windows = windows_at(view)
    n_slots = flags.shape[1]
    for i in range(len(lanes)):
        lane = lanes[i]
        count, run = lane_counts[lane], runs[lane]
        if was_cut[i]:
            admit(lane, count - 1, run, flags, windows)
        for t in range(count, count + n_new[i]):
            put(lane * n_slots + t % n_slots, False, windows)
            if flags[lane, t % n_slots] & FIRST:
                run = 0
            run = min(run + 1, n_slots)
            admit(lane, t, run, flags, windows)


@kernel
def rebuild(oldest: Any, lane_counts: Any, flags: Any, view: Any) -> Any:
    """See `Windows.rebuild`."""
    windows = windows_at(view)
    n_lanes, n_slots = flags.shape
    for lane in range(n_lanes):
        run = 0
        for t in range(oldest[lane], lane_counts[lane]):
            run += 1
            admit(lane, t, run, flags, windows)
            if flags[lane, t % n_slots] & END:
                run = 0
