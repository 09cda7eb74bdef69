"""The rewards of a buffer's cells: a byte each while few different ones come."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.errors import CorruptFrameError
from compressarray.kernels.compiling import inlined, kernel
from compressarray.snapshots import Snapshot, array_of

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

N_CODES = 256


class RewardArrays(NamedTuple):
    """Where rewards lie: replaced together.

    Attributes
    ----------
    codes : ndarray, (n,) uint8
        Which of the values each cell has; empty once there are too many.
    values : ndarray, (`N_CODES`,) or (n,) float32
        The different ones, in the order in which they came; without codes each cell's own.
    known : ndarray, (1,) int64
        How many different ones there are.
    """

    codes: npt.NDArray[np.uint8]
    values: Floats
    known: Int64s


class Rewards:
    """Rewards by cell, float32, bit for bit.

    Games pay a few different rewards, which a byte tells apart; where more than `N_CODES` have
    come, each cell has four bytes from then on.
    """

    def __init__(self, n_cells: int) -> None:
        self.arrays = RewardArrays(
            np.zeros(n_cells, np.uint8), np.zeros(N_CODES, np.float32), np.ones(1, np.int64)
        )
        self._n_cells = n_cells

    def __len__(self) -> int:
        return self._n_cells

    def __getitem__(self, cells: Int64s) -> Floats:
        """Return the rewards of some cells, a copy of their shape."""
        codes, values, _ = self.arrays
        read: Floats = values[codes[cells] if len(codes) else cells]
        return read

    def __setitem__(self, cells: Int64s, rewards: Floats) -> None:
        """Have rewards in some cells; of several for one the last one stays."""
        given = np.array(rewards, np.float32)  # of a message: of another type to kernels
        while not put_rewards(cells, given, *self.arrays):
            self.widen()

    def make_room(self, lanes: Int64s, rewards: npt.NDArray[np.floating[Any]]) -> None:
        """Have room for the rewards of some lanes, of ``(n_lanes,)``."""
        if not has_codes(lanes, rewards, *self.arrays):
            self.widen()

    def widen(self) -> None:
        """Give each cell four bytes of its own."""
        codes, values, known = self.arrays
        self.arrays = RewardArrays(np.zeros(0, np.uint8), values[codes], known)

    def snapshot(self) -> Snapshot:
        """Show what there is, as views."""
        codes, values, known = self.arrays
        return {"codes": codes, "values": values[: known[0]] if len(codes) else values}

    def restore(self, snapshot: Snapshot) -> None:
        """Become what a snapshot was taken of."""
        values = array_of(snapshot, "values", np.float32, (None,))
        if not np.isfinite(values).all():
            raise CorruptFrameError("stored rewards are not all finite")
        codes = array_of(snapshot, "codes", np.uint8, (None,), 0, max(len(values) - 1, 0))
        wide = not len(codes) and self._n_cells > 0
        if len(values) != self._n_cells if wide else not 1 <= len(values) <= N_CODES:
            raise CorruptFrameError(f"stored rewards have {len(values)} values")
        if not wide and len(codes) != self._n_cells:
            raise CorruptFrameError(f"stored rewards have codes of {len(codes)} cells")
        known = np.array([N_CODES if wide else len(values)])
        if not wide:
            table = np.zeros(N_CODES, np.float32)
            table[: len(values)] = values
            values = table
        self.arrays = RewardArrays(codes, values, known)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self.arrays)


@inlined
def reward_at(codes: Any, values: Any, cell: Any) -> Any:
    """The reward of a cell."""
    return values[codes[cell]] if len(codes) else values[cell]


@inlined
def _code_of(values: Any, n: Any, reward: Any) -> Any:
    """Which of the first ``n`` values a reward is, bit for bit; ``n`` for none."""
    code = 0
    while code < n and not (
        values[code] == reward and np.signbit(values[code]) == np.signbit(reward)
    ):
        code += 1
    return code


@inlined
def put_reward(cell: Any, reward: Any, codes: Any, values: Any, known: Any) -> Any:
    """Have a reward in a cell; False if there is no code left for it, and nothing has changed."""
    reward = np.float32(reward)
    if len(codes) == 0:
        values[cell] = reward
        return True
    code = _code_of(values, known[0], reward)
    if code == known[0]:
        if code == N_CODES:
            return False
        values[code] = reward
        known[0] += 1
    codes[cell] = code
    return True


@kernel
def put_rewards(cells: Any, rewards: Any, codes: Any, values: Any, known: Any) -> Any:
    """See `Rewards.__setitem__`; False where codes do not suffice."""
    n_put = 0
    while n_put < len(cells) and put_reward(cells[n_put], rewards[n_put], codes, values, known):
        n_put += 1
    return n_put == len(cells)


@kernel
def has_codes(lanes: Any, rewards: Any, codes: Any, values: Any, known: Any) -> Any:
    """Whether `put_reward` has codes for the rewards of some lanes, whatever they are."""
    n_new = 0
    if len(codes) > 0:
        for lane in lanes:
            n_new += _code_of(values, known[0], np.float32(rewards[lane])) == known[0]
    return n_new <= N_CODES - known[0] or len(codes) == 0
