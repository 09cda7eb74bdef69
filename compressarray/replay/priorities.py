"""Sums of priorities, and the choice of a transition in proportion to its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.errors import CorruptFrameError
from compressarray.kernels.compiling import kernel
from compressarray.replay.changed import ChangedCells
from compressarray.snapshots import Snapshot, array_of

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Leaves under one node: scanned in less than the cache miss that another level would cost, and
# the nodes take a byte for each leaf instead of eight.
GROUP = 16


class SumTree:
    """Non-negative numbers, one for each cell, and their sums in groups, pairs of groups, ...

    A node is always computed anew from its children, so sums do not drift, and where all leaves
    below are zero it is exactly zero. Nine bytes a cell.
    """

    def __init__(self, n_cells: int) -> None:
        n_groups = -(-n_cells // GROUP)
        self.leaves: Floats = np.zeros(n_groups * GROUP)
        # Node i has children 2i and 2i + 1; the last n_groups nodes belong to the groups.
        # Node 0 would be nobody's: there is what a new transition gets, the largest so far.
        self.sums: Floats = np.zeros(max(2 * n_groups, 2))
        self.sums[0] = 1.0
        self.changed = ChangedCells(n_cells)  # by `update`

    @property
    def top(self) -> float:
        """What a new transition gets: the largest leaf that there was, at least 1."""
        return float(self.sums[0])

    @property
    def total(self) -> float:
        """The sum of all leaves."""
        return float(self.sums[1])

    def draw(self, randoms: Floats, replace: bool) -> tuple[Int64s, Floats]:
        """Draw cells in proportion to their leaves.

        Parameters
        ----------
        randoms : ndarray, (n,) float64
            From [0, 1). With replacement, the i-th chooses in the i-th of n equal parts of the
            total (Schaul et al., Prioritized experience replay, 2016, appendix B.2.1).
        replace : bool
            False: a cell that was drawn counts as zero for the draws after it.

        Returns
        -------
        cells : ndarray, (n,) int64
            Shorter without replacement, where fewer leaves are above zero.
        probabilities : ndarray, float64
            Of each cell at a first draw.
        """
        cells = np.empty(len(randoms), np.int64)
        probabilities = np.empty(len(randoms))
        n = draw(self.leaves, self.sums, randoms, replace, cells, probabilities)
        return cells[:n], probabilities[:n]

    def find(self, targets: Floats) -> Int64s:
        """Return the cells, ``(n,)``, under which the running sum of all leaves passes targets.

        Each is from zero to below `total`, which must be above zero.
        """
        cells = np.empty(len(targets), np.int64)
        find(self.leaves, self.sums, targets, cells)
        return cells

    def update(self, cells: Int64s, values: Floats) -> None:
        """Set leaves; of several for one cell the last one stays.

        Raises
        ------
        ValueError
            If the total would be zero or infinite; then nothing has changed.
        """
        self.changed.add(cells)
        total = update(self.leaves, self.sums, cells, values)
        if not 0 < total < np.inf:
            raise ValueError(
                f"these priorities would bring the sum of all to {total}, in proportion to which "
                "nothing can be drawn; nothing was changed. Use epsilon above 0"
            )

    # -- replicas, see `compressarray.feed` ----------------------------------------------------

    def set_to(self, cells: Int64s, values: Floats, top: float) -> None:
        """Have some leaves and a top that were another tree's."""
        self.sums[0] = top
        set_leaves(self.leaves, self.sums, cells, values)

    def snapshot(self) -> Snapshot:
        """Show what cannot be worked out from the rest, as views."""
        return {"leaves": self.leaves, "top": self.sums[:1]}

    def restore(self, snapshot: Snapshot, cells: Int64s, highest: float) -> None:
        """Become what a snapshot was taken of.

        Parameters
        ----------
        snapshot : dict
        cells : ndarray of int64
            Those whose leaves may be above zero.
        highest : float
            What no leaf is above, so that all of them have a finite sum.

        Raises
        ------
        CorruptFrameError
            If the snapshot is not one of such a tree.
        """
        top = array_of(snapshot, "top", np.float64, (1,))
        if not 1 <= top[0] <= highest:
            raise CorruptFrameError(f"stored top is {top[0]}, not from 1 to {highest}")
        leaves = array_of(snapshot, "leaves", np.float64, self.leaves.shape, copy=False)
        if not ((leaves >= 0) & (leaves <= top)).all():  # NaN is neither
            raise CorruptFrameError(f"stored leaves are not all from 0 to {top[0]}, the top")
        if leaves.size and np.count_nonzero(leaves) != np.count_nonzero(leaves[cells]):
            raise CorruptFrameError("stored leaves give priority to what may not be drawn")
        self.leaves[:] = leaves  # in place: views say where they lie
        self.sums[0] = top[0]
        sum_up(self.leaves, self.sums)

    @property
    def nbytes(self) -> int:
        """Bytes held, none without cells."""
        if not len(self.leaves):
            return 0
        return self.leaves.nbytes + self.sums.nbytes + self.changed.nbytes


@kernel
def set_leaf(leaves: Any, sums: Any, cell: Any, value: Any) -> Any:
    """Set one leaf and the sums above it."""
    leaves[cell] = value
    group = cell // GROUP
    total = 0.0
    for i in range(group * GROUP, (group + 1) * GROUP):
        total += leaves[i]
    node = group + len(sums) // 2
    sums[node] = total
    node >>= 1
    while node >= 1:
        sums[node] = sums[2 * node] + sums[2 * node + 1]
        node >>= 1


@kernel
def set_leaves(leaves: Any, sums: Any, cells: Any, values: Any) -> Any:
    """Set some leaves and the sums above them."""
    for i in range(len(cells)):
        set_leaf(leaves, sums, cells[i], values[i])


@kernel
def sum_up(leaves: Any, sums: Any) -> Any:
    """Compute all sums anew, in the order of `set_leaf`, so that they are the same bit for bit."""
    n_groups = len(leaves) // GROUP
    for node in range(2 * n_groups - 1, 0, -1):
        if node < n_groups:
            sums[node] = sums[2 * node] + sums[2 * node + 1]
        else:
            total = 0.0
            for i in range((node - n_groups) * GROUP, (node - n_groups + 1) * GROUP):
                total += leaves[i]
            sums[node] = total


@kernel
def find_leaf(leaves: Any, sums: Any, target: Any) -> Any:
    """Return the leaf under which the running sum passes ``target``; its value is above zero.

    The total must be above zero. Rounding may bring ``target`` past the end: then the last
    positive leaf on the way is it.
    """
    n_groups = len(sums) // 2
    node = 1
    while node < n_groups:
        node *= 2
        if target >= sums[node] and sums[node + 1] > 0.0:
            target -= sums[node]
            node += 1
    cell = -1
    for i in range((node - n_groups) * GROUP, (node - n_groups + 1) * GROUP):
        if leaves[i] > 0.0:
            cell = i
            if target < leaves[i]:
                break
            target -= leaves[i]
    return cell


@kernel
def find(leaves: Any, sums: Any, targets: Any, cells: Any) -> Any:
    """Fill ``cells`` as `SumTree.find` says."""
    for i in range(len(targets)):
        cells[i] = find_leaf(leaves, sums, targets[i])


@kernel
def draw(leaves: Any, sums: Any, randoms: Any, replace: Any, cells: Any,
         probabilities: Any) -> Any:  # fmt: skip
    """Fill ``cells`` and ``probabilities`` as `SumTree.draw` says; return how many."""
    total = sums[1]
    n = 0
    for i in range(len(randoms)):
        if sums[1] <= 0.0:
            break
        target = (i + randoms[i]) / len(randoms) * total if replace else randoms[i] * sums[1]
        cell = find_leaf(leaves, sums, target)
        cells[i] = cell
        probabilities[i] = leaves[cell]
        n += 1
        if not replace:
            set_leaf(leaves, sums, cell, 0.0)
    for i in range(n):
        if not replace:
            set_leaf(leaves, sums, cells[i], probabilities[i])
        probabilities[i] /= total
    return n


@kernel
def update(leaves: Any, sums: Any, cells: Any, values: Any) -> Any:
    """Set leaves as `SumTree.update` says, if the total fits; return what it would be."""
    replaced = leaves[cells]
    for i in range(len(cells)):
        set_leaf(leaves, sums, cells[i], values[i])
    total = sums[1]
    if 0.0 < total < np.inf:
        for i in range(len(values)):
            sums[0] = max(sums[0], values[i])
    else:
        for i in range(len(cells) - 1, -1, -1):
            set_leaf(leaves, sums, cells[i], replaced[i])
    return total
